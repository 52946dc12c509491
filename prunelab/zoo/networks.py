"""The course's two plain networks. Every layer has a name, so that a report can say which one it means."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import nn

from .data import ZooError

Network = TypeVar("Network", bound=nn.Module)


def cnn(classes: int = 10, channels: int = 1, width: int = 32, *, seed: int = 0) -> nn.Module:
    """Four 3x3 convolutions with BatchNorm, two linear layers; images (n, channels, >= 8, >= 8) -> (n, classes).

    82,282 parameters for 10 classes of grey images. The seed decides the initial weights, whatever torch's
    global generator has been through, which is left alone. Raises ZooError for a size that is no count.
    """
    counts(classes=classes, channels=channels, width=width)
    wide = 2 * width
    return seeded(
        seed,
        lambda: nn.Sequential(
            OrderedDict(
                [
                    *_convolution(1, channels, width),
                    *_convolution(2, width, width),
                    ("pool1", nn.MaxPool2d(2)),
                    *_convolution(3, width, wide),
                    *_convolution(4, wide, wide),
                    ("pool2", nn.MaxPool2d(2)),
                    ("average", nn.AdaptiveAvgPool2d(2)),  # (n, 64, 2, 2) whatever the image size
                    ("flatten", nn.Flatten()),  # (n, 256): four columns of fc1 for each filter of conv4
                    ("fc1", nn.Linear(4 * wide, wide)),
                    ("relu5", nn.ReLU()),
                    ("fc2", nn.Linear(wide, classes)),
                ]
            )
        ),
    )


def mlp(classes: int = 10, inputs: int = 256, hidden: tuple[int, ...] = (300, 100), *, seed: int = 0) -> nn.Module:
    """Linear layers with ReLU between, by default LeNet-300-100; inputs (n, ...) of `inputs` values -> (n, classes).

    108,210 parameters for 16x16 images. The seed decides the initial weights; torch's global generator is
    left alone. Raises ZooError for a size that is no count.
    """
    counts(classes=classes, inputs=inputs, **{f"hidden[{i}]": size for i, size in enumerate(hidden)})

    def build() -> nn.Module:
        layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
        sizes = (inputs, *hidden)
        for i, (before, after) in enumerate(pairwise(sizes), start=1):
            layers += [(f"fc{i}", nn.Linear(before, after)), (f"relu{i}", nn.ReLU())]
        return nn.Sequential(OrderedDict([*layers, (f"fc{len(sizes)}", nn.Linear(sizes[-1], classes))]))

    return seeded(seed, build)


def _convolution(number: int, before: int, after: int) -> list[tuple[str, nn.Module]]:
    return [
        # No bias: BatchNorm subtracts the mean, and with it any bias, and then adds its own.
        (f"conv{number}", nn.Conv2d(before, after, 3, padding=1, bias=False)),
        (f"bn{number}", nn.BatchNorm2d(after)),
        (f"relu{number}", nn.ReLU()),
    ]


def seeded(seed: int, build: Callable[[], Network]) -> Network:
    """What `build` makes, its initial weights decided by the seed alone."""
    # On the CPU only: torch.manual_seed would also reseed every GPU, and their weights differ from the CPU's.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return build()


def counts(**sizes: Any) -> None:
    """ZooError for a size that is no count."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ZooError(f"{name}={size!r}: give a whole number, at least 1")
