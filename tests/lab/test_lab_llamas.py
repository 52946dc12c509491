"""What notebooks 13 to 15 and their grids are made of, on a tiny decoder."""

import copy
import json
import math
from collections import Counter

import pytest
import torch
from tiny_decoders import decoder, token_ids

import prunelab as pl
from prunelab import zoo
from prunelab.lab.lessons import lesson_13, lesson_14, lesson_15, llamas, questions
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
    text = llamas.text_for(llama)
    assert text.test.shape == (16, 256)
    assert text.calib.batches[0][0].shape == (16, 255)
    assert len(text.train) > 20
    every = llamas.windows(llamas.tokens(Words(), zoo.reference_text()), 256)
    calib = text.calib.batches[0][0]
    assert torch.equal(torch.cat([text.test[:, :-1], text.train[:, :-1], calib]), every[:, :-1]), "nothing is in two"
    assert torch.equal(text.some(3).batches[0][1], text.calib.batches[0][1][:3])


def test_orders():
    model = decoder()
    for what in ("layers", "mlps", "attentions"):
        for rule in ("influence", "random", "middle", "last"):
            assert sorted(lesson_13.order(model, what, rule, CALIB)) == [0, 1, 2, 3]
    assert lesson_13.order(model, "layers", "last") == [3, 2, 1, 0]
    assert lesson_13.order(model, "layers", "random", seed=1) != lesson_13.order(model, "layers", "random", seed=2)
    found = pl.allocation.unit_scores(pl.criteria.BlockInfluence()(model, CALIB), pl.granularity.layers(model), "sum")
    assert lesson_13.order(model, "layers", "influence", CALIB) == found["layers"].argsort(stable=True).tolist()
    run = lesson_13.order(model, "layers", "angle", CALIB, n=2)[:2]
    assert abs(run[0] - run[1]) == 1


def test_without():
    model = decoder()
    small = lesson_13.without(model, "layers", [1, 2])
    assert len(small.model.layers) == 2
    assert torch.equal(small.model.layers[1].mlp.up_proj.weight, model.model.layers[3].mlp.up_proj.weight)


@pytest.mark.parametrize(("said", "pattern"), [("2:4", pl.NM(2, 4)), ("50 %", 0.5), ("30 %", 0.3)])
def test_patterns(said, pattern):
    assert lesson_14.pattern_of(said) == pattern


@pytest.mark.parametrize("method", [None, Wanda(), SparseGPT(), lesson_14.Control(), lesson_14.Control(shuffled=True)])
@pytest.mark.parametrize("pattern", [0.5, pl.NM(2, 4)])
def test_pruned_copies(llama, method, pattern):
    pruned = lesson_14.pruned_llama(llama, method, pattern, CALIB)
    zeros = [float((w == 0).float().mean()) for w in pl.prunable(pruned).values()]
    assert zeros == pytest.approx([0.5] * len(zeros), abs=0.01)
    assert all(bool((w != 0).all()) for w in pl.prunable(llama.model).values()), "the Llama itself stays whole"


def test_owls_shares_in_other_orders():
    """The same shares, block by block, given to others."""
    model = decoder()
    found = {order: lesson_14.owl_shares(model, CALIB, 0.5, order) for order in lesson_14.ORDERS}
    along = {order: [s[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(4)] for order, s in found.items()}
    own = along["OWL"]
    assert all(shares.keys() == found["OWL"].keys() for shares in found.values())
    assert along["OWL reversed"] == own[::-1] != own
    assert along["OWL sorted"] == sorted(own, reverse=True)
    assert all(sorted(shares) == sorted(own) for shares in along.values())


def test_by_shares(capsys):
    """Page by page against the same method with equal shares, where there is such a run."""
    given = [("Wanda", "50 %", [1.0, 2.0]), ("Wanda + OWL", "50 %", [1.5, 2.3]), ("Wanda", "2:4", [0.0, 0.0])]
    runs = [{"method": m, "pattern": p, "losses": x, "perplexity": 9.0} for m, p, x in given]
    apart = lesson_14.by_shares([*runs, {"method": "dense", "pattern": "0 %"}], ("50 %",))
    assert list(apart) == [("Wanda + OWL", "50 %")]
    assert float(apart["Wanda + OWL", "50 %"].mean) == pytest.approx(0.4)
    assert "Wanda + OWL | ≈ 9.00 | ≈ 0.400 [-0.871, 1.67]" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["blocks", "neurons", "heads", "width"])
