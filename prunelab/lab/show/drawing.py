"""A network drawn layer by layer, a square a weight, that is pruned in the page at the pace of the hand.

Everything is measured when the cell runs and travels inside the output: `drawing.js` needs no kernel, no library and
no network. Where no script may run, a picture and a table of the same numbers stand.
"""

from __future__ import annotations

import base64
import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...allocation import allocate
from ...core import Group, Keep, PruneError
from ...criteria import magnitude
from ...granularity import filters, weights
from ...layers import BATCH_NORM, prunable
from ...masking import apply, bake, expand
from ...measurement import macs, stored_bytes
from ...recovery import recalibrate_batchnorm
from ...surgery import shrink
from . import display, figure
from .measuring import measured
from .readings import Reading, read

PERCENT = tuple(range(99))  # the steps of single weights: the sparsity in percent
READ_AT = (0, 50, 60, 70, 80, 90, 95, 98)  # of those, where the network is run
MOST_STEPS = 32  # of whole filters
READ_EVERY = 4  # of those: half, where the slider stands at first, is one
DIGITS = 30  # pictures shown
STATISTICS = 512  # training images on which BatchNorm's statistics are estimated again
MOST_WEIGHTS = 400_000  # a byte each, and an output of at most 1 MB
STAYS, TAKEN = (0, 158, 115), (128, 135, 148)  # a weight above zero, below zero: seen on light and dark, by anyone
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Way:
    """One way to prune, a step at a time: what is left at each step, and what is read at those that were measured."""

    name: str  # "weights" or "filters"
    sparsity: Sequence[float]  # asked for at each step
    weights: list[int]  # that are not zero
    sizes: list[tuple[int, int, int]]  # parameters, bytes as stored, MACs of one sample
    # Step -> what is read with the dense network's BatchNorm statistics, and with statistics estimated again.
    stale: dict[int, Reading] = field(default_factory=dict)
    fresh: dict[int, Reading] = field(default_factory=dict)  # empty without BatchNorm

    def accuracy(self, sparsity: float, fresh: bool = True) -> float:
        """The share that was read correctly at the measured step nearest to a sparsity."""
        found = self.fresh if fresh and self.fresh else self.stale
        return found[min(found, key=lambda step: abs(self.sparsity[step] - sparsity))].accuracy


@dataclass(frozen=True)
class Drawing:
    """The numbers of what was drawn."""

    weights: Way
    filters: Way


def drawing(model: nn.Module, data: Any, *, start: float = 0.7, alt: str = "") -> Drawing:
    """Draw a network that the reader prunes: a slider zeroes the weakest weights, a switch removes whole filters.

    `model` is a plain network of convolutions and linear layers, `data` has `.train` and `.valid` as pairs of tensors,
    square grey pictures first. Magnitude decides: among all weights, and in every layer for filters; nothing is
    retrained. What is read is measured at the steps that the table lists; `start` is the sparsity shown first. The
    model is left as it was. PruneError for a network that can't be drawn so.

    >>> drawing(zoo.checkpoint("digits-cnn"), zoo.load("digits")).weights.weights[70]  # doctest: +SKIP
    24547
    """
    layers = _layers(model, data)
    net = copy.deepcopy(model).eval().to(memory_format=torch.channels_last)  # twice as fast here
    single, lasts = _single_weights(net, data)
    whole, leaves = _whole_filters(net, data)
    pictures, truth = data.valid.tensors
    facts = {
        "layers": layers,
        "ways": [_facts(way) for way in (single, whole)],
        "leaves": {name: steps.tolist() for name, steps in leaves.items()},
        "start": round(100 * start),
        "side": pictures.shape[-1],
        "truth": truth[:DIGITS].tolist(),
        "digits": _bytes(_grey(pictures[:DIGITS])),
        "count": len(data.valid),
        "statistics": min(STATISTICS, len(data.train)),
    }
    alt = alt or "The network drawn layer by layer, a square for each weight; the weakest are gone."
    _show(net, facts, lasts, (single, whole), figure.check_alt(alt))
    return Drawing(single, whole)


# What is measured


