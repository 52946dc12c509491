"""The exercises of notebook 04: who is compared with whom."""

from __future__ import annotations

from typing import Any

import torch

from ..learn.claim import plain
from ..learn.exercise import Exercise, WrongAnswer, call

KEPT = {"local": (10, 1000), "global": (100, 910)}


def check_read(answer: Any) -> str | None:
    """A layer of 100 large weights and one of 10,000 small ones, at 90 %."""
    if not isinstance(answer, dict) or set(answer) != set(KEPT):
        return (
            'give a dict with both rules: {"local": (small layer, large layer), "global": (small layer, large layer)}.'
        )
    given = {rule: tuple(plain(value)) for rule, value in answer.items() if isinstance(value, (tuple, list))}
    if set(given) != set(KEPT) or any(len(value) != 2 for value in given.values()):
        return "each rule keeps two numbers: what the small layer keeps, and what the large one keeps."
    known = {
        ("local", (90, 9000)): "local: that is what goes. The question is what stays.",
        ("local", (100, 910)): "local: that is the global rule. Local means that each layer loses 90 % of its own.",
        ("global", (10, 1000)): "global: you applied 90 % to each layer. Globally nobody has a quota of their own: the "
        "9,090 smallest of all 10,100 go, wherever they are.",
        ("global", (0, 9090)): "global: that is what goes. The question is what stays.",
        ("global", (0, 1010)): "global: you took the small layer first. Its weights are all *larger*, so it is safe.",
        ("global", (100, 1000)): "global: that is 1,100 in all; 90 % of 10,100 must go, so 1,010 stay.",
    }
    for rule, want in KEPT.items():
        if given[rule] != want:
            return known.get(
                (rule, given[rule]), f"{rule}: {given[rule]} is not it. Count how many go, and from where."
            )
    return None


def _layers() -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    sizes = {"a": (6, 8), "b": (10, 5), "c": (12,)}
    return {name: torch.randn(shape, generator=source) for name, shape in sizes.items()}


def check_modify(answer: Any) -> str | None:
    """|w| over the layer's mean |w|."""
    weights = _layers()
    scores = call(answer, {name: w.clone() for name, w in weights.items()})
    if not isinstance(scores, dict) or set(scores) != set(weights):
        return "return a dict of scores, one tensor a layer, by the same names."
    if any(not torch.is_tensor(s) or s.shape != weights[name].shape for name, s in scores.items()):
        return "the scores of a layer have the layer's shape: one score a weight."
    return _compare(scores, weights)


