"""`prune`: the whole process, pruning twice, and nothing changed when anything fails."""

import copy
import dataclasses
import itertools
from functools import partial

import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab import PruneError, Recipe, prune
from prunelab.masking import current_masks


def zeros(model):
    return sum(int((~m).sum()) for m in current_masks(model).values())


def test_it_is_the_same_as_the_steps(build):
    one, other = build("cnn"), build("cnn")
    pruned = prune(one, Recipe("magnitude", "weights", 0.4, "layer"))
    groups = pl.granularity.weights(other)
    keep = pl.allocate(pl.criteria.magnitude(other), groups, 0.4, "layer")
    masks = pl.expand(other, groups, keep)
    pl.apply(other, masks)
    assert pruned.groups == tuple(groups)
    assert pruned.report == pl.report(groups, keep, other)
    for mine, theirs in ((pruned.keep, keep), (pruned.masks, masks), (one.state_dict(), other.state_dict())):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    assert repr(pruned) == str(pruned.report)


def test_recipes_are_values():
    assert Recipe(sparsity=0.7) == Recipe("magnitude", "weights", 0.7, "global", "one_shot", 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().sparsity = 0.1
    assert dataclasses.replace(Recipe(), sparsity=0.2).sparsity == 0.2


@pytest.mark.parametrize("wrong", ["magnitude", None, {"sparsity": 0.5}, Recipe])
def test_what_is_no_recipe(build, snapshot, wrong):
    model = build("cnn")
    before = snapshot(model)
    with pytest.raises(PruneError, match=r"give a pl\.Recipe"):
        pl.prune(model, wrong)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"criterion": "size"}, "no criterion is called 'size'"),
        ({"criterion": 5}, "no criterion is called 5"),
        ({"granularity": "grains"}, "no granularity is called 'grains'"),
        ({"granularity": None}, "no granularity is called None"),
        ({"scope": "local"}, "no scope is called 'local'"),
        ({"schedule": "soon"}, "no schedule is called 'soon'"),
        ({"schedule": lambda t: 0.5}, "must go from 0"),
        ({"sparsity": 50}, "did you mean 0.5"),
        ({"sparsity": True}, "a bool"),
        ({"rounds": 0}, "rounds=0"),
        ({"rounds": 2.5}, "rounds=2.5"),
        ({"rounds": "3"}, "rounds='3'"),
    ],
)
def test_bad_recipes(wrong, message):
    with pytest.raises(PruneError, match=message):
        Recipe(**wrong)


@pytest.mark.parametrize(("schedule", "shares"), [("linear", [50, 100, 150]), ("cubic", [106, 144, 150])])
def test_rounds_follow_the_schedule_and_are_nested(build, schedule, shares):
    model, seen = build("cnn"), []

    def recover(m):
        seen.append(current_masks(m))
        with torch.no_grad():
            for w in pl.prunable(m).values():
                w.copy_(w.flip(0))  # other weights are small now

    total = sum(w.numel() for w in pl.prunable(model).values())
    prune(model, Recipe(sparsity=150 / total, schedule=schedule, rounds=3), recover=recover)
    assert [sum(int((~m).sum()) for m in masks.values()) for masks in seen] == shares
    for before, after in itertools.pairwise(seen):
        assert not any((after[n] & ~before[n]).any() for n in before)


def test_pruning_twice_is_nested_and_counts(build):
    model = build("mlp")
    first = prune(model, Recipe(sparsity=0.25)).masks
    second = prune(model, Recipe("random", sparsity=0.5))
    assert second.report.sparsity == 0.5
    assert zeros(model) == 36
    assert not any((second.masks[n] & ~first[n]).any() for n in first)
    assert prune(model, Recipe("random", sparsity=0.5)).report.sparsity == 0.5  # the same again is allowed


@pytest.mark.parametrize("recover", [None, lambda m: None], ids=["alone", "recover"])
def test_pruning_less_than_before_raises_and_changes_nothing(build, snapshot, recover):
    model = build("residual")
    prune(model, Recipe(sparsity=0.5))
    before = snapshot(model)
    with pytest.raises(PruneError, match=r"sparsity 0\.3 would bring"):
        prune(model, Recipe(sparsity=0.3), recover=recover)
    assert snapshot(model) == before


