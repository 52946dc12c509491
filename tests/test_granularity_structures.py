"""Filters, neurons and blocks: what is found to belong together, and that tracing leaves no trace."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab import Group, Member, PruneError, granularity, surgery, units
from prunelab.granularity import proof, tracing
from prunelab.layers import prunable
from prunelab.masking import expand
from prunelab.units import contract, entries


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
    with pytest.warns(UserWarning, match="left out: a was") as said:
        groups = granularity.filters(net, images())
    assert [g.name for g in groups] == ["other"]
    why = "was tried, and the model fails without some of its channels: shape '[-1, 6, 36]' is invalid for input of"
    assert groups.stays["a"].startswith(why)
    assert [str(w.message).startswith(f"left out: a {why}") for w in said] == [True]


def test_what_is_as_wide_by_chance_is_tried_at_other_widths():
    """Where both lose half it runs; and so, of MViTv2's attentions, did those that fix their width."""
    net = Net(lambda s, x: s.out(s.a(x)[:, : s.b(x).shape[1]]), a=conv(2, 6), b=conv(2, 6), out=conv(6, 3))
    with pytest.raises(PruneError, match="b: was tried, and the model fails without some of its channels"):
        granularity.filters(net, images())


def test_a_trial_that_fails_blames_what_the_failing_module_reads(monkeypatch):
    def block(s, x):
        y = s.idle(s.mixed(x))[:, [1, 0, 2, 3, 5, 4, 7, 6]]
        return y.reshape(len(x), x.shape[1])

    hidden = [layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.ReLU())]
    mixing = Net(block, mixed=nn.Linear(8, 8), idle=nn.Identity())
    model = nn.Sequential(nn.Linear(4, 8), mixing, *hidden, nn.Linear(8, 2))
    tried = []
    try_them = proof.Trial.failure
    monkeypatch.setattr(proof.Trial, "failure", lambda t, groups: tried.append(len(groups)) or try_them(t, groups))
    with pytest.warns(UserWarning, match="left out: 0 was tried"):
        groups = granularity.neurons(model, torch.randn(3, 4))
    assert [g.name for g in groups] == ["2", "4", "6", "8", "10", "12"]
    assert tried == [7, 6]  # and not half of them, a quarter, ...


def test_a_module_that_fails_costs_only_what_was_assumed_of_it():
    """Splits of a fixed width look like halves; where they fail, what else lies in their modules stays removable."""

    def forward(s, x):
        a, b = s.wide(x).split(4, 1)
        return s.join(torch.cat([a, s.inner(b)], 1))

    def stage():
        inner = nn.Sequential(*[layer for _ in range(5) for layer in (conv(4, 4), nn.ReLU())])
        return Net(forward, wide=conv(4, 8), inner=inner, join=conv(8, 4))

    model = nn.Sequential(conv(2, 4), *[stage() for _ in range(8)], conv(4, 3))
    with pytest.warns(UserWarning, match=r"left out: 1\.wide was tried.*equal parts"):
        groups = granularity.filters(model, images())
    inner = {f"{stage}.inner.{layer}" for stage in range(1, 9) for layer in range(0, 10, 2)}
    assert {g.name for g in groups} == inner | {"0", *(f"{stage}.join" for stage in range(1, 9))}
    assert {path for path, why in groups.stays.items() if "equal parts" in why} == {f"{n}.wide" for n in range(1, 9)}


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
    picky = Net(lambda s, x: s.a(x) if x.shape[-1] == 8 else next(iter(())), a=conv(2, 4))
    with pytest.raises(PruneError, match=r"torch.float32: StopIteration\. Give"):  # an error without words has a name
        granularity.filters(picky, images())


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
    with pytest.raises(PruneError, match=r"needs options: give Blocks\(r, c\)"):
        granularity.by_name("blocks")
    with pytest.raises(PruneError, match=r"there is .*blocks\(r, c\), coupled, .*filters, .*weights, width"):
        granularity.by_name("nothing")


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


# Small networks whose channels are easy to get wrong, each after a kind of fault seen on real ones.


def input_first():
    """The input comes first in a concatenation (NeRF skips, CoordConv)."""
    return Net(
        lambda s, x: s.c(s.b(torch.cat([x, s.a(x).relu()], 1)).relu()), a=conv(3, 8), b=conv(11, 8), c=conv(8, 4, 1)
    )


