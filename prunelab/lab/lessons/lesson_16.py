"""Lesson 16, "What will you prune?": its grid, drawings and exercises' checks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ... import zoo
from ...allocation import allocate
from ...budget import SearchOptions, fit_budget
from ...criteria import magnitude
from ...criteria.weights import Random
from ...granularity import filters, neurons
from ...measurement import evaluate, macs
from ...pipeline import Recipe, prune
from ...recovery import finetune, recalibrate_batchnorm
from ...surgery import shrink
from ...text import percent
from ..learn import exam
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Grid, Resumable, Run
from ..show.figure import COLOURS
from ..show.measuring import measured
from ..show.vector import INK
from .pruned_networks import CNNS

# The stored grids: one search each on five networks, with every trial of it; and eight tries on five


NETWORKS = {
    "digits-cnn": "the course's CNN",
    "digits-cnn-1": "another CNN",
    "digits-cnn-2": "a third CNN",
    "digits-vit": "a Vision Transformer",
    "exam": "a residual network",
}
BUDGET, STEPS = 0.5, 100
HOW = SearchOptions(front=(1.6, 1.3, 0.75, 0.6))


def fronts() -> Iterator[dict[str, Any]]:
    """Notebook 16: five networks, a search for half of the time on each, all that was tried.

    Of the chosen one the test accuracy, too, looked at once.
    """
    data = zoo.load("digits")
    for name, title in NETWORKS.items():
        dense, learnt = zoo.checkpoint(name), exam.split()[0] if name == exam.NETWORK else data
        result = fit_budget(dense, learnt, latency=BUDGET, recover_steps=STEPS, how=HOW, progress=False)
        for trial in result.trials:
            chosen = trial is result.chosen
            model = result.model if chosen else dense if trial is result.dense else None
            ratios = {cost: round(value, 4) for cost, value in trial.ratios.items()}
            facts = {"name": trial.name, "stage": trial.stage, "steps": trial.steps, "accuracy": trial.accuracy}
            run = {"network": title, **facts, **ratios, "kept": trial.layout, "chosen": chosen}
            yield {**run, "test": evaluate(model, data, "test").accuracy if model else None}


TRIES, QUICK = 8, 20  # networks that compete, and the steps of retraining each gets


def choices() -> Resumable:
    """Notebook 16: eight random halves of each of five CNNs, and how many of each scan's four views each reads."""
    points = [{"network": name, "seed": seed} for name in CNNS for seed in range(TRIES)]
    return points, tried


def tried(point: Run) -> Run:
    """A half of every layer's filters drawn by lot, removed, and retrained briefly."""
    data, model = zoo.load("digits"), zoo.checkpoint(point["network"])
    done = prune(model, Recipe(Random(point["seed"]), "filters", 0.5, "layer"), example=data.train[:1][0])
    small = shrink(zoo.checkpoint(point["network"]), done.groups, done.keep)
    finetune(small, data.train, steps=QUICK, progress=False)
    return {split: right_of_each_scan(small, data, split) for split in ("valid", "test")}


def right_of_each_scan(model: nn.Module, data: zoo.Data, split: str) -> str:
    """A digit a scan: how many of its views are read correctly. (A split's rows stand view after view.)"""
    images, labels = getattr(data, split).tensors
    with torch.no_grad():
        right = torch.cat([model.eval()(some).argmax(1) for some in images.split(256)]) == labels
    return "".join(map(str, right.view(zoo.data.VIEWS, -1).sum(0).tolist()))


GRIDS: dict[str, Grid] = {"fronts": fronts, "choices": choices}


# Stored searches, drawn and as tables


MARKS = {  # of the stored trials: stage -> (colour, marker, label)
    "dense": (INK, "X", "dense"),
    "screened": (COLOURS[5], "o", "a short recovery"),
    "front": (COLOURS[5], "o", ""),
    "finalist": (COLOURS[0], "s", "all the steps"),
}


def stored_front(ax: Any, runs: Sequence[Run], network: str, budget: float) -> None:
    """Draw all that was tried on one network, and the most accurate of it within a budget of time."""
    own = [r for r in runs if r["network"] == network]
    for stage, (colour, marker, label) in MARKS.items():
        points = [(100 * r["latency"], 100 * r["accuracy"]) for r in own if r["stage"] == stage]
        if points:
            how = {"color": colour, "linestyle": "none", "label": label or None, "markersize": 7}
            ax.plot(*zip(*points, strict=True), marker, **how)
    ax.axvspan(0, 100 * budget, color=COLOURS[2], alpha=0.12, label="within the budget")
    best = within(runs, network, budget)
    if best:
        at = 100 * best["latency"], 100 * best["accuracy"]
        ax.plot(*at, "o", markersize=17, fillstyle="none", color=COLOURS[1], linestyle="none", label="the best there")
    says = best["name"].split(", all")[0] if best else "nothing that was tried is within the budget"
    ax.set_title(f"{network}: {says}", fontsize=10)
    ax.set(xlim=(0, 105), xlabel="time, % of the dense network's", ylabel="accuracy (validation), %")
    ax.legend(loc="lower right", fontsize=8)


