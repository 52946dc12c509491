"""The runs of a stored grid, an experiment too long for a lesson, tables of them, and how sure a difference is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import zoo
from ...core import PruneError
from ...files import read_json
from ...measurement.evaluation import mean_interval

Run = dict[str, Any]
Resumable = tuple[Iterable[Run], Callable[[Run], Run]]  # the points of a long grid, and what is found at one of them
Grid = Callable[[], Iterator[Run] | Resumable]  # how a lesson makes a grid again


def grid(name: str) -> list[Run]:
    """The runs of a stored grid. PruneError if the file is missing or damaged names the command that remakes it."""
    file = path(name)
    try:
        return read_json(file)["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PruneError(
            f"the grid {file.name} can't be read ({type(error).__name__}: {error}). Restore it from the repository, or "
            f"make it again: python -m prunelab.lab grids {name}"
        ) from error


def collect(runs: list[Run], value: str, by: str, along: str | None = None) -> dict[Any, np.ndarray]:
    """Tables (networks, points) of one value: a table for each `by`, its columns in the order of `along`.

    Without `along` there is one point for each network and `by`: a column of values, one a network.
    """
    if along is None:
        return {k: np.array([r[value] for r in runs if r[by] == k]) for k in dict.fromkeys(r[by] for r in runs)}
    names = list(dict.fromkeys(r["network"] for r in runs))
    points = sorted({r[along] for r in runs})
    found = {(r[by], r["network"], r[along]): r[value] for r in runs}
    kinds = list(dict.fromkeys(r[by] for r in runs))
    return {k: np.array([[found[k, n, p] for p in points] for n in names]) for k in kinds}


def by_name(runs: list[Run], key: str, value: str) -> dict[str, list[float]]:
    """A list of values for each name, one a network."""
    return {k: [r[value] for r in runs if r[key] == k] for k in dict.fromkeys(r[key] for r in runs)}


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


def path(name: str) -> Path:
    """Where a grid lies."""
    return zoo.trained.data_dir() / f"grid-{name}.json"
