"""prunelab: learn pruning, and prune: train -> score -> prune -> recover -> measure."""

from . import (
    agreement,
    allocation,
    calibration,
    core,
    criteria,
    granularity,
    language,
    masking,
    measurement,
    movement,
    pipeline,
    reconstruction,
    recovery,
    schedules,
    sensitivity,
    shares,
    surgery,
)
from .allocation import NM, Report, allocate, expand, report
from .calibration import Calibration
from .core import Criterion, Granularity, Group, Keep, Masks, Member, PruneError, Schedule, Scores, prunable
from .masking import apply, bake, masked
from .measurement import measure
from .pipeline import Pruned, Recipe, prune
from .surgery import load_plan, save_plan, shrink

__version__ = "0.1.0"

__all__ = [
    "NM",
    "Calibration",
    "Criterion",
    "Granularity",
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
    "agreement",
    "allocate",
    "allocation",
    "apply",
    "bake",
    "calibration",
    "core",
    "criteria",
    "expand",
    "granularity",
    "language",
    "load_plan",
    "masked",
    "masking",
    "measure",
    "measurement",
    "movement",
    "pipeline",
    "prunable",
    "prune",
    "reconstruction",
    "recovery",
    "report",
    "save_plan",
    "schedules",
    "sensitivity",
    "shares",
    "shrink",
    "surgery",
]
