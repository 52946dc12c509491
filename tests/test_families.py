"""Every structure of every family: right in all its places, or refused with the true reason. Nothing in between.

`python tests/test_families.py [family ...]` prints the matrix.
"""

from __future__ import annotations

import copy
import functools
import re
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from tiny_families import FAMILIES, Family, build, example
from torch import Tensor, nn

import prunelab as pl
from prunelab.data import tensors
from prunelab.granularity import by_name
from prunelab.language import check_tokens, next_token_loss
from prunelab.reconstruction import SparseGPT, Wanda, blockwise
from prunelab.running import call

UNITS = ("heads", "neurons", "experts")  # slices of tensors
WHOLES = ("mlps", "attentions", "layers")  # modules
METHODS = {"wanda": Wanda(), "sparsegpt": SparseGPT()}
STRUCTURES = (*UNITS, *WHOLES, *METHODS)

# The expected outcome by structure: refused for the reason of a regular expression in the families after it; in all
# others right. What a config can say must be reloaded rightly in the families named (elsewhere the plan may be the
# remedy).

NOT_PRETRAINED = "torchvision-vit torchvision-swin torch-encoder lora"

MERGE, SHARED = {"merge_and_unload": "lora"}, {r"[Ss]hare": "albert"}
REFUSED: dict[str, dict[str, str]] = {
    "heads": {
        "no attention": "mamba convnext",
        "never leaves": "diffllama",
        "belongs to one head alone": "stablelm-qk-norm",
        "tried, and .* something else": "codegen",  # four equal parts, by the code
        "as large as the number of heads": "bloom mpt",  # slopes worked out from it
        "tried, and .*fails": "torchvision-swin",  # the width of a head is worked out from the width
    }
    | MERGE,
    "neurons": {"no neuron": "mixtral gpt-oss olmoe phimoe mamba"},
    "mlps": {"no MLP": "mamba convnext", "per-layer": "gemma3n"} | SHARED | MERGE,
    "attentions": {
        "no attention": "mamba convnext",
        "1 of its attentions": "qwen3-next jamba bamba",
        "mixes kinds of attention": "gemma2 gemma3 olmo3 cohere2 gpt-oss",
        "per-layer": "gemma3n",
    }
    | SHARED
    | MERGE,
    "layers": {"per-layer": "gemma3n", "derives from a layer's number": "jamba"} | SHARED | MERGE,
    "wanda": SHARED | MERGE,
    "sparsegpt": SHARED | MERGE,
}

LLAMAS = (
    "llama llama-tied llama-mha-bias mistral qwen2 qwen3 gemma gemma2 gemma3 phi phi3 olmo olmo2 olmo3 cohere cohere2 "
    "bitnet granite smollm3 glm glm4 starcoder2 nemotron "
)
BERTS = "bert bert-classifier roberta xlm-roberta electra distilbert deberta-v2 mpnet modernbert layoutlmv3 "
OTHERS = (
    "stablelm stablelm-qk-norm gpt2 gpt-neox gpt-j codegen gpt-bigcode falcon-mqa falcon-new opt persimmon t5 t5-gated "
    "bart marian pegasus t5gemma whisper vit deit beit data2vec-vision vit-mae clip siglip wav2vec2 hubert "
)


def without(families: str, some: str) -> str:
    return " ".join(f for f in families.split() if f not in some.split()) + " "


RELOADS = {
    # BitNet's and OLMoE's norms of all heads are as wide as the stream, others' heads as wide as it by their number.
    "heads": without(LLAMAS, "bitnet")
    + "gemma3n diffllama-two-pairs qwen3-next mqa-llama mixtral qwen3-moe qwen2-moe gpt-oss deepseek-v3 phimoe jamba "
    "bamba t5 t5-gated t5gemma vit deit beit dinov2 vit-mae",
    # The pooler's and the head's neurons go, too, and their configs give these the width of the stream.
    "neurons": without(LLAMAS + BERTS + OTHERS, "bert-classifier electra deberta-v2")
    + "gpt-neo diffllama diffllama-two-pairs albert qwen3-next mqa-llama qwen3-moe qwen2-moe bamba dinov2",
    # ModernBERT's first block has no norm before its attention, and that block has gone.
    "layers": without(LLAMAS + BERTS + OTHERS, "modernbert")
    + "gpt-neo qwen3-next mqa-llama mixtral qwen3-moe gpt-oss deepseek-v3 olmoe phimoe qwen2-moe bamba bloom mpt mamba "
    "dinov2 segformer llava convnext",
    "experts": "mixtral qwen3-moe qwen2-moe gpt-oss deepseek-v3 olmoe phimoe jamba qwen3-next",
    "mlps": "",
    "attentions": "",
}


