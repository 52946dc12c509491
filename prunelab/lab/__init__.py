"""What only a notebook needs: `from prunelab import lab`. Nothing else in prunelab imports it."""

from .learn import scoreboard
from .learn.claim import ClaimError, claim
from .learn.exam import exam
from .learn.exercise import check, exercise, hint, solution
from .learn.network_choice import pick
from .learn.predict import predict, reveal
from .learn.progress import progress, reset
from .learn.session import start
from .learn.stored_grid import by_name, collect, grid
from .learn.workbench import workbench
from .lessons import (
    lesson_00,
    lesson_01,
    lesson_02,
    lesson_04,
    lesson_05,
    lesson_07,
    lesson_09,
    lesson_12,
    lesson_13,
    lesson_16,
)
from .lessons.pruned_networks import kept, pruned, reading, reading_of, spread
from .show import fronts, plots
from .show.explorer import explorer
from .show.figure import figure, table
from .show.intervals import ahead
from .show.measuring import NO_CUDA, measured
from .show.timing_table import race, trials

__all__ = [
    "NO_CUDA",
    "ClaimError",
    "ahead",
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
    "lesson_00",
    "lesson_01",
    "lesson_02",
    "lesson_04",
    "lesson_05",
    "lesson_07",
    "lesson_09",
    "lesson_12",
    "lesson_13",
    "lesson_16",
    "measured",
    "pick",
    "plots",
    "predict",
    "progress",
    "pruned",
    "race",
    "reading",
    "reading_of",
    "reset",
    "reveal",
    "scoreboard",
    "solution",
    "spread",
    "start",
    "table",
    "trials",
    "workbench",
]
