"""How the learning rate goes over a run: a name, a function of the progress, or the end of an earlier run again."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from ..core import PruneError

Rate: TypeAlias = Callable[[float], float]  # progress in [0, 1) -> factor of the optimizer's learning rate


def constant(progress: float) -> float:
    """The same rate at every step."""
    return 1.0


def linear(progress: float) -> float:
    """1 - t: from the full rate down to nothing."""
    return 1 - progress


ONE_CYCLE = "one_cycle"  # up for 30 % of the run, then down to nothing: Smith and Topin 2017, arXiv 1708.07120
RATES: dict[str, Rate] = {"constant": constant, "linear": linear}


@dataclass(frozen=True)
class Tail:
    """The end of an earlier run's schedule again: a run of n steps gets the last n of the `of` steps it had."""

    of: int
    schedule: str | Rate = ONE_CYCLE

    def __post_init__(self) -> None:
        if not isinstance(self.of, int) or self.of < 1:
            raise PruneError(f"Tail(of={self.of!r}): give the number of steps of the run whose end to replay")
        check_schedule(self.schedule)


def check_schedule(schedule: str | Rate | Tail) -> None:
    """PruneError unless it is a known name, a Tail, or a function to finite factors that are not negative."""
    if isinstance(schedule, Tail):
        return
    if not callable(schedule):
        if schedule not in (ONE_CYCLE, *RATES):
            raise PruneError(
                f"no learning-rate schedule is called {schedule!r}: give {', '.join((ONE_CYCLE, *RATES))}, "
                "a function progress -> factor, or a Tail"
            )
        return
    for progress in (0.0, 0.5):
        factor = schedule(progress)
        if not 0 <= factor < math.inf:  # so put, NaN fails too
            raise PruneError(f"the learning rate's factor is {factor} at progress {progress}: give a number from 0 up")


def scheduler(optimizer: Optimizer, schedule: str | Rate | Tail, total: int) -> LRScheduler:
    """A torch scheduler for `total` steps in which each parameter group's own rate is multiplied by the factor.

    Raises PruneError for a Tail of a run that had fewer steps.
    """
    if isinstance(schedule, Tail):
        return _at_the_end(optimizer, schedule, total)
    if schedule == ONE_CYCLE:
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, max_lr=peaks, total_steps=total, cycle_momentum=_has_momentum(optimizer))
    factor = RATES[schedule] if isinstance(schedule, str) else schedule
    return LambdaLR(optimizer, lambda step: factor(step / total))


def _at_the_end(optimizer: Optimizer, tail: Tail, total: int) -> LRScheduler:
    if total > tail.of:
        raise PruneError(f"{total} steps cannot replay the end of a run of {tail.of}: give at most {tail.of}")
    made = scheduler(optimizer, tail.schedule, tail.of)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the optimizer's steps: the earlier run made them
        for _ in range(tail.of - total):
            made.step()
    return made


def _has_momentum(optimizer: Optimizer) -> bool:
    """Whether there is a momentum to cycle against the rate: torch would give plain SGD one."""
    return "betas" in optimizer.defaults or bool(optimizer.defaults.get("momentum"))
