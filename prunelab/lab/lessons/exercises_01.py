"""The exercises of notebook 01: magnitude, local and global, and ties."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..learn.claim import plain
from ..learn.exercise import Exercise, WrongAnswer, call

EIGHT = [0.9, -0.1, 0.3, -1.2, 0.05, 0.4, -0.7, 0.2]


def check_read(answer: Any) -> str | None:
    """The four largest of eight by absolute value."""
    values = plain(answer)
    if not isinstance(values, (list, tuple, set)) or not all(isinstance(v, (int, float)) for v in values):
        return "give the surviving weights as a list, e.g. `[0.3, 0.2]`."
    if any(isinstance(v, bool) for v in values):
        return "that is a mask. This once, give the weights themselves, e.g. `[0.3, 0.2]`."
    given = sorted(round(float(v), 6) for v in values)
    known = (
        ([0.9, -1.2, 0.4, -0.7], None),
        ([0.9, 0.4, 0.3, 0.2], "you sorted the *signed* values, so every negative weight went first. A weight of -1.2 "
                               "matters more than one of 0.2: compare absolute values."),
        ([-0.1, 0.3, 0.05, 0.2], "you kept the smallest. Those four are the ones that are removed."),
        ([0.9, -1.2, -0.7], "you used 0.5 as a threshold. 50 % is a share of the weights: four of the eight survive, "
                            "whatever their size."),
        ([0.9, -0.1, 0.3, -1.2], "you kept the first half. The place in the tensor does not matter, the size does."),
        ([0, 3, 5, 6], "those are the right *positions*. Write down the weights that stand there."),
        ([0.9, 1.2, 0.4, 0.7], "right choice, but you dropped the signs. The absolute value only decides who stays; "
                               "what stays is the weight as it was."),
    )  # fmt: skip
    for wrong, message in known:
        if given == sorted(wrong):
            return message
    if len(given) != 4:
        return f"half of eight weights is four; you gave {len(given)}."
    return "not these four. Cross out the signs, sort, and keep the upper half."


LAYERS = {
    "a": torch.tensor([[0.50, -0.60], [0.70, -0.80]]),  # all large: a global rule keeps every one of them
    "b": torch.tensor([[-0.05, 0.10, 0.15], [-0.20, 0.25, -0.30]]),  # small: they pay for it
    "c": torch.tensor([0.90, -0.35]),
}
GLOBAL_HALF = {  # 6 of 12: |w| of 0.35 and more
    "a": torch.ones(2, 2, dtype=torch.bool),
    "b": torch.zeros(2, 3, dtype=torch.bool),
    "c": torch.ones(2, dtype=torch.bool),
}


def check_modify(answer: Any) -> str | None:
    """One competition among all weights."""
    masks = call(answer, {name: weight.clone() for name, weight in LAYERS.items()}, 0.5)
    problem = _not_masks(masks)
    if problem:
        return problem
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    if all(torch.equal(masks[name], want) for name, want in GLOBAL_HALF.items()):
        return _other_sparsity(answer)
    if all(torch.equal(masks[name], ~want) for name, want in GLOBAL_HALF.items()):
        return "you kept the smallest. The sort is ascending, so those that come first must go."
    if not any(bool(mask[LAYERS[name] < 0].any()) for name, mask in masks.items()):
        return "the scores are signed: every negative weight lost. Compare absolute values."
    if kept == {"a": 2, "b": 3, "c": 1}:
        return (
            "this is still the local rule: each layer lost half of its own weights. In a global competition the layer "
            "with the large weights may keep them all."
        )
    total = sum(kept.values())
    if total != 6:
        return (
            f"{total} of the 12 weights survive, and at 50 % it must be 6. An average of the layers' thresholds is not "
            "the threshold of all weights together: sort them in one row."
        )
    return "the right number survives, but not the largest. Does each weight's verdict return to its own place?"


def _not_masks(masks: Any) -> str | None:
    if not isinstance(masks, dict) or set(masks) != set(LAYERS):
        return "return a dict with a mask for each layer, under the layer's name."
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.shape != LAYERS[name].shape:
            return f"the mask of layer {name!r} does not have the shape of its weight, {tuple(LAYERS[name].shape)}."
        if mask.dtype != torch.bool:
            return f"the mask of layer {name!r} is {mask.dtype}; a mask is boolean, True where a weight is kept."
    return None


def _other_sparsity(answer: Any) -> str | None:
    masks = call(answer, {name: weight.clone() for name, weight in LAYERS.items()}, 0.25)
    kept = sum(int(mask.sum()) for mask in masks.values())
    return (
        None if kept == 9 else f"right at 50 %, but at 25 % {kept} of the 12 survive, and it must be 9. Use `sparsity`."
    )


def check_make(answer: Any) -> str | None:
    """An exact magnitude mask, ties and all."""
    plainly = torch.tensor([[0.9, -0.1, 0.3, -1.2], [0.05, 0.4, -0.7, 0.2]])
    given = plainly.clone()
    mask = call(answer, given, 0.5)
    if not torch.equal(given, plainly):
        return "your function changed the weight it was given. Build a new mask, and leave the weight alone."
    if not isinstance(mask, Tensor) or mask.shape != plainly.shape:
        return f"return a tensor of the weight's shape, {tuple(plainly.shape)}."
    if mask.dtype != torch.bool:
        if torch.equal(mask, plainly * (plainly.abs() > 0.3)):
            return 'you returned the pruned weight. The mask is the answer to "who stays?": True or False for each.'
        return f"your mask is {mask.dtype}; make it boolean: True where a weight is kept."
    return _choice(mask, plainly) or _counts(answer)


def _choice(mask: Tensor, weight: Tensor) -> str | None:
    """What a mask at 50 % says about how the weights were compared."""
    want = weight.abs() > 0.3
    if torch.equal(mask, want):
        return None
    if torch.equal(mask, ~want):
        return "you kept the smallest: your mask is True where the weight should go."
    if torch.equal(mask, weight >= 0.2):
        return "you sorted the signed values, so -1.2 went before 0.05. Compare absolute values."
    if torch.equal(mask, weight.abs() > 0.5):
        return "you used the sparsity as a threshold. It is a share: half of the weights go, whatever their size."
    if torch.equal(mask, weight.square() > weight.square().mean()):
        return "you compared with the average. Then the count depends on the weights; sparsity fixes the count."
    return f"at 50 % on eight weights, {int(mask.sum())} survive, and they are not the four largest by absolute value."


def _counts(answer: Any) -> str | None:
    """The exact count on ties, at the ends and at another sparsity."""
    ties = torch.tensor([-2.0, 0.0, 2.0]).repeat(24)[:70].reshape(7, 10)  # 24 times -2, 23 times 0, 23 times 2
    for weight, sparsity, gone in ((ties, 0.2, 14), (torch.ones(4, 5), 0.5, 10), (ties, 0.0, 0), (ties, 0.9, 63)):
        mask = call(answer, weight.clone(), sparsity)
        removed = int((~mask).sum())
        if removed != gone:
            return _tied(sparsity, removed, gone, weight)
        if bool(mask.any()) and bool((~mask).any()) and weight[mask].abs().min() < weight[~mask].abs().max():
            return f"at {100 * sparsity:.0f} % the count is right, but a smaller weight stays while a larger one goes."
    return None


def _tied(sparsity: float, removed: int, gone: int, weight: Tensor) -> str:
    what = f"of {weight.numel()} weights with many ties, {100 * sparsity:.0f} % is {gone}; your mask removes {removed}."
    if sparsity == 0:
        return f"a sparsity of 0 removes nothing; your mask removes {removed}."
    if removed > gone:
        return f"{what} A threshold with `<=` removes *every* weight that ties with it. Take places, not a threshold."
    return f"{what} A threshold with `<` spares *every* weight that ties with it. Take places, not a threshold."


EXERCISES = (
    Exercise(
        id="01-1",
        title="Who stays?",
        kind="read",
        difficulty=1,
        minutes=3,
        task=(
            "A layer has the weights `[0.9, -0.1, 0.3, -1.2, 0.05, 0.4, -0.7, 0.2]`. It is pruned by magnitude to a "
            "sparsity of 50 %.\n\nWhich weights survive? Put them in the list `survivors`, in any order."
        ),
        answer="survivors",
        stub="survivors = ...  # a list of weights",
        hints=(
            "50 % is a share of the weights, not a size: four of the eight go.",
            "Magnitude is the absolute value. Cross out the minus signs before you compare.",
            "Sorted by magnitude: 0.05, 0.1, 0.2, 0.3 | 0.4, 0.7, 0.9, 1.2. Now give the signs back.",
        ),
        solution="survivors = [0.9, -1.2, 0.4, -0.7]",
        check=check_read,
        wrong=(
            WrongAnswer("survivors = sorted([0.9, -0.1, 0.3, -1.2, 0.05, 0.4, -0.7, 0.2])[4:]", "*signed*"),
            WrongAnswer("survivors = [-0.1, 0.3, 0.05, 0.2]", "kept the smallest"),
            WrongAnswer("survivors = [0.9, -1.2, -0.7]", "0.5 as a threshold"),
            WrongAnswer("survivors = [0, 3, 5, 6]", "*positions*"),
            WrongAnswer("survivors = [0.9, 1.2, 0.4, 0.7]", "dropped the signs"),
            WrongAnswer("survivors = [0.9, -1.2]", "half of eight"),
        ),
        praise="The sign says which way a weight pushes; its size says how hard.",
    ),
    Exercise(
        id="01-2",
        title="From local to global",
        kind="modify",
        difficulty=2,
        minutes=8,
        task=(
            "The function below prunes each layer by itself: every layer loses the same share. Change it so that all "
            "weights of the network compete with each other, and return the masks (a dict, by layer name)."
        ),
        answer="global_masks",
        stub=(
            "def global_masks(weights, sparsity):\n"
            "    masks = {}\n"
            "    for name, weight in weights.items():  # the local rule: each layer for itself\n"
            "        order = weight.abs().flatten().argsort()  # smallest first\n"
            "        keep = torch.ones(weight.numel(), dtype=torch.bool)\n"
            "        keep[order[: round(sparsity * weight.numel())]] = False\n"
            "        masks[name] = keep.view_as(weight)\n"
            "    return ...  # masks, once all layers compete"
        ),
        hints=(
            "There must be one sort for the whole network, before the loop, and not one in each round.",
            "`torch.cat([w.abs().flatten() for w in weights.values()])` puts all magnitudes in one row.",
            "Make one long `keep` for that row; `keep.split([w.numel() for w in weights.values()])` cuts it up.",
        ),
        solution=(
            "def global_masks(weights, sparsity):\n"
            "    scores = torch.cat([weight.abs().flatten() for weight in weights.values()])\n"
            "    keep = torch.ones(scores.numel(), dtype=torch.bool)\n"
            "    keep[scores.argsort()[: round(sparsity * scores.numel())]] = False\n"
            "    parts = keep.split([weight.numel() for weight in weights.values()])\n"
            "    return {name: part.view_as(weights[name]) for name, part in zip(weights, parts)}"
        ),
        check=check_modify,
        wrong=(
            WrongAnswer(
                "def global_masks(weights, sparsity):\n"
                "    masks = {}\n"
                "    for name, weight in weights.items():\n"
                "        order = weight.abs().flatten().argsort()\n"
                "        keep = torch.ones(weight.numel(), dtype=torch.bool)\n"
                "        keep[order[: round(sparsity * weight.numel())]] = False\n"
                "        masks[name] = keep.view_as(weight)\n"
                "    return masks",
                "still the local rule",
            ),
            WrongAnswer(
                "def global_masks(weights, sparsity):\n"
                "    scores = torch.cat([w.abs().flatten() for w in weights.values()])\n"
                "    limit = scores.sort().values[round(sparsity * scores.numel())]\n"
                "    return {n: w.abs() < limit for n, w in weights.items()}",
                "kept the smallest",
            ),
            WrongAnswer(
                "def global_masks(weights, sparsity):\n"
                "    scores = torch.cat([w.flatten() for w in weights.values()])\n"
                "    limit = scores.sort().values[round(sparsity * scores.numel())]\n"
                "    return {n: w >= limit for n, w in weights.items()}",
                "signed",
            ),
            WrongAnswer(
                "def global_masks(weights, sparsity):\n"
                "    limit = sum(w.abs().median() for w in weights.values()) / len(weights)\n"
                "    return {n: w.abs() > limit for n, w in weights.items()}",
                "average of the layers' thresholds",
            ),
            WrongAnswer(
                "def global_masks(weights, sparsity):\n"
                "    return {n: (w.abs() > 0.32).float() for n, w in weights.items()}",
                "a mask is boolean",
            ),
            WrongAnswer(
                "def global_masks(weights, sparsity):\n    return {n: w.abs() > 0.32 for n, w in weights.items()}",
                "Use `sparsity`",
            ),
        ),
        praise="One competition for all: a layer of large weights may keep everything, and a small one may vanish.",
    ),
    Exercise(
        id="01-3",
        title="A mask that counts exactly",
        kind="make",
        difficulty=2,
        minutes=10,
        task=(
            "Write `magnitude_mask(weight, sparsity)`: a boolean tensor of the weight's shape, True where a weight is "
            "kept. Exactly `round(sparsity * weight.numel())` weights go, those of the smallest magnitude, even if "
            "many have the same size. The weight itself stays as it is."
        ),
        answer="magnitude_mask",
        stub="def magnitude_mask(weight, sparsity):\n    return ...  # a boolean tensor of the weight's shape",
        hints=(
            "A threshold can't split weights that tie with it. Choose *places* instead: the first so many of a sort.",
            "`weight.abs().flatten().argsort()` lists the places of the weights, the smallest first.",
            "Start with `torch.ones(weight.numel(), dtype=torch.bool)`, set the first places to False, then `view_as`.",
        ),
        solution=(
            "def magnitude_mask(weight, sparsity):\n"
            "    order = weight.abs().flatten().argsort(stable=True)  # smallest first; ties by place\n"
            "    mask = torch.ones(weight.numel(), dtype=torch.bool)\n"
            "    mask[order[: round(sparsity * weight.numel())]] = False\n"
            "    return mask.view_as(weight)"
        ),
        check=check_make,
        wrong=(
            WrongAnswer(
                "def magnitude_mask(weight, sparsity):\n"
                "    order = weight.abs().flatten().argsort(descending=True)\n"
                "    mask = torch.ones(weight.numel(), dtype=torch.bool)\n"
                "    mask[order[: round(sparsity * weight.numel())]] = False\n"
                "    return mask.view_as(weight)",
                "kept the smallest",
            ),
            WrongAnswer(
                "def magnitude_mask(weight, sparsity):\n"
                "    order = weight.flatten().argsort()\n"
                "    mask = torch.ones(weight.numel(), dtype=torch.bool)\n"
                "    mask[order[: round(sparsity * weight.numel())]] = False\n"
                "    return mask.view_as(weight)",
                "signed values",
            ),
            WrongAnswer(
                "def magnitude_mask(weight, sparsity):\n"
                "    k = round(sparsity * weight.numel())\n"
                "    return ~(weight.abs() <= weight.abs().flatten().sort().values[max(k - 1, 0)])",
                "`<=` removes *every*",
            ),
            WrongAnswer(
                "def magnitude_mask(weight, sparsity):\n"
                "    k = round(sparsity * weight.numel())\n"
                "    return weight.abs() >= weight.abs().flatten().sort().values[k]",
                "`<` spares *every*",
            ),
            WrongAnswer(
                "def magnitude_mask(weight, sparsity):\n    return weight.abs() > sparsity", "sparsity as a threshold"
            ),
            WrongAnswer(
                "def magnitude_mask(weight, sparsity):\n    return weight * (weight.abs() > 0.3)", "the pruned weight"
            ),
            WrongAnswer(
                "def magnitude_mask(weight, sparsity):\n    weight[weight.abs() <= 0.3] = 0\n    return weight != 0",
                "changed the weight",
            ),
        ),
        praise="Exact under ties: a constant layer loses its share, and not everything.",
    ),
)
