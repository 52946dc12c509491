"""What a GPU changes: the same decisions as on the CPU, results where the model lies, data and examples from anywhere.

Skipped without CUDA. `PRUNELAB_GPU=cpu pytest -n0 -m gpu tests/test_gpu.py` tries the tests themselves without one.
"""

import copy
import warnings

import pytest
import torch
from tiny_decoders import LastToken, decoder, token_ids
from torch import nn

import prunelab as pl
from prunelab import movement, recovery, zoo
from prunelab.criteria import CRITERIA
from prunelab.lab.lessons.physics import products
from prunelab.language import next_token_loss, next_tokens
from prunelab.masking import current_masks
from prunelab.measurement import Conditions, compare, evaluate, macs, perplexity, rates
from prunelab.reconstruction import SparseGPT, Wanda, blockwise
from prunelab.sensitivity import scan
from prunelab.surgery import difference

pytestmark = pytest.mark.gpu

MODELS = ["cnn", "mlp", "residual", "vit"]
STRUCTURES = {"cnn": "filters", "mlp": "neurons", "residual": "coupled", "vit": "heads", "attention": "heads"}
LOOK_AT_DATA = ["gradient", "taylor", "taylor_sum", "fisher", "grasp", "synflow", "fpgm", "wanda", "lamp"]
HALVES = [torch.float16, torch.bfloat16]
each_half = pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
each_structure = pytest.mark.parametrize(("name", "granularity"), STRUCTURES.items())


def on(device, named):
    """Whether all tensors of a dict, or of a model, lie on a device."""
    tensors = named.state_dict().values() if isinstance(named, nn.Module) else named.values()
    return all(t.device.type == device.type for t in tensors)


def same(a, b):
    """Two dicts of tensors hold the same, wherever they lie."""
    return a.keys() == b.keys() and all(torch.equal(a[k].cpu(), b[k].cpu()) for k in a)


