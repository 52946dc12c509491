"""Whole MLPs, attentions and layers, and GLU neurons: found by structure, removed for good, generation unchanged."""

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
from tiny_decoders import KINDS, decoder, token_ids
from tiny_families import build, example
from torch import nn

import prunelab as pl
from prunelab import decoders, granularity, surgery, units
from prunelab.core import Group, Part
from prunelab.language import continued
from prunelab.running import apart, outputs
from prunelab.surgery.removal import renamed

WHATS = ("mlps", "attentions", "layers", "neurons")


def half(model, what):
    """Groups, and a keep that drops the first and the third, so that everything left moves."""
    groups = getattr(granularity, what)(model)
    if what == "neurons":
        return groups, pl.allocate(pl.criteria.magnitude(model), groups, 0.5, "layer")
    return groups, {what: torch.tensor([False, True, False, True])}


CASES = [(kind, what) for kind in KINDS for what in WHATS if (kind, what) != ("qwen2_sliding", "attentions")]
cases = pytest.mark.parametrize(("kind", "what"), CASES)


@cases
def test_masked_and_removed_are_the_same(kind, what):
    model = decoder(kind)
    assert surgery.difference(model, *half(model, what), token_ids()) < 1e-5
    small = pl.shrink(model, *half(model, what))
    before, after = (outputs(m, token_ids()) for m in (model, small))
    assert apart(before, after) > 1e-2, "nothing was removed"


@cases
def test_generation_with_and_without_a_cache(kind, what):
    small = pl.shrink(model := decoder(kind), *half(model, what))
    ids = token_ids(1)
    assert torch.equal(continued(small, ids, 16), continued(small, ids, 16, cache=False))


@cases
def test_parameters_really_leave(kind, what):
    model = decoder(kind)
    small = pl.shrink(model, *half(model, what))
    inside = {n: p.numel() for n, p in model.model.layers.named_parameters()}
    kept = sum(p.numel() for p in small.model.layers.parameters())
    share = {"layers": 1, "mlps": "mlp", "attentions": "self_attn", "neurons": "mlp"}[what]
    counted = sum(n for name, n in inside.items() if share == 1 or share in name)
    norms = 2 * 32 if what in ("mlps", "attentions") else 0
    assert sum(inside.values()) - kept == counted // 2 + norms


@cases
def test_a_plan_rebuilds_it(kind, what, tmp_path):
    small = pl.shrink(model := decoder(kind), *half(model, what))
    pl.save_plan(tmp_path, *half(model, what), small)
    again = pl.load_plan(tmp_path, decoder(kind))
    assert torch.equal(again(token_ids()).logits, small(token_ids()).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["layers", "neurons"])
def test_even_shapes_load_by_from_pretrained(kind, what, tmp_path):
    from transformers import AutoModelForCausalLM

    small = pl.shrink(model := decoder(kind), *half(model, what))
    small.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(token_ids()).logits, small(token_ids()).logits)
    sizes = small.config.num_hidden_layers, small.config.intermediate_size
    assert sizes == ((2, 48) if what == "layers" else (4, 24))


def test_uneven_widths_keep_the_configuration():
    model = decoder()
    groups = granularity.neurons(model)
    keep = {g.name: torch.arange(g.units) < 24 + 8 * i for i, g in enumerate(groups)}
    small = pl.shrink(model, groups, keep)
    assert small.config.intermediate_size == 48
    assert [b.module.mlp.intermediate_size for b in decoders.blocks(small)] == [24, 32, 40, 48]


def test_layers_and_their_lists_in_the_configuration():
    model = decoder("qwen2_sliding")
    assert model.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    keep = {"layers": torch.tensor([False, True, True, False])}
    small = pl.shrink(model, granularity.layers(model), keep)
    assert small.config.layer_types == ["full_attention", "sliding_attention"]
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1]
    keep = {"layers": torch.tensor([True, True, False, False])}
    assert not pl.shrink(model, granularity.layers(model), keep).model.has_sliding_layers
    assert model.config.num_hidden_layers == 4, "the old model is as it was"


