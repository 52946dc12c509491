"""A run in a file: whole at every moment, and resumed to the same weights, bit for bit."""

import functools
import gc
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import nn

import prunelab as pl
from prunelab import PruneError
from prunelab.recovery import Checkpoint, checkpoints, train
from prunelab.recovery.checkpoints import VARYING, examples
from prunelab.text import describe


class Stop(Exception):
    """What ends a run in the middle, where no signal is needed."""


def stopping(at=None, before=None):
    """An on_step that stops a run after so many steps, or never; one and the same to a checkpoint."""

    def on_step(done, total):
        if before:
            before(done, total)
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
    return model, learn(model, data, checkpoint=Checkpoint(path, every), on_step=stopping(), **options)


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


@pytest.mark.parametrize(
    "schedule", ["one_cycle", "constant", "linear", pl.recovery.run.Tail(of=12), lambda t: 1 - t / 2]
)
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


def dice(seed=3):
    return torch.Generator().manual_seed(seed)


def with_samplers(data, kind):
    sampler = torch.utils.data.RandomSampler(data.train[0], replacement=kind == "replaced", generator=dice())
    if kind == "batches":
        batches = torch.utils.data.BatchSampler(sampler, 16, drop_last=False)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data.train), batch_sampler=batches)
    return loader(data, sampler=sampler)


@pytest.mark.parametrize(
    "make",
    [
        lambda data: loader(data, shuffle=True, generator=dice()),
        lambda data: with_samplers(data, "plain"),
        lambda data: with_samplers(data, "replaced"),
        lambda data: with_samplers(data, "batches"),
    ],
    ids=["loader", "sampler", "replacement", "batch_sampler"],
)
@pytest.mark.parametrize("at", [2, 3, 5, 8])
def test_a_loader_with_dice_of_its_own_resumes(lesson, tmp_path, make, at):
    """Another process begins with other dice: those of the file count."""
    whole, model = droopy(), droopy()
    learn(whole, make(lesson))
    saved = Checkpoint(tmp_path / "run", 1)
    with pytest.raises(Stop):
        learn(droopy(), make(lesson), checkpoint=saved, on_step=stopping(at))
    learn(model, make(lesson), checkpoint=saved, on_step=stopping())
    assert same(model, whole)


def test_a_loader_whose_dice_are_not_in_the_file_is_refused(lesson, tmp_path):
    learn(droopy(), loader(lesson, shuffle=True), checkpoint=tmp_path / "run")
    with pytest.raises(PruneError, match=r"generators of the data: there \[\], here \['loader.generator'"):
        learn(droopy(), loader(lesson, shuffle=True, generator=dice()), checkpoint=tmp_path / "run")


def test_masks_that_came_on_the_way_resume(lesson, tmp_path):
    """Pruned at step 3, killed at step 5: the fresh model gets its masks from the file."""
    recipe = pl.Recipe(sparsity=0.5, schedule="linear", rounds=2)
    whole = droopy()
    learn(whole, lesson, on_step=pl.pipeline.gradually(whole, recipe, until=0.7))
    first, path = droopy(), tmp_path / "run"
    prune = pl.pipeline.gradually(first, recipe, until=0.7)
    with pytest.raises(Stop):
        learn(first, lesson, on_step=stopping(5, prune), checkpoint=Checkpoint(path, 2))
    model = droopy()
    prune = pl.pipeline.gradually(model, recipe, until=0.7)
    learn(model, lesson, on_step=stopping(None, prune), checkpoint=Checkpoint(path, 2))
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

    def counting(done, total):
        steps[0] = done
        if done in stops:
            raise Stop

    steps, stops, models = [0], [], [droopy(), droopy(), droopy()]
    with pytest.raises(PruneError, match="diverged") as whole:
        learn(models[0], lesson, loss=loss, on_step=counting)
    saved = Checkpoint(tmp_path / "run", 2)
    stops.append(7)
    with pytest.raises(Stop):
        learn(models[1], lesson, loss=loss, on_step=counting, checkpoint=saved)
    stops.clear()
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


def other_examples(data):
    return SimpleNamespace(train=(data.train[0] + 1, data.train[1]), valid=data.valid)


def halved(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets) / 2


