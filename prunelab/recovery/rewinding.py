"""Go back before going on: the learning rate to what it was, or the weights with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..core import PruneError, places, shape
from .history import History
from .rates import ONE_CYCLE, Rate, Tail
from .training import train

State: TypeAlias = dict[str, Tensor]  # every parameter and buffer, by the name it has without masks


def state_of(model: nn.Module) -> State:
    """A copy of all parameters and buffers, masked or not, as they lie under the masks."""
    return {place.name: place.tensor.detach().clone() for place in places(model)}


@dataclass
class Early:
    """Keeps the state that a model has after so many steps: `train(model, data, on_step=early)`, then `early.state`."""

    model: nn.Module
    at: int
    state: State = field(default_factory=dict)

    def __call__(self, done: int, total: int) -> None:
        if not 0 <= self.at <= total:
            raise PruneError(f"Early(at={self.at}): the run has {total} steps, so there is no such one")
        if done == self.at:
            self.state = state_of(self.model)


def rewind(model: nn.Module, early: Mapping[str, Tensor]) -> nn.Module:
    """Give a model its early weights and buffers again, its masks staying: a lottery ticket. Changes, returns it.

    To the very start: Frankle and Carbin 2019, arXiv 1803.03635; soon after it: Frankle et al. 2020, arXiv 1912.05671.
    Raises PruneError, before anything is changed, if the state is of another model.
    """
    own = {place.name: place.tensor for place in places(model)}
    strange = sorted(own.keys() ^ early.keys())
    if strange:
        raise PruneError(
            f"the early state is not this {type(model).__name__}'s: {', '.join(strange[:5])} is in only one of them. "
            "Take it from the same network, with Early or state_of"
        )
    for name, tensor in own.items():
        if tensor.shape != early[name].shape:
            raise PruneError(
                f"{name} is {shape(tensor)}, in the early state {shape(early[name])}: rewind a masked model, before it "
                "is shrunk"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(early[name])
    return model


def rewind_rates(
    model: nn.Module, data: Any, *, steps: int, of: int, lr_schedule: str | Rate = ONE_CYCLE, **options: Any
) -> History:
    """Retrain with the learning rates that the last `steps` of the `of` steps of the first training had.

    The weights stay where they are. `options` are those of `train`, the first training's own `lr` among them.
    Renda et al. 2020, arXiv 2003.02389, section 3. Raises PruneError for more steps than there were.
    """
    return train(model, data, steps=steps, lr_schedule=Tail(of, lr_schedule), **options)


def rewind_weights(
    model: nn.Module, early: Mapping[str, Tensor], data: Any, *, steps: int, of: int, **options: Any
) -> History:
    """`rewind` to the state the model had at step `of - steps` of its first training, and train on from there.

    Otherwise `rewind_rates`: the same steps, the same learning rates, with the pruned weights missing.
    """
    rewind(model, early)
    return rewind_rates(model, data, steps=steps, of=of, **options)
