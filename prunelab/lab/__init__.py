"""What only a notebook needs: `from prunelab import lab`. Nothing else in prunelab imports it."""

from .learn import scoreboard
from .learn.claim import ClaimError, claim
from .learn.exam import exam
from .learn.exercise import check, exercise, hint, solution
from .learn.network_choice import pick
from .learn.predict import predict, reveal
from .learn.progress import progress, reset
from .learn.session import start
from .learn.stored_grid import agreement_of, by_name, collect, grid
from .learn.workbench import workbench
from .lessons import llamas, movement_plots, plots_heads, plots_llama, plots_recovery, recoveries, returning, transfers
from .lessons.contests import kept, moved, pruned, rewritten, shares_of, spread
from .lessons.readings import by_hand, reading, reading_of, sweep
from .show import agreement_map as maps
from .show import fronts, plots
from .show.drawing import drawing
from .show.explorer import explorer
from .show.figure import figure, table
from .show.intervals import ahead
from .show.measuring import NO_CUDA, measured
from .show.timing_table import race, trials

__all__ = [
    "NO_CUDA",
    "ClaimError",
    "agreement_of",
    "ahead",
    "by_hand",
    "by_name",
    "check",
    "claim",
    "collect",
    "drawing",
    "exam",
    "exercise",
    "explorer",
    "figure",
    "fronts",
    "grid",
    "hint",
    "kept",
    "llamas",
    "maps",
    "measured",
    "moved",
    "movement_plots",
    "pick",
    "plots",
    "plots_heads",
    "plots_llama",
    "plots_recovery",
    "predict",
    "progress",
    "pruned",
    "race",
    "reading",
    "reading_of",
    "recoveries",
    "reset",
    "returning",
    "reveal",
    "rewritten",
    "scoreboard",
    "shares_of",
    "solution",
    "spread",
    "start",
    "sweep",
    "table",
    "transfers",
    "trials",
    "workbench",
]
