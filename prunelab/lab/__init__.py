"""What only a notebook needs: `from prunelab import lab`. Nothing else in prunelab imports it."""

from . import fronts, plots, plots_heads, scoreboard
from .claims import ClaimError, claim
from .contests import kept, moved, pruned, rewritten, shares_of, spread
from .exams import exam
from .exercises import check, exercise, hint, solution
from .explorers import explorer
from .figures import figure, table
from .grids import by_name, collect, grid
from .measuring import NO_CUDA, measured
from .picking import pick
from .predictions import predict, reveal
from .races import race, trials
from .readings import by_hand, reading, reading_of, sweep
from .session import start
from .store import progress, reset
from .workbenches import workbench

__all__ = [
    "NO_CUDA",
    "ClaimError",
    "by_hand",
    "by_name",
    "check",
    "claim",
    "collect",
    "exam",
    "exercise",
    "explorer",
    "figure",
    "fronts",
    "grid",
    "hint",
    "kept",
    "measured",
    "moved",
    "pick",
    "plots",
    "plots_heads",
    "predict",
    "progress",
    "pruned",
    "race",
    "reading",
    "reading_of",
    "reset",
    "reveal",
    "rewritten",
    "scoreboard",
    "shares_of",
    "solution",
    "spread",
    "start",
    "sweep",
    "table",
    "trials",
    "workbench",
]
