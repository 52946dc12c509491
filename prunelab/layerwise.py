"""Layer-wise sparsities: how much each layer loses, so that the whole model loses what was asked, to the unit.

Give them to `allocate` in place of a sparsity, or a rule to `Recipe`. A budget is a share of all units of the groups;
`floor` is the least density that any group is left with, against layer collapse.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from .allocation import check_sparsity, least_of
from .calibration import Calibration, input_norms
from .checks import check_number
from .core import Group, PruneError, find, named
from .criteria.registry import finite
from .decoders import blocks
from .layers import prunable
from .registry import Registry
from .sensitivity import Scan
from .text import listed

LayerSparsities: TypeAlias = dict[str, float]  # group name -> the share of its units that goes: round(share * units)

NODES = 2000  # branches the solver tries at most; its answer is then still a good one


class LayerRule(Protocol):
    """How much each group loses, so that all of them together lose this sparsity: a share by each group's name."""

    def __call__(self, model: nn.Module, groups: Sequence[Group], sparsity: float, /) -> LayerSparsities: ...


LAYER_RULES: Registry[LayerRule] = Registry("layer rule")
by_name, register = LAYER_RULES.by_name, LAYER_RULES.register


@register("uniform")
def uniform(model: nn.Module, groups: Sequence[Group], sparsity: float, *, floor: float = 0.0) -> LayerSparsities:
    """The same share of every group, to the unit: what rounding leaves over goes to the largest remainders.

    >>> from prunelab.granularity import weights
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))  # 6 weights and 3
    >>> uniform(model, weights(model), 1 / 3)
    {'0.weight': 0.3333333333333333, '1.weight': 0.3333333333333333}
    """
    budget, most = _budget(groups, sparsity, floor)
    return _shares(groups, _whole({g.name: sparsity * g.units for g in groups}, most, budget))


@register("erk")
def erk(model: nn.Module, groups: Sequence[Group], sparsity: float, *, floor: float = 0.0) -> LayerSparsities:
    """Density proportional to (sum of the weight's dimensions) / (their product), at most 1: small layers stay dense.

    Erdos-Renyi-Kernel: (c_in + c_out + k_h + k_w) / (c_in c_out k_h k_w). Mocanu et al. 2018, arXiv 1707.04780; with
    kernels Evci et al. 2020, arXiv 1911.11134. A group of structures goes by the first of its weights.

    >>> from prunelab.granularity import weights
    >>> model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 5))  # they keep weights as 40 to 25
    >>> erk(model, weights(model), 0.87)
    {'0.weight': 0.9, '1.weight': 0.75}
    """
    budget, most = _budget(groups, sparsity, floor)
    kept = sum(g.units for g in groups) - budget
    rate = {g.name: _er(_weight(model, g), g.members[0].layout) * max(g.units, 1) for g in groups}
    room = {g.name: (g.units - most[g.name], g.units) for g in groups}  # the least and the most that each keeps
    scale = _filled(rate, room, kept)
    gone = {g.name: g.units - min(max(scale * rate[g.name], room[g.name][0]), g.units) for g in groups}
    return _shares(groups, _whole(gone, most, budget))


@register("by_sensitivity")
@dataclass(frozen=True)
class BySensitivity:
    """The shares at which the rises of the groups, each measured alone in a scan, add up to the least.

    Between the scanned sparsities the rise is interpolated; beyond the last one nothing is known, so that no group
    loses more than that. What is exact is the answer to this question. That layers pruned together hurt as much as the
    sum of each alone is an assumption, and at high sparsities too rosy: measure the result.

    by: "loss", or "accuracy". Raises PruneError for a budget out of reach, and groups that were not scanned.

    >>> from prunelab.core import Member
    >>> from prunelab.measurement import Evaluation
    >>> from prunelab.sensitivity import Curve
    >>> groups = [Group(name, 10, (Member(name),)) for name in ("a", "b")]
    >>> curves = (Curve("a", 10, (5,), (9,), (2.0,)), Curve("b", 10, (5,), (9,), (1.1,)))  # losses, half of them gone
    >>> scan = Scan((0.5,), curves, Evaluation(loss=1.0, accuracy=0.9, n=10, correct=9))
    >>> BySensitivity(scan)(nn.Module(), groups, 0.3)
    {'a': 0.1, 'b': 0.5}
    """

    scan: Scan
    floor: float = 0.0
    by: str = "loss"

    def __post_init__(self) -> None:
        if self.by not in ("loss", "accuracy"):
            raise PruneError(f'by={self.by!r}: give "loss" or "accuracy"')

    def __call__(self, model: nn.Module, groups: Sequence[Group], sparsity: float) -> LayerSparsities:
        curves = [_measured(self.scan, g, self.by) for g in groups]
        last = {g.name: max(c.counts) for g, c in zip(groups, curves, strict=True)}
        budget, most = _budget(groups, sparsity, self.floor, last)
        cut = [c.up_to(most[g.name]) for g, c in zip(groups, curves, strict=True)]
        return _shares(groups, dict(zip((g.name for g in groups), cheapest(cut, budget), strict=True)))


