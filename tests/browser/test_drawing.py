"""The drawing in a page that has no kernel, no network and no JupyterLab: it follows the keys."""

from __future__ import annotations

import statistics
from types import SimpleNamespace

import pytest
from torch.utils.data import TensorDataset

from prunelab import lab, zoo
from prunelab.lab.show import display

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# Milliseconds from a key to the picture after it.
WATCH = """() => {
  window.took = [];
  const slider = document.querySelector(".pl-live input[type=range]");
  slider.addEventListener("keydown", () => {
    const began = performance.now();
    const drawn = () => requestAnimationFrame(() => requestAnimationFrame(() => took.push(performance.now() - began)));
    slider.addEventListener("input", drawn, { once: true });
  });
}"""


@pytest.fixture
def page(browser, monkeypatch):
    """A page that holds the drawing of the course's network, and nothing else; it read a few digits only."""
    whole, shown = zoo.load("digits"), []
    data = SimpleNamespace(train=TensorDataset(*whole.train[:64]), valid=TensorDataset(*whole.valid[:40]))
    monkeypatch.setattr(display, "emit", lambda bundle, _metadata: shown.append(bundle))
    lab.drawing(zoo.checkpoint("digits-cnn"), data)
    opened = browser.new_page(viewport={"width": 390, "height": 900}, reduced_motion="reduce")
    faults = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda request: faults.extend([] if request.url.startswith("data:") else [request.url]))
    opened.set_content(f'<!DOCTYPE html><meta charset="utf-8">{shown[0]["text/html"]}')
    opened.wait_for_selector(".pl-live")
    yield opened
    assert faults == []
    opened.close()


def _number(page, name):
    return int(
        page.locator(".pl-stats > div", has_text=name).locator("strong").inner_text().split()[0].replace(",", "")
    )


def test_it_follows_the_keys(page, screenshots):
    assert not page.get_by_text("Run this cell").is_visible()
    slider = page.get_by_role("slider")
    slider.focus()
    assert _number(page, "weights left") == 24547
    page.evaluate(WATCH)
    for _ in range(20):
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(50)
    page.get_by_text("90 % of the weights are zero").first.wait_for()
    assert _number(page, "weights left") == 8182
    assert _number(page, "parameters") == 82282
    took = page.evaluate("took")
    print(f"\nkey to picture: median {statistics.median(took):.0f} ms, worst {max(took):.0f} ms")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=screenshots / "drawing-390.png", full_page=True)


def test_removed_filters_shrink_the_drawing(page):
    canvas = page.locator(".pl-layer", has_text="conv4").locator("canvas")
    assert canvas.evaluate("c => [c.width, c.height]") == [192, 192]
    page.get_by_role("radio", name="Weights become zero").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("50 % of the filters are removed").first.wait_for()
    assert canvas.evaluate("c => [c.width, c.height]") == [96, 96]
    assert (_number(page, "parameters"), _number(page, "bytes stored")) == (25370, 102280)
