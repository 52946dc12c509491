"""`shrink`: cut the units that go out of every tensor they own entries of. Knows layers, and no architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import units
from ..core import Group, Keep, Place, PruneError, lookup_all, places, shape
from ..masking import bake
from . import experts, heads, widths
from .removal import gone, remove

Lines = dict[tuple[str, int], Tensor]  # (tensor name, dimension) -> bool (size,), True = stays


def shrink(model: nn.Module, groups: Sequence[Group], keep: Keep) -> nn.Module:
    """A new model without the units that go, slices or whole modules; the old one is left as it is.

    `groups` and `keep` as from `granularity.filters` and `allocate` (whose round_to= keeps channel counts that
    hardware likes). Every tensor that loses entries is cut once a dimension, running statistics too, and its
    layer's declared sizes (out_channels, in_features, groups, ...) follow. Masks on the model are baked into
    the new one. It has new parameters: make a new optimizer.

    Raises PruneError for groups of another model, single weights (which leave no hole to close), a group of
    which nothing is kept, and a layer type whose sizes it does not know.
    """
    lines, bare = cuts(model, groups, keep), _norm_cuts(model, groups, keep)
    pieces = _pieces(model, lines)
    small = bake(_copied(model, pieces))
    touched = {}
    shared = lookup_all(small, {name for name, _ in lines})
    made = {id(piece) for piece in pieces.values()}
    for (name, dim), line in lines.items():
        if id(shared[name][0].tensor) not in made:
            _cut(shared[name], dim, line)
        touched.update({place.module: place.name for place in shared[name]})
    for module, name in touched.items():
        _declare(module, name)
    for path, line in bare.items():
        _declare_bare(small.get_submodule(path), int(line.sum()), path)
    heads.settle(small, touched)
    remove(small, gone(groups, keep))
    widths.settle(small)
    experts.settle(small, touched)
    return small


def cuts(model: nn.Module, groups: Sequence[Group], keep: Keep) -> Lines:
    """Which indices stay along each dimension of each tensor: all groups and members combined."""
    tensors = units.named(model)
    first = {id(p.tensor): p.name for p in reversed(places(model))}  # a tied tensor is cut once, under its first name
    lines: Lines = {}
    for group in groups:
        kept = units.kept_of(group, keep)
        if not kept.any():
            raise PruneError(
                f"keep has nothing left of {group.name} ({group.units} units): without it the network is cut in two. "
                "Keep at least one unit, as allocate does by default (floor=1)"
            )
        units.check_parts(group, tensors)
        for member in group.members:
            tensor = units.find(model, tensors, member.tensor)
            if member.dim is None:
                raise PruneError(
                    f"{group.name} holds single weights or blocks of {member.tensor} {shape(tensor)}: zeroing them "
                    "leaves no hole to close. shrink removes structures, such as granularity.filters gives"
                )
            units.check(member, tensor, group.units)
            where = first[id(tensor)], member.dim % tensor.dim()
            line = units.line(member, kept, tensor.shape[where[1]])
            lines[where] = lines[where] & line if where in lines else line
    return lines


def _norm_cuts(model: nn.Module, groups: Sequence[Group], keep: Keep) -> dict[str, Tensor]:
    """Which channels stay of each norm without parameters, by its path: bools, all groups combined."""
    modules = dict(model.named_modules())
    lines: dict[str, Tensor] = {}
    for group in groups:
        kept = units.kept_of(group, keep)
        for member in group.norms:
            size = _channels(modules.get(member.tensor), member.tensor, group.name)
            units.check(member, torch.empty(size, device="meta"), group.units)
            line = units.line(member, kept, size)
            lines[member.tensor] = lines[member.tensor] & line if member.tensor in lines else line
    return lines


def _channels(norm: Any, path: str, group: str) -> int:
    if isinstance(norm, nn.GroupNorm):
        return norm.num_channels
    if isinstance(norm, nn.modules.batchnorm._NormBase):
        return norm.num_features
    if isinstance(norm, nn.LayerNorm):
        return norm.normalized_shape[-1]
    given = "nothing" if norm is None else f"a {type(norm).__name__}"
    raise PruneError(
        f"{path}, a norm of {group}, is {given} in this model: the groups are of another model, or name something "
        "else than a GroupNorm, LayerNorm, BatchNorm or InstanceNorm"
    )


def _pieces(model: nn.Module, lines: Lines) -> dict[int, Tensor]:
    """What is left of each tensor, by the id of the whole; those under a mask are cut when it is baked."""
    shared = lookup_all(model, {name for name, _ in lines})
    pieces: dict[int, Tensor] = {}
    for (name, dim), line in lines.items():
        if not any(parametrize.is_parametrized(p.module, p.attribute) for p in shared[name]):
            whole = shared[name][0].tensor
            pieces[id(whole)] = _cut_off(pieces.get(id(whole), whole), dim, line)
    return pieces


def _copied(model: nn.Module, pieces: dict[int, Tensor]) -> nn.Module:
    """A copy that never holds the whole of what is cut, wherever the model refers to it."""
    try:
        return copy.deepcopy(model, dict(pieces))
    except RuntimeError as error:
        raise PruneError(
            f"{type(model).__name__} cannot be copied: {error} A tensor kept as an attribute, or the hooks of "
            "torch.nn.utils.prune or weight_norm, are the usual cause: remove them first"
        ) from error


def _cut(shared: list[Place], dim: int, line: Tensor) -> None:
    """Take away what goes along one dimension, wherever the tensor is shared."""
    name, old = shared[0].name, shared[0].tensor
    foreign = [p for p in shared if parametrize.is_parametrized(p.module, p.attribute)]
    if foreign or any(hasattr(p.module, f"{p.attribute}_orig") for p in shared):
        raise PruneError(f"{name} {shape(old)} is parametrized by something that is not a mask: remove that first")
    new = _cut_off(old, dim, line)
    for place in shared:
        setattr(place.module, place.attribute, new)


def _cut_off(old: Tensor, dim: int, line: Tensor) -> Tensor:
    new: Tensor = old.detach().index_select(dim, line.nonzero().squeeze(1).to(old.device))
    if old.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last):
        new = new.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _declare(module: nn.Module, name: str) -> None:
    """Set a layer's declared sizes to those of its tensors, if it declares any."""
    for kind, declare in DECLARED.items():
        if isinstance(module, kind):
            declare(module, name)
            return
    sizes = [a for a in ("num_heads", "hidden_size", "embed_dim", "in_features", "num_features") if hasattr(module, a)]
    if sizes and not hasattr(module, "num_experts"):  # that is what `experts.settle` sets
        raise PruneError(
            f"shrink cut {name}, but does not know how {type(module).__name__} declares its sizes ({sizes[0]}): teach "
            f"it with surgery.shrinking.DECLARED[{type(module).__name__}] = lambda module, name: ..."
        )


