"""Checkpoints: the ones in data/ are what their cards say; a bad file is never half read, a good one never lost."""

import hashlib
import json
import os
import stat

import pytest
import torch

from prunelab import zoo
from prunelab.lab import real_pictures
from prunelab.zoo import trained

CARD = {
    "architecture": "mlp",
    "arguments": {"classes": 2, "inputs": 4, "hidden": [3]},
    "accuracy": {"valid": {"value": 0.5, "error": 0.1}, "test": {"value": 0.25, "error": 0.125}},
}


def small(seed=0):
    return zoo.mlp(classes=2, inputs=4, hidden=(3,), seed=seed)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "README.md").write_text("above\n<!-- checkpoints -->\nold\n<!-- /checkpoints -->\nbelow\n")
    zoo.trained.save_checkpoint("small", small(), CARD, folder=tmp_path)
    return tmp_path


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # several times faster for networks this small
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", zoo.checkpoints())
def test_the_course_checkpoints_are_what_their_cards_say(name):
    card = zoo.trained.cards()[name]
    content = (zoo.trained.data_dir() / f"{name}.safetensors").read_bytes()
    assert len(content) == card["bytes"] < 1_000_000
    assert hashlib.sha256(content).hexdigest() == card["sha256"]
    assert {"data", "data_license", "license", "training", "torch", "made_by"} <= card.keys()

    before = torch.get_rng_state()
    model = zoo.checkpoint(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in model.modules())
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    assert all(t.isfinite().all() for t in model.state_dict().values())
    if card["data"] == "digits":  # photographs would have to be downloaded
        reads_as_its_card_says(model, card)


def reads_as_its_card_says(model, card):
    data = zoo.load("digits")
    for split in ("valid", "test"):
        images, labels = getattr(data, split).tensors
        with torch.inference_mode():
            right = torch.cat([model(part).argmax(1) for part in images.split(128)]) == labels
        accuracy = right.double().mean().item()
        # One image may round the other way on another processor.
        assert accuracy == pytest.approx(card["accuracy"][split]["value"], abs=0.0015)


def test_the_course_has_its_checkpoints_and_the_readme_their_numbers():
    cnns = [f"digits-cnn{seed}" for seed in ("", "-1", "-2", "-3", "-4")]
    vits = [f"digits-vit{seed}" for seed in ("", "-1", "-2", "-3", "-4")]
    assert sorted(zoo.checkpoints()) == [*real_pictures.NETWORKS, *cnns, "digits-mlp", *vits, "exam"]
    readme = (zoo.trained.data_dir() / "README.md").read_text(encoding="utf-8")
    assert trained.with_table(readme, zoo.trained.cards()) == readme
    assert "digits-cnn` |" in readme


def test_the_cnn_is_good_but_not_saturated_and_the_mlp_clearly_worse():
    cnn, mlp = (zoo.trained.cards()[name]["accuracy"]["valid"]["value"] for name in ("digits-cnn", "digits-mlp"))
    assert 0.93 < cnn < 0.98
    assert 0.80 < mlp < cnn - 0.05


def test_every_vit_is_near_the_cnn():
    cards = zoo.trained.cards()
    for seed in ("", "-1", "-2", "-3", "-4"):
        cnn, vit = (cards[f"digits-{kind}{seed}"]["accuracy"]["test"]["value"] for kind in ("cnn", "vit"))
        assert cnn - 0.03 < vit < 0.98
        assert cards[f"digits-vit{seed}"]["bytes"] < 500_000


def test_the_networks_on_photographs_say_what_they_were_trained_on():
    cards = {name: card for name, card in zoo.trained.cards().items() if card["data"] == "cifar10"}
    assert tuple(cards) == real_pictures.NETWORKS
    for card in cards.values():
        assert "JPEG" in card["pictures"]
        assert "none is stated" in card["data_license"]
        assert 0.74 < card["accuracy"]["test"]["value"] < 0.80
        assert card["accuracy"]["test"]["images"] == 10_000


def test_what_is_saved_comes_back(folder):
    assert zoo.checkpoints(folder) == ("small",)
    model = zoo.checkpoint("small", folder=folder)
    assert not model.training
    for key, tensor in small().state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor)
    again = zoo.checkpoint("small", folder=folder)
    with torch.no_grad():
        model.fc1.weight.zero_()
    assert again.fc1.weight.abs().sum() > 0


def test_saving_adds_to_the_cards_and_keeps_the_others(folder):
    card = zoo.trained.save_checkpoint("other", small(1), CARD, folder=folder)
    assert zoo.checkpoints(folder) == ("small", "other")
    assert zoo.trained.cards(folder)["other"] == card
    assert card["parameters"] == 23
    assert card["torch"] == torch.__version__
    readme = (folder / "README.md").read_text()
    assert readme.startswith("above\n<!-- checkpoints -->\n| name")
    assert readme.endswith("|\n<!-- /checkpoints -->\nbelow\n")
    assert "| 50.0 % ± 10.0 % | 25.0 % ± 12.5 % |" in readme
    zoo.trained.save_checkpoint("other", small(2), CARD, folder=folder)
    assert torch.equal(zoo.checkpoint("other", folder=folder).fc1.weight, small(2).fc1.weight)


