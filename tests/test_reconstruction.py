"""SparseGPT and Wanda: against the papers' formulas, exact counts, memory of the old weights, bad input."""

import copy
import sys

import plain_methods
import pytest
import torch
from tiny_decoders import KINDS, decoder, padded, token_ids

import prunelab as pl
from prunelab.language import next_token_loss, next_tokens
from prunelab.reconstruction import SparseGPT, Wanda, blockwise, sparsegpt
from prunelab.reconstruction.sparsegpt import inverse_factor

PATTERNS = [(0.5, 0.5), (pl.NM(2, 4), (2, 4)), (pl.NM(4, 8), (4, 8))]
patterns = pytest.mark.parametrize(("sparsity", "plain"), PATTERNS, ids=["half", "2:4", "4:8"])


def layer(rows=24, columns=64, n=500, seed=0):
    """A weight, and inputs that are correlated and of unlike sizes."""
    dice = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, columns, generator=dice) @ torch.randn(columns, columns, generator=dice) / 8
    return torch.randn(rows, columns, generator=dice), mixed * (torch.rand(columns, generator=dice) + 0.1)


def calibration(n=4):
    return pl.Calibration((next_tokens(token_ids(n, 13)), next_tokens(token_ids(2, 13, seed=5))), next_token_loss)


def error(weight, new, x):
    return float(((weight - new) @ x.T).square().sum())


@patterns
@pytest.mark.parametrize("columns", [16, 64])
def test_sparsegpt_is_the_papers(sparsity, plain, columns):
    w, x = layer()
    new, keep = sparsegpt(w, x.T @ x, sparsity, columns=columns)
    wanted = plain_methods.sparsegpt(w, x, plain, columns)
    assert torch.equal(new == 0, wanted == 0)
    assert torch.equal(keep, new != 0)
    assert torch.allclose(new, wanted, atol=1e-4)


@patterns
def test_wanda_is_the_papers(sparsity, plain):
    w, x = layer()
    new, keep = Wanda()(w, Wanda().gather(x), sparsity, "weight")
    assert torch.equal(new, plain_methods.wanda(w, x, plain))
    assert torch.equal(keep, new != 0)


def test_wanda_does_not_let_rounding_choose():
    x = torch.tensor([[4096.0, 4096.0], [1.0, 0.0]])  # 4096^2 + 1 is no float32
    _, keep = Wanda()(torch.ones(1, 2), Wanda().gather(x), 0.5, "weight")
    assert keep.tolist() == [[True, False]]


@patterns
@pytest.mark.parametrize("gone", [0.3, 0.7])
@pytest.mark.parametrize("method", [Wanda(), SparseGPT(columns=16)], ids=["wanda", "sparsegpt"])
def test_within_an_earlier_pruning(sparsity, plain, gone, method):
    """What is gone stays gone and counts; the plain methods put it first. At 70 % some fours have lost three."""
    w, x = layer()
    within = torch.rand(w.shape, generator=torch.Generator().manual_seed(2)) >= gone
    new, keep = method(w, method.gather(x), sparsity, "weight", within)
    how = {"within": within} | ({"columns": 16} if isinstance(method, SparseGPT) else {})
    wanted = getattr(plain_methods, type(method).__name__.lower())(w, x, plain, **how)
    assert torch.equal(new == 0, wanted == 0)
    assert torch.allclose(new, wanted, atol=1e-4)
    assert torch.equal(keep, new != 0)
    assert not new[~within].any()
    if isinstance(sparsity, pl.NM):
        cells = within.view(24, -1, sparsity.m).sum(-1)
        assert torch.equal(keep.view(24, -1, sparsity.m).sum(-1), cells.clamp(max=sparsity.n))
    elif isinstance(method, Wanda):
        assert torch.equal(keep.sum(1), within.sum(1).clamp(max=32))
    else:
        assert torch.equal(keep.view(24, 4, 16).sum((0, 2)), within.view(24, 4, 16).sum((0, 2)).clamp(max=24 * 8))


def test_within_what_is_no_mask():
    w, x = layer()
    for method in (Wanda(), SparseGPT()):
        with pytest.raises(pl.PruneError, match=r"within of fc \(24, 64\) is torch\.float32 \(24, 64\): give bools"):
            method(w, method.gather(x), 0.5, "fc", torch.ones(24, 64))


