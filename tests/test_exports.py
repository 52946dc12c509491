"""Exports: run outside, compared before they are kept; what a target can't do is said, and leaves no file."""

import io

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab import PruneError, export, exports


class Words(nn.Module):
    """Two inputs by keyword, logits in an object, as Hugging Face's models have it."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids) * attention_mask.unsqueeze(-1)
        return {"logits": self.head(x.mean(1))}["logits"]


class Branching(nn.Module):
    """A forward that depends on the data's values."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(x) if float(x.sum()) > 0 else self.fc(-x)


class Decomposing(nn.Module):
    """An operator that ONNX lacks."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(torch.linalg.svd(x.view(-1, 2, 3))[1].mean(1, keepdim=True).expand(-1, 3))


@pytest.fixture
def small(build, data_for):
    """A pruned and shrunk CNN, and inputs."""
    model, (x, _) = build("cnn").eval(), data_for("cnn")
    groups = pl.granularity.filters(model, x)
    return pl.shrink(model, groups, pl.allocate(pl.criteria.magnitude(model), groups, 0.5, "layer")), x


def test_onnx_runs_outside_with_equal_outputs(small, tmp_path, snapshot):
    model, x = small
    before = snapshot(model.train())
    found = export(model, x[:4], tmp_path / "m.onnx")
    assert snapshot(model) == before
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    with torch.no_grad():
        wanted = model.eval()(x)
    (got,) = session.run(None, {"input": x.numpy()})  # 24 samples: not the four it was exported with
    assert np.abs(got - wanted.numpy()).max() <= 1e-4 * float(wanted.abs().max())
    assert found.difference <= 1e-4
    assert found.bytes == (tmp_path / "m.onnx").stat().st_size
    assert "m.onnx: ONNX" in str(found)
    assert "inputs input" in str(found)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_torch_export_comes_back(small, tmp_path):
    model, x = small
    assert export(model, x[:1], tmp_path / "m.pt2").difference == 0  # a batch of one, and still of any size
    with torch.no_grad():
        loaded = torch.export.load(tmp_path / "m.pt2").module()
        assert torch.allclose(loaded(x), model.eval()(x), atol=1e-6)


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_inputs_by_keyword(tmp_path, suffix):
    torch.manual_seed(0)
    example = {"input_ids": torch.arange(10).view(2, 5), "attention_mask": torch.ones(2, 5)}
    assert export(Words(), example, tmp_path / f"m.{suffix}").inputs == ("input_ids", "attention_mask")


class Pair(nn.Module):
    """Two tensors under one keyword, as a cache of keys and values has it."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x, past):
        return self.fc(x + past[0] - past[1])


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_several_tensors_under_one_keyword_are_numbered(tmp_path, suffix):
    example = {"x": torch.randn(4, 3), "past": (torch.randn(4, 3), torch.randn(4, 3))}
    assert export(Pair(), example, tmp_path / f"m.{suffix}").inputs == ("x", "past0", "past1")


def test_a_fixed_batch(small, tmp_path):
    model, x = small
    export(model, x[:4], tmp_path / "m.onnx", dynamic_batch=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    assert session.get_inputs()[0].shape[0] == 4


def test_a_fixed_batch_of_one_stays_one(small, tmp_path):
    model, x = small
    export(model, x[:1], tmp_path / "m.onnx", dynamic_batch=False)
    assert onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).get_inputs()[0].shape[0] == 1
    export(model, x[:1], tmp_path / "m.pt2", dynamic_batch=False)
    with torch.no_grad():
        loaded = torch.export.load(tmp_path / "m.pt2").module()
        assert torch.allclose(loaded(x[:1]), model.eval()(x[:1]), atol=1e-6)


class Placed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 3)

    def forward(self, x, places):
        return self.fc(x + places)


@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_inputs_without_a_batch_dimension(tmp_path, suffix, length):
    torch.manual_seed(0)
    model, places = Placed().eval(), torch.randn(length, 8)
    found = export(model, (torch.randn(1, length, 8), places), tmp_path / f"m.{suffix}")
    assert found.difference <= 1e-4
    if suffix == "pt2":
        x = torch.randn(7, length, 8)
        assert torch.allclose(torch.export.load(found.path).module()(x, places), model(x, places), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "example", "name", "message"),
    [
        (Branching, torch.ones(4, 6), "m.onnx", "torch.export can't follow the forward of Branching"),
        (Branching, torch.ones(4, 6), "m.pt2", "torch.export can't follow the forward of Branching"),
        (Decomposing, torch.ones(4, 6), "m.onnx", "ONNX can't express this model.*svd"),
        (Branching, torch.ones(4, 5), "m.onnx", "cannot run on inputs of"),
        (Branching, torch.ones(4, 6), "m.tflite", r"exports are \.onnx or \.pt2 files"),
        (Branching, "words", "m.onnx", "without tensors"),
        (Branching, {}, "m.onnx", "without tensors"),
    ],
)
def test_what_can_not_be_exported(tmp_path, model, example, name, message, capsys):
    with pytest.raises(PruneError, match=message):
        export(model(), example, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_masks_are_baked_first(build, data_for, tmp_path):
    model = build("mlp")
    pl.prune(model, pl.Recipe(sparsity=0.5))
    with pytest.raises(PruneError, match="still wears masks"):
        export(model, data_for("mlp")[0], tmp_path / "m.onnx")


def test_a_file_that_computes_something_else_is_not_kept(build, data_for, tmp_path, monkeypatch):
    format, write, load = exports.TARGETS[".pt2"]

    def off(data):
        run = load(data)
        return lambda tensors: [y + 0.1 for y in run(tensors)]

    monkeypatch.setitem(exports.TARGETS, ".pt2", (format, write, off))
    (tmp_path / "m.pt2").write_bytes(b"old")
    with pytest.raises(PruneError, match=r"computes something else than Sequential.*Nothing was written"):
        export(build("mlp"), data_for("mlp")[0], tmp_path / "m.pt2")
    assert (tmp_path / "m.pt2").read_bytes() == b"old"


def test_nan_is_no_equality(build, data_for, tmp_path):
    model = build("mlp")
    with torch.no_grad():
        model[2].bias.fill_(float("nan"))
    with pytest.raises(PruneError, match="differ by nan"):
        export(model, data_for("mlp")[0], tmp_path / "m.pt2")


def test_more_than_an_onnx_file_holds(build, data_for, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "_ONNX_MOST", 100)
    with pytest.raises(PruneError, match="holds 2 GB"):
        export(build("mlp"), data_for("mlp")[0], tmp_path / "m.onnx")


def test_a_damaged_file_is_noticed():
    with pytest.raises(PruneError, match="onnxruntime can't load"):
        exports._run_onnx(io.BytesIO(b"nothing").getvalue())


def test_bfloat16_for_onnx_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(PruneError, match=r"bfloat16.*\.float\(\)"):
        export(nn.Linear(2, 1).bfloat16(), torch.zeros(3, 2, dtype=torch.bfloat16), tmp_path / "small.onnx")
    assert not list(tmp_path.iterdir())
