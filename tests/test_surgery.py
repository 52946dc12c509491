"""Physical removal: sizes, ties, plans on disk; and torchvision's quicker networks whole."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

import prunelab as pl
from prunelab import Group, Member, PruneError, granularity, surgery
from prunelab.surgery import load_plan, save_plan, shrink

SOURCE = """
import torch
from torch import nn

def network(width=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 6, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, 10), nn.ReLU(), nn.Linear(10, 3),
    )

def images():
    return torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))
"""
space: dict = {}
exec(SOURCE, space)
network, images = space["network"], space["images"]


def half(model, x=None):
    groups = granularity.coupled(model, images() if x is None else x)
    return groups, pl.allocate(pl.criteria.magnitude(model), groups, 0.5, "layer")


def bench():
    path = Path(__file__).parent / "benchmarks" / "bench_surgery.py"
    spec = importlib.util.spec_from_file_location("bench_surgery", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "googlenet"])
def test_torchvision(name):
    tools = bench()
    model, x = tools.network(name), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    groups, keep = half(model, x)
    assert all(g.exact for g in groups)
    assert surgery.difference(model, groups, keep, x) < 1e-4
    assert tools.trains(shrink(model, groups, keep), x)


def test_the_old_model_is_untouched_and_the_new_one_its_own(snapshot):
    model = network()
    groups, keep = half(model)
    model[3].weight.requires_grad_(False)
    model.train()
    before = snapshot(model)
    small = shrink(model, groups, keep)
    assert snapshot(model) == before
    assert small.training
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert [n for n, _ in small.named_parameters()] == [n for n, _ in model.named_parameters()]
    with torch.no_grad():
        for tensor in (*small.parameters(), *small.buffers()):
            tensor.zero_()
    assert snapshot(model) == before


def test_declared_sizes_follow():
    groups, keep = half(network())
    small = shrink(network(), groups, keep)
    assert (small[0].out_channels, small[1].num_features, small[3].in_channels, small[3].out_channels) == (4, 4, 4, 3)
    assert (small[6].in_features, small[6].out_features, small[8].in_features) == (48, 5, 5)
    assert [tuple(b.shape) for n, b in small.named_buffers() if "running" in n] == [(4,), (4,)]
    assert "Conv2d(4, 3, " in repr(small)


def test_a_kept_unit_keeps_its_values():
    model = network()
    for statistic in (model[1].running_mean, model[1].running_var):
        statistic.copy_(torch.rand(8))  # fresh ones are alike, whatever is taken of them
    groups, keep = half(model)
    small = shrink(model, groups, keep)
    assert torch.equal(small[3].weight, model[3].weight[keep["3"]][:, keep["0"]])
    assert torch.equal(small[1].running_mean, model[1].running_mean[keep["0"]])
    assert torch.equal(small[1].running_var, model[1].running_var[keep["0"]])


def test_masks_are_baked_into_the_new_model():
    model, x = network(), images()
    pruned = pl.prune(model, pl.Recipe(granularity="filters", sparsity=0.5), example=x)
    pl.apply(model, {"6.weight": pruned.masks["6.weight"] & (torch.arange(96) % 3 > 0)})
    small = shrink(model, pruned.groups, pruned.keep)
    assert not any(hasattr(m, "parametrizations") for m in small.modules())
    assert torch.allclose(small.eval()(x), model.eval()(x), atol=1e-6)
    assert hasattr(model[6], "parametrizations")


def test_twice_smaller_and_smaller():
    model, x = network().eval(), images()
    for _ in range(2):
        groups, keep = half(model)
        model = shrink(model, groups, keep)
    assert (model[0].out_channels, model(x).shape) == (2, (4, 3))


def test_channels_last_dtype_and_nothing_removed():
    model = network().to(memory_format=torch.channels_last).double()
    groups = granularity.coupled(model, images().double())
    keep = {g.name: torch.ones(g.units, dtype=torch.bool) for g in groups}
    same = shrink(model, groups, keep)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True))
    small = shrink(model, *half(model, images().double()))
    assert small[3].weight.dtype == torch.double
    assert small[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_groups_by_hand():
    """A multi-layer perceptron's first layer, described without a trace: GLU-like pieces of one tensor."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    group = Group("fc", 3, (Member("0.weight", 0, 2), Member("0.bias", 0, 2), Member("2.weight", -1, 2)))
    small = shrink(model, [group], {"fc": torch.tensor([True, False, True])})
    assert torch.equal(small[0].weight, model[0].weight[[0, 1, 4, 5]])
    assert torch.equal(small[2].weight, model[2].weight[:, [0, 1, 4, 5]])


