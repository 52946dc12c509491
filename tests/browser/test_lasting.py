"""What a learner finds again: a notebook run here, opened again without a kernel, and as a fresh clone not trusted.

In JupyterLab, and in Notebook 7 where that is installed; and as nbconvert's page, opened from a file offline.
PRUNELAB_BROWSER=all tries every notebook.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import statistics
from html import unescape

import pytest
from driver import EVERY, Opened, need_the_llama
from nbconvert.exporters import HTMLExporter

from prunelab.lab.show import display
from prunelab.lab.workshop import course, notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]
LESSONS = [p.name for p in course.notebooks() if EVERY or p.name[:2] == "01"]  # each takes minutes
EXPORTED = [p.name for p in course.notebooks() if EVERY or p.name[:2] in ("00", "01", "02")]
GONE = ".jp-OutputArea-output.lm-Panel:not(:has(*)):not(.lm-mod-hidden)"  # a widget's place, without it
TALL = 6000  # pixels of a window that shows many cells at once
APPS, WAYS = ("JupyterLab", "Notebook 7"), ("run here", "opened again", "not trusted")

# The notebook as a stranger's file: the same outputs, and no signature of this server's.
COPY = """async ([from, to]) => {
  const contents = window.jupyterapp.serviceManager.contents;
  await window.jupyterapp.commands.execute('docmanager:save');
  const saved = await contents.get(from);
  for (const cell of saved.content.cells) delete cell.metadata.trusted;
  saved.content.metadata.cloned = true;
  await contents.save(to, {type: 'notebook', format: 'json', content: saved.content});
}"""

# What an output says in its HTML and the page does not; what a widget's place says, or a cell, that is dead.
MISSING = """(cell, [outputs, trusted]) => {
  const words = (node) => {
    const copy = node.cloneNode(true);
    for (const other of copy.querySelectorAll('script, style, svg, [data-copy], .pl-still, .pl-said')) other.remove();
    return copy.textContent.replaceAll(/\\s+/g, '');
  };
  const shown = words(cell), missing = [];
  for (const {data} of outputs) {
    if (!data?.['text/html'] || (trusted && data['application/vnd.jupyter.widget-view+json'])) continue;
    const said = words(new DOMParser().parseFromString([data['text/html']].flat().join(''), 'text/html').body);
    if (!shown.includes(said)) missing.push(said);
  }
  for (const place of cell.querySelectorAll('.jp-OutputArea-output'))
    if (/Loading widget|Error displaying|model not found/.test(place.innerText)) missing.push(place.innerText);
  return missing;
}"""

# Pieces of the outputs that reach over the page's right edge, and have no box of their own to scroll in.
CUT = """() => [...document.querySelectorAll('.jp-OutputArea-output *')].filter((e) => {
  if (e.closest('svg, .pl-hidden, .pl-said') || !e.getClientRects().length) return false;
  if (e.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (let box = e.parentElement; !box.matches('.jp-Cell'); box = box.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(box).overflowX)) return false;
  return true;
}).map((e) => e.outerHTML.slice(0, 80))"""

# After every key, and every new picture: when it was painted, which is between a frame's callbacks and the next task.
WATCH = """([panel, picture]) => {
  const seen = window.seen = {keys: [], pictures: []};
  let pressed = 0, changed = false;
  panel.addEventListener('keydown', (event) => { pressed = event.timeStamp; }, true);
  new MutationObserver(() => { changed = true; }).observe(picture, {attributes: true, childList: true, subtree: true});
  const painted = () => {
    if (!changed) return;
    changed = false;
    seen.pictures.push(performance.now());
    if (pressed) seen.keys.push(performance.now() - pressed);
    pressed = 0;
  };
  const frame = () => { setTimeout(painted); requestAnimationFrame(frame); };
  frame();
}"""

# Another position every frame, as fast as frames come, while a hand would drag.
DRAG = """async (panel) => {
  const slider = panel.querySelector('[type=range]');
  seen.pictures.length = 0;
  for (let n = 0; n < 120; n++) {
    slider.value = n % (Number(slider.max) + 1);
    slider.dispatchEvent(new Event('input', {bubbles: true}));
    await new Promise(requestAnimationFrame);
  }
  await new Promise((done) => setTimeout(done, 100));
  return seen.pictures;
}"""


@pytest.fixture(scope="module", params=itertools.product(APPS, LESSONS, WAYS), ids=" ".join)
def view(request, browser, lab_url, screenshots):
    """A notebook in one of three ways that a reader meets it; they come in this order, each from the one before."""
    app, lesson, way = request.param
    if app == "Notebook 7" and importlib.util.find_spec("notebook") is None:
        pytest.skip("Notebook 7 is not installed: pip install notebook")
    need_the_llama(lesson)
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    clone = f"{lesson[:2]}_as_cloned.ipynb"
    opened = Opened(page, clone if way == "not trusted" else lesson, screenshots, classic=app == "Notebook 7")
    opened.open(lab_url)
    if way == "run here":
        opened.run_all()
        assert opened.errors() == []
        asked = f'lasts = lab.predict("{lesson[:2]}-lasts in {app}", "Does it last?", options=["yes", "no"])'
        opened.type_and_run(opened.cells("lab.predict(")[0], asked)
        page.locator("input[type=radio]").first.check()
        page.get_by_role("button", name="Lock in my guess").first.click()
        page.get_by_text("Your guess: yes.").wait_for()
        page.evaluate(COPY, [lesson, clone])
    else:
        page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
    opened.app, opened.way = app, way
    yield opened
    opened.close()


def panels(view):
    """Each explorer, or the drawing, scrolled to, and the picture that it moves."""
    for index in view.cells("explorer(") + view.cells("lab.drawing("):
        found = view.show(index).locator(".pl-explorer, .pl-drawing")
        if found.count():
            found.scroll_into_view_if_needed()
            yield found, found.locator(".pl-picture svg, .pl-net")


def test_an_explorer_moves_by_keyboard_or_says_how_to_wake_it(view):
    every = list(panels(view))
    assert every, "a notebook without a panel"
    for found, picture in every:
        if view.way == "not trusted":
            assert found.get_by_text("Run this cell to make it move.").is_visible()
            assert found.locator("svg, input").count() == 0
            still = found.locator("img")
            assert still.is_visible()
            assert still.evaluate("picture => picture.naturalWidth") > 600
        else:
            assert_alive(view.page, found, picture)


def assert_alive(page, found, picture):
    """A key on a panel's first control brings another picture, and the keys stay with the control."""
    control = found.locator("[type=range], :checked").first
    picture.wait_for()
    assert not found.get_by_text("Run this cell").is_visible()
    assert not found.locator("img").is_visible()
    before = picture.get_attribute("aria-label")
    control.focus()
    for key in ["ArrowRight"] * 4 + ["ArrowLeft"] * 8:
        page.keyboard.press(key)
        page.wait_for_timeout(100)
        if picture.get_attribute("aria-label") != before:
            break
    assert picture.get_attribute("aria-label") != before
    assert found.locator(":focus").count() == 1, "JupyterLab leaves the keys to the control"


