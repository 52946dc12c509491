"""Lesson 00, "What can a network lose?": its drawings and the checks of its exercises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from ...text import percent
from ..learn.claim import plain
from ..learn.exercise import call
from ..show.figure import SHADES
from ..show.plots import RIGHT, WRONG

# The drawing


ROW = 8  # pictures in a row
GAP, LABEL = 2, 6  # pixels beside a picture, and below it for what it is, or was read as


def filmstrip(ax: Axes, images: Tensor, labels: Tensor, stages: Mapping[str, Tensor] | None = None) -> None:
    """Small pictures (n, 1, h, w) in rows of eight, under each what it is.

    With stages, what is read of every picture by name: the first eight in a row a stage, under each what is read of it,
    a wrong one framed, and beside the row the share of all that is right.
    """
    side, first = images.shape[-1], range(0, ROW)
    wide, high = side + GAP, side + LABEL
    rows = [range(i, i + ROW) for i in range(0, len(images), ROW)] if stages is None else [first] * len(stages)
    read = [labels] * len(rows) if stages is None else list(stages.values())
    board = torch.zeros(len(rows) * high, ROW * wide)
    for row, picked in enumerate(rows):
        for i, picture in enumerate(picked):
            x, y, found, truth = i * wide, row * high, int(read[row][picture]), int(labels[picture])
            board[y : y + side, x : x + side] = images[picture, 0]
            wrong = found != truth
            text = f"✗ {found} (is {truth})" if wrong else str(truth)
            ax.text(x + side / 2, y + side + 2.4, text, ha="center", va="center", fontsize=9,
                    color=WRONG if wrong else RIGHT, fontweight="bold" if wrong else "normal")  # fmt: skip
            if wrong:
                frame = [x, x + side, x + side, x, x], [y, y, y + side, y + side, y]
                ax.plot(*frame, color=WRONG, lw=2, ls="-", marker="")
    for row, (name, all_read) in enumerate((stages or {}).items()):
        text = f"{name}\n{percent(float((all_read == labels).double().mean()), digits=0)} read correctly"
        ax.text(-GAP, row * high + side / 2, text, ha="right", va="center", fontsize=9)
    ax.imshow(board.numpy(), cmap=SHADES, vmin=0, vmax=1, extent=(0, ROW * wide, len(rows) * high, 0))
    ax.set(xlim=(-1, ROW * wide), ylim=(len(rows) * high, -1))
    ax.set_aspect("equal", anchor="W")  # at the left, where the layout has left room for the names of the rows
    ax.axis("off")


# The checks of the exercises, whose texts stand in 00.toml


# Layers of very different size and density, so that no wrong way of counting lands on the right number.
MASKS = {
    "conv.weight": torch.arange(40).reshape(4, 10) % 4 != 0,  # 10 of 40 are zero
    "fc.weight": torch.arange(400).reshape(20, 20) % 10 == 0,  # 360 of 400 are zero
}
ZEROS, TOTAL = 370, 440


def check_sparsity(answer: Any) -> str | None:
    """One pruned share over all weights of all layers."""
    value = plain(call(answer, {name: mask.clone() for name, mask in MASKS.items()}))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "sparsity is one number for the whole network; your function returned something else."
    known = (
        (1 - ZEROS / TOTAL, "that is the density, the share that is *kept*. Sparsity is the share that is zero."),
        (ZEROS, "that is how many weights are zero. Sparsity is their share: divide by how many there are."),
        (TOTAL - ZEROS, "that is how many weights are kept. Sparsity is the share that is zero."),
        (100 * ZEROS / TOTAL, "you gave a percentage; this course writes sparsity as a fraction, 0.9 and not 90."),
        ((10 / 40 + 360 / 400) / 2, "you averaged the layers' sparsities, so a small one counts like a big one. "
                                    "Count the zeros of all layers, then divide once."),
        (10 / 40, "you looked at the first layer only. Add up all layers before you divide."),
        (360 / 400, "you looked at the last layer only. Add up all layers before you divide."),
    )  # fmt: skip
    if abs(value - ZEROS / TOTAL) < 1e-6:
        return None
    near = [message for wrong, message in known if abs(value - wrong) < 1e-6]
    return near[0] if near else f"for masks with {ZEROS} zeros among {TOTAL} entries it gave {value:g}."


def check_survivors(answer: Any) -> str | None:
    """9,872 weights at 87.5 %: 1,234 stay."""
    value = plain(answer)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "the answer is one number: how many weights survive."
    biases = "you counted the biases too. Pruning leaves them alone: they are few, and every output needs its own."
    known = {
        8638: "that many are *removed*. The survivors are the rest.",
        9786: "you took 87.5 for 0.875 %: a sparsity of 87.5 % is the fraction 0.875, almost nine in ten.",
        1241: biases,
        1241.25: biases,
        1242: biases,
        0.125: "that is the share that survives; the question is how many weights that is.",
        9872: "that is all of them. A sparsity of 87.5 % takes seven in eight away: how many stay?",
        594: "you counted the convolutions only. The fully connected layer holds about half of the weights.",
        640: "you counted the fully connected layer only. The convolutions are pruned too.",
    }
    if value == 1234:
        return None
    return known.get(value, f"{value:,} is not it. Count each layer's weights first, without the biases.")
