"""Criteria that look at data: by hand on a 2x3 layer, against independent implementations, and in one grid."""

import contextlib
import copy
import io
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab import Calibration, Group, Member, PruneError, calibration, criteria, granularity, schedules
from prunelab.allocation import unit_scores
from prunelab.core import AbsoluteOfSum
from prunelab.criteria import CRITERIA

W = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]])
X = torch.tensor([[1.0, 2.0, 0.0], [3.0, -1.0, 2.0]])
T = torch.tensor([[-3.0, 2.0], [4.0, 8.0]])
# outputs X W' = [[-3, 3], [6, 7]], errors E = outputs - T = [[0, 1], [2, -1]], loss = mean over samples of |e|^2 / 2

# These have tests of their own, for none of the networks here has heads, decoder blocks or experts.
OF_TRANSFORMERS = (
    "head_importance", "block_influence", "angular_distance", "glu_peak_to_peak", "expert_frequency", "expert_norm",
    "reap",
)  # fmt: skip
LOOKS_AT_DATA = ["gradient", "taylor", "taylor_sum", "fisher", "grasp", "wanda", "synflow"]


@pytest.fixture
def layer():
    layer = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(W)
    return layer


@pytest.fixture
def toy():
    return Calibration.of((X, T), batch_size=1, loss=lambda out, targets: (out - targets).square().sum(1).mean() / 2)


def by_hand(criterion, layer, toy, expected):
    found = CRITERIA[criterion](layer, toy)["weight"]
    assert torch.allclose(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-6), found


# Gradients of the samples, e x': [[0, 0, 0], [1, 2, 0]] and [[6, -2, 4], [-3, 1, -2]]; mean [[3, -1, 2], [-1, 1.5, -1]]


def test_gradient_by_hand(layer, toy):
    by_hand("gradient", layer, toy, [[3, 1, 2], [1, 1.5, 1]])


def test_taylor_by_hand(layer, toy):
    by_hand("taylor", layer, toy, [[3, 2, 1], [3, 0, 1]])


def test_taylor_sum_by_hand(layer, toy):
    by_hand("taylor_sum", layer, toy, [[3, 2, 1], [-3, 0, 1]])
    scores = criteria.taylor_sum(layer, toy)
    rows = [Group("rows", 2, (Member("weight", 0),))]
    columns = [Group("columns", 3, (Member("weight", 1),))]
    assert unit_scores(scores, rows, "sum")["rows"].tolist() == [6, 2]
    assert unit_scores(scores, columns, "sum")["columns"].tolist() == [0, 2, 2]
    assert unit_scores(criteria.taylor(layer, toy), columns, "sum")["columns"].tolist() == [6, 2, 2]
    single = pl.allocate(scores, granularity.weights(layer), 0.5)["weight"]
    assert torch.equal(single, pl.allocate(criteria.taylor(layer, toy), granularity.weights(layer), 0.5)["weight"])


def test_fisher_by_hand(layer, toy):
    # h = mean of the squares = [[18, 2, 8], [5, 2.5, 2]]; h w^2 / 2
    by_hand("fisher", layer, toy, [[9, 4, 1], [22.5, 0, 1]])


def test_grasp_by_hand(layer, toy):
    # H G = G A for a linear layer, A = mean of x x' = [[5, -.5, 3], [-.5, 2.5, -1], [3, -1, 2]]
    # G A = [[21.5, -6, 14], [-8.75, 5.25, -6.5]], times W
    by_hand("grasp", layer, toy, [[21.5, 12, 7], [-26.25, 0, 6.5]])


def test_wanda_by_hand(layer, toy):
    # norms of the inputs: sqrt(10), sqrt(5), 2
    by_hand("wanda", layer, toy, [[10**0.5, 2 * 5**0.5, 1], [3 * 10**0.5, 0, 2]])