transformers.utils.logging.disable_progress_bar()


@functools.cache
def built(name: str) -> nn.Module:
    """One model a family, for all its structures: none of them may change it."""
    return build(name)


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """What the model gives in eval mode, less what it keeps for the next token."""
    with torch.no_grad():
        return [t for t in tensors(call(model.eval(), inputs)) if t.is_floating_point()]


def gap(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference, relative to the largest value."""
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(one, other, strict=True))


def modules(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    return {path: m for path, m in model.named_modules() if pattern and re.search(pattern, path)}


def place(family: Family, what: str) -> tuple[str, int]:
    """Where a structure lies, and in how many places."""
    return {
        "heads": family.attention,
        "attentions": family.attention,
        "neurons": family.mlp,
        "mlps": family.whole_mlp or family.mlp,
        "experts": family.experts,
    }.get(what, family.block)


@functools.cache
def found(name: str, what: str) -> list[pl.Group]:
    return by_name(what)(built(name), example(name))


def cut(name: str, what: str) -> tuple[list[pl.Group], dict[str, Tensor], nn.Module]:
    """Half of the units of each group (a third of the whole modules) by magnitude, and the model without them."""
    model, groups = built(name), found(name, what)
    scores = {n: p.detach().abs() for n, p in model.named_parameters()}
    keep = pl.allocate(scores, groups, 0.34 if what in WHOLES else 0.5, "layer")
    return groups, keep, pl.shrink(model, groups, keep)


def check_structure(name: str, what: str) -> None:
    """AssertionError, or whatever else it raises, unless the structure can be removed rightly and everywhere."""
    model, inputs = built(name), example(name)
    before = [p.clone() for p in model.parameters()]
    groups, keep, small = cut(name, what)
    check_everywhere(name, what, groups, keep, small)
    made = outputs(small, inputs)
    assert all(t.isfinite().all() for t in made)
    exact = [g for g in groups if g.exact]
    if exact:
        with pl.masked(model, pl.expand(model, exact, keep)):
            masked = outputs(model, inputs)
        same = made if len(exact) == len(groups) else outputs(pl.shrink(model, exact, keep), inputs)
        assert (apart := gap(masked, same)) < 1e-4, f"masked and shrunk are {apart:.2g} apart"
    check_generation(name, small)
    with tempfile.TemporaryDirectory() as folder:
        pl.save_plan(folder, groups, keep, small)
        assert gap(made, outputs(pl.load_plan(folder, model), inputs)) == 0
    if name not in NOT_PRETRAINED.split():
        check_reload(name, what, small, made)
    check_training(small, inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def check_everywhere(name: str, what: str, groups: list[pl.Group], keep: dict[str, Tensor], small: nn.Module) -> None:
    """All the places that the family has, counted by hand, have lost something."""
    pattern, count = place(FAMILIES[name], what)
    whole = modules(built(name), pattern)
    assert len(whole) == count, "the table's pattern does not fit this version of the model"
    if what in WHOLES:
        units, stays = sum(g.units for g in groups), groups.stays  # such as T5's first block: said, with the reason
        assert units + len(stays) == count, f"{units} of {count} are in the groups, and {list(stays)} stay"
        assert len({part.path for g in groups for part in g.parts}) >= units
        return
    changed = [p for p, m in modules(small, pattern).items() if shapes(m) != shapes(whole[p])]
    said = [p for p in whole if p in getattr(groups, "stays", ())]  # such as SegFormer's first, which has one head
    assert len(changed) + len(said) == count, f"only {changed} of {count} have lost units"


def shapes(module: nn.Module) -> list[torch.Size]:
    return [p.shape for p in module.parameters()]


def generates(name: str) -> bool:
    """Whether the family's model writes token after token."""
    model = built(name)
    return (
        FAMILIES[name].inputs in ("ids", "seq2seq", "picture among ids")
        and getattr(model, "can_generate", lambda: False)()
    )


def written(name: str, model: Any, cache: bool) -> Tensor:
    inputs = {k: v for k, v in example(name).items() if not k.startswith("decoder_")}
    settings = {"do_sample": False, "min_new_tokens": 3, "max_new_tokens": 3, "output_logits": True}
    seen = torch.ones_like(inputs["input_ids"])
    made = model.eval().generate(
        **inputs, attention_mask=seen, use_cache=cache, return_dict_in_generate=True, **settings
    )
    return torch.stack(made.logits)


def check_generation(name: str, small: nn.Module) -> None:
    """What a decoder writes is the same with a cache and without."""
    if generates(name):
        with torch.no_grad():
            apart = gap([written(name, small, cache=False)], [written(name, small, cache=True)])
        assert apart < 1e-4, f"with a cache and without, generation is {apart:.2g} apart"


def check_training(small: nn.Module, inputs: Any) -> None:
    """One step: some gradient is there, all are finite."""
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-3)
    made = [t for t in tensors(call(small.train(), inputs)) if t.is_floating_point()]
    sum(t.square().mean() for t in made).backward()
    gradients = [p.grad for p in small.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
    optimizer.step()


def check_blockwise(name: str, what: str) -> None:
    """Every layer of every block has half of its weights at 0, and the first block's are those of plain Wanda."""
    model, inputs = copy.deepcopy(built(name)), example(name)
    given = inputs["input_ids"] if FAMILIES[name].inputs == "ids" else inputs
    calib = pl.Calibration(((given, torch.zeros(2, dtype=torch.int64)),), next_token_loss)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        masks = blockwise(model, calib, METHODS[what], 0.5)
    told = " ".join(str(w.message) for w in said)
    pattern, count = FAMILIES[name].block
    blocks = modules(model, pattern)
    assert len(blocks) == count, "the table's pattern does not fit this version of the model"
    for path, block in blocks.items():
        for layer in layers_of(block):
            full = f"{path}.{layer}"
            assert full in masks or full in told, f"{full} is neither pruned nor named"
            if full in masks:
                assert masks[full].float().mean().item() == pytest.approx(0.5, abs=0.05)
                assert not model.get_parameter(full)[~masks[full]].any()
    if what == "wanda":
        for full, mask in plain_wanda(name, next(iter(blocks)), inputs).items():
            assert full not in masks or torch.equal(masks[full], mask), f"{full} is not pruned as by plain Wanda"
    assert all(t.isfinite().all() for t in outputs(model, inputs))


def layers_of(block: nn.Module) -> Iterator[str]:
    """The matrices of a block: of Linear layers, of transformers' Conv1D, and of fused experts."""
    for path, m in block.named_modules():
        if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D":
            yield f"{path}.weight"
        for name, p in m.named_parameters(recurse=False):
            if p.dim() == 3 and path.endswith("experts"):
                yield f"{path}.{name}"


def plain_wanda(name: str, block: str, inputs: Any) -> dict[str, Tensor]:
    """Half of each row of the first block's Linear layers, by |W| norm(X), written anew."""
    model, seen, hooks = built(name), {}, []

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[path] = seen.get(path, 0) + args[0].flatten(0, -2).square().sum(0)

        return hook

    for path, m in model.get_submodule(block).named_modules():
        if isinstance(m, nn.Linear):
            hooks.append(m.register_forward_pre_hook(note(f"{block}.{path}.weight")))
    outputs(model, inputs)
    for hook in hooks:
        hook.remove()
    masks = {}
    for full, squares in seen.items():
        scores = model.get_parameter(full).detach().abs() * squares.sqrt()
        lowest = scores.argsort(dim=1, stable=True)[:, : round(scores.shape[1] / 2)]
        masks[full] = torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)
    return masks


