"""One call for every data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .data import Data, ZooError
from .digits import digits
from .pictures import cifar10, fashion_mnist

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
    """
    if not isinstance(name, str) or name not in _DATASETS:
        raise ZooError(f"there is no data set {name!r}: the names are {', '.join(_DATASETS)}")
    return _DATASETS[name](root, download)
