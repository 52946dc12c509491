"""Numbers as people read them, and the one table engine: aligned text, and HTML with everything escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any, TypeAlias

Row: TypeAlias = Sequence[str]
Lines: TypeAlias = tuple[str, Row | None, Sequence[Row]]  # a title, a head or none, and the rows

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
THOUSANDS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def seconds(*times: float) -> list[str]:
    """Times in the unit that suits the first, three figures each.

    >>> seconds(0.00123, 0.0205)
    ['1.23 ms', '20.5 ms']
    """
    unit, name = next(((u, n) for u, n in ((1.0, "s"), (1e-3, "ms")) if times[0] >= u), (1e-6, "µs"))
    return [f"{_figures(t / unit)} {name}" for t in times]


def ranged(middle: float, low: float, high: float) -> str:
    """A time with its spread.

    >>> ranged(0.00123, 0.0012, 0.00131)
    '1.23 ms [1.20, 1.31]'
    """
    first, *rest = seconds(middle, low, high)
    return f"{first} [{', '.join(t.split()[0] for t in rest)}]"


def size(count: int) -> str:
    """Bytes in powers of 1000.

    >>> size(328_540), size(512)
    ('328.5 kB', '512 B')
    """
    return next((f"{count / unit:.1f} {name}" for name, unit in THOUSANDS if count >= unit), f"{count} B")


def percent(share: float, low: float | None = None, high: float | None = None, *, digits: int = 1) -> str:
    """A share of one, with its interval where that is given; `digits` stand behind the point.

    >>> percent(0.944), percent(0.944, 0.91, 0.97), percent(0.944, digits=0)
    ('94.4 %', '94.4 % [91.0, 97.0]', '94 %')
    """
    spread = "" if low is None or high is None else f" [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"
    return f"{100 * share:.{digits}f} %{spread}"


def plural(n: int, noun: str) -> str:
    """1 thread, 2 threads."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def describe(thing: Any) -> str:
    """What a strategy goes by, the same in every process: a text itself, a function's name, else its repr.

    >>> describe("magnitude"), describe(len)
    ('magnitude', 'len')
    """
    name = thing if isinstance(thing, str) else getattr(thing, "__name__", None) or repr(thing)
    return _ADDRESS.sub("", name)


def table(title: str, head: Row | None, rows: Sequence[Row]) -> str:
    """The rows as aligned text under a title.

    >>> print(table("Sizes", ["what", "bytes"], [["weights", "328.5 kB"]]))
    Sizes
    what     bytes
    weights  328.5 kB
    """
    lines = [*([head] if head else []), *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    body = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([title, *body])


def html(title: str, head: Row | None, rows: Sequence[Row]) -> str:
    """The rows as an HTML table whose first cells are headers, so that a screen reader names each value.

    Numbers stand at the right of their column, words at the left; legible where a page lets no style in. A number and
    its unit stay on one line.
    """
    sides = ["left"] * len(head or rows[0])
    for i in range(1, len(sides)):
        if all(_NUMBER.match(row[i]) for row in rows):
            sides[i] = "right"
    cells = zip(sides, head or (), strict=False)
    top = "".join(f'<th scope="col" style="text-align:{s}">{_cell(x)}</th>' for s, x in cells)
    body = "".join(
        f'<tr><th scope="row" style="text-align:left;font-weight:normal">{_cell(row[0])}</th>'
        + "".join(f'<td style="text-align:{s}">{_cell(x)}</td>' for s, x in zip(sides[1:], row[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    header = f"<thead><tr>{top}</tr></thead>" if head else ""
    caption = f'<caption style="text-align:left;font-weight:bold;white-space:nowrap">{escape(title)}</caption>'
    return f"<table>{caption}{header}<tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    return _WITHIN.sub("&nbsp;", escape(text))


_WITHIN = re.compile(
    r"(?<=≈) (?=[-+\d])|(?<=\d) (?=(?:%|×|points?|[nµm]?s|[kMG]?B|[kMG]?MACs)(?!\w))"
)  # a measured value
_NUMBER = re.compile(r"≈|[-+−]?[\d.]|no CUDA|$")  # how a cell begins that belongs at the right


class Tabular:
    """What prints, and shows in a notebook, as the table that its `_lines` give, and its `_notes` a paragraph each."""

    def _lines(self) -> Lines:
        raise NotImplementedError

    def _notes(self) -> list[str]:
        return []

    def __str__(self) -> str:
        return "\n".join([table(*self._lines()), *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html(*self._lines()) + "".join(f"<p>{escape(note)}</p>" for note in self._notes())


def _figures(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
