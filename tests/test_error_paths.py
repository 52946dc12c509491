"""One walk over all public functions: whatever goes wrong in a call, the model is afterwards what it was, bit for bit.

Every parameter of every function is given what it must not be, beside good values for the others; and every function
that runs the model is made to fail in the middle of it. What a good value is goes by the parameter's name.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import math
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tally import COUNTS
from torch import Tensor, nn

import prunelab as pl
from prunelab import zoo
from prunelab.masking import current_masks

pytestmark = pytest.mark.slow


def public(module: types.ModuleType, path: str, seen: set[int]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function that the package offers under some name, once: by `__all__`, or defined in the module."""
    names = getattr(module, "__all__", None) or [
        n for n, o in vars(module).items() if n[0] != "_" and getattr(o, "__module__", "").startswith(module.__name__)
    ]
    modules = [n for n in names if isinstance(getattr(module, n), types.ModuleType)]
    for name in [*(n for n in names if n not in modules), *modules]:  # a function is known by its shortest path
        found = getattr(module, name)
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, types.ModuleType):
            if found.__name__.startswith("prunelab"):
                yield from public(found, f"{path}.{name}", seen)
        elif getattr(found, "__module__", "").startswith("prunelab") and callable(found) and not inspect.isclass(found):
            yield f"{path}.{name}", found


SEEN: set[int] = set()
FUNCTIONS = dict(public(pl, "pl", SEEN)) | dict(public(pl.calibration, "pl.calibration", SEEN))
# These take no model and touch none; or they write, and test_faults.py fails them.
EXEMPT = {
    "pl.criteria.register": "it changes the registry",
}
# A training that fails after its first step keeps the weights of the moment, as `train` says.
TRAINS = {
    f"pl.{n}"
    for n in ("recovery.train", "recovery.finetune", "recovery.distil", "recovery.rewind_rates",
              "recovery.rewind_weights", "movement.finetune", "movement.gradual")
}  # fmt: skip
JUNK: list[Any] = [None, -1, 50, math.nan, "nonsense", [], {}, torch.zeros(3)]


