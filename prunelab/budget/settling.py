"""From predicted to measured: layouts are built, timed beside the dense model, and corrected until they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ..core import PruneError
from ..measurement import Speedup, compare
from ..measurement.conditions import rows
from ..surgery import shrink
from .job import Job, counted
from .layer_costs import Costs, LatencyTable
from .layouts import Layout, any_keep
from .rules import RULES, Limits, Question
from .trials import Candidate

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
