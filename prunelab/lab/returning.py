"""How far pruning can go and still be undone by retraining, and how sure five networks make one of that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean over networks and its 95 % interval by Student's t."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """The mean ± t(0.975, n - 1) s / sqrt(n) of n >= 2 independent values."""
    found = np.asarray(values, dtype=float)
    if found.ndim != 1 or len(found) < 2:
        raise ValueError(f"an interval needs at least two values, one a network; it got {found.shape}")
    reach = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    return Interval(float(found.mean()), float(found.mean()) - reach, float(found.mean()) + reach)


def last_return(sparsities: Sequence[float], accuracy: Sequence[float], enough: float) -> float:
    """The sparsity at which a falling curve of accuracies crosses `enough`, on straight lines between its points.

    NaN if it lies outside: the first point is below already, or none is.
    """
    for (s, a), (t, b) in pairwise(zip(sparsities, accuracy, strict=True)):
        if a >= enough > b:
            return s + (t - s) * (a - enough) / (a - b)
    return math.nan


def point_of_no_return(
    sparsities: Sequence[float], accuracy: np.ndarray, dense: Sequence[float], within: float
) -> list[float]:
    """Of each network its `last_return` to `within` of its own dense accuracy; accuracy is (networks, sparsities)."""
    return [last_return(sparsities, row, own - within) for row, own in zip(accuracy, dense, strict=True)]
