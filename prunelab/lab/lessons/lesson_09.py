"""Lesson 09, "What does retraining bring back?": its experiments, grids, drawings and exercises' checks."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from ... import zoo
from ...granularity import weights
from ...measurement import evaluate
from ...pipeline import Recipe, gradually, prune
from ...recovery import Early, distil, finetune, recalibrate_batchnorm, rewind_rates, rewind_weights, train
from ...recovery.methods import State
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Run
from ..show.figure import COLOURS, table
from ..show.intervals import ahead
from ..show.measuring import measured
from ..show.plots import bars_over_networks, curves
from ..show.vector import INK
from .pruned_networks import CNNS, pruned

# The ways to bring a pruned network back, each by its name, and all on one budget of steps


EPOCH = 63  # steps: 4,000 digits in batches of 64
FIRST = 4 * EPOCH  # steps of the training that made the dense network
STEPS = 2 * EPOCH  # the budget of every recovery
GENTLE = 3e-3  # fine-tuning's constant rate; of 0.0003, 0.001 and 0.003 the best on validation


@dataclass(frozen=True)
class Past:
    """A dense network, its state `STEPS` steps before its training ended, and its seed."""

    dense: nn.Module
    early: State
    seed: int


def past(seed: int, data: zoo.Data, *, progress: bool = False) -> Past:
    """Train the course's CNN of a seed again, as its checkpoint was, and keep its state on the way."""
    model = zoo.cnn(**zoo.cards()["digits-cnn"]["arguments"], seed=seed)
    early = Early(model, FIRST - STEPS)
    train(model, data.train, steps=FIRST, on_step=early, progress=progress, **_settings(seed))
    return Past(model.eval(), early.state, seed)


def _settings(seed: int) -> dict[str, Any]:
    made = zoo.cards()["digits-cnn"]["training"]
    return {**{key: made[key] for key in ("lr", "weight_decay", "batch_size")}, "seed": seed}


@dataclass(frozen=True)
class Recovered:
    """A network after a recovery, the steps it took, and its seconds of CPU (which a busy machine hardly changes)."""

    model: nn.Module
    steps: int
    seconds: float


Way = Callable[[nn.Module, Past, zoo.Data], object]  # changes the masked model in place
_END: dict[str, Any] = {"steps": STEPS, "of": FIRST, "progress": False}


def _fine_tuning(model: nn.Module, past: Past, data: zoo.Data) -> object:
    settings = {**_settings(past.seed), "lr": GENTLE}
    return finetune(model, data.train, steps=STEPS, lr_schedule="constant", progress=False, **settings)


def _rates(model: nn.Module, past: Past, data: zoo.Data) -> object:
    return rewind_rates(model, data.train, **_END, **_settings(past.seed))


def _weights(model: nn.Module, past: Past, data: zoo.Data) -> object:
    return rewind_weights(model, past.early, data.train, **_END, **_settings(past.seed))


def _teacher(model: nn.Module, past: Past, data: zoo.Data) -> object:
    return distil(model, past.dense, data.train, train=rewind_rates, **_END, **_settings(past.seed))


def _statistics(model: nn.Module, past: Past, data: zoo.Data) -> object:
    return recalibrate_batchnorm(model, data, batch_size=_settings(past.seed)["batch_size"], seed=past.seed)


def _nothing(model: nn.Module, past: Past, data: zoo.Data) -> object:
    return None


WAYS: dict[str, Way] = {  # of one pruned network
    "nothing": _nothing,
    "BatchNorm only": _statistics,
    "fine-tuning": _fine_tuning,
    "rates rewound": _rates,
    "weights rewound": _weights,
    "distillation": _teacher,
}
CONTROLS = ("random, rates rewound", "small dense", "small dense, full bill")
FREE = ("nothing", "BatchNorm only")
TRAINED = tuple(way for way in WAYS if way not in FREE)


def recovered(way: str, past: Past, sparsity: float, data: zoo.Data) -> Recovered:
    """Prune the dense network by global magnitude and bring it back one way; or train a control instead."""
    start = time.process_time()
    if way in CONTROLS[1:]:
        steps = STEPS if way == CONTROLS[1] else FIRST + STEPS
        model = zoo.cnn(width=small_width(past.dense, sparsity), seed=past.seed)
        train(model, data.train, steps=steps, progress=False, **_settings(past.seed))
        return Recovered(model, steps, time.process_time() - start)
    by_lot = way == CONTROLS[0]
    if not by_lot and way not in WAYS:
        raise ValueError(f"no way back is called {way!r}; there are {', '.join((*WAYS, *CONTROLS))}")
    model = pruned(past.dense, "random" if by_lot else "global", sparsity)
    (_rates if by_lot else WAYS[way])(model, past, data)
    return Recovered(model, 0 if way in FREE else STEPS, time.process_time() - start)


