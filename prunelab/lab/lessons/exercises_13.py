"""The exercises of notebook 13: a Llama loses weights, and blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..learn.claim import plain
from ..learn.exercise import Exercise, WrongAnswer, call


def check_read(answer: Any) -> str | None:
    """Of six blocks with their influence, the two to remove."""
    given = plain(answer)
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not all(isinstance(i, int) for i in given):
        return "give two numbers of blocks, such as `(0, 1)`."
    known = {
        (2, 4): None,
        (0, 5): "those two turn the stream most: they are the ones to keep.",
        (4, 5): "you took the last two. The last block turns the stream a lot: it prepares the answer.",
        (2, 3): "you took two in a row. Block Influence judges each block alone, and they need not be neighbours.",
        (3, 5): "you counted from one: the first block has the number 0.",
    }
    return known.get(tuple(sorted(given)), "not these two: find the two that change least what passes through them.")


def check_modify(answer: Any) -> str | None:
    """|W_ij| * norm(X_j)."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=source)
    inputs = torch.randn(10, 3, generator=source) * torch.tensor([0.1, 1.0, 5.0])
    found = call(answer, weight.clone(), inputs.clone())
    if not torch.is_tensor(found) or found.shape != weight.shape:
        return "return a tensor of the weight's shape, (out, in): one score a weight."
    norms = inputs.norm(dim=0)
    if torch.allclose(found, weight.abs() * norms):
        return None
    wrong = (
        (weight.abs(), "that is still magnitude: the inputs are not asked."),
        (weight * norms, "you kept the signs: a large negative weight would go first. Take `abs()` of the weight."),
        (weight.abs() * inputs.norm(), "one norm for all inputs ranks as magnitude does: each input needs its own."),
        (weight.abs() * inputs.sum(0).abs(), "a sum lets positive and negative inputs cancel. Wanda takes the norm."),
        (weight.abs() * inputs.mean(0).abs(), "a mean lets positive and negative inputs cancel. Wanda takes the norm."),
        (weight.abs() + norms, "a sum lets a weight of zero on a loud input survive: multiply."),
        (weight.abs() * norms.square(), "you squared the norm: it ranks otherwise. Wanda takes the norm itself."),
    )
    near = [message for value, message in wrong if torch.allclose(found, value)]
    return near[0] if near else "a weight's score is |w| times the norm of *its own* input over all tokens."


def _streams() -> list[Tensor]:
    """What enters six blocks and leaves the last: 5 tokens, 4 numbers each. The middle ones hardly turn it."""
    source = torch.Generator().manual_seed(3)
    steps = (1.0, 0.6, 0.3, 0.05, 0.35, 0.9)
    streams = [torch.randn(5, 4, generator=source)]
    for size in steps:
        streams.append(streams[-1] + size * torch.randn(5, 4, generator=source))
    return streams


def _angles(streams: Sequence[Tensor], n: int) -> list[float]:
    pairs = zip(streams, streams[n:], strict=False)
    return [float((F.cosine_similarity(a, b, dim=-1).clamp(-1, 1).arccos() / math.pi).mean()) for a, b in pairs]


def check_make(answer: Any) -> str | None:
    """The start of the run of n blocks that turns the stream least."""
    streams = _streams()
    best = {n: min(range(7 - n), key=_angles(streams, n).__getitem__) for n in (1, 2, 3)}
    found = {n: plain(call(answer, [s.clone() for s in streams], n)) for n in (1, 2, 3)}
    if not all(isinstance(x, int) and not isinstance(x, bool) for x in found.values()):
        return "return the number of the block where the run starts, a whole number."
    if found == best:
        return None
    most = {n: max(range(7 - n), key=_angles(streams, n).__getitem__) for n in (1, 2, 3)}
    single = _angles(streams, 1)
    alone = {n: min(range(7 - n), key=single.__getitem__) for n in (1, 2, 3)}
    if found == most:
        return "you found the run that turns the stream *most*: that one does the work. Take the smallest angle."
    if found == alone:
        return "you compared each block with the next one only. A run goes from `streams[i]` to `streams[i + n]`."
    if found == {n: i + 1 for n, i in best.items()}:
        return "one too many: `streams[i]` is what *enters* block i, so a run from `streams[i]` starts at block i."
    return (
        "for each start i compare `streams[i]` with `streams[i + n]`, token by token, and take the smallest mean angle."
    )


def _make(body: str) -> str:
    return f"def best_run(streams, n):\n{body}"


