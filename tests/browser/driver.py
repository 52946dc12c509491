"""A notebook open in JupyterLab, driven as a learner does: by the menu, the keyboard, and what is typed into a cell."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from prunelab.zoo import ZooError
from prunelab.zoo.llama import llama_folder

EVERY = os.environ.get("PRUNELAB_BROWSER") == "all"

STEP = 20_000  # milliseconds that JupyterLab may take for one thing
RUN = 600  # seconds that a whole notebook may take, on a busy machine
NOTEBOOK = "window.jupyterapp.shell.currentWidget.content"

# Contrast of each visible text in the outputs and in the prose with what lies behind it, as WCAG 2 counts it.
CONTRAST = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || [0, 0, 0, 0])
    .map((v, i) => (c.startsWith('color(') && i < 3 ? 255 * v : Number(v)));  // a mixed colour comes as fractions
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let e = node; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0.5) return c;
    }
    return [255, 255, 255];
  };
  const places = document.querySelectorAll('.jp-OutputArea-output *, .jp-RenderedMarkdown *');
  return [...places].filter((e) => e.offsetParent && !e.closest('[disabled], .jp-InternalAnchorLink, .highlight')
      && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const size = parseFloat(getComputedStyle(e).fontSize);
    const text = e.textContent.trim();
    const graphic = /^[✓✗○★☆]+$/.test(text);  // a sign, for which 3 is enough as for large text
    const large = parseFloat(getComputedStyle(e).fontSize) >= 24;
    return {ratio: (a + 0.05) / (b + 0.05), least: large || graphic ? 3 : 4.5, text: text.slice(0, 60)};
  }).filter((found) => found.ratio < found.least);
}"""


