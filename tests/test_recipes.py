"""Recipes as files: what is written comes back equal, prunes the same units, and nothing strange is written or read."""

import json
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import prunelab as pl
from prunelab import NM, PruneError, Recipe, load_recipe, save_recipe
from prunelab.criteria import CRITERIA, Random
from prunelab.criteria.gradients import Grasp
from prunelab.granularity import GRANULARITIES, Together, blocks, weights
from prunelab.recipes import _as_toml, described, revived
from prunelab.schedules import SCHEDULES, Exponential

RECIPES = {
    "default": Recipe(),
    "all by name": Recipe("taylor", "filters", 0.3, "layer", "cubic", 4),
    "n:m": Recipe(scope=NM(2, 4)),
    "options": Recipe("magnitude", "filters", 0.6, reduce="mean", floor=2, round_to=4),
    "shares": Recipe(granularity="filters", sparsity={"conv 1": 0.25, 'a"b\\c\té\x7f': 1.0, "": 0.0}, scope="layer"),
    "a criterion's field": Recipe(Random(seed=7)),
    "a registered instance": Recipe(CRITERIA["grasp"]),
    "a criterion's other field": Recipe(Grasp(**{k: 2 * v for k, v in vars(CRITERIA["grasp"]).items()})),
    "blocks": Recipe(granularity=blocks(4, 2, exclude=["fc.weight"])),
    "weights without some": Recipe(granularity=partial(weights, exclude=["b", "a"])),
    "together": Recipe(granularity=Together(("filters", "neurons"))),
    "a layer rule": Recipe(granularity="filters", sparsity=0.5, scope="layer", layerwise="erk"),
    "a layer rule's option": Recipe(sparsity=0.5, scope="layer", layerwise=partial(pl.layerwise.erk, floor=0.1)),
    "a schedule in a schedule": Recipe(schedule=pl.schedules.Between(0.1, 0.7, Exponential(0.9)), rounds=3),
    "a schedule's field": Recipe(schedule=Exponential(0.9), rounds=3),
    "functions that have names": Recipe(pl.criteria.magnitude, pl.granularity.filters, schedule=pl.schedules.cosine),
}


@pytest.mark.parametrize("suffix", ["json", "toml"])
@pytest.mark.parametrize("name", RECIPES)
def test_what_is_written_comes_back(tmp_path, name, suffix):
    recipe = RECIPES[name]
    path = save_recipe(tmp_path / f"r.{suffix}", recipe)
    found = load_recipe(path)
    assert described(found) == described(recipe)
    assert (found.sparsity, found.scope, found.rounds) == (recipe.sparsity, recipe.scope, recipe.rounds)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_every_registered_name_comes_back(tmp_path):
    names = [("criterion", n) for n in CRITERIA] + [("granularity", n) for n in GRANULARITIES]
    names += [("layerwise", n) for n in pl.layerwise.LAYER_RULES]
    for field, name in names + [("schedule", n) for n in SCHEDULES]:
        recipe = Recipe(**{field: name}, scope="layer" if field == "layerwise" else "global")
        assert load_recipe(save_recipe(tmp_path / "r.toml", recipe)) == recipe
    for name, criterion in CRITERIA.items():
        assert described(Recipe(criterion))["criterion"] == name


def test_the_file_is_what_one_would_write_by_hand(tmp_path):
    path = save_recipe(tmp_path / "r.toml", Recipe("taylor", "filters", {"conv1": 0.25}, "layer"))
    assert path.read_text() == (
        'format = "prunelab recipe 1"\ncriterion = "taylor"\ngranularity = "filters"\nscope = "layer"\n'
        'schedule = "one_shot"\nrounds = 1\n\n[sparsity]\n"conv1" = 0.25\n'
    )


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_someone_else_keeps_the_same_units(build, data_for, tmp_path, suffix):
    x, _ = data_for("cnn")
    calib = pl.Calibration.of(data_for("cnn"), batch_size=8)
    shares = {g.name: 0.5 for g in pl.granularity.filters(build("cnn"), x)}
    for recipe in (Recipe("taylor", "filters", shares, "layer"), Recipe("fisher", "weights", 0.3, "row")):
        mine = pl.prune(build("cnn"), recipe, calib, example=x)
        theirs = pl.prune(build("cnn"), load_recipe(save_recipe(tmp_path / f"r.{suffix}", recipe)), calib, example=x)
        assert mine.keep.keys() == theirs.keep.keys()
        assert all(torch.equal(mine.keep[g], theirs.keep[g]) for g in mine.keep)


