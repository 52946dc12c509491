"""Lesson 16, "What will you prune?": its grid, drawings and exercises' checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ... import zoo
from ...budget import SearchOptions, Trial, fit_budget
from ...measurement import evaluate
from ..learn.exercise import call
from ..learn.stored_grid import Grid
from ..show.figure import COLOURS, table
from ..show.measuring import measured
from ..show.vector import INK

# The stored grid: one search each on five networks, with every trial of it


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
    """Notebook 16: five networks, a search for half of the time on each, all that was tried."""
    for name in NETWORKS:
        yield from searched(name)


def searched(name: str) -> Iterator[dict[str, Any]]:
    """Every trial of one network's search; of the chosen one the test accuracy, too, looked at once."""
    dense, data = zoo.checkpoint(name), zoo.load("digits")
    result = fit_budget(dense, data, latency=BUDGET, recover_steps=STEPS, how=HOW, progress=False)
    for trial in result.trials:
        chosen = trial is result.chosen
        model = result.model if chosen else dense if trial is result.dense else None
        test = None if model is None else evaluate(model, data, "test").accuracy
        yield {"network": NETWORKS[name], **_facts(trial), "chosen": chosen, "test": test}


def _facts(trial: Trial) -> dict[str, Any]:
    ratios = {cost: round(value, 4) for cost, value in trial.ratios.items()}
    facts = {"name": trial.name, "stage": trial.stage, "steps": trial.steps, "accuracy": trial.accuracy}
    return {**facts, **ratios, "kept": trial.layout}


GRIDS: dict[str, Grid] = {"fronts": fronts}


# Stored searches, drawn and as tables


MARKS = {  # of the stored trials: stage -> (colour, marker, label)
    "dense": (INK, "X", "dense"),
    "screened": (COLOURS[5], "o", "a short recovery"),
    "front": (COLOURS[5], "o", ""),
    "finalist": (COLOURS[0], "s", "all the steps"),
}


def stored_front(ax: Any, runs: Sequence[dict[str, Any]], network: str, budget: float, cost: str = "latency") -> None:
    """Draw all that was tried on one network, and the most accurate of it within a budget."""
    own = [r for r in runs if r["network"] == network]
    for stage, (colour, marker, label) in MARKS.items():
        points = [(100 * r[cost], 100 * r["accuracy"]) for r in own if r["stage"] == stage]
        if points:
            ax.plot(
                *zip(*points, strict=True), marker, color=colour, linestyle="none", label=label or None, markersize=7
            )
    ax.axvspan(0, 100 * budget, color=COLOURS[2], alpha=0.12, label="within the budget")
    best = within(runs, network, budget, cost)
    if best:
        at = 100 * best[cost], 100 * best["accuracy"]
        ax.plot(*at, "o", markersize=17, fillstyle="none", color=COLOURS[1], linestyle="none", label="the best there")
        ax.set_title(f"{network}: {best['name'].split(', all')[0]}", fontsize=10)
    else:
        ax.set_title(f"{network}: nothing that was tried is within the budget", fontsize=10)
    ax.set_xlim(0, 105)
    ax.set_xlabel(f"{COSTS[cost]}, % of the dense network's")
    ax.set_ylabel("accuracy (validation), %")
    ax.legend(loc="lower right", fontsize=8)


COSTS = {"latency": "time", "bytes": "bytes", "macs": "MACs"}


def within(runs: Sequence[dict[str, Any]], network: str, budget: float, cost: str = "latency") -> dict[str, Any] | None:
    """The most accurate trial of a network whose cost is within a budget; None if there is none."""
    fitting = [r for r in runs if r["network"] == network and r[cost] <= budget]
    return max(fitting, key=lambda r: r["accuracy"], default=None)


def stored_table(runs: Sequence[dict[str, Any]]) -> None:
    """One row a network: the dense one, the chosen one, and what equal shares came to with as many steps."""
    rows: list[list[Any]] = []
    for network in networks(runs):
        own = [r for r in runs if r["network"] == network]
        dense, best = next(r for r in own if r["stage"] == "dense"), chosen(own)[network]
        accuracies = [r["accuracy"] for r in (dense, best, equal_shares(own))]
        rows.append([network, *accuracies, best["latency"], best["macs"]])
    columns = {"network": None, **dict.fromkeys(("dense", "chosen", "equal shares", "time", "MACs"), "%")}
    table("Half the time: validation accuracy, time and MACs", columns, rows)


def networks(runs: Sequence[dict[str, Any]]) -> list[str]:
    """The networks of stored searches, in their order."""
    return list(dict.fromkeys(r["network"] for r in runs))


