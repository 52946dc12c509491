"""The drawings of notebook 06, on axes that they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..show.figure import COLOURS
from ..show.measuring import measured
from ..show.plots import bars_over_networks, curves
from ..show.vector import INK
from .returning import interval, point_of_no_return


def cliff(ax: Axes, sparsities: Sequence[float], runs: Mapping[str, Any], dense: Sequence[float]) -> None:
    """Accuracy against sparsity for several budgets, under the line of the dense networks' mean."""
    curves(ax, sparsities, runs, ylabel="test accuracy", legend=False)
    ax.axhline(float(np.mean(dense)), color=INK, lw=1.2, ls=(0, (4, 3)), marker="", label="dense")
    ax.set_xticks(list(sparsities), [f"{s:.0%}" for s in sparsities])
    ax.set_ylim(0, 1.04)
    ax.legend(loc="center left")


def no_return(ax: Axes, sparsities: Sequence[float], table: np.ndarray, dense: Sequence[float], within: float) -> None:
    """One budget's curve, the line that is good enough, and where the one falls below the other, with its interval."""
    curves(ax, sparsities, {"five networks": table}, ylabel="test accuracy", legend=False)
    enough = float(np.mean(dense)) - within
    ax.axhline(enough, color=INK, lw=1.2, ls=(0, (4, 3)), marker="")
    found = point_of_no_return(sparsities, table, dense, within)
    if np.isnan(found).any():
        early = bool((table[:, 0] < np.asarray(dense) - within).any())
        where = "not even at the first point" if early else "beyond the last point"
        ax.set_title(f"within {100 * within:g} points of dense: for some network {where}", fontsize=10)
    else:
        at = interval(found)
        ax.axvspan(at.low, at.high, color=COLOURS[1], alpha=0.25, lw=0)
        ax.axvline(at.mean, color=COLOURS[1], lw=1.6, ls="-", marker="")
        ax.set_title(f"within {100 * within:g} points of dense up to {at.mean:.1%} [{at.low:.1%}, {at.high:.1%}]")
    ax.set_xticks(list(sparsities), [f"{s:.0%}" for s in sparsities])
    ax.set_ylim(max(0, enough - 0.3), 1)  # near the line: there it is decided


def ways(axes: Sequence[Axes], found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """A panel of bars for each title: one bar a way, a mark for each network."""
    for ax, (title, values) in zip(axes, found.items(), strict=True):
        bars_over_networks(ax, values, "test accuracy")
        ax.set(title=title, xlim=(0, 1))
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        if not ax.yaxis_inverted():  # a shared axis was turned once for each panel
            ax.invert_yaxis()


def edge(sparsities: Sequence[float], table: np.ndarray, dense: Sequence[float], within: float) -> dict[str, str]:
    """`no_return` in words: the point of no return and its interval, or that it lies off the curve."""
    found = point_of_no_return(sparsities, table, dense, within)
    if np.isnan(found).any():
        return {"returns up to": "beyond the curve's ends", "95 % interval": ""}
    at = interval(found)
    low, high = measured(at.low, "%"), measured(at.high, "%")
    return {"returns up to": measured(at.mean, "%"), "95 % interval": f"{low} to {high}"}
