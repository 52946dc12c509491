"""Gradients of the loss, of single samples' losses, and the Hessian times the gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core import PruneError, shape
from ..data import mapped, take
from ..layers import prunable
from ..running import attempt, call, rows, undisturbed
from ..text import listed
from .samples import Calibration, Loss, add, checked, losses, on_device, scalar_loss, wide

OfSamples = Callable[[str, Tensor], Tensor]  # (a weight's name, gradients (samples, *shape)) -> (samples, ...)
AT_ONCE = 16  # samples whose gradients are taken together: more is not faster on a CPU
HELD = 1 << 27  # ... and how many numbers such gradients may hold at a time: each is as large as the model
PLAIN_ATTENTION = SDPBackend.MATH  # the only kernel that vmap batches, and that has a second derivative


def gradients(model: nn.Module, calib: Calibration, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """dL/dw for each prunable weight (or those named), L the mean loss over all calibration samples.

    Under a mask it is that of the underlying weight: zero where the mask is. Half precision gives float32.
    Raises PruneError for a frozen weight, and for one the loss does not reach: neither has a gradient.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> calib = Calibration([(torch.tensor([[2.0], [4.0]]), torch.zeros(2, 1))], lambda out, targets: out.mean())
    >>> gradients(layer, calib)["weight"]  # the mean output is the weight times 3, the mean input
    tensor([[3.]])
    """
    weights = _chosen(model, names)
    total: dict[str, Tensor] = {}
    with differentiable(model):
        for loss, share in losses(model, calib):
            add(total, _derivatives(loss, weights), share)
    return checked(total, weights, "gradient of the loss")


def fisher_information(model: nn.Module, calib: Calibration) -> dict[str, Tensor]:
    """E[g^2], g the gradient of a *single* sample's loss: the diagonal of the empirical Fisher information.

    The square of the mean gradient is something else: there samples that pull in opposite directions cancel.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> calib = Calibration([(torch.tensor([[2.0], [-4.0]]), torch.zeros(2, 1))], lambda out, targets: out.mean())
    >>> fisher_information(layer, calib)["weight"]  # (4 + 16) / 2
    tensor([[10.]])
    """
    return checked(over_samples(model, calib, lambda name, g: g.square_()), prunable(model), "Fisher information")


def over_samples(
    model: nn.Module, calib: Calibration, of: OfSamples, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """The mean over the samples of of(name, g), g (samples, *shape) the gradients of the single samples' losses.

    `of` gives a tensor of (samples, ...), and may write into g; `names` are the weights to differentiate by, all
    prunable ones by default.
    Several samples at once by torch.func.vmap; where that can't follow a forward, one after another.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> net.weight.data = torch.tensor([[1.0]])
    >>> inputs = torch.tensor([[1.0], [2.0]])
    >>> square = Calibration(((inputs, torch.zeros(2)),), lambda y, _: y.square().mean())  # (w x)^2: g = 2 w x^2
    >>> over_samples(net, square, lambda name, g: g)["weight"].item()  # the mean of 2 and 8
    5.0
    """
    gradients(model, calib, names)  # raises for what has no gradient, which vmap would take for zero
    weights = _chosen(model, names)
    at_once = max(1, min(AT_ONCE, HELD // sum(w.numel() for w in weights.values())))
    total: dict[str, Tensor] = {}
    with differentiable(model), sdpa_kernel(PLAIN_ATTENTION):
        for inputs, targets, share in on_device(model, calib):
            size = rows(inputs)
            for start in range(0, size, at_once):
                few = [take(nest, slice(start, start + at_once), size) for nest in (inputs, targets)]
                for each in _of_single_samples(model, calib.loss, weights, *few):
                    sums = {name: of(name, each.pop(name)).sum(0) for name in list(each)}
                    add(total, sums, share / size)
    return total


def hessian_gradient(model: nn.Module, calib: Calibration) -> dict[str, Tensor]:
    """Hg: the Hessian of the mean loss times its gradient, by differentiating (g held fixed) . g.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> net.weight.data = torch.tensor([[3.0]])
    >>> square = Calibration(((torch.ones(1, 1), torch.zeros(1)),), lambda y, _: y.square().mean())  # w^2: g 2 w, H 2
    >>> hessian_gradient(net, square)["weight"].item()
    12.0
    """
    fixed = gradients(model, calib)
    weights = prunable(model)
    with differentiable(model), sdpa_kernel(PLAIN_ATTENTION):
        total = {name: torch.zeros_like(g) for name, g in fixed.items()}
        for loss, share in losses(model, calib):
            first = _derivatives(loss, weights, create_graph=True)
            product = sum(((fixed[name] * g).sum() for name, g in first.items()), loss.new_zeros(()))
            add(total, _derivatives(product, weights), share)
    return checked(total, weights, "Hessian-gradient product")


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Eval mode, with gradients on, whatever the surroundings say."""
    with undisturbed(model), torch.inference_mode(False), torch.enable_grad():
        yield


