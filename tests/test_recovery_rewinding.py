"""Weights and rates go back to where they were, and the masks stay."""

import pytest
import torch

import prunelab as pl
from prunelab import PruneError
from prunelab.masking import current_masks
from prunelab.recovery import Early, rewind, rewind_rates, rewind_weights, state_of, train
from prunelab.recovery.run import Tail


def learn(model, data, **options):
    return train(model, data, **{"epochs": 2, "batch_size": 16, "progress": False, **options})


def test_an_early_state_is_the_one_of_that_step(build, lesson):
    model, short = build("mlp"), build("mlp")
    early = Early(model, 2)
    learn(model, lesson, on_step=early, lr_schedule="constant")
    learn(short, lesson, epochs=None, steps=2, lr_schedule="constant")
    assert all(torch.equal(early.state[k], v) for k, v in short.state_dict().items())
    assert not torch.equal(early.state["0.weight"], model[0].weight)


@pytest.mark.parametrize("at", [-1, 7])
def test_a_step_that_never_comes(build, lesson, at):
    model = build("mlp")
    with pytest.raises(PruneError, match=f"at={at}.*6 steps"):
        learn(model, lesson, on_step=Early(model, at))


@pytest.mark.parametrize("name", ["cnn", "tied", "residual", "attention"])
def test_rewound_the_weights_are_early_and_the_masks_stay(build, data_for, name):
    model = build(name)
    early = state_of(model)
    learn(model, data_for(name))
    masks = pl.prune(model, pl.Recipe(sparsity=0.5)).masks
    assert rewind(model, early) is model
    assert all(torch.equal(v, early[k]) for k, v in state_of(model).items())  # running statistics too
    assert all(torch.equal(current_masks(model)[k], m) for k, m in masks.items())
    pl.bake(model)
    for key, mask in masks.items():
        assert torch.equal(dict(model.named_parameters())[key], torch.where(mask, early[key], 0.0))


def test_rewound_without_a_mask_and_run_to_its_end_it_is_the_first_training(build, lesson):
    """The check that weight rewinding replays what it says: nothing pruned, the data's order the same, 6 of 6 steps."""
    model, again = build("mlp"), build("mlp")
    start = state_of(model)
    learn(model, lesson)
    rewind_weights(again, start, lesson, steps=6, of=6, batch_size=16, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_rates_are_those_of_the_end(build, lesson):
    one, two = build("mlp"), build("mlp")
    rewind_rates(one, lesson, steps=4, of=6, lr=0.02, batch_size=16, progress=False)
    learn(two, lesson, epochs=None, steps=4, lr=0.02, lr_schedule=Tail(6))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_state_of_another_model_is_refused(build, snapshot):
    model = build("cnn")
    pl.prune(model, pl.Recipe(sparsity=0.5))
    before = snapshot(model)
    for other, says in (
        (state_of(build("mlp")), "the early state is not this Sequential's: .*is in only one of them"),
        ({**state_of(model), "0.weight": torch.zeros(2, 1, 3, 3)}, r"0.weight is \(4, 1, 3, 3\).*\(2, 1, 3, 3\)"),
        ({}, "the early state is not"),
    ):
        with pytest.raises(PruneError, match=says):
            rewind(model, other)
    assert snapshot(model) == before


def test_an_early_state_that_a_resumed_run_has_passed_is_missed_aloud(build, lesson, tmp_path):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    saved = pl.recovery.Checkpoint(tmp_path / "run", every=2)
    with pytest.raises(KeyboardInterrupt):
        learn(build("mlp"), lesson, on_step=_Named(stop), checkpoint=saved)
    model = build("mlp")
    with pytest.raises(PruneError, match=r"at=1\) came too late"):
        learn(model, lesson, on_step=_Named(Early(model, 1)), checkpoint=saved)


class _Named:
    """What is called after each step, under one name for both runs."""

    def __init__(self, act):
        self.act = act

    def __call__(self, done, total):
        self.act(done, total)

    def __repr__(self):
        return "each step"
