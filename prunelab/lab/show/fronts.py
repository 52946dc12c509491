"""A search as it goes on: a picture that fills in, and the same as a table; and stored searches, beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ...budget import Goals, Trial, draw_front, frontier
from . import display, figure
from .figure import COLOURS, table
from .measuring import measured
from .vector import INK

SIZE = (6.5, 3.6)


class Watch:
    """Give it to `fit_budget` as `on_trial=`: every trial is a new point in a live picture."""

    def __init__(self, budget: float | None = None):
        self.budget = budget
        self.trials: list[Trial] = []
        self.picture = display.panel_html()

    def show(self) -> Watch:
        """Show the panel, empty as yet; the cell that searches fills it."""
        text = "The front fills in here while the search goes on: accuracy against time, a point a trial."
        self.picture.value = display.box(display.prose(text))
        display.live(text, display.box(display.prose(text)), self.picture)
        return self

    def __call__(self, trial: Trial) -> None:
        """Draw the front with one more trial; every search begins with the dense model, and the picture with it."""
        if trial.stage == "dense":
            self.trials.clear()
        self.trials.append(trial)
        text = f"{len(self.trials)} tried so far. {self._best()}"
        drawn, _ = figure.drawing(lambda ax: draw_front(ax, self.trials, limit=self.budget), text, figsize=SIZE)
        self.picture.value = drawn + f'<div aria-live="polite">{escape(text)}</div>'

    def _best(self) -> str:
        """Who leads, within the budget if there is one."""
        within = [t for t in self.trials if self.budget is None or t.ratios["latency"] <= self.budget]
        if not within:
            return "None is within the budget yet."
        best = max(within, key=lambda t: t.accuracy)
        where = "" if self.budget is None else " within the budget"
        return f"The most accurate{where}: {best.name}, {best.accuracy:.1%}."


def watch(budget: float | None = None) -> Watch:
    """A live picture of a search: `pl.fit_budget(..., on_trial=watch)`."""
    return Watch(budget).show()


def trials_table(trials: Sequence[Trial], goals: Goals) -> None:
    """The best of the trials at each cost, as a table; what was asked for stands in its caption."""
    rows = [
        [t.name, t.stage, t.accuracy, t.ratios["latency"], t.ratios["macs"], t.ratios["bytes"]]
        for t in frontier(trials)[::-1]
    ]
    columns = {"what was tried": None, "stage": None, "accuracy": "%", "time": "%", "MACs": "%", "bytes": "%"}
    table(f"The front ({goals})", columns, rows)


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