def test_a_tied_weight_stays_tied():
    model = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    model["b"].weight = model["a"].weight
    group = Group("g", 6, (Member("b.weight", 0), Member("a.weight", 1), Member("a.bias", 0), Member("b.bias", 0)))
    small = shrink(model, [group], {"g": torch.arange(6) < 2})
    assert small["a"].weight is small["b"].weight
    assert (small["a"].weight.shape, small["b"].out_features, small["a"].in_features) == ((2, 2), 2, 2)


def test_bad_groups_and_keeps(snapshot):
    model = network()
    groups, keep = half(model)
    before = snapshot(model)
    wrong = [
        ({**keep, "0": torch.zeros(8, dtype=torch.bool)}, groups, "nothing left of 0 .8 units.*at least one unit"),
        ({**keep, "0": keep["0"][:4]}, groups, r"keep has torch.bool of shape \(4,\) for 0: expected 8 bools"),
        ({}, groups, "keep has nothing for 0"),
        (keep, [Group("0", 8, (Member("x.weight", 0),))], "has no tensor named 'x.weight'; it has 0.weight"),
        (keep, [Group("0", 8, (Member("3.weight", 0),))], r"3\.weight \(6, 8, 3, 3\) does not hold 8 units"),
        (keep, [Group("0", 8, (Member("0.bias", 1),))], "does not hold 8 units"),
        (keep, [Group("0", 8, (Member("0.bias"),))], "leaves no hole to close"),
    ]
    for kept, of, message in wrong:
        with pytest.raises(PruneError, match=message):
            shrink(model, of, kept)
    assert snapshot(model) == before


def test_half_a_group_of_a_grouped_convolution():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4))
    group = Group("0", 8, (Member("0.weight", 0), Member("0.bias", 0)))
    with pytest.raises(PruneError, match="3 of 8 channels go, which leaves its 4 groups 2, 2, 1, 0: a unit"):
        shrink(model, [group], {"0": torch.arange(8) < 5})


class Mixer(nn.Module):
    """Declares sizes of its own, as no layer of torch's."""

    def __init__(self, *shapes: tuple[int, int]) -> None:
        super().__init__()
        self.hidden_size, self.count = 4, 4
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(s)) for s in shapes)


@pytest.mark.parametrize(
    ("shapes", "cut", "size"),
    [
        (((4, 3),), {0: 2}, 2),
        (((4, 3), (4, 5)), {0: 2, 1: 2}, 2),
        (((4, 3), (4, 5)), {0: 2, 1: 3}, 4),  # which of the two it means nobody can tell
        (((4, 3), (4, 5)), {0: 2}, 4),  # and here it may be the one that stays
        (((4, 3), (4, 5), (4, 6)), {0: 2, 2: 2}, 2),
    ],
)
def test_a_declared_size_follows_where_only_one_cut_can_be_meant(shapes, cut, size):
    model = nn.Sequential(Mixer(*shapes))
    groups = [Group(f"{i}", 4, (Member(f"0.weights.{i}", 0),)) for i in cut]
    small = shrink(model, groups, {f"{i}": torch.arange(4) < n for i, n in cut.items()})
    assert (small[0].hidden_size, small[0].count, model[0].hidden_size) == (size, 4, 4)


