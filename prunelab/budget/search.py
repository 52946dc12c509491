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
from ..measurement import Evaluation, compare, evaluate
from ..measurement.timing import Speedup
from ..pipeline import Recipe
from ..recipes import described, save_recipe
from ..running import rows
from ..sensitivity import Scan, scan
from ..surgery import save_plan, shrink
from ..surgery.plans import PLAN, named_weights
from ..text import listed, plural
from .costs import Costs, LatencyTable, Layout, any_keep, dense_layout, latency_table
from .goals import Goals, goals
from .job import ALL, Job, Recovery, SearchOptions, Structures, counted, job, structures
from .result import WORTH, Candidate, GoalNotMet, Result, Trial, too_much
from .rules import RULES, Limits, Question, smallest

MARGIN = 0.06  # of the limit: what is aimed below it, so that another process, timing afresh, finds it met
SLACK = 0.12  # of the limit: a layout further below is tried again with a little more left
TURNS = 4  # corrections of a layout
ROUNDS, FINAL_ROUNDS = 7, 15
SPARSITIES = (0.25, 0.5, 0.75, 0.9)  # at which the sensitivity scan looks
BISECTIONS = 4
RETRIES = 3
STAGES = 7  # of the progress bar
REPORT, FRONT, RECIPE = "report.json", "front.png", "recipe.toml"
EARLIER = "earlier-"

OnTrial: TypeAlias = Callable[[Trial], object]


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
    how: SearchOptions | None = None,
) -> Result:
    """Search for the best pruned model within a budget, and report what was tried. The model is left as it is.

    latency, bytes, macs: limits; a number in (0, 1] is a fraction of the dense model's, a text has a unit ("2.5 ms",
        "300 kB", "1.5 MMACs"). The most accurate model within all of them wins. bytes are those of a dense checkpoint.
    max_drop: the share of validation labels that may be lost (0.01: one point); alone, the fastest model within it
        wins.
    data: with .train and .valid, or training data and `valid=`. Nothing looks at a test split: report that once.
    example: inputs to trace and time the model with; by default a batch of the training data.
    recover_steps: training steps that the returned model has had after pruning.
    recover: recover(model, steps) replaces the default, `recovery.finetune`.
    save: a folder that always holds the best so far, a plan and safetensors for `load_plan`, with report.json,
        recipe.toml and front.png; an earlier search's are kept, in earlier-1 and so on.
    on_trial: called with each trial.
    how: see `SearchOptions`.

    Every layer is timed at several channel counts (`LatencyTable`), which predicts layouts; those are built, timed
    whole beside the dense model, and corrected until what is *measured* meets the goal with a margin. Criteria and
    rules compete after a short recovery; the best get all the steps. Choices are made on the validation data.

    Interrupted (KeyboardInterrupt) it warns and returns the best so far. Raises GoalNotMet, a PruneError with the
    nearest as `.result`, for goals out of reach, and PruneError for goals, data or a model that make no sense.
    """
    wanted = goals(latency, bytes, macs, max_drop)
    work = job(model, data, valid, example, recover_steps, recover, seed, how or SearchOptions())
    with tqdm(total=STAGES, desc="fit_budget", unit="stage", disable=not progress, leave=False) as bar:
        found = structures(work.model, work.example, work.how)
        bar.update()
        bench = Bench(work, found)
        log = Log(work, wanted, found, _dense(bench), None if save is None else Path(save), on_trial)
        try:
            log.add(log.dense)
            Search(log, bench, bar).run()
        except KeyboardInterrupt:
            warnings.warn(f"interrupted: {log.best.trial.name} is the best so far, of {len(log.trials)}", stacklevel=2)
            return log.close(complete=False)
    result = log.close(complete=True)
    if not result.met:
        raise result.refusal()
    return result


