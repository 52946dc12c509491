"""`fit_budget`: the best model that meets a goal, searched for, measured, and told in words."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from .. import criteria
from ..allocation import allocate, unit_scores
from ..core import Group, Keep, PruneError, Scores
from ..measurement import Evaluation, Speedup, evaluate
from ..pipeline import Recipe
from ..sensitivity import Scan, scan
from ..surgery import shrink
from .goals import Goals, goals
from .job import How, Job, Recovery, job
from .layer_costs import latency_table
from .layouts import Layout, dense_layout
from .log import Found, Log, OnTrial
from .report import GoalNotMet, Result
from .rules import Limits, Question, smallest
from .settling import ROUNDS, Bench, Measured, measured, settle
from .structures import ALL, structures
from .trials import NOTHING, Candidate, Trial, best, shortfall
from .words import WORTH, listed, missed, remains, too_much

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