def test_the_old_model_is_untouched(snapshot):
    model = decoder()
    before, config = snapshot(model), copy.deepcopy(model.config.to_dict())
    for what in WHATS:
        pl.shrink(model, *half(model, what))
    assert snapshot(model) == before
    assert model.config.to_dict() == config


def test_all_kinds_at_once(tmp_path):
    """Neurons, an attention, an MLP and a layer leave in one call, and the plan says so."""
    model = decoder()
    groups = [f(model)[0] for f in (granularity.layers, granularity.mlps, granularity.attentions)]
    keep = {
        "layers": torch.tensor([True, False, True, True]),
        "mlps": torch.tensor([True, False, True, False]),
        "attentions": torch.tensor([False, True, True, True]),
    }
    neurons, narrow = half(model, "neurons")
    small = pl.shrink(model, [*groups, *neurons], keep | narrow)
    assert len(small.model.layers) == 3
    assert surgery.difference(model, [*groups, *neurons], keep | narrow, token_ids()) < 1e-5
    assert torch.equal(continued(small, token_ids(1), 8), continued(small, token_ids(1), 8, cache=False))
    pl.save_plan(tmp_path, [*groups, *neurons], keep | narrow, small)
    again = pl.load_plan(tmp_path, decoder())
    assert torch.equal(again(token_ids()).logits, small(token_ids()).logits)


def test_twice_smaller():
    model = decoder()
    once = pl.shrink(model, *half(model, "mlps"))
    (group,) = granularity.mlps(once)
    assert [p.path for p in group.parts if p.path.endswith("mlp")] == ["model.layers.1.mlp", "model.layers.3.mlp"]
    twice = pl.shrink(once, [group], {"mlps": torch.tensor([True, False])})
    assert [b.mlp == () for b in decoders.blocks(twice)] == [True, False, True, True]
    with pytest.raises(pl.PruneError, match="1 of its mlps left"):
        granularity.mlps(twice)


def test_a_shrunk_decoder_trains():
    model = pl.shrink(model := decoder(), *half(model, "mlps"))
    rows = pl.language.next_tokens(token_ids(8))
    before = pl.language.next_token_loss(model(rows[0]).logits, rows[1])
    pl.recovery.train(model, rows, epochs=3, lr=1e-3, batch_size=4, loss=pl.language.next_token_loss, progress=False)
    assert pl.language.next_token_loss(model(rows[0]).logits, rows[1]) < before


def test_scores_of_whole_modules():
    """A unit of a group of modules is worth what its weights are worth together, over the group's average."""
    model = decoder()
    (group,) = granularity.mlps(model)
    scores = pl.criteria.magnitude(model)
    sums = torch.tensor([sum(float(s.sum()) for n, s in scores.items() if f"layers.{i}.mlp" in n) for i in range(4)])
    found = pl.allocation.unit_scores(scores, [group])["mlps"]
    assert torch.allclose(found, (sums / sums.mean()).double(), rtol=1e-5)
    keep = pl.allocate(scores, [group], 0.5)["mlps"]
    assert sorted(sums[keep].tolist()) == sorted(sums.tolist())[2:]
    mean = pl.allocation.unit_scores(scores, [group], "mean")["mlps"]
    assert torch.allclose(mean, (sums / (3 * 32 * 48)).double(), rtol=1e-5)


def test_the_last_one_never_leaves():
    model = decoder()
    groups = granularity.layers(model)
    keep = pl.allocate(pl.criteria.magnitude(model), groups, 0.7)
    assert int(keep["layers"].sum()) == 1
    with pytest.raises(pl.PruneError, match="nothing left of layers"):
        pl.shrink(model, groups, {"layers": torch.zeros(4, dtype=torch.bool)})


def test_expand_and_contract():
    model = decoder()
    groups = granularity.layers(model)
    keep = {"layers": torch.tensor([True, False, True, True])}
    masks = pl.expand(model, groups, keep)
    assert {n.split(".")[2] for n in masks} == {"1"}
    assert not any(m.any() for m in masks.values())
    assert torch.equal(units.contract(groups, masks)["layers"], keep["layers"])
    report = pl.report(groups, keep)
    assert (report.total.kept, report.total.units) == (3, 4)