def later_half_first():
    """Halves used in another order than they were split."""

    def forward(s, x):
        u, v = s.a(x).chunk(2, 1)
        return s.c(torch.cat([s.b(v), u], 1))

    return Net(forward, a=conv(3, 16), b=conv(8, 8), c=conv(16, 4, 1))


def fixed_widths():
    """A split by widths written into the code."""

    def forward(s, x):
        u, v = torch.split(s.a(x), (4, 12), 1)
        return s.c(torch.cat([s.b(u), v], 1))

    return Net(forward, a=conv(3, 16), b=conv(4, 8), c=conv(20, 4, 1))


def one_slope():
    """PReLU with a single slope, and a GroupNorm of one group, which averages."""
    return Net(
        lambda s, x: s.c(s.q(s.b(s.g(s.p(s.a(x)))))),
        a=conv(3, 8), p=nn.PReLU(), g=nn.GroupNorm(1, 8), b=conv(8, 8), q=nn.PReLU(8), c=conv(8, 4, 1),
    )  # fmt: skip


def shuffled():
    """Channel shuffle, as ShuffleNet's: the order changes, the groups interleave."""

    def forward(s, x):
        n, c, height, width = (h := s.a(x)).shape
        h = h.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width)
        return s.c(s.b(h))

    return Net(forward, a=conv(3, 12), b=conv(12, 8), c=conv(8, 4, 1))


def upscaled():
    """PixelShuffle: four channels become one."""
    return nn.Sequential(OrderedDict(a=conv(3, 32), s=nn.PixelShuffle(2), b=conv(8, 8), c=conv(8, 4, 1)))


def glued():
    return Net(lambda s, x: s.c(s.b(F.glu(s.a(x), 1))), a=conv(3, 16), b=conv(8, 8), c=conv(8, 4, 1))


def rolled():
    """A roll along channels by a constant: no removal keeps it."""
    return Net(lambda s, x: s.c(s.b(s.a(x).roll(2, 1))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4, 1))


def weight_normed():
    net = nn.Sequential(OrderedDict(a=conv(3, 8), b=conv(8, 8), c=conv(8, 4, 1)))
    nn.utils.parametrizations.weight_norm(net.a)
    return net


def recurrent():
    """A GRU between convolutions and linear layers: it stays with what feeds it."""

    def forward(s, x):
        h = s.b(s.a(x).relu()).permute(0, 3, 1, 2).flatten(2)
        return s.p(s.o(s.r(h)[0]).relu())

    return Net(
        forward, a=conv(3, 8), b=conv(8, 6), r=nn.GRU(6 * 12, 7, batch_first=True), o=nn.Linear(7, 6), p=nn.Linear(6, 2)
    )  # fmt: skip


def no_boxes():
    """An output that is empty on the example, as a detector's without boxes."""

    def forward(s, x):
        scores = s.c(s.b(s.a(x)).flip(1))
        return scores.permute(0, 2, 3, 1)[scores.amax(1) > 1e9]

    return Net(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 4, 1))


def two_readers():
    """Features and image concatenated, features first: the group takes the first part of a dimension."""
    return Net(
        lambda s, x: s.c(s.b(torch.cat([s.a(x).relu(), x], 1)).relu()), a=conv(3, 16), b=conv(19, 8), c=conv(8, 4, 1)
    )


def split_attention():
    """Two groups of a convolution, weighted and added, as ResNeSt's: the same place leaves in both."""

    def forward(s, x):
        halves = s.b(s.a(x).relu()).relu().unflatten(1, (2, -1))
        return s.c((halves * s.d(halves.sum(1)).unflatten(1, (2, -1)).softmax(1)).sum(1))

    return Net(forward, a=conv(3, 8), b=conv(8, 12, groups=2), d=conv(6, 12, 1), c=conv(6, 4, 1))


def colours_apart():
    """A convolution of its own for each channel of the picture, which all stay."""
    return nn.Sequential(OrderedDict(a=conv(3, 12, groups=3), r=nn.ReLU(), b=conv(12, 8), c=conv(8, 4, 1)))


