"""How sparsity grows while training: progress in [0, 1] -> share of the final sparsity, from 0 to 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .core import PruneError, Schedule
from .registry import Registry


def _check(schedule: Schedule) -> None:
    """PruneError unless it starts at 0 and ends at 1."""
    start, end = schedule(0.0), schedule(1.0)
    if not (abs(start) <= 1e-9 and abs(end - 1) <= 1e-9):  # so put, NaN fails too
        raise PruneError(
            f"the schedule goes from {start:g} to {end:g} of the final sparsity: it must go from 0 (nothing "
            "removed at the start) to 1 (all of it at the end)"
        )


SCHEDULES: Registry[Schedule] = Registry("schedule", check=_check)
by_name, register = SCHEDULES.by_name, SCHEDULES.register


@register("one_shot")
def one_shot(progress: float) -> float:
    """Everything at once, at the first step.

    >>> one_shot(0.0), one_shot(0.01)
    (0.0, 1.0)
    """
    return 1.0 if progress > 0 else 0.0


@register("linear")
def linear(progress: float) -> float:
    """The same share at every step.

    >>> linear(0.25)
    0.25
    """
    return progress


@register("cubic")
def cubic(progress: float) -> float:
    """1 - (1 - t)^3: much while much is redundant, little near the end. Zhu and Gupta 2017, arXiv 1710.01878.

    >>> cubic(0.5)
    0.875
    """
    return 1 - (1 - progress) ** 3


@register("cosine")
def cosine(progress: float) -> float:
    """(1 - cos(pi t)) / 2: slow at the start and at the end.

    >>> round(cosine(1 / 3), 6)
    0.25
    """
    return (1 - math.cos(math.pi * progress)) / 2


@register("exponential")
@dataclass(frozen=True)
class Exponential:
    """The same share of *what is left* at every step: at time t (1 - s)^t is left, s the final sparsity.

    SynFlow's schedule, in a hundred steps: Tanaka et al. 2020, arXiv 2006.05467.

    >>> round(Exponential(0.75)(0.5), 6)  # half of all is left: two thirds of what is to go have gone
    0.666667
    """

    sparsity: float

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise PruneError(f"Exponential({self.sparsity!r}): give the final sparsity, between 0 and 1, such as 0.9")

    def __call__(self, progress: float) -> float:
        return (1 - (1 - self.sparsity) ** progress) / self.sparsity


@register("between")
@dataclass(frozen=True)
class Between:
    """Nothing before `start`, everything from `end` on, and another schedule in between: a warm-up and a cool-down.

    Both in [0, 1] of all steps. Between(0.1, 0.7) with the cubic one is the usual shape of gradual pruning.

    >>> [Between(0.5, 0.75, "linear")(t) for t in (0.5, 0.625, 1.0)]
    [0.0, 0.5, 1.0]
    """

    start: float
    end: float
    schedule: str | Schedule = cubic

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", by_name(self.schedule))
        if not 0 <= self.start < self.end <= 1:
            raise PruneError(
                f"Between({self.start!r}, {self.end!r}): give two shares of all steps, 0 <= start < end <= 1, such as "
                "Between(0.1, 0.7)"
            )

    def __call__(self, progress: float) -> float:
        return by_name(self.schedule)(min(max((progress - self.start) / (self.end - self.start), 0.0), 1.0))
