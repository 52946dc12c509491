"""What each type of layer owns: the weights that pruning may zero, their layout, and the sizes that it declares.

The one table that knows torch's layer types, and the one file that names torch's private ones.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .core import Place, PruneError, check_loaded, join, mask_of, masks_on, network, paths, places

CONVOLUTION = nn.modules.conv._ConvNd  # all of them, transposed ones too
TRANSPOSED = nn.modules.conv._ConvTransposeNd
NORM = nn.modules.batchnorm._NormBase  # batch and instance norms
BATCH_NORM = nn.modules.batchnorm._BatchNorm

# The layouts of weights in three dimensions, one matrix an expert: (experts, out, in), (experts, in, out), or
# one of the two, and nothing says which.
STACKED, STACKED_TRANSPOSED, UNKNOWN_LAYOUT = -1, -2, -3


def to_out_in(weight: Tensor, layout: int) -> Tensor:
    """A weight as (out, in, ...), whatever its layout; as it is for 0. `from_out_in` undoes it."""
    if layout > 0:
        return weight.unflatten(0, (layout, -1)).transpose(1, 2).flatten(0, 1)
    if layout == STACKED_TRANSPOSED:
        weight = weight.transpose(1, 2)
    return weight.flatten(0, 1) if layout < 0 else weight


def from_out_in(table: Tensor, layout: int, size: torch.Size) -> Tensor:
    """What `to_out_in` gave, as a tensor of the weight's own size again."""
    if layout == STACKED_TRANSPOSED:
        return table.unflatten(0, (size[0], -1)).transpose(1, 2)
    return table.view(size) if layout < 0 else to_out_in(table, layout)  # of groups it is its own inverse


def check_layout(name: str, size: torch.Size, layout: int, what: str) -> None:
    """PruneError if a weight does not say which of its dimensions are the inputs of an output."""
    if layout == UNKNOWN_LAYOUT:
        raise PruneError(
            f"{what} goes by the inputs of an output, and {name} {tuple(size)} holds experts' matrices that may be "
            "(in, out) or (out, in): set is_transposed (True or False) on the module that holds it, or leave it out "
            f"with functools.partial(granularity.weights, exclude=[{name!r}])"
        )


# Each type: which of its tensors are weights, how these lie, and its declared sizes


def _sizes(*attributes: str) -> Callable[[Any, str], None]:
    """Declares the sizes of a weight, one attribute for each of its dimensions."""

    def declare(m: Any, name: str) -> None:
        for attribute, size in zip(attributes, m.weight.shape, strict=True):
            setattr(m, attribute, size)

    return declare


def _convolution(m: Any, name: str) -> None:
    ins, outs = (0, 1) if m.transposed else (1, 0)
    sizes = [m.weight.shape[0], m.weight.shape[1] * m.groups]  # dimension 1 counts the channels of one group
    m.in_channels, m.out_channels = sizes[ins], sizes[outs]


def _recurrent(m: Any, name: str) -> None:
    gates = {"LSTM": 4, "GRU": 3}.get(m.mode, 1)
    m.hidden_size, m.input_size = len(m.weight_ih_l0) // gates, m.weight_ih_l0.shape[1]
    m.proj_size = len(m.weight_hr_l0) if m.proj_size else 0


def _cell(m: Any, name: str) -> None:
    m.hidden_size, m.input_size = m.weight_hh.shape[1], m.weight_ih.shape[1]


def _norm(m: Any, name: str) -> None:
    vector = m.weight if m.weight is not None else m.running_mean
    m.num_features = len(vector)


def _group_norm(m: Any, name: str) -> None:
    declare_bare(m, len(m.weight), name)


def _layer_norm(m: Any, name: str) -> None:
    m.normalized_shape = tuple(m.weight.shape)


def declare_bare(norm: Any, left: int, name: str) -> None:
    """Set the declared sizes of a norm without parameters to the channels left."""
    if isinstance(norm, nn.GroupNorm):
        norm.num_groups = _scaled(norm.num_groups, norm.num_channels, left, name)
        norm.num_channels = left
    elif isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (left,)
    else:
        norm.num_features = left


