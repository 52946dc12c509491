"""How anything is timed here: all candidates in turns, round after round, each for at least a block of 10 ms."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ..core import PruneError
from .conditions import check_count
from .text import plural

if TYPE_CHECKING:
    from torch.utils.benchmark import Timer

CLOCKS = ("wall", "processor", "steady")
BLOCK = 0.01  # seconds: shorter blocks drown in what else the machine does
BUDGET = 2.0  # seconds a model for all rounds together, beyond which there are fewer of them
_SHORTEST = 1e-8  # seconds: what a clock shows as nothing still took something
ROUNDS = (7, 15)  # seven is the least for which the median has an interval of 95 %

Blocks: TypeAlias = dict[str, list[float]]  # name -> seconds a call, one value a round
Task: TypeAlias = Callable[[], Any]


def interleaved(
    tasks: Mapping[str, Task],
    *,
    threads: int | Mapping[str, int] = 1,
    rounds: int | None = None,
    clock: str = "wall",
    device: str = "cpu",
    block: float = BLOCK,
) -> Blocks:
    """Seconds a call, for each task in each round: the mean over a block of at least 10 ms, or of `block` seconds.

    In every round each task is timed once, in an order that rotates. A task on a GPU has to wait for it itself.
    `threads` may differ from task to task.
    """
    on = {name: threads if isinstance(threads, int) else threads[name] for name in tasks}
    if rounds is not None:
        check_count("rounds", rounds, ROUNDS[0])
    tick = ticking(resolved(clock, max(on.values()), device))
    times: Blocks = {name: [] for name in tasks}
    timer_type = timer_class()
    timers = {
        name: timer_type("task()", timer=tick, globals={"task": task}, num_threads=on[name])
        for name, task in tasks.items()
    }
    once = {name: max(timer.timeit(1).median, _SHORTEST) for name, timer in timers.items()}
    inner = {name: math.ceil(block / t) for name, t in once.items()}
    round_takes = sum((inner[name] + 2) * t for name, t in once.items())  # timeit warms up with two
    for turn in range(rounds or _affordable(round_takes / len(tasks))):
        for name in _rotated(list(tasks), turn):
            times[name].append(timers[name].timeit(inner[name]).median)
    return times


def resolved(clock: str, threads: int, device: str) -> str:
    """The clock to read: "steady" is "processor", which a busy machine disturbs least, or "wall" where there is none.

    Processor time adds up all threads, stands still while a GPU works, and ticks every 16 ms on Windows.
    """
    check_count("threads", threads)
    if clock not in CLOCKS:
        raise PruneError(f"clock={clock!r}: give one of {', '.join(map(repr, CLOCKS))}")
    fine = time.get_clock_info("process_time").resolution < BLOCK / 1000
    readable = fine and device == "cpu" and threads == 1
    if clock == "processor" and not readable:
        raise PruneError(
            f"clock='processor' is for one thread on a CPU (and not for Windows, where it ticks too coarsely), not for "
            f"{plural(threads, 'thread')} on {device}. Give 'wall', or 'steady' for the best there is"
        )
    return ("processor" if readable else "wall") if clock == "steady" else clock


def ticking(clock: str) -> Callable[[], float]:
    """The function that reads a resolved clock, in seconds."""
    return time.process_time if clock == "processor" else time.perf_counter


def waited_for(task: Task, device: torch.device) -> Task:
    """The task itself on a CPU; on a GPU, the task and the wait until it is done."""
    if device.type != "cuda":
        return task

    def on_gpu() -> None:
        task()
        torch.cuda.synchronize(device)

    return on_gpu


def timer_class() -> type[Timer]:
    """The Timer of torch, imported without the warning that logs where a CUDA toolkit but no GPU is installed."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from torch.utils.benchmark import Timer
    finally:
        logger.setLevel(before)
    return Timer


def _affordable(seconds: float) -> int:
    """How many rounds to make if one takes so many seconds a model."""
    fewest, most = ROUNDS
    return min(most, max(fewest, int(BUDGET / seconds)))


def _rotated(names: list[str], turn: int) -> list[str]:
    start = turn % len(names)
    return names[start:] + names[:start]