class Attends(nn.Module):
    """An attention whose own width is, by chance, that of the stream, as timm's."""

    def __init__(self):
        super().__init__()
        self.embed_dim = self.attn_dim = 8
        self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 8)

    def forward(self, x):
        return self.down(self.up(x).reshape(len(x), 2, self.attn_dim).sum(1))


def test_an_attention_keeps_its_own_width_where_the_stream_loses_some():
    model = nn.Sequential(nn.Linear(3, 8), Attends(), nn.Linear(8, 2))
    ends = {"0.weight": 0, "0.bias": 0, "1.up.weight": 1, "1.down.weight": 0, "1.down.bias": 0, "2.weight": 1}
    stream = Group("stream", 8, tuple(Member(name, dim) for name, dim in ends.items()))
    keep, x = {"stream": torch.arange(8) < 4}, torch.randn(5, 3)
    small = shrink(model, [stream], keep)
    assert (small[1].embed_dim, small[1].attn_dim) == (4, 8)
    with pl.masked(model, pl.expand(model, [stream], keep)):
        torch.testing.assert_close(small(x), model(x))


def test_heads_that_leave_do_not_change_the_width_that_a_model_declares():
    """Both are 32 wide; the position of a head's columns is no position of the residual stream."""
    vit = torchvision.models.VisionTransformer(16, 8, 1, 4, 32, 48, num_classes=3).eval()
    x = torch.randn(2, 3, 16, 16)
    groups = granularity.heads(vit)
    small = shrink(vit, groups, {groups[0].name: torch.arange(4) < 2})
    assert (small.hidden_dim, small(x).shape) == (32, (2, 3))
    (stream,) = granularity.width(vit, x)
    small = shrink(vit, [stream], {stream.name: torch.arange(32) < 20})
    assert (stream.exact, small.hidden_dim, small(x).shape) == (False, 20, (2, 3))


def test_other_parametrizations():
    model = network()
    groups, keep = half(model)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(PruneError, match=r"has no tensor named '0\.weight'"):
        shrink(model, groups, keep)


@pytest.mark.slow
def test_saved_and_rebuilt_in_a_fresh_process(tmp_path):
    groups, keep = half(network())
    small = shrink(network(), groups, keep)
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small(images()).square().sum().backward()
    optimizer.step()  # trained further: the weights are no longer the fresh model's
    folder = save_plan(tmp_path / "plan", groups, keep, small)
    torch.save(small.eval()(images()), tmp_path / "out.pt")
    program = (
        f"{SOURCE}\nfrom prunelab.surgery import load_plan\nsmall = load_plan({str(folder)!r}, network()).eval()\n"
        f"assert torch.equal(small(images()), torch.load({str(tmp_path / 'out.pt')!r}, weights_only=True))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


TOGETHER = (
    SOURCE
    + """
import sys
import torch.distributed as dist
import prunelab as pl

def small():
    model = network().eval()
    groups = pl.granularity.coupled(model, images())
    return pl.shrink(model, groups, pl.allocate(pl.criteria.magnitude(model), groups, 0.5, "layer"))

def one_of_two(rank, place):
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    alone, shared = small(), small()
    alone(images()).square().mean().backward()
    both = nn.parallel.DistributedDataParallel(shared)
    both(images()[2 * rank : 2 * rank + 2]).square().mean().backward()
    for one, other in zip(alone.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.spawn(one_of_two, (sys.argv[1],), 2)
"""
)


@pytest.mark.slow
def test_trained_by_two_processes(tmp_path):
    (tmp_path / "program.py").write_text(TOGETHER)
    command = [sys.executable, tmp_path / "program.py", tmp_path / "meeting"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_compiled_and_under_autocast():
    model = network().eval()
    small = shrink(model, *half(model))
    whole = torch.compile(small, backend="aot_eager", fullgraph=True)  # all but the writing of kernels
    torch.testing.assert_close(whole(images()), small(images()))
    with torch.autocast("cpu", torch.bfloat16):
        low = small(images())
        assert low.dtype == model(images()).dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), small(images()), atol=0.02, rtol=0.02)


