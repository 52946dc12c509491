"""Data sets from elsewhere: fetched aside, checked, moved into place, and parsed with nothing in them to execute."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_dir
from torch import Tensor
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm

from ..files import read_whole
from .data import Data, ZooError, digits

TIMEOUT = 30  # seconds without a single byte before a mirror counts as dead
CHUNK = 1 << 20


@dataclass(frozen=True)
class File:
    """A file of a data set: its name, the MD5 its publisher gives, its size in bytes, and addresses that offer it."""

    name: str
    md5: str
    size: int
    urls: tuple[str, ...]


def cache_dir(root: str | Path | None = None) -> Path:
    """Where downloads are kept: `root`, else $PRUNELAB_CACHE, else the system's place for caches.

    >>> cache_dir("here").name
    'here'
    """
    return Path(root or os.environ.get("PRUNELAB_CACHE") or user_cache_dir("prunelab")).expanduser()


def read(files: Iterable[File], folder: Path, *, download: bool) -> dict[str, bytes]:
    """The content of each file by name, from `folder`, where missing ones are first downloaded if allowed.

    Raises ZooError if a file is missing, can't be fetched, or has another MD5 than its publisher's; a file
    that is there already is never changed.
    """
    files = tuple(files)
    missing = [file for file in files if not (folder / file.name).is_file()]
    if missing and not download:
        raise ZooError(
            f"{_names(missing)} not found in {folder}: load with download=True, or put the files there yourself"
        )
    if missing:
        _download(missing, folder)
    return {file.name: _checked(folder / file.name, file) for file in files}


def _download(files: list[File], folder: Path) -> None:
    # Beside the final place, so that the move is a rename within one file system: all of it or nothing.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as aside:
            for file in files:
                _fetch(file, Path(aside) / file.name)
            for file in files:
                os.replace(Path(aside) / file.name, folder / file.name)
    except (OSError, HTTPException) as error:  # an URLError is an OSError too
        raise ZooError(
            f"could not download {_names(files)} to {folder} ({error}). With a network, call again. Without one, "
            f'put the files there yourself, or use zoo.load("digits"), which needs no download'
        ) from error


def _fetch(file: File, target: Path) -> None:
    """The file from the first mirror that offers it whole: a cut one, or a portal's page of login, is none."""
    for url in file.urls:
        try:
            _retrieve(url, target, file.size)
            _checked(target, file)
            return
        except (OSError, HTTPException, ZooError):
            if url == file.urls[-1]:  # whose failure is the one to report
                raise


def _retrieve(url: str, target: Path, size: int) -> None:
    with (
        urllib.request.urlopen(url, timeout=TIMEOUT) as response,
        open(target, "wb") as out,
        tqdm(total=size, desc=target.name, unit="B", unit_scale=True, leave=False) as bar,
    ):
        while out.tell() <= size and (chunk := response.read(CHUNK)):
            out.write(chunk)
            bar.update(len(chunk))


def _checked(path: Path, file: File) -> bytes:
    """The content that was hashed is the content that is returned, so nothing can change in between."""
    try:
        content = read_whole(path, file.size + CHUNK)
    except OSError as error:
        raise ZooError(f"{path} can't be read ({error.strerror}): make it readable, or delete it") from error
    # MD5 is what publishers of data sets give. It finds damage; no file here could do harm when parsed.
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != file.md5:
        raise ZooError(
            f"{path} is damaged or another file: its {len(content)} bytes have the MD5 {found}, the published "
            f"file has {file.md5}. Delete it and load again"
        )
    return content


def _names(files: Iterable[File]) -> str:
    return ", ".join(file.name for file in files)


CIFAR_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_TEST = "test_batch.bin"
CIFAR_RECORD = 1 + 3 * 32 * 32  # a label, then the red, the green and the blue plane


