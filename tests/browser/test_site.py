"""The site in a real browser, opened from files, with no network: search, the dark, explorers that move, a phone."""

from __future__ import annotations

import pytest

from prunelab.lab.workshop import course, site

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NUMBERS = ("00", "02", "13")
PAGES = ("index.html", "00_start_here.html", "02_why_not_faster.html", "prunelab.core.html", "choosing.html")

# Pieces that reach over the page's right edge, and have no box of their own to scroll in.
CUT = """() => [...document.querySelectorAll('main *')].filter((e) => {
  if (e.closest('svg, .pl-hidden, .pl-said, .skip') || !e.getClientRects().length) return false;
  if (e.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (let box = e.parentElement; box.tagName !== 'MAIN'; box = box.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(box).overflowX)) return false;
  return true;
}).map((e) => e.outerHTML.slice(0, 80))"""
# Code that is wider than its box, and can't be scrolled to.
HIDDEN = """() => [...document.querySelectorAll('main pre')].filter((e) => {
  for (let box = e; box.tagName !== 'MAIN'; box = box.parentElement) {
    const room = getComputedStyle(box).overflowX;
    if (['auto', 'scroll'].includes(room)) return false;
    if (room === 'hidden' && box.scrollWidth > box.clientWidth) return true;
  }
  return false;
}).map((e) => e.textContent.slice(0, 80))"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The site of three notebooks and all pages beside them."""
    chosen = [path for path in course.notebooks() if path.stem.startswith(NUMBERS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course, "notebooks", lambda: chosen)
        out = tmp_path_factory.mktemp("site")
        site.build(out)
    return out


@pytest.fixture
def open_page(browser, folder):
    """A function from a page's name, a width and the system's theme to the opened page; faults and requests fail."""
    opened, faults = [], []

    def open_one(name, width=1440, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda asked: faults.extend([] if asked.url.startswith(("file:", "data:")) else [asked.url]))
        page.goto(f"file://{folder / name}")
        opened.append(page)
        return page

    yield open_one
    for page in opened:
        page.close()
    assert faults == []


def test_the_search_finds_notebooks_functions_and_words(open_page):
    page = open_page("index.html")
    page.keyboard.press("/")
    for asked, to in (("amdahl", "02_why_not_faster.html#"), ("allocate", "#allocate"), ("perplexity", "13_")):
        page.keyboard.type(asked)
        page.locator(f"header.course ol a[href*='{to}']").first.wait_for()
        assert "found" in page.locator("header.course output").inner_text()
        page.keyboard.press("Escape")
    page.keyboard.type("zyxw")
    page.get_by_text("nothing found").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.type("removed filters zero")
    page.locator("header.course ol a").first.click()
    page.wait_for_function("() => !location.href.endsWith('index.html')")


def test_the_theme_is_the_systems_until_the_reader_chooses(open_page):
    page = open_page("00_start_here.html", scheme="dark")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(17, 17, 17)"
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"() => ({ground})() === 'rgb(255, 255, 255)'")
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(ground) == "rgb(17, 17, 17)"
    page.reload()
    assert page.evaluate(ground) == "rgb(17, 17, 17)", "it is remembered"
    page.emulate_media(media="print")
    assert page.evaluate(ground) == "rgb(255, 255, 255)", "paper is white"


def test_the_first_pages_drawing_moves_and_inline_code_has_a_ground(open_page):
    page = open_page("index.html")
    page.get_by_role("slider", name="How much goes").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("71 % of the weights are zero", exact=True).wait_for()
    for scheme in ("light", "dark"):
        page = open_page("00_start_here.html", scheme=scheme)
        ground = "code => getComputedStyle(code).backgroundColor"
        assert page.locator("main p > code").first.evaluate(ground) != page.locator("body").evaluate(ground)
        assert page.locator("main pre code").first.evaluate(ground) == "rgba(0, 0, 0, 0)"


def test_an_explorer_moves_by_keyboard(open_page):
    page = open_page("02_why_not_faster.html")
    panel = page.locator(".pl-explorer").first
    panel.locator("svg").wait_for()
    before = panel.locator("svg").get_attribute("aria-label")
    panel.locator("[type=range], [type=radio]:checked").first.focus()
    page.keyboard.press("ArrowRight")
    assert panel.locator("svg").get_attribute("aria-label") != before


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_cut_at_the_edge(open_page, screenshots, name, width):
    for scheme in ("light", "dark"):
        page = open_page(name, width, scheme)
        page.wait_for_timeout(500)
        page.screenshot(path=screenshots / f"site-{name.partition('.html')[0]}-{scheme}-{width}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT) == []
        assert page.evaluate(HIDDEN) == []


def test_the_contents_name_every_page_and_the_sections_of_this_one(open_page):
    page = open_page("02_why_not_faster.html")
    shown = page.get_by_role("navigation", name="The course")
    assert "00 What can a network lose?" in shown.inner_text()
    shown.get_by_role("link", name="Explore", exact=True).click()
    assert page.url.endswith("#Explore")
    page = open_page("02_why_not_faster.html", 390)
    assert not page.get_by_role("link", name="Glossary").is_visible()
    page.get_by_text("Contents").click()
    page.get_by_role("link", name="Glossary").click()
    assert page.title() == "Glossary"
