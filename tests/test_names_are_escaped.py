"""Names come from models, files and answers: on the page they are text, whatever they say."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import prunelab
from prunelab.measurement import Evaluation
from prunelab.sensitivity import Curve, Scan
from prunelab.text import Tabular

BAD = "<script>alert('x')</script><img src=x onerror=\"y\">"
ROOT = Path(prunelab.__file__).parent


def every(kind):
    return [kind, *(below for one in kind.__subclasses__() for below in every(one))]


def results():
    """All classes of results that show themselves as HTML."""
    for module in pkgutil.walk_packages(prunelab.__path__, "prunelab."):
        if ".lab." not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return every(Tabular)[1:]


def test_there_is_one_door_to_the_page():
    doors = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name in ("_repr_html_", "_repr_svg_", "_repr_mimebundle_")
    }
    assert doors == {"text.py"}
    assert len(results()) >= 8
    assert all(kind._repr_html_ is Tabular._repr_html_ for kind in results())


@pytest.mark.parametrize("kind", results(), ids=lambda kind: kind.__name__)
def test_whatever_a_result_says_is_text(kind, monkeypatch):
    monkeypatch.setattr(kind, "_lines", lambda self: (BAD, [BAD, BAD], [[BAD, BAD], ["a", "1"]]))
    monkeypatch.setattr(kind, "_notes", lambda self: [BAD])
    page = object.__new__(kind)._repr_html_()
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;") == 6


def test_a_scan_of_a_file_with_such_names(tmp_path):
    curve = Curve(BAD, 9, (0, 4), (5, 4), (0.0, 0.1), "whole")
    Scan((0.0, 0.5), (curve,), Evaluation(0.0, 5 / 9, 9, 5), BAD, BAD, BAD, (BAD,)).save(tmp_path / "scan.json")
    page = Scan.load(tmp_path / "scan.json")._repr_html_()
    assert "<script" not in page
    assert "<img" not in page
