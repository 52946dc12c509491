"""Does removing compute the same as zeroing? Measured, not assumed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import units
from ..core import Group, Keep, device_of, mode
from ..data import tensors, to
from ..masking import bake, masked
from ..running import attempt
from .shrinking import shrink


def difference(model: nn.Module, groups: Sequence[Group], keep: Keep, example: Any) -> float:
    """The largest difference of outputs between the masked and the shrunk model, relative to the largest output.

    In eval mode, on `example`. Near 1e-6 in float32 where all groups are exact. The model is left as it is.
    """
    return worn(bake(copy.deepcopy(model)), groups, keep, example)


def worn(plain: nn.Module, groups: Sequence[Group], keep: Keep, example: Any) -> float:
    """As `difference`, of a model without masks, which wears some for a moment: no copy of it is made."""
    inputs = to(example, device_of(plain))
    with masked(plain, units.expand(plain, groups, keep)):
        zeroed = outputs(plain, inputs)
    return apart(zeroed, outputs(shrink(plain, groups, keep), inputs))


def apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference of two lists of outputs, relative to the largest of the first; NaN where there is one."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        largest = float(a.abs().max()) if a.numel() else 0.0
        gap = float((a - b).abs().max()) if a.numel() else 0.0
        worst = max(worst, gap / largest if largest > 0 else gap) if gap == gap else float("nan")
        if worst != worst:
            return worst
    return worst


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The floating-point tensors a model gives in eval mode, in order; PruneError if it cannot run on the inputs."""
    with mode(model, training=False), torch.no_grad():
        return floating(attempt(model, inputs, run))


def run(model: nn.Module, inputs: Any) -> Any:
    """All that the model returns: `batches.call` picks the logits, but GoogLeNet's other heads count here."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def floating(nest: Any) -> list[Tensor]:
    """The floating-point tensors in any nest of tuples, lists and dicts."""
    return [t for t in tensors(nest) if t.is_floating_point()]
