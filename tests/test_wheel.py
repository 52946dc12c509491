"""A wheel built from the repository, installed in an empty environment elsewhere, is a working course."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from prunelab.lab.workshop import course

ROOT = Path(__file__).parents[1]
AUTHORS = "prunelab/lab/author/"  # what only they run, from a checkout

# What a learner's first minutes touch: the data, a network, a stored grid, an exercise, the notes, the commands.
FIRST_MINUTES = """
import sys
from pathlib import Path
import prunelab as pl
from prunelab import lab, zoo
from prunelab.lab.workshop import course, editions, guide, site
assert Path(pl.__file__).is_relative_to(sys.prefix), pl.__file__
lab.start("00")
data, model = zoo.load("digits"), zoo.checkpoint("digits-cnn")
pl.prune(model, pl.Recipe(sparsity=0.5))
print("read:", pl.measurement.evaluate(model, data, "valid").accuracy > 0.8)
print("runs:", len(lab.grid("scopes")) > 100)
lab.check("00-1", 1234)
print("guide:", "## 00: What can a network lose?" in guide.text())
print("editions:", sorted(editions.build(Path("editions"))))
print("pages:", len(site.build(Path("site"))) > 20)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install hatchling")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=_environment())
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The Python of an environment that holds the wheel, and this environment's packages, but not its prunelab."""
    place = tmp_path_factory.mktemp("elsewhere") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", packages, wheel],
        check=True, env=_environment(),
    )  # fmt: skip
    (packages / "the_packages_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / ("Scripts" if os.name == "nt" else "bin") / "python"


def _environment(**more: str) -> dict[str, str]:
    """Our variables, without a way back to the repository; nbconvert's templates lie beside our packages."""
    ours = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return ours | {"JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter")} | more


def _run(python: Path, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [python, "-W", "error::DeprecationWarning:prunelab", *arguments], cwd=cwd, capture_output=True, text=True,
        env=_environment(PRUNELAB_HOME=str(cwd / "home")), timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_it_holds_the_notebooks_the_data_and_all_that_is_no_code(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"prunelab/notebooks/{p.name}" for p in course.notebooks()} <= names
    assert {f"prunelab/docs/{p.name}" for p in course.texts()} <= names
    assert {f"prunelab/data/{p.name}" for p in (ROOT / "data").iterdir()} <= names
    every = {p.relative_to(ROOT).as_posix() for p in (ROOT / "prunelab").rglob("*") if p.is_file()}
    assert {name for name in every if "__pycache__" not in name and not name.startswith(AUTHORS)} <= names
    assert not [name for name in names if name.startswith(AUTHORS)]
    assert not [name for name in names if name.startswith(("tests", "prunelab/tests"))]


@pytest.mark.slow
def test_the_course_works_where_only_the_wheel_is(python, tmp_path):
    out = _run(python, "-c", FIRST_MINUTES, cwd=tmp_path)
    assert "Notebook 00 is ready" in out
    assert "✓ 00-1: right." in out
    for line in ("read: True", "runs: True", "guide: True", "pages: True"):
        assert line in out
    assert "editions: ['hosted', 'instructor', 'learner', 'slides']" in out


@pytest.mark.slow
def test_an_authors_command_answers_there_with_a_sentence(python, tmp_path):
    line = [python, "-m", "prunelab.lab", "grids", "scopes"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=_environment(), timeout=300)
    assert done.returncode == 1
    assert done.stderr == "grids is for authors: it runs from a checkout of the repository\n"


@pytest.mark.slow
def test_the_notebooks_are_copied_from_there_and_keep_a_learners_work(python, tmp_path):
    assert "00_start_here.ipynb: new" in _run(python, "-m", "prunelab.lab", "copy", "mine", cwd=tmp_path)
    first = tmp_path / "mine" / "00_start_here.ipynb"
    assert first.read_bytes() == course.notebooks()[0].read_bytes()
    first.write_text("my answers")
    assert "00_start_here.ipynb: yours, kept" in _run(python, "-m", "prunelab.lab", "copy", "mine", cwd=tmp_path)
    assert first.read_text() == "my answers"
