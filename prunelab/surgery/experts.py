"""What declares a number of experts, set to what is left of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from ..core import PruneError
from ..decoders import config_of
from ..mixtures import COUNTS, Mixture, declared, mixtures


def settle(model: nn.Module, touched: Collection[nn.Module]) -> None:
    """Declare the experts left in each mixture whose router was cut; in the configuration too, if all have as many.

    With uneven numbers the configuration keeps what it said: `from_pretrained` then refuses the weights, and
    `load_plan` rebuilds the model. PruneError if fewer are left than the router needs.
    """
    found, _ = mixtures(model)
    cut = [m for m in found if m.holders[2] in touched]
    for mixture in cut:
        if mixture.count < mixture.floor:
            raise PruneError(
                f"{mixture.path} would keep {mixture.count} experts, and {mixture.router} needs {mixture.floor}, of "
                f"which a token goes to {mixture.top_k}: keep that many, as allocate does by default"
            )
    before = {declared(m.holders, COUNTS) for m in cut}
    for mixture in cut:
        for holder in mixture.holders:
            _set(holder, before, mixture.count)
    if cut and len({m.count for m in found}) == 1:
        for holder in _others(model, cut):
            _set(holder, before, cut[0].count)


def _others(model: nn.Module, cut: list[Mixture]) -> Iterator[Any]:
    """What else counts experts: the configs, and models that balance the load of their experts in training."""
    yield from (c for m in cut for h in m.holders if (c := getattr(h, "config", None)) is not None)
    if config_of(model) is not None:
        yield config_of(model)
    yield from model.modules()


def _set(holder: Any, before: Collection[int | None], count: int) -> None:
    for name in COUNTS:
        value = getattr(holder, name, None)
        if isinstance(value, int) and value in before:
            setattr(holder, name, count)