@pytest.fixture
def saved(tmp_path):
    groups, keep = half(network())
    return save_plan(tmp_path / "plan", groups, keep, shrink(network(), groups, keep)), groups, keep


def test_what_is_in_the_folder(saved):
    folder, _, keep = saved
    plan = json.loads((folder / "plan.json").read_text())
    assert sorted(p.name for p in folder.iterdir()) == ["plan.json", "plan.json.lock", plan["weights"]]
    assert plan["groups"][0]["kept"] == keep["0"].nonzero().flatten().tolist()
    assert plan["groups"][0]["members"][0] == {"tensor": "0.weight", "dim": 0}
    assert set(load_file(folder / plan["weights"])) == set(network().state_dict())


def test_the_fresh_model_is_untouched_and_its_numbers_do_not_matter(saved, snapshot):
    folder, groups, keep = saved
    fresh = network()
    nn.init.normal_(fresh[0].weight)
    before = snapshot(fresh)
    rebuilt = load_plan(folder, fresh)
    assert snapshot(fresh) == before
    small = shrink(network(), groups, keep)
    assert all(
        torch.equal(a, b) for a, b in zip(rebuilt.state_dict().values(), small.state_dict().values(), strict=True)
    )


def test_saving_again_replaces_all(saved):
    folder, groups, keep = saved
    other = {name: k.flip(0) for name, k in keep.items()}
    assert save_plan(str(folder), groups, other, shrink(network(), groups, other)) == folder
    assert len(list(folder.iterdir())) == 3
    assert torch.equal(load_plan(folder, network())[8].bias, network()[8].bias)


def test_saving_again_leaves_files_that_are_not_a_plan_s(saved):
    folder, groups, keep = saved
    names = ["weights-epoch10.safetensors", "weights-0123456789ab.safetensors", "notes.txt"]
    for name in names:
        (folder / name).write_text("mine")
    other = {name: k.flip(0) for name, k in keep.items()}
    save_plan(folder, groups, other, shrink(network(), groups, other))
    assert {name: (folder / name).read_text() for name in names} == dict.fromkeys(names, "mine")
    assert len(list(folder.iterdir())) == 3 + len(names)


@pytest.mark.parametrize(
    "plan",
    [
        "no JSON",
        '{"weights": "weights-0123456789ab.safetensors", "format": "prunelab plan 9"}',
        '{"weights": "mine.safetensors", "format": "prunelab plan 1"}',
        '{"weights": "../weights-0123456789ab.safetensors", "format": "prunelab plan 1"}',
    ],
)
def test_a_plan_that_is_none_names_nothing_to_delete(saved, plan):
    folder, groups, keep = saved
    stray = "weights-0123456789ab.safetensors"
    mine = [folder / stray, folder / "mine.safetensors", folder.parent / stray]
    for path in mine:
        path.write_text("mine")
    (folder / "plan.json").write_text(plan)
    save_plan(folder, groups, keep, shrink(network(), groups, keep))
    assert all(path.read_text() == "mine" for path in mine)
    load_plan(folder, network())


@pytest.mark.parametrize("theirs", ['{"my": "plan"}', "[]", '{"format": "another"}'])
def test_somebody_s_own_plan_json_is_not_replaced(tmp_path, theirs):
    groups, keep = half(network())
    (tmp_path / "plan.json").write_text(theirs)
    with pytest.raises(PruneError, match=r"plan\.json is no plan of prunelab's: move it away"):
        save_plan(tmp_path, groups, keep, shrink(network(), groups, keep))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"plan.json": theirs}


