"""What each layer costs at the unit counts it could have: timed layer by layer, and from that a prediction."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations_with_replacement
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..core import Group, Keep, PruneError, device_of
from ..data import tensors, to
from ..measurement import macs, stored_bytes
from ..measurement.costs import Call, layer_calls
from ..measurement.timing import Conditions, Task, in_turns
from ..running import call, cut, undisturbed
from ..running import rows as rows_of
from ..surgery import shrink
from ..text import Lines, Tabular, percent, plural, seconds

LEVELS = (1.0, 0.75, 0.5, 0.25)  # shares kept at which layers are timed
REPEATS = 6  # layouts in which a group has each level
BLOCK = 2e-3  # seconds a timing: hundreds of layers are timed, and what one gets wrong the fit evens out
ROUNDS = 7
RIDGE = 0.01
PROBED = 2  # samples with which it is found out which group a layer depends on
REST = "between the layers"

Layout: TypeAlias = dict[str, int]  # group name -> units kept
Costs: TypeAlias = dict[str, float]  # "latency" in seconds, "bytes", "macs"


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
    return tuple(w for w in sorted({*range(step, group.units + 1, step), group.units}) if w >= group.floor)


def at_least(widths: Sequence[int], count: float) -> int:
    """The lowest of the widths that keeps so many; the highest if none does."""
    return next((w for w in widths if w >= count), widths[-1])


def any_keep(groups: Sequence[Group], layout: Layout) -> Keep:
    """Some choice of units with these counts, for what depends on the counts alone: time, MACs, bytes."""
    return {g.name: torch.arange(g.units) < layout[g.name] for g in groups}


def counted(model: nn.Module, example: Any) -> Costs:
    """A model's bytes and MACs, which no clock is needed for."""
    return {"bytes": float(stored_bytes(model, ["dense"])["dense"]), "macs": float(macs(model, example))}


def telling_layouts(groups: Sequence[Group], candidates: Mapping[str, Sequence[int]]) -> list[Layout]:
    """The dense layout, and 24 in which every group has each level six times, in an order drawn for it alone.

    (A Latin hypercube.) Whichever groups meet in a layer, they have most pairs of levels.
    """
    dice, found = random.Random(0), [dense_layout(groups)]
    levels = {g.name: dice.sample(LEVELS, REPEATS * len(LEVELS), counts=[REPEATS] * len(LEVELS)) for g in groups}
    for i in range(REPEATS * len(LEVELS)):
        found.append({g.name: at_least(candidates[g.name], levels[g.name][i] * g.units) for g in groups})
    return [dict(t) for t in dict.fromkeys(tuple(f.items()) for f in found)]


@dataclass(frozen=True)
class Row:
    """One layer as it was timed: the units its groups kept, and what it cost."""

    layer: str
    kind: str
    kept: Layout
    costs: Costs


@dataclass(frozen=True, repr=False, eq=False)
class LatencyTable(Tabular):
    """Every layer at several channel counts, and the cost of any layout predicted from it.

    A convolution's time grows with inputs times outputs. So each layer's cost is a quadratic form s W s of the shares s
    that its groups keep, after a 1 for what stays whatever is kept; its coefficients, in W, are at least zero. What a
    forward does between its layers is fitted to what is left of the whole models' times.
    """

    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    fits: dict[str, dict[str, np.ndarray]]  # cost -> layer -> W, of (1 + groups) rows and columns
    conditions: str

    def predict(self, layout: Layout, cost: str = "latency") -> float:
        """Seconds, bytes or MACs of the model with so many units in each group."""
        shares = _shares(self.groups, layout)
        return float(shares @ self._sums[cost] @ shares)

    @cached_property
    def _sums(self) -> dict[str, np.ndarray]:
        return {cost: np.sum(list(fits.values()), axis=0) for cost, fits in self.fits.items()}

    def ratio(self, layout: Layout, cost: str = "latency") -> float:
        """The predicted cost as a fraction of the dense model's."""
        return self.predict(layout, cost) / self.predict(dense_layout(self.groups), cost)

    def slowest(self, layout: Layout, most: int = 3) -> str:
        """Where the time of a layout goes, in words: its slowest layers."""
        shares = _shares(self.groups, layout)
        times = {name: max(float(shares @ fit @ shares), 0.0) for name, fit in self.fits["latency"].items()}
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
    inputs, layouts = to(example, device), telling_layouts(groups, candidates)
    batch = rows_of(inputs)
    with undisturbed(model), torch.no_grad():
        depends = _dependencies(model, groups, cut(inputs, PROBED))
        small = [shrink(model, groups, any_keep(groups, layout)).eval() for layout in layouts]
        known: dict[Any, Tensor] = {}
        distinct: dict[str, Call] = {}
        kept: dict[str, Layout] = {}
        labels: list[dict[str, str]] = []  # a layout's, by layer
        for layout, m in zip(layouts, small, strict=True):
            found = layer_calls(m, inputs)
            labels.append({name: _label(name, one) for name, one in found.items()})
            for name, label in labels[-1].items():
                distinct.setdefault(label, _standing_in(found[name], known))
                kept.setdefault(label, {g.name: layout[g.name] for g in groups if g.name in depends[name]})
        tasks: dict[str, Task] = {label: one.run for label, one in distinct.items()}
        tasks |= {f"{REST} {i}": partial(call, m, inputs) for i, m in enumerate(small)}
        times = {name: float(np.median(values)) for name, values in in_turns(tasks, on).items()}
        costs = {label: {"latency": times[label], **_counted(one, batch)} for label, one in distinct.items()}
        whole = [{"latency": times[f"{REST} {i}"], **counted(m, inputs)} for i, m in enumerate(small)]
    layers = {name: [costs[own[name]] for own in labels] for name in depends}
    fits = {cost: _fitted(groups, depends, layouts, layers, whole, cost) for cost in whole[0]}
    rows = tuple(Row(label.partition(" [")[0], one.kind, kept[label], costs[label]) for label, one in distinct.items())
    return LatencyTable(tuple(groups), rows, fits, f"batch {batch}, {plural(threads, 'thread')}, {device.type}")


