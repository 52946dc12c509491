"""Strategies by name: criteria, granularities, schedules and layer rules, all registered, found and written alike.

A strategy is a function, or a frozen dataclass with `__call__`, whose fields are its options. Registered, it has a
name: for `Recipe`, for the files of recipes, and for the contract tests, which walk through all that there is.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

from .core import PruneError
from .files import made

T = TypeVar("T")
S = TypeVar("S")


class Registry(Mapping[str, T], Generic[T]):
    """The strategies of one kind that need no options: name -> strategy.

    what: what one of them is called in errors. aliases: other names. hints: what to say of
    names that someone will look for in vain. check: raises PruneError for what only looks like a strategy.

    >>> from prunelab.schedules import SCHEDULES
    >>> SCHEDULES["cubic"](0.5)
    0.875
    """

    def __init__(
        self,
        what: str,
        *,
        aliases: Mapping[str, str] | None = None,
        hints: Mapping[str, str] | None = None,
        check: Callable[[T], None] | None = None,
    ):
        self.what, self.aliases, self.hints, self.check = what, dict(aliases or {}), dict(hints or {}), check
        self._known: dict[str, Any] = {}  # functions, instances, and classes that make strategies

    def __getitem__(self, name: str) -> T:
        known = self._known[self.aliases.get(name, name)]
        if _required(known):
            raise KeyError(name)
        return known() if isinstance(known, type) else known

    def __iter__(self) -> Iterator[str]:
        return (name for name, known in self._known.items() if not _required(known))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def register(self, name: str) -> Callable[[S], S]:
        """A decorator that makes a function, or a frozen dataclass with `__call__`, known by a name.

        Of a class whose fields all have defaults the name alone means the instance with these.

        >>> from prunelab import schedules
        >>> @schedules.register("late")
        ... def late(progress):
        ...     return progress**8
        >>> schedules.by_name("late") is late
        True
        >>> schedules.SCHEDULES.forget("late")
        """
        if not isinstance(name, str):
            raise PruneError(f'a {self.what} is registered under a name: write @register("mine")')

        def put(strategy: S) -> S:
            if not callable(strategy):
                raise PruneError(f"{strategy!r} is no {self.what}: give a function, or a dataclass with __call__")
            if self.check is not None and not isinstance(strategy, type):
                self.check(cast(T, strategy))
            self._known[name] = strategy
            return strategy

        return put

    def forget(self, name: str) -> None:
        """Take a name off again.

        >>> from prunelab import schedules
        >>> late = schedules.register("late")(lambda progress: progress**8)
        >>> schedules.SCHEDULES.forget("late")
        >>> "late" in schedules.SCHEDULES
        False
        """
        del self._known[name]

    def by_name(self, strategy: str | T) -> T:
        """The strategy registered under a name; a strategy is given back as it is. PruneError lists what there is.

        >>> from prunelab import schedules
        >>> schedules.by_name("linear") is schedules.linear
        True
        """
        if isinstance(strategy, type):
            raise PruneError(f"{strategy.__name__} is a class: give an instance, such as {strategy.__name__}(...)")
        if callable(strategy):
            if self.check is not None:
                self.check(strategy)
            return strategy
        name = self.aliases.get(cast(str, strategy), cast(str, strategy))
        if name in self.hints:
            raise PruneError(f"{strategy!r} {self.hints[name]}")
        if name not in self._known:
            raise self._unknown(strategy)
        known = self._known[name]
        if _required(known):
            raise PruneError(f"the {self.what} {name!r} needs options: give {_written(known.__name__, known)}")
        return self[name]

    def _unknown(self, name: Any) -> PruneError:
        there = ", ".join(_written(*item) for item in sorted(self._known.items()))
        close = difflib.get_close_matches(name, self._known, n=1) if isinstance(name, str) else []
        meant = f". Did you mean {close[0]!r}?" if close else ""
        return PruneError(f"no {self.what} is called {name!r}; there is {there}{meant}")

    def describe(self, strategy: str | T) -> Any:
        """A strategy as plain values: its name, or a table of its name and its options. PruneError if it has none.

        >>> from prunelab.schedules import SCHEDULES, Between, cubic
        >>> SCHEDULES.describe(cubic), SCHEDULES.describe(Between(0.1, 0.7, "linear"))
        ('cubic', {'name': 'between', 'start': 0.1, 'end': 0.7, 'schedule': 'linear'})
        """
        if isinstance(strategy, str):
            return strategy
        names = {id(known): name for name, known in self._known.items()}
        if id(strategy) in names:
            return names[id(strategy)]
        maker, options = _taken_apart(strategy)
        if id(maker) not in names:
            called = getattr(maker, "__name__", None) or repr(strategy)
            raise PruneError(
                f"the {self.what} {called} can't be written to a file: only names can, and it is not registered. "
                'Write @register("mine") above it, here and where the file is read'
            )
        name = names[id(maker)]
        table = {o: self._plain(f"{o} of the {self.what} {name!r}", value) for o, value in options.items()}
        return {"name": name, **table} if table else name

    def _plain(self, what: str, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise PruneError(f"the {what} is {value}: only finite numbers go into a file")
        if isinstance(value, (str, bool, int, float)):
            return value
        if isinstance(value, (list, tuple)):
            return [self._plain(what, v) for v in value]
        if isinstance(value, (set, frozenset)):
            return sorted(self._plain(what, v) for v in value)
        if callable(value):
            return self.describe(value)
        raise PruneError(f"the {what} is a {type(value).__name__}: only names, numbers and texts go into a file")

    def revive(self, value: Any) -> str | T:
        """The strategy that `describe` gave these values for; a name is given back as it is.

        >>> from prunelab.schedules import SCHEDULES
        >>> SCHEDULES.revive({"name": "exponential", "sparsity": 0.9})
        Exponential(sparsity=0.9)
        """
        if isinstance(value, str):
            return value
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise PruneError(f"{self.what} is {value!r}: give a name, or a table with the key 'name'")
        name, given = value["name"], {k: self._revived(v) for k, v in value.items() if k != "name"}
        if name not in self._known:
            raise self._unknown(name)
        known = self._known[name]
        options = _options(known)
        if not given.keys() <= options.keys() or not given.keys() >= set(_required(known)):
            has, gives = (", ".join(names) or "none" for names in (options, given))
            raise PruneError(f"the {self.what} {name!r} has the options {has}; the file gives {gives}")
        try:
            for option, value in given.items():
                _check_plain(options[option], value)
            return cast(T, known(**given) if isinstance(known, type) else functools.partial(known, **given))
        except (TypeError, ValueError) as error:
            if isinstance(error, PruneError):
                raise
            raise PruneError(f"the {self.what} {name!r} does not take {given}: {error}") from error

    def _revived(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self.revive(value)
        return tuple(value) if isinstance(value, list) else value


def _options(known: Any) -> dict[str, inspect.Parameter]:
    """What can be chosen: all fields of a class, the keyword-only arguments of a function, nothing of an instance."""
    if not isinstance(known, type) and not inspect.isfunction(known):
        return {}
    parameters = inspect.signature(known).parameters
    return {n: p for n, p in parameters.items() if isinstance(known, type) or p.kind is p.KEYWORD_ONLY}


def _check_plain(option: inspect.Parameter, value: Any) -> None:
    """ValueError for a value that is not of the plain type that the option is annotated with, or not finite."""
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{option.name} is {number}, and not finite")
    kind = {"int": int, "float": float, "bool": bool, "str": str}.get(str(option.annotation))
    if kind is not None:
        made(kind, value)
    if str(option.annotation) in ("tuple[str, ...]", "Collection[str]"):
        made(tuple[str, ...], list(value) if isinstance(value, tuple) else value)


def _required(known: Any) -> list[str]:
    return [name for name, p in _options(known).items() if p.default is p.empty]


def _written(name: str, known: Any) -> str:
    """A name, with the options that must be given."""
    return f"{name}({', '.join(_required(known))})" if _required(known) else name


def _taken_apart(strategy: Any) -> tuple[Any, dict[str, Any]]:
    """What makes the strategy, and its options, where they are not the defaults."""
    maker, given = strategy, {}
    if isinstance(strategy, functools.partial) and not strategy.args:
        maker, given = strategy.func, strategy.keywords
    elif dataclasses.is_dataclass(strategy):
        maker = type(strategy)
        given = {name: getattr(strategy, name) for name in _options(maker)}
    defaults = {name: p.default for name, p in _options(maker).items()}
    return maker, {name: value for name, value in given.items() if name not in defaults or value != defaults[name]}


def renamed(module: str, names: Mapping[str, str], level: int = 2) -> Callable[[str], Any]:
    """The `__getattr__` of a module some of whose names have moved: an old one works, with a DeprecationWarning.

    names: old name -> the dotted path of what it is now. They go with the next release. `level`: how many calls
    above the warning the user is.

    >>> old = renamed("prunelab.schedules", {"cube": "prunelab.schedules.cubic"})
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     old("cube")(0.5)
    0.875
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        if names[name] != f"{module}.{name}":  # or else an old module, whose functions warn
            warnings.warn(f"{module}.{name} is now {names[name]}", DeprecationWarning, stacklevel=level)
        return pkgutil.resolve_name(names[name])

    return find


def moved(home: str, names: str) -> dict[str, str]:
    """For `renamed`: names, parted by spaces, that a package no longer shows and that their own module still has.

    >>> moved("prunelab.core", "Mask Place")
    {'Mask': 'prunelab.core.Mask', 'Place': 'prunelab.core.Place'}
    """
    return {name: f"{home}.{name}" for name in names.split()}