OUTPUT = {"c": "is the model's output"}
MADE_ANEW = "is made anew in every forward by the parametrization WeightNorm: call torch.nn.utils.parametrize."
READ = {"b": "is read by a GRU in r", "r": "is a GRU, whose gates stay whole", "p": "is the model's output"}
CASES = [  # a network, the units of its groups, and why the other layers stay; what is not exact ends with ~
    (input_first, {"a": 8, "b": 8}, OUTPUT),
    (later_half_first, {"a": 8, "b": 8}, OUTPUT),
    (fixed_widths, {"b": 8}, OUTPUT | {"a": "is split into fixed widths"}),
    (one_slope, {"a~": 8, "b": 8}, OUTPUT),
    (shuffled, {"a": 6, "b": 8}, OUTPUT),
    (upscaled, {"a": 8, "b": 8}, OUTPUT),
    (glued, {"a": 8, "b": 8}, OUTPUT),
    (rolled, {"b": 8}, OUTPUT | {"a": "is rolled by a fixed number"}),
    (weight_normed, {"b": 8}, OUTPUT | {"a": MADE_ANEW + "remove_parametrizations(module, 'weight') first"}),
    (recurrent, {"a": 8, "o": 6}, READ),
    (no_boxes, {"a": 8, "b": 8}, OUTPUT),
    (two_readers, {"a": 16, "b": 8}, OUTPUT),
    (split_attention, {"a": 4, "b": 6}, OUTPUT),
    (colours_apart, {"a": 4, "b": 8}, OUTPUT),
]


@pytest.mark.parametrize(("build", "counts", "stays"), CASES, ids=[build.__name__ for build, *_ in CASES])
def test_what_is_easy_to_get_wrong(build, counts, stays, tmp_path):
    net, x = stirred(build), torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    groups = granularity.coupled(net, x)
    assert {g.name + "~" * (not g.exact): g.units for g in groups} == counts
    assert groups.stays == stays
    exact = [g for g in groups if g.exact]
    keep = pl.allocate(pl.criteria.magnitude(net), groups, 0.5, "layer")
    assert surgery.difference(net, exact, keep, x) < 1e-4
    small = surgery.shrink(net, groups, keep).train()
    optimizer = torch.optim.SGD(small.parameters(), 0.01)
    small(x).square().sum().backward()
    optimizer.step()
    surgery.save_plan(tmp_path, groups, keep, small)
    again = surgery.load_plan(tmp_path, stirred(build, seed=5))
    assert torch.equal(again.eval()(x), small.eval()(x))


