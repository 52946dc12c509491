"""prunelab: learn pruning, and prune: train -> score -> prune -> recover -> measure."""

from . import (
    allocation,
    calibration,
    core,
    criteria,
    granularity,
    masking,
    measurement,
    pipeline,
    recovery,
    schedules,
)
from .allocation import Report, allocate, expand, report
from .calibration import Calibration
from .core import Group, Keep, Masks, Member, PruneError, Schedule, Scores, prunable
from .masking import apply, bake, masked
from .measurement import measure
from .pipeline import Pruned, Recipe, prune

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "Group",
    "Keep",
    "Masks",
    "Member",
    "PruneError",
    "Pruned",
    "Recipe",
    "Report",
    "Schedule",
    "Scores",
    "allocate",
    "allocation",
    "apply",
    "bake",
    "calibration",
    "core",
    "criteria",
    "expand",
    "granularity",
    "masked",
    "masking",
    "measure",
    "measurement",
    "pipeline",
    "prunable",
    "prune",
    "recovery",
    "report",
    "schedules",
]