def check_reload(name: str, what: str, small: nn.Module, made: list[Tensor]) -> None:
    """`save_pretrained` gives a folder from which `from_pretrained` builds the same, or names the plan in refusing."""
    with tempfile.TemporaryDirectory() as folder:
        if "save_pretrained" in vars(small):  # the guard that stands in the way of the class's own
            assert name not in RELOADS[what].split(), "its configuration should say this"
            with pytest.raises(pl.PruneError, match="save_plan"):
                small.save_pretrained(folder)
            return
        small.save_pretrained(folder)
        again = type(small).from_pretrained(folder)
    assert shapes(again) == shapes(small)
    apart = gap(made, outputs(again, example(name)))
    assert apart < 1e-6, f"reloaded, the outputs are {apart:.2g} apart"


def check(name: str, what: str) -> None:
    """One entry of the matrix."""
    (check_blockwise if what in METHODS else check_structure)(name, what)


def outcome(name: str, what: str) -> str:
    """One entry of the matrix in words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(name, what)
    except pl.PruneError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"WRONG: {type(error).__name__}: {error}"
    return "right"


def columns(name: str) -> list[str]:
    """The structures that a family is asked for."""
    return [w for w in STRUCTURES if w != "experts" or FAMILIES[name].experts[1]]


def listed(table: dict[str, dict[str, str]], name: str, what: str) -> str | None:
    """The reason under which a table has a structure of a family."""
    return next((why for why, where in table.get(what, {}).items() if name in where.split()), None)


@pytest.mark.filterwarnings("ignore")  # of transformers, and of groups that are left out: what is not found shows
@pytest.mark.slow
@pytest.mark.parametrize(("name", "what"), [(name, what) for name in FAMILIES for what in columns(name)])
def test_right_or_refused(name: str, what: str) -> None:
    why = listed(REFUSED, name, what)
    if why is None:
        check(name, what)
        return
    with pytest.raises(pl.PruneError, match=why):
        check(name, what)


def test_the_table_names_families_that_there_are():
    for table in (*REFUSED.values(), {"": " ".join(RELOADS.values())}):
        for where in table.values():
            assert set(where.split()) <= FAMILIES.keys()
    assert len(FAMILIES) >= 60


# What was diagnosed wrongly, each as it should be


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "bert",
        "stablelm-qk-norm",
        "diffllama",
    ],
)
def test_heads_without_an_example_are_not_taken_on_trust(name: str) -> None:
    model, inputs = built(name), example(name)
    try:
        groups = [g for g in by_name("heads")(model, None) if g.exact]
    except pl.PruneError as error:
        if not re.search("example|never leaves", str(error)):
            raise
        return
    scores = {n: p.detach().abs() for n, p in model.named_parameters()}
    keep = pl.allocate(scores, groups, 0.5, "layer")
    with pl.masked(model, pl.expand(model, groups, keep)):
        masked = outputs(model, inputs)
    assert gap(masked, outputs(pl.shrink(model, groups, keep), inputs)) < 1e-4


def test_tokens_of_a_composite_are_held_against_its_language_part():
    check_tokens(built("llava"), example("llava")["input_ids"])


def test_perplexity_of_a_classifier():
    with pytest.raises(pl.PruneError, match=r"BertForSequenceClassification.*logits|logits.*\(9, 2\)"):
        pl.measurement.perplexity(built("bert-classifier"), example("bert")["input_ids"])


class CalledByHand(nn.Module):
    """Its second layer's weight is used, and the layer never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.first(x), self.second.weight)


