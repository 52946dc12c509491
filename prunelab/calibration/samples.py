"""A calibration set, and what is common to all that is learned from one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batches import Batch, batches, to, unlabelled
from ..core import PruneError, device_of, shape
from ..measurement.conditions import attempt, pair, rows

Loss = Callable[[Any, Tensor], Tensor]  # (the model's output, targets) -> a scalar, the mean over the batch


@dataclass(frozen=True)
class Calibration:
    """A fixed set of (inputs, targets) batches and the loss to judge the outputs by: its mean over a batch."""

    batches: tuple[Batch, ...]
    loss: Loss = F.cross_entropy

    def __post_init__(self) -> None:
        if not self.batches:
            raise PruneError("the calibration set is empty: give at least one (inputs, targets) batch")

    @property
    def example(self) -> Any:
        """The first batch's inputs."""
        return _inputs(self.batches[0])

    @classmethod
    def of(
        cls,
        data: Any,
        *,
        split: str = "train",
        samples: int = 256,
        batch_size: int = 64,
        loss: Loss = F.cross_entropy,
    ) -> Calibration:
        """The first `samples` of a split (rounded up to whole batches), in order: the same on every call."""
        if samples < 1 or batch_size < 1:
            raise PruneError(f"samples={samples} and batch_size={batch_size} must both be at least 1")
        size = min(samples, batch_size)
        return cls(tuple(islice(batches(data, split, size=size), -(-samples // size))), loss)


def needed(calib: Any, criterion: str, what: str = "data to look at") -> Calibration:
    """The calibration a criterion was given, or PruneError that says how to make one."""
    if not isinstance(calib, Calibration):
        given = "nothing" if calib is None else f"a {type(calib).__name__}"
        raise PruneError(f"{criterion} needs {what}, and was given {given}: pass calib=pl.Calibration.of(data)")
    return calib


def on_device(model: nn.Module, calib: Calibration) -> Iterator[tuple[Any, Tensor, float]]:
    """Each batch where the model lies, and its share of all samples."""
    device = _device(model)
    sizes = [rows(pair(batch)[0]) for batch in calib.batches]
    for (inputs, targets), size in zip(calib.batches, sizes, strict=True):
        yield to(inputs, device), targets.to(device), size / sum(sizes)


def inputs_on(model: nn.Module, calib: Calibration) -> Iterator[Any]:
    """The inputs of each batch where the model lies; for those who look at no labels a dict of inputs is a batch."""
    device = _device(model)
    for batch in calib.batches:
        inputs = to(_inputs(batch), device)
        rows(inputs)  # raises for an empty batch
        yield inputs


def _inputs(batch: Any) -> Any:
    split = unlabelled(batch)
    return split if isinstance(split, Mapping) else pair(split)[0]


def _device(model: nn.Module) -> torch.device:
    device = device_of(model)
    if device.type == "meta":
        raise PruneError(f"the weights of this {type(model).__name__} are on the meta device, without values: load it")
    return device


def losses(model: nn.Module, calib: Calibration) -> Iterator[tuple[Tensor, float]]:
    """Each batch's mean loss, and its share of all samples; PruneError where the loss is no finite scalar."""
    for number, (inputs, targets, share) in enumerate(on_device(model, calib), start=1):
        loss = scalar_loss(calib.loss, attempt(model, inputs), targets)
        if not torch.isfinite(loss):
            raise PruneError(
                f"the loss {_name(calib.loss)} is {loss.item()} on batch {number} of {len(calib.batches)} of the "
                "calibration: look for NaN in its inputs, in the weights and BatchNorm statistics, and in the targets"
            )
        yield loss, share


def scalar_loss(loss: Loss, outputs: Any, targets: Tensor) -> Tensor:
    """loss(outputs, targets), or PruneError if that fails or is no scalar."""
    name = _name(loss)
    try:
        value = loss(outputs, targets)
    except Exception as error:  # a loss of one's own raises what it likes
        given = shape(outputs) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise PruneError(
            f"the loss {name} fails on outputs {given} and targets {shape(targets)} {targets.dtype}: {error}. Give a "
            "loss(outputs, targets) that fits this model and data"
        ) from error
    if not isinstance(value, Tensor) or value.dim() > 0:
        given = f"a tensor of shape {shape(value)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise PruneError(
            f"the loss {name} returns {given}: it must be a scalar tensor, the mean over the batch. Take reduction="
            '"mean", or loss=lambda outputs, targets: my_loss(outputs, targets).mean()'
        )
    return value


def _name(loss: Loss) -> str:
    return getattr(loss, "__name__", type(loss).__name__)


def checked(found: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """What was found for each weight, in their order; PruneError for a weight without, or not finite."""
    for name, w in weights.items():
        if name not in found:
            lacking = [n for n in weights if n not in found]
            more = f", and {len(lacking) - 1} more," if len(lacking) > 1 else ""
            raise PruneError(
                f"{name} {shape(w)}{more} has no {what}: the forward does not use it in eval mode, or something stands "
                "between it and the loss, such as .detach(), torch.no_grad() or argmax. Give a loss that reaches it, "
                "remove the unused layer (an auxiliary head, say), or take a criterion that looks at weights only, "
                "such as magnitude"
            )
        if not torch.isfinite(found[name]).all():
            raise PruneError(
                f"{name} {shape(w)} has {what} with NaN or infinities: look for them in the calibration's inputs, for "
                "a sqrt or log at 0 in the forward and the loss, and for half precision that overflows"
            )
    return {name: found[name] for name in weights}


def wide(tensor: Tensor) -> Tensor:
    """In half precision sums and squares lose what they are about."""
    return tensor.float() if tensor.itemsize < 4 else tensor


def add(total: dict[str, Tensor], more: Mapping[str, Tensor], factor: float = 1.0) -> None:
    """Add factor * more to the total, by name."""
    for name, tensor in more.items():
        part = tensor.detach() * factor
        total[name] = total[name] + part if name in total else part