def scanned(groups: list[pl.Group]) -> pl.sensitivity.Scan:
    """What a scan of these groups could have found."""
    curves = tuple(
        pl.sensitivity.Curve(g.name, g.units, (0, g.units // 2, g.units - 1), (20, 15, 8), (0.1, 0.5, 2.0))
        for g in groups
    )
    return pl.sensitivity.Scan((0.0, 0.5, 0.9), tuple(curves), pl.measurement.Evaluation(0.1, 20 / 24, 24, 20))


class Words:
    """As much of a tokenizer as is called: a token a letter."""

    def encode(self, text: str, **options: Any) -> list[int]:
        return [ord(letter) % 7 for letter in text]

    def decode(self, ids: Tensor, **options: Any) -> str:
        return " ".join(map(str, ids.tolist()))

    def __len__(self) -> int:
        return 7


class World:
    """A model with a history, and a good value for every parameter."""

    def __init__(self, model: nn.Module, data: tuple[Tensor, Tensor], folder: Path, *, masked: bool) -> None:
        inputs, targets = data
        self.model, self.folder = model, folder
        model.train()
        list(model.children())[1].eval()  # a mode of its own
        list(model.parameters())[-1].requires_grad_(False)  # a frozen bias
        nn.functional.cross_entropy(model(inputs), targets).backward()  # gradients of an earlier training
        model.register_forward_hook(lambda *_: None)
        groups = pl.granularity.weights(model)
        self.keep = pl.allocate(pl.criteria.magnitude(model), groups, 0.3)
        masks = pl.expand(model, groups, self.keep)
        if masked:
            pl.apply(model, masks)
        calib = pl.Calibration([(inputs, targets)])
        scores = pl.criteria.magnitude(model)
        self.good: dict[str, Any] = {
            "instead": {},
            "model": model, "fresh_model": model, "models": {"a": model, "b": model}, "data": data, "calib": calib,
            "example": inputs[:2], "example_or_data": inputs[:2], "inputs": inputs[:2], "groups": groups,
            "masks": masks, "keep": self.keep, "keep_a": self.keep, "keep_b": self.keep, "scores": scores,
            "scores_a": scores,
            "scores_b": scores, "sparsity": 0.4, "scope": "global",
            "round_to": 1, "recipe": pl.Recipe(sparsity=0.5, rounds=2), "criterion": "magnitude",
            "granularity": "weights", "schedule": "linear", "progress": False, "batch_size": 8,
            "size": 8, "epochs": 1, "lr": 1e-3, "weight_decay": 0.0, "seed": 0, "loss": nn.functional.cross_entropy,
            "rounds": 7, "threads": 1, "clock": "steady", "device": "cpu", "devices": ("cpu",), "formats": ("dense",),
            "sparsities": (0.0, 0.5), "n_jobs": 1, "recover": lambda m: None,
            "path": folder / "plan", "group": groups[0], "name": groups[0].name, "names": (groups[0].name,),
            "curves": {"a": (1.0, 0.5)}, "exclude": (), "correct": 5, "n": 16, "batch": 2, "batches": (1, 2),
            "margin": 0.1, "block": 4, "kernel": "dense", "kernels": ("dense",), "most": 0.9, "sizes": (8, 16),
            "product": 16, "buffers": (1 << 12,), "by": "accuracy", "z": 1.96, "r": 1, "c": 1,
            "what": "a test", "counts": (1,), "on": pl.measurement.Conditions(rounds=7), "scan": scanned(groups),
            "tensors": {}, "training": False, "weights": scores, "found": scores,
            "values": {g.name: torch.rand(g.units) for g in groups},
            "candidates": {groups[0].name: (2, groups[0].units)},
            "of": 4, "steps": 2, "teacher": copy.deepcopy(model),
            "early": pl.recovery.state_of(model), "rule": pl.movement.TopV(0.5), "method": pl.reconstruction.Wanda(),
            "ids": torch.tensor([[1, 2, 3, 4]]), "rows": torch.tensor([[1, 2, 3, 4]]), "tokenizer": Words(),
            "text": "a word", "prompt": "a word", "count": 2,
        }  # fmt: skip


# What the junk is not enough for: values of the right type that are wrong all the same.
WRONG: dict[str, Callable[[World], list[Any]]] = {
    "masks": lambda w: [
        {**w.good["masks"], "nowhere.weight": torch.ones(1, dtype=torch.bool)},
        {n: m[:-1] for n, m in w.good["masks"].items()},
        {n: m.float() for n, m in w.good["masks"].items()},
        {**dict(list(w.good["masks"].items())[:1]), "0.bias": torch.ones(99, dtype=torch.bool)},
    ],
    "keep": lambda w: [{}, dict(list(w.keep.items())[:1]), {n: k[:-1] for n, k in w.keep.items()}],
    "groups": lambda w: [[pl.Group("ghost", 3, (pl.Member("nowhere.weight"),))], [w.good["groups"][0]] * 2],
    "scores": lambda w: [{}, {n: s * math.nan for n, s in w.good["scores"].items()}],
    "sparsity": lambda w: [1.0, 1.5, -0.1, math.inf, True, "0.5", {"nowhere": 0.5}],
    "scope": lambda w: ["local", pl.NM(2, 5), 3],
    "data": lambda w: [(torch.zeros(4, 1, 6, 6), torch.zeros(3)), (torch.zeros(4, 9), torch.zeros(4).long()), ()],
    "example": lambda w: [torch.zeros(2, 5), torch.zeros(0, 1, 6, 6)],
    "inputs": lambda w: [torch.zeros(2, 5)],
    "calib": lambda w: [pl.Calibration([(torch.zeros(2, 5), torch.zeros(2).long())])],
    "model": lambda w: [nn.Module(), nn.ReLU(), nn.Embedding(3, 3)],
    "recipe": lambda w: [
        pl.Recipe("wanda"), pl.Recipe(granularity="neurons"), pl.Recipe(scope=pl.NM(2, 4)),
        pl.Recipe(schedule=lambda t: 0.0 if t < 1 else 1.0, rounds=3, sparsity=0.1),
    ],
    "recover": lambda w: [lambda m: 1 / 0, spoil],
    "loss": lambda w: [lambda outputs, targets: outputs, lambda outputs, targets: 1 / 0],
    "within": lambda w: [{}, {n: k[:-1] for n, k in w.keep.items()}, {n: k & False for n, k in w.keep.items()}],
    "n_jobs": lambda w: [0],
    "epochs": lambda w: [-1, 1.5],
    "rounds": lambda w: [-1, 2.5],
    "exclude": lambda w: [("nowhere",), list(w.good["scores"])],
    "path": lambda w: [w.folder / "a file" / "below"],
}  # fmt: skip
ONLY_WRONG = {"n_jobs", "epochs", "rounds", "n", "batch"}  # a large number there takes long


class Bomb(Exception):
    """Went off inside the model, or inside what the caller passed."""


def spoil(model: nn.Module) -> None:
    """A recovery that changes everything it can, and then fails."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
            p.grad = torch.ones_like(p)
    model.train(not model.training)
    raise Bomb("spoilt")


@pytest.fixture(params=[False, True], ids=["plain", "masked"])
def world(request, build, data_for, tmp_path):
    """A function to a fresh world."""
    (tmp_path / "a file").write_text("")

    def make() -> World:
        with torch.random.fork_rng([]):
            return World(build("cnn"), data_for("cnn"), tmp_path, masked=request.param)

    return make


def arguments(function: Callable[..., Any], world: World) -> dict[str, Any]:
    """Good values for all parameters of a function that the world knows."""
    known = inspect.signature(function).parameters
    return {name: world.good[name] for name in known if name in world.good}


def call(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Call it with its positional-only parameters where they belong; enter it if it is a context, drain a generator."""
    signature = inspect.signature(function)
    first = [n for n, p in signature.parameters.items() if p.kind is p.POSITIONAL_ONLY and n in given]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        result = function(*[given[n] for n in first], **{n: v for n, v in given.items() if n not in first})
        if isinstance(result, contextlib.AbstractContextManager):
            with result:
                pass
        return list(result) if isinstance(result, Iterator) else result


def failure(function: Callable[..., Any], given: dict[str, Any]) -> Exception | None:
    """What a call raises."""
    try:
        call(function, given)
    except Exception as error:
        return error
    return None


def unknown(function: Callable[..., Any]) -> list[str]:
    """Required parameters of which nobody has said what is good."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind in (0, 1, 3) and p.name not in GOOD]


GOOD: set[str] = set()


@pytest.fixture(autouse=True)
def _good(world):
    GOOD.update(world().good)


def touches(function: Callable[..., Any]) -> bool:
    """Whether it is given a model, or what was made of one."""
    return bool(inspect.signature(function).parameters.keys() & {"model", "models", "fresh_model", "scores", "groups"})


@pytest.mark.parametrize("name", [n for n, f in FUNCTIONS.items() if n not in EXEMPT and touches(f)])
def test_a_bad_argument_changes_nothing(name, world, snapshot):
    function = FUNCTIONS[name]
    assert unknown(function) == [], "say in World what a good value is"
    here = world()
    before = snapshot(here.model)
    for parameter in inspect.signature(function).parameters:
        if parameter not in here.good and parameter not in WRONG:
            continue
        with torch.random.fork_rng([]):
            wrong = WRONG.get(parameter, lambda w: [])(here)
        for i, bad in enumerate([*wrong, *([] if parameter in ONLY_WRONG else JUNK)]):
            watched = bad if isinstance(bad, nn.Module) else here.model
            theirs = snapshot(watched)
            raised = failure(function, {**arguments(function, here), parameter: bad})
            if raised is None:  # not bad for this function, which may have changed the model as it should
                here = world()
                before = snapshot(here.model)
                continue
            COUNTS["bad inputs tried"] += 1
            COUNTS["bad inputs tried, answered by an error of prunelab's own"] += isinstance(raised, pl.PruneError)
            assert snapshot(here.model) == before, (name, parameter, bad, raised)
            assert snapshot(watched) == theirs, (name, parameter, bad, raised)
            if i < len(wrong):
                assert isinstance(raised, EXPECTED), (name, parameter, bad, repr(raised))


# What a wrong value may raise: ours, or what the learner's own code or the operating system raised.
EXPECTED = (pl.PruneError, zoo.ZooError, ZeroDivisionError, OSError, Bomb)


@contextlib.contextmanager
def bomb(at: int | None) -> Iterator[list[int]]:
    """Make the n-th forward of any linear layer raise; gives how many there were, in a list of one."""
    count, forward = [0], nn.Linear.forward

    def explode(self: nn.Linear, x: Tensor) -> Tensor:
        count[0] += 1
        if count[0] - 1 == at:
            raise Bomb
        return forward(self, x)

    nn.Linear.forward = explode
    try:
        yield count
    finally:
        nn.Linear.forward = forward


@pytest.mark.parametrize("name", [n for n, f in FUNCTIONS.items() if n not in EXEMPT and touches(f)])
def test_a_failure_inside_the_model_changes_nothing(name, world, snapshot):
    function = FUNCTIONS[name]
    here = world()
    with bomb(None) as count, contextlib.suppress(Exception):
        call(function, arguments(function, here))
    places = {0} if name in TRAINS else {0, 1, count[0] // 2, count[0] - 1}
    for at in sorted(places & set(range(count[0]))):
        here = world()
        before = snapshot(here.model)
        with bomb(at), contextlib.suppress(Exception):
            call(function, arguments(function, here))
            continue  # caught, or a timing that ran the model less often
        COUNTS["failures inside a model tried"] += 1
        assert snapshot(here.model) == before, (name, at)


def test_the_walk_finds_the_verbs():
    verbs = {"allocate", "apply", "bake", "expand", "measure", "prune", "shrink", "save_plan", "load_plan", "masked"}
    assert {f"pl.{v}" for v in verbs} <= {n for n, f in FUNCTIONS.items() if touches(f)}
    assert set(EXEMPT) <= set(FUNCTIONS)


def test_it_would_notice(world, snapshot):
    here = world()
    before = snapshot(here.model)
    with pytest.raises(Bomb, match="spoilt"):
        spoil(here.model)
    assert snapshot(here.model) != before
    assert current_masks(world().model).keys() in (set(), here.good["masks"].keys())
