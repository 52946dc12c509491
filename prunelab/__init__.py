"""prunelab: learn pruning, and prune: train -> score -> prune -> recover -> measure.

A name is imported when it is first asked for, so that `import prunelab` costs next to nothing beside torch.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from .surgery import load_plan, save_plan, shrink

__version__ = "0.1.0"
__homes__ = {  # a function or class -> its module; a module is its own home
    "NM": "allocation",
    "allocate": "allocation",
    "expand": "allocation",
    "report": "allocation",
    "fit_budget": "budget",
    "Calibration": "calibration",
    "Group": "core",
    "Keep": "core",
    "Masks": "core",
    "Member": "core",
    "PruneError": "core",
    "Scores": "core",
    "export": "exports",
    "prunable": "layers",
    "apply": "masking",
    "bake": "masking",
    "masked": "masking",
    "measure": "measurement",
    "Recipe": "pipeline",
    "prune": "pipeline",
    "load_recipe": "recipes",
    "save_recipe": "recipes",
    "load_plan": "surgery",
    "save_plan": "surgery",
    "shrink": "surgery",
}
__moved__ = {
    "Criterion": "prunelab.core.Criterion",
    "Granularity": "prunelab.core.Granularity",
    "Schedule": "prunelab.core.Schedule",
    "Pruned": "prunelab.pipeline.Pruned",
    "Report": "prunelab.allocation.Report",
}
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


def __dir__() -> list[str]:
    return __all__.copy()


def __getattr__(name: str) -> Any:
    if name in __moved__:
        from .registry import renamed

        return renamed(__name__, __moved__, level=3)(name)
    home = __homes__.get(name, name)
    if importlib.util.find_spec(f"{__name__}.{home}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{home}")
    globals()[name] = found = getattr(module, name) if name in __homes__ else module
    return found
