"""`filters`, `neurons` and `width`: channels of any network that leave together, with all that belongs to them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import layers
from ..core import Group, Groups, Member, NothingFound
from ..decoders import is_decoder
from ..running import dice_kept
from .depth import glu_neurons
from .proof import proven
from .registry import register
from .tracing import BY_HAND, Port, Trace, on, trace

CONVOLUTIONS = {"convolution", "depthwise"}  # the kinds of layers that `operators.makes` tells


@register("filters")
def filters(model: nn.Module, example: Any = None) -> Groups:
    """Convolution filters, with all that must leave with them, of any network that runs on the example.

    A unit is a filter and its bias, its BatchNorm channel (a filter of zeros would still emit beta), the columns of
    every layer that reads it, and the filters it is added to or multiplied with. In a grouped convolution or under
    a GroupNorm it is a whole group of channels, or, of a convolution all whose groups are tied, the same channel of
    each; halves that a split or a gate pairs leave in pairs. What the model outputs stays. `stays` of the result says
    of each layer that keeps channels why.

    `exact` says that a masked model and a shrunk one compute the same; each group is tried. LayerNorm over the
    channels, for one, is not exact, because it averages over the zeros. What fails without some of its channels, or
    computes something else, is left out, and named in `stays`. Fang et al. 2023, arXiv 2301.12900, saw that such
    groups can be found for any architecture; how it is done here stands in `granularity.tracing`.

    Raises PruneError without an example, for one that does not fit, and for a model without a filter that could go.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> (group,) = filters(net, torch.zeros(1, 1, 8, 8))
    >>> group.units, [(member.tensor, member.dim) for member in group.members]
    (4, [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)])
    """
    return _some(model, example, lambda kinds: bool(kinds & CONVOLUTIONS), "filter of a convolution")


@register("neurons")
def neurons(model: nn.Module, example: Any = None) -> Groups:
    """Neurons of hidden Linear layers: a unit is a row and its bias, and the columns of every layer that reads it.

    Otherwise as `filters`; channels that a convolution makes too are filters, not neurons (a depthwise one hands them
    on), and those of a residual stream are its `width`. In a Llama-like decoder they are those of its gated MLPs, found
    without tracing and without an example: `glu_neurons`.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> (group,) = neurons(net, torch.zeros(1, 3))
    >>> group.units, [(member.tensor, member.dim) for member in group.members]
    (4, [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)])
    """
    if is_decoder(model):
        return Groups(glu_neurons(model))
    hidden = {"convolution", "width"}.isdisjoint
    return _some(model, example, hidden, "neuron of a hidden Linear layer")


@register("width")
def width(model: nn.Module, example: Any = None) -> Groups:
    """The channels of residual streams that a LayerNorm or RMSNorm scales: a Transformer's width.

    A unit is a channel of the stream in every layer that writes to it or reads it, embeddings and norms included. It
    is never exact: the norm averages over the zeros of a masked model, and over what is left of a shrunk one.
    Otherwise as `filters`. Muralidharan et al. 2024, arXiv 2407.14679.

    >>> from prunelab import zoo
    >>> (stream,) = width(zoo.vit(width=48, depth=1), torch.zeros(1, 1, 16, 16))
    >>> stream.units, stream.exact
    (48, False)
    """
    return _some(model, example, lambda kinds: "width" in kinds, "residual stream under a norm")


@register("coupled")
def coupled(model: nn.Module, example: Any = None) -> Groups:
    """All filters and neurons of a model, from a single trace: see `filters`.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> [(group.name, group.units) for group in coupled(net, torch.zeros(1, 1, 8, 8))]
    [('0', 4), ('2', 5)]
    """
    return _some(
        model, example, lambda kinds: bool(kinds & CONVOLUTIONS) or "width" not in kinds, "filter or hidden neuron"
    )


def _some(model: nn.Module, example: Any, wanted: Callable[[set[str]], bool], what: str) -> Groups:
    """The groups, of all that a trace shows, whose channels are made by the wanted kinds of layers."""
    layers.check_kind(model)
    with torch.inference_mode(False), dice_kept():
        inputs = on(model, example)
        seen = trace(model, inputs)
        found = candidates(seen)
        assumed = {c.group.name: c.assumed for c in found if c.assumed}
        groups, refuted = proven(model, [c.group for c in found], assumed, inputs)
    names = {c.group.name for c in found if wanted(c.kinds)}
    left_out = {name: why for name, why in refuted.items() if name in names}
    return given(model, Groups((g for g in groups if g.name in names), _stays(seen, found, refuted)), left_out, what)


def given(model: nn.Module, groups: Groups, left_out: Mapping[str, str], what: str) -> Groups:
    """The groups, with a warning of those left out; NothingFound, which says what stays and why, if there are none."""
    if not groups:
        reasons = {**left_out, **groups.stays}
        why = "; ".join(f"{layer}: {reason}" for layer, reason in list(reasons.items())[:5])
        raise NothingFound(
            f"{type(model).__name__} has no {what} that could be removed. {'What stays, and why: ' if why else ''}"
            f"{why}{'. ' if why else ''}{BY_HAND}"
        )
    if left_out:
        told = "; ".join(f"{name} {why}" for name, why in left_out.items())
        warnings.warn(f"left out: {told}", stacklevel=4)
    return groups


@dataclass(frozen=True)
class Candidate:
    """A group before it is tried, the kinds of layers that make its channels, and what was taken for granted."""

    group: Group
    kinds: set[str]
    assumed: str
    first: int  # the number of its root's first channel: the model's order
    sets: set[int]  # of the trace, a unit each


def candidates(seen: Trace) -> list[Candidate]:
    """Sets that take as many entries of the same ports become the units of one group; in the model's order."""
    of_number = np.repeat(np.arange(len(seen.ports)), [p.size for p in seen.ports])  # number - 1 -> its port
    makers = {p.layer for p in seen.ports if p.makes}
    label = seen.label[1:]
    stuck = np.zeros(int(label.max(initial=0)) + 1, bool)
    stuck[list(seen.stays)] = True
    moving = np.nonzero(~stuck[label])[0]
    marks = np.random.default_rng(0).integers(2**62, size=len(seen.ports), dtype=np.uint64)
    signature = np.zeros(len(stuck), np.uint64)
    np.add.at(signature, label[moving], marks[of_number[moving]])
    rank = np.argsort(np.argsort(signature, kind="stable"))  # of the sets, those that are alike side by side
    order = moving[np.argsort(rank[label[moving]], kind="stable")]
    bounds = np.nonzero(np.diff(signature[label[order]]))[0] + 1
    found = []
    for numbers in np.split(order, bounds) if len(order) else ():
        count = 1 + np.count_nonzero(np.diff(label[numbers]))
        table = numbers.reshape(count, -1)  # (units, entries each), the ports in the same order in every row
        found.append(_group(seen, makers, [seen.ports[i] for i in of_number[table[0]]], table + 1))
    return sorted((c for c in found if c is not None), key=lambda c: c.first)


