"""What notebook 16 stands on: networks to pick, the live front, stored fronts, the exam's marks, the workbench."""

import copy
from types import SimpleNamespace

import counted_clock
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import prunelab as pl
from prunelab import PruneError, zoo
from prunelab.budget import Trial
from prunelab.lab.author import exam as solution
from prunelab.lab.learn import exam, network_choice, workbench
from prunelab.lab.lessons import lesson_16
from prunelab.lab.show import fronts
from prunelab.measurement.timing import Speedup

SCARCE = 0.12  # of the MACs: what a network of three tenths of the time has left

OWN = """
import torch
from torch import nn
def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
def data():
    pair = torch.zeros(6, 4), torch.arange(6) % 3
    return pair, pair
"""


def trial(name, latency, accuracy, stage="screened"):
    ratios = {"latency": latency, "bytes": latency, "macs": latency}
    costs = {"latency": latency, "bytes": 100.0, "macs": 100.0}
    return Trial(name, stage, 5, {}, accuracy, (0, 1), 10, costs, ratios, Speedup(1, 1, 1))


TRIALS = [
    trial("dense", 1.0, 0.9, "dense"),
    trial("a", 0.5, 0.8),
    trial("b", 0.6, 0.7),
    trial("c", 0.3, 0.5, "finalist"),
]


def test_pick_from_the_zoo():
    model, data = network_choice.pick("digits-mlp")
    assert pl.measurement.evaluate(model, data, "valid").accuracy > 0.8


def test_pick_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    model, data = network_choice.pick(str(tmp_path / "mine.py"))
    assert model(data.train[0]).shape == (6, 3)
    assert data.valid[1].tolist() == [0, 1, 2, 0, 1, 2]


