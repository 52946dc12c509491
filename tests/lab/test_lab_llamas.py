"""What notebook 13 and its grids are made of, on a tiny decoder."""

import json
import math

import pytest
import torch
from tiny_decoders import decoder, token_ids

import prunelab as pl
from prunelab import zoo
from prunelab.lab.lessons import lesson_13
from prunelab.lab.show import figure
from prunelab.language import next_token_loss, next_tokens
from prunelab.reconstruction import SparseGPT, Wanda

CALIB = pl.Calibration((next_tokens(token_ids(4)),), next_token_loss)


class Words:
    """A tokenizer in small: a word is its length."""

    def encode(self, text, add_special_tokens, verbose):
        return [min(len(word), 63) for word in text.split()]

    def decode(self, ids, skip_special_tokens):
        return " ".join("a" * int(i) for i in ids)

    def apply_chat_template(self, said, add_generation_prompt, tokenize):
        return said[0]["content"]


@pytest.fixture
def llama():
    return zoo.Llama(decoder(), Words())


def test_the_text_in_three_pieces(llama):
    text = lesson_13.text_for(llama)
    assert text.test.shape == (16, 256)
    assert text.calib.batches[0][0].shape == (16, 255)
    assert len(text.train) > 20
    every = lesson_13.windows(lesson_13.tokens(Words(), zoo.reference_text()), 256)
    calib = text.calib.batches[0][0]
    assert torch.equal(torch.cat([text.test[:, :-1], text.train[:, :-1], calib]), every[:, :-1]), "nothing is in two"
    assert torch.equal(text.some(3).batches[0][1], text.calib.batches[0][1][:3])


def test_orders():
    model = decoder()
    for what in ("layers", "mlps", "attentions"):
        for rule in ("influence", "block influence", "random", "last"):
            assert sorted(lesson_13.order(model, what, rule, CALIB)) == [0, 1, 2, 3]
    assert lesson_13.order(model, "layers", "last") == [2, 1, 0, 3]
    assert lesson_13.order(model, "layers", "random", seed=1) != lesson_13.order(model, "layers", "random", seed=2)
    found = pl.allocation.unit_scores(pl.criteria.BlockInfluence()(model, CALIB), pl.granularity.layers(model), "sum")
    assert lesson_13.order(model, "layers", "influence", CALIB) == found["layers"].argsort(stable=True).tolist()
    assert lesson_13.order(model, "mlps", "block influence", CALIB) == lesson_13.order(
        model, "layers", "influence", CALIB
    )
    run = lesson_13.order(model, "layers", "run", CALIB, n=2)[:2]
    assert abs(run[0] - run[1]) == 1


def test_without():
    model = decoder()
    small = lesson_13.without(model, "layers", [1, 2])
    assert len(small.model.layers) == 2
    assert torch.equal(small.model.layers[1].mlp.up_proj.weight, model.model.layers[3].mlp.up_proj.weight)


@pytest.mark.parametrize(("said", "pattern"), [("2:4", pl.NM(2, 4)), ("50 %", 0.5), ("30 %", 0.3)])
def test_patterns(said, pattern):
    assert lesson_13.pattern_of(said) == pattern


@pytest.mark.parametrize("method", [None, Wanda(), SparseGPT()])
@pytest.mark.parametrize("pattern", [0.5, pl.NM(2, 4)])
def test_pruned_copies(llama, method, pattern):
    pruned = lesson_13.pruned_llama(llama, method, pattern, CALIB)
    zeros = [float((w == 0).float().mean()) for w in pl.prunable(pruned).values()]
    assert zeros == pytest.approx([0.5] * len(zeros), abs=0.01)
    assert all(bool((w != 0).all()) for w in pl.prunable(llama.model).values()), "the Llama itself stays whole"