def _group(seen: Trace, makers: set[str], each: list[Port], table: np.ndarray) -> Candidate | None:
    """One group, its root first: the layer that makes its channels. None for sets that no layer makes, or for one."""
    columns: dict[Port, list[int]] = {}
    for column, port in enumerate(each):
        columns.setdefault(port, []).append(column)
    sets = seen.label[table[:, 0]].tolist()
    made = [p for p in columns if p.makes]
    if not (made or seen.heads.keys() & sets) or len(table) < 2:  # the only unit of a group never leaves
        return None
    root = (made or list(columns))[0]
    table = table[np.argsort(table[:, columns[root][0]])]
    members: list[Member] = []
    norms: list[Member] = []
    for port in (root, *(p for p in columns if p is not root)):
        index = table[:, columns[port]] - port.first
        whole = index.size == port.size and bool((index.reshape(-1) == np.arange(port.size)).all())
        member = Member(port.name, port.dim, index.shape[1], None if whole else torch.from_numpy(index.copy()),
                        learned=port.learned)  # fmt: skip
        (norms if port.bare else members).append(member)
    inexact = not seen.inexact.isdisjoint(sets)
    kinds = {p.makes for p in made}
    readers = [p for p in columns if not p.makes and p.name.endswith("weight") and p.layer in makers]
    if inexact and len(made) > 1 and ("embedding" in kinds or ("linear" in kinds and len(readers) > 1)):
        kinds.add("width")  # a norm within an MLP has one reader, the stream's all its blocks
    group = Group(_name(root, members[0], table), len(table), tuple(members), exact=not inexact, norms=tuple(norms))
    assumed = next((seen.assumed[s] for s in sets if s in seen.assumed), "")
    return Candidate(group, kinds, assumed, int(table[0, columns[root][0]]), set(sets))


def _name(root: Port, member: Member, table: np.ndarray) -> str:
    """The layer's own name if all its channels are in the group, else with a slice or the first of its channels."""
    own = np.arange(root.size) if member.index is None else np.sort(member.index.numpy().reshape(-1))
    if len(own) == root.size:
        return root.layer
    step = int(own[1] - own[0]) if len(own) > 1 else 1
    if (np.diff(own) == step).all():
        return f"{root.layer}[{own[0]}:{own[-1] + 1}{f':{step}' if step > 1 else ''}]"
    return f"{root.layer}[{own[0]}, {own[1]}, ...]"


def _stays(seen: Trace, found: list[Candidate], refuted: dict[str, str]) -> dict[str, str]:
    """Why, of each layer that makes channels which are in no group; one reason each, in the model's order."""
    because: dict[int, str] = dict(seen.stays)
    grouped = np.zeros(int(seen.label.max()) + 1, bool)
    for candidate in found:
        if candidate.group.name in refuted:
            because |= dict.fromkeys(candidate.sets, refuted[candidate.group.name])
        else:
            grouped[list(candidate.sets)] = True
    stays: dict[str, str] = {}
    for port in seen.ports:
        sets = seen.label[port.first : port.first + port.size]
        if port.makes not in ("", "embedding") and not grouped[sets].all():
            left = sorted({int(s) for s in sets[~grouped[sets]]})
            why = next((because[s] for s in left if s in because), "is one unit, which never leaves")
            stays.setdefault(port.layer, why)
    return stays | seen.opaque
