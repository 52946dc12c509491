"""What is removed as one: (model, example) -> groups of coupled structures."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from torch import nn

from .core import Group, Member, PruneError, prunable


class Granularity(Protocol):
    """Finds the structures of a model; `example` is one input (or batch), for those that trace the model."""

    def __call__(self, model: nn.Module, example: Any = None, /) -> list[Group]: ...


def weights(model: nn.Module, example: Any = None, *, exclude: Collection[str] = ()) -> list[Group]:
    """Every weight on its own: one group a prunable tensor, one unit an entry. `exclude` leaves tensors alone."""
    names = list(prunable(model))
    unknown = [n for n in exclude if n not in names]
    if unknown:
        raise PruneError(f"cannot exclude {unknown[0]!r}: not among the prunable tensors {', '.join(names)}")
    sizes = {n: p.numel() for n, p in prunable(model).items() if n not in exclude}
    if not sizes:
        raise PruneError(f"nothing is left to prune: all of {', '.join(names)} are excluded")
    return [Group(n, units, (Member(n),)) for n, units in sizes.items()]


GRANULARITIES: dict[str, Granularity] = {"weights": weights}


def by_name(granularity: str | Granularity) -> Granularity:
    """The granularity registered under a name; a function is given back as it is."""
    if callable(granularity):
        return granularity
    if granularity not in GRANULARITIES:
        raise PruneError(f"no granularity is called {granularity!r}; there is {', '.join(sorted(GRANULARITIES))}")
    return GRANULARITIES[granularity]
