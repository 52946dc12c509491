"""How much each layer gives, so that together they meet a budget: formulas that look at shapes, or at weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from .calibration import Calibration
from .core import Group, PruneError, Scores, prunable
from .criteria import magnitude, register
from .sensitivity import Scan


def erk(model: nn.Module, groups: Sequence[Group], sparsity: float) -> dict[str, float]:
    """Erdős-Rényi-Kernel: density ~ (c_in + c_out + k_h + k_w) / (c_in c_out k_h k_w), at most 1, meeting the budget.

    For groups of single weights; gives the share to remove of each. Layers that the formula would fill beyond their
    weights stay dense, and the others give more. Evci et al. 2020, arXiv 1911.11134, section 3.
    """
    weights = prunable(model)
    shapes = {g.name: weights[g.members[0].tensor].shape for g in groups}
    raw = {name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}
    sizes = {g.name: g.units for g in groups}
    dense: set[str] = set()
    while True:
        left = (1 - sparsity) * sum(sizes.values()) - sum(sizes[n] for n in dense)
        rest = sum(raw[n] * sizes[n] for n in sizes if n not in dense)
        scale = left / rest if rest else 0.0
        full = {n for n in sizes if n not in dense and raw[n] * scale > 1}
        if not full:
            return {n: 0.0 if n in dense else 1 - raw[n] * scale for n in sizes}
        dense |= full


def by_sensitivity(scan: Scan, groups: Sequence[Group], sparsity: float) -> dict[str, float]:
    """The shares that remove round(sparsity * n) units in all at the least summed loss, as a scan measured it.

    Between the levels of the scan a layer's loss is taken as linear, and as convex: the cheapest stretches, by loss a
    unit, are filled first, which is the optimum of that problem. No layer gives more than the scan's last level.
    It believes that losses add up, which they do less as more is removed. PruneError if the budget is out of reach.
    """
    budget = round(sparsity * sum(g.units for g in groups))
    rows = dict(zip(scan.names, zip(scan.removed.tolist(), scan.rise.tolist(), strict=True), strict=True))
    missing = [g.name for g in groups if g.name not in rows]
    if missing:
        raise PruneError(f"the scan has no {missing[0]}: scan the groups that the budget is to be spent on")
    stretches = sorted((slope, g.name, width) for g in groups for slope, width in _stretches(*rows[g.name]))
    taken = dict.fromkeys((g.name for g in groups), 0)
    for _, name, width in stretches:
        step = min(width, budget)
        taken[name] += step
        budget -= step
    if budget:
        reach = sum(taken.values()) / sum(g.units for g in groups)
        raise PruneError(
            f"a sparsity of {sparsity:g} is out of reach: the scan goes to {max(scan.sparsities):g} of a layer, "
            f"{reach:.4g} of all. Scan further, or ask for less"
        )
    return {g.name: taken[g.name] / g.units for g in groups}


def _stretches(removed: Sequence[int], rise: Sequence[float]) -> list[tuple[float, int]]:
    """(loss a unit, units) along the lower convex hull of a layer's curve, from nothing removed."""
    hull = [(0, 0.0)]
    for x, y in sorted(zip(removed, (max(r, 0.0) for r in rise), strict=True)):
        if x == hull[-1][0]:
            continue
        while len(hull) > 1 and (y - hull[-2][1]) * (hull[-1][0] - hull[-2][0]) <= (hull[-1][1] - hull[-2][1]) * (
            x - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    return [((y2 - y1) / (x2 - x1), x2 - x1) for (x1, y1), (x2, y2) in pairwise(hull)]


@register("lamp")
def lamp(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """LAMP: w_u^2 over the sum of w_v^2 of all v of the layer at least as large; made for a global comparison.

    The score is the share of the layer's energy that would go with the weight, were all smaller ones gone already,
    so that a layer's scale cancels. Lee et al. 2021, arXiv 2010.07611. Needs no data.
    """
    return {name: _lamp(w) for name, w in magnitude(model, calib).items()}


def _lamp(sizes: torch.Tensor) -> torch.Tensor:
    energy = sizes.flatten().double().square()
    order = energy.argsort(descending=True, stable=True)
    scores = torch.empty_like(energy)
    total = energy[order].cumsum(0)
    scores[order] = torch.where(total > 0, energy[order] / total, 0.0)
    return scores.to(sizes.dtype if sizes.itemsize >= 4 else torch.float32).view(sizes.shape)