def _single_weights(net: nn.Module, data: Any) -> tuple[Way, dict[str, torch.Tensor]]:
    """Weights become zero, the weakest of all first; and for each weight the number of steps for which it stays."""
    groups, scores = weights(net), magnitude(net)
    keeps = [allocate(scores, groups, percent / 100) for percent in PERCENT]

    def pruned(step: int) -> nn.Module:
        sparse = copy.deepcopy(net)
        return bake(apply(sparse, expand(sparse, groups, keeps[step])))

    left = [sum(int(k.sum()) for k in keep.values()) for keep in keeps]
    sizes = [_size(net, data)] * len(PERCENT)  # a zero is stored, and multiplied, like any other number
    way = Way("weights", [p / 100 for p in PERCENT], left, sizes)
    return _read(way, pruned, READ_AT, data), _stays(keeps)


def _whole_filters(net: nn.Module, data: Any) -> tuple[Way, dict[str, torch.Tensor]]:
    """Filters are removed, the weakest of every layer first; and for each filter the steps for which it stays."""
    groups, scores = _filters(net, data), magnitude(net)
    steps = min(MOST_STEPS, *(g.units for g in groups))
    keeps = [allocate(scores, groups, step / steps, "layer") for step in range(steps)]
    small = [shrink(net, groups, keep) for keep in keeps]
    left = [sum(w.numel() for w in prunable(each).values()) for each in small]
    sizes = [_size(each, data) for each in small]
    way = Way("filters", [step / steps for step in range(steps)], left, sizes)
    return _read(way, small.__getitem__, sorted({*range(0, steps, READ_EVERY), steps - 1}), data), _stays(keeps)


def _stays(keeps: Sequence[Keep]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([keep[name] for keep in keeps]).sum(0) for name in keeps[0]}


def _read(way: Way, pruned: Callable[[int], nn.Module], read_at: Sequence[int], data: Any) -> Way:
    for step in read_at:
        net = copy.deepcopy(pruned(step))
        way.stale[step] = read(net, data.valid)
        if any(isinstance(m, BATCH_NORM) and m.running_mean is not None for m in net.modules()):
            recalibrate_batchnorm(net, data.train[:STATISTICS])
            way.fresh[step] = read(net, data.valid)
    return way


def _size(net: nn.Module, data: Any) -> tuple[int, int, int]:
    """Parameters, bytes as stored, MACs of one sample."""
    count = sum(p.numel() for p in net.parameters())
    return count, stored_bytes(net, ["dense"])["dense"], macs(net, data.valid[:1][0])


# What the page gets


def _filters(net: nn.Module, data: Any) -> list[Group]:
    return filters(net, data.valid[:2][0])


def _layers(model: nn.Module, data: Any) -> list[dict[str, Any]]:
    """Each layer's shape, and whose filters its rows and columns are: those of which group, and how many a filter."""
    shapes = {name: tuple(w.shape) for name, w in prunable(model).items()}
    odd = [f"{name} {shape}" for name, shape in shapes.items() if len(shape) not in (2, 4)]
    if odd or not any(len(shape) == 4 for shape in shapes.values()):
        raise PruneError(
            f"the drawing is of 2-d convolutions and linear layers; {type(model).__name__} has "
            f"{', '.join(odd) or 'no convolution'}"
        )
    total = sum(math.prod(shape) for shape in shapes.values())
    if total > MOST_WEIGHTS:
        raise PruneError(f"{type(model).__name__} has {total:,} weights; at most {MOST_WEIGHTS:,} fit in the page")
    members = {(m.tensor, m.dim): (g.name, m.block) for g in _filters(model, data) for m in g.members}
    layers = []
    for name, shape in shapes.items():
        filters, _ = members.get((name, 0), (None, 1))
        inputs, block = members.get((name, 1), (None, 1))
        side = math.isqrt(block)  # a block of a linear layer's columns as a little picture: 4 are 2 x 2
        kernel = shape[2:] or ((side, side) if side * side == block else (1, block))
        layers.append({
            "name": name.removesuffix(".weight"), "rows": shape[0], "columns": shape[1] // block, "kernel": kernel,
            "filters": filters, "inputs": inputs,
        })  # fmt: skip
    return layers