def test_synflow_by_hand():
    # R = 1' |W2| |W1| 1: the flow through W1[i, j] is |W1[i, j]| * the sum of column i of |W2|
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(W)
        model[1].weight.copy_(torch.tensor([[-2.0, 3.0]]))
    flows = criteria.synflow(model, Calibration.of((X, T)))
    assert flows["0.weight"].tolist() == [[2, 4, 1], [9, 0, 3]]
    assert flows["1.weight"].tolist() == [[7, 12]]


def test_fpgm_by_hand():
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0], [-3.0, -4.0]]))
    # distances 5, 5, 10. On absolute values the last two would be one and the same filter
    assert torch.allclose(criteria.fpgm(layer)["weight"], torch.tensor([[5.0, 5.0], [7.5, 7.5], [7.5, 7.5]]))


def test_bn_slimming_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-3.0, 0.5, 1.0]))
    assert {n: s.tolist() for n, s in criteria.bn_slimming(model).items()} == {
        "1.weight": [3, 0.5, 1],
        "4.weight": [1, 1],
    }
    (group,) = granularity.filters(model, torch.randn(1, 1, 8, 8))
    assert unit_scores(criteria.bn_slimming(model), [group], "mean")[group.name].tolist() == [3, 0.5, 1]
    with pytest.raises(PruneError, match=r"no scores for 0\.weight"):
        pl.prune(model, pl.Recipe("bn_slimming"))


def test_names_for_the_same_score():
    assert criteria.by_name("snip") is criteria.taylor
    assert criteria.by_name("obd") is criteria.fisher
    assert criteria.by_name("network_slimming") is criteria.bn_slimming


# Against independent implementations


MODELS = ["cnn", "mlp", "residual"]
GREATEST = {}  # what -> the greatest difference seen, relative to the greatest score


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def model(build, name):
    """With BatchNorm statistics and scales that are not those of a fresh network."""
    model = build(name)
    dice = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.add_(torch.rand(tensor.shape, generator=dice))
                for tensor in (module.bias, module.running_mean):
                    tensor.add_(torch.randn(tensor.shape, generator=dice) / 4)
    return model.eval()


@pytest.fixture
def calib(data_for, name):
    return Calibration.of(data_for(name), batch_size=7)


def close(what, mine, theirs, tolerance=1e-5):
    gap = float((mine.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-12))
    GREATEST[what] = max(gap, GREATEST.get(what, 0.0))
    assert gap < tolerance, (what, gap)


@pytest.fixture(scope="module", autouse=True)
def say_the_greatest_differences():
    yield
    for what, gap in GREATEST.items():
        print(f"{what:<32} {gap:.1e}")


def filters_of(scores, weight):
    """(filters,): our unit scores of one layer's own weights."""
    group = Group(weight, scores[weight].shape[0], (Member(weight, 0),))
    return unit_scores(scores, [group], "sum")[weight]


@pytest.fixture
def gradients(model, data_for, name):
    """Of the mean loss, by autograd on a copy: name -> gradient; and that of each sample alone, (samples, ...)."""
    copied, (x, y) = copy.deepcopy(model), data_for(name)
    weights = dict(copied.named_parameters())
    each = [
        torch.autograd.grad(F.cross_entropy(copied(x[i : i + 1]), y[i : i + 1]), list(weights.values()))
        for i in range(len(y))
    ]
    mean = torch.autograd.grad(F.cross_entropy(copied(x), y), list(weights.values()))
    return dict(zip(weights, mean, strict=True)), {
        n: torch.stack([own[i] for own in each]) for i, n in enumerate(weights)
    }


def test_taylor_by_filter(model, calib, gradients):
    """A filter's worth is the sum of |w g|, or, of taylor_sum, |the sum of w g|: what Torch-Pruning takes, too."""
    mine, summed = criteria.taylor(model, calib), criteria.taylor_sum(model, calib)
    for weight, w in pl.prunable(model).items():
        terms = (w.detach() * gradients[0][weight]).flatten(1)
        close("taylor", filters_of(mine, weight), terms.abs().sum(1))
        close("taylor_sum", filters_of(summed, weight), terms.sum(1).abs())


