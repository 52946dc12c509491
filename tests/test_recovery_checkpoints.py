"""A run in a file: whole at every moment, and resumed to the same weights, bit for bit."""

import gc
import json
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
import torch
from safetensors import safe_open
from torch import nn

import prunelab as pl
from prunelab import PruneError
from prunelab.recovery import Checkpoint, checkpoints, train


class Stop(Exception):
    """What ends a run in the middle, where no signal is needed."""


def stopping(at):
    """An on_step that stops a run after so many steps."""

    def on_step(done, total):
        if done == at:
            raise Stop

    return on_step


def droopy():
    """A network whose training draws random numbers at every step."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


def learn(model, data, **options):
    return train(model, data, **{"epochs": 3, "batch_size": 16, "progress": False, **options})


def same(model, other):
    own, theirs = model.state_dict(), other.state_dict()
    return own.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in own.items())


def broken_off_and_resumed(data, path, at, every=2, make=droopy, **options):
    """The model and history of a run stopped after `at` steps, then called again on a fresh model."""
    with pytest.raises(Stop):
        learn(make(), data, checkpoint=Checkpoint(path, every), on_step=stopping(at), **options)
    model = make()
    return model, learn(model, data, checkpoint=Checkpoint(path, every), **options)


@pytest.mark.parametrize("at", range(1, 9))
def test_resumed_at_any_step_it_ends_with_the_same_weights(lesson, tmp_path, at):
    whole = droopy()
    history = learn(whole, lesson)
    model, resumed = broken_off_and_resumed(lesson, tmp_path / "run", at)
    assert same(model, whole)
    assert resumed.losses == history.losses
    assert resumed.valid == history.valid
    assert resumed.start == history.start


def loader(data, **options):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data.train), 16, **options)


@pytest.mark.parametrize("schedule", ["one_cycle", "constant", "linear", pl.recovery.Tail(of=12), lambda t: 1 - t / 2])
def test_every_schedule_resumes(lesson, tmp_path, schedule):
    whole = droopy()
    learn(whole, lesson, lr_schedule=schedule)
    assert same(broken_off_and_resumed(lesson, tmp_path / "run", 5, lr_schedule=schedule)[0], whole)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
        lambda m: torch.optim.Adam([{"params": m[0].parameters(), "lr": 0.1}, {"params": m[4].parameters()}], lr=0.01),
        lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, centered=True),
        lambda m: torch.optim.NAdam(m.parameters(), lr=0.01),
    ],
    ids=["sgd", "groups", "rmsprop", "nadam"],
)
def test_other_optimizers_resume(lesson, tmp_path, optimizer):
    whole = droopy()
    learn(whole, lesson, optimizer=optimizer, lr_schedule="linear")
    model, _ = broken_off_and_resumed(lesson, tmp_path / "run", 5, optimizer=optimizer, lr_schedule="linear")
    assert same(model, whole)


def test_a_loader_that_shuffles_by_torchs_own_dice_resumes(lesson, tmp_path):
    whole = droopy()
    learn(whole, loader(lesson, shuffle=True))
    assert same(broken_off_and_resumed(loader(lesson, shuffle=True), tmp_path / "run", 5)[0], whole)


def test_masks_that_came_on_the_way_resume(lesson, tmp_path):
    """Pruned at step 3, killed at step 5: the fresh model gets its masks from the file."""
    recipe = pl.Recipe(sparsity=0.5, schedule="linear", rounds=2)
    whole = droopy()
    learn(whole, lesson, on_step=pl.pipeline.gradually(whole, recipe, until=0.7))
    first, path = droopy(), tmp_path / "run"
    prune = pl.pipeline.gradually(first, recipe, until=0.7)
    stop = stopping(5)
    with pytest.raises(Stop):
        learn(first, lesson, on_step=lambda *at: (prune(*at), stop(*at)), checkpoint=Checkpoint(path, 2))
    model = droopy()
    learn(model, lesson, on_step=pl.pipeline.gradually(model, recipe, until=0.7), checkpoint=Checkpoint(path, 2))
    assert same(model, whole)


def test_tied_weights_resume(build, data_for, tmp_path):
    whole = build("tied")
    learn(whole, data_for("tied"))
    model, _ = broken_off_and_resumed(data_for("tied"), tmp_path / "run", 3, make=lambda: build("tied"))
    assert same(model, whole)
    assert model.first.weight is model.second.weight


def test_a_finished_run_comes_from_its_file(lesson, tmp_path):
    whole, model = droopy(), droopy()
    history = learn(whole, lesson, checkpoint=tmp_path / "run")
    again = learn(model, lesson, checkpoint=tmp_path / "run")
    assert same(model, whole)
    assert (again.losses, again.valid, again.seconds) == (
        history.losses,
        history.valid,
        pytest.approx(history.seconds, abs=1),
    )


def test_diverging_after_a_resume_falls_back_as_the_unbroken_run_does(lesson, tmp_path):
    def loss(outputs, targets):
        value = nn.functional.cross_entropy(outputs, targets)
        return value * (torch.nan if outputs.requires_grad and steps[0] == 8 else 1)

    def counting(done, total, stop=None):
        steps[0] = done
        if done == stop:
            raise Stop

    steps, models = [0], [droopy(), droopy(), droopy()]
    with pytest.raises(PruneError, match="diverged") as whole:
        learn(models[0], lesson, loss=loss, on_step=counting)
    saved = Checkpoint(tmp_path / "run", 2)
    with pytest.raises(Stop):
        learn(models[1], lesson, loss=loss, on_step=lambda *at: counting(*at, stop=7), checkpoint=saved)
    with pytest.raises(PruneError) as resumed:
        learn(models[2], lesson, loss=loss, on_step=counting, checkpoint=saved)
    assert same(models[2], models[0])
    assert str(resumed.value) == str(whole.value)


def test_no_pickle_is_in_the_file(lesson, tmp_path):
    learn(droopy(), lesson, checkpoint=tmp_path / "run")
    with safe_open(tmp_path / "run", "pt") as file:
        facts = json.loads(file.metadata()["prunelab"])
        keys = set(file.keys())
    assert facts["settings"]["seed"] == "0"
    assert {"model/0.weight", "optimizer/0.exp_avg", "random", "losses", "epoch/dice"} <= keys
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed: there 0, here 1"),
        ({"lr": 0.02}, r"optimizer: there AdamW \[.*lr.*here AdamW"),
        ({"batch_size": 8}, "number of steps: there 9, here 18"),
        ({"lr_schedule": "linear"}, "learning-rate schedule: there one_cycle, here linear"),
    ],
    ids=str,
)
def test_a_file_of_another_run_is_refused(lesson, tmp_path, snapshot, change, says):
    learn(droopy(), lesson, checkpoint=tmp_path / "run")
    model = droopy()
    before, content = snapshot(model), (tmp_path / "run").read_bytes()
    with pytest.raises(PruneError, match=f"another run's. {says}.*Delete the file to begin anew"):
        learn(model, lesson, checkpoint=tmp_path / "run", **change)
    assert snapshot(model) == before
    assert (tmp_path / "run").read_bytes() == content


def test_a_file_of_other_starting_weights_is_refused(build, lesson, tmp_path):
    """Two entrants of a race that were given the same path: the second must not be handed the first one's result."""
    learn(droopy(), lesson, checkpoint=tmp_path / "run")
    other = droopy()
    pl.prune(other, pl.Recipe(sparsity=0.5))
    with pytest.raises(PruneError, match="weights and masks it began with"):
        learn(other, lesson, checkpoint=tmp_path / "run")
    with pytest.raises(PruneError, match=r"another run's\. network"):
        learn(build("mlp"), lesson, checkpoint=tmp_path / "run")


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "text", "empty"])
def test_a_damaged_file_is_refused(lesson, tmp_path, snapshot, damage):
    path = tmp_path / "run"
    learn(droopy(), lesson, checkpoint=path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-40],
            "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
            "foreign": checkpoints.to_bytes({"x": torch.zeros(2)}),
            "text": b"weights",
            "empty": b"",
        }[damage]
    )
    model = droopy()
    before = snapshot(model)
    with pytest.raises(PruneError, match=r"can't be read|is no training run|is damaged"):
        learn(model, lesson, checkpoint=path)
    assert snapshot(model) == before


