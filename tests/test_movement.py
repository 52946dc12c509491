"""Scores get dL/dW' * W whether kept or not; masks follow the schedule to the unit; the result is like any other."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab import PruneError, movement
from prunelab.movement import Threshold, TopV


def test_a_step_by_hand():
    """Y = W' x with W' = W * mask, L = y: dL/dW' = x, so dL/dS = x * W, and dL/dW = x where kept."""
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, -3.0, 5.0]]))
    groups = pl.granularity.weights(layer)
    movement.attach(layer, groups)
    pl.apply(layer, {"weight": torch.tensor([[True, False, True]])})
    x = torch.tensor([7.0, 11.0, -1.0])
    loss = layer(x).sum()
    assert loss == 2 * 7 - 5
    loss.backward()
    scores = movement.by_group(layer)["weight"]
    assert scores.grad.tolist() == [14, -33, -5]  # the masked one too
    assert pl.prunable(layer)["weight"].grad.tolist() == [[7, 0, -1]]
    torch.optim.SGD([scores], lr=0.1).step()
    assert torch.allclose(movement.scores(layer)["weight"], torch.tensor([-1.4, 3.3, 0.5]))
    keep = TopV(1 / 3).keep(movement.scores(layer), groups, 1.0)
    assert keep["weight"].tolist() == [
        False,
        True,
        True,
    ]  # the weight that was out is back


def test_blocks_get_the_sum_of_their_entries(build, data_for):
    model, (x, y) = build("mlp"), data_for("mlp")
    dense = copy.deepcopy(model)
    groups = pl.granularity.blocks(2, 3, exclude=["2.weight"])(model)
    movement.attach(model, groups)
    mask = pl.expand(model, groups, {"0.weight": torch.tensor([True, False] * 4)})["0.weight"]
    pl.apply(model, {"0.weight": mask})
    F.cross_entropy(model(x), y).backward()
    masked = (dense[0].weight.detach() * mask).requires_grad_()
    F.cross_entropy(F.linear(F.linear(x, masked, dense[0].bias).relu(), dense[2].weight, dense[2].bias), y).backward()
    moved = masked.grad * dense[0].weight.detach()
    expected = torch.stack([moved[2 * i : 2 * i + 2, 3 * j : 3 * j + 3].sum() for i in range(4) for j in range(2)])
    scores = movement.by_group(model)["0.weight"]
    assert torch.allclose(scores.grad, expected, atol=1e-7)


class Binarizer(torch.autograd.Function):
    """The authors' masks in their own terms: a binary matrix whose gradient is handed to the scores unchanged."""

    @staticmethod
    def forward(ctx, scores, kind, level):
        if kind == "soft":
            return (torch.sigmoid(scores) > level).type(scores.type())
        mask = scores.clone()
        order = scores.flatten().sort(descending=True).indices
        count = scores.numel() - round((1 - level) * scores.numel())
        flat = mask.flatten()
        flat[order[count:]] = 0
        flat[order[:count]] = 1
        return flat.view_as(scores)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_as_an_independent_implementation(data_for, kind):
    """Twenty steps on one layer against the estimator written out: the same masks, scores and weights."""
    x, y = data_for("mlp")
    torch.manual_seed(3)
    layer = nn.Linear(6, 3)
    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    theirs = torch.zeros_like(weight, requires_grad=True)
    groups = pl.granularity.weights(layer)
    movement.attach(layer, groups)
    rule = TopV(0.5) if kind == "hard" else Threshold(penalty=4.0, tau=0.3)
    mine = torch.optim.SGD([{"params": [pl.prunable(layer)["weight"], layer.bias], "lr": 0.1},
                            {"params": list(movement.by_group(layer).values()), "lr": 2.0}])  # fmt: skip
    other = torch.optim.SGD([{"params": [weight, bias], "lr": 0.1}, {"params": [theirs], "lr": 2.0}])
    seen = set()
    for step in range(20):
        share = 0.0 if step == 0 else pl.schedules.cubic(step / 20)
        level = 1 - 0.5 * share if kind == "hard" else 0.3 * share
        mask = Binarizer.apply(theirs, kind, level)
        loss = F.cross_entropy(F.linear(x, weight * mask, bias), y)
        if kind == "soft":
            loss = loss + 4.0 * share * torch.sigmoid(theirs).mean()
        other.zero_grad()
        loss.backward()
        if step:
            masks = pl.expand(layer, groups, rule.keep(movement.scores(layer), groups, share))
            pl.apply(layer, masks)
            assert torch.equal(masks["weight"], mask.detach().bool())
            seen.add(int(masks["weight"].sum()))
        scores = movement.by_group(layer)
        mine.zero_grad()
        (F.cross_entropy(layer(x), y) + rule.cost(scores, share)).backward()
        assert torch.allclose(scores["weight"].grad.view(3, 6), theirs.grad, atol=1e-6)
        other.step()
        mine.step()
    assert torch.allclose(movement.scores(layer)["weight"].view(3, 6), theirs, atol=1e-4)
    assert torch.allclose(pl.prunable(layer)["weight"], weight, atol=1e-5)
    assert len(seen) > 3  # it did prune, step by step


