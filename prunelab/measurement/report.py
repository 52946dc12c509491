"""All there is to know about one model, in one call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..checks import known
from ..core import PruneError, device_of
from ..data import to
from ..running import check_numbers, check_plain, cut, duplicate, first_inputs, forward, rows, undisturbed
from ..text import Lines, Tabular, percent, size
from .costs import FORMATS, count, macs, peak_memory, stored_bytes
from .evaluation import evaluate
from .timing import BATCH, Comparison, Conditions, Latency, compare, in_turns


@dataclass(frozen=True, repr=False)
class Measurement(Tabular):
    """What a model is worth and what it costs.

    accuracy, its 95 % Wilson interval, loss: over n labels; None without data
    parameters, nonzero: numbers in the model, and those that are not zero
    bytes: by storage format; macs: of one sample; peak_memory: bytes of activations in a forward of `batch`
    latency: by device, of a forward of `batch`
    """

    accuracy: float | None
    interval: tuple[float, float] | None
    loss: float | None
    n: int
    parameters: int
    nonzero: int
    bytes: dict[str, int]
    macs: int
    latency: dict[str, Latency]
    peak_memory: int
    batch: int

    @property
    def sparsity(self) -> float:
        """The share of all parameters that are zero."""
        return 1 - self.nonzero / self.parameters if self.parameters else 0.0

    def _lines(self) -> Lines:
        lines = [
            ["parameters", f"{self.parameters:,}, {percent(self.sparsity)} of them zero"],
            *([f"bytes, {name}", size(taken)] for name, taken in self.bytes.items()),
            ["MACs a sample", f"{self.macs:,}"],
            ["peak memory", f"{size(self.peak_memory)} (batch {self.batch})"],
            *([f"latency, {name}", repr(taken)] for name, taken in self.latency.items()),
        ]
        if self.accuracy is not None and self.interval is not None:
            lines.insert(0, ["accuracy", f"{percent(self.accuracy, *self.interval)} of {self.n:,}"])
        return "Measured", None, lines


def measure(
    model: nn.Module,
    data: Any = None,
    *,
    split: str = "test",
    batch_size: int = BATCH,
    example: Any = None,
    threads: int = 1,
    devices: Iterable[str] | None = None,
    formats: Iterable[str] = tuple(FORMATS),
    rounds: int | None = None,
) -> Measurement:
    """Accuracy, stored bytes, MACs, memory and latency of a plain model, which stays as it is and where it is.

    Accuracy is over the whole split; latency and memory are those of one forward of `batch_size` samples,
    taken from `example` (inputs) or else from the data. With `data=None` and an example, all but accuracy.
    devices: "cpu" and, where there is one, "cuda"; a model that lies elsewhere is copied there to be timed.
    Compare two models' times with `measure.compare`, not across two calls. Raises PruneError, before
    measuring anything, for a model that wears masks (`bake` it first) or holds NaN, and for empty data.

    >>> found = measure(nn.Linear(300, 100), example=torch.zeros(64, 300), rounds=7)
    >>> found.parameters, found.macs, found.bytes["dense"]
    (30100, 30000, 120400)
    """
    check_plain(model)
    check_numbers(model)
    wanted, where = known("formats", formats, FORMATS), _devices(devices)
    if data is None and example is None:
        raise PruneError("nothing to run the model on: give data, or example= (inputs) to measure all but accuracy")
    conditions = {d: Conditions(threads, rounds, "wall", d) for d in where}
    with undisturbed(model), torch.no_grad():
        inputs = first_inputs(data, split, batch_size) if example is None else cut(example, batch_size)
        judged = None if data is None else evaluate(model, data, split)
        inputs = to(inputs, device_of(model))
        parameters, nonzero = count(model)
        return Measurement(
            accuracy=judged.accuracy if judged else None,
            interval=judged.interval if judged else None,
            loss=judged.loss if judged else None,
            n=judged.n if judged else 0,
            parameters=parameters,
            nonzero=nonzero,
            bytes=stored_bytes(model, wanted),
            macs=macs(model, inputs),
            latency={d: _latency(model, inputs, on) for d, on in conditions.items()},
            peak_memory=peak_memory(model, inputs),
            batch=rows(inputs),
        )


measure.compare = compare  # type: ignore[attr-defined]


def _latency(model: nn.Module, inputs: Any, on: Conditions) -> Latency:
    """Of a model that is ready to run, or of its copy on another device."""
    there = model if device_of(model).type == on.device else duplicate(model, on.device)
    return Comparison.of(in_turns({"": forward(there, inputs)}, on), rows(inputs), on).latency[""]


def _devices(wanted: Iterable[str] | None) -> tuple[str, ...]:
    there = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return there if wanted is None else known("devices", wanted, there)
