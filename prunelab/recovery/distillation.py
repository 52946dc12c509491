"""Learn from the network that was not pruned: its whole distribution says more than a label."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batches import batches, call, to
from ..calibration import Loss
from ..core import PruneError, device_of, mode, shape
from ..measurement.conditions import attempt, undisturbed
from .history import History
from .training import Objective, finetune


@dataclass(frozen=True)
class Distillation:
    """alpha T^2 KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) loss(student, labels).

    Outputs (n, classes, ...); the mean over all but the classes. T^2 keeps the gradient's size as T grows. Hinton et
    al. 2015, arXiv 1503.02531, section 2. alpha is the teacher's share, from 0 to 1.
    """

    teacher: nn.Module
    temperature: float = 4.0
    alpha: float = 0.7
    loss: Loss = F.cross_entropy

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise PruneError(f"temperature={self.temperature!r}: give a positive number, such as 4")
        if not 0 <= self.alpha <= 1:
            raise PruneError(f"alpha={self.alpha!r}: it is the teacher's share of the loss, from 0 to 1")

    def __call__(self, inputs: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad(), mode(self.teacher, training=False):
            said = call(self.teacher, inputs)
        soft, wanted = ((x / self.temperature).log_softmax(1) for x in (outputs, said))
        apart = F.kl_div(soft, wanted, reduction="none", log_target=True).sum(1).mean()
        return self.alpha * self.temperature**2 * apart + (1 - self.alpha) * self.loss(outputs, targets)


def distil(
    model: nn.Module,
    teacher: nn.Module,
    data: Any,
    *,
    temperature: float = 4.0,
    alpha: float = 0.7,
    loss: Loss = F.cross_entropy,
    train: Callable[..., History] = finetune,
    **options: Any,
) -> History:
    """Retrain a pruned model on what its teacher, the dense one, says of each input: `finetune` by `Distillation`.

    The teacher runs in eval mode and is left as it was. `train` is another way to retrain, such as `rewind_rates`;
    `options` are its own. Raises PruneError, before anything is changed, for a teacher of another output shape.
    """
    objective = Distillation(teacher, temperature, alpha, loss)
    _check_outputs(model, teacher, data, options.get("batch_size", 64))
    return train(model, data, loss=Objective(objective, loss), **options)


def _check_outputs(model: nn.Module, teacher: nn.Module, data: Any, size: int) -> None:
    if teacher is model:
        raise PruneError("the teacher is the model itself: give the dense one, a copy.deepcopy made before pruning")
    if device_of(teacher) != device_of(model):
        raise PruneError(
            f"the teacher is on {device_of(teacher)}, the model on {device_of(model)}: move one with .to(...)"
        )
    inputs, _ = to(next(batches(data, size=size)), device_of(model))
    with undisturbed(model), undisturbed(teacher), torch.no_grad():
        own, other = attempt(model, inputs), attempt(teacher, inputs)
    if own.shape != other.shape:
        raise PruneError(
            f"the teacher {type(teacher).__name__} gives outputs {shape(other)}, the model {type(model).__name__} "
            f"{shape(own)}: they must tell the same classes apart, in the same order"
        )
