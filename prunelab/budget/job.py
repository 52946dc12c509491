"""What a search is about: the model, the data, how hard to try, and what can leave. Checked at the door."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from .. import criteria as known_criteria
from .. import granularity as granularities
from ..calibration import Calibration
from ..checks import check_count, check_number, known
from ..core import Criterion, Granularity, Group, PruneError, device_of, places
from ..data import batches, has_splits, split_of, tensors, to
from ..granularity import GRANULARITIES, Together
from ..layers import CONVOLUTION
from ..measurement import compare, evaluate
from ..measurement.timing import BATCH
from ..recovery import finetune
from ..running import (
    apart,
    attempt,
    check_numbers,
    check_plain,
    cut,
    duplicate,
    first_inputs,
    pair,
    rows,
    undisturbed,
)
from ..surgery import shrink
from ..text import describe
from .costs import any_keep, check_sliced, widths
from .rules import RULES

STEADY = 1e-5  # of the largest output: what a second call on the same inputs may differ by
DEFAULT = tuple(n for n in ("heads", "filters", "neurons") if n in GRANULARITIES)
ALL = "all structures"
PACKS = (8, 16)  # channels that a CPU's vector registers hold, by the machine
GAIN = 1.08  # times: so much faster than 32 must 24 channels be for multiples of 8 to be worth having

Recovery = Callable[[nn.Module, int], Any]  # train the model in place for so many steps


@dataclass(frozen=True)
class SearchOptions:
    """How to search, and what to leave alone.

    criteria, rules: which to try (rules: "sensitivity", "uniform", "global").
    granularity: one, or names of several. exclude: groups that lose nothing.
    round_to: keep channels in multiples of so many; None measures what this machine likes.
    batch_size, threads: those at which latency counts.
    lr: of the recovery.
    screen: the share of the recovery steps that a candidate gets before the best are chosen.
    finalists: how many those are, besides equal shares by the first criterion, which always get all the steps, as the
        control.
    front: further latencies at which the best candidate is looked at, as multiples of the goal.
    samples: of the validation data, in the sensitivity scan, and of the training data, for criteria that look at it.
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
        known("rules", self.rules, RULES)
        for name in ("batch_size", "threads", "finalists", "samples"):
            check_count(name, getattr(self, name))
        check_number(
            "screen", self.screen, "give the share of the steps that candidates get, such as 0.2", above=0, most=1
        )


