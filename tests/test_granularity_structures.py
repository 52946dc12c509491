"""Filters, neurons and blocks: what is found to belong together, and that tracing leaves no trace."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab import Group, Member, PruneError, granularity, surgery
from prunelab.granularity import tracing
from prunelab.layers import prunable
from prunelab.units import contract, entries, expand


class Net(nn.Module):
    """Named layers and a forward of one's own: `Net(lambda s, x: ..., a=nn.Linear(...))`."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs, **named):
        return self.run(self, *inputs, **named)


def conv(i, o, k=3, **more):
    return nn.Conv2d(i, o, k, padding=k // 2, **more)


def pooled(x):
    return x.mean((2, 3))


def chain():
    layers = [conv(2, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 3))


def residual():
    return Net(
        lambda s, x: s.head(pooled((y := s.stem(x)) + s.bn(s.two(F.relu(s.one(y)))))),
        stem=conv(2, 8), one=conv(8, 6), two=conv(6, 8), bn=nn.BatchNorm2d(8), head=nn.Linear(8, 3),
    )  # fmt: skip


def concat():
    return Net(
        lambda s, x: s.head(F.relu(s.bn(torch.cat([s.a(x), s.b(x), s.a(x) * 2], 1))).flatten(1)),
        a=conv(2, 4), b=conv(2, 6), bn=nn.BatchNorm2d(14), head=nn.Linear(14 * 36, 3),
    )  # fmt: skip


def depthwise():
    return nn.Sequential(
        conv(2, 8), conv(8, 8, groups=8), nn.BatchNorm2d(8), nn.ReLU6(), conv(8, 6, 1), nn.Flatten(), nn.Linear(216, 3)
    )


def multiplied():
    """Depthwise with two filters a channel."""
    return nn.Sequential(conv(2, 4), nn.ReLU(), conv(4, 8, groups=4), nn.ReLU(), conv(8, 3, 1), nn.Flatten(1))


def grouped():
    return nn.Sequential(
        conv(2, 8), nn.ReLU(), conv(8, 12, groups=4), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(432, 3)
    )


def squeeze_excite():
    def forward(s, x):
        x = s.stem(x)
        gate = torch.sigmoid(s.up(F.relu(s.down(F.adaptive_avg_pool2d(x, 1)))))
        return s.head(pooled(s.last(x * gate)))

    return Net(
        forward, stem=conv(2, 8), down=conv(8, 4, 1), up=conv(4, 8, 1), last=conv(8, 6), head=nn.Linear(6, 3)
    )  # fmt: skip


def perceptron():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 12), nn.ReLU(), nn.Linear(12, 8), nn.PReLU(8), nn.Linear(8, 3)
    )  # fmt: skip


def twice():
    return Net(
        lambda s, x: s.head(pooled(F.relu(s.again(F.relu(s.again(F.relu(s.stem(x)))))))),
        stem=conv(2, 6), again=conv(6, 6), head=nn.Linear(6, 3),
    )  # fmt: skip


def scaled():
    net = Net(
        lambda s, x: s.head(pooled((y := s.stem(x)) + s.scale * s.branch(y))),
        stem=conv(2, 6), branch=conv(6, 6), head=nn.Linear(6, 3),
    )  # fmt: skip
    net.scale = nn.Parameter(torch.full((6, 1, 1), 1e-6))
    return net


def group_norm():
    return nn.Sequential(conv(2, 12), nn.GroupNorm(4, 12), nn.ReLU(), conv(12, 5), nn.Flatten(), nn.Linear(180, 3))


def transposed():
    return nn.Sequential(conv(2, 6), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, 2), nn.ReLU(), conv(4, 2))


def gated():
    """A convolution whose halves gate each other: a unit is a channel of each half."""
    return Net(
        lambda s, x: s.head(pooled(torch.mul(*s.both(x).chunk(2, 1)))), both=conv(2, 12), head=nn.Linear(6, 3)
    )  # fmt: skip


