"""What every registered criterion, on every scope and granularity that fits the model, must keep to."""

import inspect
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import prunelab as pl
from prunelab import zoo
from prunelab.allocation import SCOPES
from prunelab.core import lookup
from prunelab.criteria import CRITERIA
from prunelab.granularity import GRANULARITIES
from prunelab.lab.workshop import reference
from prunelab.masking import current_masks

DECODERS_ONLY = {"block_influence", "angular_distance", "glu_peak_to_peak", "mlps", "attentions", "layers"}
EXPERTS_ONLY = {"expert_frequency", "expert_norm", "reap", "experts"}
ELSEWHERE = DECODERS_ONLY | EXPERTS_ONLY  # tests/test_contract_decoders.py, tests/test_experts.py
CRITERIA = {n: c for n, c in CRITERIA.items() if n not in ELSEWHERE}
GRANULARITIES = {n: g for n, g in GRANULARITIES.items() if n not in ELSEWHERE}

EVERY = [*CRITERIA, "mama"]  # which needs weights to measure movement from: `judge` gives it some
MODELS = ["cnn", "mlp", "residual", "vit"]
HAS = {  # a trace of a Transformer takes seconds: the traced granularities are tried on the others
    "cnn": ("weights", "filters", "coupled"),
    "mlp": ("weights", "neurons", "coupled"),
    "residual": ("weights", "filters", "coupled"),
    "vit": ("weights", "heads"),
}
PARTIAL = {"bn_slimming": "no BatchNorm", "head_importance": "no attention layer"}  # they score some tensors only


def fits(name, criterion, scope, granularity):
    """A row compares single weights; a model must have the structures; and some criteria score only some."""
    if criterion == "bn_slimming" and (granularity == "weights" or name not in ("cnn", "residual")):
        return False
    if criterion == "head_importance" and granularity != "heads":
        return False
    return (granularity == "weights" or scope != "row") and granularity in HAS[name]


def scorable(model, criterion):
    """Whether the model has what a partial criterion scores."""
    kind = {"bn_slimming": nn.BatchNorm2d, "head_importance": zoo.networks.Attention}.get(criterion, nn.Module)
    return any(isinstance(m, kind) for m in model.modules())


CASES = [c for c in itertools.product(MODELS, EVERY, SCOPES, GRANULARITIES) if fits(*c)]
every_case = pytest.mark.parametrize(("name", "criterion", "scope", "granularity"), CASES, indirect=["name"])


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def model(build, data_for, name):
    """With gradients from some earlier training, a mode of its own, and one frozen bias."""
    model, (x, y) = build(name), data_for(name)
    nn.functional.cross_entropy(model(x), y).backward()
    next(b for n, b in model.named_parameters() if n.endswith("bias")).requires_grad_(False)
    return model.eval()


@pytest.fixture(scope="module")
def traced():
    """A function to a granularity that gives the same groups as the registered one, found only once for each model."""
    known = {}

    def granularity_of(name, granularity):
        def find(model, example=None):
            if (name, granularity) not in known:
                known[name, granularity] = GRANULARITIES[granularity](model, example)
            return known[name, granularity]

        return find

    return granularity_of


@pytest.fixture
def judge(build, name):
    """A function from a name to the criterion; MAMA's weights before are those of the same network, each scaled."""

    def named(criterion):
        if criterion != "mama":
            return CRITERIA[criterion]
        before = build(name)
        with torch.no_grad():
            for w in pl.prunable(before).values():
                w.mul_(torch.linspace(0.5, 1.4, w.numel()).view_as(w))
        return pl.criteria.Mama.of(before)

    return named


@pytest.fixture
def calib(data_for, name):
    return pl.Calibration.of(data_for(name), batch_size=8)


@pytest.mark.parametrize("criterion", EVERY)
@pytest.mark.parametrize("worn", [False, True], ids=["plain", "worn"])
def test_scores(model, judge, calib, snapshot, criterion, worn):
    if worn:
        pl.prune(model, pl.Recipe(sparsity=0.3))
    before = snapshot(model)
    if not scorable(model, criterion):
        with pytest.raises(pl.PruneError, match=PARTIAL[criterion]):
            judge(criterion)(model, calib)
        return
    scores, again = (judge(criterion)(model, calib) for _ in range(2))
    assert snapshot(model) == before
    scored = {n: lookup(model, n)[0].tensor for n in scores} if criterion in PARTIAL else pl.prunable(model)
    assert list(scores) == list(scored)
    for name, w in scored.items():
        assert scores[name].shape == w.shape
        assert torch.isfinite(scores[name]).all()
        assert not scores[name].requires_grad
        assert torch.equal(scores[name], again[name])


def test_criteria_with_different_names_give_different_scores(model, judge, calib):
    alike = {n: judge(n) for n in EVERY if n not in PARTIAL}  # which score other tensors
    scores = {n: torch.cat([s.flatten().double() for s in c(model, calib).values()]) for n, c in alike.items()}
    for a, b in itertools.combinations(scores, 2):
        assert not torch.allclose(scores[a], scores[b]), (a, b)


@every_case
def test_prune_train_bake(build, data_for, name, judge, calib, snapshot, traced, criterion, scope, granularity):
    model, (x, y) = build(name), data_for(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.3)  # made before the masks
    fresh = snapshot(model)
    pruned = pl.prune(model, pl.Recipe(judge(criterion), traced(name, granularity), 0.4, scope), calib, example=x)
    expected = [(~m).sum() for m in pruned.masks.values()]
    later = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.3)  # made after them
    for step in (optimizer, later, optimizer):
        step.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        step.step()
    model.eval()
    with torch.no_grad():
        masked = model(x)
        pl.bake(model)
        assert torch.equal(model(x), masked)
    model.train()
    baked = snapshot(model)
    assert baked["modules"] == fresh["modules"]
    assert [p[:2] for p in baked["parameters"]] == [p[:2] for p in fresh["parameters"]]
    for (tensor, mask), gone in zip(pruned.masks.items(), expected, strict=True):
        assert not model.get_parameter(tensor)[~mask].any()
        assert int((~mask).sum()) == gone
    assert baked["state"] != fresh["state"]