def stirred(build, seed=0):
    """The net in eval mode, with no number at which a mistake would not show."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = build().eval()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return net


# Every operator's rule, between a first layer `a` of 8 channels and a reader `b`.


def between(rule, reads=8):
    """A convolution of 8 channels, what is done to them, and a convolution that reads the result."""
    return Net(lambda s, x: s.b(rule(s, s.a(x))), a=conv(2, 8), b=conv(reads, 3, 1))


PAIRED = [[u, u + 4] for u in range(4)]  # halves leave together
TWOS = [[2 * u, 2 * u + 1] for u in range(8)]
NEXT = TWOS[:4]
FOURS = [list(range(4)), list(range(4, 8))]
SINGLE = [[u] for u in range(8)]
REVERSED = [[7 - u] for u in range(8)]
RULES = {  # rule, channels read, what each unit owns of a.weight's rows, and of b.weight's columns
    "equal slices": (lambda s, x: x[:, : (n := x.shape[1] // 2)] * x[:, n:], 4, PAIRED, SINGLE[:4]),
    "every second": (lambda s, x: x[:, ::2] + x[:, 1::2], 4, NEXT, SINGLE[:4]),
    "flip": (lambda s, x: x.flip(1), 8, SINGLE, REVERSED),
    "pad": (lambda s, x: F.pad(x, (0, 0, 0, 0, 1, 2)), 11, SINGLE, [[u + 1] for u in range(8)]),
    "pixel shuffle": (lambda s, x: F.pixel_shuffle(x, 2), 2, FOURS, [[0], [1]]),
    "pixel unshuffle": (lambda s, x: F.pixel_unshuffle(x, 2), 32, SINGLE, torch.arange(32).view(8, 4).tolist()),
    "channel shuffle": (lambda s, x: F.channel_shuffle(x, 2), 8, PAIRED, NEXT),
    "glu": (lambda s, x: F.glu(x, 1), 4, PAIRED, SINGLE[:4]),
    "chunk": (lambda s, x: torch.cat(x.chunk(2, 1)[::-1], 1), 8, PAIRED, PAIRED),
    "unflatten": (lambda s, x: x.unflatten(1, (2, -1)).sum(1), 4, PAIRED, SINGLE[:4]),
    "repeat": (lambda s, x: x.repeat(1, 2, 1, 1), 16, SINGLE, [[u, u + 8] for u in range(8)]),
    "stack": (lambda s, x: torch.stack([x, x * 2], 1).flatten(1, 2), 16, SINGLE, [[u, u + 8] for u in range(8)]),
    "interleaving stack": (lambda s, x: torch.stack([x, -x], 2).flatten(1, 2), 16, SINGLE, TWOS),
    "roll of the picture": (lambda s, x: x.roll(1, 3), 8, SINGLE, SINGLE),
    "index of the picture": (lambda s, x: x[..., torch.tensor([0, 2, 1, 3, 5, 4])], 8, SINGLE, SINGLE),
    "einsum": (lambda s, x: torch.einsum("nchw,nchw->nchw", x, x.sigmoid()), 8, SINGLE, SINGLE),
    "a window of the picture": (lambda s, x: x.unfold(2, 3, 1).mean(-1), 8, SINGLE, SINGLE),
    "normalize": (lambda s, x: F.normalize(x, dim=1), 8, SINGLE, SINGLE),  # by a norm that is expanded
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_the_rule_of(name):
    rule, reads, rows, columns = RULES[name]
    net = stirred(lambda: between(rule, reads))
    (group,) = granularity.filters(net, images())
    own = {(m.tensor, m.dim): units.index(m, group.units).tolist() for m in group.members}
    assert own["a.weight", 0] == own["a.bias", 0] == rows
    assert [sorted(c) for c in own["b.weight", 1]] == [sorted(c) for c in columns]
    keep = {"a": torch.arange(group.units) % 3 > 0}
    assert group.exact
    assert surgery.difference(net, [group], keep, images()) < 1e-5


STAY = {
    "fixed slice": (lambda s, x: x[:, 1:6], 5, "is cut at fixed places"),
    "roll": (lambda s, x: x.roll(1, 1), 8, "is rolled by a fixed number"),
    "split": (lambda s, x: torch.cat(x.split((3, 5), 1), 1), 8, "is split into fixed widths"),
    "unbind": (lambda s, x: torch.stack(x.unbind(1), 1), 8, "is split into fixed widths"),
    "select": (lambda s, x: x[:, 0, None] + x, 8, "is selected by number"),
    "index": (lambda s, x: x[:, torch.tensor([1, 0, 2])], 3, "is looked up by number"),
    "cumsum": (lambda s, x: x.cumsum(1), 8, "is summed one after the other"),
    "sort": (lambda s, x: x.sort(1)[0], 8, "is sorted"),
    "gather": (lambda s, x: x.gather(1, torch.zeros(3, 8, 6, 6, dtype=torch.long)), 8, "is gathered by number"),
    "constant": (lambda s, x: x + torch.ones(1, 8, 1, 1), 8, "meets a tensor of a fixed size"),
    "grid": (
        lambda s, x: F.grid_sample(torch.ones(3, 8, 5, 5), x.mT.reshape(3, 6, -1, 2), align_corners=False),
        8,
        "says where to look",
    ),
    "fft": (lambda s, x: torch.fft.rfft2(x).real, 8, "meets aten::_fft_r2c, unknown to the tracer,"),
    "custom operator": (lambda s, x: _twice(x), 8, "meets prunelab_tests::twice, unknown to the tracer,"),
}  # fmt: skip


@torch.library.custom_op("prunelab_tests::twice", mutates_args=())
def _twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.mark.parametrize("name", STAY)
def test_what_no_removal_keeps_stays_and_the_rest_is_found(name):
    rule, reads, why = STAY[name]
    net = Net(lambda s, x: s.d(s.c(s.b(rule(s, s.a(x))))), a=conv(2, 8), b=conv(reads, 6), c=conv(6, 5), d=conv(5, 2))
    groups = granularity.filters(net, images())
    assert [(g.name, g.units, g.exact) for g in groups] == [("b", 6, True), ("c", 5, True)]
    assert groups.stays == {"a": why, "d": "is the model's output"}


def bilinear():
    return Net(
        lambda s, x: s.c(s.both(s.a(x.flatten(1)), s.b(x.flatten(1))).relu()),
        a=nn.Linear(72, 4), b=nn.Linear(72, 5), both=nn.Bilinear(4, 5, 6), c=nn.Linear(6, 2),
    )  # fmt: skip


def cbam():
    """Attention over channels, then over the picture by the mean and the largest of all channels."""

    def forward(s, x):
        x = s.a(x)
        pools = (F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1))
        x = x * sum(s.up(s.down(p).relu()) for p in pools).sigmoid()
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return s.c(x * s.where(both).sigmoid())

    return Net(forward, a=conv(2, 8), down=conv(8, 4, 1), up=conv(4, 8, 1), where=conv(2, 1), c=conv(8, 3, 1))


def instance_norm():
    return nn.Sequential(OrderedDict(a=conv(2, 8), n=nn.InstanceNorm2d(8), b=conv(8, 3)))


def one_slope_alone():
    return nn.Sequential(OrderedDict(a=conv(2, 8), p=nn.PReLU(), b=conv(8, 3)))


class Standardised(nn.Conv2d):
    """Each filter's weights without their mean: of fewer inputs it is another."""

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, padding=1)