def test_fisher_against_autograd_per_sample(model, calib, gradients):
    """Half of the mean squared gradient times w^2."""
    mine = criteria.fisher(model, calib)
    for weight, w in pl.prunable(model).items():
        close("fisher", mine[weight], gradients[1][weight].square().mean(0) * w.detach() ** 2 / 2)


def test_fpgm_against_a_loop(model):
    scores = criteria.fpgm(model)
    for weight, w in pl.prunable(model).items():
        rows = w.detach().flatten(1)
        expected = torch.stack([sum((a - b).norm() for b in rows) for a in rows])
        close("fpgm, loop", filters_of(scores, weight), expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_fpgm_of_a_transposed_convolution(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups)
    w = layer.weight.detach()  # (in, out of a group, 3, 3)
    each = [w[4 // groups * g : 4 // groups * (g + 1), o].flatten() for g in range(groups) for o in range(6 // groups)]
    expected = torch.stack([sum((a - b).norm() for b in each) for a in each])
    scores = criteria.fpgm(layer)["weight"].view(groups, 4 // groups, 6 // groups, 3, 3)
    close("fpgm, loop", scores.sum((1, 3, 4)).flatten(), expected)


@pytest.mark.parametrize("name", ["cnn", "residual"])
def test_bn_slimming_is_the_scale_of_its_channel(model, name, data_for):
    """|gamma| of each filter, averaged over the norms of its group (Liu et al. 2017)."""
    mine = criteria.bn_slimming(model)
    for group in granularity.filters(model, data_for(name)[0]):
        norms = [m.tensor for m in group.members if m.tensor in mine]
        expected = torch.stack([model.get_parameter(n).detach().abs() for n in norms]).mean(0)
        close("bn_slimming", unit_scores(mine, [group], "mean")[group.name], expected)


def test_snip_is_the_gradient_of_a_gate_on_each_weight(model, calib, data_for, name):
    """Lee et al. 2019 define it so: dL/dc at c = 1, of weights c * w."""
    x, y = data_for(name)
    weights = {n: p.detach() for n, p in pl.prunable(model).items()}
    gates = {n: torch.ones_like(w, requires_grad=True) for n, w in weights.items()}
    gated = {n: gates[n] * w for n, w in weights.items()}
    F.cross_entropy(torch.func.functional_call(model, gated, (x,)), y).backward()
    mine = criteria.by_name("snip")(model, calib)
    for n in weights:
        close("snip, gates", mine[n], gates[n].grad.abs())


def test_grasp_against_the_change_of_the_gradient_norm(model, calib, data_for, name):
    """Without w, g'g changes by -2 w (Hg) to first order: differentiate g'g by a gate on each weight."""
    model, (x, y) = model.double(), data_for(name)
    x = x.double()
    weights = {n: p.detach() for n, p in pl.prunable(model).items()}
    gates = {n: torch.ones_like(w, requires_grad=True) for n, w in weights.items()}
    gated = {n: gates[n] * w for n, w in weights.items()}
    loss = F.cross_entropy(torch.func.functional_call(model, gated, (x,)), y)
    g = torch.autograd.grad(loss, list(gated.values()), create_graph=True)
    sum((one**2).sum() for one in g).backward()
    mine = criteria.grasp(model, Calibration.of((x, y), batch_size=7))
    for n in weights:
        close("grasp, gates on g'g", mine[n], gates[n].grad / 2)


def authors_grasp(model, x, y, temperature):
    """Theta * Hg in the steps of the authors' code: gradients held fixed, then those with a graph, then backward."""
    model = copy.deepcopy(model)
    model.zero_grad()
    weights = list(pl.prunable(model).values())
    fixed = torch.autograd.grad(F.cross_entropy(model(x) / temperature, y), weights)
    g = torch.autograd.grad(F.cross_entropy(model(x) / temperature, y), weights, create_graph=True)
    sum((a * b).sum() for a, b in zip(fixed, g, strict=True)).backward()
    return {n: w.detach() * w.grad for n, w in pl.prunable(model).items()}


@pytest.mark.parametrize("temperature", [1, 200])
def test_grasp_against_the_authors_steps(model, calib, data_for, name, temperature):
    mine = criteria.gradients.Grasp(temperature)(model, calib)
    for n, expected in authors_grasp(model, *data_for(name), temperature).items():
        close("grasp, the authors' steps", mine[n], expected)


def test_synflow_against_the_authors_steps(model, calib, data_for, name):
    """All of the state dict made absolute in place, ones in, the sum out, |grad * w|."""
    copied = copy.deepcopy(model).double()
    with torch.no_grad():
        for tensor in copied.state_dict().values():
            tensor.abs_()
    copied.zero_grad()
    copied(torch.ones(1, *data_for(name)[0].shape[1:], dtype=torch.float64)).sum().backward()
    mine = criteria.synflow(model, calib)
    for n, w in pl.prunable(copied).items():
        close("synflow, the authors' steps", mine[n], (w.grad * w).abs().detach())


def test_wanda_against_a_loop(build, data_for, calib, model, name):
    """|w| * norm of the input it meets, weight after weight, the inputs seen by hooks."""
    inputs = {}
    copied = copy.deepcopy(model)
    for path, module in copied.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(lambda m, args, _, path=path: inputs.__setitem__(path, (m, args[0].detach())))
    copied(data_for(name)[0])
    mine = criteria.wanda(model, calib)
    for path, (module, x) in inputs.items():
        if isinstance(module, nn.Conv2d):
            x = F.unfold(x, module.kernel_size, padding=module.padding).transpose(1, 2)  # (n, positions, columns)
        w = module.weight.detach().flatten(1)
        expected = torch.zeros_like(w)
        for i, j in itertools.product(range(w.shape[0]), range(w.shape[1])):
            expected[i, j] = w[i, j].abs() * x[..., j].norm()
        close("wanda, loop", mine[f"{path}.weight"].flatten(1), expected)


# SynFlow in rounds


def test_synflow_flows_alike_through_every_layer():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in ((5, 9), (9, 2), (2, 7), (7, 3))))
    flows = criteria.synflow(model, Calibration.of((torch.randn(4, 5), torch.zeros(4))))
    totals = torch.stack([f.sum() for f in flows.values()])
    assert torch.allclose(totals, totals[0].expand(4), rtol=1e-12)


def test_synflow_in_rounds_leaves_no_layer_empty_where_one_shot_does():
    """What its exponential schedule is for: layer collapse, and Recipe takes the schedule."""

    def wide():
        torch.manual_seed(0)
        return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in ((64, 4), (4, 256), (256, 256), (256, 4))))

    calib = Calibration.of((torch.randn(4, 64), torch.zeros(4, dtype=torch.long)))
    least = {}
    for criterion, rounds, schedule in (
        ("magnitude", 1, "one_shot"),
        ("synflow", 1, "one_shot"),
        ("synflow", 30, schedules.Exponential(0.995)),
    ):
        pruned = pl.prune(wide(), pl.Recipe(criterion, "weights", 0.995, "global", schedule, rounds), calib)
        least[criterion, rounds] = min(layer.kept for layer in pruned.report.layers)
        assert pruned.report.sparsity == pytest.approx(0.995, abs=1e-4)
    assert least["synflow", 30] > 0
    assert least["synflow", 30] >= least["synflow", 1]


