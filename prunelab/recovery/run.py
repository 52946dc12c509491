"""A training run in progress: all that must be put back for it to go on as if nothing had happened."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.utils.data import DataLoader

from ..calibration.samples import Loss
from ..checks import check_count, check_number
from ..core import PruneError, device_of, lookup, places, put_back, unsaved
from ..data import has_splits, split_of
from ..masking import current_masks, restore
from ..measurement import Evaluation, evaluate
from ..text import percent


@dataclass
class History:
    """What a training run did: the loss of every step, the validation result of every epoch, its cost.

    `start` is the validation result before the first step, where the data has a validation split.
    """

    losses: list[float] = field(default_factory=list)
    valid: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0
    start: Evaluation | None = None

    @property
    def steps(self) -> int:
        """How many optimizer steps were made."""
        return len(self.losses)

    def __repr__(self) -> str:
        if not self.losses:
            return "History(no steps)"
        last = f", validation accuracy {percent(self.valid[-1].accuracy)}" if self.valid else ""
        return f"History({self.steps} steps in {self.seconds:.1f} s, last loss {self.losses[-1]:.3f}{last})"


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state dict (masks are buffers in it), the tensors that wore a mask, and the buffers it leaves out."""

    state: dict[str, Tensor]
    masked: tuple[str, ...] = ()
    unsaved: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, earlier: Snapshot | None = None) -> Snapshot:
        """The model as it is now; what an earlier snapshot holds already, frozen weights say, is not copied again."""
        had = earlier.state if earlier else {}
        state = {k: had[k] if k in had and _same(had[k], t) else t.clone() for k, t in model.state_dict().items()}
        return cls(state, tuple(current_masks(model)), unsaved(model))

    def put_back(self, model: nn.Module) -> None:
        """Give the model these values again, whatever masks it has got or lost since."""
        _wear(model, self.masked)
        model.load_state_dict(self.state)
        put_back(model, self.unsaved)


def _same(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.device) == (other.dtype, other.device) and torch.equal(one, other)


def _wear(model: nn.Module, names: Sequence[str]) -> None:
    """See that exactly these tensors wear masks, new ones open: then the state dict has the keys it had."""
    worn = current_masks(model)
    if set(worn) != set(names):
        new = {name: torch.ones_like(lookup(model, name)[0].tensor, dtype=torch.bool) for name in names}
        restore(model, new | {name: mask for name, mask in worn.items() if name in new})


def finite(model: nn.Module) -> bool:
    """Whether every parameter is, as the masks show it: what lies under a mask may be anything."""
    seen = [getattr(p.module, p.attribute) for p in places(model) if isinstance(p.tensor, nn.Parameter)]
    return all(bool(torch.isfinite(w).all()) for w in seen)


Rate: TypeAlias = Callable[[float], float]  # progress in [0, 1) -> factor of the optimizer's learning rate


ONE_CYCLE = "one_cycle"  # up for 30 % of the run, then down to nothing: Smith and Topin 2017, arXiv 1708.07120
RATES: dict[str, Rate] = {"constant": lambda progress: 1.0, "linear": lambda progress: 1 - progress}


@dataclass(frozen=True)
class Tail:
    """The end of an earlier run's schedule again: a run of n steps gets the last n of the `of` steps it had."""

    of: int
    schedule: str | Rate = ONE_CYCLE

    def __post_init__(self) -> None:
        check_count("of", self.of)
        if not isinstance(self.schedule, Tail):
            rate_of(self.schedule)


def rate_of(schedule: str | Rate) -> Rate | None:
    """The function of a schedule, None for one-cycle; PruneError for what gives no finite factors from 0 up."""
    if schedule == ONE_CYCLE:
        return None
    rate = RATES.get(schedule) if isinstance(schedule, str) else schedule
    if not callable(rate):
        raise PruneError(
            f"no learning-rate schedule is called {schedule!r}: give {', '.join((ONE_CYCLE, *RATES))}, "
            "a function progress -> factor, or a Tail"
        )
    for progress in (0.0, 0.5):
        factor = rate(progress)
        wanted = f"the learning rate's factor is {factor} at progress {progress}: give a number from 0 up"
        check_number("lr_schedule", factor, wanted, least=0)
    return rate


