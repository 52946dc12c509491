"""Scores get dL/dW' * W whether kept or not; masks follow the schedule to the unit; the result is like any other."""

import copy
import functools
import math
from types import SimpleNamespace

import pytest
import torch
from tiny_decoders import decoder, token_ids
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
    assert torch.allclose(movement.gates.scores(layer)["weight"], torch.tensor([-1.4, 3.3, 0.5]))
    keep = TopV(1 / 3).keep(movement.gates.scores(layer), groups, 1.0)
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
            masks = pl.expand(layer, groups, rule.keep(movement.gates.scores(layer), groups, share))
            pl.apply(layer, masks)
            assert torch.equal(masks["weight"], mask.detach().bool())
            seen.add(int(masks["weight"].sum()))
        scores = movement.by_group(layer)
        mine.zero_grad()
        (F.cross_entropy(layer(x), y) + rule.cost(scores, share)).backward()
        assert torch.allclose(scores["weight"].grad.view(3, 6), theirs.grad, atol=1e-6)
        other.step()
        mine.step()
    assert torch.allclose(movement.gates.scores(layer)["weight"].view(3, 6), theirs, atol=1e-4)
    assert torch.allclose(pl.prunable(layer)["weight"], weight, atol=1e-5)
    assert len(seen) > 3  # it did prune, step by step


@pytest.mark.parametrize("name", ["cnn", "residual", "mlp"])
def test_a_structure_that_left_can_come_back(build, data_for, name):
    """Its score keeps a gradient, equal to that of a gate on its output, at 0."""
    model, (x, y) = build(name).eval(), data_for(name)
    groups = pl.granularity.coupled(model, x)
    movement.attach(model, groups)
    keep = {g.name: torch.arange(g.units) > 0 for g in groups}
    pl.apply(model, pl.expand(model, movement.gates.gated(model, groups), keep))
    F.cross_entropy(model(x), y).backward()
    for scores in movement.by_group(model).values():
        assert scores.grad[0] != 0


def test_the_reading_side_of_a_transposed_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 1))
    groups = pl.granularity.filters(model, torch.randn(2, 1, 6, 6))
    read = {g.name: [(m.tensor, m.dim) for m in g.members] for g in movement.gates.gated(model, groups)}
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


def test_groups_that_call_a_tied_weight_by_both_names_learn_from_both():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    movement.attach(
        model, [pl.Group("a", 3, (pl.Member("0.weight", 0),)), pl.Group("b", 3, (pl.Member("2.weight", 1),))]
    )
    model(torch.ones(2, 3)).sum().backward()
    assert all(s.grad is not None for s in movement.by_group(model).values())
    assert list(movement.by_group(model)) == ["a", "b"]


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


@pytest.mark.parametrize("granularity", [pl.granularity.weights, pl.granularity.coupled], ids=["weights", "coupled"])
def test_a_model_in_the_midst_of_learning_bakes(build, data_for, snapshot, granularity):
    model, (x, _) = build("cnn").eval(), data_for("cnn")
    plain = snapshot(model)
    groups = granularity(model, x)
    movement.attach(model, groups)
    keep = {g.name: torch.arange(g.units) % 2 > 0 for g in groups}
    pl.apply(model, pl.expand(model, movement.gates.gated(model, groups), keep))
    with torch.no_grad():
        worn = model(x)
        assert torch.equal(pl.bake(model)(x), worn)
    assert not movement.by_group(model)
    assert snapshot(model)["modules"] == plain["modules"]


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
    routed = [pl.Group("a", 4, (pl.Member("a", 0),), floor=2)]  # experts, two of which a token goes to
    assert Threshold(1.0).keep({"a": VALUES["a"] - 20}, routed, 1.0)["a"].tolist() == [True, False, True, False]


def test_zero_scores_are_refused_once_something_must_go(build):
    model = build("mlp")
    groups = pl.granularity.weights(model)
    movement.attach(model, groups)
    with pytest.raises(PruneError, match=r"all movement scores are 0: no training step .* movement\.finetune"):
        TopV(0.5).keep(movement.gates.scores(model), groups, 1.0)
    assert all(k.all() for k in TopV(0.5).keep(movement.gates.scores(model), groups, 0.0).values())


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
        movement.gates.scores(model)
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


# Training