def tied_weights():
    net = Net(
        lambda s, x: s.head(pooled(F.relu(s.b(F.relu(s.a(s.stem(x))))))),
        stem=conv(2, 6), a=conv(6, 6), b=conv(6, 6), head=nn.Linear(6, 3),
    )  # fmt: skip
    net.b.weight = net.a.weight
    return net


EXACT = [
    chain, residual, concat, depthwise, multiplied, grouped, squeeze_excite, perceptron, twice, scaled, group_norm,
    transposed, gated, tied_weights,
]  # fmt: skip


def made(build, seed=0):
    """A net with weights, statistics and affine parameters at which a forgotten tensor shows."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = build()
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                if tensor.is_floating_point() and tensor.dim() == 1:
                    tensor.copy_(torch.rand_like(tensor) + 0.5)
    return net


def images(count=3):
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def found(net, example=None):
    return {g.name: g for g in granularity.coupled(net, images() if example is None else example)}


@pytest.mark.parametrize("build", EXACT)
@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_masked_is_shrunk(build, sparsity):
    net, x = made(build), images()
    groups = granularity.coupled(net, x)
    assert all(g.exact for g in groups)
    keep = pl.allocate(pl.criteria.magnitude(net), groups, sparsity, "layer")
    assert all(k.any() and not k.all() for k in keep.values())
    assert surgery.difference(net, groups, keep, x) < 1e-5
    small = surgery.shrink(net, groups, keep).train()
    out = small(x)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


@pytest.mark.parametrize("build", EXACT)
def test_masks_and_units_are_inverse(build):
    net = made(build)
    groups = granularity.coupled(net, images())
    dice = torch.Generator().manual_seed(2)
    keep = {g.name: torch.rand(g.units, generator=dice) < 0.5 for g in groups}
    back = contract(groups, expand(net, groups, keep))
    assert all(torch.equal(keep[name], back[name]) for name in keep)


def test_a_chain_to_the_letter():
    net = made(chain)
    statistics = [Member("1.running_mean", 0, learned=False), Member("1.running_var", 0, learned=False)]
    assert granularity.filters(net, images())[0] == Group(
        "0",
        8,
        (
            *(Member("0.weight", 0), Member("0.bias", 0), Member("1.weight", 0), Member("1.bias", 0)),
            *statistics,
            Member("3.weight", 1),
        ),
    )
    groups = found(net)
    assert Member("8.weight", 1, block=4) in groups["3"].members  # flattened 2 x 2: four columns a filter
    assert [g.name for g in granularity.neurons(net, images())] == ["8"]
    assert "10" not in groups  # the classifier


def test_a_sum_couples_and_a_concatenation_offsets():
    assert {m.tensor for m in found(made(residual))["stem"].members} >= {"stem.weight", "two.weight", "bn.bias"}
    groups = found(made(concat))
    (norm,) = [m for m in groups["a"].members if m.tensor == "bn.weight"]
    assert norm.index.tolist() == [[u, 10 + u] for u in range(4)]
    (head,) = [m for m in groups["b"].members if m.tensor == "head.weight"]
    assert torch.equal(head.index, torch.arange(4 * 36, 10 * 36).view(6, 36))


def test_a_unit_of_a_grouped_layer_is_a_whole_group():
    group = found(made(grouped))["0"]
    assert (group.units, *(m.block for m in group.members if m.tensor in ("0.weight", "2.weight"))) == (4, 2, 3)
    assert found(made(group_norm))["0"].units == 4
    assert found(made(depthwise))["0"].units == 8
    keep = {"0": torch.tensor([True, False, True, True])}
    small = surgery.shrink(made(grouped), [group], keep)
    assert (small[2].groups, small[2].in_channels, small[2].out_channels, small[3].num_features) == (3, 6, 9, 9)


def test_halves_of_one_convolution_leave_together():
    group = found(made(gated))["both"]
    assert group.units == 6
    (member,) = [m for m in group.members if m.tensor == "both.weight"]
    assert member.index.tolist() == [[u, 6 + u] for u in range(6)]


def test_layer_norm_over_the_channels_is_said_to_be_inexact():
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 3))
    (group,) = granularity.neurons(net, images())
    assert not group.exact
    keep = pl.allocate(pl.criteria.magnitude(net), [group], 0.5)
    assert surgery.difference(net, [group], keep, images()) > 1e-2
    assert surgery.shrink(net, [group], keep)(images()).shape == (3, 3)
    report = pl.report([group], keep)
    assert report.inexact == ("1",)
    assert "not exact, masked and removed differ: 1" in str(report)


def hidden(between):
    return Net(lambda s, x: s.b(between(s.a(x.flatten(1)))), a=nn.Linear(72, 8), b=nn.Linear(8, 3))


@pytest.mark.parametrize("mixes", [lambda x: x.softmax(1), lambda x: x - x.mean(1, keepdim=True)])
def test_what_mixes_channels_is_known_to_be_inexact(mixes):
    """Beforehand, so that nothing warns; masked and shrunk differ by what the softmax or mean counts."""
    net = hidden(mixes)
    groups = granularity.neurons(net, images())
    assert [(g.name, g.exact) for g in groups] == [("a", False)]
    assert surgery.difference(net, groups, {"a": torch.arange(8) < 3}, images()) > 1e-3


@pytest.mark.parametrize("makes", [torch.sigmoid, torch.exp, lambda x: x + 1])
def test_what_makes_something_of_zero_is_exact(makes):
    """The readers' columns are in the group: whatever a masked channel emits, nobody listens."""
    assert [g.exact for g in granularity.neurons(hidden(makes), images())] == [True]


