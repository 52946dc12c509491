"""`filters`, `neurons` and `width`: channels of any network that leave together, with all that belongs to them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import layers
from ..core import Group, Groups, Member, PruneError
from ..decoders import is_decoder
from .depth import glu_neurons
from .operators import makes
from .proof import proven
from .registry import register
from .tracing import BY_HAND, Port, Trace, on, plain_twin, trace


@register("filters")
def filters(model: nn.Module, example: Any = None) -> Groups:
    """Convolution filters, with all that must leave with them, of any network that runs on the example.

    A unit is a filter and its bias, its BatchNorm channel (a filter of zeros would still emit beta), the columns of
    every layer that reads it, and the filters it is added to or multiplied with. In a grouped convolution or under
    a GroupNorm it is a whole group of channels; halves that a split or a gate pairs leave in pairs. What the model
    outputs stays. `stays` of the result says of each layer that keeps channels why.

    `exact` says that a masked model and a shrunk one compute the same; each group is tried. LayerNorm over the
    channels, for one, is not exact, because it averages over the zeros. What fails without some of its channels, or
    computes something else, is left out, and named in `stays`. Fang et al. 2023, arXiv 2301.12900, saw that such
    groups can be found for any architecture; how it is done here stands in `granularity.tracing`.

    Raises PruneError without an example, for one that does not fit, and for a model without a filter that could go.
    """
    return _some(_found(model, example), lambda kinds: "convolution" in kinds, "filter of a convolution", model)


@register("neurons")
def neurons(model: nn.Module, example: Any = None) -> Groups:
    """Neurons of hidden Linear layers: a unit is a row and its bias, and the columns of every layer that reads it.

    Otherwise as `filters`; channels that a convolution makes too are filters, not neurons, and those of a residual
    stream are its `width`. In a Llama-like decoder they are those of its gated MLPs, found without tracing and
    without an example: `glu_neurons`.
    """
    if is_decoder(model):
        return Groups(glu_neurons(model))
    found = _found(model, example)
    return _some(
        found, lambda kinds: kinds.isdisjoint(("convolution", "width")), "neuron of a hidden Linear layer", model
    )


@register("width")
def width(model: nn.Module, example: Any = None) -> Groups:
    """The channels of residual streams that a LayerNorm or RMSNorm scales: a Transformer's width.

    A unit is a channel of the stream in every layer that writes to it or reads it, embeddings and norms included. It
    is never exact: the norm averages over the zeros of a masked model, and over what is left of a shrunk one.
    Otherwise as `filters`. Muralidharan et al. 2024, arXiv 2407.14679.
    """
    return _some(_found(model, example), lambda kinds: "width" in kinds, "residual stream under a norm", model)


@register("coupled")
def coupled(model: nn.Module, example: Any = None) -> Groups:
    """All filters and neurons of a model, from a single trace: see `filters`."""
    found = _found(model, example)
    return _some(found, lambda kinds: "convolution" in kinds or "width" not in kinds, "filter or hidden neuron", model)


@dataclass(frozen=True)
class _Found:
    """Every coupled group with what makes its channels, and why other layers stay."""

    groups: list[tuple[Group, set[str]]]
    stays: dict[str, str]
    refuted: list[tuple[str, set[str]]]  # tried, and not right: what was tried, and with which outcome


def _found(model: nn.Module, example: Any) -> _Found:
    layers.check_kind(model)
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.inference_mode(False), torch.random.fork_rng(devices=gpus):
        twin, inputs = plain_twin(model), on(model, example)
        seen = trace(twin, inputs)
        found = sorted(candidates(twin, seen), key=lambda c: c.first)
        assumed = {c.group.name: c.assumed for c in found if c.assumed}
        proof = proven(twin, [c.group for c in found], assumed, inputs)
    kinds = {c.group.name: c.kinds for c in found}
    refuted = [(f"{name} {why}", kinds[name]) for name, why in proof.refuted.items()]
    return _Found([(g, kinds[g.name]) for g in proof.groups], _stays(twin, seen, found, proof.refuted), refuted)


def _some(found: _Found, wanted: Callable[[set[str]], bool], what: str, model: nn.Module) -> Groups:
    groups = Groups((g for g, kinds in found.groups if wanted(kinds)), found.stays)
    missing = [told for told, kinds in found.refuted if wanted(kinds)]
    if missing:
        warnings.warn(f"left out: {'; '.join(missing)}", stacklevel=3)
    if not groups:
        why = "; ".join(f"{layer}: {reason}" for layer, reason in list(found.stays.items())[:5])
        raise PruneError(
            f"{type(model).__name__} has no {what} that could be removed. {'What stays, and why: ' if why else ''}"
            f"{why}{'. ' if why else ''}{BY_HAND}"
        )
    return groups


@dataclass(frozen=True)
class Candidate:
    """A group before it is tried, the kinds of layers that make its channels, and what was taken for granted."""

    group: Group
    kinds: set[str]
    assumed: str
    first: int  # the number of its root's first channel: the model's order
    sets: set[int]  # of the trace, a unit each


def candidates(twin: nn.Module, seen: Trace) -> Iterator[Candidate]:
    """Sets that take as many entries of the same ports become the units of one group."""
    of_number = np.repeat(np.arange(len(seen.ports)), [p.size for p in seen.ports])  # number - 1 -> its port
    label = seen.label[1:]
    moving = np.nonzero(~np.isin(label, list(seen.stays)))[0]
    marks = np.random.default_rng(0).integers(2**62, size=len(seen.ports), dtype=np.uint64)
    signature = np.zeros(int(label.max(initial=0)) + 1, np.uint64)
    np.add.at(signature, label[moving], marks[of_number[moving]])
    order = moving[np.lexsort((moving, label[moving], signature[label[moving]]))]
    bounds = np.nonzero(np.diff(signature[label[order]]))[0] + 1
    for numbers in np.split(order, bounds) if len(order) else ():
        count = len(np.unique(label[numbers]))
        table = numbers.reshape(count, -1)  # (units, entries each), the ports in the same order in every row
        made = _group(twin, seen, [seen.ports[i] for i in of_number[table[0]]], table + 1)
        if made is not None:
            yield made


def _group(twin: nn.Module, seen: Trace, each: list[Port], table: np.ndarray) -> Candidate | None:
    """One group, its root first: the layer that makes its channels. None for sets that no layer makes, or for one."""
    ports = list(dict.fromkeys(each))
    sets = [int(seen.label[n]) for n in table[:, 0]]
    made = [p for p in ports if _makes(twin, p)]
    if not (made or seen.heads.keys() & sets) or len(table) < 2:  # the only unit of a group never leaves
        return None
    root = (made or ports)[0]
    columns = {p: [i for i, port in enumerate(each) if port is p] for p in ports}
    table = table[np.argsort(table[:, columns[root][0]])]
    members: list[Member] = []
    norms: list[Member] = []
    for port in (root, *(p for p in ports if p is not root)):
        index = table[:, columns[port]] - port.first
        whole = index.size == port.size and bool((index.reshape(-1) == np.arange(port.size)).all())
        member = Member(port.name, port.dim, index.shape[1], None if whole else torch.from_numpy(index.copy()),
                        learned=port.learned)  # fmt: skip
        (norms if port.bare else members).append(member)
    inexact = not seen.inexact.isdisjoint(sets)
    kinds = {k for p in made if (k := _makes(twin, p))}
    if inexact and kinds & {"linear", "embedding"} and len(made) > 1:
        kinds.add("width")
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


def _makes(twin: nn.Module, port: Port) -> str | None:
    """What kind of layer makes its channels at this port, if any does."""
    made = makes(twin.get_submodule(port.layer)) if not port.bare and port.name.endswith("weight") else None
    return made[0] if made and made[1] == port.dim else None


def _stays(twin: nn.Module, seen: Trace, found: list[Candidate], refuted: dict[str, str]) -> dict[str, str]:
    """Why, of each layer that makes channels which are in no group; one reason each, in the model's order."""
    because: dict[int, str] = dict(seen.stays)
    grouped: set[int] = set()
    position = {(p.name, p.dim): p for p in seen.ports}
    for group in (c.group for c in found):
        root = group.members[0]
        port = position[root.tensor, root.dim or 0]
        own = np.arange(port.size) if root.index is None else root.index.numpy().reshape(-1)
        sets = {int(s) for s in seen.label[port.first + own]}
        if group.name in refuted:
            because.update(dict.fromkeys(sets, refuted[group.name]))
        else:
            grouped |= sets
    stays: dict[str, str] = {}
    for port in seen.ports:
        kind = _makes(twin, port)
        if kind is None or kind == "embedding":
            continue
        sets = {int(s) for s in seen.label[port.first : port.first + port.size]} - grouped
        if sets:
            why = next((because[s] for s in sorted(sets) if s in because), "is one unit, which never leaves")
            stays.setdefault(port.layer, why)
    return stays | seen.opaque