def within(runs: Sequence[Run], network: str, budget: float) -> Run | None:
    """The most accurate trial of a network whose time is within a budget; None if there is none."""
    fitting = [r for r in runs if r["network"] == network and r["latency"] <= budget]
    return max(fitting, key=lambda r: r["accuracy"], default=None)


def best(runs: Sequence[Run], network: str, budget: float) -> dict[str, str]:
    """`stored_front` in words: the most accurate trial within a budget."""
    found = within(runs, network, budget)
    if found is None:
        return {"the best there": "nothing that was tried", "accuracy": "", "time": ""}
    accuracy, price = (measured(found[key], "%") for key in ("accuracy", "latency"))
    return {"the best there": found["name"].split(", all")[0], "accuracy": accuracy, "time": price}


# How much of a chosen one's lead is luck


def luck(runs: Sequence[Run], tries: int, scans: int, draws: int = 400) -> list[float]:
    """For each CNN, by how much a winner's lead on the mean of all tries is larger where it was chosen than on test.

    Chosen by so many validation scans among so many tries, both drawn anew each time. Leads, not accuracies: that one
    split's digits are harder than the other's cancels.
    """
    source, found = np.random.RandomState(0), []
    for name in dict.fromkeys(r["network"] for r in runs):
        own = [r for r in runs if r["network"] == name]
        valid, test = (np.array([[int(c) for c in r[s]] for r in own]) / zoo.data.VIEWS for s in ("valid", "test"))
        extra = []
        for _ in range(draws):
            who, seen = source.permutation(len(own))[:tries], source.permutation(valid.shape[1])[:scans]
            chose, told = valid[who][:, seen].mean(1), test[who].mean(1)
            winner = chose.argmax()
            extra.append((chose[winner] - chose.mean()) - (told[winner] - told.mean()))
        found.append(float(np.mean(extra)))
    return found


# The checks of the exercises, whose texts stand in 16.toml


Trials = list[dict[str, Any]]


def some_trials(random: np.random.RandomState) -> Trials:
    """A report of three to eight trials in no order, no two alike in anything."""
    count = random.randint(3, 9)
    names = random.permutation([f"net-{i}" for i in range(20)])[:count].tolist()
    values = {key: random.permutation(100)[:count] / 100 for key in ("time", "valid", "test")}
    return [{"name": n, **{k: float(v[i]) for k, v in values.items()}} for i, n in enumerate(names)]


def _by(score: Any, fits: Any = lambda t, limit: t["time"] <= limit) -> Any:
    return lambda trials, limit: max((t for t in trials if fits(t, limit)), key=score, default={"name": ""})["name"]


READINGS = [  # ways to read a report, and what to say of each
    (_by(lambda t: t["valid"], lambda t, limit: True), "you took the most accurate of all, over the budget: throw out "
     "what is too slow, first."),
    (_by(lambda t: t["valid"], lambda t, limit: t["time"] < limit), "a trial that takes exactly the limit is within "
     "it: use `<=`."),
    (_by(lambda t: t["test"]), "you chose by the test digits. Then nothing is left that could tell you honestly how "
     "good your choice is: choose by `valid`."),
    (_by(lambda t: min(t["valid"], t["test"])), "you chose by the lower of `valid` and `test`: that looks at the test "
     "digits, too, and then nothing is left that could judge. Choose by `valid` alone."),
    (_by(lambda t: t["valid"] + t["test"]), "you chose by `valid` and `test` together: that looks at the test digits, "
     "too, and then nothing is left that could judge. Choose by `valid` alone."),
    (_by(lambda t: -t["time"]), "you took the fastest. Any trial within the budget is fast enough: among those, the "
     "most accurate."),
    (_by(lambda t: t["valid"] / max(t["time"], 0.001)), "you took most accuracy for its time. A budget is a limit, not "
     "a price: within it, time is free."),
]  # fmt: skip


def check_read(answer: Any) -> str | None:
    """The most accurate on validation, within the limit, in random reports."""
    random = np.random.RandomState(16)
    cases = []
    for turn in range(40):
        trials = some_trials(random)
        times = sorted(t["time"] for t in trials)
        cases.append((trials, times[random.randint(1, len(times))] + (0.005 if turn % 2 else 0.0)))
    return _told(answer, cases, _by(lambda t: t["valid"]), READINGS, "return a name, such as 'net-3'.")