def test_batch_norm_without_affine_parameters_is_cut_too():
    net = nn.Sequential(conv(2, 8), nn.BatchNorm2d(8, affine=False), nn.ReLU(), conv(8, 1, 6), nn.Flatten())
    net[1].running_mean.fill_(-1.0)
    (group,) = granularity.filters(net, images())
    assert group.exact
    keep = {"0": torch.arange(8) < 3}
    small = surgery.shrink(net, [group], keep)
    assert (small[1].num_features, small[1].running_mean.shape) == (3, (3,))
    assert surgery.difference(net, [group], keep, images()) < 1e-5


def test_sizes_fixed_in_the_forward_are_left_out_with_a_warning():
    net = Net(
        lambda s, x: s.head(F.relu(s.a(x)).view(-1, 6, 36).mean(2)) + s.rest(s.other(x)).mean((2, 3)),
        a=conv(2, 6), head=nn.Linear(6, 3), other=conv(2, 6), rest=conv(6, 1),
    )  # fmt: skip
    with pytest.warns(UserWarning) as said:
        groups = granularity.filters(net, images())
    assert [g.name for g in groups] == ["other"]
    why = "was tried, and the model fails without some of its channels: shape '[-1, 6, 36]' is invalid for input of"
    assert groups.stays["a"].startswith(why)
    assert [str(w.message).startswith(f"left out: a {why}") for w in said] == [True]


def test_what_meets_the_input_or_the_output_stays():
    net = Net(lambda s, x: s.b(s.a(x) + x), a=conv(2, 2), b=conv(2, 3))
    message = "no filter of a convolution that could be removed. What stays, and why: a: meets a tensor of a fixed size"
    with pytest.raises(PruneError, match=f"{message}; b: is the model's output. What can't be traced can be described"):
        granularity.filters(net, images())
    with pytest.raises(PruneError, match="no neuron of a hidden Linear layer"):
        granularity.neurons(nn.Sequential(nn.Flatten(), nn.Linear(72, 8)), images())


def test_attention_is_left_alone():
    net = Net(
        lambda s, x: s.out(s.up((t := x.flatten(2).transpose(1, 2)) + s.attend(t, t, t)[0]).relu()),
        attend=nn.MultiheadAttention(2, 1, batch_first=True), up=nn.Linear(2, 6), out=nn.Linear(6, 3),
    )  # fmt: skip
    assert [g.name for g in granularity.neurons(net, images())] == ["up"]


