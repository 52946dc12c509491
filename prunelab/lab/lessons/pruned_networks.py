"""Pruned copies of a network by a rule, and what a network reads while it is pruned: what several lessons use."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...allocation import allocate
from ...calibration import Calibration
from ...core import Keep
from ...criteria import by_name as criterion_named
from ...criteria import magnitude
from ...granularity import by_name as granularity_named
from ...granularity import weights
from ...masking import apply, expand, masked
from ...measurement import evaluate
from ...pipeline import Recipe
from ...recovery import recalibrate_batchnorm
from ..show.readings import Reading, read

# The course's CNN five times, differing in nothing but the seed: what is true of one may be luck.
CNNS = ("digits-cnn", "digits-cnn-1", "digits-cnn-2", "digits-cnn-3", "digits-cnn-4")
FAST = torch.channels_last  # a memory layout in which these networks take half the time
SPARED = "local, ends spared"
RULES = ("local", SPARED, "global", "LAMP")


def kept(model: nn.Module, rule: str, sparsity: float) -> Keep:
    """Which weights stay under a rule of the notebook; "ends spared" takes nothing from the first and last layer."""
    groups = weights(model)
    if rule == SPARED:
        inner = groups[1:-1]
        share = sparsity * sum(g.units for g in groups) / sum(g.units for g in inner)
        return spread(model, {groups[0].name: 0.0, groups[-1].name: 0.0} | {g.name: share for g in inner})
    scores = criterion_named("lamp" if rule == "LAMP" else "magnitude")(model, None)
    return allocate(scores, groups, sparsity, "layer" if rule == "local" else "global")


def spread(model: nn.Module, shares: Mapping[str, float]) -> Keep:
    """The smallest weights of each layer go, a share of its own each."""
    scores = magnitude(model)
    each = [allocate(scores, [g], shares[g.name], "layer") for g in weights(model)]
    return {name: keep for layer in each for name, keep in layer.items()}


def pruned(model: nn.Module, rule: str, sparsity: float) -> nn.Module:
    """A copy of the model, masked by a rule."""
    model = copy.deepcopy(model)
    return apply(model, expand(model, weights(model), kept(model, rule, sparsity)))


def refreshed(model: nn.Module, data: Any, split: str = "test") -> float:
    """Accuracy once the model's BatchNorm statistics are estimated again, on every fourth training picture."""
    images, labels = data.train.tensors
    recalibrate_batchnorm(model, (images[::4], labels[::4]))
    return evaluate(model, data, split).accuracy


def reading(model: nn.Module, recipe: Recipe, pictures: Any, calib: Calibration | None = None) -> Reading:
    """What the model would read of some pictures if it were pruned as the recipe says, in one shot."""
    groups = granularity_named(recipe.granularity)(model)
    scores = criterion_named(recipe.criterion)(model, calib)
    return reading_of(model, allocate(scores, groups, recipe.sparsity, recipe.scope), pictures)


def reading_of(model: nn.Module, keep: Keep, pictures: Any) -> Reading:
    """What the model would read of some pictures if only these of its single weights were kept."""
    masks = expand(model, [g for g in weights(model) if g.name in keep], keep)
    with masked(model, masks):
        return read(model, pictures)
