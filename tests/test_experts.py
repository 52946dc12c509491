"""Whole experts: found with their router's rows, judged by hand-computed numbers, removed as if never routed to."""

import copy
import types

import pytest
import torch
from tiny_families import build, example
from torch import nn
from torch.nn import functional as F

import prunelab as pl
from prunelab.allocation import unit_scores
from prunelab.criteria import CRITERIA
from prunelab.granularity import experts
from prunelab.language import next_token_loss, next_tokens

NAMED = ("mixtral", "qwen3-moe", "gpt-oss", "deepseek-v3", "olmoe")
JUDGES = ("expert_frequency", "expert_norm", "reap")


class Router(nn.Module):
    """Sends a token to the one expert of the largest logit, and weighs it by that logit."""

    def __init__(self, top_k=1):
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))

    def forward(self, x):
        return F.linear(x, self.weight).topk(self.top_k)


class Fused(nn.Module):
    """x -> W_e x: three times x, four times its second entry, nothing."""

    def __init__(self):
        super().__init__()
        self.num_experts = 3
        self.weight = nn.Parameter(torch.tensor([[[3.0, 0.0], [0.0, 3.0]], [[0.0, 4.0], [0.0, 0.0]], [[0.0] * 2] * 2]))

    def forward(self, x, index, weights):
        made = torch.einsum("eoi,ti->teo", self.weight, x)
        chosen = made.gather(1, index[..., None].expand(-1, -1, made.shape[-1]))
        return (chosen * weights[..., None]).sum(1)


class Separate(nn.Module):
    """The same three experts as a list of Linear layers, called by an old-fashioned block."""

    def __init__(self):
        super().__init__()
        self.num_experts, self.top_k = 3, 1
        self.gate = nn.Linear(2, 3, bias=False)
        self.gate.weight = Router().weight
        self.experts = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))
        for one, weight in zip(self.experts, Fused().weight, strict=True):
            one.weight = nn.Parameter(weight.detach())

    def forward(self, x):
        values, index = self.gate(x).topk(self.top_k)
        out = torch.zeros_like(x)
        for i in range(self.num_experts):
            rows, slots = (index == i).nonzero(as_tuple=True)
            out = out.index_add(0, rows, self.experts[i](x[rows]) * values[rows, slots, None])
        return out


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.Linear(2, 2)  # something that can be pruned
        self.router, self.experts = Router(), Fused()

    def forward(self, x, attention_mask=None):
        rows = x.reshape(-1, 2)
        values, index = self.router(rows)
        return self.experts(rows, index, values).view_as(x)


TOKENS = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]])  # go to experts 0, 1, 0 with weights 1, 1, 2
REAL = torch.tensor([[1, 1, 0]])


def worth(criterion, model, calib):
    groups = experts(model)
    return unit_scores(CRITERIA[criterion](model, calib), groups, "sum")


@pytest.mark.parametrize(
    ("criterion", "all_tokens", "without_the_last"),
    [
        ("expert_frequency", [2 / 3, 1 / 3, 0], [1 / 2, 1 / 2, 0]),
        ("expert_norm", [(3 + 6) / 2, 4, 0], [3, 4, 0]),
        ("reap", [(1 * 3 + 2 * 6) / 2, 1 * 4, 0], [3, 4, 0]),
    ],
)
def test_criteria_by_hand(criterion, all_tokens, without_the_last):
    model, target = Mixture(), torch.zeros(1)
    found = worth(criterion, model, pl.Calibration(((TOKENS, target),)))
    assert found["experts"].tolist() == pytest.approx(all_tokens)
    padded = {"x": TOKENS, "attention_mask": REAL}
    found = worth(criterion, model, pl.Calibration(((padded, target),)))
    assert found["experts"].tolist() == pytest.approx(without_the_last)


def calibration():
    rows = torch.randint(4, 64, (4, 12), generator=torch.Generator().manual_seed(3))
    return pl.Calibration((next_tokens(rows[:3]), next_tokens(rows[3:])), next_token_loss)


@pytest.mark.parametrize("criterion", JUDGES)
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("worn", [False, True], ids=["plain", "worn"])
def test_scores(name, criterion, worn, snapshot):
    model, calib = build(name).train(), calibration()
    if worn:
        pl.prune(model, pl.Recipe(sparsity=0.3))
    before = snapshot(model)
    scores, again = (CRITERIA[criterion](model, calib) for _ in range(2))
    assert snapshot(model) == before
    assert len(scores) == len(experts(model))
    for tensor, score in scores.items():
        assert score.shape == model.get_submodule(tensor.rpartition(".")[0]).gate_up_proj.shape
        assert torch.isfinite(score).all()
        assert torch.equal(score, again[tensor])