def channels(norm: Any) -> int | None:
    """How many channels a norm declares; None for what is no norm known here."""
    if isinstance(norm, nn.GroupNorm):
        return norm.num_channels
    if isinstance(norm, NORM):
        return norm.num_features
    return norm.normalized_shape[-1] if isinstance(norm, nn.LayerNorm) else None


def _scaled(groups: int, before: int, after: int, name: str) -> int:
    """How many groups are left when whole ones went."""
    if groups == 1:
        return 1
    if after * groups % before:
        raise PruneError(
            f"{name}: {before - after} of {before} channels go, which is no whole number of its groups of "
            f"{before // groups}: a unit of a grouped layer must be a whole group"
        )
    return after * groups // before


def _is_expert(place: Place) -> bool:
    if place.attribute.endswith(("_orig", "_g", "_v")):  # what a hook makes a weight of: see `_made`
        return False
    return place.tensor.dim() == 3 and len(place.tensor) == _experts(place.module)


def _groups(place: Place) -> int:
    return place.module.groups if isinstance(place.module, TRANSPOSED) else 0


def _of_experts(place: Place) -> int:
    """By `is_transposed`, as transformers marks its experts, or by the declared sizes, as JetMoe and Granite do."""
    module: Any = place.module
    marked = getattr(module, "is_transposed", None)
    if isinstance(marked, bool):
        return STACKED_TRANSPOSED if marked else STACKED
    sizes = getattr(module, "output_size", None), getattr(module, "input_size", None)
    own = tuple(place.tensor.shape[1:])
    if sizes[0] == sizes[1] or own not in (sizes, sizes[::-1]):
        return UNKNOWN_LAYOUT
    return STACKED if own == sizes else STACKED_TRANSPOSED


def _experts(module: Any) -> int | None:
    """The number of experts that a module declares, if it does."""
    counts = (getattr(module, name, None) for name in ("num_experts", "n_routed_experts", "num_local_experts"))
    return next((n for n in counts if isinstance(n, int)), None)


@dataclass(frozen=True)
class Layer:
    """A type of layer: which of its own tensors are weights that pruning may zero, their layout, its declared sizes.

    `weights` is a pattern of their names; of experts `is_weight` looks at the tensors themselves.
    `layout` gives, as `Member.layout` holds it: 0 for (out, in, ...), g for (in, out of one of g groups, ...), and
    STACKED, STACKED_TRANSPOSED or UNKNOWN_LAYOUT. `declare` sets the sizes to those of the tensors, after a cut.
    `unseen` says why what its weights are multiplied with is not what it is called with.
    """

    weights: str = ""
    layout: Callable[[Place], int] = lambda place: 0
    declare: Callable[[Any, str], None] | None = None
    unseen: str = ""


STATES = "a recurrent layer multiplies its weights with states that it keeps to itself"
ROUTED = "a module of experts multiplies its weights with what is routed to each, within its own forward"
LAYERS: dict[type[nn.Module], Layer] = {
    nn.Linear: Layer("weight", declare=_sizes("out_features", "in_features")),
    CONVOLUTION: Layer("weight", _groups, _convolution),
    nn.MultiheadAttention: Layer("(in|q|k|v)_proj_weight"),  # its sizes are set by surgery.heads
    nn.Bilinear: Layer("weight", declare=_sizes("out_features", "in1_features", "in2_features")),
    nn.RNNBase: Layer(r"weight_(ih|hh|hr)_l\d+(_reverse)?", declare=_recurrent, unseen=STATES),
    nn.RNNCellBase: Layer("weight_(ih|hh)", declare=_cell, unseen=STATES),
    NORM: Layer(declare=_norm),
    nn.GroupNorm: Layer(declare=_group_norm),
    nn.LayerNorm: Layer(declare=_layer_norm),
    nn.RMSNorm: Layer(declare=_layer_norm),
    nn.PReLU: Layer(declare=_sizes("num_parameters")),
    nn.Embedding: Layer(declare=_sizes("num_embeddings", "embedding_dim")),
}
# Users may add to it.
DECLARED: dict[type[nn.Module], Callable[[Any, str], None]]
DECLARED = {kind: layer.declare for kind, layer in LAYERS.items() if layer.declare is not None}
CONV1D = Layer("weight", lambda place: 1, _sizes("nx", "nf"))  # transformers', a Linear with its weight (in, out)
EXPERTS = Layer("", _of_experts, unseen=ROUTED)


