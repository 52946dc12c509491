"""Global magnitude at 50 % on ViT-B/16: ours against torch.nn.utils.prune and a full stable sort, in one run.

    python tests/benchmarks/bench_selection.py [--threads 1] [--rounds 3]

Prints times and their ratios, whether the selection is that of the sort, and the extra memory that `allocate`
takes: by how much a fresh process grows at the most during the call, less the masks it returns. (What is needed
before the masks exist can hide behind them, as it should: both are not held at once.) Needed: at least 40 times
faster than torch.nn.utils.prune, `allocate` within 10 times one read of the weights, under 15 % extra, and at most
1.4 times the weights in the whole step, scores and masks included; theirs is printed beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import gc
import json
import subprocess
import sys
import threading
import time

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import prunelab as pl
from prunelab.core import lookup

SPARSITY = 0.5
STEP, THEIRS = "the whole step", "torch.nn.utils.prune's"


def vit() -> nn.Module:
    """ViT-B/16 with seeded random weights; its classifier, which torchvision starts at zero, gets some too."""
    from torchvision.models import vit_b_16

    torch.manual_seed(0)
    model = vit_b_16(weights=None).eval()
    nn.init.normal_(model.heads.head.weight, std=0.02)
    return model


def ours(model: nn.Module) -> pl.Masks:
    """Score, allocate, expand."""
    groups = pl.granularity.weights(model)
    keep = pl.allocate(pl.criteria.magnitude(model), groups, SPARSITY, "global")
    return pl.expand(model, groups, keep)


def theirs(model: nn.Module) -> pl.Masks:
    """What torch.nn.utils.prune takes for the same weights; the masks are removed again outside the clock."""
    where = {name: lookup(model, name)[0] for name in pl.prunable(model)}
    pairs = [(p.module, p.attribute) for p in where.values()]
    torch_prune.global_unstructured(pairs, pruning_method=torch_prune.L1Unstructured, amount=SPARSITY)
    return {name: getattr(p.module, f"{p.attribute}_mask").bool() for name, p in where.items()}


def full_sort(model: nn.Module) -> pl.Masks:
    """The definition: a stable sort of all scores, the first half of it removed."""
    weights = pl.prunable(model)
    scores = torch.cat([w.detach().abs().reshape(-1) for w in weights.values()])
    keep = torch.ones_like(scores, dtype=torch.bool)
    keep[scores.sort(stable=True).indices[: round(SPARSITY * len(scores))]] = False
    parts = keep.split([w.numel() for w in weights.values()])
    return {name: part.view(w.shape) for (name, w), part in zip(weights.items(), parts, strict=True)}


def timed(function, model: nn.Module) -> tuple[float, pl.Masks]:
    """Processor seconds of one call, which a busy machine disturbs least, and its result."""
    gc.collect()
    start = time.process_time()
    result = function(model)
    return time.process_time() - start, result


def read_once(model: nn.Module) -> float:
    """Seconds to read the prunable weights once: the limit."""
    weights = [w.detach() for w in pl.prunable(model).values()]
    return min(timed(lambda _: [w.sum() for w in weights], model)[0] for _ in range(7))


def race(rounds: int) -> None:
    """Time the three, interleaved, each on a fresh copy; print the table."""
    seconds: dict[str, list[float]] = {"prunelab": [], "full stable sort": [], "torch.nn.utils.prune": []}
    equal = counted = True
    for warm_up in (ours, theirs):
        warm_up(nn.Linear(2048, 2048))
    for _ in range(rounds):
        t, masks = timed(ours, vit())
        seconds["prunelab"].append(t)
        t, expected = timed(full_sort, vit())
        seconds["full stable sort"].append(t)
        equal &= all(torch.equal(masks[n], expected[n]) for n in expected) and masks.keys() == expected.keys()
        t, torchs = timed(theirs, vit())
        seconds["torch.nn.utils.prune"].append(t)
        counted &= sum(int(m.sum()) for m in masks.values()) == sum(int(m.sum()) for m in torchs.values())
    print(f"{'':<24}{'median':>10}{'best':>10}{'ratio of medians':>20}")
    base = sorted(seconds["prunelab"])[rounds // 2]
    for name, times in seconds.items():
        middle = sorted(times)[rounds // 2]
        print(f"{name:<24}{middle:>8.3f} s{min(times):>8.3f} s{middle / base:>19.1f}x")
    slowest = min(seconds["torch.nn.utils.prune"]) / max(seconds["prunelab"])
    print(f"worst case over the rounds (their fastest / our slowest): {slowest:.1f}x  (need: at least 40)")
    model = vit()
    limit, scores, groups = read_once(model), pl.criteria.magnitude(model), pl.granularity.weights(model)
    alone = min(timed(lambda _: pl.allocate(scores, groups, SPARSITY), model)[0] for _ in range(2 * rounds))
    print(
        f"one read of the weights: {limit * 1e3:.1f} ms; allocate alone: {alone / limit:.1f} reads (need: at most 10)"
    )
    print(f"with scores and masks, which are new memory: {min(seconds['prunelab']) / limit:.0f} reads")
    print(f"the same weights as the full sort: {equal}; as many as torch.nn.utils.prune: {counted}")


def status(field: str) -> int:
    """Bytes of this process by a field of /proc/self/status: VmRSS (in memory now), VmHWM (the most there was)."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))