def test_masks_hold_while_training():
    model = decoder()
    groups, keep = half(model, "mlps")
    pl.apply(model, pl.expand(model, groups, keep))
    rows = pl.language.next_tokens(token_ids(8))
    pl.recovery.train(model, rows, epochs=1, lr=1e-3, batch_size=4, loss=pl.language.next_token_loss, progress=False)
    assert not model.model.layers[0].mlp.down_proj.weight.any()
    small = pl.shrink(model, groups, keep)
    assert torch.allclose(small(token_ids()).logits, model(token_ids()).logits, atol=1e-5)


@pytest.mark.parametrize("what", ["mlps", "attentions", "layers", "glu_neurons"])
def test_not_a_decoder(build, what):
    with pytest.raises(pl.PruneError, match="has no blocks"):
        getattr(granularity, what)(build("mlp"))


def test_attentions_of_several_kinds_stay():
    model = decoder("qwen2_sliding")
    with pytest.raises(pl.PruneError, match="mixes kinds of attention"):
        pl.shrink(model, *half(model, "attentions"))
    assert model.config.num_hidden_layers == 4


@pytest.mark.parametrize("scope", ["row", pl.NM(2, 4)])
def test_scopes_of_single_weights(scope):
    model = decoder()
    with pytest.raises(pl.PruneError, match="holds structures"):
        pl.allocate(pl.criteria.magnitude(model), granularity.layers(model), None if scope != "row" else 0.5, scope)


def test_groups_of_another_model():
    groups, keep = half(decoder(), "layers")
    small = decoder(num_hidden_layers=3)
    with pytest.raises(pl.PruneError, match=r"no tensors in model\.layers\.3"):
        pl.shrink(small, groups, keep)
    with pytest.raises(pl.PruneError, match=r"no tensors in model\.layers\.3"):
        pl.expand(small, groups, keep)
    with pytest.raises(pl.PruneError, match="rounds counts of channels"):
        pl.allocate(pl.criteria.magnitude(decoder()), groups, 0.5, round_to=8)


def test_no_scores_for_a_part():
    model = decoder()
    scores = {n: s for n, s in pl.criteria.magnitude(model).items() if "layers.2." not in n}
    with pytest.raises(pl.PruneError, match=r"no scores for anything in model\.layers\.2"):
        pl.allocate(scores, granularity.layers(model), 0.5)


@pytest.mark.parametrize("what", WHATS)
def test_a_plan_of_what_was_not_removed(what, tmp_path):
    model = decoder()
    with pytest.raises(pl.PruneError, match="that shrink returned"):
        pl.save_plan(tmp_path, *half(model, what), model)
    assert not list(tmp_path.iterdir())


def test_a_damaged_plan(tmp_path):
    small = pl.shrink(model := decoder(), *half(model, "layers"))
    pl.save_plan(tmp_path, *half(model, "layers"), small)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["groups"][0]["parts"][1] == {"path": "model.layers.1", "unit": 1}
    plan["groups"][0]["parts"][1]["unit"] = "one"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(pl.PruneError, match="damaged or incomplete"):
        pl.load_plan(tmp_path, decoder())


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("model.layers.0.w", "model.layers.0.w"),
        ("model.layers.1.w", None),
        ("model.layers.2.mlp.w", "model.layers.1.mlp.w"),
        ("model.layers.4.w", "model.layers.2.w"),
        ("model.norm.w", "model.norm.w"),
        ("model.layers.10.w", "model.layers.8.w"),
    ],
)
def test_names_move_up(name, new):
    assert renamed(name, [Part("model.layers.1", 1), Part("model.layers.3", 3)]) == new


