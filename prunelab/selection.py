"""Exactly k of many: the lowest values over several tensors, without sorting or copying them all.

A full sort of a large model's weights costs seconds and several copies of it. Instead: a small sample brackets the
k-th value, and one streaming pass marks what lies below the bracket and collects the little that lies inside; only
that is ordered. Where the sample misled, or millions tie, a slower search takes over. The result is that of a stable
sort, ties included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 17  # entries compared at a time on a CPU: they stay in its cache through all comparisons
SAMPLE = 1 << 20  # entries looked at before, at the most
SORT_AT_MOST = 1 << 21  # entries collected, at the most: memory that does not grow with the model

Array: TypeAlias = "np.ndarray[Any, Any]"


@dataclass(frozen=True)
class Values:
    """Values to choose from: several tensors, and for each, perhaps, which entries are kept; the others go first.

    What is not kept counts as -inf, and a value of -inf as the lowest finite one: no copy is made to say so.
    """

    tensors: Sequence[Tensor]
    kept: Sequence[Tensor] | None = None

    @property
    def size(self) -> int:
        """How many there are."""
        return sum(v.numel() for v in self.tensors)

    def chunks(self) -> Iterator[Array]:
        """A chunk at a time, as numpy arrays, whose comparisons are twice as fast as torch's on a CPU."""
        masks = _chunks(self.kept) if self.kept is not None else repeat(None)
        return (_worn(part, kept) for part, kept in zip(_chunks(self.tensors), masks, strict=False))

    def sample(self, stride: int) -> Array:
        """Every stride-th entry of each tensor."""
        parts = [_numpy(v.reshape(-1)[::stride]) for v in self.tensors]
        masks = [None] * len(parts) if self.kept is None else [_numpy(m.reshape(-1)[::stride]) for m in self.kept]
        return np.concatenate([_worn(part, kept) for part, kept in zip(parts, masks, strict=True)])

    def whole(self) -> list[Tensor]:
        """The tensors themselves, copies where something is not kept."""
        if self.kept is None:
            return list(self.tensors)
        return [lowest_where_gone(v, kept) for v, kept in zip(self.tensors, self.kept, strict=True)]


def lowest_where_gone(values: Tensor, kept: Tensor) -> Tensor:
    """A copy in which -inf stands for what is not kept, and for that alone."""
    if values.is_floating_point():
        values = values.clamp(min=torch.finfo(values.dtype).min)
    return torch.where(kept.to(values.device), values, -math.inf)


def _worn(part: Array, kept: Array | None) -> Array:
    if kept is None:
        return part
    return np.where(kept, np.maximum(part, np.finfo(part.dtype).min), part.dtype.type(-np.inf))


