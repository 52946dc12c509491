"""Pruned copies of a network by a rule, and what it reads with fresh statistics: what several lessons use."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...allocation import allocate
from ...core import Keep
from ...criteria import by_name as criterion_named
from ...criteria import magnitude
from ...granularity import weights
from ...masking import apply, expand
from ...measurement import evaluate
from ...recovery import recalibrate_batchnorm

# The course's CNN five times, differing in nothing but the seed: what is true of one may be luck.
CNNS = ("digits-cnn", "digits-cnn-1", "digits-cnn-2", "digits-cnn-3", "digits-cnn-4")
FAST = torch.channels_last  # a memory layout in which these networks take half the time
SPARED = "local, ends spared"
RULES = ("local", SPARED, "global", "LAMP")


def kept(model: nn.Module, rule: str | Mapping[str, float], sparsity: float = 0.0) -> Keep:
    """Which weights stay: under one of RULES, or if each layer loses its smallest, a share of its own.

    "ends spared" takes nothing from the first and last layer. Of shares, a layer left out loses nothing.
    """
    groups = weights(model)
    if not isinstance(rule, str):
        scores = magnitude(model)
        each = [allocate(scores, [g], rule.get(g.name, 0.0), "layer") for g in groups]
        return {name: keep for layer in each for name, keep in layer.items()}
    if rule == SPARED:
        inner = groups[1:-1]
        share = sparsity * sum(g.units for g in groups) / sum(g.units for g in inner)
        return kept(model, {g.name: share for g in inner})
    scores = criterion_named("lamp" if rule == "LAMP" else "magnitude")(model, None)
    return allocate(scores, groups, sparsity, "layer" if rule == "local" else "global")


def pruned(model: nn.Module, rule: str | Mapping[str, float], sparsity: float = 0.0) -> nn.Module:
    """A copy of the model, masked by a rule, or by a share for each layer."""
    model = copy.deepcopy(model)
    return apply(model, expand(model, weights(model), kept(model, rule, sparsity)))


def refreshed(model: nn.Module, data: Any, split: str = "test") -> float:
    """Accuracy once the model's BatchNorm statistics are estimated again, on every fourth training picture."""
    recalibrate_batchnorm(model, quarter(data))
    return evaluate(model, data, split).accuracy


def quarter(data: Any) -> tuple[Tensor, ...]:
    """Every fourth training picture and its label: enough to estimate averages on."""
    return tuple(part[::4] for part in data.train.tensors)
