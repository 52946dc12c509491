"""Train a network to convergence, and again after pruning, with whatever masks it wears held in place."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..batches import batches, call, count, has_splits, to
from ..calibration import Loss
from ..core import PruneError, device_of, mode, places
from ..measurement import Evaluation, evaluate


@dataclass
class History:
    """What a training run did: the loss of every step, the validation result of every epoch, its cost."""

    losses: list[float] = field(default_factory=list)
    valid: list[Evaluation] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """How many optimizer steps were made."""
        return len(self.losses)

    def __repr__(self) -> str:
        if not self.losses:
            return "History(no steps)"
        last = f", validation accuracy {self.valid[-1].accuracy:.1%}" if self.valid else ""
        return f"History({self.steps} steps in {self.seconds:.1f} s, last loss {self.losses[-1]:.3f}{last})"


def train(
    model: nn.Module,
    data: Any,
    *,
    epochs: int = 10,
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    batch_size: int = 64,
    seed: int = 0,
    loss: Loss = F.cross_entropy,
    progress: bool = True,
) -> History:
    """Train in place with AdamW and a one-cycle learning rate that peaks at `lr`, on the data's train split.

    Masks stay exact throughout. The same seed gives the same weights; nobody else's random numbers are
    disturbed, and each module gets its own mode back. After each epoch it looks at the validation split, if
    there is one, to report it, not to choose. If the loss becomes NaN or infinite, the model gets the weights
    back that it had before the epoch, and a PruneError says so.
    """
    _check_settings(epochs, lr)
    trained = _trainable(model)
    device, dice = device_of(model), torch.Generator().manual_seed(seed)
    total = epochs * count(data, size=batch_size)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=total)
    history, start = History(), time.perf_counter()
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        mode(model, training=True),
        tqdm(total=total, desc="training", unit="step", disable=not progress, leave=False) as bar,
    ):
        torch.manual_seed(seed)
        for _ in range(epochs):
            before = {name: t.clone() for name, t in model.state_dict().items()}
            for batch in batches(data, size=batch_size, shuffle=dice):
                history.losses.append(_step(model, to(batch, device), loss, optimizer))
                optimizer.zero_grad(set_to_none=True)
                if not math.isfinite(history.losses[-1]):
                    break
                cycle.step()
                bar.update()
            if not (math.isfinite(history.losses[-1]) and _finite(model)):
                model.load_state_dict(before)
                raise _diverged(history, lr)
            if has_splits(data):
                history.valid.append(evaluate(model, data, "valid", loss=loss))
                bar.set_postfix_str(f"validation {history.valid[-1].accuracy:.1%}")
    history.seconds = time.perf_counter() - start
    return history


def finetune(model: nn.Module, data: Any, *, epochs: int = 2, lr: float = 3e-3, **options: Any) -> History:
    """Retrain a pruned model to recover: `train`, shorter and gentler. Call it before `bake`, while masks hold.

    Raises PruneError for a model that has nothing to recover with: all of it frozen.
    """
    return train(model, data, epochs=epochs, lr=lr, **options)


def _check_settings(epochs: Any, lr: Any) -> None:
    if not isinstance(epochs, int) or epochs < 1:
        raise PruneError(f"epochs={epochs!r}: train for a whole number of them, at least 1")
    if not isinstance(lr, (int, float)) or not 0 < lr < math.inf:
        raise PruneError(f"lr={lr!r}: give a positive learning rate, such as 0.003")


def _finite(model: nn.Module) -> bool:
    """Whether every parameter is, as the masks show it: what lies under a mask may be anything."""
    seen = [getattr(p.module, p.attribute) for p in places(model) if isinstance(p.tensor, nn.Parameter)]
    return all(bool(torch.isfinite(w).all()) for w in seen)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise PruneError(
            f"all {len(list(model.parameters()))} parameters of this {type(model).__name__} are frozen: nothing can "
            "be trained. Call model.requires_grad_(True) first"
        )
    return trained


def _diverged(history: History, lr: float) -> PruneError:
    last = history.losses[-1]
    what = "a weight became NaN or infinite" if math.isfinite(last) else f"the loss became {last}"
    return PruneError(
        f"training diverged: {what} at step {history.steps} with lr={lr:g}. The model "
        f"has the weights it had before this epoch; try lr={lr / 10:g}"
    )


def _step(model: nn.Module, batch: Any, loss: Loss, optimizer: torch.optim.Optimizer) -> float:
    inputs, targets = batch
    optimizer.zero_grad(set_to_none=True)
    value = loss(call(model, inputs), targets)
    value.backward()
    optimizer.step()
    return float(value.detach())
