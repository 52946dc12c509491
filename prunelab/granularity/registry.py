"""Granularities by name."""

from __future__ import annotations

from ..core import Granularity, PruneError
from .channels import coupled, filters, neurons, width
from .depth import attentions, layers, mlps
from .experts import experts
from .heads import heads
from .single import weights

GRANULARITIES: dict[str, Granularity] = {
    "weights": weights,
    "filters": filters,
    "neurons": neurons,
    "coupled": coupled,
    "width": width,
    "heads": heads,
    "mlps": mlps,
    "attentions": attentions,
    "layers": layers,
    "experts": experts,
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
