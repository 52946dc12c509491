"""What only a notebook needs: `from prunelab import lab`. Nothing else in prunelab imports it."""

from . import plots, scoreboard
from .claims import ClaimError, claim
from .contests import kept, moved, pruned, rewritten, shares_of, spread
from .exercises import check, exercise, hint, solution
from .explorers import explorer
from .figures import figure, table
from .grids import agreement_of, by_name, collect, grid
from .measuring import NO_CUDA, measured
from .predictions import predict, reveal
from .races import race, trials
from .readings import by_hand, reading, reading_of, sweep
from .session import start
from .store import progress, reset

__all__ = [
    "NO_CUDA",
    "ClaimError",
    "agreement_of",
    "by_hand",
    "by_name",
    "check",
    "claim",
    "collect",
    "exercise",
    "explorer",
    "figure",
    "grid",
    "hint",
    "kept",
    "measured",
    "moved",
    "plots",
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
]
