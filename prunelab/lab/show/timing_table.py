"""Timings as tables: each network beside the time it takes and how many times faster than the first it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...measurement import Comparison
from .figure import table
from .measuring import measured


def race(caption: str, timed: Comparison, columns: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, float]:
    """Show a comparison as a table, and return how many times faster than the first each one is.

    `columns` stand before the times: column -> network -> value. Whole numbers and texts are shown as they are,
    fractions as measured shares.
    """
    extra = dict(columns or {})
    rows = [
        [name, *(_cell(values[name]) for values in extra.values()), taken.p50, timed.speedup[name].ratio]
        for name, taken in timed.latency.items()
    ]
    table(caption, {"network": None, **dict.fromkeys(extra), "time": "s", "times faster": "×"}, rows)
    return {name: found.ratio for name, found in timed.speedup.items()}


def trials(caption: str, experiments: Mapping[str, Comparison]) -> dict[str, float]:
    """Show experiments of two ways each, a row an experiment; return how many times as long the second way takes."""
    ratios = {name: 1 / list(x.speedup.values())[1].ratio for name, x in experiments.items()}
    rows = [
        [name, *(taken.p50 for taken in list(x.latency.values())[:2]), ratios[name]] for name, x in experiments.items()
    ]
    table(caption, {"this, and that": None, "this": "s", "that": "s", "times as long": "×"}, rows)
    return ratios


def _cell(value: Any) -> Any:
    return measured(value, "%") if isinstance(value, float) else value
