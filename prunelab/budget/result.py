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

from ..core import Criterion, Group, Keep, PruneError
from ..files import write_whole
from ..measurement.timing import Speedup
from ..pipeline import Recipe
from ..text import Lines, Tabular, describe, listed, percent
from .costs import Costs, LatencyTable, Layout
from .goals import Goals, written
from .rules import Limits

WORTH = 1.1  # times faster: less is not worth a pruned model
DEAR = 0.1  # of the labels: a drop beyond which a smaller network trained from the start may well be better
NAMES = {"latency": "latency", "bytes": "bytes", "macs": "MACs"}
COLUMNS = ["what was tried", "stage", "steps", "accuracy (validation)", "latency", "of dense", "bytes", "MACs", "meets"]
STAGES = {  # stage -> (colour, marker, label): ink, and the colours of Okabe and Ito; the marker says the same
    "dense": ("#1a1a1a", "X", "dense"),
    "screened": ("#56B4E9", "o", "tried briefly"),
    "front": ("#009E73", "^", "at other costs"),
    "finalist": ("#0072B2", "s", "with all steps"),
}


@dataclass(frozen=True)
class Candidate:
    """A way to prune: the criterion that ranks units, the structures that may go, the rule that shares out the cost."""

    criterion: str | Criterion
    part: str
    rule: str

    def __str__(self) -> str:
        return f"{describe(self.criterion)}, {self.rule}, {self.part}"


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

    def shortfall(self, goals: Goals, dense: Trial) -> float:
        """By how much it misses the goals, as the largest excess over any limit; 0 if it meets them all."""
        over = [self.ratios[cost] / limit - 1 for cost, limit in goals.fractions(dense.costs).items()]
        if goals.max_drop is not None:
            over.append(dense.accuracy - self.accuracy - goals.max_drop - 1e-9)
        return max(0.0, *over)

    def rank(self, goals: Goals, dense: Trial) -> tuple[float, float, float]:
        """The higher the better: nearer to the goals, then more accurate (or faster)."""
        accurate, fast = self.accuracy, -self.ratios[goals.aim]
        first, second = (accurate, fast) if goals.costs else (fast, accurate)
        return -self.shortfall(goals, dense), first, second


