"""The scan against the plain loop, on all kinds of models, in several processes, interrupted, and on bad input."""

import copy
import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from tiny_decoders import LastToken, token_ids
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import prunelab as pl
from prunelab import PruneError, sensitivity
from prunelab.core import Group, Member
from prunelab.measurement.evaluation import evaluate, wilson
from prunelab.sensitivity import Scan, ScanStopped, scan, scanning
from prunelab.sensitivity.replay import Replay

SPARSITIES = (0.0, 0.3, 0.5, 0.9)


class Odd(nn.Module):
    """What a forward may do: in-place sums, a layer called twice, a list of layers, a module called by a function."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 1)
        self.short = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.rest = nn.ModuleList([nn.ModuleList([nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]), nn.Linear(4, 3)])

    def forward(self, x):
        x = self.stem(x)
        out = self.branch(self.relu(self.twice(self.twice(x))))
        out += self.short(x)  # writes into what branch returned, which was remembered when `short` is pruned
        conv, norm = self.rest[0]
        out = norm(conv(F.relu_(out)))
        return self.rest[1](out.mean((2, 3)))


class Furtive(nn.Module):
    """Uses weights behind their layers' backs: what lies between that and a layer's call is not safe to remember."""

    def __init__(self):
        super().__init__()
        self.first, self.between, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = F.linear(x, self.head.weight.mean() * self.first.weight)
        return self.head(self.between(x).relu())


class Choosy(nn.Module):
    """Looks at its numbers: nothing that can be batched."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.first(x)
        return self.head(x.relu() if x.sum().item() > 0 else x)


