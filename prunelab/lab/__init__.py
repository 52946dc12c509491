"""What only a notebook needs: `from prunelab import lab`. Nothing else in prunelab imports it.

A name is imported when it is first asked for: a command that needs no torch does not wait for it.
"""

import importlib.util
from typing import Any

__homes__ = {  # name -> its module; a lesson's module is found by its own name, lesson_NN
    "ClaimError": "learn.claim",
    "check_numbers": "learn.claim",
    "claim": "learn.claim",
    "exam": "learn.exam",
    "check": "learn.exercise",
    "exercise": "learn.exercise",
    "hint": "learn.exercise",
    "solution": "learn.exercise",
    "pick": "learn.network_choice",
    "predict": "learn.predict",
    "reveal": "learn.predict",
    "progress": "learn.progress",
    "reset": "learn.progress",
    "scoreboard": "learn.scoreboard",
    "start": "learn.session",
    "by_name": "learn.stored_grid",
    "collect": "learn.stored_grid",
    "grid": "learn.stored_grid",
    "workbench": "learn.workbench",
    "physics": "lessons.physics",
    "pruned": "lessons.pruned_networks",
    "real_pictures": "lessons.real_pictures",
    "refreshed": "lessons.pruned_networks",
    "drawing": "show.drawing",
    "explorer": "show.explorer",
    "figure": "show.figure",
    "table": "show.figure",
    "fronts": "show.fronts",
    "ahead": "learn.stored_grid",
    "NO_CUDA": "show.measuring",
    "measured": "show.measuring",
    "plots": "show.plots",
    "race": "show.figure",
}

__all__ = [*__homes__]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    home = f"lessons.{name}" if name.startswith("lesson_") else __homes__.get(name)
    if home is None or importlib.util.find_spec(f".{home}", __name__) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{home}", __name__)
    return getattr(module, name, module)
