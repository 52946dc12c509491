"""`heads`: attention heads, each with its rows of queries, keys and values and the columns that read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .. import attention
from ..core import Group, Groups, NothingFound, join
from ..decoders import check_adapters, is_attention
from ..running import dice_kept
from .channels import Candidate, candidates, given
from .headwise import HEADS
from .proof import proven
from .registry import register
from .tracing import BY_HAND, Trace, on, trace


@register("heads")
def heads(model: nn.Module, example: Any = None) -> Groups:
    """Attention heads of any network that runs on the example: a group a layer, a unit a head.

    A head is what an attention's products sum over: its rows of queries, keys and values, fused or not, the columns
    that read it, and its part of a relative bias, a sink or a norm. With grouped queries it is a key-value head with
    its query heads; with keys and values that all heads share, a query head. Heads that are tied, as those of T5's
    layers by their common bias, leave together. What a head is made of stays whole: rotary positions pair its
    dimensions. `stays` says of each attention whose heads are in no group why.

    Every group is tried, all with as many heads (T5's cross-attentions need that: compare heads within layers), and
    `exact` where a masked model and a shrunk one were seen to compute the same; what fails without some is left out,
    with a warning. Without an example one is made for a model of transformers; but torch.nn.MultiheadAttention, the
    course's ViT and the Llamas that are built like it are known, and not run. Michel et al. 2019, arXiv 1905.10650.

    Raises PruneError for a model without attention, one whose heads can't leave, and one that needs an example.

    >>> from prunelab import zoo
    >>> [group.units for group in heads(zoo.vit(depth=2, heads=8))]
    [8, 8]
    """
    check_adapters(model)
    known = attention.known(model)
    if example is None and attention.wholly(model, known):
        return _some(model, Groups(g for g in known.values() if g.units > 1), {}, known)
    return _some(model, *_tried(model, attention.example(model) if example is None else example, known))


def _tried(model: nn.Module, example: Any, known: Mapping[str, Group]) -> tuple[Groups, dict[str, str], Any]:
    """The groups that hold; those that do not, by name, and why; and whatever is true if there is any attention."""
    with torch.inference_mode(False), dice_kept():
        inputs = on(model, example)
        seen = trace(model, inputs, HEADS)
        groups, stays, assumed = _found(model, seen, known.values())
        held, refuted = proven(model, groups, assumed, inputs)
    return Groups(held, stays | refuted), refuted, seen.heads


def _some(model: nn.Module, groups: Groups, left_out: Mapping[str, str], found: Any) -> Groups:
    name = type(model).__name__
    if not found:
        raise NothingFound(f"{name} has no attention layer: no product of two activations by head. {BY_HAND}")
    if not groups and not groups.stays:
        raise NothingFound(f"{name} has one head a layer, and the last head of a layer never leaves")
    return given(model, groups, left_out, "attention head")


def _found(model: nn.Module, seen: Trace, known: Iterable[Group]) -> tuple[list[Group], dict[str, str], dict[str, str]]:
    """The groups of heads in the model's order; of each attention with others, why; what was assumed of the groups."""
    by_extent = {_extent(g): g for g in known}
    groups: list[Group] = []
    assumed: dict[str, str] = {}
    grouped: set[int] = set()
    for candidate in candidates(seen):
        if seen.heads.keys().isdisjoint(candidate.sets):
            continue
        grouped |= candidate.sets
        group = candidate.group
        same = by_extent.get(_extent(group))
        if same is None:
            same = replace(group, name=_name(seen, candidate, {g.name for g in groups}))
        groups.append(same)
        if candidate.assumed:
            assumed[same.name] = candidate.assumed
    stays: dict[str, str] = {}
    for where, reason in _left(seen, grouped):
        stays.setdefault(where, reason)
    owned = {m.tensor for group in groups for m in group.members}
    for path, module in model.named_modules():  # a product by one head is not seen to be by head
        own = {join(path, name) for name, _ in module.named_parameters()}
        if is_attention(module) and owned.isdisjoint(own) and not any(w.startswith(path) for w in stays):
            stays[path] = "multiplies by no more than one head, which never leaves"
    return groups, stays, assumed


def _extent(group: Group) -> tuple[int, frozenset[tuple[str, int]]]:
    """How many units there are, and how many entries each owns of which tensors."""
    own = Counter[str]()
    for member in group.members:
        own[member.tensor] += member.block
    return group.units, frozenset(own.items())


def _name(seen: Trace, candidate: Candidate, taken: set[str]) -> str:
    """The attention's own; with a number for a second kind of heads in it."""
    order = list(seen.heads)[::-1]
    own = seen.heads[min(candidate.sets & seen.heads.keys(), key=order.index)] or "attention"
    names = [own, *(f"{own}[{number}]" for number in range(len(taken)))]
    return next(name for name in names if name not in taken)


def _left(seen: Trace, grouped: set[int]) -> Iterator[tuple[str, str]]:
    for which, where in reversed(seen.heads.items()):
        if which in grouped:
            continue
        own = (p for p in seen.ports if p.size > 1 and (seen.label[p.first : p.first + p.size] == which).all())
        reason = "has one head, which never leaves"
        if list(seen.heads.values()).count(where) > 1:
            reason = f"stays: {next((p.name for p in own), 'each head has something that')} belongs to one head alone"
        yield where or "attention", seen.stays.get(which, reason)
