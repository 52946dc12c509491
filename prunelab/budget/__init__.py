"""One call with a goal: the best pruned model within a budget of time, bytes, MACs or accuracy."""

from .costs import LatencyTable, latency_table
from .goals import Goal, Goals
from .job import How
from .result import Candidate, GoalNotMet, Result, Trial, draw_front, frontier
from .search import fit_budget

__all__ = [
    "Candidate",
    "Goal",
    "GoalNotMet",
    "Goals",
    "How",
    "LatencyTable",
    "Result",
    "Trial",
    "draw_front",
    "fit_budget",
    "frontier",
    "latency_table",
]
