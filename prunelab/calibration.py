"""The few batches and the loss that a criterion may look at, and what it can learn from them.

Everything here runs the model in eval mode. In train mode BatchNorm would update its statistics, and normalize each
sample by the others of its batch, so that "the gradient of one sample" would not exist; dropout would add dice.
The model is left exactly as it was: no gradient is put into `.grad`, and nothing is unfrozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .batches import Batch, batches, call, to
from .core import Place, PruneError, device_of, places, prunable, shape
from .measurement.conditions import attempt, pair, rows, undisturbed

Loss = Callable[[Any, Tensor], Tensor]  # (the model's output, targets) -> a scalar, the mean over the batch

AT_ONCE = 16  # samples whose gradients are taken together: more is not faster on a CPU
HELD = 1 << 27  # ... and how many numbers such gradients may hold at a time: each is as large as the model


@dataclass(frozen=True)
class Calibration:
    """A fixed set of (inputs, targets) batches and the loss to judge the outputs by: its mean over a batch."""

    batches: tuple[Batch, ...]
    loss: Loss = F.cross_entropy

    def __post_init__(self) -> None:
        if not self.batches:
            raise PruneError("the calibration set is empty: give at least one (inputs, targets) batch")

    @classmethod
    def of(
        cls,
        data: Any,
        *,
        split: str = "train",
        samples: int = 256,
        batch_size: int = 64,
        loss: Loss = F.cross_entropy,
    ) -> Calibration:
        """The first `samples` of a split (rounded up to whole batches), in order: the same on every call."""
        if samples < 1 or batch_size < 1:
            raise PruneError(f"samples={samples} and batch_size={batch_size} must both be at least 1")
        size = min(samples, batch_size)
        return cls(tuple(islice(batches(data, split, size=size), -(-samples // size))), loss)


def needed(calib: Any, criterion: str, what: str = "data to look at") -> Calibration:
    """The calibration a criterion was given, or PruneError that says how to make one."""
    if not isinstance(calib, Calibration):
        given = "nothing" if calib is None else f"a {type(calib).__name__}"
        raise PruneError(f"{criterion} needs {what}, and was given {given}: pass calib=pl.Calibration.of(data)")
    return calib


def gradients(model: nn.Module, calib: Calibration) -> dict[str, Tensor]:
    """dL/dw for each prunable weight, L the mean loss over all calibration samples.

    Under a mask it is that of the underlying weight: zero where the mask is. Half precision gives float32.
    Raises PruneError for a frozen weight, and for one the loss does not reach: neither has a gradient.
    """
    weights = _unfrozen(model)
    total: dict[str, Tensor] = {}
    with differentiable(model):
        for loss, share in _losses(model, calib):
            _add(total, _derivatives(loss, weights), share)
    return checked(total, weights, "gradient of the loss")


def fisher_information(model: nn.Module, calib: Calibration) -> dict[str, Tensor]:
    """E[g^2], g the gradient of a *single* sample's loss: the diagonal of the empirical Fisher information.

    The square of the mean gradient is something else: there samples that pull in opposite directions cancel.
    Several samples at once by torch.func.vmap; where that can't follow a forward, one after another.
    """
    gradients(model, calib)  # raises for what has no gradient, which vmap would take for zero
    weights = prunable(model)
    at_once = max(1, min(AT_ONCE, HELD // sum(w.numel() for w in weights.values())))
    total: dict[str, Tensor] = {}
    with differentiable(model):
        for inputs, targets, share in _on_device(model, calib):
            size = rows(inputs)
            for start in range(0, size, at_once):
                few = slice(start, start + at_once)
                squares = _sum_of_squares(model, calib, weights, _take(inputs, few, size), _take(targets, few, size))
                _add(total, squares, share / size)
    return checked(total, weights, "Fisher information")


def hessian_gradient(model: nn.Module, calib: Calibration) -> dict[str, Tensor]:
    """Hg: the Hessian of the mean loss times its gradient, by differentiating (g held fixed) . g."""
    fixed = gradients(model, calib)
    weights = prunable(model)
    total = {name: torch.zeros_like(g) for name, g in fixed.items()}
    with differentiable(model), sdpa_kernel(SDPBackend.MATH):  # the only attention with a second derivative
        for loss, share in _losses(model, calib):
            first = _derivatives(loss, weights, create_graph=True)
            product = sum(((fixed[name] * g).sum() for name, g in first.items()), loss.new_zeros(()))
            _add(total, _derivatives(product, weights), share)
    return checked(total, weights, "Hessian-gradient product")


def input_norms(model: nn.Module, calib: Calibration) -> dict[str, Tensor]:
    """The L2 norm of the inputs that each weight is multiplied with, over all samples and positions.

    Of a Linear's (out, in) it is norm(X_j), shaped (in,); of a convolution's the norm of column j of the unfolded
    input, one an input channel and kernel position. All broadcast against the weight. Looks at no labels.
    Raises PruneError for a layer that the forward never calls.
    """
    weights = prunable(model)
    total: dict[str, Tensor] = {}
    with undisturbed(model), torch.no_grad(), _recording(model, weights, total):
        for inputs, _, _ in _on_device(model, calib):
            attempt(model, inputs)
    return {name: s.sqrt() for name, s in checked(total, weights, "input").items()}


def checked(found: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """What was found for each weight, in their order; PruneError for a weight without, or not finite."""
    for name, w in weights.items():
        if name not in found:
            lacking = [n for n in weights if n not in found]
            more = f", and {len(lacking) - 1} more," if len(lacking) > 1 else ""
            raise PruneError(
                f"{name} {shape(w)}{more} has no {what}: the forward does not use it in eval mode, or a .detach(), "
                "torch.no_grad() or argmax stands between. Without one nothing can be said of it: give a loss that "
                "reaches it, remove the unused layer, or take a criterion that looks at weights only, such as magnitude"
            )
        if not torch.isfinite(found[name]).all():
            raise PruneError(
                f"{name} {shape(w)} has a {what} with NaN or infinities, although the loss is finite: look for a "
                "sqrt or log at 0 in the forward or the loss, or score in float32"
            )
    return {name: found[name] for name in weights}


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Eval mode, with gradients on, whatever the surroundings say."""
    with undisturbed(model), torch.inference_mode(False), torch.enable_grad():
        yield


