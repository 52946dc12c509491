"""Channels found, chosen and removed in other people's networks, each in a process of its own, beside Torch-Pruning.

    python tests/benchmarks/bench_channels.py --out now.jsonl tv:resnet50 timm:dla34 yolo:yolov8n smp:Unet/resnet18
    python tests/benchmarks/bench_channels.py --out now.jsonl --set torchvision timm yolo smp quantized
    python tests/benchmarks/bench_channels.py --table now.jsonl
    python tests/benchmarks/bench_channels.py --compare tests/benchmarks/channels_before.jsonl now.jsonl

`channels_before.jsonl` holds what the first edition found, through Torch-Pruning's graph, on 71 of these: the floors.
With PRUNELAB_NO_PEER set, ours alone is measured.

Random weights, every vector disturbed, so that a tensor that was forgotten shows; the smallest example that the
model takes; half of each group by magnitude. A line of JSON a model:

- `find_s`, `choose_s`, `remove_s`: processor time of `coupled`, `allocate` and `shrink`, on one thread;
- `groups`, `exact`, and `left`, the share of all parameters that is left;
- `gap_exact`, `gap_all`: masked against shrunk, relative to the largest output, over the exact groups and over all;
  `gap_flat`, if `gap_all` is large: the same with LayerNorm, GroupNorm and RMSNorm only scaling, which tells what a
  norm explains from what is wrong. Of torchvision's detectors the heads' outputs on fixed boxes are compared:
  after random weights no box is left. `compared` counts the entries;
- `share`, `share_exact`: the prunable parameters' entries that lie in a group, or in an exact one; `share_heads`: in
  a group or in an attention head that `granularity.heads` finds;
- `trains`: a step on the shrunk model (null: the dense model cannot either); `stays`: layers in no group, with why;
- `errors`, `warnings`: in full; an error is `foreign` if it is no PruneError;
- `tp`: Torch-Pruning's MagnitudePruner at the same ratio, the output layers ignored: seconds, `left`, `gap` of its
  whole step (the same channels zeroed, read off index tensors that are pruned in the weights' place) and `verdict`,
  `right` up to 1e-3. Where it is not, each of its groups is halved alone: `share` are the prunable entries in groups
  that are right, `share_flat` in those that are right once the norms only scale; `unjudged` groups were out of time.
  It follows a detector through its heads, as we compare it.

`--compare` names every model whose share is below the old one, or below 0.95 of what Torch-Pruning removes rightly,
every foreign error and every exact group that is wrong. Exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl

RIGHT = 1e-3  # Torch-Pruning's groups
EXACT = 1e-4  # ours
PEER = "Torch-Pruning"
TIMM = (
    "repghostnet_050 ghostnet_100 lcnet_050 dla46_c mixnet_s mobilenetv4_conv_small starnet_s1 regnety_002 levit_128s "
    "mobilevitv2_050 edgenext_xx_small efficientvit_b0 fastvit_t8 convnextv2_atto pvt_v2_b0 inception_next_atto "
    "mobileone_s0 xcit_nano_12_p16_224 tiny_vit_5m_224 eva02_tiny_patch14_224 deit_tiny_patch16_224 gmlp_ti16_224 "
    "coat_tiny repvgg_a0 mobilevit_s skresnet18 mambaout_femto resnest14d gernet_s seresnet18 visformer_tiny "
    "shvit_s1 swiftformer_xs cait_xxs24_224 halonet26t lambda_resnet26t bat_resnext26ts efficientformer_l1 "
    "poolformerv2_s12 dla34 hrnet_w18_small efficientnetv2_rw_t hgnet_tiny nest_tiny ecaresnet26t eca_resnet33ts "
    "mixer_s32_224 tnt_s_patch16_224 convmixer_768_32 res2net50_14w_8s resnetv2_50x1_bit ese_vovnet39b cspdarknet53 "
    "selecsls42 caformer_s18 rdnet_tiny volo_d1_224 sequencer2d_s davit_tiny twins_svt_small hiera_tiny_224 "
    "swinv2_cr_tiny_224 swin_tiny_patch4_window7_224 maxvit_tiny_rw_224 tresnet_m nfnet_f0 dm_nfnet_f0 xception41 "
    "dpn48b crossvit_tiny_240 convit_tiny nextvit_small focalnet_tiny_srf gcvit_xxtiny beit_base_patch16_224"
)
SMP = (
    "Unet/resnet18 UnetPlusPlus/mobilenet_v2 MAnet/efficientnet-b0 Linknet/resnet34 FPN/densenet121 PSPNet/resnet50 "
    "PAN/resnet18 DeepLabV3/mobilenet_v2 DeepLabV3Plus/tu-resnest14d UPerNet/tu-convnext_atto Segformer/mit_b0 "
    "DPT/tu-vit_tiny_patch16_224"
)
YOLO = "yolov8n yolo11n yolov8n-seg yolov8n-pose yolov8n-obb"


class Job(NamedTuple):
    """A model, an example of its inputs, what it wants in training, and whether it is a detector of torchvision's."""

    model: nn.Module
    example: Any
    training: Any
    detector: bool = False


