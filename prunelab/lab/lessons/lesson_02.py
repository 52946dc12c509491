"""Lesson 02, "Why isn't a 90 %-sparse network faster?": its drawings and the checks of its exercises."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox
from torch import Tensor

from ...measurement import Roofline
from ..learn.exercise import call
from ..show.figure import COLOURS
from ..show.vector import INK, PAPER

# Drawings


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
            edgecolor=PAPER,
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
    ax.axhline(promises[structure], color=INK, ls=(0, (4, 3)), lw=1.4, marker="", label="what the MACs promise")
    for name, values in runs.items():
        ax.plot(batches, values, label=name, alpha=1.0 if name == structure else 0.25)
    y = runs[structure][list(batches).index(batch_size)]
    ax.plot([batch_size], [y], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=INK, linestyle="none")
    ax.annotate(
        f"{y:.2f}×", (batch_size, y), textcoords="offset points", xytext=(0, 11), ha="center", fontweight="bold"
    )
    ax.margins(x=0.1)
    ax.set(xscale="log", xlabel="batch size", ylabel="times faster than dense")
    ax.set_ylim(0, 1.15 * max(*promises.values(), *(y for values in runs.values() for y in values)))
    ax.set_xticks(list(batches), [str(b) for b in batches])
    ax.minorticks_off()
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)


# The checks of the exercises, whose texts stand in 02.toml


# 02-1: two linear layers, 3 -> 4 -> 2. Hidden neurons 0 and 3 stay.

FIRST = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0], [-1.0, -2.0, -3.0]])
BIAS = torch.tensor([0.1, 0.2, 0.3, 0.4])
SECOND = torch.tensor([[1.0, 10.0, 100.0, 1000.0], [2.0, 20.0, 200.0, 2000.0]])
KEEP = torch.tensor([True, False, False, True])


def check_slice(answer: Any) -> str | None:
    """The three tensors, cut along the right dimensions."""
    given = (FIRST.clone(), BIAS.clone(), SECOND.clone(), KEEP.clone())
    parts = call(answer, *given)
    if not isinstance(parts, (tuple, list)) or len(parts) != 3 or not all(isinstance(p, Tensor) for p in parts):
        return "return three tensors: `return first, bias, second`, each cut to size."
    if not all(torch.equal(a, b) for a, b in zip(given, (FIRST, BIAS, SECOND, KEEP), strict=True)):
        return "your function changed the tensors it was given. Indexing makes new ones; leave the old as they are."
    first, bias, second = parts
    if [p.shape for p in parts] == [FIRST.shape, BIAS.shape, SECOND.shape]:
        return (
            "nothing became smaller: you set entries to zero instead of removing them. The kernel would still "
            "multiply all of them. Index with `keep`."
        )
    return _first_cut(first, bias) or _second_cut(second)


def _first_cut(first: Tensor, bias: Tensor) -> str | None:
    if torch.equal(first, FIRST[~KEEP]):
        return "you kept the neurons that should go: `keep` is True where a neuron *stays*."
    if first.shape == FIRST.shape:
        return (
            "the first layer still has 4 rows. A neuron *is* a row of the layer that computes it: take `first[keep]`."
        )
    if not torch.equal(first, FIRST[KEEP]):
        return f"the first weight came out as {tuple(first.shape)}; keep whole rows of it, (2, 3)."
    if bias.shape == BIAS.shape:
        return (
            "you forgot the bias: it still has 4 numbers, one for each neuron that there was. What belongs to a neuron "
            "leaves with it."
        )
    return None if torch.equal(bias, BIAS[KEEP]) else "the bias has the right length, but holds the wrong numbers."


def _second_cut(second: Tensor) -> str | None:
    if torch.equal(second, SECOND[:, KEEP]):
        return None
    if second.shape == SECOND.shape:
        return (
            "the second layer still expects 4 inputs, and 2 arrive: the next forward would raise an error. Whoever "
            "*reads* the removed neurons must lose their columns."
        )
    if torch.equal(second, SECOND[:, ~KEEP]):
        return "of the second weight you kept the columns of the neurons that went."
    return (
        f"the second weight came out as {tuple(second.shape)}. Its rows are the network's *outputs*, and they all "
        "stay: cut its columns, `second[:, keep]`."
    )


# 02-2: where two measured curves cross

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
    if uneven is None or abs(float(uneven) - 0.65) > 1e-6:
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
    if never is None:
        return None
    return (
        f"CSR loses at both levels there, 500 and 200 against 100, and you return {never}. Return None: it never wins."
    )


@dataclass
class FakeMachine:
    """Two models on a clock that only they move: the pruned one is twice as fast, and everything else misleads.

    warm: what the very first call costs, times; drift: by how much each call is slower than the one before;
    spikes: during these calls something else takes the processor.
    """

    warm: float = 1.0
    drift: float = 0.0
    spikes: tuple[int, ...] = ()
    now: float = 0.0

    def __post_init__(self) -> None:
        self.calls = count(1)
        self.order: list[str] = []

    def clock(self) -> float:
        """Seconds, on this machine."""
        return self.now

    def model(self, name: str, seconds: float) -> Callable[[], None]:
        """A function to call that takes so long, more or less."""

        def run() -> None:
            n = next(self.calls)
            factor = self.warm if n == 1 else 1.0
            factor *= (1 + self.drift) ** n
            if n in self.spikes:
                factor *= 20
            self.order.append(name)
            self.now += seconds * factor

        return run

    def run(self, answer: Any) -> Any:
        """What a benchmark makes of the pair."""
        return call(answer, self.model("dense", 0.02), self.model("pruned", 0.01), self.clock)


def check_benchmark(answer: Any) -> str | None:
    """Twice as fast, whatever the machine does."""
    calm = FakeMachine()
    found = calm.run(answer)
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return "return one number: how many times faster the pruned model is."
    if abs(found - 0.5) < 0.03:
        return "your ratio is upside down. Twice as fast is dense / pruned = 2."
    if abs(found - 0.01) < 0.003:
        return "you returned the difference of the times. A ratio means the same on a fast and on a slow machine."
    if abs(found - 2) > 0.05:
        return f"on a perfectly calm machine the pruned model is exactly twice as fast, and you find {found:.3g}."
    runs = calm.order.count("pruned")
    if runs < 6:
        return f"you ran the pruned model {_times(runs)}: one surprise would decide. Take 6 rounds or more."
    return _misled(answer)


def _misled(answer: Any) -> str | None:
    trials = (
        (FakeMachine(warm=100.0), "the very first call is 100 times slower here (libraries load, memory comes), and "
                                  "you counted it. Warm up: call each model once *before* the clock starts."),
        (FakeMachine(spikes=(7, 31, 55)), "now and then another program takes the processor, and one such moment "
                                "pulled your *mean*. Take the median over the rounds."),
        (FakeMachine(drift=0.02), "this machine slows down as it warms up, and your second model ran when it was hot. "
                                  "Time them in turns, dense, pruned, dense, pruned, and pair each two."),
    )  # fmt: skip
    for machine, message in trials:
        found = machine.run(answer)
        if not isinstance(found, (int, float)) or abs(found - 2) > 0.1:
            return f"{message} (You find {float(found):.3g} times, and it is 2.)"
    return None


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"