def peak_of(call) -> tuple[int, int]:
    """By how many bytes the process grew at the most while in `call`, and what of that its result holds.

    Sampled every half millisecond; where the kernel lets us reset its own high-water mark, the larger of both.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    before, marked = status("VmRSS"), status("VmHWM")
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.0005):
            peak = max(peak, status("VmRSS"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = call()
    done.set()
    watcher.join()
    mark = status("VmHWM")
    if mark > marked:
        peak = max(peak, mark)
    return peak - before, sum(k.numel() for k in result.values())


def memory() -> dict[str, list[int]]:
    """Run in a process of its own: growth at the peak of `allocate`, and the masks in it, for several scores."""
    ctypes.CDLL("libc.so.6").mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed above 64 KiB goes back at once
    model = vit()
    groups = pl.granularity.weights(model)
    whole = {"ours": copy.deepcopy(model), "theirs": copy.deepcopy(model)}
    ours(nn.Linear(2048, 2048))  # warm up: libraries and thread pools are not the algorithm's memory
    scores = pl.criteria.magnitude(model)
    found = {"magnitude": list(peak_of(lambda: pl.allocate(scores, groups, SPARSITY)))}
    for s in scores.values():
        s.mul_(50).round_()  # a handful of different values: millions tie at the threshold
    found["magnitude, rounded so that millions tie"] = list(peak_of(lambda: pl.allocate(scores, groups, SPARSITY)))
    within = pl.allocate(scores, groups, SPARSITY / 2)
    found["the same, within= an earlier result"] = list(
        peak_of(lambda: pl.allocate(scores, groups, SPARSITY, within=within))
    )
    scores.clear()
    within.clear()
    recipe = pl.Recipe("magnitude", sparsity=SPARSITY)
    found[STEP] = list(peak_of(lambda: pl.prune(whole["ours"], recipe).masks))
    found[THEIRS] = list(peak_of(lambda: theirs(whole["theirs"])))
    return found


def main() -> None:
    """Print it all."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument(
        "--memory-only", action="store_true", help="print the memory figures as JSON; used by the rest"
    )
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    if given.memory_only:
        print(json.dumps(memory()))
        return
    weights = sum(w.numel() for w in pl.prunable(vit()).values())
    print(
        f"ViT-B/16, {weights:,} prunable weights, {SPARSITY:.0%}, {given.threads} thread(s), torch {torch.__version__}"
    )
    race(given.rounds)
    command = [sys.executable, __file__, "--memory-only", "--threads", str(given.threads)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    size = weights * 4
    print(f"\npeak extra memory of allocate beyond weights, scores and masks, of the weights' {size / 2**20:.0f} MiB:")
    step, other = (found.pop(what)[0] / size for what in (STEP, THEIRS))
    for what, (grown, masks) in found.items():
        extra = grown - masks
        print(f"  {what:<42}{extra / 2**20:>8.1f} MiB{extra / size:>8.1%}   (grown by {grown / 2**20:.0f} MiB in all)")
    print(f"the whole step, scores and masks included: {step:.2f} times the weights (need: at most 1.4)")
    print(f"torch.nn.utils.prune's: {other:.2f}")


if __name__ == "__main__":
    main()