def _facts(way: Way) -> dict[str, Any]:
    """A way as JSON, its accuracies in the measured form."""
    read = {
        kind: {str(step): [measured(r.accuracy, "%"), r.labels[:DIGITS]] for step, r in getattr(way, kind).items()}
        for kind in ("stale", "fresh")
    }
    counts = dict(zip(("parameters", "bytes", "macs"), zip(*way.sizes, strict=True), strict=True))
    return {"name": way.name, "steps": len(way.sparsity), "weights": way.weights, **counts, **read}


def _grey(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures as bytes, each from its darkest to its lightest."""
    low, high = pictures.amin((1, 2, 3), keepdim=True), pictures.amax((1, 2, 3), keepdim=True)
    return ((pictures - low) / (high - low) * 255).round().to(torch.uint8)


def _bytes(values: torch.Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()


# What is shown


def _show(net: nn.Module, facts: dict[str, Any], lasts: dict[str, torch.Tensor], ways: Sequence[Way], alt: str) -> None:
    tensors = prunable(net)
    # A byte a weight: its sign, and for how many steps it stays.
    signed = [lasts[name].flatten() * w.detach().sign().flatten() for name, w in tensors.items()]
    packed = _bytes(torch.cat(signed).to(torch.int8))
    told = base64.b64encode(json.dumps(facts, separators=(",", ":")).encode()).decode()
    _, still = figure.drawing(lambda ax: _still(ax, tensors, facts, lasts), alt, figsize=(8.6, 2.5))
    text, table = figure.render_table("Every measured position of the drawing", _COLUMNS, _rows(ways))
    script, style = ((HERE / f"drawing.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    display.show(
        f"{alt}\n{text}",
        html=(
            f'<div class="pl-drawing" data-facts="data:application/json;base64,{told}" '
            f'data-weights="data:application/octet-stream;base64,{packed}"><style>{style}</style>'
            f'<div class="pl-still">{display.image(still, alt)}<p>Run this cell to make it move.</p></div>'
            f"<details><summary>The same as a table</summary>{table}</details><script>{script}</script></div>"
        ),
        png=still,
        alt=alt,
    )


_COLUMNS: dict[str, str | None] = {
    "what went": None, "weights left": None, "parameters": None, "bytes stored": None, "MACs a digit": None,
    "read, old statistics": "%", "read, statistics estimated again": "%",
}  # fmt: skip


def _rows(ways: Sequence[Way]) -> list[list[Any]]:
    rows = []
    for way in ways:
        for step, stale in way.stale.items():
            fresh = way.fresh[step].accuracy if way.fresh else "no BatchNorm"
            what = f"{100 * way.sparsity[step]:g} % of the {way.name}"
            rows.append([what, way.weights[step], *way.sizes[step], stale.accuracy, fresh])
    return rows


def _still(ax: Any, tensors: Mapping[str, torch.Tensor], facts: dict[str, Any], lasts: dict[str, torch.Tensor]) -> None:
    """The drawing as it stands at first, on white."""
    left = 0
    for layer, (name, weight) in zip(facts["layers"], tensors.items(), strict=True):
        height, width = layer["kernel"]
        grid = (layer["rows"], layer["columns"], height, width)
        stay, sign = (t.reshape(grid).permute(0, 2, 1, 3).flatten(2).flatten(0, 1) for t in (lasts[name], weight))
        tone = (0.3 + 0.7 * (stay / len(PERCENT)) ** 2) * (stay > facts["start"])
        ink = torch.where((sign > 0)[..., None], torch.tensor(STAYS), torch.tensor(TAKEN))
        picture = (255 - tone[..., None] * (255 - ink)).to(torch.uint8).numpy()
        ax.imshow(np.asarray(picture), extent=(left, left + picture.shape[1], picture.shape[0], 0))
        ax.text(left, -6, layer["name"], va="bottom", fontsize=9)
        left += max(picture.shape[1], 30) + 22
    ax.set(xlim=(0, left), ylim=(195, -20), aspect="equal")
    ax.axis("off")