def test_the_exponential_schedule():
    schedule = schedules.Exponential(0.9)
    left = [1 - 0.9 * schedule(k / 10) for k in range(11)]
    assert left[0] == 1
    assert left[-1] == pytest.approx(0.1)
    assert all(b / a == pytest.approx(0.1**0.1) for a, b in itertools.pairwise(left))
    assert schedules.by_name(schedule) is schedule
    for bad in (0, 1, 50):
        with pytest.raises(PruneError, match="between 0 and 1"):
            schedules.Exponential(bad)


def test_synflow_does_not_overflow():
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(12)))
    with torch.no_grad():
        for w in pl.prunable(model).values():
            w.fill_(100.0)  # R = 64 * 6400^12 = 3e47, beyond float32
    flows = criteria.synflow(model, Calibration.of((torch.randn(4, 64), torch.zeros(4))))
    assert all(torch.isfinite(f).all() for f in flows.values())


def test_synflow_needs_inputs_that_can_be_ones(build):
    tokens = Calibration.of((torch.randint(0, 7, (4, 5)), torch.zeros(4)))
    with pytest.raises(PruneError, match=r"synflow feeds ones .* torch\.int64: it needs floating-point"):
        criteria.synflow(build("tied_embedding"), tokens)
    with pytest.raises(PruneError, match="cannot run on ones, in float64"):
        criteria.synflow(build("mlp"), Calibration.of((torch.randn(4, 5), torch.zeros(4))))


