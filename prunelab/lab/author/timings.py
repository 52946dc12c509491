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
from pathlib import Path
from typing import Any

import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from ...core import PruneError
from ...files import write_whole
from ..workshop import course, doctor, stored_timings

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


def measure(numbers: list[str] | None = None, runs: int = 5) -> None:
    """Run notebooks, all or some, that often, and add to the stored measurements after each run.

    PruneError for a number that no notebook has, or for no runs.
    """
    known = [notebook.stem[:2] for notebook in course.notebooks()]
    if unknown := [number for number in numbers or () if number not in known]:
        raise PruneError(f"there is no notebook {', '.join(unknown)}: choose from {', '.join(known)}")
    if runs < 1:
        raise PruneError(f"--runs {runs} would measure nothing: at least 1 is needed")
    python, machine = platform.python_version(), platform.machine()
    where = f"{os.cpu_count()} cores, {machine}, Python {python}, torch {torch.__version__}"
    _store({"made_by": "python -m prunelab.lab timings", "machine": where, "trial": round(doctor.trial(), 4)})
    for turn in range(runs):
        for notebook in course.notebooks():
            number = notebook.stem[:2]
            if numbers and number not in numbers:
                continue
            wall, cpu, peak = found = run(notebook)
            _add(number, found)
            said = f"{cpu:.0f} s of CPU in {wall:.0f} s, {peak / 1e9:.2f} GB"
            print(f"{number}, run {turn + 1} of {runs}: {said}", flush=True)


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
    notebooks = stored_timings.stored().get("notebooks", {})
    notebooks[number] = [*notebooks.get(number, []), found][-MOST_RUNS:]
    _store({"notebooks": dict(sorted(notebooks.items()))})


def _store(news: dict[str, Any]) -> None:
    write_whole(stored_timings.path(), (json.dumps(stored_timings.stored() | news, indent=1) + "\n").encode())