def _shares(groups: Sequence[Group], layout: Layout) -> np.ndarray:
    """1, and the share that a layout keeps of each group."""
    return np.array([1.0, *(layout[g.name] / g.units for g in groups)])


def _standing_in(one: Call, known: dict[Any, Tensor]) -> Call:
    """The call with one tensor for all inputs of a shape, so that hundreds of calls fit in memory."""

    def stand_in(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor  # an index has to be a valid one
        return known.setdefault((tensor.shape, tensor.stride(), tensor.dtype), tensor)

    args, kwargs = tree_map_only(Tensor, stand_in, (one.args, one.kwargs))
    return Call(one.layer, args, kwargs)


def _label(name: str, one: Call) -> str:
    """A layer, and what its cost depends on: the shapes of its inputs and of its own tensors."""
    return f"{name} {[tuple(t.shape) for t in (*tensors((one.args, one.kwargs)), *one.own)]}"


def _counted(one: Call, batch: int) -> Costs:
    return {"bytes": float(sum(t.nbytes for t in one.own)), "macs": one.work()[0] / batch}


def _dependencies(model: nn.Module, groups: Sequence[Group], few: Any) -> dict[str, set[str]]:
    """Which groups each layer's cost depends on: those without half of which its inputs or weights change shape."""
    before = {name: _label(name, c) for name, c in layer_calls(model, few).items()}
    found: dict[str, set[str]] = {name: set() for name in before}
    for group in groups:
        layout = {**dense_layout(groups), group.name: (group.units + 1) // 2}
        after = layer_calls(shrink(model, groups, any_keep(groups, layout)).eval(), few)
        for name in found:
            if _label(name, after[name]) != before[name]:
                found[name].add(group.name)
    return found


def _fitted(
    groups: Sequence[Group],
    depends: Mapping[str, set[str]],
    layouts: Sequence[Layout],
    layers: Mapping[str, Sequence[Costs]],
    whole: Sequence[Costs],
    cost: str,
) -> dict[str, np.ndarray]:
    """The layers' fits, from what each costs in every layout; and that of what lies between them."""
    fits, shares = {}, np.array([_shares(groups, layout) for layout in layouts])
    for name, own in layers.items():
        places = [0, *(i for i, g in enumerate(groups, 1) if g.name in depends[name])]
        terms = list(combinations_with_replacement(places, 2))  # inputs times outputs, each alone, and neither
        fits[name] = _fit(shares, terms, [costs[cost] for costs in own])
    rest = [w[cost] - sum(own[i][cost] for own in layers.values()) for i, w in enumerate(whole)]
    terms = [(0, i) for i in range(len(groups) + 1)]
    fits[REST] = _fit(shares, terms, rest, scale=max(w[cost] for w in whole))
    return fits


def _fit(
    shares: np.ndarray, terms: Sequence[tuple[int, int]], values: Sequence[float], scale: float | None = None
) -> np.ndarray:
    """Least squares of the relative errors, with slopes of at least zero: less never costs more.

    With a scale the errors are relative to that instead, and the constant may be negative.
    """
    one, other = map(list, zip(*terms, strict=True))
    found, target = np.zeros((shares.shape[1], shares.shape[1])), np.array(values, float)
    if not target.any():
        return found
    weight = 1 / (np.full(len(target), scale) if scale else np.maximum(np.abs(target), 1e-12))
    lowest = np.zeros(len(terms))
    if scale:
        lowest[0] = -np.inf
    # A little ridge: of terms that the layouts can't tell apart, each gets its part.
    design = np.vstack(
        [(shares[:, one] * shares[:, other]) * weight[:, None], RIDGE * weight.mean() * np.eye(len(terms))]
    )
    found[one, other] = lsq_linear(design, np.append(target * weight, np.zeros(len(terms))), bounds=(lowest, np.inf)).x
    return found
