"""One form for strategies: registered, found, written and read alike, whatever their kind."""

from dataclasses import dataclass
from functools import partial

import pytest
from torch import nn

import prunelab as pl
from prunelab import PruneError
from prunelab.pipeline import STRATEGIES


@pytest.fixture(params=STRATEGIES)
def registry(request, monkeypatch):
    """Each kind, which forgets afterwards what a test has registered."""
    registry = STRATEGIES[request.param]
    monkeypatch.setattr(registry, "_known", dict(registry._known))
    return registry


def mine(*args, strength=1.0):
    """A strategy of any kind that starts at 0 and ends at 1, should it be a schedule."""
    return args[0] * strength


@dataclass(frozen=True)
class Mine:
    strength: float = 1.0
    inner: object = None

    def __call__(self, *args):
        return args[0] * self.strength


@dataclass(frozen=True)
class Needy:
    strength: float

    def __call__(self, *args):
        return args[0]


def test_a_function_of_ones_own(registry):
    assert registry.register("mine")(mine) is mine
    assert registry.by_name("mine") is registry.by_name(mine) is registry["mine"] is mine
    assert "mine" in list(registry)
    assert registry.describe(mine) == "mine"
    table = registry.describe(partial(mine, strength=1.0 + 1e-12))
    assert table == {"name": "mine", "strength": 1.0 + 1e-12}
    assert registry.revive(table)(1) == 1.0 + 1e-12


def test_a_dataclass_of_ones_own(registry):
    registry.register("mine")(mine)
    registry.register("my class")(Mine)
    assert registry["my class"] == Mine()
    assert registry.describe(Mine()) == "my class"
    table = registry.describe(Mine(2.0, mine))
    assert table == {"name": "my class", "strength": 2.0, "inner": "mine"}
    assert registry.revive(table) == Mine(2.0, "mine")


def test_what_needs_options(registry):
    registry.register("needy")(Needy)
    assert "needy" not in registry
    with pytest.raises(PruneError, match=r"'needy' needs options: give Needy\(strength\)"):
        registry.by_name("needy")
    with pytest.raises(PruneError, match=r"there is .*needy\(strength\)"):
        registry.by_name("nothing")
    assert registry.revive(registry.describe(Needy(3))) == Needy(3)


def test_names_that_are_nearly_right(registry):
    registry.register("my strategy")(mine)
    with pytest.raises(PruneError, match=r"Did you mean 'my strategy'\?"):
        registry.by_name("my stratagy")


def test_what_is_no_strategy(registry):
    with pytest.raises(PruneError, match=r'write @register\("mine"\)'):
        registry.register(mine)
    with pytest.raises(PruneError, match="give a function"):
        registry.register("five")(5)
    with pytest.raises(PruneError, match=r"Needy is a class: give an instance, such as Needy\(...\)"):
        registry.by_name(Needy)
    registry.register("my class")(Mine)
    with pytest.raises(PruneError, match=r"strength of the .* 'my class' is a dict: only names"):
        registry.describe(Mine({}))


def test_a_schedule_must_lead_somewhere():
    with pytest.raises(PruneError, match="goes from 0 to 100"):
        pl.schedules.register("far")(lambda t: 100 * t)


def test_old_names_work_for_now():
    groups, model = pl.granularity.weights(nn.Linear(4, 2)), nn.Linear(4, 2)
    with pytest.warns(DeprecationWarning, match="now layerwise"):
        assert pl.shares.uniform(groups, 0.5) == {"weight": 0.5}
    with pytest.warns(DeprecationWarning, match=r"prunelab\.shares\.erk is now prunelab\.layerwise\.erk"):
        assert pl.shares.erk(model, groups, 0.5) == {"weight": 0.5}
    with pytest.raises(AttributeError, match="no attribute 'stocks'"):
        pl.stocks  # noqa: B018
