"""Who goes, compared with whom: scores and groups -> exactly as many units as were asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from .core import Group, Keep, Masks, Member, PruneError, Scores, lookup, shape
from .selection import lowest

SCOPES = ("global", "layer", "row")


def allocate(
    scores: Scores,
    groups: Sequence[Group],
    sparsity: float,
    scope: str = "global",
    *,
    within: Keep | None = None,
) -> Keep:
    """Remove exactly round(sparsity * n) units, the lowest-scored of each comparison group of n; ties by index.

    scope: what a unit is compared with. "global": all units of the model; "layer": those of its own group;
    "row": single weights, those that feed the same output. A structure's score is the sum of its weights'.
    within: an earlier result; what it removed stays removed and counts, so that masks stay nested.

    Raises PruneError for a sparsity outside [0, 1), an unknown scope, NaN or missing scores.
    """
    share = check_sparsity(sparsity)
    check_scope(scope)
    values = {g.name: _unit_scores(scores, g) for g in groups}
    if within is not None:
        values = {g.name: _lowest_where_gone(values[g.name], within, g) for g in groups}
    rows = {g.name: _row_length(scores, g) for g in groups} if scope == "row" else {}
    removed = _select(values, share, scope, rows)
    if within is not None:
        _check_nested(removed, within, share)
    return {name: gone.logical_not_() for name, gone in removed.items()}  # in place: no second copy of a mask


def check_scope(scope: Any) -> None:
    """PruneError for anything but a known scope."""
    if scope not in SCOPES:
        raise PruneError(f"no scope is called {scope!r}; there is {', '.join(SCOPES)}")


def check_sparsity(sparsity: Any) -> float:
    """A fraction in [0, 1) as a float, or PruneError that asks what was meant."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, Real):
        raise PruneError(f"sparsity is {sparsity!r}, a {type(sparsity).__name__}: give a fraction such as 0.5")
    sparsity = float(sparsity)
    if math.isnan(sparsity):
        raise PruneError("sparsity is NaN: give a fraction such as 0.5")
    if 1 < sparsity < 100:
        raise PruneError(f"sparsity is {sparsity:g}, but it is a fraction: did you mean {sparsity / 100:g}?")
    if sparsity == 1:
        raise PruneError("sparsity is 1: that would remove everything. Give a fraction below 1, such as 0.99")
    if not 0 <= sparsity < 1:
        raise PruneError(f"sparsity is {sparsity:g}: give a fraction, at least 0 and below 1, such as 0.5")
    return sparsity


def _select(values: dict[str, Tensor], share: float, scope: str, rows: dict[str, int]) -> dict[str, Tensor]:
    if scope == "global":
        total = sum(v.numel() for v in values.values())
        return dict(zip(values, lowest(list(values.values()), round(share * total)), strict=True))
    if scope == "layer":
        return {name: lowest([v], round(share * v.numel()))[0] for name, v in values.items()}
    return {name: _lowest_in_rows(v, rows[name], share) for name, v in values.items()}


def _lowest_in_rows(values: Tensor, length: int, share: float) -> Tensor:
    """Row-wise selection: every row of `length` entries loses the same number."""
    if not length:
        return torch.zeros_like(values, dtype=torch.bool)
    table = values.view(-1, length)
    order = table.sort(dim=1, stable=True).indices
    gone = torch.zeros_like(table, dtype=torch.bool)
    return gone.scatter_(1, order[:, : round(share * length)], True).view(-1)


def _row_length(scores: Scores, group: Group) -> int:
    member = group.members[0]
    if member.dim is not None:
        raise PruneError(f'scope "row" compares single weights, but {group.name} holds structures: use "layer"')
    tensor = scores[member.tensor]
    return tensor.numel() // max(tensor.shape[0], 1)


def _unit_scores(scores: Scores, group: Group) -> Tensor:
    """(units,): the sum of the scores of each unit's entries over all its members that have scores."""
    scored = [(m, scores[m.tensor]) for m in group.members if m.tensor in scores]
    if not scored:
        have = ", ".join(list(scores)[:6])
        raise PruneError(f"no scores for {group.members[0].tensor}, which {group.name} needs; there are {have}, ...")
    parts = [_member_scores(m, s, group) for m, s in scored]
    total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
    if torch.isnan(total.sum()) and torch.isnan(total).any():  # the sum alone is NaN for inf - inf too
        bad = int(torch.isnan(total).sum())
        raise PruneError(f"{bad} of the {total.numel()} scores of {group.name} are NaN: they cannot be compared")
    return total


def _member_scores(member: Member, score: Tensor, group: Group) -> Tensor:
    if member.dim is None:
        if score.numel() != group.units:
            raise PruneError(f"the scores of {member.tensor} have shape {shape(score)}: expected {group.units} entries")
        return score.reshape(-1)
    span = group.units * member.block
    rows = score.movedim(member.dim, 0).narrow(0, member.offset, span)
    return rows.reshape(group.units, -1).sum(1)


