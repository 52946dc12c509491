"""How long a model takes, and which of several is faster: in turns, medians, spread, paired rounds."""

from __future__ import annotations

import copy
import math
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..checks import check_count
from ..core import PruneError, device_of, shape
from ..language import check_tokens
from ..running import attempt, check_plain, cut, first_inputs, forward, rows, undisturbed
from ..text import Lines, Tabular, plural, ranged

CLOCKS = ("wall", "processor", "steady")
BATCH = 64  # samples a forward, where only data was given
BLOCK = 0.01  # seconds: shorter blocks drown in what else the machine does
BUDGET = 2.0  # seconds a model for all rounds together, beyond which there are fewer of them
ROUNDS = (7, 15)  # seven is the least for which the median has an interval of 95 %
_SHORTEST = 1e-8  # seconds: what a clock shows as nothing still took something

Blocks: TypeAlias = dict[str, list[float]]  # name -> seconds a call, one value a round
Task: TypeAlias = Callable[[], Any]


@dataclass(frozen=True)
class Conditions:
    """Under which times are taken; each is the mean over a block of at least `block` seconds.

    clock: "wall"; "processor", the time that this process alone was computing, for one thread on a CPU (it adds up all
    threads, stands still while a GPU works, and ticks every 16 ms on Windows); or "steady", which becomes the latter
    where it can be read, and else the former. rounds: how many; None is 15, or fewer, down to 7, beyond 2 s a model.

    >>> Conditions(threads=2).clock
    'wall'
    """

    threads: int = 1
    rounds: int | None = None
    clock: str = "steady"
    device: str = "cpu"
    block: float = BLOCK

    def __post_init__(self) -> None:
        check_count("threads", self.threads)
        if self.rounds is not None:
            check_count("rounds", self.rounds, ROUNDS[0])
        if self.clock not in CLOCKS:
            raise PruneError(f"clock={self.clock!r}: give one of {', '.join(map(repr, CLOCKS))}")
        fine = time.get_clock_info("process_time").resolution < BLOCK / 1000
        readable = fine and self.device == "cpu" and self.threads == 1
        if self.clock == "processor" and not readable:
            raise PruneError(
                "clock='processor' is for one thread on a CPU (and not for Windows, where it ticks too coarsely), not "
                f"for {plural(self.threads, 'thread')} on {self.device}. Give 'wall', or 'steady' for the best there is"
            )
        if self.clock == "steady":
            object.__setattr__(self, "clock", "processor" if readable else "wall")

    @property
    def tick(self) -> Callable[[], float]:
        """The function that reads the clock, in seconds."""
        return time.process_time if self.clock == "processor" else time.perf_counter

    def waited_for(self, task: Task) -> Task:
        """The task itself on a CPU; on an accelerator, the task and the wait until it is done."""
        if torch.device(self.device).type in ("cpu", "meta"):
            return task

        def until_done() -> None:
            task()
            torch.accelerator.synchronize(torch.device(self.device))

        return until_done


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
        on_cpu = [plural(self.threads, "thread")] if self.device == "cpu" else []
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


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """Latency of each model and its speed-up over the first, by name."""

    latency: dict[str, Latency]
    speedup: dict[str, Speedup]
    title: str = "Interleaved"

    @classmethod
    def of(cls, times: Blocks, batch: int, on: Conditions, title: str = "Interleaved") -> Comparison:
        """What the times of paired rounds come to; the speed-ups are from the ratios within each round."""
        first = next(iter(times.values()))
        latency, speedup = {}, {}
        for name, own in times.items():
            middle, low, high = (_quantile(own, q) for q in (0.5, 0.1, 0.9))
            latency[name] = Latency(middle, low, high, batch, on.threads, on.device, len(own), on.clock)
            speedup[name] = Speedup(*median_interval([a / b for a, b in zip(first, own, strict=True)]))
        return cls(latency, speedup, title)

    @property
    def baseline(self) -> str:
        """The model the others are compared with: the first one given."""
        return next(iter(self.latency))

    def _lines(self) -> Lines:
        title = f"{self.title}, {self.latency[self.baseline].conditions}: p50 [p10, p90]; speed-up [95 %]"
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

    One value a round: the mean over a block of at least 10 ms, after two forwards to warm up. `batch_size` cuts the
    example (1 and a large one tell different stories). `threads`, `rounds` and `clock` as in `Conditions`. Raises
    PruneError for a model with masks on.

    >>> taken = latency(nn.Linear(8, 4), torch.zeros(16, 8), rounds=7)
    >>> taken.batch, taken.conditions
    (16, 'batch 16, 1 thread, cpu')
    """
    check_plain(model)
    on = Conditions(threads, rounds, clock, str(device_of(model)))
    return forwards({"": model}, cut(example, batch_size), on).latency[""]


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
    `threads`, `rounds` and `clock` as in `Conditions`.
    Raises PruneError if a model wears masks, they lie on different devices, or rounds is below 7.

    >>> found = compare({"dense": nn.Linear(8, 64), "small": nn.Linear(8, 4)}, torch.zeros(16, 8), rounds=7)
    >>> found.baseline, found.speedup["dense"]
    ('dense', 1.00x [1.00, 1.00])
    """
    check_candidates(models)
    if isinstance(example_or_data, (Tensor, Mapping)):
        inputs = cut(example_or_data, batch_size)
    else:
        inputs = first_inputs(example_or_data, "test", BATCH if batch_size is None else batch_size)
    return forwards(models, inputs, Conditions(threads, rounds, clock, str(device_of(next(iter(models.values()))))))


