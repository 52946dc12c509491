"""Lesson 04, "Should every layer lose the same share?": its experiments, grid, drawings and exercises' checks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import nn
from tqdm.auto import tqdm

from ... import zoo
from ...allocation import allocate, expand, report
from ...criteria import magnitude
from ...granularity import weights
from ...masking import masked
from ...measurement import evaluate
from ...recovery import finetune
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Run
from ..show.figure import COLOURS
from ..show.plots import WRONG
from ..show.vector import PAPER
from .pruned_networks import CNNS, RULES, kept, pruned

# The experiments


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


def by_hand(
    model: nn.Module, layers: Sequence[str], steps: Sequence[float], pictures: Any
) -> dict[tuple[float, ...], tuple[float, float]]:
    """For every combination of layer shares, by magnitude, without retraining: (accuracy, sparsity of all weights)."""
    groups, scores = weights(model), magnitude(model)
    kept = {g.name: {s: allocate(scores, [g], s, "layer")[g.name] for s in (0.0, *steps)} for g in groups}
    seen = {}
    points = list(itertools.product(steps, repeat=len(layers)))
    for point in tqdm(points, desc="pruning by hand", leave=False):
        share = dict(zip((f"{layer}.weight" for layer in layers), point, strict=True))
        keep = {name: of[share.get(name, 0.0)] for name, of in kept.items()}
        with masked(model, expand(model, groups, keep)):
            seen[point] = (evaluate(model, pictures).accuracy, report(groups, keep).sparsity)
    return seen


# The stored grid


SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
EPOCHS = 1


def scopes() -> Iterator[Run]:
    """Notebook 04: five networks, five ways to share the loss out, before and after one epoch of retraining."""
    data = zoo.load("digits")
    for seed, name in enumerate(CNNS):
        for rule in RULES:
            for sparsity in SPARSITIES:
                model = pruned(zoo.checkpoint(name), rule, sparsity)
                before = evaluate(model, data, "test").accuracy
                finetune(model, data, epochs=EPOCHS, seed=seed, progress=False)
                after = evaluate(model, data, "test").accuracy
                yield {"network": name, "rule": rule, "sparsity": sparsity, "before": before, "after": after}


GRIDS: dict[str, Grid] = {"scopes": scopes}


# Drawings


def shares(ax: Axes, layers: Sequence[str], removed: Mapping[str, Sequence[float]]) -> None:
    """How much of each layer each rule removes: a group of bars a layer, hatched so that no colour is needed."""
    width = 0.8 / len(removed)
    places = np.arange(len(layers))
    hatches = ("", "///", "...", "xxx", "\\\\\\")
    for i, (name, values) in enumerate(removed.items()):
        where = places + (i - (len(removed) - 1) / 2) * width
        ax.bar(where, values, width, label=name, color=COLOURS[i], hatch=hatches[i], edgecolor=PAPER, linewidth=0)
    ax.set_xticks(places, layers)
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set(ylabel="removed of the layer", ylim=(0, 1.05))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=len(removed), loc="upper center", bbox_to_anchor=(0.5, 1.16))


def draw_by_hand(ax: Axes, shares: Mapping[str, float], seen: Mapping[tuple[float, ...], tuple[float, float]]) -> None:
    """What each layer has lost, as bars, under the accuracy and the sparsity of the whole."""
    accuracy, sparsity = seen[tuple(shares.values())]
    ax.bar(list(shares), list(shares.values()), color=WRONG, hatch="////", edgecolor=PAPER, linewidth=0)
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set(ylim=(0, 1), ylabel="removed of the layer")
    ax.set_title(f"{accuracy:.0%} read correctly, {sparsity:.0%} of all weights removed")
    ax.grid(axis="x", visible=False)


# The checks of the exercises, whose texts stand in 04.toml


KEPT = {"local": (10, 1000), "global": (100, 910)}


def check_read(answer: Any) -> str | None:
    """A layer of 100 large weights and one of 10,000 small ones, at 90 %."""
    if not isinstance(answer, dict) or set(answer) != set(KEPT):
        return (
            'give a dict with both rules: {"local": (small layer, large layer), "global": (small layer, large layer)}.'
        )
    given = {rule: tuple(plain(value)) for rule, value in answer.items() if isinstance(value, (tuple, list))}
    if set(given) != set(KEPT) or any(len(value) != 2 for value in given.values()):
        return "each rule keeps two numbers: what the small layer keeps, and what the large one keeps."
    known = {
        ("local", (90, 9000)): "local: that is what goes. The question is what stays.",
        ("local", (100, 910)): "local: that is the global rule. Local means that each layer loses 90 % of its own.",
        ("global", (10, 1000)): "global: you applied 90 % to each layer. Globally nobody has a quota of their own: the "
        "9,090 smallest of all 10,100 go, wherever they are.",
        ("global", (0, 9090)): "global: that is what goes. The question is what stays.",
        ("global", (0, 1010)): "global: you took the small layer first. Its weights are all *larger*, so it is safe.",
        ("global", (100, 1000)): "global: that is 1,100 in all; 90 % of 10,100 must go, so 1,010 stay.",
    }
    for rule, want in KEPT.items():
        if given[rule] != want:
            return known.get(
                (rule, given[rule]), f"{rule}: {given[rule]} is not it. Count how many go, and from where."
            )
    return None


def _layers() -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    sizes = {"a": (6, 8), "b": (10, 5), "c": (12,)}
    return {name: torch.randn(shape, generator=source) for name, shape in sizes.items()}


def check_modify(answer: Any) -> str | None:
    """|w| over the layer's mean |w|."""
    weights = _layers()
    scores = call(answer, {name: w.clone() for name, w in weights.items()})
    if not isinstance(scores, dict) or set(scores) != set(weights):
        return "return a dict of scores, one tensor a layer, by the same names."
    if any(not torch.is_tensor(s) or s.shape != weights[name].shape for name, s in scores.items()):
        return "the scores of a layer have the layer's shape: one score a weight."
    return _compare(scores, weights)


