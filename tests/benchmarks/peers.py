"""One pruning step as prunelab and its peers do it, each with its own calls: what the benchmarks run.

A step takes a model and changes it. Those of a peer that isn't installed are left out, and `missing()` says so.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import prunelab as pl
from prunelab import zoo
from prunelab.core import lookup_all

Step = Callable[[nn.Module, Any, float], nn.Module]
LAYERS = (nn.Linear, nn.Conv2d)
STEPS: dict[str, dict[str, Step]] = {}  # work -> who -> how


def step(work: str, who: str) -> Callable[[Step], Step]:
    """Register a way to do a work."""

    def put(function: Step) -> Step:
        STEPS.setdefault(work, {})[who] = function
        return function

    return put


def torch_pruning() -> Any:
    """Torch-Pruning, or an end that says how to get it."""
    try:
        import torch_pruning
    except ImportError as error:
        raise SystemExit(
            f"Torch-Pruning, a peer of this benchmark, is not here ({error}): "
            'python -m pip install -e ".[bench]" -c constraints.txt'
        ) from error
    return torch_pruning


def has_fasterai() -> bool:
    """Whether FasterAI can be imported here."""
    return importlib.util.find_spec("fasterai") is not None


def missing() -> str:
    """What to say of peers that are not here."""
    return "" if has_fasterai() else "FasterAI is not installed here: its rows are missing (pip install fasterai)"


@contextlib.contextmanager
def silent() -> Any:
    """Without the peers' prints and warnings."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _places(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The same weights that ours prunes, as torch.nn.utils.prune takes them."""
    found = lookup_all(model, pl.prunable(model))
    return [(places[0].module, places[0].attribute) for places in found.values()]


@step("weights, global", "prunelab")
def _(model: nn.Module, example: Any, share: float) -> nn.Module:
    pl.prune(model, pl.Recipe("magnitude", "weights", share, "global"))
    return model


@step("weights, global", "torch.nn.utils.prune")
def _(model: nn.Module, example: Any, share: float) -> nn.Module:
    torch_prune.global_unstructured(_places(model), pruning_method=torch_prune.L1Unstructured, amount=share)
    return model


@step("weights, local", "prunelab")
def _(model: nn.Module, example: Any, share: float) -> nn.Module:
    pl.prune(model, pl.Recipe("magnitude", "weights", share, "layer"))
    return model


@step("weights, local", "torch.nn.utils.prune")
def _(model: nn.Module, example: Any, share: float) -> nn.Module:
    for module, name in _places(model):
        torch_prune.l1_unstructured(module, name, share)
    return model


@step("filters, zeroed", "prunelab")
def _(model: nn.Module, example: Any, share: float) -> nn.Module:
    groups = pl.granularity.filters(model, example)
    keep = pl.allocate(pl.criteria.magnitude(model), groups, share, "layer")
    return pl.apply(model, pl.expand(model, groups, keep))


@step("filters, zeroed", "torch.nn.utils.prune")
def _(model: nn.Module, example: Any, share: float) -> nn.Module:
    for module in [m for m in model.modules() if isinstance(m, nn.Conv2d)]:
        torch_prune.ln_structured(module, "weight", share, n=1, dim=0)
    return model


@step("filters, removed", "prunelab")
def _(model: nn.Module, example: Any, share: float) -> nn.Module:
    groups = pl.granularity.filters(model, example)
    return pl.shrink(model, groups, pl.allocate(pl.criteria.magnitude(model), groups, share, "layer"))


@step("filters, removed", "Torch-Pruning")
def _(model: nn.Module, example: Any, share: float) -> nn.Module:
    tp = torch_pruning()

    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
    importance = tp.importance.GroupMagnitudeImportance(p=1)
    tp.pruner.MagnitudePruner(model, example, importance, pruning_ratio=share, ignored_layers=last).step()
    return model


def _but_hidden(model: nn.Module) -> list[nn.Module]:
    """All layers but those whose outputs are the hidden neurons of an MLP, in torchvision's ViT and in a Llama."""
    hidden = [m for name, m in model.named_modules() if name.endswith(("mlp.0", "up_proj", "gate_proj"))]
    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention, nn.LayerNorm, nn.Embedding)
    return [m for m in model.modules() if isinstance(m, kinds) and not any(m is h for h in hidden)]


def _logits(output: Any) -> Any:
    """What Torch-Pruning follows back through the graph."""
    return getattr(output, "logits", output)


@step("neurons, removed", "prunelab")
def _(model: nn.Module, example: Any, share: float) -> nn.Module:
    decoder = hasattr(model, "config")
    groups = pl.granularity.glu_neurons(model) if decoder else pl.granularity.neurons(model, example)
    return pl.shrink(model, groups, pl.allocate(pl.criteria.magnitude(model), groups, share, "layer"))


