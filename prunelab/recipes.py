"""A recipe as a file, JSON or TOML, that someone else can read, change and run: the same units stay.

Everything in it is a name or a number. A registered name is written as it is; a parametrized strategy as a table of
its name and its fields, such as `{name = "random", seed = 3}`; N:M as "2:4"; shares by group as a table.
"""

from __future__ import annotations

import functools
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from .allocation import NM
from .core import PruneError
from .criteria import CRITERIA
from .files import write_whole
from .granularity import GRANULARITIES, Blocks, Together, blocks, weights
from .pipeline import Recipe
from .schedules import SCHEDULES, Exponential

FORMAT = "prunelab recipe 1"
_PATTERN = re.compile(r"(\d+):(\d+)")


def save_recipe(path: str | os.PathLike[str], recipe: Recipe) -> Path:
    """Write a recipe as JSON or TOML, by the suffix of the path; the file is replaced whole. Returns the path.

    Raises PruneError for another suffix, and for functions that no name or table can describe: register them first.
    """
    file = Path(path)
    if not isinstance(recipe, Recipe):
        raise PruneError(f"this is a {type(recipe).__name__}: give a Recipe")
    write_whole(file, _by_suffix(file)[0](described(recipe)).encode())
    return file


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe. Nothing in the file is executed: names are looked up among those registered here.

    Raises PruneError for a file that is missing or no recipe, naming the field that does not fit.
    """
    file = Path(path)
    read = _by_suffix(file)[1]
    try:
        found = read(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PruneError(f"{file} can't be read ({error.strerror})") from error
    except ValueError as error:  # both parsers' errors, and bytes that are no text
        raise PruneError(f"{file} is no {file.suffix[1:].upper()}: {error}") from error
    try:
        return revived(found)
    except PruneError as error:
        raise PruneError(f"{file}: {error}") from error


def described(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values."""
    scope, sparsity = recipe.scope, recipe.sparsity
    return {
        "format": FORMAT,
        "criterion": _named("criterion", recipe.criterion, CRITERIA),
        "granularity": _granularity(recipe.granularity),
        "scope": str(scope),
        "schedule": _schedule(recipe.schedule),
        "rounds": recipe.rounds,
        "sparsity": dict(sparsity) if isinstance(sparsity, Mapping) else sparsity,
    }


def revived(values: Any) -> Recipe:
    """The recipe that `described` gave these values for; PruneError for anything else."""
    if not isinstance(values, Mapping) or values.get("format") != FORMAT:
        given = values.get("format") if isinstance(values, Mapping) else type(values).__name__
        raise PruneError(f"no recipe that this version can read: its format is {given!r}, not {FORMAT!r}")
    unknown = sorted(set(values) - {"format", *(f.name for f in fields(Recipe))})
    if unknown:
        raise PruneError(f"a recipe has no field {unknown[0]!r}; it has {', '.join(f.name for f in fields(Recipe))}")
    given = {k: v for k, v in values.items() if k != "format"}
    readers: dict[str, Callable[[Any], Any]] = {
        "criterion": lambda v: _made("criterion", v, CRITERIA),
        "granularity": _granularity_of,
        "scope": _scope_of,
        "schedule": lambda v: _made("schedule", v, {**SCHEDULES, "exponential": Exponential(0.5)}),
    }
    return Recipe(**{k: readers[k](v) if k in readers else v for k, v in given.items()})


def _named(what: str, value: Any, registered: Mapping[str, Any]) -> Any:
    """A registered strategy's name; a frozen dataclass of a registered one's type as its name and fields."""
    if isinstance(value, str):
        return value
    for name, known in registered.items():
        if value is known or (is_dataclass(known) and value == known):
            return name
    for name, known in registered.items():
        if is_dataclass(known) and type(value) is type(known):
            return {"name": name, **_plain(asdict(value))}  # type: ignore[arg-type]
    called = getattr(value, "__name__", None) or repr(value)
    raise PruneError(
        f"the {what} {called} can't be written to a file: only names can, and it is not registered. Known are "
        f"{', '.join(sorted(registered))}; register yours (criteria.register) where it is to be read, too"
    )


def _made(what: str, value: Any, registered: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return value  # Recipe knows which names there are
    name, options = _table(what, value)
    known = registered.get(name)
    if known is None or not is_dataclass(known) or isinstance(known, type):
        there = sorted(n for n, k in registered.items() if is_dataclass(k))
        raise PruneError(f"no {what} with fields is called {name!r}; there is {', '.join(there)}")
    try:
        return replace(known, **options)
    except TypeError as error:
        own = ", ".join(f.name for f in fields(known))
        raise PruneError(f"the {what} {name!r} has the fields {own}; the file gives {', '.join(options)}") from error


def _schedule(value: Any) -> Any:
    if isinstance(value, Exponential):
        return {"name": "exponential", **asdict(value)}
    return _named("schedule", value, SCHEDULES)


def _granularity(value: Any) -> Any:
    """A name; `blocks`, `Together` and `partial(weights, exclude=...)` as tables."""
    if isinstance(value, Together):
        return {"name": "together", "names": list(value.names)}
    if isinstance(value, Blocks):
        return {"name": "blocks", **_plain(asdict(value))}
    if (
        isinstance(value, functools.partial)
        and value.func is weights
        and (value.args, set(value.keywords))
        == (
            (),
            {"exclude"},
        )
    ):
        return {"name": "weights", "exclude": sorted(value.keywords["exclude"])}
    return _named("granularity", value, GRANULARITIES)


def _granularity_of(value: Any) -> Any:
    if isinstance(value, str):
        return value
    name, options = _table("granularity", value)
    makers: dict[str, Callable[..., Any]] = {
        "blocks": blocks,
        "together": lambda names: Together(tuple(names)),
        "weights": lambda exclude: functools.partial(weights, exclude=exclude),
    }
    try:
        return makers[name](**options) if name in makers else _made("granularity", value, GRANULARITIES)
    except TypeError as error:
        raise PruneError(f"the granularity {name!r} does not take {', '.join(options) or 'nothing'}") from error


def _scope_of(value: Any) -> Any:
    found = _PATTERN.fullmatch(value) if isinstance(value, str) else None
    return NM(int(found[1]), int(found[2])) if found else value


def _table(what: str, value: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise PruneError(f"{what} is {value!r}: give a name, or a table with the key 'name'")
    return value["name"], {k: v for k, v in value.items() if k != "name"}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _by_suffix(file: Path) -> tuple[Callable[[dict[str, Any]], str], Callable[[str], Any]]:
    """The writer and the reader of a file's format."""
    if file.suffix not in FORMATS:
        raise PruneError(f"{file.name}: a recipe is a .json or a .toml file, and the name says which")
    return FORMATS[file.suffix]


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
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


FORMATS: dict[str, tuple[Callable[[dict[str, Any]], str], Callable[[str], Any]]] = {
    ".json": (_as_json, json.loads),
    ".toml": (_as_toml, tomllib.loads),
}
