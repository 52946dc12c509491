"""Hypothesis as a test wants it: the same examples every time, no clock, no folder of its own."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "prunelab", derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("prunelab")
