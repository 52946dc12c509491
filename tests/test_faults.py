"""Every writer, failed and killed at each of its steps and in the middle of its bytes: the old file or the new."""

from __future__ import annotations

import ast
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from faults import STEP, full_after, killed
from tally import COUNTS
from torch import nn

import prunelab as pl
from prunelab import zoo
from prunelab.files import write_whole
from prunelab.lab.author import publish
from prunelab.lab.learn import progress
from prunelab.sensitivity import Scan
from prunelab.sensitivity.result import Curve
from prunelab.zoo import downloads, trained

pytestmark = pytest.mark.slow

ROOT = Path(pl.__file__).parent


@dataclass(frozen=True)
class Writer:
    """How version v of something is written into a folder, and what a reader then says is there: v, or None."""

    modules: tuple[str, ...]  # where it writes, so that a test can ask whether each writing module is covered
    write: Callable[[Path, int], Any]
    read: Callable[[Path], int | None]
    starts: bool = True  # whether there may be an old version


def mlp(v: int) -> nn.Module:
    """The network of version v."""
    return zoo.mlp(inputs=4, hidden=[3], classes=2, seed=v)


def _plan(folder: Path, v: int) -> None:
    model = mlp(v)
    groups = pl.granularity.neurons(model, torch.zeros(1, 4))
    keep = pl.allocate(pl.criteria.magnitude(model), groups, 0.4)
    pl.save_plan(folder / "plan", groups, keep, pl.shrink(model, groups, keep))


def _planned(folder: Path) -> int | None:
    if not (folder / "plan" / "plan.json").exists():
        return None
    small = pl.load_plan(folder / "plan", mlp(0))
    return next(v for v in (1, 2) if any(same_rows(a, b) for a, b in zip(weights(small), weights(mlp(v)), strict=True)))


def weights(model: nn.Module) -> list[torch.Tensor]:
    """The biases of the last layer, which no neuron takes along."""
    return [list(model.parameters())[-1].detach()]


def same_rows(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to the bit."""
    return torch.equal(a, b)


CARD = {"architecture": "mlp", "arguments": {"inputs": 4, "hidden": [3], "classes": 2}}


def _checkpoint(folder: Path, v: int) -> None:
    zoo.trained.save_checkpoint("net", mlp(v), {**CARD, "version": v}, folder=folder)


def _checkpointed(folder: Path) -> int | None:
    if not (folder / trained.CARDS).exists():
        return None
    model = zoo.checkpoint("net", folder=folder)
    (v,) = (v for v in (1, 2) if torch.equal(weights(model)[0], weights(mlp(v))[0]))
    assert trained.cards(folder)["net"]["version"] == v, "the card is that of the weights"
    return v


def _progress(folder: Path, v: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it can't be written is said; it never raises
        progress.Store(folder).record("exercises", "version", v)


def _progressed(folder: Path) -> int | None:
    return progress.Store(folder).read()["exercises"].get("version")


def _scan(folder: Path, v: int) -> None:
    curve = Curve("a", 9, (0, 4), (v, v), (0.0, 0.0))
    Scan(
        (0.0, 0.5),
        (curve,),
        pl.measurement.Evaluation(0.0, v / 9, 9, v),
        "weights",
        "magnitude",
        "valid",
        (),
    ).save(folder / "scan.json")


def _scanned(folder: Path) -> int | None:
    path = folder / "scan.json"
    return Scan.load(path).dense.correct if path.exists() else None


CONTENT = {name: name.encode() * 50 for name in ("a.bin", "b.bin")}  # what a mirror beside the folder offers


def _download(folder: Path, v: int) -> None:
    files = []
    for name, content in CONTENT.items():
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        files.append(downloads.File(name, md5, len(content), ((folder.parent / name).as_uri(),)))
    downloads.read(files, folder, download=True)


def _downloaded(folder: Path) -> int | None:
    found = {path.name: path.read_bytes() for path in folder.glob("*.bin")}
    assert all(content == CONTENT[name] for name, content in found.items()), "no file is half there"
    return 2 if found.keys() == CONTENT.keys() else None


def _published(folder: Path) -> int | None:
    path = folder / "nb.ipynb"
    return int(nbformat.read(path, as_version=4).cells[0].source) if path.exists() else None


def _publish(folder: Path, v: int) -> None:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(str(v))])
    publish.store_notebook(nb, folder / "nb.ipynb")


def _whole(folder: Path, v: int) -> None:
    write_whole(folder / "file", bytes([v]) * 5000)


def _wholly(folder: Path) -> int | None:
    path = folder / "file"
    if not path.exists():
        return None
    content = path.read_bytes()
    assert len(content) == 5000
    assert len(set(content)) == 1
    return content[0]


WRITERS = {
    "write_whole": Writer(("files",), _whole, _wholly),
    "save_plan": Writer(("surgery.plans",), _plan, _planned),
    "save_checkpoint": Writer(("zoo.trained",), _checkpoint, _checkpointed),
    "progress": Writer(("lab.learn.progress",), _progress, _progressed),
    "scan": Writer(("sensitivity.result",), _scan, _scanned),
    "download": Writer(("zoo.downloads",), _download, _downloaded, starts=False),
    "publish": Writer(("lab.author.publish",), _publish, _published),
}
# One `write_whole` of bytes made beforehand, which is tested as such.
ONE_WHOLE = {
    "budget.result", "budget.search", "exports", "lab.author.film", "lab.author.timings",
    "lab.workshop.course", "lab.workshop.editions", "lab.workshop.guide", "lab.workshop.site", "recipes",
    "recovery.checkpoints",
}  # fmt: skip
# Logs of a line a run, whose last line a kill may cut; and folders filled aside, then renamed: each has its own tests.
ELSEWHERE = {"lab.author.grids", "reconstruction.blockwise", "zoo.llama"}


def writes(source: str) -> set[str]:
    """The names of calls in a module that make, replace or change a file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        mode = next((a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)), "")
        if name.rpartition(".")[2] in {
            "write_whole",
            "write_text",
            "write_bytes",
            "replace_file",
            "mkstemp",
            "save_file",
        }:
            found.add(name)
        if name in {"os.replace", "os.rename", "nbformat.write", "shutil.move", "torch.save", "np.save"}:
            found.add(name)
        if name.rpartition(".")[2] == "open" and set(mode) & set("wax+") and set(mode) <= set("rwaxb+t"):
            found.add(name)
    return found