def lowest(values: Sequence[Tensor], k: int, kept: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Masks of the values' shapes, True at the k lowest of all; ties go in index order, first tensor first.

    kept: bools of the same shapes; what is not kept goes first, whatever its value.
    """
    if k <= 0:
        return [torch.zeros_like(v, dtype=torch.bool) for v in values]
    if k >= sum(v.numel() for v in values):
        return [torch.ones_like(v, dtype=torch.bool) for v in values]
    values = [v.detach() for v in values]
    # A threshold of one type is not exact in another; and whole numbers have no infinity.
    common = reduce(torch.promote_types, [v.dtype for v in values])
    common = common if common.is_floating_point else torch.float64
    given = Values([v.to(common) for v in values], kept)
    if any(v.device.type != "cpu" for v in values):
        return lowest_by_bits(given.whole(), k)
    return _in_one_pass(given, k) or _at_threshold(given, *kth_lowest(given, k))


class Inside(NamedTuple):
    """What a chunk holds between the bracket's ends: the chunk's part of the mask, where in it, and the values."""

    mask: Array
    at: Array
    values: Array


def _in_one_pass(values: Values, k: int) -> list[Tensor] | None:
    """The masks, if a sampled bracket holds the k-th value and few enough others; else None."""
    low, high = _guess(values, k)
    chosen = [torch.empty(v.shape, dtype=torch.bool) for v in values.tensors]
    up_to_low = between = 0
    found: list[Inside] = []
    room = np.zeros(CHUNK, dtype=bool)  # one for all chunks: memory that is new costs as much as a comparison
    for part, mask in zip(values.chunks(), _chunks(chosen), strict=True):
        lower = np.less_equal(part, low, out=mask)
        inside = room[: len(part) if low < high else 0]
        if len(inside):
            np.not_equal(np.less(part, high, out=inside), lower, out=inside)
        at = np.flatnonzero(inside)
        up_to_low += _count(lower)
        between += len(at)
        if between > SORT_AT_MOST or up_to_low >= k:
            return None
        found.append(Inside(mask, at, part[at]))
    if k > up_to_low + between:
        return None
    _mark_lowest(found, k - up_to_low)
    return chosen


def _mark_lowest(found: Sequence[Inside], k: int) -> None:
    """Set the masks at the k lowest of what was found, the first of ties."""
    entries = np.concatenate([f.values for f in found])
    threshold = np.partition(entries, k - 1)[k - 1]
    ties = k - _count(entries < threshold)
    for mask, at, values in found:
        mask[at[values < threshold]] = True
        tied = at[values == threshold][:ties] if ties else at[:0]
        mask[tied] = True
        ties -= len(tied)


def _guess(values: Values, k: int) -> tuple[float, float]:
    """A bracket that probably holds the k-th value; no bracket at all where it is cheaper to order everything."""
    whole = -math.inf, math.inf
    return whole if values.size <= SORT_AT_MOST >> 7 else _bracket(values, *whole, k / values.size) or whole


def kth_lowest(values: Values, k: int) -> tuple[Tensor, int, int]:
    """The k-th lowest value (k from 1), how many of its equals are among the k lowest, how many equals there are."""
    low, high = -math.inf, math.inf  # the k-th value lies between these, or is one of them
    before, within = 0, values.size  # how many lie up to low, and strictly between
    while within > SORT_AT_MOST:
        guess = _bracket(values, low, high, (k - before) / within)
        if guess is None:
            break
        a, b = guess
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


def _search_rest(values: Values, k: int, low: float, high: float) -> tuple[Tensor, int, int]:
    up_to_low, between, inside = _split(values, low, high)
    if inside is not None and up_to_low < k <= up_to_low + between:
        return _in_sorted(inside, k - up_to_low)
    edge = low if k <= up_to_low else high  # only an infinity can be left at an edge
    below, equal = _below_and_equal(values, edge)
    return torch.tensor(edge, dtype=torch.float64), k - below, equal


def _in_sorted(entries: Array, k: int) -> tuple[Tensor, int, int]:
    value = np.partition(entries, k - 1)[k - 1]
    return torch.tensor(value), k - _count(entries < value), _count(entries == value)


def _bracket(values: Values, low: float, high: float, quantile: float) -> tuple[float, float] | None:
    """Two entries around a quantile of those strictly between low and high, by a sample; None if it holds none.

    The rank in a sample of m is uncertain by sqrt(m q (1 - q)): we allow 2.5 of these, which miss once in eighty
    times; then a slower search takes over. m balances the costs of the sample and of what the bracket will hold,
    2.5 n / sqrt(m).
    """
    wanted = min(SAMPLE, int((2 * values.size) ** (2 / 3)))
    sample = values.sample((values.size // max(wanted, 1)) | 1)  # odd, so as not to walk down one column of a matrix
    entries = sample[(sample > low) & (sample < high)]
    if not len(entries):
        return None
    rank, margin = quantile * len(entries), 2.5 * (len(entries) * quantile * (1 - quantile)) ** 0.5 + 1
    ranks = [min(max(int(r), 0), len(entries) - 1) for r in (rank - margin, rank + margin)]
    first, last = np.partition(entries, ranks)[ranks]
    return float(first), float(last)


def _split(values: Values, low: float, high: float, most: float = math.inf) -> tuple[int, int, Array | None]:
    """How many entries are <= low, how many lie strictly between; those themselves, unless more than `most`."""
    up_to_low = between = 0
    pieces: list[Array] = []
    for part in values.chunks():
        lower = part <= low
        inside = (part < high) ^ lower if low < high else np.zeros_like(lower)
        up_to_low += _count(lower)
        between += _count(inside)
        if between <= most:
            pieces.append(part[inside])
    return up_to_low, between, np.concatenate(pieces) if between <= most else None


def _below_and_equal(values: Values, at: float) -> tuple[int, int]:
    counts = [(_count(part < at), _count(part == at)) for part in values.chunks()]
    return sum(b for b, _ in counts), sum(e for _, e in counts)


def _at_threshold(values: Values, threshold: Tensor, ties: int, tied: int) -> list[Tensor]:
    """What lies below a threshold, and the first `ties` of the `tied` entries that equal it."""
    at = float(threshold)
    chosen = [torch.empty(v.shape, dtype=torch.bool) for v in values.tensors]
    for part, mask in zip(values.chunks(), _chunks(chosen), strict=True):
        if ties == tied:  # all of them: one comparison says it
            np.less_equal(part, at, out=mask)
            continue
        np.less(part, at, out=mask)
        first = np.flatnonzero(part == at)[:ties] if ties else np.zeros(0, dtype=int)
        mask[first] = True
        ties, tied = ties - len(first), tied - len(first)
    return chosen


def _chunks(tensors: Sequence[Tensor]) -> Iterator[Array]:
    for v in tensors:
        flat = v.reshape(-1)
        if v.dtype.is_floating_point and v.itemsize < 4:  # a chunk at a time becomes a copy
            yield from map(_numpy, flat.split(CHUNK))
        else:
            whole = flat.numpy()
            yield from (whole[at : at + CHUNK] for at in range(0, max(len(whole), 1), CHUNK))


def _count(flags: Any) -> int:
    return int(np.count_nonzero(flags))


def _numpy(part: Tensor) -> Array:
    """Half precision becomes float32, exactly: numpy has no bfloat16."""
    return (part.float() if part.dtype.is_floating_point and part.itemsize < 4 else part).numpy()


def lowest_by_bits(values: Sequence[Tensor], k: int) -> list[Tensor]:
    """`lowest` for an accelerator: the same masks, and the host never waits for it.

    The k-th value is found by bisection over the type's own numbers, 32 passes for float32, in each of which the
    device counts what lies at or below the middle; every number stays on the device.
    """
    threshold = _bisect(values, k)
    ties = k - _counted(values, torch.lt, threshold)
    chosen = []
    for v in values:
        at, wanted = threshold.to(v.device), ties.to(v.device)
        tied = v == at
        first = tied.reshape(-1).cumsum(0).view(v.shape) <= wanted
        ties = ties - tied.sum().to(ties.device)
        chosen.append((v < at) | (tied & first))
    return chosen


def _bisect(values: Sequence[Tensor], k: int) -> Tensor:
    """The least number of the values' type with k of them at or below it."""
    dtype, device = values[0].dtype, values[0].device
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    low, high = (_order(torch.tensor(v, dtype=dtype, device=device).view(whole)) for v in (-math.inf, math.inf))
    for _ in range(8 * dtype.itemsize):
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, rounded down, without overflow
        enough = _counted(values, torch.le, _order(middle).view(dtype)) >= k
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
    return _order(high).view(dtype)


def _order(bits: Tensor) -> Tensor:
    """A float's bits as an integer of the same order, and back: those of negative numbers count downwards."""
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)


def _counted(values: Sequence[Tensor], compare: Any, to: Tensor) -> Tensor:
    counts = [compare(v, to.to(v.device)).sum().to(to.device) for v in values]
    return torch.stack(counts).sum()
