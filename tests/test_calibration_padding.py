"""Padding does not count: scores of padded batches are those of the sequences alone."""

import pytest
import torch
from tiny_decoders import decoder, padded, token_ids
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab import Calibration
from prunelab.calibration import input_norms
from prunelab.calibration.samples import unpadded

ROWS = [token_ids(1, n, seed=n)[0] for n in (3, 6, 6, 9)]
sides = pytest.mark.parametrize("left", [False, True], ids=["right", "left"])


def mask(*rows):
    return torch.tensor([[int(c) for c in row] for row in rows])


def test_by_hand():
    ids = torch.tensor([[1, 2, 0], [0, 3, 4], [5, 6, 7], [0, 0, 0], [0, 8, 9]])
    inputs = {
        "input_ids": ids,
        "attention_mask": mask("110", "011", "111", "000", "011"),
        "position_ids": torch.arange(3)[None],
        "kind": torch.arange(5),
        "flag": True,
    }
    first, second, third = unpadded(inputs)
    assert first["input_ids"].tolist() == [[1, 2]]
    assert second["input_ids"].tolist() == [[3, 4], [8, 9]]
    assert second["position_ids"].tolist() == [[1, 2]]
    assert second["kind"].tolist() == [1, 4]
    assert second["flag"] is True
    assert third["input_ids"].tolist() == [[5, 6, 7]]
    assert all(bool(part["attention_mask"].all()) for part in (first, second, third))


def test_each_side_has_its_own_mask():
    """Even where both are of the same shape."""
    inputs = {
        "input_ids": torch.tensor([[1, 2, 0], [3, 4, 0]]),
        "attention_mask": mask("110", "110"),
        "decoder_input_ids": torch.tensor([[5, 0, 0], [6, 7, 8]]),
        "decoder_attention_mask": mask("100", "111"),
    }
    parts = list(unpadded(inputs))
    assert [(p["input_ids"].tolist(), p["decoder_input_ids"].tolist()) for p in parts] == [
        ([[1, 2]], [[5]]),
        ([[3, 4]], [[6, 7, 8]]),
    ]


@pytest.mark.parametrize(
    "inputs", [torch.ones(2, 3), (torch.ones(2), mask("10", "11")), {"x": mask("10"), "attention_mask": mask("11")}]
)
def test_inputs_without_padding_are_left_alone(inputs):
    (found,) = unpadded(inputs)
    assert found is inputs


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"attention_mask": torch.zeros(2, 1, 3, 3)},
            r"attention_mask is \(2, 1, 3, 3\), not \(batch, tokens\): padding",
        ),
        (
            {"attention_mask": mask("1100", "1111")},
            r"attention_mask \(2, 4\) fits none of the inputs .*: padding counts",
        ),
        (
            {"pixels": torch.zeros(9, 4)},
            r"pixels has not a row for each row of attention_mask \(2, 3\): padding counts",
        ),
    ],
)
def test_a_mask_that_cannot_be_followed(more, said):
    inputs = {"input_ids": torch.ones(2, 3), "attention_mask": mask("110", "111")} | more
    with pytest.warns(UserWarning, match=said):
        (found,) = unpadded(inputs)
    assert found is inputs


def test_zeros_between_tokens():
    inputs = {"input_ids": torch.tensor([[1, 2, 3, 4]]), "attention_mask": mask("1010")}
    with pytest.warns(UserWarning, match=r"attention_mask \(1, 4\) has 1 zeros between tokens, and these count"):
        (found,) = unpadded(inputs)
    assert found["input_ids"].tolist() == [[1, 2, 3]]


class Mixed(nn.Module):
    """Layers that see (batch, tokens, in), (in, tokens) and flattened tokens."""

    def __init__(self):
        super().__init__()
        self.whole, self.slide, self.flat = nn.Linear(3, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x, attention_mask):
        seen = self.slide(self.whole(x).transpose(1, 2)).transpose(1, 2)
        return self.flat(seen.flatten(0, 1)).view(*x.shape[:2], 2)


@sides
def test_norms_by_hand(left):
    torch.manual_seed(0)
    model, rows = Mixed(), [torch.randn(n, 3) for n in (2, 5)]
    side = "left" if left else "right"
    x = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=9.0, padding_side=side)
    given = {"x": x, "attention_mask": mask("00011" if left else "11000", "11111")}
    norms = input_norms(model, Calibration(((given, torch.zeros(2)),)))
    real = torch.cat(rows)
    after = F.linear(real, model.whole.weight, model.whole.bias)
    last = F.linear(after, model.slide.weight[:, :, 0], model.slide.bias)
    assert torch.allclose(norms["whole.weight"], real.norm(dim=0))
    assert torch.allclose(norms["slide.weight"].flatten(), after.norm(dim=0))
    assert torch.allclose(norms["flat.weight"], last.norm(dim=0))


def labelled(rows, left):
    """A padded batch of next-token prediction: labels of -100 where there is nothing to predict."""
    given = padded(rows, left)
    both = given["attention_mask"] * given["attention_mask"].roll(-1, 1)  # a token, and one after it
    labels = given["input_ids"].roll(-1, 1).masked_fill(both == 0, -100)
    labels[:, -1] = -100
    return given, labels


def loss(logits, labels):
    """The mean over sequences of each one's mean."""
    each = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1)
    return (each / (labels != -100).sum(1)).mean()


@sides
@pytest.mark.parametrize("criterion", ["wanda", "block_influence", "angular_distance", "head_importance", "taylor"])
def test_criteria_of_a_decoder(criterion, left):
    model = decoder()
    padding = Calibration((labelled(ROWS[:2], left), labelled(ROWS[2:], left)), loss)
    alone = Calibration(tuple(labelled([row], left) for row in ROWS), loss)
    found, wanted = (pl.criteria.CRITERIA[criterion](model, calib) for calib in (padding, alone))
    assert found.keys() == wanted.keys()
    for name, score in wanted.items():
        assert torch.allclose(found[name], score, rtol=1e-3, atol=1e-6), name


@sides
def test_an_encoder_and_a_decoder(left):
    """Of the same number of tokens, each with its own padding."""
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 2}
    model = hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=64, decoder_start_token_id=0, **sizes)).eval()

    def batch(sources, targets):
        target = {f"decoder_{key}": value for key, value in padded(targets, left).items()}
        return padded(sources, left) | target

    sources, targets = ROWS[1:], [ROWS[3], ROWS[1], ROWS[0]]
    together = pl.criteria.wanda(model, Calibration((batch(sources, targets),)))
    alone = tuple(batch([s], [t]) for s, t in zip(sources, targets, strict=True))
    for name, score in pl.criteria.wanda(model, Calibration(alone)).items():
        assert torch.allclose(together[name], score, rtol=1e-4), name


def test_dicts_without_labels_are_batches_of_what_looks_at_none():
    model, given = decoder(), padded(ROWS)
    bare, paired = Calibration.of([given]), Calibration(((given, torch.zeros(4)),))
    found = pl.prune(model, pl.Recipe("wanda", scope="row"), bare).masks
    assert all(torch.equal(mask, other) for mask, other in zip(found.values(), _masks(paired).values(), strict=True))
    with pytest.raises(pl.PruneError, match=r"a batch of the data is a dict.*: give pairs \(inputs, targets\)"):
        pl.criteria.taylor(model, bare)


def _masks(calib):
    return pl.prune(decoder(), pl.Recipe("wanda", scope="row"), calib).masks