@pytest.mark.parametrize("name", ["cnn", "residual", "mlp"])
def test_a_structure_that_left_can_come_back(build, data_for, name):
    """Its score keeps a gradient, equal to that of a gate on its output, at 0."""
    model, (x, y) = build(name).eval(), data_for(name)
    groups = pl.granularity.coupled(model, x)
    movement.attach(model, groups)
    keep = {g.name: torch.arange(g.units) > 0 for g in groups}
    pl.apply(model, pl.expand(model, movement.gated(model, groups), keep))
    F.cross_entropy(model(x), y).backward()
    for scores in movement.by_group(model).values():
        assert scores.grad[0] != 0


def test_the_reading_side_of_a_transposed_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 1))
    groups = pl.granularity.filters(model, torch.randn(2, 1, 6, 6))
    read = {g.name: [(m.tensor, m.dim) for m in g.members] for g in movement.gated(model, groups)}
    assert list(read.values()) == [[("2.weight", 0)], [("4.weight", 1)]]


@pytest.mark.parametrize("name", ["cnn", "mlp", "residual", "tied", "attention", "attention_kdim"])
def test_attached_scores_change_no_output(build, data_for, snapshot, name):
    model, (x, y) = build(name).eval(), data_for(name)
    plain = snapshot(model)
    with torch.no_grad():
        before = model(x)
        names = [p.name for p in pl.core.places(model)]
        assert movement.attach(model, pl.granularity.weights(model)) is model
        assert torch.allclose(model(x), before, atol=1e-6)  # attention leaves its fast path
    assert [p.name for p in pl.core.places(model)] == names  # the scores are no tensors of the model's own
    F.cross_entropy(model(x), y).backward()
    assert all(s.grad.any() for s in movement.by_group(model).values())
    model.zero_grad()
    movement.detach(model)
    pl.bake(model)
    assert snapshot(model) == plain


def test_tied_weights_share_their_scores(build, data_for):
    model, (x, y) = build("tied"), data_for("tied")
    movement.attach(model, pl.granularity.weights(model))
    assert len(movement.by_group(model).values()) == 2
    F.cross_entropy(model(x), y).backward()
    weight = pl.prunable(model)["first.weight"]
    assert torch.allclose(movement.by_group(model)["first.weight"].grad.view(6, 6), weight.grad * weight, atol=1e-7)


def test_a_deepcopy_learns_on_its_own(build, data_for):
    model, (x, y) = build("mlp"), data_for("mlp")
    movement.attach(model, pl.granularity.neurons(model, x))
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(x), y).backward()
    assert all(s.grad is None for s in movement.by_group(model).values())
    assert all(s.grad.any() for s in movement.by_group(twin).values())


def test_an_unbaked_movement_model_is_not_measured(build, data_for):
    model, data = build("mlp"), data_for("mlp")
    movement.attach(model, pl.granularity.weights(model))
    with pytest.raises(PruneError, match="still wears masks"):
        pl.measure(model, data)


# The rules


