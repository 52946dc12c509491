"""Several granularities as one: all the structures they find, each entry of a tensor in at most one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import units
from ..core import Group, Groups, NothingFound
from .registry import by_name, register


@register("together")
@dataclass(frozen=True)
class Together:
    """A granularity made of registered ones, the first named taking precedence where two claim the same entries.

    Those that find nothing in a model are passed over. PruneError if none of them finds anything, and if one can't
    look: for want of an example, say.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> Together(("neurons", "weights")).found(model, torch.zeros(1, 2)).keys()
    dict_keys(['neurons', 'weights'])
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
        taken: dict[tuple[str, int | None], set[int]] = {}
        found, refusals = {}, []
        for name in self.names:
            try:
                groups = by_name(name)(model, example)
            except NothingFound as error:
                refusals.append(f"{name}: {error}")
                continue
            fresh = []
            for group in groups:
                own = _entries(group)
                if all(where.isdisjoint(taken.get(at, ())) for at, where in own.items()):
                    fresh.append(group)
            for group in fresh:
                for at, where in _entries(group).items():
                    taken.setdefault(at, set()).update(where)
            if fresh:
                found[name] = Groups(fresh, getattr(groups, "stays", {}))
        if not found:
            raise NothingFound(f"{type(model).__name__} has no structure that could be removed. " + "; ".join(refusals))
        return found


def _entries(group: Group) -> dict[tuple[str, int | None], set[int]]:
    """Which entries along which dimensions of which tensors the group's units own."""
    found: dict[tuple[str, int | None], set[int]] = {}
    for member in group.members:
        found.setdefault((member.tensor, member.dim), set()).update(units.index(member, group.units).flatten().tolist())
    return found
