"""The course's networks. Every layer has a name, so that a report can say which one it means."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import ZooError


def cnn(classes: int = 10, channels: int = 1, width: int = 32, *, seed: int = 0) -> nn.Module:
    """Four 3x3 convolutions with BatchNorm, two linear layers; images (n, channels, >= 8, >= 8) -> (n, classes).

    82,282 parameters for 10 classes of grey images. The seed decides the initial weights, whatever torch's
    global generator has been through, which is left alone. Raises ZooError for a size that is no count.

    >>> sum(p.numel() for p in cnn().parameters()), tuple(cnn()(torch.zeros(2, 1, 16, 16)).shape)
    (82282, (2, 10))
    """
    counts(classes=classes, channels=channels, width=width)
    wide = 2 * width
    with seeded(seed):
        return _named(
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
        )


def mlp(classes: int = 10, inputs: int = 256, hidden: tuple[int, ...] = (300, 100), *, seed: int = 0) -> nn.Module:
    """Linear layers with ReLU between, by default LeNet-300-100; inputs (n, ...) of `inputs` values -> (n, classes).

    108,210 parameters for 16x16 images. The seed decides the initial weights; torch's global generator is
    left alone. Raises ZooError for a size that is no count.

    >>> sum(p.numel() for p in mlp().parameters()), tuple(mlp()(torch.zeros(2, 1, 16, 16)).shape)
    (108210, (2, 10))
    """
    counts(classes=classes, inputs=inputs, **{f"hidden[{i}]": size for i, size in enumerate(hidden)})
    sizes = (inputs, *hidden)
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    with seeded(seed):
        for i, (before, after) in enumerate(pairwise(sizes), start=1):
            layers += [(f"fc{i}", nn.Linear(before, after)), (f"relu{i}", nn.ReLU())]
        return _named(*layers, (f"fc{len(sizes)}", nn.Linear(sizes[-1], classes)))


def _named(*layers: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _convolution(number: int, before: int, after: int) -> list[tuple[str, nn.Module]]:
    return [
        # No bias: BatchNorm subtracts the mean, and with it any bias, and then adds its own.
        (f"conv{number}", nn.Conv2d(before, after, 3, padding=1, bias=False)),
        (f"bn{number}", nn.BatchNorm2d(after)),
        (f"relu{number}", nn.ReLU()),
    ]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """For the length of a block the seed alone decides what is drawn."""
    # On the CPU only: torch.manual_seed would also reseed every GPU, and their weights differ from the CPU's.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def counts(**sizes: Any) -> None:
    """ZooError for a size that is no count."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ZooError(f"{name}={size!r}: give a whole number, at least 1")


class Residual(nn.Module):
    """relu(x + f(x)), f two 3x3 convolutions with BatchNorm; where the size changes, x passes a 1x1 convolution."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        same = before == after and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) -> (n, after, h / stride, w / stride)."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.skip(x) + self.bn2(self.conv2(inner)))


class ResidualNetwork(nn.Module):
    """A stem, residual blocks that halve the picture from the second on, an average, a linear layer."""

    def __init__(self, classes: int, channels: int, widths: tuple[int, ...]):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0])
        sizes = zip((widths[0], *widths), widths, strict=False)
        self.blocks = nn.ModuleList(Residual(a, b, stride=1 + (i > 0)) for i, (a, b) in enumerate(sizes))
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, classes)."""
        x = F.relu(self.norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def resnet(
    classes: int = 10, channels: int = 1, widths: tuple[int, ...] = (32, 48, 64), *, seed: int = 0
) -> ResidualNetwork:
    """A small residual network, a block for each of `widths`; images (n, channels, h, w) -> (n, classes).

    The seed decides the initial weights; torch's global generator is left alone. Raises ZooError for a size that is
    no count. He et al. 2016, arXiv 1512.03385.

    >>> tuple(resnet(channels=3)(torch.zeros(2, 3, 32, 32)).shape)
    (2, 10)
    """
    counts(classes=classes, channels=channels, **{f"widths[{i}]": size for i, size in enumerate(widths)})
    with seeded(seed):
        return ResidualNetwork(classes, channels, tuple(widths))


class Attention(nn.Module):
    """Multi-head self-attention: (n, tokens, width) -> (n, tokens, width).

    Head h owns rows h*head_dim to (h+1)*head_dim of q_proj, k_proj and v_proj, and the same columns of o_proj. How many
    heads there are is read from the projections, so that a layer may have lost some.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.head_dim = width // heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (n, heads, tokens, head_dim)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))  # (n, tokens, heads*head_dim) -> (n, tokens, width)

    def maps(self, x: Tensor) -> Tensor:
        """Where each head looks, (n, heads, tokens, tokens): softmax(q k' / sqrt(head_dim)), rows that sum to 1."""
        q, k = self._heads(self.q_proj(x)), self._heads(self.k_proj(x))
        return (q @ k.transpose(-2, -1) / self.head_dim**0.5).softmax(-1)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (n, heads, tokens, head_dim)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): (n, tokens, width) -> the same."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches, a class token, blocks, and a linear layer on what the class token has become."""

    def __init__(
        self, classes: int, channels: int, pixels: int, patch: int, width: int, depth: int, heads: int, hidden: int
    ):
        super().__init__()
        tokens = (pixels // patch) ** 2 + 1
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self._tokens(images)
        for block in self.blocks:
            x = block(x)
        return self.fc(self.norm(x[:, 0]))  # (n, classes)

    def attention_maps(self, images: Tensor) -> list[Tensor]:
        """What each head of each block looks at: a list of (n, heads, tokens, tokens), token 0 the class token.

        maps[b][i, h, 0, 1:] says how head h of block b spreads the class token's attention over the patches of image
        i, row by row.
        """
        x, maps = self._tokens(images), []
        for block in cast(Iterable[Block], self.blocks):
            maps.append(block.attention.maps(block.norm1(x)))
            x = block(x)
        return maps

    def _tokens(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)  # (n, patches, width)
        return torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.positions  # (n, 1 + patches, width)


def vit(
    classes: int = 10,
    channels: int = 1,
    pixels: int = 16,
    patch: int = 4,
    width: int = 48,
    depth: int = 4,
    heads: int = 8,
    hidden: int = 96,
    *,
    seed: int = 0,
) -> VisionTransformer:
    """A small Vision Transformer, square images (n, channels, pixels, pixels) -> (n, classes).

    `depth` blocks, each of `heads` heads and an MLP of `hidden` neurons; the image is cut in squares of `patch` pixels.
    The seed decides the initial weights; torch's global generator is left alone. Raises ZooError for a size that is
    no count, and for a patch or a number of heads that does not divide. Dosovitskiy et al. 2021, arXiv 2010.11929.

    >>> tuple(vit(depth=2)(torch.zeros(2, 1, 16, 16)).shape)
    (2, 10)
    """
    sizes = {"classes": classes, "channels": channels, "pixels": pixels, "patch": patch, "width": width}
    counts(**sizes, depth=depth, heads=heads, hidden=hidden)
    for what, whole, part, parts in (("pixels", pixels, "patch", patch), ("width", width, "heads", heads)):
        if whole % parts:
            raise ZooError(f"{what}={whole} is no multiple of {part}={parts}: choose a {part} that divides {whole}")
    with seeded(seed):
        return VisionTransformer(**sizes, depth=depth, heads=heads, hidden=hidden)