class ByName(nn.Module):
    """Takes its inputs by keyword."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, pixels, scale):
        return self.head((self.first(pixels) * scale).relu())


OWN = {"odd": (Odd, (1, 6, 6)), "furtive": (Furtive, (6,)), "choosy": (Choosy, (6,))}
MODELS = ["cnn", "mlp", "residual", "tied", "attention", "attention_kdim", *OWN]


@pytest.fixture
def make(build, data_for):
    """A function from a name to a model and data that fit it."""

    def both(name):
        if name not in OWN:
            return build(name), data_for(name)
        dice = torch.Generator().manual_seed(1)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return OWN[name][0](), (torch.randn(24, *OWN[name][1], generator=dice), torch.arange(24) % 3)

    return both


def naive(model, data, granularity="weights", criterion="magnitude", batch_size=10):
    """(correct, loss) of the plain loop."""
    groups, scores = pl.granularity.by_name(granularity)(model, data[0]), pl.criteria.by_name(criterion)(model, None)
    found = []
    for g in groups:
        for s in SPARSITIES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the floor, which keeps a structure's last unit
                keep = pl.allocate(scores, [g], s, "layer")
            with pl.masked(model, pl.expand(model, [g], keep)):
                found.append(evaluate(model, data, batch_size=batch_size))
    shape = (len(groups), len(SPARSITIES))
    return [np.array(v).reshape(shape) for v in ([e.correct for e in found], [e.loss for e in found])]


def quick(model, data, sparsities=SPARSITIES, *rest, **more):
    return scan(model, data, sparsities, *rest, **{"batch_size": 10, "progress": False, **more})


def same(a, b):
    """Two scans agree: all counts exactly, losses up to the rounding of other kernels and threads."""
    assert (a.names, a.sparsities, a.dense.correct, a.missing) == (b.names, b.sparsities, b.dense.correct, b.missing)
    assert np.array_equal(a.correct, b.correct)
    assert np.array_equal(a.removed, b.removed)
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lanes", [0, 1000], ids=["one at a time", "stacked"])
def test_as_the_plain_loop(make, snapshot, monkeypatch, name, lanes):
    monkeypatch.setitem(scanning.LANES, "cpu", lanes)
    model, data = make(name)
    before = snapshot(model)
    found = quick(model, data)
    assert snapshot(model) == before
    correct, loss = naive(model, data)
    assert np.array_equal(found.correct, correct)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)


def as_the_plain_loop(model, data, granularity, snapshot):
    """A scan of structures that says what the naive loop says, and leaves the model as it was."""
    before = snapshot(model)
    found = quick(model, data, SPARSITIES, granularity)
    assert snapshot(model) == before
    correct, loss = naive(model, data, granularity)
    assert np.array_equal(found.correct, correct)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)
    return found


@pytest.mark.parametrize(("name", "granularity"), [("cnn", "filters"), ("residual", "filters"), ("mlp", "neurons")])
def test_structures(make, snapshot, name, granularity):
    model, data = make(name)
    found = as_the_plain_loop(model, data, granularity, snapshot)
    assert all(c.removed[-1] < c.units for c in found.curves)  # a structure keeps its last unit


@pytest.mark.parametrize("granularity", ["layers", "mlps", "attentions"])
@pytest.mark.parametrize("lanes", [0, 1000], ids=["one at a time", "stacked"])
def test_whole_modules(snapshot, monkeypatch, granularity, lanes):
    """At each sparsity other modules leave, and at higher ones more."""
    monkeypatch.setitem(scanning.LANES, "cpu", lanes)
    model, data = LastToken().eval(), (token_ids(24), torch.arange(24) % 3)
    found = as_the_plain_loop(model, data, granularity, snapshot)
    assert len(set(found.loss[0])) == len(set(found.removed[0]))


@pytest.mark.parametrize(("name", "expected"), [("cnn", "suffix"), ("residual", "suffix"), ("odd", "suffix")])
def test_chains_and_others_are_split(make, name, expected):
    assert {c.how for c in quick(*make(name), batch_size=24).curves} == {expected}


def test_what_cannot_be_split_is_run_whole_and_named(make):
    found = quick(*make("furtive"))
    assert {c.name: c.how for c in found.curves} == {
        "first.weight": "whole",  # never called as a layer
        "between.weight": "suffix",
        "head.weight": "whole",  # called, but used before
    }
    assert "could not be split: ['first.weight', 'head.weight']" in str(found)
    assert found._repr_html_().count("could not be split") == 1


def test_what_cannot_be_batched_is_run_one_at_a_time(make, monkeypatch):
    monkeypatch.setitem(scanning.LANES, "cpu", 1000)
    hows = {c.name: c.how for c in quick(*make("choosy")).curves}
    assert hows == {"first.weight": "suffix", "head.weight": "stacked"}  # .item() of what `first` gives


def test_a_changed_layer_is_where_a_run_begins(build):
    """Counted: for four sparsities of the last layer, the first is run once a batch, not once a sparsity."""
    model = build("cnn").eval()
    runs = Replay(model, ["8.weight"])
    calls = []
    model[0].register_forward_pre_hook(lambda *_: calls.append("hook"))
    inner = model[0]._conv_forward
    model[0]._conv_forward = lambda *a: calls.append("computed") or inner(*a)
    x = torch.randn(5, 1, 6, 6)
    with torch.no_grad():
        assert runs.reusable({"8.weight": model[8].weight * 0}, x)
        calls.clear()
        runs.record(x)
        for scale in (0.0, 0.5, 1.0):
            runs.run({"8.weight": model[8].weight * scale}, x)
    assert calls.count("computed") == 1
    assert sum(o is not None for o in runs.outputs) == 1  # of a Sequential, only what the layer reads is held


def test_what_a_forward_overwrites_is_kept_apart():
    """`out += short(x)` writes into what branch returned: remembered, it would grow with every run."""
    model = Odd().eval()
    runs, x = Replay(model, ["short.weight"]), torch.randn(5, 1, 6, 6)
    weights = {"short.weight": model.short.weight.detach() * 0.5}
    with torch.no_grad():
        assert runs.reusable(weights, x)
        runs.record(x)
        first, second = runs.run(weights, x), runs.run(weights, x)
        assert torch.equal(first, second)
        assert torch.allclose(first, runs.whole(weights, x), atol=1e-6)


@pytest.mark.parametrize("kind", ["splits", "loader", "shuffled", "batches"])
def test_all_kinds_of_data(make, snapshot, kind):
    model, (x, y) = make("cnn")
    dataset = TensorDataset(x, y)
    data = {
        "splits": type("Data", (), {"valid": dataset, "train": TensorDataset(x[:3], y[:3])})(),
        "loader": DataLoader(dataset, 7),
        "shuffled": DataLoader(dataset, 7, shuffle=True),
        "batches": [(x[:20], y[:20]), (x[20:], y[20:])],
    }[kind]
    before = snapshot(model)
    found = quick(model, data)
    assert snapshot(model) == before
    same(found, quick(model, (x, y)))


def test_inputs_by_keyword():
    x, y = torch.randn(12, 6), torch.arange(12) % 3
    batches = [({"pixels": x[i : i + 6], "scale": x[i : i + 6, :1]}, y[i : i + 6]) for i in (0, 6)]
    model = ByName()
    found = quick(model, batches, (0.5,))
    assert {c.how for c in found.curves} == {"suffix"}
    keep = pl.allocate(
        pl.criteria.magnitude(model), pl.granularity.weights(model), {"first.weight": 0.5, "head.weight": 0}
    )
    with pl.masked(model, pl.expand(model, pl.granularity.weights(model), keep)):
        assert evaluate(model, batches).loss == pytest.approx(found.curve("first.weight").loss[0], rel=1e-6)


def test_large_layers_hold_no_stock_of_weights(make, monkeypatch):
    monkeypatch.setattr(scanning, "HELD", 0)
    model, data = make("cnn")
    held = quick(model, data)
    monkeypatch.undo()
    same(held, quick(model, data))


def test_equal_counts_are_run_once_and_none_removed_never(make):
    """Of 6 x 3 weights 0.5 and 0.51 remove nine; 0 removes none, and that is the dense model."""
    model, data = make("cnn")
    found = quick(model, data, (0.0, 0.5, 0.51), only=["8.weight"]).curves[0]
    assert found.removed == (0, 9, 9)
    assert found.loss[1] == found.loss[2]
    dense = evaluate(model, data, batch_size=10)
    assert (found.correct[0], found.loss[0]) == (dense.correct, dense.loss)


def test_criterion_loss_and_only(make):
    model, data = make("mlp")
    calib = pl.Calibration.of(data)
    found = quick(model, data, (0.5,), criterion="gradient", calib=calib, loss=F.multi_margin_loss, only=["2.weight"])
    assert found.names == ("2.weight",)
    assert found.criterion == "gradient"
    groups = pl.granularity.weights(model)[1:]
    keep = pl.allocate(pl.criteria.by_name("gradient")(model, calib), groups, 0.5)
    with pl.masked(model, pl.expand(model, groups, keep)):
        expected = evaluate(model, data, batch_size=10, loss=F.multi_margin_loss)
    assert found.curves[0].loss[0] == pytest.approx(expected.loss, rel=1e-6)


# The result


@pytest.fixture
def found(make):
    return quick(*make("cnn"))


def test_the_arrays(found):
    assert found.accuracy.shape == found.loss.shape == found.rise.shape == found.removed.shape == (3, 4)
    assert found.accuracy[2, 1] == found.curve("8.weight").correct[1] / 24
    assert np.allclose(found.rise[:, 0], 0)
    assert found.complete


def test_most_sensitive(found):
    order = found.most_sensitive()
    assert sorted(order) == sorted(found.names)
    rises = dict(zip(found.names, found.rise.mean(1), strict=True))
    assert [rises[n] for n in order] == sorted(rises.values(), reverse=True)
    at = dict(zip(found.names, found.rise[:, 3], strict=True))
    assert found.most_sensitive(1, at=0.9) == (max(at, key=at.get),)
    with pytest.raises(PruneError, match=r"0\.4 was not scanned: there is 0\.0, 0\.3, 0\.5, 0\.9"):
        found.most_sensitive(at=0.4)


def test_the_table(found):
    lines = str(found).splitlines()
    assert lines[1].split() == ["0", "0.3", "0.5", "0.9"]
    assert [line.split()[0] for line in lines[2:6]] == ["0.weight", "3.weight", "8.weight", "dense"]
    low, high = wilson(found.dense.correct, 24)
    assert f"{100 * found.dense.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in lines[5]
    assert "95 % Wilson intervals (samples taken as independent)" in lines[-1]


def test_saved_and_loaded(found, tmp_path):
    path = tmp_path / "scan.json"
    found.save(path)
    assert Scan.load(path) == found
    assert os.listdir(tmp_path) == ["scan.json"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"prunelab": "plan"}', "broken", "truncated"])
def test_no_scan_in_the_file(found, tmp_path, text):
    path = tmp_path / "scan.json"
    found.save(path)
    saved = json.loads(path.read_text())
    if text == "truncated":
        saved["curves"][0]["loss"].pop()
        text = json.dumps(saved)
    path.write_text(text)
    with pytest.raises(PruneError, match=r"scan\.json is (not a saved|a damaged) scan"):
        Scan.load(path)
    with pytest.raises(PruneError, match=r"can't be read"):
        Scan.load(tmp_path / "nowhere.json")


NONSENSE = {
    "no sparsity": lambda s: s.update(sparsities=[], curves=[]),
    "sparsity 1": lambda s: s["sparsities"].__setitem__(0, 1.0),
    "sparsity NaN": lambda s: s["sparsities"].__setitem__(0, float("nan")),
    "sparsity below": lambda s: s["sparsities"].__setitem__(0, -0.5),
    "units": lambda s: s["curves"][0].update(units=-1),
    "removed below": lambda s: s["curves"][0]["removed"].__setitem__(0, -5),
    "removed above": lambda s: s["curves"][0]["removed"].__setitem__(0, s["curves"][0]["units"] + 1),
    "accuracy": lambda s: s["dense"].update(accuracy=7.0),
    "accuracy NaN": lambda s: s["dense"].update(accuracy=float("nan")),
    "no labels": lambda s: s["dense"].update(n=0, correct=0),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_scan_of_numbers_that_none_can_have(found, tmp_path, what):
    path = tmp_path / "scan.json"
    found.save(path)
    saved = json.loads(path.read_text())
    NONSENSE[what](saved)
    path.write_text(json.dumps(saved))
    with pytest.raises(PruneError, match=r"scan\.json is a damaged scan"):
        Scan.load(path)


def test_a_loss_may_be_nan_and_a_scan_without_curves(found, tmp_path):
    curve = replace(found.curves[0], loss=(float("nan"),) * len(SPARSITIES))
    for one in (replace(found, curves=(curve,)), replace(found, curves=(), missing=found.names)):
        one.save(tmp_path / "scan.json")
        assert str(Scan.load(tmp_path / "scan.json")) == str(one)


def test_a_failed_save_leaves_the_old_file(found, tmp_path, monkeypatch):
    path = tmp_path / "scan.json"
    found.save(path)

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        found.save(path)
    assert os.listdir(tmp_path) == ["scan.json"]
    assert Scan.load(path) == found


# Several workers


def on(backend, n_jobs, model, data, **more):
    with joblib.parallel_config(backend=backend, n_jobs=n_jobs):
        return quick(model, data, **more)


@pytest.mark.slow
def test_two_processes(make, snapshot):
    model, data = make("residual")
    before = snapshot(model)
    parallel = quick(model, data, n_jobs=2)
    assert snapshot(model) == before
    same(parallel, quick(model, data))


def test_what_is_too_large_for_every_task_travels_as_an_array(make, monkeypatch):
    model, data = make("cnn")
    monkeypatch.setattr(scanning, "INLINE", 0)
    same(quick(model, data, n_jobs=2), quick(model, data))


class Lists(joblib.parallel.ThreadingBackend):
    """A backend that gives its results in one list, at the end, as Ray's does."""

    supports_return_generator = False