def call_with(model: nn.Module, tensors: dict[str, Tensor], inputs: Any) -> Any:
    """The output of a model run with other tensors in place of its own, which are left alone.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> call_with(net, {"weight": torch.tensor([[3.0]])}, torch.tensor([[2.0]])).item()
    6.0
    """
    return call(cast(nn.Module, lambda *args, **kwargs: functional_call(model, tensors, args, kwargs)), inputs)


def _chosen(model: nn.Module, names: Collection[str] | None) -> dict[str, nn.Parameter]:
    """The weights of these names; PruneError for a frozen one."""
    weights = {n: w for n, w in prunable(model).items() if names is None or n in names}
    frozen = [f"{name} {shape(w)}" for name, w in weights.items() if not w.requires_grad]
    if frozen:
        raise PruneError(
            f"frozen (requires_grad=False): {listed(frozen)}: it has no "
            "gradient to be scored by. Call .requires_grad_(True) on it while scoring; to leave it whole as well, use "
            "granularity.weights with exclude=[...]"
        )
    return weights


def _derivatives(of: Tensor, weights: Mapping[str, Tensor], *, create_graph: bool = False) -> dict[str, Tensor]:
    """By name, for those weights that it depends on."""
    if not of.requires_grad:
        return {}
    try:
        found = list(torch.autograd.grad(of, list(weights.values()), create_graph=create_graph, allow_unused=True))
    except RuntimeError as error:
        raise PruneError(f"the loss cannot be differentiated: {error}") from error
    found.reverse()  # so that each leaves as it is widened: together they are as large as the model
    return {name: wide(g) for name in weights if (g := found.pop()) is not None}


def _of_single_samples(
    model: nn.Module, loss: Loss, weights: Mapping[str, Tensor], inputs: Any, targets: Tensor
) -> Iterable[dict[str, Tensor]]:
    """The gradients of the single samples' losses, (samples, *shape): all together, or else a sample at a time."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # operations that vmap can only do slowly: the loop does them in peace
            return [_all_at_once(model, loss, weights, inputs, targets)]
    except Exception:  # vmap can't follow what branches on its data, or changes a buffer
        return _one_by_one(model, loss, weights, inputs, targets)


def _one_by_one(
    model: nn.Module, loss: Loss, weights: Mapping[str, Tensor], inputs: Any, targets: Tensor
) -> Iterator[dict[str, Tensor]]:
    size = rows(inputs)
    for one in (slice(i, i + 1) for i in range(size)):
        value = scalar_loss(loss, attempt(model, take(inputs, one, size)), take(targets, one, size))
        yield {name: g[None] for name, g in _derivatives(value, weights).items()}


def _all_at_once(
    model: nn.Module, loss: Loss, weights: Mapping[str, Tensor], inputs: Any, targets: Tensor
) -> dict[str, Tensor]:
    names = {id(p): name for name, p in model.named_parameters()}  # as the model calls them, masked or not
    own = {names[id(w)]: w.detach() for w in weights.values()}

    def single(parameters: dict[str, Tensor], inputs: Any, target: Tensor) -> Tensor:
        return scalar_loss(loss, call_with(model, parameters, inputs), target)

    each = vmap(grad(single), in_dims=(None, 0, 0))(own, mapped(lambda t: t[:, None], inputs), targets[:, None])
    return {name: wide(each.pop(names[id(w)])) for name, w in weights.items()}
