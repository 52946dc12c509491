"""What the zoo hands out: a data set in three splits, and the one error all of the zoo raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import TensorDataset


class ZooError(ValueError):
    """What is wrong, with which file or name, what was found there, and what to do about it."""


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set: learn on `train`, choose on `valid`, report `test` once.

    Each split is a TensorDataset of images (n, *shape), float32, and labels (n,), int64. `origin[split]`,
    (n,) int64, says which original each image was made from. Two images of one origin are no two
    independent draws: an interval has to resample origins, not images.
    """

    name: str
    train: TensorDataset
    valid: TensorDataset
    test: TensorDataset
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    origin: Mapping[str, Tensor]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(getattr(self, split))}" for split in ("train", "valid", "test"))
        size = "x".join(map(str, self.shape))
        return f"Data({self.name!r}: {size} images of {len(self.classes)} classes; {sizes})"
