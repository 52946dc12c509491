"""Other ways back than training on: a teacher, rewinding, BatchNorm's statistics measured anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..calibration.samples import Loss
from ..checks import check_number
from ..core import PruneError, check_loaded, device_of, mode, network, places, put_back, shape
from ..data import batches, count, to
from ..layers import BATCH_NORM
from ..running import attempt, call, pair, undisturbed
from .run import ONE_CYCLE, History, Objective, Rate, Tail
from .training import finetune, train


@dataclass(frozen=True)
class Distillation:
    """alpha T^2 KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) loss(student, labels).

    Outputs (n, classes, ...), or (n, tokens, classes) where the targets are (n, tokens), as a language model's; the
    mean over all but the classes. T^2 keeps the gradient's size as T grows. Hinton et al. 2015, arXiv 1503.02531,
    section 2. alpha is the teacher's share, from 0 to 1.
    """

    teacher: nn.Module
    temperature: float = 4.0
    alpha: float = 0.7
    loss: Loss = F.cross_entropy

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, "give a positive number, such as 4", above=0)
        check_number("alpha", self.alpha, "it is the teacher's share of the loss, from 0 to 1", least=0, most=1)

    def __call__(self, inputs: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad(), mode(self.teacher, training=False):
            said = call(self.teacher, inputs)
        positions = (*outputs.shape[:1], *outputs.shape[2:])  # torch's own order; where both would do, it is that
        by_token = targets.shape == outputs.shape[:-1] and targets.shape != positions
        classes = -1 if by_token else 1
        soft, wanted = ((x / self.temperature).log_softmax(classes) for x in (outputs, said))
        apart = F.kl_div(soft, wanted, reduction="none", log_target=True).sum(classes).mean()
        return self.alpha * self.temperature**2 * apart + (1 - self.alpha) * self.loss(outputs, targets)


def distil(
    model: nn.Module,
    teacher: nn.Module,
    data: Any,
    *,
    temperature: float = 4.0,
    alpha: float = 0.7,
    loss: Loss = F.cross_entropy,
    train: Callable[..., History] = finetune,
    **options: Any,
) -> History:
    """Retrain a pruned model on what its teacher, the dense one, says of each input: `finetune` by `Distillation`.

    The teacher runs in eval mode and is left as it was. `train` is another way to retrain, such as `rewind_rates`;
    `options` are its own. Raises PruneError, before anything is changed, for a teacher of another output shape.

    >>> from copy import deepcopy
    >>> teacher, inputs = nn.Linear(2, 3), torch.eye(2)
    >>> data = inputs, torch.tensor([0, 1])
    >>> distil(deepcopy(teacher), teacher, data, alpha=1.0, steps=1, progress=False).losses  # they agree already
    [0.0]
    """
    objective = Distillation(teacher, temperature, alpha, loss)
    _check_outputs(model, teacher, data, options.get("batch_size", 64))
    return train(model, data, loss=Objective(objective, loss), **options)


def _check_outputs(model: nn.Module, teacher: nn.Module, data: Any, size: int) -> None:
    if teacher is model:
        raise PruneError("the teacher is the model itself: give the dense one, a copy.deepcopy made before pruning")
    check_loaded(model)
    check_loaded(teacher)
    if device_of(teacher) != device_of(model):
        raise PruneError(
            f"the teacher is on {device_of(teacher)}, the model on {device_of(model)}: move one with .to(...)"
        )
    inputs, _ = to(pair(next(batches(data, size=size))), device_of(model))
    with undisturbed(model, teacher), torch.no_grad():
        own, other = attempt(model, inputs), attempt(teacher, inputs)
    if own.shape != other.shape:
        raise PruneError(
            f"the teacher {type(teacher).__name__} gives outputs {shape(other)}, the model {type(model).__name__} "
            f"{shape(own)}: they must tell the same classes apart, in the same order"
        )


State: TypeAlias = dict[str, Tensor]  # every parameter and buffer, by the name it has without masks


def state_of(model: nn.Module) -> State:
    """A copy of all parameters and buffers, masked or not, as they lie under the masks.

    >>> sorted(state_of(nn.Linear(2, 1)))
    ['bias', 'weight']
    """
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
        if done > self.at and not self.state:
            raise PruneError(
                f"Early(at={self.at}) came too late: the run was resumed behind that step. Give it the `state` of "
                "before, or begin the run anew"
            )


def rewind(model: nn.Module, early: Mapping[str, Tensor]) -> nn.Module:
    """Give a model its early weights and buffers again, its masks staying: a lottery ticket. Changes, returns it.

    To the very start: Frankle and Carbin 2019, arXiv 1803.03635; soon after it: Frankle et al. 2020, arXiv 1912.05671.
    Raises PruneError, before anything is changed, if the state is of another model.

    >>> net = nn.Linear(2, 1)
    >>> early = state_of(net)
    >>> net.weight.data += 1
    >>> rewind(net, early).weight.equal(early["weight"])
    True
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

    >>> data = torch.eye(2), torch.tensor([0, 1])
    >>> len(rewind_rates(nn.Linear(2, 2), data, steps=2, of=4, lr=0.1, progress=False).losses)
    2
    """
    return train(model, data, steps=steps, lr_schedule=Tail(of, lr_schedule), **options)


def rewind_weights(
    model: nn.Module, early: Mapping[str, Tensor], data: Any, *, steps: int, of: int, **options: Any
) -> History:
    """`rewind` to the state the model had at step `of - steps` of its first training, and train on from there.

    Otherwise `rewind_rates`: the same steps, the same learning rates, with the pruned weights missing.

    >>> net, data = nn.Linear(2, 2), (torch.eye(2), torch.tensor([0, 1]))
    >>> early = state_of(net)
    >>> len(rewind_weights(net, early, data, steps=2, of=4, lr=0.1, progress=False).losses)
    2
    """
    rewind(model, early)
    return rewind_rates(model, data, steps=steps, of=of, **options)


def recalibrate_batchnorm(model: nn.Module, data: Any, *, batch_size: int = 64, seed: int = 0) -> int:
    """Measure every BatchNorm's running mean and variance anew, and say how many layers there were.

    One pass over the train split, shuffled, without a gradient: the plain average over its batches. No weight changes,
    and everything but BatchNorm is in eval mode. Pruning shifts what each layer receives; statistics of the dense
    network then mislead. "Adaptive BN" of Li et al. 2020 (EagleEye), arXiv 2007.02491, section 3.4.

    Raises PruneError for a model without running statistics, and for what it cannot be run on; it is then as before.

    >>> norm = nn.BatchNorm1d(1)
    >>> recalibrate_batchnorm(norm, (torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0])))
    1
    >>> norm.running_mean, norm.running_var  # of 1 and 3: (1 + 3) / 2, and (1 + 1) / (2 - 1)
    (tensor([2.]), tensor([2.]))
    """
    norms = [m for m in network(model).modules() if isinstance(m, BATCH_NORM) and m.running_mean is not None]
    if not norms:
        raise PruneError(
            f"{type(model).__name__} has no BatchNorm with running statistics: there is nothing to estimate anew. "
            "Retrain it instead"
        )
    count(data, size=batch_size)
    dice, device = torch.Generator().manual_seed(seed), device_of(model)
    before = [(n, n.momentum, {name: b.clone() for name, b in n.named_buffers(recurse=False)}) for n in norms]
    try:
        with undisturbed(model), torch.no_grad():
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # torch's way to say: the plain average
            for batch in batches(data, size=batch_size, shuffle=dice):
                attempt(model, to(pair(batch)[0], device))
    except BaseException:
        for norm, _, buffers in before:
            put_back(norm, buffers)
        raise
    finally:
        for norm, momentum, _ in before:
            norm.momentum = momentum
    return len(norms)