def call_with(model: nn.Module, tensors: dict[str, Tensor], inputs: Any) -> Any:
    """The output of a model run with other tensors in place of its own, which are left alone."""
    return call(cast(nn.Module, lambda *args, **kwargs: functional_call(model, tensors, args, kwargs)), inputs)


def _unfrozen(model: nn.Module) -> dict[str, nn.Parameter]:
    weights = prunable(model)
    frozen = [f"{name} {shape(w)}" for name, w in weights.items() if not w.requires_grad]
    if frozen:
        raise PruneError(
            f"frozen (requires_grad=False): {', '.join(frozen[:5])}{', ...' if len(frozen) > 5 else ''}: it has no "
            "gradient to be scored by. Call .requires_grad_(True) on it while scoring; to leave it whole as well, use "
            "granularity.weights with exclude=[...]"
        )
    return weights


def _on_device(model: nn.Module, calib: Calibration) -> Iterator[tuple[Any, Tensor, float]]:
    """Each batch where the model lies, and its share of all samples."""
    device = device_of(model)
    if device.type == "meta":
        raise PruneError(f"the weights of this {type(model).__name__} are on the meta device, without values: load it")
    sizes = [rows(pair(batch)[0]) for batch in calib.batches]
    for (inputs, targets), size in zip(calib.batches, sizes, strict=True):
        yield to(inputs, device), targets.to(device), size / sum(sizes)


def _losses(model: nn.Module, calib: Calibration) -> Iterator[tuple[Tensor, float]]:
    for number, (inputs, targets, share) in enumerate(_on_device(model, calib), start=1):
        loss = _loss(calib, attempt(model, inputs), targets)
        if not torch.isfinite(loss):
            raise PruneError(
                f"the loss {_name(calib.loss)} is {float(loss)} on batch {number} of {len(calib.batches)} of the "
                "calibration: look for NaN in its inputs, in the weights and BatchNorm statistics, and in the targets"
            )
        yield loss, share