def test_one_column_by_hand():
    """Two inputs, one goes: what is left takes over as least squares would have it."""
    x = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    w = torch.tensor([[1.0, 4.0]])  # the first costs 1 / [H^-1]_11 = 2 * (1 - 2/3), the second far more
    new, keep = sparsegpt(w, x.T @ x, 0.5, damping=1e-9)
    assert keep.tolist() == [[False, True]]
    best = torch.linalg.lstsq(x[:, 1:], x @ w.T).solution
    assert torch.allclose(new, torch.tensor([[0.0, float(best)]]), atol=1e-5)


@patterns
def test_repair_is_better_than_masking(sparsity, plain):
    w, x = layer()
    new, keep = sparsegpt(w, x.T @ x, sparsity)
    assert error(w, new, x) < 0.7 * error(w, w * keep, x), "the same mask, without the update"
    by_size, _ = Wanda()(w, torch.ones(64), sparsity, "weight")  # all inputs alike: magnitude in rows
    assert error(w, new, x) < error(w, by_size, x)


def test_exact_counts_under_ties():
    w, x = torch.ones(6, 40), torch.ones(50, 40).diff(dim=0, append=torch.zeros(1, 40)) + torch.eye(50)[:, :40]
    _, keep = sparsegpt(w, x.T @ x, 0.3, columns=16)
    assert [int((~keep[:, a:b]).sum()) for a, b in ((0, 16), (16, 32), (32, 40))] == [29, 29, 14]
    _, keep = sparsegpt(w, x.T @ x, pl.NM(1, 4), columns=16)
    assert (keep.view(6, 10, 4).sum(-1) == 1).all()


def test_an_input_that_was_always_zero():
    w, x = layer()
    x[:, 7] = 0
    new, _ = sparsegpt(w, x.T @ x, 0.5)
    assert torch.isfinite(new).all()
    assert not new[:, 7].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    w, x = layer()
    new, _ = sparsegpt(w.to(dtype), x.T @ x, 0.5)
    assert new.dtype == dtype
    assert torch.allclose(new.float(), sparsegpt(w, x.T @ x, 0.5)[0], atol=0.1 if dtype == torch.bfloat16 else 1e-4)


def indefinite(strength):
    """A symmetric matrix with one eigenvalue below zero: -strength times the mean diagonal."""
    w, x = layer()
    gram = x.T @ x
    values, vectors = torch.linalg.eigh(gram)
    values[0] = -strength * float(gram.diagonal().mean())
    return w, vectors @ torch.diag(values) @ vectors.T


def test_not_positive_definite_is_damped_with_a_warning():
    w, gram = indefinite(0.05)
    with pytest.warns(UserWarning, match=r"Hessian of fc \(24, 64\) is not positive definite with damping=0.01"):
        new, _ = sparsegpt(w, gram, 0.5, name="fc")
    assert torch.isfinite(new).all()


def test_not_positive_definite_at_all():
    w, gram = indefinite(100)
    with pytest.raises(pl.PruneError, match=r"Hessian of fc \(24, 64\) is not positive definite, not even"):
        sparsegpt(w, gram, 0.5, name="fc")


def test_the_factor_is_that_of_the_inverse():
    w, x = layer()
    u = inverse_factor(x.T @ x, w, damping=0.1)
    gram = x.T @ x
    gram += 0.1 * gram.diagonal().mean() * torch.eye(64)
    assert torch.allclose(u.T @ u @ gram.double(), torch.eye(64, dtype=torch.float64), atol=1e-6)
    assert torch.equal(u, u.triu())


@pytest.mark.parametrize(
    ("gram", "sparsity", "columns", "message"),
    [
        (torch.eye(63), 0.5, 128, r"Gram matrix of weight \(24, 64\) is \(63, 63\)"),
        (torch.eye(64) * torch.nan, 0.5, 128, "finite numbers"),
        (torch.eye(64), 50, 128, "did you mean 0.5"),
        (torch.eye(64), pl.NM(2, 4), 30, "cut through the 4 of 2:4"),
    ],
)
def test_bad_input(gram, sparsity, columns, message):
    with pytest.raises(pl.PruneError, match=message):
        sparsegpt(layer()[0], gram, sparsity, columns=columns)


@pytest.mark.parametrize("method", [Wanda(), SparseGPT()], ids=["wanda", "sparsegpt"])
@patterns
def test_a_whole_decoder_block_by_block(method, sparsity, plain):
    """As the plain implementation, which runs the blocks itself: the same zeros, and the same weights."""
    ours, theirs = decoder(), decoder()
    calib = calibration()
    masks = blockwise(ours, calib, method, sparsity)
    rows = torch.cat([inputs for inputs, _ in calib.batches])
    plain_methods.layer_by_layer(theirs, rows, getattr(plain_methods, type(method).__name__.lower()), plain)
    assert masks.keys() == pl.prunable(ours).keys()
    for name, w in theirs.named_parameters():
        assert torch.allclose(ours.get_parameter(name), w, atol=1e-3), name
    for name, keep in masks.items():
        assert torch.equal(keep, ours.get_parameter(name) != 0)
        assert float(keep.float().mean()) == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize("method", [Wanda(), SparseGPT()], ids=["wanda", "sparsegpt"])
