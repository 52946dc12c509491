"""The exercises of notebook 00: what sparsity counts."""

from __future__ import annotations

from typing import Any

import torch

from ..learn.claim import plain
from ..learn.exercise import Exercise, WrongAnswer, call

# Layers of very different size and density, so that no wrong way of counting lands on the right number.
MASKS = {
    "conv.weight": torch.arange(40).reshape(4, 10) % 4 != 0,  # 10 of 40 are zero
    "fc.weight": torch.arange(400).reshape(20, 20) % 10 == 0,  # 360 of 400 are zero
}
ZEROS, TOTAL = 370, 440


def check_sparsity(answer: Any) -> str | None:
    """One pruned share over all weights of all layers."""
    value = plain(call(answer, {name: mask.clone() for name, mask in MASKS.items()}))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "sparsity is one number for the whole network; your function returned something else."
    known = (
        (1 - ZEROS / TOTAL, "that is the density, the share that is *kept*. Sparsity is the share that is zero."),
        (ZEROS, "that is how many weights are zero. Sparsity is their share: divide by how many there are."),
        (TOTAL - ZEROS, "that is how many weights are kept. Sparsity is the share that is zero."),
        (100 * ZEROS / TOTAL, "you gave a percentage; this course writes sparsity as a fraction, 0.9 and not 90."),
        ((10 / 40 + 360 / 400) / 2, "you averaged the layers' sparsities, so a small one counts like a big one. "
                                    "Count the zeros of all layers, then divide once."),
        (10 / 40, "you looked at the first layer only. Add up all layers before you divide."),
        (360 / 400, "you looked at the last layer only. Add up all layers before you divide."),
    )  # fmt: skip
    if abs(value - ZEROS / TOTAL) < 1e-6:
        return None
    near = [message for wrong, message in known if abs(value - wrong) < 1e-6]
    return near[0] if near else f"for masks with {ZEROS} zeros among {TOTAL} entries it gave {value:g}."


def check_survivors(answer: Any) -> str | None:
    """9,872 weights at 87.5 %: 1,234 stay."""
    value = plain(answer)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "the answer is one number: how many weights survive."
    biases = "you counted the biases too. Pruning leaves them alone: they are few, and every output needs its own."
    known = {
        8638: "that many are *removed*. The survivors are the rest.",
        9786: "you took 87.5 for 0.875 %: a sparsity of 87.5 % is the fraction 0.875, almost nine in ten.",
        1241: biases,
        1241.25: biases,
        0.125: "that is the share that survives; the question is how many weights that is.",
        594: "you counted the convolutions only. The fully connected layer holds about half of the weights.",
        640: "you counted the fully connected layer only. The convolutions are pruned too.",
    }
    if value == 1234:
        return None
    return known.get(value, f"{value:,} is not it. Count each layer's weights first: 144, 4,608 and 5,120.")


EXERCISES = (
    Exercise(
        id="00-1",
        title="How many survive?",
        kind="read",
        difficulty=1,
        minutes=3,
        task=(
            "A network has a convolution from 1 to 16 channels with 3×3 kernels, one from 16 to 32 channels with 3×3 "
            "kernels, and a fully connected layer from 512 to 10. Each has a bias. The weights are pruned to a "
            "sparsity of 87.5 %.\n\nHow many weights survive? Set `survivors` to that number."
        ),
        answer="survivors",
        stub="survivors = ...  # a whole number",
        hints=(
            "A convolution has one weight for each input channel, output channel and place in the kernel.",
            "16·1·3·3 = 144, 32·16·3·3 = 4,608 and 10·512 = 5,120 weights: 9,872 in all. Biases are not pruned.",
            "A sparsity of 87.5 % removes seven weights in eight. One eighth of 9,872 stays.",
        ),
        solution="survivors = (16 * 1 * 3 * 3 + 32 * 16 * 3 * 3 + 10 * 512) // 8",
        check=check_survivors,
        wrong=(
            WrongAnswer("survivors = 8638", "*removed*"),
            WrongAnswer("survivors = round(9872 * (1 - 0.00875))", "the fraction 0.875"),
            WrongAnswer("survivors = round((9872 + 58) / 8)", "biases"),
            WrongAnswer("survivors = 0.125", "the share that survives"),
            WrongAnswer("survivors = 5000", "144, 4,608 and 5,120"),
        ),
        praise="One weight in eight stays, and the big layer decides how many that is.",
    ),
    Exercise(
        id="00-2",
        title="How sparse is this network?",
        kind="make",
        difficulty=1,
        minutes=5,
        task=(
            "A mask is True where a weight is kept and False where it is zero. Write `sparsity(masks)`: given a mask "
            "for each layer, by name, it returns the fraction of all weights that are zero."
        ),
        answer="sparsity",
        stub="def sparsity(masks):\n    return ...  # a fraction of all weights, between 0 and 1",
        hints=(
            "Sparsity is a share: zeros, divided by weights. Both are counted over the whole network.",
            "`mask.numel()` counts a mask's entries, and `mask.sum()` those that are True.",
            "Add up `(~mask).sum()` over all layers, add up `mask.numel()`, and divide once, at the end.",
        ),
        solution=(
            "def sparsity(masks):\n"
            "    zeros = sum(int((~mask).sum()) for mask in masks.values())\n"
            "    return zeros / sum(mask.numel() for mask in masks.values())"
        ),
        check=check_sparsity,
        wrong=(
            WrongAnswer(
                "def sparsity(masks):\n"
                "    return sum(m.sum() for m in masks.values()) / sum(m.numel() for m in masks.values())",
                "density",
            ),
            WrongAnswer(
                "def sparsity(masks):\n    return sum((~m).sum() for m in masks.values())", "how many weights are zero"
            ),
            WrongAnswer(
                "def sparsity(masks):\n    return sum((~m).float().mean() for m in masks.values()) / len(masks)",
                "averaged the layers",
            ),
            WrongAnswer("def sparsity(masks):\n    return (~masks['conv.weight']).float().mean()", "first layer only"),
            WrongAnswer("def sparsity(masks):\n    return 100 * 370 / 440", "a percentage"),
            WrongAnswer("def sparsity(masks):\n    return {n: 0.5 for n in masks}", "one number"),
        ),
        praise="Count everything, divide once: a big layer weighs more than a small one.",
    ),
)