VALUES = {"a": torch.tensor([3.0, -1.0, 0.5, -2.0]), "b": torch.tensor([10.0, 20.0])}
GROUPS = [pl.Group("a", 4, (pl.Member("a"),)), pl.Group("b", 2, (pl.Member("b"),))]


def test_hard_by_hand():
    local = TopV(0.5).keep(VALUES, GROUPS, 1.0)
    assert local["a"].tolist() == [True, False, True, False]
    assert local["b"].tolist() == [False, True]
    everywhere = TopV(0.5, "global").keep(VALUES, GROUPS, 1.0)
    assert everywhere["a"].tolist() == [True, False, False, False]
    assert everywhere["b"].tolist() == [True, True]
    assert TopV(0.5).keep(VALUES, GROUPS, 0.5)["a"].tolist() == [True, True, True, False]
    assert all(k.all() for k in TopV(0.5).keep(VALUES, GROUPS, 0.0).values())


def test_soft_by_hand():  # sigmoid(-1) = 0.27, sigmoid(-2) = 0.12
    rule = Threshold(penalty=6.0, tau=0.25)
    assert rule.keep(VALUES, GROUPS, 1.0)["a"].tolist() == [True, True, True, False]
    assert rule.keep(VALUES, GROUPS, 0.4)["a"].all()  # 0.25 * 0.4 = 0.1
    expected = 6 * 0.5 * torch.sigmoid(torch.tensor([3.0, -1.0, 0.5, -2.0, 10.0, 20.0])).mean()
    assert torch.allclose(rule.cost(VALUES, 0.5), expected)
    assert rule.keep({"a": torch.full((4,), -9.0)}, GROUPS[:1], 1.0)["a"].sum() == 0
    structure = [pl.Group("a", 4, (pl.Member("a", 0),))]
    assert Threshold(1.0).keep({"a": VALUES["a"] - 20}, structure, 1.0)["a"].tolist() == [True, False, False, False]


def test_zero_scores_are_refused_once_something_must_go(build):
    model = build("mlp")
    groups = pl.granularity.weights(model)
    movement.attach(model, groups)
    with pytest.raises(PruneError, match=r"all movement scores are 0: no training step .* movement\.finetune"):
        TopV(0.5).keep(movement.scores(model), groups, 1.0)
    assert all(k.all() for k in TopV(0.5).keep(movement.scores(model), groups, 0.0).values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopV(50), r"did you mean 0\.5"),
        (lambda: TopV(1.0), "remove everything"),
        (lambda: TopV(0.5, "row"), 'compares within a "layer", or "global"'),
        (lambda: Threshold(1.0, tau=0.5), r"tau=0\.5"),
        (lambda: Threshold(-1.0), "penalty=-1"),
        (lambda: Threshold(math.nan), "penalty=nan"),
    ],
)
def test_rules_that_make_no_sense(make, message):
    with pytest.raises(PruneError, match=message):
        make()


def test_no_scores_without_training(build, snapshot):
    model = build("mlp")
    before = snapshot(model)
    with pytest.raises(PruneError, match=r"no movement scores: .* while fine-tuning.*movement\.finetune"):
        movement.scores(model)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("prepare", "groups", "message"),
    [
        (lambda m: pl.prune(m, pl.Recipe()), pl.granularity.weights, r"0\.weight \(8, 6\) wears a mask already"),
        (lambda m: m[0].weight.requires_grad_(False), pl.granularity.weights, r"0\.weight \(8, 6\) is frozen"),
        (lambda m: None, lambda m: [], "no groups"),
        (lambda m: None, lambda m: 2 * pl.granularity.weights(m), "same name"),
        (lambda m: None, lambda m: [pl.Group("9", 4, (pl.Member("9.weight"),))], "no tensor named '9.weight'"),
        (lambda m: None, lambda m: [pl.Group("0", 4, (pl.Member("0.weight"),))], "groups are of another model"),
    ],
)
def test_attaching_to_what_cannot_learn_changes_nothing(build, snapshot, prepare, groups, message):
    model = build("mlp")
    prepare(model)
    before = snapshot(model)
    with pytest.raises(PruneError, match=message):
        movement.attach(model, groups(model))
    assert snapshot(model) == before
