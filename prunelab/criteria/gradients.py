"""Criteria that differentiate: the loss, its gradient, or the flow through the network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration import Calibration, fisher_information, gradients, hessian_gradient
from ..calibration.derivatives import call_with, differentiable
from ..calibration.samples import checked, needed
from ..core import AbsoluteOfSum, PruneError, Scores, device_of
from ..data import to
from ..layers import prunable
from ..running import cut
from .registry import finite, register


@register("gradient")
def gradient(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|dL/dw|: how fast the loss changes with the weight, whatever the weight is. The baseline of those below.

    L is the mean loss over the calibration samples. Near a minimum all gradients are small, and noise decides.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[3.0, -0.5]])
    >>> data = torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.zeros(2)
    >>> calib = Calibration.of(data, loss=lambda outputs, targets: outputs.mean())  # so that dL/dw is the mean input
    >>> gradient(layer, calib)["weight"]
    tensor([[1., 1.]])
    """
    finite(prunable(model))
    return {name: g.abs_() for name, g in gradients(model, needed(calib, "gradient")).items()}


@register("taylor")
def taylor(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|w g|, g = dL/dw: to first order, how far the loss moves if w becomes 0. Of a structure, absolute then sum.

    SNIP: Lee et al. 2019, arXiv 1810.02340, before training, whose gradient by a gate on w is this product.
    Molchanov et al. 2019, arXiv 1906.10771, on a trained network, squared. Needs data.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[3.0, -0.5]])
    >>> data = torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.zeros(2)
    >>> calib = Calibration.of(data, loss=lambda outputs, targets: outputs.mean())  # so that dL/dw is the mean input
    >>> taylor(layer, calib)["weight"]
    tensor([[3.0000, 0.5000]])
    """
    return {name: product.abs_() for name, product in _weight_times_gradient(model, needed(calib, "taylor")).items()}


@register("taylor_sum")
def taylor_sum(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """The product w g, of which a structure gets |sum w g|: sum then absolute, the group form of Molchanov et al. 2019.

    To first order it is how far the loss moves if all of a unit's weights leave together: those that would lower
    it make up for those that would raise it. `taylor` forgets the signs first. Single weights rank alike.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[3.0, -0.5]])
    >>> data = torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.zeros(2)
    >>> calib = Calibration.of(data, loss=lambda outputs, targets: outputs.mean())  # so that dL/dw is the mean input
    >>> taylor_sum(layer, calib)["weight"]
    tensor([[ 3.0000, -0.5000]])
    """
    return AbsoluteOfSum(_weight_times_gradient(model, needed(calib, "taylor_sum")))


def _weight_times_gradient(model: nn.Module, calib: Calibration) -> Scores:
    weights = finite(prunable(model))
    return {name: g.mul_(weights[name]) for name, g in gradients(model, calib).items()}


@register("fisher")
def fisher(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """1/2 h w^2, h = E[g^2] over single samples: to second order, what the loss gains if w becomes 0.

    Optimal brain damage: LeCun et al. 1990, with the empirical Fisher information in place of the Hessian's diagonal.
    Unlike `taylor` it does not vanish at a minimum, where the samples' gradients cancel but are not 0. Needs data.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[3.0, -0.5]])
    >>> data = torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.zeros(2)
    >>> calib = Calibration.of(data, loss=lambda outputs, targets: outputs.mean())  # so that dL/dw is the mean input
    >>> fisher(layer, calib)["weight"]  # h is the mean square of each input: 1 and 2
    tensor([[4.5000, 0.2500]])
    """
    weights = finite(prunable(model))
    h = fisher_information(model, needed(calib, "fisher"))
    return {name: h[name].mul_(w.to(h[name].dtype).square()).div_(2) for name, w in weights.items()}


@register("grasp")
@dataclass(frozen=True)
class Grasp:
    """theta * Hg: what the gradient's norm loses with a weight. For networks before training. Needs data.

    Removing w changes theta by -w, and so g'g, to first order, by 2 (-w)(Hg): the paper *removes* the highest
    -w Hg, whose removal raises the gradient norm most, which is to keep the highest w Hg. So a weight may well have a
    negative score: without it the rest would learn faster. Wang et al. 2020, arXiv 2002.07376; the authors' code
    divides the outputs by a temperature of 200, so that the softmax is not saturated.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> layer.weight.data = torch.tensor([[3.0, -0.5]])
    >>> data = torch.eye(2), torch.zeros(2)
    >>> calib = Calibration.of(data, loss=lambda outputs, targets: outputs.square().sum())  # g = 2 w, H = 2, Hg = 4 w
    >>> Grasp()(layer, calib)["weight"]
    tensor([[36.,  1.]])
    """

    temperature: float = 1.0

    def __call__(self, model: nn.Module, calib: Calibration | None = None) -> Scores:
        weights, given = finite(prunable(model)), needed(calib, "grasp")
        cooled = replace(given, loss=lambda outputs, targets: given.loss(outputs / self.temperature, targets))
        found = hessian_gradient(model, given if self.temperature == 1 else cooled)
        return {name: hg.mul_(weights[name]) for name, hg in found.items()}


grasp = Grasp()


@register("synflow")
def synflow(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|theta dR/dtheta|, R = the sum of the outputs of |theta| on an input of ones: the flow through a weight.

    R sums, over all paths, the product of their weights. Without biases and norms every layer's scores add up to R:
    a layer down to few weights scores each of them high, and a global scope does not empty it, provided that scores
    are taken anew often: Recipe(..., rounds=100, schedule=schedules.Exponential(sparsity)). For networks before
    training. As in the authors' code BatchNorm runs in eval mode, its statistics made absolute too. In float64: R of
    a deep network overflows float32. Needs no data, only an input's shape. Tanaka et al. 2020, arXiv 2006.05467.

    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    >>> model[0].weight.data, model[1].weight.data = torch.tensor([[2.0], [-1.0]]), torch.tensor([[3.0, 5.0]])
    >>> synflow(model, Calibration.of((torch.zeros(1, 1), torch.zeros(1))))["1.weight"]  # two paths: 2 * 3 and 1 * 5
    tensor([[6., 5.]], dtype=torch.float64)
    """
    weights = finite(prunable(model))
    ones = _ones(needed(calib, "synflow", "the shape of an input").example, device_of(model))
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
