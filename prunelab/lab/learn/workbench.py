"""A search by hand: choose a network, set the budget with sliders, watch the front fill in, take the result home."""

from __future__ import annotations

import ipywidgets as widgets

from ...budget import GoalNotMet, Result, fit_budget
from ...core import PruneError
from ...exports import export
from ...running import first_inputs
from ..show import display, fronts
from .network_choice import checkpoints, pick

COSTS = {"time": "latency", "bytes": "bytes", "MACs": "macs"}
WIDTH = widgets.Layout(width="34em", max_width="100%")
STYLE = {"description_width": "9em"}


class Workbench:
    """The live panel. `.network`, `.cost`, `.share` and `.steps` are its controls; `.result` is the last search's."""

    def __init__(self) -> None:
        self.network = widgets.Combobox(
            value="digits-cnn", options=[*checkpoints(), "torchvision:resnet18"], description="network",
            placeholder="a checkpoint, torchvision:NAME, or my_model.py", style=STYLE, layout=WIDTH,
        )  # fmt: skip
        self.cost = widgets.Dropdown(
            options=list(COSTS), value="time", description="budget of", style=STYLE, layout=WIDTH
        )
        self.share = widgets.FloatSlider(
            value=0.5, min=0.1, max=0.95, step=0.05, description="share of dense", style=STYLE,
            layout=WIDTH,
        )  # fmt: skip
        self.steps = widgets.IntSlider(
            value=100, min=0, max=1000, step=50, description="recovery steps", style=STYLE, layout=WIDTH
        )
        self.folder = widgets.Text(
            value="", placeholder="a folder, to keep the result", description="save in", style=STYLE, layout=WIDTH
        )
        self.button = widgets.Button(
            description="Search", icon="search", tooltip="Starts the search: about half a minute"
        )
        self.button.on_click(lambda _button: self.search())
        self.picture, self.report = display.panel_html(), display.panel_html()
        self.result: Result | None = None

    @property
    def view(self) -> widgets.Widget:
        """All of it, from the top."""
        controls = (self.network, self.cost, self.share, self.steps, self.folder, self.button)
        return widgets.VBox([*controls, self.picture, self.report])

    def search(self) -> None:
        """Search with the controls as they stand; whatever goes wrong is said in the report."""
        self.button.disabled, self.report.value = True, display.box(display.prose("Searching ..."))
        try:
            self._search()
        except PruneError as error:
            self.report.value = display.box(display.prose(str(error)), display.WARN)
        finally:
            self.button.disabled = False

    def _search(self) -> None:
        model, data = pick(self.network.value, progress=False)
        watch = fronts.Watch(self.share.value if self.cost.value == "time" else None)
        watch.picture = self.picture
        folder = self.folder.value.strip() or None
        goal = {COSTS[self.cost.value]: self.share.value}
        try:
            self.result = fit_budget(
                model, data, **goal, recover_steps=self.steps.value, save=folder, on_trial=watch, progress=False
            )
        except GoalNotMet as missed:
            self.result = missed.result
            raise
        kept = ""
        if folder:
            found = export(self.result.model, first_inputs(data, "train", 4), f"{folder}/model.onnx")
            files = "the plan with its weights, recipe.toml, report.json, front.png"
            kept = display.prose(f"Saved in `{folder}`: {files}; {found}.")
        self.report.value = self.result._repr_html_() + kept


def workbench() -> Workbench:
    """Show the panel; nothing runs until its button is pressed."""
    bench = Workbench()
    text = "Choose a network, set a budget, press Search. Nothing runs before that."
    display.live(text, display.box(display.prose(text)), bench.view)
    return bench
