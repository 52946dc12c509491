"""Lesson 09, "What does retraining bring back?": its experiment and grid, drawings and exercises' checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import nn

from ... import zoo
from ...granularity import weights
from ...measurement import evaluate
from ...recovery import recalibrate_batchnorm, train
from ...text import percent
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Ahead, Grid, Resumable, Run, ahead
from ..show.figure import COLOURS, table
from ..show.measuring import measured
from ..show.plots import curves
from ..show.vector import INK
from .pruned_networks import CNNS, pruned

# What comes back: nothing done, statistics, one epoch, six


EPOCH = 63  # steps: 4,000 digits in batches of 64
FIRST = 4 * EPOCH  # steps of the training that made the dense network
AFTER = {"nothing": 0, "fresh statistics": 0, "one epoch": EPOCH, "two epochs": 2 * EPOCH, "six epochs": 6 * EPOCH}
TWO, SMALL = "two epochs", "small dense"  # a small one, never pruned, gets all the steps: FIRST and these two epochs
STAGES = (0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
DEEP = STAGES[2:]  # where training is worth its time: until then statistics suffice
NARROW = (0.95, 0.98)  # where a small one runs too, against two epochs


def back(model: nn.Module, after: str, data: zoo.Data, seed: int) -> nn.Module:
    """Bring back a masked model in place: one of AFTER. Training is one cycle of the first training's rates."""
    if after == "fresh statistics":
        recalibrate_batchnorm(model, data, seed=seed)
    elif AFTER[after]:
        train(model, data.train, steps=AFTER[after], **settings(seed))
    return model


def small(dense: nn.Module, sparsity: float, data: zoo.Data, seed: int) -> nn.Module:
    """A narrow dense network, trained for all the steps that the pruned one got before and after the cut."""
    model = zoo.cnn(width=small_width(dense, sparsity), seed=seed)
    train(model, data.train, steps=FIRST + AFTER[TWO], **settings(seed))
    return model


def settings(seed: int) -> dict[str, Any]:
    """Of the training that made the dense network: its rate, decay and batches; the seed orders them."""
    made = zoo.trained.cards()["digits-cnn"]["training"]
    return {**{key: made[key] for key in ("lr", "weight_decay", "batch_size")}, "seed": seed, "progress": False}


def small_width(dense: nn.Module, sparsity: float) -> int:
    """The widest CNN that has no more parameters than the pruned network has left, those never pruned included."""
    prunable = sum(g.units for g in weights(dense))
    left = sum(p.numel() for p in dense.parameters()) - round(sparsity * prunable)
    width = 1
    while sum(p.numel() for p in zoo.cnn(width=width + 1).parameters()) <= left:
        width += 1
    return width


def returns() -> Resumable:
    """Notebook 09: five networks, 50 to 99 % zeros, and what was done then; dense ones and small ones beside them."""
    data = zoo.load("digits")
    points = [(s, after) for s in STAGES for after in ("nothing", "fresh statistics")]
    points += [(s, after) for s in NARROW for after in (TWO, SMALL)]
    points += [(s, after) for s in (*DEEP, 0.0) for after in ("one epoch", "six epochs")]
    points += [(0.0, "nothing")]

    def run(point: Run) -> Run:
        seed, sparsity, after = CNNS.index(point["network"]), point["sparsity"], point["after"]
        model = zoo.checkpoint(point["network"])
        if after == SMALL:
            model = small(model, sparsity, data, seed)
        else:
            model = back(pruned(model, "global", sparsity) if sparsity else model, after, data, seed)
        return {"accuracy": evaluate(model, data, "test").accuracy}

    return [{"network": n, "sparsity": s, "after": after} for s, after in points for n in CNNS], run


GRIDS: dict[str, Grid] = {"returns": returns}

# The point of no return


def last_return(sparsities: Sequence[float], accuracy: Sequence[float], enough: float) -> float:
    """Where a curve of accuracies falls below `enough` for good, on straight lines between its points.

    NaN if it lies outside: the last point is still good enough, or none is.
    """
    found = math.nan
    for (s, a), (t, b) in pairwise(zip(sparsities, accuracy, strict=True)):
        if a >= enough > b:
            found = s + (t - s) * (a - enough) / (a - b)
    return math.nan if accuracy[-1] >= enough else found


def no_return(
    sparsities: Sequence[float], accuracy: np.ndarray, reference: Sequence[float], within: float
) -> np.ndarray:
    """Each network's `last_return` to within so much of its own reference: (networks,), NaN where there is none.

    accuracy is (networks, sparsities), the reference one value a network.
    """
    pairs = zip(accuracy, reference, strict=True)
    return np.array([last_return(sparsities, row, own - within) for row, own in pairs])


def edge(*curve: Any) -> dict[str, str]:
    """`crossing` in words."""
    at = ahead(no_return(*curve), np.zeros(1))
    mean, *interval = (float(x) for x in (at.mean, at.low, at.high))
    text = "beyond the curve's ends" if math.isnan(mean) else measured(mean, "%", interval=(interval[0], interval[1]))
    return {"comes back up to": text}


def against_small(runs: Sequence[Run]) -> dict[float, Ahead]:
    """Show pruned and small dense networks of equal steps side by side; by how much the pruned are ahead."""
    columns = {"zeros": None, "pruned, two epochs": "%", "width": None, "small dense": "%", "pruned ahead by": None}
    leads, rows = {}, []
    for sparsity in NARROW:
        both = [[r["accuracy"] for r in runs if (r["sparsity"], r["after"]) == (sparsity, a)] for a in (TWO, SMALL)]
        leads[sparsity] = at = ahead(*map(np.array, both))
        width = small_width(zoo.checkpoint(CNNS[0]), sparsity)
        by = measured(float(at.mean), "points", interval=(float(at.low), float(at.high)))
        rows.append([percent(sparsity, digits=0), np.mean(both[0]), f"{width} for 32", np.mean(both[1]), by])
    table("Pruned against small: the same parameters, the same steps (95 % interval)", columns, rows)
    return leads


