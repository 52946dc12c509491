"""The vocabulary every other module speaks: scores, groups, keeps, masks, and what can be pruned at all."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

Scores: TypeAlias = dict[str, Tensor]  # parameter name -> importance, the parameter's shape; higher = keep
Keep: TypeAlias = dict[str, Tensor]  # group name -> bool (units,), True = keep
Masks: TypeAlias = dict[str, Tensor]  # tensor name -> bool, the tensor's shape, True = keep
Schedule: TypeAlias = Callable[[float], float]  # progress in [0, 1] -> share of the final sparsity


class AbsoluteOfSum(dict[str, Tensor]):
    """Scores with signs: a unit is worth |the sum of its entries' scores|, not the sum itself."""


class PruneError(ValueError):
    """What is wrong, where (name and shape), what was given, and what to do about it."""


class NothingFound(PruneError):
    """A model without what a granularity looks for; any other PruneError says that it could not look."""


@dataclass(frozen=True, eq=False)
class Member:
    """Unit u owns the entries `index[u]` of `tensor` along `dim`; without an index, the u-th `block` of all of them.

    `index` is a tensor of (units, block) whole numbers, in any order: channels that a shuffle interleaves are one
    group. With `dim=None` the tensor is cut into tiles in row-major order, a tile a unit: single entries, or, with
    `tile=(r, c)`, blocks of r rows by c columns of the matrix (first dimension, all others flattened).
    `learned=False` marks a buffer, such as a running mean: it shrinks with its unit, but takes no mask.
    `layout` is what `layers.layout_of` says of the tensor, for those who compare single weights by output.
    """

    tensor: str
    dim: int | None = None
    block: int = 1
    index: Tensor | None = None
    tile: tuple[int, int] = (1, 1)
    learned: bool = True
    layout: int = 0

    def __post_init__(self) -> None:
        if self.index is not None:
            object.__setattr__(self, "block", self.index.shape[1])

    def _key(self) -> tuple[Any, ...]:
        listed = None if self.index is None else tuple(self.index.flatten().tolist())
        return self.tensor, self.dim, self.block, listed, self.tile, self.learned, self.layout

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Member) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self.tensor, self.dim, self.block))


@dataclass(frozen=True)
class Part:
    """Unit `unit` owns the whole module at `path`, with every tensor in it.

    Removed, an entry of a list leaves the list; any other module is replaced by one that adds nothing: it returns 0,
    or, of an attention that returns `outputs` things, 0 and then None. A module that adds what it makes to one of its
    own inputs returns this input: the positional one of number `passes`. `of` is how long its list is, where the last
    entry is of no unit, and so no path tells.
    """

    path: str
    unit: int
    outputs: int = 1
    passes: int = 0
    of: int = 0


@dataclass(frozen=True)
class Group:
    """Coupled structures: unit u of every member leaves together with the others, or not at all.

    Units are slices of tensors (`members`) or whole modules (`parts`). `exact` says that a model with the units
    masked computes the same as one with the units removed. `norms` are members that name, for want of a tensor, a
    norm without parameters: only its declared sizes follow. `floor` is how many units stay, whatever they score.
    """

    name: str
    units: int
    members: tuple[Member, ...]
    exact: bool = True
    parts: tuple[Part, ...] = ()
    norms: tuple[Member, ...] = ()
    floor: int = 1


class Groups(list[Group]):
    """Groups, and of each layer of which something is in no group, why that stays: `stays`, layer -> a reason."""

    def __init__(self, groups: Iterable[Group] = (), stays: Mapping[str, str] | None = None):
        super().__init__(groups)
        self.stays = dict(stays or {})


class Criterion(Protocol):
    """How important each weight is: a prunable weight's name -> scores of its shape, higher = keep.

    `calib` is a `calibration.Calibration`, which those that look at data need.
    """

    def __call__(self, model: nn.Module, calib: Any = None, /) -> Scores: ...


class Granularity(Protocol):
    """What is removed as one; `example` is one input (or batch), for those that trace the model."""

    def __call__(self, model: nn.Module, example: Any = None, /) -> list[Group]: ...