def test_masks_on_other_tensors_are_kept(build):
    model = build("mlp")
    pl.apply(model, {"0.bias": torch.arange(8) > 3})
    prune(model, Recipe(granularity=partial(pl.granularity.weights, exclude=["2.weight"])))
    assert current_masks(model).keys() == {"0.bias", "0.weight"}


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_kept(build, snapshot, training):
    model = build("cnn").train(training)
    model[1].train(not training)
    before = snapshot(model)["modules"]
    prune(model, Recipe(rounds=2, schedule="linear"))
    pl.bake(model)
    assert snapshot(model)["modules"] == before


def spoil(model):
    """A recovery that changes all it can reach, and then fails."""
    model.eval()
    with torch.no_grad():
        for w in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            w.add_(1)
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.grad is None else p.grad.add_(1)
    raise RuntimeError("the power went")


def spoil_baked(model):
    spoil(pl.bake(model))


@pytest.mark.parametrize("name", ["cnn", "residual", "tied", "attention", "attention_kdim"])
@pytest.mark.parametrize("worn", [False, True], ids=["plain", "worn"])
@pytest.mark.parametrize("failing", [spoil, spoil_baked])
def test_a_recovery_that_fails_midway_is_undone_to_the_bit(build, data_for, snapshot, name, worn, failing):
    model, (x, y) = build(name), data_for(name)
    nn.functional.cross_entropy(model(x), y).backward()
    if worn:
        prune(model, Recipe(sparsity=0.2))
    before, rounds = snapshot(model), []
    with pytest.raises(RuntimeError, match="the power went"):
        prune(
            model,
            Recipe(sparsity=0.6, schedule="linear", rounds=3),
            recover=lambda m: failing(m) if len(rounds) else rounds.append(1),
        )
    assert snapshot(model) == before


def test_a_criterion_that_fails_midway_is_undone(build, snapshot):
    model, calls = build("cnn"), []

    def criterion(m, calib=None):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return pl.criteria.magnitude(m)

    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        prune(model, Recipe(criterion, sparsity=0.6, schedule="linear", rounds=3))
    assert snapshot(model) == before


def test_scores_with_nan_change_nothing(build, snapshot):
    model = build("cnn")
    before = snapshot(model)
    with pytest.raises(PruneError, match=r"9? ?.*scores of 0\.weight are NaN"):
        prune(model, Recipe(lambda m, calib=None: {n: w * torch.nan for n, w in pl.prunable(m).items()}))
    assert snapshot(model) == before


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Embedding(3, 2)])
def test_nothing_prunable(model, snapshot):
    before = snapshot(model)
    with pytest.raises(PruneError, match="nothing to prune"):
        prune(model, Recipe())
    assert snapshot(model) == before


def test_weights_with_nan_change_nothing(build, snapshot):
    model = build("mlp")
    with torch.no_grad():
        model[2].weight[1, 1] = torch.nan
    before = snapshot(model)
    with pytest.raises(PruneError, match=r"2\.weight \(3, 8\) holds 1 NaN"):
        prune(model, Recipe())
    assert snapshot(model) == before


def test_some_frozen_weights_warn_and_are_pruned(build):
    model = build("mlp")
    model[0].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"frozen .*0\.weight \(8, 6\)\. Pruned like the others.*exclude") as caught:
        prune(model, Recipe(scope="layer"))
    assert caught[0].filename == __file__
    assert int((model[0].weight == 0).sum()) == 24
    pl.bake(model)
    assert not model[0].weight.requires_grad


def test_all_frozen_is_meant_and_says_nothing(build):
    model = build("mlp").requires_grad_(False)
    prune(model, Recipe())
    assert zeros(model) == 36


def test_tied_weights_are_pruned_once(build):
    model = build("tied")
    report = prune(model, Recipe(scope="layer")).report
    assert [(r.name, r.kept) for r in report.layers] == [("first.weight", 18), ("head.weight", 9)]
    pl.bake(model)
    assert model.first.weight is model.second.weight
    assert int(model.second.weight.count_nonzero()) == 18


def test_a_tied_embedding_is_left_whole(build):
    model = build("tied_embedding")
    prune(model, Recipe(sparsity=0.9))
    assert bool(model.embed.weight.all())
    assert model.out.weight is model.embed.weight


