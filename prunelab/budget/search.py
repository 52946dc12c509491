"""`fit_budget`: the best model that meets a goal, searched for, measured, and told in words."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from tqdm.auto import tqdm

from .. import criteria
from ..allocation import allocate, unit_scores
from ..core import Keep, PruneError, Scores, device_of
from ..files import write_whole
from ..measurement import compare, evaluate
from ..measurement.timing import Speedup
from ..pipeline import Recipe
from ..recipes import save_recipe
from ..running import rows
from ..sensitivity import Scan, scan
from ..surgery import save_plan, shrink
from ..surgery.plans import PLAN, named_weights
from ..text import listed, plural
from .costs import Costs, LatencyTable, Layout, any_keep, counted, dense_layout, latency_table
from .goals import Goals, goals
from .job import ALL, Job, Recovery, SearchOptions
from .result import WORTH, Candidate, GoalNotMet, Result, Trial, too_much
from .rules import RULES, Limits, Question, smallest

MARGIN = 0.06  # of the limit: what is aimed below it, so that another process, timing afresh, finds it met
SLACK = 0.12  # of the limit: a layout further below is tried again with a little more left
TURNS = 4  # corrections of a layout
ROUNDS, FINAL_ROUNDS = 7, 15
SPARSITIES = (0.25, 0.5, 0.75, 0.9)  # at which the sensitivity scan looks
BISECTIONS = 4
RETRIES = 3
STAGES = 6  # of the progress bar
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
    job = Job(model, data, valid, example, recover_steps, recover, seed, how or SearchOptions())
    with tqdm(total=STAGES, desc="fit_budget", unit="stage", disable=not progress, leave=False) as bar:
        search = Search(job, wanted, bar, None if save is None else Path(save), on_trial)
        try:
            search.run()
            bar.update(bar.total - bar.n)  # a goal on accuracy alone has fewer stages
        except KeyboardInterrupt:
            tried = f"{search.best.trial.name} is the best so far, of {len(search.trials)}"
            warnings.warn(f"interrupted: {tried}", stacklevel=2)
            return search.close(complete=False)
    result = search.close(complete=True)
    if not result.met:
        raise result.refusal()
    return result


@dataclass(frozen=True)
class Measured:
    """A layout's costs and their ratios to the dense model's; the speed-up with its interval."""

    costs: Costs
    ratios: Costs
    speedup: Speedup

    def within(self, limits: Limits, margin: float = 0.0) -> bool:
        """Whether every cost is within its limit, and a measured time below it by a margin."""
        return all(self.ratios[c] <= limit * (1 - (margin if c == "latency" else 0)) for c, limit in limits.items())


@dataclass(frozen=True)
class Found:
    """A trial with its model."""

    trial: Trial
    model: nn.Module
    keep: Keep


class Search:
    """Time the layers, score and scan; let candidates compete; give the best all the steps.

    What has been tried, and the best of it, are kept in memory, and on the disk after every improvement.
    """

    def __init__(self, job: Job, goals: Goals, bar: Any, folder: Path | None = None, on_trial: OnTrial | None = None):
        self.job, self.goals, self.bar, self.folder, self.on_trial = job, goals, bar, folder, on_trial
        self.how, self.groups, self.notes = job.how, job.groups, list(job.notes)
        self.began = time.perf_counter()
        self.counts = counted(job.model, job.example)
        self.known: dict[tuple[int, ...], Measured] = {}  # by the counts of a layout
        self.costs: LatencyTable | None = None
        self.scores: dict[Any, Scores] = {}
        self.scans: dict[Any, Scan] = {}
        self.trials: list[Trial] = []
        self.control = Candidate(self.how.criteria[0], ALL, "uniform")  # what anybody would try
        self.short = max(1, round(self.how.screen * job.steps)) if job.steps else 0  # steps
        self.dense = self.best = self._dense()

    def _dense(self) -> Found:
        """The dense model as a trial: what the search starts from, and returns if nothing is worth it."""
        job, layout = self.job, dense_layout(self.groups)
        costs, keep = self._measured(job.model, ROUNDS).costs, any_keep(self.groups, layout)
        worth = job.dense.accuracy, job.dense.interval, job.dense.n
        ones = dict.fromkeys(costs, 1.0)
        trial = Trial("nothing pruned", "dense", 0, layout, *worth, costs, ones, Speedup(1.0, 1.0, 1.0))
        return Found(trial, shrink(job.model, self.groups, keep), keep)

    def run(self) -> None:
        """All of it, unless the dense model is within the budget as it is."""
        self._add(self.dense)
        limits = self.goals.fractions(self.dense.trial.costs)
        if limits and self.dense.trial.meets:
            return
        self._stage("timing the layers")
        job = self.job
        self.costs = latency_table(job.model, job.groups, job.example, job.widths, threads=self.how.threads)
        self._floor(limits)
        self._look()
        if limits:
            self._within(limits)
        else:
            self._fastest()

    def _stage(self, name: str) -> None:
        self.bar.update()
        self.bar.set_postfix_str(name)

    # What models cost, measured

    def _measured(self, model: nn.Module, rounds: int) -> Measured:
        """The costs of a model, timed in turns with the dense one."""
        job, batch = self.job, rows(self.job.example)
        as_data = [(job.example, torch.zeros(batch))]  # inputs of any kind, tuples included
        both = {"dense": job.model, "it": model}
        timed = compare(both, as_data, batch_size=batch, threads=self.how.threads, rounds=rounds, clock="steady")
        counts, speed = counted(model, job.example), timed.speedup["it"]
        ratios = {cost: n / max(self.counts[cost], 1e-12) for cost, n in counts.items()}
        return Measured({"latency": timed.latency["it"].p50, **counts}, {"latency": 1 / speed.ratio, **ratios}, speed)

    def _of(self, layout: Layout) -> Measured:
        """What a layout costs; what was measured once is remembered."""
        key = tuple(layout.values())
        if key not in self.known:
            small = shrink(self.job.model, self.groups, any_keep(self.groups, layout))
            self.known[key] = self._measured(small, ROUNDS)
        return self.known[key]

    def _settled(self, candidate: Candidate, limits: Limits) -> Layout | None:
        """The candidate's layout whose *measured* costs come nearest below the limits; None, and a note, without one.

        The rule is asked for a predicted cost; what is then measured says by how much the prediction was off, and the
        next question is put accordingly.
        """
        question, best, why = self._question(candidate), None, "no layout measured within the limits"
        aims, first = {cost: limit * (1 - MARGIN) for cost, limit in limits.items()}, next(iter(limits))
        for _ in range(TURNS):
            try:
                layout = RULES[candidate.rule](question, aims)
            except PruneError as error:
                why = str(error)
                break
            got = self._of(layout)
            fits = got.within(limits, MARGIN / 2)
            if fits and (best is None or got.ratios[first] > self._of(best).ratios[first]):
                best = layout
            if fits and any(got.ratios[c] >= limit * (1 - SLACK) for c, limit in limits.items()):
                break  # close enough
            for cost, limit in limits.items():
                off = limit * (1 - MARGIN) / max(got.ratios[cost], 1e-6)
                if off < 1 or fits:
                    aims[cost] = min(1.0, max(0.01, aims[cost] * min(max(off, 0.6), 1.4)))
        if best is None:
            self.notes.append(f"{candidate}: {why}")
        return best

    # What has been tried so far, and the best of it

    def _rank(self, found: Found) -> tuple[float, float, float]:
        """The higher the better an answer."""
        return found.trial.rank(self.goals, self.dense.trial)

    def _add(self, found: Found) -> Found:
        """Note a trial, and give it back judged; if it is the best so far, it lies on the disk from now on."""
        meets = not found.trial.shortfall(self.goals, self.dense.trial)
        found, first = replace(found, trial=replace(found.trial, meets=meets)), not self.trials
        if first:
            self.dense = found
            self._put_earlier_aside()
        self.trials.append(found.trial)
        if first or self._rank(found) > self._rank(self.best):
            self._choose(found)
        self._save_report(complete=False)
        if self.on_trial:
            self.on_trial(found.trial)
        return found

    def _choose(self, found: Found) -> None:
        """Settle on one, whatever was best by the ranking."""
        self.best = found
        if self.folder is None:
            return
        (self.folder / RECIPE).unlink(missing_ok=True)  # it is of another model
        save_plan(self.folder, self.groups, found.keep, found.model)
        recipe = self._recipe(found.trial)
        if recipe is not None:
            with suppress(PruneError):  # functions of one's own have no name to write
                save_recipe(self.folder / RECIPE, recipe)

    def _recipe(self, trial: Trial) -> Recipe | None:
        """What prunes the dense model to the same units; None for the dense model itself."""
        if trial.candidate is None:
            return None
        return Recipe(trial.candidate.criterion, self.job.finder, self._shares(trial.layout), "layer")

    def _shares(self, layout: Layout) -> dict[str, float]:
        """What goes of each group."""
        return {g.name: 1 - layout[g.name] / g.units for g in self.groups}

    def _result(self, *, complete: bool) -> Result:
        """All of it, as it stands."""
        job, best = self.job, self.best
        where = f"batch {rows(job.example)}, {plural(self.how.threads, 'thread')}, {device_of(job.model).type}"
        seen = f"calibration: the first {sum(len(y) for _, y in job.calib.batches)} training samples"
        versions = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
        took = f"{time.perf_counter() - self.began:.0f} s"
        return Result(
            model=best.model,
            groups=self.groups,
            keep=best.keep,
            recipe=self._recipe(best.trial),
            goals=self.goals,
            dense=self.dense.trial,
            chosen=best.trial,
            trials=tuple(self.trials),
            costs=self.costs,
            left_alone=job.left_alone,
            notes=tuple(self.notes),
            complete=complete,
            seed=job.seed,
            conditions=f"latency at {where}; seed {job.seed}; {versions}; {seen}; {took}",
        )

    def close(self, *, complete: bool) -> Result:
        """The result, with its report and picture on the disk."""
        self._save_report(complete=complete)
        result = self._result(complete=complete)
        if self.folder is not None:
            result.save_front(self.folder / FRONT)
        return result

    def _save_report(self, *, complete: bool) -> None:
        if self.folder is not None:
            write_whole(self.folder / REPORT, self._result(complete=complete).as_json().encode())

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

    # What could be reached at all, and how important and how sensitive everything is

    def _floor(self, limits: Limits) -> None:
        """Raise GoalNotMet, before any training, if even the smallest model is too slow or too large."""
        question = self._question(self.control)
        layout = smallest(question)
        least = self._of(layout)
        if not least.within(limits):
            left = [f"{layout[g.name]} of {g.units} in {g.name}" for g in self.groups]
            raise GoalNotMet(
                f"out of reach: with as little as may be left ({listed(left, 6)}) {too_much(least.ratios, limits)}. "
                f"What remains is work that no pruning removes: {question.costs.slowest(layout)}. Don't prune this "
                "model for this: relax the goal, or take another network",
                self.close(complete=True),
            )

    def _look(self) -> None:
        """Every criterion's scores, and if a rule needs it the scan by that criterion."""
        self._stage("sensitivity")
        job, groups = self.job, list(self.groups)
        for criterion in self.how.criteria:
            scores = self.scores[criterion] = criteria.by_name(criterion)(job.model, job.calib)
            if "sensitivity" in self.how.rules:
                found, given = (lambda model, example=None: groups), (lambda model, calib=None, s=scores: s)
                self.scans[criterion] = scan(
                    job.model, list(job.few), SPARSITIES, found, given, example=job.example, n_jobs=1, progress=False
                )

    def _question(self, candidate: Candidate) -> Question:
        assert self.costs is not None
        names, scores = self.job.parts[candidate.part], self.scores.get(candidate.criterion)
        groups = tuple(g for g in self.groups if g.name in names)
        worth = unit_scores(scores, groups) if scores is not None else {}
        return Question(groups, self.job.widths, self.costs, worth, self.scans.get(candidate.criterion))

    def _candidates(self) -> list[Candidate]:
        """Every criterion with every rule on all structures; each kind of structure alone by the first of both."""
        how = self.how
        found = [Candidate(c, ALL, r) for c in how.criteria for r in how.rules]
        return found + [Candidate(how.criteria[0], part, how.rules[0]) for part in self.job.parts if part != ALL]

    def _screened(self, limits: Limits) -> list[Found]:
        """Every candidate that gets within the limits, after a short recovery, the most accurate first."""
        self._stage("layouts, measured")
        distinct: dict[Any, tuple[Candidate, Layout]] = {}  # of those that come to the same model the first
        for candidate in self._candidates():
            layout = self._settled(candidate, limits)
            if layout is not None:
                distinct.setdefault((candidate.criterion, *layout.items()), (candidate, layout))
        self._stage("screened")
        found = [f for c, layout in distinct.values() if (f := self._try(c, layout, self.short, "screened"))]
        if not found:
            why = f"{self.goals}: nothing got there. {listed(self.notes, 3)}"
            raise GoalNotMet(why, self.close(complete=True))
        return sorted(found, key=lambda f: -f.trial.accuracy)

    # Within a cost: who is most accurate?

    def _within(self, limits: Limits) -> None:
        ranked = self._screened(limits)
        self._stage("front")
        best = _candidate(ranked[0])
        for factor in self.how.front:  # so that the report shows what a little more or less would buy
            layout = self._settled(best, {cost: min(0.95, limit * factor) for cost, limit in limits.items()})
            if layout is not None:
                self._try(best, layout, self.short, "front")
        self._stage("finalists")
        # A long recovery forgives what a short one does not: whoever wins has to beat the control at full length.
        chosen = ranked[: self.how.finalists]
        chosen += [f for f in ranked if f not in chosen and _candidate(f) == self.control]
        tried = [found for one in chosen for found in self._finish(_candidate(one), one.trial.layout, limits)]
        finalists = [f for f in tried if f.trial.meets] or tried
        if finalists:
            self._choose(max(finalists, key=self._rank))

    def _finish(self, candidate: Candidate, layout: Layout | None, limits: Limits) -> list[Found]:
        """All the steps, and the clock once more; if it finds the limit missed, a smaller layout and again."""
        aims, tried = dict(limits), []
        for _ in range(RETRIES):
            found = layout and self._try(candidate, layout, self.job.steps, "finalist", timed_anew=True)
            if not found:
                break
            tried.append(found)
            if all(found.trial.ratios[c] <= limit for c, limit in limits.items()):
                break
            aims = {c: aim * min(1.0, 0.97 * limits[c] / found.trial.ratios[c]) for c, aim in aims.items()}
            self.known.clear()  # timed anew, the layout was slower: so may the others be
            layout = self._settled(candidate, aims)
        return tried

    # Within a drop: who is fastest?

    def _fastest(self) -> None:
        """Let the candidates compete at half the time, then halve the interval of latencies with the best of them."""
        floor = self._of(smallest(self._question(self.control)))
        low, high = floor.ratios["latency"], 1.0
        if low > 1 / WORTH:
            self.notes.append(f"with as little as may be left it is only {floor.speedup} times faster")
            return
        aim = max(0.5, (low + high) / 2)
        candidate = _candidate(self._screened({"latency": aim})[0])
        self._stage("finalists")
        for _ in range(BISECTIONS):
            layout = self._settled(candidate, {"latency": aim})
            found = layout and self._try(candidate, layout, self.job.steps, "finalist")
            low, high = (low, aim) if found and found.trial.meets else (aim, high)
            aim = (low + high) / 2
        if self.best.trial.speedup.ratio < WORTH:
            self._choose(self.dense)

    # One trial

    def _try(
        self, candidate: Candidate, layout: Layout, steps: int, stage: str, *, timed_anew: bool = False
    ) -> Found | None:
        """Prune, recover, evaluate on the validation data; None, and a note, if the recovery fails."""
        self.bar.set_postfix_str(f"{stage}: {candidate}")
        keep = allocate(self.scores[candidate.criterion], self.groups, self._shares(layout), "layer")
        small = shrink(self.job.model, self.groups, keep)
        try:
            if steps:
                self.job.recover(small, steps)
            judged = evaluate(small.eval(), self.job.valid)
        except PruneError as error:
            self.notes.append(f"{candidate}: {error}")
            return None
        got = self._measured(small, FINAL_ROUNDS) if timed_anew else self._of(layout)
        worth = judged.accuracy, judged.interval, judged.n
        trial = Trial(
            str(candidate), stage, steps, layout, *worth, got.costs, got.ratios, got.speedup, False, candidate
        )
        return self._add(Found(trial, small, keep))


def _candidate(found: Found) -> Candidate:
    assert found.trial.candidate is not None
    return found.trial.candidate
