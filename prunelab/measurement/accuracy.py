"""How often a classifier is right, and how sure one can be of that from so many samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batches import batches, to
from ..core import PruneError, device_of, shape
from .conditions import attempt, check_count, pair, undisturbed


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, share of labels predicted right, number of labels, number right."""

    loss: float
    accuracy: float
    n: int
    correct: int

    @property
    def interval(self) -> tuple[float, float]:
        """The accuracy's 95 % Wilson interval."""
        return wilson(self.correct, self.n)


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval of shares p that `correct` of `n` does not contradict: |p - correct/n| <= z sqrt(p (1-p) / n).

    Unlike correct/n +- z * (standard error), it stays within [0, 1] and keeps a width when all are right.
    z = 1.96 covers 95 %. Raises PruneError unless 0 <= correct <= n and n > 0.
    """
    if not 0 <= correct <= n or n == 0:
        raise PruneError(f"correct={correct} of n={n}: give 0 <= correct <= n, with n at least 1")
    share = correct / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def evaluate(
    model: nn.Module,
    data: Any,
    split: str = "valid",
    *,
    batch_size: int = 256,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Evaluation:
    """Loss and accuracy over a whole split: accuracy = (labels for which argmax of the outputs is right) / labels.

    Outputs (n, classes, ...) go with integer labels (n, ...); `loss` gives the mean over a batch. The model
    may wear masks. It runs in eval mode where it lies; its modes and the random state are as before.
    An output with a NaN counts as wrong. Raises PruneError for empty data and labels that do not fit.
    """
    check_count("batch_size", batch_size)
    device = device_of(model)
    total, correct, n = 0.0, 0, 0
    # Not inference_mode: what a model caches in its first forward must stay usable in training.
    with undisturbed(model), torch.no_grad():
        for batch in batches(data, split, size=batch_size):
            inputs, targets = to(pair(batch), device)
            outputs = attempt(model, inputs)
            _check_fit(model, outputs, targets)
            total += mean_loss(loss, outputs, targets) * targets.numel()
            correct += _correct(outputs, targets)
            n += targets.numel()
    if n == 0:
        raise PruneError(f"the {split} data is empty: there is nothing to run the model on")
    return Evaluation(total / n, correct / n, n, correct)


def mean_loss(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> float:
    """The loss of a batch as a number; PruneError if it is none, such as a loss for each sample."""
    value = loss(outputs, targets)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise PruneError(f"the loss gives {shape(value)} values for a batch: give their mean, a single number")
    return float(value)


def _correct(outputs: Tensor, targets: Tensor) -> int:
    right = outputs.argmax(dim=1) == targets
    return int((right & ~outputs.isnan().any(dim=1)).sum())  # argmax takes a NaN for the largest


def _check_fit(model: nn.Module, outputs: Any, targets: Tensor) -> None:
    name = type(model).__name__
    if not isinstance(outputs, Tensor):
        raise PruneError(f"{name} returns a {type(outputs).__name__}: accuracy needs a tensor (n, classes)")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise PruneError(
            f"the labels {shape(targets)} are {targets.dtype}: accuracy needs whole numbers, class 0, 1, ..."
        )
    if outputs.dim() < 2 or (outputs.shape[:1] + outputs.shape[2:]) != targets.shape:
        raise PruneError(
            f"{name} gives outputs of shape {shape(outputs)} for labels of shape {shape(targets)}: "
            "they must be (n, classes, ...) for (n, ...)"
        )
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < outputs.shape[1]:
        raise PruneError(
            f"labels run from {int(targets.min())} to {int(targets.max())}, but {name} tells only classes 0 to "
            f"{outputs.shape[1] - 1} apart: its outputs are {shape(outputs)}, the labels {shape(targets)}"
        )
