"""Lesson 06, "Which filter would you miss?": its experiments, grids, drawings and the checks of its exercises."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from torch import Tensor, nn
from torch.nn import functional as F

from ... import zoo
from ...agreement import rank_correlation
from ...allocation import choose, unit_scores
from ...calibration import Calibration
from ...core import Group
from ...criteria import by_name as criterion_named
from ...granularity import filters
from ...measurement import evaluate, macs
from ...recovery import finetune, recalibrate_batchnorm
from ...surgery import shrink
from ..learn import stored_grid
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Run
from ..show.figure import COLOURS
from ..show.vector import INK
from .pruned_networks import CNNS

# The experiments

SEEN = 512  # training pictures that a criterion looks at, and statistics are noted from
Units = dict[str, Tensor]  # (filters,) by convolution


def rises(model: nn.Module, layer: str, pictures: Sequence[Tensor], notes: Tensor | None = None) -> Tensor:
    """How much the loss of each picture rises without each filter of a layer: (filters, pictures).

    With `notes`, training pictures, BatchNorm statistics are estimated again before the losses are measured.
    """
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    parts = dict(model.named_children())
    after = list(parts).index(layer) + 3  # the filter's norm and its ReLU
    below, above = (
        nn.Sequential(*part).eval() for part in (list(parts.values())[:after], list(parts.values())[after:])
    )
    norms = [m for m in above.modules() if isinstance(m, nn.BatchNorm2d)] if notes is not None else []
    images, labels = pictures
    with torch.no_grad():
        seen = below(images.contiguous(memory_format=torch.channels_last))
        noted = below(notes.contiguous(memory_format=torch.channels_last)) if notes is not None and norms else None
        whole = _losses(above, seen, labels, norms, noted)
        cut = []
        for unit in range(seen.shape[1]):
            noted_cut = None if noted is None else _without(noted, unit)
            cut.append(_losses(above, _without(seen, unit), labels, norms, noted_cut) - whole)
        return torch.stack(cut)


def _without(maps: Tensor, unit: int) -> Tensor:
    """The feature maps (n, filters, h, w) with one filter's at zero."""
    return maps.clone().index_fill_(1, torch.tensor(unit), 0)


def _losses(above: nn.Module, seen: Tensor, labels: Tensor, norms: list[Any], noted: Tensor | None) -> Tensor:
    """The loss of each picture, from the maps on; with fresh statistics if there is something to note them from."""
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if noted is not None:
        for batch in noted.split(64):
            above(batch)
    above.eval()
    batches = zip(seen.split(256), labels.split(256), strict=True)
    return torch.cat([F.cross_entropy(above(x), y, reduction="none") for x, y in batches])


def gates(model: nn.Module, images: Tensor, labels: Tensor) -> Units:
    """What closing each filter's gate would do to the loss of each picture, to first order: (filters, pictures)."""
    x, maps = images, {}
    for name, layer in copy.deepcopy(model).eval().named_children():
        x = layer(x)
        if name.startswith("relu") and x.dim() == 4:
            x.retain_grad()
            maps[name.replace("relu", "conv")] = x
    F.cross_entropy(x, labels, reduction="sum").backward()
    return {name: -(a * a.grad).sum((2, 3)).detach().T for name, a in maps.items() if a.grad is not None}


def judgements(model: nn.Module, groups: Sequence[Group], data: Any) -> dict[tuple[str, str], Units]:
    """What each criterion says of each filter: by its name, and what was made of the scores of the filter's weights."""
    calib = Calibration.of(data, samples=SEEN)
    found: dict[tuple[str, str], Units] = {}
    for name in ("random", "magnitude", "gradient", "taylor", "fisher"):
        scores = criterion_named(name)(model, calib)
        found |= {(name, way): unit_scores(scores, groups, way) for way in ("sum", "mean")}
        # Without the filter's norm and what reads it, as Li et al. 2017 judge:
        found[name, "own weights"] = {g.name: scores[f"{g.name}.weight"].flatten(1).sum(1) for g in groups}
    images, labels = (t[:SEEN] for t in data.train.tensors)
    closed = gates(model, images, labels)
    found["gate", "size of the mean"] = {name: z.mean(1).abs() for name, z in closed.items()}
    found["gate", "mean of the sizes"] = {name: z.abs().mean(1) for name, z in closed.items()}
    found["gate", "mean of the squares"] = {name: z.square().mean(1) for name, z in closed.items()}
    found["the layer alone", "-"] = {g.name: torch.full((g.units,), -float(i)) for i, g in enumerate(groups)}
    return found


