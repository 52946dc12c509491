"""The ways of notebook 06 to bring a pruned network back, each by its name, and all on one budget of steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ... import zoo
from ...measurement import evaluate
from ...pipeline import Recipe, gradually, prune
from ...recovery import Early, distil, finetune, recalibrate_batchnorm, rewind_rates, rewind_weights, train
from ...recovery.methods import State
from ..author.checkpoints import BATCH, PLANS
from ..show.figure import table
from . import contests

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
    model = zoo.cnn(**PLANS["digits-cnn"].arguments, seed=seed)
    early = Early(model, FIRST - STEPS)
    train(model, data.train, steps=FIRST, on_step=early, progress=progress, **_settings(seed))
    return Past(model.eval(), early.state, seed)


def _settings(seed: int) -> dict[str, Any]:
    plan = PLANS["digits-cnn"]
    return {"lr": plan.lr, "weight_decay": plan.weight_decay, "batch_size": BATCH, "seed": seed}


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
    return recalibrate_batchnorm(model, data, batch_size=BATCH, seed=past.seed)


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
    model = contests.pruned(past.dense, "random" if by_lot else "global", sparsity)
    (_rates if by_lot else WAYS[way])(model, past, data)
    return Recovered(model, 0 if way in FREE else STEPS, time.process_time() - start)


def small_width(dense: nn.Module, sparsity: float) -> int:
    """The widest CNN that has no more parameters than the pruned network has left, those never pruned included."""
    groups = contests.weights(dense)
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
