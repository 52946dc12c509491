"""The picture of a search: accuracy against what it costs, every trial a point."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_whole
from .report import Result
from .trials import Trial

STAGES = {  # stage -> (colour, marker, label): Okabe and Ito's colours; the marker repeats what the colour says
    "dense": ("#000000", "X", "dense"),
    "screened": ("#56B4E9", "o", "tried briefly"),
    "front": ("#009E73", "^", "at other costs"),
    "finalist": ("#0072B2", "s", "with all steps"),
}
NAMES = {"latency": "latency", "bytes": "bytes", "macs": "MACs"}


def draw_front(
    ax: Any, trials: Sequence[Trial], *, cost: str = "latency", chosen: Trial | None = None, limit: float | None = None
) -> None:
    """Draw accuracy against a cost as a share of the dense model's; the best at each cost are joined by a line."""
    for stage, (colour, marker, label) in STAGES.items():
        own = [t for t in trials if t.stage == stage]
        xs, ys = [100 * t.ratios[cost] for t in own], [100 * t.accuracy for t in own]
        if own:
            ax.plot(xs, ys, marker, color=colour, linestyle="none", label=label, markersize=7, alpha=0.85)
    best = frontier(trials, cost)
    ax.plot([100 * t.ratios[cost] for t in best], [100 * t.accuracy for t in best], "-", color="#999999", zorder=0)
    if limit is not None:
        ax.axvline(100 * limit, color="#D55E00", linestyle="--", linewidth=1.2, label="goal")
    if chosen is not None:
        at = 100 * chosen.ratios[cost], 100 * chosen.accuracy
        ax.plot(*at, "o", markersize=16, fillstyle="none", color="#D55E00", linestyle="none", label="chosen")
    ax.set_xlabel(f"{NAMES[cost]}, % of the dense model's")
    ax.set_ylabel("accuracy (validation), %")
    ax.legend(loc="lower right", fontsize=8)


def frontier(trials: Sequence[Trial], cost: str = "latency") -> list[Trial]:
    """The trials that no other beats at no higher cost, from the cheapest on."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.ratios[cost], -t.accuracy)):
        if not found or trial.accuracy > found[-1].accuracy:
            found.append(trial)
    return found


def save_front(path: Path, result: Result) -> None:
    """The picture as a PNG."""
    from matplotlib.figure import Figure  # not above: only a report that is saved needs it

    figure = Figure(figsize=(6.5, 4), dpi=120, layout="constrained")
    ax = figure.subplots()
    aim = result.goals.aim
    limit = result.goals.fractions(result.dense.costs).get(aim)
    draw_front(ax, result.trials, cost=aim, chosen=result.chosen, limit=limit)
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor="white")
    write_whole(path, out.getvalue())