OTHERS = {  # what the first run had and the second has, and what is said
    "share": ({"prune": 0.5}, {"prune": 0.9}, r"on_step: there gradually\(.*sparsity=0.5.*here gradually\(.*=0.9"),
    "until": ({"prune": 0.5}, {"prune": 0.5, "until": 0.5}, r"on_step: .*until=0.75\), here .*until=0.5\)"),
    "pruned": ({}, {"prune": 0.9}, "on_step: there None, here gradually"),
    "not pruned": ({"prune": 0.9}, {}, "on_step: there gradually.*, here None"),
    "function": ({"on_step": stopping()}, {}, "on_step: there stopping.<locals>.on_step, here None"),
    "loss": ({}, {"loss": halved}, "loss: there cross_entropy, here halved"),
    "data": ({}, {"data": other_examples}, "first training examples: there [0-9a-f]{64}, here [0-9a-f]{64}"),
    "loader": ({"data": loader}, {"data": lambda d: loader(other_examples(d))}, "first training examples"),
    "order": ({}, {"data": lambda d: loader(d, shuffle=True)}, "first training examples: .*here not the same"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_a_run_that_learned_otherwise_is_refused(lesson, tmp_path, snapshot, case):
    def run(model, data=lambda d: d, prune=None, until=0.75, **options):
        if prune:
            options["on_step"] = pl.pipeline.gradually(model, pl.Recipe(sparsity=prune), until=until)
        learn(model, data(lesson), checkpoint=tmp_path / "run", **options)

    had, has, says = OTHERS[case]
    run(droopy(), **had)
    model = droopy()
    before = snapshot(model)
    with pytest.raises(PruneError, match=rf"another run's\. {says}"):
        run(model, **has)
    assert snapshot(model) == before
    run(droopy(), **had)  # its own is taken


def test_a_recipe_with_a_function_of_ones_own_is_known_again(lesson, tmp_path):
    def made():
        def mine(model, calib=None):
            return pl.criteria.magnitude(model)

        return pl.Recipe(criterion=mine, schedule=functools.partial(pl.schedules.Between(0.1, 0.7)))

    models = [droopy(), droopy()]
    steps = [pl.pipeline.gradually(model, made()) for model in models]
    assert describe(steps[0]) == describe(steps[1])
    assert repr(steps[0]) != repr(steps[1])  # by the address
    for model, step in zip(models, steps, strict=True):
        learn(model, lesson, on_step=step, checkpoint=tmp_path / "run")
    assert same(*models)


class Noisy(torch.utils.data.Dataset):
    """Examples that are augmented at every reading."""

    def __init__(self, pair):
        self.pair = pair

    def __len__(self):
        return len(self.pair[0])

    def __getitem__(self, index):
        return self.pair[0][index] + torch.rand(()), self.pair[1][index]


def test_data_that_change_at_each_reading_resume(lesson, tmp_path):
    data, whole, state = Noisy(lesson.train), droopy(), torch.get_rng_state()
    learn(whole, data)
    assert same(broken_off_and_resumed(data, tmp_path / "run", 5)[0], whole)
    assert examples(data) == examples(iter(())) == examples([torch.eye(2).to_sparse()]) == VARYING
    ordered = loader(lesson, generator=dice())
    assert len(examples(ordered)) == 64
    assert torch.equal(ordered.generator.get_state(), dice().get_state())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_file_of_an_earlier_version_is_refused(lesson, tmp_path, snapshot):
    path, model = tmp_path / "run", droopy()
    learn(droopy(), lesson, checkpoint=path)
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["prunelab"]) | {"format": "prunelab run 1"}
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    path.write_bytes(checkpoints.to_bytes(kept, {"prunelab": json.dumps(facts)}))
    before = snapshot(model)
    with pytest.raises(PruneError, match="is no training run of this version"):
        learn(model, lesson, checkpoint=path)
    assert snapshot(model) == before


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

    monkeypatch.setattr(os, "fsync", full)
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

    def tell(done, total):
        steps.value = done
        time.sleep(0.002)

    data, on_step = (torch.tensor(x), torch.tensor(y)), stopping(None, tell)
    learn(droopy(), data, epochs=40, checkpoint=Checkpoint(path, 3), on_step=on_step)


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
        saved = Checkpoint(path, 3)
        assert learn(model, lesson.train, epochs=40, checkpoint=saved, on_step=stopping()).steps == 120
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
            learn(model, lesson, epochs=2000, checkpoint=Checkpoint(path, 1), on_step=stopping())
        # Seldom torch's backward reports an interrupt as an error of its own; from anywhere else it would be ours.
        assert pressed
        assert stopped.type is KeyboardInterrupt or stopped.traceback[-1].path.parts[-2:] == ("autograd", "graph.py")
        del stopped
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    gc.collect()
    after = snapshot(model)
    assert [after[k] for k in ("modules", "random", "grad mode")] == [
        before[k] for k in ("modules", "random", "grad mode")
    ]
    assert all(torch.isfinite(p).all() and p.grad is None for p in model.parameters())
    assert set(os.listdir(tmp_path)) <= {"run"}
    if path.exists():
        with safe_open(path, "pt") as file:
            done = file.get_tensor("losses").numel()
        resumed = droopy()
        with pytest.raises(Stop):
            learn(resumed, lesson, epochs=2000, checkpoint=Checkpoint(path, 1), on_step=stopping(done + 2))
