"""What has been tried so far, and the best of it: kept in memory, and on the disk after every improvement."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from torch import nn

from ..core import Group, Keep, PruneError, device_of
from ..files import write_whole
from ..measurement.conditions import rows
from ..measurement.text import plural
from ..pipeline import Recipe
from ..recipes import described, save_recipe
from ..surgery import save_plan
from ..surgery.plans import PLAN, named_weights
from .front import save_front
from .goals import Goals
from .job import Job
from .layer_costs import LatencyTable
from .report import Result
from .structures import Structures
from .trials import Trial, better, shortfall

OnTrial: TypeAlias = Callable[[Trial], object]
REPORT, FRONT, RECIPE = "report.json", "front.png", "recipe.toml"
EARLIER = "earlier-"


@dataclass(frozen=True)
class Found:
    """A trial with its model."""

    trial: Trial
    model: nn.Module
    keep: Keep
    recipe: Recipe | None


@dataclass
class Log:
    """The trials, and the best model so far."""

    job: Job
    goals: Goals
    structures: Structures
    dense: Found
    save: str | os.PathLike[str] | None = None
    on_trial: OnTrial | None = None
    costs: LatencyTable | None = None
    trials: list[Trial] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    notes: list[str] = field(default_factory=list)
    finalists: list[Found] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = None if self.save is None else Path(self.save)
        self.best = self.dense

    @property
    def groups(self) -> tuple[Group, ...]:
        """All that could be removed."""
        return self.structures.groups

    def add(self, found: Found) -> None:
        """Note a trial; if it is the best so far, that is what lies on the disk from now on."""
        first = not self.trials
        meets = not shortfall(found.trial, self.goals, self.dense.trial)
        found = replace(found, trial=replace(found.trial, meets=meets))
        if first:
            self.dense = found
            self._put_earlier_aside()
        self.trials.append(found.trial)
        if found.trial.stage == "finalist":
            self.finalists.append(found)
        if first or better(found.trial, self.best.trial, self.goals, self.dense.trial):
            self.best = found
            self._save_model()
        self._save_report(complete=False)
        if self.on_trial:
            self.on_trial(found.trial)

    def choose(self, found: Found) -> None:
        """Settle on one, whatever was best by the ranking."""
        self.best = found
        self._save_model()

    def result(self, *, complete: bool) -> Result:
        """All of it, as it stands."""
        return Result(
            model=self.best.model,
            groups=self.groups,
            keep=self.best.keep,
            recipe=self.best.recipe,
            goals=self.goals,
            dense=self.dense.trial,
            chosen=self.best.trial,
            trials=tuple(self.trials),
            costs=self.costs,
            timed=conditions(self.job),
            left_alone=self.structures.left_alone,
            notes=(*self.structures.notes, *self.notes),
            complete=complete,
            seed=self.job.seed,
            calibrated=f"calibration: the first {sum(len(y) for _, y in self.job.calib.batches)} training samples",
            seconds=time.perf_counter() - self.began,
        )

    def close(self, *, complete: bool) -> Result:
        """The result, with its report and picture on the disk."""
        result = self.result(complete=complete)
        if self.path is not None:
            self._save_report(complete=complete)
            save_front(self.path / FRONT, result)
        return result

    def _put_earlier_aside(self) -> None:
        """What an earlier search, or a `save_plan`, has left here is copied before any of it is replaced."""
        if self.path is None or not (self.path / PLAN).exists():
            return
        number = next(n for n in itertools.count(1) if not (self.path / f"{EARLIER}{n}").exists())
        part = Path(tempfile.mkdtemp(prefix=f"{EARLIER}part-", dir=self.path))
        weights = named_weights(self.path)  # no others: they are the user's own
        for name in (PLAN, RECIPE, REPORT, FRONT, *([weights] if weights else [])):
            if (self.path / name).exists():
                shutil.copy2(self.path / name, part)
        part.rename(self.path / f"{EARLIER}{number}")

    def _save_model(self) -> None:
        if self.path is None:
            return
        save_plan(self.path, self.groups, self.best.keep, self.best.model)
        if self.best.recipe is not None and _nameable(self.best.recipe):
            save_recipe(self.path / RECIPE, self.best.recipe)
        else:  # an earlier one's would be of another model
            (self.path / RECIPE).unlink(missing_ok=True)

    def _save_report(self, *, complete: bool) -> None:
        if self.path is not None:
            write_whole(self.path / REPORT, self.result(complete=complete).as_json().encode())


def conditions(job: Job) -> str:
    """Batch, threads and device of the latencies."""
    return f"batch {rows(job.example)}, {plural(job.how.threads, 'thread')}, {device_of(job.model).type}"


def _nameable(recipe: Recipe) -> bool:
    try:
        described(recipe)
    except PruneError:  # functions of one's own have no name to write
        return False
    return True