def test_reap_of_mixtral_written_anew():
    """Router weight times output norm, token by token, from the formulas of its report."""
    model, calib = build("mixtral"), calibration()
    block, entering = model.model.layers[1].mlp, []
    block.register_forward_pre_hook(lambda m, args: entering.append(args[0].reshape(-1, 32)))
    with torch.no_grad():
        for ids, _ in calib.batches:
            model(ids)
    sums, counts = torch.zeros(4), torch.zeros(4)
    for x in torch.cat(entering):
        best = (block.gate.weight @ x).softmax(0).topk(2)
        for expert, g in zip(best.indices, best.values / best.values.sum(), strict=True):
            gate, up = (block.experts.gate_up_proj[expert] @ x).chunk(2)
            sums[expert] += g * (block.experts.down_proj[expert] @ (F.silu(gate) * up)).norm()
            counts[expert] += 1
    found = worth("reap", build("mixtral"), calib)["model.layers.1.mlp.experts"]
    assert torch.allclose(found, (sums / counts).detach().double(), rtol=1e-4)


@pytest.mark.parametrize("criterion", [*JUDGES, "random"])
@pytest.mark.parametrize(("name", "scope"), [("mixtral", "global"), *((name, "layer") for name in NAMED)])
def test_prune_and_shrink(name, criterion, scope):
    if criterion == "random":  # scores every tensor, also those of experts
        dice = torch.Generator().manual_seed(0)

        def criterion(model, calib=None):
            return {n: torch.rand(p.shape, generator=dice) for n, p in model.named_parameters()}

    model = build(name)
    pruned = pl.prune(copy.deepcopy(model), pl.Recipe(criterion, "experts", 0.5, scope), calibration())
    assert pruned.report.sparsity == 0.5
    assert pruned.report.inexact == tuple(g.name for g in pruned.groups)
    small = pl.shrink(model, pruned.groups, pruned.keep)
    for group in pruned.groups:
        held = small.get_submodule(group.name)
        assert held.num_experts == len(held.gate_up_proj) == int(pruned.keep[group.name].sum()) == 2
    assert torch.isfinite(small(**example(name)).logits).all()


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "olmoe"])
def test_removed_is_never_routed_to(name):
    """The shrunk model computes what the whole one does with -inf in the logits of what is gone."""
    model = build(name)
    groups = experts(model)
    keep = {g.name: torch.tensor([True, False, True, True]) for g in groups}
    small = pl.shrink(model, groups, keep)

    def forward(self, x):
        logits = F.linear(x.reshape(-1, self.hidden_dim), self.weight)
        logits[:, 1] = -torch.inf
        values, index = logits.softmax(-1).topk(self.top_k)
        if getattr(self, "norm_topk_prob", True):
            values = values / values.sum(-1, keepdim=True)
        return logits, values, index

    for group in groups:
        router = model.get_submodule(group.name.replace("experts", "gate"))
        router.forward = types.MethodType(forward, router)
    inputs = example(name)
    with torch.no_grad():
        assert torch.allclose(small(**inputs).logits, model(**inputs).logits, atol=1e-5)


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "gpt-oss", "olmoe"])
def test_training_that_balances_the_load(name):
    model = build(name)
    groups = experts(model)
    keep = {g.name: torch.tensor([True, False, True, True]) for g in groups}
    small = pl.shrink(model, groups, keep).train()
    assert small.config.num_local_experts == 3
    assert small.num_experts == 3
    ids = example(name)["input_ids"]
    found = small(input_ids=ids, labels=ids, output_router_logits=True)
    (found.loss + found.aux_loss).backward()
    assert model.config.num_local_experts == 4  # the old one's stays


def test_uneven_numbers_stay_out_of_the_config(tmp_path):
    model = build("mixtral")
    groups = experts(model)
    keep = {g.name: torch.arange(4) < 2 + i for i, g in enumerate(groups)}
    small = pl.shrink(model, groups, keep)
    assert [layer.mlp.experts.num_experts for layer in small.model.layers] == [2, 3, 4]
    assert [layer.mlp.gate.num_experts for layer in small.model.layers] == [2, 3, 4]
    assert small.config.num_local_experts == 4
    pl.save_plan(tmp_path, groups, keep, small)
    ids = example("mixtral")["input_ids"]
    with torch.no_grad():
        assert torch.equal(pl.load_plan(tmp_path, model)(ids).logits, small(ids).logits)


