"""The teacher's share of the loss by hand and by an independent formula; the teacher itself is left alone."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab import PruneError
from prunelab.language import next_token_loss
from prunelab.recovery import Distillation, distil, rewind_rates


class Says(nn.Module):
    """A network that says the same of everything."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def test_by_hand():
    """Teacher (ln 3, 0) is 3/4 to 1/4, student (0, 0) even; at T = 2 the teacher is sqrt 3 to 1."""
    student, labels = torch.zeros(1, 2), torch.tensor([1])
    one = Distillation(Says(math.log(3.0), 0.0), temperature=1, alpha=1)(torch.zeros(1, 1), student, labels)
    assert one.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    p = math.sqrt(3) / (math.sqrt(3) + 1)
    two = Distillation(Says(math.log(3.0), 0.0), temperature=2, alpha=0.5)(torch.zeros(1, 1), student, labels)
    apart = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert two.item() == pytest.approx(0.5 * 4 * apart + 0.5 * math.log(2))


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (5, 3, 3)], ids=["classes", "classes and positions", "as many"])
def test_against_probabilities_written_out(shape):
    dice = torch.Generator().manual_seed(0)
    said, outputs = torch.randn(shape, generator=dice), torch.randn(shape, generator=dice)
    targets = torch.randint(3, (shape[0], *shape[2:]), generator=dice)
    p, q = (said / 3).softmax(1), (outputs / 3).softmax(1)
    apart = (p * (p / q).log()).sum(1).mean()
    wanted = 0.6 * 9 * apart + 0.4 * F.cross_entropy(outputs, targets)
    teacher = nn.Identity()  # what it is given is what it says
    torch.testing.assert_close(Distillation(teacher, 3.0, 0.6)(said, outputs, targets), wanted)


def test_alpha_zero_is_plain_training(build, lesson):
    one, two = build("mlp"), build("mlp")
    pl.recovery.finetune(one, lesson, epochs=2, batch_size=16, progress=False)
    distil(two, copy.deepcopy(build("mlp")), lesson, alpha=0.0, epochs=2, batch_size=16, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_student_of_the_teacher_alone_comes_to_agree_with_it(build, lesson):
    """Labels say nothing here: all are class 0. Only the teacher knows."""
    torch.manual_seed(1)
    teacher = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    pl.recovery.train(teacher, lesson, epochs=20, lr=0.05, batch_size=16, progress=False)
    student, x = build("mlp"), lesson.train[0]
    blank = (x, torch.zeros(len(x), dtype=torch.long))
    distil(student, teacher, blank, alpha=1.0, temperature=2, epochs=20, lr=0.05, batch_size=16, progress=False)
    assert torch.equal(student(x).argmax(1), lesson.train[1])


def test_the_teacher_is_left_alone_and_masks_hold(build, data_for, snapshot):
    teacher = build("cnn")
    student = copy.deepcopy(teacher)
    masks = pl.prune(student, pl.Recipe(sparsity=0.5)).masks
    teacher.train()  # BatchNorm's statistics must not move all the same
    before = snapshot(teacher)
    distil(student, teacher, data_for("cnn"), epochs=2, batch_size=8, progress=False)
    assert snapshot(teacher) == before
    pl.bake(student)
    weights = dict(student.named_parameters())
    assert all(bool((weights[name][~mask] == 0).all()) for name, mask in masks.items())


def test_it_distils_by_another_way_to_train(build, lesson):
    model = build("mlp")
    history = distil(model, build("mlp"), lesson, train=rewind_rates, steps=4, of=6, batch_size=16, progress=False)
    assert history.steps == 4
    assert history.valid[-1].loss < 3  # the labels' loss, not the distillation's


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"teacher": nn.Linear(6, 4)}, r"teacher Linear gives outputs \(16, 4\), the model Sequential \(16, 3\)"),
        ({"temperature": 0}, "temperature=0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"alpha": math.nan}, "alpha=nan"),
    ],
    ids=str,
)
def test_bad_input_changes_nothing(build, lesson, snapshot, options, says):
    model = build("mlp")
    before = snapshot(model)
    with pytest.raises(PruneError, match=says):
        distil(model, **{"teacher": build("mlp"), "data": lesson, "batch_size": 16, "progress": False, **options})
    assert snapshot(model) == before


def test_a_model_cannot_teach_itself(build, lesson):
    model = build("mlp")
    with pytest.raises(PruneError, match="the teacher is the model itself"):
        distil(model, model, lesson)


def test_a_language_model_is_compared_by_token():
    """The same probabilities for each next token: nothing to learn, wherever its logits' zero lies."""
    said = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    moved = said + torch.arange(5.0).view(1, 5, 1)
    objective = Distillation(nn.Identity(), alpha=1.0, loss=next_token_loss)
    assert objective(said, moved, torch.zeros(2, 5).long()).item() == pytest.approx(0, abs=1e-5)


def test_a_batch_that_is_no_pair_is_named(build, lesson):
    x, y = lesson.train
    three = torch.utils.data.TensorDataset(x, y, y)
    for retrain in (pl.recovery.train, pl.recovery.recalibrate_batchnorm):
        with pytest.raises(PruneError, match=r"of 3: give pairs \(inputs, targets\)"):
            retrain(build("cnn"), three)
