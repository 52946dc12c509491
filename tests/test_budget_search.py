"""`fit_budget` on a machine of our own making, where a MAC takes a nanosecond: goals, bad input, interrupts, kills."""

import json
import multiprocessing
import os
import random
import signal
import threading
import time
import warnings
from types import SimpleNamespace

import counted_clock
import pytest
import torch
from tiny_decoders import LastToken, token_ids
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

import prunelab as pl
from prunelab import PruneError, fit_budget
from prunelab.budget import GoalNotMet, SearchOptions
from prunelab.budget import job as structures_module
from prunelab.budget import search as settling
from prunelab.budget.result import frontier
from prunelab.measurement import macs, stored_bytes


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A clock that counts MACs, so that nothing here depends on how busy the real machine is."""
    counted_clock.install(monkeypatch)


def mlp():
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def examples(n, seed):
    dice = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, generator=dice)
    return TensorDataset(x, (x[:, :4] + 0.5 * x[:, 4:8]).argmax(1))


@pytest.fixture(scope="module")
def data():
    return SimpleNamespace(train=examples(512, 0), valid=examples(256, 1))


@pytest.fixture(scope="module")
def trained(data):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = mlp()
    pl.recovery.train(model, data.train, epochs=6, progress=False)
    return model.eval()


def fit(model, data, **options):
    return fit_budget(model, data, progress=False, **{"recover_steps": 20, **options})


@pytest.mark.parametrize(
    ("goals", "costs"),
    [
        ({"latency": 0.5}, {"latency": 0.5}),
        ({"bytes": 0.4}, {"bytes": 0.4}),
        ({"macs": 0.3}, {"macs": 0.3}),
        ({"bytes": "4 kB", "latency": 0.6}, {"latency": 0.6}),
        ({"macs": 600}, {}),
    ],
    ids=str,
)
def test_a_budget_is_met(trained, data, snapshot, goals, costs):
    before = snapshot(trained)
    result = fit(trained, data, **goals)
    assert snapshot(trained) == before
    assert result.met
    assert result.complete
    assert result.advice == "prune"
    small, x = result.model, data.valid[:64][0]
    real = {
        "bytes": stored_bytes(small, ["dense"])["dense"] / stored_bytes(trained, ["dense"])["dense"],
        "macs": macs(small, x) / macs(trained, x),
        "latency": result.chosen.ratios["latency"],
    }
    assert all(real[cost] <= limit for cost, limit in costs.items())
    assert result.chosen.ratios["bytes"] == pytest.approx(real["bytes"])
    if "macs" in goals and goals["macs"] == 600:
        assert macs(small, x) <= 600
    if goals.get("bytes") == "4 kB":
        assert stored_bytes(small, ["dense"])["dense"] <= 4000
    assert result.chosen.accuracy == pl.measurement.evaluate(small, data.valid).accuracy
    assert result.dense.accuracy == pl.measurement.evaluate(trained, data.valid).accuracy
    finalists = [t.accuracy for t in result.trials if t.stage == "finalist" and t.meets]
    assert result.chosen.stage == "finalist"
    assert result.chosen.accuracy == max(finalists)
    assert result.chosen.steps == 20
    assert "Goal met" in result.verdict
    assert all(k.sum() == result.chosen.layout[g] for g, k in result.keep.items())
    small.train()(x).sum().backward()  # a plain module that trains


def test_what_is_saved_can_be_loaded_by_someone_else(trained, data, tmp_path):
    result = fit(trained, data, latency=0.5, save=tmp_path / "out")
    x = data.valid[:50][0]
    loaded = pl.load_plan(tmp_path / "out", mlp())
    assert torch.equal(loaded.eval()(x), result.model.eval()(x))
    recipe = pl.load_recipe(tmp_path / "out" / "recipe.toml")
    calib = pl.Calibration.of(data.train, samples=256)
    again = pl.prune(mlp_with(trained), recipe, calib, example=data.train[:64][0])
    assert {n: k.tolist() for n, k in again.keep.items()} == {n: k.tolist() for n, k in result.keep.items()}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["met"]
    assert report["complete"]
    assert report["seed"] == 0
    assert report["versions"]["torch"] == torch.__version__
    assert report["verdict"] == result.verdict
    assert sum(t["chosen"] for t in report["trials"]) == 1
    assert (tmp_path / "out" / "front.png").read_bytes()[:4] == b"\x89PNG"


def test_a_recipe_of_an_earlier_model_does_not_stay(trained, data, tmp_path):
    fit(trained, data, latency=0.5, save=tmp_path)
    assert (tmp_path / "recipe.toml").exists()
    assert fit(trained, data, latency=1.0, save=tmp_path).advice == "don't"
    assert not (tmp_path / "recipe.toml").exists()


def test_another_search_in_the_same_folder_loses_nothing(trained, data, tmp_path):
    first = fit(trained, data, latency=0.5, save=tmp_path).model
    report = (tmp_path / "report.json").read_bytes()
    fit(trained, data, latency=1.0, save=tmp_path)
    fit(trained, data, latency=1.0, save=tmp_path)
    assert sorted(p.name for p in tmp_path.glob("earlier-*")) == ["earlier-1", "earlier-2"]
    assert not list(tmp_path.glob("earlier-*/earlier-*"))
    assert (tmp_path / "earlier-1" / "report.json").read_bytes() == report
    x = data.valid[:20][0]
    assert torch.equal(pl.load_plan(tmp_path / "earlier-1", mlp()).eval()(x), first.eval()(x))


def test_what_is_put_aside_are_a_plan_s_own_files(trained, data, tmp_path):
    fit(trained, data, latency=0.5, save=tmp_path)
    (tmp_path / "weights-epoch10.safetensors").write_text("mine")
    named = json.loads((tmp_path / "plan.json").read_text())["weights"]
    fit(trained, data, latency=1.0, save=tmp_path)
    assert [p.name for p in (tmp_path / "earlier-1").glob("weights-*")] == [named]
    assert (tmp_path / "weights-epoch10.safetensors").read_text() == "mine"


def mlp_with(model):
    twin = mlp()
    twin.load_state_dict(model.state_dict())
    return twin


def test_the_report(trained, data):
    seen = []
    result = fit(trained, data, latency=0.5, on_trial=seen.append)
    assert seen == list(result.trials)
    assert seen[0].stage == "dense"
    stages = {t.stage for t in seen}
    assert stages == {"dense", "screened", "front", "finalist"}
    tried = {t.name for t in seen}
    assert {"magnitude, uniform, all structures", "taylor, sensitivity, all structures"} <= tried
    best = frontier(result.trials)
    assert [t.ratios["latency"] for t in best] == sorted(t.ratios["latency"] for t in best)
    assert [t.accuracy for t in best] == sorted(t.accuracy for t in best)
    assert all(any(b.accuracy >= t.accuracy and b.ratios["latency"] <= t.ratios["latency"] for b in best) for t in seen)
    text = str(result)
    assert "→ " in text
    assert "seed 0" in text
    assert f"torch {torch.__version__}" in text
    assert "<table>" in result._repr_html_()


def test_the_same_seed_gives_the_same_model(trained, data):
    one, two = (fit(trained, data, bytes=0.5, how=SearchOptions(rules=("uniform",))) for _ in range(2))
    assert one.trials == two.trials
    x = data.valid[:50][0]
    assert torch.equal(one.model.eval()(x), two.model.eval()(x))


def test_a_drop_alone_asks_for_the_fastest(trained, data):
    loose = fit(trained, data, max_drop=0.15, how=SearchOptions(rules=("uniform",)))
    tight = fit(trained, data, max_drop=0.02, how=SearchOptions(rules=("uniform",)))
    assert loose.drop <= 0.15
    assert tight.drop <= 0.02
    assert loose.chosen.ratios["latency"] <= tight.chosen.ratios["latency"] < 1


def test_nothing_to_gain_says_dont(trained, data, monkeypatch):
    monkeypatch.setattr(counted_clock, "MAC", 1e-13)  # all is launch
    result = fit(trained, data, max_drop=0.1)
    assert result.advice == "don't"
    assert result.verdict.startswith("Don't prune")
    assert torch.equal(result.model(data.valid[:9][0]), trained(data.valid[:9][0]))
    with pytest.raises(GoalNotMet, match=r"out of reach: with as little as may be left.*% was asked for.*Don't prune"):
        fit(trained, data, latency=0.5)


def test_within_the_budget_already(trained, data):
    result = fit(trained, data, latency=1.0)
    assert result.advice == "don't"
    assert result.met
    assert "is within the goal as it is" in result.verdict


def test_out_of_reach_says_how_near(trained, data, tmp_path):
    with pytest.raises(
        GoalNotMet, match=r"it has \d+\.\d % of the dense model's bytes, and 1\.0 % was asked"
    ) as missed:
        fit(trained, data, bytes=0.01, save=tmp_path / "out")
    assert missed.value.result.advice == "don't"
    assert pl.load_plan(tmp_path / "out", mlp()) is not None


def test_goals_that_contradict(trained, data):
    with pytest.raises(GoalNotMet, match=r"contradict each other.*lowest MACs found") as missed:
        fit(trained, data, macs=0.1, max_drop=0.0, recover_steps=0)
    result = missed.value.result
    assert not result.met
    assert result.chosen.ratios["macs"] <= 0.1  # the nearest: within the cost
    assert result.drop > 0


# What goes in


class Loud(nn.Module):
    """A dropout that ignores eval mode."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(nn.functional.dropout(x, 0.5, training=True))


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (Loud, {}, "changes its output between two calls"),
        (lambda: nn.Linear(12, 3), {}, "tells only classes 0 to 2 apart"),
        (lambda: nn.Linear(9, 4), {}, "cannot run on inputs of"),
        (lambda: nn.Linear(12, 4), {}, "no structure that could be removed"),
        (lambda: "model", {}, "the model is a str"),
        (mlp, {"recover_steps": -1}, "recover_steps=-1"),
        (mlp, {"recover_steps": 2.5}, "recover_steps=2.5"),
        (mlp, {"how": SearchOptions(exclude=("9",))}, r"exclude=\('9',\): give a tuple with some of \('0', '2'\)"),
        (mlp, {"how": SearchOptions(exclude=("0", "2"))}, "nothing of Sequential can be removed"),
        (mlp, {"how": SearchOptions(granularity="grains")}, "no granularity is called 'grains'"),
    ],
)
def test_bad_input(data, model, inputs, message):
    with pytest.raises(PruneError, match=message):
        fit(model(), data, latency=0.5, **inputs)


