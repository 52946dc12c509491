"""What a learner finds again: notebook 01 run here, opened again without a kernel, and as a fresh clone not trusted.

In JupyterLab, and in Notebook 7 where that is installed.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import statistics

import pytest
from driver import Opened

pytestmark = [pytest.mark.browser, pytest.mark.slow]
LESSON, CLONE = "01_which_weights.ipynb", "01_as_cloned.ipynb"
PANEL = ".pl-explorer"
APPS, WAYS = ("JupyterLab", "Notebook 7"), ("run here", "opened again", "not trusted")

# The notebook as a stranger's file: the same outputs, and no signature of this server's.
COPY = f"""async () => {{
  const contents = window.jupyterapp.serviceManager.contents;
  await window.jupyterapp.commands.execute('docmanager:save');
  const saved = await contents.get('{LESSON}');
  for (const cell of saved.content.cells) delete cell.metadata.trusted;
  saved.content.metadata.cloned = true;
  await contents.save('{CLONE}', {{type: 'notebook', format: 'json', content: saved.content}});
}}"""

# After every key, and every new picture: when it was painted.
WATCH = """(panel) => {
  const svg = panel.querySelector('svg'), seen = window.seen = {keys: [], pictures: []};
  let pressed = 0;
  panel.addEventListener('keydown', (event) => { pressed = event.timeStamp; }, true);
  new MutationObserver(() => requestAnimationFrame(() => setTimeout(() => {
    seen.pictures.push(performance.now());
    if (pressed) { seen.keys.push(performance.now() - pressed); pressed = 0; }
  }))).observe(svg, {attributes: true, attributeFilter: ['aria-label']});
}"""

# One new picture a frame, as fast as frames come, while a hand would drag.
DRAG = """async (panel) => {
  const slider = panel.querySelector('[type=range]'), times = [];
  for (let n = 0; n < 120; n++) {
    slider.value = n % (Number(slider.max) + 1);
    slider.dispatchEvent(new Event('input', {bubbles: true}));
    times.push(await new Promise(requestAnimationFrame));
  }
  return times;
}"""


@pytest.fixture(scope="module", params=itertools.product(APPS, WAYS), ids=" ".join)
def view(request, browser, lab_url, screenshots):
    """Notebook 01 in one of three ways that a reader meets it; they come in this order, each from the one before."""
    app, way = request.param
    if app == "Notebook 7" and importlib.util.find_spec("notebook") is None:
        pytest.skip("Notebook 7 is not installed: pip install notebook")
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    opened = Opened(page, CLONE if way == "not trusted" else LESSON, screenshots, classic=app == "Notebook 7")
    opened.open(lab_url)
    if way == "run here":
        opened.run_all()
        page.evaluate(COPY)
    else:
        page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
    opened.app, opened.way = app, way
    yield opened
    opened.close()


def panel(view):
    """The explorer's element, scrolled to."""
    (index,) = view.cells("lab.explorer(")
    found = view.show(index).locator(PANEL)
    found.scroll_into_view_if_needed()
    return found


def test_the_explorer_moves_by_keyboard_or_says_how_to_wake_it(view):
    found = panel(view)
    if view.way == "not trusted":
        assert found.get_by_text("Run this cell to make it move.").is_visible()
        assert found.locator("svg, input").count() == 0
        picture = found.locator("img")
        assert picture.is_visible()
        assert picture.evaluate("picture => picture.naturalWidth") > 600
        return
    slider, drawing = found.locator("[type=range]"), found.locator("svg")
    drawing.wait_for()
    assert found.get_by_text("Run this cell").count() == 0
    assert found.locator("img").count() == 0
    slider.focus()
    before = drawing.get_attribute("aria-label"), drawing.inner_html()
    view.page.keyboard.press("ArrowRight")
    assert slider.evaluate("slider => slider === document.activeElement"), "JupyterLab leaves the keys to the slider"
    assert (drawing.get_attribute("aria-label"), drawing.inner_html()) != before
    assert slider.get_attribute("aria-valuetext") in found.locator("[aria-live]").inner_text()


def test_no_output_is_dead(view):
    """Where a widget's model is gone, its place says what to do; all else is there to be read."""
    guess = re.compile("You (have not )?guessed")  # this server's progress may hold one, of another test
    for kind, words in (("lab.predict(", "Your prediction."), ("lab.exercise(", "Exercise 01-"),
                        ("lab.reveal(", guess), ("lab.scoreboard.show(", "MACs")):  # fmt: skip
        for index in view.cells(kind):
            cell = view.show(index)
            cell.get_by_text(words).first.wait_for()
            if view.way != "not trusted":  # a fresh clone holds no widgets, and its styles are taken out
                for gone in cell.locator(".jupyter-widgets:not(:has(*))").all():
                    assert gone.evaluate("e => getComputedStyle(e).fontSize") == "0px"
                    assert "Run this cell" in gone.evaluate("e => getComputedStyle(e, '::after').content")
                assert cell.get_by_text("Error displaying widget").count() == 0 or view.way == "opened again"


def test_every_figure_is_there(view):
    for index in view.cells("lab.figure("):
        found = view.show(index).locator(".pl-picture")
        shown = found.locator("img" if view.way == "not trusted" else "svg")
        assert shown.is_visible()
        assert found.locator("svg").count() == (view.way != "not trusted")


def test_it_looks_well_in_either_theme(view):
    view.page.evaluate("() => window.jupyterapp.shell.collapseLeft()")  # or a narrow window shows nothing else
    for dark in (False, True):
        view.theme(dark)
        for width in (1440, 390):
            view.page.set_viewport_size({"width": width, "height": 1000})
            for index in view.cells("lab.figure(") + view.cells("lab.explorer("):
                view.show(index)
                view.page.wait_for_timeout(300)
                what = f"{view.app}-{view.way}-{index:02}-{'dark' if dark else 'light'}-{width}"
                view.shoot(what.replace(" ", "-"))
    view.page.set_viewport_size({"width": 1440, "height": 1000})
    view.theme(False)


def test_it_follows_the_hand(view, capsys):
    if view.way != "run here":
        pytest.skip("measured once")
    found = panel(view)
    found.evaluate(WATCH)
    found.locator("[type=range]").focus()
    view.page.keyboard.press("Home")
    for key in ["ArrowRight"] * 13 + ["ArrowLeft"] * 13:
        view.page.keyboard.press(key)
        view.page.wait_for_timeout(60)
    keys = view.page.evaluate("window.seen.keys")
    times = found.evaluate(DRAG)
    frames = [after - before for before, after in itertools.pairwise(times)]
    with capsys.disabled():
        print(f"\nfrom key to picture: {statistics.median(keys):.0f} ms, at worst {max(keys):.0f} ms, of {len(keys)}")
        print(f"a drag: {1000 * len(frames) / sum(frames):.0f} pictures a second, {statistics.median(frames):.0f} ms "
              f"each, at worst {max(frames):.0f} ms")  # fmt: skip
    assert len(keys) > 10


def test_nothing_complains(view):
    assert [line for line in view.console if "pl-" in line or "explorer" in line.lower()] == []
