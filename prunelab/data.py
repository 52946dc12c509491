"""What counts as data: anything that yields (inputs, targets) batches, and how a model is called on one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import length_hint
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from .core import PruneError, shape

LABELS = ("labels", "label")  # as Hugging Face's collators call the targets, and its datasets
UNKNOWN = -1  # the length of what must be run through to be counted, such as a DataLoader of an IterableDataset
EMPTY = "the {} data is empty: there is nothing to run the model on"
Batch: TypeAlias = tuple[Any, Tensor]  # (inputs, targets); inputs: a tensor, a tuple of them, or a dict by keyword


def split_of(data: Any, split: str) -> Any:
    """`data.train`, `.valid` or `.test` where data has splits; data itself where it is one already."""
    if _holds(data, split):
        return getattr(data, split)
    if has_splits(data):
        raise PruneError(f"this {type(data).__name__} has no split {split!r}")
    return data


def has_splits(data: Any) -> bool:
    """Whether data comes with splits, or is one itself."""
    return any(_holds(data, s) for s in ("train", "valid", "test"))


def _holds(data: Any, split: str) -> bool:
    """Torchvision's datasets have a `.train` that only says which split they are: a Dataset holds none."""
    return hasattr(data, split) and not isinstance(data, (Dataset, DataLoader))


def batches(
    data: Any, split: str = "train", *, size: int = 256, shuffle: torch.Generator | None = None
) -> Iterator[Batch]:
    """Yield the (inputs, targets) batches of a split.

    `data` is an object with `.train/.valid/.test`, or is such a split itself: a TensorDataset, any other
    Dataset, a pair of tensors, a DataLoader, or a list of batches. Hugging Face's batches, dicts with "labels",
    become ({all else}, labels). `size` and `shuffle` (a generator, so that the order can be repeated) apply to what
    is not batched yet. Empty data raises PruneError.

    >>> [len(targets) for _, targets in batches((torch.zeros(5, 8), torch.zeros(5)), size=2)]
    [2, 2, 1]
    """
    source = _source(data, split, size)
    if isinstance(source, TensorDataset):
        yield from _slices(source, size, shuffle)
        return
    if isinstance(source, IterableDataset):
        source = DataLoader(source, size)  # it comes in its own order
    elif isinstance(source, Dataset):
        source = DataLoader(source, size, shuffle=shuffle is not None, generator=shuffle)
    yield from map(unlabelled, source)


def unlabelled(batch: Any) -> Any:
    """A dict with labels as the pair (all else, labels); any other batch as it is."""
    label = next((k for k in LABELS if k in batch), None) if isinstance(batch, Mapping) else None
    return batch if label is None else ({k: v for k, v in batch.items() if k != label}, batch[label])


def count(data: Any, split: str = "train", *, size: int = 256) -> int:
    """How many batches `batches` would yield. Empty data raises PruneError.

    >>> count((torch.zeros(5, 8), torch.zeros(5)), size=2)
    3
    """
    source = _source(data, split, size)
    length = length_hint(source, UNKNOWN)
    if length == UNKNOWN:
        length = sum(1 for _ in batches(data, split, size=size))
    elif isinstance(source, Dataset):
        length = -(-length // size)
    if length == 0:
        raise PruneError(EMPTY.format(split))
    return length


def _source(data: Any, split: str, size: int) -> Any:
    """The split as something that can be read again and again, or PruneError."""
    if size < 1:
        raise PruneError(f"a batch size of {size}: give at least 1")
    source = split_of(data, split)
    if isinstance(source, (tuple, list)) and len(source) == 2 and all(isinstance(t, Tensor) for t in source):
        inputs, targets = source
        if len(inputs) != len(targets):
            raise PruneError(f"{len(inputs)} inputs but {len(targets)} targets: they must pair up one to one")
        source = TensorDataset(inputs, targets)
    if isinstance(source, Iterator):
        raise PruneError(f"data is a {type(source).__name__}, which can be read only once: give list(...) of it")
    if not isinstance(source, (Dataset, Iterable)) or isinstance(source, (Tensor, str, Mapping)):
        raise PruneError(
            f"data is a {type(source).__name__}: give a DataLoader, a Dataset, a pair of tensors "
            "(inputs, targets), or a list of such pairs"
        )
    if length_hint(source, UNKNOWN) == 0:
        raise PruneError(EMPTY.format(split))
    return source


def _slices(dataset: TensorDataset, size: int, shuffle: torch.Generator | None) -> Iterator[Batch]:
    """Index whole tensors a batch at a time: 20 times faster than collating single items."""
    order = None if shuffle is None else torch.randperm(len(dataset), generator=shuffle)
    for start in range(0, len(dataset), size):
        where = slice(start, start + size) if order is None else order[start : start + size]
        yield tuple(t[where] for t in dataset.tensors)  # type: ignore[misc]


def tensors(nest: Any) -> Iterator[Tensor]:
    """Every tensor in any nest of tuples, lists and dicts, in order.

    >>> list(tensors({"a": torch.tensor(1), "b": [torch.tensor(2), "text"]}))
    [tensor(1), tensor(2)]
    """
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, (Mapping, tuple, list)):
        for value in nest.values() if isinstance(nest, Mapping) else nest:
            yield from tensors(value)


def mapped(change: Callable[[Tensor], Tensor], nest: Any) -> Any:
    """The same nest with every tensor changed; what is no tensor stays as it is.

    >>> mapped(lambda t: -t, (torch.tensor(1), "text"))
    (tensor(-1), 'text')
    """
    if isinstance(nest, Tensor):
        return change(nest)
    if isinstance(nest, Mapping):
        return {k: mapped(change, v) for k, v in nest.items()}
    if isinstance(nest, (tuple, list)):
        values = [mapped(change, v) for v in nest]
        return type(nest)(*values) if hasattr(nest, "_fields") else type(nest)(values)  # a namedtuple has _fields
    return nest


def take(nest: Any, which: slice | list[int], size: int) -> Any:
    """Some samples of a batch of `size`: of every tensor that has one row a sample.

    >>> take((torch.tensor([1, 2, 3]), torch.tensor([4])), [2, 0], 3)
    (tensor([3, 1]), tensor([4]))
    """
    return mapped(lambda t: t[which] if t.dim() and len(t) == size else t, nest)


def to(batch: Any, device: torch.device) -> Any:
    """A batch, or any nest of tensors, on a device."""

    def moved(tensor: Tensor) -> Tensor:
        if tensor.is_meta and device.type != "meta":
            raise PruneError(f"a tensor of the data {shape(tensor)} is on the meta device, without values: load it")
        return tensor.to(device)

    return mapped(moved, batch)