# --- the models


def named_sets() -> dict[str, Callable[[], list[str]]]:
    """What `--set` takes, small models first."""
    return {
        "torchvision": lambda: [f"tv:{name}" for name in _torchvision(quantized=False)],
        "quantized": lambda: [f"tv:{name}" for name in _torchvision(quantized=True)],
        "timm": lambda: [f"timm:{name}" for name in TIMM.split()],
        "smp": lambda: [f"smp:{name}" for name in SMP.split()],
        "yolo": lambda: [f"yolo:{name}" for name in YOLO.split()],
    }


def _torchvision(quantized: bool) -> list[str]:
    from torchvision.models import get_model_weights, list_models

    names = [name for name in list_models() if name.startswith("quantized_") == quantized]
    sizes = {name: next(iter(get_model_weights(name))).meta["num_params"] for name in names}
    return sorted(names, key=lambda name: sizes[name])


def job(name: str) -> Job:
    """Build a model by its name: `tv:`, `timm:`, `smp:` or `yolo:` and what the library calls it."""
    torch.manual_seed(0)
    kind, _, rest = name.partition(":")
    found = {"tv": _tv, "timm": _timm, "smp": _smp, "yolo": _yolo}[kind](rest.split("/")[-1] if kind == "tv" else rest)
    return found._replace(model=found.model.eval())


def _tv(name: str) -> Job:
    from torchvision.models import get_model_builder

    build = get_model_builder(name)
    home = build.__module__.removeprefix("torchvision.models.").split(".")[0]
    if home == "quantization":
        return Job(build(weights=None, quantize=True), torch.randn(2, 3, 224, 224), None)
    if home == "detection":
        return _detector(name, build)
    if home == "segmentation":
        return _fitted(build(weights=None, weights_backbone=None), _images(64, 96, 128))
    if home == "optical_flow":
        return _fitted(build(weights=None), [(torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))])
    if home == "video":
        return _fitted(build(weights=None), [torch.randn(1, 3, t, s, s) for t, s in ((8, 64), (16, 112), (16, 224))])
    if name in ("googlenet", "inception_v3"):
        return _fitted(build(weights=None, init_weights=False), _images(299 if name == "inception_v3" else 64))
    windows = any(part in name for part in ("vit", "swin"))
    return _fitted(build(weights=None), _images(224) if windows else _images(64, 96, 128, 224))


def _detector(name: str, build: Callable[..., nn.Module]) -> Job:
    sized = {} if name.startswith("ssd") or "_320" in name else {"min_size": 160, "max_size": 160}
    model = disturb(build(weights=None, weights_backbone=None, **sized))
    image = torch.rand(3, 160, 160)
    target = {"boxes": torch.tensor([[10.0, 10.0, 90.0, 90.0]]), "labels": torch.tensor([1])}
    target |= {"masks": torch.ones(1, 160, 160, dtype=torch.uint8), "keypoints": torch.full((1, 17, 3), 40.0)}
    return Job(model, ([image],), ([image] * 2, [target] * 2), detector=True)


def _timm(name: str) -> Job:
    import timm

    model = timm.create_model(name, pretrained=False)
    own = model.default_cfg["input_size"][-1]
    fixed = model.default_cfg.get("fixed_input_size", False)
    return _fitted(model, _images(own) if fixed else _images(64, 96, 128, own))


def _smp(name: str) -> Job:
    import segmentation_models_pytorch as smp

    architecture, encoder = name.split("/")
    return _fitted(smp.create_model(architecture, encoder, encoder_weights=None), _images(64, 128, 224))