def _told(answer: Any, cases: list[Any], right: Any, known: list[Any], kind: str) -> str | None:
    """None if an answer is right in every case; or the misconception that answers all of them alike; or the first."""
    found = [call(answer, *copy.deepcopy(case)) for case in cases]
    if not all(isinstance(one, str) for one in found):
        return f"{kind} Your function returned {found[0]!r}."
    if found == [right(*case) for case in cases]:
        return None
    told = [says for rule, says in known if found == [rule(*case) for case in cases]]
    wrong = next((c, f) for c, f in zip(cases, found, strict=True) if f != right(*c))
    return told[0] if told else f"given {wrong[0]}, it returns {wrong[1]!r}; right is {right(*wrong[0])!r}."


PRICES = [
    (lambda rise, saved: min(rise, key=rise.get), "that is the gentlest cut, and it may save next to nothing: you "
     "would need a hundred of them. Divide by what each one saves."),
    (lambda rise, saved: max(saved, key=saved.get), "that is the cut which saves most, whatever it costs. Look at the "
     "price of a millisecond."),
    (lambda rise, saved: max(rise, key=lambda x: rise[x] / saved[x]), "that is the dearest millisecond of all: you "
     "turned the fraction, or the order, around."),
    (lambda rise, saved: min(rise, key=lambda x: rise[x] - saved[x]), "a difference is not a price: in other units it "
     "would choose another layer. Divide."),
    (lambda rise, saved: min(rise, key=lambda x: rise[x] / saved[x] ** 2), "you divided by what is saved twice: the "
     "price of a millisecond is what is paid for one, rise / saved."),
    (lambda rise, saved: min(rise, key=lambda x: rise[x] ** 2 / saved[x]), "you counted the rise twice: the price of a "
     "millisecond is rise / saved."),
]  # fmt: skip


def check_modify(answer: Any) -> str | None:
    """The least rise of the loss for each millisecond saved, for random layers."""
    random, cases = np.random.RandomState(5), []
    for _ in range(60):
        names = [f"conv{i}" for i in random.permutation(9)[: random.randint(2, 7)]]
        rise, saved = (dict(zip(names, np.exp(random.uniform(-3, 3, len(names))).tolist(), strict=True)) for _ in "ab")
        cases.append((rise, saved))
    right = lambda rise, saved: min(rise, key=lambda x: rise[x] / saved[x])  # noqa: E731
    return _told(answer, cases, right, PRICES, "return a layer's name, such as 'conv2'.")


WORK = 0.4  # of the dense network's MACs
EQUAL, AHEAD = 0.62, 0.01  # the width that equal shares of so much work have; of the validation digits, before them


def check_spend(answer: Any) -> str | None:
    """The widths are built, given fresh statistics and read with, beside equal shares that do as much work."""
    model, data = zoo.checkpoint("digits-cnn"), zoo.load("digits")
    batch = data.train[:64][0]
    groups = (*filters(model, batch), *neurons(model, batch))
    units = {g.name: g.units for g in groups}
    if not isinstance(answer, Mapping) or {*answer} != {*units}:
        return f"give a dict with a width for each of {', '.join(units)}."
    widths = {name: plain(value) for name, value in answer.items()}
    for name, width in widths.items():
        if isinstance(width, bool) or not isinstance(width, (int, float)) or width != round(width):
            return f"{name} keeps a whole number of its units; this is {width!r}."
        if not 1 <= width <= units[name]:
            return f"{name} has {units[name]} units: keep 1 to {units[name]}, not {width:g}."

    def read(widths: Mapping[str, float]) -> tuple[float, float]:
        shares = {name: 1 - width / units[name] for name, width in widths.items()}
        small = shrink(model, groups, allocate(magnitude(model), groups, shares, "layer"))
        recalibrate_batchnorm(small, data.train[:256])
        return macs(small, batch) / macs(model, batch), evaluate(small, data, "valid").accuracy

    work, right = read(widths)
    done = percent(work, digits=0)
    if work > WORK:
        return f"it does {done} of the work, and {percent(WORK, digits=0)} was allowed: over the budget."
    equal = read({name: round(EQUAL * n) for name, n in units.items()})[1]
    if right < equal + AHEAD:
        cut = min(widths, key=lambda name: widths[name] / units[name])
        return (
            f"it does {done} of the work and reads {percent(right)}; equal shares read {percent(equal)}. A point more "
            f"is asked for. You cut {cut} hardest, to {widths[cut]:g} of {units[cut]}. Try the loop in finer steps."
        )
    return None
