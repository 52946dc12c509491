"""Lesson 03, "When do zeros pay?": its drawings and the checks of its exercises."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from torch import Tensor

from ...text import percent
from ..learn.exercise import call, call_for_any
from ..show.figure import COLOURS
from ..show.vector import INK, PAPER
from .physics import Roofline


def crossings(ax: Axes, runs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """How many times faster than dense, against the share of zeros, on logarithmic axes: each further tenth counts."""
    ax.axhline(1, color=INK, lw=1.2, ls="-", marker="")
    for name, (sparsities, ratios) in runs.items():
        ax.plot([1 - s for s in sparsities], ratios, label=name)
    levels = sorted({s for sparsities, _ in runs.values() for s in sparsities})
    ax.set(xscale="log", yscale="log", xlabel="zeros, %", ylabel="times faster than dense")
    ax.invert_xaxis()  # more zeros to the right
    ax.set_xticks([1 - s for s in levels], [f"{100 * s:g}" for s in levels])
    ax.set_yticks(_POWERS, [f"{v:g}×" for v in _POWERS])
    ax.minorticks_off()
    low, high = (pick(r for _, ratios in runs.values() for r in ratios) for pick in (min, max))
    ax.set_ylim(min(low, 0.9) / 1.3, max(high, 1.1) * 1.3)
    ax.legend()


_POWERS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


def weighed(ax: Axes, shares: Mapping[str, float]) -> None:
    """A bar a format, as a share of the dense file, beside the dense file itself."""
    bars = {"dense": 1.0, **shares}
    colours = [INK, *[COLOURS[0]] * (len(shares) - 1), COLOURS[2]]  # the last is the limit, no format
    ax.barh(list(bars), list(bars.values()), color=colours)
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(lambda v, _: percent(v, digits=0))
    ax.set(xlim=(0, 3.1), xlabel="bytes, of the dense file")
    ax.grid(axis="y", visible=False)


def roof(ax: Axes, runs: Mapping[str, Roofline]) -> None:
    """Each layer that computes, under the roof of the machine: MACs a byte against MACs a second."""
    machine = next(iter(runs.values())).machine
    places = {name: {n: (x.intensity, x.rate / 1e9) for n, x in found.layers.items()} for name, found in runs.items()}
    x = np.geomspace(0.05, 500, 200)
    ways = [("from a cache", "#999999", ":"), ("from memory", INK, "-")]
    for (_, rate), (place, colour, line) in zip((machine.bandwidths[0], machine.bandwidths[-1]), ways, strict=True):
        reach = np.minimum(machine.peak, x * rate) / 1e9
        ax.plot(x, reach, label=f"the roof, bytes {place}", color=colour, ls=line, marker="")
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


# The checks of the exercises, whose texts stand in 03.toml

LEVELS = [0.5, 0.8, 0.9, 0.95, 0.99]
DENSE = [400.0, 400.0, 400.0, 400.0, 400.0]
CSR = [1000.0, 500.0, 300.0, 120.0, 40.0]  # they cross half-way between 80 and 90 %


def check_crossover(answer: Any) -> str | None:
    """Half-way between two levels; None where they never cross."""
    found = call(answer, list(LEVELS), list(DENSE), list(CSR))
    if isinstance(found, Tensor):
        found = found.item()
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return "return one number, the sparsity at which the two times are equal."
    known = (
        (2, "that is the *position* in the list. Return the sparsity itself."),
        (0.9, "at 90 % CSR has already won by a quarter; that is the first level you measured on its side. The lines "
              "cross *between* 80 and 90 %: draw a straight line between the two points."),
        (0.8, "at 80 % CSR is still slower, 500 against 400: the last level before the crossing, not the crossing."),
        (0.5, "that is where CSR is slowest compared with dense: your comparison is upside down. Less time is better."),
        (0.99, "that is where CSR wins by the most. The question is where it *begins* to win."),
        (100.0, "that is a time. Return the sparsity at which it is reached."),
    )  # fmt: skip
    for wrong, message in known:
        if abs(found - wrong) < 1e-9:
            return message
    if abs(found - 0.85) > 1e-6:
        return (
            f"you found {found:.4g}. At 80 % CSR loses by 100 µs, at 90 % it wins by 100 µs: where does it break even?"
        )
    return _elsewhere(answer)


def _elsewhere(answer: Any) -> str | None:
    uneven = call(answer, [0.6, 0.8], [100.0, 100.0], [110.0, 70.0])
    if abs(float(uneven) - 0.65) > 1e-6:
        return (
            f"right on this table, but with 110 µs at 60 % and 70 µs at 80 %, against 100, you find {uneven}. It is a "
            "quarter of the way: 65 %, not the middle. Weigh by how far each point lies from the break-even."
        )
    try:
        never = answer([0.5, 0.9], [100.0, 100.0], [500.0, 200.0])
    except Exception as error:
        return (
            f"where CSR never wins, your function stops with {type(error).__name__}. A small matrix or a single column "
            "does that: return None, which is an honest answer."
        )
    if never is not None:
        return (
            f"CSR loses at both levels there, 500 and 200 against 100, and you return {never}. Return None: it never "
            "wins."
        )
    early = call_for_any(answer, [0.7, 0.9], [100.0, 100.0], [80.0, 30.0])
    if early is None or abs(float(early) - 0.7) > 1e-6:
        return f"with 80 and 30 µs against 100, CSR wins from the first level on: return it, 0.7. You found {early}."
    return None


def check_format(answer: Any) -> str | None:
    """The smallest of three formats, on matrices of many shapes, densities and widths of an index."""
    dice = random.Random(0)
    for _ in range(200):
        rows, columns, width = dice.choice((8, 64, 300)), dice.choice((16, 100, 512)), dice.choice((2, 4, 8))
        weights = rows * columns
        left = round(weights * dice.choice((0.005, 0.02, 0.05, 0.2, 0.5, 0.8, 1.0)))
        size = {"dense": 4 * weights, "csr": left * (4 + width) + 4 * (rows + 1), "bitmask": 4 * left + weights / 8}
        best, second = sorted(size.values())[:2]
        found = call(answer, left, weights, rows, width)
        if found not in size:
            return f'return a name, "dense", "csr" or "bitmask"; this is {found!r}.'
        if found != min(size, key=lambda name: size[name]) and second - best > 1:
            case = f"{left:,} of {weights:,} left in {rows} rows, {width} bytes a column"
            told = ", ".join(f"{name} {size[name]:,.0f}" for name in size)
            return f"{_misread(answer)} With {case}, the bytes are: {told}. You chose {found}."
    return None


def _misread(answer: Any) -> str:
    """The idea behind a wrong choice, from three plain cases."""
    if call(answer, 900, 1000, 10, 4) == "csr":
        return "CSR is the largest of all at low sparsity."
    if call(answer, 10, 10000, 10, 4) == "bitmask":
        return "A bitmask spends a bit for every entry, kept or not."
    if call(answer, 2000, 10000, 10, 4) == "csr":
        return "You forgot the bitmask, which is smaller here."
    return "Do all three count what says where the values are, at the width that is given?"
