"""Long experiments that can be interrupted: what is done is kept in a file beside the grid, and not done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..learn.stored_grid import Run


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
    path.write_text("".join(whole), encoding="utf-8")
    return {json.dumps(point): found for point, found in map(json.loads, whole)}
