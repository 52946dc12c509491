"""`fit_budget`: the best model that meets a goal, searched for, measured, and told in words."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from tqdm.auto import tqdm

from .. import criteria
from ..allocation import allocate, unit_scores
from ..core import Group, Keep, PruneError, Scores, device_of
from ..files import write_whole
from ..measurement import Evaluation, Speedup, compare, evaluate
from ..pipeline import Recipe
from ..recipes import described, save_recipe
from ..running import rows
from ..sensitivity import Scan, scan
from ..surgery import save_plan, shrink
from ..surgery.plans import PLAN, named_weights
from ..text import plural
from .costs import Costs, LatencyTable, Layout, any_keep, dense_layout, latency_table
from .goals import Goals, goals
from .job import ALL, How, Job, Recovery, Structures, counted, job, structures
from .result import (
    NOTHING,
    WORTH,
    Candidate,
    GoalNotMet,
    Result,
    Trial,
    best,
    better,
    listed,
    missed,
    remains,
    save_front,
    shortfall,
    too_much,
)
from .rules import RULES, Limits, Question, smallest

MARGIN = 0.06  # of the limit: what is aimed below it, so that another process, timing afresh, finds it met
SLACK = 0.12  # of the limit: a layout further below is tried again with a little more left
TURNS = 4  # corrections of a layout
ROUNDS = 7


@dataclass(frozen=True)
class Measured:
    """A layout's costs and their ratios to the dense model's; the speed-up with its interval."""

    costs: Costs
    ratios: Costs
    speedup: Speedup

    def within(self, limits: Limits, margin: float = 0.0) -> bool:
        """Whether every cost is within its limit, and a measured time below it by a margin."""
        return all(self.ratios[c] <= limit * (1 - (margin if c == "latency" else 0)) for c, limit in limits.items())


@dataclass
class Bench:
    """Where layouts are measured; what was measured once is remembered."""

    job: Job
    _table: LatencyTable | None = None
    known: dict[tuple[int, ...], Measured] = field(default_factory=dict)

    @property
    def table(self) -> LatencyTable:
        """What every layer costs, once it was timed."""
        assert self._table is not None
        return self._table

    @table.setter
    def table(self, found: LatencyTable) -> None:
        self._table = found

    def measure(self, layouts: Sequence[Layout]) -> None:
        """Build what is not known yet, and time all of it in turns with the dense model."""
        fresh = {tuple(x.values()): x for x in layouts if tuple(x.values()) not in self.known}
        if not fresh:
            return
        groups = self.table.groups
        models = {str(key): shrink(self.job.model, groups, any_keep(groups, x)) for key, x in fresh.items()}
        found = measured(self.job, models, ROUNDS)
        self.known.update({key: found[str(key)] for key in fresh})

    def of(self, layout: Layout) -> Measured:
        """What a layout costs."""
        self.measure([layout])
        return self.known[tuple(layout.values())]


def measured(job: Job, models: Mapping[str, nn.Module], rounds: int) -> dict[str, Measured]:
    """The costs of models, timed in turns with the dense one."""
    how = job.how
    batch = rows(job.example)
    as_data = [(job.example, torch.zeros(batch))]  # inputs of any kind, tuples included
    timed = compare(
        {"dense": job.model, **models}, as_data, batch_size=batch, threads=how.threads, rounds=rounds, clock="steady"
    )
    found = {}
    for name, model in models.items():
        counts = counted(model, job.example)
        ratios = {cost: n / max(job.counts[cost], 1e-12) for cost, n in counts.items()}
        speed = timed.speedup[name]
        found[name] = Measured(
            {"latency": timed.latency[name].p50, **counts}, {"latency": 1 / speed.ratio, **ratios}, speed
        )
    return found


def settle(
    bench: Bench, questions: Mapping[Candidate, Question], limits: Limits
) -> tuple[dict[Candidate, Layout], dict[Candidate, str]]:
    """For each candidate the layout whose *measured* costs come nearest below the limits; and why some have none.

    The rule is asked for a predicted cost; what is then measured says by how much the prediction was off, and the next
    question is put accordingly.
    """
    aims = {c: {cost: limit * (1 - MARGIN) for cost, limit in limits.items()} for c in questions}
    found: dict[Candidate, Layout] = {}
    refused: dict[Candidate, str] = {}
    open_ = list(questions)
    for _ in range(TURNS):
        asked = {}
        for c in open_:
            try:
                asked[c] = RULES[c.rule](questions[c], aims[c])
            except PruneError as error:
                refused[c] = str(error)
        bench.measure(list(asked.values()))
        open_ = [c for c, layout in asked.items() if _again(bench, layout, limits, aims[c], found, c)]
        if not open_:
            break
    missing = {c: refused.get(c, "no layout measured within the limits") for c in questions if c not in found}
    return found, missing


def _again(
    bench: Bench, layout: Layout, limits: Limits, aim: dict[str, float], found: dict[Candidate, Layout], c: Candidate
) -> bool:
    """Note what was measured, and set the next aim; whether there is one worth asking for."""
    got = bench.of(layout)
    fits = got.within(limits, MARGIN / 2)
    cost = next(iter(limits))
    if fits and (c not in found or got.ratios[cost] > bench.of(found[c]).ratios[cost]):
        found[c] = layout
    close = fits and any(got.ratios[k] >= limit * (1 - SLACK) for k, limit in limits.items())
    if close:
        return False
    for k, limit in limits.items():
        wanted = limit * (1 - MARGIN)
        off = wanted / max(got.ratios[k], 1e-6)
        if off < 1 or fits:
            aim[k] = min(1.0, max(0.01, aim[k] * min(max(off, 0.6), 1.4)))
    return True


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


SPARSITIES = (0.25, 0.5, 0.75, 0.9)  # at which the sensitivity scan looks
FINAL_ROUNDS = 15
BISECTIONS = 4
RETRIES = 3
STAGES = 7  # of the progress bar


def fit_budget(
    model: nn.Module,
    data: Any,
    *,
    latency: Any = None,
    bytes: Any = None,
    macs: Any = None,
    max_drop: float | None = None,
    valid: Any = None,
    example: Any = None,
    recover_steps: int = 300,
    recover: Recovery | None = None,
    seed: int = 0,
    save: str | os.PathLike[str] | None = None,
    on_trial: OnTrial | None = None,
    progress: bool = True,
    how: How | None = None,
) -> Result:
    """Search for the best pruned model within a budget, and report what was tried. The model is left as it is.

    latency, bytes, macs: limits; a number in (0, 1] is a fraction of the dense model's, a text has a unit ("2.5 ms",
    "300 kB", "1.5 MMACs"). The most accurate model within all of them wins. max_drop: the share of validation labels
    that may be lost (0.01: one point); alone, the fastest model within it wins. bytes are those of a dense checkpoint.
    data: with .train and .valid, or training data and `valid=`. Nothing looks at a test split: report that once.
    example: inputs to trace and time the model with; by default a batch of the training data.
    recover_steps: training steps that the returned model has had after pruning; `recover(model, steps)` replaces the
    default, `recovery.finetune`. save: a folder that always holds the best so far, a plan and safetensors for
    `load_plan`, with report.json, recipe.toml and front.png; an earlier search's are kept, in earlier-1 and so on.
    on_trial: called with each trial. how: see `How`.

    Every layer is timed at several channel counts (`LatencyTable`), which predicts layouts; those are built, timed
    whole beside the dense model, and corrected until what is *measured* meets the goal with a margin. Criteria and
    rules compete after a short recovery; the best get all the steps. Choices are made on the validation data.

    Interrupted (KeyboardInterrupt) it warns and returns the best so far. Raises GoalNotMet, a PruneError with the
    nearest as `.result`, for goals out of reach, and PruneError for goals, data or a model that make no sense.
    """
    wanted = goals(latency, bytes, macs, max_drop)
    work = job(model, data, valid, example, recover_steps, recover, seed, how or How())
    with tqdm(total=STAGES, desc="fit_budget", unit="stage", disable=not progress, leave=False) as bar:
        bench = Bench(work)
        found = structures(work.model, work.example, work.how)
        log = Log(work, wanted, found, _dense(bench, found.groups), save, on_trial)
        bar.update()
        try:
            log.add(log.dense)
            Search(log, bench, bar).run()
        except KeyboardInterrupt:
            warnings.warn(f"interrupted: {log.best.trial.name} is the best so far, of {len(log.trials)}", stacklevel=2)
            return log.close(complete=False)
    result = log.close(complete=True)
    if not result.met:
        raise GoalNotMet(missed(result.chosen, result.dense, result.trials, wanted), result)
    return result


@dataclass
class Search:
    """The search itself, a stage after the other."""

    log: Log
    bench: Bench
    bar: Any

    def __post_init__(self) -> None:
        self.job: Job = self.bench.job
        self.goals: Goals = self.log.goals
        self.scores: dict[Any, Scores] = {}
        self.scans: dict[Any, Scan] = {}

    def run(self) -> None:
        """Time the layers, score and scan; let candidates compete; give the best all the steps."""
        limits = self.goals.fractions(self.log.dense.trial.costs)
        if limits and not shortfall(self.log.dense.trial, self.goals, self.log.dense.trial):
            return  # the dense model is within the budget as it is
        self._time_layers()
        self._floor(limits)
        self._look()
        if limits:
            self._within(limits)
        else:
            self._fastest()

    def _time_layers(self) -> None:
        self.bar.set_postfix_str("timing the layers")
        found, how = self.log.structures, self.job.how
        table = latency_table(self.job.model, found.groups, self.job.example, found.rungs, threads=how.threads)
        self.bench.table = self.log.costs = table
        self.bar.update()

    # What could be reached at all, and how important and how sensitive everything is

    def _floor(self, limits: Limits) -> None:
        """Raise GoalNotMet, before any training, if even the smallest model is too slow or too large."""
        layout = smallest(self._question(Candidate(self.job.how.criteria[0], ALL, "uniform")))
        least = self.bench.of(layout)
        if not least.within(limits):
            left = [f"{layout[g.name]} of {g.units} in {g.name}" for g in self.log.groups]
            raise GoalNotMet(
                f"out of reach: with as little as may be left ({listed(left)}) {too_much(least.ratios, limits)}. "
                f"What remains is work that no pruning removes: {remains(self.bench.table, layout)}. Don't prune this "
                "model for this: relax the goal, or take another network",
                self.log.close(complete=True),
            )

    def _look(self) -> None:
        """Every criterion's scores, and if a rule needs it the scan by that criterion."""
        self.bar.set_postfix_str("sensitivity")
        for criterion in self.job.how.criteria:
            self.scores[criterion] = criteria.by_name(criterion)(self.job.model, self.job.calib)
            if "sensitivity" in self.job.how.rules:
                self.scans[criterion] = self._scan(criterion)
        self.bar.update()

    def _scan(self, criterion: Any) -> Scan:
        scores = self.scores[criterion]
        return scan(
            self.job.model,
            list(self.job.few),
            SPARSITIES,
            lambda model, example=None: list(self.log.groups),
            lambda model, calib=None: scores,
            example=self.job.example,
            n_jobs=1,
            progress=False,
        )

    def _question(self, candidate: Candidate) -> Question:
        names = self.log.structures.parts()[candidate.part]
        groups = tuple(g for g in self.log.groups if g.name in names)
        scores = self.scores.get(candidate.criterion)
        worth = unit_scores(scores, groups) if scores is not None else {}
        return Question(groups, self.log.structures.rungs, self.bench.table, worth, self.scans.get(candidate.criterion))

    # Within a cost: who is most accurate?

    def _within(self, limits: Limits) -> None:
        screened = self._screened(self._candidates(), limits)
        ranked = sorted(screened, key=lambda f: -f.trial.accuracy)
        self._front(_candidate(ranked[0]), limits)
        self.bar.update()
        for found in self._finalists(ranked):
            self._finish(_candidate(found), found.trial.layout, limits)
        self.bar.update()
        finalists = [f for f in self.log.finalists if f.trial.meets] or self.log.finalists
        if finalists:
            ranks = best([f.trial for f in finalists], self.goals, self.log.dense.trial)
            self.log.choose(next(f for f in finalists if f.trial is ranks))

    def _finalists(self, ranked: list[Found]) -> list[Found]:
        """The best after a short recovery, and the control: a long recovery forgives what a short one does not.

        Equal shares of the first criterion are what anybody would try; whoever wins has to beat them at full length.
        """
        chosen = ranked[: self.job.how.finalists]
        control = Candidate(self.job.how.criteria[0], ALL, "uniform")
        return chosen + [f for f in ranked if f not in chosen and _candidate(f) == control]

    def _screened(self, candidates: Sequence[Candidate], limits: Limits) -> list[Found]:
        """Every candidate that gets within the limits, after a short recovery."""
        self.bar.set_postfix_str("layouts, measured")
        layouts, missing = settle(self.bench, {c: self._question(c) for c in candidates}, limits)
        self.log.notes += [f"{c}: {why}" for c, why in missing.items()]
        self.bar.update()
        found = [f for c, x in _distinct(layouts).items() if (f := self._try(c, x, self._short, "screened"))]
        self.bar.update()
        if not found:
            raise GoalNotMet(
                f"{self.goals}: nothing got there. {listed(self.log.notes, 3)}", self.log.close(complete=True)
            )
        return found

    @property
    def _short(self) -> int:
        """The steps of a short recovery."""
        return max(1, round(self.job.how.screen * self.job.steps)) if self.job.steps else 0

    def _candidates(self) -> list[Candidate]:
        """Every criterion with every rule on all structures; each kind of structure alone by the first of both."""
        parts = list(self.log.structures.parts())
        how = self.job.how
        found = [Candidate(c, ALL, r) for c in how.criteria for r in how.rules]
        return found + [Candidate(how.criteria[0], part, how.rules[0]) for part in parts if part != ALL]

    def _front(self, candidate: Candidate, limits: Limits) -> None:
        """The best way to prune at other costs, so that the report shows what a little more or less would buy."""
        for factor in self.job.how.front:
            others = {cost: min(0.95, limit * factor) for cost, limit in limits.items()}
            layouts, _ = settle(self.bench, {candidate: self._question(candidate)}, others)
            if candidate in layouts:
                self._try(candidate, layouts[candidate], self._short, "front")

    def _finish(self, candidate: Candidate, layout: Layout, limits: Limits) -> None:
        """All the steps, and the clock once more; if it finds the limit missed, a smaller layout and again."""
        tightened = dict(limits)
        for _ in range(RETRIES):
            found = self._try(candidate, layout, self.job.steps, "finalist", timed_anew=True)
            if found is None or all(found.trial.ratios[c] <= limit for c, limit in limits.items()):
                return
            tightened = {
                c: limit * min(1.0, 0.97 * limits[c] / found.trial.ratios[c]) for c, limit in tightened.items()
            }
            self.bench.known.clear()  # timed anew, the layout was slower: so may the others be
            layouts, _ = settle(self.bench, {candidate: self._question(candidate)}, tightened)
            if candidate not in layouts:
                return
            layout = layouts[candidate]

    # Within a drop: who is fastest?

    def _fastest(self) -> None:
        """Let the candidates compete at half the time, then halve the interval of latencies with the best of them."""
        floor = self.bench.of(smallest(self._question(Candidate(self.job.how.criteria[0], ALL, "uniform"))))
        low, high = floor.ratios["latency"], 1.0
        if low > 1 / WORTH:
            self.log.notes.append(f"with as little as may be left it is only {floor.speedup} times faster")
            return
        aim = max(0.5, (low + high) / 2)
        candidate = _candidate(
            max(self._screened(self._candidates(), {"latency": aim}), key=lambda f: f.trial.accuracy)
        )
        for _ in range(BISECTIONS):
            kept = self._keeps(candidate, aim)
            low, high = (low, aim) if kept else (aim, high)
            aim = (low + high) / 2
        self.bar.update(2)
        if self.log.best.trial.speedup.ratio < WORTH:
            self.log.choose(self.log.dense)

    def _keeps(self, candidate: Candidate, aim: float) -> bool:
        """Whether the drop is kept at a latency."""
        layouts, _ = settle(self.bench, {candidate: self._question(candidate)}, {"latency": aim})
        found = self._try(candidate, layouts[candidate], self.job.steps, "finalist") if candidate in layouts else None
        return found is not None and found.trial.meets

    # One trial

    def _try(
        self, candidate: Candidate, layout: Layout, steps: int, stage: str, *, timed_anew: bool = False
    ) -> Found | None:
        """Prune, recover, evaluate on the validation data; None, and a note, if the recovery fails."""
        self.bar.set_postfix_str(f"{stage}: {candidate}")
        recipe = self._recipe(candidate, layout)
        keep = keep_of(self.scores[candidate.criterion], self.log.groups, layout)
        small = shrink(self.job.model, self.log.groups, keep)
        try:
            if steps:
                self.job.recover(small, steps)
            judged = evaluate(small.eval(), self.job.valid)
        except PruneError as error:
            self.log.notes.append(f"{candidate}: {error}")
            return None
        got = measured(self.job, {"it": small}, FINAL_ROUNDS)["it"] if timed_anew else self.bench.of(layout)
        found = Found(_trial(str(candidate), stage, steps, layout, judged, got, candidate), small, keep, recipe)
        self.log.add(found)
        return found

    def _recipe(self, candidate: Candidate, layout: Layout) -> Recipe:
        shares = {g.name: 1 - layout[g.name] / g.units for g in self.log.groups}
        return Recipe(candidate.criterion, self.log.structures.finder, shares, "layer")


