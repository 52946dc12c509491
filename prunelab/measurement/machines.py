"""What this machine does at best: MACs a second, bytes a second, and what the launch of a layer costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .conditions import check_count
from .rounds import Task, interleaved, resolved, waited_for
from .text import plural, seconds, shown_as_table, size
from .timing import Latency, summary

BUFFERS = (1 << 18, 1 << 22, 1 << 26)  # bytes copied: in the nearest caches, in the last one, in none
PRODUCT = 512  # rows and columns of the matrix product that measures the peak, with
CONVOLVED = (8, 64, 16, 16)  # what a convolution from 64 to 64 channels is given: (images, channels, height, width)
ROUNDS = 9
# A layer of each kind that has a launch of its own, as small as can be, and the shape of its input.
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(1, 1), (1, 1)),
    "Conv2d": (lambda: nn.Conv2d(1, 1, 3, padding=1), (1, 1, 3, 3)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(1), (1, 1, 1, 1)),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), (1, 1, 2, 2)),
    "other": (nn.ReLU, (1,)),
}
SIZES = (1, 4, 16, 64, 128, 256, 512, 1024)  # inputs and outputs of the linear layers of `floor`


@shown_as_table
@dataclass(frozen=True, repr=False)
class Machine:
    """What one device did at best: MACs a second, bytes a second by the size of the buffer copied, launch times.

    floors: seconds that the smallest layer of a kind takes at batch 1; layers of all other kinds, "other".
    """

    peak: float
    bandwidths: tuple[tuple[int, float], ...]
    floors: Mapping[str, float]
    threads: int
    device: str

    @property
    def ridge(self) -> float:
        """MACs a byte from which on computing takes longer than moving bytes to and from the main memory."""
        return self.peak / self.bandwidths[-1][1]

    def bandwidth(self, moved: int) -> float:
        """Bytes a second for so many bytes: what fits in a cache moves faster."""
        return next((rate for buffer, rate in self.bandwidths if moved <= 2 * buffer), self.bandwidths[-1][1])

    def floor(self, kind: str) -> float:
        """Seconds that launching a layer of this kind takes."""
        return self.floors.get(kind, self.floors["other"])

    def predict(self, macs: int, moved: int, kind: str = "other") -> float:
        """Seconds: the longer of computing and moving, and the launch on top."""
        return max(macs / self.peak, moved / self.bandwidth(moved)) + self.floor(kind)

    def _lines(self) -> tuple[str, None, list[list[str]]]:
        lines = [
            ["peak", f"{self.peak / 1e9:.1f} GMAC/s"],
            *([f"bytes, {size(b)} buffer", f"{rate / 1e9:.1f} GB/s"] for b, rate in self.bandwidths),
            *([f"launch, {kind}", seconds(t)[0]] for kind, t in self.floors.items()),
        ]
        where = plural(self.threads, "thread") if self.device == "cpu" else self.device
        return f"This machine, {where}", None, lines


@shown_as_table
@dataclass(frozen=True, repr=False)
class Floor:
    """Time against work, for linear layers n -> n: below some size the time stops falling."""

    rows: tuple[tuple[int, Latency], ...]  # (n, time), n ascending; a layer does n * n MACs a sample

    @property
    def seconds(self) -> float:
        """What the smallest layer takes: the launch, and next to nothing else."""
        return self.rows[0][1].p50

    @property
    def longer(self) -> float:
        """How many times as long the largest layer takes as the smallest."""
        return self.rows[-1][1].p50 / self.seconds

    @property
    def knee(self) -> int | None:
        """The MACs of the first layer that takes more than twice as long as the smallest; None if none does."""
        return next((n * n * t.batch for n, t in self.rows if t.p50 > 2 * self.seconds), None)

    def _lines(self) -> tuple[str, list[str], list[list[str]]]:
        lines = [[f"{n} -> {n}", f"{n * n * t.batch:,}", str(t)] for n, t in self.rows]
        return f"Linear layers, {self.rows[0][1].conditions}: p50 [p10, p90]", ["layer", "MACs", "time"], lines


def machine(
    *, threads: int = 1, device: str = "cpu", clock: str = "steady", rounds: int = ROUNDS, product: int = PRODUCT,
    buffers: tuple[int, ...] = BUFFERS,
) -> Machine:  # fmt: skip
    """Measure this machine: the best of a few rounds each of float32 work, of copies, and of tiny layers.

    A copy of b bytes moves 2 b (what a cache fetches before it is written over is not counted). The peak is the
    libraries' best, not the data sheet's: of a matrix product and a 3x3 convolution the faster, for these come from
    different libraries, and on some processors one of them is twice as fast.
    """
    clock = resolved(clock, threads, device)
    where = torch.device(device)
    square = torch.randn(product, product, generator=torch.Generator().manual_seed(0)).to(where)
    images = torch.ones(CONVOLVED, device=where)
    kernels = torch.ones(CONVOLVED[1], CONVOLVED[1], 3, 3, device=where)
    macs = {"product": product**3, "convolution": images.numel() * kernels[0].numel()}
    tasks: dict[str, Task] = {
        "product": lambda: square @ square,
        "convolution": lambda: F.conv2d(images, kernels, padding=1),
    }
    for buffer in buffers:
        source = torch.ones(buffer // 4, device=where)
        tasks[f"copy {buffer}"] = partial(torch.empty_like(source).copy_, source)
    with torch.random.fork_rng(devices=()):
        for kind, (make, shape) in KINDS.items():
            tasks[f"launch {kind}"] = partial(make().to(where).eval(), torch.zeros(shape, device=where))
    with torch.no_grad():
        tasks = {name: waited_for(task, where) for name, task in tasks.items()}
        times = interleaved(tasks, threads=threads, rounds=rounds, clock=clock, device=device)
    return Machine(
        peak=max(work / min(times[name]) for name, work in macs.items()),
        bandwidths=tuple((b, 2 * b / min(times[f"copy {b}"])) for b in buffers),
        floors={kind: statistics.median(times[f"launch {kind}"]) for kind in KINDS},
        threads=threads,
        device=device,
    )


def floor(
    sizes: Sequence[int] = SIZES, *, batch: int = 1, threads: int = 1, device: str = "cpu", clock: str = "steady",
    rounds: int = ROUNDS,
) -> Floor:  # fmt: skip
    """Time linear layers n -> n, from one weight up, in turns: what a layer costs that does hardly anything."""
    check_count("batch", batch)
    for n in sizes:
        check_count("sizes", n)
    clock = resolved(clock, threads, device)
    where = torch.device(device)
    with torch.random.fork_rng(devices=()), torch.no_grad():
        layers = {n: nn.Linear(n, n).to(where).eval() for n in sorted(set(sizes))}
        tasks = {str(n): waited_for(partial(m, torch.zeros(batch, n, device=where)), where) for n, m in layers.items()}
        times = interleaved(tasks, threads=threads, rounds=rounds, clock=clock, device=device)
    return Floor(tuple((n, summary(times[str(n)], batch, threads, device, clock)) for n in layers))
