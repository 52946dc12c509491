"""Every notebook in a kernel of its own: seconds, and the most memory.

    python tests/benchmarks/bench_notebooks.py [notebook ...]

Runs each notebook from the top with an empty progress file. Prints a row a notebook; exits with 1 if one takes 60 s
(notebook 13: 120 s) or 1.5 GB. How fast panels answer, tests/browser/test_lasting.py measures in the page.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SECONDS, GIGABYTES = 60, 1.5
LONGER = {"13": 120}  # a language model takes its time
FOLDER = Path(__file__).parents[2] / "notebooks"


def run(path: Path) -> tuple[float, float]:
    """Seconds and gigabytes."""
    nb = nbformat.read(path, as_version=4)
    client = NotebookClient(nb, timeout=300, store_widget_state=False, resources={"metadata": {"path": path.parent}})
    with tempfile.TemporaryDirectory() as home:
        os.environ["PRUNELAB_HOME"] = home  # the kernel inherits it
        began = time.perf_counter()
        with client.setup_kernel():
            for i, cell in enumerate(nb.cells):
                client.execute_cell(cell, i)
            return time.perf_counter() - began, peak(client.km.provisioner.pid)


def peak(pid: int) -> float:
    """The most memory a process has held so far, in gigabytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")) / 1e9


def main() -> int:
    """Print a row a notebook."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    given = options.parse_args()
    print(f"{'notebook':<24}{'time':>9}{'memory':>11}")
    failed = 0
    for path in given.notebooks:
        try:
            seconds, gigabytes = run(path)
        except CellExecutionError as error:
            print(f"{path.stem:<24} stops: {str(error).splitlines()[-1]}", flush=True)
            failed += 1
            continue
        print(f"{path.stem:<24}{seconds:>7.1f} s{gigabytes:>8.2f} GB", flush=True)
        slow = seconds > LONGER.get(path.stem[:2], SECONDS)
        failed += slow or gigabytes > GIGABYTES
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
