"""`shrink`: cut the units that go out of every tensor they own entries of. Knows layers, and no architecture.

And `difference`: whether removing computes the same as zeroing is measured, not assumed.
"""

from __future__ import annotations

import collections
import copy
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import layers, units
from ..core import (
    Group,
    Keep,
    PruneError,
    check_loaded,
    copied,
    device_of,
    find,
    lookup_all,
    masks_on,
    named,
    paths,
    places,
    shape,
)
from ..data import to
from ..masking import bake, expand, masked
from ..running import apart, outputs
from . import experts, heads, widths
from .removal import gone, remove

HOLDS_A_SIZE = re.compile(r"dim|width|hidden|intermediate|channels|features|planes|d_model|embed|(^|_)(c|ch|nf)$")
INNER = re.compile(r"attn|inner")  # what such a size is of, by its name
Lines = dict[tuple[str, int], Tensor]  # (tensor name, dimension) -> bool (size,), True = stays


def shrink(model: nn.Module, groups: Sequence[Group], keep: Keep) -> nn.Module:
    """A new model without the units that go, slices or whole modules; the old one is left as it is.

    `groups` and `keep` as from `granularity.filters` and `allocate` (whose round_to= keeps channel counts that
    hardware likes). Every tensor that loses entries is cut once a dimension, running statistics too, and its
    layer's declared sizes (out_channels, in_features, groups, ...) follow. Masks on the model are baked into
    the new one. It has new parameters: make a new optimizer.

    Sizes that a module of one's own holds (`hidden_dim` and the like) follow where only one cut can be meant.

    Raises PruneError for groups of another model, single weights (which leave no hole to close), and a group of
    which nothing is kept.

    >>> from prunelab import granularity
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> groups = granularity.neurons(net, torch.zeros(1, 3))
    >>> small = shrink(net, groups, {groups[0].name: torch.tensor([True, False, False, True])})
    >>> small[0].weight.equal(net[0].weight[[0, 3]]), small[2].in_features, net[2].in_features
    (True, 2, 4)
    """
    lines = cuts(model, groups, keep)
    bare = {name: lines.pop((name, 0)) for name in {norm.tensor for group in groups for norm in group.norms}}
    if any(map(masks_on, paths(model))):
        model = bake(_copied(model, {}))
    small = _copied(model, _pieces(model, lines))
    touched = {}
    for name, shared in lookup_all(small, {name for name, _ in lines}).items():
        touched.update({place.module: name for place in shared})
        for place in shared:
            if isinstance(place.module, layers.CONVOLUTION) and place.attribute == "weight" and (name, 0) in lines:
                place.module.groups = _groups_left(place.module.groups, lines[name, 0], name)
    for module, name in touched.items():
        layers.declare(module, name)
    done = heads.settle(small, groups, keep, lines)
    _resize(small, {where: line for where, line in lines.items() if where[0] not in done})
    for path, line in bare.items():
        layers.declare_bare(small.get_submodule(path), int(line.sum()), path)
    remove(small, gone(groups, keep))
    experts.settle(small, touched)
    widths.settle(small, lines, model)
    return small


def difference(model: nn.Module, groups: Sequence[Group], keep: Keep, example: Any) -> float:
    """The largest difference of outputs between the masked and the shrunk model, relative to the largest output.

    In eval mode, on `example`. Near 1e-6 in float32 where all groups are exact. The model is left as it is.

    >>> from prunelab import granularity
    >>> net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(1, 3)
    >>> groups = granularity.neurons(net, x)
    >>> difference(net, groups, {groups[0].name: torch.tensor([True, False, False, True])}, x) < 1e-6
    True
    """
    check_loaded(model)
    plain, inputs = bake(copy.deepcopy(model)), to(example, device_of(model))
    with masked(plain, expand(plain, groups, keep)):
        zeroed = outputs(plain, inputs)
    return apart(zeroed, outputs(shrink(plain, groups, keep), inputs))


def _groups_left(groups: int, line: Tensor, name: str) -> int:
    """How many groups a convolution has left when whole ones went, or the same number of channels from each."""
    each = line.view(groups, -1).sum(1)
    left = each[each > 0]
    if (left != left[0]).any():
        raise PruneError(
            f"{name}: {int((~line).sum())} of {len(line)} channels go, which leaves its {groups} groups "
            f"{', '.join(map(str, each.tolist()))}: a unit of a grouped layer must be a whole group, or one channel of "
            "every group"
        )
    return len(left)


