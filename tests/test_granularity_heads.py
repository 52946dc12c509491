"""Attention heads of every known architecture: what belongs to one, masked against shrunk, saved and rebuilt."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from torch import nn

import prunelab as pl
from prunelab import PruneError, granularity, zoo
from prunelab.core import Group, Member
from prunelab.surgery import difference, load_plan, save_plan, shrink

transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
SMALL = {"num_hidden_layers": 3, "intermediate_size": 20, "vocab_size": 50, "max_position_embeddings": 64}
BERT = {"hidden_size": 32, "num_attention_heads": 4, **SMALL}
GROUPED = {"hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4, **SMALL}
DISTIL = {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 20, "vocab_size": 50, "max_position_embeddings": 64}
END = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
PICTURES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(2))

BUILD = {
    "our ViT": (lambda: zoo.vit(channels=3, pixels=16, width=32, heads=4, depth=3, hidden=20), PICTURES),
    "torchvision's ViT": (lambda: torchvision.models.VisionTransformer(16, 4, 3, 4, 32, 40, num_classes=5), PICTURES),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 40, batch_first=True), 2), TOKENS),
    "Transformer": (
        lambda: nn.Transformer(32, 4, 1, 2, 40, batch_first=True), (TOKENS, TOKENS.flip(0))),
    "BERT": (lambda: transformers.BertModel(transformers.BertConfig(**BERT)), {"input_ids": IDS}),
    "RoBERTa": (lambda: transformers.RobertaModel(transformers.RobertaConfig(**BERT)), {"input_ids": IDS}),
    "DistilBERT": (lambda: transformers.DistilBertModel(transformers.DistilBertConfig(**DISTIL)), {"input_ids": IDS}),
    "Llama": (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED, **END)), {"input_ids": IDS}),
    "Llama, a head a group": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**BERT, **END)), {"input_ids": IDS}),
    "Qwen3": (
        lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(head_dim=8, **GROUPED, **END)),
        {"input_ids": IDS}),
}  # fmt: skip
WHOLE = {
    "vit_b_16": (torchvision.models.vit_b_16, torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(4)))
}


def made(name):
    """The model with weights that hide nothing, in eval mode, and an example."""
    build, example = (BUILD | WHOLE)[name]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = build().eval()
        with torch.no_grad():  # biases and norms start at 0 and 1, torchvision's last layer at 0
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model, example


def uneven(groups):
    """Half of the heads of each layer stay, one less in every second: not the first ones."""
    dice = torch.Generator().manual_seed(3)
    counts = [max(1, g.units // 2 - i % 2) for i, g in enumerate(groups)]
    return {g.name: torch.randperm(g.units, generator=dice) < n for g, n in zip(groups, counts, strict=True)}


def even(groups):
    return {g.name: torch.arange(g.units) % 2 == 1 for g in groups}


def first_output(model, example):
    with torch.no_grad():
        out = (
            model(**example)
            if isinstance(example, dict)
            else model(*example)
            if isinstance(example, tuple)
            else model(example)
        )
    return out if isinstance(out, torch.Tensor) else out[0]


@pytest.mark.parametrize("name", BUILD)
def test_masked_is_shrunk(name, snapshot):
    model, example = made(name)
    before = snapshot(model)
    groups = granularity.heads(model, example)
    assert snapshot(model) == before
    assert all(g.exact for g in groups)
    assert groups == granularity.heads(model), "the structure alone says the same"
    keep = uneven(groups)
    assert difference(model, groups, keep, example) < 1e-5
    small = shrink(model, groups, keep)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    gap = (first_output(small, example) - first_output(model, example)).abs().max()
    assert gap > 1e-2, "the heads that went did something"
    again = {g.name: g.units for g in granularity.heads(small)}  # what is left can be pruned further
    assert all(again[name] == int(k.sum()) for name, k in keep.items() if k.sum() > 1)


@pytest.mark.parametrize("name", BUILD)
def test_a_head_alone_is_a_head(name):
    """With one head left in a layer, what the layer adds is that head's own share: the masks are where the head is."""
    model, example = made(name)
    groups = granularity.heads(model)
    keep = {g.name: torch.ones(g.units, dtype=torch.bool) for g in groups}
    keep[groups[0].name] = torch.arange(groups[0].units) == 2
    assert difference(model, groups, keep, example) < 1e-5


@pytest.mark.parametrize("name", BUILD)
def test_the_small_model_trains(name):
    model, example = made(name)
    groups = granularity.heads(model)
    small = shrink(model, groups, uneven(groups)).train()
    out = (
        small(**example)
        if isinstance(example, dict)
        else small(*example)
        if isinstance(example, tuple)
        else small(example)
    )
    (out if isinstance(out, torch.Tensor) else out[0]).square().mean().backward()
    for tensor in {m.tensor for g in groups for m in g.members}:
        if not re.search(r"\.k\w*\.bias$", tensor):  # it adds the same to all logits of a query
            assert small.get_parameter(tensor).grad.abs().sum() > 0


