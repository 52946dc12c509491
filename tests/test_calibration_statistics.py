"""Gradients, per-sample Fisher information, Hessian times gradient, input norms: against plain autograd and loops."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab import Calibration, PruneError, calibration, masking
from prunelab.calibration import derivatives

MODELS = ["cnn", "mlp", "residual", "tied", "attention", "attention_kdim"]
STATISTICS = ["gradients", "fisher_information", "hessian_gradient", "input_norms"]


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def calib(data_for, name):
    return Calibration.of(data_for(name), batch_size=7)  # 7, 7, 7, 3: batches need not be of one size


def same(mine, theirs, tolerance=1e-5):
    for name, other in theirs.items():
        assert torch.allclose(mine[name], other, rtol=tolerance, atol=1e-7), name


# Against autograd


def test_gradients_are_those_of_backward_over_all_samples(build, data_for, name, calib):
    model, (x, y) = build(name).eval(), data_for(name)
    F.cross_entropy(model(x), y).backward()
    same(calibration.gradients(build(name), calib), {n: p.grad for n, p in pl.prunable(model).items()})


def one_by_one(model, x, y):
    """E[g^2], sample after sample, by backward."""
    model.eval()
    total = {n: torch.zeros_like(p) for n, p in pl.prunable(model).items()}
    for i in range(len(y)):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for n, p in pl.prunable(model).items():
            total[n] += p.grad**2 / len(y)
    return total


@pytest.mark.parametrize("worn", [False, True], ids=["plain", "worn"])
@pytest.mark.parametrize("by", ["vmap", "loop"])
def test_fisher_is_the_mean_square_of_single_samples(build, data_for, name, calib, monkeypatch, by, worn):
    ways = []
    for way in ("_all_at_once", "_one_by_one"):
        real = getattr(derivatives, way)
        monkeypatch.setattr(derivatives, way, lambda *a, way=way, real=real: (ways.append(way), real(*a))[1])
    if by == "loop":
        monkeypatch.setattr(derivatives, "vmap", None)
    model, other = build(name), build(name)
    if worn:
        for m in (model, other):
            pl.prune(m, pl.Recipe(sparsity=0.5))
    same(calibration.fisher_information(model, calib), one_by_one(other, *data_for(name)))
    assert ("_one_by_one" in ways) == (by == "loop")


def test_fisher_is_not_the_square_of_the_mean(build, calib, name):
    model = build(name)
    of_samples, of_mean = calibration.fisher_information(model, calib), calibration.gradients(model, calib)
    assert all((of_samples[n] >= of_mean[n] ** 2 - 1e-8).all() for n in of_mean)
    assert any((of_samples[n] > 2 * of_mean[n] ** 2).any() for n in of_mean)


def test_few_gradients_are_held_at_a_time(build, data_for, monkeypatch):
    model, calib = build("mlp"), Calibration.of(data_for("mlp"))
    expected, sizes = calibration.fisher_information(model, calib), []
    whole = derivatives._all_at_once
    monkeypatch.setattr(derivatives, "HELD", 5 * 72)  # the model has 72 weights
    monkeypatch.setattr(derivatives, "_all_at_once", lambda *a: sizes.append(len(a[-1])) or whole(*a))
    same(calibration.fisher_information(model, calib), expected)
    assert sizes == [5, 5, 5, 5, 4]


def test_hessian_gradient_against_the_whole_hessian(build, data_for):
    model, (x, y) = build("mlp").double(), data_for("mlp")
    x = x.double()
    weights = {n: p.detach() for n, p in pl.prunable(model).items()}

    def loss(*values):
        return F.cross_entropy(torch.func.functional_call(model, dict(zip(weights, values, strict=True)), (x,)), y)

    hessian = torch.autograd.functional.hessian(loss, tuple(weights.values()))
    g = torch.autograd.functional.jacobian(loss, tuple(weights.values()))
    expected = {
        n: sum(torch.tensordot(hessian[i][j], g[j], dims=g[j].dim()) for j in range(len(g)))
        for i, n in enumerate(weights)
    }
    same(calibration.hessian_gradient(model, Calibration.of((x, y), batch_size=7)), expected)


def test_hessian_gradient_against_a_difference_of_gradients(build, data_for, name, calib):
    """H g = (g(w + e g) - g(w - e g)) / 2e: ReLUs and attention included."""
    model, (x, y) = build(name).double(), data_for(name)
    calib = Calibration.of((x.double(), y), batch_size=7)
    found, g = calibration.hessian_gradient(model, calib), calibration.gradients(model, calib)
    moved = []
    for e in (1e-6, -1e-6):
        with torch.no_grad():
            for n, p in pl.prunable(model).items():
                p += e * g[n]
            moved.append(calibration.gradients(model, calib))
            for n, p in pl.prunable(model).items():
                p -= e * g[n]
    same(found, {n: (moved[0][n] - moved[1][n]) / 2e-6 for n in g}, 1e-4)


def test_a_linear_loss_has_no_curvature():
    layer = nn.Linear(3, 2)
    calib = Calibration.of((torch.randn(4, 3), torch.zeros(4)), loss=lambda out, _: out.mean())
    assert not calibration.hessian_gradient(layer, calib)["weight"].any()


# Input norms


CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 6, 3, padding=1, stride=2),
    nn.Conv2d(4, 6, (3, 2), padding=(2, 1), dilation=(2, 1), bias=False),
    nn.Conv2d(4, 6, 3, padding="same", groups=2),
    nn.Conv2d(4, 4, 3, padding=1, groups=4),
    nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"),
    nn.Conv1d(4, 6, 3, padding=1),
    nn.Conv3d(4, 6, 2, padding=1),
    nn.ConvTranspose2d(4, 6, 2, stride=2),
    nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
    nn.ConvTranspose2d(4, 6, (4, 3), stride=2, padding=1, output_padding=(0, 1)),  # which cuts what it makes
    nn.ConvTranspose1d(4, 6, 3, stride=2, padding=3, dilation=2),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=repr)
def test_norms_of_any_convolution(layer):
    """The derivative of sum(layer(x^2)) by a weight is the sum of the x^2 it meets: all options of torch included."""
    dims = len(layer.kernel_size)
    x = torch.randn(5, 4, *[6] * dims, generator=torch.Generator().manual_seed(0))
    met = torch.autograd.grad(layer(x**2).sum(), layer.weight)[0]
    calib = Calibration.of((x, torch.zeros(5)), batch_size=2)
    norms = calibration.input_norms(layer, calib)["weight"].expand_as(layer.weight)
    assert torch.allclose(norms, met.sqrt(), rtol=1e-5)


def test_norms_of_a_convolution_are_columns_of_the_unfolded_input(data_for):
    layer, x = nn.Conv2d(1, 4, 3, padding=1, stride=2), data_for("cnn")[0]
    columns = F.unfold(x, 3, padding=1, stride=2)  # (n, 9, positions)
    norms = calibration.input_norms(layer, Calibration.of((x, torch.zeros(len(x)))))["weight"]
    assert torch.allclose(norms.flatten(), columns.norm(dim=(0, 2)), rtol=1e-5)


@pytest.mark.parametrize("inside", [(), (5,), (2, 3)])
def test_norms_of_a_linear_over_all_positions(inside):
    layer, x = nn.Linear(4, 2), torch.randn(6, *inside, 4)
    norms = calibration.input_norms(layer, Calibration.of((x, torch.zeros(6)), batch_size=4))["weight"]
    assert torch.allclose(norms, x.reshape(-1, 4).norm(dim=0), rtol=1e-5)


class Shown(nn.Module):
    """MultiheadAttention in its parts, as three plain layers and an output one, with hooks to see what goes in."""

    def __init__(self, attend):
        super().__init__()
        e, packed = attend.embed_dim, attend.in_proj_weight is not None
        weights = attend.in_proj_weight.chunk(3) if packed else [getattr(attend, f"{n}_proj_weight") for n in "qkv"]
        self.parts = nn.ModuleList(nn.Linear(w.shape[1], e) for w in weights)
        for part, w, b in zip(self.parts, weights, attend.in_proj_bias.chunk(3), strict=True):
            part.weight, part.bias = nn.Parameter(w.detach()), nn.Parameter(b.detach())
        self.out, self.heads = nn.Linear(e, e), attend.num_heads
        self.out.load_state_dict(attend.out_proj.state_dict())

    def forward(self, q, k, v):
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p, x in zip(self.parts, (q, k, v), strict=True)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kdim", [None, 6])
def test_norms_of_attention_are_those_of_its_parts(kdim):
    torch.manual_seed(0)
    attend = nn.MultiheadAttention(4, 2, kdim=kdim, vdim=kdim, batch_first=True).eval()
    shown = Shown(attend).eval()
    x, wide = torch.randn(3, 5, 4), torch.randn(3, 7, kdim or 4)
    calib = Calibration((((x, wide, wide), torch.zeros(3)),))
    assert torch.allclose(shown(x, wide, wide), attend(x, wide, wide)[0], atol=1e-6)
    mine, parts = calibration.input_norms(attend, calib), calibration.input_norms(shown, calib)
    expected = [parts[f"parts.{i}.weight"] for i in range(3)]
    if kdim is None:
        expected = torch.stack(expected).repeat_interleave(4, 0)
        assert torch.allclose(mine["in_proj_weight"], expected, rtol=1e-5)
    else:
        for n, e in zip("qkv", expected, strict=True):
            assert torch.allclose(mine[f"{n}_proj_weight"], e, rtol=1e-5)
    assert torch.allclose(mine["out_proj.weight"], parts["out.weight"], rtol=1e-5)


@pytest.mark.parametrize("worn", [False, True])
def test_norms_of_attention_with_heads_removed(worn):
    """Those of the whole layer, where its first two of four heads are masked."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    calib = Calibration.of((torch.randn(3, 5, 16), torch.zeros(3)))
    groups = pl.granularity.heads(model)
    keep = {g.name: torch.arange(g.units) >= 2 for g in groups}
    small = pl.shrink(model, groups, keep)
    masking.apply(model, pl.expand(model, groups, keep))
    if worn:
        masking.apply(small, {"self_attn.in_proj_weight": torch.ones(24, 16, dtype=torch.bool)})
    norms, whole = calibration.input_norms(small, calib), calibration.input_norms(model, calib)
    assert norms["self_attn.in_proj_weight"].shape == (24, 16)
    rows = torch.cat([torch.arange(8, 16) + 16 * i for i in range(3)])
    expected = {
        "self_attn.in_proj_weight": whole["self_attn.in_proj_weight"][rows],
        "self_attn.out_proj.weight": whole["self_attn.out_proj.weight"][8:],
    }
    same(norms, expected)
    scores = pl.criteria.wanda(small, calib)
    assert all(scores[n].shape == w.shape for n, w in pl.prunable(small).items())


