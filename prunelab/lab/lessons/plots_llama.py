"""The drawings of notebook 08: perplexities, influence, and what a pruned Llama says."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..show.figure import COLOURS
from ..show.measuring import measured
from ..show.vector import INK, PAPER
from .llamas import Curves, middle

Run = dict[str, Any]
HATCHES = ("", "////", "....")
HIGHEST = 400  # times the dense perplexity: beyond it a model is noise, and curves may leave the picture


def by_pattern(ax: Axes, runs: Sequence[Run], dense: float) -> None:
    """Perplexity, a group of bars for each pattern of zeros, a bar for each method; logarithmic."""
    patterns, methods = (list(dict.fromkeys(r[k] for r in runs)) for k in ("pattern", "method"))
    value = {(r["method"], r["pattern"]): r["perplexity"] for r in runs}
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        x = np.arange(len(patterns)) + (i - (len(methods) - 1) / 2) * width
        heights = [value[method, p] for p in patterns]
        bars = ax.bar(x, heights, width, label=method, color=COLOURS[i], hatch=HATCHES[i % 3], edgecolor=PAPER)
        ax.bar_label(bars, [f"{h:,.0f}" if h >= 100 else f"{h:.3g}" for h in heights], fontsize=9)
    ax.axhline(dense, color=INK, lw=1, ls="--", marker="", label="dense")
    ax.set(
        yscale="log", ylabel="perplexity (logarithmic)", xlabel="which weights are zero", xticks=range(len(patterns))
    )
    ax.set_xticklabels(patterns)
    ax.set_ylim(dense / 2, max(value.values()) * 3)
    ax.legend(ncols=2)


def influence(ax: Axes, values: Sequence[float], out: Sequence[int]) -> None:
    """A bar for each block: how far it turns the stream; those to leave are hatched."""
    for unit, value in enumerate(values):
        leaves = unit in out
        ax.bar(unit, value, color=COLOURS[1] if leaves else COLOURS[0], hatch="////" if leaves else "", edgecolor=PAPER)
    ax.set(xlabel="block, from the first to the last", ylabel="block influence (logarithmic)", yscale="log")
    ax.set_title("orange and hatched: the lowest, which leave first")


def depth(axes: Sequence[Axes], curves: Curves, dense: float) -> None:
    """For each kind of part an axis; for each rule a curve of perplexity against how many parts left, and its range."""
    for ax, (what, rules) in zip(axes, curves.items(), strict=True):
        for rule, points in rules.items():
            counts = sorted(points)
            (line,) = ax.plot([0, *counts], [dense, *(middle(points[k]) for k in counts)], label=rule)
            if max(len(points[k]) for k in counts) > 1:
                low, high = ([f(points[k]) for k in counts] for f in (min, max))
                ax.fill_between(counts, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set(title=what, xlabel="how many of 30 are gone", yscale="log", ylim=(dense / 1.5, dense * HIGHEST))
    axes[0].set_ylabel("perplexity (logarithmic)")
    axes[0].legend()


def said(ax: Axes, title: str, run: Run) -> None:
    """What a Llama of a stored run says, as a page of text, under its name and its perplexity."""
    ax.axis("off")
    ax.set_title(f"{title}: perplexity {run['perplexity']:.3g}", loc="left", fontweight="bold")
    shown = " ".join(run["text"].split()).replace("$", r"\$") or "(nothing)"
    lines = "\n".join(textwrap.wrap(shown, 78, break_long_words=True)[:7])
    ax.text(0, 0.95, f"“{lines}”", va="top", ha="left", fontsize=11, family="serif", transform=ax.transAxes)


def heard(run: Run) -> dict[str, str]:
    """`said` as text: the perplexity, and the beginning of what the Llama says."""
    shown = " ".join(run["text"].split()) or "(nothing)"
    return {"perplexity": measured(run["perplexity"]), "it says": textwrap.shorten(shown, 90, placeholder=" ...")}
