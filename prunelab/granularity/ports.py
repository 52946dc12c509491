"""Ports: where channels enter and leave a layer, and which tensor entries belong to a channel there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..core import join

Owned = tuple[str, int, bool]  # (attribute, dimension, learned): a tensor with one index a channel


@dataclass(frozen=True)
class Port:
    """One side of a layer: `size` channels, each of which owns an index of every tensor in `owned`.

    side: "out" for the channels a convolution or Linear makes, "in" for those it reads, "through" for a norm's.
    """

    layer: str
    side: str
    size: int
    owned: tuple[Owned, ...]
    module: Any

    def __hash__(self) -> int:
        return hash((self.layer, self.side))


def ports(model: nn.Module) -> Iterator[Port]:
    """The ports of every layer of a type known here, in the model's order."""
    for path, module in model.named_modules():
        for side, size, owned in _sides(module):
            there = tuple((a, d, learned) for a, d, learned in owned if getattr(module, a, None) is not None)
            yield Port(path, side, size, there, module)


def parameter_port(name: str, parameter: nn.Parameter, dim: int) -> Port:
    """The port of a bare parameter, such as a layer scale."""
    path, _, attribute = name.rpartition(".")
    return Port(join(path, attribute), "through", parameter.shape[dim], (("", dim, True),), parameter)


def _sides(module: nn.Module) -> list[tuple[str, int, list[Owned]]]:
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolution(module)
    if isinstance(module, nn.Linear):
        out: list[Owned] = [("weight", 0, True), ("bias", 0, True)]
        return [("out", module.out_features, out), ("in", module.in_features, [("weight", 1, True)])]
    if isinstance(module, nn.modules.batchnorm._NormBase):  # batch and instance norms
        statistics: list[Owned] = [("running_mean", 0, False), ("running_var", 0, False)]
        return [("through", module.num_features, [("weight", 0, True), ("bias", 0, True), *statistics])]
    if isinstance(module, nn.GroupNorm):
        return [("through", module.num_channels, [("weight", 0, True), ("bias", 0, True)])]
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return [("through", module.normalized_shape[0], [("weight", 0, True), ("bias", 0, True)])]
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return [("through", module.num_parameters, [("weight", 0, True)])]
    return []


def _convolution(module: nn.modules.conv._ConvNd) -> list[tuple[str, int, list[Owned]]]:
    makes, reads = (1, 0) if module.transposed else (0, 1)
    out: list[Owned] = [("weight", makes, True), ("bias", 0, True)]
    read: list[Owned] = [("weight", reads, True)]
    if module.groups > 1:  # dimension 1 of a grouped weight counts within one group: whole groups leave by dimension 0
        out, read = [o for o in out if o[:2] != ("weight", 1)], [r for r in read if r[1] == 0]
    return [("out", module.out_channels, out), ("in", module.in_channels, read)]
