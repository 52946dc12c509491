"""One call with a goal: the best pruned model within a budget of time, bytes, MACs or accuracy."""

from ..registry import moved, renamed
from .job import SearchOptions
from .result import GoalNotMet, Result, Trial, draw_front
from .search import fit_budget

__all__ = ["GoalNotMet", "Result", "SearchOptions", "Trial", "draw_front", "fit_budget"]

__getattr__ = renamed(
    __name__,
    {"How": "prunelab.budget.SearchOptions"}
    | moved("prunelab.budget.costs", "LatencyTable latency_table")
    | moved("prunelab.budget.result", "Candidate frontier")
    | moved("prunelab.budget.goals", "Goals"),
)
