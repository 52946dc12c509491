"""A search as it goes on: a picture that fills in, and the same as a table; and stored searches, beside each other."""

from __future__ import annotations

from html import escape

from ...budget import Trial, draw_front
from ...text import percent
from . import display, figure

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
        html = self.picture.value = display.box(display.prose(text))
        display.live(text, html, self.picture)
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
        return f"The most accurate{where}: {best.name}, {percent(best.accuracy)}."


def watch(budget: float | None = None) -> Watch:
    """A live picture of a search: `pl.fit_budget(..., on_trial=watch)`."""
    return Watch(budget).show()
