"""How far each layer of a model is from what the machine could do at best: predicted against measured time."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..batches import call, tensors, to
from ..core import PruneError, device_of
from .conditions import attempt, check_plain, cut, rows, undisturbed
from .machines import ROUNDS, Machine, machine
from .operations import transparent_kernels
from .rounds import Task, interleaved, resolved, waited_for
from .text import seconds, shown_as_table, size
from .timing import Latency, summary

_WHOLE = "the whole model"


@dataclass(frozen=True)
class Layer:
    """One layer's forward pass: its work, the time the machine should need at best, and the time it took."""

    name: str
    kind: str
    macs: int
    moved: int  # bytes of weights and buffers, inputs and outputs
    predicted: float
    measured: Latency
    bound: str  # what the prediction is made of most: "compute", "memory" or "launch"

    @property
    def intensity(self) -> float:
        """MACs a byte moved."""
        return self.macs / self.moved if self.moved else 0.0


@shown_as_table
@dataclass(frozen=True, repr=False)
class Roofline:
    """Every layer of a model under the machine's roof; `whole` is a forward pass of the whole model."""

    machine: Machine
    layers: tuple[Layer, ...]
    whole: Latency

    @property
    def predicted(self) -> float:
        """Seconds for all layers, at best."""
        return sum(layer.predicted for layer in self.layers)

    @property
    def measured(self) -> float:
        """Seconds that the layers took, each timed alone."""
        return sum(layer.measured.p50 for layer in self.layers)

    def share(self, kind: str) -> float:
        """Which part of the layers' time the layers of one kind took, such as "MaxPool2d"."""
        return sum(layer.measured.p50 for layer in self.layers if layer.kind == kind) / self.measured

    def _lines(self) -> tuple[str, list[str], list[list[str]]]:
        lines = [
            [x.name, x.kind, f"{x.macs:,}", size(x.moved), f"{x.intensity:.1f}", x.bound, *_times(x)]
            for x in self.layers
        ]
        sums = [sum(x.macs for x in self.layers), sum(x.moved for x in self.layers)]
        total = [
            "all",
            "",
            f"{sums[0]:,}",
            size(sums[1]),
            "",
            "",
            seconds(self.predicted)[0],
            seconds(self.measured)[0],
        ]
        head = ["layer", "kind", "MACs", "moved", "MACs/byte", "bound by", "predicted", "measured"]
        return f"Predicted and measured, {self.whole.conditions}; the whole model: {self.whole}", head, [*lines, total]


def roofline(
    model: nn.Module,
    example: Any,
    on: Machine | None = None,
    *,
    batch_size: int | None = None,
    rounds: int = ROUNDS,
    clock: str = "steady",
) -> Roofline:
    """Time every layer of a model alone, on the inputs it gets in a forward pass, against what the machine could do.

    A layer is a module without children; what a forward does between them is in `whole` alone. One that is called
    twice appears twice. `on` is from `machine()`, or measured first (on one thread). Raises PruneError for a model
    with masks on, without layers, or on another device than the machine was measured on.
    """
    check_plain(model)
    device = device_of(model)
    if on is None:
        on = machine(device=device.type, rounds=rounds, clock=clock)
    if on.device != device.type:
        raise PruneError(f"the model lies on {device.type}, and the machine was measured on {on.device}: use that")
    clock = resolved(clock, on.threads, device.type)
    inputs = to(cut(example, batch_size), device)
    with undisturbed(model), torch.no_grad():
        calls = layer_calls(model, inputs)
        if not calls:
            raise PruneError(f"{type(model).__name__} has no layers: no module without children was called")
        tasks: dict[str, Task] = {name: waited_for(c.run, device) for name, c in calls.items()}
        tasks[_WHOLE] = waited_for(lambda: call(model, inputs), device)
        work = {name: c.work() for name, c in calls.items()}
        times = interleaved(tasks, threads=on.threads, rounds=rounds, clock=clock, device=device.type)
    taken = {name: summary(values, rows(inputs), on.threads, device.type, clock) for name, values in times.items()}
    layers = tuple(_layer(name, c.kind, *work[name], on, taken[name]) for name, c in calls.items())
    return Roofline(on, layers, taken[_WHOLE])


@dataclass(frozen=True)
class Call:
    """A layer, and the arguments it was called with."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def kind(self) -> str:
        return type(self.layer).__name__

    def run(self) -> Any:
        return self.layer(*self.args, **self.kwargs)

    def work(self) -> tuple[int, int]:
        """MACs, and bytes of the weights, the inputs and the outputs."""
        counter = FlopCounterMode(display=False)
        with transparent_kernels(), counter:
            output = self.run()
        own = (*self.layer.parameters(), *self.layer.buffers())
        return counter.get_total_flops() // 2, sum(t.nbytes for t in (*own, *tensors((self.args, self.kwargs, output))))


def layer_calls(model: nn.Module, inputs: Any) -> dict[str, Call]:
    """Every call of a module without children in one forward pass, in order; torch's attention counts as one."""
    found: dict[str, Call] = {}
    attention = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    inside = {child for m in attention for child in m.modules() if child is not m}
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if module not in inside and (module in attention or not any(module.children())):
                hook = partial(_record, found, path or type(module).__name__)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        attempt(model, inputs)
    return found


def _record(found: dict[str, Call], path: str, layer: nn.Module, args: Any, kwargs: Any) -> None:
    again = sum(name.partition(" ")[0] == path for name in found)
    found[f"{path} ({again + 1})" if again else path] = Call(layer, args, kwargs)


def _layer(name: str, kind: str, macs: int, moved: int, on: Machine, taken: Latency) -> Layer:
    parts = {"compute": macs / on.peak, "memory": moved / on.bandwidth(moved), "launch": on.floor(kind)}
    return Layer(name, kind, macs, moved, on.predict(macs, moved, kind), taken, max(parts, key=lambda k: parts[k]))


def _times(layer: Layer) -> list[str]:
    return [seconds(layer.predicted)[0], str(layer.measured)]
