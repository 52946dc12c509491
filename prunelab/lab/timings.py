"""How long each notebook takes and how much memory its kernel needs, measured here and kept in `data/timings.json`.

Every run is a fresh kernel and an empty progress file, as a learner's first time. Seconds are those of one core that
the kernel computed: on a machine that does nothing else so long is the wait, since the notebooks take one thread, and
on a busy one they still are what the notebook needs.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from .. import zoo
from ..files import write_whole
from . import course, doctor

ASK = (  # the last cell, added in memory: what the kernel has used
    "import sys, time\n"
    "try:\n"
    "    import resource\n"
    "    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)\n"
    "except ImportError:\n"
    "    import psutil\n"
    "    peak = psutil.Process().memory_info().peak_wset\n"
    "print((time.process_time(), peak))"
)
MOST_RUNS = 9  # older ones are dropped


@dataclass(frozen=True)
class Timing:
    """One notebook: seconds of one core (median and ninth decile), of waiting (median), and the greatest memory."""

    runs: int
    p50: float
    p90: float
    wall: float
    peak: int  # bytes


def path() -> Path:
    """Where the measurements lie."""
    return zoo.data_dir() / "timings.json"


def known() -> dict[str, Timing]:
    """The stored measurements by the notebook's two digits; empty where nothing was measured."""
    return {number: summary(runs) for number, runs in _stored().get("notebooks", {}).items() if runs}


def reference() -> float | None:
    """How long the doctor's trial takes on the machine of the stored measurements; None where nothing was measured."""
    return _stored().get("trial")


def machine() -> str:
    """The machine of the stored measurements, in words."""
    return str(_stored().get("machine", "not measured"))


def summary(runs: list[list[float]]) -> Timing:
    """Several runs of one notebook, (seconds, CPU seconds, bytes) each."""
    wall, cpu, peak = np.array(runs, dtype=float).T
    p50, p90 = np.percentile(cpu, [50, 90]).tolist()
    return Timing(len(runs), p50, p90, float(np.median(wall)), int(peak.max()))


def measure(numbers: list[str] | None = None, runs: int = 5) -> None:
    """Run notebooks, all or some, that often, and add to the stored measurements after each run."""
    _store({"made_by": "python -m prunelab.lab timings", "machine": _machine(), "trial": round(doctor.trial(), 4)})
    for turn in range(runs):
        for notebook in course.notebooks():
            number = notebook.stem[:2]
            if numbers and number not in numbers:
                continue
            found = run(notebook)
            _add(number, found)
            wall, cpu, peak = found
            print(
                f"{number}, run {turn + 1} of {runs}: {cpu:.0f} s of CPU in {wall:.0f} s, {peak / 1e9:.2f} GB",
                flush=True,
            )


def run(notebook: Path) -> list[float]:
    """Execute one notebook in memory: (seconds of wall time without the kernel's start, of CPU, greatest bytes)."""
    nb = course.read(notebook)
    nb.cells.append(new_code_cell(ASK))
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "PRUNELAB_HOME": home}
        client = NotebookClient(nb, timeout=600, resources={"metadata": {"path": str(notebook.parent)}})
        with client.setup_kernel(env=env):
            began = time.perf_counter()
            for index, cell in enumerate(nb.cells):
                client.execute_cell(cell, index)
            wall = time.perf_counter() - began
    cpu, peak = ast.literal_eval(nb.cells[-1].outputs[-1].text)
    return [round(wall, 1), round(cpu, 1), peak]


def _add(number: str, found: list[float]) -> None:
    notebooks = _stored().get("notebooks", {})
    notebooks[number] = [*notebooks.get(number, []), found][-MOST_RUNS:]
    _store({"notebooks": dict(sorted(notebooks.items()))})


def _store(news: dict[str, Any]) -> None:
    write_whole(path(), (json.dumps(_stored() | news, indent=1) + "\n").encode())


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def _stored() -> dict[str, Any]:
    try:
        return json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
