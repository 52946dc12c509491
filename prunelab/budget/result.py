"""What a search found: the model, all that was tried, the verdict in words, a table, a picture."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core import Group, Keep, PruneError
from ..criteria import Criterion
from ..files import write_whole
from ..measurement import Speedup
from ..pipeline import Recipe
from ..text import html, percent, seconds, size, table
from .costs import REST, Costs, LatencyTable, Layout
from .goals import Goals
from .rules import Limits

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


WORTH = 1.1  # times faster: less is not worth a pruned model
DEAR = 0.1  # of the labels: a drop beyond which a smaller network trained from the start may well be better
NAMES = {"latency": "latency", "bytes": "bytes", "macs": "MACs"}


def verdict(chosen: Trial, dense: Trial, trials: Sequence[Trial], goals: Goals, left_alone: Sequence[str]) -> str:
    """The result, in a few sentences."""
    said = [_dont(dense, trials, goals)] if chosen is dense else _pruned(chosen, dense, goals)
    if left_alone:
        said.append(f"Left as they are: {listed(left_alone)}.")
    return " ".join(said)


def missed(chosen: Trial, dense: Trial, trials: Sequence[Trial], goals: Goals) -> str:
    """Why the goals are not met, and how near it got; of goals that contradict each other, both ends."""
    limits = goals.fractions(dense.costs)
    said = f"not met: {goals}. The nearest, {chosen.name}: {how_near(chosen, dense, goals)}."
    if not limits or goals.max_drop is None:
        return said
    accurate = [t for t in trials if t is not dense and dense.accuracy - t.accuracy <= goals.max_drop]
    cheapest = min(accurate, key=lambda t: t.ratios[goals.aim], default=None)
    other = "nothing that was tried" if cheapest is None else f"{percent(cheapest.ratios[goals.aim])} ({cheapest.name})"
    return (
        f"{said} The two goals contradict each other here: within the drop, the lowest {NAMES[goals.aim]} found is "
        f"{other}. Allow a larger drop, a higher cost, or more recover_steps"
    )


def how_near(trial: Trial, dense: Trial, goals: Goals) -> str:
    """What a trial has, beside what was asked for."""
    drop = dense.accuracy - trial.accuracy
    parts = [too_much(trial.ratios, goals.fractions(dense.costs))]
    if goals.max_drop is not None and drop > goals.max_drop:
        parts.append(f"it loses {100 * drop:.1f} points of accuracy, and {100 * goals.max_drop:g} were allowed")
    return "; ".join(p for p in parts if p)


def too_much(ratios: Mapping[str, float], limits: Limits) -> str:
    """Which costs are above their limits, and by how much."""
    return ", ".join(
        f"it has {percent(ratios[cost])} of the dense model's {NAMES[cost]}, and {percent(limit)} was asked for"
        for cost, limit in limits.items()
        if ratios[cost] > limit
    )


def remains(table: LatencyTable, layout: Layout, most: int = 3) -> str:
    """Where the time of a layout goes: its slowest layers."""
    shares = {g.name: layout[g.name] / g.units for g in table.groups}
    times = {name: max(fit.at(shares), 0.0) for name, fit in table.fits["latency"].items()}
    total = max(sum(times.values()), 1e-12)
    slowest = sorted(times, key=lambda n: -times[n])[:most]
    said = {REST: "what lies between the layers"}
    return ", ".join(f"{said.get(n, n)} takes {percent(times[n] / total)}" for n in slowest)


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first few, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _pruned(chosen: Trial, dense: Trial, goals: Goals) -> list[str]:
    loss = dense.accuracy - chosen.accuracy
    said = [
        f"{'Goal met' if chosen.meets else 'Goal not met'}: {chosen.name} takes {percent(chosen.ratios['latency'])} of "
        f"the dense model's time ({chosen.speedup} times faster), {percent(chosen.ratios['bytes'])} of its bytes and "
        f"{percent(chosen.ratios['macs'])} of its MACs.",
        f"On the validation data it reads {percent(chosen.accuracy)}, the dense model {percent(dense.accuracy)}.",
    ]
    if not chosen.meets:
        said.append(f"What is missing: {how_near(chosen, dense, goals)}.")
    if loss > DEAR:
        said.append(f"That loses {100 * loss:.1f} points: compare it with a smaller network trained from the start.")
    return said


def _dont(dense: Trial, trials: Sequence[Trial], goals: Goals) -> str:
    if goals.costs:
        if dense.meets:
            return "Don't prune: the dense model is within the goal as it is."
        return f"Don't prune this model for this: nothing that was tried comes within the goal ({goals})."
    within = [t for t in trials if t is not dense and not shortfall(t, goals, dense)]
    fastest = min(within, key=lambda t: t.ratios["latency"], default=None)
    if fastest is None:
        return f"Don't prune this model for this: whatever was tried loses more ({goals}), or gains no time."
    return (
        f"Don't prune: the fastest that was tried within the goal ({goals}) is {fastest.speedup} times faster, which "
        "is not worth a pruned model."
    )


STAGES = {  # stage -> (colour, marker, label): Okabe and Ito's colours; the marker repeats what the colour says
    "dense": ("#000000", "X", "dense"),
    "screened": ("#56B4E9", "o", "tried briefly"),
    "front": ("#009E73", "^", "at other costs"),
    "finalist": ("#0072B2", "s", "with all steps"),
}
NAMES = {"latency": "latency", "bytes": "bytes", "macs": "MACs"}


def draw_front(
    ax: Any, trials: Sequence[Trial], *, cost: str = "latency", chosen: Trial | None = None, limit: float | None = None
) -> None:
    """Draw accuracy against a cost as a share of the dense model's; the best at each cost are joined by a line."""
    for stage, (colour, marker, label) in STAGES.items():
        own = [t for t in trials if t.stage == stage]
        xs, ys = [100 * t.ratios[cost] for t in own], [100 * t.accuracy for t in own]
        if own:
            ax.plot(xs, ys, marker, color=colour, linestyle="none", label=label, markersize=7, alpha=0.85)
    best = frontier(trials, cost)
    ax.plot([100 * t.ratios[cost] for t in best], [100 * t.accuracy for t in best], "-", color="#999999", zorder=0)
    if limit is not None:
        ax.axvline(100 * limit, color="#D55E00", linestyle="--", linewidth=1.2, label="goal")
    if chosen is not None:
        at = 100 * chosen.ratios[cost], 100 * chosen.accuracy
        ax.plot(*at, "o", markersize=16, fillstyle="none", color="#D55E00", linestyle="none", label="chosen")
    ax.set_xlabel(f"{NAMES[cost]}, % of the dense model's")
    ax.set_ylabel("accuracy (validation), %")
    ax.legend(loc="lower right", fontsize=8)


