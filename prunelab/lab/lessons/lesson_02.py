"""Lesson 02, "Why isn't a 90 %-sparse network faster?": its drawings and the checks of its exercises."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import Any, TypeAlias

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from ...measurement import Conditions
from ...measurement.costs import layer_calls
from ...measurement.timing import Task, in_turns
from ...running import undisturbed
from ...text import plural
from ..learn.claim import plain
from ..learn.exercise import call
from ..show.figure import COLOURS
from ..show.vector import INK, PAPER

# Layer by layer

PARTS = {  # what the bars are made of: the kinds of layers that share a colour
    "convolutions": ("Conv2d",),
    "pooling": ("MaxPool2d", "AdaptiveAvgPool2d"),
    "norms, ReLU": ("BatchNorm2d", "ReLU", "Flatten"),
    "linear": ("Linear",),
}
Bars = dict[str, dict[str, float]]


def layer_times(networks: Mapping[str, nn.Module], inputs: Tensor | Mapping[str, Tensor], rounds: int = 9) -> Bars:
    """Seconds by network and part: every layer alone, on what it gets in a forward pass of its input, all in turns."""
    given = inputs if isinstance(inputs, Mapping) else dict.fromkeys(networks, inputs)
    tasks: dict[tuple[str, str, str], Task] = {}
    with undisturbed(*networks.values()), torch.no_grad():
        for network, model in networks.items():
            for layer, found in layer_calls(model, given[network]).items():
                part = next(part for part, own in PARTS.items() if found.kind in own)
                tasks[network, part, layer] = found.run
        times = in_turns({"/".join(name): task for name, task in tasks.items()}, Conditions(rounds=rounds))
    bars: Bars = {network: dict.fromkeys(PARTS, 0.0) for network in networks}
    for (network, part, _), own in zip(tasks, times.values(), strict=True):
        bars[network][part] += median(own)
    return bars


# Drawings


def stacked(ax: Axes, bars: Mapping[str, Mapping[str, float]]) -> None:
    """The layers' milliseconds, stacked: a bar a network, a colour and a hatch a part."""
    whole = max(sum(parts.values()) for parts in bars.values())
    for row, parts in enumerate(bars.values()):
        left = 0.0
        for colour, hatch, (part, seconds) in zip(COLOURS, ("", "//", "..", "xx"), parts.items(), strict=False):
            ax.barh(row, 1e3 * seconds, 0.62, 1e3 * left, color=colour, hatch=hatch, edgecolor=PAPER,
                    lw=1, label=part if row == 0 else None)  # fmt: skip
            left += seconds
        ax.text(1e3 * (left + 0.012 * whole), row, f"{1e3 * left:.1f} ms", va="center", color=INK)
    ax.set_yticks(range(len(bars)), list(bars))
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.set_xlim(0, 1.15e3 * whole)
    ax.set_xlabel("milliseconds for 64 digits, each layer timed alone")
    ax.grid(visible=False, axis="y")
    ax.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=4)


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

# 02-1: which cut makes the whole network fastest, and how much

Times: TypeAlias = dict[str, float]
Cuts: TypeAlias = dict[str, dict[str, float]]


def _after(times: Times, gains: Mapping[str, float]) -> float:
    return sum(t / gains.get(layer, 1.0) for layer, t in times.items())


def _whole(times: Times, gains: Mapping[str, float]) -> float:
    return sum(times.values()) / _after(times, gains)


def _touched(times: Times, gains: Mapping[str, float]) -> float:
    return sum(times[n] for n in gains) / sum(times[n] / g for n, g in gains.items())


def _chosen(rank: Callable[[Times, Mapping[str, float]], float], times: Times, cuts: Cuts) -> tuple[str, float]:
    name = max(cuts, key=lambda cut: rank(times, cuts[cut]))
    return name, rank(times, cuts[name])


OFFERS: tuple[Times, Cuts] = (
    {"conv": 12.0, "pool": 4.0, "norm": 2.0, "fc": 2.0},  # 20 ms
    {"all filters": {"conv": 4.0, "pool": 2.0, "norm": 2.0}, "neurons": {"fc": 10.0, "norm": 8.0},
     "pooling": {"pool": 20.0, "fc": 1.5}},
)  # fmt: skip
_MISREAD: tuple[tuple[Callable[[Times, Mapping[str, float]], float], str], ...] = (
    (lambda _, gains: max(gains.values()), "you took the largest factor. Ten times faster where hardly any time is "
                                           "spent is worth hardly anything: weigh each layer by its time."),
    (lambda _, gains: sum(gains.values()) / len(gains), "you averaged the factors, so that a quick layer counts like "
                                                        "a slow one. Add up the times, before and after."),
    (lambda times, gains: sum(times.values()) - _after(times, gains), "right cut, but that is how much time it saves. "
                                          "How many times *faster* is the whole: before, divided by after."),
    (lambda times, gains: 1 - _after(times, gains) / sum(times.values()), "right cut, but that is the share of the "
                                          "time that it saves. Times faster is before, divided by after."),
    (_touched, "you counted only the layers that the cut touches. The others take as long as before, and they are in "
               "the network's time: add up *all* layers before and after."),
)  # fmt: skip