def test_equal_shares_by_name_are_the_one_sparsity(method):
    """To the bit."""
    one, named = decoder(), decoder()
    masks = blockwise(one, calibration(), method, 0.3)
    others = blockwise(named, calibration(), method, dict.fromkeys(pl.prunable(named), 0.3))
    assert all(torch.equal(mask, others[name]) for name, mask in masks.items())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), named.parameters(), strict=True))


def test_shares_by_name():
    """Each layer loses its own, as in plain loops; given in any order."""
    ours, theirs = decoder(), decoder()
    names = {id(w): name for name, w in pl.prunable(theirs).items()}
    shares = {name: i % 7 / 8 for i, name in enumerate(names.values())}
    masks = blockwise(ours, calibration(), Wanda(), dict(reversed(shares.items())))

    def plain(weight, x, _):
        goes = round(shares[names[id(weight)]] * weight.shape[1])
        lowest = (weight.abs().double() * x.double().norm(dim=0)).topk(goes, largest=False).indices
        return weight.scatter(1, lowest, 0)

    plain_methods.layer_by_layer(theirs, torch.cat([x for x, _ in calibration().batches]), plain, None)
    for name, w in pl.prunable(theirs).items():
        assert torch.equal(masks[name], w != 0), name
        assert torch.equal(pl.prunable(ours)[name], w), name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lm_head.weight": 0.5}, r"0 where nothing shall go: 'lm_head\.weight' is none of them"),
        ({"model.layers.1.mlp.up_proj.weight": None}, r"there is none for model\.layers\.1\.mlp\.up_proj\.weight"),
        ({"model.layers.1.mlp.up_proj.weight": 1.0}, r"of model\.layers\.1\.mlp\.up_proj\.weight: sparsity is 1"),
        ({"model.layers.1.mlp.up_proj.weight": -0.1}, "up_proj.weight: sparsity is -0.1"),
        ({"model.layers.1.mlp.up_proj.weight": pl.NM(2, 4)}, "a NM: give a fraction"),
    ],
    ids=str,
)
def test_bad_shares_by_name(changed, message, snapshot):
    model = decoder()
    before = snapshot(model)
    shares = dict.fromkeys(pl.prunable(model), 0.5) | changed
    with pytest.raises(pl.PruneError, match=message):
        blockwise(model, calibration(), Wanda(), {name: share for name, share in shares.items() if share is not None})
    assert snapshot(model) == before


