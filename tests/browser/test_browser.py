"""Every notebook in a real JupyterLab: run, explored by keyboard, guessed at, answered wrongly and rightly."""

from __future__ import annotations

import pytest
from driver import Opened, need_the_llama

from prunelab.lab.workshop import contents, course

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NOTEBOOKS = course.notebooks()


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])
def notebook(request, browser, lab_url, screenshots):
    """A notebook that was opened and run from the top; its kernel ends with it."""
    need_the_llama(request.param.name)
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    opened = Opened(page, request.param.name, screenshots)
    opened.open(lab_url)
    seconds = opened.run_all()
    print(f"\n{opened.name} ran in {seconds:.0f} s", flush=True)
    assert opened.errors() == []
    yield opened
    opened.close()


def test_it_runs_from_the_top_without_an_error(notebook):
    assert notebook.errors() == []
    notebook.shoot("top")


def test_a_prediction_is_answered_by_keyboard(notebook):
    for index in notebook.cells("lab.predict("):
        cell, keys = notebook.show(index), notebook.page.keyboard
        asked = cell.locator(".jp-OutputArea-output:has(button[title='Keep this guess'])").all()
        assert len(asked) == notebook.source(index).count("lab.predict(")
        for question in asked:
            control = question.locator("input[type=radio], [role=slider]").first
            control.focus()
            keys.press("Space" if control.get_attribute("type") == "radio" else "ArrowRight")
            button = question.get_by_role("button", name="Lock in my guess")
            assert notebook.tab_to(button), "Tab leads from the guess to the button"
            keys.press("Enter")
            question.get_by_text("Locked in:").wait_for()
            assert button.is_disabled()
    notebook.shoot("prediction")


def test_the_result_stands_beside_the_guess(notebook):
    for index in notebook.cells("lab.reveal("):
        output = notebook.type_and_run(index, notebook.source(index))
        output.get_by_text("You guessed").nth(notebook.source(index).count("lab.reveal(") - 1).wait_for()
        assert output.get_by_text("placeholder").count() == 0
    assert notebook.errors() == []
    notebook.shoot("reveal")


def test_each_control_of_each_panel_moves_its_picture(notebook):
    panels = [i for i in notebook.cells("explorer(") if notebook.show(i).locator(".pl-controls").count()]
    assert panels or notebook.cells("lab.drawing("), "a notebook without a panel"
    for index in panels:
        cell = notebook.show(index)
        picture = cell.locator(".pl-explorer svg")
        for control in cell.locator(".pl-controls [type=range], .pl-controls :checked").all():
            before = picture.inner_html(), picture.get_attribute("aria-label")
            control.focus()
            assert _moves(notebook, picture, before), f"no key moves the picture of cell {index}"
            assert picture.get_attribute("aria-label"), "and the new picture is described"
        notebook.shoot(f"panel-{index}")


def test_each_exercise_is_answered_wrongly_and_rightly(notebook):
    cells = contents.checked(course.read(course.folder() / notebook.name))
    assert cells
    for cell, asked in cells:
        (index,) = notebook.cells(f'lab.check("{asked.id}"')
        wrong = asked.wrong[0]
        output = notebook.type_and_run(index, cell.source.replace(asked.stub, wrong.source))
        assert f"✗ {asked.id}:" in output.inner_text()
        assert _words(wrong.says) in _words(output.inner_text())
        output = notebook.type_and_run(index, cell.source.replace(asked.stub, asked.solution))
        assert f"✓ {asked.id}: right." in output.inner_text()
    assert notebook.errors() == []
    notebook.shoot("exercise")


def test_hints_and_the_solution_open_by_keyboard(notebook):
    for index in notebook.cells("lab.exercise("):
        cell = notebook.show(index)
        for summary in cell.locator("summary").all():  # each lies within the one before
            summary.press("Enter")
        cell.locator("details pre").last.wait_for()
        cell.get_by_role("button", name="Copy").last.wait_for()


def test_every_control_has_a_name(notebook):
    for index in notebook.cells("lab.predict(") + notebook.cells("lab.exercise(") + notebook.cells("explorer("):
        cell = notebook.show(index)
        for control in cell.locator(".jp-OutputArea button, .jp-OutputArea input, .jp-OutputArea select").all():
            names = control.evaluate(
                "e => [...(e.labels || [])].map(l => l.textContent).concat(e.textContent, e.title)"
            )
            assert any(name.strip() for name in names), f"a control of cell {index} has no name"
        for handle in cell.locator("[role=slider], .widget-radio-box input").all():
            handle.focus()  # ipywidgets puts a control's label beside it, not on it
            label = handle.evaluate("e => e.closest('[role=slider], [role=radiogroup]')?.ariaLabel")
            assert label, f"a control of cell {index} has no label"
            assert label.startswith("My guess")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_legible_in_either_theme(notebook, dark):
    notebook.theme(dark)
    faint = []
    for kind in ("lab.predict(", "lab.figure(", "lab.table(", "lab.reveal(", "explorer(", "lab.exercise(", "lab.check(",
                 "lab.scoreboard.show("):  # fmt: skip
        for index in notebook.cells(kind)[:2]:
            notebook.show(index)
            notebook.page.wait_for_timeout(100)
            faint += notebook.faint()
            notebook.shoot(f"{'dark' if dark else 'light'}-{index:02}")
    notebook.theme(False)
    assert sorted(set(faint)) == []


def test_the_browser_had_nothing_to_complain_about(notebook):
    assert notebook.console == []


def _moves(notebook: Opened, picture, before: tuple[str, str | None]) -> bool:
    """Whether arrow keys, first to the right and then to the left, bring another picture."""
    for key in [*["ArrowRight"] * 4, *["ArrowLeft"] * 8]:
        notebook.page.keyboard.press(key)
        if (picture.inner_html(), picture.get_attribute("aria-label")) != before:
            return True
    return False


def _words(text: str) -> str:
    """Text without the marks that become emphasis or code on the page."""
    return " ".join(text.replace("*", "").replace("`", "").split())
