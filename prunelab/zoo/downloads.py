"""Data sets from elsewhere: fetched aside, checked, moved into place, and parsed with nothing in them to execute."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from platformdirs import user_cache_dir
from torch import Tensor
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm

from .data import Data, ZooError, digits, verified

TIMEOUT = 30  # seconds without a single byte before a mirror counts as dead
CHUNK = 1 << 20
Split: TypeAlias = tuple[Tensor, Tensor]  # images and labels


@dataclass(frozen=True)
class File:
    """A file of a data set: its name, the MD5 its publisher gives, its size in bytes, and addresses that offer it."""

    name: str
    md5: str
    size: int
    urls: tuple[str, ...]

    def read(self, folder: Path) -> bytes:
        """The content in a folder; ZooError if it is another file's."""
        # MD5 is what publishers of data sets give. It finds damage; no file here could do harm when parsed.
        return verified(folder / self.name, self.size, "md5", self.md5, "Delete it and load again")


def cache_dir(root: str | Path | None = None) -> Path:
    """Where downloads are kept: `root`, else $PRUNELAB_CACHE, else the system's place for caches.

    >>> cache_dir("here").name
    'here'
    """
    return Path(root or os.environ.get("PRUNELAB_CACHE") or user_cache_dir("prunelab")).expanduser()


def read(files: Sequence[File], folder: Path, *, download: bool) -> dict[str, bytes]:
    """The content of each file by name, from `folder`, where missing ones are first downloaded if allowed.

    Raises ZooError if a file is missing, can't be fetched, or has another MD5 than its publisher's; a file
    that is there already is never changed.
    """
    missing = [file for file in files if not (folder / file.name).is_file()]
    names = ", ".join(file.name for file in missing)
    if missing and not download:
        raise ZooError(f"{names} not found in {folder}: load with download=True, or put the files there yourself")
    if missing:
        try:
            _download(missing, folder)
        except (OSError, HTTPException) as error:  # an URLError is an OSError too
            raise ZooError(
                f"could not download {names} to {folder} ({error}). With a network, call again. Without one, "
                f'put the files there yourself, or use zoo.load("digits"), which needs no download'
            ) from error
    return {file.name: file.read(folder) for file in files}


def _download(files: list[File], folder: Path) -> None:
    # Beside the final place, so that the move is a rename within one file system: all of it or nothing.
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as aside:
        for file in files:
            _fetch(file, Path(aside) / file.name)
        for file in files:
            os.replace(Path(aside) / file.name, folder / file.name)


def _fetch(file: File, target: Path) -> None:
    """The file from the first mirror that offers it whole: a cut one, or a portal's page of login, is none."""
    for url in file.urls:
        try:
            with (
                urllib.request.urlopen(url, timeout=TIMEOUT) as response,
                open(target, "wb") as out,
                tqdm(total=file.size, desc=file.name, unit="B", unit_scale=True, leave=False) as bar,
            ):
                while out.tell() <= file.size and (chunk := response.read(CHUNK)):
                    out.write(chunk)
                    bar.update(len(chunk))
            file.read(target.parent)
            return
        except (OSError, HTTPException, ZooError):
            if url == file.urls[-1]:  # whose failure is the one to report
                raise


CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_TEST = "test_batch.bin"
CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then the red, the green and the blue plane


def idx(content: bytes) -> Tensor:
    """The uint8 array of a gzipped IDX file, MNIST's format: a head of 4 bytes, the sizes, the values."""
    raw = gzip.decompress(content)
    dims = raw[3]
    shape = np.frombuffer(raw, ">i4", count=dims, offset=4).tolist()
    return torch.frombuffer(bytearray(raw[4 + 4 * dims :]), dtype=torch.uint8).reshape(shape)


def cifar(content: bytes) -> tuple[Split, Split]:
    """Train and test of the CIFAR-10 binary archive: images (n, 3, 32, 32), uint8, and labels (n,), int64.

    The members are read in memory and none is unpacked, so no path inside the archive can lead anywhere.
    """
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member in archive:  # in the archive's order: going back would decompress it all again
            if stream := archive.extractfile(member):
                found[member.name.rpartition("/")[2]] = stream.read()
    return _records([found[batch] for batch in CIFAR_TRAIN]), _records([found[CIFAR_TEST]])


