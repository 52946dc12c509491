"""The drawings that several notebooks share. Each draws on axes that it is given, and shows nothing by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ..measurement import Roofline
from .figures import COLOURS
from .readings import Reading

ROW = 8  # pictures in a row of a gallery
RIGHT, WRONG = COLOURS[0], COLOURS[1]


def gallery(ax: Axes, images: Tensor, truth: Sequence[int], read: Sequence[int] | None = None, title: str = "") -> None:
    """Small pictures (n, h, w) in rows of eight; under each what it is, or what was read, wrong ones marked."""
    side = images.shape[-1]
    rows = -(-len(images) // ROW)
    for i, image in enumerate(images):
        x, y = (i % ROW) * (side + 2), (i // ROW) * (side + 6)
        ax.imshow(image, cmap="gray_r", extent=(x, x + side, y + side, y), vmin=0, vmax=1)
        wrong = read is not None and read[i] != truth[i]
        text = str(truth[i]) if read is None else f"{read[i]}"
        ax.text(x + side / 2, y + side + 2.4, f"✗ {text}" if wrong else text, ha="center", va="center", fontsize=9,
                color=WRONG if wrong else RIGHT, fontweight="bold" if wrong else "normal")  # fmt: skip
        if wrong:
            ax.plot([x, x + side, x + side, x, x], [y, y, y + side, y + side, y], color=WRONG, lw=2, ls="-", marker="")
    ax.set(xlim=(-1, ROW * (side + 2)), ylim=(rows * (side + 6), -1), title=title)
    ax.set_aspect("equal")
    ax.axis("off")


def read_gallery(ax: Axes, images: Tensor, truth: Sequence[int], found: Reading) -> None:
    """The first pictures of a reading, with the share of all that it has right."""
    title = f"{found.accuracy:.0%} of {len(found.labels):,} digits read correctly"
    gallery(ax, images, truth, found.labels[: len(images)], title)


def curves(ax: Axes, x: Sequence[float], runs: Mapping[str, Any], *, ylabel: str = "validation accuracy") -> None:
    """Accuracy against sparsity: for each name an array (seeds, points), drawn as mean and range of the seeds."""
    for name, values in runs.items():
        table = np.atleast_2d(np.asarray(values, dtype=float))
        (line,) = ax.plot(x, table.mean(0), label=name)
        if len(table) > 1:
            ax.fill_between(x, table.min(0), table.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set(xlabel="sparsity (share of the weights that are zero)", ylabel=ylabel, ylim=(0, 1))
    ax.legend()


def histogram(ax: Axes, weights: Tensor, removed: Tensor, title: str = "") -> None:
    """How many weights have which value, those that go drawn apart from those that stay."""
    edges = np.linspace(-float(weights.abs().max()), float(weights.abs().max()), 121).tolist()
    ax.hist(weights[removed].numpy(), edges, color=WRONG, hatch="////", edgecolor="white", lw=0, label="go")
    stays = weights[~removed].numpy()
    ax.hist(stays, edges, color=RIGHT, label="stay", histtype="step", lw=1.6)
    ax.set(xlabel="weight", ylabel="how many (logarithmic)", yscale="log", title=title)
    ax.legend()


def matrices(axes: Sequence[Axes], pictures: Mapping[str, Tensor]) -> None:
    """Matrices as pictures side by side: weights in two colours around zero, masks in black (stays)."""
    for ax, (title, matrix) in zip(axes, pictures.items(), strict=True):
        if matrix.dtype == torch.bool:
            ax.imshow(matrix, cmap="gray_r", vmin=0, vmax=1, aspect="auto")
        else:
            most = float(matrix.abs().max())
            ax.imshow(matrix, cmap="PuOr", vmin=-most, vmax=most, aspect="auto")
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
    ax.plot([at], [y], marker="o", markersize=13, markerfacecolor="none", markeredgecolor="black", linestyle="none")
    ax.annotate(f"{y:.0%}", (at, y), textcoords="offset points", xytext=(12, 8), fontweight="bold")
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set(xlabel=xlabel, ylabel="validation accuracy", ylim=(0, 1.08))
    ax.legend(loc="upper right")


def crossings(ax: Axes, runs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """How many times faster than dense, against the share of zeros, on logarithmic axes: each further tenth counts."""
    ax.axhline(1, color="black", lw=1.2, ls="-", marker="")
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
        style: dict[str, Any] = {"color": "black" if last else "#999999", "ls": "-" if last else ":", "marker": ""}
        if name:
            ax.plot(x, np.minimum(machine.peak, x * rate) / 1e9, label=name, lw=2 if last else 1.5, **style)
    for name, found in runs.items():
        layers = [layer for layer in found.layers if layer.macs]
        reached = [layer.macs / layer.measured.p50 / 1e9 for layer in layers]
        ax.plot([layer.intensity for layer in layers], reached, ls="none", label=name, markersize=7)
        for layer, height in zip(layers, reached, strict=True):
            ax.annotate(layer.name, (layer.intensity, height), textcoords="offset points", xytext=(6, -10), fontsize=8)
    ax.set(xscale="log", yscale="log", xlabel="MACs for each byte moved", ylabel="billion MACs a second")
    ax.set_xlim(0.1, 200)
    ax.set_ylim(top=machine.peak / 1e9 * 2)
    ax.legend(loc="lower right", fontsize=9)


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
            edgecolor="white",
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
    ax.axhline(promises[structure], color="black", ls=(0, (4, 3)), lw=1.4, marker="", label="what the MACs promise")
    for name, values in runs.items():
        ax.plot(batches, values, label=name, alpha=1.0 if name == structure else 0.25)
    y = runs[structure][list(batches).index(batch_size)]
    ax.plot(
        [batch_size], [y], marker="o", markersize=13, markerfacecolor="none", markeredgecolor="black", linestyle="none"
    )
    ax.annotate(
        f"{y:.2f}×", (batch_size, y), textcoords="offset points", xytext=(-8, 11), ha="right", fontweight="bold"
    )
    ax.set(xscale="log", xlabel="batch size", ylabel="times faster than dense")
    ax.set_ylim(0, 1.15 * max(*promises.values(), *(y for values in runs.values() for y in values)))
    ax.set_xticks(list(batches), [str(b) for b in batches])
    ax.minorticks_off()
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
