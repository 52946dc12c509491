"""Lesson 05, "Which layer would you touch last?": its scans, grid, drawings and the checks of its exercises."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import nn

from ... import zoo
from ...granularity import weights
from ...layers import prunable
from ...layerwise import BySensitivity
from ...masking import current_masks
from ...measurement import Evaluation, evaluate
from ...recovery import recalibrate_batchnorm
from ...sensitivity import Curve, Scan, scan
from ...text import percent
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Run
from .pruned_networks import CNNS, FAST, SPARED, pruned, quarter, refreshed

# The experiments


LEVELS = (0.7, 0.9, 0.95)  # of the layer scans
TOTAL = 0.9


def as_scan(
    model: nn.Module, levels: Sequence[float], found: Mapping[str, Sequence[Evaluation]], dense: Evaluation
) -> Scan:
    """What a plain loop over layers and levels measured, in the form that `BySensitivity` spends by."""
    curves = []
    for group in weights(model):
        removed = tuple(round(level * group.units) for level in levels)
        correct, loss = zip(*((one.correct, one.loss) for one in found[group.name]), strict=True)
        curves.append(Curve(group.name, group.units, removed, correct, loss, "whole"))
    return Scan(tuple(levels), tuple(curves), dense)


def fresh_scan(model: nn.Module, data: Any) -> Scan:
    """What `pl.sensitivity.scan` finds, but with BatchNorm statistics estimated again after each cut."""
    found: dict[str, list[Evaluation]] = {}
    for name in prunable(model):
        found[name] = []
        for level in LEVELS:
            twin = pruned(model, {name: level})
            recalibrate_batchnorm(twin, quarter(data))
            found[name].append(evaluate(twin, data, "valid"))
    return as_scan(model, LEVELS, found, evaluate(model, data, "valid"))


# The stored grid


def budgets() -> Iterator[Run]:
    """Notebook 05: five networks, both scans, and a budget spent in five ways, with fresh statistics."""
    data = zoo.load("digits")
    for network in CNNS:
        dense = zoo.checkpoint(network).to(memory_format=FAST)
        scans = {"stale scan": scan(dense, data, LEVELS, progress=False), "fresh scan": fresh_scan(dense, data)}
        for kind, found in scans.items():
            for name, row in zip(found.names, found.accuracy.tolist(), strict=True):
                yield {"network": network, "scan": kind, "layer": name.removesuffix(".weight"), "accuracy": row}
        rules: dict[str, Any] = {n: BySensitivity(found)(dense, weights(dense), TOTAL) for n, found in scans.items()}
        rules |= {"equal, ends spared": SPARED, "one contest": "global", "equal shares": "local"}
        for name, rule in rules.items():
            model = pruned(dense, rule, TOTAL)
            removed = [round(1 - float(mask.double().mean()), 4) for mask in current_masks(model).values()]
            yield {"network": network, "rule": name, "removed": removed, "accuracy": refreshed(model, data)}


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
        "step by step may force a costly step later."
    )