def test_no_output_is_dead(view):
    """Where a widget's model is gone, its place says what to do; all else is there to be read."""
    missing = []
    for index, outputs in enumerate(view.outputs()):
        if outputs:
            cell = view.show(index)
            cell.locator(".jp-OutputArea-output").first.wait_for(state="attached")  # a closed progress bar is hidden
            missing += cell.evaluate(MISSING, [outputs, view.way != "not trusted"])
            asked = sum(len({"text/html", display.WIDGET_VIEW} & {*o.get("data", {})}) == 2 for o in outputs)
            said = [gone.evaluate("e => getComputedStyle(e, '::after').content") for gone in cell.locator(GONE).all()]
            told = sum("Run this cell" in words for words in said)
            assert told == (asked if view.way == "opened again" else 0), "and nothing in a progress bar's place"
    assert missing == []


@pytest.mark.parametrize("state", ["lm-Panel'>Loading widget...", "lm-Panel jupyter-widgets'>Error displaying widget"])
def test_a_widget_that_is_gone_or_never_came_says_what_to_do(browser, state):
    gone = f"<div class='jp-OutputArea-child'><div class='jp-OutputArea-output {state}</div></div>"
    page = browser.new_page()
    page.set_content(f"<div class='jp-OutputArea-child'>{display.PAGE}</div>{gone}{gone}")
    says = "e => getComputedStyle(e, '::after').content"
    assert [e.evaluate(says) for e in page.locator(GONE).all()] == ['"Run this cell again."', "none"]
    assert page.locator("body").inner_text().strip() == ""
    page.close()


def test_a_guess_that_was_locked_in_is_there_to_be_read(view):
    view.show(view.cells("lab.predict(")[0]).get_by_text("Your guess: yes.").wait_for()


def test_every_figure_is_there(view):
    for index, outputs in enumerate(view.outputs()):
        held = sum('class="pl-picture"' in "".join(o.get("data", {}).get("text/html", "")) for o in outputs)
        if not held:
            continue
        cell = view.show(index)
        cell.locator(".pl-picture").first.wait_for(state="attached")
        cell.evaluate("cell => cell.querySelectorAll('details').forEach((folded) => { folded.open = true; })")
        assert cell.locator(".pl-picture").count() == held
        for found in cell.locator(".pl-picture").all():
            assert found.locator("img" if view.way == "not trusted" else "svg").is_visible()
            assert found.locator("svg").count() == (view.way != "not trusted")