def _loss(calib: Calibration, outputs: Any, targets: Tensor) -> Tensor:
    name = _name(calib.loss)
    try:
        loss = calib.loss(outputs, targets)
    except Exception as error:  # a loss of one's own raises what it likes
        given = shape(outputs) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise PruneError(
            f"the loss {name} fails on outputs {given} and targets {shape(targets)} {targets.dtype}: {error}. Give "
            "Calibration a loss(outputs, targets) that fits this model and data"
        ) from error
    if not isinstance(loss, Tensor) or loss.dim() > 0:
        given = f"a tensor of shape {shape(loss)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise PruneError(
            f"the loss {name} returns {given}: it must be a scalar tensor, the mean over the batch, such as "
            f"loss=lambda outputs, targets: {name}(outputs, targets).mean()"
        )
    return loss


def _name(loss: Loss) -> str:
    return getattr(loss, "__name__", type(loss).__name__)


def _derivatives(of: Tensor, weights: Mapping[str, Tensor], *, create_graph: bool = False) -> dict[str, Tensor]:
    """By name, for those weights that it depends on."""
    if not of.requires_grad:
        return {}
    try:
        found = torch.autograd.grad(of, list(weights.values()), create_graph=create_graph, allow_unused=True)
    except RuntimeError as error:
        raise PruneError(f"the loss cannot be differentiated: {error}") from error
    return {name: _wide(g) for name, g in zip(weights, found, strict=True) if g is not None}


def _wide(tensor: Tensor) -> Tensor:
    """In half precision sums and squares lose what they are about."""
    return tensor.float() if tensor.itemsize < 4 else tensor


def _add(total: dict[str, Tensor], more: Mapping[str, Tensor], factor: float = 1.0) -> None:
    for name, tensor in more.items():
        part = tensor.detach() * factor
        total[name] = total[name] + part if name in total else part


def _take(nest: Any, which: slice, size: int) -> Any:
    """Some samples of a batch of `size`: of every tensor that has one row a sample."""
    if isinstance(nest, Tensor):
        return nest[which] if nest.dim() and len(nest) == size else nest
    if isinstance(nest, Mapping):
        return {k: _take(v, which, size) for k, v in nest.items()}
    if isinstance(nest, (tuple, list)):
        return tuple(_take(v, which, size) for v in nest)
    return nest


# Gradients of single samples


def _sum_of_squares(
    model: nn.Module, calib: Calibration, weights: Mapping[str, Tensor], inputs: Any, targets: Tensor
) -> dict[str, Tensor]:
    """The sum over the samples of g^2."""
    try:
        return _all_at_once(model, calib, weights, inputs, targets)
    except Exception:  # vmap can't follow what branches on its data, or changes a buffer
        total: dict[str, Tensor] = {}
        size = rows(inputs)
        for one in (slice(i, i + 1) for i in range(size)):
            loss = _loss(calib, attempt(model, _take(inputs, one, size)), _take(targets, one, size))
            _add(total, {name: g.square() for name, g in _derivatives(loss, weights).items()})
        return total


def _all_at_once(
    model: nn.Module, calib: Calibration, weights: Mapping[str, Tensor], inputs: Any, targets: Tensor
) -> dict[str, Tensor]:
    names = {id(p): name for name, p in model.named_parameters()}  # as the model calls them, masked or not
    own = {names[id(w)]: w.detach() for w in weights.values()}

    def loss(parameters: dict[str, Tensor], inputs: Any, target: Tensor) -> Tensor:
        return _loss(calib, call_with(model, parameters, inputs), target)

    each = vmap(grad(loss), in_dims=(None, 0, 0))(own, _alone(inputs), targets[:, None])
    return {name: _wide(each[names[id(w)]]).square().sum(0) for name, w in weights.items()}


