"""Files with flipped bits, and files that someone wrote on purpose: an error of ours, and nothing has changed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import warnings

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

import prunelab as pl
from prunelab import zoo
from prunelab.lab.learn import progress
from prunelab.measurement import Evaluation
from prunelab.recovery import Checkpoint, checkpoints, train
from prunelab.sensitivity import Curve, Scan

JUNK = [None, -1, 10**400, 10**15, 1e308, float("nan"), "x", "9" * 5000, [], {}, [[]], {"a": 1}, True, 0, 3.5, ["no"]]
DEEP = [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900, b"9" * 10_000, b"", bytes(100), b"NaN", b"1e999"]
OURS = (pl.PruneError, zoo.ZooError)


def places(value, at=()):
    """The way to everything in a nest of dicts and lists."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inner in inside for place in places(inner, (*at, key)))]


def with_junk(value, dice, skip=()):
    """The nest with something else in one of its places, or without it; and what was done."""
    *way, last = dice.choice([at for at in places(value) if at and at[0] not in skip])
    value, junk = copy.deepcopy(value), dice.choice(JUNK)
    inside = value
    for key in way:
        inside = inside[key]
    if dice.random() < 0.1:
        del inside[last]
    else:
        inside[last] = junk
    return value, (*way, last, str(junk)[:20])


class Stop(Exception):
    """What ends a run in the middle."""


def stop(done, total):
    if done == stop.at:
        raise Stop


def network():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def learn(model, data, path, at=None):
    stop.at = at
    return train(model, data, epochs=3, batch_size=16, progress=False, checkpoint=Checkpoint(path, 2), on_step=stop)


@pytest.fixture
def saved(lesson, tmp_path):
    """The file of a masked run that was broken off, as bytes; how to try another; the weights of the unbroken run."""
    path = tmp_path / "run"

    def pruned():
        model = network()
        pl.prune(model, pl.Recipe(sparsity=0.5))
        return model

    def attempt(content):
        """What a run makes of a file: its weights, or None if it is refused; a refused one changes nothing."""
        path.write_bytes(content)
        model = pruned()
        before = copy.deepcopy(model.state_dict())
        try:
            learn(model, lesson, path)
        except pl.PruneError as error:
            said = str(error)
        else:
            return model.state_dict()
        assert "diverged" in said or same(model.state_dict(), before), "refused, and the model has changed"
        return None

    whole = pruned()
    learn(whole, lesson, tmp_path / "whole")
    with pytest.raises(Stop):
        learn(pruned(), lesson, path, at=5)
    return path.read_bytes(), attempt, whole.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_flipped_bit_of_a_run_is_found_wherever_it_is(saved):
    content, attempt, whole = saved
    assert same(attempt(content), whole)
    dice, header = random.Random(0), 8 + int.from_bytes(content[:8], "little")
    for end in [len(content)] * 30 + [header] * 30:
        at = dice.randrange(end)
        assert attempt(content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :]) is None, at


def changed(tensors, dice):
    """The tensors with one of them missing, of another shape or type, or full of what is no number; and what it is."""
    key = dice.choice(sorted(tensors))
    t = tensors[key]
    others = {
        "gone": None, "longer": torch.cat([t.flatten()] * 2), "empty": t.flatten()[:0], "scalar": t.new_ones(()),
        "large": t.new_zeros(3, 100), "half": t.to(torch.float16), "whole": t.to(torch.int64),
        "NaN": t * torch.nan if t.is_floating_point() else t * 0 + 255 if t.dtype == torch.uint8 else ~t,
        "named": t,
    }  # fmt: skip
    how = dice.choice(sorted(others))
    rest = {k: v for k, v in tensors.items() if k != key}
    names = ["loose", "optimizer/7.step", "optimizer/x.y", "optimizer/-1.exp_avg", "model/z", "safe/z", "epoch/z"]
    name = dice.choice(names) if how == "named" else key
    return rest | ({} if others[how] is None else {name: others[how]}), (key, how)


def test_a_run_that_someone_wrote_on_purpose(saved):
    """Under a hash that fits: taken if it could be one, else an error of ours, and the model is as it was."""
    content, attempt, _ = saved
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts, tensors = json.loads(header["__metadata__"]["prunelab"]), load(content)
    dice, refused = random.Random(1), 0
    for n in range(60):
        (said, what), kept = (with_junk(facts, dice, {"format"}), tensors) if n % 2 else ((facts, ()), None)
        if kept is None:
            kept, what = changed(tensors, dice)
        text = json.dumps(said)
        try:
            refused += attempt(save(kept, {"prunelab": text, "sha256": checkpoints.sealed(text, kept)})) is None
        except Exception as error:
            pytest.fail(f"{what}: {error!r}")
    assert refused > 30


