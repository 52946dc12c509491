"""Experiments too long for a lesson: run once by `python -m prunelab.lab grids`, stored in `data/`, read by a notebook.

A grid is a JSON file that says how it was made and holds one list of runs. The notebook that reads it repeats a few
of its runs live, and claims that they agree.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .. import zoo
from ..core import PruneError
from ..measurement import evaluate
from ..recovery import finetune
from . import contests

Run = dict[str, Any]
SEEDS = ("digits-cnn", "digits-cnn-1", "digits-cnn-2", "digits-cnn-3", "digits-cnn-4")
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
EPOCHS = 1


def scopes() -> Iterator[Run]:
    """Notebook 03: five networks, five ways to share the loss out, before and after one epoch of retraining."""
    data = zoo.load("digits")
    for seed, name in enumerate(SEEDS):
        for rule in contests.RULES:
            for sparsity in SPARSITIES:
                model = contests.pruned(zoo.checkpoint(name), rule, sparsity)
                before = evaluate(model, data, "test").accuracy
                finetune(model, data, epochs=EPOCHS, seed=seed, progress=False)
                after = evaluate(model, data, "test").accuracy
                yield {"network": name, "rule": rule, "sparsity": sparsity, "before": before, "after": after}


GRIDS: dict[str, Callable[[], Iterator[Run]]] = {"scopes": scopes}


def remake(names: list[str] | None = None) -> None:
    """Run the grids again, all or some, on one thread, and write them."""
    torch.set_num_threads(1)
    for name in names or GRIDS:
        start = time.perf_counter()
        runs = list(tqdm(GRIDS[name](), desc=name, unit="run", file=sys.stderr))
        made = {"made_by": f"python -m prunelab.lab grids {name}", "what": (GRIDS[name].__doc__ or "").splitlines()[0]}
        versions = {"torch": torch.__version__, "seconds": round(time.perf_counter() - start)}
        _write(_path(name), json.dumps({**made, **versions, "runs": runs}, indent=1) + "\n")
        print(f"{name}: {len(runs)} runs in {time.perf_counter() - start:.0f} s")


def grid(name: str) -> list[Run]:
    """The runs of a stored grid. PruneError if the file is missing or damaged names the command that remakes it."""
    path = _path(name)
    try:
        return json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PruneError(
            f"the grid {path.name} can't be read ({type(error).__name__}: {error}). Restore it from the repository, or "
            f"make it again: python -m prunelab.lab grids {name}"
        ) from error


def collect(runs: list[Run], value: str, by: str, along: str) -> dict[Any, np.ndarray]:
    """Tables (networks, points) of one value: a table for each `by`, its columns in the order of `along`."""
    names = list(dict.fromkeys(r["network"] for r in runs))
    points = sorted({r[along] for r in runs})
    found = {(r[by], r["network"], r[along]): r[value] for r in runs}
    kinds = list(dict.fromkeys(r[by] for r in runs))
    return {k: np.array([[found[k, n, p] for p in points] for n in names]) for k in kinds}


def _path(name: str) -> Path:
    return zoo.data_dir() / f"grid-{name}.json"


def _write(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)