def test_layers_that_only_training_runs_are_cut_too():
    def forward(s, x):
        y = F.relu(s.stem(x))
        out = s.head(pooled(y))
        return (out, s.aux(pooled(y))) if s.training else out

    net = Net(forward, stem=conv(2, 8), head=nn.Linear(8, 3), aux=nn.Linear(8, 3))
    group = found(net)["stem"]
    assert "aux.weight" in {m.tensor for m in group.members}
    small = surgery.shrink(net, [group], {"stem": torch.arange(8) < 5})
    assert [o.shape for o in small.train()(images())] == [(3, 3), (3, 3)]


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_several_inputs(kind):
    net = Net(lambda s, a, b: s.out(F.relu(s.left(a) + s.right(b))), **{n: nn.Linear(4, 6) for n in ("left", "right")})
    net.out = nn.Linear(6, 3)
    a, b = torch.randn(2, 5, 4)
    (group,) = granularity.neurons(net, (a, b) if kind == "tuple" else {"a": a, "b": b})
    assert {m.tensor for m in group.members} == {f"{n}.{t}" for n in ("left", "right") for t in ("weight", "bias")} | {
        "out.weight"
    }


@pytest.mark.parametrize("training", [True, False])
def test_tracing_leaves_the_model_as_it_was(snapshot, training):
    net = made(chain).train(training)
    net[3].weight.requires_grad_(False)
    net[0](images()).sum().backward()
    net[1].eval()
    called = []
    net[2].register_forward_hook(lambda *_: called.append(1))
    before = snapshot(net)
    with torch.no_grad():
        granularity.filters(net, images())
    assert snapshot(net) == before
    assert called == []


def test_a_masked_model_and_inference_mode():
    net, x = made(chain), images()
    pl.prune(net, pl.Recipe(granularity="filters", sparsity=0.25, scope="layer"), example=x)
    with torch.inference_mode():
        groups = granularity.coupled(net, x)
    assert [g.name for g in groups] == ["0", "3", "8"]


def test_bad_examples(snapshot):
    net = made(chain)
    before = snapshot(net)
    with pytest.raises(PruneError, match="takes a run of the model: give an example"):
        granularity.filters(net)
    with pytest.raises(PruneError, match=r"Sequential cannot run on the example, \(3, 1, 6, 6\) torch.float32: .*"):
        granularity.filters(net, images()[:, :1])
    with pytest.raises(PruneError, match=r"cannot run on the example, \(3, 2, 6, 6\) torch.float32, \(3,\)"):
        granularity.filters(net, (images(), torch.zeros(3)))
    assert snapshot(net) == before


def test_no_gradient_is_needed_and_what_a_forward_keeps_is_no_hindrance():
    net = Net(lambda s, x: s.b(s.a(x.flatten(1)).detach()).detach(), a=nn.Linear(72, 8), b=nn.Linear(8, 3))
    net.kept = net.a.weight * 1  # a non-leaf attribute, which torch refuses to copy
    with torch.no_grad():
        assert [(g.name, g.exact) for g in granularity.neurons(net, images())] == [("a", True)]