@step("neurons, removed", "Torch-Pruning")
def _(model: nn.Module, example: Any, share: float) -> nn.Module:
    tp = torch_pruning()

    importance = tp.importance.GroupMagnitudeImportance(p=1)
    options = {"ignored_layers": _but_hidden(model), "output_transform": _logits}
    tp.pruner.MagnitudePruner(model, example, importance, pruning_ratio=share, **options).step()
    return model


if has_fasterai():

    def _sparsified(model: nn.Module, granularity: str, context: str, layers: Any, share: float) -> nn.Module:
        from fasterai.core.criteria import large_final
        from fasterai.sparse.sparsifier import Sparsifier

        Sparsifier(model, granularity, context, large_final, layer_type=layers).sparsify_model(share)
        return model

    @step("weights, global", "FasterAI")
    def _(model: nn.Module, example: Any, share: float) -> nn.Module:
        return _sparsified(model, "weight", "global", LAYERS, share)

    @step("weights, local", "FasterAI")
    def _(model: nn.Module, example: Any, share: float) -> nn.Module:
        return _sparsified(model, "weight", "local", LAYERS, share)

    @step("filters, zeroed", "FasterAI")
    def _(model: nn.Module, example: Any, share: float) -> nn.Module:
        return _sparsified(model, "filter", "local", nn.Conv2d, share)

    @step("filters, removed", "FasterAI")
    def _(model: nn.Module, example: Any, share: float) -> nn.Module:
        from fasterai.core.criteria import large_final
        from fasterai.prune.pruner import Pruner

        Pruner(model, share, "local", large_final, example_inputs=example).prune_model()
        return model

    @step("neurons, removed", "FasterAI")
    def _(model: nn.Module, example: Any, share: float) -> nn.Module:
        from fasterai.core.criteria import large_final
        from fasterai.prune.pruner import Pruner

        options = {"ignored_layers": _but_hidden(model), "output_transform": _logits}
        Pruner(model, share, "local", large_final, example_inputs=example, **options).prune_model()
        return model


def run(work: str, who: str, model: nn.Module, example: Any, share: float) -> nn.Module:
    """Do a step, without the peers' prints."""
    with silent():
        return STEPS[work][who](model, example, share)


def plain(model: nn.Module) -> nn.Module:
    """The model with what a peer's masks zero written into its weights, and nothing else left of the peer."""
    for module in model.modules():
        for name in [n.removesuffix("_orig") for n in list(module._parameters) if n.endswith("_orig")]:
            torch_prune.remove(module, name)
        for leftover in ("_mask", "_init_weights", "_init_biases"):
            module._buffers.pop(leftover, None)
    return pl.bake(model)


def resnet50() -> tuple[nn.Module, Tensor]:
    """ResNet-50 with seeded random weights, and an input."""
    from torchvision.models import resnet50 as build

    torch.manual_seed(0)
    return build(weights=None).eval(), torch.randn(1, 3, 224, 224)


def vit() -> tuple[nn.Module, Tensor]:
    """ViT-B/16 with seeded random weights; its classifier, which torchvision starts at zero, gets some too."""
    from torchvision.models import vit_b_16

    torch.manual_seed(0)
    model = vit_b_16(weights=None).eval()
    nn.init.normal_(model.heads.head.weight, std=0.02)
    return model, torch.randn(1, 3, 224, 224)


def llama() -> tuple[nn.Module, Tensor]:
    """The course's real Llama, read once (its file is mapped, and would count as growth), and sixteen tokens."""
    model = zoo.llama().model
    for weight in model.parameters():
        weight.sum()
    return model, torch.arange(16)[None]


def mlp(weights: int) -> tuple[nn.Module, Tensor]:
    """About so many weights in square linear layers of 1024."""
    torch.manual_seed(0)
    layers = max(round(weights / (1 << 20)), 1)
    with torch.no_grad():
        return nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(layers))), torch.randn(1, 1024)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "ResNet-50": resnet50,
    "ViT-B/16": vit,
    "SmolLM2-135M": llama,
    **{f"{m} M": lambda m=m: mlp(m * 10**6) for m in (1, 10, 100, 500)},
}

WEIGHTS = ("weights, global", "weights, local")
WORKS = {
    "ResNet-50": (*WEIGHTS, "filters, zeroed", "filters, removed"),
    "ViT-B/16": (*WEIGHTS, "neurons, removed"),
    "SmolLM2-135M": (*WEIGHTS, "neurons, removed"),
}


def entrants(work: str, name: str) -> list[str]:
    """Who does this work on this model. FasterAI would prune a Llama's output layer, its embedding, as well."""
    return [who for who in STEPS[work] if (who, name) != ("FasterAI", "SmolLM2-135M") or work not in WEIGHTS]


def small(work: str) -> tuple[nn.Module, Tensor]:
    """A model to warm up on, with a hidden layer of the kind that the work removes."""
    if work == "neurons, removed":
        return nn.Sequential(OrderedDict(mlp=nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))), torch.randn(
            1, 8
        )
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(*layers), torch.randn(1, 3, 8, 8)


def fresh(model: nn.Module) -> nn.Module:
    """A copy to prune."""
    return copy.deepcopy(model)
