"""One panel of sliders over a grid of pictures drawn beforehand, so that a move answers at once."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets

from . import display, figure

MOST_POINTS = 400  # pictures; more than this takes minutes to draw, and nobody tries them all
PATIENCE = 2.0  # seconds of drawing after which a bar says how far it is
LONG_TABLE = 20  # rows; a longer table is folded until the reader opens it


class Explorer:
    """The live panel. `panel["sparsity"].value = 0.9` moves a slider; `.state`, `.alt` and `.png` follow."""

    def __init__(self, sliders: dict[str, widgets.SelectionSlider], size: tuple[int, int]):
        self.sliders = sliders
        self.size = size
        self.pictures: dict[tuple[Any, ...], tuple[bytes, str]] = {}
        self.html: dict[tuple[Any, ...], str] = {}
        self.picture = display.panel_html()

    def __getitem__(self, name: str) -> widgets.SelectionSlider:
        if name not in self.sliders:
            raise KeyError(f"no slider is called {name!r}; there are {', '.join(self.sliders)}")
        return self.sliders[name]

    @property
    def state(self) -> dict[str, Any]:
        """The sliders' values by name."""
        return {name: slider.value for name, slider in self.sliders.items()}

    @property
    def alt(self) -> str:
        """The alternative text of the picture now shown."""
        return self.pictures[tuple(self.state.values())][1]

    @property
    def png(self) -> bytes:
        """The picture now shown."""
        return self.pictures[tuple(self.state.values())][0]

    def add(self, point: tuple[Any, ...], picture: bytes, alt: str) -> None:
        """Keep the picture of one grid point, ready to be shown."""
        self.pictures[point] = picture, alt
        self.html[point] = display.image(picture, alt, self.size)

    def update(self, _change: object = None) -> None:
        """Show the picture of the sliders' state: a look-up, no drawing."""
        self.picture.value = self.html[tuple(self.state.values())]

    def __repr__(self) -> str:
        return f"Explorer({', '.join(self.sliders)})"


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
) -> Explorer:
    """Show sliders over every combination of `controls`, each picture drawn once by `render(ax, **state)`.

    >>> explorer(draw, {"sparsity": [0.0, 0.5, 0.9]}, alt=lambda sparsity: f"...",
    ...          formats={"sparsity": "{:.0%}"}, figsize=(6, 3))  # doctest: +SKIP

    `alt(**state)` describes each picture; `start` is where the sliders stand at first (each control's first value);
    `labels` and `formats` say how a slider and its values are written; `subplots` are those of `lab.figure`.
    `numbers(**state)` says what each picture shows as {column: value}: the panel's table, for those who can't see the
    pictures, and for wherever no slider lives.
    """
    _check(controls, start or {})
    labels, formats = labels or {}, formats or {}
    twin = _twin(controls, labels, formats, numbers) if numbers else ""
    sliders = {
        name: widgets.SelectionSlider(
            options=[(formats.get(name, "{}").format(v), v) for v in values],
            value=(start or {}).get(name, values[0]),
            description=labels.get(name, name.replace("_", " ")),
            tooltip=f"{labels.get(name, name)}: move with the arrow keys",
            style={"description_width": "10em"},
            layout=widgets.Layout(width="34em", max_width="100%"),
        )
        for name, values in controls.items()
    }

    def picture(state: dict[str, Any]) -> tuple[bytes, str]:
        text = figure.check_alt(alt(**state) if callable(alt) else alt)
        return figure.draw(lambda axes: render(axes, **state), **subplots), text

    here = {name: slider.value for name, slider in sliders.items()}
    first, text = picture(here)
    panel = Explorer(sliders, figure.size_of(first))
    panel.add(tuple(here.values()), first, text)
    panel.update()
    bar = widgets.IntProgress(description="drawing", layout=widgets.Layout(display="none"))
    table = [display.panel_html(_folded(twin))] if twin else []
    view = widgets.VBox([*sliders.values(), bar, panel.picture, *table])
    still = display.image(first, text) + _folded(twin, unfold=twin.count("<tr>") <= LONG_TABLE)
    display.show(text, html=still, png=first, alt=text, widget=view)
    _fill(panel, controls, picture, bar)
    for slider in sliders.values():
        slider.observe(panel.update, "value")
    return panel


def _twin(
    controls: Mapping[str, Sequence[Any]],
    labels: Mapping[str, str],
    formats: Mapping[str, str],
    numbers: Callable[..., Mapping[str, Any]],
) -> str:
    """The table of all pictures, a row each: where the sliders stand, and the numbers the picture shows."""
    states = [dict(zip(controls, point, strict=True)) for point in itertools.product(*controls.values())]
    found = [numbers(**state) for state in states]
    columns = [*(labels.get(name, name.replace("_", " ")) for name in controls), *found[0]]
    rows = [
        [*(formats.get(k, "{}").format(v) for k, v in state.items()), *values.values()]
        for state, values in zip(states, found, strict=True)
    ]
    return figure.render_table("Every position of the sliders", columns, rows)[1]


def _folded(table: str, unfold: bool = False) -> str:
    """A table behind a line that opens it; nothing for no table."""
    state = " open" if unfold else ""
    return f"<details{state}><summary>The same as a table</summary>{table}</details>" if table else ""


def _fill(
    panel: Explorer,
    controls: Mapping[str, Sequence[Any]],
    picture: Callable[[dict[str, Any]], tuple[bytes, str]],
    bar: widgets.IntProgress,
) -> None:
    """Draw the grid points that are missing; the bar appears inside the panel, so no output depends on the speed."""
    points = list(itertools.product(*controls.values()))
    bar.max = len(points)
    began = time.perf_counter()
    for done, point in enumerate(points):
        if time.perf_counter() - began > PATIENCE:
            bar.layout.display, bar.value = "", done
        if point not in panel.pictures:
            panel.add(point, *picture(dict(zip(controls, point, strict=True))))
    bar.layout.display = "none"


def _check(controls: Mapping[str, Sequence[Any]], start: Mapping[str, Any]) -> None:
    size = math.prod(len(values) for values in controls.values())
    if not controls or size == 0:
        raise ValueError("an explorer needs at least one control, each with at least one value")
    if size > MOST_POINTS:
        raise ValueError(f"the controls make {size} pictures; give fewer values, at most {MOST_POINTS} combinations")
    for name, value in start.items():
        if name not in controls or value not in controls[name]:
            raise ValueError(f"start={{{name!r}: {value!r}}} is not on the grid")
