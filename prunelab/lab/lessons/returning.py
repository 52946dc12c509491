"""How far pruning can go and still be undone by retraining, and how sure five networks make one of that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..show.intervals import ahead
from ..show.measuring import measured


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
