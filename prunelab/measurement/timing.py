"""How long a forward pass takes, and which of several models is faster: medians, spread, paired rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import call, to
from ..core import PruneError, device_of
from .conditions import attempt, check_plain, cut, first_inputs, rows, undisturbed
from .rounds import Blocks, Task, interleaved, resolved, waited_for
from .text import plural, ranged, shown_as_table

BATCH = 64  # samples a forward, where only data was given


@dataclass(frozen=True, repr=False)
class Latency:
    """Seconds one forward of `batch` samples takes: the rounds' median, 10th and 90th percentile.

    `clock`: "wall", or "processor" for the time that this process alone was computing.
    """

    p50: float
    p10: float
    p90: float
    batch: int
    threads: int
    device: str
    rounds: int
    clock: str = "wall"

    def __str__(self) -> str:
        return ranged(self.p50, self.p10, self.p90)

    def __repr__(self) -> str:
        return f"{self} ({self.conditions})"

    @property
    def conditions(self) -> str:
        """What the number is worth nothing without: batch 64, 1 thread, cpu."""
        threads = plural(self.threads, "thread")
        on_cpu = [threads] if self.device == "cpu" else []
        clock = [] if self.clock == "wall" else [f"{self.clock} time"]
        return ", ".join([f"batch {self.batch}", *on_cpu, self.device, *clock])


@dataclass(frozen=True, repr=False)
class Speedup:
    """How many times faster than the first model: the median over paired rounds and its 95 % interval."""

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x [{self.low:.2f}, {self.high:.2f}]"

    __repr__ = __str__


@shown_as_table
@dataclass(frozen=True, repr=False)
class Comparison:
    """Latency of each model and its speed-up over the first, by name."""

    latency: dict[str, Latency]
    speedup: dict[str, Speedup]

    @property
    def baseline(self) -> str:
        """The model the others are compared with: the first one given."""
        return next(iter(self.latency))

    def _lines(self) -> tuple[str, list[str], list[list[str]]]:
        title = f"Interleaved, {self.latency[self.baseline].conditions}: p50 [p10, p90]; speed-up [95 %]"
        lines = [[name, str(taken), str(self.speedup[name])] for name, taken in self.latency.items()]
        return title, ["model", "latency", f"against {self.baseline}"], lines


def latency(
    model: nn.Module,
    example: Any,
    *,
    batch_size: int | None = None,
    threads: int = 1,
    rounds: int | None = None,
    clock: str = "wall",
) -> Latency:
    """Time forward passes of a model where it lies, in eval mode and without gradients.

    One value a round: the mean over a block of at least 10 ms, after two forwards to warm up. `batch_size`
    cuts the example (1 and a large one tell different stories). `rounds`: 15, fewer (down to 7) if that
    would take over 2 s. On a GPU each forward is waited for. `clock` as in `compare`. Raises PruneError for a
    model with masks on.
    """
    check_plain(model)
    inputs = cut(example, batch_size)
    clock = resolved(clock, threads, device_of(model).type)
    times = _blocks({"": model}, inputs, threads, rounds, clock)
    return _summaries({"": model}, times, rows(inputs), threads, clock)[""]


def compare(
    models: Mapping[str, nn.Module],
    example_or_data: Any,
    *,
    batch_size: int | None = None,
    threads: int = 1,
    rounds: int | None = None,
    clock: str = "wall",
) -> Comparison:
    """Time several models in turns on the same inputs: speedup = median over rounds of time(first) / time(model).

    In every round each model is timed once, in an order that rotates, so that whatever else slows the machine
    slows all of them. The interval holds the median ratio with at least 95 % certainty (the sign test's order
    statistics; it assumes no distribution). An example is a tensor, or a dict of inputs by keyword, taken
    whole unless `batch_size` cuts it; of anything else, data, the first 64 test samples are taken.
    clock="processor" leaves out what other programs take on a busy machine, for one thread on a CPU;
    "steady" is that where it can be had, and else "wall".
    Raises PruneError if a model wears masks, they lie on different devices, or rounds is below 7.
    """
    check_candidates(models)
    if isinstance(example_or_data, (Tensor, Mapping)):
        inputs = cut(example_or_data, batch_size)
    else:
        inputs = first_inputs(example_or_data, "test", BATCH if batch_size is None else batch_size)
    clock = resolved(clock, threads, device_of(next(iter(models.values()))).type)
    times = _blocks(models, inputs, threads, rounds, clock)
    return Comparison(_summaries(models, times, rows(inputs), threads, clock), speedups(times))


def speedups(times: Blocks) -> dict[str, Speedup]:
    """How many times faster than the first each one is, from the ratios within each round."""
    first = next(iter(times.values()))
    ratios = {name: [a / b for a, b in zip(first, own, strict=True)] for name, own in times.items()}
    return {name: Speedup(*median_interval(values)) for name, values in ratios.items()}


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, low, high): order statistics that hold the true median with at least 95 % certainty.

    Each value lies below the median with probability 1/2, so low and high are the k-th from either end with
    the largest k for which 2 * P(Binomial(n, 1/2) < k) <= 0.05. Raises PruneError below the six values it takes.
    """
    ordered, n = sorted(values), len(values)
    below, k = 2.0**-n, 0
    while 2 * below <= 0.05:
        k += 1
        below += math.comb(n, k) / 2**n
    if k == 0:
        raise PruneError(f"{n} values: six are the least from which a median's 95 % interval can be told")
    return _quantile(ordered, 0.5), ordered[k - 1], ordered[n - k]


def check_candidates(models: Mapping[str, nn.Module]) -> None:
    """PruneError unless these are plain models by name, all on one device."""
    if not isinstance(models, Mapping) or not models:
        raise PruneError('models must be a dict of at least one, such as {"dense": model, "pruned": small}')
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise PruneError(f"models[{name!r}] is a {type(model).__name__}: give an nn.Module")
        check_plain(model, f"models[{name!r}]")
    where = {name: device_of(model) for name, model in models.items()}
    if len(set(where.values())) > 1:
        raise PruneError(f"models lie on different devices, {where}: move all to one with model.to(device)")


def _blocks(
    models: Mapping[str, nn.Module], inputs: Any, threads: int, rounds: int | None, clock: str = "wall"
) -> Blocks:
    """Seconds a forward, for each model in each round."""
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(undisturbed(model))
        # Not inference_mode: what a model caches in its first forward must stay usable in training.
        stack.enter_context(torch.no_grad())
        tasks = {name: forward(model, inputs) for name, model in models.items()}
        on = device_of(next(iter(models.values()))).type
        return interleaved(tasks, threads=threads, rounds=rounds, clock=clock, device=on)


def forward(model: nn.Module, inputs: Any) -> Task:
    """One forward pass as a task, tried once; on a GPU it is waited for, or only the launch would be timed."""
    device = device_of(model)
    placed = to(inputs, device)
    attempt(model, placed)
    return waited_for(lambda: call(model, placed), device)


def _summaries(
    models: Mapping[str, nn.Module], times: Blocks, batch: int, threads: int, clock: str
) -> dict[str, Latency]:
    on = {name: device_of(model).type for name, model in models.items()}
    return {name: summary(times[name], batch, threads, on[name], clock) for name in models}


def summary(values: Sequence[float], batch: int, threads: int, device: str, clock: str) -> Latency:
    """The rounds' median, 10th and 90th percentile."""
    middle, low, high = (_quantile(values, q) for q in (0.5, 0.1, 0.9))
    return Latency(middle, low, high, batch, threads, device, len(values), clock)


def _quantile(values: Sequence[float], q: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))
