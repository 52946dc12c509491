"""Numbers as people read them, and the two shapes a table takes: aligned text, and HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Protocol, TypeVar

Row = Sequence[str]


def seconds(*times: float) -> list[str]:
    """Times in the unit that suits the first, three figures each: 1.23 ms."""
    unit, name = next(((u, n) for u, n in ((1.0, "s"), (1e-3, "ms")) if times[0] >= u), (1e-6, "µs"))
    return [f"{_figures(t / unit)} {name}" for t in times]


def ranged(middle: float, low: float, high: float) -> str:
    """A time with its spread: 1.23 ms [1.20, 1.31]."""
    first, *rest = seconds(middle, low, high)
    return f"{first} [{', '.join(t.split()[0] for t in rest)}]"


def size(count: int) -> str:
    """Bytes in powers of 1000: 328.5 kB."""
    value, unit = float(count), "B"
    for bigger in ("kB", "MB", "GB"):
        if value >= 1000:
            value, unit = value / 1000, bigger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def percent(share: float) -> str:
    """A share of one: 94.4 %."""
    return f"{100 * share:.1f} %"


def plural(n: int, noun: str) -> str:
    """1 thread, 2 threads."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def table(title: str, head: Row | None, rows: Sequence[Row]) -> str:
    """The rows as aligned text under a title."""
    lines = [*([head] if head else []), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    body = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([title, *body])


def html(title: str, head: Row | None, rows: Sequence[Row]) -> str:
    """The rows as an HTML table whose first cells are headers, so that a screen reader names each value.

    Numbers stand at the right of their column, words at the left; legible where a page lets no style in.
    """
    sides = ["left"] * len(head or rows[0])
    for i in range(1, len(sides)):
        if all(_NUMBER.match(row[i]) for row in rows):
            sides[i] = "right"
    cells = zip(sides, head or (), strict=False)
    top = "".join(f'<th scope="col" style="text-align:{s}">{escape(x)}</th>' for s, x in cells)
    body = "".join(
        f'<tr><th scope="row" style="text-align:left;font-weight:normal">{escape(row[0])}</th>'
        + "".join(f'<td style="text-align:{s}">{escape(x)}</td>' for s, x in zip(sides[1:], row[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    header = f"<thead><tr>{top}</tr></thead>" if head else ""
    caption = f'<caption style="text-align:left;font-weight:bold;white-space:nowrap">{escape(title)}</caption>'
    return f"<table>{caption}{header}<tbody>{body}</tbody></table>"


_NUMBER = re.compile(r"≈|[-+−]?[\d.]|no CUDA|$")  # how a cell begins that belongs at the right


class _Tabular(Protocol):
    def _lines(self) -> tuple[str, Row | None, Sequence[Row]]: ...


T = TypeVar("T", bound=_Tabular)


def shown_as_table(kind: type[T]) -> type[T]:
    """A class decorator: print its objects, and show them in a notebook, as the table that their `_lines` give."""

    def text(self: T) -> str:
        return table(*self._lines())

    def page(self: T) -> str:
        return html(*self._lines())

    for name, shown in (("__str__", text), ("__repr__", text), ("_repr_html_", page)):
        setattr(kind, name, shown)
    return kind


def _figures(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
