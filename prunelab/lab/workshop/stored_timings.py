"""How long each notebook takes and how much memory its kernel needs, as `python -m prunelab.lab timings` found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import zoo
from ...files import read_json


@dataclass(frozen=True)
class Timing:
    """One notebook: seconds of one core (median and ninth decile), and the greatest memory."""

    runs: int
    p50: float
    p90: float
    peak: int  # bytes


def path() -> Path:
    """Where the measurements lie."""
    return zoo.trained.data_dir() / "timings.json"


def known() -> dict[str, Timing]:
    """The stored measurements by the notebook's two digits; empty where nothing was measured."""
    return {number: summary(runs) for number, runs in stored().get("notebooks", {}).items() if runs}


def summary(runs: list[list[float]]) -> Timing:
    """Several runs of one notebook, (seconds, CPU seconds, bytes) each."""
    _wall, cpu, peak = np.array(runs, dtype=float).T
    p50, p90 = np.percentile(cpu, [50, 90]).tolist()
    return Timing(len(runs), p50, p90, int(peak.max()))


def stored() -> dict[str, Any]:
    """All that is stored, as it lies in the file; empty where nothing is."""
    try:
        found = read_json(path())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
