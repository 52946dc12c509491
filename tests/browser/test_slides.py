"""The slides in a real browser: each fits a room's screen, is not minute, has something to see, and obeys the keys."""

from __future__ import annotations

import pytest

from prunelab.lab.workshop import contents, course, editions, pages

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NUMBERS = ("00", "02", "09", "13")
LEAST = 0.55  # of a page's size; a screen of a room is read at that

# Each slide by the same key that a speaker presses: how large it is shown, whether it fits, and whether it is empty.
WALK = """async () => {
  const stage = document.querySelector('main'), found = [];
  for (const slide of stage.children) {
    await new Promise(requestAnimationFrame);
    const parts = [...slide.querySelectorAll('p, svg, canvas, table, img, li, h1, h2, h3, pre')];
    const seen = parts.filter((part) => part.checkVisibility() && !part.closest('.pl-hidden, .pl-said'));
    const shown = seen.map((part) => part.getBoundingClientRect()).filter((box) => box.width && box.height);
    found.push({number: found.length + 1, zoom: Number(slide.style.zoom), hidden: slide.hidden,
      fits: stage.scrollHeight <= stage.clientHeight && stage.scrollWidth <= stage.clientWidth
        && shown.every((box) => box.right <= innerWidth && box.bottom <= innerHeight),
      empty: !shown.length, text: slide.innerText.slice(0, 50)});
    document.body.dispatchEvent(new KeyboardEvent('keydown', {key: ' ', bubbles: true}));
  }
  return found;
}"""


@pytest.fixture(scope="module", params=NUMBERS)
def deck(request, browser, tmp_path_factory):
    """A notebook's slides on a screen of 1280 by 720, opened from a file."""
    (path,) = [path for path in course.notebooks() if path.stem.startswith(request.param)]
    nb = course.read(path)
    file = tmp_path_factory.mktemp("slides") / f"{path.stem}.html"
    file.write_text(pages.notebook(editions.slides(nb), contents.title(nb), template="deck"), encoding="utf-8")
    page, faults = browser.new_page(viewport={"width": 1280, "height": 720}), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"file://{file}")
    page.wait_for_timeout(500)
    yield page
    page.close()
    assert faults == []


def test_every_slide_fits_and_shows_something(deck):
    found = deck.evaluate(WALK)
    assert len(found) > 20
    assert [slide for slide in found if slide["hidden"] or slide["empty"] or not slide["fits"]] == []
    assert [slide for slide in found if slide["zoom"] < LEAST] == []


def test_the_keys(deck, screenshots):
    place = deck.locator("#place")
    number = lambda: int(place.inner_text().split()[0])  # noqa: E731
    deck.keyboard.press("Home")
    assert number() == 1
    for key, step in (("Space", 1), ("ArrowRight", 1), ("PageDown", 1), ("ArrowLeft", -1), ("Shift+Space", -1)):
        before = number()
        deck.keyboard.press(key)
        assert number() == before + step, key
    deck.keyboard.press("End")
    assert place.inner_text() == f"{number()} of {number()}"
    deck.keyboard.press("Home")
    assert deck.locator(".jp-CodeMirrorEditor:visible").count() == 0
    while deck.locator("section:not([hidden]) .jp-CodeMirrorEditor").count() == 0:
        deck.keyboard.press("Space")
    deck.keyboard.press("c")
    assert deck.locator(".jp-CodeMirrorEditor:visible").count() > 0
    assert deck.evaluate("document.querySelector('main').scrollHeight") <= 720
    deck.screenshot(path=screenshots / "slide-code.png")
    deck.keyboard.press("c")


def test_an_explorer_keeps_its_keys_until_escape(deck):
    deck.keyboard.press("Home")
    while deck.locator(".pl-explorer [type=range]:visible, .pl-live [type=range]:visible").count() == 0:
        deck.keyboard.press("Space")
    slider, before = deck.locator("[type=range]:visible").first, deck.url
    slider.focus()
    value = slider.input_value()
    deck.keyboard.press("ArrowRight" if value != slider.get_attribute("max") else "ArrowLeft")
    assert slider.input_value() != value
    assert deck.url == before
    deck.keyboard.press("Escape")
    deck.keyboard.press("Space")
    assert deck.url != before
