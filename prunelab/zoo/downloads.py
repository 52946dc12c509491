"""Files from elsewhere: fetched aside, checked, then moved into place; checked again whenever they are read."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from platformdirs import user_cache_dir
from tqdm.auto import tqdm

from .data import ZooError

TIMEOUT = 30  # seconds without a single byte before a mirror counts as dead
CHUNK = 1 << 20


@dataclass(frozen=True)
class File:
    """A file of a data set: its name, the MD5 its publisher gives, and addresses that offer it."""

    name: str
    md5: str
    urls: tuple[str, ...]


def cache_dir(root: str | Path | None = None) -> Path:
    """Where downloads are kept: `root`, else $PRUNELAB_CACHE, else the system's place for caches."""
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
                _checked(Path(aside) / file.name, file)
            for file in files:
                os.replace(Path(aside) / file.name, folder / file.name)
    except (OSError, HTTPException) as error:  # an URLError is an OSError too
        raise ZooError(
            f"could not download {_names(files)} to {folder} ({error}). With a network, call again. Without one, "
            f'put the files there yourself, or use zoo.load("digits"), which needs no download'
        ) from error


def _fetch(file: File, target: Path) -> None:
    for url in file.urls[:-1]:
        try:
            return _retrieve(url, target)
        except (OSError, HTTPException):
            continue  # the last mirror's failure is the one to report
    return _retrieve(file.urls[-1], target)


def _retrieve(url: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, open(target, "wb") as out:
        size = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=size or None, desc=target.name, unit="B", unit_scale=True, leave=False) as bar:
            while chunk := response.read(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))


def _checked(path: Path, file: File) -> bytes:
    """The content that was hashed is the content that is returned, so nothing can change in between."""
    try:
        content = path.read_bytes()
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