def test_lists_within_lists(tmp_path):
    """Entries of a list move up with the entry of the outer list that they are in."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(*(nn.Linear(2, 2) for _ in range(4))) for _ in range(3)))
    outer = Group("outer", 3, (), parts=tuple(Part(f"{i}", i) for i in range(3)))
    inner = Group("inner", 4, (), parts=tuple(Part(f"2.{i}", i) for i in range(4)))
    groups, keep = [outer, inner], {"outer": torch.arange(3) > 0, "inner": torch.arange(4) != 1}
    small, x = pl.shrink(nn.Sequential(model), *under("0", groups, keep)), torch.randn(3, 2)
    assert torch.equal(small(x), nn.Sequential(model[1], *(m for i, m in enumerate(model[2]) if i != 1))(x))
    folder = pl.save_plan(tmp_path, *under("0", groups, keep), small)
    assert torch.equal(pl.load_plan(folder, nn.Sequential(model))(x), small(x))


def under(path, groups, keep):
    moved = [replace(g, parts=tuple(replace(p, path=f"{path}.{p.path}") for p in g.parts)) for g in groups]
    return moved, keep


def test_any_list_of_modules():
    """No transformer, no configuration: a plain residual stack loses an entry, and another module."""

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.extra = nn.Linear(4, 4)

        def forward(self, x):
            for step in self.steps:
                x = x + step(x)
            return x + self.extra(x)

    torch.manual_seed(0)
    model, x = Stack(), torch.randn(2, 4)
    steps = Group("steps", 3, (), parts=tuple(Part(f"steps.{i}", i) for i in range(3)))
    extra = Group("extra", 2, (), parts=(Part("extra", 0), Part("steps.2", 1)))
    keep = {"steps": torch.tensor([True, False, True]), "extra": torch.tensor([False, True])}
    assert surgery.difference(model, [steps, extra], keep, x) < 1e-6
    assert len(pl.shrink(model, [steps, extra], keep).steps) == 2


def test_a_plan_of_a_list_whose_last_entry_stays(tmp_path):
    """No path tells then how long the list was: the parts do."""
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    steps = Group("steps", 2, (), parts=tuple(Part(f"0.{i}", i, of=3) for i in range(2)))
    keep, whole = {"steps": torch.tensor([False, True])}, nn.Sequential(model)
    small = pl.shrink(whole, [steps], keep)
    x = torch.randn(2, 2)
    again = pl.load_plan(pl.save_plan(tmp_path, [steps], keep, small), whole)
    assert torch.equal(again(x), small(x))
    with pytest.raises(pl.PruneError, match="0 has 3 entries, and these groups and keep leave 2 of 3"):
        pl.save_plan(tmp_path, [steps], keep, whole)


def test_neurons_of_a_model_that_wears_masks():
    """Found under their own names, so that a second cut starts from the first."""
    model = decoder()
    groups = granularity.neurons(model)
    first = pl.prune(model, pl.Recipe("magnitude", "neurons", 0.25, "layer"))
    assert granularity.neurons(model) == groups
    second = pl.prune(model, pl.Recipe("magnitude", "neurons", 0.5, "layer"))
    assert all(not second.keep[g.name][~first.keep[g.name]].any() for g in groups)


FAMILY = {
    "bart": ("encoder", "decoder"),
    "t5": ("encoder", "decoder"),
    "clip": ("text_model.encoder", "vision_model.encoder"),
}


@pytest.mark.parametrize("name", FAMILY)
def test_a_group_for_each_side(name):
    model, inputs = build(name), example(name)
    for what in ("layers", "mlps"):
        groups = getattr(granularity, what)(model, inputs)
        sides = [f"model.{side}" if name == "bart" else side for side in FAMILY[name]]
        assert [g.name for g in groups] == [f"{side}.{what}" for side in sides]
        least = 2 if (name, what) == ("t5", "layers") else 3
        assert [g.units for g in groups] == [least, least]


def test_the_table_of_t5_stays():
    model, inputs = build("t5"), example("t5")
    groups = granularity.layers(model, inputs)
    assert groups.stays.keys() == {"encoder.block.0", "decoder.block.0"}
    assert "relative positions" in groups.stays["encoder.block.0"]
    stays = granularity.attentions(model, inputs).stays
    assert stays.keys() == {f"{side}.block.0.layer.0.SelfAttention" for side in ("encoder", "decoder")}


def test_the_sides_of_an_encoder_decoder_are_counted_apart():
    model, inputs = build("bart"), example("bart")
    groups = granularity.layers(model, inputs)
    keep = {groups[0].name: torch.tensor([True, False, True]), groups[1].name: torch.tensor([False, False, True])}
    config = pl.shrink(model, groups, keep).config
    assert (config.encoder_layers, config.decoder_layers) == (2, 1)


def test_a_layer_behind_a_norm_is_not_exact():
    """A BERT layer of zeros gives zeros; without it the stream passes. Its attention and its MLP are exact."""
    model, inputs = build("bert"), example("bert")
    exact = [getattr(granularity, what)(model, inputs)[0].exact for what in ("layers", "mlps", "attentions")]
    assert exact == [False, True, True]
    parts = granularity.attentions(model, inputs)[0].parts
    assert [p.path.rpartition("layer.0.")[2] for p in parts[:2]] == ["attention.self", "attention.output.dense"]


def test_a_module_that_adds_the_stream_itself():
    """BLOOM's MLP gives x + f(norm(x)): what stands in its place hands x on."""
    (group,) = granularity.mlps(build("bloom"), example("bloom"))
    assert {p.passes for p in group.parts if p.path.endswith("mlp")} == {1}


