"""Lesson 03, "When do zeros pay?": the drawings of sparse kernels and of the roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from ...measurement import Roofline
from ..show.vector import INK, PAPER


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
