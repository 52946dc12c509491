"""Which entries of a tensor belong to which unit: the one place that reads the layout of a `Member` or a `Part`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from .core import Group, Keep, Masks, Member, Part, PruneError, find, shape


def check(member: Member, tensor: Tensor, units: int) -> None:
    """PruneError if a member with so many units does not lie inside the tensor."""
    if member.dim is None:
        r, c = member.tile
        rows, columns = matrix(tensor)
        fits = rows % r == 0 and columns % c == 0 and units * r * c == tensor.numel()
        wanted = f"{units} units of {r} x {c} entries"
    else:
        size = tensor.shape[member.dim] if -tensor.dim() <= member.dim < tensor.dim() else 0
        own = member.index
        if own is None:
            fits = units * member.block == size > 0
        else:
            fits = len(own) == units and own.numel() > 0 and int(own.min()) >= 0 and int(own.max()) < size
        wanted = f"{units} units of {member.block} entries along dimension {member.dim}"
    if not fits:
        raise PruneError(f"{member.tensor} {shape(tensor)} does not hold {wanted}: the groups are of another model")


def index(member: Member, units: int) -> Tensor:
    """(units, block): which entries along its dimension each unit owns."""
    return torch.arange(units * member.block).view(units, -1) if member.index is None else member.index


def matrix(tensor: Tensor) -> tuple[int, int]:
    """Rows and columns of a tensor seen as a matrix: its first dimension, and all the others flattened."""
    rows = tensor.shape[0] if tensor.dim() else 1
    return rows, tensor.numel() // rows if rows else 0


def entries(member: Member, tensor: Tensor, units: int) -> Tensor:
    """(units, entries each): what every unit owns of a tensor."""
    check(member, tensor, units)
    if member.dim is not None:
        rows = tensor.movedim(member.dim, 0)
        if member.index is None:
            return rows.narrow(0, 0, units * member.block).reshape(units, -1)
        return rows[member.index.flatten().to(tensor.device)].reshape(units, -1)
    if member.tile == (1, 1):
        return tensor.reshape(-1, 1)
    (r, c), (height, width) = member.tile, matrix(tensor)
    tiles = tensor.reshape(height // r, r, width // c, c).transpose(1, 2)  # (tile rows, tile columns, r, c)
    return tiles.reshape(units, r * c)


def size(member: Member, tensor: Tensor) -> int:
    """How many entries of a tensor each unit owns."""
    if member.dim is None:
        return member.tile[0] * member.tile[1]
    return tensor.numel() // tensor.shape[member.dim] * member.block


def inside(paths: Iterable[str], names: Iterable[str]) -> dict[str, list[str]]:
    """For each module's path, those of the tensors' names that lie in it: one pass, for many experts have many names.

    >>> inside(["blocks.1", "head"], ["blocks.0.weight", "blocks.1.weight", "blocks.10.weight", "head.bias"])
    {'blocks.1': ['blocks.1.weight'], 'head': ['head.bias']}
    """
    found: dict[str, list[str]] = {path: [] for path in paths}
    for name in names if found else ():  # most groups are of no whole module
        path = name.rpartition(".")[0]
        while path:
            if path in found:
                found[path].append(name)
            path = path.rpartition(".")[0]
    return found


def inside_parts(parts: Sequence[Part], names: Iterable[str]) -> list[tuple[Part, list[str]]]:
    """Each part with the names of the tensors that lie in its module."""
    found = inside((part.path for part in parts), names)
    return [(part, found[part.path]) for part in parts]


def tensors_of(group: Group, names: Iterable[str]) -> set[str]:
    """Those of the tensors' names of which the group's units own something."""
    known = set(names)
    own = {m.tensor for m in group.members} & known
    return own.union(*inside((part.path for part in group.parts), known).values())


def check_parts(group: Group, names: Iterable[str]) -> None:
    """PruneError if a whole module of the group is not in the model."""
    for part, own in inside_parts(group.parts, names):
        if not 0 <= part.unit < group.units or not own:
            raise PruneError(
                f"the model has no tensors in {part.path}, unit {part.unit} of {group.name}: the groups "
                "are of another model"
            )


def totals(group: Group, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(units,) sums of what each unit's modules hold in `tensors`, and (units,) how many entries that are."""
    owned = [(part.unit, tensors[name]) for part, own in inside_parts(group.parts, tensors) for name in own]
    sums, counts = torch.zeros(group.units, dtype=torch.float64), torch.zeros(group.units, dtype=torch.float64)
    for unit, tensor in owned:
        sums[unit] += float(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)))
        counts[unit] += tensor.numel()
    return sums, counts