def idx(name: str, content: bytes, dims: int) -> Tensor:
    """The uint8 array of a gzipped IDX file (MNIST's format), which must have `dims` dimensions.

    Raises ZooError, with the file's name, if the content is anything else.
    """
    try:
        raw = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ZooError(f"{name} is not a complete gzip file ({error}): delete it and load again") from error
    # Two zero bytes, 8 for uint8, the number of dimensions; then each size as a big-endian 32-bit integer.
    head = 4 + 4 * dims
    if len(raw) < head or raw[:4] != bytes([0, 0, 8, dims]):
        raise ZooError(f"{name} is not an IDX file of bytes in {dims} dimensions: delete it and load again")
    shape = np.frombuffer(raw[4:head], dtype=">i4").tolist()
    if math.prod(shape) != len(raw) - head:
        raise ZooError(
            f"{name} announces {shape} = {math.prod(shape)} values and holds {len(raw) - head}: "
            "delete it and load again"
        )
    return torch.frombuffer(bytearray(raw[head:]), dtype=torch.uint8).reshape(shape)


def cifar(name: str, content: bytes) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Train and test of the CIFAR-10 binary archive: images (n, 3, 32, 32), uint8, and labels (n,), int64.

    The members are read in memory and none is unpacked, so no path inside the archive can lead anywhere.
    Raises ZooError, with the file's name, if the content is anything else.
    """
    wanted, found = (*CIFAR_TRAIN, CIFAR_TEST), {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:  # in the archive's order: going back would decompress it all again
                batch, stream = member.name.rpartition("/")[2], archive.extractfile(member)
                if batch in wanted and stream is not None:
                    found[batch] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ZooError(f"{name} is not a complete .tar.gz ({error}): delete it and load again") from error
    for batch in wanted:
        size = len(found.get(batch, b""))
        if size == 0 or size % CIFAR_RECORD:
            raise ZooError(
                f"{name} has {size} bytes for {batch}, not whole records of {CIFAR_RECORD}: delete it and load again"
            )
    return _records([found[batch] for batch in CIFAR_TRAIN]), _records([found[CIFAR_TEST]])


def _records(parts: list[bytes]) -> tuple[Tensor, Tensor]:
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


def fashion_mnist(root: str | Path | None, *, download: bool) -> Data:
    """60,000 + 10,000 grey images of clothes, 28x28. A root that torchvision filled is used as it is."""
    files = fashion_files()
    content = read(files, cache_dir(root) / "FashionMNIST" / "raw", download=download)
    x, y, x_test, y_test = (
        idx(file.name, content[file.name], dims) for file, dims in zip(files, (3, 1, 3, 1), strict=True)
    )
    train, test = (x[:, None], y.long()), (x_test[:, None], y_test.long())
    return _data("fashion-mnist", train, test, FASHION_CLASSES, FASHION_SCALE)


def cifar10(root: str | Path | None, *, download: bool) -> Data:
    """50,000 + 10,000 colour photographs, 32x32. Takes about 1 GB of memory as floats."""
    content = read([CIFAR_FILE], cache_dir(root), download=download)[CIFAR_FILE.name]
    train, test = cifar(CIFAR_FILE.name, content)
    return _data("cifar10", train, test, CIFAR_CLASSES, CIFAR_SCALE)


def _data(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
    scale: tuple[tuple[float, ...], tuple[float, ...]],
) -> Data:
    """Scale images (n, C, H, W) to mean 0 and deviation 1; the last tenth of the training images validates."""
    cut = len(train[0]) - len(train[0]) // 10
    splits = {
        "train": (train[0][:cut], train[1][:cut]),
        "valid": (train[0][cut:], train[1][cut:]),
        "test": test,
    }
    mean, deviation = (torch.tensor(s)[:, None, None] for s in scale)
    channels, height, width = train[0].shape[1:]
    return Data(
        name=name,
        **{split: TensorDataset(x.float().div_(255).sub_(mean).div_(deviation), y) for split, (x, y) in splits.items()},
        classes=classes,
        shape=(channels, height, width),
        origin={split: torch.arange(len(y)) for split, (_, y) in splits.items()},
    )


_DATASETS: dict[str, Callable[[str | Path | None, bool], Data]] = {
    "digits": lambda root, download: digits(),
    "fashion-mnist": lambda root, download: fashion_mnist(root, download=download),
    "cifar10": lambda root, download: cifar10(root, download=download),
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