@every_case
def test_the_report_says_what_was_achieved(model, judge, calib, data_for, name, traced, criterion, scope, granularity):
    recipe = pl.Recipe(judge(criterion), traced(name, granularity), 0.37, scope)
    pruned = pl.prune(model, recipe, calib, example=data_for(name)[0])
    kept = {g.name: int(pruned.keep[g.name].sum()) for g in pruned.groups}
    assert {r.name: r.kept for r in pruned.report.layers} == kept
    assert pruned.report.sparsity == pytest.approx(1 - sum(kept.values()) / sum(g.units for g in pruned.groups))
    if granularity == "weights":
        zeros = sum(int((~m).sum()) for m in current_masks(model).values())
        assert pruned.report.total.units - pruned.report.total.kept == zeros


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", ["constant", "three values"])
def test_exact_counts_under_ties(model, scope, kind):
    with torch.no_grad():
        for w in pl.prunable(model).values():
            w.copy_(w.sign() if kind == "constant" else (w * 1e9).round() % 3 - 1)
    masks = pl.prune(model, pl.Recipe(sparsity=0.3, scope=scope)).masks
    if scope == "global":
        total = sum(m.numel() for m in masks.values())
        assert sum(int((~m).sum()) for m in masks.values()) == round(0.3 * total)
    elif scope == "layer":
        assert all(int((~m).sum()) == round(0.3 * m.numel()) for m in masks.values())
    else:
        rows = [m.flatten(1) for m in masks.values()]
        assert all(((~r).sum(1) == round(0.3 * r.shape[1])).all() for r in rows)


@every_case
def test_masked_is_undone_to_the_bit(
    model, judge, calib, data_for, name, snapshot, traced, criterion, scope, granularity
):
    before = snapshot(model)
    groups = traced(name, granularity)(model, data_for(name)[0])
    keep = pl.allocate(judge(criterion)(model, calib), groups, 0.5, scope)
    with pl.masked(model, pl.expand(model, groups, keep)):
        pass
    assert snapshot(model) == before


# Equality with torch.nn.utils.prune, where no tie leaves the choice open


def pairs(model):
    places = [lookup(model, n)[0] for n in pl.prunable(model)]
    return [(p.module, p.attribute) for p in places]


def assert_decided(scores, sparsity):
    """The last to go and the first to stay do not tie, so that who goes is a matter of fact."""
    ordered = torch.cat([s.flatten() for s in scores]).sort().values
    last = round(sparsity * len(ordered)) - 1
    assert ordered[last] < ordered[last + 1]


def same(mine, where, theirs):
    for name, (module, attribute) in where.items():
        assert torch.equal(mine[name], getattr(module, f"{attribute}_mask").bool())
        assert torch.equal(theirs[name] * mine[name], getattr(module, attribute))


@pytest.fixture
def twins(build, name):
    """The same model twice: a small one, or the trained network of the course."""
    return tuple(zoo.checkpoint(name) if name in zoo.checkpoints() else build(name) for _ in range(2))


against_torch = pytest.mark.parametrize("name", [*MODELS, "digits-cnn"], indirect=True)


@against_torch
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.83])
def test_as_torch_l1_unstructured(twins, sparsity):
    mine, theirs = twins
    for score in CRITERIA["magnitude"](mine).values():
        assert_decided([score], sparsity)
    weights = {n: w.detach().clone() for n, w in pl.prunable(theirs).items()}
    where = dict(zip(weights, pairs(theirs), strict=True))
    masks = pl.prune(mine, pl.Recipe(sparsity=sparsity, scope="layer")).masks
    for module, attribute in where.values():
        torch_prune.l1_unstructured(module, attribute, amount=sparsity)
    same(masks, where, weights)


@against_torch
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.83])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_as_torch_global_unstructured(twins, sparsity, criterion):
    mine, theirs = twins
    assert_decided(CRITERIA[criterion](mine).values(), sparsity)
    weights = {n: w.detach().clone() for n, w in pl.prunable(theirs).items()}
    where = dict(zip(weights, pairs(theirs), strict=True))
    masks = pl.prune(mine, pl.Recipe(criterion, sparsity=sparsity)).masks
    given = CRITERIA[criterion](theirs) if criterion == "random" else {}
    torch_prune.global_unstructured(
        list(where.values()),
        pruning_method=torch_prune.L1Unstructured,
        importance_scores={where[n]: s for n, s in given.items()} or None,
        amount=sparsity,
    )
    same(masks, where, weights)


# An example that runs belongs to each public function. These need a model of transformers, the Llama or a clock (the
# notebooks and the README hold theirs), or are shown by their pair.
ELSEWHERE_SHOWN = {
    "blockwise", "draw_front", "expert_frequency", "expert_norm", "experts", "fit_budget", "glu_neurons",
    "glu_peak_to_peak", "llama", "rates", "reap", "save_plan",
}  # fmt: skip


def test_every_public_function_shows_an_example_that_runs():
    without = set()
    for room in reference.modules():
        if hasattr(room, "__all__") and room.__name__ != "prunelab.lab":
            for name, thing in reference.public(room).items():
                if inspect.isfunction(thing) and ">>>" not in (thing.__doc__ or ""):
                    without.add(name)
    assert without == ELSEWHERE_SHOWN