# Drawings


def cliffs(ax: Axes, stages: Sequence[float], runs: Mapping[str, np.ndarray], dense: float) -> None:
    """Accuracy against sparsity, a curve for all that was done after the cut, under the dense networks' line.

    A table with fewer columns than there are stages is of the last ones.
    """
    places = range(len(stages))  # evenly: the end is what counts
    for name, found in runs.items():
        curves(ax, places[-found.shape[1] :], {name: found}, ylabel="test accuracy", legend=False)
    ax.axhline(dense, color=INK, lw=1.2, ls=(0, (4, 3)), marker="", label="dense, never cut")
    ax.set_xticks(range(len(stages)), [percent(s, digits=0) for s in stages])
    ax.set_ylim(0, 1.02)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)  # no curve beneath it


def crossing(ax: Axes, stages: Sequence[float], found: np.ndarray, reference: Sequence[float], within: float) -> None:
    """One curve near the line that is good enough, and where it falls below, with the interval."""
    curves(ax, stages, {"five networks": found}, ylabel="test accuracy", legend=False)
    enough = float(np.mean(reference)) - within
    ax.axhline(enough, color=INK, lw=1.2, ls=(0, (4, 3)), marker="")
    at = ahead(no_return(stages, found, reference, within), np.zeros(1))
    ax.set_title("no point of no return on this curve")
    if not np.isnan(at.mean):
        ax.axvspan(float(at.low), float(at.high), color=COLOURS[1], alpha=0.25, lw=0)
        ax.axvline(float(at.mean), color=COLOURS[1], lw=1.6, ls="-", marker="")
        ax.set_title(f"comes back up to {percent(float(at.mean))}")
    ax.set_xticks(list(stages), [percent(s, digits=0) for s in stages])
    ax.set_ylim(max(0, enough - 0.3), 1)


# The checks of the exercises, whose texts stand in 09.toml


def check_read(answer: Any) -> str | None:
    """Dense 95 %, then 94.5, 94, 91 and 70 % at 90, 95, 97 and 99 %: 95 % by rows, 95.67 % by lines between them."""
    value = plain(answer)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "give one number: a sparsity, such as 0.9."
    lines = 0.95 + 0.02 / 3
    known = {
        0.9: "that is back within 2 points, but it is not the last one: look one row further.",
        0.97: "91 % is 4 points below dense. Within 2 points means at least 93 %.",
        0.99: "70 % is the cliff itself: nothing came back there.",
        0.93: "that is the accuracy which is still good enough; the question is for the sparsity.",
    }
    if 0.95 - 1e-6 <= value <= lines + 1e-3:
        return None
    if 1 < value <= 100:
        return f"did you mean {value / 100:g}? Sparsity is a fraction here."
    near = [message for wrong, message in known.items() if abs(value - wrong) < 1e-6]
    return near[0] if near else "it lies at a row of the table, or on the straight line just behind it."


def _curves() -> list[tuple[list[float], list[float], float]]:
    """Curves of several lengths that fall, one of which rises again before its end, and what is good enough."""
    dice = np.random.default_rng(9)
    made = [([0.5, 0.8, 0.9, 0.95], [0.9, 0.96, 0.7, 0.4], 0.93)]  # one that starts below and rises
    made += [([0.5, 0.7, 0.9, 0.95, 0.99], [0.95, 0.9, 0.94, 0.8, 0.3], 0.92)]  # falls below twice
    for n in (3, 4, 6):
        sparsities = sorted(dice.uniform(0.3, 0.99, n))
        accuracy = sorted(dice.uniform(0.3, 0.98, n), reverse=True)
        made += [(sparsities, accuracy, accuracy[i] * 0.7 + accuracy[i + 1] * 0.3) for i in range(n - 1)]
    return [([float(x) for x in s], [float(x) for x in a], float(e)) for s, a, e in made]


def check_crossing(answer: Any) -> str | None:
    """The last crossing of the line, on straight lines between the points."""
    for s, a, enough in reversed(_curves()):  # sparsities and accuracies, the plain ones first
        found = plain(call(answer, list(s), list(a), enough))
        found = found[0] if isinstance(found, list) and len(found) == 1 else found
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            return "return one number: a sparsity."
        at = max(i for i in range(len(a) - 1) if a[i] >= enough > a[i + 1])
        first = min(i for i in range(len(a) - 1) if a[i] >= enough > a[i + 1])
        share = (a[at] - enough) / (a[at] - a[at + 1])
        known = (
            (last_return(s, a, enough), None),
            (s[at], "that is the last point which is good enough; the curve goes on above the line a little further."),
            (s[at + 1], "that is the first point which is *not* good enough; the curve crosses the line before it."),
            ((s[at] + s[at + 1]) / 2, "you took the middle of two points; the crossing divides the stretch as the "
             "accuracies divide."),
            (s[at + 1] - (s[at + 1] - s[at]) * share, "you measured the share from the wrong end: it is how much of "
             "the fall lies *above* the line."),
            (last_return(s[: first + 2], a[: first + 2], enough), "that is where it falls below first; it comes back "
             "once more. The point of no return is the last crossing."),
        )  # fmt: skip
        other = f"for the sparsities {s} and accuracies {a}, enough {enough:g}, it gave {found:.4g}."
        message = next((says for value, says in known if abs(found - value) < 5e-4), other)
        if message:
            return message
    return None