def layer_of(module: nn.Module) -> Layer:
    """What is known of a module's type; a Layer without weights where nothing is."""
    found = next((layer for kind, layer in LAYERS.items() if isinstance(module, kind)), None)
    if found is not None:
        return found
    if hasattr(module, "nf") and any(kind.__name__ == "Conv1D" for kind in type(module).__mro__):
        return CONV1D  # known by its name, so that transformers need not be there
    return Layer() if _experts(module) is None else EXPERTS


def is_weight(place: Place) -> bool:
    """Whether pruning may zero a tensor."""
    layer = layer_of(place.module)
    return _is_expert(place) if layer is EXPERTS else re.fullmatch(layer.weights, place.attribute) is not None


def layout_of(place: Place) -> int:
    """The layout of a weight, as `to_out_in` takes it; 0 for every tensor that is no weight."""
    return layer_of(place.module).layout(place) if is_weight(place) else 0


def input_dim(place: Place) -> int:
    """The dimension of a weight that counts the inputs of one output."""
    layout = layout_of(place)
    return 2 if layout == STACKED else 0 if layout > 0 else 1


def declare(module: nn.Module, name: str) -> bool:
    """Set a layer's declared sizes to those of its tensors, of which `name` was cut; False for an unknown type."""
    known = next((f for kind, f in DECLARED.items() if isinstance(module, kind)), layer_of(module).declare)
    if known is not None:
        known(module, name)
    return known is not None


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that pruning may zero, by name: those of all layers that multiply their inputs with learned matrices.

    Linear, convolution, attention, recurrent and Bilinear layers, transformers' Conv1D, and modules of experts, whose
    weights have three dimensions. Gives the *underlying* parameters, masked or not. A tied weight appears once, under
    its first name; one tied to anything else (an embedding, say) is left out, because zeroing it would prune that too.
    So are those that `unreachable` names. Raises PruneError if there is none, and as `check_kind` does.

    >>> list(prunable(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))))
    ['0.weight', '2.weight']
    """
    check_kind(model)
    chosen: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    everywhere = places(model)
    elsewhere = {id(p.tensor) for p in everywhere if not is_weight(p)}
    for place in everywhere:
        tensor = place.tensor
        if id(tensor) in elsewhere | seen or not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
            continue
        chosen[place.name] = tensor
        seen.add(id(tensor))
    if not chosen:
        _refuse_empty(model)
    return chosen


def _refuse_empty(model: nn.Module) -> None:
    away = unreachable(model)
    if away:
        name, reason = next(iter(away.items()))
        more = f" (and {len(away) - 1} more like it)" if len(away) > 1 else ""
        raise PruneError(f"{type(model).__name__} has no weight that a zero could be written to: {name}{more} {reason}")
    raise PruneError(
        f"{type(model).__name__} has nothing to prune: it holds no floating-point weight of a Linear, convolution, "
        "attention, recurrent, Bilinear or Conv1D layer, nor of experts (a weight tied to an embedding does not count)"
    )


# What is refused, and why


def check_kind(model: nn.Module) -> None:
    """PruneError for a model whose weights cannot be changed as they are: it says what the model is, and what to do."""
    everywhere = paths(model)
    for module, path in everywhere.items():
        reason = _foreign(type(module))  # type: ignore[arg-type]  # a class is hashable
        if reason:
            where = f"{path or 'the model itself'}, a {type(module).__name__}, is" if path else "it is"
            raise PruneError(f"{type(model).__name__} cannot be pruned: {where} {reason}")
    check_loaded(model)


@functools.cache
def _foreign(kind: type[nn.Module]) -> str:
    """What a kind of module is that holds no weights of its own to change; empty for all others."""
    if issubclass(kind, torch.jit.ScriptModule):
        return "TorchScript, a compiled program: prune the nn.Module that it was made of, and script that again"
    if any(base.__name__ == "FakeQuantizeBase" for base in kind.__mro__):
        return (
            "what quantization-aware training adds, and it would move the zeros: prune the model before "
            "torch.ao.quantization.prepare_qat, and prepare it with its zeros in place"
        )
    at_rest = kind.__name__ in ("FloatFunctional", "FXFloatFunctional")  # of a model still in floating point
    quantized = (b for b in kind.__mro__ if b.__module__.startswith("torch.ao.nn") and ".quantized" in b.__module__)
    if not at_rest and any(quantized):
        return "quantized, its weights packed as whole numbers: prune the model in floating point, and quantize it then"
    return ""


def unreachable(model: nn.Module) -> dict[str, str]:
    """The weights, by name, that no zero can be written to, and why: others make them anew, or they are no floats."""
    found = {}
    for path, module in network(model).named_modules():
        for attribute, how in made_by(module).items():
            layer = layer_of(module)  # never by its value: a spectral norm changes as it is made
            if layer is EXPERTS or re.fullmatch(layer.weights, attribute):
                found[join(path, attribute)] = f"is made anew in every forward by {how} first (its values stay)"
    for place in places(model):
        if place.name not in found and is_weight(place) and not place.tensor.is_floating_point():
            found[place.name] = f"holds {place.tensor.dtype}: load the model in floating point"
    return found


def check_made_by_none(model: nn.Module, names: Collection[str]) -> None:
    """PruneError if something else makes one of these tensors: a mask on it would be written over."""
    for module, path in paths(model).items():
        for attribute, how in made_by(module).items():
            if join(path, attribute) in names:
                raise PruneError(
                    f"{join(path, attribute)} takes no mask: it is made anew in every forward by {how} first"
                )


def made_by(module: nn.Module) -> dict[str, str]:
    """The attributes of a module that something else than a mask makes: by what, and how to take it off."""
    made = {}
    for attribute in cast(nn.ModuleDict, module._modules.get("parametrizations") or {}):
        if mask_of(module, attribute) is None:
            chain: Any = module.parametrizations
            kinds = ", ".join(type(step).__name__.strip("_") for step in chain[attribute])
            remedy = f"torch.nn.utils.parametrize.remove_parametrizations(module, {attribute!r})"
            made[attribute] = f"the parametrization {kinds}: call {remedy}"
    own = {*module._parameters, *module._buffers}
    for name in module._parameters:
        for end, sign, how in _HOOKS:
            attribute = name.removesuffix(end)
            if name.endswith(end) and attribute not in own and attribute + sign in own:
                made[attribute] = how.format(attribute=attribute)
    return made


# The older way, by a hook: what the parameter's name ends with, what else there is then, and how to take it off.
_HOOKS = (
    ("_orig", "_mask", "the mask of torch.nn.utils.prune: call torch.nn.utils.prune.remove(module, {attribute!r})"),
    ("_orig", "_u", "spectral_norm: call torch.nn.utils.remove_spectral_norm(module, {attribute!r})"),
    ("_v", "_g", "weight_norm: call torch.nn.utils.remove_weight_norm(module, {attribute!r})"),
)


def follow(module: nn.Module) -> None:
    """Make a recurrent layer see the masks that were put on it, or taken off: it keeps its weights in a list, too.

    A list of what a parametrization made could be neither copied nor trusted. While there are any it is made on demand.
    """
    if not isinstance(module, nn.RNNBase):
        return
    if not masks_on(module):
        module._init_flat_weights()
        return
    module.__dict__.pop("_flat_weights", None)
    kind: Any = type(module)  # its own: torch gives a parametrized module a class to itself
    kind._flat_weights = property(_flat_weights, lambda m, value: None)


def _flat_weights(module: Any) -> list[Tensor | None]:
    return [getattr(module, name, None) for name in module._flat_weights_names]
