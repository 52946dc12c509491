"""Kill a running `fit_budget` at random moments, and see whether what it leaves behind can be loaded.

    python tests/benchmarks/bench_kill.py [--kills 20] [--within 12] [--seed 0]

Each time a fork of this process searches for half of the time of the course's CNN, saving as it goes, and is killed
(SIGKILL) at a random moment within so many seconds after the search has begun to save. Then the folder is loaded as
anybody would load it: the plan on a fresh network, the report, the recipe. Prints what was there. Needed: all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import threading
import time
import warnings
from pathlib import Path

import torch
from tqdm.auto import tqdm

import prunelab as pl
from prunelab import zoo


def search(model, data, folder: Path) -> None:
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # the one it shares with this process would be held for ever by a killed child
    while True:
        pl.fit_budget(model, data, latency=0.5, recover_steps=60, save=folder, progress=False)


def killed(model, data, folder: Path, after: float) -> float:
    """Start a search, kill it so many seconds after its first file; how long it was let live."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking a process with threads
        child = multiprocessing.get_context("fork").Process(target=search, args=(model, data, folder))
        child.start()
    while not (folder / "plan.json").exists():
        time.sleep(0.002)
    time.sleep(after)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return after


def inspected(data, folder: Path) -> str:
    """What is there, loaded; an exception is a failure."""
    small = pl.load_plan(folder, zoo.cnn())
    accuracy = pl.measurement.evaluate(small.eval(), data.valid).accuracy
    report = json.loads((folder / "report.json").read_text()) if (folder / "report.json").exists() else {"trials": []}
    recipe = pl.load_recipe(folder / "recipe.toml") if (folder / "recipe.toml").exists() else None
    filters = sum(m.out_channels for m in small.modules() if isinstance(m, torch.nn.Conv2d))
    there = f"{len(report['trials']):>2} trials, recipe {'yes' if recipe else 'no'}"
    return f"{filters:>3} filters, {100 * accuracy:5.1f} %, {there}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--within", type=float, default=12.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data, model, dice = zoo.load("digits"), zoo.checkpoint("digits-cnn"), random.Random(asked.seed)
    good = 0
    for number in range(1, asked.kills + 1):
        folder = Path(tempfile.mkdtemp())
        after = killed(model, data, folder / "out", dice.uniform(0, asked.within))
        try:
            print(f"{number:>2}  killed after {after:5.2f} s: {inspected(data, folder / 'out')}", flush=True)
            good += 1
        except Exception as error:
            print(
                f"{number:>2}  killed after {after:5.2f} s: NOT LOADABLE, {type(error).__name__}: {error}", flush=True
            )
        shutil.rmtree(folder)
    print(f"loadable: {good} of {asked.kills}")


if __name__ == "__main__":
    main()