def test_pick_from_torchvision_without_a_download(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # where no weights are
    model, data = network_choice.pick("torchvision:shufflenet_v2_x0_5", pixels=16, steps=1, progress=False)
    assert model(data.train[:2][0]).shape == (2, 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits-rnn", "no network is called 'digits-rnn': the zoo has"),
        ("torchvision:resnet1", "no classifier called 'resnet1'"),
        ("torchvision:squeezenet1_1", "SqueezeNet does not end in a linear layer"),
        ("nowhere.py", "is no Python file"),
        ("empty.py", r"does not define model\(\) and data\(\)"),
    ],
)
def test_what_can_not_be_picked(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(PruneError, match=message):
        network_choice.pick(name)


def test_the_front_fills_in(capsys):
    watch = fronts.watch(0.5)
    assert "fills in" in capsys.readouterr().out
    watch(TRIALS[0])
    assert "1 tried so far. None is within the budget yet." in watch.picture.value
    for t in TRIALS[1:]:
        watch(t)
    assert "4 tried so far. The most accurate within the budget: a, 80.0 %." in watch.picture.value
    assert "<img" in watch.picture.value


def stored(network, name, stage, latency, accuracy, chosen=False, test=None):
    costs = {"latency": latency, "chosen": chosen, "test": test}
    return {"network": network, "name": name, "stage": stage, "accuracy": accuracy, **costs}


RUNS = [
    stored("one", "nothing pruned", "dense", 1.0, 0.97, test=0.96),
    stored("one", "magnitude, uniform, all structures", "finalist", 0.45, 0.93),
    stored("one", "taylor, global, all structures", "finalist", 0.48, 0.95, chosen=True, test=0.93),
    stored("one", "taylor, global, all structures", "front", 0.6, 0.94),
]


def test_stored_fronts():
    assert lesson_16.within(RUNS, "one", 0.5)["name"] == "taylor, global, all structures"
    assert lesson_16.within(RUNS, "one", 0.46)["accuracy"] == 0.93
    assert lesson_16.within(RUNS, "one", 0.3) is None
    assert lesson_16.best(RUNS, "one", 0.5)["time"] == "≈ 48.0 %"
    for budget, title in ((0.5, "one: taylor, global"), (0.3, "one: nothing that was tried is within the budget")):
        ax = Figure().subplots()
        lesson_16.stored_front(ax, RUNS, "one", budget)
        assert ax.get_title() == title


def test_luck_is_what_a_lead_loses_on_other_digits():
    net = "one"
    lucky = [{"network": net, "valid": "44", "test": "2222"}, {"network": net, "valid": "00", "test": "2222"}]
    assert lesson_16.luck(lucky, 2, 2) == [0.5]  # ahead of the mean by half of all views, and on test by none
    able = [{"network": net, "valid": "44", "test": "4444"}, {"network": net, "valid": "00", "test": "0000"}]
    assert lesson_16.luck(able, 2, 1) == [0.0]


@pytest.mark.parametrize(
    ("ratio", "hidden", "kept"),
    [
        (0.49, (0.96, 0.95, 0.93), (True, True, True)),
        (0.51, (0.96, 0.95, 0.93), (False, True, True)),
        (0.49, (0.96, 0.90, 0.89), (True, False, True)),
        (0.49, (0.96, 0.95, 0.948), (True, True, False)),  # too near to tell
        (0.49, (0.96, 0.93, 0.95), (True, True, False)),
    ],
)
def test_the_marks(ratio, hidden, kept):
    marks = exam.judged(ratio, dict(zip(("dense", "yours", "equal shares"), hidden, strict=True)), budget=0.5)
    assert tuple(m.kept for m in marks) == kept
    assert "50 % allowed" in marks[0].found
    assert ("too little to tell" in marks[2].found) == (abs(hidden[1] - hidden[2]) < exam.TIE)


def test_the_exams_digits_are_held_back_from_its_network_and_its_data():
    pair, hidden = exam.split()
    digits = zoo.load("digits")
    assert (len(pair.train), len(hidden)) == (3200, 800)
    assert not {x.tobytes() for x in pair.train.tensors[0].numpy()} & {x.tobytes() for x in hidden.tensors[0].numpy()}
    assert torch.equal(hidden.tensors[1][:200], zoo.data.scans()[1][digits.origin["train"][:200]])
    shares = hidden.tensors[1].bincount() / 800 - digits.train.tensors[1].bincount() / 4000
    assert float(shares.abs().max()) < 1 / 200
    assert zoo.trained.cards()["exam"]["training"]["training_scans_not_seen"] == exam.HELD_BACK


def test_the_exam_counts_steps_hides_its_digits_and_marks_calmly(capsys, monkeypatch, home):
    paper = exam.exam()
    assert not hasattr(paper.data, "test")
    assert not hasattr(paper, "hidden")
    paper.mark(...)
    assert "not attempted yet" in capsys.readouterr().out
    assert [m.found[:20] for m in paper.marks(7)] == ["it is a int: hand in"]
    assert "the exam's" in paper.marks(paper.model)[0].found
    monkeypatch.setattr(exam, "equal_shares", lambda paper: paper.model)
    assert "cannot run on inputs" in paper.marks(nn.Linear(3, 10))[0].found
    twin = copy.deepcopy(paper.model)
    assert [m.kept for m in paper.marks(twin)] == [False, True, False, True]  # no smaller, worse, better; not trained
    pl.recovery.finetune(twin, paper.data, steps=2, progress=False)
    assert "not by `paper.retrain`" in paper._steps(twin).found
    paper.retrain(twin, 2, progress=False)
    assert paper._steps(twin) == exam.Mark("At most 100 counted steps", True, "this paper has counted 2")
    paper.counted += 99
    assert not paper._steps(twin).kept
    for attempt in (1, 2):
        paper.mark(twin)
        shown = capsys.readouterr().out
        assert "✗ It is within the budget" in shown
        assert f"Attempt {attempt}:" in shown


@pytest.mark.slow
def test_one_way_through_the_exam_passes_and_another_fails(home, monkeypatch):
    counted_clock.install(monkeypatch)
    passed, failed = exam.exam(), exam.exam()
    passed.budget = failed.budget = SCARCE
    marks = passed.marks(solution.by_teacher(passed))
    assert all(m.kept for m in marks), marks
    marks = failed.marks(solution.by_search(failed))
    assert not marks[3].kept
    assert "not by `paper.retrain`" in marks[3].found


def test_the_workbench_says_what_goes_wrong_and_shows_what_goes_right(monkeypatch, capsys, tmp_path):
    bench = workbench.workbench()
    assert "Nothing runs before" in capsys.readouterr().out
    bench.network.value = "nowhere.py"
    bench.button.click()
    assert "is no Python file" in bench.report.value
    assert not bench.button.disabled
    (tmp_path / "mine.py").write_text("import nowhere")
    bench.network.value = str(tmp_path / "mine.py")
    bench.button.click()
    assert "ModuleNotFoundError: No module named" in bench.report.value

    asked = {}

    def fit(model, data, **options):
        asked.update(options)
        options["on_trial"](TRIALS[0])
        return SimpleNamespace(model=model, _repr_html_=lambda: "<p>the report</p>")

    monkeypatch.setattr(workbench, "fit_budget", fit)
    bench.network.value, bench.cost.value, bench.share.value, bench.steps.value = "digits-mlp", "bytes", 0.3, 50
    bench.folder.value = str(tmp_path)
    bench.button.click()
    assert (asked["bytes"], asked["recover_steps"], asked["save"]) == (0.3, 50, str(tmp_path))
    assert "the report" in bench.report.value
    assert "model.onnx: ONNX" in bench.report.value
    assert "<img" in bench.picture.value
    assert (tmp_path / "model.onnx").exists()


def test_the_exams_network():
    model = zoo.checkpoint("exam")
    assert pl.measurement.evaluate(model, zoo.load("digits"), "valid").accuracy > 0.95
    assert torch.equal(zoo.resnet(seed=3).stem.weight, zoo.resnet(seed=3).stem.weight)
    assert not torch.equal(zoo.resnet(seed=3).stem.weight, zoo.resnet().stem.weight)
    assert zoo.resnet(classes=3, channels=2, widths=(4, 6))(torch.zeros(2, 2, 8, 8)).shape == (2, 3)
    with pytest.raises(zoo.ZooError, match=r"widths\[1\]=0"):
        zoo.resnet(widths=(4, 0))
