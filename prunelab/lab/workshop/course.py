"""Where the course's notebooks lie, in a source folder or in an installed wheel, and a learner's own copies of them."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import nbformat

from ... import zoo
from ...core import PruneError
from ...files import read_json, read_whole, write_whole

PATTERN = "[0-9][0-9]_*.ipynb"
MANIFEST = ".prunelab.json"  # in a learner's folder: what each notebook was when it was copied


def folder() -> Path:
    """The folder of the notebooks. PruneError if the installation has none."""
    place = zoo.trained.data_dir().parent / "notebooks"
    if next(place.glob(PATTERN), None) is None:
        raise PruneError(f"no notebooks in {place}: install prunelab again, or start from the repository's folder")
    return place


def notebooks() -> list[Path]:
    """The course's notebooks, in order."""
    return sorted(folder().glob(PATTERN))


def changed() -> list[str]:
    """The notebooks that differ from the clone's last commit: an author's work, or a learner's; [] outside a clone."""
    command = ["git", "-C", str(folder()), "diff", "--name-only", "--relative", "HEAD", "--", PATTERN]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return found.stdout.split()


def texts() -> list[Path]:
    """The pages beside the notebooks, in Markdown."""
    return sorted((zoo.trained.data_dir().parent / "docs").glob("*.md"))


def read(path: Path) -> Any:
    """A notebook, in memory. PruneError if the file holds none."""
    data = read_whole(path)
    try:
        nb = nbformat.convert(nbformat.reader.reads(data.decode()), 4)
        nbformat.validate(nb)
    except Exception as error:  # nbformat raises a dozen kinds, each for another part that is not there
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise PruneError(
            f"{path} can't be read as a Jupyter notebook ({why[:200]}). Name an .ipynb file; if it is one, open it in "
            "JupyterLab and save it again, or take an older copy of it"
        ) from error
    return nb


def copy(target: Path) -> dict[str, str]:
    """Put the notebooks into a folder; {file name: "new", "updated", "as it was" or "yours, kept"}.

    A notebook that the learner has changed is never overwritten: the course's newer version, if there is one, then
    stands beside it as `NN_name.new.ipynb`, the one after that as `NN_name.new-2.ipynb`. Copying twice changes nothing.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PruneError(f"{target} can't be made ({error}): name a folder that you may write to") from error
    before = _manifest(target)
    done = {path.name: _copy(path, target, before) for path in notebooks()}
    write_whole(target / MANIFEST, json.dumps({p.name: _digest(p) for p in notebooks()}, indent=1).encode())
    return done


def _copy(source: Path, target: Path, before: dict[str, str]) -> str:
    """Put one notebook there; what became of it in words."""
    place = target / source.name
    was, there = before.get(source.name), _digest(place) if place.exists() else None
    if there == _digest(source):
        return "as it was"
    if there in (None, was):  # or the course's older version, untouched
        write_whole(place, source.read_bytes())
        return "updated" if there else "new"
    if was != _digest(source):
        offered, n = place.with_suffix(".new.ipynb"), 1
        while offered.exists() and _digest(offered) != _digest(source):  # the learner may have worked in it
            n += 1
            offered = place.with_suffix(f".new-{n}.ipynb")
        write_whole(offered, source.read_bytes())
    return "yours, kept"


def _manifest(target: Path) -> dict[str, str]:
    try:
        known = read_json(target / MANIFEST)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _digest(path: Path) -> str:
    return hashlib.sha256(read_whole(path)).hexdigest()
