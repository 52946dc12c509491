"""One call with a goal: the best pruned model within a budget of time, bytes, MACs or accuracy."""

from .front import draw_front, frontier
from .goals import Goal, Goals
from .job import How
from .layer_costs import LatencyTable, latency_table
from .report import GoalNotMet, Result
from .search import fit_budget
from .trials import Candidate, Trial

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