def _lowest_where_gone(values: Tensor, within: Keep, group: Group) -> Tensor:
    if group.name not in within or within[group.name].shape != values.shape:
        raise PruneError(f"`within` does not fit {group.name} with {group.units} units: it is of other groups")
    if values.is_floating_point():
        values = values.clamp(min=torch.finfo(values.dtype).min)  # -inf is for what is gone alone
    return torch.where(within[group.name].to(values.device), values, -torch.inf)


def _check_nested(removed: dict[str, Tensor], within: Keep, share: float) -> None:
    for name, gone in removed.items():
        back = int((~gone & ~within[name].to(gone.device)).sum())
        if back:
            had = float((~within[name]).float().mean())
            raise PruneError(
                f"sparsity {share:g} would bring {back} units of {name} back: `within` has removed {had:.4g} of it "
                "already. Ask for more than was removed from any one of the groups that the scope compares within, or "
                "leave `within` out"
            )


def expand(model: nn.Module, groups: Sequence[Group], keep: Keep) -> Masks:
    """Masks for every tensor that loses a unit's entries: (units,) bools laid out in the tensors' own shapes.

    A tensor in several groups keeps an entry only if all of them do. Raises PruneError if keep and groups differ.
    """
    masks: Masks = {}
    for group in groups:
        kept = _kept(keep, group)
        for member in group.members:
            tensor = lookup(model, member.tensor)[0].tensor
            mask = _member_mask(member, kept, tensor)
            masks[member.tensor] = masks[member.tensor] & mask if member.tensor in masks else mask
    return masks


def _kept(keep: Mapping[str, Tensor], group: Group) -> Tensor:
    kept = keep.get(group.name)
    if kept is None or kept.shape != (group.units,):
        given = "nothing" if kept is None else f"shape {shape(kept)}"
        raise PruneError(f"keep has {given} for {group.name}: expected {group.units} bools")
    return kept


def _member_mask(member: Member, kept: Tensor, tensor: Tensor) -> Tensor:
    if member.dim is None:
        if kept.numel() != tensor.numel():
            raise PruneError(
                f"{member.tensor} has shape {shape(tensor)}, but its group {kept.numel()} units: the groups are of "
                "another model"
            )
        return kept.view(tensor.shape)
    line = torch.ones(tensor.shape[member.dim], dtype=torch.bool, device=kept.device)
    line.narrow(0, member.offset, kept.numel() * member.block).copy_(kept.repeat_interleave(member.block))
    view = [1] * tensor.dim()
    view[member.dim] = -1
    return line.view(view).expand(tensor.shape)


def contract(groups: Sequence[Group], masks: Mapping[str, Tensor]) -> Keep:
    """The inverse of `expand`: a unit is kept if any of its entries is. Tensors without a mask keep everything."""
    return {g.name: _kept_units(g, masks) for g in groups}


def _kept_units(group: Group, masks: Mapping[str, Tensor]) -> Tensor:
    parts = []
    for member in group.members:
        if member.tensor not in masks:
            return torch.ones(group.units, dtype=torch.bool)
        mask = masks[member.tensor]
        if member.dim is not None:
            mask = mask.movedim(member.dim, 0).narrow(0, member.offset, group.units * member.block)
        parts.append(mask.reshape(group.units, -1).any(1))
    return torch.stack(parts).any(0)


@dataclass(frozen=True)
class Fared:
    """How one group fared."""

    name: str
    units: int
    kept: int

    @property
    def sparsity(self) -> float:
        """The share removed."""
        return 1 - self.kept / self.units if self.units else 0.0


@dataclass(frozen=True)
class Report:
    """How each group fared, and all of them together. `print` it, or let a notebook show it."""

    layers: tuple[Fared, ...]

    @property
    def total(self) -> Fared:
        """All groups as one."""
        return Fared("total", sum(r.units for r in self.layers), sum(r.kept for r in self.layers))

    @property
    def sparsity(self) -> float:
        """The share of all units that was removed: what was achieved, which rounding makes differ from the asked."""
        return self.total.sparsity

    @property
    def emptied(self) -> tuple[str, ...]:
        """The groups that lost every unit: nothing passes through such a layer any more."""
        return tuple(r.name for r in self.layers if r.kept == 0 and r.units)

    def __str__(self) -> str:
        wide = max(len(r.name) for r in (*self.layers, self.total))
        lines = [
            f"{r.name:<{wide}}  {r.kept:>10,} of {r.units:>10,} kept  {r.sparsity:7.2%} removed"
            for r in (*self.layers, self.total)
        ]
        return "\n".join(lines)


def report(groups: Sequence[Group], keep: Keep) -> Report:
    """Count what a result of `allocate` keeps, group by group."""
    return Report(tuple(Fared(g.name, g.units, int(_kept(keep, g).sum())) for g in groups))