@pytest.mark.parametrize(
    ("name", "why"), [("lora", "merge_and_unload"), ("albert", "shared by 3"), ("gemma3n", "per-layer")]
)
@pytest.mark.parametrize("what", ["layers", "mlps", "attentions"])
def test_what_cannot_leave(name, why, what):
    with pytest.raises(pl.PruneError, match=why):
        getattr(granularity, what)(build(name), example(name))


def test_without_an_example_and_dummy_inputs():
    with pytest.raises(pl.PruneError, match="give an example"):
        granularity.layers(build("torch-encoder"))


def test_what_a_configuration_cannot_say_is_not_saved_by_it(tmp_path):
    small = pl.shrink(model := decoder(), *half(model, "mlps"))
    for each in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        with pytest.raises(pl.PruneError, match="save_plan"):
            each.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    assert "save_pretrained" not in vars(pl.shrink(model, *half(model, "layers")))
    assert "save_pretrained" not in vars(model)


def test_the_width_of_a_gpt2_in_its_configuration(tmp_path):
    model, inputs = build("gpt-j"), example("gpt-j")
    groups = granularity.neurons(model, inputs)
    assert model.config.n_inner is None, "four times its width"
    small = pl.shrink(model, groups, pl.allocate(pl.criteria.magnitude(model), groups, 0.5, "layer"))
    assert small.config.n_inner == 64
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, small(**inputs).logits)


def test_influence_of_parts_where_the_names_are_others():
    """GPT-2: what each norm is given is the stream, before and after each part."""
    model, inputs, seen = build("gpt2"), example("gpt2"), {}
    for i, block in enumerate(model.transformer.h):
        for name in ("ln_1", "ln_2"):
            norm = block.get_submodule(name)
            norm.register_forward_pre_hook(lambda m, args, key=(i, name): seen.__setitem__(key, args[0]))
        block.register_forward_hook(lambda m, args, out, i=i: seen.__setitem__((i, "out"), out))
    calib = pl.Calibration(((inputs["input_ids"], inputs["input_ids"]),))
    for what, before, after in (("attentions", "ln_1", "ln_2"), ("mlps", "ln_2", "out")):
        scores = pl.criteria.BlockInfluence(what)(model, calib)
        with torch.no_grad():
            model(**inputs)
        for i in range(3):
            x, y = (seen[i, at][0] if isinstance(seen[i, at], tuple) else seen[i, at] for at in (before, after))
            wanted = 1 - nn.functional.cosine_similarity(x, y, dim=-1).mean()
            part = "attn" if what == "attentions" else "mlp"
            found = sum(float(s.sum()) for n, s in scores.items() if f"h.{i}.{part}." in n)
            assert found == pytest.approx(float(wanted), abs=1e-5)


def test_influence_of_parallel_parts_is_refused():
    """In Phi both add to one stream at once: there is none between them."""
    model, ids = build("phi"), example("phi")["input_ids"]
    with pytest.raises(pl.PruneError, match=r'more than .* between two: .*of="layers"'):
        pl.criteria.BlockInfluence("mlps")(model, pl.Calibration(((ids, ids),)))