def _records(parts: list[bytes]) -> Split:
    records = torch.frombuffer(bytearray().join(parts), dtype=torch.uint8).reshape(-1, CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# torchvision reads CIFAR-10 from pickles, and to unpickle a file is to execute it. Its authors publish the same
# images as flat records too, from the same place: those can at worst be wrong, and then their hash is.
CIFAR_FILE = File(
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    170_052_171,
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
)

# Mean and standard deviation of each channel over the training images, on a scale from 0 to 1.
FASHION_SCALE = ((0.2860,), (0.3530,))
CIFAR_SCALE = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


# The publisher's bucket and repository, over TLS, which torchvision's own mirror does without.
FASHION_MIRRORS = (
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
FASHION_SIZES = (26_421_880, 29_515, 4_422_102, 5_148)


def fashion_files() -> tuple[File, ...]:
    """Train images, train labels, test images, test labels: torchvision's own names and hashes."""
    from torchvision.datasets import FashionMNIST  # here, because it takes a second that digits don't need

    return tuple(
        File(name, md5, size, tuple(mirror + name for mirror in FASHION_MIRRORS))
        for (name, md5), size in zip(FashionMNIST.resources, FASHION_SIZES, strict=True)
    )


def fashion_mnist(root: str | Path | None, download: bool) -> Data:
    """60,000 + 10,000 grey images of clothes, 28x28. A root that torchvision filled is used as it is."""
    content = read(fashion_files(), cache_dir(root) / "FashionMNIST" / "raw", download=download)
    x, y, x_test, y_test = (idx(file) for file in content.values())
    train, test = (x[:, None], y.long()), (x_test[:, None], y_test.long())
    return _data("fashion-mnist", train, test, FASHION_CLASSES, FASHION_SCALE)


def cifar10(root: str | Path | None, download: bool) -> Data:
    """50,000 + 10,000 colour photographs, 32x32. Takes about 1 GB of memory as floats."""
    content = read([CIFAR_FILE], cache_dir(root), download=download)
    return _data("cifar10", *cifar(content[CIFAR_FILE.name]), CIFAR_CLASSES, CIFAR_SCALE)


def _data(name: str, train: Split, test: Split, classes: tuple[str, ...], scale: tuple[Any, Any]) -> Data:
    """Scale images (n, C, H, W) to mean 0 and deviation 1; the last tenth of the training images validates."""
    images, labels = train
    cut = len(images) - len(images) // 10
    splits = {"train": (images[:cut], labels[:cut]), "valid": (images[cut:], labels[cut:]), "test": test}
    mean, deviation = (torch.tensor(s)[:, None, None] for s in scale)
    channels, height, width = images.shape[1:]
    return Data(
        name=name,
        **{split: TensorDataset(x.float().div_(255).sub_(mean).div_(deviation), y) for split, (x, y) in splits.items()},
        classes=classes,
        shape=(channels, height, width),
        origin={split: torch.arange(len(y)) for split, (_, y) in splits.items()},
    )


_DATASETS: dict[str, Callable[[str | Path | None, bool], Data]] = {
    "digits": lambda root, download: digits(),
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
}


def load(name: str, *, root: str | Path | None = None, download: bool = True) -> Data:
    """A data set by name: "digits" (in the package), "fashion-mnist" or "cifar10" (downloaded once).

    The splits are fixed and every load gives the same images. Downloads are kept in `root`, else in
    $PRUNELAB_CACHE, else where the system keeps caches. Raises ZooError for an unknown name, a file that is
    missing with `download=False`, a download that fails, and a file that is not the published one.

    >>> data = load("digits")
    >>> len(data.train), len(data.valid), len(data.test), tuple(data.train[0][0].shape)
    (4000, 1200, 1988, (1, 16, 16))
    """
    if not isinstance(name, str) or name not in _DATASETS:
        raise ZooError(f"there is no data set {name!r}: the names are {', '.join(_DATASETS)}")
    return _DATASETS[name](root, download)
