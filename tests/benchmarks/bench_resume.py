"""Kill a training run with SIGKILL at a random moment, resume it in another process, compare the weights bit for bit.

    python tests/benchmarks/bench_resume.py [--trials 20]

The run prunes a CNN of the course to 80 % while it trains on the digits, with BatchNorm and dropout, and is saved every
five steps, so that some kills come between saves and some in the middle of one. The resumed half runs in this process,
the killed half in a fresh one. Needed: in every trial the weights, masks, statistics and losses of an unbroken run.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import prunelab as pl
from prunelab import zoo
from prunelab.recovery import Checkpoint, History, train

STEPS, EVERY = 90, 5  # an epoch is 63


def run(path: Path | None, *, say: bool = False) -> tuple[nn.Module, History]:
    """Train and prune, from the file at `path` on where there is one."""
    torch.set_num_threads(1)
    plain = zoo.cnn(width=8)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(*plain[:-1], nn.Dropout(0.2), plain[-1])
    prune = pl.pipeline.gradually(model, pl.Recipe(sparsity=0.8, rounds=6, schedule="cubic"))

    def on_step(done: int, total: int) -> None:
        prune(done, total)
        if say:
            print(done, flush=True)

    checkpoint = Checkpoint(path, EVERY) if path else None
    data = zoo.load("digits").train
    return model, train(model, data, steps=STEPS, on_step=on_step, checkpoint=checkpoint, progress=False)


def killed(path: Path, dice: random.Random) -> int:
    """Start the run in a process of its own and kill it; the last step that it told of."""
    at, later = dice.randrange(1, STEPS - 1), dice.uniform(0, 0.02)
    command = [sys.executable, __file__, "--child", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= at:
                time.sleep(later)
                child.send_signal(signal.SIGKILL)
                break
    if child.returncode != -signal.SIGKILL:
        raise SystemExit(f"the run ended by itself ({child.returncode}) before it could be killed")
    return at


def same(a: tuple[nn.Module, History], b: tuple[nn.Module, History]) -> bool:
    """Whether two runs ended alike, to the bit."""
    own, other = a[0].state_dict(), b[0].state_dict()
    return own.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in own.items()) and (
        a[1].losses == b[1].losses
    )  # fmt: skip


def main() -> None:
    """Print a line a trial, and how many resumed to the same weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        run(given.child, say=True)
        return
    unbroken, alike = run(None), 0
    dice = random.Random(given.seed)
    for trial in range(given.trials):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            at = killed(path, dice)
            there, half = path.exists(), [p.name for p in Path(folder).glob(".*.part")]
            good = same(run(path), unbroken)
        alike += good
        print(
            f"trial {trial + 1:2}: killed after step {at:2}, {'a file' if there else 'no file yet'}"
            f"{', in the middle of a save' if half else ''}: {'same' if good else 'DIFFERENT'}",
            flush=True,
        )
    print(f"{alike} of {given.trials} resumed to the weights of the unbroken run")
    sys.exit(alike != given.trials)


if __name__ == "__main__":
    main()