def check_candidates(models: Mapping[str, nn.Module]) -> None:
    """PruneError unless these are plain models by name, all on one device."""
    if not isinstance(models, Mapping) or not models:
        raise PruneError('models must be a dict of at least one, such as {"dense": model, "pruned": small}')
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise PruneError(f"models[{name!r}] is a {type(model).__name__}: give an nn.Module")
    where = {name: device_of(model) for name, model in models.items()}
    if len(set(where.values())) > 1:
        raise PruneError(f"models lie on different devices, {where}: move all to one with model.to(device)")
    for name, model in models.items():
        check_plain(model, f"models[{name!r}]")


def forwards(models: Mapping[str, nn.Module], inputs: Any, on: Conditions, title: str = "Interleaved") -> Comparison:
    """Forward passes of several models in turns, masks or no masks."""
    # Not inference_mode: what a model caches in its first forward must stay usable in training.
    with undisturbed(*models.values()), torch.no_grad():
        tasks = {name: forward(model, inputs) for name, model in models.items()}
        return Comparison.of(in_turns(tasks, on), rows(inputs), on, title)


def in_turns(tasks: Mapping[str, Task], on: Conditions) -> Blocks:
    """Seconds a call, for each task in each round; in every round each is timed once, in an order that rotates."""
    waited = {name: on.waited_for(task) for name, task in tasks.items()}
    once = {name: max(_seconds(task, on, 1), _SHORTEST) for name, task in waited.items()}
    inner = {name: math.ceil(on.block / t) for name, t in once.items()}
    round_takes = sum((inner[name] + 2) * t for name, t in once.items())  # two to warm up
    times: Blocks = {name: [] for name in tasks}
    for turn in range(on.rounds or _affordable(round_takes / len(tasks))):
        for name in _rotated(list(tasks), turn):
            times[name].append(_seconds(waited[name], on, inner[name]))
    return times


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, low, high): order statistics that hold the true median with at least 95 % certainty.

    Each value lies below the median with probability 1/2, so low and high are the k-th from either end with
    the largest k for which 2 * P(Binomial(n, 1/2) < k) <= 0.05. Raises PruneError below the six values it takes.

    >>> median_interval([1, 2, 3, 4, 5, 6, 7, 8, 9])
    (5.0, 2, 8)
    """
    ordered, n = sorted(values), len(values)
    below, k = 2.0**-n, 0
    while 2 * below <= 0.05:
        k += 1
        below += math.comb(n, k) / 2**n
    if k == 0:
        raise PruneError(f"{n} values: six are the least from which a median's 95 % interval can be told")
    return _quantile(ordered, 0.5), ordered[k - 1], ordered[n - k]


def _seconds(task: Task, on: Conditions, calls: int) -> float:
    """What a call takes: the mean of so many, after two to warm up."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(on.threads)
        return timeit.timeit(task, lambda: (task(), task()), on.tick, calls) / calls
    finally:
        torch.set_num_threads(before)


