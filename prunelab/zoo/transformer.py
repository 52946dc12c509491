"""The course's Vision Transformer: every projection and every head in plain sight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import ZooError
from .networks import counts, seeded


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
    """
    sizes = {"classes": classes, "channels": channels, "pixels": pixels, "patch": patch, "width": width}
    counts(**sizes, depth=depth, heads=heads, hidden=hidden)
    for what, whole, part, parts in (("pixels", pixels, "patch", patch), ("width", width, "heads", heads)):
        if whole % parts:
            raise ZooError(f"{what}={whole} is no multiple of {part}={parts}: choose a {part} that divides {whole}")
    return seeded(seed, lambda: VisionTransformer(**sizes, depth=depth, heads=heads, hidden=hidden))
