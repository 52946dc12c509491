"""Lesson 01, "Which weights matter?": its experiment, drawings and the checks of its exercises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...pipeline import Recipe
from ..learn.claim import plain
from ..learn.exercise import call
from ..show.figure import SHADES
from ..show.plots import RIGHT, WRONG
from ..show.vector import INK, PAPER
from .pruned_networks import reading

# The experiment


def sweep(
    models: Sequence[nn.Module], recipes: Mapping[str, Recipe], sparsities: Sequence[float], pictures: Any
) -> dict[str, list[list[float]]]:
    """Accuracy without retraining: for each recipe a table (networks, sparsities). A bar shows how far it is."""
    bar = tqdm(total=len(models) * len(recipes) * len(sparsities), desc="pruning", leave=False)
    with bar:
        return {
            name: [_accuracies(model, recipe, sparsities, pictures, bar) for model in models]
            for name, recipe in recipes.items()
        }


def _accuracies(model: nn.Module, recipe: Recipe, sparsities: Sequence[float], pictures: Any, bar: tqdm) -> list[float]:
    found = []
    for sparsity in sparsities:
        found.append(reading(model, replace(recipe, sparsity=sparsity), pictures).accuracy)
        bar.update()
    return found


# Drawings


def histogram(ax: Axes, weights: Tensor, removed: Tensor, title: str = "") -> None:
    """How many weights have which value, those that go drawn apart from those that stay."""
    edges = np.linspace(-float(weights.abs().max()), float(weights.abs().max()), 121).tolist()
    ax.hist(weights[removed].numpy(), edges, color=WRONG, hatch="////", edgecolor=PAPER, lw=0, label="go")
    stays = weights[~removed].numpy()
    ax.hist(stays, edges, color=RIGHT, label="stay", histtype="step", lw=1.6)
    ax.set(xlabel="weight", ylabel="how many (logarithmic)", yscale="log", title=title)
    ax.legend()


def matrices(axes: Sequence[Axes], pictures: Mapping[str, Tensor]) -> None:
    """Matrices as pictures side by side: weights in two colours around zero, masks in black (stays)."""
    for ax, (title, matrix) in zip(axes, pictures.items(), strict=True):
        if matrix.dtype == torch.bool:
            ax.imshow(matrix.numpy(), cmap=SHADES, vmin=0, vmax=1, aspect="auto")
        else:
            most = float(matrix.abs().max())
            ax.imshow(matrix.numpy(), cmap="PuOr", vmin=-most, vmax=most, aspect="auto")
        ax.set(title=title, xlabel="input", ylabel="output")
        ax.grid(False)


def choices(ax: Axes, x: Tensor, y: Tensor, kept_x: Tensor, kept_y: Tensor, labels: tuple[str, str]) -> None:
    """Units by two scores, marked by whether both scores keep them, neither, or only one."""
    for name, where in (
        ("both keep it", kept_x & kept_y),
        ("both remove it", ~kept_x & ~kept_y),
        ("they disagree", kept_x ^ kept_y),
    ):
        ax.plot(x[where].numpy(), y[where].numpy(), linestyle="none", label=name, markersize=7)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.legend()


def marked_curve(
    ax: Axes,
    x: Sequence[float],
    runs: Mapping[str, Sequence[float]],
    chosen: str,
    at: float,
    xlabel: str = "share removed",
) -> None:
    """Several curves, one of them in full and the others pale, with one of its points marked and read out."""
    for name, values in runs.items():
        ax.plot(x, values, label=name, alpha=1.0 if name == chosen else 0.3)
    y = runs[chosen][list(x).index(at)]
    ax.plot([at], [y], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=INK, linestyle="none")
    ax.annotate(f"{y:.0%}", (at, y), textcoords="offset points", xytext=(12, 8), fontweight="bold")
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set(xlabel=xlabel, ylabel="validation accuracy", ylim=(0, 1.08))
    ax.legend(loc="upper right")


# The checks of the exercises, whose texts stand in 01.toml


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
