"""The drawings that several notebooks share. Each draws on axes that it is given, and shows nothing by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from torch import Tensor

from ...measurement import Roofline
from ..lessons.readings import Reading
from .figure import COLOURS, SHADES
from .vector import INK, PAPER

ROW = 8  # pictures in a row of a gallery
RIGHT, WRONG = COLOURS[0], COLOURS[1]


def gallery(ax: Axes, images: Tensor, truth: Sequence[int], read: Sequence[int] | None = None, title: str = "") -> None:
    """Small pictures (n, h, w) in rows of eight; under each what it is, or what was read of it, marked where wrong."""
    side, rows = images.shape[-1], -(-len(images) // ROW)
    wide, high = side + 2, side + 6  # of a picture with its margin and its label
    board = torch.zeros(rows * high, ROW * wide)
    for i, image in enumerate(images):
        x, y = (i % ROW) * wide, (i // ROW) * high
        board[y : y + side, x : x + side] = image
        wrong = read is not None and read[i] != truth[i]
        text = f"✗ {read[i]} (is {truth[i]})" if read is not None and wrong else str(truth[i])
        ax.text(x + side / 2, y + side + 2.4, text, ha="center", va="center", fontsize=9,
                color=WRONG if wrong else RIGHT, fontweight="bold" if wrong else "normal")  # fmt: skip
        if wrong:
            ax.plot([x, x + side, x + side, x, x], [y, y, y + side, y + side, y], color=WRONG, lw=2, ls="-", marker="")
    ax.imshow(board.numpy(), cmap=SHADES, vmin=0, vmax=1, extent=(0, ROW * wide, rows * high, 0))
    ax.set(xlim=(-1, ROW * wide), ylim=(rows * high, -1), title=title)
    ax.set_aspect("equal")
    ax.axis("off")


def read_gallery(ax: Axes, images: Tensor, truth: Sequence[int], found: Reading) -> None:
    """The first pictures of a reading, with the share of all that it has right."""
    title = f"{found.accuracy:.0%} of {len(found.labels):,} digits read correctly"
    gallery(ax, images, truth, found.labels[: len(images)], title)


def curves(
    ax: Axes, x: Sequence[float], runs: Mapping[str, Any], *, ylabel: str = "validation accuracy", legend: bool = True
) -> None:
    """Accuracy against sparsity: for each name an array (seeds, points), drawn as mean and range of the seeds."""
    for name, values in runs.items():
        table = np.atleast_2d(np.asarray(values, dtype=float))
        (line,) = ax.plot(x, table.mean(0), label=name)
        if len(table) > 1:
            ax.fill_between(x, table.min(0), table.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set(xlabel="sparsity (share of the weights that are zero)", ylabel=ylabel, ylim=(0, 1))
    if legend:
        ax.legend()


def histogram(ax: Axes, weights: Tensor, removed: Tensor, title: str = "") -> None:
    """How many weights have which value, those that go drawn apart from those that stay."""
    edges = np.linspace(-float(weights.abs().max()), float(weights.abs().max()), 121).tolist()
    ax.hist(weights[removed].numpy(), edges, color=WRONG, hatch="////", edgecolor=PAPER, lw=0, label="go")
    stays = weights[~removed].numpy()
    ax.hist(stays, edges, color=RIGHT, label="stay", histtype="step", lw=1.6)
    ax.set(xlabel="weight", ylabel="how many (logarithmic)", yscale="log", title=title)
    ax.legend()


def matrices(axes: Sequence[Axes], pictures: Mapping[str, Tensor]) -> None:
    """Matrices as pictures side by side: weights in two colours around zero, masks in black (stays)."""
    for ax, (title, matrix) in zip(axes, pictures.items(), strict=True):
        if matrix.dtype == torch.bool:
            ax.imshow(matrix.numpy(), cmap=SHADES, vmin=0, vmax=1, aspect="auto")
        else:
            most = float(matrix.abs().max())
            ax.imshow(matrix.numpy(), cmap="PuOr", vmin=-most, vmax=most, aspect="auto")
        ax.set(title=title, xlabel="input", ylabel="output")
        ax.grid(False)


def choices(ax: Axes, x: Tensor, y: Tensor, kept_x: Tensor, kept_y: Tensor, labels: tuple[str, str]) -> None:
    """Units by two scores, marked by whether both scores keep them, neither, or only one."""
    for name, where in (
        ("both keep it", kept_x & kept_y),
        ("both remove it", ~kept_x & ~kept_y),
        ("they disagree", kept_x ^ kept_y),
    ):
        ax.plot(x[where].numpy(), y[where].numpy(), linestyle="none", label=name, markersize=7)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.legend()


def marked_curve(
    ax: Axes,
    x: Sequence[float],
    runs: Mapping[str, Sequence[float]],
    chosen: str,
    at: float,
    xlabel: str = "share removed",
) -> None:
    """Several curves, one of them in full and the others pale, with one of its points marked and read out."""
    for name, values in runs.items():
        ax.plot(x, values, label=name, alpha=1.0 if name == chosen else 0.3)
    y = runs[chosen][list(x).index(at)]
    ax.plot([at], [y], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=INK, linestyle="none")
    ax.annotate(f"{y:.0%}", (at, y), textcoords="offset points", xytext=(12, 8), fontweight="bold")
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set(xlabel=xlabel, ylabel="validation accuracy", ylim=(0, 1.08))
    ax.legend(loc="upper right")


def crossings(ax: Axes, runs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """How many times faster than dense, against the share of zeros, on logarithmic axes: each further tenth counts."""
    ax.axhline(1, color=INK, lw=1.2, ls="-", marker="")
    for name, (sparsities, ratios) in runs.items():
        ax.plot([1 - s for s in sparsities], ratios, label=name)
    levels = sorted({s for sparsities, _ in runs.values() for s in sparsities})
    ax.set(xscale="log", yscale="log", xlabel="zeros", ylabel="times faster than dense")
    ax.invert_xaxis()  # more zeros to the right
    ax.set_xticks([1 - s for s in levels], [f"{s:.0%}" for s in levels])
    ax.set_yticks(_POWERS, [f"{v:g}×" for v in _POWERS])
    ax.minorticks_off()
    low, high = (pick(r for _, ratios in runs.values() for r in ratios) for pick in (min, max))
    ax.set_ylim(min(low, 0.9) / 1.3, max(high, 1.1) * 1.3)
    ax.legend()


_POWERS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


def roof(ax: Axes, runs: Mapping[str, Roofline]) -> None:
    """Each layer that computes, under the roof of the machine: MACs a byte against MACs a second."""
    machine = next(iter(runs.values())).machine
    x = np.geomspace(0.05, 500, 200)
    for n, (_, rate) in enumerate(machine.bandwidths):
        last = n == len(machine.bandwidths) - 1
        name = "the roof, bytes from memory" if last else "the roof, bytes from a cache" if n == 0 else None
        style: dict[str, Any] = {"color": INK if last else "#999999", "ls": "-" if last else ":", "marker": ""}
        if name:
            ax.plot(x, np.minimum(machine.peak, x * rate) / 1e9, label=name, lw=2 if last else 1.5, **style)
    places = {name: _attained(found) for name, found in runs.items()}
    for layer in places[next(iter(runs))]:
        ax.plot(*zip(*(own[layer] for own in places.values()), strict=True), color="#999999", lw=0.8, ls="-", marker="")
    for name, own in places.items():
        ax.plot(*zip(*own.values(), strict=True), ls="none", label=name, markersize=7)
    ax.set(xscale="log", yscale="log", xlabel="MACs for each byte moved", ylabel="billion MACs a second")
    ax.set_xlim(0.1, 200)
    ax.set_ylim(top=machine.peak / 1e9 * 3)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda v, _: f"{v:g}")
    ax.legend(loc="lower right", fontsize=9)
    name_points(ax, places[next(iter(runs))])


def _attained(found: Roofline) -> dict[str, tuple[float, float]]:
    """Of each layer that computes, its MACs a byte and the billion MACs a second that it reached."""
    return {x.name: (x.intensity, x.macs / x.measured.p50 / 1e9) for x in found.layers if x.macs}


_PAPER = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.6}


def name_points(ax: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Names above their points, each as low as no other name or point is in its way; to be called last."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # from here on, the layout is known
    places = {name: ax.transData.transform(at) for name, at in points.items()}
    taken = [Bbox.from_extents(*(at - 5), *(at + 5)) for at in places.values()]
    for name in sorted(points, key=lambda name: points[name]):
        label = ax.annotate(
            name, points[name], textcoords="offset points", ha="center", fontsize=8, xytext=(0, 8), bbox=_PAPER
        )
        for height in range(6, 90, 3):
            label.xyann = (0, height)
            box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def predicted(ax: Axes, found: Roofline) -> None:
    """Layer by layer, the time the machine should need at best beside the time it took."""
    places = np.arange(len(found.layers))
    for shift, (name, times) in enumerate(
        {"at best": [x.predicted for x in found.layers], "measured": [x.measured.p50 for x in found.layers]}.items()
    ):
        hatch = None if shift else "////"
        where = places + 0.4 * (shift - 0.5)
        ax.barh(
            where,
            [1e3 * t for t in times],
            0.38,
            label=name,
            color=COLOURS[shift],
            hatch=hatch,
            edgecolor=PAPER,
            lw=0,
        )
    ax.set_yticks(places, [layer.name for layer in found.layers])
    ax.invert_yaxis()
    ax.set(xlabel="milliseconds")
    ax.legend(loc="lower right")


def speed_curve(
    ax: Axes,
    batches: Sequence[int],
    runs: Mapping[str, Sequence[float]],
    promises: Mapping[str, float],
    structure: str,
    batch_size: int,
) -> None:
    """Times faster than dense against the batch size: one curve in full, the others pale, and what its MACs promise."""
    ax.axhline(promises[structure], color=INK, ls=(0, (4, 3)), lw=1.4, marker="", label="what the MACs promise")
    for name, values in runs.items():
        ax.plot(batches, values, label=name, alpha=1.0 if name == structure else 0.25)
    y = runs[structure][list(batches).index(batch_size)]
    ax.plot([batch_size], [y], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=INK, linestyle="none")
    ax.annotate(
        f"{y:.2f}×", (batch_size, y), textcoords="offset points", xytext=(0, 11), ha="center", fontweight="bold"
    )
    ax.margins(x=0.1)
    ax.set(xscale="log", xlabel="batch size", ylabel="times faster than dense")
    ax.set_ylim(0, 1.15 * max(*promises.values(), *(y for values in runs.values() for y in values)))
    ax.set_xticks(list(batches), [str(b) for b in batches])
    ax.minorticks_off()
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)


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


def before_after(axes: Sequence[Axes], x: Sequence[float], before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Two panels of the same curves: without and with retraining."""
    for ax, title, runs in zip(axes, ("without retraining", "after one epoch"), (before, after), strict=True):
        curves(ax, x, runs, ylabel="test accuracy", legend=ax is axes[1])
        ax.set(title=title, xlabel="sparsity")
    axes[1].set_ylabel("")


