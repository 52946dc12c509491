"""The rules of notebook 03: ways to share a loss out between layers, each by its name."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from ...allocation import allocate, expand, report
from ...core import Keep
from ...criteria import by_name as criterion_named
from ...criteria import magnitude
from ...granularity import weights
from ...layerwise import erk
from ...masking import apply

RULES = ("global", "local", "ERK", "LAMP", "random")


def kept(model: nn.Module, rule: str, sparsity: float) -> Keep:
    """Which weights stay under a rule of the notebook."""
    groups = weights(model)
    scores = criterion_named({"LAMP": "lamp", "random": "random"}.get(rule, "magnitude"))(model, None)
    if rule == "ERK":
        return spread(model, erk(model, groups, sparsity))
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


def shares_of(model: nn.Module, rule: str, sparsity: float) -> list[float]:
    """What a rule removes of each layer."""
    return [layer.sparsity for layer in report(weights(model), kept(model, rule, sparsity)).layers]


def rewritten(model: nn.Module, conv: str = "conv3", norm: str = "bn3", scale: float = 0.1) -> nn.Module:
    """The same function written down differently: a convolution's weights scaled, its batch normalisation scaled back.

    BatchNorm divides by what it has seen, so its running mean, variance and eps shrink with the weights.
    """
    model = copy.deepcopy(model)
    weight, bn = model.get_submodule(conv).weight, model.get_submodule(norm)
    assert isinstance(bn, nn.BatchNorm2d)
    assert isinstance(weight, nn.Parameter)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    with torch.no_grad():
        weight.mul_(scale)
        bn.running_mean.mul_(scale)
        bn.running_var.mul_(scale**2)
    bn.eps *= scale**2
    return model


def moved(model: nn.Module, twin: nn.Module, rule: str, sparsity: float) -> int:
    """How many weights a rule judges differently in two networks of the same layers."""
    one, other = kept(model, rule, sparsity), kept(twin, rule, sparsity)
    return sum(int((one[name] != other[name]).sum()) for name in one)
