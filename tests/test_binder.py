"""`.binder/` promises what pyproject.toml asks for."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = re.findall(r"^  - (\S+)$", (ROOT / ".binder" / "environment.yml").read_text(), re.M)
BOUNDS = dict(re.fullmatch(r"([\w-]+)(.*)", line).groups() for line in LINES)


def test_its_python_is_one_that_the_course_runs_on():
    assert SpecifierSet(PROJECT["requires-python"]).contains(BOUNDS["python"].lstrip("="))


@pytest.mark.parametrize(("conda", "pip"), [("pytorch-cpu", "torch"), ("torchvision", "torchvision")])
def test_its_torch_is_as_new_as_the_course_asks_for(conda, pip):
    needed = {r.name: str(r.specifier) for r in map(Requirement, PROJECT["dependencies"])}
    assert BOUNDS[conda] == needed[pip]


def test_the_course_itself_is_installed_after_it():
    script = ROOT / ".binder" / "postBuild"
    assert os.access(script, os.X_OK)
    assert "pip install --no-cache-dir . -c" in script.read_text()


def test_all_but_torch_is_what_the_tests_run_with():
    """It comes by conda there, in the newest version it has: small, and without CUDA."""
    (pattern,) = re.findall(r"grep -vE '([^']+)' constraints\.txt", (ROOT / ".binder" / "postBuild").read_text())
    pinned = (ROOT / "constraints.txt").read_text().split()
    left_out = [line for line in pinned if re.search(pattern, line)]
    assert sorted(line.partition("==")[0] for line in left_out) == ["torch", "torchvision"]