HEADERS = {
    "F4": '{"0.weight":{"dtype":"F4","shape":[4,2],"data_offsets":[0,4]}}',
    "F6": '{"0.weight":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}',
    "F8_E8M0": '{"0.weight":{"dtype":"F8_E8M0","shape":[4],"data_offsets":[0,4]}}',
    "64 bits": f'{{"0.weight":{{"dtype":"F32","shape":[0,{2**64 - 1}],"data_offsets":[0,0]}}}}',
    "no product": f'{{"0.weight":{{"dtype":"F32","shape":[0,{2**40},{2**40}],"data_offsets":[0,0]}}}}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_weights_whose_header_says_what_no_tensor_is(saved, tmp_path, name):
    """Under a hash that fits: in a plan, a checkpoint of the zoo, and a run."""
    header = HEADERS[name].encode().ljust(-(-len(HEADERS[name]) // 8) * 8)
    content = len(header).to_bytes(8, "little") + header + bytes(int(name == "F6") * 3 or ("F" in name) * 4)
    said = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    there = readers(tmp_path)
    (path, read), (cards, build) = there["plan"], there["cards"]
    plan = json.loads(path.read_text()) | said
    path.write_text(json.dumps(plan))
    (path.parent / plan["weights"]).write_bytes(content)
    with pytest.raises(pl.PruneError, match="is damaged: it holds no safetensors"):
        read()
    cards.write_text(json.dumps({"net": json.loads(cards.read_text())["net"] | said}))
    (tmp_path / "net.safetensors").write_bytes(content)
    with pytest.raises(zoo.ZooError, match="it holds no safetensors"):
        build()
    _, attempt, _ = saved
    assert attempt(content) is None


def test_a_size_that_no_entry_fills_lets_no_card_take_memory(tmp_path):
    _, build = readers(tmp_path)["cards"]
    content = save({"0.weight": torch.zeros(0, 10**9)})
    card = json.loads((tmp_path / zoo.trained.CARDS).read_text())["net"]
    card |= {"arguments": {"inputs": 10**9}, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / zoo.trained.CARDS).write_text(json.dumps({"net": card}))
    (tmp_path / "net.safetensors").write_bytes(content)
    with pytest.raises(zoo.ZooError, match="no weight has a size above"):
        build()


def readers(folder):
    """Name -> the file, and what reads it, of everything that the library reads as JSON or TOML."""
    model = zoo.mlp(inputs=4, hidden=[6], classes=2)
    groups = pl.granularity.neurons(model, torch.zeros(1, 4))
    keep = pl.allocate(pl.criteria.magnitude(model), groups, 0.4)
    plan = pl.save_plan(folder / "plan", groups, keep, pl.shrink(model, groups, keep))
    said = json.loads((plan / "plan.json").read_text()) | {"format": "prunelab plan 2"}  # no checksum: all is read
    (plan / "plan.json").write_text(json.dumps(said))
    recipes = [pl.save_recipe(folder / f"r.{kind}", pl.Recipe(sparsity=0.8)) for kind in ("json", "toml")]
    curve = Curve("a", 9, (0, 4), (5, 4), (0.0, 0.1))
    Scan((0.0, 0.5), (curve,), Evaluation(0.0, 5 / 9, 9, 5)).save(folder / "scan.json")
    card = {"architecture": "mlp", "arguments": {"inputs": 4, "hidden": [6], "classes": 2}}
    zoo.trained.save_checkpoint("net", model, card, folder=folder)
    store = progress.Store(folder / "home")
    store.record("exercises", "01-1", {"solved": True})

    def scanned():
        scan = Scan.load(folder / "scan.json")
        assert scan._repr_html_()
        assert str(scan)
        scan.most_sensitive()

    return {
        "plan": (plan / "plan.json", lambda: pl.load_plan(plan, model)),
        "json": (recipes[0], lambda: pl.prune(copy.deepcopy(model), pl.load_recipe(recipes[0]))),
        "toml": (recipes[1], lambda: pl.load_recipe(recipes[1])),
        "scan": (folder / "scan.json", scanned),
        "cards": (folder / zoo.trained.CARDS, lambda: zoo.checkpoint("net", folder=folder)),
        "store": (store.path, lambda: progress.Store(folder / "home").update("exercises", "01-1", str)),
    }


@pytest.mark.parametrize("name", ["plan", "json", "toml", "scan", "cards", "store"])
def test_whatever_a_file_says_the_error_is_ours(tmp_path, name):
    path, read = readers(tmp_path)[name]
    good, dice = path.read_bytes(), random.Random(2)
    cases = [(text, text[:20]) for text in DEEP]
    if name != "toml":
        crafted = [with_junk(json.loads(good), dice) for _ in range(60)]
        cases += [(json.dumps(value).encode(), what) for value, what in crafted]
    if os.name == "posix":
        cases += [(None, "pipe")]
    for content, what in cases:
        path.unlink(missing_ok=True)
        os.mkfifo(path) if content is None else path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
        except OURS:
            continue
        except Exception as error:
            pytest.fail(f"{what}: {error!r}")
    path.unlink(missing_ok=True)
    path.write_bytes(good)
    read()


def test_a_first_edition_plan_with_nonsense_is_refused_before_it_takes_memory(tmp_path):
    path, read = readers(tmp_path)["plan"]
    plan = json.loads(path.read_text()) | {"format": "prunelab plan 1"}
    huge = {"members": [{"tensor": "fc1.weight", "dim": 0, "block": 10**12}]}
    many = {"units": 1 << 19, "members": [{"tensor": "fc1.weight", "dim": 0, "offset": n} for n in range(300)]}
    wide = {"units": 1 << 19, "members": [], "kept": []}
    changes = [[{"units": -1}], [{"units": 10**12}], [huge], [many], [wide | {"name": str(n)} for n in range(300)]]
    for change in changes:
        path.write_text(json.dumps(plan | {"groups": [plan["groups"][0] | one for one in change]}))
        with pytest.raises(pl.PruneError, match="damaged"):
            read()
