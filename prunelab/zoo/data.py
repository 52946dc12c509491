"""What the zoo hands out, a data set in three splits; and scikit-learn's handwriting, which needs no download."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from ..files import read_whole


class ZooError(ValueError):
    """What is wrong, with which file or name, what was found there, and what to do about it."""


def verified(path: Path, size: int, algorithm: str, wanted: str, remedy: str) -> bytes:
    """The content of a file that has the size and hash it should; ZooError, with the remedy, for another.

    What was hashed is what is returned, so nothing can change in between.
    """
    try:
        content = read_whole(path, size + SPARE)
    except OSError as error:
        raise ZooError(f"{path} can't be read ({error.strerror}). {remedy}") from error
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if found != wanted:
        raise ZooError(
            f"{path} is damaged or another file: its {len(content)} bytes have the {algorithm.upper()} {found}, the "
            f"published file's {size} bytes have {wanted}. {remedy}"
        )
    return content


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


SPARE = 1 << 20  # bytes more than a file should have are read, and found to be wrong
SIZES = {"train": 1000, "valid": 300, "test": 497}  # scans, of 1797
VIEWS = 4  # pictures rendered from each scan
PIXELS = 16
ANGLE = 0.5  # radians, to either side
SCALE = (0.65, 1.05)  # size of the digit relative to its frame
SHIFT = 0.2  # of half the frame, to either side
NOISE = 0.15  # standard deviation, where paper is 0 and ink 1


def scans() -> tuple[Tensor, Tensor]:
    """The 1797 scans as they are: images (1797, 8, 8), 0 = paper to 1 = ink, and labels (1797,), int64.

    `zoo.load("digits").origin[split]` counts in this order.

    >>> images, labels = scans()
    >>> tuple(images.shape), labels[:5].tolist()
    ((1797, 8, 8), [0, 1, 2, 3, 4])
    """
    bunch = load_digits()
    return torch.tensor(bunch.images / 16, dtype=torch.float32), torch.tensor(bunch.target, dtype=torch.int64)


def digits() -> Data:
    """Four 16x16 views of each scan; the scans were split first, so no scan is seen in two splits."""
    # Copies: whoever writes into their tensors must not change what the next caller gets.
    parts = {split: [t.clone() for t in part] for split, part in _rendered().items()}
    return Data(
        name="digits",
        **{split: TensorDataset(images, labels) for split, (images, labels, _) in parts.items()},
        classes=tuple("0123456789"),
        shape=(1, PIXELS, PIXELS),
        origin={split: origin for split, (_, _, origin) in parts.items()},
    )


def more_views(count: int, *, seed: int = 1) -> TensorDataset:
    """`count` further pictures of each *training* scan, for a network that needs more than four: images and labels.

    View after view: any 1000 pictures in a row are of all scans. The same seed gives the same pictures.

    >>> len(more_views(2)), tuple(more_views(1)[0][0].shape)
    (2000, (1, 16, 16))
    """
    images, labels = scans()
    random = np.random.RandomState(seed)
    origin = _rendered()["train"][2][: SIZES["train"]]
    pictures = [_render(images[origin], random) for _ in range(count)]
    return TensorDataset(torch.cat(pictures), labels[origin].repeat(count))


@cache
def _rendered() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    images, labels = scans()
    # RandomState and not torch's generator: NumPy froze its streams, so every version draws these views.
    random = np.random.RandomState(0)
    parts = {}
    for split, origin in _split(labels, random).items():
        # View after view, not scan after scan: any first n images are of as many scans as possible.
        origin = origin.repeat(VIEWS)
        parts[split] = (_render(images[origin], random), labels[origin], origin)
    return parts


def _split(labels: Tensor, random: np.random.RandomState) -> dict[str, Tensor]:
    """Scan indices by split, in random order, each class in the same proportion everywhere to within a scan."""
    order = torch.from_numpy(random.permutation(len(labels)))
    shuffled = labels[order]
    # How far through its own class each scan comes, in (0, 1): cutting along this cuts all classes alike.
    progress = torch.empty(len(labels), dtype=torch.float64)
    for label in shuffled.unique():
        mine = shuffled == label
        count = int(mine.sum())
        progress[mine] = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    fair = order[torch.argsort(progress, stable=True)]
    return dict(zip(SIZES, fair.split(list(SIZES.values())), strict=True))


def _render(images: Tensor, random: np.random.RandomState) -> Tensor:
    """Turn, scale and shift each image (n, 8, 8) at random, sample it at (n, 1, 16, 16), add noise."""
    n = len(images)
    angle = random.uniform(-ANGLE, ANGLE, n)
    scale = random.uniform(*SCALE, n)
    shift = random.uniform(-SHIFT, SHIFT, (n, 2))
    noise = random.normal(0, NOISE, (n, 1, PIXELS, PIXELS))
    # Row by row the map from a place in the picture to a place in the scan, hence the division by scale.
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    theta = np.stack([np.stack([cos, -sin, shift[:, 0]], 1), np.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(
        torch.tensor(theta, dtype=torch.float32), [n, 1, PIXELS, PIXELS], align_corners=False
    )  # (n, 16, 16, 2)
    pictures = F.grid_sample(images[:, None], grid, align_corners=False)  # (n, 1, 16, 16)
    return pictures + torch.tensor(noise, dtype=torch.float32)