class Mask(nn.Module):
    """The parametrization `masking.apply` puts on a weight: w where the mask is True, exactly 0 elsewhere.

    `where` rather than a product: no -0.0, and an infinity under the mask becomes 0 instead of NaN. A `gate`,
    (weight, mask) -> the same values, lets gradients pass in another way: that of `movement`, whose scores it holds.
    """

    def __init__(self, mask: Tensor, order: tuple[str, ...] = ()):
        super().__init__()
        self.register_buffer("mask", mask)
        self.order = order  # the module's parameter order before us, so that `bake` can restore it
        self.gate: nn.Module | None = None
        self.mask: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        if self.gate is not None:
            return self.gate(weight, self.mask)
        return torch.where(self.mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


def mask_of(module: nn.Module, attribute: str) -> Mask | None:
    """The mask on `module.attribute`, or None if it has none."""
    made = module._modules.get("parametrizations")  # a getattr would search in vain, and slowly, in most modules
    if made is None or attribute not in cast(nn.ModuleDict, made):
        return None
    chain = cast(nn.ModuleDict, made)[attribute]
    return next((p for p in cast(nn.ModuleList, chain) if isinstance(p, Mask)), None)


def in_order(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """The names as they come in `order`; those it does not know go last, in the order given."""
    return sorted(names, key=lambda n: order.index(n) if n in order else len(order))


def masks_on(module: nn.Module) -> dict[str, Mask]:
    """The masks on a module's own attributes, by attribute."""
    found = {name: mask_of(module, name) for name in cast(nn.ModuleDict, module._modules.get("parametrizations") or {})}
    return {name: mask for name, mask in found.items() if mask is not None}


def join(path: str, attribute: str) -> str:
    """The dotted name of a module's attribute; the root module's path is empty."""
    return f"{path}.{attribute}" if path else attribute


@dataclass(frozen=True)
class Place:
    """Where a tensor hangs: `module.attribute`, under the dotted `name` it had before any mask."""

    name: str
    module: nn.Module
    attribute: str

    @property
    def tensor(self) -> Tensor:
        """The underlying tensor itself: the one an optimizer updates, not its masked view."""
        own = self.module._parameters.get(self.attribute)
        if own is not None:  # the usual case, without a search that finds nothing
            return own
        if mask_of(self.module, self.attribute) is not None:
            return cast(nn.ModuleDict, self.module.parametrizations)[self.attribute].get_parameter("original")
        return getattr(self.module, self.attribute)


def network(model: Any) -> nn.Module:
    """The model as it is; PruneError if it is none."""
    if not isinstance(model, nn.Module):
        raise PruneError(f"the model is a {type(model).__name__}: give a torch.nn.Module")
    return model


def check_loaded(model: nn.Module) -> None:
    """PruneError if a weight or buffer is on the meta device, or not made yet: it has no values to work with."""
    away = next((p for p in places(model) if p.tensor.is_meta), None)
    if away is not None:
        raise PruneError(
            f"{away.name} {shape(away.tensor)} of this {type(model).__name__} is on the meta device, without values: "
            "load the weights (all of them into memory, if they are offloaded)"
        )


def paths(model: nn.Module) -> dict[nn.Module, str]:
    """Every module and its first path."""
    return {module: path for path, module in network(model).named_modules()}


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a module itself, by attribute."""
    for held in (module._parameters, module._buffers):
        for name, tensor in held.items():
            if tensor is not None:
                yield name, tensor


def places(model: nn.Module) -> list[Place]:
    """Every parameter and buffer of a model, by the name it had before any mask; tied ones appear once a place."""
    found = []
    everywhere = paths(model)
    ours = {part for mask in everywhere if isinstance(mask, Mask) for part in mask.modules()}
    for module, path in everywhere.items():
        if module in ours or isinstance(module, parametrize.ParametrizationList):
            continue  # these hold the tensors of the module above them, which names them
        own = [name for name, _ in own_tensors(module)]
        lazy = next((name for name, tensor in own_tensors(module) if is_lazy(tensor)), None)
        if lazy is not None:
            raise PruneError(
                f"{join(path, lazy)} has no shape yet (a lazy layer): run one batch through the model first"
            )
        if "parametrizations" not in module._modules:
            found += [Place(join(path, n), module, n) for n in own]
            continue
        masked = masks_on(module)
        order = next((m.order for m in masked.values()), ())  # a mask moves its weight to the end: undo that
        found += [Place(join(path, n), module, n) for n in in_order((*masked, *own), order)]
    return found


def all_masks(model: nn.Module) -> list[tuple[Place, Mask]]:
    """Every mask on a model, and where it is."""
    found = ((place, mask_of(place.module, place.attribute)) for place in places(model))
    return [(place, mask) for place, mask in found if mask is not None]


def named(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under the name it had before any mask."""
    return {p.name: p.tensor for p in places(model)}


def find(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor of `named(model)`; PruneError says what there is if it isn't there."""
    if name not in tensors:
        raise PruneError(f"the model has no tensor named {name!r}; it has {', '.join(list(tensors)[:8])}, ...")
    return tensors[name]


def lookup(model: nn.Module, name: str) -> list[Place]:
    """All places that share the tensor called `name` (several if it is tied). Unknown names raise PruneError."""
    return lookup_all(model, (name,))[name]


def lookup_all(model: nn.Module, names: Iterable[str]) -> dict[str, list[Place]]:
    """`lookup` of many names in a single pass: a large network has a thousand, each a walk through all of them."""
    everywhere = places(model)
    tensors = {p.name: p.tensor for p in everywhere}
    sharing: dict[int, list[Place]] = {}
    for place in everywhere:
        sharing.setdefault(id(place.tensor), []).append(place)
    return {name: sharing[id(find(tensors, name))] for name in names}


def count(model: nn.Module, masks: Mapping[str, Tensor]) -> tuple[int, int]:
    """(parameters, those of them that are not zero) under these masks and those on the model; tied ones count once."""
    on: dict[int, list[Tensor]] = {}  # by the tensor's id
    for place, mask in all_masks(model):
        on.setdefault(id(place.tensor), []).append(mask.mask)
    for name, own in lookup_all(model, masks).items():
        on.setdefault(id(own[0].tensor), []).append(masks[name])
    # A gate's learned scores are no parameters of the network.
    learned = {id(p) for mask in model.modules() if isinstance(mask, Mask) for p in mask.parameters()}
    parameters, live = 0, []
    for parameter in model.parameters():
        if id(parameter) not in learned:
            there = parameter.detach() != 0
            for kept in on.get(id(parameter), ()):
                there &= kept.to(there.device)
            parameters += parameter.numel()
            live.append(torch.count_nonzero(there))
    return parameters, int(sum(at_once(live)))


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first tensor lives (CPU for a model without any)."""
    first = next(itertools.chain(network(model).parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def mode(model: nn.Module, *, training: bool) -> ExitStack:
    """The whole model in train or eval mode for the length of a block; then each module has its own mode back.

    Torch has its grad mode back, too: an interrupt in the middle of `no_grad`'s own lines leaves it off. No generator
    with a `finally`: one that an interrupt leaves half entered runs it when it is collected, at any later time.
    """
    with ExitStack() as stack:
        stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        stack.callback(_put_in_modes, [(m, m.training) for m in network(model).modules()])
        model.train(training)
        return stack.pop_all()


def _put_in_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


def unsaved(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers that are in no state dict."""
    saved = model.state_dict()
    return {name: b.clone() for name, b in model.named_buffers() if name not in saved}


def put_back(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Give buffers the values again that `unsaved` gave."""
    for name, buffer in model.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])


def copied(model: nn.Module, instead: Mapping[int, Any]) -> nn.Module:
    """A deep copy with other things in place of those whose ids are given, in a fraction of `copy.deepcopy`'s time.

    Most of that goes into a dozen empty dicts of hooks a module. Modules that copy themselves are left to do so.
    """
    memo: dict[int, Any] = dict(instead)
    modules = list(paths(model))
    if any(_copies_itself(kind) for kind in {type(m) for m in modules}):
        return copy.deepcopy(model, memo)
    for module in modules:
        memo[id(module)] = type(module).__new__(type(module))
    for module in modules:
        memo[id(module)].__setstate__(_each_copied(vars(module), {}, memo))
    return memo[id(model)]


def _copies_itself(kind: Any) -> bool:
    usual = (nn.Module.__getstate__, object.__getstate__)
    own = kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__getstate__ not in usual
    return own or hasattr(kind, "__deepcopy__")


def _each_copied(values: dict[str, Any], made: dict[str, Any], memo: dict[int, Any]) -> dict[str, Any]:
    for key, value in values.items():
        made[key] = value if type(value) in _PLAIN else memo[id(value)] if id(value) in memo else _copied(value, memo)
    return made


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in (dict, OrderedDict):
        made = memo[id(value)] = kind()
        return _each_copied(value, made, memo) if value else made
    if kind is set and not value:
        return set()
    if kind is tuple and all(type(v) in _PLAIN for v in value):
        return value
    return copy.deepcopy(value, memo)


_PLAIN = {type(None), bool, int, float, str}


def at_once(scalars: Sequence[Tensor]) -> list[float]:
    """The numbers in tensors of one element each, read together: an accelerator is waited for once, not for each."""
    if any(s.is_meta for s in scalars):
        raise PruneError("the model lies on the meta device, without values: load its weights first")
    if not scalars:
        return []
    if scalars[0].device.type == "mps":  # which knows no float64
        return [float(s) for s in scalars]
    return torch.stack([s.to(scalars[0].device, torch.float64) for s in scalars]).tolist()


def shape(tensor: Tensor) -> str:
    """A tensor's shape as errors print it: (64, 32, 3, 3)."""
    return str(tuple(tensor.shape))