def near(a, b, rtol=1e-3):
    """Two tensors agree up to the rounding of other kernels."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).abs().max()) <= rtol * float(b.abs().max())


def text(n=4):
    return pl.Calibration((next_tokens(token_ids(n)), next_tokens(token_ids(3, seed=2))), next_token_loss)


def logits(model, ids, device):
    with torch.no_grad():
        return model(ids.to(device)).logits


# Scores, who goes, masks


@pytest.mark.parametrize("criterion", ["magnitude", "magnitude_l2", "random", *LOOK_AT_DATA])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_the_cpus(build, data_for, gpu, name, criterion):
    calib = pl.Calibration.of(data_for(name), batch_size=8)
    expected = CRITERIA[criterion](build(name), calib)
    found = CRITERIA[criterion](build(name).to(gpu), calib)
    assert found.keys() == expected.keys()
    assert on(gpu, found)
    assert all(near(found[k], expected[k]) for k in found)


@pytest.mark.parametrize("scope", ["global", "layer", "row", pl.NM(1, 2)], ids=str)
@pytest.mark.parametrize("name", ["mlp", "vit"])
def test_the_same_weights_go(build, gpu, name, scope):
    """From the very same scores, and from scores full of ties."""
    model = build(name)
    groups = pl.granularity.weights(model, exclude=[n for n, w in pl.prunable(model).items() if w.shape[1] % 2])
    for change in (torch.abs, torch.round, torch.sign):
        scores = {n: change(w.detach() * 3) for n, w in pl.prunable(model).items()}
        there = {n: s.to(gpu) for n, s in scores.items()}
        share = None if isinstance(scope, pl.NM) else 0.4
        expected, found = (pl.allocate(s, groups, share, scope) for s in (scores, there))
        assert on(gpu, found)
        assert same(found, expected)


def test_many_weights_and_those_gone_before(gpu):
    """More entries than are ordered at once on a CPU; a second, nested selection; half precision."""
    model = nn.Sequential(nn.Linear(1500, 900, bias=False), nn.Linear(900, 1100, bias=False))
    groups = pl.granularity.weights(model)
    dice = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        scores = {n: torch.randn(w.shape, generator=dice).to(dtype) for n, w in pl.prunable(model).items()}
        there = {n: s.to(gpu) for n, s in scores.items()}
        first = pl.allocate(scores, groups, 0.5)
        second = pl.allocate(scores, groups, 0.8, within=first)
        assert same(pl.allocate(there, groups, 0.5), first)
        assert same(pl.allocate(there, groups, 0.8, within=first), second)
        assert same(pl.allocate(there, groups, 0.8, within={n: k.to(gpu) for n, k in first.items()}), second)


@pytest.mark.parametrize("name", [*MODELS, "tied", "attention", "attention_kdim"])
def test_masks_go_on_come_off_and_stay(build, data_for, snapshot, gpu, name):
    model, x = build(name).to(gpu).eval(), data_for(name)[0].to(gpu)
    groups = pl.granularity.weights(model)
    masks = pl.expand(model, groups, pl.allocate(pl.criteria.magnitude(model), groups, 0.5))
    before = snapshot(model)
    with pl.masked(model, {n: m.cpu() for n, m in masks.items()}):
        assert on(gpu, current_masks(model))
    assert snapshot(model) == before
    pl.apply(model, masks)
    with torch.no_grad():
        worn = model(x)
        assert near(pl.bake(model)(x), worn, 1e-5)  # an attention without masks may take another kernel
    assert on(gpu, model)
    assert all(not model.get_parameter(n)[~m].any() for n, m in masks.items())
    assert sum(int((~m).sum()) for m in masks.values()) == round(0.5 * sum(m.numel() for m in masks.values()))


@each_structure
def test_prune_in_rounds(build, data_for, gpu, name, granularity):
    """The example and the calibration lie on the CPU; what went in one round stays gone in the next."""
    recipe = pl.Recipe("taylor", granularity, 0.5, "layer", schedule="linear", rounds=2)
    calib = pl.Calibration.of(data_for(name), batch_size=8)
    expected = pl.prune(build(name), recipe, calib)
    model = build(name).to(gpu)
    pruned = pl.prune(model, recipe, calib)
    assert on(gpu, pruned.masks)
    assert same(pruned.keep, expected.keep)
    assert str(pruned.report) == str(expected.report)
    again = pl.prune(model, pl.Recipe("magnitude", granularity, 0.5, "layer"), example=data_for(name)[0])
    assert same(again.keep, pruned.keep)


# Structures that leave


@each_structure
def test_shrink(build, data_for, gpu, name, granularity):
    """Found with an example on the CPU, proven exact in the device's own arithmetic, removed where the model lies."""
    model, x = build(name).to(gpu), data_for(name)[0]
    find = pl.granularity.by_name(granularity)
    groups = find(model, x)
    assert groups == find(build(name), x)
    keep = pl.allocate(pl.criteria.magnitude(model), groups, 0.5, "layer")
    assert difference(model, groups, keep, x) < 1e-4
    small = pl.shrink(model, groups, keep)
    assert on(gpu, small)
    assert on(gpu, model)
    nn.functional.cross_entropy(small(x.to(gpu)), torch.arange(len(x), device=gpu) % 3).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in small.parameters())


