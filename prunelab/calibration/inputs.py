"""What a layer's weights are multiplied with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import PruneError, lookup_all, places, shape
from ..layers import CONV1D, CONVOLUTION, layer_of, prunable
from ..running import attempt, hooked, undisturbed
from ..text import listed
from .samples import Calibration, add, checked, real_inputs, wide


def input_norms(model: nn.Module, calib: Calibration) -> dict[str, Tensor]:
    """The L2 norm of the inputs that each weight is multiplied with, over all samples and positions.

    Of a Linear's (out, in) it is norm(X_j), shaped (in,); of a convolution's the norm of column j of the unfolded
    input, one an input channel and kernel position; of a Bilinear's that of the products x1_i x2_j. All broadcast
    against the weight. Looks at no labels, and at no padding (`unpadded`).

    A layer that the forward never calls, and recurrent layers and experts, which multiply within their own forward,
    are left out, and a warning names them; PruneError if there is no other.

    >>> calib = Calibration([(torch.tensor([[3.0, 1.0], [4.0, 1.0]]), torch.tensor([0, 1]))])
    >>> input_norms(nn.Linear(2, 2), calib)["weight"]  # sqrt(9 + 16), sqrt(1 + 1)
    tensor([5.0000, 1.4142])
    """
    weights = _seen(model)
    total: dict[str, Tensor] = {}
    with undisturbed(model), torch.no_grad(), _recording(model, weights, total):
        for inputs in real_inputs(model, calib):
            attempt(model, inputs)
    unseen = [f"{name} {shape(w)}" for name, w in weights.items() if name not in total]
    if unseen and total:
        warnings.warn(
            f"no inputs seen of {', '.join(unseen)}: the forward does not call the layer on this data, or uses its "
            "weight without calling it, as F.linear(x, layer.weight) does. Left out: no criterion can judge it by them",
            stacklevel=2,
        )
    seen = {name: w for name, w in weights.items() if name in total or not total}
    return {name: s.sqrt() for name, s in checked(total, seen, "input").items()}


def _seen(model: nn.Module) -> dict[str, nn.Parameter]:
    """The prunable weights whose inputs can be seen; a warning names the others."""
    weights = prunable(model)
    reasons = {name: layer_of(sharing[0].module).unseen for name, sharing in lookup_all(model, weights).items()}
    unseen = [name for name, reason in reasons.items() if reason]
    if not unseen:
        return weights
    names, reason = listed([f"{name} {shape(weights[name])}" for name in unseen]), reasons[unseen[0]]
    if len(unseen) == len(weights):
        raise PruneError(f"no input can be seen of {names}: {reason}. Take magnitude, or taylor, which needs no inputs")
    warnings.warn(
        f"no scores for {names}, whose inputs cannot be seen: {reason}. Take magnitude or taylor for them, or leave "
        "them out with functools.partial(granularity.weights, exclude=[...])",
        stacklevel=4,
    )
    return {name: w for name, w in weights.items() if name not in unseen}


@contextmanager
def _recording(model: nn.Module, weights: Mapping[str, Tensor], total: dict[str, Tensor]) -> Iterator[None]:
    """Add to `total` the squares of what every call of a layer multiplies its weights with."""
    name_of = {id(w): name for name, w in weights.items()}
    attention: dict[nn.Module, nn.Module] = {
        m.out_proj: m for m in model.modules() if isinstance(m, nn.MultiheadAttention)
    }
    uses: dict[nn.Module, dict[str, str]] = {}  # layer -> attribute -> the weight's name
    for place in places(model):
        if id(place.tensor) in name_of:
            layer = attention.get(place.module, place.module)  # attention never *calls* its output projection
            attribute = place.attribute if layer is place.module else f"out_proj.{place.attribute}"
            uses.setdefault(layer, {})[attribute] = name_of[id(place.tensor)]

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        squares = _squares_into(layer, args, kwargs)
        for attribute, name in uses[layer].items():
            add(total, {name: squares[attribute]})

    with hooked(uses, note):
        yield


def _squares_into(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """By attribute: the sum of squares of the inputs, in a shape that broadcasts against the weight."""
    if isinstance(module, nn.MultiheadAttention):
        return _into_attention(module, args, kwargs)
    layer = layer_of(module)
    if isinstance(module, nn.Bilinear):
        return {"weight": _into_bilinear(**dict(zip(("input1", "input2"), args, strict=False)) | dict(kwargs))}
    inputs = args[0] if args else kwargs["x" if layer is CONV1D else "input"]
    if isinstance(module, CONVOLUTION):
        return {"weight": _into_convolution(module, inputs)}
    columns = _columns(inputs)
    return {"weight": columns[:, None] if layer is CONV1D else columns}


def _into_bilinear(input1: Tensor, input2: Tensor) -> Tensor:
    """(..., in1) and (..., in2) -> (in1, in2): the sums of (x1_i x2_j)^2."""
    one, two = (wide(x).reshape(-1, x.shape[-1]).square() for x in (input1, input2))
    return one.T @ two


def _columns(inputs: Tensor) -> Tensor:
    """(..., in) -> (in,)."""
    return wide(inputs).flatten(0, -2).square().sum(0) if inputs.dim() > 1 else wide(inputs).square()


def _into_convolution(module: Any, inputs: Tensor) -> Tensor:
    """(n, in, ...) -> (groups or out or 1, in of a group, *kernel): what each kernel position meets as it slides."""
    dims = len(module.kernel_size)
    if inputs.dim() == dims + 1:  # one sample, without a batch dimension
        inputs = inputs[None]
    seen = wide(inputs).square().sum(0)  # (in, *size)
    slides = list(zip(module.kernel_size, module.stride, module.dilation, strict=True))
    if module.transposed:  # each input meets what of the kernel the padding does not cut off again
        for (k, stride, step), cut, more in zip(slides, module.padding, module.output_padding, strict=True):
            at = torch.arange(seen.shape[1])[:, None] * stride + torch.arange(k) * step - cut  # in the output
            inside = (at >= 0) & (at <= at[-1, -1] - cut + more)
            seen = torch.tensordot(seen, inside.to(seen), ([1], [0]))  # (in, *sizes left, *kernel so far)
        return seen.unsqueeze(1)
    how = "constant" if module.padding_mode == "zeros" else module.padding_mode
    seen = F.pad(seen[None], module._reversed_padding_repeated_twice, mode=how)[0]
    for i, (k, stride, step) in enumerate(slides):
        seen = seen.unfold(1 + i, (k - 1) * step + 1, stride)[..., ::step]  # (in, *positions, kernel so far)
    norms = seen.sum(tuple(range(1, 1 + dims)))  # (in, *kernel)
    per_group = norms.unflatten(0, (module.groups, -1))
    return per_group.repeat_interleave(module.out_channels // module.groups, 0) if module.groups > 1 else per_group


def _into_attention(module: nn.MultiheadAttention, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
    q, k, v = (_columns(given[name]) for name in ("query", "key", "value"))
    found = {"q_proj_weight": q, "k_proj_weight": k, "v_proj_weight": v}
    if module.in_proj_weight is not None:  # packed: (3 * heads * head_dim, embed)
        rows = len(module.in_proj_weight) // 3
        found["in_proj_weight"] = torch.stack([q, k, v]).repeat_interleave(rows, 0)
    projection = module._modules["out_proj"]
    width = module.out_proj.in_features  # less than embed_dim where heads were removed
    identity = nn.Linear(width, width).to(q.device, given["query"].dtype)
    nn.init.eye_(identity.weight)
    nn.init.zeros_(identity.bias)
    try:  # what goes into the output projection is what comes out of one that does nothing
        module._modules["out_proj"] = identity
        found["out_proj.weight"] = _columns(module.forward(*args, **kwargs)[0])
    finally:
        module._modules["out_proj"] = projection
    return found