# From predicted to measured


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
    """Where layouts are built and timed beside the dense model; what was measured once is remembered."""

    job: Job
    structures: Structures
    known: dict[tuple[int, ...], Measured] = field(default_factory=dict)

    def measure(self, layouts: Sequence[Layout]) -> None:
        """Build what is not known yet, and time all of it in turns with the dense model."""
        fresh = {tuple(x.values()): x for x in layouts if tuple(x.values()) not in self.known}
        groups = self.structures.groups
        models = {str(key): shrink(self.job.model, groups, any_keep(groups, x)) for key, x in fresh.items()}
        found = self.timed(models, ROUNDS) if models else {}
        self.known.update({key: found[str(key)] for key in fresh})

    def of(self, layout: Layout) -> Measured:
        """What a layout costs."""
        self.measure([layout])
        return self.known[tuple(layout.values())]

    def timed(self, models: Mapping[str, nn.Module], rounds: int) -> dict[str, Measured]:
        """The costs of models, timed in turns with the dense one."""
        job, batch = self.job, rows(self.job.example)
        as_data = [(job.example, torch.zeros(batch))]  # inputs of any kind, tuples included
        every = {"dense": job.model, **models}
        timed = compare(every, as_data, batch_size=batch, threads=job.how.threads, rounds=rounds, clock="steady")
        found = {}
        for name, model in models.items():
            counts, speed = counted(model, job.example), timed.speedup[name]
            ratios = {cost: n / max(job.counts[cost], 1e-12) for cost, n in counts.items()}
            costs = {"latency": timed.latency[name].p50, **counts}
            found[name] = Measured(costs, {"latency": 1 / speed.ratio, **ratios}, speed)
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
    left = list(questions)
    for _ in range(TURNS):
        asked = {}
        for c in left:
            try:
                asked[c] = RULES[c.rule](questions[c], aims[c])
            except PruneError as error:
                refused[c] = str(error)
        bench.measure(list(asked.values()))
        left = [c for c, layout in asked.items() if _again(bench, layout, limits, aims[c], found, c)]
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
    if fits and any(got.ratios[k] >= limit * (1 - SLACK) for k, limit in limits.items()):
        return False  # close enough
    for k, limit in limits.items():
        off = limit * (1 - MARGIN) / max(got.ratios[k], 1e-6)
        if off < 1 or fits:
            aim[k] = min(1.0, max(0.01, aim[k] * min(max(off, 0.6), 1.4)))
    return True


