"""Criteria that judge attention heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import attention, units
from ..calibration import Calibration
from ..calibration.derivatives import over_samples
from ..calibration.samples import checked, needed
from ..core import PruneError, Scores
from ..granularity.heads import heads
from ..granularity.operators import made_at
from ..layers import prunable
from .registry import finite, register


@register("head_importance")
def head_importance(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """E|dL/dxi_h| of a gate xi_h = 1 on what head h gives to the output projection, L2-normalised in each layer.

    By the chain rule dL/dxi_h is the sum of w g over the columns that read the head. The absolute value is taken sample
    by sample: over a batch, samples that want more of a head and samples that want less would cancel. With grouped
    queries a gate is on a key-value head and its query heads.

    Scores the output projections alone, each column's entries an equal part of its head's importance, so that
    `granularity.heads` is worth it to the digit: compare layers as the paper does by allocate(..., reduce="sum"). Needs
    data, its labels, and a loss that is a mean over samples. Heads are found as `granularity.heads` finds them on the
    first inputs, and its errors are this one's. Michel et al. 2019, arXiv 1905.10650, section 4.1.

    >>> from prunelab import granularity, zoo
    >>> from prunelab.allocation import unit_scores
    >>> model, calib = zoo.vit(depth=1), Calibration.of((torch.rand(4, 1, 16, 16), torch.arange(4)))
    >>> worth = unit_scores(head_importance(model, calib), granularity.heads(model), reduce="sum")
    >>> [round(float(heads.norm()), 4) for heads in worth.values()]
    [1.0]
    """
    given = needed(calib, "head_importance")
    groups = heads(model, None if attention.wholly(model, attention.known(model)) else given.example)
    gates: dict[str, tuple[int, list[Tensor]]] = {}  # of each output projection its columns, (heads, block) a group
    for group in groups:
        readers = [m for m in group.members if made_at(model, m.tensor) not in (None, m.dim)]
        if not readers:
            raise PruneError(f"no Linear layer reads the heads of {group.name}, and gates are put where one does")
        for m in readers:
            gates.setdefault(m.tensor, (m.dim or 0, []))[1].append(units.index(m, group.units))
    weights = {name: w for name, w in finite(prunable(model)).items() if name in gates}

    def at_gates(name: str, g: Tensor) -> Tensor:
        dim, owned = gates[name]
        columns = (weights[name] * g).movedim(dim + 1, 1).flatten(2).sum(2)  # (samples, columns)
        return torch.cat([columns[:, own].sum(2) for own in owned], 1).abs()  # (samples, heads): |dL/dxi_h|

    found = checked(over_samples(model, given, at_gates, weights), weights, "head importance")
    return {name: _spread(importance, weights[name], *gates[name]) for name, importance in found.items()}


def _spread(importance: Tensor, weight: Tensor, dim: int, owned: list[Tensor]) -> Tensor:
    """(heads,) importances, normalised, as scores of the weight's shape that add up to them."""
    length = importance.norm()
    columns = importance.new_zeros(weight.shape[dim])
    first = 0
    for own in owned:
        worth = importance[first : first + len(own)] / (length if length > 0 else 1)
        columns[own] = worth[:, None] / (own.shape[1] * weight.shape[1 - dim])
        first += len(own)
    return columns.view(*[-1 if d == dim else 1 for d in range(2)]).expand(weight.shape).contiguous()
