"""Criteria that judge attention heads."""

from __future__ import annotations

from torch import Tensor, nn

from ..attention import layers
from ..calibration import Calibration, checked, needed, over_samples
from ..core import PruneError, Scores
from .registry import finite_weights, register


@register("head_importance")
def head_importance(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """E|dL/dxi_h| of a gate xi_h = 1 on what head h gives to the output projection, L2-normalised in each layer.

    By the chain rule dL/dxi_h is the sum of w g over the columns that read the head. The absolute value is taken sample
    by sample: over a batch, samples that want more of a head and samples that want less would cancel. With grouped
    queries a gate is on a key-value head and its query heads.

    Scores the output projections alone, each column's entries an equal part of its head's importance, so that
    `granularity.heads` is worth it to the digit: compare layers as the paper does by allocate(..., reduce="sum"). Needs
    data, its labels, and a loss that is a mean over samples. Michel et al. 2019, arXiv 1905.10650, section 4.1.
    """
    heads = {layer.out: layer.kv_heads for layer in layers(model)}
    if not heads:
        raise PruneError(
            f"{type(model).__name__} has no attention layer known here, and head_importance is of attention heads: "
            "take taylor or fisher, which score the weights of any layer"
        )
    given = needed(calib, "head_importance")
    weights = {name: w for name, w in finite_weights(model).items() if name in heads}

    def at_gates(name: str, g: Tensor) -> Tensor:
        columns = (weights[name] * g).sum(1)  # (samples, out, columns) -> (samples, columns)
        return columns.unflatten(1, (heads[name], -1)).sum(2).abs()  # (samples, heads): |dL/dxi_h|

    found = checked(over_samples(model, given, at_gates, weights), weights, "head importance")
    return {name: _spread(importance, weights[name]) for name, importance in found.items()}


def _spread(importance: Tensor, weight: Tensor) -> Tensor:
    """(heads,) importances, normalised, as scores of the weight's shape that add up to them."""
    length = importance.norm()
    each = (importance / length if length > 0 else importance) * len(importance) / weight.numel()
    return each.repeat_interleave(weight.shape[1] // len(importance)).expand(weight.shape).contiguous()
