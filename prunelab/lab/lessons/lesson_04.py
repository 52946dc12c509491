"""Lesson 04, "Should every layer lose the same share?": its experiments, grid, drawings and exercises' checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import nn

from ... import zoo
from ...granularity import weights
from ...measurement import evaluate
from ...pipeline import report
from ...recovery import finetune
from ...text import percent
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Resumable, Run
from ..show.figure import COLOURS
from ..show.plots import RIGHT, WRONG
from ..show.vector import PAPER
from .pruned_networks import CNNS, FAST, RULES, kept, pruned, refreshed

# The experiments


def shares_of(model: nn.Module, rule: str, sparsity: float) -> list[float]:
    """What a rule removes of each layer."""
    return [layer.sparsity for layer in report(weights(model), kept(model, rule, sparsity)).layers]


# The stored grid


SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
RETRAINED = (0.95, 0.98)  # for one epoch, by every rule but LAMP


def scopes() -> Resumable:
    """Notebook 04: five networks, four ways to share the loss out, statistics fresh, and after one epoch."""
    points = [{"network": n, "rule": r, "sparsity": s} for n in CNNS for r in RULES for s in SPARSITIES]
    data = zoo.load("digits")

    def run(point: Run) -> Run:
        model = pruned(zoo.checkpoint(point["network"]).to(memory_format=FAST), point["rule"], point["sparsity"])
        found = {"fresh": refreshed(model, data)}
        if point["sparsity"] in RETRAINED and point["rule"] != "LAMP":
            finetune(model, data, epochs=1, seed=CNNS.index(point["network"]), progress=False)
            found["after"] = evaluate(model, data, "test").accuracy
        return found

    return points, run


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
    ax.yaxis.set_major_formatter(lambda v, _: percent(v, digits=0))
    ax.set(ylabel="removed of the layer", ylim=(0, 1.05))
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=len(removed), loc="upper center", bbox_to_anchor=(0.5, 1.16))


def left(ax: Axes, layers: Sequence[str], removed: Sequence[float], title: str = "") -> None:
    """What is left of each layer, a bar each; where nothing is, it says so."""
    ax.bar(layers, [1 - share for share in removed], color=RIGHT, edgecolor=PAPER, linewidth=0)
    for place, share in enumerate(removed):
        if share == 1:
            ax.text(place, 0.03, "empty", color=WRONG, rotation=90, ha="center", va="bottom", fontweight="bold")
    ax.yaxis.set_major_formatter(lambda v, _: percent(v, digits=0))
    ax.set(ylim=(0, 1.05), ylabel="left of the layer", title=title)
    ax.grid(axis="x", visible=False)


# The checks of the exercises, whose texts stand in 04.toml


def _layers(dtype: torch.dtype, scale: float) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    sizes = {"a": (6, 8), "b": (10, 5, 3, 3), "c": (12,)}
    made = {name: torch.randn(shape, generator=source, dtype=dtype) for name, shape in sizes.items()}
    return made | {"a": made["a"] * scale}


def check_modify(answer: Any) -> str | None:
    """|w| over the layer's mean |w|, up to a factor that all layers share."""
    for dtype, scale in ((torch.float32, 1.0), (torch.float64, 10.0), (torch.float32, 0.01)):
        weights = _layers(dtype, scale)
        scores = call(answer, {name: w.clone() for name, w in weights.items()})
        if not isinstance(scores, Mapping) or set(scores) != set(weights):
            return "return a dict of scores, one tensor a layer, by the same names."
        scores = {name: torch.as_tensor(score) for name, score in scores.items()}
        if any(s.shape != weights[name].shape for name, s in scores.items()):
            return "the scores of a layer have the layer's shape: one score a weight."
        problem = _compare(scores, weights)
        if problem:
            return problem
    return None


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
    ratios = [s.double() / (weights[n].abs() / weights[n].abs().mean()).double() for n, s in scores.items()]
    ratio = torch.cat([r.flatten() for r in ratios])
    if ratio[0] > 0 and torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-4):
        return None
    for message, rule in wrong.items():
        if all(torch.allclose(s.double(), rule(weights[n]).double()) for n, s in scores.items()):
            return message
    return "not quite: each score must be the weight's size over the average size in its layer."


BUDGET, ENOUGH = 0.85, 0.9  # of all weights must go at least, and of the digits must still be read


def check_budget(answer: Any) -> str | None:
    """The learner's shares, measured: enough must go, and enough must still be read, with fresh statistics."""
    model = zoo.checkpoint("digits-cnn").to(memory_format=FAST)
    shares = _shares(answer, weights(model))
    if isinstance(shares, str):
        return shares
    empty = [name.removesuffix(".weight") for name, share in shares.items() if share == 1]
    if empty:
        return f"nothing is left of {' and '.join(empty)}, and nothing passes through an empty layer."
    gone = report(weights(model), kept(model, shares)).sparsity
    if gone < BUDGET - 5e-4:
        most = percent(BUDGET, digits=0)
        return f"that removes {percent(gone)} of all weights, and {most} must go. Count weights, not layers."
    read = refreshed(pruned(model, shares), zoo.load("digits"), "valid")
    if read >= ENOUGH:
        return None
    if len({round(share, 3) for share in shares.values()}) == 1:
        found = percent(read, digits=0)
        return f"that is the local rule, the same share from each: it reads {found}. Whom would you spare?"
    most = max(shares, key=lambda name: shares[name]).removesuffix(".weight")
    where = "The first and the last layer still pay." if shares["conv1.weight"] > 0.6 else f"{most} pays too much."
    return f"it reads {percent(read, digits=0)}, and nine in ten are asked. {where}"


def _shares(answer: Any, groups: Sequence[Any]) -> dict[str, float] | str:
    """The answer as a share for each layer, or what is wrong with its form."""
    if not isinstance(answer, Mapping) or not answer:
        return 'give a dict with what each layer loses, e.g. {"conv1": 0.2, "conv2": 0.9}; others lose nothing.'
    given = {str(name).removesuffix(".weight") + ".weight": plain(share) for name, share in answer.items()}
    unknown = set(given) - {g.name for g in groups}
    if unknown:
        return f"there is no layer {min(unknown).removesuffix('.weight')!r}: conv1 to conv4, fc1 and fc2."
    if not all(isinstance(share, (int, float)) and not isinstance(share, bool) for share in given.values()):
        return "what a layer loses is a number: a share of its weights."
    if any(share > 1 for share in given.values()):
        return "a share is a fraction of the layer, 0.9 and not 90."
    if any(not share >= 0 for share in given.values()):
        return "a share can't be negative: nobody gains weights."
    return {g.name: float(given.get(g.name, 0.0)) for g in groups}