def test_ways_at_equal_parameters(way, monkeypatch):
    """As many parameters leave as two blocks have, as far as whole units let them."""
    monkeypatch.setattr(lesson_15, "PACK", 1)
    model = decoder()
    groups = lesson_15.groups_of(model, way)
    small = lesson_15.cut(model, way, 1, pl.criteria.magnitude(model), "layer")
    count, less = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    unit = count / model.config.hidden_size if way == "width" else 4 * count / sum(g.units for g in groups)
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    assert abs(count - less - block) <= unit
    assert bool(torch.isfinite(small(token_ids(1, 8)).logits).all())


def test_loud_neurons_stay_or_go():
    model = decoder()
    loud, groups = lesson_15.loudness(model, CALIB), lesson_15.groups_of(model, "neurons")
    scores = pl.criteria.magnitude(model)
    for scope, share, kept in (("layer, 8 % stay", 0.5, 4), ("layer, 8 % go", 0.5, 0), ("8 % alone", 0.5, 0)):
        keep = lesson_15.keep_of(groups, scores, share, scope, loud)
        for name, mask in keep.items():
            top = loud[f"{name}.down_proj.weight"][0].topk(4).indices
            assert int(mask[top].sum()) == kept
            assert int((~mask).sum()) == (4 if scope == "8 % alone" else len(mask) // 2)


def test_a_narrower_norm_gives_as_much():
    """With channels gone that were silent, the scaled model computes what the whole one does."""
    model = decoder()
    groups = lesson_15.groups_of(model, "width")
    keep = {g.name: torch.arange(g.units) >= g.units // 4 for g in groups}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("embed_tokens.weight", "down_proj.weight", "o_proj.weight")):
                (p.T if name.startswith("model.embed") or name.startswith("lm") else p)[: groups[0].units // 4] = 0
    small = lesson_15.smaller(model, groups, keep)
    ids = token_ids(2, 8)
    assert torch.allclose(small(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-4)


def test_the_student_comes_nearer():
    teacher, ids = decoder(), token_ids(16, 9)
    student = lesson_14.by_magnitude(copy.deepcopy(teacher), 0.5)
    heard = teacher.model(ids).last_hidden_state.detach()
    losses = lesson_15.distil(student, teacher.lm_head, ids.repeat(4, 1), heard.repeat(4, 1, 1))
    assert len(losses) == 64
    assert sum(losses[-16:]) < sum(losses[:16])
    same = lesson_15.distil(copy.deepcopy(teacher), teacher.lm_head, ids[:2], heard[:2])
    assert same == pytest.approx([0, 0], abs=1e-5), "the whole one has nothing to learn from itself"


def test_questions():
    """At least 150 a kind, four different options each; towns and verb forms are right once, and wrong three times."""
    asked = questions.questions()
    assert len(asked) == len({(q.text, q.options[0]) for q in asked})
    for kind in ("facts", "arithmetic", "grammar"):
        mine = [q for q in asked if q.kind == kind]
        assert len(mine) >= 150
        assert {len(set(q.options)) for q in mine} == {4}
    for part in ("capital", "sister"):
        given = Counter(option for q in asked if part in q.text for option in q.options)
        assert set(given.values()) == {4}
    for q in asked:
        if q.kind == "arithmetic":
            assert eval(q.text.removesuffix("=")) == int(q.options[0])
            assert {len(option) for option in q.options} == {2}


def test_answers_are_those_of_the_plain_way():
    """Each option alone, all of it through the model: the same likelihoods."""
    model, asked = decoder(), [q for q in questions.questions() if "Buenos Aires" in q.options][:2]
    found = questions.likelihoods(model, Words(), {(q.text, option) for q in asked for option in q.options})
    for (text, option), value in found.items():
        first, last = (Words().encode(part, add_special_tokens=False, verbose=False) for part in (text, option))
        ids = torch.tensor([first + last])
        said = model(ids[:, :-1]).logits[0].detach().log_softmax(-1)[-len(last) :]
        assert value == pytest.approx(float(said.gather(1, torch.tensor(last)[:, None]).sum()), abs=1e-4)


def test_right_is_the_likeliest(monkeypatch):
    asked = [questions.Question("facts", "a b", ("c", "d")), questions.Question("grammar", "e", ("f", "g"))]
    said = {("a b", "c"): -1, ("a b", "d"): -2, ("e", "f"): -3, ("e", "g"): -3}
    said |= {("blind", option): -len(said) - i for i, option in enumerate("dcgf")}
    monkeypatch.setattr(questions, "likelihoods", lambda model, tokenizer, pairs: {pair: said[pair] for pair in pairs})
    assert questions.answered(None, None, asked) == {"facts": "1", "grammar": "0"}, "a tie is not right"
    assert questions.answered(None, None, asked, "blind") == {"facts": "0", "grammar": "0"}


def test_streams():
    model, ids = decoder(), token_ids(2, 8)
    found = llamas.streams(model, ids)
    assert [tuple(x.shape) for x in found] == [(2, 8, found[0].shape[-1])] * 5
    assert torch.allclose(model.lm_head(model.model.norm(found[-1])), model(ids).logits, atol=1e-5)


def test_without_a_run_is_the_model_without_it():
    model, ids = decoder(), token_ids(2, 8)
    found = lesson_13.without_run(model, llamas.streams(model, ids[:, :-1]), ids, 1, 2)
    assert found["out"] == [1, 2]
    small = lesson_13.without(model, "layers", [1, 2])
    assert found["perplexity"] == pytest.approx(pl.measurement.perplexity(small, ids).value, rel=1e-4)


def test_drawings():
    """Each draws on the axes that it is given."""
    dots = {"a": ([0.1, 0.2], [20.0, 30.0]), "b": ([0.3], [40.0])}
    for paint, shape in (
        (lambda ax: lesson_13.damage(ax, dots, {"low": (0.1, 20.0)}, 17.0), {}),
        (lambda axes: lesson_15.judges(axes, lesson_15.stored()["whole", "", "", 0, False]), {"ncols": 2}),
        (lambda ax: llamas.said(ax, "2 out", {"perplexity": 30.0, "text": "It costs $5 and $6. " * 60}), {}),
        (lambda ax: llamas.said(ax, "all out", {"perplexity": 3e5, "text": ""}), {}),
    ):
        html, png = figure.drawing(paint, "A drawing of two lessons.", **shape)
        assert "<svg" in html
        assert png[:4] == b"\x89PNG"


def made_by(grid):
    points, run = grid()
    return [point | run(point) for point in points]


def test_the_grids_run(llama, tmp_path, monkeypatch):
    """On a tiny decoder, and with a shorter text: every point comes, with what the notebooks read of it."""
    monkeypatch.setenv("PRUNELAB_CACHE", str(tmp_path))
    big = zoo.Llama(decoder(num_hidden_layers=30), Words())
    rows = token_ids(2, 8)
    text = llamas.Text(rows, rows, CALIB)
    monkeypatch.setattr(zoo, "llama", lambda: big)
    for room in (lesson_13, lesson_14, lesson_15):
        monkeypatch.setattr(room, "text_for", lambda *_: text)
    monkeypatch.setattr(lesson_13, "heal", lambda model, text: model)
    monkeypatch.setattr(llamas, "answer", lambda llama, model: "a tree")
    points, run = lesson_13.depth_grid()
    some = {(p["what"], p["rule"]): p for p in points}.values()  # the last of each kind
    runs = [p | run(p) for p in some]
    assert all(math.isfinite(r["perplexity"]) for r in runs)
    assert [len(r["out"]) for r in runs] == [r["removed"] for r in runs]
    assert {r["what"] for r in runs if "text" in r} == {"layers", "mlps", "attentions"}
    assert len(made_by(lesson_14.weights_grid)) == 31
    monkeypatch.setattr(lesson_15, "distil", lambda *given: [given[4](8, 64), 0.5][1:])
    monkeypatch.setattr(lesson_15, "questions", lambda: questions.questions()[::50])
    monkeypatch.setattr(lesson_15, "PACK", 1)
    shapes = made_by(lesson_15.shapes_grid)
    assert all(math.isfinite(r["perplexity"]) for r in shapes)
    assert len({r["parameters"] for r in shapes if r["way"] == "blocks"}) == 3
    assert [r["course"][0][0] for r in shapes if r["steps"]] == [8, 8, 8]
    assert {len(lesson_15.verdicts(shapes[0], r)) for r in shapes if "answers" in r} == {5}
    assert lesson_15.verdicts(shapes[0], shapes[0]) == ["cannot tell"] * 5
    json.dumps([runs, shapes])