def _yolo(name: str) -> Job:
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())
    from ultralytics import YOLO as Wrapped

    return _fitted(Wrapped(f"{name}.yaml").model, _images(96))


def _images(*sizes: int) -> list[Tensor]:
    return [torch.randn(2, 3, size, size) for size in sizes]


def _fitted(model: nn.Module, examples: Sequence[Any]) -> Job:
    """With the first of the examples that the model runs on."""
    disturb(model).eval()
    for example in examples[:-1]:
        try:
            with torch.no_grad():
                run(model, example)
            return Job(model, example, example)
        except Exception:  # too small for it, in its own words
            continue
    return Job(model, examples[-1], examples[-1])


def disturb(model: nn.Module) -> nn.Module:
    """Give every vector (biases, norms, statistics, layer scales) and every zero matrix values of its own."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and max(tensor.shape, default=0) == tensor.numel():
                tensor.copy_(torch.rand_like(tensor) * 0.8 + 0.6)
            elif isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and not bool(tensor.any()):
                tensor.normal_(std=0.02)  # torchvision's ViT starts its classifier at zero
    return model


# --- running them


def run(model: nn.Module, inputs: Any) -> Any:
    """All that the model returns."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def floats(nest: Any) -> list[Tensor]:
    """The floating-point tensors in a nest, in order."""
    if isinstance(nest, Tensor):
        return [nest] if nest.is_floating_point() else []
    if isinstance(nest, dict):
        nest = nest.values()
    if isinstance(nest, Iterable) and not isinstance(nest, str):
        return [t for part in nest for t in floats(part)]
    return [t for part in vars(nest).values() for t in floats(part)] if hasattr(nest, "logits") else []


def outputs(work: Job, model: nn.Module) -> list[Tensor]:
    """The outputs in eval mode; a detector's before boxes are chosen."""
    model.eval()
    return floats(heads(model, *work.example) if work.detector else run(model, work.example))


def readings(work: Job, model: nn.Module) -> list[Tensor]:
    """The outputs, without gradients."""
    with torch.no_grad():
        return outputs(work, model)


def heads(model: Any, images: list[Tensor]) -> list[Any]:
    """What the heads of a detector say of the feature maps, those of a second stage on fixed boxes."""
    batch, _ = model.transform(images)
    features = model.backbone(batch.tensors)
    maps = list(features.values()) if isinstance(features, dict) else [features]
    if not hasattr(model, "rpn"):
        return [model.head(maps)]
    height, width = batch.image_sizes[0]
    boxes = [torch.tensor([[0.1, 0.1, 0.6, 0.7], [0.3, 0.2, 0.9, 0.9]]) * torch.tensor([width, height] * 2)]
    found = [model.rpn.head(maps)]
    for kind in ("box", "mask", "keypoint"):
        pool, head, last = (
            getattr(model.roi_heads, f"{kind}_{part}", None) for part in ("roi_pool", "head", "predictor")
        )
        if pool is not None:
            found.append(last(head(pool(features, boxes, batch.image_sizes))))
    return found


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference relative to the largest output; infinite where shapes differ or a NaN turns up."""
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape or not bool(a.isfinite().all()):
            return float("inf")
        if a.numel():
            gap, largest = float((a - b).abs().max()), float(a.abs().max())
            worst = max(worst, gap / (largest or 1.0)) if gap == gap else float("inf")
    return worst


@contextlib.contextmanager
def flat_norms() -> Iterator[None]:
    """Norms over channels scale and shift only: what still differs then, no norm explains."""

    def layer(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: Any = None) -> Tensor:
        x = x if weight is None else x * weight
        return x if bias is None else x + bias

    def group(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: Any = None) -> Tensor:
        view = (-1, *(1,) * (x.dim() - 2))
        weight, bias = (None if t is None else t.view(view) for t in (weight, bias))
        return layer(x, None, weight, bias)

    before = F.layer_norm, F.rms_norm, F.group_norm
    F.layer_norm, F.rms_norm, F.group_norm = layer, layer, group
    try:
        yield
    finally:
        F.layer_norm, F.rms_norm, F.group_norm = before


def step_runs(work: Job, model: nn.Module) -> bool:
    """Whether a training step runs and leaves finite gradients."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    loss = sum(t.float().mean() for t in floats(run(model, work.training)) if t.requires_grad)
    loss.backward()
    optimizer.step()
    return all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def count(model: nn.Module) -> int:
    """All parameters."""
    return sum(p.numel() for p in model.parameters())


