"""The exercises of notebook 02: slice coupled layers, find a crossover, repair a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ..learn.exercise import Exercise, WrongAnswer, call

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


# 02-3: a benchmark on a machine whose behaviour we know, because it is made of numbers


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


EXERCISES = (
    Exercise(
        id="02-1",
        title="Take a neuron out",
        kind="read",
        difficulty=1,
        minutes=6,
        task=(
            "Two linear layers: `first` (4, 3) with `bias` (4,) computes four neurons, `second` (2, 4) reads them. "
            "`keep` says which of the four stay.\n\nWrite `slice_pair(first, bias, second, keep)`: return the three "
            "tensors of the smaller network, in the same order."
        ),
        answer="slice_pair",
        stub="def slice_pair(first, bias, second, keep):\n    return ...  # first, bias, second, each cut to size",
        hints=(
            "A weight has the shape (outputs, inputs): a neuron is one row of the layer that computes it.",
            "Three tensors know about the neuron: its row, its bias, and the column of whoever reads it.",
            "A boolean tensor as an index keeps what is True: `first[keep]` takes rows, `second[:, keep]` columns.",
        ),
        solution=("def slice_pair(first, bias, second, keep):\n    return first[keep], bias[keep], second[:, keep]"),
        check=check_slice,
        wrong=(
            WrongAnswer(
                "def slice_pair(first, bias, second, keep):\n    return first[keep], bias[keep], second",
                "still expects 4 inputs",
            ),
            WrongAnswer(
                "def slice_pair(first, bias, second, keep):\n    return first[keep], bias, second[:, keep]",
                "forgot the bias",
            ),
            WrongAnswer(
                "def slice_pair(first, bias, second, keep):\n"
                "    return first * keep[:, None], bias * keep, second * keep",
                "zero instead of removing",
            ),
            WrongAnswer(
                "def slice_pair(first, bias, second, keep):\n    return first[~keep], bias[~keep], second[:, ~keep]",
                "should go",
            ),
            WrongAnswer(
                "def slice_pair(first, bias, second, keep):\n    return first[keep], bias[keep], second[:2][:, :2]",
                "cut its columns",
            ),
        ),
        praise="One neuron, three places: that is a *coupled* group, and `granularity.filters` finds them all.",
    ),
    Exercise(
        id="02-2",
        title="Find the crossover",
        kind="make",
        difficulty=2,
        minutes=10,
        task=(
            "You timed the same product with a dense and a CSR kernel, in microseconds:\n\n"
            "`levels = [0.5, 0.8, 0.9, 0.95, 0.99]`, `dense = [400, 400, 400, 400, 400]`, "
            "`csr = [1000, 500, 300, 120, 40]`.\n\nWrite `crossing(levels, dense, csr)`: the sparsity from which CSR "
            "is faster. Assume straight lines between the points, and return None if it never is."
        ),
        answer="crossing",
        stub="def crossing(levels, dense, csr):\n    return ...  # a sparsity, or None if CSR never wins",
        hints=(
            "Look at the lead, `dense - csr`, at each level. CSR wins where it is positive.",
            "Find the neighbours between which the lead goes from negative to positive.",
            "With leads a < 0 and b > 0 at x and y, the line is zero at x + (y - x) * a / (a - b).",
        ),
        solution=(
            "def crossing(levels, dense, csr):\n"
            "    lead = [d - c for d, c in zip(dense, csr)]\n"
            "    for i in range(1, len(levels)):\n"
            "        if lead[i - 1] < 0 <= lead[i]:\n"
            "            way = lead[i - 1] / (lead[i - 1] - lead[i])\n"
            "            return levels[i - 1] + way * (levels[i] - levels[i - 1])\n"
            "    return None"
        ),
        check=check_crossover,
        wrong=(
            WrongAnswer(
                "def crossing(levels, dense, csr):\n"
                "    return next((s for s, d, c in zip(levels, dense, csr) if c < d), None)",
                "*between* 80 and 90",
            ),
            WrongAnswer(
                "def crossing(levels, dense, csr):\n"
                "    return next((s for s, d, c in zip(levels, dense, csr) if c > d), None)",
                "upside down",
            ),
            WrongAnswer("def crossing(levels, dense, csr):\n    return levels[csr.index(min(csr))]", "*begins* to win"),
            WrongAnswer(
                "def crossing(levels, dense, csr):\n"
                "    return next(i for i, (d, c) in enumerate(zip(dense, csr)) if c < d)",
                "*position*",
            ),
            WrongAnswer(
                "def crossing(levels, dense, csr):\n"
                "    i = next(i for i, (d, c) in enumerate(zip(dense, csr)) if c < d)\n"
                "    return (levels[i - 1] + levels[i]) / 2",
                "not the middle",
            ),
            WrongAnswer(
                "def crossing(levels, dense, csr):\n"
                "    lead = [d - c for d, c in zip(dense, csr)]\n"
                "    i = next(i for i, a in enumerate(lead) if a > 0)\n"
                "    return levels[i - 1] + (levels[i] - levels[i - 1]) * lead[i - 1] / (lead[i - 1] - lead[i])",
                "return None, which is an honest answer",
            ),
        ),
        praise="A crossover belongs to a machine, a size and a batch: measure yours before you believe any.",
    ),
    Exercise(
        id="02-3",
        title="Repair a benchmark",
        kind="modify",
        difficulty=3,
        minutes=12,
        task=(
            "This benchmark was published. It calls two models (functions without arguments) and reads a clock (a "
            "function that gives seconds). It makes three mistakes, and each can turn the result around.\n\nRepair it: "
            "`speedup(dense, pruned, clock)` returns how many times faster the pruned model is, whatever the machine "
            "does in the meantime. The check runs it on a machine of our own making, where the truth is known: "
            "exactly 2."
        ),
        answer="speedup",
        stub=(
            "def speedup(dense, pruned, clock):\n"
            "    means = []\n"
            "    for model in (dense, pruned):\n"
            "        start = clock()\n"
            "        for _ in range(10):\n"
            "            model()\n"
            "        means.append((clock() - start) / 10)\n"
            "    return ...  # means[0] / means[1], once it can be trusted"
        ),
        hints=(
            "Which call is different from all the others? Make it before you start the clock.",
            "A machine that slows down punishes whoever comes second. Let them take turns, and pair each two times.",
            "Ten ratios, one of them absurd: which number stands for all? `statistics.median` knows.",
        ),
        solution=(
            "def speedup(dense, pruned, clock):\n"
            "    from statistics import median\n"
            "\n"
            "    def seconds(model):\n"
            "        start = clock()\n"
            "        model()\n"
            "        return clock() - start\n"
            "\n"
            "    dense(), pruned()  # warm up\n"
            "    return median(seconds(dense) / seconds(pruned) for _ in range(11))"
        ),
        check=check_benchmark,
        wrong=(
            WrongAnswer(
                "def speedup(dense, pruned, clock):\n"
                "    means = []\n"
                "    for model in (dense, pruned):\n"
                "        start = clock()\n"
                "        for _ in range(10):\n"
                "            model()\n"
                "        means.append((clock() - start) / 10)\n"
                "    return means[0] / means[1]",
                "Warm up",
            ),
            WrongAnswer(
                "def speedup(dense, pruned, clock):\n"
                "    times = []\n"
                "    for model in (dense, pruned):\n"
                "        model()\n"
                "        start = clock()\n"
                "        for _ in range(10):\n"
                "            model()\n"
                "        times.append(clock() - start)\n"
                "    return times[0] / times[1]",
                "*mean*",
            ),
            WrongAnswer(
                "def speedup(dense, pruned, clock):\n"
                "    from statistics import median\n"
                "    middle = []\n"
                "    for model in (dense, pruned):\n"
                "        model()\n"
                "        times = []\n"
                "        for _ in range(10):\n"
                "            start = clock()\n"
                "            model()\n"
                "            times.append(clock() - start)\n"
                "        middle.append(median(times))\n"
                "    return middle[0] / middle[1]",
                "in turns",
            ),
            WrongAnswer(
                "def speedup(dense, pruned, clock):\n"
                "    times = []\n"
                "    for model in (dense, pruned):\n"
                "        model()\n"
                "        start = clock()\n"
                "        model()\n"
                "        times.append(clock() - start)\n"
                "    return times[0] / times[1]",
                "one surprise would decide",
            ),
            WrongAnswer(
                "def speedup(dense, pruned, clock):\n"
                "    times = []\n"
                "    for model in (dense, pruned):\n"
                "        start = clock()\n"
                "        for _ in range(10):\n"
                "            model()\n"
                "        times.append(clock() - start)\n"
                "    return times[1] / times[0]",
                "upside down",
            ),
        ),
        praise="Warm up, take turns, take the median: `measure.compare` does just that, and adds an interval.",
    ),
)