def standardised():
    return nn.Sequential(OrderedDict(a=conv(2, 8), b=Standardised(8, 6, 3)))


def wide_transposed():
    return nn.Sequential(OrderedDict(a=conv(2, 8), b=nn.ConvTranspose2d(8, 8, 2, 2, groups=4), c=conv(8, 3)))


@pytest.mark.parametrize(
    ("build", "found_units"),
    [
        (bilinear, {}),
        (cbam, {"a~": 8, "down": 4}),
        (instance_norm, {"a": 8}),
        (one_slope_alone, {"a": 8}),
        (standardised, {"a~": 8}),
        (wide_transposed, {"a": 4}),
    ],
)
def test_layers_of_their_own_kind(build, found_units):
    net, x = stirred(build), images()
    if not found_units:
        with pytest.raises(PruneError, match="What stays, and why"):
            granularity.coupled(net, x)
        return
    groups = granularity.coupled(net, x)
    assert {g.name + "~" * (not g.exact): g.units for g in groups} == found_units
    keep = {g.name: torch.arange(g.units) % 3 > 0 for g in groups}
    exact = [g for g in groups if g.exact]
    assert not exact or surgery.difference(net, exact, keep, x) < 1e-5
    surgery.shrink(net, groups, keep)(x).sum().backward()


def test_places_written_into_the_code_are_found_out_by_trying():
    """`x[:, :4]` of 8 channels may say half, or four; of the two groups only one is wrong."""
    net = Net(
        lambda s, x: s.d(s.c(s.b((h := s.a(x))[:, :4] * h[:, 4:]))),
        a=conv(2, 8),
        b=conv(4, 6),
        c=conv(6, 5),
        d=conv(5, 2),
    )
    with pytest.warns(
        UserWarning, match="left out: a was tried, and the model fails .*(a slice of its channels)"
    ) as said:
        groups = granularity.filters(net, images())
    assert [(g.name, g.exact) for g in groups] == [("b", True), ("c", True)]
    assert groups.stays["a"].startswith("was tried, and the model fails without some of its channels")
    assert len(said) == 1


@pytest.mark.parametrize(("least", "exact"), [(-1e9, True), (1e9, False)])
def test_nothing_is_called_exact_that_was_not_compared(least, exact):
    """A head on boxes, of which the second example has none: what is made of nothing proves nothing."""

    def forward(s, x):
        h = s.b(s.a(x)).flatten(2).transpose(1, 2)
        boxes = h[x.mean(1).flatten(1) > least]
        return s.score(boxes), s.move(s.hidden(boxes).relu())

    net = Net(
        forward, a=conv(2, 8), b=conv(8, 6), score=nn.Linear(6, 2), hidden=nn.Linear(6, 5), move=nn.Linear(5, 4)
    )  # fmt: skip
    groups = granularity.coupled(net, images())
    assert [(g.name, g.exact) for g in groups] == [(name, exact) for name in ("a", "b", "hidden")]