def small_width(dense: nn.Module, sparsity: float) -> int:
    """The widest CNN that has no more parameters than the pruned network has left, those never pruned included."""
    groups = weights(dense)
    prunable = sum(g.units for g in groups)
    left = sum(p.numel() for p in dense.parameters()) - round(sparsity * prunable)
    width = 1
    while sum(p.numel() for p in zoo.cnn(width=width + 1).parameters()) <= left:
        width += 1
    return width


def in_rounds(
    model: nn.Module, sparsity: float, data: zoo.Data, seed: int, steps: int, *, rounds: int, schedule: str
) -> nn.Module:
    """Prune in place in rounds, retrained after each with its share of the steps."""
    again = partial(train, data=data.train, steps=steps // rounds, progress=False, **_settings(seed))
    prune(model, Recipe(sparsity=sparsity, rounds=rounds, schedule=schedule), recover=again)
    return model


def while_training(
    model: nn.Module, sparsity: float, data: zoo.Data, seed: int, steps: int, *, schedule: str
) -> nn.Module:
    """Prune in place nine times within one run of all the steps, the last time after three quarters of it."""
    recipe = Recipe(sparsity=sparsity, rounds=9, schedule=schedule)
    train(model, data.train, steps=steps, on_step=gradually(model, recipe), progress=False, **_settings(seed))
    return model


Course = Callable[[nn.Module, float, zoo.Data, int, int], nn.Module]  # model, sparsity, data, seed, steps
COURSES: dict[str, Course] = {
    "one-shot": partial(in_rounds, rounds=1, schedule="one_shot"),
    "three rounds, linear": partial(in_rounds, rounds=3, schedule="linear"),
    "three rounds, cubic": partial(in_rounds, rounds=3, schedule="cubic"),
    "while training, linear": partial(while_training, schedule="linear"),
    "while training, cubic": partial(while_training, schedule="cubic"),
}


def retrained(model: nn.Module, data: zoo.Data, steps: int, seed: int) -> nn.Module:
    """Retrain in place for so many steps with one cycle of the first training's rates."""
    if steps:
        train(model, data.train, steps=steps, progress=False, **_settings(seed))
    return model


def compared(caption: str, found: Mapping[str, Recovered], data: zoo.Data) -> dict[str, float]:
    """Show what each recovery took and what it reads of the test digits; return the latter."""
    read = {way: evaluate(one.model, data, "test").accuracy for way, one in found.items()}
    columns = {"way": None, "steps": None, "processor": "s", "accuracy": "%"}
    table(caption, columns, [[way, one.steps, one.seconds, read[way]] for way, one in found.items()])
    return read


# How far pruning can go and still be undone, and how sure five networks make one of that


@dataclass(frozen=True)
class Interval:
    """A mean over networks and its 95 % interval by Student's t."""

    mean: float
    low: float
    high: float

    def text(self, unit: str) -> str:
        """As a table writes it: ≈ 0.7 points [0.1 points, 1.3 points]."""
        return measured(self.mean, unit, interval=(self.low, self.high))


def interval(values: Sequence[float]) -> Interval:
    """The mean ± t(0.975, n - 1) s / sqrt(n) of n >= 2 independent values."""
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or len(found) < 2:
        raise ValueError(f"an interval needs at least two values, one a network; it got {found.shape}")
    mean = ahead(found, np.zeros_like(found))
    return Interval(float(mean.mean), float(mean.low), float(mean.high))


def leads(found: Mapping[str, Sequence[float]], over: str) -> dict[str, Interval]:
    """How far each of the others is ahead of `over`: the interval of the differences, network by network."""
    return {
        name: interval([a - b for a, b in zip(values, found[over], strict=True)])
        for name, values in found.items()
        if name != over
    }


def spread(found: Mapping[str, Sequence[float]], names: Sequence[str]) -> float:
    """How far apart the means of some of them lie."""
    means = [float(np.mean(found[name])) for name in names]
    return max(means) - min(means)


def standings(
    panels: Mapping[str, Mapping[str, Sequence[float]]], over: str
) -> tuple[dict[str, str | None], list[list[str | float]]]:
    """Columns and rows of a table: each name's mean in each panel, and its lead there over one of them."""
    columns: dict[str, str | None] = {"way": None}
    rows: list[list[str | float]] = [[name] for name in next(iter(panels.values()))]
    for title, found in panels.items():
        columns |= {title: "%", f"{title}: ahead of {over}": None}
        ahead = {name: lead.text("points") for name, lead in leads(found, over).items()} | {over: ""}
        for row in rows:
            name = str(row[0])
            row += [float(np.mean(found[name])), ahead[name]]
    return columns, rows


def last_return(sparsities: Sequence[float], accuracy: Sequence[float], enough: float) -> float:
    """The sparsity at which a falling curve of accuracies crosses `enough`, on straight lines between its points.

    NaN if it lies outside: the first point is below already, or none is.
    """
    for (s, a), (t, b) in pairwise(zip(sparsities, accuracy, strict=True)):
        if a >= enough > b:
            return s + (t - s) * (a - enough) / (a - b)
    return math.nan


def points(
    sparsities: Sequence[float], accuracy: np.ndarray, references: Sequence[Sequence[float]], within: float
) -> list[Interval]:
    """The interval of `point_of_no_return` against each of several references, such as two kinds of dense networks."""
    return [interval(point_of_no_return(sparsities, accuracy, against, within)) for against in references]


def point_of_no_return(
    sparsities: Sequence[float], accuracy: np.ndarray, dense: Sequence[float], within: float
) -> list[float]:
    """Of each network its `last_return` to `within` of its own dense accuracy; accuracy is (networks, sparsities)."""
    return [last_return(sparsities, row, own - within) for row, own in zip(accuracy, dense, strict=True)]


# The stored grids: what comes back, by which way, in how many rounds, and where nothing does


SEEDS = (0, 1, 2, 3, 4)  # of the networks "digits-cnn", "digits-cnn-1", ...
SPARSITIES = (0.95, 0.98)
STAGES = (0.9, 0.95, 0.97, 0.98, 0.99)
LONG = 6 * EPOCH  # steps, one and a half first trainings
BUDGETS = (0, EPOCH, LONG)
TRIED = {  # those tried with so many steps
    STEPS: tuple(COURSES),
    LONG: ("one-shot", "three rounds, cubic", "while training, cubic"),
}


def recoveries(seeds: Sequence[int] = SEEDS) -> Iterator[Run]:
    """Notebook 09: five networks, nine ways back on one budget of steps, controls among them."""
    data = zoo.load("digits")
    for seed in seeds:
        trained = past(seed, data)
        first = {"network": CNNS[seed], "sparsity": 0.0, "steps": FIRST}
        yield {**first, "way": "dense", "accuracy": evaluate(trained.dense, data, "test").accuracy}
        for sparsity in SPARSITIES:
            for way in (*WAYS, *CONTROLS):
                found = recovered(way, trained, sparsity, data)
                yield {
                    "network": CNNS[seed],
                    "sparsity": sparsity,
                    "way": way,
                    "steps": found.steps,
                    "accuracy": evaluate(found.model, data, "test").accuracy,
                }


def rounds(seeds: Sequence[int] = SEEDS) -> Iterator[Run]:
    """Notebook 09: five networks, pruned at once, in rounds or while training, on two budgets of steps."""
    data = zoo.load("digits")
    for seed in seeds:
        for sparsity in SPARSITIES:
            for steps, courses in TRIED.items():
                for course in courses:
                    walk = COURSES[course]
                    model = walk(zoo.checkpoint(CNNS[seed]), sparsity, data, seed, steps)
                    yield {
                        "network": CNNS[seed],
                        "sparsity": sparsity,
                        "steps": steps,
                        "course": course,
                        "accuracy": evaluate(model, data, "test").accuracy,
                    }


def returns(seeds: Sequence[int] = SEEDS) -> Iterator[Run]:
    """Notebook 09: five networks, pruned at once and retrained not at all, briefly, and for long."""
    data = zoo.load("digits")
    for seed in seeds:
        dense = zoo.checkpoint(CNNS[seed])
        for sparsity in (0.0, *STAGES):
            masked = pruned(dense, "global", sparsity) if sparsity else dense
            for steps in BUDGETS:  # the dense network too: to train on may help it as well
                model = retrained(copy.deepcopy(masked), data, steps, seed)
                accuracy = evaluate(model, data, "test").accuracy
                yield {"network": CNNS[seed], "sparsity": sparsity, "steps": steps, "accuracy": accuracy}


GRIDS: dict[str, Grid] = {"recoveries": recoveries, "rounds": rounds, "returns": returns}

# Drawings


def cliff(ax: Axes, sparsities: Sequence[float], runs: Mapping[str, Any], dense: Sequence[float]) -> None:
    """Accuracy against sparsity for several budgets, under the line of the dense networks' mean."""
    curves(ax, sparsities, runs, ylabel="test accuracy", legend=False)
    ax.axhline(float(np.mean(dense)), color=INK, lw=1.2, ls=(0, (4, 3)), marker="", label="dense")
    ax.set_xticks(list(sparsities), [f"{s:.0%}" for s in sparsities])
    ax.set_ylim(0, 1.04)
    ax.legend(loc="center left")


def no_return(ax: Axes, sparsities: Sequence[float], table: np.ndarray, dense: Sequence[float], within: float) -> None:
    """One budget's curve, the line that is good enough, and where the one falls below the other, with its interval."""
    curves(ax, sparsities, {"five networks": table}, ylabel="test accuracy", legend=False)
    enough = float(np.mean(dense)) - within
    ax.axhline(enough, color=INK, lw=1.2, ls=(0, (4, 3)), marker="")
    found = point_of_no_return(sparsities, table, dense, within)
    if np.isnan(found).any():
        early = bool((table[:, 0] < np.asarray(dense) - within).any())
        where = "not even at the first point" if early else "beyond the last point"
        ax.set_title(f"within {100 * within:g} points of dense: for some network {where}", fontsize=10)
    else:
        at = interval(found)
        ax.axvspan(at.low, at.high, color=COLOURS[1], alpha=0.25, lw=0)
        ax.axvline(at.mean, color=COLOURS[1], lw=1.6, ls="-", marker="")
        ax.set_title(f"within {100 * within:g} points of dense up to {at.mean:.1%} [{at.low:.1%}, {at.high:.1%}]")
    ax.set_xticks(list(sparsities), [f"{s:.0%}" for s in sparsities])
    ax.set_ylim(max(0, enough - 0.3), 1)  # near the line: there it is decided


def ways(axes: Sequence[Axes], found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """A panel of bars for each title: one bar a way, a mark for each network."""
    for ax, (title, values) in zip(axes, found.items(), strict=True):
        bars_over_networks(ax, values, "test accuracy")
        ax.set(title=title, xlim=(0, 1))
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        if not ax.yaxis_inverted():  # a shared axis was turned once for each panel
            ax.invert_yaxis()


def edge(sparsities: Sequence[float], table: np.ndarray, dense: Sequence[float], within: float) -> dict[str, str]:
    """`no_return` in words: the point of no return and its interval, or that it lies off the curve."""
    found = point_of_no_return(sparsities, table, dense, within)
    if np.isnan(found).any():
        return {"returns up to": "beyond the curve's ends", "95 % interval": ""}
    at = interval(found)
    low, high = measured(at.low, "%"), measured(at.high, "%")
    return {"returns up to": measured(at.mean, "%"), "95 % interval": f"{low} to {high}"}


# The checks of the exercises, whose texts stand in 09.toml


def check_read(answer: Any) -> str | None:
    """Dense 95 %, retrained 94.5, 94, 91 and 70 % at 90, 95, 97 and 99 %: within 2 points up to 95 %."""
    known = {
        0.95: None,
        0.9: "that is back within 2 points, but it is not the last one: look one row further.",
        0.97: "91 % is 4 points below dense. Within 2 points means at least 93 %.",
        0.99: "70 % is the cliff itself: nothing came back there.",
        95: "did you mean 0.95? Sparsity is a fraction here.",
        0.93: "that is the accuracy which is still good enough; the question is for the sparsity.",
    }
    if isinstance(answer, bool) or not isinstance(answer, (int, float)):
        return "give one number: a sparsity of the table, such as 0.9."
    return known.get(answer, "that is no sparsity of the table: 0.9, 0.95, 0.97 or 0.99.")


FINAL, ROUNDS = 0.9, 3


def check_modify(answer: Any) -> str | None:
    """1 - (1 - s)^(n / rounds): the same share of what is left, every round."""
    for final, rounds in ((0.875, 3), (FINAL, ROUNDS), (0.5, 1), (0.99, 5)):
        found = plain(call(answer, final, rounds))
        if not isinstance(found, (list, tuple)) or len(found) != rounds:
            return f"return a list of one sparsity a round; for {rounds} rounds that is {rounds} of them."
        given = [float(x) for x in found]
        message = _of_rounds(given, final, rounds)
        if message:
            return message
    return None


def _of_rounds(given: list[float], final: float, rounds: int) -> str | None:
    def close(wanted: list[float]) -> bool:
        return all(abs(a - b) < 1e-6 for a, b in zip(given, wanted, strict=True))

    times = [n / rounds for n in range(1, rounds + 1)]
    right = [1 - (1 - final) ** t for t in times]
    if close(right):
        return None
    wrong = (
        ([final * t for t in times], "that is still linear: each round takes the same number of weights, and the last "
         "one takes nearly all that is left."),
        ([1 - x for x in right], "those are the shares that *stay*. Give the sparsities, the shares that are gone."),
        ([1 - (1 - final) ** (1 / rounds)] * rounds, "that is what one round takes of what is left. "
         "Give how much is gone in all, after each round."),
        ([final**t for t in times], "you shrank the share that goes; what shrinks by the same factor is the share that "
         "*stays*, 1 - final."),
        ([final * (1 - (1 - t) ** 3) for t in times], "that is the cubic schedule: a good one, but not this one."),
    )  # fmt: skip
    for values, message in wrong:
        if close(values):
            return message
    if abs(given[-1] - final) > 1e-6:
        return f"the last round must end at the final sparsity, {final:g}; yours ends at {given[-1]:.3g}."
    return "after n of the rounds (1 - final) ** (n / rounds) is left; the sparsity is the rest."


_DICE = torch.Generator().manual_seed(0)
STUDENT, TEACHER = torch.randn(4, 3, generator=_DICE), torch.randn(4, 3, generator=_DICE)


def _divergence(student: Tensor, teacher: Tensor, t_student: float, t_teacher: float) -> Tensor:
    """KL(teacher || student), the mean over the samples."""
    p = (teacher / t_teacher).softmax(1)
    return (p * (p.log() - (student / t_student).log_softmax(1))).sum(1).mean()


def check_make(answer: Any) -> str | None:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over the samples."""
    t = 2.5
    found = plain(call(answer, STUDENT.clone(), TEACHER.clone(), t))
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return "return one number: the mean over the samples."
    right = _divergence(STUDENT, TEACHER, t, t)
    p = (TEACHER / t).softmax(1)
    entropy = -(p * p.log()).sum(1).mean()
    wrong = (
        (right, "the factor T² is missing: a soft target's gradient shrinks by T², and this makes up for it."),
        (t * right, "T came in once; it must come in squared, because the gradient shrinks by T²."),
        (_divergence(STUDENT, TEACHER, 1, 1), "the temperature did nothing: divide both outputs by it first."),
        (t**2 * _divergence(STUDENT, TEACHER, 1, t), "only the teacher was softened. Divide the student's by T too."),
        (t**2 * _divergence(STUDENT, TEACHER, t, 1), "only the student was softened. Divide the teacher's by T too."),
        (t**2 * _divergence(TEACHER, STUDENT, t, t), "student and teacher changed places: it is the teacher's "
         "probabilities that weigh the logarithms."),
        (t**2 * right * len(STUDENT), "that is the sum over the samples; take their mean."),
        (t**2 * right / STUDENT.shape[1], "that is the mean over the classes too: sum over them, and take the mean "
         "over the samples. (`reduction=\"batchmean\"` does it.)"),
        (t**2 * (right + entropy), "that is the cross-entropy. The teacher's own entropy is not the student's fault: "
         "subtract it."),
        (-(t**2) * right, "the sign is reversed: a divergence is never negative."),
    )  # fmt: skip
    if abs(found - float(t**2 * right)) < 1e-5:
        return None
    near = [message for value, message in wrong if abs(found - float(value)) < 1e-5]
    return near[0] if near else "it is T² times the mean, over the samples, of the sum of p · (log p - log q)."