def scheduler(optimizer: Optimizer, schedule: str | Rate | Tail, total: int) -> LRScheduler:
    """A torch scheduler for `total` steps in which each parameter group's own rate is multiplied by the factor.

    Raises PruneError for what is no schedule, and for a Tail of a run that had fewer steps.
    """
    if isinstance(schedule, Tail):
        if total > schedule.of:
            raise PruneError(
                f"{total} steps cannot replay the end of a run of {schedule.of}: give at most {schedule.of}"
            )
        made = scheduler(optimizer, schedule.schedule, schedule.of)
        return stepped(made, schedule.of - total)
    factor = rate_of(schedule)
    if factor:
        return LambdaLR(optimizer, lambda step: factor(step / total))
    peaks = [group["lr"] for group in optimizer.param_groups]
    # Whether there is a momentum to cycle against the rate: torch would give plain SGD one.
    momentum = "betas" in optimizer.defaults or bool(optimizer.defaults.get("momentum"))
    return OneCycleLR(optimizer, max_lr=peaks, total_steps=total, cycle_momentum=momentum)


def stepped(rates: LRScheduler, steps: int) -> LRScheduler:
    """The scheduler as it is so many steps later."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the optimizer's steps: an earlier run made them
        for _ in range(steps):
            rates.step()
    return rates


@dataclass(frozen=True)
class Objective:
    """A training loss that sees the inputs too, as a teacher must: of(inputs, outputs, targets) -> a scalar.

    `report` is the loss of (outputs, targets) that validation shows.
    """

    of: Callable[[Any, Any, Tensor], Tensor]
    report: Loss = F.cross_entropy


@dataclass
class Run:
    """What a model learns from, and all that changes while it does."""

    model: nn.Module
    data: Any
    batch_size: int
    objective: Objective
    optimizer: Optimizer
    rates: LRScheduler
    total: int  # optimizer steps to make
    generators: dict[str, torch.Generator]  # what decides the order of the data
    safe: Snapshot  # what the model gets back if the run diverges
    first: Snapshot | None  # the model as it was given, until a step is made
    settings: dict[str, str] = field(default_factory=dict)  # what tells this run from others, for a checkpoint
    history: History = field(default_factory=History)
    position: int = 0  # batches of this epoch that are done
    epoch: dict[str, Tensor] = field(default_factory=dict)  # the random states with which this epoch began
    resumed: Tensor | None = None  # the random state in which a saved run stood

    @property
    def done(self) -> int:
        """Optimizer steps made."""
        return self.history.steps

    @property
    def watched(self) -> bool:
        """Whether there is a validation split."""
        return has_splits(self.data) and hasattr(self.data, "valid")

    def examine(self) -> Evaluation:
        """The validation result."""
        return evaluate(self.model, self.data, "valid", loss=self.objective.report)

    def random_states(self) -> dict[str, Tensor]:
        """Those of the data's generators; "random" is torch's where the model runs: the CPU's, a GPU's behind it."""
        own = {name: dice.get_state() for name, dice in self.generators.items()}
        device = device_of(self.model)
        gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
        return {"random": torch.cat([torch.get_rng_state(), *gpu]), **own}

    def set_random_states(self, states: Mapping[str, Tensor]) -> None:
        """Put back those that `random_states` gave."""
        device, size = device_of(self.model), len(torch.get_rng_state())
        torch.set_rng_state(states["random"][:size])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states["random"][size:], device)
        for name in states.keys() & self.generators.keys():
            self.generators[name].set_state(states[name])


def generators(data: Any, seed: int) -> dict[str, torch.Generator]:
    """What shuffles the data: "dice", ours, and a DataLoader's own, by where it has them, perhaps in several places."""
    loader = split_of(data, "train")
    owners: dict[str, Any] = {}
    if isinstance(loader, DataLoader):
        owners = {"loader": loader, "sampler": loader.sampler, "batches": loader.batch_sampler}
        owners["order"] = getattr(loader.batch_sampler, "sampler", None)
    found = {f"{name}.generator": getattr(owner, "generator", None) for name, owner in owners.items()}
    theirs = {name: dice for name, dice in found.items() if isinstance(dice, torch.Generator)}
    return {"dice": torch.Generator().manual_seed(seed), **theirs}
