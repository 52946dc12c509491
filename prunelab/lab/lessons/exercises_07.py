"""The exercises of notebook 07: large, or growing."""

from __future__ import annotations

from typing import Any

import torch

from ..learn.exercise import Exercise, WrongAnswer, call


def check_read(answer: Any) -> str | None:
    """Four weights before and after: the two that magnitude keeps, and the two that movement keeps."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 2 or not all(isinstance(x, str) for x in answer):
        return 'give two texts of two letters each: `("magnitude keeps", "movement keeps")`, such as `("ab", "cd")`.'
    known = {
        ("ac", "bc"): None,
        ("bc", "ac"): "the other way round: first what is large, then what is growing.",
        ("ad", "bc"): "magnitude looks at the weight as it is now, after fine-tuning. `d` was large.",
        ("ac", "ac"): "that is magnitude twice. `a` is large, but it is on its way to zero.",
        ("ac", "ab"): "`c` went down as a number, but *away from zero*: it is growing. Look at the size.",
        ("ac", "ad"): "those two move most *towards* zero. Movement keeps what moves away from it.",
    }  # fmt: skip
    large, growing = ("".join(sorted(x)) for x in answer)
    return known.get((large, growing), "not these. Write down the size of each, before and after; two sizes grow.")


def check_modify(answer: Any) -> str | None:
    """One step of the scores under the straight-through estimator."""
    source = torch.Generator().manual_seed(0)
    scores, weight, gradient = (torch.randn(3, 4, generator=source) for _ in range(3))
    mask = torch.rand(3, 4, generator=source) > 0.5
    found = call(answer, scores.clone(), weight.clone(), gradient.clone(), mask.clone(), 0.1)
    if not torch.is_tensor(found) or found.shape != scores.shape:
        return "return a tensor of the scores' shape: the scores after the step."
    moved = gradient * weight
    wrong = (
        (scores - 0.1 * moved * mask, "the mask still holds the gradient back: a weight that is out can never return."),
        (scores + 0.1 * moved, "uphill: a step *down* the loss subtracts the gradient."),
        (scores - 0.1 * gradient, "that is the weights' own step. The score's gradient is dL/dW' times W."),
        (scores - 0.1 * moved.abs(), "without its sign no score can ever rise."),
        (scores - moved, "you forgot the learning rate."),
    )
    if torch.allclose(found, scores - 0.1 * moved):
        return None
    near = [message for value, message in wrong if torch.allclose(found, value)]
    return (
        near[0]
        if near
        else "a step is `scores - lr * gradient of the scores`, and that gradient is `gradient * weight`."
    )


ROWS = torch.tensor([[4.0, 1.0, -2.0, 0.5], [8.0, 0.5, 0.5, 1.0]])
KEPT = torch.tensor([[True, False, True, False], [True, False, False, False]])


def check_make(answer: Any) -> str | None:
    """What is pruned, shared out among the kept of its row."""
    weight, mask = ROWS.clone(), KEPT.clone()
    found = call(answer, weight.clone(), mask)
    if not torch.is_tensor(found) or found.shape != weight.shape:
        return "return a tensor of the weight's shape."
    removed = weight.masked_fill(mask, 0).sum(1, keepdim=True)
    count = mask.sum(1, keepdim=True)
    wrong = (
        (weight * mask, "nothing moved. If you zeroed first and summed then, you summed zeros: that is the very slip "
                        "of the published code."),
        ((weight + removed / count), "the pruned weights are still there: put zeros where the mask is False."),
        ((weight + removed) * mask, "every heir got the *whole* of it. Divide it among them."),
        ((weight + removed / 4) * mask, "you divided by all weights of the row; only the kept ones inherit."),
        ((weight + weight[~mask].sum() / mask.sum()) * mask, "the layer keeps its sum, but the rows do not: each row "
                                                             "for itself."),
    )  # fmt: skip
    if torch.allclose(found, (weight + removed / count) * mask):
        return None
    near = [message for value, message in wrong if torch.allclose(found, value)]
    return near[0] if near else "check one row by hand: its sum must be the same before and after."


EXERCISES = (
    Exercise(
        id="07-1",
        title="Large or growing",
        kind="read",
        difficulty=1,
        minutes=4,
        task=(
            "Four weights, before and after fine-tuning:\n\n"
            "`a`: 0.90 → 0.80. `b`: 0.10 → 0.30. `c`: −0.20 → −0.45. `d`: 0.50 → 0.35.\n\n"
            "**After** it two of them stay. Which two does magnitude keep, and which two does movement, if it goes by "
            "the net change? "
            'Set `kept = ("magnitude", "movement")`, two letters each.'
        ),
        answer="kept",
        stub='kept = ...  # ("two letters: magnitude", "two letters: movement")',
        hints=(
            "Magnitude asks: how large is it *now*?",
            "Movement asks: did its size grow? A negative number grows when it goes further below zero.",
            "`b` and `c` grow. After fine-tuning, `a` and `c` are the largest.",
        ),
        solution='kept = ("ac", "bc")',
        check=check_read,
        wrong=(
            WrongAnswer('kept = ("bc", "ac")', "other way round"),
            WrongAnswer('kept = ("ad", "bc")', "as it is now"),
            WrongAnswer('kept = ("ac", "ab")', "away from zero"),
            WrongAnswer('kept = ("ac", "ac")', "magnitude twice"),
        ),
        praise="Both keep `c`, and that is MAMA's bet: large *and* moving.",
    ),
    Exercise(
        id="07-2",
        title="Let the dead vote",
        kind="modify",
        difficulty=2,
        minutes=6,
        task=(
            "This function makes one step of the movement scores, but a weight under the mask gets no gradient, so it "
            "is out for good. Change it to the straight-through estimator: the score's gradient is `gradient * weight` "
            "for every weight, kept or not. `gradient` is that of the masked weight, dL/dW'."
        ),
        answer="score_step",
        stub=(
            "def score_step(scores, weight, gradient, mask, lr):\n"
            "    return ...  # it was scores - lr * gradient * weight * mask"
        ),
        hints=(
            "Straight through means: backward, pretend that there is no mask.",
            "Gradient *descent*: subtract.",
            "`scores - lr * gradient * weight`",
        ),
        solution="def score_step(scores, weight, gradient, mask, lr):\n    return scores - lr * gradient * weight",
        check=check_modify,
        wrong=(
            WrongAnswer(
                "def score_step(scores, weight, gradient, mask, lr):\n"
                "    return scores - lr * gradient * weight * mask",
                "never return",
            ),
            WrongAnswer(
                "def score_step(scores, weight, gradient, mask, lr):\n    return scores + lr * gradient * weight",
                "uphill",
            ),
            WrongAnswer(
                "def score_step(scores, weight, gradient, mask, lr):\n    return scores - lr * gradient",
                "weights' own step",
            ),
            WrongAnswer(
                "def score_step(scores, weight, gradient, mask, lr):\n"
                "    return scores - lr * (gradient * weight).abs()",
                "no score can ever rise",
            ),
        ),
        praise="A weight that is out still says whether it would help: that is how movement changes its mind.",
    ),
    Exercise(
        id="07-3",
        title="Inheritance",
        kind="make",
        difficulty=2,
        minutes=8,
        task=(
            "Write `inherit(weight, mask)`: the weight with zeros where the mask is False, and the sum of what stood "
            "there, row by row, shared out equally among the row's kept weights. Every row keeps its sum."
        ),
        answer="inherit",
        stub="def inherit(weight, mask):\n    return ...  # a tensor like weight: zeros where pruned, the rest richer",
        hints=(
            "First find what each row loses: `weight.masked_fill(mask, 0).sum(1, keepdim=True)`.",
            "How many heirs has a row? `mask.sum(1, keepdim=True)`.",
            "Add the quotient to the weight, and only *then* multiply by the mask.",
        ),
        solution=(
            "def inherit(weight, mask):\n"
            "    estate = weight.masked_fill(mask, 0).sum(1, keepdim=True)\n"
            "    heirs = mask.sum(1, keepdim=True)\n"
            "    return (weight + estate / heirs) * mask"
        ),
        check=check_make,
        wrong=(
            WrongAnswer(
                "def inherit(weight, mask):\n"
                "    weight = weight * mask\n"
                "    estate = weight.masked_fill(mask, 0).sum(1, keepdim=True)\n"
                "    return weight + mask * estate / mask.sum(1, keepdim=True)",
                "you summed zeros",
            ),
            WrongAnswer(
                "def inherit(weight, mask):\n"
                "    estate = weight.masked_fill(mask, 0).sum(1, keepdim=True)\n"
                "    return (weight + estate) * mask",
                "Divide it",
            ),
            WrongAnswer(
                "def inherit(weight, mask):\n"
                "    estate = weight.masked_fill(mask, 0).sum(1, keepdim=True)\n"
                "    return (weight + estate / weight.shape[1]) * mask",
                "only the kept ones inherit",
            ),
            WrongAnswer(
                "def inherit(weight, mask):\n    return (weight + weight[~mask].sum() / mask.sum()) * mask",
                "each row for itself",
            ),
        ),
        praise="Four lines, in the right order. In the wrong order they run without an error, and do nothing.",
    ),
)