def test_with_real_recovery(build, data_for):
    model, data = build("cnn"), data_for("cnn")
    pruned = prune(
        model,
        Recipe(sparsity=0.7, schedule="cubic", rounds=3),
        recover=lambda m: pl.recovery.finetune(m, data, epochs=1, progress=False),
    )
    twin = pl.bake(copy.deepcopy(model))
    for name, mask in pruned.masks.items():
        assert torch.equal(twin.get_parameter(name) != 0, mask)
    assert pruned.report.sparsity == pytest.approx(0.7, abs=0.01)


# gradually: pruned within one training run


@pytest.mark.parametrize("schedule", ["linear", "cubic", "cosine", "one_shot"])
def test_gradually_follows_the_schedule_exactly(build, lesson, schedule):
    """3 rounds by 3/4 of 8 steps: at steps 2, 4 and 6, as much as the schedule says at 1/3, 2/3 and 1."""
    model, seen = build("mlp"), []
    step = pl.pipeline.gradually(model, Recipe(sparsity=0.5, rounds=3, schedule=schedule))

    def on_step(done, total):
        before = current_masks(model)
        step(done, total)
        assert all(not (now & ~before[k]).any() for k, now in current_masks(model).items() if k in before)  # nested
        seen.append(zeros(model))

    pl.recovery.train(model, lesson, steps=8, batch_size=16, on_step=on_step, progress=False)
    a, b, c = (round(0.5 * pl.schedules.by_name(schedule)(n / 3) * 72) for n in (1, 2, 3))
    assert seen == [0, 0, a, a, b, b, c, c, c]
    assert c == 36


def test_gradually_scores_the_weights_as_they_then_are(build):
    model = build("mlp")
    step = pl.pipeline.gradually(model, Recipe(sparsity=0.5, rounds=1), until=1.0)
    with torch.no_grad():
        model[0].weight.fill_(5.0)
        model[2].weight.fill_(0.1)
    step(1, 1)
    assert not current_masks(model)["2.weight"].any()


def test_gradually_by_a_pattern_and_by_structures(build, data_for):
    model = build("mlp")
    with torch.no_grad():
        model[0].weight = torch.nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    step = pl.pipeline.gradually(model, Recipe(scope=pl.NM(2, 4), rounds=2, schedule="linear"))  # by way of 3:4
    counts = []
    for done in range(9):
        step(done, 8)
        counts.append(zeros(model))
    assert counts == [0, 0, 0, 22, 22, 22, 44, 44, 44]
    cnn = build("cnn")
    step = pl.pipeline.gradually(cnn, Recipe(granularity="filters", sparsity=0.5), example=data_for("cnn")[0])
    step(3, 4)
    assert zeros(cnn) > 0


def test_gradually_again_at_the_same_step_changes_nothing(build):
    """A resumed run calls the step that it goes on from a second time."""
    model = build("mlp")
    step = pl.pipeline.gradually(model, Recipe(sparsity=0.5, rounds=2, schedule="linear"))
    step(3, 8)
    before = current_masks(model)
    step(3, 8)
    assert all(torch.equal(before[k], m) for k, m in current_masks(model).items())


@pytest.mark.parametrize("until", [0, 1.5, float("nan"), -1])
def test_gradually_until_no_share(build, until):
    with pytest.raises(PruneError, match="until="):
        pl.pipeline.gradually(build("mlp"), Recipe(), until=until)


def test_gradually_in_too_short_a_run(build, lesson, snapshot):
    model = build("mlp")
    before = snapshot(model)
    step = pl.pipeline.gradually(model, Recipe(sparsity=0.5, rounds=5, schedule="linear"))
    with pytest.raises(PruneError, match="5 rounds do not fit into 75 % of 6 steps"):
        pl.recovery.train(model, lesson, steps=6, batch_size=16, on_step=step, progress=False)
    assert snapshot(model) == before


def test_what_a_finer_cut_took_stays_gone(build, data_for):
    """Weights, then filters, then blocks: zeros only grow, and the masks returned say so."""
    model, x = build("cnn"), data_for("cnn")[0]
    gone: dict = {}
    for granularity, share in (("weights", 0.5), ("filters", 0.3), (pl.granularity.Blocks(1, 3), 0.6)):
        found = pl.prune(model, Recipe("magnitude", granularity, share, "layer"), example=x)
        now = pl.masking.current_masks(model)
        assert all((now[name] <= mask).all() for name, mask in gone.items())
        assert all(torch.equal(now[name], mask) for name, mask in found.masks.items())
        gone = now


