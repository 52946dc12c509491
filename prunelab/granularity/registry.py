"""Granularities by name."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from ..core import Group, PruneError
from .channels import coupled, filters, neurons
from .heads import heads
from .single import weights


class Granularity(Protocol):
    """Finds the structures of a model; `example` is one input (or batch), for those that trace the model."""

    def __call__(self, model: nn.Module, example: Any = None, /) -> list[Group]: ...


GRANULARITIES: dict[str, Granularity] = {
    "weights": weights,
    "filters": filters,
    "neurons": neurons,
    "coupled": coupled,
    "heads": heads,
}


def by_name(granularity: str | Granularity) -> Granularity:
    """The granularity registered under a name; a function is given back as it is."""
    if callable(granularity):
        return granularity
    if granularity not in GRANULARITIES:
        raise PruneError(
            f"no granularity is called {granularity!r}; there is {', '.join(sorted(GRANULARITIES))}, and blocks(r, c)"
        )
    return GRANULARITIES[granularity]