def agreement(one: Units, other: Units) -> dict[str, float]:
    """Spearman's correlation across all filters, and the mean of those within each layer."""
    ranks = rank_correlation(one, other)
    return {"across": ranks.overall, "within": float(np.mean(list(ranks.layers.values())))}


# The stored grids


def truths() -> Iterator[Run]:
    """Notebook 06: five networks, the loss without each filter, old and fresh statistics, and each criterion's rank."""
    data = zoo.load("digits")
    images, labels = data.valid.tensors
    half = torch.arange(len(images)) % 300 < 150  # four pictures of each of 300 scans, a view after the other
    notes = data.train.tensors[0][:SEEN]
    for network in CNNS:
        model = zoo.checkpoint(network)
        groups = filters(model, images[:2])
        judged = judgements(model, groups, data)
        for statistics, noted in (("old", None), ("fresh", notes)):
            found = {g.name: rises(model, g.name, (images, labels), noted).double() for g in groups}
            one, other = ({n: r[:, part].mean(1) for n, r in found.items()} for part in (half, ~half))
            about = {"network": network, "statistics": statistics}
            yield {**about, "criterion": "leave one out", "way": "other pictures", **agreement(one, other)}
            for (criterion, way), scores in judged.items():
                twice = [agreement(scores, truth) for truth in (one, other)]
                both: Run = {key: (twice[0][key] + twice[1][key]) / 2 for key in twice[0]}
                if criterion == "the layer alone":
                    both["within"] = None  # of equal scores there is no order
                yield {**about, "criterion": criterion, "way": way, **both}
            for name, r in found.items():
                yield {**about, "layer": name, "rises": [round(x, 6) for x in r.mean(1).tolist()]}


SHARE = 0.5  # of the filters, that go
WITHIN = [("random", "sum"), ("magnitude", "own weights"), ("magnitude", "sum"), ("taylor", "sum"), ("fisher", "sum"),
          ("gate", "mean of the sizes"), ("leave one out", "old"), ("leave one out", "fresh")]  # fmt: skip
ACROSS = [("magnitude", "sum"), ("magnitude", "mean"), ("taylor", "sum"), ("taylor", "mean"),
          ("leave one out", "old"), ("leave one out", "fresh")]  # fmt: skip


def cashed() -> Iterator[Run]:
    """Notebook 06: five networks, half of the filters removed by each judge; fresh statistics, then one epoch."""
    data = zoo.load("digits")
    stored = [run for run in stored_grid.grid("truths") if "layer" in run]
    for seed, network in enumerate(CNNS):
        model = zoo.checkpoint(network)
        groups = filters(model, data.valid[:2][0])
        judged = judgements(model, groups, data)
        for statistics in ("old", "fresh"):
            runs = [r for r in stored if (r["network"], r["statistics"]) == (network, statistics)]
            judged["leave one out", statistics] = {r["layer"]: torch.tensor(r["rises"]) for r in runs}
        for scope, judges in (("layer", WITHIN), ("global", ACROSS)):
            for criterion, way in judges:
                small = shrink(model, groups, choose(judged[criterion, way], groups, SHARE, scope))
                about = {"network": network, "criterion": criterion, "way": way, "scope": scope}
                work = macs(small, data.valid[:1][0])
                recalibrate_batchnorm(small, data)
                before = evaluate(small, data, "test").accuracy
                finetune(small, data, epochs=1, seed=seed, progress=False)
                after = evaluate(small, data, "test").accuracy
                yield {**about, "macs": work, "before": before, "after": after}


