"""Learning rates step by step, against torch's own and against figures by hand."""

import pytest
import torch
from torch import nn

from prunelab import PruneError
from prunelab.recovery import train
from prunelab.recovery.run import Tail


def rates_of(schedule, steps, lr=0.1, optimizer=None):
    """The learning rate and the first momentum with which each step of a run was made."""
    seen, model = [], nn.Linear(2, 2)
    make = optimizer or (lambda m: torch.optim.AdamW(m.parameters(), lr=lr))

    def spying(m):
        made = make(m)
        made.register_step_pre_hook(lambda o, *_: seen.append((o.param_groups[0]["lr"], momentum(o.param_groups[0]))))
        return made

    data = [(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))]
    train(model, data, steps=steps, lr_schedule=schedule, optimizer=spying, progress=False)
    return seen


def momentum(group):
    return group["betas"][0] if "betas" in group else group.get("momentum")


def test_one_cycle_is_torchs():
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=0.1)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    wanted = []
    for _ in range(10):
        wanted.append((optimizer.param_groups[0]["lr"], momentum(optimizer.param_groups[0])))
        optimizer.step()
        cycle.step()
    assert rates_of("one_cycle", 10) == wanted


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        (lambda t: (1 - t) ** 2, [1, 0.5625, 0.25, 0.0625]),
    ],
)
def test_by_hand(schedule, factors):
    assert [rate for rate, _ in rates_of(schedule, 4)] == pytest.approx([0.1 * f for f in factors])


@pytest.mark.parametrize("schedule", ["one_cycle", "linear", "constant", lambda t: 1 / (1 + t)])
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_a_tail_is_the_end_of_the_whole(schedule, steps):
    """Momentum too, which one-cycle moves against the rate."""
    assert rates_of(Tail(10, schedule), steps) == rates_of(schedule, 10)[10 - steps :]


def test_a_tail_has_a_tail():
    assert rates_of(Tail(10, Tail(20, "linear")), 4) == rates_of("linear", 20)[16:]


def test_momentum_is_cycled_only_where_there_is_one():
    plain = rates_of("one_cycle", 10, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    heavy = rates_of("one_cycle", 10, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
    assert {m for _, m in plain} == {0}
    assert min(m for _, m in heavy) == pytest.approx(0.85)
    assert [r for r, _ in plain] == [r for r, _ in heavy]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Tail(0), r"of=0"),
        (lambda: Tail(2.5), r"of=2.5"),
        (lambda: Tail(5, "cosine"), "no learning-rate schedule is called 'cosine'"),
        (lambda: rates_of(Tail(5), 6), "6 steps cannot replay the end of a run of 5: give at most 5"),
        (lambda: rates_of(None, 6), "no learning-rate schedule is called None"),
    ],
)
def test_bad_schedules(make, says):
    with pytest.raises(PruneError, match=says):
        make()