def mask(member: Member, kept: Tensor, into: Sequence[int]) -> Tensor:
    """The units kept, (units,) bools, laid out in a tensor of the given shape; what no unit owns is kept."""
    if member.dim is not None:
        view = [1] * len(into)
        view[member.dim] = -1
        return line(member, kept, into[member.dim]).view(view).expand(*into)
    if member.tile == (1, 1):
        return kept.view(*into)
    (r, c), height = member.tile, into[0]
    tiles = kept.view(height // r, 1, -1, 1)  # (tile rows, 1, tile columns, 1)
    return tiles.expand(-1, r, -1, c).reshape(*into)


def line(member: Member, kept: Tensor, size: int) -> Tensor:
    """(size,) bools: which indices of a structure's dimension stay."""
    if member.index is None:
        return kept if member.block == 1 else kept.repeat_interleave(member.block)
    whole = torch.ones(size, dtype=torch.bool, device=kept.device)
    whole[member.index.to(kept.device)[~kept].flatten()] = False
    return whole


def masks(tensors: Mapping[str, Tensor], groups: Sequence[Group], keep: Keep) -> Masks:
    """`masking.expand` of a model with these tensors, by their names."""
    first = {id(t): name for name, t in reversed([*tensors.items()])}  # a tied tensor has one mask: its first
    found: Masks = {}
    for group in groups:
        kept = kept_of(group, keep)
        for member in group.members:
            if not member.learned:
                continue
            tensor = find(tensors, member.tensor)
            check(member, tensor, group.units)
            laid, name = mask(member, kept.to(tensor.device), tensor.shape), first[id(tensor)]
            found[name] = found[name] & laid if name in found else laid
        check_parts(group, tensors)
        # A mask without a single True for each parameter of the modules that go; the others need none.
        for part, own in inside_parts(group.parts, tensors):
            gone = () if kept[part.unit] else own
            found |= {
                n: torch.zeros_like(tensors[n], dtype=torch.bool) for n in gone if isinstance(tensors[n], nn.Parameter)
            }
    return found


def contract(groups: Sequence[Group], masks: Mapping[str, Tensor]) -> Keep:
    """The inverse of `expand`: a unit is kept if any of its entries is. Tensors without a mask keep everything."""
    return {g.name: _kept(g, masks) for g in groups}


def _kept(group: Group, masks: Mapping[str, Tensor]) -> Tensor:
    if group.parts:
        kept, masked = totals(group, masks)
        return (kept > 0) | (masked == 0)
    members = [m for m in group.members if m.learned]
    if any(m.tensor not in masks for m in members):
        return torch.ones(group.units, dtype=torch.bool)
    return torch.stack([entries(m, masks[m.tensor], group.units).any(1) for m in members]).any(0)


def kept_of(group: Group, keep: Keep) -> Tensor:
    """The group's part of a keep, checked: (units,) bools."""
    kept = keep.get(group.name)
    if kept is None or kept.shape != (group.units,) or kept.dtype != torch.bool:
        given = "nothing" if kept is None else f"{kept.dtype} of shape {shape(kept)}"
        raise PruneError(f"keep has {given} for {group.name}: expected {group.units} bools")
    return kept
