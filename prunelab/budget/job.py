"""What a search is about: the model, the data to learn and to choose on, and how hard to try. Checked at the door."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import criteria as known_criteria
from ..batches import batches, has_splits, split_of, to
from ..calibration import Calibration
from ..core import Criterion, Granularity, PruneError, device_of
from ..measurement import Evaluation, evaluate, macs, stored_bytes
from ..measurement.conditions import (
    attempt,
    check_count,
    check_numbers,
    check_plain,
    cut,
    first_inputs,
    pair,
    rows,
    undisturbed,
)
from ..measurement.timing import BATCH
from ..recovery import finetune
from ..surgery.difference import tensors
from .rules import RULES

STEADY = 1e-5  # of the largest output: what a second call on the same inputs may differ by

Recovery = Callable[[nn.Module, int], Any]  # train the model in place for so many steps


@dataclass(frozen=True)
class How:
    """How to search, and what to leave alone.

    criteria, rules: which to try (rules: "sensitivity", "uniform", "global"); granularity: one, or names of several.
    exclude: groups that lose nothing. round_to: keep channels in multiples of so many; None measures what this
    machine likes. batch_size, threads: those at which latency counts. lr: of the recovery. screen: the share of the
    recovery steps that a candidate gets before the best are chosen; finalists: how many those are, besides equal
    shares by the first criterion, which always get all the steps, as the control. front: further
    latencies at which the best candidate is looked at, as multiples of the goal. samples: of the validation data, in
    the sensitivity scan, and of the training data, for criteria that look at it.
    """

    criteria: Sequence[str | Criterion] = ("magnitude", "taylor")
    rules: Sequence[str] = tuple(RULES)
    granularity: str | Granularity | Sequence[str] | None = None
    exclude: Sequence[str] = ()
    round_to: int | None = None
    batch_size: int = BATCH
    threads: int = 1
    lr: float = 3e-3
    screen: float = 0.2
    finalists: int = 2
    front: Sequence[float] = (1.5, 0.7)
    samples: int = 512

    def __post_init__(self) -> None:
        if not self.criteria or not self.rules:
            raise PruneError("no criterion or no rule to try: give at least one of each")
        for criterion in self.criteria:
            known_criteria.by_name(criterion)
        unknown = [r for r in self.rules if r not in RULES]
        if unknown:
            raise PruneError(f"no rule is called {unknown[0]!r}; there is {', '.join(RULES)}")
        for name in ("batch_size", "threads", "finalists", "samples"):
            check_count(name, getattr(self, name))
        if not 0 < self.screen <= 1:
            raise PruneError(f"screen={self.screen!r}: give the share of the steps that candidates get, such as 0.2")


@dataclass(frozen=True)
class Job:
    """A copy of the model, the two splits, an example of the inputs, and what the dense model is worth."""

    model: nn.Module
    train: Any
    valid: Any
    few: tuple[Any, ...]  # batches of the validation data, for the scan
    example: Any
    calib: Calibration
    recover: Recovery
    steps: int
    seed: int
    how: How
    dense: Evaluation
    counts: dict[str, float]  # the dense model's bytes and MACs


def counted(model: nn.Module, example: Any) -> dict[str, float]:
    """A model's bytes and MACs, which no clock is needed for."""
    return {"bytes": float(stored_bytes(model, ["dense"])["dense"]), "macs": float(macs(model, example))}


def job(
    model: nn.Module,
    data: Any,
    valid: Any,
    example: Any,
    steps: int,
    recover: Recovery | None,
    seed: int,
    how: How,
) -> Job:
    """Check the model and the data, and look at the dense model once; PruneError says what does not fit."""
    if not isinstance(model, nn.Module):
        raise PruneError(f"the model is a {type(model).__name__}: give an nn.Module")
    check_plain(model)
    check_numbers(model)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise PruneError(f"recover_steps={steps!r}: give a whole number of training steps, 0 for none")
    learn, choose = _splits(data, valid)
    with undisturbed(model):
        inputs = first_inputs(learn, "train", how.batch_size) if example is None else cut(example, how.batch_size)
    check_steady(model, inputs)
    dense = evaluate(model, choose)
    with undisturbed(model):
        calib = Calibration.of(learn, samples=min(how.samples, 256))
        few = _few(choose, how.samples)
    own = _copied(model)

    def train(small: nn.Module, count: int) -> Any:
        return finetune(small, learn, steps=count, lr=how.lr, seed=seed, progress=False)

    return Job(own, learn, choose, few, inputs, calib, recover or train, steps, seed, how, dense, counted(own, inputs))


def check_steady(model: nn.Module, inputs: Any) -> None:
    """PruneError if the model, in eval mode, answers the same question differently the second time."""
    with undisturbed(model), torch.no_grad():
        placed = to(inputs, device_of(model))
        first, second = (list(tensors(attempt(model, placed))) for _ in range(2))
    largest = max((float(t.abs().max()) for t in first if t.numel()), default=0.0)
    pairs = zip(first, second, strict=True)
    gap = max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)
    if not gap <= STEADY * max(largest, 1e-12):
        raise PruneError(
            f"{type(model).__name__} changes its output between two calls on the same inputs, in eval mode, by "
            f"{gap:.2g}: nothing can be compared. Is there a dropout that ignores eval mode (F.dropout without "
            "training=self.training), noise in the forward, or a counter?"
        )


def _splits(data: Any, valid: Any) -> tuple[Any, Any]:
    """What to learn from and what to choose on, which must not be the same."""
    if valid is not None:
        return split_of(data, "train"), split_of(valid, "valid")
    if not has_splits(data) or getattr(data, "valid", None) is None:
        raise PruneError(
            f"data is a {type(data).__name__} without a validation split: give valid=, data that no training sees, to "
            "choose on (or data with .train and .valid). Chosen on what it was trained on, the worst model can win"
        )
    return split_of(data, "train"), split_of(data, "valid")


def _few(data: Any, samples: int) -> tuple[Any, ...]:
    """The first validation batches, with so many samples at least, if there are so many."""
    found, n = [], 0
    for batch in batches(data, "valid", size=64):
        found.append(pair(batch))
        n += rows(found[-1][0])
        if n >= samples:
            break
    return tuple(found)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a model's own __deepcopy__ raises
        raise PruneError(f"{type(model).__name__} cannot be copied, and is pruned as a copy: {error}") from error