def test_inputs_of_a_layer():
    model = decoder()
    layer = model.model.layers[1].mlp.down_proj
    x = lesson_13.inputs_of(model, layer, CALIB)
    assert x.shape == (4 * 11, 48)
    wanted = pl.calibration.input_norms(model, CALIB)["model.layers.1.mlp.down_proj.weight"]
    assert torch.allclose(x.norm(dim=0), wanted, rtol=1e-4)
    assert not layer._forward_pre_hooks


RUNS = [
    {"what": "mlps", "rule": "random", "seed": s, "removed": k, "perplexity": p}
    for s, k, p in ((0, 1, 2.0), (1, 1, 8.0), (0, 3, 9.0))
] + [
    {"what": "mlps", "rule": "influence", "seed": 0, "removed": 0, "perplexity": 1.0},
    {"what": "layers", "rule": "random", "seed": 0, "removed": 1, "perplexity": 1.0},
]


def test_curves_and_their_rows():
    found = lesson_13.curves(RUNS, ("mlps",), ("random",))
    assert found == {"mlps": {"random": {1: [2.0, 8.0], 3: [9.0]}}}
    assert lesson_13.rows(found) == [
        ["mlps", "random", "1", pytest.approx(4.0)],
        ["mlps", "random", "3", pytest.approx(9)],
    ]
    assert lesson_13.middle([2, 8]) == pytest.approx(4)


def test_drawings():
    """Each draws on the axes that it is given."""
    curves = lesson_13.curves(RUNS, ("mlps", "layers"), ("random",))
    runs = [{"method": m, "pattern": p, "perplexity": 9.0} for m in ("a", "b") for p in ("50 %", "2:4")]
    for paint, shape in (
        (lambda axes: lesson_13.depth(axes, curves, 1.0), {"ncols": 2}),
        (lambda ax: lesson_13.by_pattern(ax, runs, 3.0), {}),
        (lambda ax: lesson_13.influence(ax, [0.5, 0.1], [1]), {}),
        (lambda ax: lesson_13.said(ax, "2 out", {"perplexity": 30.0, "text": "It costs $5 and $6. " * 60}), {}),
        (lambda ax: lesson_13.said(ax, "all out", {"perplexity": 3e5, "text": ""}), {}),
    ):
        html, png = figure.drawing(paint, "A drawing of notebook 08.", **shape)
        assert "<svg" in html
        assert png[:4] == b"\x89PNG"


def test_a_conversation(llama, capsys):
    answer = lesson_13.answer(llama, count=3)
    assert len(answer.split()) <= 3
    lesson_13.conversation({"whole": answer})
    assert capsys.readouterr().out.startswith("the question: Why does a gardener prune a tree?\nwhole: ")


def made_by(grid):
    points, run = grid()
    return [point | run(point) for point in points]


def test_the_grids_run(llama, tmp_path, monkeypatch):
    """On the tiny decoder, and with a shorter text: every point comes, with what the notebook reads of it."""
    monkeypatch.setenv("PRUNELAB_CACHE", str(tmp_path))
    big = zoo.Llama(decoder(num_hidden_layers=9), Words())
    rows = token_ids(2, 8)
    text = lesson_13.Text(rows, rows, CALIB)
    monkeypatch.setattr(lesson_13.zoo, "llama", lambda: big)
    monkeypatch.setattr(lesson_13, "text_for", lambda _: text)
    monkeypatch.setattr(lesson_13, "answer", lambda llama, model: "a tree")
    runs = made_by(lesson_13.depth_grid)
    assert all(math.isfinite(r["perplexity"]) and r["low"] <= r["perplexity"] <= r["high"] for r in runs)
    assert [len(r["out"]) for r in runs] == [r["removed"] for r in runs]
    assert {r["what"] for r in runs if "text" in r} == {"layers", "mlps", "attentions"}
    assert len(made_by(lesson_13.weights_grid)) == 1 + 3 * len(lesson_13.SPARSITIES)
    json.dumps(runs)
