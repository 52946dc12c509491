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


class Workbench:
    """The live panel. `.network`, `.cost`, `.share` and `.steps` are its controls; `.result` is the last search's."""

    def __init__(self) -> None:
        look = {"style": {"description_width": "9em"}, "layout": widgets.Layout(width="34em", max_width="100%")}
        self.network = widgets.Combobox(value="digits-cnn", description="network", **look)
        self.network.options = [*checkpoints(), "torchvision:resnet18"]
        self.network.placeholder = "a checkpoint, torchvision:NAME, or my_model.py"
        self.cost = widgets.Dropdown(options=list(COSTS), value="time", description="budget of", **look)
        self.share = widgets.FloatSlider(0.5, min=0.1, max=0.95, step=0.05, description="share of dense", **look)
        self.steps = widgets.IntSlider(100, min=0, max=1000, step=50, description="recovery steps", **look)
        self.folder = widgets.Text(placeholder="a folder, to keep the result", description="save in", **look)
        self.button = widgets.Button(description="Search", icon="search")
        self.button.tooltip = "Starts the search: about half a minute"
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
        except Exception as error:  # a file of one's own may raise anything, and nobody would see it from a button
            said = str(error) if isinstance(error, PruneError) else f"{type(error).__name__}: {error}"
            self.report.value = display.box(display.prose(said), display.WARN)
        finally:
            self.button.disabled = False

    def _search(self) -> None:
        model, data = pick(self.network.value, progress=False)
        watch = fronts.Watch(self.share.value if self.cost.value == "time" else None)
        watch.picture = self.picture
        folder = self.folder.value.strip() or None
        how = {COSTS[self.cost.value]: self.share.value, "recover_steps": self.steps.value, "save": folder}
        try:
            self.result = fit_budget(model, data, **how, on_trial=watch, progress=False)
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