def test_the_width_of_a_residual_stream():
    """Embedding, LayerNorm, sum: a group of its own, never exact, and no neuron."""

    def forward(s, ids):
        x = s.embed(ids)
        x = x + s.down(s.up(s.norm(x)).relu())
        return s.out(s.last(x))

    net = Net(
        forward, embed=nn.Embedding(7, 8), norm=nn.LayerNorm(8), up=nn.Linear(8, 12), down=nn.Linear(12, 8),
        last=nn.LayerNorm(8), out=nn.Linear(8, 3),
    )  # fmt: skip
    ids = torch.arange(10).view(2, 5) % 7
    (stream,) = granularity.width(net, ids)
    assert (stream.name, stream.units, stream.exact) == ("embed", 8, False)
    own = {m.tensor for m in stream.members}
    norms = {f"{n}.{t}" for n in ("norm", "last") for t in ("weight", "bias")}
    assert own == norms | {"embed.weight", "up.weight", "down.weight", "down.bias", "out.weight"}
    small = surgery.shrink(net, [stream], {"embed": torch.arange(8) % 2 == 0})
    assert (small.norm.normalized_shape, small.embed.embedding_dim, small(ids).shape) == ((4,), 4, (2, 5, 3))
    assert [(g.name, g.exact) for g in granularity.neurons(net, ids)] == [("up", True)]
    assert granularity.by_name("width") is granularity.width


# Models and examples that are not as expected


def test_several_kinds_of_model_and_example(snapshot):
    """Compiled, hooked, with gradients nowhere, inputs by keyword: each works, and the model is what it was."""
    net, x = made(chain), images()
    expected = granularity.filters(net, x)
    called = []
    net[0].register_forward_hook(lambda *_: called.append("forward"))
    net[0].register_forward_pre_hook(lambda *_: called.append("before"))
    net[3].register_full_backward_hook(lambda *_: called.append("backward"))
    for p in net.parameters():
        p.requires_grad_(False)
    before = snapshot(net)
    assert granularity.filters(net, x) == expected
    assert granularity.filters(net, {"input": x}) == expected
    compiled = torch.compile(net, backend=lambda *_: pytest.fail("a compilation was started"))
    assert [g.name for g in granularity.filters(compiled, x)] == [f"_orig_mod.{g.name}" for g in expected]
    assert snapshot(net) == before
    assert called == []
    assert [len(net[0]._forward_hooks), len(net[0]._forward_pre_hooks), len(net[3]._backward_hooks)] == [1, 1, 1]


def test_a_model_that_cannot_run_in_eval_mode_says_so(snapshot):
    def forward(s, x):
        if not s.training:
            raise RuntimeError("only for training")
        return s.b(s.a(x.flatten(1)))

    net = Net(forward, a=nn.Linear(72, 8), b=nn.Linear(8, 3)).train()
    before = snapshot(net)
    with pytest.raises(PruneError, match=r"Net cannot run on the example, \(3, 2, 6, 6\) .*: only for training"):
        granularity.neurons(net, images())
    assert snapshot(net) == before


def foreign():
    quantized = torch.ao.quantization.quantize_dynamic(perceptron(), {nn.Linear}, dtype=torch.qint8)
    prepared = nn.Sequential(conv(2, 4), nn.ReLU(), conv(4, 2)).train()
    prepared.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    torch.ao.quantization.prepare_qat(prepared, inplace=True)
    with torch.device("meta"):
        empty = chain()
    return {
        "TorchScript, a compiled program": torch.jit.trace(chain().eval(), images()),
        "quantized, its weights packed": quantized,
        "what quantization-aware training adds": prepared,
        "on the meta device": empty,
        "has no shape yet": nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten()),
    }


@pytest.mark.filterwarnings("ignore")  # torch.ao warns of its own end
def test_models_that_hold_no_weights_of_their_own_are_refused_by_name():
    for message, model in foreign().items():
        for find in (granularity.filters, granularity.neurons, granularity.width, granularity.coupled):
            with pytest.raises(PruneError, match=message):
                find(model, images())


def test_a_model_that_is_one_layer_has_nothing_that_could_go(snapshot):
    layer, convolution, x = nn.Linear(72, 8), conv(2, 4), images().flatten(1)
    before = snapshot(layer)
    with pytest.raises(PruneError, match=r"Linear has no neuron .* why: .*: is the model's output"):
        granularity.neurons(layer, x)
    with pytest.raises(PruneError, match=r"Conv2d has no filter .* is the model's output"):
        granularity.filters(convolution, images())
    assert snapshot(layer) == before


def test_a_standardised_convolution_whose_own_filters_leave_too():
    """Its statistics are taken row by row, over inputs that are not there: those that stay are compared with theirs."""

    class Standardised(nn.Conv2d):
        def forward(self, x):
            w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, self.stride, self.padding)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), Standardised(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1))
    groups = granularity.filters(net, images())
    assert [(g.name, g.exact) for g in groups] == [("0", False), ("2", True)]
