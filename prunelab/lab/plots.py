"""The drawings that several notebooks share. Each draws on axes that it is given, and shows nothing by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

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
