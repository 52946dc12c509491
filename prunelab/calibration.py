"""The few batches and the loss that a criterion may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from .batches import Batch, batches
from .core import PruneError

Loss = Callable[[Any, Tensor], Tensor]  # (the model's output, targets) -> a scalar


@dataclass(frozen=True)
class Calibration:
    """A fixed set of (inputs, targets) batches and the loss to judge the outputs by."""

    batches: tuple[Batch, ...]
    loss: Loss = F.cross_entropy

    def __post_init__(self) -> None:
        if not self.batches:
            raise PruneError("the calibration set is empty: give at least one (inputs, targets) batch")

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