@pytest.mark.parametrize("name", [*BUILD, *(pytest.param(name, marks=pytest.mark.slow) for name in WHOLE)])
def test_a_plan_rebuilds_it(name, tmp_path):
    model, example = made(name)
    groups = granularity.heads(model)
    keep = uneven(groups)
    assert difference(model, groups, keep, example) < 1e-4
    small = shrink(model, groups, keep)
    again = load_plan(save_plan(tmp_path, groups, keep, small), made(name)[0])
    assert torch.equal(first_output(again, example), first_output(small, example))


# What is declared


def test_a_llama_declares_what_is_left_and_loads_where_it_is_even(tmp_path):
    model, example = made("Llama")
    groups = granularity.heads(model)
    small = shrink(model, groups, even(groups))
    config = small.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 4)
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (8, 4), "the original's is its own"
    assert {layer.self_attn.num_key_value_groups for layer in small.model.layers} == {2}
    small.save_pretrained(tmp_path)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(first_output(loaded, example), first_output(small, example))


def test_uneven_layers_keep_the_config_and_are_not_saved_as_if_it_said_them(tmp_path):
    model, _ = made("Llama")
    groups = granularity.heads(model)
    small = shrink(model, groups, uneven(groups))
    assert (small.config.num_attention_heads, small.config.num_key_value_heads) == (8, 4)
    with pytest.raises(PruneError, match=r"cannot say what was cut.*pl\.save_plan.*pl\.load_plan"):
        small.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_count_that_the_config_refuses_is_not_written_into_it(tmp_path):
    model, _ = made("Llama")
    groups = granularity.heads(model)
    small = shrink(model, groups, {g.name: torch.arange(4) != 1 for g in groups})  # 6 heads do not divide a width of 32
    assert small.config.num_attention_heads == 8
    with pytest.raises(PruneError, match="cannot say what was cut"):
        small.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (
            "BERT",
            lambda m: [(x.attention.self.num_attention_heads, x.attention.self.all_head_size) for x in m.encoder.layer],
        ),
        (
            "RoBERTa",
            lambda m: [(x.attention.self.num_attention_heads, x.attention.self.all_head_size) for x in m.encoder.layer],
        ),
        ("DistilBERT", lambda m: [(x.attention.n_heads, x.attention.n_heads * 8) for x in m.transformer.layer]),
    ],
)
def test_encoders_declare_what_is_left(name, found):
    model, _ = made(name)
    groups = granularity.heads(model)
    keep = uneven(groups)
    assert found(shrink(model, groups, keep)) == [(int(k.sum()), 8 * int(k.sum())) for k in keep.values()]


@pytest.mark.parametrize("name", ["Llama", "Llama, a head a group", "Qwen3"])
@pytest.mark.parametrize("choice", [even, uneven])
def test_generation_is_the_same_with_and_without_a_cache(name, choice):
    model, _ = made(name)
    groups = granularity.heads(model)
    small = shrink(model, groups, choice(groups))
    with pl.masked(model, pl.expand(model, groups, choice(groups))):
        texts = [
            m.generate(IDS, max_new_tokens=12, do_sample=False, use_cache=cached)
            for m in (small, model)
            for cached in (True, False)
        ]
    assert texts[0].shape == (2, 19)
    assert all(torch.equal(text, texts[0]) for text in texts), "cached or not, shrunk or masked"


# What belongs to a head


def test_grouped_queries_leave_with_their_key_value_head():
    model, _ = made("Llama")
    first = granularity.heads(model)[0]
    place = "model.layers.0.self_attn"
    assert first == Group(
        place,
        4,
        (
            Member(f"{place}.q_proj.weight", 0, 8),
            Member(f"{place}.k_proj.weight", 0, 4),
            Member(f"{place}.v_proj.weight", 0, 4),
            Member(f"{place}.o_proj.weight", 1, 8),
        ),
    )


def test_the_thirds_of_torch_s_packed_projection():
    model = nn.Sequential(nn.MultiheadAttention(6, 3))
    (group,) = granularity.heads(model)
    own = [torch.arange(start, start + 6).view(3, 2) for start in (0, 6, 12)]  # queries, keys, values
    rows = [Member(f"0.in_proj_{what}", 0, index=index) for index in own for what in ("weight", "bias")]
    assert group == Group("0", 3, (*rows, Member("0.out_proj.weight", 1, 2)))
    assert granularity.heads(nn.MultiheadAttention(6, 3))[0].name == "attention", "the model itself"


