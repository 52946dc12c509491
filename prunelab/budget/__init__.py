"""One call with a goal: the best pruned model within a budget of time, bytes, MACs or accuracy."""

from ..registry import renamed
from .costs import LatencyTable, latency_table
from .goals import Goals
from .job import SearchOptions
from .result import Candidate, GoalNotMet, Result, Trial, draw_front, frontier
from .search import fit_budget

__all__ = [
    "Candidate", "GoalNotMet", "Goals", "LatencyTable", "Result", "SearchOptions", "Trial", "draw_front", "fit_budget",
    "frontier", "latency_table",
]  # fmt: skip

__getattr__ = renamed(__name__, {"How": "prunelab.budget.SearchOptions"})