def by_hand(ax: Axes, shares: Mapping[str, float], seen: Mapping[tuple[float, ...], tuple[float, float]]) -> None:
    """What each layer has lost, as bars, under the accuracy and the sparsity of the whole."""
    accuracy, sparsity = seen[tuple(shares.values())]
    ax.bar(list(shares), list(shares.values()), color=WRONG, hatch="////", edgecolor=PAPER, linewidth=0)
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set(ylim=(0, 1), ylabel="removed of the layer")
    ax.set_title(f"{accuracy:.0%} read correctly, {sparsity:.0%} of all weights removed")
    ax.grid(axis="x", visible=False)


def layer_scan(ax: Axes, x: Sequence[float], accuracy: Mapping[str, Sequence[float]], dense: float) -> None:
    """A scan: one curve a layer, pruned alone, below the line of the whole network."""
    for name, values in accuracy.items():
        ax.plot([0.0, *x], [dense, *values], label=name)
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set(xlabel="removed of this layer alone", ylabel="validation accuracy", ylim=(0, 1))
    ax.legend(title="layer", ncols=2, loc="lower left")


def bars_over_networks(ax: Axes, values: Mapping[str, Sequence[float]], xlabel: str) -> None:
    """One horizontal bar a name, its mean, with a mark for every network."""
    for row, found in enumerate(values.values()):
        ax.barh(row, float(np.mean(found)), color=RIGHT, alpha=0.75)
        ax.plot(found, [row] * len(found), linestyle="none", marker="o", color=INK, markersize=3.5)
    ax.set_yticks(range(len(values)), list(values))
    ax.invert_yaxis()
    ax.axvline(0, color=INK, lw=0.8, marker="", linestyle="-")
    ax.set(xlabel=xlabel)
    ax.grid(axis="y", visible=False)


def judged(ax: Axes, run: Mapping[str, Any]) -> None:
    """What a criterion said of each filter of a layer, against the loss without it, both as ranks."""
    x, y = (np.argsort(np.argsort(run[key])) + 1 for key in ("scores", "truth"))
    ax.plot(x, y, linestyle="none", markersize=6)
    ax.plot([1, len(x)], [1, len(x)], color="grey", linestyle=":", marker="")
    ax.set(xlabel=f"rank by {run['criterion']}", ylabel="rank by the loss without it")
    ax.set_title(f"{len(x)} filters of {run['layer']}")
