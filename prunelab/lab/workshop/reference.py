"""The API reference, made from the docstrings: a page of Markdown for each module."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

PACKAGE = "prunelab"
FIRST = ("prunelab", "prunelab.zoo", "prunelab.lab")  # after these, the rooms of what `prunelab` exports


def modules() -> list[ModuleType]:
    """The public modules: the package, the zoo, the lab, and every room that something the package exports is in."""
    package = importlib.import_module(PACKAGE)
    things = [getattr(package, name) for name in package.__all__]
    homes = [thing.__name__ if inspect.ismodule(thing) else thing.__module__ for thing in things]
    rooms = [".".join(home.split(".")[:2]) for home in homes if home.startswith(f"{PACKAGE}.")]
    return [importlib.import_module(name) for name in dict.fromkeys((*FIRST, *rooms))]


def public(module: ModuleType) -> dict[str, Any]:
    """A module's public functions and classes: those in its `__all__`, else those that it defines itself."""
    names = getattr(module, "__all__", None) or [
        name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__
    ]
    found = {name: getattr(module, name) for name in names if not name.startswith("_")}
    return {name: thing for name, thing in sorted(found.items()) if callable(thing) and thing.__doc__}


def page(module: ModuleType) -> str:
    """A module's page in Markdown: its docstring, then an entry for each public thing."""
    entries = "\n\n".join(_entry(name, thing) for name, thing in public(module).items())
    return f"# {module.__name__}\n\n{prose(inspect.getdoc(module) or '')}\n\n{entries}\n"


def prose(docstring: str) -> str:
    """A docstring as Markdown: its examples become code, all else stays."""
    blocks = re.split(r"\n\s*\n", docstring.strip())
    return "\n\n".join(f"```python\n{b}\n```" if b.lstrip().startswith(">>>") else _lines(b) for b in blocks)


def _lines(block: str) -> str:
    """Indented lines (formulas, diagrams) keep their shape."""
    return block if not re.match(r"\s{2,}", block) else f"```\n{block}\n```"


def _entry(name: str, thing: Any) -> str:
    head = f"## {name}\n\n```python\n{name}{_signature(thing)}\n```\n\n{prose(inspect.getdoc(thing) or '')}"
    return "\n\n".join([head, *_members(thing)])


def _signature(thing: Any) -> str:
    try:
        text = re.sub(r"<function (\S+) at 0x\w+>", r"\1", str(inspect.signature(thing)).replace("'", ""))
    except (TypeError, ValueError):
        return "(...)"
    if len(text) < 80:
        return text
    parts = re.split(r", (?=[\w*]+\b(?:[:=,)]|$))", text)
    return ",\n    ".join(parts)


def _members(thing: Any) -> Iterator[str]:
    """The public methods and properties that a class itself documents."""
    for name, member in vars(thing).items() if inspect.isclass(thing) else ():
        text = inspect.getdoc(member) if not isinstance(member, (int, str, float, tuple)) else None
        plain = getattr(member, "__func__", member)
        if not name.startswith("_") and text and (isinstance(member, property) or inspect.isfunction(plain)):
            how = "" if isinstance(member, property) else _signature(plain)
            yield f"**`.{name}{how}`**\n\n{prose(text)}"
