"""The drawings of notebook 12: what heads look at, what is lost without each, how many can go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

from ..show import plots
from ..show.measuring import measured

GAP = 3  # white pixels between two heads
OFF = 0.9  # the grey of a head that is gone


def looks(
    ax: Axes, picture: Tensor, maps: Sequence[Tensor], kept: Sequence[str] | None = None, title: str = ""
) -> None:
    """What the class token looks at, a row a block, a column a head: attention in orange over the digit.

    picture (h, w); maps of each block (heads, tokens, tokens), of this picture. `kept` says of each block, "1101...",
    which heads are there; the others are grey.
    """
    side = picture.shape[-1]
    heads = len(maps[0])
    board = np.ones((len(maps) * (side + GAP) - GAP, heads * (side + GAP) - GAP, 3))
    for b, block in enumerate(maps):
        for h, attention in enumerate(block[:, 0, 1:]):
            there = kept is None or kept[b][h] == "1"
            top, left = b * (side + GAP), h * (side + GAP)
            board[top : top + side, left : left + side] = _look(picture, attention) if there else OFF
    ax.imshow(board)
    ax.set_xticks(np.arange(heads) * (side + GAP) + side / 2, [str(h) for h in range(heads)])
    ax.set_yticks(np.arange(len(maps)) * (side + GAP) + side / 2, [str(b) for b in range(len(maps))])
    ax.set(xlabel="head", ylabel="block", title=title)
    ax.tick_params(length=0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _look(picture: Tensor, attention: Tensor) -> np.ndarray:
    """One head: its attention to each patch as a shade of orange, the ink of the digit over it. (h, w, 3)."""
    cells = round(len(attention) ** 0.5)
    grid = (attention / attention.max()).view(cells, cells)
    pixels = torch.kron(grid, torch.ones(picture.shape[-1] // cells, picture.shape[-1] // cells))
    ink = picture.clamp(0, 1).numpy()[..., None]
    return colormaps["Oranges"](0.75 * pixels.numpy())[..., :3] * (1 - 0.8 * ink)


def board(ax: Axes, picture: Tensor, maps: Sequence[Tensor], run: Mapping[str, Any]) -> None:
    """The heads that a run of the grid has left, under what the network reads without the others."""
    there = sum(block.count("1") for block in run["kept"])
    title = f"{there} heads: {run['before']:.0%} read correctly; {run['after']:.0%} after a short retraining"
    looks(ax, picture, maps, run["kept"], title)


def missed(ax: Axes, rises: Mapping[str, Tensor]) -> None:
    """How much the loss rises without each head, a row a block, a column a head."""
    table = torch.stack(list(rises.values())).numpy()
    most = float(np.abs(table).max())
    ax.imshow(table, cmap="PuOr_r", vmin=-most, vmax=most)
    for (b, h), value in np.ndenumerate(table):
        ax.text(h, b, f"{value:+.3f}", ha="center", va="center", fontsize=8.5,
                color="white" if abs(value) > 0.7 * most else "black")  # fmt: skip
    ax.set_xticks(range(table.shape[1]))
    ax.set_yticks(range(len(table)))
    ax.set(xlabel="head", ylabel="block")
    ax.grid(False)


def orders(axes: Sequence[Axes], removed: Sequence[int], before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Accuracy against heads removed, a curve an order, without and with retraining."""
    for ax, title, runs in zip(axes, ("without retraining", "after a short retraining"), (before, after), strict=True):
        plots.curves(ax, removed, runs, ylabel="test accuracy", legend=ax is axes[0])
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0f}")
        ax.set(title=title, xlabel="heads removed, of 32", xticks=[0, 8, 16, 24, 28])
    axes[1].set_ylabel("")


def reads(run: Mapping[str, Any]) -> dict[str, str]:
    """`board` in words: the heads left in each block, and what the network then reads."""
    left = {f"block {i}": block.count("1") for i, block in enumerate(run["kept"], 1)}
    return {**{name: str(heads) for name, heads in left.items()}, "read correctly": measured(run["before"], "%")}