@pytest.mark.parametrize("place", ["file", "file/plan"])
def test_a_file_where_the_folder_should_be(tmp_path, place):
    groups, keep = half(network())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PruneError, match=r"file(/plan)?, where a file is: give a folder"):
        save_plan(tmp_path / place, groups, keep, shrink(network(), groups, keep))
    assert (tmp_path / "file").read_text() == "mine"


def test_drafts_of_weights_go_with_the_next_save_whatever_they_were_of(saved):
    folder, groups, keep = saved
    (folder / ".weights-0123456789ab.safetensors.01234567.tmp").write_text("half")
    (folder / ".weights-mine.safetensors.01234567.tmp").write_text("mine")
    save_plan(folder, groups, keep, shrink(network(), groups, keep))
    assert [p.name for p in folder.glob(".*")] == [".weights-mine.safetensors.01234567.tmp"]


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


NORMS = {
    "groups": (lambda: nn.GroupNorm(4, 16, affine=False), {"num_groups": 3, "num_channels": 12}),
    "single": (lambda: nn.GroupNorm(16, 16, affine=False), {"num_groups": 12, "num_channels": 12}),
    "instance": (lambda: nn.InstanceNorm2d(16), {"num_features": 12}),
    "batch": (lambda: nn.BatchNorm2d(16, affine=False, track_running_stats=False), {"num_features": 12}),
    "layer": (
        lambda: nn.Sequential(Tokens(), nn.LayerNorm(16, elementwise_affine=False)),
        {"normalized_shape": (12,)},
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", NORMS)
def test_norms_without_parameters_follow(kind, tmp_path):
    """A quarter of the channels before a norm goes, and what it declares with them."""
    torch.manual_seed(0)
    make, sizes = NORMS[kind]
    norm, by_token = make(), kind == "layer"
    reader = nn.Linear(16, 4) if by_token else nn.Conv2d(16, 4, 3)
    model, x = nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.ReLU(), reader).eval(), torch.randn(2, 3, 9, 9)
    (group,) = granularity.filters(model, x)
    assert group.exact is not by_token  # a LayerNorm averages over the channels that are masked
    keep = {group.name: torch.arange(group.units) >= group.units // 4}
    small = shrink(model, [group], keep)
    bare = small[1][1] if by_token else small[1]
    assert {name: getattr(bare, name) for name in sizes} == sizes
    assert group.exact is (surgery.difference(model, [group], keep, x) < 1e-6)
    rebuilt = load_plan(save_plan(tmp_path, [group], keep, small), model)
    assert torch.equal(rebuilt(x), small(x))
    (again,) = granularity.filters(small, x)
    assert again.units == int(keep[group.name].sum())


def test_a_norm_of_another_model(snapshot):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    members = (Member("0.weight", 0), Member("0.bias", 0), Member("3.weight", 1))
    keep, before = {"0": torch.arange(8) > 0}, snapshot(model)
    for path, message in (("2", "2, a norm of 0, is a ReLU"), ("9", "9, a norm of 0, is nothing")):
        with pytest.raises(PruneError, match=message):
            shrink(model, [Group("0", 8, members, norms=(Member(path, 0),))], keep)
    with pytest.raises(PruneError, match="does not hold 8 units"):
        shrink(model, [Group("0", 8, members, norms=(Member("1", 0, 2),))], keep)
    assert snapshot(model) == before


def test_an_interrupted_save_leaves_the_old_plan(saved, monkeypatch):
    folder, groups, keep = saved
    other = {name: k.flip(0) for name, k in keep.items()}
    replace = os.replace

    def fail_at_the_plan(source, target):
        if str(target).endswith("plan.json"):
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_plan)
    with pytest.raises(OSError, match="disk full"):
        save_plan(folder, groups, other, shrink(network(), groups, other))
    monkeypatch.undo()
    assert torch.equal(load_plan(folder, network())[0].weight, network()[0].weight[keep["0"]])
    assert not list(folder.glob("*.tmp")) + list(folder.glob(".*.tmp"))


def test_a_plan_of_another_model(saved, snapshot):
    folder, *_ = saved
    for width in (7, 9):
        message = rf"is not a plan of this Sequential: 0\.weight \({width}, 1, 3, 3\) does not hold 8"
        with pytest.raises(PruneError, match=message):
            load_plan(folder, network(width=width))
    with pytest.raises(PruneError, match=r"is not a plan of this Linear: the model has no tensor named '0\.weight'"):
        load_plan(folder, nn.Linear(2, 2))
    with pytest.raises(PruneError, match=r"0\.weight is torch.float32 .* in the plan, torch.float64"):
        load_plan(folder, network().double())
    with pytest.raises(PruneError, match=r"9\.weight is nothing in the plan"):
        load_plan(folder, network().append(nn.Linear(3, 3)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f, w: (f / "plan.json").unlink(), "there is no .*plan.json: give the folder"),
        (lambda f, w: (f / "plan.json").write_text(""), "plan.json is damaged or incomplete .*save the plan again"),
        (lambda f, w: (f / "plan.json").write_bytes((f / "plan.json").read_bytes()[:100]), "damaged or incomplete"),
        (lambda f, w: (f / "plan.json").write_text("[1]"), "no plan this version can read: its format is 'list'"),
        (lambda f, w: (f / "plan.json").write_text('{"format": "x 2"}'), "its format is 'x 2', not 'prunelab plan 3'"),
        (
            lambda f, w: (f / "plan.json").write_text('{"format": "prunelab plan 1"}'),
            r"damaged or incomplete \(KeyError",
        ),
        (lambda f, w: edit(f, "weights", "../x"), "the weights are said to lie at '../x'"),
        (lambda f, w: edit(f, "weights", "x"), "the weights of the plan, .*x, cannot be read"),
        (lambda f, w: edit(f, "weights", "a\0b"), r"damaged or incomplete .*the weights are said to lie at 'a.x00b'"),
        (lambda f, w: edit_group(f, "kept", {}), "damaged or incomplete .*is no list"),
        (lambda f, w: edit_group(f, "kept", [1, 99]), "the kept units of 0 are not among its 8"),
        (lambda f, w: edit_group(f, "kept", ["1"]), "the kept units of 0 are not among its 8"),
        (lambda f, w: edit_group(f, "kept", []), "keep has nothing left of 0"),
        (lambda f, w: edit_group(f, "units", "8"), "damaged or incomplete"),
        (lambda f, w: edit_group(f, "members", [{"tensor": "0.weight", "what": 1}]), "damaged or incomplete"),
        (lambda f, w: edit_group(f, "members", [{"tensor": "0.weight", "dim": 0.5}]), "damaged or incomplete"),
        (lambda f, w: w.write_bytes(w.read_bytes()[:-8]), r"is damaged or cut short: its checksum is not the plan's"),
        (lambda f, w: w.write_bytes(b"\0" + w.read_bytes()[1:]), "is damaged or cut short"),
        (lambda f, w: w.unlink(), "cannot be read: .*Copy the whole folder"),
    ],
)
def test_damaged_files(saved, damage, message):
    folder, *_ = saved
    damage(folder, next(folder.glob("*.safetensors")))
    with pytest.raises(PruneError, match=message):
        load_plan(folder, network())


