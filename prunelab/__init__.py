"""prunelab: learn pruning, and prune: train -> score -> prune -> recover -> measure."""

from . import (
    agreement,
    budget,
    criteria,
    granularity,
    language,
    layerwise,
    measurement,
    movement,
    reconstruction,
    recovery,
    schedules,
    sensitivity,
    surgery,
)
from .allocation import NM, allocate, expand, report
from .budget import fit_budget
from .calibration import Calibration
from .core import Group, Keep, Masks, Member, PruneError, Scores
from .exports import export
from .layers import prunable
from .masking import apply, bake, masked
from .measurement import measure
from .pipeline import Recipe, prune
from .recipes import load_recipe, save_recipe
from .registry import renamed
from .surgery import load_plan, save_plan, shrink

__version__ = "0.1.0"
__getattr__ = renamed(
    __name__,
    {
        "shares": "prunelab.shares",
        "Criterion": "prunelab.core.Criterion",
        "Granularity": "prunelab.core.Granularity",
        "Schedule": "prunelab.core.Schedule",
        "Pruned": "prunelab.pipeline.Pruned",
        "Report": "prunelab.allocation.Report",
    },
)
__all__ = [  # noqa: RUF022 (the five steps first, in their order)
    "measure",
    "criteria",
    "granularity",
    "allocate",
    "expand",
    "apply",
    "recovery",
    "bake",
    "shrink",
    "prune",
    # what they are asked with, and what they say
    "Recipe",
    "Calibration",
    "NM",
    "prunable",
    "masked",
    "report",
    "PruneError",
    "Group",
    "Member",
    "Scores",
    "Keep",
    "Masks",
    # what the steps may ask
    "schedules",
    "layerwise",
    "sensitivity",
    "movement",
    "reconstruction",
    "surgery",
    "language",
    # instruments
    "measurement",
    "fit_budget",
    "budget",
    "agreement",
    "export",
    "save_plan",
    "load_plan",
    "save_recipe",
    "load_recipe",
]
__dir__ = __all__.copy
