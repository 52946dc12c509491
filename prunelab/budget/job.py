"""What a search is about: the model, the data, how hard to try, and what can leave. Checked at the door."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import criteria as known_criteria
from .. import granularity as granularities
from ..calibration import Calibration
from ..checks import check_count
from ..core import Group, PruneError, device_of, places
from ..criteria import Criterion
from ..data import batches, has_splits, split_of, to
from ..granularity import GRANULARITIES, Granularity, Together
from ..layers import CONVOLUTION
from ..measurement import Evaluation, evaluate, macs, stored_bytes
from ..measurement.timing import BATCH, interleaved, resolved, waited_for
from ..recovery import finetune
from ..running import attempt, check_numbers, check_plain, cut, first_inputs, pair, rows, undisturbed
from ..surgery import shrink
from ..surgery.difference import tensors
from .costs import any_keep, check_sliced, dense_layout, ladder
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


DEFAULT = tuple(n for n in ("heads", "filters", "neurons") if n in GRANULARITIES)
ALL = "all structures"
PACKS = (8, 16)  # channels that a CPU's vector registers hold, by the machine
GAIN = 0.08  # of the time: 24 channels must be that much faster than 32 for multiples of 8 to be worth having


@dataclass(frozen=True)
class Structures:
    """The groups that can be removed, by the granularity that found them, and the counts worth keeping of each.

    left_alone: layers with weights that stay as they are, by name and kind; notes: what the search for groups said
    """

    finder: str | Granularity
    kinds: dict[str, tuple[str, ...]]
    groups: tuple[Group, ...]
    rungs: dict[str, tuple[int, ...]]
    left_alone: tuple[str, ...]
    notes: tuple[str, ...]

    def parts(self) -> dict[str, tuple[str, ...]]:
        """All groups together, and where several granularities found some, each one's alone."""
        every = tuple(g.name for g in self.groups)
        return {ALL: every, **(self.kinds if len(self.kinds) > 1 else {})}


def structures(model: nn.Module, example: Any, how: How) -> Structures:
    """Find them, by default heads, filters and neurons; PruneError if there is nothing that could leave."""
    finder, exclude = _finder(how.granularity), how.exclude
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = _found(finder, model, example)
    unknown = [n for n in exclude if n not in {g.name for groups in found.values() for g in groups}]
    if unknown:
        names = ", ".join(g.name for groups in found.values() for g in groups)
        raise PruneError(f"exclude names {unknown[0]!r}, which is no group of this model: there is {names}")
    check_sliced([g for groups in found.values() for g in groups if g.name not in exclude])
    kinds: dict[str, list[Group]] = {}
    failed: list[str] = []
    for name, groups in found.items():
        fit = [g for g in groups if g.name not in exclude and not _refusal(model, g, failed)]
        if fit:
            kinds[name] = fit
    every = tuple(g for groups in kinds.values() for g in groups)
    if not every:
        raise PruneError(
            f"nothing of {type(model).__name__} can be removed: " + "; ".join([*failed, *map(str, exclude)])
        )
    step = how.round_to or liked_multiple(model, how.threads)
    return Structures(
        finder,
        {name: tuple(g.name for g in groups) for name, groups in kinds.items()},
        every,
        {g.name: ladder(g, step) for g in every},
        left_alone(model, every),
        tuple(dict.fromkeys([*(str(w.message) for w in heard), *failed])),
    )


def left_alone(model: nn.Module, groups: Sequence[Group]) -> tuple[str, ...]:
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
    device = device_of(model)
    if device.type != "cpu" or not any(isinstance(m, CONVOLUTION) for m in model.modules()):
        return PACKS[0]
    with torch.random.fork_rng(devices=()), torch.inference_mode():
        x = torch.randn(16, 32, 16, 16)
        tasks = {str(c): waited_for(_convolution(c, x), device) for c in (32, 24)}
        clock = resolved("steady", threads, device.type)
        times = interleaved(tasks, threads=threads, rounds=9, clock=clock, block=2e-3)
    ratios = sorted(b / a for a, b in zip(times["32"], times["24"], strict=True))
    return PACKS[1] if ratios[len(ratios) // 2] > 1 - GAIN else PACKS[0]


def _convolution(channels: int, x: torch.Tensor) -> Any:
    layer = nn.Conv2d(32, channels, 3, padding=1).eval()
    return lambda: layer(x)


def _finder(wanted: str | Granularity | Sequence[str] | None) -> str | Granularity:
    if wanted is None:
        return Together(DEFAULT)
    if isinstance(wanted, str) or callable(wanted):
        granularities.by_name(wanted)
        return wanted
    return Together(tuple(wanted))


def _found(finder: str | Granularity, model: nn.Module, example: Any) -> dict[str, list[Group]]:
    if isinstance(finder, Together):
        return finder.found(model, example)
    name = finder if isinstance(finder, str) else getattr(finder, "__name__", type(finder).__name__)
    return {name: granularities.by_name(finder)(model, example)}


def _refusal(model: nn.Module, group: Group, failed: list[str]) -> bool:
    """Whether a group can't be removed, for a layer whose sizes `shrink` does not know, say; noted if so."""
    try:
        shrink(model, [group], any_keep([group], {**dense_layout([group]), group.name: max(1, group.units // 2)}))
    except PruneError as error:
        failed.append(f"{group.name} stays: {error}")
        return True
    return False
