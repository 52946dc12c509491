"""Every notebook in a kernel of its own: seconds, the most memory, and how fast its sliders answer.

    python tests/benchmarks/bench_notebooks.py [notebook ...] [--moves 100]

Runs each notebook from the top with an empty progress file, then moves every slider of every panel in it to and fro in
the same kernel and times each move. Prints a row a notebook; exits with 1 if one takes 60 s (notebook 13: 120 s) or
1.5 GB, or if a move takes 100 ms at the 95th percentile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SECONDS, GIGABYTES, MILLISECONDS = 60, 1.5, 100
LONGER = {"13": 120}  # a language model takes its time
FOLDER = Path(__file__).parents[2] / "notebooks"

MOVES = """
import json, time
from prunelab.lab.show.explorer import Explorer

def timed_moves(panel, moves):
    for n in range(moves):
        for slider in panel.sliders.values():
            values = [value for _, value in slider.options]
            began = time.perf_counter()
            slider.value = values[n % len(values)]
            yield time.perf_counter() - began

panels = [value for value in dict(globals()).values() if isinstance(value, Explorer)]
print(json.dumps([t for panel in panels for t in timed_moves(panel, {moves})]))
"""


def run(path: Path, moves: int) -> tuple[float, float, list[float]]:
    """Seconds, gigabytes, and the seconds of each slider's move."""
    nb = nbformat.read(path, as_version=4)
    last = nbformat.v4.new_code_cell(MOVES.replace("{moves}", str(moves)))
    client = NotebookClient(nb, timeout=300, store_widget_state=False, resources={"metadata": {"path": path.parent}})
    with tempfile.TemporaryDirectory() as home:
        os.environ["PRUNELAB_HOME"] = home  # the kernel inherits it
        began = time.perf_counter()
        with client.setup_kernel():
            for i, cell in enumerate(nb.cells):
                client.execute_cell(cell, i)
            seconds = time.perf_counter() - began
            grown = peak(client.km.provisioner.pid)
            nb.cells.append(last)
            client.execute_cell(last, len(nb.cells) - 1)
    return seconds, grown, json.loads(last.outputs[0].text)


def peak(pid: int) -> float:
    """The most memory a process has held so far, in gigabytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")) / 1e9


def quantile(times: list[float], share: float) -> float:
    """Milliseconds: the time that this share of the moves stays below; 0 without any."""
    return 1000 * sorted(times)[min(int(share * len(times)), len(times) - 1)] if times else 0.0


def main() -> int:
    """Print a row a notebook."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    options.add_argument("--moves", type=int, default=100)
    given = options.parse_args()
    print(f"{'notebook':<24}{'time':>9}{'memory':>11}{'moves':>8}{'p50':>11}{'p95':>11}")
    failed = 0
    for path in given.notebooks:
        try:
            seconds, gigabytes, times = run(path, given.moves)
        except CellExecutionError as error:
            print(f"{path.stem:<24} stops: {str(error).splitlines()[-1]}", flush=True)
            failed += 1
            continue
        p50, p95 = quantile(times, 0.5), quantile(times, 0.95)
        print(
            f"{path.stem:<24}{seconds:>7.1f} s{gigabytes:>8.2f} GB{len(times):>8}{p50:>8.2f} ms{p95:>8.2f} ms",
            flush=True,
        )
        slow = seconds > LONGER.get(path.stem[:2], SECONDS)
        failed += slow or gigabytes > GIGABYTES or p95 > MILLISECONDS
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