def check_choice(answer: Any) -> str | None:
    """The best cut and its gain, on the offer of the task and on five random ones."""
    offers = [OFFERS, *(_random_offer(seed) for seed in range(5))]
    for times, cuts in offers:
        found = call(answer, dict(times), {name: dict(gains) for name, gains in cuts.items()})
        if not isinstance(found, (tuple, list)) or len(found) != 2 or not isinstance(found[0], str):
            return "return two things: the name of the cut, and how many times faster the whole network gets."
        name, ratio = found[0], plain(found[1])
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
            return "the second thing is one number: how many times faster the whole network gets."
        wanted = _chosen(_whole, times, cuts)
        if name == wanted[0] and abs(ratio - wanted[1]) < 1e-3 * wanted[1]:
            continue
        return _misjudged(times, cuts, name, ratio)
    return None


def _misjudged(times: Times, cuts: Cuts, name: str, ratio: float) -> str:
    wanted, gain = _chosen(_whole, times, cuts)
    for rank, message in _MISREAD:
        rival, value = _chosen(rank, times, cuts)
        if name == rival and abs(ratio - value) < 1e-3 * abs(value):
            return message
    if name == wanted and abs(ratio - 1 / gain) < 1e-3:
        return "your ratio is upside down: before, divided by after, is above one when the network got faster."
    if name not in cuts:
        return f"{name!r} is not on offer: return one of {', '.join(cuts)}."
    return (
        f"for the times {times} and the cuts {cuts} it is {wanted!r}, {gain:.3g} times faster; "
        f"you say {name!r}, {ratio:.3g}."
    )


def _random_offer(seed: int) -> tuple[Times, Cuts]:
    dice = random.Random(seed)
    times = {f"layer {i}": dice.uniform(0.1, 9) for i in range(dice.randint(3, 7))}
    cuts = {}
    for letter in "abcd"[: dice.randint(2, 4)]:
        touched = dice.sample(list(times), dice.randint(1, len(times) - 1))
        cuts[f"cut {letter}"] = {layer: dice.uniform(1.1, 12) for layer in touched}
    return times, cuts


# 02-2: a benchmark on a machine of our own making


@dataclass
class FakeMachine:
    """Two models on a clock that only they move: one is `truth` times as fast, and everything else misleads.

    warm: what the very first call costs, times, and a tenth of it the first of the other model;
    drift: by how much each call is slower than the one before;
    spikes: during these calls something else takes the processor; jitter: the spread of every call.
    """

    truth: float = 2.0
    warm: float = 1.0
    drift: float = 0.0
    spikes: tuple[int, ...] = ()
    jitter: float = 0.0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.calls = count(1)
        self.order: list[str] = []
        self.dice = random.Random(3)

    def clock(self) -> float:
        """Seconds, on this machine."""
        return self.now

    def model(self, name: str, seconds: float) -> Callable[[], None]:
        """A function to call that takes so long, more or less."""

        def run() -> None:
            n = next(self.calls)
            first = name not in self.order
            factor = max(1.0, self.warm / (1 if n == 1 else 10)) if first else 1.0
            factor *= (1 + self.drift) ** n * (20 if n in self.spikes else 1) * (1 + self.jitter * self.dice.random())
            self.order.append(name)
            self.now += seconds * factor

        return run

    def run(self, answer: Any) -> Any:
        """What a benchmark makes of the pair."""
        return plain(call(answer, self.model("dense", 0.02), self.model("pruned", 0.02 / self.truth), self.clock))


def check_benchmark(answer: Any) -> str | None:
    """As fast as it is, whatever the machine does."""
    calm = FakeMachine()
    found = calm.run(answer)
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return "return one number: how many times faster the pruned model is."
    if abs(found - 0.5) < 0.03:
        return "your ratio is upside down. Twice as fast is dense / pruned = 2."
    if abs(found - 0.01) < 0.003:
        return "you returned the difference of the times. A ratio means the same on a fast and on a slow machine."
    if not abs(found - 2) <= 0.05:
        return f"on a perfectly calm machine the pruned model is exactly twice as fast, and you find {found:.3g}."
    runs = calm.order.count("pruned")
    if runs < 6:
        return f"you ran the pruned model {plural(runs, 'time')}: one surprise would decide. Take 6 rounds or more."
    return _misled(answer)


def _misled(answer: Any) -> str | None:
    cold = ("the first calls are up to 100 times slower here (libraries load, memory comes), and you "
            "counted them. Warm up: call each model once *before* the clock starts.")  # fmt: skip
    trials = (
        (FakeMachine(3.0), "this pair is another one: the pruned model is 3 times as fast. Measure it."),
        (FakeMachine(0.8), "this pruned model is *slower*, which happens. Measure it."),
        (FakeMachine(warm=100.0), cold),
        (FakeMachine(spikes=(7, 31, 55)), "now and then another program takes the processor, and one such moment "
                                "pulled your *mean*. Take the median over the rounds."),
        (FakeMachine(drift=0.02), "this machine slows down as it warms up, and your second model ran when it was hot. "
                                  "Time them in turns, dense, pruned, dense, pruned, and pair each two."),
    )  # fmt: skip
    for machine, message in trials:
        found = machine.run(answer)
        if not isinstance(found, (int, float)) or not abs(found - machine.truth) <= 0.05 * machine.truth:
            return f"{message} (You find {float(found):.3g} times, and it is {machine.truth:g}.)"
    # A median forgives one cold call but moves by it: with the same jitter, cold or not, the result must be the same.
    tepid, frozen = (FakeMachine(warm=warm, jitter=0.3).run(answer) for warm in (1.0, 100.0))
    if abs(tepid - frozen) > 1e-6:
        return (
            f"{cold} Your median forgives one, and yet it moves: {tepid:.4g} times, or {frozen:.4g} with a cold start."
        )
    return None
