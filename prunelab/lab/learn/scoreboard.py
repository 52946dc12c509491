"""The same columns all course: what pruning cost, and what it bought."""

from __future__ import annotations

from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from ...measurement import Measurement, stored_bytes
from ...measurement import macs as count_macs
from ...measurement.timing import Speedup
from ...text import plural
from ..show import display, figure
from ..show.measuring import measured, quantity
from . import progress

NUMBER = (int, float)
NEEDED: dict[str, tuple[type, ...]] = {  # in a row, and of which types
    "accuracy": NUMBER, "spread": (*NUMBER, NoneType), "seeds": (int,), "bytes": (*NUMBER, str), "macs": (*NUMBER, str),
}  # fmt: skip
COLUMNS = ["network", "accuracy ± spread (seeds)", "stored, indices included", "MACs"]
# The one clock: timed in turns with the dense network. Seconds would differ from notebook to notebook
# with whatever else the machine does. A column only where there is a figure.
SPEED = "times faster than dense, on cpu"

_here: dict[str, dict[str, dict[str, Any]]] = {}  # this kernel's rows: notebook -> name -> row


def add(
    notebook: str,
    name: str,
    network: nn.Module | Measurement | None = None,
    accuracy: ArrayLike | None = None,
    inputs: Any = None,
    *,
    bytes: int | str | None = None,
    macs: int | str | None = None,
    speed: Speedup | None = None,
) -> None:
    """Put one network's row on the scoreboard; the same notebook and name replace it.

    network: a module, whose bytes and whose MACs for one call with `inputs` are counted; or a `pl.measure` result,
        which knows its accuracy, too. Its file is the smallest of those formats that count their indices
    accuracy: a fraction of the pictures, or one a network: then their mean, their standard deviation and their number
    bytes, macs: instead of what is counted, which is compared to the letter: `lab.measured(...)` depends on the run
    speed: that of a `pl.measure.compare` with the dense network as its first
    """
    if isinstance(network, Measurement):
        accuracy = network.accuracy if accuracy is None else accuracy
        macs = network.macs if macs is None else macs
    if accuracy is None:
        raise ValueError(f"{name!r} was measured without data: the scoreboard needs its accuracy")
    if network is None and (bytes is None or macs is None):
        raise ValueError(f"{name!r} has no network to count: give it, or bytes= and macs=")
    counted: Any = network
    found = np.atleast_1d(np.asarray(accuracy, dtype=float))
    if not ((found >= 0) & (found <= 1)).all():
        raise ValueError(f"accuracy={accuracy!r} is no fraction of the test images: 0.944 for 94.4 %")
    row: dict[str, Any] = {
        "accuracy": found.mean().item(),
        "spread": found.std(ddof=1).item() if len(found) > 1 else None,
        "seeds": len(found),
        "bytes": _smallest(counted) if bytes is None else bytes,
        "macs": count_macs(counted, inputs) if macs is None else macs,
        "speed": speed and [speed.ratio, speed.low, speed.high],
    }
    for count in ("bytes", "macs"):
        if isinstance(row[count], np.integer):
            row[count] = int(row[count])
    key = f"{notebook} {name}"
    try:
        row = progress.checked({key: row})[key]
    except ValueError as error:
        raise ValueError(f"the scoreboard can't take the row {name[:60]!r}: {error}") from None
    if not _sound(row):
        raise ValueError(f"the row {name!r} needs numbers or texts as bytes= and macs=: {bytes=}, {macs=}")
    _here.setdefault(notebook, {})[name] = row
    progress.current().record("scoreboard", key, row)


def _sound(row: Any) -> bool:
    """Whether this is a row that can be shown: one in the file may be damaged."""
    if not isinstance(row, dict) or not all(isinstance(row.get(key, ...), types) for key, types in NEEDED.items()):
        return False
    speed = row.get("speed")
    timed = isinstance(speed, list) and [isinstance(x, NUMBER) for x in speed] == [True] * 3
    return 0 <= row["accuracy"] <= 1 and (speed is None or timed)