class Job:
    """A copy of the model, the data, what the dense model is worth, and the groups that can leave; all of it checked.

    few: batches of the validation data, for the scan. groups and widths: what can be removed, and the counts worth
    keeping of each; parts: their names, of all and by the granularity that found them, as a part of `finder`.
    left_alone: layers with weights that stay as they are, by name and kind. notes: what the search for groups said.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        valid: Any,
        example: Any,
        steps: int,
        recover: Recovery | None,
        seed: int,
        how: SearchOptions,
    ):
        if not isinstance(model, nn.Module):
            raise PruneError(f"the model is a {type(model).__name__}: give an nn.Module")
        check_plain(model)
        check_numbers(model)
        check_count("recover_steps", steps, 0)
        self.steps, self.seed, self.how = steps, seed, how
        learn, self.valid = _splits(data, valid)
        with undisturbed(model):
            given = first_inputs(learn, "train", how.batch_size) if example is None else example
            self.example = cut(given, how.batch_size)
            _check_steady(model, self.example)
            self.calib = Calibration.of(learn, samples=min(how.samples, 256))
            self.few = _few(self.valid, how.samples)
        self.dense = evaluate(model, self.valid)
        self.model = duplicate(model)
        self.recover = recover or partial(_finetune, learn, how.lr, seed)
        self.notes: list[str] = []
        self.finder, kinds = _structures(self.model, self.example, how, self.notes)
        self.groups = tuple(g for found in kinds.values() for g in found)
        parts = {ALL: self.groups, **(kinds if len(kinds) > 1 else {})}
        self.parts = {part: tuple(g.name for g in found) for part, found in parts.items()}
        step = how.round_to or liked_multiple(self.model, how.threads)
        self.widths = {g.name: widths(g, step) for g in self.groups}
        self.left_alone = _left_alone(self.model, self.groups)


def _finetune(data: Any, lr: float, seed: int, small: nn.Module, steps: int) -> Any:
    return finetune(small, data, steps=steps, lr=lr, seed=seed, progress=False)


def _check_steady(model: nn.Module, inputs: Any) -> None:
    """PruneError if the model answers the same question differently the second time."""
    with torch.no_grad():
        placed = to(inputs, device_of(model))
        first, second = (list(tensors(attempt(model, placed))) for _ in range(2))
    gap = apart(first, second)
    if not gap <= STEADY:
        raise PruneError(
            f"{type(model).__name__} changes its output between two calls on the same inputs, in eval mode, by "
            f"{gap:.2g} of the largest: nothing can be compared. Is there a dropout that ignores eval mode (F.dropout "
            "without training=self.training), noise in the forward, or a counter?"
        )


def _splits(data: Any, valid: Any) -> tuple[Any, Any]:
    """What to learn from and what to choose on, which must not be the same."""
    if valid is None and (not has_splits(data) or getattr(data, "valid", None) is None):
        raise PruneError(
            f"data is a {type(data).__name__} without a validation split: give valid=, data that no training sees, to "
            "choose on (or data with .train and .valid). Chosen on what it was trained on, the worst model can win"
        )
    return split_of(data, "train"), split_of(data if valid is None else valid, "valid")


def _few(data: Any, samples: int) -> tuple[Any, ...]:
    """The first validation batches, with so many samples at least, if there are so many."""
    found, n = [], 0
    for batch in batches(data, "valid", size=64):
        found.append(pair(batch))
        n += rows(found[-1][0])
        if n >= samples:
            break
    return tuple(found)


def _structures(
    model: nn.Module, example: Any, how: SearchOptions, notes: list[str]
) -> tuple[str | Granularity, dict[str, Sequence[Group]]]:
    """What finds the groups, by default heads, filters and neurons, and those that can leave by their granularity."""
    wanted = DEFAULT if how.granularity is None else how.granularity
    finder = wanted if isinstance(wanted, str) or callable(wanted) else Together(tuple(wanted))
    strategy: Any = granularities.by_name(finder)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        together = isinstance(strategy, Together)
        found = strategy.found(model, example) if together else {describe(finder): strategy(model, example)}
    notes += [str(w.message) for w in heard]
    known("exclude", how.exclude, [g.name for groups in found.values() for g in groups])
    kinds: dict[str, Sequence[Group]] = {}
    for kind, groups in found.items():
        wished = [g for g in groups if g.name not in how.exclude]
        check_sliced(wished)
        if left := [g for g in wished if _can_leave(model, g, notes)]:
            kinds[kind] = left
    if not kinds:
        reasons = "; ".join([*notes, *how.exclude])
        raise PruneError(f"nothing of {type(model).__name__} can be removed: {reasons}")
    return finder, kinds


def _can_leave(model: nn.Module, group: Group, notes: list[str]) -> bool:
    """Whether a group can be removed; noted if not, for a layer whose sizes `shrink` does not know, say."""
    try:
        shrink(model, [group], any_keep([group], {group.name: max(1, group.units // 2)}))
    except PruneError as error:
        notes.append(f"{group.name} stays: {error}")
        return False
    return True


def _left_alone(model: nn.Module, groups: Sequence[Group]) -> tuple[str, ...]:
    """Layers with parameters of two dimensions or more of which no group owns any, as name (kind)."""
    touched = {m.tensor for g in groups for m in g.members}
    layers: dict[str, str] = {}
    for place in places(model):
        if isinstance(place.tensor, nn.Parameter) and place.tensor.dim() > 1 and place.name not in touched:
            path = place.name.rpartition(".")[0] or type(model).__name__
            layers.setdefault(path, type(place.module).__name__)
    return tuple(f"{path} ({kind})" for path, kind in layers.items())


def liked_multiple(model: nn.Module, threads: int = 1) -> int:
    """Of how many channels a convolution should keep a multiple here: 8, or 16 where 24 channels take as long as 32.

    Timed on a 3x3 convolution of 16x16 pictures on the CPU. On a GPU 8, which is what its matrix units ask for (not
    measured).
    """
    if device_of(model).type != "cpu" or not any(isinstance(m, CONVOLUTION) for m in model.modules()):
        return PACKS[0]
    with torch.random.fork_rng(devices=()):
        x = torch.randn(16, 32, 16, 16)
        layers = {str(c): nn.Conv2d(32, c, 3, padding=1) for c in (32, 24)}
    times = compare(layers, x, threads=threads, rounds=9, clock="steady")
    return PACKS[0] if times.speedup["24"].ratio > GAIN else PACKS[1]
