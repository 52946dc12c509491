"""prunelab beside torch.nn.utils.prune, Torch-Pruning and FasterAI: the same work, in one run, interleaved, one thread.

    python tests/benchmarks/bench_peers.py PART ...     PART: step, memory, growth, latency, accuracy, imports

Tables of ratios in Markdown, each with the run's own figures; none of them decides anything. A ratio is theirs over
ours: above 1 prunelab is ahead, below 1 the peer is. Times are medians of the process's own processor time.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bench_selection import peak_of
from peers import MODELS, STEPS, WORKS, entrants, fresh, missing, plain, run, small
from torch import nn

import prunelab as pl
from prunelab import zoo

SHARE = 0.5
MASKERS = ("torch.nn.utils.prune", "FasterAI")
PEERS = (*MASKERS, "Torch-Pruning")


class Table:
    """A Markdown table, printed row by row as they are found: a run that is cut short has said something."""

    def __init__(self, title: str, head: list[str]) -> None:
        print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)

    def add(self, row: list[str]) -> None:
        """One row more."""
        print(f"| {' | '.join(row)} |", flush=True)


def seconds(call: Callable[[], Any]) -> float:
    """Processor time of one call: what a busy machine disturbs least."""
    gc.collect()
    start = time.process_time()
    call()
    return time.process_time() - start


def read_once(model: nn.Module) -> float:
    """The limit: the time to read the prunable weights once."""
    weights = [w.detach() for w in pl.prunable(model).values()]
    return min(seconds(lambda: [w.sum() for w in weights]) for _ in range(5))


def race(work: str, name: str, rounds: int) -> dict[str, float]:
    """Median seconds of each peer's step, interleaved; infinity for one that fails, and the reason printed."""
    model, example = MODELS[name]()
    times: dict[str, list[float]] = {who: [] for who in entrants(work, name)}
    for _ in range(rounds):
        for who, found in times.items():
            copied = fresh(model)
            try:
                found.append(seconds(partial(run, work, who, copied, example, SHARE)))
            except Exception as error:
                print(f"({who} fails on {name}, {work}: {type(error).__name__}: {str(error)[:150]})")
                found.append(float("inf"))
            del copied
    return {who: statistics.median(found) for who, found in times.items()}


def steps(rounds: int) -> None:
    """Time of one pruning step."""
    table = Table(
        f"One step at {SHARE:.0%}: how many times as long as prunelab",
        ["model", "work", "prunelab", "in reads of the weights", *PEERS],
    )
    for name, works in WORKS.items():
        limit = read_once(MODELS[name]()[0])
        for work in works:
            found = race(work, name, rounds)
            mine = found["prunelab"]
            others = [f"{found[who] / mine:.1f}" if who in found else "" for who in PEERS]
            table.add([name, work, f"{mine:.3f} s", f"{mine / limit:.0f}", *others])


def memory_of(work: str, who: str, name: str) -> float:
    """Run in a process of its own: growth at the peak of a step, over the weights' size."""
    model, example = MODELS[name]()
    run(work, who, *small(work), SHARE)  # warm up
    size = sum(w.numel() * w.itemsize for w in pl.prunable(model).values())
    grown, _ = peak_of(lambda: (run(work, who, model, example, SHARE), {})[1])
    return grown / size