def test_magnitude_of_a_head_is_the_sum_of_all_that_is_its_own(build):
    model = build("vit")
    (group, *_) = granularity.heads(model)
    scores = pl.criteria.magnitude(model)
    a = model.blocks[0].attention.requires_grad_(False)
    by_hand = [
        float(
            sum(p.weight[2 * h : 2 * h + 2].abs().sum() for p in (a.q_proj, a.k_proj, a.v_proj))
            + a.o_proj.weight[:, 2 * h : 2 * h + 2].abs().sum()
        )
        for h in range(4)
    ]
    found = pl.allocation.unit_scores(scores, [group], "sum")[group.name]
    assert found.tolist() == pytest.approx(by_hand, rel=1e-5)
    kept = pl.allocate(scores, [group], 0.5, "layer")[group.name]
    assert kept.tolist() == [x in sorted(by_hand)[2:] for x in by_hand]


# Bad input


def test_all_heads_of_a_layer(build):
    model = build("vit")
    groups = granularity.heads(model)
    scores = pl.criteria.magnitude(model)
    with pytest.warns(UserWarning, match="8 units were to go, but only 6 can: every group keeps at least 1"):
        keep = pl.allocate(scores, groups, 0.99)
    assert pl.report(groups, keep).floored == tuple(g.name for g in groups)
    none = {**keep, groups[0].name: torch.zeros(4, dtype=torch.bool)}
    with pytest.raises(PruneError, match=r"keep has nothing left of blocks\.0\.attention \(4 units\)"):
        shrink(model, groups, none)


def test_a_model_without_attention(build):
    with pytest.raises(PruneError, match=r"Sequential has no attention layer known here: .*MultiheadAttention"):
        granularity.heads(build("cnn"))


def test_a_single_head():
    with pytest.raises(PruneError, match="has one head a layer, and the last head of a layer never leaves"):
        granularity.heads(zoo.vit(heads=1))


def test_query_heads_that_do_not_divide():
    config = transformers.LlamaConfig(**{**GROUPED, "num_key_value_heads": 3})
    with pytest.raises(
        PruneError, match=r"layers\.0\.self_attn has 8 query heads for 3 key heads and 3 value heads: .*config"
    ):
        granularity.heads(transformers.LlamaForCausalLM(config))


def test_a_projection_that_is_no_whole_number_of_heads(build):
    model = build("vit")
    model.blocks[1].attention.head_dim = 3
    with pytest.raises(PruneError, match=r"blocks\.1\.attention: its 8 query rows are no whole number of heads of 3"):
        granularity.heads(model)


def test_less_than_a_head(build):
    model = build("vit")
    half = Group("x", 8, tuple(Member(f"blocks.0.attention.{n}_proj.weight", d) for n, d in (("q", 0), ("o", 1))))
    with pytest.raises(PruneError, match=r"blocks\.0\.attention: its 7 query rows are no whole number"):
        shrink(model, [half], {"x": torch.arange(8) != 5})


class Biased(zoo.networks.Attention):
    """Something of its own for each head, as T5's relative positions: what belongs to a head is not known here."""

    def __init__(self) -> None:
        super().__init__(8, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return super().forward(x) * self.scale.mean()


def test_an_attention_that_holds_more_is_not_guessed_at():
    with pytest.raises(PruneError, match="no attention layer known here"):
        granularity.heads(nn.Sequential(Biased()))


class Fixed(zoo.networks.Attention):
    """A number of heads written into the forward: the projections alone look like ours."""

    def _heads(self, x):
        return x.unflatten(-1, (4, self.head_dim)).transpose(1, 2)


def test_what_fails_without_some_heads_is_left_out_when_there_is_an_example():
    model = nn.Sequential(zoo.networks.Attention(8, 4), Fixed(8, 4))
    with pytest.warns(UserWarning, match="left out: 1 was tried, and the model fails without some") as said:
        groups = granularity.heads(model, torch.randn(2, 5, 8))
    assert ([g.name for g in groups], list(groups.stays), len(said)) == (["0"], ["1"], 1)
    assert [g.name for g in granularity.heads(model)] == ["0", "1"], "without an example nothing is tried"
    with pytest.raises(
        PruneError, match=r"no attention head that could be removed\. What stays, and why: 0: was tried, and the model"
    ):
        granularity.heads(nn.Sequential(Fixed(8, 4)), torch.randn(2, 5, 8))


def test_a_trace_leaves_the_inside_of_heads_alone(build, data_for):
    """Channels of queries and keys are tied, so a trace takes them for neurons; removing some would cut heads apart."""
    assert [g.name for g in granularity.neurons(build("vit"), data_for("vit")[0])] == ["blocks.0.fc1", "blocks.1.fc1"]