def test_a_backend_without_generators(make, monkeypatch):
    model, data = make("residual")
    monkeypatch.setitem(joblib.parallel.BACKENDS, "lists", Lists)
    same(on("lists", 2, model, data), quick(model, data))
    stopped_after(monkeypatch, 2, MemoryError("none left"))
    with pytest.raises(ScanStopped, match="none left") as caught:
        on("lists", 2, model, data)
    assert len(caught.value.partial.curves) == 2


def test_two_threads(make, snapshot):
    model, data = make("odd")
    before = snapshot(model)
    parallel = on("threading", 2, model, data)
    assert snapshot(model) == before
    same(parallel, quick(model, data))


ON_DASK = """
import distributed, joblib, torch
from torch import nn
from prunelab.sensitivity import scan

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    data = [(torch.randn(24, 1, 8, 8), torch.randint(3, (24,)))]
    alone = scan(model, data, (0.3, 0.9), progress=False)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    where = dict(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1")
    with distributed.LocalCluster(**where) as cluster, distributed.Client(cluster) as client:
        with joblib.parallel_config(backend="dask"):
            carried = scan(model, data, (0.3, 0.9), progress=False)
        ran = client.run(lambda: "prunelab.sensitivity.scanning" in __import__("sys").modules)
    assert any(ran.values()), "the tasks did not run on the workers"
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()), "the model was changed"
    assert carried.names == alone.names and (carried.correct == alone.correct).all(), "other figures"
    assert abs(carried.loss - alone.loss).max() < 1e-6, "other losses"
    print("the same figures")
"""


