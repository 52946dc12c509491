"""The README's moving picture: `python -m prunelab.lab.author.film .github/drawing.gif`.

The drawing of the course's network in a Chromium, photographed while its slider is pulled: first weights become zero,
then filters leave. It needs Playwright and a Chromium (PRUNELAB_CHROMIUM, or `chromium`).
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from ... import zoo
from ...files import write_whole
from ..show import display, drawing

WIDTH, HEIGHT = 900, 800
PAGE = '<!DOCTYPE html><meta charset="utf-8"><style>body {{ margin: 14px 20px; background: #fff }}</style>{}'
WEIGHTS, FILTERS = range(0, 97, 4), range(0, 25, 2)  # the steps shown
FRAME, REST = 120, 1600  # milliseconds


def drawn() -> str:
    """The drawing of the course's network, as HTML."""
    shown: list[str] = []
    emit, display.emit = display.emit, lambda data, metadata, **how: shown.append(data["text/html"])
    try:
        drawing.drawing(zoo.checkpoint("digits-cnn"), zoo.load("digits"))
    finally:
        display.emit = emit
    return shown[0]


def photograph(html: str) -> list[tuple[Image.Image, int]]:
    """Each frame, and for how many milliseconds it stands."""
    from playwright.sync_api import sync_playwright

    frames: list[tuple[Image.Image, int]] = []
    with sync_playwright() as engine:
        place = os.environ.get("PRUNELAB_CHROMIUM", "/usr/bin/chromium")
        browser = engine.chromium.launch(executable_path=place, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
        page.set_content(PAGE.format(html))
        page.wait_for_selector(".pl-live")
        for way, steps in (("weights", WEIGHTS), ("filters", FILTERS)):
            page.locator(f"input[value={way}]").check(force=True)
            for step in steps:
                frames.append((_frame(page, step), REST if step in (steps[0], steps[-1]) else FRAME))
        browser.close()
    return frames


def _frame(page: Any, step: int) -> Image.Image:
    page.locator("input[type=range]").evaluate(
        """(slider, step) => new Promise((drawn) => {
          slider.value = step;
          slider.dispatchEvent(new Event("input"));
          requestAnimationFrame(() => requestAnimationFrame(drawn));
        })""",
        step,
    )
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def film(path: Path) -> int:
    """Write the picture; its size in bytes."""
    pictures, times = zip(*photograph(drawn()), strict=True)
    palette = pictures[0].quantize(32, method=Image.Quantize.MAXCOVERAGE)
    few = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    out = io.BytesIO()
    few[0].save(out, "GIF", save_all=True, append_images=few[1:], duration=list(times), loop=0, optimize=True)
    write_whole(path, out.getvalue())
    return len(out.getvalue())


if __name__ == "__main__":
    print(f"{film(Path(sys.argv[1])):,} bytes")