def test_a_plan_of_the_first_format(tmp_path):
    """It said where a run of entries begins: an offset, and a block. Written by hand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
    kept = [0, 2]  # of three units of two neurons
    rows = [0, 1, 4, 5]
    groups = [
        {"name": "0", "units": 3, "exact": True, "kept": kept, "members": [
            {"tensor": "0.weight", "dim": 0, "block": 2}, {"tensor": "0.bias", "dim": 0, "block": 2},
            {"tensor": "2.weight", "dim": 1, "block": 2}]},
        {"name": "2", "units": 2, "exact": True, "kept": [1], "members": [
            {"tensor": "2.weight", "dim": 0, "offset": 2}, {"tensor": "2.bias", "dim": 0, "offset": 2}]},
    ]  # fmt: skip
    left = {"0.weight": model[0].weight[rows], "0.bias": model[0].bias[rows]}
    left |= {"2.weight": model[2].weight[[0, 1, 3]][:, rows], "2.bias": model[2].bias[[0, 1, 3]]}
    save_file({n: t.detach().contiguous() for n, t in left.items()}, tmp_path / "weights-0123456789ab.safetensors")
    digest = hashlib.sha256((tmp_path / "weights-0123456789ab.safetensors").read_bytes()).hexdigest()
    plan = {"format": "prunelab plan 1", "model": "Sequential", "weights": "weights-0123456789ab.safetensors"}
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"sha256": digest, "groups": groups}))
    small = load_plan(tmp_path, model)
    assert {n: t.tolist() for n, t in small.state_dict().items()} == {n: t.tolist() for n, t in left.items()}
    assert (small[2].in_features, small[2].out_features) == (4, 3)


def test_a_flipped_digit_of_the_plan_and_one_without_a_checksum(saved):
    """The kept units of a filter have the shape of any other: only the plan's own checksum can tell."""
    folder, groups, _ = saved
    plan = json.loads((folder / "plan.json").read_text())
    kept = plan["groups"][0]["kept"]
    other = [*kept[1:], next(u for u in range(groups[0].units) if u not in kept)]
    plan["groups"][0]["kept"] = other
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PruneError, match=r"damaged or incomplete .*its checksum is not that of its text"):
        load_plan(folder, network())
    plan["groups"][0]["kept"] = kept
    del plan["plan_sha256"]
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(PruneError, match=r"damaged or incomplete .*plan_sha256"):
        load_plan(folder, network())
    (folder / "plan.json").write_text(json.dumps(plan | {"format": "prunelab plan 2"}))
    load_plan(folder, network())  # as the format before wrote it