def test_every_module_that_writes_is_covered():
    covered = {m for w in WRITERS.values() for m in w.modules} | ONE_WHOLE | ELSEWHERE
    writing = {}
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if calls := writes(path.read_text(encoding="utf-8")):
            writing[module] = calls
    assert set(writing) - covered == set(), "a new writer: add how to write and read it to WRITERS"
    assert covered - set(writing) == set(), "no longer a writer"
    assert all(writing[m] == {"write_whole"} for m in ONE_WHOLE)
    assert writes("open('a', 'wb'); x.open('r'); p.write_text('')") == {"open", "p.write_text"}


@pytest.fixture(params=[(name, old) for name, w in WRITERS.items() for old in ((0, 1) if w.starts else (0,))], ids=str)
def case(request, tmp_path):
    """A writer, and its folder as a function, which holds version 1 or nothing."""
    name, old = request.param
    writer, count = WRITERS[name], 0

    def fresh() -> Path:
        nonlocal count
        count += 1
        folder = tmp_path / str(count) / "here"
        folder.mkdir(parents=True)
        for file, content in CONTENT.items():
            (folder.parent / file).write_bytes(content)
        if old:
            writer.write(folder, 1)
        return folder

    return writer, old or None, fresh


def attempt(writer: Writer, folder: Path) -> bool:
    """Write version 2; whether it said that it failed."""
    try:
        writer.write(folder, 2)
    except (OSError, pl.PruneError, zoo.ZooError):
        return True
    return False


def check(writer: Writer, old: int | None, folder: Path, fault: str) -> None:
    """The old one or the new, whole; and what was interrupted can be done again."""
    COUNTS["faults injected"] += 1
    found = writer.read(folder)
    if found not in (old, 2):
        COUNTS["files lost"] += 1
    assert found in (old, 2), fault
    writer.write(folder, 2)
    assert writer.read(folder) == 2, f"{fault}; then again"


def steps_of(writer: Writer, fresh: Callable[[], Path]) -> int:
    """How many steps a write takes."""
    folder = fresh()
    with STEP.watch(folder) as steps:
        writer.write(folder, 2)
    return steps.seen


def largest(folder: Path) -> int:
    """The size of the largest file there."""
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_an_error_at_each_step(case):
    writer, old, fresh = case
    steps = steps_of(writer, fresh)
    assert steps >= 2
    for n in range(steps):
        folder = fresh()
        with STEP.watch(folder, n):
            attempt(writer, folder)
        left = [p.name for p in folder.rglob("*.tmp")]
        assert left == [] or n == steps - 1, "a failed write clears up, unless clearing up is what failed"
        check(writer, old, folder, f"error at step {n}")


def test_a_kill_at_each_step(case):
    writer, old, fresh = case
    for n in range(steps_of(writer, fresh)):
        folder = fresh()
        assert killed(lambda folder=folder: writer.write(folder, 2), step=(folder, n))
        check(writer, old, folder, f"killed at step {n}")


def sizes(writer: Writer, fresh: Callable[[], Path]) -> list[int]:
    """Numbers of bytes at which to stop a write: none, one, and parts of its largest file."""
    folder = fresh()
    writer.write(folder, 2)
    most = largest(folder)
    return sorted({0, 1, most // 3, most - 1})


def test_a_disk_that_fills_up(case):
    writer, old, fresh = case
    failed = 0
    for size in sizes(writer, fresh):
        folder = fresh()
        if writer is WRITERS["progress"] and old:
            size = max(size, largest(folder) // 2)
        with full_after(size):
            failed += attempt(writer, folder)
        check(writer, old, folder, f"disk full after {size} bytes")
    assert failed or writer is WRITERS["progress"], "or else no fault was injected"


def test_a_kill_in_the_middle_of_the_bytes(case):
    writer, old, fresh = case
    for size in sizes(writer, fresh):
        folder = fresh()
        assert killed(lambda folder=folder: writer.write(folder, 2), size=size)
        check(writer, old, folder, f"killed after {size} bytes")


@pytest.mark.parametrize("name", [n for n, w in WRITERS.items() if w.starts and n not in ("write_whole", "publish")])
def test_a_short_read_is_never_taken_for_the_whole(name, tmp_path):
    """Each file that was written, cut at every 20th of its length: an error of ours that names a file, or no news."""
    writer = WRITERS[name]
    writer.write(tmp_path, 2)
    paths = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"]
    for path in paths:
        content = path.read_bytes()
        for cut in sorted({len(content) * n // 20 for n in range(20)}):
            path.write_bytes(content[:cut])
            COUNTS["faults injected"] += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = writer.read(tmp_path)
            except (pl.PruneError, zoo.ZooError) as error:
                found, said = None, str(error)
            else:
                said = str(tmp_path) if name == "progress" or content[:cut].strip() == content.strip() else ""
            assert found in (None, 2)
            assert str(tmp_path) in said, f"{path.name} cut at {cut}: an error says which file"
        path.write_bytes(content)
        assert writer.read(tmp_path) == 2
