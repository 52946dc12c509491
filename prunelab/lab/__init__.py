"""What only a notebook needs: `from prunelab import lab`. Nothing else in prunelab imports it.

A name is imported when it is first asked for: a command that needs no torch does not wait for it.
"""

import importlib.util
from typing import Any

__rooms__ = {  # a module -> its names; a lesson's module is found by its own name, lesson_NN
    "learn.claim": ["ClaimError", "check_numbers", "claim"],
    "learn.exam": ["exam"],
    "learn.exercise": ["check", "exercise", "hint", "solution"],
    "learn.network_choice": ["pick"],
    "learn.predict": ["predict", "reveal"],
    "learn.progress": ["progress", "reset"],
    "learn.scoreboard": ["scoreboard"],
    "learn.session": ["start"],
    "learn.stored_grid": ["ahead", "by_name", "collect", "grid"],
    "learn.workbench": ["workbench"],
    "lessons.llamas": ["llamas"],
    "lessons.physics": ["physics"],
    "lessons.pruned_networks": ["pruned", "refreshed"],
    "lessons.real_pictures": ["real_pictures"],
    "show.drawing": ["drawing"],
    "show.explorer": ["explorer"],
    "show.figure": ["figure", "race", "table"],
    "show.fronts": ["fronts"],
    "show.measuring": ["NO_CUDA", "measured"],
    "show.plots": ["plots"],
}
__homes__ = {name: room for room, names in __rooms__.items() for name in names}

__all__ = [*__homes__]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    home = f"lessons.{name}" if name.startswith("lesson_") else __homes__.get(name)
    if home is None or importlib.util.find_spec(f".{home}", __name__) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{home}", __name__)
    return getattr(module, name, module)