def chosen(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The chosen trial of each network."""
    return {r["network"]: r for r in runs if r["chosen"]}


def leads(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """By how much each chosen trial is ahead of equal shares, on the validation data."""
    own = {name: [r for r in runs if r["network"] == name] for name in networks(runs)}
    return {name: chosen(runs)[name]["accuracy"] - equal_shares(own[name])["accuracy"] for name in own}


def equal_shares(own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The control among one network's trials: equal shares of magnitude with all the steps."""
    return next(r for r in own if r["stage"] == "finalist" and r["name"].startswith("magnitude, uniform"))


def best(runs: Sequence[dict[str, Any]], network: str, budget: float, cost: str = "latency") -> dict[str, str]:
    """`stored_front` in words: the most accurate trial within a budget."""
    found = within(runs, network, budget, cost)
    if found is None:
        return {"the best there": "nothing that was tried", "accuracy": "", "what it costs": ""}
    name = found["name"].split(", all")[0]
    accuracy, price = (measured(found[key], "%") for key in ("accuracy", cost))
    return {"the best there": name, "accuracy": accuracy, "what it costs": price}


# The checks of the exercises, whose texts stand in 16.toml


TRIALS = [
    {"name": "a", "time": 1.00, "valid": 0.97, "test": 0.96},
    {"name": "b", "time": 0.62, "valid": 0.96, "test": 0.97},
    {"name": "c", "time": 0.48, "valid": 0.93, "test": 0.92},
    {"name": "d", "time": 0.49, "valid": 0.92, "test": 0.94},
    {"name": "e", "time": 0.30, "valid": 0.85, "test": 0.86},
]


def check_read(answer: Any) -> str | None:
    """The most accurate on validation, within the limit."""
    found = call(answer, [dict(t) for t in TRIALS], 0.5)
    if not isinstance(found, str):
        return "return a name, such as 'c': the trial you would take home."
    messages = {
        "a": "that one is the dense network: it is over the budget. First throw out what is too slow.",
        "b": "it takes 62 % of the time, and half was allowed: over the budget.",
        "d": "you chose by the test digits. Then nothing is left that could tell you honestly how good your choice is: "
        "choose by `valid`.",
        "e": "that is the fastest. Any trial within the budget is fast enough: among those, take the most accurate.",
    }
    if found != "c":
        return messages.get(found, f"there is no trial {found!r}.")
    if call(answer, [dict(t) for t in TRIALS], 0.62) != "b":
        return "with a limit of exactly 0.62, the trial that takes 0.62 is within it: use `<=`."
    return None


LAYERS = {"conv1": (0.40, 0.5), "conv2": (0.30, 3.0), "fc1": (0.01, 0.02), "conv4": (0.90, 4.0)}  # rise, saved


def check_modify(answer: Any) -> str | None:
    """The least rise of the loss for each millisecond saved."""
    rise = {name: r for name, (r, _) in LAYERS.items()}
    saved = {name: s for name, (_, s) in LAYERS.items()}
    found = call(answer, dict(rise), dict(saved))
    messages = {
        "fc1": "that is the gentlest cut, and it saves next to nothing: you would need a hundred of them. Divide by "
        "what each one saves.",
        "conv4": "that one saves most, and it costs most, too. Look at the price of a millisecond.",
        "conv1": "that is the dearest millisecond of all: you turned the fraction, or the order, around.",
    }
    if found != "conv2":
        return messages.get(str(found), f"return a layer's name, one of {', '.join(LAYERS)}.")
    other = call(answer, {"x": 1.0, "y": 5.0, "z": 9.5}, {"x": 1.0, "y": 4.0, "z": 10.0})
    if other != "z":
        return (
            "with other numbers, x: 1.0 for 1 ms, y: 5.0 for 4 ms, z: 9.5 for 10 ms, the cheapest millisecond is z's. "
            "A difference is not a price: divide."
        )
    return None


class Bench:
    """A machine of our own making: the time of a network of which a share is kept, and how often it was asked."""

    def __init__(self, floor: float, power: float):
        self.floor, self.power, self.asked = floor, power, 0

    def truth(self, share: float) -> float:
        """What a measurement gives."""
        return self.floor + (1 - self.floor) * share**self.power

    def __call__(self, share: float) -> float:
        """Measure, and count."""
        self.asked += 1
        return self.truth(share)


ASKED = 20  # measurements that are allowed: each takes a second on a real machine


def check_make(answer: Any) -> str | None:
    """The largest share within a measured limit, by halving."""
    for floor, power, limit in ((0.1, 2.0, 0.5), (0.25, 1.2, 0.6), (0.02, 3.0, 0.3)):
        bench = Bench(floor, power)
        found = call(answer, bench, limit)
        message = _settled(found, bench, limit)
        if message:
            return message
    return _below_the_floor(answer)


def _settled(found: Any, bench: Bench, limit: float) -> str | None:
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found <= 1:
        return f"return a share between 0 and 1; this is {found!r}."
    if bench.asked == 0:
        return "you never called `measure`: a prediction is no measurement."
    if bench.asked > ASKED:
        return f"you measured {bench.asked} times, and each takes a second: {ASKED} are allowed. Halve the interval."
    took = bench.truth(float(found))
    if took > limit + 1e-9:
        return (
            f"measured, your share takes {took:.3f} of the time, and {limit} was allowed: over the budget. Of the "
            "interval's two ends, return the one that is known to be within."
        )
    if bench.truth(min(1.0, float(found) + 0.01)) <= limit:
        return (
            f"your share takes only {took:.3f}, of {limit} allowed: you cut away more than you had "
            "to. Go on until the interval is narrower than 0.01."
        )
    return None


def _below_the_floor(answer: Any) -> str | None:
    """A limit that no share can meet."""
    bench = Bench(0.6, 1.0)
    try:
        found = answer(bench, 0.5)
    except Exception as error:
        return f"with a limit below the floor your function stops with {type(error).__name__}: return None there."
    if found is not None:
        return (
            "there is a floor: even a network of which nothing is left takes 0.6 here, and 0.5 was asked for. Measure "
            "a share of 0 first, and return None where the goal is out of reach."
        )
    return None
