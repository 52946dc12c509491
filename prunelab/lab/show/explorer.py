"""One panel of controls over a grid of pictures drawn beforehand: all of it in the page, which needs no kernel."""

from __future__ import annotations

import base64
import functools
import itertools
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from . import display, figure, vector
from .measuring import SHARES, exact

MOST_POINTS = 400  # pictures; more than this takes minutes to draw, and nobody tries them all
MOST_BYTES = 1_000_000  # of HTML: a notebook with it still opens at once
MANY = 40  # pictures; drawing more than this takes so long that a bar says how far it is
LONG_TABLE = 20  # rows; a longer table is folded until the reader opens it


def explorer(
    render: Callable[..., object],
    controls: Mapping[str, Sequence[Any]],
    *,
    alt: str | Callable[..., str],
    start: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    formats: Mapping[str, str] | None = None,
    numbers: Callable[..., Mapping[str, Any]] | None = None,
    **subplots: Any,
) -> None:
    """Show controls over every combination of their values, each picture drawn once by `render(ax, **state)`.

    >>> explorer(draw, {"sparsity": [0.0, 0.5, 0.9]}, alt=lambda sparsity: f"...",
    ...          formats={"sparsity": "%"}, figsize=(6, 3))  # doctest: +SKIP

    Numbers get a slider, anything else buttons. `alt(**state)` describes each picture; `start` is where the controls
    stand at first (each one's first value): there a page that runs no script stays, so choose the most telling;
    `labels` and `formats` say how a control and its values are written ("%" or "points": as hundredths, in that unit);
    `subplots` are those of `lab.figure`.
    `numbers(**state)` says what each picture shows as {column: value}: the panel's table, for those who can't see it.
    Raises ValueError for too many pictures, or pictures too large.
    """
    names = {name: (labels or {}).get(name, name.replace("_", " ")) for name in controls}
    texts = [[_written(v, (formats or {}).get(name, "{}")) for v in values] for name, values in controls.items()]
    chosen = _places(controls, start or {})
    states = [dict(zip(controls, point, strict=True)) for point in itertools.product(*controls.values())]
    alts = [figure.check_alt(alt(**state) if callable(alt) else alt) for state in states]
    found = [numbers(**state) if numbers else {} for state in states]

    at = states.index({name: values[n] for (name, values), n in zip(controls.items(), chosen, strict=True)})
    with matplotlib.rc_context(figure.STYLE):
        first = figure.painted(functools.partial(render, **states[at]), **subplots)
        still = figure.png(first)
        frame, pictures = _pack(first, render, states, subplots)
    plan = {
        "controls": _panel(list(names.values()), list(controls.values()), texts, chosen),
        "texts": texts,
        "alts": alts,
        "said": [" ".join([text, *(f"{k}: {v}." for k, v in f.items())]) for text, f in zip(alts, found, strict=True)],
        "frame": frame,
        "pictures": pictures,
    }
    rows = [[*state, *told.values()] for state, told in zip(itertools.product(*texts), found, strict=True)]
    table = _table([*names.values(), *found[0]], rows) if numbers else ""
    html = _page(display.drawing("", still, alts[at]), table, plan)
    if len(html) > MOST_BYTES:
        raise ValueError(f"the pictures take {len(html):,} bytes, at most {MOST_BYTES:,}: draw less, or fewer values")
    display.show(alts[at], html=html, png=still, alt=alts[at])


def _written(value: Any, form: str) -> str:
    return exact(value, form) if form in SHARES else form.format(value)


def _places(controls: Mapping[str, Sequence[Any]], start: Mapping[str, Any]) -> list[int]:
    """Where each control stands at first, as the number of its value."""
    size = math.prod(map(len, controls.values()))
    if not controls or size == 0:
        raise ValueError("an explorer needs at least one control, each with at least one value")
    if size > MOST_POINTS:
        raise ValueError(f"the controls make {size} pictures; give fewer values, at most {MOST_POINTS} combinations")
    for name, value in start.items():
        if name not in controls or value not in controls[name]:
            raise ValueError(f"start={{{name!r}: {value!r}}} is not on the grid")
    return [list(values).index(start.get(name, values[0])) for name, values in controls.items()]


def _pack(
    first: Figure, render: Callable[..., object], states: Sequence[Mapping[str, Any]], subplots: Mapping[str, Any]
) -> tuple[str, str]:
    """The frame that all pictures share, and the pictures: each layer once, then which of them every state has."""
    shared: dict[str, str] = {}
    known: dict[str, int] = {}
    rows = []
    for state in tqdm(states, desc="drawing", leave=False, disable=len(states) <= MANY):
        fig = figure.painted(functools.partial(render, **state), **subplots)
        fig.set_layout_engine("none")  # the first one's layout: the axes stand still, and it takes half the time
        for axes, before in zip(fig.axes, first.axes, strict=False):
            axes.set_position(before.get_position())
        own, painted = vector.layers(fig)
        shared |= own
        rows.append([known.setdefault(layer, len(known)) for layer in dict.fromkeys(painted)])
    defs, *layers = vector.named(f"<defs>{''.join(shared.values())}</defs>", *known)
    packed = zlib.compress(json.dumps({"layers": layers, "states": rows}, separators=(",", ":")).encode(), 9)
    return vector.frame(first, "", defs, "<g></g>"), base64.b64encode(packed).decode()


def _panel(
    names: Sequence[str], values: Sequence[Sequence[Any]], texts: Sequence[Sequence[str]], chosen: Sequence[int]
) -> str:
    """The controls, each the browser's own, so that they work by keyboard: a slider for numbers, else buttons."""
    parts = []
    for n, name in enumerate(names):
        if all(isinstance(value, (int, float)) for value in values[n]):
            slider = f'<input type="range" min="0" max="{len(texts[n]) - 1}" value="{chosen[n]}">'
            shown = '<output aria-hidden="true"></output>'  # the slider itself says its value
            parts.append(f'<div class="pl-range"><label>{escape(name)} {slider}</label>{shown}</div>')
            continue
        buttons = "".join(
            f'<label><input type="radio" name="pl-{n}" value="{k}"{" checked" if k == chosen[n] else ""}>'
            f"{escape(text)}</label>"
            for k, text in enumerate(texts[n])
        )
        parts.append(f"<fieldset><legend>{escape(name)}</legend>{buttons}</fieldset>")
    # The attribute keeps the arrow keys from a JupyterLab that looks at them first, the script from one that is last.
    everything = f'<div class="pl-controls" data-lm-suppress-shortcuts="true">{"".join(parts)}</div>'
    return everything + '<div class="pl-said" aria-live="polite"></div>'


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """What every picture shows, a row each, behind a line that opens it; the script closes a short one."""
    table = figure.render_table("Every position of the controls", columns, rows)[1]
    unfold = " open" if len(rows) <= LONG_TABLE else ""
    return f"<details{unfold}><summary>The same as a table</summary>{table}</details>"


def _page(still: str, table: str, plan: Mapping[str, Any]) -> str:
    """The whole panel: what stands where no script runs, and what the script makes of it."""
    script = (Path(__file__).parent / "explorer.js").read_text(encoding="utf-8")
    data = json.dumps(plan, ensure_ascii=False).replace("<", "\\u003c")  # so that no text can end the script
    return (
        f'<div class="pl-explorer">{still}<p class="pl-still">Run this cell to make it move.</p>{table}'
        f'<script type="application/json">{data}</script><script>{script}</script></div>'
    )