def memory() -> None:
    """Peak memory of one pruning step beyond the model."""
    table = Table(
        "Peak memory of one step beyond the model, over the weights' size", ["model", "work", "prunelab", *PEERS]
    )
    for name, work in [(name, work) for name, works in WORKS.items() for work in works if "zeroed" not in work]:
        found = {}
        for who in entrants(work, name):
            command = [sys.executable, __file__, "memory-of", json.dumps([work, who, name])]
            done = subprocess.run(command, capture_output=True, text=True)
            found[who] = float(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else float("nan")
        table.add([name, work, *(f"{found[w]:.2f}" if w in found else "" for w in ("prunelab", *PEERS))])


def growth(rounds: int) -> None:
    """How a global step grows with the model; the peers up to 100 M weights, beyond which they outgrow the machine."""
    table = Table("Global magnitude by size", ["weights", "prunelab", "in reads of the weights", *MASKERS])
    for name in ("1 M", "10 M", "100 M", "500 M"):
        model, example = MODELS[name]()
        limit = read_once(model)
        times: dict[str, list[float]] = {
            who: [] for who in STEPS["weights, global"] if who == "prunelab" or name != "500 M"
        }
        for _ in range(1 if name == "500 M" else rounds):
            for who, found in times.items():
                copied = model if name == "500 M" else fresh(model)
                found.append(seconds(partial(run, "weights, global", who, copied, example, SHARE)))
        middle = {who: statistics.median(found) for who, found in times.items()}
        mine = middle["prunelab"]
        others = [f"{middle[who] / mine:.1f}" if who in middle else "" for who in MASKERS]
        table.add([name, f"{mine:.3f} s", f"{mine / limit:.0f}", *others])


def selection(rounds: int) -> None:
    """Selection alone: scores -> keep."""
    table = Table("allocate alone, in reads of the weights", ["weights", "global", "in reads", "local", "in reads"])
    for name in ("1 M", "10 M", "ViT-B/16", "100 M"):
        model, _ = MODELS[name]()
        scores, groups = pl.criteria.magnitude(model), pl.granularity.weights(model)
        limit = read_once(model)
        row = [name]
        for scope in ("global", "layer"):
            found = statistics.median(
                seconds(partial(pl.allocate, scores, groups, SHARE, scope)) for _ in range(rounds)
            )
            row += [f"{found:.3f} s", f"{found / limit:.1f}"]
        table.add(row)


def recovered(model: nn.Module, data: zoo.Data, seed: int) -> float:
    """Test accuracy after one epoch of the same training for all."""
    pl.recovery.finetune(model, data, epochs=1, seed=seed, progress=False)
    return pl.measurement.evaluate(model, data, split="test").accuracy


def accuracy(seeds: int) -> None:
    """Accuracy at equal sparsity, before and after an equal recovery, mean over networks of different seeds."""
    data = zoo.load("digits")
    names = ["digits-cnn", *(f"digits-cnn-{n}" for n in range(1, 5))][:seeds]
    table = Table(
        f"The course's CNN, {len(names)} networks: test accuracy, mean ± standard deviation",
        ["work", "share", "who", "without recovery", "after one epoch", "MACs left"],
    )
    for work, share in (("weights, global", 0.9), ("weights, local", 0.9), ("filters, removed", 0.5)):
        for who in STEPS[work]:
            before, after, left = [], [], []
            for seed, name in enumerate(names):
                model = zoo.checkpoint(name)
                example = data.test[:4][0]
                macs = pl.measurement.macs(model, example[:1])
                pruned = run(work, who, model, example, share).eval()
                before.append(pl.measurement.evaluate(pruned, data, split="test").accuracy)
                after.append(recovered(masked_again(pruned), data, seed))
                left.append(pl.measurement.macs(plain(copy.deepcopy(pruned)), example[:1]) / macs)
            table.add([work, f"{share:.0%}", who, spread(before), spread(after), f"{statistics.mean(left):.0%}"])


def spread(values: list[float]) -> str:
    """Mean and standard deviation in per cent."""
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f} %" if values[1:] else ""


def masked_again(model: nn.Module) -> nn.Module:
    """A peer's zeros held by our masks, so that all recover under the same conditions."""
    plain(model)
    masks = {n: w.detach() != 0 for n, w in pl.prunable(model).items() if bool((w == 0).any())}
    return pl.apply(model, masks) if masks else model


def latency(rounds: int) -> None:
    """Latency reached against MACs removed, at a share of the filters or weights, on ResNet-50."""
    table = Table(
        f"ResNet-50, {SHARE:.0%} gone, baked: MACs removed and speed-up over dense",
        ["work", "who", "MACs removed", "speed-up"],
    )
    model, example = MODELS["ResNet-50"]()
    example = torch.randn(4, 3, 112, 112)
    dense = pl.measurement.macs(model, example)
    for work in ("weights, global", "filters, zeroed", "filters, removed"):
        forms = {"dense": model}
        for who in STEPS[work]:
            try:
                forms[who] = plain(run(work, who, fresh(model), example, SHARE)).eval()
            except Exception as error:
                print(f"({who} fails on {work}: {type(error).__name__}: {str(error)[:150]})")
        compared = pl.measure.compare(forms, example, clock="steady", rounds=rounds)
        for who in [w for w in forms if w != "dense"]:
            macs = pl.measurement.macs(forms[who], example)
            table.add([work, who, f"{1 - macs / dense:.0%}", f"{compared.speedup[who].ratio:.2f}x"])


def imports(rounds: int) -> None:
    """Seconds of a fresh process that imports a package, less one that imports torch and torchvision alone."""
    lines = {
        "torch, torchvision": "import torch, torchvision",
        "prunelab": "import prunelab",
        "torch.nn.utils.prune": "import torch.nn.utils.prune",
        "Torch-Pruning": "import torch_pruning",
        "FasterAI": "import fasterai.sparse.all, fasterai.prune.all",
    }
    if missing():
        del lines["FasterAI"]
    times: dict[str, list[float]] = {who: [] for who in lines}
    for _ in range(rounds):
        for who, line in lines.items():
            code = f"import time; s = time.process_time(); {line}; print(time.process_time() - s)"
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
            )
            times[who].append(float(done.stdout.strip().splitlines()[-1]))
    mine = statistics.median(times["prunelab"])
    table = Table("Import", ["what", "processor time", "over prunelab"])
    for who, found in times.items():
        table.add([who, f"{statistics.median(found):.2f} s", f"{statistics.median(found) / mine:.2f}"])


def main() -> None:
    """Print the parts asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parts", nargs="+")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seeds", type=int, default=5)
    given = options.parse_args()
    torch.set_num_threads(1)
    if given.parts[0] == "memory-of":
        print(memory_of(*json.loads(given.parts[1])))
        return
    parts = {
        "step": lambda: steps(given.rounds),
        "memory": memory,
        "growth": lambda: growth(given.rounds),
        "selection": lambda: selection(given.rounds),
        "latency": lambda: latency(max(given.rounds, 7)),
        "accuracy": lambda: accuracy(given.seeds),
        "imports": lambda: imports(given.rounds),
    }
    print(f"torch {torch.__version__}, one thread. {missing()}")
    for part in given.parts:
        parts[part]()


if __name__ == "__main__":
    main()
