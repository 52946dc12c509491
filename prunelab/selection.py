"""Exactly k of many: the lowest values over several tensors, without sorting or copying them all.

A full sort of a large model's weights costs seconds and several copies of it. Instead: sample, bracket the
k-th value between two samples, and in one streaming pass count what lies below and collect what lies inside;
only that is sorted. The result is that of a stable sort, ties included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 17  # entries compared at a time on a CPU: they stay in its cache through all comparisons
SAMPLE = 1 << 18
SORT_AT_MOST = 1 << 20  # few enough to copy and sort outright


def lowest(values: Sequence[Tensor], k: int) -> list[Tensor]:
    """Masks of the values' shapes, True at the k lowest of all; ties go in index order, first tensor first."""
    if k <= 0:
        return [torch.zeros_like(v, dtype=torch.bool) for v in values]
    if k >= sum(v.numel() for v in values):
        return [torch.ones_like(v, dtype=torch.bool) for v in values]
    values = [v.detach() for v in values]
    if len({v.dtype for v in values}) > 1:  # a threshold of one type is not exact in another
        common = reduce(torch.promote_types, [v.dtype for v in values])
        values = [v.to(common) for v in values]
    threshold, ties, tied = kth_lowest(values, k)
    if ties == tied:  # every entry equal to the threshold goes: one comparison says it all
        return [v <= threshold.to(v.device) for v in values]
    chosen = []
    for v in values:
        at = threshold.to(v.device)
        below = v < at
        if ties > 0:
            ties -= _add_ties(below, v == at, ties)
        chosen.append(below)
    return chosen


def kth_lowest(values: Sequence[Tensor], k: int) -> tuple[Tensor, int, int]:
    """The k-th lowest value (k from 1), how many of its equals are among the k lowest, how many equals there are."""
    low, high = -math.inf, math.inf  # the k-th value lies between these, or is one of them
    before, within = 0, sum(v.numel() for v in values)  # how many lie up to low, and strictly between
    while within > SORT_AT_MOST:
        sample = _sample(values, low, high)
        if not len(sample):
            break
        a, b = _bracket(sample, (k - before) / within)
        up_to_a, between, inside = _split(values, a, b, SORT_AT_MOST)
        if up_to_a < k <= up_to_a + between:
            if inside is not None:
                return _in_sorted(inside, k - up_to_a)
            low, high, before, within = a, b, up_to_a, between
        else:  # a or b itself, or the sample misled us: search on beyond it
            edge = a if k <= up_to_a else b
            below, equal = _below_and_equal(values, edge)
            if below < k <= below + equal:
                return torch.tensor(edge, dtype=torch.float64), k - below, equal
            if k <= below:
                high, within = edge, below - before
            else:
                low, before, within = edge, below + equal, before + within - below - equal
    return _search_rest(values, k, low, high)


def _search_rest(values: Sequence[Tensor], k: int, low: float, high: float) -> tuple[Tensor, int, int]:
    up_to_low, between, inside = _split(values, low, high)
    if inside is not None and up_to_low < k <= up_to_low + between:
        return _in_sorted(inside, k - up_to_low)
    edge = low if k <= up_to_low else high  # only an infinity can be left at an edge
    below, equal = _below_and_equal(values, edge)
    return torch.tensor(edge, dtype=torch.float64), k - below, equal


def _in_sorted(entries: Tensor, k: int) -> tuple[Tensor, int, int]:
    if entries.device.type == "cpu":  # where numpy's selection is ten times as fast as torch's
        value = torch.as_tensor(np.partition(entries.numpy(), k - 1)[k - 1])
    else:
        value = entries.kthvalue(k).values
    return value, k - int((entries < value).sum()), int((entries == value).sum())


def _bracket(sample: Tensor, quantile: float) -> tuple[float, float]:
    """Two entries of a sorted sample around a quantile, whose rank is uncertain by sqrt(m q (1 - q)): we allow four."""
    rank, last = quantile * len(sample), len(sample) - 1
    margin = 4 * (len(sample) * quantile * (1 - quantile)) ** 0.5 + 1
    return float(sample[max(int(rank - margin), 0)]), float(sample[min(int(rank + margin), last)])


def _sample(values: Sequence[Tensor], low: float, high: float) -> Tensor:
    """Every n-th entry that lies strictly between, sorted; n odd, so as not to walk down one column of a matrix."""
    stride = (sum(v.numel() for v in values) // SAMPLE) | 1
    taken = torch.cat([v.reshape(-1)[::stride].to(values[0].device, torch.float64) for v in values])
    return taken[(taken > low) & (taken < high)].sort().values


def _split(values: Sequence[Tensor], low: float, high: float, most: float = math.inf) -> tuple[int, int, Tensor | None]:
    """How many entries are <= low, how many lie strictly between; those themselves, unless more than `most`."""
    up_to_low = between = 0
    pieces: list[Tensor] = []
    for chunk in _chunks(values):
        lower = chunk <= low
        inside = (chunk < high) ^ lower if low < high else lower & ~lower
        up_to_low += _count(lower)
        between += _count(inside)
        if between <= most:
            pieces.append(torch.as_tensor(chunk[inside]))
    if between > most:
        return up_to_low, between, None
    return up_to_low, between, torch.cat([p.to(values[0].device) for p in pieces])


def _below_and_equal(values: Sequence[Tensor], at: float) -> tuple[int, int]:
    counts = [(_count(c < at), _count(c == at)) for c in _chunks(values)]
    return sum(b for b, _ in counts), sum(e for _, e in counts)


def _chunks(values: Sequence[Tensor]) -> Iterator[Any]:
    """The values a chunk at a time: numpy arrays on a CPU (whose comparisons are twice as fast), else tensors.

    Half precision becomes float32, exactly; numpy has no bfloat16.
    """
    for v in values:
        flat = v.detach().reshape(-1)
        if flat.device.type == "cpu":
            for chunk in flat.split(CHUNK):
                yield (chunk.float() if chunk.itemsize < 4 else chunk).numpy()
        else:
            yield flat


def _count(flags: Any) -> int:
    return int(np.count_nonzero(flags) if isinstance(flags, np.ndarray) else torch.count_nonzero(flags))


def _add_ties(chosen: Tensor, tied: Tensor, wanted: int) -> int:
    """Add to `chosen` the first `wanted` of the tied entries; returns how many were added."""
    there = int(torch.count_nonzero(tied))
    if there > wanted:
        tied = tied.contiguous()
        first_to_stay = int(tied.view(-1).nonzero()[wanted])
        tied.view(-1)[first_to_stay:] = False
    chosen |= tied
    return min(there, wanted)
