"""The transfer of notebook 05: a network that knows the digits 0 to 4 learns 5 to 9, and is pruned meanwhile."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ... import zoo
from ...allocation import allocate
from ...core import Criterion, Group
from ...criteria import Mama, Random, magnitude
from ...granularity import weights
from ...layers import prunable
from ...measurement import evaluate
from ...movement import Learned, Threshold, TopV, by_group, finetune, gradual
from ...recovery import train

HEAD = "fc3"  # the last layer: new for the new task, and never pruned
EPOCHS = 12  # on the first five digits
STEPS, BATCH = 400, 32  # on the last five
HEAD_LR, SCORES_LR = 1e-3, 1e-1  # of the new last layer and of the scores, whatever that of the weights is
WAYS = ("movement", "magnitude", "MAMA's score", "random")


def half(last: bool) -> Any:
    """Digits 0 to 4 or, as classes 0 to 4 too, 5 to 9: .train, .valid and .test, a pair of tensors each."""
    data = zoo.load("digits")
    return SimpleNamespace(**{s: _half(getattr(data, s).tensors, last) for s in ("train", "valid", "test")})


def _half(split: tuple[Tensor, ...], last: bool) -> tuple[Tensor, Tensor]:
    images, labels = split
    chosen = (labels >= 5) == last
    return images[chosen], labels[chosen] % 5


def pretrained(seed: int) -> nn.Module:
    """The course's MLP (LeNet-300-100) with five outputs, trained on digits 0 to 4."""
    model = zoo.mlp(classes=5, seed=seed)
    train(model, half(last=False).train, epochs=EPOCHS, seed=seed, progress=False)
    return model


def inner(model: nn.Module) -> list[Group]:
    """What is pruned: every single weight below the last layer."""
    return weights(model, exclude=[f"{HEAD}.weight"])


@dataclass(frozen=True)
class Transfer:
    """A network after fine-tuning, how it was pruned meanwhile (None: not at all), and how well it then reads."""

    model: nn.Module
    learned: Learned | None
    accuracy: float
    stayed: float  # of the weights kept, the share that had been the largest before fine-tuning

    @property
    def density(self) -> float:
        """The share of the inner weights that is left."""
        return 1 - self.learned.pruned.report.sparsity if self.learned else 1.0


def transfer(before: nn.Module, way: str, left: float, lr: float, *, seed: int = 0, steps: int = STEPS) -> Transfer:
    """Fine-tune a copy on digits 5 to 9 with a new last layer, down to a share of its inner weights left.

    way: "movement", "soft movement" (then `left` is the penalty, and how many are left is learned), one of the other
    WAYS, by whose score the same schedule prunes, or "dense". `lr` is that of all weights but the last layer's.
    """
    model, data = copy.deepcopy(before), half(last=True)
    _new_head(model, seed)
    options: dict[str, Any] = {"steps": steps, "batch_size": BATCH, "lr_schedule": "linear", "seed": seed,
                               "progress": False, "optimizer": lambda m: _rates(m, lr)}  # fmt: skip
    if way == "dense":
        train(model, data.train, **options)
        return Transfer(model, None, evaluate(model, data, "test").accuracy, 1.0)
    groups = inner(model)
    if way in ("movement", "soft movement"):
        rule = TopV(1 - left) if way == "movement" else Threshold(left)
        learned = finetune(model, data.train, groups, rule, **options)
    else:
        criteria: dict[str, Criterion]
        criteria = {"magnitude": magnitude, "MAMA's score": Mama.of(before), "random": Random(seed)}
        learned = gradual(model, data.train, groups, TopV(1 - left), criteria[way], **options)
    return Transfer(model, learned, evaluate(model, data, "test").accuracy, _stayed(before, learned))


def _new_head(model: nn.Module, seed: int) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model.get_submodule(HEAD).reset_parameters()  # type: ignore[operator]


def _rates(model: nn.Module, lr: float) -> Optimizer:
    """Three rates: the new head learns as one does, the scores as fast as they like, the weights at `lr`."""
    head, scores = list(model.get_submodule(HEAD).parameters()), list(by_group(model).values())
    apart = {id(p) for p in (*head, *scores)}
    rest = [p for p in model.parameters() if id(p) not in apart]
    rates = ((rest, lr), (head, HEAD_LR), (scores, SCORES_LR))
    return AdamW([{"params": p, "lr": rate} for p, rate in rates if p], weight_decay=0.0)


def _stayed(before: nn.Module, learned: Learned) -> float:
    """How much of what is kept magnitude would have kept before the first step, at each layer's own count."""
    large = magnitude(before)
    both = kept = 0
    for group in learned.pruned.groups:
        stays = learned.pruned.keep[group.name]
        share = 1 - float(stays.double().mean())
        first = allocate(large, [group], share, "layer")[group.name]
        both, kept = both + int((stays & first).sum()), kept + int(stays.sum())
    return both / kept


def scatter(before: nn.Module, after: Transfer, layer: str = "fc2.weight") -> dict[str, Tensor]:
    """A layer's weights before and after fine-tuning, and which of them are kept: three flat tensors."""
    assert after.learned is not None
    return {
        "before": prunable(before)[layer].detach().flatten(),
        "after": prunable(after.model)[layer].detach().flatten(),
        "kept": after.learned.pruned.keep[layer],
    }


def tables(runs: Sequence[Mapping[str, Any]], value: str) -> dict[float, dict[str, np.ndarray]]:
    """A grid's runs as tables: learning rate -> way -> (networks, densities), the densities falling."""
    networks = sorted({r["network"] for r in runs})
    found = {(r["lr"], r["way"], r["network"], r["left"]): r[value] for r in runs if "left" in r}
    rates = sorted({r["lr"] for r in runs}, reverse=True)
    return {lr: {way: _table(found, lr, way, networks) for way in dict.fromkeys(k[1] for k in found if k[0] == lr)}
            for lr in rates}  # fmt: skip


def _table(found: Mapping[tuple[Any, ...], float], lr: float, way: str, networks: Sequence[int]) -> np.ndarray:
    left = sorted({k[3] for k in found if k[:2] == (lr, way)}, reverse=True)
    return np.array([[found[lr, way, network, share] for share in left] for network in networks])


def softly(runs: Sequence[Mapping[str, Any]], lr: float) -> tuple[list[float], list[float]]:
    """The densities that soft movement found at a learning rate, and the accuracies there, a run each."""
    chosen = [r for r in runs if "penalty" in r and r["lr"] == lr]
    return [r["density"] for r in chosen], [r["accuracy"] for r in chosen]