def test_the_result_says_how_much_of_the_whole_model_is_zero():
    """An embedding holds most of the model: half of the weights are less than a sixth of it."""
    model = nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 8), nn.Linear(8, 1))
    pruned = prune(model, Recipe(sparsity=0.5))
    assert pruned.report.sparsity == 0.5
    assert (pruned.report.zeros, pruned.report.parameters) == (20, 129)
    lines = str(pruned).splitlines()
    assert "20 of 129 parameters of the model are zero, 15.50 %" in lines
    assert lines[-1] == "89 parameters are in no group and stay: Embedding 80, biases 9"
    again = prune(model, Recipe(sparsity=0.75)).report  # over the masks worn
    assert again.zeros == 30


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights_are_pruned_and_recover(kind):
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = kind(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    model, data = Classifier(), [(torch.randn(8, 5, 4), torch.randint(0, 3, (8,)))]
    pruned = prune(
        model,
        Recipe(sparsity=0.9, schedule="linear", rounds=2),
        recover=lambda m: pl.recovery.finetune(m, data, epochs=1, progress=False),
    )
    total = sum(w.numel() for w in pl.prunable(model).values())
    assert pruned.report.zeros == round(0.9 * total) > 0.6 * pruned.report.parameters
    worn = model(data[0][0])
    pl.bake(model)
    assert type(model.rnn) is kind
    torch.testing.assert_close(model(data[0][0]), worn)
    assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in pruned.masks.items())


def test_a_layer_rule_by_hand():
    """Of 400 and 100 weights ERK keeps as 40 to 25; half of the way loses half of that."""
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 5))
    recipe = pl.Recipe(sparsity=0.87, scope="layer", layerwise="erk", schedule="linear", rounds=2)
    seen = []
    pruned = pl.prune(model, recipe, recover=lambda m: seen.append([int((m[i].weight == 0).sum()) for i in (0, 1)]))
    assert seen == [[180, 38], [360, 75]]
    assert pruned.report.sparsity == 0.87


class Averaging(nn.Module):
    """A network with a buffer that training changes and no state dict holds."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen += 1
        return self.layer(x)


def test_a_failure_puts_back_buffers_that_no_state_dict_holds():
    data, model = (torch.randn(8, 4), torch.arange(8) % 2), Averaging()

    def recover(model):
        pl.recovery.train(model, data, steps=2, progress=False)
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        pl.prune(model, pl.Recipe(), recover=recover)
    assert model.seen == 0

    def fails(outputs, targets):
        raise ValueError("on purpose")

    with pytest.raises(pl.PruneError, match="on purpose"):
        pl.recovery.train(model, data, steps=2, loss=fails, progress=False)
    assert model.seen == 0


def test_a_model_s_training_leaves_other_accelerators_dice_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("all GPUs were seeded"))
    pl.recovery.train(nn.Linear(4, 2), (torch.randn(8, 4), torch.arange(8) % 2), steps=1, progress=False)


def test_a_report_shows_itself():
    model = nn.Linear(4, 2)
    groups = pl.granularity.weights(model)
    told = pl.report(groups, pl.allocate(pl.criteria.magnitude(model), groups, 0.5))
    assert repr(told) == str(told)


def test_the_options_of_allocate_are_a_recipes(build, data_for):
    """In rounds, too: as `allocate` called by hand; and each bad one is refused when the recipe is written."""
    x = data_for("cnn")[0]
    model = build("cnn")
    groups = pl.granularity.filters(model, x)
    keep, options = None, {"reduce": "mean", "floor": 2, "round_to": 2}
    for share in (0.3, 0.6):
        scores = pl.criteria.magnitude(pl.bake(copy.deepcopy(model)))
        keep = pl.allocate(scores, groups, share, within=keep, **options)
        pl.apply(model, pl.expand(model, groups, keep))
    recipe = pl.Recipe(
        granularity="filters", sparsity=0.6, schedule="linear", rounds=2, reduce="mean", floor=2, round_to=2
    )
    pruned = pl.prune(build("cnn"), recipe, example=x)
    assert all(torch.equal(pruned.keep[name], keep[name]) for name in keep)
    assert all(int(k.sum()) % 2 == 0 for k in keep.values())
    for bad in ({"reduce": "max"}, {"floor": -1}, {"round_to": 0}, {"scope": "row", "floor": 1}):
        with pytest.raises(PruneError, match=next(reversed(bad))):
            Recipe(**bad)
