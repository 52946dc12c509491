"""Exactly k of many: the lowest values over several tensors, without sorting or copying them all.

A full sort of a large model's weights costs seconds and several copies of it. Instead: a small sample brackets the
k-th value, and one streaming pass marks what lies below the bracket and collects the little that lies inside; only
that is ordered. Where the sample misled, or millions tie, a slower search takes over. The result is that of a stable
sort, ties included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import repeat
from typing import Any, TypeAlias

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

    >>> Values([torch.zeros(2, 3), torch.zeros(4)]).size
    10
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
        return (self._where_kept(part, kept) for part, kept in zip(_chunks(self.tensors), masks, strict=False))

    def sample(self, stride: int) -> Array:
        """Every stride-th entry of each tensor."""
        parts = [_numpy(v.reshape(-1)[::stride]) for v in self.tensors]
        masks = [None] * len(parts) if self.kept is None else [_numpy(m.reshape(-1)[::stride]) for m in self.kept]
        return np.concatenate([self._where_kept(part, kept) for part, kept in zip(parts, masks, strict=True)])

    def _where_kept(self, part: Array, kept: Array | None) -> Array:
        if kept is None:
            return part
        least = torch.finfo(self.tensors[0].dtype).min
        return np.where(kept, np.maximum(part, part.dtype.type(least)), part.dtype.type(-np.inf))

    def whole(self) -> list[Tensor]:
        """The tensors themselves, copies where something is not kept."""
        if self.kept is None:
            return list(self.tensors)
        return [lowest_where_gone(v, kept) for v, kept in zip(self.tensors, self.kept, strict=True)]


def lowest_where_gone(values: Tensor, kept: Tensor) -> Tensor:
    """A copy in which -inf stands for what is not kept, and for that alone.

    >>> lowest_where_gone(torch.tensor([3.0, 1.0]), torch.tensor([False, True]))
    tensor([-inf, 1.])
    """
    if values.is_floating_point():
        values = values.clamp(min=torch.finfo(values.dtype).min)
    return torch.where(kept.to(values.device), values, -math.inf)


def lowest(values: Sequence[Tensor], k: int, kept: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Masks of the values' shapes, True at the k lowest of all; ties go in index order, first tensor first.

    kept: bools of the same shapes; what is not kept goes first, whatever its value.

    >>> lowest([torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])], 1)  # of ties the first
    [tensor([False,  True]), tensor([False, False])]
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
    low, high = _bracket(given, k)
    return _in_one_pass(given, k, low, high) or _at_threshold(given, k, _kth_lowest(given, k, low, high))


# What a chunk holds between the bracket's ends: its part of the mask, where in it, and the values.
Inside: TypeAlias = tuple[Array, Array, Array]


def _in_one_pass(values: Values, k: int, low: float, high: float) -> list[Tensor] | None:
    """The masks, if the k-th value lies between low and high, and few enough others; else None."""
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
        found.append((mask, at, part[at]))
    if k > up_to_low + between:
        return None
    _mark_lowest(found, k - up_to_low)
    return chosen


def _mark_lowest(found: Sequence[Inside], k: int) -> None:
    """Set the masks at the k lowest of what was found, the first of ties."""
    entries = np.concatenate([values for _, _, values in found])
    threshold = np.partition(entries, k - 1)[k - 1]
    ties = k - _count(entries < threshold)
    for mask, at, values in found:
        mask[at[values < threshold]] = True
        tied = at[values == threshold][:ties] if ties else at[:0]
        mask[tied] = True
        ties -= len(tied)


def _bracket(values: Values, k: int) -> tuple[float, float]:
    """Two entries around the k-th lowest, by a sample; infinities where it is cheaper to order everything.

    The rank in a sample of m is uncertain by sqrt(m q (1 - q)): we allow 2.5 of these, which miss once in eighty
    times; then a slower search takes over. m balances the costs of the sample and of what the bracket will hold,
    2.5 n / sqrt(m).
    """
    if values.size <= SORT_AT_MOST >> 7:
        return -math.inf, math.inf
    wanted = min(SAMPLE, int((2 * values.size) ** (2 / 3)))
    entries = values.sample((values.size // max(wanted, 1)) | 1)  # odd, so as not to walk down one column of a matrix
    quantile = k / values.size
    rank, margin = quantile * len(entries), 2.5 * (len(entries) * quantile * (1 - quantile)) ** 0.5 + 1
    ranks = [min(max(int(r), 0), len(entries) - 1) for r in (rank - margin, rank + margin)]
    first, last = np.partition(entries, ranks)[ranks]
    return float(first), float(last)


def _kth_lowest(values: Values, k: int, low: float, high: float) -> float:
    """The k-th lowest value where many tie: low or high, or else found by bisection, between these if it lies there."""

    def counted(compare: Callable[[Array, float], Array], at: float) -> int:
        return sum(_count(compare(part, at)) for part in values.chunks())

    for edge in (low, high):
        if counted(np.less, edge) < k <= counted(np.less_equal, edge):
            return edge
    if not counted(np.less_equal, low) < k <= counted(np.less, high):
        low, high = -math.inf, math.inf
    between = torch.tensor([low, high], dtype=values.tensors[0].dtype)
    return float(_bisect(lambda value: torch.tensor(counted(np.less_equal, float(value))), k, between, waits=True))


def _at_threshold(values: Values, k: int, at: float) -> list[Tensor]:
    """What lies below a threshold, and as many of the first entries that equal it as make k."""
    chosen = [torch.empty(v.shape, dtype=torch.bool) for v in values.tensors]
    below = 0
    for part, mask in zip(values.chunks(), _chunks(chosen), strict=True):
        below += _count(np.less(part, at, out=mask))
    ties = k - below
    for part, mask in zip(values.chunks(), _chunks(chosen), strict=True):
        first = np.flatnonzero(part == at)[:ties] if ties else np.zeros(0, dtype=int)
        mask[first] = True
        ties -= len(first)
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

    >>> lowest_by_bits([torch.tensor([3.0, 1.0, -2.0])], 2)
    [tensor([False,  True,  True])]
    """
    between = torch.tensor([-math.inf, math.inf], dtype=values[0].dtype, device=values[0].device)
    threshold = _bisect(lambda value: _counted(values, torch.le, value), k, between, waits=False)
    ties = k - _counted(values, torch.lt, threshold)
    chosen = []
    for v in values:
        at, wanted = threshold.to(v.device), ties.to(v.device)
        tied = v == at
        first = tied.reshape(-1).cumsum(0).view(v.shape) <= wanted
        ties = ties - tied.sum().to(ties.device)
        chosen.append((v < at) | (tied & first))
    return chosen


def _bisect(at_most: Callable[[Tensor], Tensor], k: int, between: Tensor, waits: bool) -> Tensor:
    """The least number with k values at or below it, between the two given. waits: the host may read them."""
    dtype = between.dtype
    low, high = _order(between.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]))
    for _ in range((int(high) - int(low)).bit_length() if waits else 8 * dtype.itemsize):
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, rounded down, without overflow
        enough = at_most(_order(middle).view(dtype)) >= k
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
    return _order(high).view(dtype)


def _order(bits: Tensor) -> Tensor:
    """A float's bits as an integer of the same order, and back: those of negative numbers count downwards."""
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)


def _counted(values: Sequence[Tensor], compare: Any, to: Tensor) -> Tensor:
    counts = [compare(v, to.to(v.device)).sum().to(to.device) for v in values]
    return torch.stack(counts).sum()
