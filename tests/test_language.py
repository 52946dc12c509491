"""Tokens, windows, the loss of the next token, and greedy writing."""

import math

import pytest
import torch
from tiny_decoders import SIZES, decoder, token_ids
from torch import nn

import prunelab as pl
from prunelab import language


class Letters:
    """A tokenizer in small: a letter is a token."""

    def encode(self, text, add_special_tokens, verbose):
        return [ord(c) - ord("a") for c in text]

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(ord("a") + int(i)) for i in ids)


def test_tokens():
    assert language.tokens(Letters(), "abca").tolist() == [0, 1, 2, 0]
    assert language.tokens(Letters(), "abca").dtype == torch.int64


def test_a_tokenizer_of_another_model():
    assert language.tokens(Letters(), "z", decoder()).tolist() == [25]
    with pytest.raises(pl.PruneError, match=r"run from 25 to 25, but the embedding .* has 20 rows: the tokenizer is"):
        language.tokens(Letters(), "z", decoder(vocab_size=20))


@pytest.mark.parametrize("text", ["", None, ["a"]])
def test_no_text(text):
    with pytest.raises(pl.PruneError, match="give a str"):
        language.tokens(Letters(), text)


def test_windows():
    ids = torch.arange(11)
    assert language.windows(ids, 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert language.windows(ids, 3, 1).tolist() == [[0, 1, 2]]
    assert language.windows(ids, 3, 2, start=-2).tolist() == [[3, 4, 5], [6, 7, 8]]
    assert language.windows(ids, 3, start=1).tolist() == [[3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize(
    ("count", "start", "n"), [(None, 0, 2), (4, 0, 11), (1, 3, 11), (3, -2, 11), (None, -4, 11), (1, 0, 2)]
)
def test_a_text_too_short(count, start, n):
    with pytest.raises(pl.PruneError, match=f"the text has {n} tokens"):
        language.windows(torch.arange(n), 3, count, start=start)


@pytest.mark.parametrize(("ids", "length"), [(torch.zeros(2, 3), 2), (torch.arange(9), 1)])
def test_windows_of_what_is_no_text(ids, length):
    with pytest.raises(pl.PruneError, match="length of at least 2"):
        language.windows(ids, length)


def test_next_tokens():
    inputs, targets = language.next_tokens(torch.tensor([[5, 6, 7], [1, 2, 3]]))
    assert inputs.tolist() == [[5, 6], [1, 2]]
    assert targets.tolist() == [[6, 7], [2, 3]]


def test_the_loss_by_hand():
    """Of two tokens, the first given probability 1/4, the second 1/2."""
    logits = torch.log(torch.tensor([[[0.25, 0.25, 0.5], [0.5, 0.25, 0.25]]]))
    loss = language.next_token_loss(logits, torch.tensor([[0, 0]]))
    assert float(loss) == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_as_transformers_computes_it():
    model, rows = decoder(), token_ids()
    inputs, targets = language.next_tokens(rows)
    with torch.no_grad():
        ours = language.next_token_loss(model(inputs).logits, targets)
        assert float(ours) == pytest.approx(float(model(rows, labels=rows).loss), rel=1e-5)


def test_writing(snapshot):
    model = decoder(vocab_size=26).train()
    before = snapshot(model)
    text = language.write(model, Letters(), "gardener", 8)
    assert text == language.write(model, Letters(), "gardener", 8, cache=False)
    assert 0 < len(text) <= 8
    assert snapshot(model) == before
    ids = language.tokens(Letters(), "gardener")[None]
    first = int(model.eval()(ids).logits[0, -1].argmax())
    assert text[0] == Letters().decode([first], True)


@pytest.mark.parametrize("ids", [torch.zeros(3), torch.zeros(0, dtype=torch.int64), torch.tensor([-1])])
def test_no_tokens(ids):
    with pytest.raises(pl.PruneError, match="token ids"):
        language.check_tokens(decoder(), ids)


def test_the_embedding_is_that_of_the_tokens():
    """And not of a vision tower's positions, which come first."""

    class Composite(nn.Module):
        def __init__(self, positions):
            super().__init__()
            self.positions, self.language = nn.Embedding(positions, 4), decoder()

    language.check_tokens(Composite(17), token_ids())
    told = Composite(100)
    told.get_input_embeddings = told.language.get_input_embeddings
    with pytest.raises(pl.PruneError, match="has 64 rows"):
        language.check_tokens(told, torch.tensor([64]))


def test_a_model_without_an_embedding_takes_any():
    language.check_tokens(nn.Linear(2, 2), torch.tensor([SIZES["vocab_size"] * 100]))
