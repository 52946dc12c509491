"""Several granularities as one: all the structures they find, each entry of a tensor in at most one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..core import Group, Member, PruneError
from .registry import by_name


@dataclass(frozen=True)
class Together:
    """A granularity made of registered ones, the first named taking precedence where two claim the same entries.

    Those that find nothing in a model are passed over; PruneError if none of them finds anything.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.names:
            by_name(name)

    def __call__(self, model: nn.Module, example: Any = None) -> list[Group]:
        """The groups of all of them, without those that overlap an earlier one."""
        return [g for groups in self.found(model, example).values() for g in groups]

    def found(self, model: nn.Module, example: Any = None) -> dict[str, list[Group]]:
        """The groups by the granularity that found them."""
        taken: list[Member] = []
        found, refusals = {}, []
        for name in self.names:
            try:
                groups = by_name(name)(model, example)
            except PruneError as error:
                refusals.append(f"{name}: {error}")
                continue
            fresh = [g for g in groups if not any(_overlap(m, t, g.units) for m in g.members for t in taken)]
            taken += [m for g in fresh for m in _spans(g)]
            if fresh:
                found[name] = fresh
        if not found:
            raise PruneError(f"{type(model).__name__} has no structure that could be removed. " + "; ".join(refusals))
        return found


def _spans(group: Group) -> list[Member]:
    """The members with all their entries as one block, so that two can be compared."""
    return [Member(m.tensor, m.dim, m.block * group.units, m.offset) for m in group.members]


def _overlap(member: Member, span: Member, units: int) -> bool:
    """Whether a member's entries along a dimension lie within those already taken there."""
    if member.tensor != span.tensor or member.dim != span.dim:
        return False
    first, last = member.offset, member.offset + member.block * units
    return first < span.offset + span.block and span.offset < last
