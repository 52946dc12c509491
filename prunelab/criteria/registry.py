"""What a criterion is, and the names they are known by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from ..calibration import Calibration
from ..core import PruneError, Scores, at_once, prunable, shape


class Criterion(Protocol):
    """What `allocate` needs to know of the model: a score for each prunable weight."""

    def __call__(self, model: nn.Module, calib: Calibration | None = None, /) -> Scores: ...


CRITERIA: dict[str, Criterion] = {}
ALIASES = {"snip": "taylor", "obd": "fisher", "network_slimming": "bn_slimming"}  # one score, several names


def register(name: str) -> Callable[[Criterion], Criterion]:
    """Make a criterion known by name, to `Recipe` and to the contract checks of the tests."""

    def put(criterion: Criterion) -> Criterion:
        CRITERIA[name] = criterion
        return criterion

    return put


def by_name(criterion: str | Criterion) -> Criterion:
    """The criterion registered under a name; a criterion is given back as it is."""
    if callable(criterion):
        return criterion
    known = ALIASES.get(criterion, criterion)
    if known not in CRITERIA:
        raise PruneError(f"no criterion is called {criterion!r}; there is {', '.join(sorted(CRITERIA))}")
    return CRITERIA[known]


def finite_weights(model: nn.Module) -> dict[str, Tensor]:
    """The prunable weights, or PruneError naming the first that holds a NaN or an infinity."""
    return finite({name: p.detach() for name, p in prunable(model).items()})


def finite(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    # One reduction instead of an elementwise test: a sum is finite only if every term is.
    sums = at_once([w.sum(dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights.values()])
    for (name, w), total in zip(weights.items(), sums, strict=True):
        if not math.isfinite(total):
            bad = int((~torch.isfinite(w)).sum())
            if bad == 0:  # finite, but so large that their sum overflows
                continue
            raise PruneError(
                f"{name} {shape(w)} holds {bad} NaN or infinite of {w.numel()} weights: no order exists among "
                "them. The training that made this model diverged; load or train one that is finite"
            )
    return weights