@register("owl")
@dataclass(frozen=True, eq=False)
class Owl:
    """Blocks of a Transformer lose less the more outliers they hold: S + mean(d) - d, the same in all of a block.

    D is the share of a block's |W_ij| * norm(X_j), nothing pruned yet, that lie above m times their mean; d is D
    stretched over the blocks to 0 ... 2 * spread. Yin et al. 2024, arXiv 2310.05175, §3 (M and lambda there), as its
    published code has it: the shares span 2 * spread, so that a block that stands alone can be further from S than
    spread. Ours: the mean weighs blocks by their units, to lose S of the whole, and what can't be is an error.

    Raises PruneError for a model without blocks, groups outside of them, and shares that are none.

    >>> from prunelab.granularity import weights
    >>> model = nn.Sequential(nn.Identity(), nn.Sequential(*[nn.Sequential(nn.Linear(2, 2)) for _ in range(2)]))
    >>> for block, entries in zip(model[1], ([[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]), strict=True):
    ...     block[0].weight.data = torch.tensor(entries)  # one of the last four is above three times their mean
    >>> calib = Calibration.of((torch.ones(1, 2), torch.zeros(1)))
    >>> Owl(calib, m=3, spread=0.25)(model, weights(model), 0.5)
    {'1.0.0.weight': 0.75, '1.1.0.weight': 0.25}
    """

    calib: Calibration
    m: float = 5.0
    spread: float = 0.08

    def __post_init__(self) -> None:
        check_number("m", self.m, "give how many times the mean makes an outlier, such as 5", above=0)
        check_number("spread", self.spread, "give how far a block may be from the mean, such as 0.08", least=0)

    def __call__(self, model: nn.Module, groups: Sequence[Group], sparsity: float) -> LayerSparsities:
        budget, most = _budget(groups, sparsity, 0.0)
        ratios = _outlier_ratios(model, self.calib, self.m)
        at = {g.name: next((path for path in ratios if _inside(g, path)), "") for g in groups}
        astray = [name for name, path in at.items() if not path]
        if astray:
            how = "leave them out with functools.partial(granularity.weights, exclude=[...])"
            raise PruneError(f"{listed(astray)} lie in no block, or in none whose inputs are seen: {how}")
        low, high = min(ratios.values()), max(ratios.values())
        spared = {g.name: 2 * self.spread * (ratios[at[g.name]] - low) / (high - low or 1) for g in groups}
        mean = sum(spared[g.name] * g.units for g in groups) / max(sum(g.units for g in groups), 1)
        wanted = {g.name: (sparsity + mean - spared[g.name]) * g.units for g in groups}
        if any(not -1e-9 <= w <= most[name] for name, w in wanted.items()):
            raise PruneError(f"spread={self.spread:g} around sparsity {sparsity:g} leaves [0, 1): give a smaller one")
        return _shares(groups, _whole(wanted, most, budget))


def _inside(group: Group, path: str) -> bool:
    return bool(group.members) and all(m.tensor.startswith(f"{path}.") for m in group.members)


def _outlier_ratios(model: nn.Module, calib: Calibration, m: float) -> dict[str, float]:
    """The share of each block's |W_ij| * norm(X_j) above m times their mean, by the block's path."""
    paths = [block.path for block in blocks(model)]
    weights, norms, found = finite(prunable(model)), input_norms(model, calib), {}
    for path in paths:
        scores = [(weights[name].abs() * norms[name]).flatten() for name in norms if name.startswith(f"{path}.")]
        if scores:
            every = torch.cat(scores).double()
            found[path] = float((every > m * every.mean()).double().mean())
    return found


# What every rule needs: the budget in units, and how much can go