@pytest.mark.parametrize("granularity", ["layers", ("mlps", "neurons"), pl.granularity.attentions])
def test_whole_modules_have_no_channels_to_time(monkeypatch, snapshot, granularity):
    monkeypatch.setattr("prunelab.budget.costs.in_turns", None)  # nothing is timed
    monkeypatch.setattr(settling, "compare", None)
    monkeypatch.setattr(structures_module, "liked_multiple", None)
    model, sequences = LastToken().eval(), (token_ids(24), torch.arange(24) % 3)
    before = snapshot(model)
    with pytest.raises(PruneError, match=r"(layers|mlps|attentions) holds whole modules, such as llama\.model\."):
        fit(
            model,
            SimpleNamespace(train=sequences, valid=sequences),
            latency=0.5,
            how=SearchOptions(granularity=granularity),
        )
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criteria": ()}, "no criterion or no rule"),
        ({"criteria": ("size",)}, "no criterion is called 'size'"),
        ({"rules": ("luck",)}, r"rules=\('luck',\): give a tuple with some of \('uniform'"),
        ({"batch_size": 0}, "batch_size"),
        ({"finalists": 0}, "finalists"),
        ({"screen": 0}, "screen=0"),
    ],
    ids=str,
)
def test_bad_settings(options, message):
    with pytest.raises(PruneError, match=message):
        SearchOptions(**options)


