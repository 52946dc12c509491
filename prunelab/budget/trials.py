"""One thing that was tried: who chose, how many units stay, what the model is worth and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..core import Criterion, PruneError
from ..measurement import Speedup
from ..measurement.text import percent, seconds, size
from .goals import Goals
from .layer_costs import Costs
from .layouts import Layout

NOTHING = "nothing pruned"
COLUMNS = ("what was tried", "stage", "steps", "accuracy (validation)", "latency", "of dense", "bytes", "MACs", "meets")


@dataclass(frozen=True)
class Candidate:
    """A way to prune: the criterion that ranks units, the structures that may go, the rule that shares out the cost."""

    criterion: str | Criterion
    part: str
    rule: str

    @property
    def name(self) -> str:
        """The criterion's name."""
        if isinstance(self.criterion, str):
            return self.criterion
        return getattr(self.criterion, "__name__", None) or repr(self.criterion)

    def __str__(self) -> str:
        return f"{self.name}, {self.rule}, {self.part}"


@dataclass(frozen=True)
class Trial:
    """What came of a candidate.

    stage: "dense", "screened" (a short recovery), "front" (likewise, at another cost) or "finalist" (all the steps).
    costs: seconds, bytes and MACs, and `ratios` the same as fractions of the dense model's; speedup with its interval.
    """

    name: str
    stage: str
    steps: int
    layout: Layout
    accuracy: float
    interval: tuple[float, float]
    n: int
    costs: Costs
    ratios: Costs
    speedup: Speedup
    meets: bool = False
    candidate: Candidate | None = field(default=None, compare=False)

    def row(self) -> list[str]:
        """The trial as a line of the report."""
        low, high = self.interval
        return [
            self.name,
            self.stage,
            str(self.steps),
            f"{percent(self.accuracy)} [{100 * low:.1f}, {100 * high:.1f}]",
            seconds(self.costs["latency"])[0],
            percent(self.ratios["latency"]),
            size(round(self.costs["bytes"])),
            f"{round(self.costs['macs']):,}",
            "yes" if self.meets else "no",
        ]


def shortfall(trial: Trial, goals: Goals, dense: Trial) -> float:
    """By how much a trial misses the goals, as the largest excess over any limit; 0 if it meets them all."""
    limits = goals.fractions(dense.costs)
    over = [trial.ratios[cost] / limit - 1 for cost, limit in limits.items()]
    if goals.max_drop is not None:
        over.append(dense.accuracy - trial.accuracy - goals.max_drop - 1e-9)
    return max(0.0, *over)


def better(one: Trial, other: Trial, goals: Goals, dense: Trial) -> bool:
    """Whether one trial is the better answer: nearer to the goals, then more accurate (or faster)."""
    return _rank(one, goals, dense) > _rank(other, goals, dense)


def best(trials: Sequence[Trial], goals: Goals, dense: Trial) -> Trial:
    """The best of several; PruneError if there is none."""
    if not trials:
        raise PruneError("nothing was tried")
    return max(trials, key=lambda t: _rank(t, goals, dense))


def _rank(trial: Trial, goals: Goals, dense: Trial) -> tuple[float, float, float]:
    worth = (trial.accuracy, -trial.ratios[goals.aim])
    if not goals.costs:
        worth = (-trial.ratios[goals.aim], trial.accuracy)
    return (-shortfall(trial, goals, dense), *worth)
