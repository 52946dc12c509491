"""Perplexity, and tokens per second."""

import math

import pytest
import torch
from tiny_decoders import decoder, token_ids
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.measurement import perplexity, rates


class Certain(nn.Module):
    """Gives every next token the probability it was told, and shares the rest out."""

    def __init__(self, probabilities, vocabulary=4):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 1)
        self.p = probabilities

    def forward(self, input_ids, use_cache=False):
        n, length = input_ids.shape
        p = torch.tensor(self.p[:length])[None, :, None].expand(n, -1, 4)
        rest = (1 - p) / 3
        wanted = F.one_hot((input_ids + 1) % 4, 4).bool()
        return torch.where(wanted, p, rest).log()


def test_by_hand():
    """Tokens 0 1 2 3, each next one given 1/2, 1/4, 1/8: the geometric mean of 2, 4 and 8 is 4."""
    found = perplexity(Certain([0.5, 0.25, 0.125]), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]]))
    assert found.value == pytest.approx(4, rel=1e-5)
    assert found.tokens == 6
    assert found.accuracy == pytest.approx(1 / 3)  # 1/2 is the most; 1/4 ties, and 1/8 is less than the others' 7/24
    assert found.losses == pytest.approx([math.log(4)] * 2)
    assert found.interval == pytest.approx((4, 4), rel=1e-4)
    assert repr(found) == "perplexity 4 [4, 4] (6 tokens in 2 sequences)"


def test_guessing_costs_the_vocabulary():
    assert perplexity(Certain([0.25] * 9), torch.randint(0, 4, (3, 10))).value == pytest.approx(4, rel=1e-5)


def test_the_interval_is_students():
    from scipy import stats

    found = perplexity(decoder(), token_ids(5))
    low, high = stats.t.interval(
        0.95, 4, loc=sum(found.losses) / 5, scale=stats.sem(torch.tensor(found.losses, dtype=torch.float64).numpy())
    )
    assert found.interval == pytest.approx((math.exp(low), math.exp(high)), rel=1e-6)
    assert perplexity(decoder(), token_ids(1)).interval is None


def test_as_transformers_computes_it_in_any_batches(snapshot):
    model, rows = decoder().train(), token_ids(6)
    before = snapshot(model)
    values = [perplexity(model, rows, batch_size=n).value for n in (1, 4, 6)]
    assert snapshot(model) == before
    with torch.no_grad():
        wanted = math.exp(float(model.eval()(rows, labels=rows).loss))
    assert values == pytest.approx([wanted] * 3, rel=1e-5)


def test_masked_and_shrunk_agree():
    model = decoder()
    groups = pl.granularity.layers(model)
    keep = {"layers": torch.tensor([True, True, False, True])}
    with pl.masked(model, pl.expand(model, groups, keep)):
        masked = perplexity(model, token_ids()).value
    assert perplexity(pl.shrink(model, groups, keep), token_ids()).value == pytest.approx(masked, rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), "give windows"),
        (torch.zeros(5, 1, dtype=torch.int64), "length at least 2"),
        (torch.full((2, 5), 64), "tokenizer is another model's"),
        (torch.rand(2, 5), "whole numbers"),
    ],
)
def test_bad_windows(rows, message):
    with pytest.raises(pl.PruneError, match=message):
        perplexity(decoder(), rows)
    with pytest.raises(pl.PruneError, match="batch_size=0"):
        perplexity(decoder(), token_ids(2), batch_size=0)


@pytest.mark.parametrize(
    ("kind", "given"), [("Sequence", r"\(1, 2\)"), ("Token", r"\(1, 4, 2\)")], ids=["sequences", "tokens"]
)
def test_a_classifier(kind, given):
    import transformers as hf

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    model = getattr(hf, f"BertFor{kind}Classification")(hf.BertConfig(vocab_size=64, **sizes))
    with pytest.raises(
        pl.PruneError, match=rf"BertFor\w+ gives {given} for ids \(1, 4\).*a classifier has an accuracy"
    ):
        perplexity(model, token_ids(2, 5))


def test_not_finite():
    model = decoder()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.inf
    with pytest.raises(pl.PruneError, match="not finite on sequence 0"):
        perplexity(model, token_ids())


def test_rates():
    model = decoder()
    small = pl.shrink(model, pl.granularity.layers(model), {"layers": torch.tensor([True, False, False, False])})
    found = rates({"dense": model, "one block": small}, token_ids(1), rounds=7)
    assert found.prefill_rate("dense") == pytest.approx(12 / found.prefill.latency["dense"].p50)
    assert found.decode_rate("one block") == pytest.approx(1 / found.decode.latency["one block"].p50)
    assert found.decode.latency["dense"].batch == 1
    assert found.decode.speedup["dense"].ratio == 1
    assert "Tokens a second, prompt of 12, batch 1, 1 thread, cpu" in str(found)
    assert "<table>" in found._repr_html_()


def test_rates_leave_the_model_as_it_was(snapshot):
    model = decoder().train()
    before = snapshot(model)
    rates({"dense": model}, token_ids(1), rounds=7)
    assert snapshot(model) == before


def test_what_rates_leave_in_a_model_can_be_trained_with():
    model, seen = decoder(), []
    model.model.norm.register_forward_hook(lambda *args: seen.append(args[-1].is_inference()))
    rates({"dense": model}, token_ids(1), rounds=7)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize(
    ("ids", "message"),
    [(token_ids(2), r"give \(1, n\)"), (token_ids(1, 1), "n at least 2"), (token_ids(1) + 60, "tokenizer")],
)
def test_bad_prompts(ids, message):
    with pytest.raises(pl.PruneError, match=message):
        rates({"dense": decoder()}, ids)


def test_masks_are_not_timed():
    model = decoder()
    pl.prune(model, pl.Recipe(sparsity=0.3))
    with pytest.raises(pl.PruneError, match="still wears masks"):
        rates({"pruned": model}, token_ids(1))
