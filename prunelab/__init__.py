"""prunelab: learn pruning, and prune: train -> score -> prune -> recover -> measure.

A name is imported when it is first asked for, so that `import prunelab` costs next to nothing beside torch.
"""

# ruff: noqa: F401 (the imports are for type checkers; the test of layers holds them beside `__homes__`)

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
    from .allocation import NM, allocate
    from .budget import fit_budget
    from .calibration import Calibration
    from .core import Group, Keep, Masks, Member, PruneError, Scores
    from .exports import export
    from .layers import prunable
    from .masking import apply, bake, expand, masked
    from .measurement import measure
    from .pipeline import Recipe, prune, report
    from .recipes import load_recipe, save_recipe
    from .surgery import load_plan, save_plan, shrink

__version__ = "0.1.0"
__homes__ = {  # a name -> the module that holds it; the five steps first, in their order
    "measure": "measurement",
    "criteria": "criteria",
    "granularity": "granularity",
    "allocate": "allocation",
    "expand": "masking",
    "apply": "masking",
    "recovery": "recovery",
    "bake": "masking",
    "shrink": "surgery",
    "prune": "pipeline",
    # what they are asked with, and what they say
    "Recipe": "pipeline",
    "Calibration": "calibration",
    "NM": "allocation",
    "prunable": "layers",
    "masked": "masking",
    "report": "pipeline",
    "PruneError": "core",
    "Group": "core",
    "Member": "core",
    "Scores": "core",
    "Keep": "core",
    "Masks": "core",
    # what the steps may ask
    "schedules": "schedules",
    "layerwise": "layerwise",
    "sensitivity": "sensitivity",
    "movement": "movement",
    "reconstruction": "reconstruction",
    "surgery": "surgery",
    "language": "language",
    # instruments
    "measurement": "measurement",
    "fit_budget": "budget",
    "budget": "budget",
    "agreement": "agreement",
    "export": "exports",
    "save_plan": "surgery",
    "load_plan": "surgery",
    "save_recipe": "recipes",
    "load_recipe": "recipes",
}
__all__ = list(__homes__)
__moved__ = {
    "Criterion": "prunelab.core.Criterion",
    "Granularity": "prunelab.core.Granularity",
    "Schedule": "prunelab.core.Schedule",
    "Pruned": "prunelab.pipeline.Pruned",
    "Report": "prunelab.pipeline.Report",
}


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
    globals()[name] = found = module if home == name else getattr(module, name)
    return found
