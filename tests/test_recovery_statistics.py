"""BatchNorm's statistics measured anew: by hand, against a pass with the same batches, and undone on failure."""

import copy

import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab import PruneError
from prunelab.recovery import recalibrate_batchnorm


def test_by_hand():
    """Two batches of two: means 1 and 5, unbiased variances 2 and 8, of which the plain average is taken."""
    model = nn.Sequential(nn.BatchNorm1d(1))
    x = torch.tensor([[0.0], [2.0], [3.0], [7.0]])
    batches = [(x[:2], torch.zeros(2, dtype=torch.long)), (x[2:], torch.zeros(2, dtype=torch.long))]
    assert recalibrate_batchnorm(model, batches) == 1
    assert model[0].running_mean.tolist() == [3.0]
    assert model[0].running_var.tolist() == [5.0]
    assert model[0].num_batches_tracked == 2
    assert model[0].momentum == 0.1


def test_one_batch_gives_the_outputs_of_train_mode(build, data_for):
    """With a single batch, the running mean is the batch's own; the variance differs by n / (n - 1)."""
    model, (x, y) = build("residual"), data_for("residual")
    pl.prune(model, pl.Recipe(sparsity=0.5))
    wanted = copy.deepcopy(model).train()(x)
    recalibrate_batchnorm(model, (x, y), batch_size=len(x))
    torch.testing.assert_close(model.eval()(x), wanted, rtol=0.02, atol=0.02)


def test_only_statistics_change(build, data_for, snapshot):
    model = build("cnn").eval()
    model[2].train()
    pl.prune(model, pl.Recipe(sparsity=0.5))
    before = snapshot(model)
    recalibrate_batchnorm(model, data_for("cnn"), batch_size=8)
    after = snapshot(model)
    changed = {key for key, value in after["state"].items() if value != before["state"][key]}
    assert changed == {f"{n}.{what}" for n in (1, 4) for what in ("running_mean", "running_var", "num_batches_tracked")}
    assert [after[k] for k in ("parameters", "modules", "random")] == [
        before[k] for k in ("parameters", "modules", "random")
    ]


def test_it_repeats_itself(build, data_for):
    states = []
    for _ in range(2):
        model = build("cnn")
        torch.rand(3)  # the caller's dice must not matter
        recalibrate_batchnorm(model, data_for("cnn"), batch_size=7)
        states.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_it_repairs_what_a_scale_broke():
    """Weights scaled by ten, as if pruning had changed them: the old statistics mislead, the new ones undo it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x, y = torch.randn(64, 4), torch.zeros(64, dtype=torch.long)
    recalibrate_batchnorm(model, (x, y), batch_size=64)
    wanted = model.eval()(x)
    with torch.no_grad():
        model[0].weight.mul_(10)
    assert (model(x) - wanted).abs().max().item() > 1
    recalibrate_batchnorm(model, (x, y), batch_size=64)
    torch.testing.assert_close(model(x), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("mlp", None, "Sequential has no BatchNorm with running statistics"),
        ("cnn", [], "train data is empty"),
        ("cnn", (torch.zeros(4, 6), torch.zeros(4)), r"Sequential cannot run on inputs of \(4, 6\)"),
    ],
    ids=["no BatchNorm", "no data", "data that does not fit"],
)
def test_bad_input_changes_nothing(build, data_for, snapshot, name, data, says):
    model = build(name)
    before = snapshot(model)
    with pytest.raises(PruneError, match=says):
        recalibrate_batchnorm(model, data_for(name) if data is None else data)
    assert snapshot(model) == before
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