# --- a model's line


class Line:
    """What is known so far, saved after every stage, so that a model that is killed says how far it got."""

    def __init__(self, name: str, path: Path):
        self.path = path
        self.facts: dict[str, Any] = {"model": name, "errors": [], "warnings": []}

    def save(self) -> None:
        """Write it whole."""
        self.facts["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.facts))
        part.replace(self.path)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Its errors become facts; its processor time too, if it is one of ours that is timed."""
        self.facts["stage"] = name
        self.save()
        start = time.process_time()
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.simplefilter("always")
                yield
        except Exception as error:
            fault = {"stage": name, "type": type(error).__name__, "text": f"{error}"[:200]}
            if name == PEER:
                self.facts["tp"]["error"] = f"{type(error).__name__}: {error}"[:200]
            else:
                self.facts["errors"].append({**fault, "foreign": not isinstance(error, pl.PruneError)})
        if name in ("find", "choose", "remove"):
            self.facts[f"{name}_s"] = round(time.process_time() - start, 3)
            self.facts["warnings"] += sorted({f"{w.category.__name__}: {w.message}" for w in heard})
        self.facts["stage"] = "done"
        self.save()


def measure(name: str, line: Line, limit: float) -> None:
    """All facts of a model."""
    start = time.monotonic()
    work = None
    with line.stage("build"):
        work = job(name)
        sizes = [list(t.shape) for t in floats(work.example)]
        line.facts |= {"example": sizes, "parameters": count(work.model)}
    if work is None:
        return
    with line.stage("run"):
        found = readings(work, work.model)
        line.facts["compared"] = sum(t.numel() for t in found)
        line.facts["finite"] = all(bool(t.isfinite().all()) for t in found)
    prunable: dict[str, int] = {}
    with line.stage("prunable"):
        prunable = {n: p.numel() for n, p in pl.prunable(work.model).items()}
        line.facts["prunable"] = sum(prunable.values())
    ours(work, line, prunable)
    line.facts["tp"] = {}
    if "PRUNELAB_NO_PEER" not in os.environ:  # while working on our own
        with line.stage(PEER):
            theirs(work, line, prunable, start + 0.9 * limit)
    line.facts["wall_s"] = round(time.monotonic() - start, 1)
    line.save()


def ours(work: Job, line: Line, prunable: dict[str, int]) -> None:
    """Find, choose and remove, and judge what came of it."""
    groups: Any = []
    keep: Any = {}
    small = None
    with line.stage("find"):
        groups = pl.granularity.coupled(work.model, work.example)
    exact = [g for g in groups if g.exact]
    stays = getattr(groups, "stays", {})
    line.facts |= {"groups": len(groups), "exact": len(exact), "stays": {str(k): str(v) for k, v in stays.items()}}
    line.facts |= {"share": 0.0, "share_exact": 0.0}
    if not groups:
        return
    with line.stage("choose"):
        keep = pl.allocate(pl.criteria.magnitude(work.model), groups, 0.5, "layer")
    with line.stage("remove"):
        small = pl.shrink(work.model, groups, keep)
    with line.stage("share"):
        with_heads = [*groups, *heads_of(work.model)]
        for key, some in (("share", groups), ("share_exact", exact)):
            line.facts[key] = share(pl.expand(work.model, some, nothing(some)), prunable)
        line.facts["share_heads"] = share(pl.expand(work.model, with_heads, nothing(with_heads)), prunable)
    if small is None:
        return
    line.facts["left"] = round(count(small) / line.facts["parameters"], 4)
    with line.stage("gap_exact"):
        line.facts["gap_exact"] = gap(work, exact, keep)
    with line.stage("gap_all"):
        line.facts["gap_all"] = gap(work, groups, keep)
    if not (line.facts.get("gap_all") or 0.0) <= RIGHT:
        with line.stage("gap_flat"), flat_norms():
            line.facts["gap_flat"] = gap(work, groups, keep)
    with line.stage("train"):
        line.facts["trains"] = trains(work, small)


def heads_of(model: nn.Module) -> list[Any]:
    """Attention heads, under names that no other group has."""
    try:
        return [replace(g, name=f"{g.name} heads") for g in pl.granularity.heads(model)]
    except pl.PruneError:  # there are none
        return []


def nothing(groups: Iterable[Any]) -> dict[str, Tensor]:
    """A keep without any unit."""
    return {g.name: torch.zeros(g.units, dtype=torch.bool) for g in groups}


def share(masks: dict[str, Tensor], prunable: dict[str, int]) -> float:
    """The share of the prunable entries that the masks take."""
    gone = sum(int((~masks[name]).sum()) for name in prunable if name in masks)
    return round(gone / sum(prunable.values()), 4)


def gap(work: Job, groups: Sequence[Any], keep: Any) -> float | None:
    """Masked against shrunk; None if there is nothing to compare."""
    if not groups:
        return None
    if not work.detector:
        return pl.surgery.difference(work.model, groups, keep, work.example)
    with pl.masked(work.model, pl.expand(work.model, groups, keep)):
        zeroed = readings(work, work.model)
    return apart(zeroed, readings(work, pl.shrink(work.model, groups, keep)))


def trains(work: Job, small: nn.Module) -> bool | None:
    """Whether the small model takes a step; None if the dense one does not either."""
    try:
        if step_runs(work, small):
            return True
    except Exception:  # the reason may lie in the example: see what the dense model says
        pass
    try:
        return False if step_runs(work, work.model) else None
    except Exception:
        return None


# --- Torch-Pruning


def last_layers(work: Job) -> list[str]:
    """The layers whose outputs reach the model's without passing another layer."""
    model = copy.deepcopy(work.model)
    made: dict[Any, str] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda m, i, out: made.update({t.grad_fn: path for t in floats(out) if t.grad_fn is not None})

    found: set[str] = set()
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            module.register_forward_hook(note(path))
    with torch.enable_grad():
        ends = [t.grad_fn for t in outputs(work, model) if t.grad_fn is not None]
    seen = set(ends)
    while ends:
        node = ends.pop()
        if node in made:
            found.add(made[node])
            continue
        new = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= new
        ends += new
    return sorted(found)


class Peer(NamedTuple):
    """Torch-Pruning's pruner on a copy of a model."""

    model: nn.Module
    pruner: Any


def peer(work: Job, ignored: Sequence[str]) -> Peer:
    """Torch-Pruning's MagnitudePruner as its documentation sets it up, the heads of attention layers told."""
    from peers import torch_pruning

    tp = torch_pruning()
    model = copy.deepcopy(work.model)
    fused = {m.qkv: m.num_heads for m in model.modules() if _fused_heads(m)}
    pruner = tp.pruner.MagnitudePruner(
        model,
        work.example,
        tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[model.get_submodule(path) for path in ignored],
        num_heads=fused,
        forward_fn=lambda m, _: [t for t in outputs(work, m) if t.grad_fn is not None],
    )
    return Peer(model, pruner)


def _fused_heads(module: nn.Module) -> bool:
    return isinstance(getattr(module, "qkv", None), nn.Linear) and isinstance(getattr(module, "num_heads", None), int)


def settle(model: nn.Module) -> None:
    """The head sizes of timm's attention, as Torch-Pruning's example for ViT sets them."""
    for m in model.modules():
        if _fused_heads(m) and hasattr(m, "head_dim"):
            m.head_dim = m.qkv.out_features // (3 * m.num_heads)
            if hasattr(m, "attn_dim"):
                m.attn_dim = m.head_dim * m.num_heads


def tag(tensor: Tensor) -> Tensor:
    """The index of each entry, in floats that hold it."""
    kind = torch.float32 if tensor.numel() < 2**24 else torch.float64
    return torch.arange(tensor.numel(), dtype=kind).view(tensor.shape)


def tagged(model: nn.Module) -> dict[str, Tensor]:
    """Put tags in place of all floating-point tensors; what they were."""
    real = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            real[name] = tensor.data
            tensor.data = tag(tensor)
    return real


def realize(model: nn.Module, real: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put the values back that the tags name; masks of the parameters that lost some."""
    masks = {}
    parameters = dict(model.named_parameters())
    for name, tensor in (*parameters.items(), *model.named_buffers()):
        if name not in real:
            continue
        kept = tensor.data.long()
        if kept.shape == real[name].shape:
            tensor.data = real[name]
            continue
        tensor.data = real[name].reshape(-1)[kept]
        if name in parameters:
            masks[name] = torch.zeros(real[name].shape, dtype=torch.bool)
            masks[name].view(-1)[kept.reshape(-1)] = True
    return masks


def sharing(model: nn.Module) -> nn.Module:
    """A copy whose tensors are new ones on the same numbers: replacing these leaves the model as it is."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo | {id(b): b.detach() for b in model.buffers()})


def wearing(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """A copy with the masked entries zeroed; it shares every other tensor."""
    memo = {id(t): t for t in (*model.parameters(), *model.buffers())}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in masks:
                memo[id(p)] = nn.Parameter(p * masks[name])
    return copy.deepcopy(model, memo)


def verdict(work: Job, small: nn.Module, masks: dict[str, Tensor]) -> tuple[str, float]:
    """right, flat (right if norms only scale), wrong or fails; and the difference of masked and shrunk."""
    zeroed = wearing(work.model, masks)
    try:
        worst = apart(readings(work, zeroed), readings(work, small))
        if worst <= RIGHT:
            return "right", worst
        with flat_norms():
            flat = apart(readings(work, zeroed), readings(work, small))
        return ("flat" if flat <= RIGHT else "wrong"), worst
    except Exception:  # sizes that no longer fit
        return "fails", float("inf")


def theirs(work: Job, line: Line, prunable: dict[str, int], end: float) -> None:
    """The whole step, and where that isn't right, each group alone."""
    facts = line.facts["tp"]
    ignored = last_layers(work)
    facts["ignored"] = ignored
    with contextlib.redirect_stdout(None):
        start = time.process_time()
        whole = peer(work, ignored)
        facts["build_s"] = round(time.process_time() - start, 3)
        facts["verdict"] = "fails"
        line.save()
        try:
            real = whole_step(whole, facts, start)
            facts["left"] = round(count(whole.model) / line.facts["parameters"], 4)
            settle(whole.model)
            facts["verdict"], facts["gap"] = verdict(work, whole.model, realize(whole.model, real))
        except Exception as error:  # what it trips over
            facts["error"] = f"{type(error).__name__}: {error}"[:200]
        line.save()
        alone(work, line, prunable, end, peer(work, ignored))


def whole_step(whole: Peer, facts: dict[str, Any], start: float) -> dict[str, Tensor]:
    """Prune, with tags in the place of the weights as soon as these are ranked; the weights."""
    steps = whole.pruner.step(interactive=True)
    group = next(steps, None)
    ranked = time.process_time()
    real = tagged(whole.model)
    tagging = time.process_time() - ranked
    while group is not None:
        group.prune()
        group = next(steps, None)
    facts["s"] = round(time.process_time() - start - tagging, 3)
    return real


def alone(work: Job, line: Line, prunable: dict[str, int], end: float, one: Peer) -> None:
    """What each group covers, and whether half of it alone can be removed."""
    facts, graph = line.facts["tp"], one.pruner.DG
    kinds = one.pruner.root_module_types
    groups = list(graph.get_all_groups(ignored_layers=one.pruner.ignored_layers, root_module_types=kinds))
    twin = copy.deepcopy(one.model)
    real = tagged(twin)
    paths = {m: path for path, m in one.model.named_modules()}
    sums: dict[str, dict[str, Tensor]] = {"right": {}, "flat": {}}
    judged = dict.fromkeys(("right", "flat", "wrong", "fails"), 0)
    for group in groups:
        how = "right" if facts["verdict"] == "right" else "unjudged"
        if how == "unjudged" and time.monotonic() < end:
            how = halved(work, one, twin, real, paths, group)
        if how == "unjudged":
            break
        judged[how] += 1
        for key in ("right", "flat") if how == "right" else (how,):
            if key in sums:
                add(sums[key], covered(twin, paths, graph, group))
        facts |= {"groups": len(groups), "judged": judged | {"unjudged": len(groups) - sum(judged.values())}}
        facts |= {"share": share(sums["right"], prunable), "share_flat": share(sums["flat"], prunable)}
        line.save()


def add(masks: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    """An entry is kept if both keep it."""
    for name, mask in more.items():
        masks[name] = masks[name] & mask if name in masks else mask


def halved(work: Job, one: Peer, twin: nn.Module, real: dict[str, Tensor], paths: dict, group: Any) -> str:
    """Half of a group's channels removed from a copy, at random: its verdict."""
    root, handler = group[0].dep.target.module, group[0].dep.handler
    try:
        channels, parts = len(group[0].idxs), one.pruner._get_channel_groups(group)
        each = channels // parts
        gone = torch.randperm(each, generator=torch.Generator().manual_seed(0))[: each // 2].sort().values.tolist()
        half = one.pruner.DG.get_pruning_group(root, handler, [g * each + i for g in range(parts) for i in gone])
        small = sharing(twin)
        for dep, indices in half:
            cut(small, paths, one.pruner.DG, dep, indices)
        settle(small)
        return verdict(work, small, realize(small, real))[0]
    except Exception:  # its own asserts among others
        return "fails"


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor, and under which attribute."""
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def cut(model: nn.Module, paths: dict, graph: Any, dep: Any, indices: Sequence[int]) -> None:
    """What one of Torch-Pruning's dependencies does, done to the same layer of a copy."""
    indices = [int(getattr(i, "idx", i)) for i in indices]
    dep.handler.__self__.pruning_dim = dep.target.pruning_dim
    if isinstance(dep.target.module, nn.Parameter):
        holder, attribute = owner(model, graph._param_to_name[dep.target.module])
        setattr(holder, attribute, dep.handler(getattr(holder, attribute), indices))
    elif dep.target.module in paths:
        dep.handler(model.get_submodule(paths[dep.target.module]), indices)


def covered(twin: nn.Module, paths: dict, graph: Any, group: Any) -> dict[str, Tensor]:
    """Masks without the entries that belong to a group: every other channel, and then the rest, cut off the tags."""
    masks: dict[str, Tensor] = {}
    whole = {name: p.shape for name, p in twin.named_parameters()}
    for first in (0, 1):
        small = sharing(twin)
        for dep, indices in group:
            with contextlib.suppress(Exception):  # a layer that cannot lose just these
                cut(small, paths, graph, dep, list(indices)[first::2])
        for name, p in small.named_parameters():
            if p.shape != whole[name]:
                mask = torch.zeros(whole[name], dtype=torch.bool)
                mask.view(-1)[p.detach().long().reshape(-1)] = True
                add(masks, {name: mask})
    return masks


# --- processes, tables


def child(name: str, into: str, limit: float, memory: float) -> None:
    """Measure one model, on one thread."""
    most = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    torch.set_num_threads(1)
    warm_up()
    measure(name, Line(name, Path(into)), limit)


def warm_up() -> None:
    """Imports, and what torch sets up at its first graph, are in nobody's time."""
    tiny = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    x = torch.randn(2, 3, 8, 8)
    groups = pl.granularity.coupled(tiny, x)
    pl.shrink(tiny, groups, pl.allocate(pl.criteria.magnitude(tiny), groups, 0.5, "layer"))
    with contextlib.redirect_stdout(None):
        peer(Job(tiny, x, x), ["3"]).pruner.step()


def measured(name: str, limit: float, memory: float) -> dict[str, Any]:
    """A model's line, from a process of its own; what it had found if it was ended at the limit."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "line.json"
        command = [sys.executable, __file__, "--child", name, "--out", str(into)]
        command += ["--limit", str(limit), "--memory", str(memory)]
        with open(Path(folder) / "log", "w+") as log:
            try:
                code = subprocess.run(command, stdout=log, stderr=log, timeout=limit).returncode
                ended = f"exit {code}" if code else ""
            except subprocess.TimeoutExpired:
                ended = f"wall limit of {limit:g} s"
            log.seek(0)
            said = log.read()[-200:]
        facts = json.loads(into.read_text()) if into.exists() else {"model": name, "errors": [], "warnings": []}
    if ended:
        stage = facts.get("stage", "start")
        facts["errors"].append({"stage": stage, "type": "Ended", "text": f"{ended}: {said}", "foreign": False})
    return facts


def read(path: str) -> dict[str, dict[str, Any]]:
    """The lines of a file by model; of several of one model the last."""
    lines = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
    return {line["model"]: line for line in lines}


def table(lines: Iterable[dict[str, Any]]) -> str:
    """The Markdown table."""
    head = (
        "model|groups|exact|share|with heads|left|gap exact|gap all|flat|trains|find s|choose s|remove s"
        "|TP s|TP left|TP whole|TP share|TP flat|stay|errors"
    )
    rows = [head, "|".join("---" for _ in head.split("|"))]
    for f in lines:
        tp = f.get("tp", {})
        errors = [f"{e['stage']}: {e['type']}: {e['text'][:60]}" for e in f["errors"]]
        cells = [f["model"], *(_cell(f.get(k)) for k in ("groups", "exact", "share", "share_heads", "left"))]
        cells += [_cell(f.get(k)) for k in ("gap_exact", "gap_all", "gap_flat", "trains")]
        cells += [_cell(f.get(k)) for k in ("find_s", "choose_s", "remove_s")]
        cells += [_cell(tp.get(k)) for k in ("s", "left", "verdict", "share", "share_flat")]
        cells += [str(len(f.get("stays", {}))), "; ".join(errors).replace("|", "/").replace("\n", " ")]
        rows.append("|".join(cells))
    return "\n".join(f"|{row}|" for row in rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.3g}" if value >= 0.01 or value == 0 else f"{value:.0e}"
    return str(value)


def faults(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Where a model's new line misses what is asked of it."""
    found = [f"{e['stage']}: foreign {e['type']}: {e['text'][:80]}" for e in new["errors"] if e["foreign"]]
    found += [
        f"{e['stage']}: {e['text'][:80]}" for e in new["errors"] if (e["type"], e["stage"] == PEER) == ("Ended", False)
    ]
    mine, before = new.get("share") or 0.0, old.get("share") or 0.0
    if mine < before - 1e-4:
        rightly = "" if mine < (old.get("share_exact") or 0.0) - 1e-4 else ", whose exact groups had no more"
        found.append(f"share {mine:.4f}, before {before:.4f}{rightly}")
    peers = max((f.get("tp", {}).get("share") or 0.0) for f in (old, new))
    all_mine = max(mine, new.get("share_heads") or 0.0)  # it prunes inside of attention heads, we remove whole ones
    if all_mine < 0.95 * peers:
        found.append(f"share {mine:.4f}, with heads {all_mine:.4f}, Torch-Pruning rightly {peers:.4f}")
    for key in ("gap_exact", "gap_flat"):
        worst = new.get(key)
        if worst is not None and not worst <= (EXACT if key == "gap_exact" else RIGHT):
            found.append(f"{key} {worst:.1e}")
    return found + (["the shrunk model does not train"] if new.get("trains") is False else [])


def compare(before: str, now: str) -> int:
    """Print every fault; 1 if there is one."""
    old, new = read(before), read(now)
    bad = 0
    for name, facts in new.items():
        lacks = faults(old.get(name, {}), facts)
        bad += bool(lacks)
        if lacks:
            print(f"{name}: {'; '.join(lacks)}")
    absent = [name for name in old if name not in new]
    print(f"{bad} of {len(new)} models below what is asked" + (f"; not there: {', '.join(absent)}" if absent else ""))
    return 1 if bad else 0


def main(arguments: list[str] | None = None) -> int:
    """Measure models, or print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--set", nargs="*", default=[], choices=list(named_sets()))
    parser.add_argument("--out", help="a line of JSON a model is added to this file")
    parser.add_argument("--limit", type=float, default=300, help="seconds a model")
    parser.add_argument("--memory", type=float, default=16, help="GiB of addresses a model")
    parser.add_argument("--again", action="store_true", help="measure models as well that the file has already")
    parser.add_argument("--table", metavar="FILE")
    parser.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.table:
        print(table(read(given.table).values()))
        return 0
    if given.compare:
        return compare(*given.compare)
    if given.child:
        child(given.child, given.out, given.limit, given.memory)
        return 0
    names = [*given.names, *(name for chosen in given.set for name in named_sets()[chosen]())]
    done = read(given.out) if given.out and Path(given.out).exists() and not given.again else {}
    for name in names:
        if name in done:
            continue
        facts = measured(name, given.limit, given.memory)
        print(f"{name}: share {facts.get('share')}, errors {len(facts['errors'])}", flush=True)
        if given.out:
            with open(given.out, "a") as out:
                out.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