def test_saving_twice_gives_the_same_bytes_readable_by_all(folder):
    before = contents(folder)
    zoo.trained.save_checkpoint("small", small(), CARD, folder=folder)
    assert contents(folder) == before
    if os.name == "posix":
        assert stat.S_IMODE((folder / "small.safetensors").stat().st_mode) == 0o644


def test_an_unknown_checkpoint_is_told_the_known_ones(folder):
    for name in ("digits-resnet", "../small", None, ["small"]):
        with pytest.raises(zoo.ZooError, match="the names are small"):
            zoo.checkpoint(name, folder=folder)


def test_a_missing_file(folder):
    (folder / "small.safetensors").unlink()
    with pytest.raises(zoo.ZooError, match=trained.REMAKE) as caught:
        zoo.checkpoint("small", folder=folder)
    assert str(folder / "small.safetensors") in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b + b"0"],
    ids=["short", "empty", "a bit flipped", "long"],
)
def test_a_damaged_file_is_not_read(folder, damage, monkeypatch):
    path = folder / "small.safetensors"
    good = path.read_bytes()
    path.write_bytes(damage(good))

    def never(_):
        raise AssertionError("parsed before its hash was checked")

    monkeypatch.setattr(trained.safetensors.torch, "load", never)
    with pytest.raises(zoo.ZooError, match=trained.REMAKE) as caught:
        zoo.checkpoint("small", folder=folder)
    text = str(caught.value)
    assert str(path) in text
    assert hashlib.sha256(good).hexdigest() in text
    assert hashlib.sha256(damage(good)).hexdigest() in text
    assert f"{len(good)} bytes" in text


@pytest.mark.parametrize(
    ("text", "says"), [(None, "can't be read"), ("{", "is damaged"), ("[]", "lacks"), ('{"small": {}}', "lacks")]
)
def test_missing_or_damaged_cards(folder, text, says):
    path = folder / "checkpoints.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    for call in (lambda: zoo.checkpoints(folder), lambda: zoo.checkpoint("small", folder=folder)):
        with pytest.raises(zoo.ZooError, match=says) as caught:
            call()
        assert str(path) in str(caught.value)


def test_damaged_cards_are_not_overwritten(folder):
    (folder / "checkpoints.json").write_text("{")
    before = contents(folder)
    with pytest.raises(zoo.ZooError, match="is damaged"):
        zoo.trained.save_checkpoint("other", small(), CARD, folder=folder)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architecture": "rnn"}, "known are cnn, mlp, vit"),
        ({"architecture": None}, "known are cnn, mlp, vit"),
        ({"arguments": {"classes": 3, "inputs": 4, "hidden": [3]}}, "do not fit"),
        ({"arguments": {"wide": 3}}, "do not fit"),
        ({"note": float("nan")}, "not JSON"),
        ({"note": torch.ones(2)}, "not JSON"),
    ],
)
def test_a_card_that_does_not_describe_the_model_is_refused(folder, change, says):
    before = contents(folder)
    with pytest.raises(zoo.ZooError, match=says):
        zoo.trained.save_checkpoint("small", small(1), {**CARD, **change}, folder=folder)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["", "../up", "Two Words", "a/b", None])
def test_names_that_are_no_file_names(tmp_path, name):
    with pytest.raises(zoo.ZooError, match="can't name a checkpoint"):
        zoo.trained.save_checkpoint(name, small(), CARD, folder=tmp_path)
    assert contents(tmp_path) == {}


def test_a_card_edited_to_another_network_is_refused_on_load(folder):
    path = folder / "checkpoints.json"
    everything = json.loads(path.read_text())
    everything["small"]["arguments"]["hidden"] = [5]
    path.write_text(json.dumps(everything))
    with pytest.raises(zoo.ZooError, match="do not fit"):
        zoo.checkpoint("small", folder=folder)


def test_an_interrupted_save_leaves_the_old_files_whole(folder, monkeypatch):
    before = contents(folder)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trained.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        zoo.trained.save_checkpoint("small", small(1), CARD, folder=folder)
    assert contents(folder) == before


def test_data_dir_of_a_checkout_and_of_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "prunelab"
    monkeypatch.setattr(trained, "__file__", str(package / "zoo" / "trained.py"))
    (tmp_path / "data").mkdir()  # some other project's
    assert zoo.trained.data_dir() == package / "data"
    (tmp_path / "pyproject.toml").touch()
    assert zoo.trained.data_dir() == tmp_path / "data"
