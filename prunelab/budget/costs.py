"""What each layer costs at the unit counts it could have: timed layer by layer, and from that a prediction."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations_with_replacement, product
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..core import Group, Keep, PruneError, device_of
from ..data import tensors, to
from ..measurement.costs import Call, layer_calls, macs, stored_bytes
from ..measurement.timing import Conditions, Task, in_turns
from ..running import call, cut, undisturbed
from ..running import rows as rows_of
from ..surgery import shrink
from ..text import Lines, Tabular, percent, plural, seconds

Layout: TypeAlias = dict[str, int]  # group name -> units kept
LEVELS = (1.0, 0.75, 0.5, 0.25)  # shares kept at which layers are timed
SCATTERED = 8  # layouts drawn at random


def check_sliced(groups: Sequence[Group]) -> None:
    """PruneError for groups of whole modules: what a layer costs is fitted to the channels that it keeps."""
    whole = next((g for g in groups if g.parts), None)
    if whole is not None:
        raise PruneError(
            f"{whole.name} holds whole modules, such as {whole.parts[0].path}, and a budget is searched for by the "
            'channels that layers keep: give SearchOptions(granularity="neurons"), say, and remove whole modules with '
            "pl.prune and pl.shrink first"
        )


def dense_layout(groups: Sequence[Group]) -> Layout:
    """Everything stays."""
    return {g.name: g.units for g in groups}


def widths(group: Group, round_to: int) -> tuple[int, ...]:
    """The counts worth keeping, ascending: multiples of round_to, where the group has enough units for it to matter.

    Processors compute in packs of eight or sixteen channels, so that what lies between costs as much as the next
    multiple. A unit that is itself a block of channels, such as a head, counts alone.

    >>> from prunelab.core import Member
    >>> widths(Group("conv", 20, (Member("conv.weight", 0),)), 8)
    (8, 16, 20)
    """
    step = round_to if group.units >= 2 * round_to and group.members[0].block == 1 else 1
    return tuple(sorted({*range(step, group.units + 1, step), group.units}))


def at_least(widths: Sequence[int], count: float) -> int:
    """The lowest of the widths that keeps so many; the highest if none does."""
    return next((w for w in widths if w >= count), widths[-1])


def nearest(widths: Sequence[int], count: float) -> int:
    """The width nearest to a count."""
    return min(widths, key=lambda w: (abs(w - count), w))


def any_keep(groups: Sequence[Group], layout: Layout) -> Keep:
    """Some choice of units with these counts, for what depends on the counts alone: time, MACs, bytes."""
    return {g.name: torch.arange(g.units) < layout[g.name] for g in groups}


def telling_layouts(
    groups: Sequence[Group], candidates: Mapping[str, Sequence[int]], together: Iterable[frozenset[str]]
) -> list[Layout]:
    """Sixteen layouts in which every two groups that meet in a layer take every pair of levels, or nearly; and more.

    `together`: the sets of groups that meet. Groups that meet get different colours; the first colour counts through
    the levels in one digit, the second in the other, the others in the rows of Latin squares. Groups of one colour
    go in step there, so that dice throw some layouts in which they don't: what happens between layers shows only there.
    """
    colours = _colours([g.name for g in groups], list(together))
    n = len(LEVELS)
    found = []
    for a, b in product(range(n), range(n)):
        found.append({name: _square(colour, a, b) % n for name, colour in colours.items()})
    dice = random.Random(0)
    found += [{g.name: dice.randrange(n) for g in groups} for _ in range(SCATTERED)]
    found = [{g.name: nearest(candidates[g.name], LEVELS[x[g.name]] * g.units) for g in groups} for x in found]
    return [dict(t) for t in dict.fromkeys(tuple(f.items()) for f in found)]


def _square(colour: int, a: int, b: int) -> int:
    return (a, b, a + b, a + 2 * b, a + 3 * b, 2 * a + b, 3 * a + b)[colour % 7]


def _colours(names: Sequence[str], together: Sequence[frozenset[str]]) -> dict[str, int]:
    """A colour for each group, different from those of all groups it meets: greedily, the most met first."""
    met = {n: set().union(*(s for s in together if n in s)) - {n} for n in names}
    colours: dict[str, int] = {}
    for name in sorted(names, key=lambda n: (-len(met[n]), names.index(n))):
        used = {colours[m] for m in met[name] if m in colours}
        colours[name] = next(c for c in range(len(names) + 1) if c not in used)
    return colours


BLOCK = 2e-3  # seconds a timing: hundreds of layers are timed, and what one gets wrong the fit evens out
ROUNDS = 7
RIDGE = 0.01
PROBED = 2  # samples with which it is found out which group a layer depends on
REST = "between the layers"

Costs: TypeAlias = dict[str, float]  # "latency" in seconds, "bytes", "macs"


@dataclass(frozen=True)
class Fit:
    """A cost as a polynomial in the shares kept: cost = sum over terms of weight * product of the term's shares."""

    terms: tuple[tuple[str, ...], ...]  # each a product of groups' shares; () is the constant
    weights: tuple[float, ...]

    def at(self, shares: Mapping[str, float]) -> float:
        """The cost where each group keeps such a share of its units."""
        total = 0.0
        for term, weight in zip(self.terms, self.weights, strict=True):
            for name in term:
                weight *= shares[name]
            total += weight
        return total