def test_norms_in_a_layer_that_torch_would_fuse(snapshot):
    """In eval mode TransformerEncoderLayer has a fast path in which no layer is called."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    calib, before = Calibration.of((torch.randn(3, 5, 4), torch.zeros(3))), snapshot(model)
    norms = calibration.input_norms(model, calib)
    assert list(norms) == list(pl.prunable(model))
    assert snapshot(model) == before


def test_a_tied_layer_meets_the_inputs_of_both_its_places(build, data_for):
    model, (x, y) = build("tied"), data_for("tied")
    first = model.first(x).relu()
    expected = (x.square().sum(0) + first.square().sum(0)).sqrt()
    assert torch.allclose(calibration.input_norms(model, Calibration.of((x, y)))["first.weight"], expected, rtol=1e-5)


# The model is left alone, whatever the surroundings


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("worn", [False, True], ids=["plain", "worn"])
def test_the_model_is_as_it_was(build, data_for, name, calib, snapshot, statistic, worn):
    model, (x, y) = build(name), data_for(name)
    if worn:
        pl.prune(model, pl.Recipe(sparsity=0.3))
    F.cross_entropy(model(x), y).backward()  # in train mode: statistics and gradients of its own
    before = snapshot(model)
    first = getattr(calibration, statistic)(model, calib)
    with torch.inference_mode():
        again = getattr(calibration, statistic)(model, calib)
    assert snapshot(model) == before
    assert not any(t.requires_grad for t in first.values())
    assert all(torch.equal(first[n], again[n]) for n in first)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_model_is_as_it_was_after_a_failure(build, data_for, snapshot, statistic):
    model, (x, y) = build("cnn"), data_for("cnn")
    before = snapshot(model)
    with pytest.raises(PruneError, match=r"Sequential cannot run on inputs of \(24, 2, 6, 6\)"):
        getattr(calibration, statistic)(model, Calibration(((x, y), (x.expand(-1, 2, -1, -1), y))))
    assert snapshot(model) == before


def test_train_mode_makes_no_difference(build, calib, name):
    model = build(name)
    for statistic in STATISTICS:
        in_training = getattr(calibration, statistic)(model.train(), calib)
        in_eval = getattr(calibration, statistic)(model.eval(), calib)
        assert all(torch.equal(in_training[n], in_eval[n]) for n in in_eval)


def test_a_gradient_stops_at_a_mask(build, data_for, name, calib):
    model = build(name)
    masks = pl.prune(model, pl.Recipe(sparsity=0.5)).masks
    for statistic in STATISTICS[:3]:
        found = getattr(calibration, statistic)(model, calib)
        assert all(not found[n][~m].any() for n, m in masks.items())
        assert any(found[n][m].any() for n, m in masks.items())
    baked, norms = masking.bake(model), calibration.input_norms(model, calib)
    same(calibration.input_norms(baked, calib), norms)


# Inputs of other kinds


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, left, right):
        return self.a(left) + self.b(right)


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_several_inputs(kind):
    torch.manual_seed(0)
    model, left, right, y = Two(), torch.randn(6, 3), torch.randn(6, 2), torch.arange(6) % 2
    inputs = (left, right) if kind == "tuple" else {"left": left, "right": right}
    calib = Calibration(((inputs, y),))
    F.cross_entropy(model(left, right), y).backward()
    same(calibration.gradients(model, calib), {"a.weight": model.a.weight.grad, "b.weight": model.b.weight.grad})
    g = torch.stack(
        [torch.autograd.grad(F.cross_entropy(model(left, right)[i], y[i]), model.a.weight)[0] for i in range(6)]
    )
    assert torch.allclose(calibration.fisher_information(model, calib)["a.weight"], g.square().mean(0), rtol=1e-5)
    assert torch.allclose(calibration.input_norms(model, calib)["b.weight"], right.norm(dim=0))


def test_an_expert_that_only_some_samples_reach_counts_as_zero_for_the_others():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return (self.a if float(x.sum()) > 0 else self.b)(x)  # vmap can't follow this

    torch.manual_seed(0)
    model, x, y = Routed(), torch.tensor([[1.0, 2.0], [-1.0, -2.0], [-3.0, 1.0]]), torch.tensor([0, 1, 0])
    calib = Calibration.of((x, y), batch_size=1)
    found = calibration.fisher_information(model, calib)
    g = torch.autograd.grad(F.cross_entropy(model.a(x[:1]), y[:1]), model.a.weight)[0]
    assert torch.allclose(found["a.weight"], g.square() / 3)
    assert torch.allclose(calibration.gradients(model, calib)["a.weight"], g / 3)


def test_half_precision_is_summed_in_full():
    model = nn.Linear(4, 2).bfloat16()
    calib = Calibration.of((torch.randn(6, 4).bfloat16(), torch.arange(6) % 2))
    for statistic in STATISTICS:
        assert getattr(calibration, statistic)(model, calib)["weight"].dtype == torch.float32


# Bad input


@pytest.fixture
def mlp(build):
    return build("mlp")


def of(data_for, **changed):
    return Calibration.of(data_for("mlp"), **changed)


def test_a_loss_that_gives_no_scalar(mlp, data_for):
    with pytest.raises(PruneError, match=r"the loss .* returns a tensor of shape \(24,\): it must be a scalar tensor"):
        calibration.gradients(mlp, of(data_for, loss=nn.CrossEntropyLoss(reduction="none"), batch_size=24))

    def mine(outputs, targets):
        return float(F.cross_entropy(outputs, targets).detach())

    with pytest.raises(PruneError, match="the loss mine returns a float"):
        calibration.fisher_information(mlp, of(data_for, loss=mine))
    with pytest.raises(PruneError, match="returns a NoneType"):
        calibration.gradients(mlp, of(data_for, loss=lambda o, t: None))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite(mlp, data_for, bad):
    x, y = data_for("mlp")
    with pytest.raises(PruneError, match=r"the loss .* is (nan|inf) on batch 1 of 3 of the calibration"):
        calibration.gradients(mlp, of(data_for, loss=lambda o, t: o.sum() * bad * bad, batch_size=8))
    x[9, 2] = bad
    with pytest.raises(PruneError, match=r"the loss cross_entropy is nan on batch 2 of 3.*NaN in its inputs"):
        calibration.fisher_information(mlp, Calibration.of((x, y), batch_size=8))
    with pytest.raises(PruneError, match=r"0\.weight \(8, 6\) has input with NaN or infinities"):
        calibration.input_norms(mlp, Calibration.of((x, y), batch_size=8))


def test_a_gradient_that_is_not_finite(mlp, data_for):
    with pytest.raises(PruneError, match=r"0\.weight \(8, 6\) has gradient of the loss with NaN .* sqrt or log at 0"):
        calibration.gradients(mlp, of(data_for, loss=lambda o, t: (o - o).sum().sqrt()))


def test_a_loss_that_does_not_fit_the_outputs(mlp, data_for):
    x, _ = data_for("mlp")
    with pytest.raises(PruneError, match=r"cross_entropy fails on outputs \(24, 3\) and targets \(24,\) torch.int64"):
        calibration.gradients(mlp, Calibration.of((x, torch.full((24,), 7))))


def test_a_loss_without_a_gradient(mlp, data_for):
    message = r"0\.weight \(8, 6\), and 1 more, has no gradient of the loss: .*magnitude"
    for loss in (lambda o, t: (o.argmax(1) != t).float().mean(), lambda o, t: F.cross_entropy(o.detach(), t)):
        with pytest.raises(PruneError, match=message):
            calibration.gradients(mlp, of(data_for, loss=loss))


@pytest.mark.parametrize("statistic", STATISTICS[:3])
def test_a_layer_the_loss_never_reaches(mlp, data_for, statistic):
    mlp[0].aside = nn.Linear(5, 5)
    with pytest.raises(PruneError, match=r"0\.aside\.weight \(5, 5\) has no gradient.*remove the unused layer"):
        getattr(calibration, statistic)(mlp, of(data_for))


@pytest.mark.parametrize("statistic", STATISTICS[:3])
def test_a_frozen_layer(mlp, data_for, snapshot, statistic):
    mlp[2].weight.requires_grad_(False)
    before = snapshot(mlp)
    with pytest.raises(PruneError, match=r"frozen .*: 2\.weight \(3, 8\): .*requires_grad_\(True\).*exclude="):
        getattr(calibration, statistic)(mlp, of(data_for))
    assert snapshot(mlp) == before
    calibration.input_norms(mlp, of(data_for))  # which needs no gradient


def test_batches_that_are_none(mlp, data_for):
    x, y = data_for("mlp")
    with pytest.raises(PruneError, match="a batch of the data is a Tensor: give pairs"):
        calibration.gradients(mlp, Calibration((x, y)))
    with pytest.raises(PruneError, match="holds no sample"):
        calibration.gradients(mlp, Calibration(((x[:0], y[:0]),)))


def test_data_on_another_device(mlp, data_for):
    """Moved to the model; and a model without values says so."""
    assert calibration.gradients(mlp, of(data_for))
    with pytest.raises(PruneError, match="on the meta device"):
        calibration.gradients(mlp.to("meta"), of(data_for))


@pytest.mark.gpu
def test_data_is_moved_to_the_gpu(build, data_for, name, calib, gpu):
    for statistic in STATISTICS:
        on_cpu = getattr(calibration, statistic)(build(name), calib)
        on_gpu = getattr(calibration, statistic)(build(name).to(gpu), calib)
        same({n: t.cpu() for n, t in on_gpu.items()}, on_cpu, 1e-3)


def test_what_needs_a_calibration_says_how_to_make_one():
    for given, said in ((None, "nothing"), ((1, 2), "a tuple")):
        with pytest.raises(
            PruneError, match=rf"taylor needs data .*given {said}: pass calib=pl\.Calibration\.of\(data\)"
        ):
            calibration.samples.needed(given, "taylor")
