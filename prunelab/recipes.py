"""A recipe as a file, JSON or TOML, that someone else can read, change and run: the same units stay.

Everything in it is a name or a number. A registered name is written as it is; a strategy with options as a table of its
name and these, such as `{name = "random", seed = 3}`; N:M as "2:4"; a sparsity for each group as a table.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from .allocation import NM
from .core import PruneError
from .files import read_json, read_toml, write_whole
from .pipeline import STRATEGIES, Recipe

FORMAT = "prunelab recipe 1"


def save_recipe(path: str | os.PathLike[str], recipe: Recipe) -> Path:
    """Write a recipe as JSON or TOML, by the suffix of the path; the file is replaced whole. Returns the path.

    Raises PruneError for another suffix, and for functions that no name or table can describe: register them first.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(save_recipe(Path(folder) / "mine.toml", Recipe("taylor", sparsity=0.8)).read_text())
    format = "prunelab recipe 1"
    criterion = "taylor"
    granularity = "weights"
    sparsity = 0.8
    scope = "global"
    schedule = "one_shot"
    rounds = 1
    <BLANKLINE>
    """
    file = Path(path)
    if not isinstance(recipe, Recipe):
        raise PruneError(f"this is a {type(recipe).__name__}: give a Recipe")
    written = _as_toml if _is_toml(file) else _as_json
    write_whole(file, written(described(recipe)).encode())
    return file


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe. Nothing in the file is executed: names are looked up among those registered here.

    Raises PruneError for a file that is missing or no recipe, naming the field that does not fit.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load_recipe(save_recipe(Path(folder) / "mine.json", Recipe("taylor", sparsity=0.8))).criterion
    'taylor'
    """
    file = Path(path)
    read: Callable[[Path], Any] = read_toml if _is_toml(file) else read_json
    try:
        found = read(file)
    except OSError as error:
        raise PruneError(f"{file} can't be read ({error.strerror})") from error
    except ValueError as error:  # both parsers' errors, and bytes that are no text
        raise PruneError(f"{file} is no {file.suffix[1:].upper()}: {error}") from error
    try:
        return revived(found)
    except PruneError as error:
        raise PruneError(f"{file}: {error}") from error


def described(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values.

    >>> described(Recipe("taylor", "filters", scope="row"))["criterion"], described(Recipe(scope=NM(2, 4)))["scope"]
    ('taylor', '2:4')
    """
    values = {f.name: getattr(recipe, f.name) for f in fields(Recipe) if getattr(recipe, f.name) is not None}
    values["scope"] = str(recipe.scope)
    if isinstance(recipe.sparsity, Mapping):
        values["sparsity"] = dict(recipe.sparsity)
    for name in STRATEGIES.keys() & values.keys():
        values[name] = STRATEGIES[name].describe(values[name])
    return {"format": FORMAT, **values}


def revived(values: Any) -> Recipe:
    """The recipe that `described` gave these values for; PruneError for anything else.

    >>> revived({"format": "prunelab recipe 1", "criterion": {"name": "random", "seed": 3}}).criterion
    Random(seed=3)
    """
    if not isinstance(values, Mapping) or values.get("format") != FORMAT:
        given = values.get("format") if isinstance(values, Mapping) else type(values).__name__
        raise PruneError(f"no recipe that this version can read: its format is {given!r}, not {FORMAT!r}")
    given = {name: value for name, value in values.items() if name != "format"}
    known = [f.name for f in fields(Recipe)]
    unknown = sorted(given.keys() - set(known))
    if unknown:
        raise PruneError(f"a recipe has no field {unknown[0]!r}; it has {', '.join(known)}")
    for name in STRATEGIES.keys() & given.keys():
        given[name] = STRATEGIES[name].revive(given[name])
    pattern = re.fullmatch(r"(\d{1,18}):(\d{1,18})", str(given.get("scope")))
    if pattern:
        given["scope"] = NM(int(pattern[1]), int(pattern[2]))
    return Recipe(**given)


def _is_toml(file: Path) -> bool:
    """Whether it is TOML, else it is JSON; PruneError for another suffix."""
    if file.suffix not in (".json", ".toml"):
        raise PruneError(f"{file.name}: a recipe is a .json or a .toml file, and the name says which")
    return file.suffix == ".toml"


def _as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _as_toml(values: dict[str, Any]) -> str:
    """Flat values first, then a table for each mapping: TOML's order, and all of it that a recipe needs."""
    flat = [f"{k} = {_toml(v)}" for k, v in values.items() if not isinstance(v, Mapping)]
    tables = [
        "\n".join([f"\n[{k}]", *(f"{_toml(name)} = {_toml(v)}" for name, v in table.items())])
        for k, table in values.items()
        if isinstance(table, Mapping)
    ]
    return "\n".join([*flat, *tables]) + "\n"


def _toml(value: Any) -> str:
    """Strings, numbers, truth and lists read in TOML as in JSON, but for the one control character that JSON leaves."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_toml(name)} = {_toml(v)}' for name, v in value.items())}}}"
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
