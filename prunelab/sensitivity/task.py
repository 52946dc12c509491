"""One group's curve: what a scan does for each, in this process or in another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # joblib needs it, and brings it
import numpy as np
import torch
from torch import Tensor, nn

from .. import units
from ..allocation import allocate, is_structure
from ..batches import batches, to
from ..core import Group, Masks, PruneError, Scores, device_of, lookup_all
from ..masking import bake
from ..measurement.accuracy import Evaluation
from ..measurement.conditions import pair, undisturbed
from .replay import Replay, Weights
from .result import Curve

LANES = {"cpu": 16}  # samples times sparsities in one pass: a CPU gains only where the batches are tiny
LANES_ELSEWHERE = 2048  # a GPU is idle with less
HELD = 1 << 28  # bytes of pruned weights held ready at once; of larger layers they are made for every batch
INLINE = 8_000_000  # bytes sent with every single task; Dask warns at 10 MB

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """What the tasks of all groups have in common."""

    model: nn.Module
    data: Any
    split: str
    sparsities: tuple[float, ...]
    batch_size: int
    loss: Loss
    dense: Evaluation


def packed(job: Job) -> bytes | np.ndarray:
    """The job as bytes that go with every task, so that Dask can give a dead worker's tasks to another.

    Where that would be too much, as an array: joblib puts it into shared memory, and Dask on the workers, once each.
    """
    try:
        found = cloudpickle.dumps(job)
    except Exception as error:  # whatever a model's or a data set's own code raises
        raise PruneError(f"model and data cannot be sent to other processes: {error}. Use n_jobs=1") from error
    return found if len(found) <= INLINE else np.frombuffer(found, np.uint8)


def measured(sent: Job | bytes | np.ndarray, group: Group, scores: Scores) -> Curve:
    """One group's curve: the task that joblib runs, here or elsewhere."""
    job: Job = sent if isinstance(sent, Job) else cloudpickle.loads(sent)
    model = _own(job.model)
    counts = _counts(group, job.sparsities)
    masks = {k: _masks(model, group, scores, k) for k in sorted(set(counts)) if k}
    with steady(model), torch.no_grad():
        found, how = _tallied(job, model, masks) if masks else ({}, "suffix")
    found[0] = (job.dense.correct, job.dense.loss)
    correct, loss = zip(*(found[k] for k in counts), strict=True)
    return Curve(group.name, group.units, counts, correct, loss, how)


def _own(model: nn.Module) -> nn.Module:
    """A copy to prune, whose convolutions run channels-last: pooling alone is ten times faster so on a CPU."""
    try:
        twin = copy.deepcopy(model)
    except Exception as error:  # whatever a model's own __deepcopy__ raises
        raise PruneError(f"{type(model).__name__} cannot be copied, and is pruned as a copy: {error}") from error
    bake(twin)
    return twin.to(memory_format=torch.channels_last) if any(p.dim() == 4 for p in twin.parameters()) else twin


@contextmanager
def steady(model: nn.Module) -> Iterator[None]:
    """Eval mode, and the same dice for every pass over the data: a loader that shuffles gives the same batches."""
    with undisturbed(model):
        torch.default_generator.manual_seed(0)  # not torch.manual_seed, which would reach for GPUs
        yield


def _counts(group: Group, sparsities: tuple[float, ...]) -> tuple[int, ...]:
    """How many units go: as many as `allocate` takes of a layer, which leaves a structure its last unit."""
    most = group.units - is_structure(group)
    return tuple(min(round(s * group.units), most) for s in sparsities)


def _masks(model: nn.Module, group: Group, scores: Scores, count: int) -> Masks:
    if count == group.units:
        return units.expand(model, [group], {group.name: torch.zeros(count, dtype=torch.bool)})
    return units.expand(model, [group], allocate(scores, [group], count / group.units, "layer"))


def _tallied(job: Job, model: nn.Module, masks: Mapping[int, Masks]) -> tuple[dict[int, tuple[int, float]], str]:
    """The labels right and the mean loss by count of units removed, from one pass over the data."""
    names = dict.fromkeys(name for own in masks.values() for name in own)  # of whole modules only those that go
    dense = {name: places[0].tensor.detach() for name, places in lookup_all(model, names).items()}
    size = sum(w.numel() * w.element_size() for w in dense.values()) * len(masks)
    counts, device = list(masks), device_of(model)
    lanes = LANES.get(device.type, LANES_ELSEWHERE)

    @lru_cache(maxsize=None if size <= HELD else 0)
    def weights(count: int) -> Weights:
        # Cloned first: masked_fill alone would give the mask's memory format, and all that follows would be in it.
        own = masks[count]
        return {n: w.clone().masked_fill_(~own[n].to(w.device), 0) if n in own else w for n, w in dense.items()}

    runs, how, n = Replay(model, names), "", 0
    correct, total = dict.fromkeys(counts, 0), dict.fromkeys(counts, 0.0)
    for batch in batches(job.data, job.split, size=job.batch_size):
        inputs, targets = to(pair(batch), device)
        if not len(targets):
            continue
        if not how:
            how = _how(runs, weights(counts[-1]), inputs, stack=min(lanes // len(targets), len(counts)) > 1)
        at_once = max(1, lanes // len(targets)) if how == "stacked" else 1
        chunks = [counts[i : i + at_once] for i in range(0, len(counts), at_once)]
        for count, outputs in _outputs(runs, how, chunks, weights, inputs):
            correct[count] += _right(outputs, targets)
            total[count] += float(job.loss(outputs, targets)) * targets.numel()
        n += targets.numel()
    return {k: (correct[k], total[k] / n) for k in counts}, how


def _how(runs: Replay, weights: Weights, inputs: Any, *, stack: bool) -> str:
    if not runs.reusable(weights, inputs):
        return "whole"
    return "stacked" if stack and runs.stackable(weights, inputs) else "suffix"


def _outputs(
    runs: Replay, how: str, chunks: list[list[int]], weights: Callable[[int], Weights], inputs: Any
) -> Iterator[tuple[int, Tensor]]:
    """(count, outputs) for every count of units removed, a chunk of them at a time."""
    if how != "whole":
        runs.record(inputs)
    run = runs.whole if how == "whole" else runs.run
    for chunk in chunks:
        if len(chunk) == 1:
            yield chunk[0], run(weights(chunk[0]), inputs)
            continue
        each = [weights(k) for k in chunk]
        stack = {name: torch.stack([w[name] for w in each]) for name in each[0]}
        yield from zip(chunk, runs.stacked(stack, inputs), strict=True)


def _right(outputs: Tensor, targets: Tensor) -> int:
    """As `evaluate` counts: an output with a NaN is wrong."""
    return int(((outputs.argmax(dim=1) == targets) & ~outputs.isnan().any(dim=1)).sum())
