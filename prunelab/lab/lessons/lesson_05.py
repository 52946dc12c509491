"""Lesson 05, "Which layer would you touch last?": its scans, grid, drawings and the checks of its exercises."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import nn

from ... import zoo
from ...core import Keep
from ...granularity import weights
from ...layerwise import BySensitivity, uniform
from ...masking import apply, bake, expand
from ...measurement import Evaluation, evaluate
from ...recovery import recalibrate_batchnorm
from ...sensitivity import Curve, Scan, scan
from ...text import percent
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Run
from ..show.figure import COLOURS
from ..show.vector import PAPER
from .pruned_networks import CNNS, kept, spread

# The experiments


SOME = 1024  # training pictures, one of each scan: enough to note averages by
ENDS = ("conv1.weight", "fc2.weight")  # the first layer and the last


def as_scan(
    model: nn.Module, levels: Sequence[float], found: Mapping[str, Sequence[Evaluation]], dense: Evaluation
) -> Scan:
    """What a plain loop over layers and levels measured, in the form that `by_sensitivity` spends by."""
    curves = []
    for group in weights(model):
        removed = tuple(round(level * group.units) for level in levels)
        correct, loss = zip(*((one.correct, one.loss) for one in found[group.name]), strict=True)
        curves.append(Curve(group.name, group.units, removed, correct, loss, "whole"))
    return Scan(tuple(levels), tuple(curves), dense)


def fresh_scan(model: nn.Module, data: Any, levels: Sequence[float]) -> Scan:
    """What `pl.sensitivity.scan` finds, but with BatchNorm statistics estimated again after each cut."""
    some = tuple(t[:SOME] for t in data.train.tensors)
    nothing = dict.fromkeys((g.name for g in weights(model)), 0.0)
    found: dict[str, list[Evaluation]] = {name: [] for name in nothing}
    for name in nothing:
        for level in levels:
            twin = bake(_cut(model, spread(model, nothing | {name: level})))
            recalibrate_batchnorm(twin, some)
            found[name].append(evaluate(twin, data, "valid"))
    return as_scan(model, levels, found, evaluate(model, data, "valid"))


def spared(model: nn.Module, sparsity: float) -> dict[str, float]:
    """Equal shares, but the first and the last layer lose nothing: the control that needs no scan."""
    inner = [g for g in weights(model) if g.name not in ENDS]
    total = sum(g.units for g in weights(model))
    return dict.fromkeys(ENDS, 0.0) | uniform(model, inner, sparsity * total / sum(g.units for g in inner))


def _cut(model: nn.Module, keep: Keep) -> nn.Module:
    """A masked copy."""
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return apply(twin, expand(twin, weights(twin), keep))


# The stored grid


LEVELS = (0.7, 0.9, 0.95)  # of the layer scans
TOTAL = 0.9


def budgets() -> Iterator[Run]:
    """Notebook 05: five networks, both scans, and a budget spent in five ways, with fresh statistics."""
    data = zoo.load("digits")
    for network in CNNS:
        dense = zoo.checkpoint(network)
        groups = weights(dense)
        scans = {"stale scan": scan(dense, data, LEVELS, progress=False), "fresh scan": fresh_scan(dense, data, LEVELS)}
        for kind, found in scans.items():
            for name, row in zip(found.names, found.accuracy.tolist(), strict=True):
                yield {"network": network, "scan": kind, "layer": name.removesuffix(".weight"), "accuracy": row}
        shares = {rule: BySensitivity(found)(dense, groups, TOTAL) for rule, found in scans.items()}
        shares["equal, ends spared"] = spared(dense, TOTAL)
        choices = {rule: spread(dense, share) for rule, share in shares.items()}
        choices |= {"one contest": kept(dense, "global", TOTAL), "equal shares": kept(dense, "local", TOTAL)}
        for rule, keep in choices.items():
            removed = [round(1 - float(keep[g.name].double().mean()), 4) for g in groups]
            model = _cut(dense, keep)
            recalibrate_batchnorm(model, data)
            accuracy = evaluate(model, data, "test").accuracy
            yield {"network": network, "rule": rule, "removed": removed, "accuracy": accuracy}


GRIDS: dict[str, Grid] = {"budgets": budgets}


# Drawings


def two_scans(
    axes: Sequence[Axes], levels: Sequence[float], scans: Mapping[str, Mapping[str, Sequence[float]]], dense: float
) -> None:
    """The same cuts read with old statistics and with fresh ones: a curve a layer, pruned alone."""
    for ax, (title, accuracy) in zip(axes, scans.items(), strict=True):
        for name, values in accuracy.items():
            ax.plot([0.0, *levels], [dense, *values], label=name)
        ax.xaxis.set_major_formatter(lambda v, _: percent(v, digits=0))
        ax.yaxis.set_major_formatter(lambda v, _: percent(v, digits=0))
        ax.set(title=title, xlabel="removed of this layer alone", ylim=(0, 1.02))
    axes[0].set_ylabel("validation accuracy")
    axes[0].legend(title="layer", loc="lower left")


def spent(ax: Axes, run: Run, layers: Sequence[str]) -> None:
    """What a rule takes from each layer, and what the network then reads."""
    ax.bar(layers, run["removed"], color=COLOURS[0], edgecolor=PAPER, linewidth=0)
    ax.yaxis.set_major_formatter(lambda v, _: percent(v, digits=0))
    ax.set(ylim=(0, 1), ylabel="removed of the layer")
    ax.set_title(f"{percent(run['accuracy'])} read correctly with fresh statistics")
    ax.grid(axis="x", visible=False)


# The checks of the exercises, whose texts stand in 05.toml


def check_read(answer: Any) -> str | None:
    """Of two scans, the fresh one: whom to prune hardest, whom to touch last."""
    names = list(answer) if isinstance(answer, (tuple, list, np.ndarray)) else []
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        return 'give two names: `("hardest", "last")`.'
    first, last = (str(name).strip().removesuffix(".weight") for name in names)
    known = {
        ("conv2", "fc2"): None,
        ("fc2", "conv2"): "the other way round: first comes the layer that forgives, last the one that hurts.",
        ("fc1", "conv2"): "you read the stale scan. Most of what `conv2` loses there is not lost, only misread.",
        ("fc1", "fc2"): "`fc1` forgives most in the *stale* scan. With fresh statistics another layer forgives more.",
        ("conv2", "conv2"): "one layer can't be both. Read the fresh scan at 90 %, from the top and from the bottom.",
        ("conv2", "fc1"): "`fc1` loses five points. Another layer loses far more, in both scans.",
    }
    return known.get((first, last), "not these two. Read the *fresh* scan at 90 %: who has lost least, and who most?")


BUDGET, ENOUGH = 0.85, 0.85  # of all weights, at least so many go, and so many digits are still read
NETWORK = "digits-cnn-2"


def check_spend(answer: Any) -> str | None:
    """Shares by layer that remove 90 % of all weights, measured on another network with fresh statistics."""
    model, data = zoo.checkpoint(NETWORK), zoo.load("digits")
    groups = weights(model)
    layers = [g.name.removesuffix(".weight") for g in groups]
    if not isinstance(answer, Mapping):
        return 'give a dict: a share for each layer, such as {"conv1": 0.5, ...}.'
    given = {str(name).removesuffix(".weight"): plain(share) for name, share in answer.items()}
    unknown = sorted(set(given) - set(layers))
    if unknown:
        return f"there is no layer {unknown[0]!r}; there are {', '.join(layers)}."
    shares = {g.name: given.get(layer, 0.0) for g, layer in zip(groups, layers, strict=True)}
    if not all(isinstance(s, (int, float)) and not isinstance(s, bool) and 0 <= s <= 1 for s in shares.values()):
        return "a share is a fraction between 0 and 1: 0.9 is nine weights in ten."
    gone = sum(round(shares[g.name] * g.units) for g in groups) / sum(g.units for g in groups)
    if gone < BUDGET - 0.0005:
        least = percent(BUDGET, digits=0)
        return f"that removes {percent(gone)} of all weights, and at least {least} must go. A layer counts by its size."
    if any(s == 1 for s in shares.values()):
        return "a layer that loses everything lets nothing through: leave each of them something."
    twin = bake(_cut(model, spread(model, shares)))
    recalibrate_batchnorm(twin, tuple(t[:SOME] for t in data.train.tensors))
    return _verdict(evaluate(twin, data, "valid").accuracy, shares)


def _verdict(read: float, shares: Mapping[str, float]) -> str | None:
    """None for a network that reads enough, or what the shares say of how they were chosen."""
    if read >= ENOUGH:
        return None
    said = f"measured: it reads {percent(read)}, and {percent(ENOUGH, digits=0)} can be had. "
    if len(set(shares.values())) == 1:
        return said + "You took the same of every layer, and both scans say that they differ."
    if shares["fc2.weight"] > 0.5:
        return said + "You took much of `fc2`, which looks safe in the stale scan only beside what is misread there."
    if shares["conv1.weight"] > 0.5:
        return (
            said + "You took much of `conv1`: its 288 weights save next to nothing, and both scans say what they cost."
        )
    return said + "Take more from the layers that the *fresh* scan calls safe, and less from the others."


def check_make(answer: Any) -> str | None:
    """The cheapest way to spend a budget on a scan, by any algorithm that finds it."""
    dice = random.Random(5)
    for layers, count in ((4, 3), (3, 4), (3, 2), (2, 3)) * 3:
        levels = sorted(dice.sample([0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9], count))
        sizes = [dice.choice((300, 600, 9000, 18000, 37000)) for _ in range(layers)]
        rise = [sorted(round(dice.uniform(0.01, 2) ** 2, 3) for _ in levels) for _ in sizes]
        most = sum(max(levels) * size for size in sizes)
        message = _spends(answer, rise, sizes, levels, most * dice.uniform(0.4, 0.9))
        if message:
            return message
    return None


def _spends(answer: Any, rise: list[list[float]], sizes: list[int], levels: list[float], budget: float) -> str | None:
    """One random case: the answer's choice beside the best of all."""
    found = call(answer, [list(row) for row in rise], list(sizes), list(levels), budget)
    choice = plain(found) if not isinstance(found, (list, tuple)) else [plain(level) for level in found]
    if not isinstance(choice, (list, tuple)) or len(choice) != len(sizes):
        return f"return one level for each layer: {len(sizes)} here."
    table = [dict(zip((0.0, *levels), (0.0, *row), strict=True)) for row in rise]
    nearest = []
    for level, own in zip(choice, table, strict=True):
        near = min(own, key=lambda known: abs(known - level))
        if abs(near - level) > 1e-6:
            return f"choose from the levels that were scanned, {levels}, or 0 for a layer that is left alone."
        nearest.append(near)

    def gone(point: Sequence[float]) -> float:
        return sum(level * size for level, size in zip(point, sizes, strict=True))

    def cost(point: Sequence[float]) -> float:
        return sum(own[level] for level, own in zip(point, table, strict=True))

    if gone(nearest) < budget:
        return (
            f"that removes {gone(nearest):,.0f} weights of {sum(sizes):,}; the budget was {budget:,.0f}. A layer "
            "counts by its size."
        )
    every = [point for point in itertools.product(*table) if gone(point) >= budget]
    best = min(every, key=cost)
    if cost(nearest) <= cost(best) + 1e-9:
        return None
    if len(set(nearest)) == 1:
        return "you took the same level of every layer. The rises differ: take more where it costs less."
    return (
        f"the rises {rise}, sizes {sizes}, levels {levels}, budget {budget:,.0f}: your {nearest} adds up to "
        f"{cost(nearest):.3g}, and {list(best)} to {cost(best):.3g}. Compare *all* combinations: what is cheapest "
        "step by step may force a dear step later."
    )
