"""Lesson 05, "Which layer would you touch last?": its experiments, grids, drawings and exercises' checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import nn

from ... import zoo
from ...agreement import leave_one_out, overlap, rank_correlation
from ...allocation import expand, unit_scores
from ...calibration import Calibration
from ...core import Keep
from ...criteria import by_name as criterion_named
from ...granularity import filters, weights
from ...layerwise import BySensitivity
from ...masking import apply
from ...measurement import evaluate
from ...recovery import finetune
from ...sensitivity import scan
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Run
from .pruned_networks import CNNS, kept, spread

# The experiments


def overlaps(choices: Mapping[str, Keep]) -> np.ndarray:
    """(choices, choices): of what the row's choice keeps, the share that the column's keeps too."""
    totals = [[overlap(a, b).total for b in choices.values()] for a in choices.values()]
    return np.array([[found.both / max(found.a, 1) for found in row] for row in totals])


def agreement_of(run: Run) -> float:
    """The rank correlation of one stored layer's scores with the truth about it."""
    scores, truth = ({"layer": torch.tensor(run[key])} for key in ("scores", "truth"))
    return rank_correlation(scores, truth).overall


# The stored grids


EPOCHS = 1
LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of the layer scans


def budgets() -> Iterator[Run]:
    """Notebook 05: five networks, the same budget spent equally, by sensitivity, and by one contest."""
    data = zoo.load("digits")
    for seed, name in enumerate(CNNS):
        dense = zoo.checkpoint(name)
        groups = weights(dense)
        scanned = scan(dense, data, LEVELS, progress=False)
        for sparsity in (0.5, 0.6, 0.7, 0.8, 0.9):
            choices = {
                "equal shares": kept(dense, "local", sparsity),
                "by sensitivity": spread(dense, BySensitivity(scanned)(dense, groups, sparsity)),
                "one contest": kept(dense, "global", sparsity),
            }
            for rule, keep in choices.items():
                model = zoo.checkpoint(name)
                apply(model, expand(model, groups, keep))
                before = evaluate(model, data, "test").accuracy
                finetune(model, data, epochs=EPOCHS, seed=seed, progress=False)
                after = evaluate(model, data, "test").accuracy
                yield {"network": name, "rule": rule, "sparsity": sparsity, "before": before, "after": after}


JUDGES = ("random", "fpgm", "magnitude", "bn_slimming", "synflow", "gradient", "taylor", "wanda", "fisher")


def truths() -> Iterator[Run]:
    """Notebook 05: five networks, the loss without each filter, and how each criterion had judged it."""
    data = zoo.load("digits")
    for name in CNNS:
        model = zoo.checkpoint(name)
        groups = filters(model, data.valid[:2][0])
        truth = leave_one_out(model, [data.valid[:400]], groups, progress=False)
        calib = Calibration.of(data, samples=512)
        for judge in JUDGES:
            # The plain sum: what a criterion says of a whole filter, in units that are the same in every layer.
            scores = unit_scores(criterion_named(judge)(model, calib), groups, "sum")
            agreement = rank_correlation(scores, truth)
            yield {"network": name, "criterion": judge, "agreement": agreement.overall, "filters": "all"}
            if name == CNNS[0]:
                yield from (
                    {"network": name, "criterion": judge, "layer": g.name, "scores": scores[g.name].tolist(),
                     "truth": truth[g.name].tolist()}
                    for g in groups
                )  # fmt: skip


GRIDS: dict[str, Grid] = {"budgets": budgets, "truths": truths}


# Drawings


def layer_scan(ax: Axes, x: Sequence[float], accuracy: Mapping[str, Sequence[float]], dense: float) -> None:
    """A scan: one curve a layer, pruned alone, below the line of the whole network."""
    for name, values in accuracy.items():
        ax.plot([0.0, *x], [dense, *values], label=name)
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set(xlabel="removed of this layer alone", ylabel="validation accuracy", ylim=(0, 1))
    ax.legend(title="layer", ncols=2, loc="lower left")


def judged(ax: Axes, run: Mapping[str, Any]) -> None:
    """What a criterion said of each filter of a layer, against the loss without it, both as ranks."""
    x, y = (np.argsort(np.argsort(run[key])) + 1 for key in ("scores", "truth"))
    ax.plot(x, y, linestyle="none", markersize=6)
    ax.plot([1, len(x)], [1, len(x)], color="grey", linestyle=":", marker="")
    ax.set(xlabel=f"rank by {run['criterion']}", ylabel="rank by the loss without it")
    ax.set_title(f"{len(x)} filters of {run['layer']}")


def agreement_map(ax: Axes, names: Sequence[str], shares: np.ndarray, chance: float) -> None:
    """A square for each pair, darker the more they share, with the share written in it; white is chance or below."""
    ax.imshow(shares, cmap="Blues", vmin=chance, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > chance + 0.65 * (1 - chance) else "black"  # legible on its square
        ax.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=9, color=colour)
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.grid(False)


# The checks of the exercises, whose texts stand in 05.toml


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
