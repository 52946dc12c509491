"""Several granularities as one: all the structures they find, each entry of a tensor in at most one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import units
from ..core import Groups, Member, NothingFound
from .registry import by_name, register

Lines = dict[int | None, set[int]]  # of one tensor: the indices taken, by dimension; None: single entries of it


@register("together")
@dataclass(frozen=True)
class Together:
    """A granularity made of registered ones, the first named taking precedence where two claim the same entries.

    Those that find nothing in a model are passed over; single weights are left where nothing else claims a part of
    their tensor. PruneError if none finds anything, and if one can't look: for want of an example, say.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(3, 2))
    >>> found = Together(("filters", "weights")).found(model, torch.zeros(1, 1, 1, 1))
    >>> {name: [group.name for group in groups] for name, groups in found.items()}
    {'filters': ['0', '1']}
    >>> found = Together(("weights", "filters")).found(model, torch.zeros(1, 1, 1, 1))
    >>> {name: [group.name for group in groups] for name, groups in found.items()}
    {'weights': ['0.weight', '1.weight', '3.weight']}
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.names:
            by_name(name)

    def __call__(self, model: nn.Module, example: Any = None) -> Groups:
        """The groups of all of them, without those that overlap an earlier one."""
        found = self.found(model, example).values()
        stays = {path: why for groups in found for path, why in groups.stays.items()}
        return Groups((g for groups in found for g in groups), stays)

    def found(self, model: nn.Module, example: Any = None) -> dict[str, Groups]:
        """The groups by the granularity that found them."""
        taken: dict[str, Lines] = {}
        found, refusals = {}, []
        for name in self.names:
            try:
                groups = by_name(name)(model, example)
            except NothingFound as error:
                refusals.append(f"{name}: {error}")
                continue
            fresh = [group for group in groups if not any(_claimed(m, group.units, taken) for m in group.members)]
            for group in fresh:
                for member in group.members:
                    lines = taken.setdefault(member.tensor, {})
                    lines.setdefault(member.dim, set()).update(_lines(member, group.units))
            if fresh:
                found[name] = Groups(fresh, getattr(groups, "stays", {}))
        if not found:
            raise NothingFound(f"{type(model).__name__} has no structure that could be removed. " + "; ".join(refusals))
        return found


def _claimed(member: Member, count: int, taken: Mapping[str, Lines]) -> bool:
    """Whether an earlier granularity has some of the member's entries.

    Slices along two dimensions of a tensor cross, and each may leave: so do a layer's outputs and its inputs. Single
    entries are in every slice.
    """
    lines = taken.get(member.tensor, {})
    if member.dim is None:
        return bool(lines)
    return None in lines or not lines.get(member.dim, set()).isdisjoint(_lines(member, count))


def _lines(member: Member, count: int) -> list[int]:
    """Which slices along the member's dimension the units own; none of single entries, which own all of the tensor."""
    return [] if member.dim is None else units.index(member, count).flatten().tolist()
