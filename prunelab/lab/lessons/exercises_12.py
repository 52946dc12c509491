"""The exercises of notebook 12: heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..learn.exercise import Exercise, WrongAnswer, call


def check_read(answer: Any) -> str | None:
    """9 query heads, 3 key-value heads, head size 64, width 576: what leaves with one key-value head."""
    known: dict[tuple[int, ...], str | None] = {
        (192, 64, 64, 192): None,
        (
            64,
            64,
            64,
            64,
        ): "one query head alone cannot leave: each key-value head serves 9 / 3 = 3 of them, and all three "
        "would ask a head that is gone.",
        (
            192,
            192,
            192,
            192,
        ): "keys and values are shared: the three query heads have *one* key-value head between them.",
        (192, 64, 64, 64): "`o_proj` reads what the *query* heads bring: count its columns by those.",
        (576, 192, 192, 576): "that is all of the layer. One key-value head of three leaves.",
    }
    if not isinstance(answer, (tuple, list)) or len(answer) != 4:
        return "give four numbers: rows of `q_proj`, of `k_proj`, of `v_proj`, and columns of `o_proj`."
    return known.get(
        tuple(answer), "not these four. How many query heads share a key-value head, and how wide is a head?"
    )


def check_modify(answer: Any) -> str | None:
    """Michel: absolute by sample, mean, L2-normalised."""
    gradients = torch.tensor([[2.0, 0.8, 0.0], [-2.0, 0.8, 0.5], [2.0, 0.8, -0.5], [-2.0, 0.8, 0.0]])
    found = call(answer, gradients.clone())
    if not torch.is_tensor(found) or found.shape != (3,):
        return "return one number a head: three here."
    mean, size = gradients.mean(0).abs(), gradients.abs().mean(0)
    if torch.allclose(found, size / size.norm()):
        return None
    wrong = (
        (mean, "the first head pulls every picture hard, half of them one way and half the other. Your mean calls it "
         "worthless: take the absolute value *before* the mean."),
        (mean / mean.norm(), "normalised, but the signs have cancelled before: absolute value first, then the mean."),
        (size, "right by picture; now divide by the length (the L2 norm) of it all, so that layers compare."),
        (size / size.sum(), "you divided by the sum. The paper divides by the length, the root of the sum of squares."),
        (gradients.square().mean(0), "squares favour the few pictures that pull hardest: take the absolute value."),
    )  # fmt: skip
    near = [message for value, message in wrong if torch.allclose(found, value)]
    return (
        near[0] if near else "absolute value of each picture's gradient, mean over the pictures, divided by the norm."
    )


def _layer() -> tuple[Tensor, ...]:
    dice = torch.Generator().manual_seed(0)
    return tuple(torch.randn(6, 6, generator=dice) for _ in range(4))


def _attend(x: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor) -> Tensor:
    queries, keys, values = ((x @ w.T).unflatten(-1, (-1, 2)).transpose(0, 1) for w in (q, k, v))
    mixed = (queries @ keys.mT / 2**0.5).softmax(-1) @ values  # (heads, tokens, 2)
    return mixed.transpose(0, 1).flatten(1) @ o.T


def check_make(answer: Any) -> str | None:
    """Remove head 1 of three heads of size 2."""
    q, k, v, o = _layer()
    found = call(answer, q.clone(), k.clone(), v.clone(), o.clone(), 1, 2)
    if not isinstance(found, (tuple, list)) or len(found) != 4 or not all(map(torch.is_tensor, found)):
        return "return four tensors: q, k, v, o without the head."
    shapes = " ".join("x".join(map(str, t.shape)) for t in found)
    messages = {
        "6x6 6x6 6x6 6x6": "every shape is as before: zeroed is not removed. Leave the rows and columns out.",
        "4x6 4x6 4x6 4x6": "`o` makes the layer's output, which must keep its width: of `o` the head owns *columns*.",
        "6x4 6x4 6x4 6x4": "the columns of `q`, `k`, `v` read the input, which stays: there the head owns *rows*.",
        "5x6 5x6 5x6 6x5": "you removed one row. Head 1 of size 2 owns rows 2 and 3.",
        "2x6 2x6 2x6 6x2": "you kept the head and removed the others: turn the choice round.",
    }
    if shapes != "4x6 4x6 4x6 6x4":
        return messages.get(shapes, f"the shapes are {shapes}; of 6 rows (of `o`: columns), 4 should be left.")
    masked = o.clone()
    masked[:, 2:4] = 0
    x = torch.linspace(-1, 1, 24).view(4, 6)
    if torch.allclose(_attend(x, *found), _attend(x, q, k, v, masked), atol=1e-5):
        return None
    if torch.equal(found[3], o[:, [0, 2, 3, 5]]) or torch.equal(found[0], q[[0, 2, 3, 5]]):
        return "heads lie one after another: head 1 owns rows 2 and 3, not every third one."
    return (
        "the shapes are right, but another head has gone: head 1 of size 2 owns 2 to 4, counted from 0, end left out."
    )


EXERCISES = (
    Exercise(
        id="12-1",
        title="What leaves with a head",
        kind="read",
        difficulty=2,
        minutes=4,
        task=(
            "The Llama of notebook 13 is 576 wide. Each attention layer has 9 query heads and 3 key-value heads, of "
            "size 64: three query heads share each key-value head. If one key-value head leaves, how many rows leave "
            "`q_proj`, `k_proj` and `v_proj`, and how many columns `o_proj`? Set `leaves = (q, k, v, o)`."
        ),
        answer="leaves",
        stub="leaves = ...  # (rows of q_proj, rows of k_proj, rows of v_proj, columns of o_proj)",
        hints=(
            "A head is 64 rows of its projection.",
            "Who asks the key-value head? All of them must leave with it.",
            "Three query heads leave with one key-value head: 3 × 64 rows of `q_proj`.",
        ),
        solution="leaves = (3 * 64, 64, 64, 3 * 64)",
        check=check_read,
        wrong=(
            WrongAnswer("leaves = (64, 64, 64, 64)", "cannot leave"),
            WrongAnswer("leaves = (192, 192, 192, 192)", "shared"),
            WrongAnswer("leaves = (192, 64, 64, 64)", "count its columns"),
            WrongAnswer("leaves = (576, 192, 192, 576)", "all of the layer"),
        ),
        praise="With grouped queries the unit is a key-value head and all who ask it.",
    ),
    Exercise(
        id="12-2",
        title="Before or after the mean",
        kind="modify",
        difficulty=1,
        minutes=5,
        task=(
            "`gradients` has a row a picture and a column a head: how the loss of that picture moves with the head's "
            "gate. The function takes the mean and then its size. Change it to Michel's importance: the size by "
            "picture, then the mean, and all of the layer divided by the L2 norm of that vector (the root of the sum "
            "of its squares)."
        ),
        answer="importance",
        stub=(
            "def importance(gradients):\n"
            "    return ...  # it was gradients.mean(0).abs(): what if pictures pull in opposite directions?"
        ),
        hints=(
            "One head, two pictures: +3 and -3. Is the head worth nothing?",
            "`gradients.abs().mean(0)` is the size by picture.",
            "`size / size.norm()`",
        ),
        solution="def importance(gradients):\n    size = gradients.abs().mean(0)\n    return size / size.norm()",
        check=check_modify,
        wrong=(
            WrongAnswer("def importance(gradients):\n    return gradients.mean(0).abs()", "half of them one way"),
            WrongAnswer(
                "def importance(gradients):\n    mean = gradients.mean(0).abs()\n    return mean / mean.norm()",
                "signs have cancelled",
            ),
            WrongAnswer("def importance(gradients):\n    return gradients.abs().mean(0)", "divide by the length"),
            WrongAnswer(
                "def importance(gradients):\n    size = gradients.abs().mean(0)\n    return size / size.sum()",
                "divided by the sum",
            ),
        ),
        praise="What pulls every picture is important, even if the pulls cancel.",
    ),
    Exercise(
        id="12-3",
        title="Take a head out",
        kind="make",
        difficulty=2,
        minutes=10,
        task=(
            "Write `without(q, k, v, o, head, size)`: the four weights of an attention layer, as `nn.Linear` holds them"
            " (rows are outputs), without one head. Heads lie one after another, `size` rows each, counted from 0. "
            "Return the four smaller tensors."
        ),
        answer="without",
        stub="def without(q, k, v, o, head, size):\n    return ...  # q, k, v, o, smaller",
        hints=(
            "Of `q`, `k` and `v` the head owns rows; of `o`, which reads the heads, columns.",
            "Which indices stay? All but those from `head * size` to `head * size + size`.",
            "`stay = [i for i in range(len(q)) if i // size != head]`, then `q[stay]` and `o[:, stay]`.",
        ),
        solution=(
            "def without(q, k, v, o, head, size):\n"
            "    stay = [i for i in range(len(q)) if i // size != head]\n"
            "    return q[stay], k[stay], v[stay], o[:, stay]"
        ),
        check=check_make,
        wrong=(
            WrongAnswer(
                "def without(q, k, v, o, head, size):\n"
                "    stay = [i for i in range(len(q)) if i // size != head]\n"
                "    return q[stay], k[stay], v[stay], o[stay]",
                "must keep its width",
            ),
            WrongAnswer(
                "def without(q, k, v, o, head, size):\n"
                "    for w in (q, k, v):\n"
                "        w[head * size : head * size + size] = 0\n"
                "    return q, k, v, o",
                "zeroed is not removed",
            ),
            WrongAnswer(
                "def without(q, k, v, o, head, size):\n"
                "    stay = [i for i in range(len(q)) if i != head]\n"
                "    return q[stay], k[stay], v[stay], o[:, stay]",
                "you removed one row",
            ),
            WrongAnswer(
                "def without(q, k, v, o, head, size):\n"
                "    stay = [i for i in range(len(q)) if i % (len(q) // size) != head]\n"
                "    return q[stay], k[stay], v[stay], o[:, stay]",
                "one after another",
            ),
            WrongAnswer(
                "def without(q, k, v, o, head, size):\n"
                "    stay = [i for i in range(len(q)) if i // size == head]\n"
                "    return q[stay], k[stay], v[stay], o[:, stay]",
                "turn the choice round",
            ),
        ),
        praise="Rows of three, columns of the fourth: that is all `granularity.heads` knows.",
    ),
)