# What has been tried so far, and the best of it: kept in memory, and on the disk after every improvement


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
    folder: Path | None = None
    on_trial: OnTrial | None = None
    costs: LatencyTable | None = None
    trials: list[Trial] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    notes: list[str] = field(default_factory=list)
    finalists: list[Found] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.best = self.dense

    @property
    def groups(self) -> tuple[Group, ...]:
        """All that could be removed."""
        return self.structures.groups

    def rank(self, found: Found) -> tuple[float, float, float]:
        """The higher the better an answer."""
        return found.trial.rank(self.goals, self.dense.trial)

    def add(self, found: Found) -> Found:
        """Note a trial, and give it back judged; if it is the best so far, it lies on the disk from now on."""
        first = not self.trials
        meets = not found.trial.shortfall(self.goals, self.dense.trial)
        found = replace(found, trial=replace(found.trial, meets=meets))
        if first:
            self.dense = found
            self._put_earlier_aside()
        self.trials.append(found.trial)
        if found.trial.stage == "finalist":
            self.finalists.append(found)
        if first or self.rank(found) > self.rank(self.best):
            self.choose(found)
        self._save_report(complete=False)
        if self.on_trial:
            self.on_trial(found.trial)
        return found

    def choose(self, found: Found) -> None:
        """Settle on one, whatever was best by the ranking."""
        self.best = found
        if self.folder is None:
            return
        save_plan(self.folder, self.groups, found.keep, found.model)
        if found.recipe is not None and _nameable(found.recipe):
            save_recipe(self.folder / RECIPE, found.recipe)
        else:  # an earlier one's would be of another model
            (self.folder / RECIPE).unlink(missing_ok=True)

    def result(self, *, complete: bool) -> Result:
        """All of it, as it stands."""
        job = self.job
        where = f"{plural(job.how.threads, 'thread')}, {device_of(job.model).type}"
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
            timed=f"batch {rows(job.example)}, {where}",
            left_alone=self.structures.left_alone,
            notes=(*self.structures.notes, *self.notes),
            complete=complete,
            seed=job.seed,
            calibrated=f"calibration: the first {sum(len(y) for _, y in job.calib.batches)} training samples",
            seconds=time.perf_counter() - self.began,
        )

    def close(self, *, complete: bool) -> Result:
        """The result, with its report and picture on the disk."""
        self._save_report(complete=complete)
        result = self.result(complete=complete)
        if self.folder is not None:
            result.save_front(self.folder / FRONT)
        return result

    def _save_report(self, *, complete: bool) -> None:
        if self.folder is not None:
            write_whole(self.folder / REPORT, self.result(complete=complete).as_json().encode())

    def _put_earlier_aside(self) -> None:
        """What an earlier search, or a `save_plan`, has left here is copied before any of it is replaced."""
        if self.folder is None or not (self.folder / PLAN).exists():
            return
        number = next(n for n in itertools.count(1) if not (self.folder / f"{EARLIER}{n}").exists())
        part = Path(tempfile.mkdtemp(prefix=f"{EARLIER}part-", dir=self.folder))
        weights = named_weights(self.folder)  # no others: they are the user's own
        for name in (PLAN, RECIPE, REPORT, FRONT, *([weights] if weights else [])):
            if (self.folder / name).exists():
                shutil.copy2(self.folder / name, part)
        part.rename(self.folder / f"{EARLIER}{number}")


def _nameable(recipe: Recipe) -> bool:
    try:
        described(recipe)
    except PruneError:  # functions of one's own have no name to write
        return False
    return True


# The search itself, a stage after the other