@dataclass(frozen=True)
class Row:
    """One layer as it was timed: the units its groups kept, and what it cost."""

    layer: str
    kind: str
    kept: dict[str, int]
    costs: Costs


@dataclass(frozen=True, repr=False)
class LatencyTable(Tabular):
    """Every layer at several channel counts, and the cost of any layout predicted from it.

    A convolution's time grows with inputs times outputs, so that each layer is fitted by a polynomial with
    coefficients of at least zero in the shares of the groups it depends on. What a forward does between its layers is
    fitted to what is left of the whole models' times.
    """

    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    fits: dict[str, dict[str, Fit]]  # cost -> layer -> fit
    conditions: str

    def _shares(self, layout: Layout) -> dict[str, float]:
        return {g.name: layout[g.name] / g.units for g in self.groups}

    def predict(self, layout: Layout, cost: str = "latency") -> float:
        """Seconds, bytes or MACs of the model with so many units in each group."""
        shares = self._shares(layout)
        return sum(fit.at(shares) for fit in self.fits[cost].values())

    def saved(self, layout: Layout, group: str, kept: int, cost: str = "latency") -> float:
        """What a layout costs less if one group keeps so many units instead."""
        shares, fewer = self._shares(layout), self._shares({**layout, group: kept})
        return sum(fit.at(shares) - fit.at(fewer) for fit in self._touching[cost, group])

    @cached_property
    def _touching(self) -> dict[tuple[str, str], list[Fit]]:
        """The fits that a group's share is part of."""
        return {
            (cost, g.name): [fit for fit in fits.values() if any(g.name in term for term in fit.terms)]
            for cost, fits in self.fits.items()
            for g in self.groups
        }

    def ratio(self, layout: Layout, cost: str = "latency") -> float:
        """The predicted cost as a fraction of the dense model's."""
        return self.predict(layout, cost) / self.predict(dense_layout(self.groups), cost)

    def slowest(self, layout: Layout, most: int = 3) -> str:
        """Where the time of a layout goes, in words: its slowest layers."""
        shares = self._shares(layout)
        times = {name: max(fit.at(shares), 0.0) for name, fit in self.fits["latency"].items()}
        total = max(sum(times.values()), 1e-12)
        said = []
        for name in sorted(times, key=lambda n: -times[n])[:most]:
            what = "what lies between the layers" if name == REST else name
            said.append(f"{what} takes {percent(times[name] / total)}")
        return ", ".join(said)

    def _lines(self) -> Lines:
        lines = [
            [row.layer, row.kind, ", ".join(f"{g} {n}" for g, n in row.kept.items()), seconds(row.costs["latency"])[0]]
            for row in self.rows
        ]
        return f"Each layer by the units kept, {self.conditions}", ["layer", "kind", "kept", "time"], lines


def latency_table(
    model: nn.Module,
    groups: Sequence[Group],
    example: Any,
    candidates: Mapping[str, Sequence[int]],
    *,
    threads: int = 1,
) -> LatencyTable:
    """Time every layer at several counts of the units it depends on, all in turns, on one thread.

    candidates: the counts that each group may keep. Layers that look alike at two layouts are timed once.
    Raises PruneError for groups of whole modules.
    """
    check_sliced(groups)
    device = device_of(model)
    on = Conditions(threads, ROUNDS, device=str(device), block=BLOCK)
    inputs = to(example, device)
    with undisturbed(model), torch.no_grad():
        depends = _dependencies(model, groups, cut(inputs, PROBED))
        layouts = telling_layouts(groups, candidates, set(depends.values()))
        small = [shrink(model, groups, any_keep(groups, layout)).eval() for layout in layouts]
        calls = [layer_calls(m, inputs) for m in small]
        tasks = _tasks(calls)
        tasks |= {f"{REST} {i}": partial(call, m, inputs) for i, m in enumerate(small)}
        times = {name: float(np.median(values)) for name, values in in_turns(tasks, on).items()}
        batch = rows_of(inputs)
        whole: list[Costs] = []
        for i, m in enumerate(small):
            costs = {"macs": macs(m, inputs), "bytes": stored_bytes(m, ["dense"])["dense"]}
            whole.append({"latency": times[f"{REST} {i}"], **costs})
        rows = list(_rows(groups, depends, layouts, calls, times, batch))
    fits = {cost: _fitted(groups, depends, layouts, rows, whole, cost) for cost in whole[0]}
    distinct = {(r.layer, *r.kept.items()): r for layer in rows for r in layer}
    conditions = f"batch {batch}, {plural(threads, 'thread')}, {device.type}"
    return LatencyTable(tuple(groups), tuple(distinct.values()), fits, conditions)


