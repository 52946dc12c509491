"""The real Llama: perplexity of ways to prune it, against plain implementations; seconds, memory, tokens a second.

Run by hand: `python tests/benchmarks/bench_llama.py [--only methods|chain|depth|speed] [--calib 16] [--test 16]`. It
takes the Llama from the cache, or fetches it. One thread, so that the figures compare; a quiet machine for `speed`. In
the chain `random`, over all blocks at once, differs in a pair of neurons whose scores are 1e-8 apart: a tie in float32.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plain_methods

import prunelab as pl
from prunelab import zoo
from prunelab.lab.lessons import lesson_13, lesson_14, llamas
from prunelab.measurement import perplexity, rates
from prunelab.reconstruction import SparseGPT, Wanda, blockwise

METHODS = {"Wanda": Wanda(), "SparseGPT": SparseGPT()}
PATTERNS = {"50 %": 0.5, "2:4": (2, 4), "4:8": (4, 8)}
OUT, SHARE = 4, 0.25  # of the chain: blocks out, neurons out


def memory(field: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def peak_over(model: nn.Module, task) -> tuple[float, float]:
    """Seconds, and the most memory a task held, in sizes of the model: what it had before counts as one model."""
    size = sum(p.numel() * p.itemsize for p in {id(p): p for p in model.parameters()}.values())
    before = memory("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
    start = time.perf_counter()
    task()
    return time.perf_counter() - start, 1 + (memory("VmHWM:") - before) / size


def methods(llama: zoo.Llama, text: llamas.Text, patterns: list[str], plain: bool) -> None:
    """Perplexity on the same tokens, each method beside its plain implementation."""
    dense = perplexity(llama.model, text.test).value
    print(f"dense: {dense:.2f} on {text.test.numel():,} tokens")
    print("pattern  method      perplexity  plain       apart    seconds  peak / model", flush=True)
    for pattern in patterns:
        wanted = lesson_14.pattern_of(pattern)
        by_size = lesson_14.by_magnitude(copy.deepcopy(llama.model), wanted)
        print(f"{pattern:7s}  magnitude   {perplexity(by_size, text.test).value:10.2f}", flush=True)
        del by_size
        for name, method in METHODS.items():
            model = copy.deepcopy(llama.model)
            took, peak = peak_over(model, lambda m=model, how=method, p=wanted: blockwise(m, text.calib, how, p))
            ours, told = perplexity(model, text.test).value, f"{took:9.1f}  {peak:.2f}"
            del model
            if not plain:
                print(f"{pattern:7s}  {name:10s}  {ours:10.2f}  {'-':10s}  {'-':7s} {told}", flush=True)
                continue
            model = copy.deepcopy(llama.model)
            rows = text.calib.batches[0][0]
            plain_methods.layer_by_layer(model, rows, getattr(plain_methods, name.lower()), PATTERNS[pattern])
            theirs = perplexity(model, text.test).value
            del model
            print(
                f"{pattern:7s}  {name:10s}  {ours:10.2f}  {theirs:<10.2f}  {ours / theirs - 1:+.3%} {told}", flush=True
            )


def chain(llama: zoo.Llama, text: llamas.Text, criteria: list[str]) -> None:
    """4 blocks out by influence, then 25 % of the neurons by each criterion, then Wanda 2:4: beside a plain Llama.

    `differ` counts what is kept here and not there: blocks, neurons, weights.
    """
    rows = torch.cat([text.calib.batches[0][0], text.calib.batches[0][1][:, -1:]], 1)
    print("| stage | scope | perplexity | plain | apart | differ | of |\n|---|---|---|---|---|---|---|")
    line("dense", "", llama.model, llama.model, text, [])

    groups = pl.granularity.layers(llama.model)
    keep = pl.allocate(pl.criteria.block_influence(llama.model, text.calib), groups, OUT / groups[0].units)
    short = pl.shrink(llama.model, groups, keep)
    influence = plain_methods.block_influence(llama.model, rows[:, :-1])
    gone = influence.argsort()[:OUT]
    theirs = plain_methods.without_blocks(llama.model, gone.tolist())
    same = torch.ones(groups[0].units, dtype=torch.bool).index_fill(0, gone, False)
    line(f"blocks {sorted(gone.tolist())} out", "", short, theirs, text, [(same, keep["layers"])])
    for criterion in criteria:
        neurons_and_wanda(short, theirs, text, rows, criterion)


def neurons_and_wanda(short: nn.Module, shorter: nn.Module, text: llamas.Text, rows: torch.Tensor, name: str) -> None:
    """The second stage of the chain, compared over all blocks and within each; then the third."""
    groups = pl.granularity.neurons(short)
    scores = pl.criteria.by_name(name)(short, text.calib)
    plain_scores = plain_methods.neuron_scores(name, shorter, rows)
    for scope in ("global", "layer"):
        keep = pl.allocate(scores, groups, SHARE, scope)
        small = pl.shrink(short, groups, keep)
        kept = plain_methods.neurons_kept(plain_scores, SHARE, scope)
        cut = plain_methods.without_neurons(copy.deepcopy(shorter), kept)
        pairs = [
            (torch.zeros(g.units).index_fill(0, s, 1) > 0, keep[g.name]) for g, s in zip(groups, kept, strict=True)
        ]
        line(f"{name}: 25 % of the neurons out", scope, small, cut, text, pairs)
    blockwise(small, text.calib, Wanda(), pl.NM(2, 4))
    plain_methods.layer_by_layer(cut, rows[:, :-1], plain_methods.wanda, (2, 4))
    layers = zip(plain_methods.linear_layers(small), plain_methods.linear_layers(cut), strict=True)
    line(f"{name}: then Wanda 2:4", "", small, cut, text, [(a.weight != 0, b.weight != 0) for a, b in layers])


Pairs = list[tuple[torch.Tensor, torch.Tensor]]  # what is kept here, and there


def line(stage: str, scope: str, ours: nn.Module, theirs: nn.Module, text: llamas.Text, pairs: Pairs) -> None:
    """A row of the chain's table."""
    differ, of = sum(int((a ^ b).sum()) for a, b in pairs), sum(a.numel() for a, _ in pairs)
    one, other = perplexity(ours, text.test).value, plain_methods.perplexity(theirs, text.test)
    print(f"| {stage} | {scope} | {one:.3f} | {other:.3f} | {one / other - 1:+.4%} | {differ} | {of:,} |", flush=True)


