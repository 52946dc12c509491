"""Experiments too long for a lesson: run once by `python -m prunelab.lab grids`, stored in `data/`, read by a notebook.

A grid is a JSON file that says how it was made and holds one list of runs. How its runs are made stands in its lesson's
module, under GRIDS. The notebook that reads it repeats a few of its runs live, and claims that they agree.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ...files import write_whole
from ..learn import exercise, stored_grid
from ..learn.stored_grid import Grid, Run
from ..lessons import real_pictures


def known() -> dict[str, Grid]:
    """Every lesson's grids by name, and those on real pictures, which several lessons read."""
    rooms = [*map(exercise.lesson, exercise.numbers()), real_pictures]
    return {name: grid for room in rooms for name, grid in getattr(room, "GRIDS", {}).items()}


def remake(names: list[str] | None = None) -> None:
    """Run the grids again, all or some, on one thread, and write them; a long one goes on where it was interrupted."""
    torch.set_num_threads(1)
    grids = known()
    for name in names or grids:
        start = time.perf_counter()
        found = grids[name]()
        if isinstance(found, tuple):
            found = resumable(stored_grid.path(name).with_suffix(".part"), *found)
        runs = list(tqdm(found, desc=name, unit="run", file=sys.stderr))
        made = {"made_by": f"python -m prunelab.lab grids {name}", "what": (grids[name].__doc__ or "").splitlines()[0]}
        versions = {"torch": torch.__version__, "seconds": round(time.perf_counter() - start)}
        text = json.dumps({**made, **versions, "runs": runs}, indent=1) + "\n"
        write_whole(stored_grid.path(name), text.encode())
        print(f"{name}: {len(runs)} runs in {time.perf_counter() - start:.0f} s")


def resumable(path: Path, points: Iterable[Run], run: Callable[[Run], Run]) -> Iterator[Run]:
    """Each point with what `run` finds of it, a line of `path` each; after the last point the file is removed.

    Interrupted, the next call takes from the file what is there, in the same order, and goes on.
    """
    done = _read(path)
    for point in points:
        key = json.dumps(point)
        if key not in done:
            done[key] = run(point)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([point, done[key]]) + "\n")
        yield {**point, **done[key]}
    path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Run]:
    """What is done, by point; a line that a kill cut off is passed over, and the file mended."""
    if not path.exists():
        return {}
    whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    write_whole(path, "".join(whole).encode())
    return {json.dumps(point): found for point, found in map(json.loads, whole)}
