"""The exercises of notebook 05: asking the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..learn.claim import plain
from ..learn.exercise import Exercise, WrongAnswer, call


def check_read(answer: Any) -> str | None:
    """Of a scan with 0.97 dense: which layer to prune first, and which last."""
    known = {
        ("fc1", "conv1"): None,
        ("conv1", "fc1"): "the other way round: first comes the layer that forgives, last the one that hurts.",
        ("conv2", "conv1"): "you read the column at 50 %, where `conv2` has lost least. At 90 % it has fallen far, and "
        "`fc1` has not.",
        (
            "fc1",
            "conv2",
        ): "you looked at 90 % only, where the two are alike. At 50 % one of them has already lost a lot.",
    }
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        return 'give two names: `("first", "last")`.'
    return known.get(tuple(answer), "not these two. Compare how *early* and how *far* each row falls.")


def check_modify(answer: Any) -> str | None:
    """|w g|, the first-order Taylor score."""
    source = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(3, 4, generator=source) for _ in range(2))
    found = call(answer, weight.clone(), gradient.clone())
    if not torch.is_tensor(found) or found.shape != weight.shape:
        return "return a tensor of the weight's shape: one score a weight."
    wrong = (
        (gradient.abs(), "that is still the bare gradient: it says how steep the loss is, not how far removal walks."),
        (weight.abs(), "that is magnitude: the data is not asked at all. Multiply by the gradient."),
        (weight * gradient, "you kept the signs. The score is the size of the change: take `abs()`."),
        (weight.square() * gradient, "one factor of the weight is enough: the loss changes by about −w · g."),
        ((weight * gradient).square(), None),
        (0.5 * gradient.square() * weight.square(), None),
        (weight.abs() + gradient.abs(), "a sum lets a large weight with no slope win. First order is a *product*."),
        (gradient.abs() / weight.abs(), "divided, the smallest weights score highest. First order is a *product*."),
    )  # fmt: skip
    if torch.allclose(found, (weight * gradient).abs()):
        return None
    for value, message in wrong:
        if message and torch.allclose(found, value):
            return message
    if torch.allclose(found, (weight * gradient).square()):
        return "squared, it ranks the same, but the task asks for the estimated change itself: |w · g|."
    return "the estimated change of the loss is the size of weight times gradient."


ROWS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, -1.5], [0.5, 0.0, 0.0]])


def _loss(weight: torch.Tensor) -> float:
    return float((weight.detach().sum() - 3) ** 2)


def _loss_without(row: int) -> float:
    left = ROWS.clone()
    left[row] = 0
    return _loss(left)


def check_make(answer: Any) -> str | None:
    """Leave one out: the rise of the loss, the weight given back whole."""
    weight = nn.Parameter(ROWS.clone())
    found = plain(call(answer, weight, lambda: _loss(weight)))
    if not torch.equal(weight.detach(), ROWS):
        return "the layer was not put back: restore each row, or the next one is judged without it."
    if not isinstance(found, (list, tuple)) or len(found) != len(ROWS):
        return "return one number a row, four here."
    base, left = _loss(ROWS), [_loss_without(row) for row in range(len(ROWS))]
    given = torch.tensor([float(x) for x in found])
    if torch.allclose(given, torch.tensor(left) - base):
        return None
    wrong = (
        (left, "that is the loss without each row. Its importance is the *rise*: subtract the loss of the whole."),
        ([base - x for x in left], "the sign is reversed: a row is important if the loss *rises* without it."),
        ([abs(x - base) for x in left], "you took the size. A row may also do harm: then the loss falls without it."),
    )
    near = [message for value, message in wrong if torch.allclose(given, torch.tensor(value))]
    return near[0] if near else "each number is the loss with that row at zero, minus the loss of the whole."


EXERCISES = (
    Exercise(
        id="05-1",
        title="Read a scan",
        kind="read",
        difficulty=1,
        minutes=4,
        task=(
            "Accuracy with one layer pruned and the others dense (0.97 with none pruned):\n\n"
            "`conv1`: 0.70 at 50 %, 0.20 at 90 %. `conv2`: 0.97 at 50 %, 0.20 at 90 %. "
            "`fc1`: 0.96 at 50 %, 0.90 at 90 %.\n\n"
            'Which layer would you prune hardest, and which would you touch last? Set `order = ("hardest", "last")`.'
        ),
        answer="order",
        stub='order = ...  # ("the one to prune hardest", "the one to touch last")',
        hints=(
            "Hardest: which row still reads well at 90 %?",
            "Last: which row falls first, already at 50 %?",
            "`fc1` hardly minds; `conv1` minds at once.",
        ),
        solution='order = ("fc1", "conv1")',
        check=check_read,
        wrong=(
            WrongAnswer('order = ("conv1", "fc1")', "other way round"),
            WrongAnswer('order = ("conv2", "conv1")', "column at 50 %"),
            WrongAnswer('order = ("fc1", "conv2")', "90 % only"),
            WrongAnswer('order = "fc1"', "two names"),
        ),
        praise="A scan is read in both directions: how early a layer falls, and how far.",
    ),
    Exercise(
        id="05-2",
        title="From slope to change",
        kind="modify",
        difficulty=1,
        minutes=5,
        task=(
            "The function scores weights by the gradient. But removing a weight is a move of −w: to first "
            "order the loss changes by −w · g. Change the function to the size of that."
        ),
        answer="taylor",
        stub=(
            "def taylor(weight, gradient):\n"
            "    return ...  # it was gradient.abs(): how steep. But how far does removal go?"
        ),
        hints=(
            "Removing a weight is a step of length |w|.",
            "First order: change = slope × step.",
            "`(weight * gradient).abs()`",
        ),
        solution="def taylor(weight, gradient):\n    return (weight * gradient).abs()",
        check=check_modify,
        wrong=(
            WrongAnswer("def taylor(weight, gradient):\n    return gradient.abs()", "bare gradient"),
            WrongAnswer("def taylor(weight, gradient):\n    return weight.abs()", "that is magnitude"),
            WrongAnswer("def taylor(weight, gradient):\n    return weight * gradient", "kept the signs"),
            WrongAnswer("def taylor(weight, gradient):\n    return weight.abs() + gradient.abs()", "a sum"),
            WrongAnswer("def taylor(weight, gradient):\n    return gradient.abs() / weight.abs()", "divided"),
        ),
        praise="Slope times step: this is SNIP, and the Taylor criterion of most pruning papers.",
    ),
    Exercise(
        id="05-3",
        title="The truth, one row at a time",
        kind="make",
        difficulty=2,
        minutes=10,
        task=(
            "Write `leave_one_out(weight, loss)`: for each row of `weight`, set it to zero, call `loss()`, and put the "
            "row back. Return a list: how much the loss rises without each row. `loss()` without arguments gives the "
            "loss of the model as it is at that moment."
        ),
        answer="leave_one_out",
        stub="def leave_one_out(weight, loss):\n    return ...  # a list: the rise of the loss without each row",
        hints=(
            "First ask `loss()` once, with everything in place.",
            "Inside `with torch.no_grad():` you may write into a weight: `weight[i] = 0`.",
            "Keep `row = weight[i].clone()` first, and `weight[i] = row` afterwards.",
        ),
        solution=(
            "def leave_one_out(weight, loss):\n"
            "    whole, rises = loss(), []\n"
            "    with torch.no_grad():\n"
            "        for i in range(len(weight)):\n"
            "            row = weight[i].clone()\n"
            "            weight[i] = 0\n"
            "            rises.append(loss() - whole)\n"
            "            weight[i] = row\n"
            "    return rises"
        ),
        check=check_make,
        wrong=(
            WrongAnswer(
                "def leave_one_out(weight, loss):\n"
                "    whole, rises = loss(), []\n"
                "    with torch.no_grad():\n"
                "        for i in range(len(weight)):\n"
                "            weight[i] = 0\n"
                "            rises.append(loss() - whole)\n"
                "    return rises",
                "not put back",
            ),
            WrongAnswer(
                "def leave_one_out(weight, loss):\n"
                "    rises = []\n"
                "    with torch.no_grad():\n"
                "        for i in range(len(weight)):\n"
                "            row = weight[i].clone()\n"
                "            weight[i] = 0\n"
                "            rises.append(loss())\n"
                "            weight[i] = row\n"
                "    return rises",
                "subtract",
            ),
            WrongAnswer(
                "def leave_one_out(weight, loss):\n"
                "    whole, rises = loss(), []\n"
                "    with torch.no_grad():\n"
                "        for i in range(len(weight)):\n"
                "            row = weight[i].clone()\n"
                "            weight[i] = 0\n"
                "            rises.append(whole - loss())\n"
                "            weight[i] = row\n"
                "    return rises",
                "reversed",
            ),
            WrongAnswer(
                "def leave_one_out(weight, loss):\n"
                "    whole, rises = loss(), []\n"
                "    with torch.no_grad():\n"
                "        for i in range(len(weight)):\n"
                "            row = weight[i].clone()\n"
                "            weight[i] = 0\n"
                "            rises.append(abs(loss() - whole))\n"
                "            weight[i] = row\n"
                "    return rises",
                "took the size",
            ),
        ),
        praise="Slow, and right: every criterion is an attempt to say this number without computing it.",
    ),
)
