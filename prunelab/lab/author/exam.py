"""A solution of notebook 16's exam, for instructors: it lies only in the repository, not in what learners install."""

from __future__ import annotations

from torch import nn

from ...budget import SearchOptions, fit_budget
from ...surgery import shrink
from ..learn.exam import Exam

EQUAL = SearchOptions(criteria=("magnitude",), rules=("uniform",), finalists=1, front=())


def by_teacher(paper: Exam) -> nn.Module:
    """Passes: the search says how narrow, and the dense network teaches the narrow one."""
    found = fit_budget(paper.model, paper.data, latency=paper.budget - 0.02, recover_steps=0, how=EQUAL, progress=False)
    small = shrink(paper.model, found.groups, found.keep)
    paper.retrain(small, paper.steps, teacher=paper.model, lr=1e-2, progress=False)
    return small


def by_search(paper: Exam) -> nn.Module:
    """Fails: the search's own answer, whose steps the paper has not counted, and no way ahead of its own control."""
    return fit_budget(paper.model, paper.data, latency=paper.budget, recover_steps=paper.steps, progress=False).model
