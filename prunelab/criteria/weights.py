"""Criteria that look at the weights alone: no data, no labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..calibration import Calibration
from ..core import PruneError, Scores, lookup_all, places
from ..layers import BATCH_NORM, check_told, turn, turn_back, turned
from .registry import finite, finite_weights, register


@register("magnitude")
def magnitude(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|w|: what is small contributes little. Summed over a structure it is the structure's L1 norm.

    Han et al. 2015, arXiv 1506.02626; for filters Li et al. 2017, arXiv 1608.08710. Needs no data.
    """
    return {name: w.abs() for name, w in finite_weights(model).items()}


@register("magnitude_l2")
def magnitude_l2(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """w^2: ranks single weights as |w| does; summed over a structure it ranks as the structure's L2 norm.

    Needs no data. Half-precision weights are squared in float32, where small squares don't vanish.
    """
    return {name: w.float().square() if w.itemsize < 4 else w.square() for name, w in finite_weights(model).items()}


DICE = 0x5EED_CAFE  # added to every seed: torch draws a network's weights from the stream of its seed itself


@dataclass(frozen=True)
class Random:
    """A uniform random score: the control that every criterion must beat. The same seed, the same scores.

    They are independent of the weights of a network that was initialised with the same seed.
    """

    seed: int = 0

    def __call__(self, model: nn.Module, calib: Calibration | None = None) -> Scores:
        source = torch.Generator().manual_seed(self.seed + DICE)  # our own, so that nobody's dice are disturbed
        return {name: torch.rand(w.shape, generator=source).to(w.device) for name, w in finite_weights(model).items()}


random = Random()
register("random")(random)


@register("bn_slimming")
def bn_slimming(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|gamma| of BatchNorm: the scale of a channel, whatever filter made it. Network slimming. Needs no data.

    The scores are the BatchNorms' own, not their filters': a structure that contains a BatchNorm channel is worth its
    gamma to the digit, with nothing of the layers that read it mixed in, and single weights get no score. The paper
    trains with an L1 penalty on gamma, without which they differ little, and compares all layers by one threshold:
    allocate(..., reduce="mean"). Liu et al. 2017, arXiv 1708.06519.
    """
    norms = [p for p in places(model) if isinstance(p.module, BATCH_NORM)]
    gammas = {p.name: p.tensor.detach() for p in norms if p.attribute == "weight"}
    if not gammas:
        raise PruneError(
            f"{type(model).__name__} has no BatchNorm with a scale (affine=True), and bn_slimming is its gamma: take "
            "magnitude or fpgm, which look at the filters themselves"
        )
    return {name: gamma.abs() for name, gamma in finite(gammas).items()}


@register("fpgm")
def fpgm(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """sum_j norm(F_i - F_j) over the filters (or neurons) j of the layer: what lies amid the others can be replaced.

    On signed weights. Each weight gets an equal part of its filter's distance, so that the filter's weights add up
    to it. The layers that read a filter add the same to each of its siblings, which ranks nobody: compare within
    a layer, as the paper does, where distances mean the same. He et al. 2019, arXiv 1811.00250. Needs no data.
    """
    weights = finite_weights(model)
    lies = {name: turned(sharing[0]) for name, sharing in lookup_all(model, weights).items()}
    for name, w in weights.items():
        check_told(name, w.shape, lies[name], "fpgm")
    return {name: _among_siblings(w, lies[name]) for name, w in weights.items()}


def _among_siblings(weight: Tensor, lies: int) -> Tensor:
    """The scores of a layer's filters; a neuron's siblings are those of its own expert."""
    filters = turn(weight, lies)
    layers = [filters] if lies >= 0 else filters.chunk(len(weight))
    return turn_back(torch.cat([_spread(layer) for layer in layers]), lies, weight.shape).contiguous()


def _spread(filters: Tensor) -> Tensor:
    """(filters, ...): each filter's distance from all the others, in equal parts on its weights."""
    rows = filters.flatten(1).double()
    each = torch.cdist(rows, rows).sum(1) / rows.shape[1]
    laid = each.view(-1, *[1] * (filters.dim() - 1)).expand_as(filters)
    return laid.to(torch.promote_types(filters.dtype, torch.float32), memory_format=torch.contiguous_format, copy=True)
