"""The drawings of notebook 05: who is kept, where movement wins, and the race."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from ..show.figure import COLOURS
from ..show.measuring import measured
from ..show.vector import INK

ROWS = {"movement": "movement", "magnitude": "magnitude", "dense": "not pruned"}


def kept_of(axes: Sequence[Axes], found: Mapping[str, Mapping[str, Tensor]]) -> None:
    """A panel a method: each weight by its value before and after fine-tuning, the kept ones marked."""
    for ax, (name, weights) in zip(axes, found.items(), strict=True):
        kept = weights["kept"]
        gone_x, gone_y = weights["before"][~kept], weights["after"][~kept]
        kept_x, kept_y = weights["before"][kept], weights["after"][kept]
        ax.plot(gone_x, gone_y, linestyle="none", color="#BBBBBB", marker=".", markersize=2, label="removed")
        ax.plot(kept_x, kept_y, linestyle="none", color=COLOURS[0], marker="o", markersize=3, label="kept")
        ax.axhline(0, color=INK, lw=0.8, ls="-", marker="")
        ax.axvline(0, color=INK, lw=0.8, ls="-", marker="")
        ax.set(xlabel="weight before fine-tuning", title=name)
    axes[0].set_ylabel("weight after")
    axes[0].legend(loc="upper left", markerscale=2.5)


def advantage(ax: Axes, rates: Sequence[float], left: Sequence[float], ahead: np.ndarray, low: np.ndarray,
              high: np.ndarray) -> None:  # fmt: skip
    """A map (rates, left) of how many points one method is ahead; what an interval leaves open is marked by a ring."""
    most = float(np.abs(ahead).max())
    ax.imshow(100 * ahead, cmap="PuOr", vmin=-100 * most, vmax=100 * most, aspect="auto")
    for row, column in np.ndindex(ahead.shape):
        value, open_ = 100 * ahead[row, column], low[row, column] <= 0 <= high[row, column]
        dark = abs(ahead[row, column]) > 0.6 * most
        ax.text(column, row, f"{value:+.0f}" + (" ○" if open_ else ""), ha="center", va="center",
                color="white" if dark else "black", fontsize=12)  # fmt: skip
    ax.set_xticks(range(len(left)), [f"{x:.0%}" for x in left])
    ax.set_yticks(range(len(rates)), [f"{x:.5f}".rstrip("0") for x in rates])
    ax.set(xlabel="weights left", ylabel="learning rate of the weights")
    ax.grid(False)


def race(axes: Sequence[Axes], left: Sequence[float], panels: Mapping[str, Mapping[str, np.ndarray]],
         soft: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:  # fmt: skip
    """A panel a learning rate: accuracy against what is left, (networks, points) a method, as mean and range.

    `soft` has single runs, (densities, accuracies) by panel: what is left there nobody can choose.
    """
    for ax, (title, runs) in zip(axes, panels.items(), strict=True):
        for name, table in runs.items():
            (line,) = ax.plot(left, table.mean(0), label=name)
            ax.fill_between(left, table.min(0), table.max(0), color=line.get_color(), alpha=0.18, linewidth=0)
        ax.plot(*soft[title], linestyle="none", marker="x", color=INK, markersize=5, label="soft movement, each run")
        ax.set_xscale("log")
        ax.invert_xaxis()
        ax.set_xticks(list(left), [f"{x:.0%}" for x in left])
        ax.minorticks_off()
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        ax.set(xlabel="weights left", title=title, ylim=(0.15, 1.0))
    axes[0].set_ylabel("test accuracy on the new digits")
    axes[-1].legend(loc="lower left", fontsize=9)


def stayed(ax: Axes, rates: Sequence[float], runs: Mapping[str, np.ndarray]) -> None:
    """Of the weights a method keeps, the share that was largest before fine-tuning, against the learning rate."""
    for name, table in runs.items():
        (line,) = ax.plot(rates, table.mean(0), label=name)
        ax.fill_between(rates, table.min(0), table.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xscale="log", ylim=(0, 1), xlabel="learning rate of the weights", ylabel="kept that were largest before")
    ax.set_xticks(list(rates), [f"{x:.5f}".rstrip("0") for x in rates])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.legend()


def field(ax: Axes, runs: Mapping[str, np.ndarray], at: int) -> None:
    """One field of the map: a row a method, a dot a network, a bar the mean."""
    shown = _field(runs, at)
    for row, found in enumerate(shown.values()):
        ax.barh(row, float(found.mean()), color=COLOURS[row], alpha=0.35, height=0.6)
        ax.plot(found, [row] * len(found), linestyle="none", marker="o", color=COLOURS[row], markersize=6)
        ax.text(1.02, row, f"{found.mean():.0%}", va="center", fontweight="bold")
    ax.set_yticks(range(len(shown)), [ROWS[name] for name in shown])
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set(xlabel="new digits read (test)", xlim=(0, 1.1))
    ax.grid(axis="y", visible=False)


def means(runs: Mapping[str, np.ndarray], at: int) -> dict[str, str]:
    """`field` in words: the mean of each of its rows."""
    return {ROWS[name]: measured(found.mean(), "%") for name, found in _field(runs, at).items()}


def _field(runs: Mapping[str, np.ndarray], at: int) -> dict[str, np.ndarray]:
    """The networks' values at one density; the dense network has one column only."""
    return {name: runs[name][:, at if runs[name].shape[1] > 1 else 0] for name in ROWS if name in runs}