def _budget(
    groups: Sequence[Group], sparsity: float, floor: float, last: Mapping[str, int] | None = None
) -> tuple[int, dict[str, int]]:
    """How many units are to go in all, and how many can of each group; PruneError if that is not enough."""
    share = check_sparsity(sparsity)
    if isinstance(floor, bool) or not isinstance(floor, (int, float)) or not 0 <= floor <= 1:
        raise PruneError(f"floor={floor!r}: give the least density of a layer, a fraction such as 0.05")
    if len({g.name for g in groups}) < len(groups) or not groups:
        raise PruneError("no groups" if not groups else "two groups have the same name: give every group its own")
    total = sum(g.units for g in groups)
    budget = round(share * total)
    most = {g.name: g.units - max(math.ceil(floor * g.units - 1e-9), least_of(g)) for g in groups}
    floors = sum(most.values())
    if last is not None:
        most = {name: min(m, last[name]) for name, m in most.items()}
    possible = sum(most.values())
    if possible < budget:
        why = f"the floor of {floor:g} (and the last unit of each structure)"
        if floors >= budget:
            why = "the scan, which went no further: scan higher sparsities too, or lower the floor"
        raise PruneError(
            f"sparsity {share:g} takes {budget:,} of {total:,} units, but only {possible:,} can go because of {why}. "
            f"The nearest reachable sparsity is {possible / total:.6g}"
        )
    return budget, most