def test_exactness_is_seen_in_the_devices_usual_arithmetic(gpu):
    """TF32, which torch lets convolutions use unless told otherwise, must not pass for an inexact group."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).to(gpu)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        groups = pl.granularity.filters(model, torch.randn(4, 3, 64, 64))
    assert all(g.exact for g in groups)


@each_structure
def test_a_plan_goes_from_gpu_to_cpu_and_back(build, data_for, gpu, tmp_path, name, granularity):
    model, x = build(name).to(gpu).eval(), data_for(name)[0]
    groups = pl.granularity.by_name(granularity)(model, x)
    keep = pl.allocate(pl.criteria.magnitude(model), groups, 0.5, "layer")
    small = pl.shrink(model, groups, keep)
    folder = pl.save_plan(tmp_path / "plan", groups, keep, small)
    for device in (torch.device("cpu"), gpu):
        loaded = pl.load_plan(folder, build(name).to(device))
        assert on(device, loaded)
        assert same(loaded.state_dict(), small.state_dict())
        with torch.no_grad():
            assert near(loaded.eval()(x.to(device)), small(x.to(gpu)), 1e-4)


@each_half
@each_structure
def test_half_precision(build, data_for, gpu, name, granularity, dtype):
    model, x = build(name).to(gpu, dtype).eval(), data_for(name)[0].to(dtype)
    groups = pl.granularity.by_name(granularity)(model, x)
    assert [(g.name, g.units, g.exact) for g in groups] == [
        (g.name, g.units, g.exact) for g in pl.granularity.by_name(granularity)(build(name), x.float())
    ]
    pruned = pl.prune(model, pl.Recipe("magnitude", granularity, 0.5, "layer"), example=x)
    small = pl.shrink(pl.bake(model), pruned.groups, pruned.keep).eval()
    with torch.no_grad():
        masked, removed = model(x.to(gpu)), small(x.to(gpu))
    assert removed.dtype == dtype
    assert near(removed, masked, 0.05)


@pytest.mark.parametrize("what", ["neurons", "mlps", "attentions", "layers", "heads"])
def test_a_llama_loses(gpu, what):
    """Whole modules and structures of a decoder, twice, so that what went before is read back from its masks."""
    kept = {}
    for device in ("cpu", gpu):
        model = decoder().to(device)
        for share in (0.25, 0.5):
            pruned = pl.prune(model, pl.Recipe("magnitude", what, share, "layer"), text())
        masked = logits(model, token_ids(), device)
        small = pl.shrink(pl.bake(model), pruned.groups, pruned.keep)
        assert near(logits(small, token_ids(), device), masked, 1e-4)
        assert on(torch.device(device), small)
        kept[str(device)] = pruned.keep
    assert same(*kept.values()) if len(kept) == 2 else kept


@pytest.mark.parametrize("criterion", ["block_influence", "angular_distance", "glu_peak_to_peak", "taylor", "wanda"])
def test_a_llamas_scores_are_the_cpus(gpu, criterion):
    expected, found = (CRITERIA[criterion](decoder().to(d), text()) for d in ("cpu", gpu))
    assert on(gpu, found)
    assert all(near(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize("sparsity", [0.5, pl.NM(2, 4)], ids=str)
@pytest.mark.parametrize("method", [Wanda(), SparseGPT()], ids=["wanda", "sparsegpt"])
def test_blockwise(gpu, method, sparsity):
    models = {device: decoder().to(device) for device in ("cpu", str(gpu))}
    masks = {device: blockwise(model, text(), method, sparsity) for device, model in models.items()}
    here, there = masks["cpu"], masks[str(gpu)]
    assert on(gpu, there)
    agree = sum(int((here[n] == there[n].cpu()).sum()) for n in here)
    assert agree > 0.98 * sum(m.numel() for m in here.values())  # rounding decides between near equals
    for name, mask in there.items():
        weight = models[str(gpu)].get_parameter(name)
        assert not weight[~mask].any()
        assert int(mask.sum()) == mask.numel() // 2


# Training


@pytest.mark.parametrize("name", MODELS)
def test_train_and_finetune_hold_the_zeros(build, data_for, gpu, name):
    model = build(name).to(gpu)
    recovery.train(model, data_for(name), steps=4, batch_size=8, progress=False)
    pruned = pl.prune(model, pl.Recipe(sparsity=0.6))
    history = recovery.finetune(model, data_for(name), steps=6, batch_size=8, progress=False)
    assert history.steps == 6
    assert on(gpu, model)
    pl.bake(model)
    assert all(not model.get_parameter(n)[~m].any() for n, m in pruned.masks.items())


def test_statistics_are_estimated_anew(build, data_for, gpu):
    here, there = build("cnn"), build("cnn").to(gpu)
    assert [recovery.recalibrate_batchnorm(m, data_for("cnn")) for m in (here, there)] == [2, 2]
    assert all(near(b, here.get_buffer(n)) for n, b in there.named_buffers() if b.is_floating_point())


def droopy(device):
    """A network whose training draws random numbers on its device."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    return model.to(device)


class Stop(Exception):
    """Ends a run in the middle."""


def stopping(at):
    def on_step(done, total):
        if done == at:
            raise Stop

    return on_step


@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_broken_run_goes_on_to_the_same_weights(lesson, gpu, tmp_path, at):
    options = {"epochs": 3, "batch_size": 16, "progress": False}
    whole, model = droopy(gpu), droopy(gpu)
    recovery.train(whole, lesson, **options)
    saved = recovery.Checkpoint(tmp_path / "run", 1)
    with pytest.raises(Stop):
        recovery.train(droopy(gpu), lesson, checkpoint=saved, on_step=stopping(at), **options)
    recovery.train(model, lesson, checkpoint=saved, on_step=stopping(None), **options)
    assert same(model.state_dict(), whole.state_dict())


def test_training_leaves_the_devices_random_numbers_alone(lesson, gpu):
    if gpu.type != "cuda":
        pytest.skip("only a GPU has random numbers of its own")
    model, before = droopy(gpu), torch.cuda.get_rng_state()
    recovery.train(model, lesson, steps=3, progress=False)
    compare({"it": model}, lesson.valid[0], rounds=7)
    evaluate(model, lesson)
    pl.granularity.neurons(model, lesson.valid[0])
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_distillation(lesson, gpu):
    model = droopy(gpu)
    pl.prune(model, pl.Recipe(sparsity=0.5))
    assert recovery.distil(model, droopy(gpu), lesson, steps=4, progress=False).steps == 4