def lesson():
    """Three classes that a line separates, with splits."""
    dice = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = F.one_hot(y, 6).float() * 3 + torch.randn(60, 6, generator=dice) * 0.3
    return SimpleNamespace(train=(x[:48], y[:48]), valid=(x[48:], y[48:]))


QUIET = {"batch_size": 16, "progress": False}
LEARN = {**QUIET, "lr": 1e-2}


def mlp(build):
    model = build("mlp")
    return model, pl.granularity.weights(model, exclude=["2.weight"])


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_sparsity_follows_the_schedule_exactly(build, monkeypatch, scope):
    model, groups = build("mlp"), pl.granularity.weights(build("mlp"))
    seen = []
    inside = movement.training.apply

    def watched(model, masks):
        seen.append([int((~m).sum()) for m in masks.values()])
        return inside(model, masks)

    monkeypatch.setattr(movement.training, "apply", watched)
    movement.finetune(model, lesson(), groups, TopV(0.8, scope), steps=20, schedule="cubic", **LEARN)
    wanted = [0.8 * (1 - (1 - t / 20) ** 3) for t in range(21)]
    if scope == "layer":
        assert seen[:21] == [[round(48 * s), round(24 * s)] for s in wanted]
    else:
        assert [sum(s) for s in seen[:21]] == [round(72 * s) for s in wanted]
    assert seen[0] == [0, 0]


def test_it_learns_and_the_result_is_like_any_other(build, snapshot):
    model, groups = mlp(build)
    plain = snapshot(model)
    learned = movement.finetune(model, lesson(), groups, TopV(0.75), steps=60, **LEARN)
    assert learned.history.steps == 60
    assert learned.history.valid[-1].accuracy > 0.9
    assert learned.pruned.report.sparsity == 0.75
    assert repr(learned).startswith("0.weight")
    assert torch.equal(
        learned.scores["0.weight"].topk(12).indices.sort().values, learned.pruned.keep["0.weight"].nonzero()[:, 0]
    )
    worn = pl.masking.current_masks(model)
    assert all(torch.equal(worn[n], m) for n, m in learned.pruned.masks.items())
    assert not movement.by_group(model)
    x = lesson().valid[0]
    with torch.no_grad():
        before = model(x)
        assert torch.equal(pl.bake(model)(x), before)
    assert snapshot(model)["modules"] == plain["modules"]
    assert [p[:2] for p in snapshot(model)["parameters"]] == [p[:2] for p in plain["parameters"]]
    assert int(model[0].weight.count_nonzero()) == 12


@pytest.mark.parametrize("name", ["cnn", "mlp", "residual"])
def test_structures_shrink(build, data_for, name):
    model, data = build(name), data_for(name)
    groups = pl.granularity.coupled(model, data[0])
    learned = movement.finetune(model, data, groups, TopV(0.5), steps=12, **LEARN)
    assert all(r.kept == r.units - round(0.5 * r.units) for r in learned.pruned.report.layers)
    small = pl.shrink(model, groups, learned.pruned.keep).eval()
    with torch.no_grad():
        assert torch.allclose(small(data[0]), model.eval()(data[0]), atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in build(name).parameters())


def test_blocks(build, data_for):
    model, data = build("mlp"), data_for("mlp")
    groups = pl.granularity.blocks(2, 3, exclude=["2.weight"])(model)
    learned = movement.finetune(model, data, groups, TopV(0.5), steps=12, **LEARN)
    tiles = pl.bake(model)[0].weight.detach().view(4, 2, 2, 3).transpose(1, 2).flatten(2)
    assert ((tiles == 0).all(2).flatten() == ~learned.pruned.keep["0.weight"]).all()
    assert int((tiles == 0).all(2).sum()) == 4


def test_soft_prunes_more_for_a_larger_penalty(build):
    kept = []
    for penalty in (0.0, 30.0, 300.0):
        model, groups = mlp(build)
        rule = Threshold(penalty, tau=0.3)
        learned = movement.finetune(model, lesson(), groups, rule, steps=40, scores_lr=0.05, **LEARN)
        assert torch.equal(learned.pruned.keep["0.weight"], torch.sigmoid(learned.scores["0.weight"]) > 0.3)
        kept.append(int(learned.pruned.keep["0.weight"].sum()))
    assert kept[0] > kept[1] > kept[2]


