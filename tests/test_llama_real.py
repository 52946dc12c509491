"""The real Llama: what the tiny ones show, once where it counts. From the cache, or fetched once; else skipped."""

import copy

import plain_methods
import pytest
import torch

import prunelab as pl
from prunelab import zoo
from prunelab.lab.lessons import lesson_13, lesson_14, llamas
from prunelab.language import continued
from prunelab.measurement import perplexity
from prunelab.reconstruction import SparseGPT, Wanda, blockwise

pytestmark = pytest.mark.slow
FRONT = 2  # blocks that the plain implementations prune: they are slow
SOME = 8  # windows of text: more tokens than a layer has inputs, or the Hessian has no inverse without its damping


@pytest.fixture(scope="module")
def llama():
    try:
        return zoo.llama()
    except zoo.ZooError as error:
        pytest.skip(f"the Llama can't be had: {error}")


@pytest.fixture(scope="module")
def text(llama):
    return llamas.text_for(llama)


@pytest.fixture(scope="module")
def dense(llama, text):
    return perplexity(llama.model, text.test[:2]).value


@pytest.fixture(scope="module")
def fronts(llama):
    """The first blocks alone, which no test may change."""
    return pl.shrink(llama.model, pl.granularity.layers(llama.model), {"layers": torch.arange(30) < FRONT})


@pytest.fixture(scope="module")
def shorter(llama, text):
    """Without the 4 blocks of lowest influence, by the library and in plain torch; the text they were judged on."""
    model, calib = llama.model, text.some(1)
    rows = torch.cat([calib.batches[0][0], calib.batches[0][1][:, -1:]], 1)
    groups = pl.granularity.layers(model)
    short = pl.shrink(model, groups, pl.allocate(pl.criteria.block_influence(model, calib), groups, 4 / 30))
    lowest = plain_methods.block_influence(model, rows[:, :-1]).argsort()[:4].tolist()
    return short, plain_methods.without_blocks(model, lowest), calib, rows


def test_it_is_the_llama(llama, text, dense):
    assert sum(p.numel() for p in llama.model.parameters()) == 134_515_008
    assert llama.model.config.tie_word_embeddings
    assert "lm_head.weight" not in pl.prunable(llama.model)
    assert len(pl.prunable(llama.model)) == 30 * 7
    assert 10 < dense < 30
    assert "gardener" in llamas.answer(llama, count=12).lower()


def test_magnitude_ruins_it_and_wanda_does_not(llama, text, dense):
    by_size = perplexity(lesson_14.by_magnitude(copy.deepcopy(llama.model), 0.5), text.test[:2]).value
    model = copy.deepcopy(llama.model)
    blockwise(model, text.some(2), Wanda(), 0.5)
    by_wanda = perplexity(model, text.test[:2]).value
    assert dense < by_wanda < 4 * dense
    assert by_size > 3 * by_wanda


@pytest.mark.parametrize("method", [Wanda(), SparseGPT()], ids=["wanda", "sparsegpt"])
@pytest.mark.parametrize(("sparsity", "plain"), [(0.5, 0.5), (pl.NM(2, 4), (2, 4))], ids=["half", "2:4"])
def test_within_half_a_percent_of_the_papers_formulas(llama, fronts, text, method, sparsity, plain):
    """The first blocks pruned by ours and by the plain implementation, the others dense: the same perplexity."""
    found = []
    for prune in (
        lambda m: blockwise(m, text.some(SOME), method, sparsity),
        lambda m: plain_methods.layer_by_layer(
            m,
            text.some(SOME).batches[0][0],
            getattr(plain_methods, type(method).__name__.lower()),
            plain,
        ),
    ):
        front = copy.deepcopy(fronts)
        prune(front)
        whole = copy.deepcopy(llama.model)
        for i in range(FRONT):
            whole.model.layers[i].load_state_dict(front.model.layers[i].state_dict())
        found.append(perplexity(whole, text.test[:1]).value)
    assert found[0] == pytest.approx(found[1], rel=0.005)


@pytest.mark.parametrize("what", ["layers", "mlps", "attentions", "neurons"])
def test_masked_and_removed_agree_and_the_cache_is_right(llama, text, what):
    model, ids = llama.model, text.test[:1, :16]
    groups = getattr(pl.granularity, what)(model)
    if what == "neurons":
        keep = pl.allocate(pl.criteria.glu_peak_to_peak(model), groups, 0.25, "layer")
    else:
        keep = {what: torch.tensor([unit not in (3, 14, 25) for unit in range(30)])}
    small = pl.shrink(model, groups, keep)
    with pl.masked(model, pl.expand(model, groups, keep)), torch.no_grad():
        masked = model(ids).logits
    with torch.no_grad():
        gap = (small(ids).logits - masked).abs().max() / masked.abs().max()
    assert float(gap) < 1e-4
    assert torch.equal(continued(small, ids, 6), continued(small, ids, 6, cache=False))


def test_influence_costs_less_than_chance(llama, text, dense):
    model, calib = llama.model, text.some(2)
    by_influence = lesson_13.without(model, "layers", lesson_13.order(model, "layers", "influence", calib)[:3])
    by_chance = lesson_13.without(model, "layers", lesson_13.order(model, "layers", "random", seed=0)[:3])
    low, high = (perplexity(m, text.test[:2]).value for m in (by_influence, by_chance))
    assert dense < low < high


@pytest.mark.parametrize("criterion", ["taylor", "wanda", "glu_peak_to_peak", "fisher"])
def test_blocks_then_neurons_then_wanda_is_a_plain_llama(shorter, text, criterion):
    """4 blocks out by influence, a quarter of the neurons, 2:4: the same weights stay, and the same perplexity."""
    model, plain, calib, rows = shorter
    groups = pl.granularity.neurons(model)
    model = pl.shrink(model, groups, pl.allocate(pl.criteria.by_name(criterion)(model, calib), groups, 0.25, "layer"))
    kept = plain_methods.neurons_kept(plain_methods.neuron_scores(criterion, plain, rows), 0.25, "layer")
    plain = plain_methods.without_neurons(copy.deepcopy(plain), kept)
    blockwise(model, calib, Wanda(), pl.NM(2, 4))
    plain_methods.layer_by_layer(plain, rows[:, :-1], plain_methods.wanda, (2, 4))
    for one, other in zip(*map(plain_methods.linear_layers, (model, plain)), strict=True):
        assert torch.equal(one.weight == 0, other.weight == 0)
    found = perplexity(model, text.test[:1]).value
    assert found == pytest.approx(plain_methods.perplexity(plain, text.test[:1]), rel=0.001)