def keep_of(scores: Scores, groups: Sequence[Group], layout: Layout) -> Keep:
    """The highest-scored units of each group, as many as the layout says."""
    return allocate(scores, groups, {g.name: 1 - layout[g.name] / g.units for g in groups}, "layer")


def _dense(bench: Bench, groups: Sequence[Group]) -> Found:
    """The dense model as a trial like any other: what the search starts from, and returns if nothing is worth it."""
    work = bench.job
    got = measured(work, {"itself": work.model}, ROUNDS)["itself"]
    costs = Measured(got.costs, dict.fromkeys(got.costs, 1.0), Speedup(1.0, 1.0, 1.0))
    layout = dense_layout(groups)
    keep = {g.name: torch.ones(g.units, dtype=torch.bool) for g in groups}
    trial = _trial(NOTHING, "dense", 0, layout, work.dense, costs)
    return Found(trial, shrink(work.model, groups, keep), keep, None)


def _trial(
    name: str, stage: str, steps: int, layout: Layout, judged: Evaluation, got: Measured, by: Candidate | None = None
) -> Trial:
    return Trial(
        name=name,
        stage=stage,
        steps=steps,
        layout=layout,
        accuracy=judged.accuracy,
        interval=judged.interval,
        n=judged.n,
        costs=got.costs,
        ratios=got.ratios,
        speedup=got.speedup,
        candidate=by,
    )


def _distinct(layouts: Mapping[Candidate, Layout]) -> dict[Candidate, Layout]:
    """The candidates without those that come to the same model as an earlier one."""
    first: dict[tuple[Any, ...], Candidate] = {}
    for candidate, layout in layouts.items():
        first.setdefault((candidate.criterion, *layout.items()), candidate)
    return {c: layouts[c] for c in first.values()}


def _candidate(found: Found) -> Candidate:
    assert found.trial.candidate is not None
    return found.trial.candidate
