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
from torch.utils._pytree import tree_iter, tree_map_only

from ..core import Group, Keep, PruneError, device_of
from ..data import to
from ..measurement.costs import macs, stored_bytes
from ..measurement.physics import Call, layer_calls
from ..measurement.timing import Task, interleaved, resolved, waited_for
from ..running import call, cut, undisturbed
from ..running import rows as rows_of
from ..surgery import shrink
from ..text import html, seconds, table

Layout: TypeAlias = dict[str, int]  # group name -> units kept
LEVELS = (1.0, 0.75, 0.5, 0.25)  # shares kept at which layers are timed
SCATTERED = 8  # layouts drawn at random


def check_sliced(groups: Sequence[Group]) -> None:
    """PruneError for groups of whole modules: what a layer costs is fitted to the channels that it keeps."""
    whole = next((g for g in groups if g.parts), None)
    if whole is not None:
        raise PruneError(
            f"{whole.name} holds whole modules, such as {whole.parts[0].path}, and a budget is searched for by the "
            'channels that layers keep: give How(granularity="neurons"), say, and remove whole modules with pl.prune '
            "and pl.shrink first"
        )


def dense_layout(groups: Sequence[Group]) -> Layout:
    """Everything stays."""
    return {g.name: g.units for g in groups}


def ladder(group: Group, round_to: int) -> tuple[int, ...]:
    """The counts worth keeping, ascending: multiples of round_to, where the group has enough units for it to matter.

    Processors compute in packs of eight or sixteen channels, so that what lies between costs as much as the next
    multiple. A unit that is itself a block of channels, such as a head, counts alone.
    """
    step = round_to if group.units >= 2 * round_to and group.members[0].block == 1 else 1
    return tuple(sorted({*range(step, group.units + 1, step), group.units}))


def at_least(rungs: Sequence[int], count: float) -> int:
    """The lowest rung that keeps so many; the highest if none does."""
    return next((r for r in rungs if r >= count), rungs[-1])


def nearest(rungs: Sequence[int], count: float) -> int:
    """The rung nearest to a count."""
    return min(rungs, key=lambda r: (abs(r - count), r))


def any_keep(groups: Sequence[Group], layout: Layout) -> Keep:
    """Some choice of units with these counts, for what depends on the counts alone: time, MACs, bytes."""
    return {g.name: torch.arange(g.units) < layout[g.name] for g in groups}


