"""The house: each floor imports only the floors below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import prunelab

ROOT = Path(prunelab.__file__).parent
FLOORS = [
    "core", "files", "registry", "layers", "units", "checks", "text", "attention", "mixtures", "data", "running",
    "language", "decoders", "masking", "measurement", "calibration", "surgery", "granularity", "criteria", "selection",
    "allocation", "reconstruction", "sensitivity", "agreement", "layerwise", "shares", "schedules",
    "recovery", "pipeline",
    "movement", "recipes", "exports", "budget",
]  # fmt: skip

# The rooms of the lab: each imports what stands before it.
ROOMS = ["show", "learn", "lessons", "workshop", "author"]


def floor_of(path: Path) -> str:
    """prunelab/zoo/data.py -> zoo; prunelab/core.py -> core; prunelab/__init__.py -> __init__."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(source: str, path: Path) -> set[str]:
    """The floors a module at `path` imports anywhere in it, functions and TYPE_CHECKING included."""
    return {target[0] if target else "__init__" for target in targets(source, path)}


def targets(source: str, path: Path) -> set[tuple[str, ...]]:
    """What a module at `path` imports of prunelab: ("lab", "show", "figure", "table")."""
    package = ("prunelab", *path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = (*base, *(node.module.split(".") if node.module else ()))
            names = [(*base, alias.name) for alias in node.names]
        else:
            continue
        found |= {name[1:] for name in names if name[0] == "prunelab"}
    return found


def rooms_above(source: str, path: Path) -> set[str]:
    """The rooms that a module in a room of the lab imports from and that do not stand before it."""
    room = path.relative_to(ROOT / "lab").parts[0]
    entered = {t[1] for t in targets(source, path) if t[0] == "lab" and len(t) > 1}
    return entered - set(ROOMS[: ROOMS.index(room) + 1])


def allowed(floor: str) -> set[str] | None:
    """What a floor may import; None: anything."""
    if floor in ("lab", "__init__"):
        return None
    return {"zoo", "files", "registry", "text"} if floor == "zoo" else set(FLOORS[: FLOORS.index(floor) + 1])


def complaints(source: str, path: Path) -> list[str]:
    """One line a forbidden import."""
    floor = floor_of(path)
    if floor not in (*FLOORS, "zoo", "lab", "__init__"):
        return [f"{floor} is on no floor of tests/test_layers.py: add it where it belongs"]
    may = allowed(floor)
    return [] if may is None else [f"{floor} imports {x}" for x in sorted(imported(source, path) - may)]


def statements(source: str) -> list[str]:
    """What an `__init__` holds besides docstring, imports, dunder assignments, `__getattr__` and `__dir__`.

    A module's `__getattr__` imports a name when it is first asked for.
    """
    other = []
    for node in ast.parse(source).body:
        named = isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id[:2] == "__" for t in node.targets)
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        lazy = isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__dir__")
        types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not (named or text or lazy or types or isinstance(node, (ast.Import, ast.ImportFrom))):
            other.append(ast.unparse(node))
    return other


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    assert complaints(path.read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.parent.parent == ROOT / "lab"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_rooms_of_the_lab_import_those_before_them(path):
    assert rooms_above(path.read_text(encoding="utf-8"), path) == set()


def test_an_import_from_a_later_room_is_found():
    above = ROOT / "lab" / "show" / "new.py"
    assert rooms_above("from ..learn import claim\nfrom . import figure", above) == {"learn"}
    assert rooms_above("import prunelab.lab.author.rules", above) == {"author"}
    assert rooms_above("from .. import claim", above) == {"claim"}
    assert rooms_above("from ..show.figure import table", ROOT / "lab" / "learn" / "new.py") == set()


def test_torch_pruning_is_a_peer_in_the_benchmarks_only():
    """Its graph once said which channels leave together; neither the package nor a unit test needs it now."""
    tests = [
        p for p in Path(__file__).parent.rglob("*.py") if "benchmarks" not in p.parts and p.name != "test_layers.py"
    ]
    assert [str(p) for p in (*MODULES, *tests) if "torch_pruning" in p.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("package", sorted(p.parent.relative_to(ROOT).as_posix() for p in ROOT.rglob("__init__.py")))
def test_init_only_reexports(package):
    path = ROOT / package / "__init__.py"
    assert statements(path.read_text(encoding="utf-8")) == []


def test_the_floors_exist():
    assert {floor_of(p) for p in MODULES} >= {*FLOORS, "zoo", "__init__"}


@pytest.mark.parametrize(
    ("where", "source", "complaint"),
    [
        ("core.py", "from .masking import apply", "core imports masking"),
        ("core.py", "from . import zoo", "core imports zoo"),
        ("core.py", "def f():\n    import prunelab.lab.learn.claim", "core imports lab"),
        ("data.py", "from prunelab import lab", "data imports lab"),
        ("data.py", "import prunelab as pl", "data imports __init__"),
        ("measurement/timing.py", "from ..pipeline import prune", "measurement imports pipeline"),
        ("measurement/__init__.py", "from .. import zoo", "measurement imports zoo"),
        ("zoo/data.py", "from ..core import PruneError", "zoo imports core"),
        ("zoo/__init__.py", "from prunelab.measurement import measure", "zoo imports measurement"),
        ("new.py", "", "new is on no floor of tests/test_layers.py: add it where it belongs"),
    ],
)
def test_it_can_fail(where, source, complaint):
    assert complaints(source, ROOT / where) == [complaint]


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("pipeline.py", "from . import criteria, schedules\nfrom .core import Group\nimport torch.nn"),
        ("measurement/timing.py", "from ..text import table\nfrom ..core import PruneError\nfrom . import report"),
        ("lab/learn/start.py", "from ... import pipeline, zoo"),
        ("zoo/__init__.py", "from .data import Data\nfrom . import digits"),
    ],
)
def test_it_can_pass(where, source):
    assert complaints(source, ROOT / where) == []


def test_each_public_name_is_found_at_home_and_typed():
    source = (ROOT / "__init__.py").read_text(encoding="utf-8")
    (typed,) = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    homes = {alias.name: node.module or alias.name for node in typed.body for alias in node.names}
    assert prunelab.__homes__ == homes
    assert all(getattr(prunelab, name) is not None for name in prunelab.__all__)


def test_logic_in_an_init_is_found():
    assert statements('"""Doc."""\nfrom . import core\n__version__ = "1"') == []
    assert statements("def __getattr__(name):\n    pass\ndef __dir__():\n    pass") == []
    assert statements("X = 1\ndef f():\n    pass\nif X:\n    pass") == [
        "X = 1",
        "def f():\n    pass",
        "if X:\n    pass",
    ]
