"""The cheapest repair of all: let BatchNorm look again at what the pruned network sends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ..batches import batches, count, to
from ..core import PruneError, device_of
from ..layers import BATCH_NORM
from ..measurement.conditions import attempt, undisturbed


def reestimate(model: nn.Module, data: Any, *, batch_size: int = 64, seed: int = 0) -> int:
    """Measure every BatchNorm's running mean and variance anew, and say how many layers there were.

    One pass over the train split, shuffled, without a gradient: the plain average over its batches. No weight changes,
    and everything but BatchNorm is in eval mode. Pruning shifts what each layer receives; statistics of the dense
    network then mislead. "Adaptive BN" of Li et al. 2020 (EagleEye), arXiv 2007.02491, section 3.4.

    Raises PruneError for a model without running statistics, and for what it cannot be run on; it is then as before.
    """
    norms = [m for m in model.modules() if isinstance(m, BATCH_NORM) and m.running_mean is not None]
    if not norms:
        raise PruneError(
            f"{type(model).__name__} has no BatchNorm with running statistics: there is nothing to estimate anew. "
            "Retrain it instead"
        )
    count(data, size=batch_size)
    dice, device = torch.Generator().manual_seed(seed), device_of(model)
    with undisturbed(model), torch.no_grad(), ExitStack() as all_of_them:
        for norm in norms:
            all_of_them.enter_context(_measuring(norm))
        for inputs, _ in batches(data, size=batch_size, shuffle=dice):
            attempt(model, to(inputs, device))
    return len(norms)


@contextmanager
def _measuring(norm: BATCH_NORM) -> Iterator[None]:
    """Average over all batches that come; the old statistics again if anything fails."""
    momentum, before = norm.momentum, {name: b.clone() for name, b in norm.named_buffers(recurse=False)}
    norm.train()
    norm.reset_running_stats()
    norm.momentum = None  # torch's way to say: the plain average
    try:
        yield
    except BaseException:
        for name, buffer in norm.named_buffers(recurse=False):
            buffer.copy_(before[name])
        raise
    finally:
        norm.momentum = momentum
