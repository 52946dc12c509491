"""A model's weights, buffers and masks at one moment, to be put back later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import lookup
from ..masking import current_masks, restore


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state dict (masks are buffers in it), and the names of the tensors that wore a mask."""

    state: dict[str, Tensor]
    masked: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, earlier: Snapshot | None = None) -> Snapshot:
        """The model as it is now; what an earlier snapshot holds already, frozen weights say, is not copied again."""
        had = earlier.state if earlier else {}
        state = {k: had[k] if k in had and _same(had[k], t) else t.clone() for k, t in model.state_dict().items()}
        return cls(state, tuple(current_masks(model)))

    def put_back(self, model: nn.Module) -> None:
        """Give the model these values again, whatever masks it has got or lost since."""
        _wear(model, self.masked)
        model.load_state_dict(self.state)


def _same(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.device) == (other.dtype, other.device) and torch.equal(one, other)


def _wear(model: nn.Module, names: Sequence[str]) -> None:
    """See that exactly these tensors wear masks, new ones open: then the state dict has the keys it had."""
    worn = current_masks(model)
    if set(worn) != set(names):
        new = {name: torch.ones_like(lookup(model, name)[0].tensor, dtype=torch.bool) for name in names}
        restore(model, new | {name: mask for name, mask in worn.items() if name in new})