@dataclass(frozen=True, repr=False)
class Result(Tabular):
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
    left_alone: tuple[str, ...]
    notes: tuple[str, ...]
    complete: bool
    seed: int
    conditions: str  # what the figures hold for: batch, threads, device, seed, versions, the time it took

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
        said = [] if self.complete else ["Interrupted: the best so far."]
        said.append(self._dont() if self.chosen is self.dense else self._pruned())
        if self.left_alone:
            said.append(f"Left as they are: {listed(self.left_alone, 6)}.")
        return " ".join(said)

    def _pruned(self) -> str:
        chosen = self.chosen
        time, size, work = (percent(chosen.ratios[cost]) for cost in NAMES)
        said = (
            f"{'Goal met' if self.met else 'Goal not met'}: {chosen.name} takes {time} of the dense model's time "
            f"({chosen.speedup} times faster), {size} of its bytes and {work} of its MACs. On the validation data it "
            f"reads {percent(chosen.accuracy)}, the dense model {percent(self.dense.accuracy)}."
        )
        if not self.met:
            said += f" What is missing: {self.missing}."
        if self.drop > DEAR:
            lost = f"{100 * self.drop:.1f} points"
            said += f" That loses {lost}: compare it with a smaller network trained from the start."
        return said

    def _dont(self) -> str:
        if self.goals.costs and self.dense.meets:
            return "Don't prune: the dense model is within the goal as it is."
        if self.goals.costs:
            return f"Don't prune this model for this: nothing that was tried comes within the goal ({self.goals})."
        within = [t for t in self.trials if t is not self.dense and t.meets]
        fastest = min(within, key=lambda t: t.ratios["latency"], default=None)
        if fastest is None:
            return f"Don't prune this model for this: whatever was tried loses more ({self.goals}), or gains no time."
        return (
            f"Don't prune: the fastest that was tried within the goal ({self.goals}) is {fastest.speedup} times "
            "faster, which is not worth a pruned model."
        )

    @property
    def missing(self) -> str:
        """What the chosen model has, beside what was asked for."""
        parts = [too_much(self.chosen.ratios, self.goals.fractions(self.dense.costs))]
        allowed = self.goals.max_drop
        if allowed is not None and self.drop > allowed:
            parts.append(f"it loses {100 * self.drop:.1f} points of accuracy, and {100 * allowed:g} were allowed")
        return "; ".join(p for p in parts if p)

    def refusal(self) -> GoalNotMet:
        """Why the goals are not met, and how near it got; of goals that contradict each other, both ends."""
        goals, dense = self.goals, self.dense
        said = f"not met: {goals}. The nearest, {self.chosen.name}: {self.missing}."
        if not goals.costs or goals.max_drop is None:
            return GoalNotMet(said, self)
        accurate = [t for t in self.trials if t is not dense and dense.accuracy - t.accuracy <= goals.max_drop]
        cheapest = min(accurate, key=lambda t: t.ratios[goals.aim], default=None)
        nearest = f"{percent(cheapest.ratios[goals.aim])} ({cheapest.name})" if cheapest else "nothing that was tried"
        return GoalNotMet(
            f"{said} The two goals contradict each other here: within the drop, the lowest {NAMES[goals.aim]} found is "
            f"{nearest}. Allow a larger drop, a higher cost, or more recover_steps",
            self,
        )

    def _lines(self) -> Lines:
        rows = []
        for t in self.trials:
            rows.append([
                f"{'→ ' if t is self.chosen else ''}{t.name}", t.stage, str(t.steps),
                percent(t.accuracy, *t.interval), written("latency", t.costs["latency"]), percent(t.ratios["latency"]),
                written("bytes", t.costs["bytes"]), f"{round(t.costs['macs']):,}", "yes" if t.meets else "no",
            ])  # fmt: skip
        return f"Tried for: {self.goals}", COLUMNS, rows

    def _notes(self) -> list[str]:
        return [self.verdict, self.conditions]

    def as_json(self) -> str:
        """The report as JSON: goals, every trial, the verdict, seed and versions."""
        plain = ("met", "complete", "advice", "verdict", "conditions", "seed", "left_alone", "notes")
        facts = ("name", "stage", "steps", "accuracy", "interval", "n", "costs", "ratios", "meets")
        trials = [
            {name: getattr(t, name) for name in facts} | {"kept": t.layout, "chosen": t is self.chosen}
            for t in self.trials
        ]
        found = {
            "format": "prunelab budget 1",
            "goals": str(self.goals),
            **{name: getattr(self, name) for name in plain},
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "trials": trials,
        }
        return json.dumps(found, indent=1, ensure_ascii=False) + "\n"

    def save_front(self, path: Path) -> None:
        """The picture of the search as a PNG."""
        from matplotlib.figure import Figure  # not above: only a report that is saved needs it

        figure = Figure(figsize=(6.5, 4), dpi=120, layout="constrained")
        limit = self.goals.fractions(self.dense.costs).get(self.goals.aim)
        draw_front(figure.subplots(), self.trials, cost=self.goals.aim, chosen=self.chosen, limit=limit)
        out = io.BytesIO()
        figure.savefig(out, format="png", facecolor="white")
        write_whole(path, out.getvalue())


class GoalNotMet(PruneError):
    """The goals are out of reach here; `result` is the nearest that was found, or None if nothing was worth trying."""

    def __init__(self, message: str, result: Result | None = None):
        super().__init__(message)
        self.result = result


def too_much(ratios: Mapping[str, float], limits: Limits) -> str:
    """Which costs are above their limits, and by how much."""
    return ", ".join(
        f"it has {percent(ratios[cost])} of the dense model's {NAMES[cost]}, and {percent(limit)} was asked for"
        for cost, limit in limits.items()
        if ratios[cost] > limit
    )


def frontier(trials: Sequence[Trial], cost: str = "latency") -> list[Trial]:
    """The trials that no other beats at no higher cost, from the cheapest on."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.ratios[cost], -t.accuracy)):
        if not found or trial.accuracy > found[-1].accuracy:
            found.append(trial)
    return found


def draw_front(
    ax: Any, trials: Sequence[Trial], *, cost: str = "latency", chosen: Trial | None = None, limit: float | None = None
) -> None:
    """Draw accuracy against a cost as a share of the dense model's; the best at each cost are joined by a line."""

    def at(some: Sequence[Trial]) -> tuple[list[float], list[float]]:
        return [100 * t.ratios[cost] for t in some], [100 * t.accuracy for t in some]

    for stage, (colour, marker, label) in STAGES.items():
        own = [t for t in trials if t.stage == stage]
        if own:
            ax.plot(*at(own), marker, color=colour, linestyle="none", label=label, markersize=7, alpha=0.85)
    ax.plot(*at(frontier(trials, cost)), "-", color="#999999", zorder=0)
    if limit is not None:
        ax.axvline(100 * limit, color="#D55E00", linestyle="--", linewidth=1.2, label="goal")
    if chosen is not None:
        ring = {"markersize": 16, "fillstyle": "none", "color": "#D55E00", "linestyle": "none"}
        ax.plot(*at([chosen]), "o", label="chosen", **ring)
    ax.set_xlabel(f"{NAMES[cost]}, % of the dense model's")
    ax.set_ylabel("accuracy (validation), %")
    ax.legend(loc="lower right", fontsize=8)