def test_masks_come_off_first(trained, data):
    model = mlp_with(trained)
    pl.prune(model, pl.Recipe(sparsity=0.5))
    with pytest.raises(PruneError, match="still wears masks"):
        fit(model, data, latency=0.5)


def test_what_it_learns_from_it_does_not_choose_on(trained, data):
    with pytest.raises(PruneError, match="without a validation split: give valid="):
        fit(trained, data.train, latency=0.5)
    with pytest.raises(PruneError, match="without a validation split"):
        fit(trained, DataLoader(data.train, 32), latency=0.5)


def test_loaders_and_a_recovery_of_ones_own(trained, data):
    steps = []
    loaders = DataLoader(data.train, 32, shuffle=True), DataLoader(data.valid, 100)
    fit(
        trained,
        loaders[0],
        valid=loaders[1],
        macs=0.5,
        recover=lambda m, n: steps.append(n),
        how=SearchOptions(rules=("uniform",)),
    )
    assert set(steps) == {4, 20}


class Output(dict):
    """As Hugging Face's models answer: by key and by attribute."""

    @property
    def logits(self):
        return self["logits"]


class Keyword(nn.Module):
    """Inputs by keyword, an output with logits, and a layer that no granularity knows."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(9, 12), nn.Bilinear(12, 12, 12)
        self.net = mlp()

    def forward(self, input_ids, attention_mask):
        x = (self.embed(input_ids) * attention_mask.unsqueeze(-1)).mean(1)
        return Output(logits=self.net(self.mix(x, x)))


@pytest.mark.parametrize("hugging_face", [False, True])
def test_inputs_by_keyword_and_layers_left_alone(hugging_face):
    def split(n):
        inputs = {"input_ids": torch.randint(0, 9, (n, 5)), "attention_mask": torch.ones(n, 5)}
        labels = torch.arange(n) % 4
        return [{**inputs, "labels": labels} if hugging_face else (inputs, labels)]

    data = SimpleNamespace(train=split(32), valid=split(40))
    result = fit(Keyword(), data, macs=0.8, recover_steps=2, how=SearchOptions(rules=("uniform",), batch_size=32))
    assert result.met
    assert "mix (Bilinear)" in result.left_alone
    assert "Left as they are: embed (Embedding), mix (Bilinear)." in result.verdict


def test_a_recovery_that_diverges_is_noted_and_the_others_go_on(trained, data):
    calls = []

    def recover(model, steps):
        calls.append(steps)
        if len(calls) == 1:
            raise PruneError("training diverged")

    result = fit(trained, data, macs=0.5, recover=recover)
    assert any("training diverged" in note for note in result.notes)
    assert result.met


# Cut short


@pytest.mark.parametrize("at", [1, 2, 5])
def test_interrupted_it_returns_and_saves_the_best_so_far(trained, data, tmp_path, at):
    seen = []

    def stop(trial):
        seen.append(trial)
        if len(seen) == at:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted"):
        result = fit(trained, data, latency=0.5, save=tmp_path / "out", on_trial=stop)
    assert not result.complete
    assert len(result.trials) == at
    assert result.verdict.startswith("Interrupted")
    assert result.advice == ("don't" if at == 1 else "prune")
    x = data.valid[:20][0]
    assert torch.equal(pl.load_plan(tmp_path / "out", mlp()).eval()(x), result.model.eval()(x))
    assert not json.loads((tmp_path / "out" / "report.json").read_text())["complete"]


def search_forever(model, data, folder):
    tqdm.set_lock(threading.RLock())  # the one it shares with this process would be held for ever by a killed child
    while True:
        fit(model, data, latency=0.5, save=folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed process is a fork of this one")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_a_random_moment_it_leaves_a_model(trained, data, tmp_path, seed):
    folder = tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking a process that has threads
        child = multiprocessing.get_context("fork").Process(target=search_forever, args=(trained, data, folder))
        child.start()
    limit = time.monotonic() + 60
    while not (folder / "plan.json").exists() and time.monotonic() < limit:
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0, 0.5))
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    x = data.valid[:20][0]
    assert pl.load_plan(folder, mlp()).eval()(x).shape == (20, 4)
    if (folder / "report.json").exists():
        assert json.loads((folder / "report.json").read_text())["goals"]


def test_the_table_is_part_of_the_result(trained, data):
    result = fit(trained, data, latency=0.6, how=SearchOptions(rules=("uniform",), criteria=("magnitude",)))
    assert {row.layer for row in result.costs.rows} == {"0", "1", "2", "3", "4"}
    assert result.costs.ratio(result.chosen.layout) <= 0.6
