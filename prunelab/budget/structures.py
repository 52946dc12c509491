"""What can leave a model, how many units of it are worth leaving, and what has to be left alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import granularity as granularities
from ..core import Granularity, Group, PruneError, device_of, places
from ..granularity import GRANULARITIES, Together
from ..layers import CONVOLUTION
from ..measurement.rounds import interleaved, resolved, waited_for
from ..surgery import shrink
from .job import How
from .layouts import any_keep, check_sliced, dense_layout, ladder

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
