"""The names that criteria are known by, and what all of them check."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core import Criterion, PruneError, at_once, shape
from ..layers import prunable

CRITERIA: dict[str, Criterion] = {}
ALIASES = {
    "snip": "taylor",
    "obd": "fisher",
    "network_slimming": "bn_slimming",
    "michel": "head_importance",
}  # one score, several names

LACKING = {  # names that a learner will look for, and why no network at rest has such scores
    "movement": "its scores are learned while fine-tuning: call movement.finetune(model, data, groups, "
    "movement.TopV(0.9))",
    "mama": "it needs the weights before fine-tuning: give criteria.Mama.of(pretrained) in place of the name",
}


class PartialScores(dict[str, Tensor]):
    """Scores without those of layers that a criterion could not see: `prune` leaves such layers as they are."""


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
    if known in LACKING:
        raise PruneError(f"{criterion!r} cannot be computed from a model alone: {LACKING[known]}")
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