@pytest.mark.slow
def test_two_dask_workers(tmp_path):
    """In a process of its own: a cluster's threads, sockets and warnings on its way out are nobody else's."""
    pytest.importorskip("distributed", reason="dask[distributed] is not installed")
    script = tmp_path / "on_dask.py"
    script.write_text(ON_DASK, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stdout.strip().endswith("the same figures"), done.stderr[-2000:]


# Interrupted, resumed, died


def stopped_after(monkeypatch, n, error):
    """The n-th task and all later ones raise."""
    real, calls = scanning.measured, []

    def measured(*given):
        calls.append(1)
        if len(calls) > n:
            raise error
        return real(*given)

    monkeypatch.setattr(scanning, "measured", measured)


def test_interrupted_it_returns_what_it_has_and_goes_on(make, snapshot, monkeypatch):
    model, data = make("cnn")
    before = snapshot(model)
    stopped_after(monkeypatch, 1, KeyboardInterrupt())
    with pytest.warns(UserWarning, match=r"interrupted: 1 of 3 groups are scanned. To go on, .* resume="):
        partial = quick(model, data)
    assert snapshot(model) == before
    assert (partial.names, partial.missing) == (("0.weight",), ("3.weight", "8.weight"))
    assert not partial.complete
    assert "not scanned: 3.weight, 8.weight" in str(partial)
    with pytest.raises(PruneError, match=r"'8.weight' was not reached"):
        partial.curve("8.weight")
    monkeypatch.undo()
    resumed = quick(model, data, resume=partial)
    assert resumed == quick(model, data)


def test_a_path_is_written_after_every_group_and_read_again(make, tmp_path, monkeypatch):
    model, data = make("cnn")
    path = tmp_path / "scan.json"
    stopped_after(monkeypatch, 2, KeyboardInterrupt())
    with pytest.warns(UserWarning, match=r"resume='.*scan\.json'"):
        partial = quick(model, data, resume=path)
    assert Scan.load(path) == partial
    monkeypatch.undo()
    counted, real = [], scanning.measured
    monkeypatch.setattr(scanning, "measured", lambda *given: counted.append(1) or real(*given))
    whole = quick(model, data, resume=str(path))
    assert len(counted) == 1
    assert Scan.load(path) == whole == quick(model, data)
    assert quick(model, data, resume=path) == whole  # nothing left to do
    assert os.listdir(tmp_path) == ["scan.json"]


def test_what_stops_it_keeps_what_is_done(make, snapshot, monkeypatch):
    model, data = make("cnn")
    before = snapshot(model)
    stopped_after(monkeypatch, 1, MemoryError("none left"))
    with pytest.raises(ScanStopped, match=r"MemoryError: none left. Done: 1 group \(0.weight\); left: 3.wei") as caught:
        quick(model, data)
    assert snapshot(model) == before
    assert isinstance(caught.value, PruneError)
    monkeypatch.undo()
    assert quick(model, data, resume=caught.value.partial) == quick(model, data)


class Fatal(nn.Module):
    """Kills the process it runs in, unless that is the one that made it."""

    def __init__(self):
        super().__init__()
        self.first, self.head, self.home = nn.Linear(6, 4), nn.Linear(4, 3), os.getpid()

    def forward(self, x):
        if os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.head(self.first(x))


def test_a_worker_that_dies(make, tmp_path):
    model, data = Fatal(), make("mlp")[1]
    earlier = quick(model, data, only=["head.weight"])
    with pytest.raises(ScanStopped, match=r"(?s)Terminated.*Done: 1 group \(head.weight\); left: first") as caught:
        quick(model, data, n_jobs=2, resume=earlier)
    assert caught.value.partial.names == ("head.weight",)


# Bad input


def test_empty_data(make):
    model, _ = make("mlp")
    with pytest.raises(PruneError, match="the valid data is empty"):
        quick(model, (torch.zeros(0, 6), torch.zeros(0, dtype=torch.long)))


@pytest.mark.parametrize(
    ("sparsities", "message"),
    [
        ((), "give a list of fractions"),
        ("0.5", "give a list of fractions"),
        (0.5, "give a list of fractions"),
        ((0.5, 50), "did you mean 0.5"),
        ((0.5, 1.0), "sparsity is 1"),
        ((-0.1,), "at least 0 and below 1"),
        ((float("nan"),), "NaN"),
        (("half",), "a str"),
        ((0.5, 0.5), "give each once, from low to high"),
        ((0.5, 0.3), "give each once, from low to high"),
    ],
)
def test_sparsities_that_make_no_sense(make, snapshot, sparsities, message):
    model, data = make("mlp")
    before = snapshot(model)
    with pytest.raises(PruneError, match=message):
        quick(model, data, sparsities)
    assert snapshot(model) == before


@pytest.mark.parametrize("only", [["0.weight", "conv9"], "0.weight", []])
def test_unknown_groups(make, only):
    with pytest.raises(PruneError, match=r"give a tuple with some of \('0.weight', '2.weight'\)"):
        quick(*make("mlp"), only=only)


def test_unknown_names_and_splits(make):
    model, data = make("mlp")
    with pytest.raises(PruneError, match="no criterion is called"):
        quick(model, data, criterion="luck")
    with pytest.raises(PruneError, match="no granularity is called"):
        quick(model, data, granularity="atoms")
    with pytest.raises(PruneError, match="no split 'valid'"):
        quick(model, type("Data", (), {"train": data})())
    with pytest.raises(PruneError, match="batch_size"):
        quick(model, data, batch_size=0)


def test_a_model_that_wears_masks_or_nan(make):
    model, data = make("mlp")
    pl.prune(model, pl.Recipe(sparsity=0.5))
    with pytest.raises(PruneError, match="still wears masks"):
        quick(model, data)
    model, _ = make("mlp")
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(PruneError, match="NaN"):
        quick(model, data)


def test_a_model_that_cannot_be_copied_or_sent(make):
    model, data = make("mlp")
    model.lock = __import__("threading").Lock()
    with pytest.raises(ScanStopped, match="cannot be copied"):
        quick(model, data)
    with pytest.raises(ScanStopped, match=r"cannot be sent to other processes.*Use n_jobs=1"):
        quick(model, data, n_jobs=2)


def test_resume_of_something_else(make, tmp_path):
    model, data = make("mlp")
    earlier = quick(model, data)
    with pytest.raises(PruneError, match="differs in sparsities"):
        quick(model, data, (0.5,), resume=earlier)
    with pytest.raises(PruneError, match="differs in criterion"):
        quick(model, data, criterion="random", resume=earlier)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(0.9)
    with pytest.raises(PruneError, match="model, loss or data are others"):
        quick(other, data, resume=earlier)
    with pytest.raises(PruneError, match="resume is a dict"):
        quick(model, data, resume={})

    def halves(model, example=None):
        return [Group("0.weight", 8, (Member("0.weight", 0),)), Group("2.weight", 3, (Member("2.weight", 0),))]

    halves.__name__ = "weights"
    with pytest.raises(PruneError, match="differs in the groups"):
        quick(model, data, granularity=halves, resume=earlier)


def test_progress_is_shown_and_can_be_left_out(make, capsys):
    model, data = make("mlp")
    quick(model, data, progress=True)
    assert "sensitivity" in capsys.readouterr().err
    quick(model, data)
    assert capsys.readouterr().err == ""


def test_a_single_label_is_a_scan_too(make):
    model, (x, y) = make("cnn")
    assert quick(model, (x[:1], y[:1])).correct.max() <= 1
    assert sensitivity.scanning.SPARSITIES[0] > 0