@pytest.mark.parametrize("method", [Wanda(), SparseGPT()], ids=["wanda", "sparsegpt"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_dicts_with_padding(method, left):
    """Of several lengths, padded either way: as the plain implementation on the sequences alone."""
    ours, theirs = decoder(), decoder()
    rows = [token_ids(1, n, seed=n)[0] for n in (5, 9, 9, 12)]
    blockwise(ours, pl.Calibration((padded(rows[:2], left), padded(rows[2:], left))), method, 0.5)
    plain_methods.layer_by_layer(theirs, rows, getattr(plain_methods, type(method).__name__.lower()), 0.5)
    for name, w in theirs.named_parameters():
        assert torch.allclose(ours.get_parameter(name), w, atol=1e-3), name


@pytest.mark.parametrize("method", [Wanda(), SparseGPT()], ids=["wanda", "sparsegpt"])
def test_seventy_percent_then_two_of_four(method):
    """By masks worn, by `within`, by what a baked model holds: the same, and nothing is alive again."""
    given = [decoder() for _ in range(3)]
    for model in given:
        pruned = pl.prune(model, pl.Recipe(sparsity=0.7, scope="layer"))
    worn, named, baked = given
    pl.masking.restore(named, {})
    pl.bake(baked)
    nonzero = {name: w != 0 for name, w in pl.prunable(baked).items()}
    masks = blockwise(worn, calibration(), method, pl.NM(2, 4))
    found = [masks]
    found.append(blockwise(baked, calibration(), method, pl.NM(2, 4), within=nonzero))
    found.append(blockwise(named, calibration(), method, pl.NM(2, 4), within=pruned.keep))
    for name, mask in masks.items():
        assert all(torch.equal(mask, other[name]) for other in found)
        assert not (mask & ~pruned.masks[name]).any(), name
        assert int(mask.view(-1, 4).sum(1).max()) == 2
        assert torch.equal(pl.prunable(baked)[name], pl.prunable(worn)[name] * mask), name
    assert pl.masking.current_masks(worn).keys() == pruned.masks.keys()
    logits = baked(token_ids()).logits
    assert torch.allclose(worn(token_ids()).logits, logits, atol=1e-5)
    for name, mask in masks.items():
        assert torch.equal(pl.prunable(baked)[name] != 0, mask), name


def test_within_of_another_model():
    for within, message in (
        ({"layers.9.weight": torch.ones(3, dtype=torch.bool)}, "no tensor named 'layers.9.weight'"),
        ({"lm_head.weight": torch.ones(3, dtype=torch.bool)}, r"torch\.bool \(3,\) for lm_head\.weight \(64, 32\)"),
    ):
        with pytest.raises(pl.PruneError, match=message):
            blockwise(decoder(tie_word_embeddings=False), calibration(), Wanda(), 0.5, within=within)


@pytest.mark.parametrize("kind", KINDS)
def test_other_families(kind, snapshot):
    model = decoder(kind)
    before, embedding = snapshot(model), model.model.embed_tokens.weight.clone()
    masks = blockwise(model, calibration(), SparseGPT(), 0.5)
    after = snapshot(model)
    assert (after["modules"], after["random"]) == (before["modules"], before["random"])
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    pl.apply(model, masks)
    assert torch.isfinite(model(token_ids()).logits).all()


def entering(model, call):
    """What each block is given whenever it runs, in order, by the block's number."""
    seen = {i: [] for i in range(len(model.model.layers))}
    hooks = [
        block.register_forward_pre_hook(lambda _, args, to=seen[i]: to.append(args[0].clone()))
        for i, block in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("kind", ["llama", "qwen2_sliding", "gemma2", "gemma3"])
def test_blocks_see_what_they_see_in_a_forward(kind):
    """Each kind of attention has its own mask, in Gemma 3 its own positions too; short sequences fit in the window."""
    model = decoder(kind)
    rows = [token_ids(2, 6), token_ids(2, 24, seed=3), token_ids(1, 24, seed=4)]
    calib = pl.Calibration(tuple(next_tokens(r) for r in rows), next_token_loss)
    wanted = entering(model, lambda: [model(input_ids=row[None, :-1]) for r in rows for row in r])
    found = entering(model, lambda: blockwise(model, calib, Wanda(), 0.0))
    for i, inputs in wanted.items():
        assert len(inputs) == 5
        for x, y in zip(inputs, found[i][-5:], strict=True):
            assert torch.allclose(x, y, atol=1e-5), (i, float((x - y).abs().max()))


def test_blocks_that_are_all_told_the_same_are_run_for_once_a_length():
    """After the first sequence of a length only the first block is reached before the pruning begins."""
    model = decoder()
    seen = entering(model, lambda: blockwise(model, calibration(), Wanda(), 0.0))
    assert [len(inputs) for inputs in seen.values()] == [6 + 12, 1 + 12, 1 + 12, 1 + 12]


def test_a_block_that_the_forward_leaves_out(snapshot):
    model = decoder()
    model.config.num_hidden_layers = 3
    before = snapshot(model)
    with pytest.raises(pl.PruneError, match=r"runs 3 of its 4 blocks .* blockwise"):
        blockwise(model, calibration(), Wanda(), 0.5)
    assert snapshot(model) == before


def test_a_decoder_that_lost_parts():
    model = decoder()
    groups = [f(model)[0] for f in (pl.granularity.mlps, pl.granularity.attentions)]
    keep = {"mlps": torch.tensor([True, False, True, True]), "attentions": torch.tensor([False, True, True, True])}
    small = pl.shrink(model, groups, keep)
    assert len(blockwise(small, calibration(), Wanda(), 0.5)) == 28 - 3 - 4


def test_a_failure_in_a_later_block_leaves_the_model_as_it_was(snapshot):
    """The second block's Hessian fails after the first was pruned: everything comes back."""

    class Fails(SparseGPT):
        def __call__(self, weight, gathered, sparsity, name, within=None):
            if "layers.2.self_attn.o_proj" in name:
                gathered = gathered - 1e6 * torch.eye(len(gathered))
            return super().__call__(weight, gathered, sparsity, name)

    model = decoder()
    before = snapshot(model)
    with pytest.raises(pl.PruneError, match=r"layers\.2\.self_attn\.o_proj.*not positive definite"):
        blockwise(model, calibration(), Fails(), 0.5)
    assert snapshot(model) == before


def test_a_layer_that_its_block_never_calls():
    model, plain = decoder(), decoder()
    aside = model.model.layers[1].mlp.aside = torch.nn.Linear(4, 2)
    before = aside.weight.clone()
    name = "model.layers.1.mlp.aside.weight"
    with pytest.warns(UserWarning, match=rf"no inputs seen of {name} \(2, 4\): .*it is not pruned"):
        masks = blockwise(model, calibration(), Wanda(), 0.5)
    assert torch.equal(aside.weight, before)
    wanted = blockwise(plain, calibration(), Wanda(), 0.5)
    assert masks.keys() == wanted.keys()
    assert all(torch.equal(masks[n], wanted[n]) for n in masks)


def test_nan_in_a_weight(snapshot):
    model = decoder()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    before = snapshot(model)
    with pytest.raises(pl.PruneError, match=r"layers\.1\.mlp\.up_proj\.weight .*holds 1 NaN"):
        blockwise(model, calibration(), Wanda(), 0.5)
    assert snapshot(model) == before


def test_a_full_disk(snapshot, monkeypatch):
    model = decoder()
    before = snapshot(model)
    module = sys.modules["prunelab.reconstruction.blockwise"]  # the package has a function of that name

    def full(state, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(pl.PruneError, match=r"no copy of model\.layers\.0 could be kept .*No space left"):
        blockwise(model, calibration(), Wanda(), 0.5)
    assert snapshot(model) == before


def test_bad_calibration(build):
    with pytest.raises(pl.PruneError, match="has no blocks"):
        blockwise(build("mlp"), calibration(), Wanda(), 0.5)
    with pytest.raises(pl.PruneError, match=r"cannot run on inputs of .*float32"):
        blockwise(decoder(), pl.Calibration(((torch.zeros(3), torch.zeros(3)),)), Wanda(), 0.5)
    with pytest.raises(pl.PruneError, match="tokenizer is another model's"):
        blockwise(decoder(), pl.Calibration((next_tokens(token_ids() + 40),)), Wanda(), 0.5)
    with pytest.raises(pl.PruneError, match=r"did you mean 0\.5"):
        blockwise(decoder(), calibration(), Wanda(), 50)
    worn = decoder()
    torch.nn.utils.prune.random_unstructured(worn.model.layers[0].mlp.up_proj, "weight", 0.5)
    with pytest.raises(pl.PruneError, match=r"masks of torch\.nn\.utils\.prune"):
        blockwise(worn, calibration(), Wanda(), 0.5)


def test_wanda_blockwise_begins_as_the_criterion():
    """In the first block, whose inputs nothing has changed yet, the criterion at row scope makes the same choice."""
    model = decoder()
    masks = blockwise(copy.deepcopy(model), calibration(), Wanda(), 0.5)
    keep = pl.allocate(pl.criteria.wanda(model, calibration()), pl.granularity.weights(model), 0.5, "row")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"):
        assert torch.equal(masks[name], keep[name].view_as(masks[name]))


class TestDispatched:
    """Models that accelerate has spread over devices and offloaded."""

    @staticmethod
    def spread(tmp_path, place):
        import accelerate

        model = decoder(tie_word_embeddings=False)
        places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
        places |= {f"model.layers.{i}": "cpu" if i < 2 else place for i in range(4)}
        return accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path))

    def test_all_in_memory(self, tmp_path):
        import accelerate

        plain, model = decoder(), decoder()
        model = accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
        blockwise(plain, calibration(), SparseGPT(), 0.5)
        blockwise(model, calibration(), SparseGPT(), 0.5)
        assert torch.equal(plain(token_ids()).logits, model(token_ids()).logits)

    def test_offloaded_is_refused(self, tmp_path):
        model = self.spread(tmp_path, "disk")
        assert next(model.model.layers[3].parameters()).device.type == "meta"
        with pytest.raises(pl.PruneError, match=r"model\.layers\.2\.\S+ \(.*\) of this .* is on the meta device"):
            blockwise(model, calibration(), Wanda(), 0.5)

    def test_offloaded_is_measured(self, tmp_path):
        model = self.spread(tmp_path, "disk")
        plain = decoder(tie_word_embeddings=False)
        rows = token_ids()
        assert pl.measurement.perplexity(model, rows).value == pytest.approx(
            pl.measurement.perplexity(plain, rows).value
        )
