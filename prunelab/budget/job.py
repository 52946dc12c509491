"""What a search is about: the model, the data, how hard to try, and what can leave. Checked at the door."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import criteria as known_criteria
from .. import granularity as granularities
from ..calibration import Calibration
from ..checks import check_count, check_number
from ..core import Criterion, Granularity, Group, PruneError, device_of, places
from ..data import batches, has_splits, split_of, tensors, to
from ..granularity import GRANULARITIES, Together
from ..layers import CONVOLUTION
from ..measurement import Evaluation, evaluate, macs, stored_bytes
from ..measurement.timing import BATCH, Conditions, in_turns
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
GAIN = 0.08  # of the time: 24 channels must be that much faster than 32 for multiples of 8 to be worth having

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
        unknown = [r for r in self.rules if r not in RULES]
        if unknown:
            raise PruneError(f"no rule is called {unknown[0]!r}; there is {', '.join(RULES)}")
        for name in ("batch_size", "threads", "finalists", "samples"):
            check_count(name, getattr(self, name))
        check_number(
            "screen", self.screen, "give the share of the steps that candidates get, such as 0.2", above=0, most=1
        )


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
    how: SearchOptions
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
    how: SearchOptions,
) -> Job:
    """Check the model and the data, and look at the dense model once; PruneError says what does not fit."""
    if not isinstance(model, nn.Module):
        raise PruneError(f"the model is a {type(model).__name__}: give an nn.Module")
    check_plain(model)
    check_numbers(model)
    check_count("recover_steps", steps, 0)
    learn, choose = _splits(data, valid)
    with undisturbed(model):
        inputs = first_inputs(learn, "train", how.batch_size) if example is None else cut(example, how.batch_size)
        _check_steady(model, inputs)
        calib = Calibration.of(learn, samples=min(how.samples, 256))
        few = _few(choose, how.samples)
    dense = evaluate(model, choose)
    own = duplicate(model)

    def train(small: nn.Module, count: int) -> Any:
        return finetune(small, learn, steps=count, lr=how.lr, seed=seed, progress=False)

    return Job(own, learn, choose, few, inputs, calib, recover or train, steps, seed, how, dense, counted(own, inputs))


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


@dataclass(frozen=True)
class Structures:
    """The groups that can be removed, by the granularity that found them, and the counts worth keeping of each.

    left_alone: layers with weights that stay as they are, by name and kind; notes: what the search for groups said
    """

    finder: str | Granularity
    kinds: dict[str, tuple[str, ...]]
    groups: tuple[Group, ...]
    widths: dict[str, tuple[int, ...]]
    left_alone: tuple[str, ...]
    notes: tuple[str, ...]

    def parts(self) -> dict[str, tuple[str, ...]]:
        """All groups together, and where several granularities found some, each one's alone."""
        every = tuple(g.name for g in self.groups)
        return {ALL: every, **(self.kinds if len(self.kinds) > 1 else {})}


def structures(model: nn.Module, example: Any, how: SearchOptions) -> Structures:
    """Find them, by default heads, filters and neurons; PruneError if there is nothing that could leave."""
    finder, exclude = _finder(how.granularity), how.exclude
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = _found(finder, model, example)
    names = [g.name for groups in found.values() for g in groups]
    unknown = [n for n in exclude if n not in names]
    if unknown:
        raise PruneError(f"exclude names {unknown[0]!r}, which is no group of this model: there is {', '.join(names)}")
    check_sliced([g for groups in found.values() for g in groups if g.name not in exclude])
    kinds: dict[str, list[Group]] = {}
    failed: list[str] = []
    for name, groups in found.items():
        fit = [g for g in groups if g.name not in exclude and not _refused(model, g, failed)]
        if fit:
            kinds[name] = fit
    every = tuple(g for groups in kinds.values() for g in groups)
    if not every:
        reasons = "; ".join([*failed, *map(str, exclude)])
        raise PruneError(f"nothing of {type(model).__name__} can be removed: {reasons}")
    step = how.round_to or liked_multiple(model, how.threads)
    return Structures(
        finder,
        {name: tuple(g.name for g in groups) for name, groups in kinds.items()},
        every,
        {g.name: widths(g, step) for g in every},
        _left_alone(model, every),
        tuple(dict.fromkeys([*(str(w.message) for w in heard), *failed])),
    )


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
    with torch.random.fork_rng(devices=()), torch.inference_mode():
        x = torch.randn(16, 32, 16, 16)
        layers = {c: nn.Conv2d(32, c, 3, padding=1).eval() for c in (32, 24)}
        times = in_turns({str(c): lambda m=m: m(x) for c, m in layers.items()}, Conditions(threads, 9, block=2e-3))  # type: ignore[misc]
    ratios = sorted(b / a for a, b in zip(times["32"], times["24"], strict=True))
    return PACKS[1] if ratios[len(ratios) // 2] > 1 - GAIN else PACKS[0]


def _finder(wanted: str | Granularity | Sequence[str] | None) -> str | Granularity:
    if wanted is None:
        return Together(DEFAULT)
    if isinstance(wanted, str) or callable(wanted):
        granularities.by_name(wanted)
        return wanted
    return Together(tuple(wanted))


def _found(finder: str | Granularity, model: nn.Module, example: Any) -> dict[str, list[Group]]:
    if isinstance(finder, Together):
        return {**finder.found(model, example)}
    return {describe(finder): granularities.by_name(finder)(model, example)}


def _refused(model: nn.Module, group: Group, failed: list[str]) -> bool:
    """Whether a group can't be removed, for a layer whose sizes `shrink` does not know, say; noted if so."""
    try:
        shrink(model, [group], any_keep([group], {group.name: max(1, group.units // 2)}))
    except PruneError as error:
        failed.append(f"{group.name} stays: {error}")
        return True
    return False