def test_what_cannot_be_copied_says_so():
    class Single(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("there is only one")

    with pytest.raises(PruneError, match="Sequential cannot be copied, and is traced as a copy: there is only one"):
        granularity.neurons(nn.Sequential(nn.Flatten(), Single(72, 8), nn.Linear(8, 3)), images())


def test_prune_takes_structures_and_its_example_from_the_calibration():
    net, x = made(chain), images()
    calib = pl.Calibration(((x, torch.zeros(3, dtype=torch.long)),))
    pruned = pl.prune(net, pl.Recipe(granularity="filters", scope="layer"), calib)
    assert pruned.report.sparsity == 0.5
    masked = net.eval()(x)
    assert torch.allclose(surgery.shrink(net, pruned.groups, pruned.keep)(x), masked, atol=1e-5)


@pytest.mark.parametrize(("r", "c"), [(1, 1), (2, 4), (4, 2), (5, 9), (10, 12)])
def test_blocks_tile_the_matrix(r, c):
    weight = torch.arange(10 * 72.0).view(10, 8, 3, 3)
    net = nn.Sequential(nn.Conv2d(8, 10, 3))
    if 10 % r or 72 % c:
        with pytest.raises(PruneError, match=r"do not divide 0\.weight \(10, 8, 3, 3\), a matrix of 10 x 72"):
            granularity.blocks(r, c)(net)
        return
    (group,) = granularity.blocks(r, c)(net)
    (member,) = group.members
    by_hand = [weight.flatten(1)[i : i + r, j : j + c].flatten() for i in range(0, 10, r) for j in range(0, 72, c)]
    assert torch.equal(entries(member, weight, group.units), torch.stack(by_hand))
    keep = {group.name: torch.arange(group.units) % 3 > 0}
    masks = expand(net, [group], keep)
    assert torch.equal(entries(member, masks["0.weight"], group.units).all(1), keep[group.name])
    assert torch.equal(entries(member, masks["0.weight"], group.units).any(1), keep[group.name])
    assert torch.equal(contract([group], masks)[group.name], keep[group.name])


def test_blocks_in_a_recipe():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    pruned = pl.prune(net, pl.Recipe(granularity=granularity.blocks(2, 4), sparsity=0.5, scope="layer"))
    assert {n: int(m.sum()) for n, m in pruned.masks.items()} == {"0.weight": 32, "2.weight": 16}
    assert torch.equal(net[0].weight != 0, pruned.masks["0.weight"])


def test_bad_blocks():
    net = made(perceptron)
    with pytest.raises(PruneError, match=r"5\.weight \(3, 8\).*Leave .*: blocks\(4, 4, exclude=\['5.weight'\]\)"):
        granularity.blocks(4, 4)(net)
    assert len(granularity.blocks(4, 4, exclude=["5.weight"])(net)) == len(prunable(net)) - 1
    with pytest.raises(PruneError, match="blocks of c=0"):
        granularity.blocks(4, 0)
    with pytest.raises(PruneError, match="cannot exclude 'x'"):
        granularity.blocks(4, 4, exclude=["x"])(net)
    group = granularity.blocks(1, 1)(net)[0]
    with pytest.raises(PruneError, match="leaves no hole to close"):
        surgery.shrink(net, [group], {group.name: torch.ones(group.units, dtype=torch.bool)})


def test_by_name():
    assert granularity.by_name("filters") is granularity.filters
    with pytest.raises(PruneError, match=r"there is .*coupled, .*filters, .*weights, width, and blocks"):
        granularity.by_name("blocks")


def test_the_model_is_not_held_once_it_was_traced(build, data_for):
    """Neither the trace nor torch's parametrizations keep it until Python looks for cycles."""
    model = build("residual")
    layer = weakref.ref(model.stem)
    gc.collect()
    gc.disable()
    try:
        granularity.filters(model, data_for("residual")[0])
        del model
        assert layer() is None
    finally:
        gc.enable()


def test_a_trace_computes_nothing_where_no_value_is_asked_for():
    """A batch of 400 GiB of activations: shapes alone are followed (the proof runs on what it is given)."""
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    seen = tracing.trace(tracing.plain_twin(net), torch.empty(1, 4).expand(2**34, 4))
    assert [(p.name, p.size) for p in seen.ports][:2] == [("0.weight", 6), ("0.weight", 4)]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_rounding_in_half_precision_is_no_inexactness(build, data_for, kind):
    model = build("residual").to(kind)
    groups = granularity.filters(model, data_for("residual")[0].to(kind))
    assert [g.exact for g in groups] == [
        g.exact for g in granularity.filters(build("residual"), data_for("residual")[0])
    ]
    assert {p.dtype for p in model.parameters()} == {kind}


def test_a_forward_that_asks_for_half_precision_is_tried_in_it():
    halved = Net(lambda s, x: s.b((s.a(x.half()) + s.shift).relu()), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    halved.register_buffer("shift", torch.ones(1), persistent=False)  # in no state_dict, and half all the same
    halved.half()
    assert [g.name for g in granularity.neurons(halved, torch.randn(8, 4).half())] == ["a"]
