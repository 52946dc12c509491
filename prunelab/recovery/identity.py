"""What tells one training run from another, in texts that are the same in every process."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from ..batches import batches, split_of, tensors

FEW = 32  # examples to know data by; of so many, chance makes at least one differ
VARYING = "not the same at each reading"
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True, eq=False)
class Described:
    """An on_step that a checkpoint knows by a text: a function's name says nothing of what it was made with."""

    act: Callable[[int, int], None]
    text: str

    def __call__(self, done: int, total: int) -> None:
        self.act(done, total)

    def __repr__(self) -> str:
        return self.text


def told(thing: Any) -> str:
    """A function's name, or what else a thing prints as, without addresses."""
    return _ADDRESS.sub("", getattr(thing, "__qualname__", None) or str(thing))


def digest(named: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors and their names."""
    found = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def examples(data: Any) -> str:
    """A digest of the first training examples; for data that streams, shuffles or changes them, that it does.

    No random number of torch's is spent, a loader's own generator's included.
    """
    source = _in_order(split_of(data, "train"))
    if source is None:
        return VARYING
    first, again = (_read(source, seed) for seed in (0, 1))
    return first if first == again else VARYING


def _in_order(source: Any) -> Any:
    """What reads the source's examples from the first on, or None if it has no fixed order."""
    if not isinstance(source, DataLoader):
        return (
            source if isinstance(source, (tuple, list, Dataset)) and not isinstance(source, IterableDataset) else None
        )
    order = source.batch_sampler
    if type(order) is not BatchSampler or type(order.sampler) is not SequentialSampler:
        return None
    return DataLoader(source.dataset, FEW, collate_fn=source.collate_fn)  # no workers, and none of the loader's dice


def _read(source: Any, seed: int) -> str:
    """A digest of the first batch, as it is with these dice: augmentation shows by another one with others."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        batch = next(batches(source, size=FEW))
    try:
        return digest({str(i): t for i, t in enumerate(tensors(batch))})
    except (RuntimeError, TypeError):  # sparse, say, or on the meta device: no bytes to read
        return VARYING