def frontier(trials: Sequence[Trial], cost: str = "latency") -> list[Trial]:
    """The trials that no other beats at no higher cost, from the cheapest on."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.ratios[cost], -t.accuracy)):
        if not found or trial.accuracy > found[-1].accuracy:
            found.append(trial)
    return found


def save_front(path: Path, result: Result) -> None:
    """The picture as a PNG."""
    from matplotlib.figure import Figure  # not above: only a report that is saved needs it

    figure = Figure(figsize=(6.5, 4), dpi=120, layout="constrained")
    ax = figure.subplots()
    aim = result.goals.aim
    limit = result.goals.fractions(result.dense.costs).get(aim)
    draw_front(ax, result.trials, cost=aim, chosen=result.chosen, limit=limit)
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor="white")
    write_whole(path, out.getvalue())


@dataclass(frozen=True, repr=False)
class Result:
    """The model that was chosen, all that was tried, and what it took.

    `model` is a plain, smaller nn.Module; `groups` and `keep` say what stayed, and `save_plan` and `shrink` take them;
    `recipe` prunes the dense model to the same units, given the same calibration. With `advice` "don't", `model` is a
    copy of the dense one.
    """

    model: nn.Module
    groups: tuple[Group, ...]
    keep: Keep
    recipe: Recipe | None
    goals: Goals
    dense: Trial
    chosen: Trial
    trials: tuple[Trial, ...]
    costs: LatencyTable | None
    timed: str
    left_alone: tuple[str, ...]
    notes: tuple[str, ...]
    complete: bool
    seed: int
    calibrated: str
    seconds: float

    @property
    def met(self) -> bool:
        """Whether the chosen model meets every goal."""
        return self.chosen.meets

    @property
    def drop(self) -> float:
        """The share of validation labels lost against the dense model; negative if it gained."""
        return self.dense.accuracy - self.chosen.accuracy

    @property
    def advice(self) -> str:
        """What to do: "prune" or "don't"."""
        return "don't" if self.chosen is self.dense else "prune"

    @property
    def verdict(self) -> str:
        """The result in words."""
        said = verdict(self.chosen, self.dense, self.trials, self.goals, self.left_alone)
        return said if self.complete else f"Interrupted: the best so far. {said}"

    @property
    def conditions(self) -> str:
        """What the figures hold for: batch, threads, device, seed, versions, the time it took."""
        return (
            f"latency at {self.timed}; seed {self.seed}; torch {torch.__version__}, "
            f"Python {platform.python_version()}, {platform.machine()}; {self.calibrated}; {self.seconds:.0f} s"
        )

    def _lines(self) -> tuple[str, list[str], list[list[str]]]:
        rows = [[f"{'→ ' if t is self.chosen else ''}{t.row()[0]}", *t.row()[1:]] for t in self.trials]
        return f"Tried for: {self.goals}", list(COLUMNS), rows

    def __str__(self) -> str:
        return "\n".join([table(*self._lines()), self.verdict, self.conditions])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html(*self._lines()) + f"<p>{self.verdict}</p><p>{self.conditions}</p>"

    def as_json(self) -> str:
        """The report as JSON: goals, every trial, the verdict, seed and versions."""
        trials = [
            {
                "name": t.name,
                "stage": t.stage,
                "steps": t.steps,
                "kept": t.layout,
                "accuracy": t.accuracy,
                "interval": list(t.interval),
                "n": t.n,
                "costs": t.costs,
                "ratios": t.ratios,
                "meets": t.meets,
                "chosen": t is self.chosen,
            }
            for t in self.trials
        ]
        found: dict[str, Any] = {
            "format": "prunelab budget 1",
            "goals": str(self.goals),
            "met": self.met,
            "complete": self.complete,
            "advice": self.advice,
            "verdict": self.verdict,
            "conditions": self.conditions,
            "seed": self.seed,
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "left_alone": list(self.left_alone),
            "notes": list(self.notes),
            "trials": trials,
        }
        return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


class GoalNotMet(PruneError):
    """The goals are out of reach here; `result` is the nearest that was found, or None if nothing was worth trying."""

    def __init__(self, message: str, result: Result | None = None):
        super().__init__(message)
        self.result = result
