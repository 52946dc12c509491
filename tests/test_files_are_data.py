"""Loading a file never executes what it contains: no pickle, no eval, no code of others, anywhere in the package."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import pytest
import torch

import prunelab as pl
from prunelab import zoo

ROOT = Path(pl.__file__).parent


# What runs is the package's own: the exercises' answers, and the expressions of a lesson's numbers.
OUR_OWN = {ROOT / "lab/workshop/bank.py": ["exec", "compile"], ROOT / "lab/learn/claim.py": ["eval"]}


def test_nothing_in_the_package_executes_a_file():
    found = {p: executes(p.read_text(encoding="utf-8")) for p in sorted(ROOT.rglob("*.py"))}
    assert {p: found.pop(p) for p in OUR_OWN} == OUR_OWN
    assert not any(found.values()), {p: calls for p, calls in found.items() if calls}


FORBIDDEN = {
    "pickle", "dill", "marshal", "shelve", "joblib.load", "torch.jit.load", "np.load", "numpy.load", "yaml.load",
    "eval", "exec", "compile", "__import__", "torch.package", "pandas.read_pickle",
}  # fmt: skip


def executes(source: str) -> list[str]:
    """Imports and calls that run what a file says, and safe ones without their safe arguments."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call):
            names = [ast.unparse(node.func)]
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if names == ["torch.load"] and keywords.get("weights_only") != "True":
                found.append("torch.load without weights_only=True")
            if keywords.get("trust_remote_code", "False") != "False":
                found.append("trust_remote_code")
            if keywords.get("allow_pickle", "False") != "False":
                found.append("allow_pickle")
            if names[0] in ("np.load", "numpy.load"):
                names = []
        found += [n for n in names if n in FORBIDDEN]
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", ["pickle"]),
        ("from pickle import loads", ["pickle"]),
        ("import torch\ntorch.load('x')", ["torch.load without weights_only=True"]),
        ("torch.load('x', weights_only=True)", []),
        ("eval('1')", ["eval"]),
        ("model.eval()", []),
        ("re.compile('x')", []),
        ("np.load('x', allow_pickle=True)", ["allow_pickle"]),
        ("from joblib import load\njoblib.load('x')", ["joblib.load", "joblib.load"]),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", ["trust_remote_code"]),
    ],
)
def test_that_search_can_fail(source, found):
    assert executes(source) == found


def test_a_plan_with_a_pickle_inside_is_refused_unread(tmp_path):
    """Weights that are really a pickle which would write a file: refused, and the file is not written."""
    model = zoo.mlp(inputs=4, hidden=[3], classes=2)
    groups = pl.granularity.neurons(model, torch.zeros(1, 4))
    keep = pl.allocate(pl.criteria.magnitude(model), groups, 0.4)
    pl.save_plan(tmp_path / "plan", groups, keep, pl.shrink(model, groups, keep))
    folder, trap = tmp_path / "plan", tmp_path / "trap"
    bomb = b"cos\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR."
    (old,) = folder.glob("weights-*.safetensors")
    plan = json.loads((folder / "plan.json").read_text())
    old.write_bytes(bomb)
    plan |= {"format": "prunelab plan 2", "sha256": hashlib.sha256(bomb).hexdigest()}  # 2: no checksum stops it early
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(pl.PruneError, match="no safetensors"):
        pl.load_plan(folder, model)
    assert not trap.exists()
