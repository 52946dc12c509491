"""The drawings that several notebooks share. Each draws on axes that it is given, and shows nothing by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ...text import percent
from .figure import COLOURS
from .vector import INK

RIGHT, WRONG = COLOURS[0], COLOURS[1]


def curves(
    ax: Axes, x: Sequence[float], runs: Mapping[str, Any], *, ylabel: str = "validation accuracy", legend: bool = True
) -> None:
    """Accuracy against sparsity: for each name an array (seeds, points), drawn as mean and range of the seeds."""
    for name, values in runs.items():
        table = np.atleast_2d(np.asarray(values, dtype=float))
        (line,) = ax.plot(x, table.mean(0), label=name)
        if len(table) > 1:
            ax.fill_between(x, table.min(0), table.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    ax.xaxis.set_major_formatter(lambda v, _: percent(v, digits=0))
    ax.yaxis.set_major_formatter(lambda v, _: percent(v, digits=0))
    ax.set(xlabel="sparsity (share of the weights that are zero)", ylabel=ylabel, ylim=(0, 1))
    if legend:
        ax.legend()


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