@pytest.mark.parametrize("granularity", ["weights", "neurons"])
@pytest.mark.parametrize("rule", [movement.TopV(0.5), movement.Threshold(0.1)], ids=["hard", "soft"])
def test_movement(build, lesson, gpu, granularity, rule):
    model = build("mlp").to(gpu)
    groups = pl.granularity.by_name(granularity)(model, lesson.valid[0])
    learned = movement.finetune(model, lesson, groups, rule, steps=12, lr=1e-2, batch_size=16, progress=False)
    assert on(gpu, learned.scores)
    assert on(gpu, current_masks(model))
    assert same(learned.pruned.masks, current_masks(model))
    assert not movement.by_group(model)


# Instruments


@pytest.mark.parametrize("name", ["cnn", "mlp", "residual"])
def test_measure(build, data_for, gpu, name):
    here, there = (pl.measure(build(name).to(d), data_for(name), rounds=7) for d in ("cpu", gpu))
    assert (there.accuracy, there.n) == (here.accuracy, here.n)
    assert there.loss == pytest.approx(here.loss, rel=1e-3)
    assert (there.parameters, there.nonzero, there.bytes) == (here.parameters, here.nonzero, here.bytes)
    assert there.macs == here.macs == macs(build(name), data_for(name)[0])
    assert gpu.type in there.latency
    assert there.peak_memory > 0


@pytest.mark.parametrize(("name", "granularity"), [("cnn", "filters"), ("mlp", "weights"), ("residual", "weights")])
def test_a_scan_is_the_cpus(build, data_for, snapshot, gpu, name, granularity):
    options = {"sparsities": (0.0, 0.5, 0.9), "granularity": granularity, "batch_size": 10, "progress": False}
    expected = scan(build(name), data_for(name), **options)
    model = build(name).to(gpu)
    before = snapshot(model)
    found = scan(model, data_for(name), **options)
    assert snapshot(model) == before
    assert found.names == expected.names
    assert (found.removed == expected.removed).all()
    assert abs(found.loss - expected.loss).max() < 1e-3 * abs(expected.loss).max()


def test_a_scan_of_a_llama(gpu):
    data = token_ids(8), torch.arange(8) % 3
    found = scan(LastToken().to(gpu), data, (0.5,), "layers", batch_size=4, progress=False)
    assert found.loss.shape == (1, 1)


def test_language_is_measured(gpu):
    models = {name: decoder().to(gpu) for name in ("dense", "other")}
    found = rates(models, token_ids(1), rounds=7)
    assert found.decode.latency["other"].device == gpu.type
    expected = perplexity(decoder(), token_ids()).value
    assert perplexity(models["dense"], token_ids()).value == pytest.approx(expected, rel=1e-3)


def test_the_course_networks_judge_alike(gpu):
    model, data = zoo.checkpoint("digits-cnn"), zoo.load("digits")
    here, there = evaluate(model, data), evaluate(copy.deepcopy(model).to(gpu), data)
    assert abs(here.correct - there.correct) <= 2  # of 1,000 and more: rounding may decide a tie


# Sparse kernels


def two_of_four(layer):
    """A layer's mask, two of each four inputs, as the library finds it."""
    groups = pl.granularity.weights(layer)
    keep = pl.allocate(pl.criteria.magnitude(layer), groups, None, pl.NM(2, 4))
    return pl.expand(layer, groups, keep)


@each_half
@pytest.mark.parametrize("size", [(64, 128), (256, 256)], ids=str)
def test_two_of_four_is_what_torch_compresses(gpu, size, dtype):
    if gpu.type != "cuda" or torch.cuda.get_device_capability(gpu) < (8, 0):
        pytest.skip("no sparse tensor cores here")
    torch.manual_seed(0)
    layer = nn.Linear(size[1], size[0], bias=False).to(gpu, dtype)
    pl.bake(pl.apply(layer, two_of_four(layer)))
    x = torch.randn(32, size[1], device=gpu, dtype=dtype)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that this part of torch is a prototype
        packed = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
        assert torch.equal(packed.to_dense(), layer.weight)
        assert near(nn.functional.linear(x, packed), layer(x), 0.02)


def test_block_sparse_products(gpu):
    found = products(64, 32, [0.5], kernels=["bsr"], on=Conditions(rounds=7, device=gpu.type))
    assert [r.kernel for r in found.rows] == ["dense", "bsr"]