def _whole(wanted: Mapping[str, float], most: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers near those wanted, at most so many each, that add up: by the largest remainders."""
    counts = {n: min(math.floor(w + 1e-9), most[n]) for n, w in wanted.items()}
    left = total - sum(counts.values())
    while left:
        step = 1 if left > 0 else -1
        room = [n for n in wanted if (counts[n] < most[n] if left > 0 else counts[n] > 0)]
        room.sort(key=lambda n: step * (counts[n] - wanted[n]))  # the farthest below what it wanted, first
        for name in room[: abs(left)]:
            counts[name] += step
        left = total - sum(counts.values())
    return counts


def _shares(groups: Sequence[Group], counts: Mapping[str, int]) -> LayerSparsities:
    return {g.name: counts[g.name] / g.units if g.units else 0.0 for g in groups}


def _weight(model: nn.Module, group: Group) -> Tensor:
    tensors = named(model)
    weights = [m.tensor for m in group.members if find(tensors, m.tensor).dim() > 1]
    if not weights:
        raise PruneError(f"{group.name} has no weight with two dimensions: ERK goes by a layer's shape")
    return tensors[weights[0]]


def _er(weight: Tensor, layout: int) -> float:
    sizes = weight.shape[1:] if layout < 0 else weight.shape  # of an expert's own matrix
    return sum(sizes) / max(math.prod(sizes), 1)


def _filled(rate: Mapping[str, float], room: Mapping[str, tuple[int, int]], total: int) -> float:
    """The scale at which the groups' scale * rate, each kept within its room, add up to the total.

    The sum grows with the scale along straight lines, which bend where a group leaves its floor or reaches its top.
    """

    def filled(scale: float) -> float:
        return sum(min(max(scale * rate[n], low), high) for n, (low, high) in room.items())

    bends = sorted({bound / rate[n] for n, bounds in room.items() for bound in bounds})
    above = next((b for b in bends if filled(b) >= total), bends[-1])
    below = max((b for b in bends if b < above), default=0.0)
    low, high = filled(below), filled(above)
    return above if high == low else below + (above - below) * (total - low) / (high - low)


# The least sum of curves at a given total: straight pieces, so that the hard part is where they are not convex


@dataclass(frozen=True)
class Pieces:
    """A cost at some counts of units removed, ascending from 0, and straight lines between.

    >>> Pieces((0, 10), (0.0, 5.0)).at(4)
    2.0
    """

    counts: tuple[int, ...]
    costs: tuple[float, ...]

    def at(self, n: int) -> float:
        """The cost of removing n units."""
        return float(np.interp(n, self.counts, self.costs))

    def up_to(self, most: int) -> Pieces:
        """The same, ending at so many units."""
        inside = [(n, c) for n, c in zip(self.counts, self.costs, strict=True) if n < most]
        counts, costs = zip(*inside, (most, self.at(most)), strict=True)
        return Pieces(counts, costs)

    def hull(self, first: int, last: int) -> list[int]:
        """The points from first to last on the lower convex hull, by index."""
        found: list[int] = []
        for i in range(first, last + 1):
            while len(found) > 1 and self._slope(found[-2], found[-1]) >= self._slope(found[-1], i):
                found.pop()
            found.append(i)
        return found

    def _slope(self, i: int, j: int) -> float:
        return (self.costs[j] - self.costs[i]) / (self.counts[j] - self.counts[i])


Box: TypeAlias = tuple[tuple[int, int], ...]  # of each curve the first and last point still considered


@dataclass(order=True)
class _Node:
    bound: float  # no choice within the box costs less
    tie: int
    box: Box = field(compare=False)
    removed: list[int] = field(compare=False)
    split: tuple[int, int] | None = field(compare=False)  # where the bound is not attained: curve and point


def cheapest(curves: Sequence[Pieces], total: int) -> list[int]:
    """How much to take of each curve, in all exactly `total`, at the least sum of costs.

    On the convex hulls of the curves, taking the cheapest slope next is the optimum, and leaves at most one curve
    between two corners of its hull. If the curve bulges above its hull just there, try both: left and right of the
    point in between (branch and bound, the most promising first). Exact, unless it stops after NODES tries.

    >>> cheapest([Pieces((0, 10), (0.0, 5.0)), Pieces((0, 4), (0.0, 1.0))], 6)
    [2, 4]
    """
    order = count()
    start = _relaxed(curves, tuple((0, len(c.counts) - 1) for c in curves), total, next(order))
    if start is None:
        raise PruneError(f"{total:,} units are out of reach: all curves end at {sum(c.counts[-1] for c in curves):,}")
    best, lowest, open_nodes = start.removed, math.inf, [start]
    for _ in range(NODES):
        if not open_nodes or open_nodes[0].bound >= lowest - 1e-12 * max(1.0, abs(lowest)):
            break
        node = heapq.heappop(open_nodes)
        cost = math.fsum(c.at(n) for c, n in zip(curves, node.removed, strict=True))
        if cost < lowest:
            best, lowest = node.removed, cost
        for box in _halves(node):
            child = _relaxed(curves, box, total, next(order))
            if child is not None:
                heapq.heappush(open_nodes, child)
    return best


def _halves(node: _Node) -> list[Box]:
    if node.split is None:
        return []
    which, point = node.split
    first, last = node.box[which]
    return [(*node.box[:which], part, *node.box[which + 1 :]) for part in ((first, point), (point, last))]


def _relaxed(curves: Sequence[Pieces], box: Box, total: int, tie: int) -> _Node | None:
    """The optimum on the hulls within a box, or None if the total is outside it."""
    removed = [c.counts[first] for c, (first, _) in zip(curves, box, strict=True)]
    bound = math.fsum(c.costs[first] for c, (first, _) in zip(curves, box, strict=True))
    left, split = total - sum(removed), None
    steps = []
    for which, (c, (first, last)) in enumerate(zip(curves, box, strict=True)):
        corners = c.hull(first, last)
        steps += [(c._slope(i, j), which, i, j) for i, j in pairwise(corners)]
    for slope, which, i, j in sorted(steps):
        taken = min(left, curves[which].counts[j] - curves[which].counts[i])
        removed[which] += taken
        bound += slope * taken
        left -= taken
        if left == 0:
            inside = [p for p in range(i + 1, j) if 0 < taken < curves[which].counts[j] - curves[which].counts[i]]
            if inside:
                split = which, min(inside, key=lambda p: abs(curves[which].counts[p] - removed[which]))
            break
    return None if left else _Node(bound, tie, box, removed, split)


def _measured(scan: Scan, group: Group, by: str) -> Pieces:
    curve = scan.curve(group.name)
    if curve.units != group.units:
        raise PruneError(f"{group.name} has {group.units} units, in the scan {curve.units}: it is of other groups")
    rises: list[Any] = [v - scan.dense.loss for v in curve.loss]
    if by == "accuracy":
        rises = [(scan.dense.correct - k) / scan.dense.n for k in curve.correct]
    if not all(map(math.isfinite, rises)):
        raise PruneError(f"the scan of {group.name} holds a loss that is no number: leave that sparsity out")
    points = {0: 0.0, **dict(zip(curve.removed, rises, strict=True))}
    return Pieces(*zip(*sorted(points.items()), strict=True))
