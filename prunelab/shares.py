"""How much each layer gives, so that together they meet a budget: formulas that look at shapes, or at weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from .calibration import Calibration
from .core import Group, Scores, prunable
from .criteria import magnitude, register


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
