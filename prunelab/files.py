"""Files are written whole or not at all; and one reader of JSON and TOML, which trusts neither size, depth nor type."""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import time
import tomllib
import types
import typing
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import MISSING, fields, is_dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from filelock import FileLock

LARGEST = 1 << 26  # bytes of JSON or TOML; the largest of ours, the plan of a large model, has a tenth
LARGEST_TOML = 1 << 20
DEEPEST = 50  # levels; ours have ten
DOTTED = re.compile(rf"(?<![\w'\"-])(?:[\w'\"-]+\s*\.\s*){{{DEEPEST}}}")
PATIENCE = 30.0  # seconds; others hold a lock for milliseconds
STALE = 3600.0  # seconds without a byte, after which a draft is one of a killed writer
UMASK = os.umask(0o077)  # it can only be read by setting it, for all threads: once, and never to something laxer
os.umask(UMASK)


def write_whole(path: Path, data: bytes, *, private: bool = False) -> None:
    """All of it or nothing: written beside, flushed to the disk, then renamed onto the name.

    No link is followed: one of this name is replaced by the file. A file that is there keeps its mode, unless what is
    `private` is for its owner alone. Drafts that killed writers of this file have left go.
    """
    sweep(path.parent, re.escape(path.name), STALE)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # known before it is made, so that it can go
    try:
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not private:
            os.chmod(draft, _mode(path))
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _mode(path: Path) -> int:
    """The permissions of the file of this name; if there is none, or only a link, what any new file would get."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            return stat.S_IMODE(mode)
    return 0o666 & ~UMASK


def sweep(folder: Path, name: str, age: float = 0.0) -> None:
    """Delete drafts, untouched for so many seconds, of files whose name fits a pattern: their writers were killed."""
    draft = re.compile(rf"\.{name}\.[^.]*\.tmp")
    with suppress(OSError), os.scandir(folder) as entries:  # others sweep, too; and what can't go does no harm
        for left in entries:
            ours = draft.fullmatch(left.name)
            if ours and (not age or time.time() - left.stat(follow_symlinks=False).st_mtime > age):
                os.unlink(left.path)


def alone(path: Path, patience: float = PATIENCE) -> AbstractContextManager[object]:
    """While the block runs, no other thread or process is in such a block for this file, or those it belongs with.

    Raises OSError if the others don't come to an end.
    """
    return FileLock(f"{path}.lock", timeout=patience).acquire(poll_interval=0.005)


def read_whole(path: Path, most: int | None = None) -> bytes:
    """The content of a file; OSError if it is larger than `most` bytes, or a pipe or device, which might never end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "it is no file, but a pipe or a device", str(path))
        if most is not None and found.st_size > most:
            raise OSError(0, f"it has {found.st_size:,} bytes, and at most {most:,} were expected", str(path))
        return file.read()


def read_json(path: Path) -> Any:
    """The content of a JSON file; OSError if it can't be read, ValueError if it is not what a file of ours can be."""
    return plain(read_whole(path, LARGEST))


def read_toml(path: Path) -> Any:
    """The content of a TOML file; errors as `read_json`."""
    return plain(read_whole(path, LARGEST_TOML), _toml)


def _toml(text: str) -> Any:
    if DOTTED.search(text):  # the parser would take for ever
        raise ValueError("it is nested too deeply")
    return tomllib.loads(text)


def plain(data: bytes, parse: Callable[[str], Any] = json.loads) -> Any:
    """Bytes as JSON, or as TOML: numbers of at most 64 bits, texts, truth, lists, dicts; ValueError for all else."""
    try:
        found = parse(data.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level = [found]
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return found
    raise ValueError("it is nested too deeply")


def _inside(value: Any) -> list[Any]:
    """What a value holds; ValueError if it is none of the plain ones."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        value.encode()  # half a surrogate pair is no text: a ValueError
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        raise ValueError("a number in it is too large")
    elif not isinstance(value, (int, float, types.NoneType)):
        raise ValueError(f"it holds a {type(value).__name__}")
    return []


def tensors_in(data: bytes) -> dict[str, Any]:
    """What the bytes of a safetensors file hold; ValueError for all that it raises: a header may say anything."""
    from safetensors.torch import load  # here, because it imports torch

    try:
        return load(data)
    except Exception as error:
        raise ValueError(f"it holds no safetensors ({type(error).__name__}: {error})") from error


def made(kind: Any, raw: Any) -> Any:
    """A value of this type from plain ones: dataclasses from dicts, tuples from lists; ValueError if it does not fit.

    >>> made(tuple[float, ...], [1, 2.5]), made(int | None, None)
    ((1.0, 2.5), None)
    >>> made(int, "1")
    Traceback (most recent call last):
    ValueError: '1' is no int
    """
    inner, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin is types.UnionType:
        return raw if raw is None and types.NoneType in inner else made(inner[0], raw)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(raw, dict):
        hints = typing.get_type_hints(kind)
        if missing := [f.name for f in fields(kind) if f.default is f.default_factory is MISSING and f.name not in raw]:
            raise ValueError(f"it lacks {missing[0]!r}")
        if unknown := [str(name) for name in raw if name not in hints]:
            raise ValueError(f"{unknown[0]!r} is not known")
        return kind(**{name: made(hints[name], value) for name, value in raw.items()})
    if origin is tuple and isinstance(raw, list):
        every = repeat(inner[0], len(raw)) if inner[-1] is ... else inner
        return tuple(made(k, value) for k, value in zip(every, raw, strict=True))
    if kind is float and type(raw) is int:
        return float(raw)
    if type(raw) is not (origin or kind):
        raise ValueError(f"{str(raw)[:100]!r} is no {getattr(kind, '__name__', kind)}")
    return raw