@dataclass
class Search:
    """Time the layers, score and scan; let candidates compete; give the best all the steps."""

    log: Log
    bench: Bench
    bar: Any

    def __post_init__(self) -> None:
        self.job: Job = self.bench.job
        self.how = self.job.how
        self.scores: dict[Any, Scores] = {}
        self.scans: dict[Any, Scan] = {}
        self.control = Candidate(self.how.criteria[0], ALL, "uniform")  # what anybody would try
        self.short = max(1, round(self.how.screen * self.job.steps)) if self.job.steps else 0  # steps

    def run(self) -> None:
        """All of it, unless the dense model is within the budget as it is."""
        dense = self.log.dense.trial
        limits = self.log.goals.fractions(dense.costs)
        if limits and dense.meets:
            return
        self.bar.set_postfix_str("timing the layers")
        job, found = self.job, self.log.structures
        self.log.costs = latency_table(job.model, found.groups, job.example, found.widths, threads=self.how.threads)
        self.bar.update()
        self._floor(limits)
        self._look()
        if limits:
            self._within(limits)
        else:
            self._fastest()

    # What could be reached at all, and how important and how sensitive everything is

    def _floor(self, limits: Limits) -> None:
        """Raise GoalNotMet, before any training, if even the smallest model is too slow or too large."""
        layout = smallest(self._question(self.control))
        least = self.bench.of(layout)
        if not least.within(limits):
            assert self.log.costs is not None
            left = [f"{layout[g.name]} of {g.units} in {g.name}" for g in self.log.groups]
            raise GoalNotMet(
                f"out of reach: with as little as may be left ({listed(left, 6)}) {too_much(least.ratios, limits)}. "
                f"What remains is work that no pruning removes: {self.log.costs.slowest(layout)}. Don't prune this "
                "model for this: relax the goal, or take another network",
                self.log.close(complete=True),
            )

    def _look(self) -> None:
        """Every criterion's scores, and if a rule needs it the scan by that criterion."""
        self.bar.set_postfix_str("sensitivity")
        job, groups = self.job, list(self.log.groups)
        for criterion in self.how.criteria:
            scores = self.scores[criterion] = criteria.by_name(criterion)(job.model, job.calib)
            if "sensitivity" in self.how.rules:
                found, given = (lambda model, example=None: groups), (lambda model, calib=None, s=scores: s)
                self.scans[criterion] = scan(
                    job.model, list(job.few), SPARSITIES, found, given, example=job.example, n_jobs=1, progress=False
                )
        self.bar.update()

    def _question(self, candidate: Candidate) -> Question:
        assert self.log.costs is not None
        found = self.log.structures
        names = found.parts()[candidate.part]
        groups = tuple(g for g in found.groups if g.name in names)
        scores = self.scores.get(candidate.criterion)
        worth = unit_scores(scores, groups) if scores is not None else {}
        return Question(groups, found.widths, self.log.costs, worth, self.scans.get(candidate.criterion))

    def _settled(self, candidate: Candidate, limits: Limits) -> Layout | None:
        """The candidate's layout whose measured costs come nearest below the limits, if there is one."""
        return settle(self.bench, {candidate: self._question(candidate)}, limits)[0].get(candidate)

    def _candidates(self) -> list[Candidate]:
        """Every criterion with every rule on all structures; each kind of structure alone by the first of both."""
        how, parts = self.how, self.log.structures.parts()
        found = [Candidate(c, ALL, r) for c in how.criteria for r in how.rules]
        return found + [Candidate(how.criteria[0], part, how.rules[0]) for part in parts if part != ALL]

    def _screened(self, limits: Limits) -> list[Found]:
        """Every candidate that gets within the limits, after a short recovery, the most accurate first."""
        self.bar.set_postfix_str("layouts, measured")
        layouts, missing = settle(self.bench, {c: self._question(c) for c in self._candidates()}, limits)
        self.log.notes += [f"{c}: {why}" for c, why in missing.items()]
        self.bar.update()
        first: dict[tuple[Any, ...], Candidate] = {}  # of those that come to the same model
        for candidate, layout in layouts.items():
            first.setdefault((candidate.criterion, *layout.items()), candidate)
        found = [f for c in first.values() if (f := self._try(c, layouts[c], self.short, "screened"))]
        self.bar.update()
        if not found:
            why = f"{self.log.goals}: nothing got there. {listed(self.log.notes, 3)}"
            raise GoalNotMet(why, self.log.close(complete=True))
        return sorted(found, key=lambda f: -f.trial.accuracy)

    # Within a cost: who is most accurate?

    def _within(self, limits: Limits) -> None:
        ranked = self._screened(limits)
        self._front(_candidate(ranked[0]), limits)
        self.bar.update()
        # A long recovery forgives what a short one does not: whoever wins has to beat the control at full length.
        chosen = ranked[: self.how.finalists]
        for found in chosen + [f for f in ranked if f not in chosen and _candidate(f) == self.control]:
            self._finish(_candidate(found), found.trial.layout, limits)
        self.bar.update()
        finalists = [f for f in self.log.finalists if f.trial.meets] or self.log.finalists
        if finalists:
            self.log.choose(max(finalists, key=self.log.rank))

    def _front(self, candidate: Candidate, limits: Limits) -> None:
        """The best way to prune at other costs, so that the report shows what a little more or less would buy."""
        for factor in self.how.front:
            layout = self._settled(candidate, {cost: min(0.95, limit * factor) for cost, limit in limits.items()})
            if layout is not None:
                self._try(candidate, layout, self.short, "front")

    def _finish(self, candidate: Candidate, layout: Layout | None, limits: Limits) -> None:
        """All the steps, and the clock once more; if it finds the limit missed, a smaller layout and again."""
        aims = dict(limits)
        for _ in range(RETRIES):
            found = layout and self._try(candidate, layout, self.job.steps, "finalist", timed_anew=True)
            if not found or all(found.trial.ratios[c] <= limit for c, limit in limits.items()):
                return
            aims = {c: aim * min(1.0, 0.97 * limits[c] / found.trial.ratios[c]) for c, aim in aims.items()}
            self.bench.known.clear()  # timed anew, the layout was slower: so may the others be
            layout = self._settled(candidate, aims)

    # Within a drop: who is fastest?

    def _fastest(self) -> None:
        """Let the candidates compete at half the time, then halve the interval of latencies with the best of them."""
        floor = self.bench.of(smallest(self._question(self.control)))
        low, high = floor.ratios["latency"], 1.0
        if low > 1 / WORTH:
            self.log.notes.append(f"with as little as may be left it is only {floor.speedup} times faster")
            return
        aim = max(0.5, (low + high) / 2)
        candidate = _candidate(self._screened({"latency": aim})[0])
        for _ in range(BISECTIONS):
            layout = self._settled(candidate, {"latency": aim})
            found = layout and self._try(candidate, layout, self.job.steps, "finalist")
            low, high = (low, aim) if found and found.trial.meets else (aim, high)
            aim = (low + high) / 2
        self.bar.update(2)
        if self.log.best.trial.speedup.ratio < WORTH:
            self.log.choose(self.log.dense)

    # One trial

    def _try(
        self, candidate: Candidate, layout: Layout, steps: int, stage: str, *, timed_anew: bool = False
    ) -> Found | None:
        """Prune, recover, evaluate on the validation data; None, and a note, if the recovery fails."""
        self.bar.set_postfix_str(f"{stage}: {candidate}")
        groups = self.log.groups
        shares = {g.name: 1 - layout[g.name] / g.units for g in groups}
        recipe = Recipe(candidate.criterion, self.log.structures.finder, shares, "layer")
        keep = allocate(self.scores[candidate.criterion], groups, shares, "layer")
        small = shrink(self.job.model, groups, keep)
        try:
            if steps:
                self.job.recover(small, steps)
            judged = evaluate(small.eval(), self.job.valid)
        except PruneError as error:
            self.log.notes.append(f"{candidate}: {error}")
            return None
        got = self.bench.timed({"it": small}, FINAL_ROUNDS)["it"] if timed_anew else self.bench.of(layout)
        trial = _trial(str(candidate), stage, steps, layout, judged, got, candidate)
        return self.log.add(Found(trial, small, keep, recipe))


def _dense(bench: Bench) -> Found:
    """The dense model as a trial like any other: what the search starts from, and returns if nothing is worth it."""
    work, groups = bench.job, bench.structures.groups
    got = bench.timed({"itself": work.model}, ROUNDS)["itself"]
    itself = Measured(got.costs, dict.fromkeys(got.costs, 1.0), Speedup(1.0, 1.0, 1.0))
    keep = {g.name: torch.ones(g.units, dtype=torch.bool) for g in groups}
    trial = _trial("nothing pruned", "dense", 0, dense_layout(groups), work.dense, itself)
    return Found(trial, shrink(work.model, groups, keep), keep, None)


def _trial(
    name: str, stage: str, steps: int, layout: Layout, judged: Evaluation, got: Measured, by: Candidate | None = None
) -> Trial:
    worth = {"accuracy": judged.accuracy, "interval": judged.interval, "n": judged.n}
    costs = {"costs": got.costs, "ratios": got.ratios, "speedup": got.speedup}
    return Trial(name, stage, steps, layout, candidate=by, **worth, **costs)  # type: ignore[arg-type]


def _candidate(found: Found) -> Candidate:
    assert found.trial.candidate is not None
    return found.trial.candidate