def cuts(model: nn.Module, groups: Sequence[Group], keep: Keep) -> Lines:
    """Which indices stay along each dimension of each tensor, or norm without parameters: all groups combined."""
    tensors, modules = named(model), {path: module for module, path in paths(model).items()}
    first = {id(t): name for name, t in reversed(tensors.items())}  # a tied tensor is cut once, under its first name
    lines: Lines = {}
    for group in groups:
        kept = units.kept_of(group, keep)
        if not kept.any():
            raise PruneError(
                f"keep has nothing left of {group.name} ({group.units} units): without it the network is cut in two. "
                "Keep at least one unit, as allocate does by default (floor=1)"
            )
        units.check_parts(group, tensors)
        owned = [(m, find(tensors, m.tensor)) for m in group.members]
        owned += [(m, _channels(modules.get(m.tensor), m.tensor, group.name)) for m in group.norms]
        for member, tensor in owned:
            if member.dim is None:
                raise PruneError(
                    f"{group.name} holds single weights or blocks of {member.tensor} {shape(tensor)}: zeroing them "
                    "leaves no hole to close. shrink removes structures, such as granularity.filters gives"
                )
            units.check(member, tensor, group.units)
            where = first.get(id(tensor), member.tensor), member.dim % tensor.dim()
            line = units.line(member, kept, tensor.shape[where[1]])
            lines[where] = lines[where] & line if where in lines else line
    return lines


def _channels(norm: Any, path: str, group: str) -> Tensor:
    """For want of a parameter, a tensor of a norm's size, and without values."""
    size = layers.channels(norm)
    if size is None:
        given = "nothing" if norm is None else f"a {type(norm).__name__}"
        raise PruneError(
            f"{path}, a norm of {group}, is {given} in this model: the groups are of another model, or name something "
            "else than a GroupNorm, LayerNorm, BatchNorm or InstanceNorm"
        )
    return torch.empty(size, device="meta")


def _pieces(model: nn.Module, lines: Lines) -> dict[int, Tensor]:
    """What is left of each tensor, by the id of the whole."""
    tensors = named(model)
    pieces: dict[int, Tensor] = {}
    for (name, dim), line in lines.items():
        whole = tensors[name]
        pieces[id(whole)] = _cut_off(pieces.get(id(whole), whole), dim, line)
    return pieces


def _copied(model: nn.Module, pieces: dict[int, Tensor]) -> nn.Module:
    """A copy that never holds the whole of what is cut, wherever the model refers to it."""
    try:
        return copied(model, pieces)
    except RuntimeError as error:
        raise PruneError(
            f"{type(model).__name__} cannot be copied: {error} A tensor kept as an attribute, or the hooks of "
            "torch.nn.utils.prune or weight_norm, are the usual cause: remove them first"
        ) from error


def _cut_off(old: Tensor, dim: int, line: Tensor) -> Tensor:
    new: Tensor = old.detach().index_select(dim, line.nonzero().squeeze(1).to(old.device))
    if old.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last):
        new = new.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _resize(model: nn.Module, lines: Lines) -> None:
    """Sizes that modules of one's own hold, `hidden_dim` and the like, where only one of the cuts can be meant.

    That is: all dimensions inside that had this size and were cut are alike now, and they are more than those that
    still have it (a Transformer's width, when heads as wide together lost some).
    """
    held: dict[str, list[str]] = {}  # module -> its attributes that may be such sizes
    known = tuple(DECLARED)
    for module, path in paths(model).items():
        if not isinstance(module, known):
            held[path] = [n for n, v in vars(module).items() if type(v) is int and HOLDS_A_SIZE.search(n)]
    held = {path: names for path, names in held.items() if names}
    for path, sizes in _sizes(model, lines, held).items():
        module = model.get_submodule(path)
        for attribute in held[path]:
            size = getattr(module, attribute)
            counts = sizes.get(size, collections.Counter())
            cut = [after for after in counts if after != size]
            inner = INNER.search(attribute) and size in counts  # an attention's own width, which is as large as before
            if len(cut) == 1 and counts[cut[0]] > counts.get(size, 0) and not inner:
                setattr(module, attribute, cut[0])


def _sizes(model: nn.Module, lines: Lines, held: Collection[str]) -> dict[str, dict[int, collections.Counter[int]]]:
    """Of these modules, and each size that a dimension inside had before the cuts: how many have which size now."""
    within: dict[str, dict[int, collections.Counter[int]]] = {path: {} for path in held}
    for place in places(model):
        parts = place.name.split(".")
        around = [path for depth in range(len(parts)) if (path := ".".join(parts[:depth])) in within]
        for dim, after in enumerate(place.tensor.shape if around else ()):
            line = lines.get((place.name, dim))
            for path in around:
                before = after if line is None else len(line)
                within[path].setdefault(before, collections.Counter())[after] += 1
    return within


DECLARED: dict[type[nn.Module], Callable[[Any, str], None]] = layers.DECLARED
DECLARED[nn.MultiheadAttention] = heads.multihead  # it becomes a class that only surgery has
