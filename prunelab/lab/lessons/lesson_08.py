"""Lesson 08, "Large and growing at once?": its grid, drawings and the checks of its exercises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from ... import zoo
from ...masking import current_masks
from ...measurement import evaluate
from ...reconstruction import as_published, redistribute, redistributed
from ...recovery import recalibrate_batchnorm
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Resumable, Run
from ..show.figure import COLOURS
from ..show.vector import INK
from .pruned_networks import CNNS, pruned

# The experiment: pruned by magnitude, handed on or not, statistics estimated again or not; never retrained


LEVELS = (0.7, 0.9)
WAYS = ("magnitude alone", "handed on", "statistics alone", "handed on, statistics")


def inheritance() -> Resumable:
    """Notebook 08: five networks pruned by magnitude, with and without redistribution, statistics old and new."""
    data = zoo.load("digits")

    def run(point: Run) -> Run:
        whole = zoo.checkpoint(CNNS[point["network"]])
        alone = pruned(whole, "global", point["sparsity"])
        both = alone, redistribute(whole, current_masks(alone))
        reads = [evaluate(model, data, "test").accuracy for model in both]
        for model in both:
            recalibrate_batchnorm(model, data)
        reads += [evaluate(model, data, "test").accuracy for model in both]
        return dict(zip(WAYS, (round(x, 4) for x in reads), strict=True))

    return [{"network": n, "sparsity": s} for s in LEVELS for n in range(len(CNNS))], run


GRIDS: dict[str, Grid] = {"inheritance": inheritance}


# Drawings


def handed_on(axes: Sequence[Axes], rows: Mapping[str, Tensor]) -> None:
    """A panel an order of operations: what each row's kept weights are handed, one bar a row."""
    for i, (ax, (title, values)) in enumerate(zip(axes, rows.items(), strict=True)):
        ax.bar(range(len(values)), values.tolist(), color=COLOURS[i], width=1.0)
        ax.axhline(0, color=INK, lw=1.2, ls="-", marker="")
        if not values.any():
            ax.text(0.5, 0.56, "0", transform=ax.transAxes, ha="center", fontsize=60, fontweight="bold")
        ax.set(title=title, xlabel="row of fc1")
    axes[0].set_ylabel("value handed to those that stay")


# The checks of the exercises, whose texts stand in 08.toml


def check_holds(answer: Any) -> str | None:
    """Which of four conclusions the table supports: a and c."""
    if not isinstance(answer, (str, list, tuple, set, frozenset)) or not all(isinstance(x, str) for x in answer):
        return 'give the letters of the conclusions that hold, such as `"ab"`.'
    letters = {x for part in answer for x in part.lower() if x.isalpha()}
    if letters == {"a", "c"}:
        return None
    if "b" in letters:
        return "with fresh statistics on both sides handing on adds nothing: nothing forgotten came back (b)."
    if "d" in letters:
        return "no Llama was measured here, and it has no BatchNorm to be stale: the table is silent about it (d)."
    if letters == {"a"}:
        return "and the control in the third column? It has changed no weight, and reads more."
    if letters == {"c"}:
        return "with the old statistics, handing on did help: the numbers of that line are true (a)."
    return "go through them one by one: which two numbers would each conclusion compare?"


def check_inherit(answer: Any) -> str | None:
    """What is pruned, shared out among the kept of its row; a row without heirs becomes 0."""
    dice = torch.Generator().manual_seed(8)
    for rows, columns, dtype in ((3, 5, torch.float32), (2, 9, torch.float64), (6, 4, torch.float32)):
        weight = torch.randn(rows, columns, generator=dice, dtype=dtype)
        mask = torch.rand(rows, columns, generator=dice) > 0.5
        mask[0, :2] = torch.tensor([True, False])
        mask[1] = rows == 3  # a row that keeps everything, or one without heirs
        found = torch.as_tensor(plain(call(answer, weight.clone(), mask.clone())), dtype=dtype)
        if found.shape != weight.shape:
            return "return a tensor of the weight's shape."
        removed = weight.masked_fill(mask, 0)
        estate, heirs = removed.sum(1, keepdim=True), mask.sum(1, keepdim=True).clamp(min=1)
        known = (
            ((weight + estate / heirs) * mask, None),
            (weight * mask, "nothing moved. If you zeroed first and summed then, you summed zeros: that is the very "
             "slip of the published code."),
            (weight + estate / heirs, "the pruned weights are still there: put zeros where the mask is False."),
            ((weight + estate) * mask, "every heir got the *whole* of it. Divide it among them."),
            ((weight + estate / weight.shape[1]) * mask, "you divided by all weights of the row; only the kept "
             "inherit."),
            ((weight + removed.abs().sum(1, keepdim=True) / heirs) * mask, "debts are inherited too: no absolute "
             "value."),
            ((weight + removed.sum() / mask.sum()) * mask, "the layer keeps its sum, but the rows do not: each row "
             "for itself."),
        )  # fmt: skip
        other = "check one row by hand: its sum must be the same before and after."
        if found.isnan().any():
            other = "a row that keeps nothing has no heirs: 0 divided by 0 is NaN. Such a row becomes 0."
        message = next((says for value, says in known if torch.allclose(found, value, atol=1e-5)), other)
        if message:
            return message
    return None


def check_audit(answer: Any) -> str | None:
    """Tells methods that move something from those that only prune, whatever they return it in."""
    said = {name: plain(call(answer, method)) for name, (method, _) in METHODS.items()}
    truth = {name: moves for name, (_, moves) in METHODS.items()}
    if not all(isinstance(found, bool) for found in said.values()):
        return "return True or False: does the method move anything?"
    if said == truth:
        return None
    if all(found != truth[name] for name, found in said.items()):
        return "the other way round: True means that something moves."
    if all(said.values()):
        return "it calls even magnitude pruning a move. Pruning changes the weight too: compare with `weight * mask`."
    if not any(said.values()):
        return "nothing ever moves on your trial. Does your mask remove anything, and do you look at what stays?"
    name = next(name for name, found in said.items() if found != truth[name])
    return f"{name} is judged wrongly. Compare *every* entry with `weight * mask`, not only a sum or a corner."


def _largest(weight: Tensor, mask: Tensor) -> Tensor:
    """All that is removed goes to the one largest weight: the other entries are as if nothing had happened."""
    moved = weight * mask
    moved.view(-1)[moved.abs().argmax()] += weight[~mask].sum()
    return moved


METHODS: dict[str, tuple[Any, bool]] = {
    "a redistribution by rows": (redistributed, True),
    "a redistribution over the layer": (lambda weight, mask: redistributed(weight, mask, "layer"), True),
    "a method that gives all to one weight": (_largest, True),
    "the published order": (as_published, False),
    "magnitude pruning": (lambda weight, mask: weight.masked_fill(~mask, 0), False),
}
