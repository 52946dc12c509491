"""What a search found: the model, what was tried, and the verdict in words."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core import Group, Keep, PruneError
from ..measurement.text import html, table
from ..pipeline import Recipe
from .goals import Goals
from .layer_costs import LatencyTable
from .trials import COLUMNS, Trial
from .words import verdict


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