def edit(folder, key, value):
    sign(folder, json.loads((folder / "plan.json").read_text()) | {key: value})


def edit_group(folder, key, value):
    plan = json.loads((folder / "plan.json").read_text())
    plan["groups"][0][key] = value
    sign(folder, plan)


def sign(folder, plan):
    """Write it with the checksum that goes with it: not damage, but a plan that was made so."""
    plan.pop("plan_sha256", None)
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    (folder / "plan.json").write_text(json.dumps(plan | {"plan_sha256": digest}))


def test_what_cannot_be_saved(tmp_path):
    model = network()
    groups, keep = half(model)
    with pytest.raises(
        PruneError, match=r"0\.weight \(8, 1, 3, 3\) is not what these groups and keep leave of it, 4 of 8"
    ):
        save_plan(tmp_path / "a", groups, keep, model)
    small = shrink(model, groups, keep)
    with pytest.raises(PruneError, match="is not what these groups and keep leave"):
        save_plan(tmp_path / "a", groups, {**keep, "0": torch.ones(8, dtype=torch.bool)}, small)
    pl.apply(small, {"8.weight": torch.ones(3, 5, dtype=torch.bool)})
    with pytest.raises(PruneError, match=r"the model wears masks, on 8\.weight"):
        save_plan(tmp_path / "a", groups, keep, small)
    weights = granularity.weights(model)
    with pytest.raises(PruneError, match=r"0\.weight holds single weights: a plan is of structures"):
        save_plan(tmp_path / "a", weights, {g.name: torch.ones(g.units, dtype=torch.bool) for g in weights}, model)
    assert not (tmp_path / "a").exists()