def _tasks(calls: Sequence[Mapping[str, Call]]) -> dict[str, Task]:
    """Each layer at each shape, once. Inputs of a shape are one tensor, so that hundreds of calls fit in memory."""
    known: dict[tuple[Any, ...], Tensor] = {}

    def stand_in(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor  # an index has to be a valid one
        return known.setdefault((tuple(tensor.shape), tensor.stride(), tensor.dtype), tensor)

    tasks: dict[str, Task] = {}
    for found in calls:
        for name, one in found.items():
            args, kwargs = tree_map_only(Tensor, stand_in, (one.args, one.kwargs))
            tasks.setdefault(_label(name, one), Call(one.layer, args, kwargs).run)
    return tasks


def _dependencies(model: nn.Module, groups: Sequence[Group], few: Any) -> dict[str, frozenset[str]]:
    """Which groups each layer's cost depends on: those without half of which its inputs or weights change shape."""
    before = {name: _label(name, c) for name, c in layer_calls(model, few).items()}
    found: dict[str, set[str]] = {name: set() for name in before}
    for group in groups:
        layout = {**dense_layout(groups), group.name: (group.units + 1) // 2}
        after = layer_calls(shrink(model, groups, any_keep(groups, layout)).eval(), few)
        for name in found:
            if _label(name, after[name]) != before[name]:
                found[name].add(group.name)
    return {name: frozenset(names) for name, names in found.items()}


def _label(name: str, one: Call) -> str:
    """A layer, and what its cost depends on: the shapes of its inputs and of its own tensors."""
    return f"{name} {[tuple(t.shape) for t in (*tensors((one.args, one.kwargs)), *one.own)]}"


def _rows(
    groups: Sequence[Group],
    depends: Mapping[str, frozenset[str]],
    layouts: Sequence[Layout],
    calls: Sequence[Mapping[str, Call]],
    times: Mapping[str, float],
    batch: int,
) -> Iterator[list[Row]]:
    """The layers of each layout."""
    work: dict[str, Costs] = {}
    for layout, found in zip(layouts, calls, strict=True):
        rows = []
        for name, one in found.items():
            label = _label(name, one)
            if label not in work:
                work[label] = {"macs": one.work()[0] / batch, "bytes": sum(p.nbytes for p in one.own)}
            kept = {g.name: layout[g.name] for g in groups if g.name in depends[name]}
            rows.append(Row(name, one.kind, kept, {"latency": times[label], **work[label]}))
        yield rows


def _fitted(
    groups: Sequence[Group],
    depends: Mapping[str, frozenset[str]],
    layouts: Sequence[Layout],
    rows: Sequence[Sequence[Row]],
    whole: Sequence[Costs],
    cost: str,
) -> dict[str, Fit]:
    shares = [{g.name: layout[g.name] / g.units for g in groups} for layout in layouts]
    values = {name: [r.costs[cost] for own in rows for r in own if r.layer == name] for name in depends}
    fits = {name: _fit(shares, _terms(depends[name]), values[name]) for name in depends}
    rest = [w[cost] - sum(r.costs[cost] for r in own) for w, own in zip(whole, rows, strict=True)]
    scale = max(w[cost] for w in whole)
    fits[REST] = _fit(shares, [(), *((g.name,) for g in groups)], rest, scale=scale)
    return fits


def _terms(names: frozenset[str]) -> list[tuple[str, ...]]:
    """A constant, each share, and each product of two: a layer's inputs times its outputs."""
    ordered = sorted(names)
    return [(), *((n,) for n in ordered), *combinations_with_replacement(ordered, 2)]


def _fit(
    shares: Sequence[Mapping[str, float]],
    terms: Sequence[tuple[str, ...]],
    values: Sequence[float],
    scale: float | None = None,
) -> Fit:
    """Least squares of the relative errors, with slopes of at least zero: less never costs more."""
    design = np.array([[np.prod([s[n] for n in term]) for term in terms] for s in shares])
    target = np.array(values, float)
    weight = 1 / np.full(len(target), scale) if scale else 1 / np.maximum(np.abs(target), 1e-12)
    if not target.any():
        return Fit(tuple(terms), (0.0,) * len(terms))
    lowest = np.array([-np.inf if scale and not term else 0.0 for term in terms])
    # A little ridge: of terms that the layouts can't tell apart, each gets its part.
    scaled = np.vstack([design * weight[:, None], RIDGE * weight.mean() * np.eye(len(terms))])
    found = lsq_linear(scaled, np.append(target * weight, np.zeros(len(terms))), bounds=(lowest, np.inf))
    return Fit(tuple(terms), tuple(float(w) for w in found.x))