def _linear(m: Any, name: str) -> None:
    m.out_features, m.in_features = m.weight.shape


def _convolution(m: Any, name: str) -> None:
    before = m.in_channels if m.transposed else m.out_channels  # dimension 0 of the weight, as it was
    m.groups = _scaled(m.groups, before, len(m.weight), name)
    ins, outs = (0, 1) if m.transposed else (1, 0)
    sizes = [m.weight.shape[0], m.weight.shape[1] * m.groups]  # dimension 1 counts the channels of one group
    m.in_channels, m.out_channels = sizes[ins], sizes[outs]


def _declare_bare(norm: Any, left: int, name: str) -> None:
    """Set the declared sizes of a norm without parameters to the channels left."""
    if isinstance(norm, nn.GroupNorm):
        norm.num_groups = _scaled(norm.num_groups, norm.num_channels, left, name)
        norm.num_channels = left
    elif isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (left,)
    else:
        norm.num_features = left


def _group_norm(m: Any, name: str) -> None:
    _declare_bare(m, len(m.weight), name)


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


def _norm(m: Any, name: str) -> None:
    vector = m.weight if m.weight is not None else m.running_mean
    m.num_features = len(vector)


def _layer_norm(m: Any, name: str) -> None:
    m.normalized_shape = tuple(m.weight.shape)


def _prelu(m: Any, name: str) -> None:
    m.num_parameters = len(m.weight)


def _embedding(m: Any, name: str) -> None:
    m.num_embeddings, m.embedding_dim = m.weight.shape


DECLARED: dict[type[nn.Module], Callable[[Any, str], None]] = {
    nn.Linear: _linear,
    nn.modules.conv._ConvNd: _convolution,
    nn.modules.batchnorm._NormBase: _norm,  # batch and instance norms
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.PReLU: _prelu,
    nn.Embedding: _embedding,
    nn.MultiheadAttention: heads.multihead,
}