def _affordable(seconds: float) -> int:
    """How many rounds to make if one takes so many seconds a model."""
    fewest, most = ROUNDS
    return min(most, max(fewest, int(BUDGET / seconds)))


def _rotated(names: list[str], turn: int) -> list[str]:
    start = turn % len(names)
    return names[start:] + names[:start]


def _quantile(values: Sequence[float], q: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))


@dataclass(frozen=True, repr=False)
class Rates(Tabular):
    """Tokens a second of several models, timed in turns: `prefill` reads a prompt of `length`, `decode` adds one token.

    Each is a `Comparison`, whose latencies are seconds a prompt and seconds a token.
    """

    prefill: Comparison
    decode: Comparison
    length: int

    def prefill_rate(self, name: str) -> float:
        """Tokens of a prompt read in a second."""
        return self.length / self.prefill.latency[name].p50

    def decode_rate(self, name: str) -> float:
        """Tokens written in a second, after a prompt of `length`."""
        return 1 / self.decode.latency[name].p50

    def _lines(self) -> Lines:
        first = self.decode.baseline
        title = f"Tokens a second, prompt of {self.length}, {self.decode.latency[first].conditions}"
        rows = []
        for name in self.prefill.latency:
            reading = [f"{self.prefill_rate(name):.1f}", str(self.prefill.speedup[name])]
            rows.append([name, *reading, f"{self.decode_rate(name):.1f}", str(self.decode.speedup[name])])
        return title, ["model", "prefill", f"against {first}", "decode", f"against {first}"], rows


def rates(
    models: Mapping[str, nn.Module], ids: Tensor, *, threads: int = 1, rounds: int | None = None, clock: str = "wall"
) -> Rates:
    """Time plain models on one prompt (1, n) of token ids: reading all of it, and writing one token after it.

    Writing is timed with the prompt in the cache, which is cut back after each token. `threads`, `rounds` and `clock`
    as in `compare`. Raises PruneError for masks (`bake` first), and a prompt that is no (1, n) of known tokens.
    """
    if ids.dim() != 2 or len(ids) != 1 or ids.shape[1] < 2:
        raise PruneError(f"the prompt's ids are {shape(ids)}: give (1, n), n at least 2")
    check_candidates(models)
    on = Conditions(threads, rounds, clock, str(device_of(next(iter(models.values())))))
    tasks: tuple[dict[str, Task], dict[str, Task]] = ({}, {})
    with undisturbed(*models.values()), torch.no_grad():
        for name, model in models.items():
            check_tokens(model, ids)
            tasks[0][name], tasks[1][name] = _tasks(model, ids, name)
        prefill, decode = (Comparison.of(in_turns(own, on), 1, on) for own in tasks)
    return Rates(prefill, decode, ids.shape[1])


def _tasks(model: Any, ids: Tensor, name: str) -> tuple[Task, Task]:
    """Reading the prompt, and writing one token after it."""
    prompt = ids.to(device_of(model))
    try:
        first = model(input_ids=prompt, use_cache=True)
    except TypeError as error:  # no such arguments: `attempt` would drop all of the output but its logits
        raise PruneError(
            f"{name}, a {type(model).__name__}, takes no input_ids and use_cache ({error}): give a causal language "
            "model, such as AutoModelForCausalLM loads"
        ) from error
    # Transformers renames `past_key_values` to `cache`; the output says which one it is.
    argument = "cache" if getattr(first, "cache", None) is not None else "past_key_values"
    cache = copy.deepcopy(getattr(first, argument))
    following = first.logits[:, -1:].argmax(-1)

    def read() -> None:
        attempt(model, {"input_ids": prompt, "use_cache": True})

    def write() -> None:
        model(input_ids=following, **{argument: cache}, use_cache=True)
        cache.crop(-1)

    return read, write
