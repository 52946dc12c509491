"""What stands around the code: workflows that parse, a citation that agrees, pages whose names and code exist."""

from __future__ import annotations

import functools
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from packaging.specifiers import SpecifierSet
from torch.nn.utils import prune

import prunelab as pl
from prunelab.lab.__main__ import _parser
from prunelab.lab.workshop import course, editions

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in course.texts()}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_has_what_github_asks_for(name):
    flow = WORKFLOWS[name]
    assert {"name", True, "permissions", "jobs"} <= set(flow), "YAML reads a bare `on` as true"
    for job in flow["jobs"].values():
        assert job["runs-on"]
        for step in job["steps"]:
            assert len({"uses", "run"} & set(step)) == 1
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@v\d+", step.get("uses", "a/b@v1"))


def test_every_system_and_every_python_that_the_project_names_is_tried():
    matrix = WORKFLOWS["tests.yml"]["jobs"]["tests"]["strategy"]["matrix"]
    assert {system.partition("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(version) for version in matrix["python"])


def test_the_site_is_built_by_a_command_that_exists_and_published_from_where_it_lies():
    steps = WORKFLOWS["site.yml"]["jobs"]["site"]["steps"]
    (line,) = [step["run"] for step in steps if "prunelab.lab" in step.get("run", "")]
    given = _parser().parse_args(shlex.split(line.partition("prunelab.lab ")[2]))
    (upload,) = [step["with"]["path"] for step in steps if "upload" in step.get("uses", "")]
    assert (given.command, given.out) == ("site", Path(upload))


def test_the_buttons_of_the_readme_open_what_there_is():
    """Binder a notebook of this repository, Colab one of the branch that a workflow writes, the page its site."""
    host, owner, name = editions.SOURCE.removeprefix("https://").split("/")
    links = re.findall(r"\]\((https://[^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    (binder,) = [x for x in links if x.startswith(f"https://mybinder.org/v2/gh/{owner}/{name}/HEAD?labpath=")]
    assert (ROOT / binder.partition("labpath=")[2]).is_file()
    before = f"https://colab.research.google.com/github/{owner}/{name}/blob/"
    (colab,) = [x.removeprefix(before) for x in links if x.startswith(before)]
    branch, _, notebook = colab.partition("/")
    assert (ROOT / "notebooks" / notebook).is_file()
    steps = WORKFLOWS["site.yml"]["jobs"]["hosted"]["steps"]
    (push,) = [step for step in steps if "git push" in step.get("run", "")]
    assert push["working-directory"] == f"build/editions/{branch}"
    assert f"--initial-branch {branch}\n" in push["run"]
    assert push["run"].endswith(f" {branch}\n")
    assert f"{host}/${{{{ github.repository }}}}" in push["env"]["ADDRESS"]
    assert f"https://{owner}.github.io/{name}/" in links
    assert WORKFLOWS["site.yml"]["jobs"]["hosted"]["if"] == "startsWith(github.ref, 'refs/tags/v')", "it installs a tag"


def test_the_citation_agrees_with_the_project():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert (cited["title"], str(cited["version"]), cited["license"]) == (PROJECT["name"], pl.__version__, "MIT")
    assert cited["repository-code"] == PROJECT["urls"]["Homepage"]
    assert cited["authors"] == PROJECT["authors"]


@pytest.mark.parametrize("name", PAGES)
def test_every_name_and_link_of_a_page_exists(name):
    text = PAGES[name]
    for path in set(re.findall(r"\bpl\.([a-zA-Z_]+(?:\.[a-zA-Z_]+)*)", text)):
        functools.reduce(getattr, path.split("."), pl)
    for to in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "docs" / to).is_file(), to


def test_every_strategy_that_the_choice_names_exists():
    table = PAGES["choosing"].partition("## By model")[2].partition("\n\nWhy")[0]
    for line in table.splitlines()[4:]:
        _, _, granularities, criteria, *_ = line.split("|")
        for name in re.findall(r"`(\w+)`", granularities):
            assert name in pl.granularity.__all__
        for name in re.findall(r"`(\w+)`", criteria):
            assert name in pl.criteria.__all__


def test_the_calls_of_the_tables_run(build, data_for):
    """Each line of the column "here" that is a whole call, on a network of four filters."""
    rows = re.findall(r"^\| .+ \| `([^`]*pl\.[^`]*\([^`]*)`[^|]*\|$", PAGES["coming_from"], re.M)
    assert len(rows) >= 11
    x, _ = data_for("cnn")
    names = {"pl": pl, "model": build("cnn"), "example": x, "calib": pl.Calibration.of(data_for("cnn"))}
    names["mask"] = torch.ones_like(names["model"][0].weight)
    groups = pl.granularity.coupled(names["model"], x)
    names |= {"groups": groups, "keep": pl.allocate(pl.criteria.magnitude(names["model"]), groups, 0.5, "layer")}
    for row in rows:
        fresh = names | {"model": build("cnn")}
        exec(row.replace("layer.weight", "0.weight"), fresh)
        names |= {key: fresh[key] for key in ("groups", "scores") if key in fresh}


def test_a_checkpoint_of_torchs_prune_loads_as_the_page_says(build, data_for, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old, (x, _) = build("cnn").eval(), data_for("cnn")
    prune.global_unstructured([(old[0], "weight"), (old[3], "weight")], prune.L1Unstructured, amount=0.6)
    torch.save(old.state_dict(), "pruned.pt")
    (block,) = re.findall(r"```python\n(.*?)```", PAGES["coming_from"], re.S)
    model = build("cnn").eval()
    exec(block, {"torch": torch, "pl": pl, "model": model})
    assert torch.equal(model(x), old(x))
    loss = model.train()(x).square().sum()
    loss.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert torch.equal(model[0].weight == 0, old[0].weight_mask == 0), "the zeros are held"


def test_the_hashed_requirements_are_the_constraints():
    """Every package that pyproject.toml brings, in the version the tests run with, with the hashes of its files."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    pins = {re.sub("[._-]+", "-", name).lower(): version for name, version in pins.items()}
    entries = re.findall(r"^([\w.-]+)==([\w.]+)((?:.*\\\n)*.*)", (ROOT / "requirements-hashed.txt").read_text(), re.M)
    hashed = {re.sub("[._-]+", "-", name): version for name, version, _ in entries}
    assert {n: hashed[n] for n in hashed.keys() & pins} == {n: pins[n] for n in hashed.keys() & pins}
    assert all("--hash=sha256:" in rest for _, _, rest in entries)
    direct = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.match(r"[\w-]+", need)[0] for need in direct} <= hashed.keys()
