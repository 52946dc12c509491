"""torchvision's Fashion-MNIST and CIFAR-10 as `Data`: the same images, checked and parsed without a pickle."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .data import Data
from .downloads import File, cache_dir, read
from .formats import cifar, idx

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# torchvision reads CIFAR-10 from pickles, and to unpickle a file is to execute it. Its authors publish the same
# images as flat records too, from the same place: those can at worst be wrong, and then their hash is.
CIFAR_FILE = File(
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
)

# Mean and standard deviation of each channel over the training images, on a scale from 0 to 1.
FASHION_SCALE = ((0.2860,), (0.3530,))
CIFAR_SCALE = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def fashion_files() -> tuple[File, ...]:
    """Train images, train labels, test images, test labels: torchvision's own names, hashes and mirrors."""
    from torchvision.datasets import FashionMNIST  # here, because it takes a second that digits don't need

    return tuple(
        File(name, md5, tuple(mirror + name for mirror in FashionMNIST.mirrors)) for name, md5 in FashionMNIST.resources
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