def test_a_write_that_fails_leaves_the_last_file_whole(lesson, tmp_path, monkeypatch):
    path = tmp_path / "run"

    def full(handle):
        if path.exists():
            raise OSError("no space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        learn(droopy(), lesson, checkpoint=Checkpoint(path, 2))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["run"]
    whole, model = droopy(), droopy()
    learn(whole, lesson)
    learn(model, lesson, checkpoint=Checkpoint(path, 2))
    assert same(model, whole)


def test_weights_that_are_not_finite_are_never_saved(lesson, tmp_path):
    def poison(done, total):
        if done == 2:
            with torch.no_grad():
                model[0].weight.fill_(torch.nan)

    model = droopy()
    with pytest.raises(PruneError, match="diverged"):
        learn(model, lesson, on_step=poison, checkpoint=Checkpoint(tmp_path / "run", 2))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Checkpoint("run", 0), "every=0"),
        (lambda: Checkpoint("run", 2.5), "every=2.5"),
        (lambda: Checkpoint("/no/such/folder/run"), "there is no folder /no/such/folder"),
    ],
)
def test_bad_checkpoints(make, says):
    with pytest.raises(PruneError, match=says):
        make()


def train_in_a_child(path, x, y, steps):
    """What a process of its own runs, until it is killed."""
    torch.set_num_threads(1)

    def on_step(done, total):
        steps.value = done
        time.sleep(0.002)

    learn(droopy(), (torch.tensor(x), torch.tensor(y)), epochs=40, checkpoint=Checkpoint(path, 3), on_step=on_step)


