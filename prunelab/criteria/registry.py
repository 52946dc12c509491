"""The names that criteria are known by, and what all of them check."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import Criterion, PruneError, at_once, shape
from ..registry import Registry

CRITERIA: Registry[Criterion] = Registry(
    "criterion",
    aliases={"snip": "taylor", "obd": "fisher", "network_slimming": "bn_slimming", "michel": "head_importance"},
    hints={
        "movement": "cannot be computed from a model alone: its scores are learned while fine-tuning: call "
        "movement.finetune(model, data, groups, movement.TopV(0.9))",
        "mama": "cannot be computed from a model alone: it needs the weights before fine-tuning: give "
        "criteria.Mama.of(pretrained)",
    },
)
by_name, register = CRITERIA.by_name, CRITERIA.register


class PartialScores(dict[str, Tensor]):
    """Scores without those of layers that a criterion could not see: `prune` leaves such layers as they are."""


def finite(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, without their gradients; PruneError names the first that holds a NaN or an infinity."""
    weights = {name: w.detach() for name, w in weights.items()}
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
