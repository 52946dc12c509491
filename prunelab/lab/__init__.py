"""What only a notebook needs: `from prunelab import lab`. Nothing else in prunelab imports it."""

from . import plots, scoreboard
from .claims import ClaimError, claim
from .exercises import check, exercise, hint, solution
from .explorers import explorer
from .figures import figure, table
from .measuring import NO_CUDA, measured
from .predictions import predict, reveal
from .races import race, trials
from .readings import reading, sweep
from .session import start
from .store import progress, reset

__all__ = [
    "NO_CUDA",
    "ClaimError",
    "check",
    "claim",
    "exercise",
    "explorer",
    "figure",
    "hint",
    "measured",
    "plots",
    "predict",
    "progress",
    "race",
    "reading",
    "reset",
    "reveal",
    "scoreboard",
    "solution",
    "start",
    "sweep",
    "table",
    "trials",
]
