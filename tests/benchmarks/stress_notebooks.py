"""Every notebook under unusual conditions: does each cell still say what the stored one says?

    python tests/benchmarks/stress_notebooks.py [notebooks/00_start_here.ipynb ...] [--ways twice elsewhere ...]

Ways: twice (each cell run twice in a row), restart (half-way, then again from the top, the progress file kept),
1, 2 and 4 threads, posix (an ASCII locale in another time zone), elsewhere (from another working directory),
read-only (the checkout mounted read-only; needs root and Linux). Prints a line for each notebook and way; exits with 1
if an output differs. In all ways the checkout must be afterwards what it was.
"""

from __future__ import annotations

import argparse
import configparser
import copy
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "twice": {},
    "restart": {},
    **{f"{n} threads": {v: str(n) for v in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} for n in (1, 2, 4)},
    "posix": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Asia/Kolkata"},
    "elsewhere": {},
    "read-only": {},
}
KEPT = ("text/plain", "text/html", "text/markdown", "image/svg+xml")


def sanitizers() -> list[tuple[re.Pattern[str], str]]:
    """What strict comparison leaves out, as the tests have it."""
    config = configparser.RawConfigParser()
    config.read(ROOT / "tests" / "nbval_sanitize.cfg", encoding="utf-8")
    return [(re.compile(config[s]["regex"]), config[s]["replace"]) for s in config.sections()]


def said(cell: Any, rules: list[tuple[re.Pattern[str], str]]) -> str:
    """A cell's outputs as one text, without what differs from machine to machine."""
    parts = []
    for out in cell.outputs:
        if out.output_type == "stream" and out.name == "stdout":
            parts.append(out.text)
        parts += [out.data[kind] for kind in KEPT if kind in out.get("data", {})]
    text = "\n".join(parts)
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def checkout() -> str:
    """A digest of every file under the checkout, caches aside."""
    digest = hashlib.sha256()
    for path in sorted(ROOT.rglob("*")):
        inside = path.relative_to(ROOT).parts
        if path.is_file() and ".git" not in inside and not any("cache" in part for part in inside):
            digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()


class Runner:
    """Runs one notebook in one way, in a kernel with a progress file of its own."""

    def __init__(self, path: Path, way: str) -> None:
        self.path, self.way, self.rules = path, way, sanitizers()
        self.stored = nbformat.read(path, as_version=4)

    def run(self) -> list[str]:
        """What differs, a line a cell."""
        with tempfile.TemporaryDirectory() as home:
            environment = {**os.environ, **ENVIRONMENTS[self.way], "PRUNELAB_HOME": home, "PYTHONPATH": str(ROOT)}
            folder = home if self.way == "elsewhere" else str(self.path.parent)
            if self.way == "restart":
                half = copy.deepcopy(self.stored)
                half.cells = half.cells[: len(half.cells) // 2]
                self._execute(half, folder, environment)
            fresh = copy.deepcopy(self.stored)
            again = self._execute(fresh, folder, environment)
        return [*self._differences(fresh), *again]

    def _execute(self, nb: Any, folder: str, environment: dict[str, str]) -> list[str]:
        client = NotebookClient(
            nb,
            timeout=600,
            allow_errors=True,
            extra_arguments=["--log-level=40"],
            resources={"metadata": {"path": folder}},
        )
        second: list[str] = []
        with client.setup_kernel(env=environment):
            for index, cell in enumerate(nb.cells):
                if cell.cell_type != "code":
                    continue
                client.execute_cell(cell, index)
                if self.way == "twice":
                    before = said(cell, self.rules)
                    client.execute_cell(cell, index)
                    if said(cell, self.rules) != before:
                        second.append(f"cell {index} ({cell.id}) says something else the second time")
        return second

    def _differences(self, ran: Any) -> list[str]:
        found = []
        for index, (new, old) in enumerate(zip(ran.cells, self.stored.cells, strict=True)):
            if old.cell_type != "code":
                continue
            errors = [out for out in new.outputs if out.output_type == "error"]
            if errors:
                found.append(f"cell {index} ({old.id}): {errors[0].ename}: {errors[0].evalue[:200]}")
            elif "nbval-ignore-output" not in old.metadata.get("tags", []) and self.way != "twice":
                mine, theirs = said(new, self.rules), said(old, self.rules)
                if mine != theirs:
                    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), 0)
                    found.append(f"cell {index} ({old.id}): {mine[at : at + 60]!r} where {theirs[at : at + 60]!r} was")
        return found


def read_only(path: Path) -> list[str]:
    """Run the notebook in a mount namespace in which nothing under the checkout can be written."""
    script = f"mount --bind '{ROOT}' '{ROOT}' && mount -o remount,bind,ro '{ROOT}' && cd / && exec \"$@\""
    command = ["unshare", "-m", "bash", "-c", script, "-", sys.executable, __file__, str(path), "--inside"]
    done = subprocess.run(command, capture_output=True, text=True)
    return [] if done.returncode == 0 else (done.stdout + done.stderr).strip().splitlines()[-5:]


def main() -> int:
    """Run them all; 1 if anything differs."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("notebooks", nargs="*", type=Path, default=sorted((ROOT / "notebooks").glob("*.ipynb")))
    options.add_argument("--ways", nargs="+", choices=list(ENVIRONMENTS), default=list(ENVIRONMENTS))
    options.add_argument("--inside", action="store_true", help="run once, as the read-only way does")
    given = options.parse_args()
    if given.inside:
        problems = Runner(given.notebooks[0].resolve(), "elsewhere").run()
        print("\n".join(problems))
        return bool(problems)
    before, failed = checkout(), False
    for path in given.notebooks:
        for way in given.ways:
            start = time.monotonic()
            problems = read_only(path.resolve()) if way == "read-only" else Runner(path.resolve(), way).run()
            verdict = "DIFFERS" if problems else "as stored"
            print(f"{path.name:<28} {way:<10} {verdict}, {time.monotonic() - start:.0f} s")
            print("".join(f"    {problem}\n" for problem in problems), end="", flush=True)
            failed |= bool(problems)
    if checkout() != before:
        print("the checkout has changed")
        failed = True
    return failed


if __name__ == "__main__":
    sys.exit(main())
