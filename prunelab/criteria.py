"""How important is each weight? One function a criterion: (model, calibration) -> scores, higher = keep.

Every criterion leaves the model exactly as it was, and gives each prunable weight a score of its own shape
(`bn_slimming` alone scores BatchNorms instead). A masked weight is scored by its underlying value, so that a mask can
be reconsidered; but a gradient stops at a mask, and whatever is multiplied by one is 0 there.

A criterion scores single weights. What a structure is worth, `allocate` makes of the scores of its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .batches import to
from .calibration import (
    Calibration,
    call_with,
    checked,
    differentiable,
    fisher_information,
    gradients,
    hessian_gradient,
    input_norms,
    needed,
)
from .core import AbsoluteOfSum, Place, PruneError, Scores, device_of, places, prunable, shape
from .measurement.conditions import cut


class Criterion(Protocol):
    """What `allocate` needs to know of the model: a score for each prunable weight."""

    def __call__(self, model: nn.Module, calib: Calibration | None = None, /) -> Scores: ...


CRITERIA: dict[str, Criterion] = {}
ALIASES = {"snip": "taylor", "obd": "fisher", "network_slimming": "bn_slimming"}  # one score, several names


def register(name: str) -> Callable[[Criterion], Criterion]:
    """Make a criterion known by name, to `Recipe` and to the contract checks of the tests."""

    def put(criterion: Criterion) -> Criterion:
        CRITERIA[name] = criterion
        return criterion

    return put


def by_name(criterion: str | Criterion) -> Criterion:
    """The criterion registered under a name; a criterion is given back as it is."""
    if callable(criterion):
        return criterion
    known = ALIASES.get(criterion, criterion)
    if known not in CRITERIA:
        raise PruneError(f"no criterion is called {criterion!r}; there is {', '.join(sorted(CRITERIA))}")
    return CRITERIA[known]


def _finite_weights(model: nn.Module) -> dict[str, Tensor]:
    """The prunable weights, or PruneError naming the first that holds a NaN or an infinity."""
    return _finite({name: p.detach() for name, p in prunable(model).items()})


def _finite(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, w in weights.items():
        # One reduction instead of an elementwise test: a sum is finite only if every term is (in double, no overflow).
        if not torch.isfinite(w.sum(dtype=torch.float64)):
            bad = int((~torch.isfinite(w)).sum())
            if bad == 0:  # doubles so large that their sum overflows
                continue
            raise PruneError(
                f"{name} {shape(w)} holds {bad} NaN or infinite of {w.numel()} weights: no order exists among "
                "them. The training that made this model diverged; load or train one that is finite"
            )
    return weights


@register("magnitude")
def magnitude(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|w|: what is small contributes little. Summed over a structure it is the structure's L1 norm.

    Han et al. 2015, arXiv 1506.02626; for filters Li et al. 2017, arXiv 1608.08710. Needs no data.
    """
    return {name: w.abs() for name, w in _finite_weights(model).items()}