def test_the_penalty_is_no_part_of_the_validation_loss(build):
    model, groups = mlp(build)
    learned = movement.finetune(model, lesson(), groups, Threshold(1e4), steps=6, **LEARN)
    assert learned.history.losses[-1] > 100 > learned.history.valid[-1].loss


def test_the_scores_rate_does_not_matter_to_a_ranking(build):
    kept = []
    for rate in (1e-3, 1.0):
        model, groups = mlp(build)
        learned = movement.finetune(model, lesson(), groups, TopV(0.7), steps=30, scores_lr=rate, **LEARN)
        kept.append(learned.pruned.keep["0.weight"])
    assert torch.equal(*kept)


def test_frozen_weights_with_learned_masks_still_learn(build):
    """With a learning rate of next to nothing movement adapts by its masks; magnitude keeps what was large."""
    model, groups = mlp(build)
    first = model[0].weight.detach().clone()
    options = {**QUIET, "lr": 1e-9, "steps": 30}
    learned = movement.finetune(model, lesson(), groups, TopV(0.5), **options)
    assert torch.allclose(pl.prunable(model)["0.weight"], first, atol=1e-6)
    control, _ = mlp(build)
    large = movement.gradual(control, lesson(), groups, TopV(0.5), pl.criteria.magnitude, **options)
    expected = pl.allocate({"0.weight": first.abs()}, groups, 0.5)["0.weight"]
    assert torch.equal(large.pruned.keep["0.weight"], expected)
    assert learned.history.valid[-1].loss < large.history.valid[-1].loss


def test_gradual_follows_its_criterion(build):
    model, groups = mlp(build)
    mama = pl.criteria.Mama.of(model)
    learned = movement.gradual(model, lesson(), groups, TopV(0.75), mama, steps=20, schedule="cubic", **LEARN)
    weight = pl.prunable(model)["0.weight"].detach()
    score = (weight * (weight - mama.w0["0.weight"])).abs().flatten()
    assert torch.equal(learned.scores["0.weight"], score)
    assert int(learned.pruned.keep["0.weight"].sum()) == 12
    assert torch.equal(learned.pruned.keep["0.weight"].nonzero()[:, 0], score.topk(12).indices.sort().values)


def llama_lesson():
    ids, targets = pl.language.next_tokens(token_ids(16))
    return (ids, targets)


LLAMA = {"batch_size": 4, "progress": False, "lr": 1e-3, "loss": pl.language.next_token_loss}


class InTurns:
    """Another whole layer is the least important at every step."""

    def __init__(self):
        self.asked = 0

    def __call__(self, model, calib=None):
        self.asked += 1
        least = f".layers.{self.asked % 4}."
        return {n: torch.full_like(w, 0.1 if least in n else 1.0) for n, w in pl.prunable(model).items()}


def zero_layers(model):
    return [i for i, layer in enumerate(model.model.layers) if not layer.mlp.up_proj.weight.any()]


def test_a_whole_module_that_left_returns():
    model = decoder()
    head = {"model.norm.weight": torch.arange(32) > 0}
    pl.apply(model, head)  # which is of no group, and stays on
    before = model.model.layers[0].input_layernorm.weight
    found = movement.gradual(
        model, llama_lesson(), pl.granularity.layers(model), TopV(0.3), InTurns(), steps=7, schedule="one_shot", **LLAMA
    )
    gone = (~found.pruned.keep["layers"]).nonzero()[:, 0].tolist()
    assert len(gone) == 1
    assert zero_layers(model) == gone
    worn = pl.masking.current_masks(model)
    assert worn.keys() == found.pruned.masks.keys() | head.keys()
    assert torch.equal(worn["model.norm.weight"], head["model.norm.weight"])
    returned = model.model.layers[0].input_layernorm.weight
    assert gone == [0] or returned is before