def _smallest(network: Any) -> int:
    formats = ("dense", "csr", "bitmask")
    sizes = network.bytes if isinstance(network, Measurement) else stored_bytes(network, formats)
    return min(sizes[form] for form in formats if form in sizes)


def show(notebook: str) -> None:
    """Show a notebook's rows, the most accurate first, and a picture of those timed; below, the other notebooks'."""
    text, html = _table(f"Scoreboard of notebook {notebook}", _here.get(notebook, {}))
    others: dict[str, dict[str, Any]] = {}
    for key, row in progress.current().read()["scoreboard"].items():
        number, _, name = key.partition(" ")
        if number != notebook and _sound(row):
            others.setdefault(number, {})[name] = {"speed": None} | row  # rows of before hold seconds, which say little
    tables = [_table(f"Notebook {number}", rows)[1] for number, rows in sorted(others.items())]
    more = display.folded("The other notebooks you have run", "".join(tables)) if tables else ""
    display.show(text, html=html + display.yours(_picture(_here.get(notebook, {})) + more))


# Beside the table where there is room; the marks of `yours` stand between them, so the style looks back.
BESIDE = (
    "<style>table:has(+ .pl-scores) {float: left; margin-right: 2em} .pl-scores ~ * {clear: both} "
    ".pl-scores {display: flow-root; min-width: min(26em, 100%)}</style>"
)
LARGEST = 900  # points², the disc of the largest file


def _picture(rows: dict[str, dict[str, Any]]) -> str:
    """Accuracy against speed, the file's size as area, for the networks that have all three; "" for fewer than two."""
    shown = {name: row for name, row in rows.items() if row["speed"] and isinstance(row["bytes"], int)}
    if len(shown) < 2:
        return ""
    alt = "Accuracy against speed; the area is the file's size."
    drawn, _ = figure.drawing(lambda ax: _paint(ax, shown), alt, figsize=(5.0, 3.6))
    return f'<div class="pl-scores">{BESIDE}{drawn}</div>'


def _paint(ax: Any, rows: dict[str, dict[str, Any]]) -> None:
    largest = max(row["bytes"] for row in rows.values()) or 1
    for n, (name, row) in enumerate(sorted(rows.items(), key=lambda item: -item[1]["bytes"])):
        middle, low, high = row["speed"]
        at, colour = (middle, 100 * row["accuracy"]), figure.COLOURS[n % len(figure.COLOURS)]
        spread = 100 * (row["spread"] or 0)
        ax.errorbar(*at, spread or None, [[middle - low], [high - middle]], color=colour, marker="", lw=1)
        label = f"{name}, {quantity(row['bytes'], 'B')}"
        ax.scatter(*at, LARGEST * row["bytes"] / largest, color=colour, marker="o", alpha=0.6, lw=0, label=label)
    ax.set(xlabel=SPEED, ylabel="accuracy, %")
    ax.set_xlim(0, 1.15 * max(row["speed"][2] for row in rows.values()))  # no circle is cut
    ax.margins(y=0.25)
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.22), markerscale=0.4)


def _table(title: str, rows: dict[str, dict[str, Any]]) -> tuple[str, str]:
    ordered = sorted(rows.items(), key=lambda item: -item[1]["accuracy"])
    columns = COLUMNS + [SPEED] * any(row["speed"] for row in rows.values())
    return figure.render_table(title, columns, [_cells(name, row)[: len(columns)] for name, row in ordered])


def rows(notebook: str) -> dict[str, dict[str, Any]]:
    """The rows of a notebook in this kernel, by name: for a claim to check."""
    return {name: dict(row) for name, row in _here.get(notebook, {}).items()}


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    accuracy = measured(row["accuracy"], "%", spread=row["spread"])
    counts = [v if isinstance(v, str) else quantity(v, u) for v, u in ((row["bytes"], "B"), (row["macs"], "MACs"))]
    speed = measured(row["speed"][0], "×", interval=row["speed"][1:]) if row["speed"] else "not timed"
    return [name, f"{accuracy} ({plural(row['seeds'], 'seed')})", *counts, speed]