def depth(llama: zoo.Llama, text: llamas.Text) -> None:
    """Without the MLPs, or the whole blocks, of lowest block influence: the figures of the field notes."""
    for what in ("mlps", "layers"):
        order = lesson_13.order(llama.model, what, "influence", text.calib)
        for count in (1, 3, 5, 8):
            small = lesson_13.without(llama.model, what, order[:count])
            print(
                f"{what:7s} without {count}: {perplexity(small, text.test).value:.2f}  {sorted(order[:count])}",
                flush=True,
            )


def speed(llama: zoo.Llama, text: llamas.Text) -> None:
    """Tokens a second against parameters removed, one table, one run."""
    order = lesson_13.order(llama.model, "layers", "influence", text.some(2))
    models: dict[str, nn.Module] = {"dense": llama.model}
    for count in (5, 10, 15):
        models[f"{count} of 30 blocks out"] = lesson_13.without(llama.model, "layers", order[:count])
    models["10 MLPs out"] = lesson_13.without(llama.model, "mlps", order[:10])
    groups = pl.granularity.neurons(llama.model)
    keep = pl.allocate(pl.criteria.magnitude(llama.model), groups, 0.5, "layer")
    models["half of all neurons out"] = pl.shrink(llama.model, groups, keep)
    found = rates(models, text.test[:1, :128])
    print(found)
    whole = sum(p.numel() for p in llama.model.parameters())
    for name, model in models.items():
        left = sum(p.numel() for p in model.parameters())
        print(f"{name:26s} parameters removed {1 - left / whole:6.1%}  decode {found.decode_rate(name):6.1f} tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["methods", "chain", "depth", "speed"])
    parser.add_argument("--patterns", nargs="+", default=["50 %", "2:4", "4:8"], choices=list(PATTERNS))
    parser.add_argument(
        "--criteria", nargs="+", default=list(plain_methods.NEURONS), choices=plain_methods.NEURONS, help="of the chain"
    )
    parser.add_argument("--calib", type=int, default=llamas.CALIBRATED, help="windows of 256 tokens")
    parser.add_argument("--test", type=int, default=llamas.TESTED, help="windows of 256 tokens")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain implementations out")
    given = parser.parse_args()
    torch.set_num_threads(1)
    llama = zoo.llama()
    text = llamas.text_for(llama)
    text = llamas.Text(text.test[: given.test], text.train, text.some(given.calib))
    if given.only in (None, "methods"):
        methods(llama, text, given.patterns, not given.no_plain)
    if given.only in (None, "chain"):
        chain(llama, text, given.criteria)
    if given.only in (None, "depth"):
        depth(llama, text)
    if given.only in (None, "speed"):
        speed(llama, text)


if __name__ == "__main__":
    main()