@pytest.mark.parametrize("stop", [1, 4])
def test_whole_modules_go_on_from_a_checkpoint(tmp_path, stop):
    """Killed after some steps and begun again: the same masks and weights to the bit."""

    class Kill(BaseException):
        pass

    @functools.wraps(pl.language.next_token_loss)  # whose run it is
    def killer(outputs, targets):
        if judge.asked > stop:
            raise Kill
        return pl.language.next_token_loss(outputs, targets)

    def run(model, judge, **options):
        groups = pl.granularity.layers(model)
        options = {**LLAMA, "steps": 7, "schedule": "linear", **options}
        return movement.gradual(model, llama_lesson(), groups, TopV(0.6), judge, **options)

    file, judge = tmp_path / "run.safetensors", InTurns()
    with pytest.raises(Kill):
        run(decoder(), judge, loss=killer, checkpoint=pl.recovery.Checkpoint(file, every=1))
    broken, whole, again = decoder(), decoder(), InTurns()
    again.asked = judge.asked - 2  # that of the start is asked again, and that of the last step
    resumed = run(broken, again, checkpoint=file)
    straight = run(whole, InTurns())
    assert torch.equal(resumed.pruned.keep["layers"], straight.pruned.keep["layers"])
    assert broken.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(broken.state_dict()[k], v) for k, v in whole.state_dict().items())


def test_whole_modules_that_wear_masks_are_not_whole(snapshot):
    model = decoder()
    groups = pl.granularity.layers(model)
    pl.prune(model, pl.Recipe(granularity="layers", sparsity=0.3))
    before = snapshot(model)
    with pytest.raises(PruneError, match=r"model\.layers\.\d\.\S+ \(.*\) wears a mask already"):
        movement.gradual(model, llama_lesson(), groups, TopV(0.3), "magnitude", steps=3, **LLAMA)
    assert snapshot(model) == before


@pytest.mark.parametrize("name", ["layers", "mlps", "attentions"])
def test_movement_does_not_learn_of_whole_modules(snapshot, name):
    model = decoder()
    groups = getattr(pl.granularity, name)(model)
    before = snapshot(model)
    with pytest.raises(PruneError, match=rf"{name} holds whole modules, such as model\.layers\.0\S*, .* glu_neurons"):
        movement.finetune(model, llama_lesson(), groups, TopV(0.3), steps=3, **LLAMA)
    assert snapshot(model) == before
    with pytest.raises(PruneError, match=r"or use movement\.gradual"):
        movement.attach(model, [*pl.granularity.glu_neurons(model), *groups])
    assert snapshot(model) == before


@pytest.mark.parametrize("rule", [TopV(0.6), Threshold(30.0, tau=0.3)], ids=["hard", "soft"])
@pytest.mark.parametrize("stop", [1, 7, 14])
def test_a_broken_run_goes_on_from_its_checkpoint(build, data_for, tmp_path, rule, stop):
    """Killed after some steps and begun again: the same scores, masks and weights to the bit; then baked and shrunk."""
    data = data_for("cnn")
    file = tmp_path / "run.safetensors"
    options = {**LEARN, "batch_size": 8, "steps": 18, "scores_lr": 0.3}

    def fresh():
        model = build("cnn")
        return model, pl.granularity.filters(model, data[0])

    class Kill(BaseException):
        pass

    @functools.wraps(F.cross_entropy)  # whose run it is
    def killer(outputs, targets):
        seen.append(1)
        if len(seen) > stop:
            raise Kill
        return F.cross_entropy(outputs, targets)

    seen, (model, groups) = [], fresh()
    checkpoint = pl.recovery.Checkpoint(file, every=1)
    with pytest.raises(Kill):
        movement.finetune(model, data, groups, rule, loss=killer, checkpoint=checkpoint, **options)
    broken, groups = fresh()
    resumed = movement.finetune(broken, data, groups, rule, checkpoint=file, **options)
    whole, groups = fresh()
    straight = movement.finetune(whole, data, groups, rule, **options)
    assert all(torch.equal(resumed.scores[n], s) for n, s in straight.scores.items())
    assert all(torch.equal(resumed.pruned.keep[n], k) for n, k in straight.pruned.keep.items())
    assert all(torch.equal(broken.state_dict()[k], v) for k, v in whole.state_dict().items())
    small = pl.shrink(broken, groups, resumed.pruned.keep).eval()
    with torch.no_grad():
        assert torch.allclose(small(data[0]), pl.bake(broken).eval()(data[0]), atol=1e-5)