def telling_layouts(
    groups: Sequence[Group], rungs: Mapping[str, Sequence[int]], together: Iterable[frozenset[str]]
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
    found = [{g.name: nearest(rungs[g.name], LEVELS[x[g.name]] * g.units) for g in groups} for x in found]
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

Signature: TypeAlias = tuple[Any, ...]
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
class LatencyTable:
    """Every layer at several channel counts, and the cost of any layout predicted from it.

    A convolution's time grows with inputs times outputs, so that each layer is fitted by a polynomial with
    coefficients of at least zero in the shares of the groups it depends on. What a forward does between its layers is
    fitted to what is left of the whole models' times.
    """

    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    fits: dict[str, dict[str, Fit]]  # cost -> layer -> fit
    conditions: str

    def predict(self, layout: Layout, cost: str = "latency") -> float:
        """Seconds, bytes or MACs of the model with so many units in each group."""
        shares = {g.name: layout[g.name] / g.units for g in self.groups}
        return sum(fit.at(shares) for fit in self.fits[cost].values())

    def saved(self, layout: Layout, group: str, kept: int, cost: str = "latency") -> float:
        """What a layout costs less if one group keeps so many units instead."""
        shares = {g.name: layout[g.name] / g.units for g in self.groups}
        units = next(g.units for g in self.groups if g.name == group)
        fewer = {**shares, group: kept / units}
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

    def _lines(self) -> tuple[str, list[str], list[list[str]]]:
        lines = [
            [row.layer, row.kind, ", ".join(f"{g} {n}" for g, n in row.kept.items()), seconds(row.costs["latency"])[0]]
            for row in self.rows
        ]
        return f"Each layer by the units kept, {self.conditions}", ["layer", "kind", "kept", "time"], lines

    def __str__(self) -> str:
        return table(*self._lines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html(*self._lines())


def latency_table(
    model: nn.Module,
    groups: Sequence[Group],
    example: Any,
    rungs: Mapping[str, Sequence[int]],
    *,
    threads: int = 1,
    clock: str = "steady",
    rounds: int = ROUNDS,
) -> LatencyTable:
    """Time every layer at several counts of the units it depends on, all in turns, on one thread.

    rungs: the counts that each group may keep. Layers that look alike at two layouts are timed once.
    Raises PruneError for groups of whole modules.
    """
    check_sliced(groups)
    device = device_of(model)
    inputs = to(example, device)
    clock = resolved(clock, threads, device.type)
    with undisturbed(model), torch.no_grad():
        depends = _dependencies(model, groups, cut(inputs, PROBED))
        layouts = telling_layouts(groups, rungs, set(depends.values()))
        small = [shrink(model, groups, any_keep(groups, layout)).eval() for layout in layouts]
        calls = [layer_calls(m, inputs) for m in small]
        lean = _Shared()
        tasks: dict[str, Task] = {}
        for found in calls:
            for name, one in found.items():
                tasks.setdefault(_label(name, one), waited_for(lean.like(one).run, device))
        for i, m in enumerate(small):
            tasks[f"{REST} {i}"] = waited_for(partial(call, m, inputs), device)
        times = interleaved(tasks, threads=threads, rounds=rounds, clock=clock, device=device.type, block=BLOCK)
        middle = {name: float(np.median(values)) for name, values in times.items()}
        whole = [
            {"latency": middle[f"{REST} {i}"], "macs": macs(m, inputs), "bytes": stored_bytes(m, ["dense"])["dense"]}
            for i, m in enumerate(small)
        ]
        rows = list(_rows(groups, depends, layouts, calls, middle, inputs))
    fits = {cost: _fitted(groups, depends, layouts, rows, whole, cost) for cost in whole[0]}
    distinct = {(r.layer, *r.kept.items()): r for layer in rows for r in layer}
    samples = f"batch {rows_of(inputs)}, {threads} thread{'s' * (threads > 1)}, {device.type}"
    return LatencyTable(tuple(groups), tuple(distinct.values()), fits, samples)


def _dependencies(model: nn.Module, groups: Sequence[Group], few: Any) -> dict[str, frozenset[str]]:
    """Which groups each layer's cost depends on: those without half of which its inputs or weights change shape."""
    before = {name: _signature(c) for name, c in layer_calls(model, few).items()}
    found: dict[str, set[str]] = {name: set() for name in before}
    for group in groups:
        layout = {**dense_layout(groups), group.name: (group.units + 1) // 2}
        after = layer_calls(shrink(model, groups, any_keep(groups, layout)).eval(), few)
        for name in found:
            if _signature(after[name]) != before[name]:
                found[name].add(group.name)
    return {name: frozenset(names) for name, names in found.items()}


def _rows(
    groups: Sequence[Group],
    depends: Mapping[str, frozenset[str]],
    layouts: Sequence[Layout],
    calls: Sequence[Mapping[str, Call]],
    times: Mapping[str, float],
    inputs: Any,
) -> Iterator[list[Row]]:
    """The layers of each layout."""
    order, batch = [g.name for g in groups], rows_of(inputs)
    work: dict[str, tuple[int, int]] = {}
    for layout, found in zip(layouts, calls, strict=True):
        rows = []
        for name, one in found.items():
            label = _label(name, one)
            if label not in work:
                work[label] = one.work()[0], sum(p.nbytes for p in (*one.layer.parameters(), *one.layer.buffers()))
            costs: Costs = {"latency": times[label], "macs": work[label][0] / batch, "bytes": work[label][1]}
            kept = {n: layout[n] for n in order if n in depends[name]}
            rows.append(Row(name, one.kind, kept, costs))
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


class _Shared:
    """Stand-ins for the inputs of layers: one tensor a shape, so that hundreds of calls fit in memory."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], Tensor] = {}

    def like(self, one: Call) -> Call:
        args, kwargs = tree_map_only(Tensor, self._stand_in, (one.args, one.kwargs))
        return Call(one.layer, args, kwargs)

    def _stand_in(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor  # an index has to be a valid one
        return self.known.setdefault((tuple(tensor.shape), tensor.stride(), tensor.dtype), tensor)


def _signature(one: Call) -> Signature:
    """What a layer's cost depends on: the shapes of its inputs and of its own tensors."""
    own = (*one.layer.parameters(), *one.layer.buffers())
    return tuple(tuple(t.shape) for t in (*_tensors((one.args, one.kwargs)), *own))


def _label(name: str, one: Call) -> str:
    return f"{name} {_signature(one)}"


def _tensors(nest: Any) -> Iterator[Tensor]:
    return (t for t in tree_iter(nest) if isinstance(t, Tensor))
