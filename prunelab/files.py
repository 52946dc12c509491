"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """All of it or nothing: written beside, flushed to the disk, then renamed onto the name.

    No link is followed: one of this name is replaced by the file. A file that is there keeps its mode.
    """
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, _mode(path))
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


def _mode(path: Path) -> int:
    """The permissions of the file of this name; if there is none, or only a link, what any new file would get."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        mode = 0
    if stat.S_ISREG(mode):
        return stat.S_IMODE(mode)
    umask = os.umask(0)  # it can only be read by setting it
    os.umask(umask)
    return 0o666 & ~umask