_COS = "        cos = torch.cosine_similarity(streams[i], streams[i + n], dim=-1)\n"
_MEAN = "        turned.append(float(cos.arccos().mean()))\n"
_LOOP = "    turned = []\n    for i in range(len(streams) - n):\n"

EXERCISES = (
    Exercise(
        id="13-1",
        title="Who leaves?",
        kind="read",
        difficulty=1,
        minutes=3,
        task=(
            "Six blocks, from the first to the last, and their Block Influence:\n\n"
            "`0.31  0.08  0.02  0.06  0.03  0.24`\n\n"
            "You may remove two. Which? Set `out = (..., ...)`, counting from 0."
        ),
        answer="out",
        stub="out = ...  # two blocks, such as (0, 1)",
        hints=(
            "Influence says how far a block turns what passes through it.",
            "A block that turns nothing will not be missed.",
            "The two lowest are 0.02 and 0.03.",
        ),
        solution="out = (2, 4)",
        check=check_read,
        wrong=(
            WrongAnswer("out = (0, 5)", "ones to keep"),
            WrongAnswer("out = (4, 5)", "last two"),
            WrongAnswer("out = (2, 3)", "in a row"),
            WrongAnswer("out = (3, 5)", "counted from one"),
        ),
        praise="Low influence, low price. And they need not stand side by side.",
    ),
    Exercise(
        id="13-2",
        title="From magnitude to Wanda",
        kind="modify",
        difficulty=1,
        minutes=5,
        task=(
            "`weight` is (out, in); `inputs` is (tokens, in), what flowed into the layer. The function scores by "
            "magnitude. Make it Wanda: each weight's size times the norm of its own input, over all tokens."
        ),
        answer="wanda",
        stub="def wanda(weight, inputs):\n    return ...  # it was weight.abs(): but how loud is the input?",
        hints=(
            "Each column of the weight has one input.",
            "`inputs.norm(dim=0)` has one number for each input.",
            "`weight.abs() * inputs.norm(dim=0)`",
        ),
        solution="def wanda(weight, inputs):\n    return weight.abs() * inputs.norm(dim=0)",
        check=check_modify,
        wrong=(
            WrongAnswer("def wanda(weight, inputs):\n    return weight.abs()", "still magnitude"),
            WrongAnswer("def wanda(weight, inputs):\n    return weight * inputs.norm(dim=0)", "kept the signs"),
            WrongAnswer("def wanda(weight, inputs):\n    return weight.abs() * inputs.norm()", "one norm for all"),
            WrongAnswer("def wanda(weight, inputs):\n    return weight.abs() * inputs.mean(0).abs()", "cancel"),
            WrongAnswer("def wanda(weight, inputs):\n    return weight.abs() + inputs.norm(dim=0)", "multiply"),
        ),
        praise="One multiplication more than magnitude, and a Llama that still talks.",
    ),
    Exercise(
        id="13-3",
        title="The run that does least",
        kind="make",
        difficulty=2,
        minutes=10,
        task=(
            "`streams[i]`, (tokens, hidden), is what enters block i; the last of the list is what leaves the last "
            "block. Write `best_run(streams, n)`: of all runs of n blocks, where does the one start that turns the "
            "stream by the smallest angle, on average over the tokens?"
        ),
        answer="best_run",
        stub="def best_run(streams, n):\n    return ...  # the number of the run's first block",
        hints=(
            "Before a run that starts at i stands `streams[i]`, behind it `streams[i + n]`.",
            "`torch.cosine_similarity(a, b, dim=-1)` gives a cosine a token; `arccos()` its angle.",
            "Collect the mean angle for every i in `range(len(streams) - n)`; return the place of the smallest.",
        ),
        solution=_make(f"{_LOOP}{_COS}{_MEAN}    return turned.index(min(turned))"),
        check=check_make,
        wrong=(
            WrongAnswer(
                _make(f"{_LOOP}{_COS}{_MEAN}    return turned.index(max(turned))"),
                "turns the stream *most*",
            ),
            WrongAnswer(
                _make(
                    f"{_LOOP}        cos = torch.cosine_similarity(streams[i], streams[i + 1], dim=-1)\n"
                    "        turned.append(float(cos.arccos().mean()))\n    return turned.index(min(turned))"
                ),
                "next one only",
            ),
            WrongAnswer(
                _make(f"{_LOOP}{_COS}{_MEAN}    return turned.index(min(turned)) + 1"),
                "one too many",
            ),
        ),
        praise="That is how Gromov and others cut a third of the layers out of models a hundred times as large.",
    ),
)