def test_it_looks_well_in_either_theme(view):
    view.page.evaluate("() => window.jupyterapp.shell.collapseLeft()")  # or a narrow window shows nothing else
    outer, cut = view.page.locator(".jp-WindowedPanel-outer"), []
    for dark, width in itertools.product((False, True), (1440, 390)):
        view.theme(dark)
        view.page.set_viewport_size({"width": width, "height": TALL})
        for part in itertools.count():
            outer.evaluate("(outer, top) => outer.scrollTo(0, top)", part * (TALL - 200))
            view.page.wait_for_timeout(500)
            cut += view.page.evaluate(CUT)
            what = f"{view.app}-{view.way}-{'dark' if dark else 'light'}-{width}-{part}"
            view.shoot(what.replace(" ", "-"))
            if outer.evaluate("outer => outer.scrollTop + outer.clientHeight > outer.scrollHeight - 2"):
                break
    view.page.set_viewport_size({"width": 1440, "height": 1000})
    view.theme(False)
    assert sorted(set(cut)) == []


def test_it_follows_the_hand(view, capsys):
    sliders = [found for found in panels(view) if found[0].locator("[type=range]").count()]
    if view.way != "run here" or not sliders:
        pytest.skip("measured once, of a slider")
    for found, picture in sliders:
        slider = found.locator("[type=range]").first
        steps = int(slider.get_attribute("max"))
        slider.focus()
        view.page.keyboard.press("Home")
        view.page.wait_for_timeout(200)
        view.page.evaluate(WATCH, [found.element_handle(), picture.element_handle()])
        for key, _ in zip(itertools.cycle(["ArrowRight"] * steps + ["ArrowLeft"] * steps), range(60), strict=False):
            view.page.keyboard.press(key)
            view.page.wait_for_timeout(60)
        keys = view.page.evaluate("seen.keys")
        painted = found.evaluate(DRAG)
        between = [after - before for before, after in itertools.pairwise(painted)]
        with capsys.disabled():
            print(f"\n{view.app}, {view.name[:2]}: from key to picture {statistics.median(keys):.0f} ms, at worst "
                  f"{max(keys):.0f} ms, of {len(keys)}; a drag has {1000 / statistics.mean(between):.0f} pictures a "
                  f"second, {statistics.median(between):.0f} ms each, at worst {max(between):.0f} ms")  # fmt: skip
        assert len(keys) > 50
        assert len(painted) > 100


def test_nothing_complains(view):
    assert [line for line in view.console if "pl-" in line or "explorer" in line.lower()] == []


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request, tmp_path_factory):
    """A notebook and the page that nbconvert makes of it, as a file."""
    nb = course.read(course.folder() / request.param)
    place = tmp_path_factory.mktemp("exported") / f"{request.param[:2]}.html"
    place.write_text(HTMLExporter().from_notebook_node(nb)[0], encoding="utf-8")
    return nb, place


@pytest.fixture
def open_file(browser):
    """A function that opens a file without a network, and without scripts if asked to."""
    contexts = []

    def open_one(place, scripts=True):
        context = browser.new_context(offline=True, java_script_enabled=scripts)
        contexts.append(context)
        page = context.new_page()
        page.goto(f"file://{place}")
        return page

    yield open_one
    for context in contexts:
        context.close()


def test_an_exported_page_moves_offline(exported, open_file):
    page = open_file(exported[1])
    every = page.locator(".pl-explorer, .pl-drawing")
    assert every.count()
    for found in every.all():
        assert_alive(page, found, found.locator(".pl-picture svg, .pl-net"))


def test_all_stands_where_styles_and_scripts_are_taken_out(exported, open_file):
    nb, place = exported
    html = [bare(notebook.shown(out, "text/html")) for _, out in notebook.outputs(nb)]
    left = place.with_suffix(".bare.html")
    left.write_text(bare(place.read_text(encoding="utf-8")), encoding="utf-8")
    page = open_file(left, scripts=False)
    shown = words(bare(left.read_text(encoding="utf-8")))
    assert [words(part) for part in html if words(part) not in shown] == []
    pictures = page.evaluate("[...document.images].map((i) => [i.alt, i.naturalWidth > 0])")
    assert pictures == [[alt, True] for part in html for alt in notebook.alts_of(part)]


def bare(html):
    """HTML as a host leaves it that lets no styles, scripts and drawings in."""
    return re.sub(r' style="[^"]*"', "", re.sub(r"<(style|script|svg)\b.*?</\1>", "", html, flags=re.DOTALL))


def words(html):
    """The text of HTML, without any space."""
    return "".join(unescape(re.sub(r"<!--.*?-->|<[^>]*>", "", html, flags=re.DOTALL)).split())