def test_wanda_skips_and_names_a_layer_that_it_cannot_see():
    calib = pl.Calibration(((torch.randn(5, 3), torch.zeros(5, dtype=torch.int64)),))
    with pytest.warns(UserWarning, match=r"second\.weight"):
        scores = pl.criteria.wanda(CalledByHand(), calib)
    assert list(scores) == ["first.weight"]


def test_wanda_takes_no_account_of_padding():
    model, ids = built("bert"), example("bert")["input_ids"]
    target = torch.zeros(len(ids), dtype=torch.int64)
    padded = {
        "input_ids": nn.functional.pad(ids, (0, 3)),
        "attention_mask": nn.functional.pad(torch.ones_like(ids), (0, 3)),
    }
    plain, found = (pl.criteria.wanda(model, pl.Calibration(((x, target),))) for x in ({"input_ids": ids}, padded))
    inside = [n for n in plain if ".encoder." in n]
    assert all(torch.allclose(plain[n], found[n], rtol=1e-4) for n in inside)


def test_blockwise_takes_dicts():
    model, inputs = copy.deepcopy(built("llama")), example("llama")
    assert blockwise(model, pl.Calibration(((inputs, inputs["input_ids"]),)), Wanda(), 0.5)


@pytest.mark.parametrize(
    "method",
    [Wanda(), pytest.param(SparseGPT(), marks=pytest.mark.xfail(reason="it revives some", strict=True))],
    ids=["wanda", "sparsegpt"],
)
def test_what_was_pruned_before_stays_pruned(method: Any) -> None:
    model, ids = copy.deepcopy(built("llama")), example("llama")["input_ids"]
    calib = pl.Calibration(((ids, ids),))
    before = blockwise(model, calib, Wanda(), 0.7)
    after = blockwise(model, calib, method, pl.NM(2, 4))
    alive = sum(int((model.get_parameter(n)[~kept] != 0).sum()) for n, kept in before.items())
    assert (alive, after.keys()) == (0, before.keys())


if __name__ == "__main__":
    import sys

    for name in sys.argv[1:] or FAMILIES:
        for what in columns(name):
            print(f"{name:<20} {what:<18} {outcome(name, what)[:300]}", flush=True)
