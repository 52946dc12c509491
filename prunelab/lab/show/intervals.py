"""How far a difference between methods may be luck: intervals over networks, each compared with itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...measurement import mean_interval


@dataclass(frozen=True)
class Ahead:
    """By how much one method is ahead of another, on average over networks, with the 95 % interval of that mean."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def ahead(one: np.ndarray, other: np.ndarray) -> Ahead:
    """Of two tables (networks, ...) of the same networks: the mean of one - other, and Student's interval of it."""
    apart = np.asarray(one, dtype=float) - np.asarray(other, dtype=float)
    return Ahead(*mean_interval(apart))
