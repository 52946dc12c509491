"""prunelab: learn pruning, and prune: train -> score -> prune -> recover -> measure."""

from . import (
    agreement,
    allocation,
    budget,
    calibration,
    core,
    criteria,
    exports,
    granularity,
    language,
    layerwise,
    masking,
    measurement,
    movement,
    pipeline,
    recipes,
    reconstruction,
    recovery,
    schedules,
    sensitivity,
    surgery,
)
from .allocation import NM, Report, allocate, expand, report
from .budget import fit_budget
from .calibration import Calibration
from .core import Criterion, Granularity, Group, Keep, Masks, Member, PruneError, Schedule, Scores
from .exports import export
from .layers import prunable
from .masking import apply, bake, masked
from .measurement import measure
from .pipeline import Pruned, Recipe, prune
from .recipes import load_recipe, save_recipe
from .registry import renamed
from .surgery import load_plan, save_plan, shrink

__version__ = "0.1.0"
__getattr__ = renamed(__name__, {"shares": "prunelab.shares"})

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
    "budget",
    "calibration",
    "core",
    "criteria",
    "expand",
    "export",
    "exports",
    "fit_budget",
    "granularity",
    "language",
    "layerwise",
    "load_plan",
    "load_recipe",
    "masked",
    "masking",
    "measure",
    "measurement",
    "movement",
    "pipeline",
    "prunable",
    "prune",
    "recipes",
    "reconstruction",
    "recovery",
    "report",
    "save_plan",
    "save_recipe",
    "schedules",
    "sensitivity",
    "shrink",
    "surgery",
]