def test_as_many_stay_as_a_token_goes_to():
    model = build("mixtral")
    groups = experts(model)
    scores = {n: p.detach().abs() for n, p in model.named_parameters()}
    with pytest.warns(UserWarning, match="every group keeps at least 2"):
        keep = pl.allocate(scores, groups, 0.9)
    assert [int(k.sum()) for k in keep.values()] == [2, 2, 2]
    keep = pl.allocate(scores, groups, 0.75, "layer", floor=1)
    with pytest.raises(pl.PruneError, match=r"layers\.0\.mlp\.experts would keep 1 experts.*gate needs 2"):
        pl.shrink(model, groups, keep)
    assert model.config.num_local_experts == 4


def test_a_list_of_experts():
    model = Separate()
    (group,) = experts(model)
    assert (group.units, group.floor, len(group.parts)) == (3, 1, 3)
    small = pl.shrink(model, [group], {"experts": torch.tensor([False, True, True])})
    assert (small.num_experts, len(small.experts), small.gate.out_features) == (2, 2, 2)
    x = TOKENS[0]
    # expert 0 is gone: (1, 0) and (2, 0) go to expert 1 with logit 0, and (0, 1) as before
    assert small(x).tolist() == [[0.0, 0.0], [4.0, 0.0], [0.0, 0.0]]


def test_a_list_of_experts_says_nothing_of_the_depth():
    """Three experts in three layers: the config's list, one entry a layer, keeps its length."""
    model = nn.Module()
    model.config = types.SimpleNamespace(num_hidden_layers=3, layer_types=["full_attention"] * 3)
    model.layers = nn.ModuleList(Separate() for _ in range(3))
    groups = experts(model)
    small = pl.shrink(model, groups, {g.name: torch.tensor([True, False, True]) for g in groups})
    assert small.config.num_hidden_layers == len(small.config.layer_types) == len(small.layers) == 3


def test_a_scan_counts_the_experts_that_really_left():
    """Two of three are needed: at 90 % one has gone, and no warning is due."""
    model = Mixture()
    model.router.top_k = 2
    data = TOKENS, torch.tensor([[0, 1]])  # outputs (1, 3 classes, 2)
    found = pl.sensitivity.scan(model, data, (0.1, 0.9), "experts", progress=False)
    assert found.removed.tolist() == [[0, 1]]


@pytest.mark.parametrize("criterion", JUDGES)
def test_criteria_refuse(criterion):
    calib = pl.Calibration(((TOKENS[0], torch.zeros(3)),))
    with pytest.raises(pl.PruneError, match="no mixture of experts"):
        CRITERIA[criterion](nn.Linear(2, 2), calib)
    with pytest.raises(pl.PruneError, match="experts is a list of modules"):
        CRITERIA[criterion](Separate(), calib)
    with pytest.raises(pl.PruneError, match="needs data"):
        CRITERIA[criterion](Mixture(), None)


def test_an_expert_that_is_not_finite_is_named():
    model = Mixture()
    with torch.no_grad():
        model.experts.weight.fill_(3e38)  # finite, and what it makes is not
    with pytest.raises(pl.PruneError, match="outputs of experts are not finite"):
        CRITERIA["reap"](model, pl.Calibration(((TOKENS, torch.zeros(1)),)))
    with torch.no_grad():
        model.experts.weight[0, 0, 0] = torch.nan
    with pytest.raises(pl.PruneError, match=r"experts\.weight .* holds 1 NaN"):
        CRITERIA["reap"](model, pl.Calibration(((TOKENS, torch.zeros(1)),)))


def test_granularity_refuses():
    with pytest.raises(pl.PruneError, match="no mixture of experts"):
        experts(nn.Linear(2, 2))
    lonely = nn.Module()
    lonely.experts = Fused()
    with pytest.raises(pl.PruneError, match="how tokens are routed to these experts is not known"):
        experts(lonely)
    needed = Mixture()
    needed.router.top_k = 3
    with pytest.raises(pl.PruneError, match="router needs all 3 experts"):
        experts(needed)
    grouped = build("deepseek-v3")
    for layer in grouped.model.layers[1:]:  # transformers 5.5 keeps n_group in the MLP, 5.24 num_group in its gate
        holder, name = (layer.mlp.gate, "num_group") if hasattr(layer.mlp.gate, "num_group") else (layer.mlp, "n_group")
        assert getattr(holder, name) == 1
        setattr(holder, name, 2)
    with pytest.raises(pl.PruneError, match="compares 2 groups of experts"):
        experts(grouped)


def test_the_experts_of_another_kind_do_not_hinder_other_cuts():
    """What this file does not understand is refused when experts are asked for, and only then."""
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    model.experts = Fused()
    group = pl.Group("0", 4, (pl.Member("0.weight", 0), pl.Member("0.bias", 0), pl.Member("1.weight", 1)))
    assert pl.shrink(model, [group], {"0": torch.tensor([True, False, True, True])})[0].out_features == 3
