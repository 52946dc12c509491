"""Five ways to fool oneself with a clock, each as an experiment to run: what was timed wrongly, beside what it does."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..batches import call, to
from ..core import Masks, device_of
from ..masking import apply, bake
from .conditions import check_count, check_plain, cut, rows, undisturbed
from .rounds import Blocks, Task, interleaved, resolved, ticking, waited_for
from .text import plural, shown_as_table
from .timing import Latency, Speedup, forward, speedups, summary

ROUNDS = 9


@shown_as_table
@dataclass(frozen=True, repr=False)
class Experiment:
    """The times of several ways to run something, and how many times faster than the first each is."""

    title: str
    latency: dict[str, Latency]
    speedup: dict[str, Speedup]

    def _lines(self) -> tuple[str, list[str], list[list[str]]]:
        first = next(iter(self.latency))
        lines = [[name, str(taken), str(self.speedup[name])] for name, taken in self.latency.items()]
        return f"{self.title}: p50 [p10, p90]; speed-up [95 %]", ["way", "time", f"against {first}"], lines


def threads(model: nn.Module, example: Any, counts: Sequence[int] = (1, 2), *, rounds: int = ROUNDS) -> Experiment:
    """The same forward on one thread and on more, by the wall clock: small layers cost more to share than to do.

    With other programs about, the second thread is not yours alone, and its times scatter.
    """
    check_plain(model)
    with undisturbed(model), torch.no_grad():
        on = {plural(n, "thread"): n for n in counts}
        times = interleaved(dict.fromkeys(on, forward(model, example)), threads=on, rounds=rounds)
    taken = {name: summary(t, rows(example), on[name], device_of(model).type, "wall") for name, t in times.items()}
    return Experiment(f"Threads, batch {rows(example)}", taken, speedups(times))


def batch_size(
    model: nn.Module, example: Any, sizes: Sequence[int] = (1, 8, 64), *, rounds: int = ROUNDS, clock: str = "steady"
) -> Experiment:
    """Time *per sample* at several batch sizes: at batch 1 the launches weigh as much as the work."""
    check_plain(model)
    clock, on = resolved(clock, 1, device_of(model).type), device_of(model).type
    with undisturbed(model), torch.no_grad():
        tasks = {f"batch {n}": forward(model, cut(example, n)) for n in sizes}
        times = interleaved(tasks, rounds=rounds, clock=clock, device=on)
    each = {f"batch {n}": [t / n for t in times[f"batch {n}"]] for n in sizes}
    taken = {f"batch {n}": summary(each[f"batch {n}"], n, 1, on, clock) for n in sizes}
    return Experiment("Time for one sample", taken, speedups(each))


def odd_channels(
    channels: Sequence[int] = (32, 31, 33, 40), *, image: int = 16, batch: int = 64, rounds: int = ROUNDS,
    clock: str = "steady",
) -> Experiment:  # fmt: skip
    """A 3x3 convolution c -> c, for a few c: processors work in vectors of 8 or 16, and 33 takes as many as 40."""
    for c in channels:
        check_count("channels", c)
    clock = resolved(clock, 1, "cpu")
    with torch.random.fork_rng(devices=()), torch.no_grad():
        made = {c: nn.Conv2d(c, c, 3, padding=1, bias=False).eval() for c in channels}
        tasks = {f"{c} channels": forward(m, torch.randn(batch, c, image, image)) for c, m in made.items()}
        times = interleaved(tasks, rounds=rounds, clock=clock)
    taken = {name: summary(t, batch, 1, "cpu", clock) for name, t in times.items()}
    return Experiment(f"A convolution of {image} x {image} pictures, batch {batch}", taken, speedups(times))


def no_warm_up(model: nn.Module, example: Any, *, calls: int = 10, rounds: int = ROUNDS) -> Experiment:
    """The very first forwards of fresh copies against later ones: the first one also sets up memory and kernels.

    Each copy sees a batch that is one sample smaller than the last one did, because libraries remember shapes.
    """
    check_plain(model)
    check_count("calls", calls, 2)
    on = device_of(model)
    clock = resolved("steady", 1, on.type)
    tick = ticking(clock)
    times: Blocks = {"first forward": [], "later forwards": []}
    with _one_thread(), torch.no_grad():
        for turn in range(rounds):
            fresh, inputs = copy.deepcopy(model).eval(), to(cut(example, max(1, rows(example) - turn)), on)
            task = waited_for(partial(call, fresh, inputs), on)
            each = [_once(task, tick) for _ in range(calls)]
            times["first forward"].append(each[0])
            times["later forwards"].append(statistics.median(each[1:]))
    taken = {name: summary(t, rows(example), 1, on.type, clock) for name, t in times.items()}
    return Experiment("Without a warm-up", taken, speedups(times))


def unbaked(model: nn.Module, masks: Masks, example: Any, *, rounds: int = ROUNDS, clock: str = "steady") -> Experiment:
    """The time of a model as trained, with its masks on, and with the zeros baked in. The model stays as it is.

    `measure` refuses the one in the middle: each of its forwards multiplies every weight by its mask anew.
    """
    check_plain(model)
    masked = apply(copy.deepcopy(model), masks)
    baked = bake(copy.deepcopy(masked))
    candidates: Mapping[str, nn.Module] = {"dense": model, "masks on": masked, "baked": baked}
    on = device_of(model).type
    clock = resolved(clock, 1, on)
    with ExitStack() as stack:
        for m in candidates.values():
            stack.enter_context(undisturbed(m))
        stack.enter_context(torch.no_grad())
        times = interleaved(
            {k: forward(m, example) for k, m in candidates.items()}, rounds=rounds, clock=clock, device=on
        )
    taken = {name: summary(t, rows(example), 1, on, clock) for name, t in times.items()}
    return Experiment(f"Masks, batch {rows(example)}", taken, speedups(times))


def _once(task: Task, tick: Callable[[], float]) -> float:
    began = tick()
    task()
    return tick() - began


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
