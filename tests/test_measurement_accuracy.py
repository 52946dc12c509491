"""Accuracy, loss and their interval, against values worked out by hand."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunelab.core import PruneError
from prunelab.masking import apply, bake
from prunelab.measurement import evaluate
from prunelab.measurement.evaluation import wilson


class Says(nn.Module):
    """Gives back its inputs, so that a test can write the outputs down."""

    def forward(self, outputs):
        return outputs


OUTPUTS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [0.0, 0.0]])  # argmax: 0, 1, 1, 0
LABELS = torch.tensor([0, 1, 0, 0])


def test_accuracy_and_loss_are_those_worked_out_by_hand():
    result = evaluate(Says(), (OUTPUTS, LABELS))
    log = [math.log1p(math.exp(-2)), math.log1p(math.exp(-1)), math.log1p(math.exp(3)), math.log(2)]
    assert (result.correct, result.n, result.accuracy) == (3, 4, 0.75)
    assert result.loss == pytest.approx(sum(log) / 4)


@pytest.mark.parametrize("size", [1, 3, 4, 256])
def test_an_uneven_last_batch_weighs_what_it_holds(size):
    result = evaluate(Says(), (OUTPUTS, LABELS), batch_size=size)
    assert result.accuracy == 0.75
    assert result.loss == pytest.approx(evaluate(Says(), (OUTPUTS, LABELS)).loss)


def test_labels_may_lie_along_more_dimensions():
    outputs = torch.zeros(2, 3, 4, 5)
    outputs[:, 2] = 1
    result = evaluate(Says(), (outputs, torch.full((2, 4, 5), 2)))
    assert (result.accuracy, result.n) == (1.0, 40)


def test_an_output_that_is_nan_is_never_right():
    outputs = OUTPUTS.clone()
    outputs[0, 0] = float("nan")
    assert evaluate(Says(), (outputs, LABELS)).correct == 2


def test_masked_and_baked_model_score_the_same():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    data = (torch.randn(50, 4), torch.randint(0, 3, (50,)))
    apply(model, {"weight": torch.rand(3, 4) > 0.5})
    assert evaluate(model, data) == evaluate(bake(model), data)


def test_the_split_named_is_the_one_taken():
    class Data:
        valid = TensorDataset(OUTPUTS, LABELS)
        test = TensorDataset(OUTPUTS[:1], LABELS[:1])

    assert evaluate(Says(), Data()).n == 4
    assert evaluate(Says(), Data(), "test").n == 1


def test_model_grads_modes_and_random_state_are_untouched():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    model(OUTPUTS).sum().backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    loader = DataLoader(TensorDataset(OUTPUTS, LABELS), 2, shuffle=True)  # draws from the global generator
    evaluate(model, loader)
    assert [m.training for m in model] == [True, False, True]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(grads, model.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_the_mode_comes_back_when_the_model_fails():
    model = nn.Linear(3, 2).train()
    with pytest.raises(PruneError, match=r"Linear cannot run on inputs of \(4, 2\)"):
        evaluate(model, (OUTPUTS, LABELS))
    assert model.training


def test_what_a_model_caches_can_be_trained_with_afterwards():
    class Caches(nn.Linear):
        scale = None

        def forward(self, x):
            self.scale = torch.ones(2) + 1 if self.scale is None else self.scale
            return super().forward(x) * self.scale

    model = Caches(2, 2)
    evaluate(model, (OUTPUTS, LABELS))
    model(OUTPUTS).sum().backward()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ((OUTPUTS[:0], LABELS[:0]), "empty"),
        ([], "empty"),
        ((OUTPUTS, torch.tensor([0, 1, 2, 0])), r"labels run from 0 to 2, .* only classes 0 to 1"),
        ((OUTPUTS, torch.tensor([0, 1, -1, 0])), "labels run from -1 to 1"),
        ((OUTPUTS, LABELS.float()), r"labels \(4,\) are torch.float32"),
        ((OUTPUTS, LABELS[:, None]), r"outputs of shape \(4, 2\) for labels of shape \(4, 1\)"),
        ((OUTPUTS[:, 0], LABELS), r"outputs of shape \(4,\) for labels of shape \(4,\)"),
        ([OUTPUTS], r"a batch of the data is a Tensor"),
        ([(OUTPUTS, LABELS, LABELS)], r"a tuple of 3: give pairs"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_its_shapes(data, says):
    with pytest.raises(PruneError, match=says):
        evaluate(Says(), data)


def test_outputs_that_are_no_tensor_are_refused():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(PruneError, match="Two returns a tuple"):
        evaluate(Two(), (OUTPUTS, LABELS))


def test_wilson_solves_its_own_equation_and_stays_in_bounds():
    for correct, n in ((0, 10), (3, 10), (97, 100), (10, 10)):
        for p in wilson(correct, n):
            assert 0 <= p <= 1
            assert abs(p - correct / n) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), abs=1e-7)
    low, high = wilson(8, 10)  # Agresti and Coull's worked range for 8 of 10
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_counts_that_cannot_be(correct, n):
    with pytest.raises(PruneError, match=f"correct={correct} of n={n}"):
        wilson(correct, n)
