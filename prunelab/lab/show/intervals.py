"""How far a difference between methods may be luck: intervals over networks, each compared with itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Ahead:
    """By how much one method is ahead of another, on average over networks, with the 95 % interval of that mean."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def ahead(one: np.ndarray, other: np.ndarray) -> Ahead:
    """Of two tables (networks, ...) of the same networks: the mean of one - other, and Student's interval of it."""
    apart = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    if len(apart) < 2:
        raise ValueError(f"{len(apart)} network: an interval needs at least two")
    mean, error = apart.mean(0), apart.std(0, ddof=1) / len(apart) ** 0.5
    reach = stats.t.ppf(0.975, len(apart) - 1) * error
    return Ahead(mean, mean - reach, mean + reach)
