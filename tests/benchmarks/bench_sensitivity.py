"""The sensitivity scan of torchvision's vgg11_bn against the plain loop over the same points, in one run.

    python tests/benchmarks/bench_sensitivity.py [--divide 4] [--size 64] [--samples 256] [--rounds 1] [--threads 1]

The plain loop is the library's own verbs, as one would write them: allocate, masked, evaluate, for every layer and
sparsity; with the scan's batches, and with those of `evaluate` by default. The lean loop is the best that could be
written without reusing anything: the pruned weight is written in place, no masks, and the model runs channels-last as
in the scan, so that what is left of the scan's lead is what it does not compute twice. Prints seconds of wall clock and
of CPU, their ratios, and by how much the figures differ. Needed: at least 3 times faster than the plain loop.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import time
from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import vgg

import prunelab as pl
from prunelab import sensitivity
from prunelab.measurement.evaluation import Evaluation, evaluate

Points = list[Evaluation]


def vgg11_bn(divide: int, classes: int = 10) -> nn.Module:
    """Torchvision's vgg11_bn, every width divided, with statistics of BatchNorm that fit its random weights."""
    torch.manual_seed(0)
    widths = [w if isinstance(w, str) else w // divide for w in vgg.cfgs["A"]]
    model = vgg.VGG(vgg.make_layers(widths, batch_norm=True), num_classes=classes)
    inner, outer = 512 // divide * 7 * 7, 4096 // divide
    hidden = [nn.Linear(inner, outer), nn.ReLU(True), nn.Dropout(), nn.Linear(outer, outer), nn.ReLU(True)]
    model.classifier = nn.Sequential(*hidden, nn.Dropout(), nn.Linear(outer, classes))
    return model


def plain(model: nn.Module, data, batch_size: int) -> Points:
    """Allocate, mask, evaluate."""
    groups, scores, found = pl.granularity.weights(model), pl.criteria.magnitude(model), []
    for group in groups:
        for s in sensitivity.scanning.SPARSITIES:
            keep = pl.allocate(scores, [group], s, "layer")
            with pl.masked(model, pl.expand(model, [group], keep)):
                found.append(evaluate(model, data, batch_size=batch_size))
    return found


def plain_by_default(model: nn.Module, data, batch_size: int) -> Points:
    """The same with the batches that `evaluate` takes if nobody says otherwise."""
    return plain(model, data, inspect.signature(evaluate).parameters["batch_size"].default)


def lean_channels_last(model: nn.Module, data, batch_size: int) -> Points:
    """Write the pruned weight in place, evaluate, write the dense one back; on a channels-last copy."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    groups, scores, found = pl.granularity.weights(model), pl.criteria.magnitude(model), []
    for group in groups:
        weight = pl.prunable(model)[group.name].data
        dense = weight.clone()
        for s in sensitivity.scanning.SPARSITIES:
            keep = pl.allocate(scores, [group], s, "layer")[group.name].view(weight.shape)
            weight.copy_(dense * keep)
            found.append(evaluate(model, data, batch_size=batch_size))
        weight.copy_(dense)
    return found


def scan(model: nn.Module, data, batch_size: int) -> Points:
    """What is under test."""
    found = sensitivity.scan(model, data, batch_size=batch_size, progress=False)
    n = found.dense.n
    return [
        Evaluation(loss, k / n, n, k) for c in found.curves for k, loss in zip(c.correct, c.loss, strict=True)
    ]  # fmt: skip


def timed(function: Callable, *given) -> tuple[float, float, Points]:
    """Seconds of wall clock and of CPU of one call, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = function(*given)
    return time.perf_counter() - wall, time.process_time() - cpu, found


def main() -> None:
    """Print it all."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--divide", type=int, default=4, help="every width of vgg11_bn divided by this")
    options.add_argument("--size", type=int, default=64, help="height and width of the images")
    options.add_argument("--samples", type=int, default=256)
    options.add_argument("--batch-size", type=int, default=64, help="for all but plain_by_default")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    model = vgg11_bn(given.divide)
    images = torch.randn(given.samples, 3, given.size, given.size)
    with torch.no_grad():
        for _ in range(10):
            model.train()(images)
        labels = model.eval()(images).argmax(1)
    labels[::3] = (
        torch.arange(len(labels[::3])) % 10
    )  # right for two thirds of them, so that there is something to lose
    data = torch.utils.data.TensorDataset(images, labels)
    loops = (plain_by_default, plain, lean_channels_last, scan)
    seconds: dict[str, list[tuple[float, float]]] = {f.__name__: [] for f in loops}
    results: dict[str, Points] = {}
    for _ in range(given.rounds):
        for f in loops:
            wall, cpu, results[f.__name__] = timed(f, model, data, given.batch_size)
            seconds[f.__name__].append((wall, cpu))
    points = len(results["scan"])
    print(
        f"vgg11_bn, widths / {given.divide}, {given.samples} images of {given.size}x{given.size} in batches of "
        f"{given.batch_size}, {points} points, {given.threads} thread(s), torch {torch.__version__}"
    )
    print(f"{'':<22}{'wall':>10}{'CPU':>10}{'wall / scan':>14}{'CPU / scan':>13}   (best of {given.rounds})")
    best = {name: [min(t) for t in zip(*times, strict=True)] for name, times in seconds.items()}
    for name, (wall, cpu) in best.items():
        print(f"{name:<22}{wall:>8.2f} s{cpu:>8.2f} s{wall / best['scan'][0]:>13.2f}x{cpu / best['scan'][1]:>12.2f}x")
    for name in ("plain", "lean_channels_last"):
        pairs = list(zip(results[name], results["scan"], strict=True))
        counts = sum(a.correct != b.correct for a, b in pairs)
        apart = max(abs(a.loss - b.loss) / a.loss for a, b in pairs)
        print(f"scan against {name}: {counts} of {points} counts differ, losses by at most {apart:.1e} relative")
    accuracies = sorted(e.accuracy for e in results["plain"])
    print(f"accuracies from {accuracies[0]:.1%} to {accuracies[-1]:.1%}")


if __name__ == "__main__":
    main()
