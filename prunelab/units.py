"""Which entries of a tensor belong to which unit: the one place that reads a `Member`'s layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .core import Member, PruneError, shape


def check(member: Member, tensor: Tensor, units: int) -> None:
    """PruneError if a member with so many units does not lie inside the tensor."""
    if member.dim is None:
        r, c = member.tile
        rows, columns = matrix(tensor)
        fits = rows % r == 0 and columns % c == 0 and units * r * c == tensor.numel()
        wanted = f"{units} units of {r} x {c} entries"
    else:
        end = member.offset + units * member.block
        fits = -tensor.dim() <= member.dim < tensor.dim() and 0 <= member.offset < end <= tensor.shape[member.dim]
        wanted = f"{units} units, entries {member.offset} to {end} along dimension {member.dim}"
    if not fits:
        raise PruneError(f"{member.tensor} {shape(tensor)} does not hold {wanted}: these groups are of another model")


def matrix(tensor: Tensor) -> tuple[int, int]:
    """Rows and columns of a tensor seen as a matrix: its first dimension, and all the others flattened."""
    rows = tensor.shape[0] if tensor.dim() else 1
    return rows, tensor.numel() // rows if rows else 0


def entries(member: Member, tensor: Tensor, units: int) -> Tensor:
    """(units, entries each): what every unit owns of a tensor."""
    check(member, tensor, units)
    if member.dim is not None:
        rows = tensor.movedim(member.dim, 0).narrow(0, member.offset, units * member.block)
        return rows.reshape(units, -1)
    if member.tile == (1, 1):
        return tensor.reshape(-1, 1)
    (r, c), (height, width) = member.tile, matrix(tensor)
    tiles = tensor.reshape(height // r, r, width // c, c).transpose(1, 2)  # (tile rows, tile columns, r, c)
    return tiles.reshape(units, r * c)


def mask(member: Member, kept: Tensor, size: Sequence[int]) -> Tensor:
    """The units kept, (units,) bools, laid out in a tensor of the given shape; what no unit owns is kept."""
    if member.dim is not None:
        view = [1] * len(size)
        view[member.dim] = -1
        return line(member, kept, size[member.dim]).view(view).expand(*size)
    if member.tile == (1, 1):
        return kept.view(*size)
    (r, c), height = member.tile, size[0]
    tiles = kept.view(height // r, 1, -1, 1)  # (tile rows, 1, tile columns, 1)
    return tiles.expand(-1, r, -1, c).reshape(*size)


def line(member: Member, kept: Tensor, size: int) -> Tensor:
    """(size,) bools: which indices of a structure's dimension stay."""
    whole = torch.ones(size, dtype=torch.bool, device=kept.device)
    whole.narrow(0, member.offset, len(kept) * member.block).copy_(kept.repeat_interleave(member.block))
    return whole
