"""The editions: each holds what it promises, all come from one source, and the instructor's runs."""

import ast
import os
import re

import nbformat
import pytest
from nbclient import NotebookClient

from prunelab import __version__
from prunelab.core import PruneError
from prunelab.lab.author import rules
from prunelab.lab.learn import exercise
from prunelab.lab.workshop import contents, course, editions, guide, notebook

NOTEBOOKS = {p.stem: course.read(p) for p in course.notebooks()}
ALL = os.environ.get("PRUNELAB_EDITIONS") == "all"
each = pytest.mark.parametrize("name", NOTEBOOKS)


@each
def test_the_learners_has_every_stub_and_gives_no_result_away(name):
    nb = editions.learner(NOTEBOOKS[name])
    assert [c.source for c in nb.cells] == [c.source for c in NOTEBOOKS[name].cells]
    assert all(not c.outputs and c.execution_count is None for c in nb.cells if c.cell_type == "code")
    nbformat.validate(nb)


@each
def test_the_instructors_has_every_solution_and_its_notes(name):
    nb = editions.instructor(NOTEBOOKS[name])
    nbformat.validate(nb)
    text = "\n".join(c.source for c in nb.cells if editions.NOTE in c.metadata.get("tags", []))
    for cell, asked in contents.checked(nb):
        assert asked.solution.strip() in cell.source
        assert asked.stub not in cell.source
        assert f"**{asked.id}.** Show it" in text
    for question in contents.questions(NOTEBOOKS[name]):
        assert f"**{question.id}.** Show it" in text
    assert "**Cut:**" in text
    assert "**Discuss:**" in text
    assert len({c.id for c in nb.cells}) == len(nb.cells)
    own = [c for c in nb.cells if editions.NOTE not in c.metadata.get("tags", [])]
    assert [c.id for c in own] == [c.id for c in NOTEBOOKS[name].cells], "nothing is lost, nothing is moved"


def test_a_notebook_whose_outputs_were_cleared_is_said():
    with pytest.raises(PruneError, match="notebook 00 does not show its question 00-half: run all its cells"):
        editions.instructor(editions.learner(NOTEBOOKS["00_start_here"]))


@each
def test_every_solution_passes_where_it_stands(name, capsys):
    nb, here = editions.instructor(NOTEBOOKS[name]), {}
    for cell in notebook.code_cells(nb):
        imports = [n for n in notebook.tree(cell).body if isinstance(n, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, []), "<imports>", "exec"), here)
        if "lab.check(" in cell.source:
            exec(compile(cell.source, f"<{cell.id}>", "exec"), here)
    marks = re.findall(r"^(.) (\d\d-\d): ", capsys.readouterr().out, re.M)
    assert marks == [("✓", asked.id) for _, asked in contents.checked(NOTEBOOKS[name])]


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS if ALL else ["08_large_and_growing"])  # PRUNELAB_EDITIONS=all runs them all
def test_the_instructors_runs_from_top_to_bottom(name, tmp_path):
    nb = editions.instructor(NOTEBOOKS[name])
    NotebookClient(nb, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert rules.executed(nb) == []
    said = [out["data"]["text/plain"] for c, _ in contents.checked(nb) for out in c.outputs]
    assert said
    assert all(text.startswith("✓") for text in said)


@each
def test_the_hosted_one_installs_before_anything_else(name):
    nb = editions.hosted(NOTEBOOKS[name])
    nbformat.validate(nb)
    first, second = [c for c in nb.cells if c.cell_type == "code"][:2]
    assert first.source == f'%pip install --quiet "prunelab @ git+{editions.SOURCE}@v{__version__}"'
    assert "lab.start(" in second.source
    assert sum("pip install" in c.source for c in nb.cells) == 1


def test_the_hosted_one_installs_from_the_projects_own_address():
    import tomllib

    project = course.zoo.trained.data_dir().parent / "pyproject.toml"
    if not project.is_file():
        pytest.skip("installed: no pyproject.toml to compare with")
    assert tomllib.loads(project.read_text())["project"]["urls"]["Homepage"] == editions.SOURCE


@each
def test_a_slide_holds_a_thought_and_no_stub(name):
    nb = editions.slides(NOTEBOOKS[name])
    nbformat.validate(nb)
    kinds = {c.id: c.metadata.slideshow.slide_type for c in nb.cells}
    assert len(kinds) == len(nb.cells)
    assert set(kinds.values()) == {"slide", "-", "skip"}
    assert {i for i, kind in kinds.items() if kind == "skip"} == {c.id for c, _ in contents.checked(nb)}
    text = [c.source for c in nb.cells if c.cell_type == "markdown"]
    whole = [c.source for c in NOTEBOOKS[name].cells if c.cell_type == "markdown"]
    assert "".join("".join(text).split()) == "".join("".join(whole).split()), "nothing is lost"
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            assert kinds[cell.id] == "slide" or not cell.source.startswith("#")
            assert kinds[cell.id] == "-" or not cell.source.startswith("*Figure")
        else:
            assert not any("Run this cell" in str(out.get("data", {}).get("text/plain")) for out in cell.outputs)


@pytest.mark.slow
def test_all_are_written_outside_the_notebooks(tmp_path, monkeypatch):
    source, some = course.folder(), course.notebooks()[::8]  # the wheel's test builds all
    monkeypatch.setattr(course, "notebooks", lambda: some)
    before = {p: p.read_bytes() for p in source.iterdir() if p.is_file()}
    written = editions.build(tmp_path / "out")
    assert {p: p.read_bytes() for p in source.iterdir() if p.is_file()} == before
    assert set(written) == {"learner", "instructor", "slides", "hosted"}
    for name, files in written.items():
        assert all(p.stat().st_size > 1000 and p.parent == tmp_path / "out" / name for p in files)
        assert {p.name for p in files if p.suffix == ".ipynb"} == {p.name for p in course.notebooks()}
    decks = [p.read_text() for p in written["slides"] if p.suffix == ".html"]
    assert all(deck.count("<section>") > 10 and "<script src" not in deck for deck in decks)
    with pytest.raises(PruneError, match="name another folder"):
        editions.build(source / "editions")


def test_the_guide_has_a_chapter_for_every_notebook_and_three_plans():
    text = guide.text()
    for name, nb in NOTEBOOKS.items():
        assert f"\n## {name[:2]}: {contents.title(nb)}\n" in text
    for words in ("Ninety minutes", "Half a day", "Five weeks", "On a JupyterHub", "doctor"):
        assert words in text
    assert all(id in text for id in exercise.registry())