def test_an_interrupt_leaves_a_usable_model(build):
    model, groups = mlp(build)
    seen = []

    def interrupted(outputs, targets):
        seen.append(1)
        if len(seen) == 12:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        movement.finetune(model, lesson(), groups, TopV(0.8), steps=20, loss=interrupted, **LEARN)
    assert not movement.by_group(model)
    worn = pl.masking.current_masks(model)["0.weight"]
    assert 0 < int((~worn).sum()) < 38
    pl.bake(model)(lesson().valid[0])


def ends_below(progress):
    return progress / 2


def starts_above(progress):
    return 0.5 + progress / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": ends_below}, "the schedule goes from 0 to 0.5"),
        ({"schedule": starts_above}, "the schedule goes from 0.5 to 1"),
        ({"schedule": "quick"}, "no schedule is called 'quick'"),
        ({"lr": -1.0}, "lr=-1"),
        ({"scores_lr": 0.0}, "scores_lr=0"),
        ({"steps": 0}, "steps=0"),
        ({"groups": []}, "no groups"),
        ({"data": []}, "train data is empty"),
    ],
)
def test_bad_settings_change_nothing(build, snapshot, settings, message):
    model, groups = mlp(build)
    before = snapshot(model)
    given = {"data": lesson(), "groups": groups, "rule": TopV(0.5), "steps": 3, **QUIET, **settings}
    with pytest.raises(PruneError, match=message):
        movement.finetune(model, **given)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": ends_below}, "the schedule goes from 0 to 0.5"),
        ({"steps": 0}, "steps=0"),
        ({"groups": []}, "no groups"),
        ({"data": []}, "train data is empty"),
        ({"criterion": pl.criteria.Mama({})}, "w0 is of another model"),
        ({"criterion": pl.criteria.taylor}, "calib"),
    ],
)
def test_bad_settings_of_gradual_change_nothing(build, snapshot, settings, message):
    model, groups = mlp(build)
    before = snapshot(model)
    given = {"data": lesson(), "groups": groups, "rule": TopV(0.5), "steps": 3, "schedule": "one_shot"}
    given |= {"criterion": pl.criteria.magnitude, "lr": 1e-12, **QUIET, **settings}
    with pytest.raises(PruneError, match=message):
        movement.gradual(model, **given)
    assert snapshot(model)["modules"] == before["modules"]
    if "criterion" not in settings:  # which is asked after a step only: that step stays
        assert snapshot(model) == before


def test_scores_that_no_optimizer_trains(build):
    model, groups = mlp(build)
    bias = {"optimizer": lambda m: torch.optim.SGD([m[0].bias], lr=0.1), "schedule": "one_shot"}
    with pytest.raises(PruneError, match="all movement scores are 0: no training step"):
        movement.finetune(model, lesson(), groups, TopV(0.5), steps=3, **bias, **QUIET)
    assert not movement.by_group(model)


def test_diverging_takes_the_scores_off(build):
    model, groups = mlp(build)
    with pytest.raises(PruneError, match="training diverged"):
        movement.finetune(
            model, lesson(), groups, TopV(0.5), steps=6, loss=lambda o, t: F.cross_entropy(o, t) * torch.nan, **LEARN
        )
    assert not movement.by_group(model)
    assert not pl.masking.current_masks(model)


def test_between():
    plan = pl.schedules.Between(0.25, 0.75, pl.schedules.linear)
    assert [plan(t) for t in (0, 0.25, 0.5, 0.75, 1)] == [0, 0, 0.5, 1, 1]
    for start, end in ((0.7, 0.1), (-0.1, 1), (0, 1.1), (0.5, 0.5)):
        with pytest.raises(PruneError, match="two shares of all steps"):
            pl.schedules.Between(start, end)


@pytest.mark.parametrize("learn", ["finetune", "gradual"])
def test_another_rules_checkpoint_is_refused(build, tmp_path, learn):
    def run(rule):
        model, groups = mlp(build)
        judge = ("magnitude",) if learn == "gradual" else ()
        options = {**LEARN, "steps": 6, "checkpoint": tmp_path / "run"}
        return getattr(movement, learn)(model, lesson(), groups, rule, *judge, **options)

    first = run(TopV(0.5))
    with pytest.raises(PruneError, match=rf"another run's\. on_step: there movement\.{learn}\(TopV.*0\.5.*here .*0\.8"):
        run(TopV(0.8))
    again = run(TopV(0.5))
    assert all(torch.equal(again.pruned.keep[n], k) for n, k in first.pruned.keep.items())
