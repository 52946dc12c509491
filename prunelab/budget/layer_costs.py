"""What each layer costs at the channel counts it could have: timed layer by layer, and from that a prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations_with_replacement
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor, nn
from torch.utils._pytree import tree_iter, tree_map_only

from ..batches import call, to
from ..core import Group, device_of
from ..measurement.conditions import cut, undisturbed
from ..measurement.conditions import rows as rows_of
from ..measurement.operations import macs
from ..measurement.roofline import Call, layer_calls
from ..measurement.rounds import Task, interleaved, resolved, waited_for
from ..measurement.storage import stored_bytes
from ..measurement.text import html, seconds, table
from ..surgery import shrink
from .layouts import Layout, any_keep, check_sliced, dense_layout, telling_layouts

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
