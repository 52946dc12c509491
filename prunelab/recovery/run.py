"""A training run in progress: all that must be put back for it to go on as if nothing had happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from ..batches import split_of
from ..core import device_of, places
from .history import History
from .identity import told
from .rates import Rate, Tail, scheduler
from .snapshots import Snapshot


@dataclass
class Run:
    """What changes while a model trains, and the settings that tell this run from others."""

    model: nn.Module
    optimizer: Optimizer
    rates: LRScheduler
    total: int  # optimizer steps to make
    dice: torch.Generator  # decides the order of the data
    safe: Snapshot  # what the model gets back if the run diverges
    settings: dict[str, str]
    history: History = field(default_factory=History)
    position: int = 0  # batches of this epoch that are done
    epoch: dict[str, Tensor] = field(default_factory=dict)  # the random states with which this epoch began
    resumed: Tensor | None = None  # the random state in which a saved run stood

    @property
    def done(self) -> int:
        """Optimizer steps made."""
        return self.history.steps


def begin(
    model: nn.Module, optimizer: Optimizer, schedule: str | Rate | Tail, total: int, batch_size: int, seed: int
) -> Run:
    """A run of no steps yet."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    settings = {
        "network": type(model).__name__ + str([(p.name, tuple(p.tensor.shape)) for p in places(model)]),
        "number of steps": str(total),
        "batch size": str(batch_size),
        "seed": str(seed),
        "learning-rate schedule": told(schedule),
        "optimizer": f"{type(optimizer).__name__} {groups}",
    }
    rates = scheduler(optimizer, schedule, total)
    return Run(model, optimizer, rates, total, torch.Generator().manual_seed(seed), Snapshot.of(model), settings)


def generators(data: Any) -> dict[str, torch.Generator]:
    """A training DataLoader's own generators, by where it has them; one may be in several places."""
    loader = split_of(data, "train")
    if not isinstance(loader, DataLoader):
        return {}
    batcher = loader.batch_sampler
    owners = {"loader": loader, "sampler": loader.sampler, "batches": batcher, "order": getattr(batcher, "sampler", 0)}
    found = {f"{name}.generator": getattr(owner, "generator", None) for name, owner in owners.items()}
    return {name: dice for name, dice in found.items() if isinstance(dice, torch.Generator)}


def random_state(model: nn.Module) -> Tensor:
    """Torch's random state where the model runs (uint8): the CPU's, and a GPU's behind it."""
    device = device_of(model)
    gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return torch.cat([torch.get_rng_state(), *gpu])


def set_random_state(model: nn.Module, state: Tensor) -> None:
    """Put back what `random_state` gave."""
    device, size = device_of(model), len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[size:], device)