@dataclass
class Opened:
    """One notebook in one page."""

    page: Any
    name: str
    shots: Path
    classic: bool = False  # in Notebook 7
    console: list[str] = field(default_factory=list)

    def open(self, url: str) -> None:
        """Load it, and wait until its kernel is idle."""
        self.page.on("console", lambda m: self._note(f"{m.text} ({m.location.get('url', '')})", m.type == "error"))
        self.page.on("pageerror", lambda error: self._note(str(error), True))
        self.page.set_default_timeout(STEP)
        # In a workspace of its own: the shared one would open the notebook before beside it.
        place = "notebooks" if self.classic else f"lab/workspaces/{self.name.split('.')[0]}/tree"
        self.page.goto(f"{url}/{place}/{self.name}", timeout=90_000)
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        self.page.wait_for_function(f"() => {NOTEBOOK}.parent.sessionContext.isReady", timeout=90_000)
        self._until_idle(60)

    def run_all(self) -> float:
        """Run > Run All Cells; the seconds until every cell has run."""
        self._menu("Edit", "Clear Outputs of All Cells")
        self._until(f"{self._ran()} === 0", 30)
        began = time.monotonic()
        self._menu("Run", "Run All Cells")
        count = self._evaluate("nb.widgets.filter((w) => w.model.type === 'code' && w.model.sharedModel.source).length")
        self._until(f"{self._ran()} === {count} || {self._failed()}.length", RUN)  # an error ends Run All
        self._until_idle(RUN)
        return time.monotonic() - began

    def close(self) -> None:
        """Leave, and end its kernel."""
        self._answer("window.jupyterapp.serviceManager.sessions.shutdownAll()")
        self.page.close()

    def errors(self) -> list[str]:
        """What the error outputs of the notebook say."""
        return self._evaluate(f"{self._failed()}.map((o) => o.ename + ': ' + o.evalue)")

    def cells(self, part: str) -> list[int]:
        """Where the cells stand whose source holds a piece of text."""
        found = self._evaluate("nb.widgets.map((w, i) => [i, w.model.type, w.model.sharedModel.source])")
        return [i for i, kind, source in found if kind == "code" and part in source]

    def source(self, index: int) -> str:
        """A cell's source."""
        return self._evaluate(f"nb.widgets[{index}].model.sharedModel.source")

    def outputs(self) -> list[list[dict[str, Any]]]:
        """What each cell holds as outputs, as the notebook's file has them."""
        return self._evaluate("nb.widgets.map((w) => w.model.type === 'code' ? w.model.outputs.toJSON() : [])")

    def show(self, index: int) -> Any:
        """Scroll to a cell, as a learner would; the cell's element."""
        self._evaluate(f"(nb.activeCellIndex = {index}, nb.scrollToItem({index}, 'smart').then(() => null))")
        cell = self.page.locator(f".jp-Notebook .jp-Cell[data-windowed-list-index='{index}']")
        cell.scroll_into_view_if_needed()
        return cell

    def type_and_run(self, index: int, source: str) -> Any:
        """Replace a cell's content by typing, run it, and wait; the element of its output."""
        cell = self.show(index)
        before = self._evaluate(f"nb.widgets[{index}].model.executionCount")
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)
        assert self.source(index) == source
        self.page.keyboard.press("Control+Enter")
        self._until(f"nb.widgets[{index}].model.executionCount > {before}", 120)
        self._until_idle(120)
        self.page.keyboard.press("Escape")
        return self.show(index).locator(".jp-OutputArea").first

    def tab_to(self, control: Any, most: int = 6) -> bool:
        """Whether a few presses of Tab lead to a control (the other options, or a slider's number, lie between)."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            if control.evaluate("control => control === document.activeElement"):
                return True
        return False

    def theme(self, dark: bool) -> None:
        """JupyterLab's own light or dark theme."""
        name = f"JupyterLab {'Dark' if dark else 'Light'}"
        self.page.evaluate("(t) => window.jupyterapp.commands.execute('apputils:change-theme', {theme: t})", name)
        self.page.wait_for_selector(f"body[data-jp-theme-light='{'false' if dark else 'true'}']", state="attached")
        self.page.wait_for_timeout(500)

    def faint(self) -> list[str]:
        """The texts on the page that stand out too little from what is behind them."""
        return [f"{x['ratio']:.1f}: {x['text']}" for x in self.page.evaluate(CONTRAST)]

    def shoot(self, what: str) -> None:
        """Keep a screenshot."""
        self.page.screenshot(path=self.shots / f"{self.name[:2]}-{what}.png")

    def _menu(self, menu: str, item: str) -> None:
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.get_by_role("menuitem", name=item, exact=True).click()

    def _note(self, text: str, bad: bool) -> None:
        if bad:
            self.console.append(text)

    def _ran(self) -> str:
        return "nb.widgets.filter((w) => w.model.type === 'code' && w.model.executionCount).length"

    def _failed(self) -> str:
        outputs = "nb.widgets.flatMap((w) => w.model.type === 'code' ? w.model.outputs.toJSON() : [])"
        return f"{outputs}.filter((o) => o.output_type === 'error')"

    def _until_idle(self, seconds: float) -> None:
        self.page.wait_for_function(
            "() => document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'",
            timeout=1000 * seconds,
        )

    def _until(self, condition: str, seconds: float) -> None:
        self.page.wait_for_function(f"() => {{ const nb = {NOTEBOOK}; return {condition}; }}", timeout=1000 * seconds)

    def _evaluate(self, expression: str) -> Any:
        return self._answer(f"(() => {{ const nb = {NOTEBOOK}; return {expression}; }})()")

    def _answer(self, expression: str) -> Any:
        """What a piece of JavaScript gives; a promise is waited for, but not for ever, as Playwright would."""
        late = f"new Promise((_, no) => setTimeout(() => no(new Error('no answer in {STEP} ms')), {STEP}))"
        return self.page.evaluate(f"() => Promise.race([{expression}, {late}])")


def need_the_llama(name: str) -> None:
    """Skip a notebook that needs the language model where that can't be had, and all but the first of them."""
    if name[:2] in ("14", "15") and not EVERY:
        pytest.skip("notebook 13 stands for those on the Llama: PRUNELAB_BROWSER=all drives this one, too")
    if name[:2] in ("13", "14", "15"):
        try:
            llama_folder()
        except ZooError as error:
            pytest.skip(f"the Llama of notebooks 13 to 15 can't be had: {error}")
