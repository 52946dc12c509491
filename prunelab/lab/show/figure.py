"""Pictures and tables that everyone can read: an alternative text, colours told apart by anyone, an opaque ground."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from ...measurement import Comparison
from ...text import html as html_table
from . import display, vector
from .measuring import NO_CUDA, measured

# Okabe and Ito's colours without yellow (too faint on white), the second a little darker, to be legible as text too;
# marker and line style repeat what the colour says. vector.THEME has what becomes of them on a dark page.
COLOURS = ("#0072B2", "#C45100", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", vector.INK)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

SHADES = LinearSegmentedColormap.from_list("shades", [(0, 0, 0, 0), (0, 0, 0, 1)])  # of ink, on any ground

STYLE: Any = {  # matplotlib types its settings one by one
    "axes.prop_cycle": cycler(color=COLOURS) + cycler(marker=_MARKERS) + cycler(linestyle=_LINES),
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "white",
    "axes.edgecolor": vector.FAINT,
    "axes.labelcolor": vector.FAINT,
    "axes.titlecolor": vector.INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11.5,
    "text.color": vector.INK,
    "xtick.color": vector.FAINT,
    "ytick.color": vector.FAINT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "figure.facecolor": "white",
    "figure.figsize": (7.0, 3.8),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "savefig.transparent": False,
    "font.size": 10.5,
    "grid.color": vector.RULE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "image.cmap": "cividis",  # the same order of lightness for every eye
    "image.interpolation": "none",  # the pixels themselves, sharp at any size
    "image.composite_image": False,
    "svg.fonttype": "path",  # the same letters, in the same place, on every machine
    "svg.hashsalt": "prunelab",
}


def check_alt(alt: str) -> str:
    """The alternative text on one line; one without words raises ValueError."""
    text = " ".join(alt.split()) if isinstance(alt, str) else ""
    if len(text.split()) < 3:
        raise ValueError(f"alt={alt!r}: say in a sentence what the picture shows, for those who can't see it")
    return text


def png(fig: Figure) -> bytes:
    """The figure as an opaque PNG of at most 256 colours: a third of the size, and no difference to the eye."""
    raw = io.BytesIO()
    fig.savefig(raw, format="png", facecolor="white", transparent=False)
    small = io.BytesIO()
    picture = Image.open(raw).convert("RGB")
    picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def painted(paint: Callable[[Any], object], **subplots: Any) -> Figure:
    """A figure whose axes were given to `paint`; the caller sets the style."""
    fig, axes = _subplots(subplots)
    paint(axes)
    return fig


def drawing(paint: Callable[[Any], object], alt: str, **subplots: Any) -> tuple[str, bytes]:
    """Paint on fresh axes in the course's style; the drawing as HTML that any page can show, and as an opaque PNG."""
    with matplotlib.rc_context(STYLE):
        return _both(painted(paint, **subplots), check_alt(alt))


@contextmanager
def figure(*, alt: str, **subplots: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure in the course's style, shown once the block ends, with its alternative text.

    >>> with figure(alt="Accuracy falls slowly, then all at once.", figsize=(7, 3)) as (fig, ax):  # doctest: +SKIP
    ...     ax.plot(sparsity, accuracy, label="global")

    `subplots` are those of `Figure.subplots` (nrows, ncols, sharey, ...) and of `Figure` (figsize, dpi).
    Say in `alt` only what is the same on every machine: nbval compares it.
    """
    text = check_alt(alt)
    with matplotlib.rc_context(STYLE):
        fig, axes = _subplots(subplots)
        yield fig, axes
        html, picture = _both(fig, text)
        display.show(text, html=html, png=picture, alt=text)


def _both(fig: Figure, alt: str) -> tuple[str, bytes]:
    picture = png(fig)
    return display.drawing(vector.svg(fig, alt), picture, alt), picture


def _subplots(options: dict[str, Any]) -> tuple[Figure, Any]:
    own = {k: options[k] for k in ("figsize", "dpi", "layout") if k in options}
    rest = {k: v for k, v in options.items() if k not in own}
    fig = Figure(**own)  # not pyplot's: nothing else shows it, nothing keeps it alive
    return fig, fig.subplots(**rest)


def table(caption: str, columns: Sequence[str] | Mapping[str, str | None], rows: Sequence[Sequence[Any]]) -> None:
    """A table with a caption and headers that a screen reader announces: the twin of a chart.

    >>> table("What is left", {"sparsity": None, "accuracy": "%"}, [["50 %", 0.93]])
    What is left
    sparsity | accuracy
    50 % | ≈ 93.0 %

    A column with a unit (or "" for none) holds measured values and shows them in the measured form; None in it says
    that there is no CUDA device. The first column names its row.
    """
    text, html = render_table(caption, columns, rows)
    display.show(text, html=html)


def render_table(
    caption: str, columns: Sequence[str] | Mapping[str, str | None], rows: Sequence[Sequence[Any]]
) -> tuple[str, str]:
    """A table as plain text and as HTML; no padding, so that no value moves another."""
    units = list(columns.values()) if isinstance(columns, Mapping) else [None] * len(columns)
    for row in rows:
        if len(row) != len(units):
            raise ValueError(f"the row {list(row)!r} has {len(row)} cells; the table has {len(units)} columns")
    cells = [[_cell(value, unit) for value, unit in zip(row, units, strict=True)] for row in rows]
    text = "\n".join([caption, " | ".join(columns), *(" | ".join(row) for row in cells)])
    return text, html_table(caption, list(columns), cells)


def _cell(value: Any, unit: str | None) -> str:
    if isinstance(value, str):
        return value
    if unit is not None:
        return measured(value, unit)
    if value is None:
        return NO_CUDA
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def race(caption: str, timed: Comparison, columns: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, float]:
    """Show a comparison as a table, and return how many times faster than the first each one is.

    `columns` stand before the times: column -> network -> value. Whole numbers and texts are shown as they are,
    fractions as measured shares.
    """
    extra = columns or {}
    ratios = {name: found.ratio for name, found in timed.speedup.items()}
    rows = []
    for name, taken in timed.latency.items():
        given = [values[name] for values in extra.values()]
        told = [measured(value, "%") if isinstance(value, float) else value for value in given]
        rows.append([name, *told, taken.p50, ratios[name]])
    table(caption, {"network": None, **dict.fromkeys(extra), "time": "s", "times faster": "×"}, rows)
    return ratios
