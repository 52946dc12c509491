"""`filters` and `neurons`: channels of any network that leave together, with all that belongs to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..core import Group, Member, PruneError, join
from ..decoders import is_decoder
from .depth import glu_neurons
from .ports import Port
from .proof import proven
from .tracing import BY_HAND, on, plain_copy, trace

Tied = dict[Port, list[int]]  # channels that leave together: port -> which of its channels


def filters(model: nn.Module, example: Any = None) -> list[Group]:
    """Convolution filters, with all that must leave with them, for any network that autograd can follow.

    A unit is a filter and its bias, its BatchNorm channel (a filter of zeros would still emit beta), the columns of
    every layer that reads it, and the filters it is added to or multiplied with. In a grouped convolution or under
    a GroupNorm it is a whole group of channels. What the model outputs stays.

    `exact` of each group is found by trying: a copy with half of the units zeroed is compared with one without
    them. LayerNorm over the channels, for one, is not exact, because it averages over the zeros. Groups without
    which the model fails are left out, and of unexplained differences there is a warning. Fang et al. 2023, arXiv
    2301.12900, whose Torch-Pruning traces the model (a copy; yours is left as it is).

    Raises PruneError without an example, for one that does not fit, and for a model that cannot be traced.
    """
    return _some([g for g, convolved in _found(model, example) if convolved], "filter of a convolution", model)


def neurons(model: nn.Module, example: Any = None) -> list[Group]:
    """Neurons of hidden Linear layers: a unit is a row and its bias, and the columns of every layer that reads it.

    Otherwise as `filters`; channels that a convolution makes too are filters, not neurons. In a Llama-like decoder they
    are those of its gated MLPs, found without tracing and without an example: `glu_neurons`.
    """
    if is_decoder(model):
        return glu_neurons(model)
    found = [g for g, convolved in _found(model, example) if not convolved]
    return _some(found, "neuron of a hidden Linear layer", model)


def coupled(model: nn.Module, example: Any = None) -> list[Group]:
    """All filters and neurons of a model, from a single trace: see `filters`."""
    return _some([g for g, _ in _found(model, example)], "filter or hidden neuron", model)


def _found(model: nn.Module, example: Any) -> list[tuple[Group, bool]]:
    """Every coupled group, and whether a convolution makes its channels."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.inference_mode(False), torch.random.fork_rng(devices=gpus):
        twin = plain_copy(model)
        inputs = on(model, example)
        try:
            found = list(_groups(trace(twin, inputs).sets()))
            convolved = {g.name: by_convolution for g, by_convolution in found}
            return [(g, convolved[g.name]) for g in proven(twin, [g for g, _ in found], inputs)]
        finally:
            # The classes that torch made for its masks refer in a circle to its layers, and would keep their weights
            # until Python looks for cycles.
            for tensor in (*twin.parameters(), *twin.buffers()):
                tensor.data = tensor.data.new_empty(0)


def _some(groups: list[Group], what: str, model: nn.Module) -> list[Group]:
    if not groups:
        raise PruneError(f"{type(model).__name__} has no {what} that could be removed. {BY_HAND}")
    return groups


def _groups(sets: list[Tied]) -> Iterator[tuple[Group, bool]]:
    """Sets that touch the same ports in step with each other become the units of one group."""
    alike: dict[tuple[Any, ...], list[Tied]] = {}
    for tied in sets:
        if any(port.side == "out" for port in tied):
            pattern = tuple((port, *(size for _, size in _runs(channels))) for port, channels in tied.items())
            alike.setdefault(pattern, []).append(tied)
    for run in (run for tieds in alike.values() for run in _in_step(tieds)):
        if len(run) > 1:  # the only unit of a group never leaves
            made_by = (port.module for port in run[0] if port.side == "out")
            yield _group(run), any(isinstance(m, nn.modules.conv._ConvNd) for m in made_by)


def _runs(channels: list[int]) -> list[tuple[int, int]]:
    """Consecutive channels as (first, how many)."""
    runs: list[tuple[int, int]] = []
    for channel in channels:
        if runs and channel == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((channel, 1))
    return runs


def _in_step(tieds: list[Tied]) -> Iterator[list[Tied]]:
    """Cut a list of alike sets wherever the next one does not follow on directly, in every port."""
    run: list[Tied] = []
    for tied in tieds:
        if run and not all(_follows(run[-1][port], channels) for port, channels in tied.items()):
            yield run
            run = []
        run.append(tied)
    if run:
        yield run


def _follows(before: list[int], channels: list[int]) -> bool:
    return all(a + size == b for (a, size), (b, _) in zip(_runs(before), _runs(channels), strict=True))


def _group(run: list[Tied]) -> Group:
    members, norms = [], []
    for port, channels in run[0].items():
        if port.side == "through" and not port.owned:
            norms += [Member(port.layer, 0, size, first) for first, size in _runs(channels)]
        for attribute, dim, learned in port.owned:
            name = join(port.layer, attribute) if attribute else port.layer
            members += [Member(name, dim, size, first, learned=learned) for first, size in _runs(channels)]
    root = next(port for port in run[0] if port.side == "out")
    first, last = run[0][root][0], run[-1][root][-1]
    name = root.layer if (first, last) == (0, root.size - 1) else f"{root.layer}[{first}:{last + 1}]"
    return Group(name, len(run), tuple(members), norms=tuple(norms))