@given(st.dictionaries(st.text(), st.floats(0, 1), min_size=1))
def test_any_text_and_any_fraction_pass_through_toml(shares):
    import tomllib

    shares = {k.encode("utf-8", "ignore").decode(): v for k, v in shares.items()}
    assert tomllib.loads(_as_toml({"rounds": 1, "sparsity": shares}))["sparsity"] == shares


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (lambda: Recipe(lambda m, c=None: {}), "criterion <lambda> can't be written.*not registered"),
        (lambda: Recipe(granularity=lambda m, e=None: []), "granularity <lambda> can't be written"),
        (lambda: Recipe(schedule=lambda t: t), "schedule <lambda> can't be written"),
        (lambda: Recipe(Grasp(float("nan"))), "temperature of the criterion 'grasp' is nan: only finite numbers"),
        (lambda: {"criterion": "magnitude"}, "this is a dict: give a Recipe"),
    ],
)
def test_what_no_name_describes_is_refused(tmp_path, recipe, message):
    with pytest.raises(PruneError, match=message):
        save_recipe(tmp_path / "r.toml", recipe())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "its format is 'list'"),
        ('{"format": "other 3"}', "its format is 'other 3'"),
        ('{"criterion": "magnitude"}', "its format is None"),
        ({"colour": "red"}, "no field 'colour'; it has criterion"),
        ({"criterion": "os.system"}, "no criterion is called 'os.system'"),
        ({"criterion": {"name": "magnitude", "x": 1}}, "'magnitude' has the options none; the file gives x"),
        ({"criterion": {"name": "random", "sea": 1}}, "has the options seed; the file gives sea"),
        ({"criterion": {"seed": 1}}, "a table with the key 'name'"),
        ({"criterion": 5}, "criterion is 5"),
        ({"granularity": {"name": "blocks", "r": 2}}, "'blocks' has the options r, c, exclude; the file gives r"),
        ({"granularity": {"name": "blocks", "r": 0, "c": 1}}, "blocks of r=0"),
        ({"granularity": {"name": "grains"}}, "no granularity is called 'grains'"),
        ({"granularity": {"name": "together", "names": ["grains"]}}, "no granularity is called 'grains'"),
        ({"scope": "4:2"}, "NM"),
        ({"scope": "everywhere"}, "no scope is called 'everywhere'"),
        ({"scope": "9" * 5000 + ":1"}, "no scope is called '999"),
        ({"criterion": {"name": "mama", "w0": 3}}, "w0 is a int, and no tensors by name"),
        ({"criterion": {"name": "mama", "w0": [1.5]}}, "w0 is a tuple"),
        ({"criterion": {"name": "mama", "w0": {"name": "magnitude"}}}, "w0 is a partial|w0 is a function"),
        ({"criterion": {"name": "mama", "w0": {"0.weight": 3}}}, "a table with the key 'name'"),
        ({"criterion": {"name": "mama", "w0": float("inf")}}, "w0 is inf, and not finite"),
        ({"criterion": {"name": "grasp", "temperature": float("nan")}}, "temperature is nan, and not finite"),
        ({"criterion": {"name": "grasp", "temperature": -float("inf")}}, "temperature is -inf, and not finite"),
        ({"schedule": {"name": "between", "start": 0, "end": float("nan")}}, "end is nan, and not finite"),
        ({"sparsity": 50}, "did you mean 0.5"),
        ({"sparsity": {"conv1": 50}}, "did you mean 0.5"),
        ({"sparsity": {"conv1": 0.5}, "scope": "row"}, "scope row with a share for each group"),
        ({"rounds": 0}, "rounds=0"),
        ({"layerwise": "erk"}, "layerwise='erk' makes a share for each group of one sparsity: give scope \"layer\""),
        ({"layerwise": "erk", "scope": "layer", "sparsity": {"conv1": 0.5}}, 'give scope "layer" and a number'),
        ({"layerwise": "by_sensitivity", "scope": "layer"}, r"needs options: give BySensitivity\(scan\)"),
    ],
    ids=str,
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "r.json"
    path.write_text(text if isinstance(text, str) else json.dumps({"format": "prunelab recipe 1", **text}))
    with pytest.raises(PruneError, match=message) as refusal:
        load_recipe(path)
    assert "r.json" in str(refusal.value)


def test_bad_paths(tmp_path):
    with pytest.raises(PruneError, match=r"a recipe is a \.json or a \.toml file"):
        save_recipe(tmp_path / "r.yaml", Recipe())
    with pytest.raises(PruneError, match="can't be read"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PruneError, match="is no TOML"):
        load_recipe(tmp_path / "r.toml")


def test_shares_by_group_prune_as_allocate_does(build, data_for):
    x, _ = data_for("cnn")
    groups = pl.granularity.filters(build("cnn"), x)
    shares = {g.name: s for g, s in zip(groups, (0.25, 0.5), strict=True)}
    pruned = pl.prune(build("cnn"), Recipe(granularity="filters", sparsity=shares, scope="layer", rounds=2), example=x)
    wanted = pl.allocate(pl.criteria.magnitude(build("cnn")), groups, shares, "layer")
    assert all(torch.equal(pruned.keep[n], wanted[n]) for n in wanted)
    with pytest.raises(PruneError, match="no group 'conv9'"):
        pl.prune(build("cnn"), Recipe(granularity="filters", sparsity={"conv9": 0.5}, scope="layer"), example=x)


def test_values_that_are_no_recipe():
    with pytest.raises(PruneError, match="its format is 'NoneType'"):
        revived(None)