@register("magnitude_l2")
def magnitude_l2(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """w^2: ranks single weights as |w| does; summed over a structure it ranks as the structure's L2 norm.

    Needs no data. Half-precision weights are squared in float32, where small squares don't vanish.
    """
    return {name: w.float().square() if w.itemsize < 4 else w.square() for name, w in _finite_weights(model).items()}


@dataclass(frozen=True)
class Random:
    """A uniform random score: the control that every criterion must beat. The same seed, the same scores."""

    seed: int = 0

    def __call__(self, model: nn.Module, calib: Calibration | None = None) -> Scores:
        source = torch.Generator().manual_seed(self.seed)  # our own, so that nobody's dice are disturbed
        return {name: torch.rand(w.shape, generator=source).to(w.device) for name, w in prunable(model).items()}


random = Random()
register("random")(random)


# Criteria that look at data


@register("gradient")
def gradient(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|dL/dw|: how fast the loss changes with the weight, whatever the weight is. The baseline of those below.

    L is the mean loss over the calibration samples. Near a minimum all gradients are small, and noise decides.
    """
    _finite_weights(model)
    return {name: g.abs() for name, g in gradients(model, needed(calib, "gradient")).items()}


@register("taylor")
def taylor(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|w g|, g = dL/dw: to first order, how far the loss moves if w becomes 0. Of a structure, absolute then sum.

    SNIP: Lee et al. 2019, arXiv 1810.02340, before training, whose gradient by a gate on w is this product.
    Molchanov et al. 2019, arXiv 1906.10771, on a trained network, squared. Needs data.
    """
    return {name: product.abs() for name, product in _weight_times_gradient(model, needed(calib, "taylor")).items()}


@register("taylor_sum")
def taylor_sum(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """The product w g, of which a structure gets |sum w g|: sum then absolute, the group form of Molchanov et al. 2019.

    To first order it is how far the loss moves if all of a unit's weights leave together: those that would lower
    it make up for those that would raise it. `taylor` forgets the signs first. Single weights rank alike.
    """
    return AbsoluteOfSum(_weight_times_gradient(model, needed(calib, "taylor_sum")))


def _weight_times_gradient(model: nn.Module, calib: Calibration) -> Scores:
    weights = _finite_weights(model)
    return {name: weights[name] * g for name, g in gradients(model, calib).items()}


@register("fisher")
def fisher(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """1/2 h w^2, h = E[g^2] over single samples: to second order, what the loss gains if w becomes 0.

    Optimal brain damage: LeCun et al. 1990, with the empirical Fisher information in place of the Hessian's diagonal.
    Unlike `taylor` it does not vanish at a minimum, where the samples' gradients cancel but are not 0. Needs data.
    """
    weights = _finite_weights(model)
    h = fisher_information(model, needed(calib, "fisher"))
    return {name: h[name] * w.to(h[name].dtype).square() / 2 for name, w in weights.items()}


@dataclass(frozen=True)
class Grasp:
    """theta * Hg: what the gradient's norm loses with a weight. For networks before training. Needs data.

    Removing w changes theta by -w, and so g'g, to first order, by 2 (-w)(Hg): the paper *removes* the highest
    -w Hg, whose removal raises the gradient norm most, which is to keep the highest w Hg. So a weight may well have a
    negative score: without it the rest would learn faster. Wang et al. 2020, arXiv 2002.07376; the authors' code
    divides the outputs by a temperature of 200, so that the softmax is not saturated.
    """

    temperature: float = 1.0

    def __call__(self, model: nn.Module, calib: Calibration | None = None) -> Scores:
        weights, given = _finite_weights(model), needed(calib, "grasp")
        cooled = replace(given, loss=lambda outputs, targets: given.loss(outputs / self.temperature, targets))
        found = hessian_gradient(model, given if self.temperature == 1 else cooled)
        return {name: weights[name] * hg for name, hg in found.items()}


grasp = Grasp()
register("grasp")(grasp)


@register("wanda")
def wanda(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|W_ij| * norm(X_j): how large the weight's share of an output is on real inputs. Needs inputs, no labels.

    To be compared within each output: scope="row". X_j is input j over all samples and positions; of a convolution,
    column j of the unfolded input, that is, input channel and kernel position. Sun et al. 2023, arXiv 2306.11695.
    """
    weights = _finite_weights(model)
    norms = input_norms(model, needed(calib, "wanda"))
    return {name: w.abs() * norms[name] for name, w in weights.items()}


# Criteria that look at no labels and no values: only the weights, or only an input's shape


@register("synflow")
def synflow(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|theta dR/dtheta|, R = the sum of the outputs of |theta| on an input of ones: the flow through a weight.

    R sums, over all paths, the product of their weights. Without biases and norms every layer's scores add up to R:
    a layer down to few weights scores each of them high, and a global scope does not empty it, provided that scores
    are taken anew often: Recipe(..., rounds=100, schedule=schedules.Exponential(sparsity)). For networks before
    training. As in the authors' code BatchNorm runs in eval mode, its statistics made absolute too. In float64: R of
    a deep network overflows float32. Needs no data, only an input's shape. Tanaka et al. 2020, arXiv 2006.05467.
    """
    weights = _finite_weights(model)
    ones = _ones(needed(calib, "synflow", "the shape of an input").batches[0][0], device_of(model))
    twins = _absolute(model)
    own = {id(p): twins[name] for name, p in model.named_parameters()}
    thetas = [own[id(w)] for w in prunable(model).values()]
    with differentiable(model):
        try:
            flows = torch.autograd.grad(call_with(model, twins, ones).sum(), thetas, allow_unused=True)
        except Exception as error:  # whatever a model's own code raises
            raise PruneError(f"{type(model).__name__} cannot run on ones, in float64: {error}") from error
    found = {n: (t * g).abs().detach() for n, t, g in zip(weights, thetas, flows, strict=True) if g is not None}
    return checked(found, weights, "flow")


def _absolute(model: nn.Module) -> dict[str, Tensor]:
    """Every floating-point tensor in float64, absolute (but buffers that no checkpoint holds, such as a mask)."""
    saved = model.state_dict().keys()
    parameters = {n: p.detach().double().abs().requires_grad_() for n, p in model.named_parameters()}
    buffers = {n: b.double() for n, b in model.named_buffers() if b.is_floating_point()}
    return parameters | {n: b.abs() if n in saved else b for n, b in buffers.items()}


def _ones(inputs: Any, device: torch.device) -> Any:
    """One sample of ones, in the inputs' shape."""
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        return torch.ones_like(to(cut(inputs, 1), device), dtype=torch.float64)
    if isinstance(inputs, (tuple, list)):
        return tuple(_ones(x, device) for x in inputs)
    given = str(inputs.dtype) if isinstance(inputs, Tensor) else type(inputs).__name__
    raise PruneError(
        f"synflow feeds ones to the model, and its inputs here are {given}: it needs floating-point inputs"
    )


@register("bn_slimming")
def bn_slimming(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|gamma| of BatchNorm: the scale of a channel, whatever filter made it. Network slimming. Needs no data.

    The scores are the BatchNorms' own, not their filters': a structure that contains a BatchNorm channel is worth its
    gamma to the digit, with nothing of the layers that read it mixed in, and single weights get no score. The paper
    trains with an L1 penalty on gamma, without which they differ little, and compares all layers by one threshold:
    allocate(..., reduce="mean"). Liu et al. 2017, arXiv 1708.06519.
    """
    norms = [p for p in places(model) if isinstance(p.module, nn.modules.batchnorm._BatchNorm)]
    gammas = {p.name: p.tensor.detach() for p in norms if p.attribute == "weight"}
    if not gammas:
        raise PruneError(
            f"{type(model).__name__} has no BatchNorm with a scale (affine=True), and bn_slimming is its gamma: take "
            "magnitude or fpgm, which look at the filters themselves"
        )
    return {name: gamma.abs() for name, gamma in _finite(gammas).items()}


@register("fpgm")
def fpgm(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """sum_j norm(F_i - F_j) over the filters (or neurons) j of the layer: what lies amid the others can be replaced.

    On signed weights. Each weight gets an equal part of its filter's distance, so that the filter's weights add up
    to it. The layers that read a filter add the same to each of its siblings, which ranks nobody: compare within
    a layer, as the paper does, where distances mean the same. He et al. 2019, arXiv 1811.00250. Needs no data.
    """
    weights = _finite_weights(model)
    at = {id(place.tensor): place for place in reversed(places(model))}
    return {name: _distances(at[id(p)], weights[name]) for name, p in prunable(model).items()}


def _distances(place: Place, weight: Tensor) -> Tensor:
    layer = place.module
    if not isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return _spread(weight)
    # (in, out of a group, ...): its filters are along dimension 1. Turn it, score it, turn it back.
    turned = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2)  # (groups, out of a group, in of a group, ...)
    return _spread(turned.flatten(0, 1)).view(turned.shape).transpose(1, 2).reshape(weight.shape)


def _spread(filters: Tensor) -> Tensor:
    """(filters, ...): each filter's distance from all the others, in equal parts on its weights."""
    rows = filters.flatten(1).double()
    each = torch.cdist(rows, rows).sum(1) / rows.shape[1]
    laid = each.view(-1, *[1] * (filters.dim() - 1)).expand_as(filters)
    return laid.to(torch.promote_types(filters.dtype, torch.float32), memory_format=torch.contiguous_format, copy=True)
