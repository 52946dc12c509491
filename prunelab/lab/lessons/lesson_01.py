"""Lesson 01, "Which weights matter?": its stored experiment, drawings and the checks of its exercises."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from ... import zoo
from ...allocation import allocate
from ...criteria import Random, magnitude
from ...granularity import weights
from ...layers import prunable
from ...masking import apply, bake, expand
from ...text import percent
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Resumable, Run
from ..show import plots
from ..show.figure import SHADES
from ..show.vector import INK
from .pruned_networks import CNNS, FAST, refreshed

# The experiment, and its stored grid


ORDERS = ("the smallest", "at random", "the largest")  # which weights go first
WIDE = ("conv2", "conv3", "conv4", "fc1")  # all but the two ends
WHICH = {"of all layers": (), "of all but conv1": (*WIDE, "fc2"), "of all but both ends": WIDE}
SHARES = (0.01, 0.02, 0.05, 0.1, 0.3, 0.5, 0.7)


def without(model: nn.Module, order: str, share: float, layers: Sequence[str] = (), seed: int = 0) -> nn.Module:
    """A copy that has lost a share of the weights of some layers (or all) in some order."""
    model = copy.deepcopy(model)
    groups = [g for g in weights(model) if not layers or g.name.removesuffix(".weight") in layers]
    scores = Random(seed)(model) if order == "at random" else magnitude(model)
    if order == "the largest":
        scores = {name: -score for name, score in scores.items()}
    return bake(apply(model, expand(model, groups, allocate(scores, groups, share))))


def orders() -> Resumable:
    """Notebook 01: five networks lose their smallest, random or largest weights, of all or of some layers."""
    points = [
        {"network": n, "order": o, "layers": which, "share": s}
        for n in CNNS for o in ORDERS for which in WHICH for s in SHARES
    ]  # fmt: skip
    data = zoo.load("digits")

    def run(point: Run) -> Run:
        net, seed = zoo.checkpoint(point["network"]).to(memory_format=FAST), CNNS.index(point["network"])
        pruned = without(net, point["order"], point["share"], WHICH[point["layers"]], seed)
        return {"accuracy": refreshed(pruned, data, "valid")}

    return points, run


GRIDS: dict[str, Grid] = {"orders": orders}


# Drawings


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


def panel(ax: Axes, which: str, runs: Mapping[str, Any], chosen: str | None = None, share: float = 0.0) -> None:
    """Accuracy against the share removed of some layers: a curve an order, mean and range of the networks.

    One order can be chosen: the others are pale, and one of its points is marked and read out.
    """
    places = range(len(SHARES))  # equal steps: a hundredth is seen too
    plots.curves(ax, places, runs, legend=False)
    ax.set(title=which, xlabel="share removed", ylim=(0, 1.08))
    ax.set_xticks(places, [percent(s, digits=0) for s in SHARES])
    if chosen or which == list(WHICH)[-1]:  # where there is room
        ax.legend(loc="lower left")
    if chosen is None:
        ax.label_outer()
        return
    for name, line, band in zip(runs, ax.lines, ax.collections, strict=True):
        line.set_alpha(1.0 if name == chosen else 0.3)
        band.set_alpha(0.2 if name == chosen else 0.0)
    at = SHARES.index(share), float(runs[chosen][:, SHARES.index(share)].mean())
    ax.plot(*at, marker="o", markersize=13, markerfacecolor="none", markeredgecolor=INK, linestyle="none")
    ax.annotate(percent(at[1], digits=0), at, textcoords="offset points", xytext=(12, 8), fontweight="bold")


# The checks of the exercises, whose texts stand in 01.toml


def check_read(answer: Any) -> str | None:
    """The four largest of eight by absolute value."""
    values = plain(answer)
    if not isinstance(values, (list, tuple, set)) or not all(type(v) in (int, float) for v in values):
        return "give the weights that survive, no mask, as a list, e.g. `[0.3, 0.2]`."
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


FEW, RUINED = 200, 1 / 3  # weights that the saboteur may take, and the accuracy that must not be reached


def check_ruin(answer: Any) -> str | None:
    """The fewest weights that do the most damage: the network is measured, with fresh statistics."""
    model = zoo.checkpoint("digits-cnn").to(memory_format=FAST)
    masks = call(answer, {name: weight.detach().clone() for name, weight in prunable(model).items()})
    problem = _not_masks(masks, prunable(model))
    if problem:
        return problem
    masks = {name: torch.as_tensor(mask).bool() for name, mask in masks.items()}
    taken = {name.removesuffix(".weight"): int((~mask).sum()) for name, mask in masks.items()}
    count = sum(taken.values())
    if count > FEW:
        return f"your masks take {count:,} weights, and only {FEW} may go. (True in a mask is a weight that *stays*.)"
    if count == 0:
        return f"your masks take nothing: False is a weight that goes, and {FEW} may."
    read = refreshed(bake(apply(model, masks)), zoo.load("digits"), "valid")
    if read < RUINED:
        return None
    return f"{_where_taken(taken)} It still reads {percent(read, digits=0)} of the digits."


def _not_masks(masks: Any, weights: Mapping[str, Tensor]) -> str | None:
    if not isinstance(masks, Mapping) or not set(masks) <= set(weights) or not masks:
        return 'return a dict of masks by the names of the weights, e.g. "conv1.weight"; a layer left out stays whole.'
    for name, mask in masks.items():
        if getattr(mask, "shape", None) != weights[name].shape:
            return f"the mask of {name!r} does not have the shape of its weight, {tuple(weights[name].shape)}."
        values = set(torch.as_tensor(mask).unique().tolist())
        if not values <= {0, 1}:
            return f"the mask of {name!r} holds other values than True and False. Who stays? Yes or no for each weight."
    return None


def _where_taken(taken: Mapping[str, int]) -> str:
    """What a choice that did too little harm tells of."""
    most = max(taken, key=lambda layer: taken[layer])
    if taken.get("conv1") == sum(taken.values()):
        return "The right layer; but which weights of it? The largest do the harm."
    if taken[most] < 0.9 * sum(taken.values()):
        return "You spread them over the layers: a few of many. Where are a few many?"
    return f"{most} has {prunable(zoo.cnn())[most + '.weight'].numel():,} weights. In which layer is {FEW} most of it?"


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
    """The exact count, and no smaller weight kept: random shapes and sizes, ties, near ties, other dtypes, the ends."""
    source = torch.Generator().manual_seed(1)
    ties = torch.tensor([-2.0, 0.0, 2.0]).repeat(24)[:70].reshape(7, 10)  # 24 times -2, 23 times 0, 23 times 2
    near = 1 + 1e-9 * torch.randperm(40, generator=source).double().reshape(5, 8)
    cases = [(ties, 0.2), (torch.ones(4, 5), 0.5), (ties, 0.0), (near, 0.5)]
    for shape, sparsity in (((18,), 0.3), ((3, 6), 0.7), ((2, 3, 3, 3), 0.45), ((4, 3, 2), 0.9)):
        cases.append((torch.randn(shape, generator=source), sparsity))
    for weight, sparsity in cases:
        mask = call(answer, weight.clone(), sparsity)
        if not isinstance(mask, Tensor) or mask.shape != weight.shape or mask.dtype != torch.bool:
            return f"for a weight of shape {tuple(weight.shape)} it did not return a boolean mask of that shape."
        removed, gone = int((~mask).sum()), round(sparsity * weight.numel())
        if removed != gone:
            return _miscounted(sparsity, removed, gone, weight)
        if 0 < gone < weight.numel() and weight[mask].abs().min() < weight[~mask].abs().max():
            return f"at {100 * sparsity:.0f} % the count is right, but a smaller weight stays while a larger one goes."
    return None


def _miscounted(sparsity: float, removed: int, gone: int, weight: Tensor) -> str:
    said = f"{100 * sparsity:.0f} % of {weight.numel()} weights"
    if len(weight.unique()) == weight.numel():
        share = sparsity * weight.numel()
        return f"{said} is {share:.1f}, rounded {gone}; you remove {removed}. Neither cut off nor rounded up: `round`."
    sign, does = ("<=", "removes") if removed > gone else ("<", "spares")
    return (
        f"{said}, many of them ties, is {gone}; you remove {removed}. A threshold with `{sign}` {does} *every* weight "
        "that ties with it. Take places, not a threshold."
    )