# What they need, and what they say if it isn't there


@pytest.mark.parametrize("criterion", LOOKS_AT_DATA)
def test_without_data(build, snapshot, criterion):
    model = build("mlp")
    before = snapshot(model)
    for given in (None, torch.ones(4, 6)):
        with pytest.raises(PruneError, match=rf"{criterion} needs .*pass calib=pl\.Calibration\.of\(data\)"):
            CRITERIA[criterion](model, given)
    with pytest.raises(PruneError, match=r"needs .* and was given nothing"):
        pl.prune(model, pl.Recipe(criterion))
    assert snapshot(model) == before


def test_the_others_need_none(build):
    for criterion in CRITERIA.keys() - {*LOOKS_AT_DATA, *OF_TRANSFORMERS}:
        assert CRITERIA[criterion](build("cnn"))


BROKEN = {
    "empty": lambda x, y: Calibration(((x[:0], y[:0]),)),
    "another shape": lambda x, y: Calibration(((x[:, :5], y),)),
    "no scalar": lambda x, y: Calibration(((x, y),), nn.CrossEntropyLoss(reduction="none")),
    "NaN": lambda x, y: Calibration(((x * torch.nan, y),)),
}
SAID = {
    "empty": "no sample",
    "another shape": r"Sequential cannot run on (inputs of \(24, 5\)|ones)",
    "no scalar": "must be a scalar tensor",
    "NaN": "NaN",
}


@pytest.mark.parametrize("criterion", LOOKS_AT_DATA)
@pytest.mark.parametrize("broken", BROKEN)
def test_bad_data(build, data_for, snapshot, criterion, broken):
    if (criterion, broken) in {("wanda", "no scalar"), ("synflow", "no scalar"), ("synflow", "NaN")}:
        return  # which they do not look at
    model = build("mlp")
    before = snapshot(model)
    with pytest.raises(PruneError, match=SAID[broken]):
        CRITERIA[criterion](model, BROKEN[broken](*data_for("mlp")))
    assert snapshot(model) == before


@pytest.mark.parametrize("criterion", ["gradient", "taylor", "taylor_sum", "fisher", "grasp"])
def test_a_missing_gradient_never_becomes_magnitude(build, data_for, snapshot, criterion):
    frozen, aside, calib = build("mlp"), build("mlp"), Calibration.of(data_for("mlp"))
    frozen[0].weight.requires_grad_(False)
    aside[0].never = nn.Linear(2, 2)
    for model, said in (
        (frozen, r"frozen .*0\.weight \(8, 6\)"),
        (aside, r"0\.never\.weight \(2, 2\) has no gradient"),
    ):
        before = snapshot(model)
        with pytest.raises(PruneError, match=said):
            CRITERIA[criterion](model, calib)
        assert snapshot(model) == before


def test_a_layer_that_is_never_called(build, data_for):
    model = build("mlp")
    model[0].never = nn.Linear(2, 2)
    with pytest.raises(PruneError, match=r"0\.never\.weight \(2, 2\) has no flow"):
        CRITERIA["synflow"](model, Calibration.of(data_for("mlp")))


