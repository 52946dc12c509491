"""Training learns, holds the masks, repeats itself, and undoes what diverges."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab import PruneError
from prunelab.masking import current_masks
from prunelab.recovery import History, finetune, train
from prunelab.recovery.run import Snapshot, Tail
from prunelab.recovery.training import Objective


def quietly(model, data, **options):
    return train(model, data, **{"progress": False, "epochs": 2, "batch_size": 16, **options})


def test_it_learns_and_reports(build, lesson):
    model = build("mlp")
    history = quietly(model, lesson, epochs=8, lr=0.05)
    assert history.steps == 24
    assert len(history.valid) == 8
    assert history.valid[-1].accuracy == 1
    assert history.losses[-1] < history.losses[0] / 2
    assert history.seconds > 0
    assert repr(history).startswith("History(24 steps in ")
    assert repr(history).endswith("validation accuracy 100.0 %)")
    assert repr(History()) == "History(no steps)"


def test_the_same_seed_gives_the_same_weights(build, lesson):
    runs = []
    for seed in (0, 0, 1):
        model = build("cnn")
        torch.manual_seed(len(runs))  # the caller's dice must not matter
        quietly(model, (lesson.train[0].repeat(1, 6).view(48, 1, 6, 6), lesson.train[1]), seed=seed)
        runs.append(model.state_dict())
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert not all(torch.equal(runs[0][k], runs[2][k]) for k in runs[0])


def test_dice_modes_and_hooks_of_others_are_left_alone(build, snapshot, lesson):
    model = build("mlp").eval()
    model[1].train()
    before = snapshot(model)
    quietly(model, lesson)
    after = snapshot(model)
    assert after["random"] == before["random"]
    assert after["modules"] == before["modules"]
    assert [p[:2] for p in after["parameters"]] == [p[:2] for p in before["parameters"]]
    assert all(p.grad is None for p in model.parameters())


def test_masks_hold_through_training(build, lesson):
    model = build("mlp")
    masks = pl.prune(model, pl.Recipe(sparsity=0.6)).masks
    before = model[0].weight.detach().clone()
    finetune(model, lesson, epochs=2, batch_size=16, weight_decay=0.5, progress=False)
    assert not torch.equal(model[0].weight, before)
    assert all(torch.equal(current_masks(model)[n], m) for n, m in masks.items())
    pl.bake(model)
    for name, mask in masks.items():
        assert torch.equal(dict(model.named_parameters())[name] != 0, mask)


def test_frozen_parts_stay(build, lesson):
    model = build("mlp")
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    quietly(model, lesson)
    assert torch.equal(model[0].weight, before)


def test_all_frozen(build, snapshot, lesson):
    model = build("mlp").requires_grad_(False)
    before = snapshot(model)
    with pytest.raises(PruneError, match=r"all 4 parameters of this Sequential are frozen.*requires_grad_\(True\)"):
        finetune(model, lesson)
    assert snapshot(model) == before


class Empty:
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 1.5}, "epochs=1.5"),
        ({"epochs": "3"}, "epochs='3'"),
        ({"steps": 3}, "epochs=2 and steps=3"),
        ({"epochs": None, "steps": 0}, "steps=0"),
        ({"epochs": None, "steps": 2.5}, "steps=2.5"),
        ({"lr_schedule": "cosine"}, "no learning-rate schedule is called 'cosine'"),
        ({"lr_schedule": lambda progress: float("nan")}, "factor is nan"),
        ({"lr_schedule": lambda progress: -1.0}, "factor is -1"),
        ({"lr_schedule": Tail(of=4)}, "6 steps cannot replay the end of a run of 4"),
        ({"lr": 0.0}, "lr=0"),
        ({"lr": -1.0}, "lr=-1"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": "fast"}, "lr='fast'"),
        ({"batch_size": 0}, "batch size of 0"),
        ({"data": []}, "train data is empty"),
        ({"data": Empty()}, "train data is empty"),
        ({"data": None}, "data is a NoneType"),
        ({"data": (b for b in ())}, "only once"),
        ({"data": (torch.zeros(3, 6), torch.zeros(2))}, "3 inputs but 2 targets"),
        ({"data": SimpleNamespace(valid=())}, "no split 'train'"),
    ],
)
def test_bad_settings_and_data_change_nothing(build, snapshot, lesson, settings, message):
    model = build("mlp")
    before = snapshot(model)
    with pytest.raises(PruneError, match=message):
        quietly(model, **{"data": lesson, **settings})
    assert snapshot(model) == before


def after_epochs(good, bad):
    """A loss that is as usual for so many steps and then what `bad` makes of it."""
    seen = []

    def loss(outputs, targets):
        seen.append(1)
        value = F.cross_entropy(outputs, targets)
        return value if len(seen) <= good else bad(value, outputs)

    return loss


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (lambda value, outputs: value * torch.nan, "the loss became nan at step 2"),
        (lambda value, outputs: value + torch.inf, "the loss became inf at step 2"),
        # the square root's slope at zero is infinite: a finite loss with NaN gradients, at the very last step
        (lambda value, outputs: value + (outputs * 0).sum().abs().sqrt(), "a weight became NaN or infinite at step"),
    ],
    ids=["nan", "inf", "gradient"],
)
def test_diverging_gives_the_weights_back(build, data_for, snapshot, bad, what, masked):
    model = build("cnn")
    if masked:
        pl.prune(model, pl.Recipe(sparsity=0.3))
    before = snapshot(model)
    with pytest.raises(PruneError, match=what + r".*try lr=0\.001"):
        quietly(model, data_for("cnn"), loss=after_epochs(1, bad), epochs=1)
    assert snapshot(model) == before


def test_diverging_in_the_second_epoch_keeps_the_first(build, lesson):
    one, two = build("mlp"), build("mlp")
    seen = []
    quietly(one, lesson, epochs=2, loss=lambda o, t: seen.append(0) or F.cross_entropy(o, t))
    steps = 3
    states = []
    two.register_forward_pre_hook(lambda m, _: states.append({k: v.clone() for k, v in m.state_dict().items()}))
    with pytest.raises(PruneError, match=f"at step {steps + 1}"):
        quietly(two, lesson.train, epochs=2, loss=after_epochs(steps, lambda value, outputs: value * torch.nan))
    assert all(torch.equal(v, states[steps][k]) for k, v in two.state_dict().items())


def test_an_infinity_under_a_mask_is_no_divergence(build, lesson):
    model = build("mlp")
    with torch.no_grad():
        model[0].weight[0, 0] = torch.inf
    mask = torch.ones(8, 6, dtype=torch.bool)
    mask[0, 0] = False
    pl.apply(model, {"0.weight": mask})
    assert quietly(model, lesson, epochs=1).steps == 3


def test_it_trains_from_batches_and_loaders(build, lesson):
    x, y = lesson.train
    states = []
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16)
    for data in (loader, [(x[:16], y[:16]), (x[16:32], y[16:32]), (x[32:], y[32:])]):
        model = build("mlp")
        assert quietly(model, data).steps == 6
        states.append(model.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_one_step_is_enough(build, lesson):
    model = nn.Linear(6, 3)
    assert quietly(model, lesson, epochs=1, batch_size=1000).steps == 1


def test_a_budget_in_steps(build, lesson):
    assert quietly(build("mlp"), lesson, epochs=None, steps=7).steps == 7  # two epochs of three, and one step
    history = quietly(build("mlp"), lesson, epochs=None, steps=7)
    assert len(history.valid) == 3
    whole, same = build("mlp"), build("mlp")
    quietly(whole, lesson, epochs=2)
    quietly(same, lesson, epochs=None, steps=6)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), same.state_dict().values(), strict=True))


def test_an_endless_stream_needs_a_budget_in_steps(build, lesson):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield lesson.train[0][0], lesson.train[1][0]

    assert quietly(build("mlp"), Endless(), epochs=None, steps=5).steps == 5


def test_the_default_budgets(build, lesson):
    assert train(build("mlp"), lesson, batch_size=48, progress=False).steps == 10
    assert finetune(build("mlp"), lesson, batch_size=48, progress=False).steps == 2
    assert finetune(build("mlp"), lesson, batch_size=48, steps=3, progress=False).steps == 3


def test_on_step_is_called_before_the_first_and_after_every_step(build, lesson):
    model, seen = build("mlp"), []

    def look(done, total):
        seen.append((done, total, model[0].weight.detach().clone()))

    start = model[0].weight.detach().clone()
    quietly(model, lesson, epochs=1, on_step=look)
    assert [s[:2] for s in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert torch.equal(seen[0][2], start)
    assert not torch.equal(seen[1][2], start)
    assert torch.equal(seen[3][2], model[0].weight)


def test_on_step_may_put_masks_on(build, lesson):
    model = build("mlp")

    def mask(done, total):
        if done == 2:
            pl.prune(model, pl.Recipe(sparsity=0.5))

    quietly(model, lesson, on_step=mask)
    zeros = sum(int((w == 0).sum()) for w in (model[0].weight, model[2].weight))
    assert zeros == (48 + 24) // 2


def test_parameter_groups_keep_their_own_rates(build, lesson):
    model, made = build("mlp"), []

    def optimizer(m):
        made.append(torch.optim.SGD([{"params": m[0].parameters(), "lr": 0.5}, {"params": m[2].parameters()}], lr=0.1))
        return made[0]

    rates = []
    quietly(model, lesson, epochs=1, lr_schedule="linear", optimizer=optimizer,
            on_step=lambda done, total: rates.append([g["lr"] for g in made[0].param_groups]))  # fmt: skip
    assert rates[0] == [0.5, 0.1]
    assert rates[1] == pytest.approx([0.5 * 2 / 3, 0.1 * 2 / 3])
    assert made[0].param_groups[0]["momentum"] == 0


def test_the_loss_may_see_the_inputs(build, lesson):
    shapes = set()

    def of(inputs, outputs, targets):
        shapes.add((inputs.shape[1:], outputs.shape[1:], targets.shape[1:]))
        return F.cross_entropy(outputs, targets)

    one, two = build("mlp"), build("mlp")
    quietly(one, lesson)
    quietly(two, lesson, loss=Objective(of))
    assert shapes == {((6,), (3,), ())}
    assert torch.equal(one[0].weight, two[0].weight)


def test_the_best_weights_by_validation_come_back(build, lesson):
    """Two good epochs, three that unlearn, then the end: what comes back is the best, not the last."""
    model, states = build("mlp"), []
    losses = {"bad": lambda o, t: F.cross_entropy(o, (t + 1) % 3), "end": lambda o, t: (o * torch.nan).sum()}
    steps = []

    def loss(outputs, targets):
        if not outputs.requires_grad:  # validation
            return F.cross_entropy(outputs, targets)
        steps.append(1)
        kind = "good" if len(steps) <= 6 else "bad" if len(steps) <= 15 else "end"
        return losses.get(kind, F.cross_entropy)(outputs, targets)

    def keep(done, total):
        if done % 3 == 0:
            states.append({k: v.clone() for k, v in model.state_dict().items()})

    with pytest.raises(PruneError, match=r"diverged.*best weights \(100\.0 % on validation\)"):
        quietly(model, lesson, epochs=6, lr=0.2, lr_schedule="constant", loss=loss, on_step=keep)
    found = [
        i for i, state in enumerate(states) if all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    ]
    assert found == [2]  # both are all right, and the second loses less


def test_masks_of_the_best_moment_come_back_with_it(build, lesson, snapshot):
    model = build("mlp")
    before = snapshot(model)

    def mask(done, total):
        if done == 1:
            pl.prune(model, pl.Recipe(sparsity=0.9))

    with pytest.raises(PruneError, match="diverged"):
        quietly(model, lesson.train, on_step=mask, loss=after_epochs(1, lambda value, outputs: value * torch.nan))
    after = snapshot(model)
    assert after["state"] == before["state"]
    assert {k: v for k, v in after["modules"].items()} == before["modules"]


@pytest.mark.parametrize("at", [0, 1, 4])
def test_an_interrupt_leaves_a_usable_model(build, data_for, snapshot, at):
    model = build("cnn").eval()
    before = snapshot(model)

    def interrupt(done, total):
        if done == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quietly(model, data_for("cnn"), on_step=interrupt, batch_size=8)
    after = snapshot(model)
    assert after["modules"] == before["modules"]
    assert after["random"] == before["random"]
    assert all(torch.isfinite(p).all() and p.grad is None for p in model.parameters())
    assert quietly(model, data_for("cnn")).steps == 4  # it can go on


@pytest.mark.parametrize("line", ["__enter__", "__exit__"])
@pytest.mark.parametrize(
    "call",
    [
        lambda model, data: quietly(model, data),
        lambda model, data: pl.measurement.evaluate(model, data, "valid"),
        lambda model, data: pl.recovery.recalibrate_batchnorm(model, data),
        lambda model, data: pl.granularity.coupled(model, data.train[0]),
    ],
    ids=["train", "evaluate", "recalibrate_batchnorm", "coupled"],
)
def test_an_interrupt_in_no_grad_s_own_lines_leaves_gradients_on(build, lesson, monkeypatch, call, line):
    """Torch leaves them off then, and the next `backward` of anybody's fails."""
    through = getattr(torch.no_grad, line)

    def interrupt(self, *args):
        if line == "__enter__":
            through(self)
        raise KeyboardInterrupt

    model = build("mlp").append(nn.BatchNorm1d(3))
    with monkeypatch.context() as patched:
        patched.setattr(torch.no_grad, line, interrupt)
        with pytest.raises(KeyboardInterrupt):
            call(model, lesson)
    assert torch.is_grad_enabled()


def test_an_interrupt_in_a_backward_pass_leaves_no_gradients(build, lesson):
    model = build("mlp")
    model[0].weight.register_hook(lambda grad: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        quietly(model, lesson)
    assert all(p.grad is None for p in model.parameters())


def test_data_that_runs_dry(build, lesson):
    with pytest.raises(PruneError, match="train data is empty"):
        quietly(build("mlp"), Empty(), epochs=None, steps=3)


def test_a_snapshot_copies_only_what_an_earlier_one_lacks():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    first = Snapshot.of(model)
    with torch.no_grad():
        model[2].weight.add_(1)
    wanted = {k: t.clone() for k, t in model.state_dict().items()}
    second = Snapshot.of(model, first)
    again = {k for k, t in second.state.items() if t is first.state[k]}
    assert again == wanted.keys() - {"2.weight"}
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    second.put_back(model)
    assert all(torch.equal(t, wanted[k]) for k, t in model.state_dict().items())