def _alone(nest: Any) -> Any:
    """(samples, ...) -> (samples, 1, ...): each sample a batch of its own."""
    if isinstance(nest, Tensor):
        return nest[:, None]
    if isinstance(nest, Mapping):
        return {k: _alone(v) for k, v in nest.items()}
    return tuple(_alone(v) for v in nest)


# What goes into a layer


@contextmanager
def _recording(model: nn.Module, weights: Mapping[str, Tensor], total: dict[str, Tensor]) -> Iterator[None]:
    """Add to `total` the squares of what every call of a layer multiplies its weights with."""
    name_of = {id(w): name for name, w in weights.items()}
    attention = {m.out_proj: m for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    uses: dict[nn.Module, dict[str, str]] = {}  # layer -> attribute -> the weight's name
    for place in places(model):
        if id(place.tensor) in name_of:
            layer = attention.get(place.module, place.module)  # attention never *calls* its output projection
            attribute = place.attribute if layer is place.module else f"out_proj.{place.attribute}"
            uses.setdefault(layer, {})[attribute] = name_of[id(place.tensor)]

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        squares = _squares_into(layer, args, kwargs)
        for attribute, name in uses[layer].items():
            _add(total, {name: squares[attribute]})

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in uses]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _squares_into(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """By attribute: the sum of squares of the inputs, in a shape that broadcasts against the weight."""
    if isinstance(module, nn.MultiheadAttention):
        return _into_attention(module, args, kwargs)
    inputs = args[0] if args else kwargs["input"]
    if isinstance(module, nn.modules.conv._ConvNd):
        return {"weight": _into_convolution(module, inputs)}
    return {"weight": _columns(inputs)}


def _columns(inputs: Tensor) -> Tensor:
    """(..., in) -> (in,)."""
    return _wide(inputs).flatten(0, -2).square().sum(0) if inputs.dim() > 1 else _wide(inputs).square()


def _into_convolution(module: nn.modules.conv._ConvNd, inputs: Tensor) -> Tensor:
    """(n, in, ...) -> (groups or out or 1, in of a group, *kernel): what each kernel position meets as it slides."""
    dims = len(module.kernel_size)
    if inputs.dim() == dims + 1:  # one sample, without a batch dimension
        inputs = inputs[None]
    seen = _wide(inputs).square().sum(0)  # (in, *size)
    if module.transposed:  # each input meets all of the kernel
        return seen.flatten(1).sum(1).view(-1, 1, *[1] * dims)
    how = "constant" if module.padding_mode == "zeros" else module.padding_mode
    seen = F.pad(seen[None], module._reversed_padding_repeated_twice, mode=how)[0]
    for i, (k, stride, step) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        seen = seen.unfold(1 + i, (k - 1) * step + 1, stride)[..., ::step]  # (in, *positions, kernel so far)
    norms = seen.sum(tuple(range(1, 1 + dims)))  # (in, *kernel)
    per_group = norms.unflatten(0, (module.groups, -1))
    return per_group.repeat_interleave(module.out_channels // module.groups, 0) if module.groups > 1 else per_group


def _into_attention(module: nn.MultiheadAttention, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
    q, k, v = (_columns(given[name]) for name in ("query", "key", "value"))
    found = {"q_proj_weight": q, "k_proj_weight": k, "v_proj_weight": v}
    if q.shape == k.shape == v.shape:  # packed: (3 * embed, embed)
        found["in_proj_weight"] = torch.stack([q, k, v]).repeat_interleave(module.embed_dim, 0)
    projection = module._modules["out_proj"]
    identity = nn.Linear(module.embed_dim, module.embed_dim).to(q.device, given["query"].dtype)
    nn.init.eye_(identity.weight)
    nn.init.zeros_(identity.bias)
    try:  # what goes into the output projection is what comes out of one that does nothing
        module._modules["out_proj"] = identity
        found["out_proj.weight"] = _columns(module.forward(*args, **kwargs)[0])
    finally:
        module._modules["out_proj"] = projection
    return found
