"""The claims of notebook 02 about times, each measured 20 times: how often does it hold, and by how much?

    python tests/benchmarks/bench_latency.py [--runs 20] [--claims NAME ...]

Prints, for every claim, the runs in which it held, and the smallest, median and largest value. Needed: all of them.
Ratios are paired and interleaved, by the clock that a busy machine disturbs least; the load is printed beside them.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import statistics
import sys
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

import prunelab as pl
from prunelab import lab, surgery, zoo


@cache
def batch(size: int = 64) -> Tensor:
    """The first test digits."""
    return zoo.load("digits").test[:size][0]


@cache
def networks() -> dict[str, nn.Module]:
    """The course CNN in every form that the notebook compares (without the epoch of recovery: times don't need it)."""
    dense = zoo.checkpoint("digits-cnn").eval()
    scores = pl.criteria.magnitude(dense)
    filters, neurons = pl.granularity.filters(dense, batch()), pl.granularity.neurons(dense, batch())
    found = {"dense": dense}
    early = {"conv1": 0.5, "conv2": 0.5, "conv3": 0, "conv4": 0}
    for name, groups, share in (("half", filters, 0.5), ("early", filters, early), ("neurons", neurons, 0.5)):
        found[name] = surgery.shrink(dense, groups, pl.allocate(scores, groups, share, "layer"))
    keep = pl.allocate(scores, filters, 0.5, "layer")
    found["zeroed"] = pl.bake(pl.apply(copy.deepcopy(dense), pl.expand(dense, filters, keep)))
    found["scattered"] = copy.deepcopy(dense)
    pl.prune(found["scattered"], pl.Recipe(sparsity=0.9))
    pl.bake(found["scattered"])
    weights = pl.granularity.weights(dense, exclude=["conv1.weight"])
    two = pl.allocate(scores, weights, 0.5, pl.allocation.NM(2, 4))
    found["2:4"] = pl.bake(pl.apply(copy.deepcopy(dense), pl.expand(dense, weights, two)))
    return found


def faster(name: str, rounds: int | None = None) -> float:
    """How many times faster than dense, at batch 64."""
    pair = {"dense": networks()["dense"], name: networks()[name]}
    return pl.measure.compare(pair, batch(), clock="steady", rounds=rounds).speedup[name].ratio


@cache
def promise(name: str) -> float:
    """How many times fewer MACs than dense."""
    dense, other = (pl.measurement.macs(networks()[n], batch()) for n in ("dense", name))
    return dense / other


def zero_matrix() -> float:
    """How many times as long a matrix of zeros takes."""
    full, empty = nn.Linear(512, 512), nn.Linear(512, 512)
    nn.init.zeros_(empty.weight)
    found = pl.measure.compare({"full": full, "empty": empty}, torch.randn(64, 512), clock="steady")
    return 1 / found.speedup["empty"].ratio


def csr(sparsity: float) -> float:
    """How many times faster than dense a CSR product with 64 columns is."""
    return lab.physics.products(512, 64, [sparsity], kernels=["csr"]).rows[-1].speedup.ratio


def crossing(columns: int) -> float:
    """From which share of zeros on CSR wins, on the line between two levels; the last one for never."""
    zeros = (0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)
    (_, ratios), *_ = lab.physics.products(512, columns, zeros, kernels=["csr"]).curves().values()
    return float(np.interp(0, np.log(ratios), zeros))


def convolutions() -> float:
    """The lowest share of the peak that one of the big convolutions reaches."""
    roof = lab.physics.roofline(networks()["dense"], batch(), rounds=7)
    return min(roof.layers[name].rate for name in ("conv2", "conv3", "conv4")) / roof.machine.peak


def pools() -> float:
    """Which share of the time the poolings take."""
    parts = lab.lesson_02.layer_times({"dense": networks()["dense"]}, batch())["dense"]
    return parts["pooling"] / sum(parts.values())


def pitfall(name: str) -> float:
    """How many times as long that takes as this."""
    dense = networks()["dense"]
    groups = pl.granularity.filters(dense, batch())
    keep = pl.allocate(pl.criteria.magnitude(dense), groups, 0.5, "layer")
    return lab.physics.pitfalls(dense, pl.expand(dense, groups, keep), batch())[name][2]


CLAIMS: dict[str, tuple[Callable[[], float], float, float]] = {  # name -> (measure, at least, at most)
    "90 % zero: within 10 % of dense": (lambda: faster("scattered"), 0.9, 1.1),
    "half zeroed: within 20 % of dense": (lambda: faster("zeroed"), 0.83, 1.2),
    "2:4 on a CPU: within 10 % of dense": (lambda: faster("2:4"), 0.9, 1.1),
    "half removed: 1.8 times as fast": (lambda: faster("half"), 1.8, math.inf),
    "half removed: part of the MACs' promise": (lambda: faster("half", 15) / promise("half"), 0.0, 0.9),
    "early half removed: part of the MACs' promise": (lambda: faster("early", 15) / promise("early"), 0.7, math.inf),
    "neurons removed: within 10 % of dense": (lambda: faster("neurons", 15), 0.9, 1.1),
    "a matrix of zeros": (zero_matrix, 0.85, 1.18),
    "CSR at 50 % zeros: slower": (lambda: 1 / csr(0.5), 1.3, math.inf),
    "CSR at 99 % zeros: faster": (lambda: csr(0.99), 3.0, math.inf),
    "CSR's crossover, 64 columns": (lambda: crossing(64), 0.6, 0.95),
    "CSR's crossover, 1 column (no claim)": (lambda: crossing(1), 0.0, 1.0),
    "convolutions' share of the peak": (convolutions, 0.4, math.inf),
    "poolings' share of the time": (pools, 0.05, 1.0),
    "33 channels against 32": (lambda: pitfall("32 channels, 33 channels"), 1.1, math.inf),
    "masks on, one digit": (lambda: pitfall("dense, masks still on (1 digit)"), 1.1, math.inf),
}


def main() -> int:
    """Measure, print, and say by the exit status whether every claim held every time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--claims", nargs="*", default=[], help="only those whose name holds one of these words")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {n: c for n, c in CLAIMS.items() if not given.claims or any(word in n for word in given.claims)}
    values: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(given.runs):
        for name, (measure, _, _) in chosen.items():
            values[name].append(measure())
    broken = 0
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {given.runs} runs")
    for name, (_, least, most) in chosen.items():
        held = sum(least <= v <= most for v in values[name])
        broken += held < given.runs
        low, middle, high = min(values[name]), statistics.median(values[name]), max(values[name])
        print(f"{name:44s} {held:2d} of {given.runs}  [{least:g}, {most:g}]  {low:.3f} {middle:.3f} {high:.3f}")
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main())