GRIDS: dict[str, Grid] = {"truths": truths, "cashed": cashed}


# Drawings


SIGNED = LinearSegmentedColormap.from_list(
    "signed",
    [(*to_rgb(COLOURS[1]), 1.0), (*to_rgb(COLOURS[1]), 0.0), (*to_rgb(COLOURS[0]), 0.0), (*to_rgb(COLOURS[0]), 1.0)],
)  # a weight below zero, none, a weight above zero
ACROSS_BOARD = 8  # filters in a row


def framed(axes: Sequence[Axes], weight: Tensor, costs: Mapping[str, Sequence[float]]) -> None:
    """The filters (n, 1, h, w) of a first layer, twice; the frame is as thick as the loss without the filter is high.

    In the order of the first panel's costs; a dotted frame: the loss is lower without it.
    """
    order = np.argsort([-cost for cost in next(iter(costs.values()))])
    weight = weight.detach()
    high, wide = weight.shape[2:]
    most = max(max(c) for c in costs.values())
    for ax, (title, cost) in zip(axes, costs.items(), strict=True):
        for place, unit in enumerate(order):
            x, y = (place % ACROSS_BOARD) * (wide + 1.6), (place // ACROSS_BOARD) * (high + 2.2)
            scale = float(weight.abs().max())
            picture = weight[unit, 0].numpy()
            ax.imshow(picture, cmap=SIGNED, vmin=-scale, vmax=scale, extent=(x, x + wide, y + high, y))
            edge = {"lw": 0.6 + 7 * max(cost[unit], 0) / most, "ls": "-" if cost[unit] >= 0 else ":", "marker": ""}
            ax.plot([x, x + wide, x + wide, x, x], [y, y, y + high, y + high, y], color=INK, **edge)
            ax.text(x + wide / 2, y + high + 0.9, f"{round(1000 * cost[unit])}", ha="center", va="center", fontsize=8)
        ax.set(xlim=(-0.6, ACROSS_BOARD * (wide + 1.6)), ylim=(y + high + 1.6, -0.8), title=title)
        ax.set_aspect("equal")
        ax.axis("off")


def judged(ax: Axes, scores: Sequence[float], truth: Sequence[float], criterion: str) -> None:
    """What a criterion said of each filter of a layer, against the loss without it, both as ranks."""
    x, y = (np.argsort(np.argsort(values)) + 1 for values in (scores, truth))
    ax.plot(x, y, linestyle="none", markersize=6)
    ax.plot([1, len(x)], [1, len(x)], color="grey", linestyle=":", marker="")
    ax.set(xlabel=f"rank by {criterion}", ylabel="rank by the loss without it")


# The checks of the exercises, whose texts stand in 06.toml


def check_read(answer: Any) -> str | None:
    """Of 300 weights of 0.02 each and 900 of 0.01: who goes by the sum, and who by the mean."""
    names = list(answer) if isinstance(answer, (tuple, list, np.ndarray)) else []
    if len(names) == 2 and all(isinstance(name, (int, float)) for name in names):
        return "those are numbers, and the question is which filter goes: its letter."
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        return 'give two letters: `("by the sum", "by the mean")`.'
    first, last = (str(name).strip().upper() for name in names)
    known = {
        ("A", "B"): None,
        ("B", "A"): "these are the two that *stay*. The lower score goes.",
        ("A", "A"): "by the mean it is the other way round: 0.02 against 0.01 a weight.",
        ("B", "B"): "by the sum it is the other way round: 300 times 0.02 against 900 times 0.01.",
    }
    return known.get((first, last), "give two letters, A or B, for the sum and for the mean.")


SHAPES = ((4, 3, 3, 3), (5, 2, 1, 1), (3, 7), (2, 4, 3, 3))


def check_modify(answer: Any) -> str | None:
    """The sum over a filter's weights of |w g|."""
    source = torch.Generator().manual_seed(6)
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float64):
            weight, gradient = (torch.randn(shape, generator=source, dtype=dtype) for _ in range(2))
            message = _scores(call(answer, weight.clone(), gradient.clone()), weight, gradient)
            if message:
                return message
    return None