class Functional(nn.Module):
    """The middle layer's weight is used, and the layer never called."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(F.linear(self.first(x).relu(), self.middle.weight))


class TestALayerThatWandaDoesNotSee:
    @staticmethod
    def made(data_for):
        torch.manual_seed(0)
        return Functional(), Calibration.of(data_for("mlp"))

    @pytest.mark.parametrize(
        ("scope", "sparsity"), [("row", 0.5), ("layer", 0.5), ("global", 0.5), (pl.NM(1, 2), None)]
    )
    @pytest.mark.filterwarnings("ignore:no inputs seen")
    def test_the_others_are_pruned(self, data_for, scope, sparsity):
        model, calib = self.made(data_for)
        alone, norms = nn.ModuleDict({"first": model.first, "last": model.last}), calibration.input_norms(model, calib)
        with pytest.warns(UserWarning, match=r"not pruned, since the criterion has no scores for it: middle\.weight$"):
            pruned = pl.prune(model, pl.Recipe("wanda", scope=scope, sparsity=sparsity), calib)
        assert pruned.masks["middle.weight"].all()
        scores = {name: w.detach().abs() * norms[name] for name, w in pl.prunable(alone).items()}
        keep = pl.allocate(scores, pl.granularity.weights(alone), sparsity, scope)
        assert all(torch.equal(pruned.keep[name], keep[name]) for name in keep)

    @pytest.mark.filterwarnings("ignore:not pruned")
    def test_it_is_named_and_keeps_its_earlier_zeros(self, data_for):
        model, calib = self.made(data_for)
        first = pl.prune(model, pl.Recipe(sparsity=0.3))
        with pytest.warns(UserWarning, match=r"no inputs seen of middle\.weight \(8, 8\): .*F\.linear"):
            second = pl.prune(model, pl.Recipe("wanda", sparsity=0.5, rounds=2), calib)
        assert torch.equal(second.masks["middle.weight"], first.masks["middle.weight"])

    @pytest.mark.filterwarnings("ignore:no inputs seen")
    def test_a_share_of_its_own_is_refused(self, data_for):
        model, calib = self.made(data_for)
        shares = {"first.weight": 0.5, "middle.weight": 0.5, "last.weight": 0.5}
        with pytest.raises(PruneError, match=r"no scores for middle\.weight"):
            pl.prune(model, pl.Recipe("wanda", sparsity=shares), calib)

    def test_none_seen_at_all(self, data_for):
        model, calib = self.made(data_for)
        model.first = model.last = nn.Identity()
        model.forward = lambda x: F.linear(x, model.middle.weight[:, :6])
        with pytest.raises(PruneError, match=r"middle\.weight \(8, 8\) has no input"):
            CRITERIA["wanda"](model, calib)


@pytest.mark.parametrize("criterion", [*LOOKS_AT_DATA, "fpgm"])
def test_weights_that_are_not_finite(build, data_for, criterion):
    model = build("mlp")
    with torch.no_grad():
        model[2].weight[0, :2] = torch.nan
    with pytest.raises(PruneError, match=r"2\.weight \(3, 8\) holds 2 NaN or infinite of 24"):
        CRITERIA[criterion](model, Calibration.of(data_for("mlp")))


def test_gammas_that_are_not_finite(build):
    model = build("cnn")
    with torch.no_grad():
        model[1].weight[0] = torch.inf
    with pytest.raises(PruneError, match=r"1\.weight \(4,\) holds 1 NaN or infinite"):
        criteria.bn_slimming(model)


def test_rounds_of_masks_stay_nested(build, data_for):
    """A gradient stops at a mask; what is gone scores 0, and `within` keeps it gone."""
    for criterion in LOOKS_AT_DATA:
        model, calib = build("cnn"), Calibration.of(data_for("cnn"))
        first = pl.prune(model, pl.Recipe(criterion, sparsity=0.3), calib).masks
        second = pl.prune(model, pl.Recipe(criterion, sparsity=0.6, schedule="linear", rounds=2), calib)
        assert all(not (second.masks[n] & ~first[n]).any() for n in first)
        assert second.report.sparsity == pytest.approx(0.6, abs=0.01)


def test_absolute_of_a_sum_survives_what_allocate_does_with_it(build, data_for):
    model, (x, y) = build("cnn"), data_for("cnn")
    scores = criteria.taylor_sum(model, Calibration.of((x, y)))
    assert isinstance(scores, AbsoluteOfSum)
    groups = granularity.filters(model, x)
    for reduce in ("sum", "mean", "relative"):
        assert all((v >= 0).all() for v in unit_scores(scores, groups, reduce).values())
    signed = [unit_scores(dict(scores), groups, "sum")[g.name] for g in groups]  # a plain dict: the sums themselves
    assert any((v < 0).any() for v in signed)


# The grid: every registered criterion, model, scope and granularity


SCOPES = ["global", "layer", "row", pl.NM(1, 2)]
SINGLE = ("row", pl.NM(1, 2))  # scopes that compare single weights
GRAINS = ("weights", "blocks", "filters", "neurons", "coupled")
CELLS = [(g, s) for g in GRAINS for s in SCOPES if g == "weights" or s not in SINGLE]


def grains(model, grain, example):
    """A granularity by name; blocks of 1 x 2, and weights that NM(1, 2) fits, leave out what does not divide."""
    if grain not in ("weights", "blocks"):
        return granularity.by_name(grain)(model, example)
    odd = tuple(n for n, w in pl.prunable(model).items() if w.shape[1] % 2)
    return (
        granularity.blocks(1, 2, exclude=odd)(model) if grain == "blocks" else granularity.weights(model, exclude=odd)
    )


def cell(model, groups, calib, criterion, scope, snapshot):
    """ok, or - where the criterion has no such scores; asserts the exact count, and that the model is as it was."""
    before = snapshot(model)
    try:
        scores = CRITERIA[criterion](model, calib)
        keep = pl.allocate(scores, groups, 0.5, scope)
    except PruneError:
        assert snapshot(model) == before
        return "-"
    finally:
        assert snapshot(model) == before
    report = pl.report(groups, keep)
    if scope == "global":
        assert report.total.kept == report.total.units - round(0.5 * report.total.units)
    elif scope != "row":
        assert all(r.kept == r.units - round(0.5 * r.units) for r in report.layers)
    with pl.masked(model, pl.expand(model, groups, keep)), torch.no_grad():
        assert torch.isfinite(model(calib.batches[0][0])).all()
    assert snapshot(model) == before
    return "ok"


def test_the_grid(build, data_for, snapshot):
    """Run with -s to see it."""
    judges = [c for c in CRITERIA if c not in OF_TRANSFORMERS]
    found = {}
    for name in MODELS:
        model, (x, y) = build(name).eval(), data_for(name)
        calib = Calibration.of((x, y), batch_size=7)
        groups = {}
        for g in GRAINS:
            with contextlib.suppress(PruneError):
                groups[g] = grains(model, g, x)
        for criterion, (g, scope) in itertools.product(judges, CELLS):
            if g in groups:
                found[criterion, name, g, scope] = cell(model, groups[g], calib, criterion, scope, snapshot)
    out = io.StringIO()
    for name in MODELS:
        columns = [(g, s) for g, s in CELLS if ("random", name, g, s) in found]
        for title, part in ((name, 0), ("", 1)):
            print(f"{title:<13}", *(f"{column[part]!s:<8}" for column in columns), file=out)
        for criterion in judges:
            print(f"{criterion:<13}", *(f"{found[criterion, name, *column]:<8}" for column in columns), file=out)
        print(file=out)
    print(f"\n{out.getvalue()}- : bn_slimming scores BatchNorm channels: no single weights, and nothing in an MLP")
    missing = {(c, n, g) for (c, n, g, _), result in found.items() if result != "ok"}
    assert missing == {("bn_slimming", n, g) for n in MODELS for g in ("weights", "blocks")} | {
        ("bn_slimming", "mlp", g) for g in ("neurons", "coupled")
    }


# Layers that are no Linear and no convolution


def test_wanda_of_a_conv1d_and_a_bilinear_by_hand():
    """norm(X_j) of X is sqrt(10), sqrt(5), 2; of the products x1_i x2_j, one sample, their sizes."""
    conv1d = type("Conv1D", (nn.Module,), {"forward": lambda self, x: x @ self.weight})()
    conv1d.nf, conv1d.weight = 2, nn.Parameter(W.T.clone())
    norms = torch.tensor([10.0, 5.0, 4.0]).sqrt()
    torch.testing.assert_close(criteria.wanda(conv1d, Calibration([(X, T)]))["weight"], (W.abs() * norms).T)
    two = nn.Bilinear(2, 2, 1, bias=False)
    calib = Calibration([((torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 4.0]])), torch.zeros(1, 1))])
    products = torch.tensor([[[3.0, 4.0], [6.0, 8.0]]])
    torch.testing.assert_close(criteria.wanda(two, calib)["weight"], two.weight.detach().abs() * products)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def classifier(kind):
    """A tiny transformer for sequence classification, its logits alone."""
    import transformers as hf

    sizes = {"vocab_size": 20, "num_labels": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        model = hf.GPT2ForSequenceClassification(hf.GPT2Config(n_positions=8, n_embd=8, n_layer=1, n_head=2, **sizes))
    else:
        sizes |= {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
        model = hf.MixtralForSequenceClassification(hf.MixtralConfig(**sizes))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) / 10)
    return Logits(model)


class Logits(nn.Module):
    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids).logits


def further(kind):
    torch.manual_seed(0)
    model = Tagger() if kind == "lstm" else classifier(kind)
    x = torch.randn(6, 5, 3) if kind == "lstm" else torch.randint(3, 20, (6, 5))
    return model.eval(), Calibration([(x, torch.randint(0, 2, (6,)))])


@pytest.mark.parametrize("criterion", ["magnitude", "random", "fpgm", "lamp", *LOOKS_AT_DATA])
@pytest.mark.parametrize("kind", ["lstm", "gpt2", "mixtral"])
def test_every_criterion_reaches_further_or_says_why_not(kind, criterion, snapshot):
    model, calib = further(kind)
    before = snapshot(model)
    if criterion == "synflow" and kind != "lstm":
        with pytest.raises(PruneError, match="feeds ones to the model"):
            criteria.by_name(criterion)(model, calib)
    elif criterion == "wanda" and kind != "gpt2":
        unseen = [n for n in pl.prunable(model) if "rnn" in n or "experts" in n]
        with pytest.warns(UserWarning, match=f"no scores for {unseen[0]} .*, whose inputs cannot be seen"):
            scores = criteria.wanda(model, calib)
        assert scores.keys() == pl.prunable(model).keys() - set(unseen)
        with pytest.raises(PruneError, match=rf"no scores for {unseen[0]}.*exclude="):
            pl.allocate(scores, granularity.weights(model), 0.5)
        pl.allocate(scores, granularity.weights(model, exclude=unseen), 0.5)
    else:
        scores = criteria.by_name(criterion)(model, calib)
        assert {n: s.shape for n, s in scores.items()} == {n: w.shape for n, w in pl.prunable(model).items()}
        assert all(torch.isfinite(s).all() for s in scores.values())
        pl.allocate(scores, granularity.weights(model), 0.5, "row")
    assert snapshot(model) == before


def test_gradients_of_a_recurrent_layer_are_those_of_its_masked_weights():
    model, calib = further("lstm")
    pl.apply(model, {"rnn.weight_hh_l0": torch.arange(64).view(16, 4) % 2 == 0})
    scores = criteria.gradient(model, calib)
    assert not scores["rnn.weight_hh_l0"].view(-1)[1::2].any()
    (x, y) = calib.batches[0]
    F.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(scores["rnn.weight_hh_l0"], pl.prunable(model)["rnn.weight_hh_l0"].grad.abs())


def test_nothing_whose_inputs_could_be_seen():
    with pytest.raises(PruneError, match=r"no input can be seen of weight_ih_l0 \(8, 3\), .*states that it keeps"):
        criteria.wanda(nn.LSTM(3, 2), Calibration([(X, T)]))


def test_blocks_of_experts_are_refused():
    model, _ = further("mixtral")
    with pytest.raises(PruneError, match=r"experts\.down_proj hold a matrix for each expert.*exclude="):
        granularity.blocks(2, 2)(model)
