"""Does removing compute the same as zeroing? Measured, not assumed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..core import Group, Keep, device_of
from ..data import to
from ..masking import bake, expand, masked
from ..running import apart, outputs
from .shrinking import shrink


def difference(model: nn.Module, groups: Sequence[Group], keep: Keep, example: Any) -> float:
    """The largest difference of outputs between the masked and the shrunk model, relative to the largest output.

    In eval mode, on `example`. Near 1e-6 in float32 where all groups are exact. The model is left as it is.

    >>> import torch
    >>> from prunelab import granularity
    >>> net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(1, 3)
    >>> groups = granularity.neurons(net, x)
    >>> difference(net, groups, {groups[0].name: torch.tensor([True, False, False, True])}, x) < 1e-6
    True
    """
    plain, inputs = bake(copy.deepcopy(model)), to(example, device_of(model))
    with masked(plain, expand(plain, groups, keep)):
        zeroed = outputs(plain, inputs)
    return apart(zeroed, outputs(shrink(plain, groups, keep), inputs))