def _scores(found: Any, weight: Tensor, gradient: Tensor) -> str | None:
    """One case: the answer's scores beside the right ones, and those of known misconceptions."""
    scores = torch.as_tensor(plain(found) if not torch.is_tensor(found) else found).detach().double()
    product = (weight * gradient).double()
    if scores.shape == weight.shape:
        return "that is one score a weight. A filter leaves as a whole: add up over all of its weights."
    if scores.shape != (len(weight),):
        return f"return one score a filter: {len(weight)} for a weight of shape {tuple(weight.shape)}."

    def total(each: Tensor) -> Tensor:
        return each.double().flatten(1).sum(1)

    wrong = (
        (total(gradient.abs()), "that is the bare gradient: how steep the loss is, not how far removal walks."),
        (total(weight.abs()), "that is magnitude: the data is not asked at all. Multiply by the gradient."),
        (total(product), "you kept the signs. The task asks for the *size* of each weight's change."),
        (total(product).abs(), "you added first, so that weights cancel each other. Take the size of each, then add."),
        (total(product.abs()) / weight[0].numel(), "that is the mean. The task asks for the sum."),
        (total(product.square()), "squared. The task asks for the size itself."),
        (total(weight.abs()) * total(gradient.abs()), "first multiply weight by weight, then add up, not the reverse."),
    )
    if torch.allclose(scores, total(product.abs()), rtol=1e-4, atol=1e-6):
        return None
    near = [message for value, message in wrong if torch.allclose(scores, value, rtol=1e-4, atol=1e-6)]
    return near[0] if near else "each filter's score is the sum, over all of its weights, of the size of w times g."


def check_make(answer: Any) -> str | None:
    """Leave one out: the rise of the loss without each row, the weight given back whole."""
    source = torch.Generator().manual_seed(7)
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float64):
            start = torch.randn(shape, generator=source, dtype=dtype)
            aim = 3 + torch.rand((), generator=source, dtype=dtype)
            message = _left_out(answer, start, float(aim))
            if message:
                return message
    return None


def _left_out(answer: Any, start: Tensor, aim: float) -> str | None:
    """One case, with a loss that is far from 1 and that some rows lower."""
    weight = nn.Parameter(start.clone())

    def loss_of(values: Tensor) -> float:
        return float((values.detach().double().sum() - aim).square() + 0.1 * values.detach().double().square().sum())

    found = call(answer, weight, lambda: loss_of(weight))
    if not torch.equal(weight.detach(), start):
        return "the weight was not put back: restore each row, or the next one is judged without it."
    given = torch.as_tensor([float(x) for x in found], dtype=torch.float64) if hasattr(found, "__len__") else None
    if given is None or len(given) != len(start):
        return f"return one number a row, {len(start)} for a weight of shape {tuple(start.shape)}."
    whole, left = loss_of(start), []
    for row in range(len(start)):
        without = start.clone()
        without[row] = 0
        left.append(loss_of(without))
    rise = torch.tensor(left, dtype=torch.float64) - whole
    wrong = (
        (rise + whole, "that is the loss without each row. Its worth is the *rise*: subtract the loss of the whole."),
        (-rise, "the sign is reversed: a row is important if the loss *rises* without it."),
        (rise.abs(), "you took the size. A row may also do harm: then the loss falls without it."),
        (rise / whole, "you divided by the loss of the whole. The task asks for the rise itself."),
        (rise.square(), "you squared the rise. The task asks for the rise itself, with its sign."),
    )
    if torch.allclose(given, rise, rtol=1e-4, atol=1e-5):
        return None
    near = [message for value, message in wrong if torch.allclose(given, value, rtol=1e-4, atol=1e-5)]
    return near[0] if near else "each number is the loss with that row at zero, minus the loss of the whole."
