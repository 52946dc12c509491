"""Criteria that judge whole experts by the tokens that the router sends to them. They need inputs, no labels.

Each gives the entries of an expert's first fused weight equal parts of its score, and no other tensor any, so that a
unit of `granularity.experts` is worth the formula to the digit: allocate(..., reduce="sum"). Padding counts for nothing
where inputs are dicts with an `attention_mask`; an expert that no token reaches is worth 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration import Calibration
from ..calibration.samples import needed, on_device
from ..core import PruneError, Scores, named
from ..layers import prunable
from ..mixtures import Mixture, mixtures
from ..running import attempt, hooked, undisturbed
from .registry import finite, register


@register("expert_frequency")
def expert_frequency(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """The share of all tokens that go to the expert: the baseline."""
    return _scores(model, needed(calib, "expert_frequency"), lambda r: r.counts / r.tokens)


@register("expert_norm")
def expert_norm(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """E ||f(x)||: the mean L2 norm of what the expert makes of the tokens that go to it.

    Liu et al. 2026 (MAN), arXiv 2606.15716.
    """
    return _scores(model, needed(calib, "expert_norm"), lambda r: r.norms / r.counts.clamp(min=1))


@register("reap")
def reap(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """E g(x) ||f(x)||: the mean, over the tokens that go to the expert, of router weight times norm of its output.

    The router weight is the one that the model multiplies with. Lasby et al. 2025 (REAP), arXiv 2510.13999.
    """
    return _scores(model, needed(calib, "reap"), lambda r: r.weighted / r.counts.clamp(min=1))


class Routed:
    """Sums over the tokens that went to each expert of a mixture, (experts,) each, and the number of all tokens."""

    def __init__(self, count: int):
        self.tokens = 0
        self.counts, self.norms, self.weighted = (torch.zeros(count, dtype=torch.float64) for _ in range(3))

    def add(self, module: Any, hidden: Tensor, index: Tensor, weights: Tensor, real: Tensor | None) -> None:
        """Count a batch: hidden (tokens, width), index and weights (tokens, top_k), real (tokens,) bools or all."""
        if real is not None:
            hidden, index, weights = hidden[real], index[real], weights[real]
        self.tokens += len(hidden)
        one = torch.ones_like(weights[:, :1])
        for slot in range(index.shape[1]):  # sent to one expert each, with weight 1: its output as it is
            chosen = index[:, slot].cpu()
            norms = module.forward(hidden, index[:, slot, None], one).norm(dim=-1, dtype=torch.float32).double().cpu()
            self.counts.index_add_(0, chosen, torch.ones_like(norms))
            self.norms.index_add_(0, chosen, norms)
            self.weighted.index_add_(0, chosen, norms * weights[:, slot].double().cpu())


def _scores(model: nn.Module, calib: Calibration, formula: Callable[[Routed], Tensor]) -> Scores:
    finite(prunable(model))
    found, _ = mixtures(model)
    if not found:
        raise PruneError(f"{type(model).__name__} has no mixture of experts: take a criterion of weights or of blocks")
    separate = next((m.path for m in found if m.separate), None)
    if separate is not None:
        raise PruneError(
            f"{separate} is a list of modules, whose tokens are sent to them inside a forward, unseen: only fused "
            "experts can be watched. Take a criterion of weights, such as magnitude or taylor"
        )
    scores: Scores = {}
    tensors = named(model)
    for mixture, routed in zip(found, _routed(model, calib, found), strict=True):
        worth = formula(routed)
        if not torch.isfinite(worth).all():
            raise PruneError(f"outputs of {mixture.path} are not finite on these inputs: look for NaN in its weights")
        name = mixture.tensors[0]
        shape = tensors[name].shape
        each = worth / shape[1:].numel()
        scores[name] = each.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    return scores


def _routed(model: nn.Module, calib: Calibration, found: list[Mixture]) -> list[Routed]:
    """What each mixture was seen to do with the calibration's tokens."""
    seen = {m.holders[1]: (m, Routed(m.count)) for m in found}
    real: Tensor | None = None  # which tokens of the batch are no padding

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mixture, routed = seen[module]
        given = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        floats = [t for t in given if t.is_floating_point()]
        whole = [t for t in given if not t.is_floating_point()]
        if len(floats) != 2 or len(whole) != 1 or floats[1].shape != whole[0].shape:
            raise PruneError(f"{mixture.path} is not given tokens, the experts chosen for each, and their weights")
        fits = real is not None and len(real) == len(floats[0])
        routed.add(module, floats[0], whole[0], floats[1], real if fits else None)

    with undisturbed(model), torch.no_grad(), hooked(seen, note):
        for inputs, _, _ in on_device(model, calib):
            real = _real(inputs)
            attempt(model, inputs)
    for mixture, routed in seen.values():
        if not routed.tokens:
            raise PruneError(f"no token reached {mixture.path}: {type(model).__name__} does not run it on these inputs")
    return [routed for _, routed in seen.values()]


def _real(inputs: Any) -> Tensor | None:
    """(n * length,) bools: which tokens are no padding, where the inputs say so."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool().flatten() if isinstance(mask, Tensor) and mask.dim() == 2 else None