def test_a_file_of_another_content_under_the_right_checksum(saved, tmp_path):
    folder, *_ = saved
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(b"not a tensor")
    edit(folder, "sha256", hashlib.sha256(weights.read_bytes()).hexdigest())
    with pytest.raises(PruneError, match="is damaged: it holds no safetensors"):
        load_plan(folder, network())
    save_file({"extra": torch.zeros(1)}, weights)
    edit(folder, "sha256", hashlib.sha256(weights.read_bytes()).hexdigest())
    with pytest.raises(PruneError, match=r"0\.weight is nothing in the plan"):
        load_plan(folder, network())


class Remembering(nn.Module):
    """Its regularizer refers to the weights by a list of its own, which no state dict names."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.decayed = [self.first.weight, self.last.weight]

    def forward(self, x):
        return self.last(self.first(x).relu())


def test_no_reference_leads_back_to_the_old_model():
    model = Remembering()
    groups = pl.granularity.neurons(model, torch.randn(2, 6))
    small = pl.shrink(model, groups, pl.allocate(pl.criteria.magnitude(model), groups, 0.5, "layer"))
    assert [tuple(w.shape) for w in small.decayed] == [(4, 6), (3, 4)]
    assert all(a is b for a, b in zip(small.decayed, (small.first.weight, small.last.weight), strict=True))
    old = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert not old & {p.untyped_storage().data_ptr() for p in (*small.parameters(), *small.decayed)}


def test_a_config_that_is_a_dict_is_none_of_ours():
    """segmentation_models_pytorch's models have one, and a save_pretrained of their own."""

    class Own(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
            self.config, self.num_heads = {"classes": 3}, 2

        def save_pretrained(self, folder):
            return "saved"

    model = Own()
    groups = granularity.neurons(model, torch.randn(2, 6))
    small = shrink(model, groups, {g.name: torch.arange(g.units) < 5 for g in groups})
    assert (small[0].out_features, small.save_pretrained("x"), small.config) == (5, "saved", {"classes": 3})


def bert_inside_a_model_of_ones_own():
    transformers = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 50}
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(hidden_size=16, **sizes), add_pooling_layer=False)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = bert

        def forward(self, input_ids):
            return self.bert(input_ids).last_hidden_state.mean(1)

    return Encoder().eval(), torch.arange(10).view(2, 5)


def test_a_model_of_transformers_inside_another_says_what_is_left(tmp_path):
    model, ids = bert_inside_a_model_of_ones_own()
    groups = pl.granularity.neurons(model, ids)
    small = pl.shrink(model, groups, {g.name: torch.arange(24) % 3 > 0 for g in groups})
    assert (small.bert.config.intermediate_size, model.bert.config.intermediate_size) == (16, 24)
    small.bert.save_pretrained(tmp_path)
    again = type(small.bert).from_pretrained(tmp_path, add_pooling_layer=False)
    assert torch.equal(again(ids).last_hidden_state, small.bert(ids).last_hidden_state)


def test_a_model_of_transformers_inside_another_is_not_saved_where_its_config_cannot_say_it(tmp_path):
    model, ids = bert_inside_a_model_of_ones_own()
    heads = pl.granularity.heads(model, ids)
    small = pl.shrink(model, heads, {g.name: torch.arange(4) > 0 for g in heads})
    neurons = pl.granularity.neurons(model, ids)
    smaller = pl.shrink(small, neurons, {g.name: torch.arange(24) > 3 for g in neurons})
    for each in (small, smaller):
        with pytest.raises(PruneError, match="save_plan"):
            each.bert.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_plan_too_large_to_be_read_again_is_not_written(tmp_path, monkeypatch):
    groups, keep = half(network())
    small = shrink(network(), groups, keep)
    monkeypatch.setattr(surgery.plans, "LARGEST", 100)
    with pytest.raises(PruneError, match=r"`load_plan` reads 100 B at most"):
        save_plan(tmp_path / "plan", groups, keep, small)
    assert not (tmp_path / "plan").exists()
