"""A search as it goes on: a picture that fills in, and the same as a table; and stored searches, beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..budget import Goals, Trial, draw_front, frontier
from . import display, figures
from .figures import table

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
        display.show(text, html=display.box(display.prose(text)), widget=self.picture)
        return self

    def __call__(self, trial: Trial) -> None:
        """Draw the front with one more trial."""
        self.trials.append(trial)
        png = figures.draw(lambda ax: draw_front(ax, self.trials, limit=self.budget), figsize=SIZE)
        best = frontier(self.trials)[-1]
        text = f"{len(self.trials)} trials so far. The most accurate: {best.name}."
        self.picture.value = display.image(png, text, figures.size_of(png)) + f'<div aria-live="polite">{text}</div>'


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


def stored_front(ax: Any, runs: Sequence[dict[str, Any]], network: str, budget: float) -> None:
    """Draw what a budget buys on one network: searched and in equal shares, at every budget; the chosen one marked."""
    styles = {"searched": ("#0072B2", "s", "-"), "equal shares": ("#D55E00", "o", "--")}
    own = [r for r in runs if r["network"] == network and r["met"]]
    dense = [r["dense"] for r in own]
    ax.axhline(100 * sum(dense) / len(dense), color="#000000", linewidth=1, linestyle=":", label="dense")
    for way, (colour, marker, line) in styles.items():
        points = means([r for r in own if r["way"] == way])
        ax.plot([p[0] for p in points], [p[1] for p in points], line, marker=marker, color=colour, label=way)
        every = [(100 * r["ratios"]["latency"], 100 * r["test"]) for r in own if r["way"] == way]
        ax.plot(*zip(*every, strict=True), marker, color=colour, markersize=3, alpha=0.5, linestyle="none")
    ax.axvline(100 * budget, color="#999999", linewidth=8, alpha=0.4, zorder=0, label="your budget")
    ax.set_xlabel("time, % of the dense network's")
    ax.set_ylabel("accuracy (test), %")
    ax.set_title(f"{network}, budget {budget:.0%}")
    ax.legend(loc="lower right", fontsize=8)


def stored_table(runs: Sequence[dict[str, Any]]) -> None:
    """The stored searches as a table: accuracy by network, budget and way, the mean over the networks of a kind."""
    rows: list[list[Any]] = []
    ways = list(dict.fromkeys(r["way"] for r in runs))
    for network in dict.fromkeys(r["network"] for r in runs):
        for budget in sorted({r["budget"] for r in runs}, reverse=True):
            found = [accuracies(runs, network, budget, way) for way in ways]
            cells = [sum(v) / len(v) if v else "out of reach" for v in found]
            rows.append([network, f"{budget:.0%}", len(found[0]), *cells])
    columns = {"network": None, "budget": None, "networks": None, **dict.fromkeys(ways, "%")}
    table("Test accuracy within a budget of time", columns, rows)


def accuracies(runs: Sequence[dict[str, Any]], network: str, budget: float, way: str) -> list[float]:
    """The test accuracies of one way to spend a budget, one a network that reached it."""
    wanted = (network, budget, way)
    return [r["test"] for r in runs if r["met"] and (r["network"], r["budget"], r["way"]) == wanted]


def means(runs: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(time, accuracy) in per cent, the mean over the networks at each budget."""
    found = []
    for budget in sorted({r["budget"] for r in runs}):
        here = [r for r in runs if r["budget"] == budget]
        found.append(
            (
                100 * sum(r["ratios"]["latency"] for r in here) / len(here),
                100 * sum(r["test"] for r in here) / len(here),
            )
        )
    return found