@pytest.mark.slow
def test_killed_processes_resume_to_the_same_weights(lesson, tmp_path):
    """SIGKILL, which no `finally` sees, at a random step of 120, three times. (20 times: benchmarks/bench_resume.py)"""
    whole, (x, y) = droopy(), lesson.train
    learn(whole, lesson.train, epochs=40)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prunelab"])  # imported once, not once a child
    dice = random.Random(0)
    for trial in range(3):
        path, at, steps = tmp_path / str(trial), dice.randrange(4, 115), context.Value("i", 0)
        child = context.Process(target=train_in_a_child, args=(path, x.tolist(), y.tolist(), steps))
        child.start()
        while steps.value < at and child.is_alive():
            time.sleep(0.0005)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert path.exists()
        model = droopy()
        assert learn(model, lesson.train, epochs=40, checkpoint=Checkpoint(path, 3)).steps == 120
        assert same(model, whole)


# Between a file's opening and its `with` Python has nobody to close it: the collector does, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", range(6))
def test_an_interrupt_at_any_moment_leaves_model_and_file_whole(lesson, tmp_path, snapshot, monkeypatch, seed):
    """Ctrl-C by a clock, wherever the program then is: in a step, an evaluation, or a save."""
    learn(droopy(), lesson, epochs=1)  # torch's own imports, at a first step, don't survive an interrupt
    path, model = tmp_path / "run", droopy().eval()
    before = snapshot(model)

    pressed = []

    def interrupt(*_):
        pressed.append(True)
        raise KeyboardInterrupt

    def press_again(lost, hook=sys.unraisablehook):
        """What is raised while an object is being destroyed, Python drops."""
        if issubclass(lost.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.001)
        else:
            hook(lost)

    monkeypatch.setattr(sys, "unraisablehook", press_again)
    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, random.Random(seed).uniform(0.02, 0.2))
        with pytest.raises((KeyboardInterrupt, RuntimeError)) as stopped:
            learn(model, lesson, epochs=2000, checkpoint=Checkpoint(path, 1))
        # Seldom torch's backward reports an interrupt as an error of its own; from anywhere else it would be ours.
        assert pressed
        assert stopped.type is KeyboardInterrupt or stopped.traceback[-1].path.parts[-2:] == ("autograd", "graph.py")
        del stopped
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    gc.collect()
    after = snapshot(model)
    assert [after[k] for k in ("modules", "random")] == [before[k] for k in ("modules", "random")]
    assert all(torch.isfinite(p).all() and p.grad is None for p in model.parameters())
    assert set(os.listdir(tmp_path)) <= {"run"}
    if path.exists():
        with safe_open(path, "pt") as file:
            done = file.get_tensor("losses").numel()
        resumed = droopy()
        with pytest.raises(Stop):
            learn(resumed, lesson, epochs=2000, checkpoint=Checkpoint(path, 1), on_step=stopping(done + 2))
