"""How important is each weight? One function a criterion: (model, calibration) -> scores, higher = keep.

Every criterion leaves the model exactly as it was, and gives each prunable weight a score of its own shape.
A masked weight is scored by its underlying value, so that a mask can be reconsidered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from .calibration import Calibration
from .core import PruneError, Scores, prunable, shape


class Criterion(Protocol):
    """What `allocate` needs to know of the model: a score for each prunable weight."""

    def __call__(self, model: nn.Module, calib: Calibration | None = None, /) -> Scores: ...


CRITERIA: dict[str, Criterion] = {}


def register(name: str) -> Callable[[Criterion], Criterion]:
    """Make a criterion known by name, to `Recipe` and to the contract checks of the tests."""

    def put(criterion: Criterion) -> Criterion:
        CRITERIA[name] = criterion
        return criterion

    return put


def by_name(criterion: str | Criterion) -> Criterion:
    """The criterion registered under a name; a criterion is given back as it is."""
    if callable(criterion):
        return criterion
    if criterion not in CRITERIA:
        raise PruneError(f"no criterion is called {criterion!r}; there is {', '.join(sorted(CRITERIA))}")
    return CRITERIA[criterion]


def _finite_weights(model: nn.Module) -> dict[str, Tensor]:
    """The prunable weights, or PruneError naming the first that holds a NaN or an infinity."""
    weights = {name: p.detach() for name, p in prunable(model).items()}
    for name, w in weights.items():
        # One reduction instead of an elementwise test: a sum is finite only if every term is (in double, no overflow).
        if not torch.isfinite(w.sum(dtype=torch.float64)):
            bad = int((~torch.isfinite(w)).sum())
            if bad == 0:  # doubles so large that their sum overflows
                continue
            raise PruneError(
                f"{name} {shape(w)} holds {bad} NaN or infinite of {w.numel()} weights: no order exists among "
                "them. The training that made this model diverged; load or train one that is finite"
            )
    return weights


@register("magnitude")
def magnitude(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|w|: what is small contributes little. Summed over a structure it is the structure's L1 norm.

    Han et al. 2015, arXiv 1506.02626; for filters Li et al. 2017, arXiv 1608.08710. Needs no data.
    """
    return {name: w.abs() for name, w in _finite_weights(model).items()}


@register("magnitude_l2")
def magnitude_l2(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """w^2: ranks single weights as |w| does; summed over a structure it ranks as the structure's L2 norm.

    Needs no data. Half-precision weights are squared in float32, where small squares don't vanish.
    """
    return {name: w.float().square() if w.itemsize < 4 else w.square() for name, w in _finite_weights(model).items()}


@dataclass(frozen=True)
class Random:
    """A uniform random score: the control that every criterion must beat. The same seed, the same scores."""

    seed: int = 0

    def __call__(self, model: nn.Module, calib: Calibration | None = None) -> Scores:
        source = torch.Generator().manual_seed(self.seed)  # our own, so that nobody's dice are disturbed
        return {name: torch.rand(w.shape, generator=source).to(w.device) for name, w in prunable(model).items()}


random = Random()
register("random")(random)