def _compare(scores: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> str | None:
    everything = torch.cat([w.abs().flatten() for w in weights.values()])
    wrong = {
        "that is still the bare magnitude: multiply a layer by ten, and it wins. Divide by its own average.":
            lambda w: w.abs(),
        "you kept the signs: a large negative weight is now the least important of all. Take `abs()` first.":
            lambda w: w / w.abs().mean(),
        "you divided by the average of the *signed* weights, which is near zero. Average `w.abs()`.":
            lambda w: w.abs() / w.mean(),
        "you subtracted the average. That moves a layer, but does not change its scale: divide.":
            lambda w: w.abs() - w.abs().mean(),
        "you divided all layers by one average, so their scales are as different as before. Each by its own.":
            lambda w: w.abs() / everything.mean(),
        "you divided by the layer's largest weight: one outlier now decides. The task says average.":
            lambda w: w.abs() / w.abs().max(),
    }  # fmt: skip
    if all(torch.allclose(s, weights[n].abs() / weights[n].abs().mean()) for n, s in scores.items()):
        return None
    for message, rule in wrong.items():
        if all(torch.allclose(s.float(), rule(weights[n])) for n, s in scores.items()):
            return message
    return "not quite: each score must be the weight's size over the average size in its layer."


def check_make(answer: Any) -> str | None:
    """ERK: the sum over the product."""
    found = plain(call(answer, 32, 64, 3, 3))
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return "return one number, the layer's density before scaling."
    want, weights = (32 + 64 + 3 + 3) / (32 * 64 * 3 * 3), 32 * 64 * 3 * 3
    known = (
        (1 / want, "upside down: the larger the layer, the *smaller* its density."),
        (
            (32 + 64) / (32 * 64),
            "that is Erdős-Rényi for linear layers. The kernel's sides belong in it, too.",
        ),
        ((32 + 64) / weights, "the kernel is in the product, but not in the sum."),
        (
            32 + 64 + 3 + 3,
            "that is how many weights stay, up to a factor. Density is that over the layer's weights.",
        ),
        (1 - want, "that is the sparsity. ERK gives the density, the share that *stays*."),
    )
    if abs(found - want) < 1e-9:
        return None
    near = [message for value, message in known if abs(found - value) < 1e-6 * max(1, value)]
    return near[0] if near else f"for (32, 64, 3, 3) it gave {found:g}; the sum over the product is {want:.4g}."


EXERCISES = (
    Exercise(
        id="04-1",
        title="Who pays?",
        kind="read",
        difficulty=1,
        minutes=4,
        task=(
            "A small layer has 100 weights, a large one 10,000. Every weight of the small layer is larger than every "
            "weight of the large one. The network is pruned by magnitude to a sparsity of 90 %.\n\n"
            "How many weights does each layer keep, under the local and under the global rule? Set `kept`."
        ),
        answer="kept",
        stub='kept = ...  # {"local": (small layer, large layer), "global": (small layer, large layer)}',
        hints=(
            "Local: each layer loses 90 % of its own weights.",
            "Global: 9,090 of 10,100 go, the smallest of all. In which layer are those?",
            "Globally the small layer keeps everything; the large one is left with 10,000 − 9,090.",
        ),
        solution='kept = {"local": (10, 1000), "global": (100, 10_000 - 9_090)}',
        check=check_read,
        wrong=(
            WrongAnswer('kept = {"local": (90, 9000), "global": (100, 910)}', "what goes"),
            WrongAnswer('kept = {"local": (10, 1000), "global": (10, 1000)}', "quota"),
            WrongAnswer('kept = {"local": (10, 1000), "global": (0, 1010)}', "*larger*"),
            WrongAnswer('kept = {"local": (10, 1000), "global": (100, 1000)}', "1,010 stay"),
            WrongAnswer('kept = {"local": (100, 910), "global": (10, 1000)}', "that is the global rule"),
        ),
        praise="Globally, a layer of large weights is safe, and the others pay for it.",
    ),
    Exercise(
        id="04-2",
        title="A fairer comparison",
        kind="modify",
        difficulty=2,
        minutes=6,
        task=(
            "Global magnitude is fooled by scale: multiply a layer by ten and it wins every comparison. "
            "Change the function so that a weight's score is its size *over the average size in its layer*."
        ),
        answer="fair_scores",
        stub=(
            "def fair_scores(weights):\n"
            "    scores = {}\n"
            "    for name, weight in weights.items():\n"
            "        scores[name] = weight.abs()  # whoever is large wins, whatever the scale of the layer\n"
            "    return ...  # scores, once they are fair"
        ),
        hints=(
            "A ratio forgets the scale: if all weights grow tenfold, so does their average.",
            "`weight.abs().mean()` is the average size. Not `weight.mean()`: signs cancel.",
            "`scores[name] = weight.abs() / weight.abs().mean()`, and return `scores`.",
        ),
        solution=(
            "def fair_scores(weights):\n"
            "    return {name: weight.abs() / weight.abs().mean() for name, weight in weights.items()}"
        ),
        check=check_modify,
        wrong=(
            WrongAnswer(
                "def fair_scores(weights):\n    return {n: w.abs() for n, w in weights.items()}", "bare magnitude"
            ),
            WrongAnswer(
                "def fair_scores(weights):\n    return {n: w / w.abs().mean() for n, w in weights.items()}", "the signs"
            ),
            WrongAnswer(
                "def fair_scores(weights):\n    return {n: w.abs() / w.mean() for n, w in weights.items()}", "*signed*"
            ),
            WrongAnswer(
                "def fair_scores(weights):\n    return {n: w.abs() - w.abs().mean() for n, w in weights.items()}",
                "subtracted",
            ),
            WrongAnswer(
                "def fair_scores(weights):\n"
                "    mean = torch.cat([w.abs().flatten() for w in weights.values()]).mean()\n"
                "    return {n: w.abs() / mean for n, w in weights.items()}",
                "one average",
            ),
            WrongAnswer(
                "def fair_scores(weights):\n    return {n: w.abs() / w.abs().max() for n, w in weights.items()}",
                "outlier",
            ),
        ),
        praise="Now a layer's scale no longer decides. LAMP does the same with more care.",
    ),
    Exercise(
        id="04-3",
        title="ERK by hand",
        kind="make",
        difficulty=2,
        minutes=6,
        task=(
            "ERK gives a convolution with `c_in` input channels, `c_out` filters and kernels of `k_h` × `k_w` a "
            "density proportional to the *sum* of these four numbers over their *product*. Write `erk_density`."
        ),
        answer="erk_density",
        stub="def erk_density(c_in, c_out, k_h, k_w):\n    return ...  # up to a factor that all layers share",
        hints=(
            "The product is the number of weights of the layer.",
            "The sum grows much more slowly than the product, so large layers become sparser.",
            "`(c_in + c_out + k_h + k_w) / (c_in * c_out * k_h * k_w)`",
        ),
        solution=(
            "def erk_density(c_in, c_out, k_h, k_w):\n"
            "    return (c_in + c_out + k_h + k_w) / (c_in * c_out * k_h * k_w)"
        ),
        check=check_make,
        wrong=(
            WrongAnswer(
                "def erk_density(c_in, c_out, k_h, k_w):\n"
                "    return (c_in * c_out * k_h * k_w) / (c_in + c_out + k_h + k_w)",
                "upside down",
            ),
            WrongAnswer(
                "def erk_density(c_in, c_out, k_h, k_w):\n    return (c_in + c_out) / (c_in * c_out)", "linear layers"
            ),
            WrongAnswer(
                "def erk_density(c_in, c_out, k_h, k_w):\n    return (c_in + c_out) / (c_in * c_out * k_h * k_w)",
                "not in the sum",
            ),
            WrongAnswer(
                "def erk_density(c_in, c_out, k_h, k_w):\n    return c_in + c_out + k_h + k_w", "over the layer's"
            ),
            WrongAnswer(
                "def erk_density(c_in, c_out, k_h, k_w):\n"
                "    return 1 - (c_in + c_out + k_h + k_w) / (c_in * c_out * k_h * k_w)",
                "the sparsity",
            ),
        ),
        praise="Large layers pay, small ones are spared: a rule that never looks at a single weight.",
    ),
)
