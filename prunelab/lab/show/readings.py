"""What a network reads of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...core import mode
from ...data import batches
from ...running import call


@dataclass(frozen=True)
class Reading:
    """The class read for each picture, and the share that is right."""

    labels: list[int]
    accuracy: float


def read(model: nn.Module, pictures: Any) -> Reading:
    """What the model reads of some pictures as it is."""
    with mode(model, training=False), torch.no_grad():
        found = [(call(model, x).argmax(1), y) for x, y in batches(pictures)]
    labels, truth = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Reading(labels.tolist(), float((labels == truth).double().mean()))