def _compare(scores: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> str | None:
    everything = torch.cat([w.abs().flatten() for w in weights.values()])
    wrong = {
        "that is still the bare magnitude: multiply a layer by ten, and it wins. Divide by its own average.":
            lambda w: w.abs(),
        "you kept the signs: a large negative weight is now the least important of all. Take `abs()` first.":
            lambda w: w / w.abs().mean(),
        "you divided by the average of the *signed* weights, which is near zero. Average `w.abs()`.":
            lambda w: w.abs() / w.mean(),
        "you subtracted the average. That moves a layer, but does not change its scale: divide.":
            lambda w: w.abs() - w.abs().mean(),
        "you divided all layers by one average, so their scales are as different as before. Each by its own.":
            lambda w: w.abs() / everything.mean(),
        "you divided by the layer's largest weight: one outlier now decides. The task says average.":
            lambda w: w.abs() / w.abs().max(),
    }  # fmt: skip
    if all(torch.allclose(s, weights[n].abs() / weights[n].abs().mean()) for n, s in scores.items()):
        return None
    for message, rule in wrong.items():
        if all(torch.allclose(s.float(), rule(weights[n])) for n, s in scores.items()):
            return message
    return "not quite: each score must be the weight's size over the average size in its layer."


def check_make(answer: Any) -> str | None:
    """ERK: the sum over the product."""
    found = plain(call(answer, 32, 64, 3, 3))
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return "return one number, the layer's density before scaling."
    want, weights = (32 + 64 + 3 + 3) / (32 * 64 * 3 * 3), 32 * 64 * 3 * 3
    known = (
        (1 / want, "upside down: the larger the layer, the *smaller* its density."),
        (
            (32 + 64) / (32 * 64),
            "that is Erdős-Rényi for linear layers. The kernel's sides belong in it, too.",
        ),
        ((32 + 64) / weights, "the kernel is in the product, but not in the sum."),
        (
            32 + 64 + 3 + 3,
            "that is how many weights stay, up to a factor. Density is that over the layer's weights.",
        ),
        (1 - want, "that is the sparsity. ERK gives the density, the share that *stays*."),
    )
    if abs(found - want) < 1e-9:
        return None
    near = [message for value, message in known if abs(found - value) < 1e-6 * max(1, value)]
    return near[0] if near else f"for (32, 64, 3, 3) it gave {found:g}; the sum over the product is {want:.4g}."
