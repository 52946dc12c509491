"""Criteria for what stands on a residual stream: how much does it change what passes through?

Each gives every weight of a module an equal part of the module's score, so that a unit of `granularity.layers`, `mlps`
or `attentions` is worth its modules' scores added up, whatever their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..calibration import Calibration
from ..calibration.samples import needed, sequences
from ..core import PruneError, Scores, places, shape
from ..decoders import Block, blocks, is_decoder, is_norm
from ..layers import prunable
from ..running import attempt, entering, leaving, uncached, undisturbed, while_in
from .registry import finite, register

OF = ("layers", "mlps", "attentions")


@register("block_influence")
@dataclass(frozen=True)
class BlockInfluence:
    """1 - E cos(X_i, X_i+1): how far a block turns what passes through it, over all tokens. Needs data, no labels.

    Men et al. 2024 (ShortGPT), arXiv 2403.03853, §3.2. `of`: "layers" as there; "mlps" or "attentions" compare the
    residual stream before and after that part alone, where a norm of the stream is what the part is given, and the
    stream goes on as their sum. All weights of the part share its score.
    """

    of: str = "layers"

    def __call__(self, model: nn.Module, calib: Calibration | None = None) -> Scores:
        if self.of not in OF:
            raise PruneError(f"block influence of {self.of!r}: give one of {', '.join(OF)}")
        finite(prunable(model))
        turned: Turned = {}
        with while_in(_watched(blocks(model), self.of, turned)):
            _run(model, needed(calib, "block_influence"))
        return _spread(model, {part: 1 - cosines / n for part, (cosines, n) in turned.items()})


block_influence = BlockInfluence()


@register("angular_distance")
@dataclass(frozen=True)
class AngularDistance:
    """The least arccos(cos(X_l, X_l+n)) / pi among the runs of n blocks that a block is part of. Needs data, no labels.

    So the n blocks of lowest score are the run whose removal turns the stream least. Gromov et al. 2024, arXiv
    2403.17887, eq. 4; the paper looks at the last token of each sequence (`last_only`), here all of them count.
    """

    n: int = 1
    last_only: bool = False

    def __call__(self, model: nn.Module, calib: Calibration | None = None) -> Scores:
        finite(prunable(model))
        found = blocks(model)
        if len({b.stack for b in found}) > 1:
            paths = ", ".join(dict.fromkeys(b.stack for b in found))
            raise PruneError(f"angular distance looks at runs of blocks in one stack, and there are several: {paths}")
        if not isinstance(self.n, int) or not 1 <= self.n < len(found):
            raise PruneError(f"angular distance of n={self.n!r} blocks: the model has {len(found)}, give 1 to one less")
        angles = self.angles(model, needed(calib, "angular_distance"))
        # of the runs that hold block i
        least = [min(angles[max(i - self.n + 1, 0) : i + 1]) for i in range(len(found))]
        return _spread(model, {(b.path,): a for b, a in zip(found, least, strict=True)})

    def angles(self, model: nn.Module, calib: Calibration) -> list[float]:
        """The distance over n blocks, for each block a run can start from."""
        found = blocks(model)
        sums, count = [0.0] * (len(found) - self.n + 1), 0
        stream: list[Tensor] = []

        def close(_: int) -> None:
            nonlocal count
            kept = [x[:, -1:] if self.last_only else x for x in stream]
            for start in range(len(sums)):
                cos = _cosines(kept[start], kept[start + self.n])
                sums[start] += float(cos.clamp(-1, 1).arccos().sum()) / math.pi
            count += kept[0][..., 0].numel()
            stream.clear()

        with while_in(_recorded(found, stream)):
            _run(model, calib, close)
        return [s / count for s in sums]


angular_distance = AngularDistance()


@register("glu_peak_to_peak")
def glu_peak_to_peak(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """(max + |min|) of a neuron's gate row plus the same of its up row. Needs no data; made for gated MLPs.

    A range only where the smallest weight is negative, as it nearly always is. Only gate and up rows get scores, each
    weight an equal part of its row's, so that a unit of `granularity.neurons` is worth the formula to the digit.
    From OptiPFair (Martra 2025).
    """
    weights = finite(prunable(model))
    mlps = [b.mlp[0] for b in blocks(model) if b.mlp]
    if not is_decoder(model):
        raise PruneError(f"{type(model).__name__} has other MLPs in its blocks than gated ones: take magnitude")
    paths = [f"{mlp}.{name}.weight" for mlp in mlps for name in ("gate_proj", "up_proj")]
    return {path: _peak_to_peak(weights[path]) for path in paths}


def _peak_to_peak(weight: Tensor) -> Tensor:
    """(out, in) -> (out, in): the range of each row, in equal parts; of half precision in float32, without new ties."""
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    rows = weight.amax(1, keepdim=True) + weight.amin(1, keepdim=True).abs()
    return (rows / weight.shape[1]).expand_as(weight)


Turned: TypeAlias = dict[tuple[str, ...], tuple[float, int]]  # sums of cosines and how many, by the paths of a part


def _add(turned: Turned, part: tuple[str, ...], before: Tensor, after: Tensor) -> None:
    """Count what entered a part, and what left it, in another batch."""
    cos = _cosines(before, after)
    total, n = turned.get(part, (0.0, 0))
    turned[part] = total + float(cos.sum()), n + cos.numel()


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1, eps=1e-12)


def _watched(found: list[Block], of: str, turned: Turned) -> Iterator[Any]:
    """Compare the stream before and after each block, or each block's attentions or MLP, as the model runs: hooks."""
    for block in found:
        if of == "layers":
            yield block.module.register_forward_hook(partial(_compare, block.path, turned), with_kwargs=True)
        elif block.parts(of):
            yield from _around(block, of, turned)


def _compare(
    path: str, turned: Turned, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
) -> None:
    before, after = entering(args, kwargs), leaving(out)
    if before.shape != after.shape:
        raise PruneError(f"{path} gives {shape(after)} for {shape(before)}: they can't be compared")
    _add(turned, (path,), before, after)


def _around(block: Block, of: str, turned: Turned) -> list[Any]:
    """Hooks that see the stream x which a norm before a part is given, and x plus what the part adds."""
    normed: list[tuple[Tensor, Tensor]] = []  # of each norm what it is given, and what it gives
    ends: list[tuple[tuple[str, ...], Tensor, Tensor]] = []  # of each part the stream before, and after

    def norm(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        normed.append((entering(args, kwargs), out))

    def part(paths: tuple[str, ...]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            x = next((x for x, given in normed if given is entering(args, kwargs)), None)
            if x is not None and x.shape == leaving(out).shape:
                ends.append((paths, x, x + leaving(out)))

        return hook

    def done(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        stream = [*(x for x, _ in normed), leaving(out)]
        for paths, x, after in ends:
            if any(s.shape == after.shape and torch.allclose(s, after, rtol=1e-3, atol=1e-5) for s in stream):
                _add(turned, paths, x, after)
        lacking = [paths[0] for paths in block.parts(of) if paths not in [seen for seen, *_ in ends]]
        lacking += [paths[0] for paths, *_ in ends if paths not in turned]
        normed.clear()
        ends.clear()
        if lacking:
            raise PruneError(
                f"{block.path} has other norms than one right before each part, or more than {lacking[0]} between two: "
                'what it adds to the stream is not known. Take BlockInfluence(of="layers")'
            )

    inside = {f"{block.path}.{name}": m for name, m in block.module.named_modules() if name}
    own = [m for path, m in inside.items() if is_norm(m)]
    handles = [m.register_forward_hook(norm, with_kwargs=True) for m in own]
    handles += [inside[p[0]].register_forward_hook(part(p), with_kwargs=True) for p in block.parts(of) if len(p) == 1]
    return [*handles, block.module.register_forward_hook(done)]


def _recorded(found: list[Block], stream: list[Tensor]) -> Iterator[Any]:
    """Note what enters the first block, and what leaves each: hooks."""
    enters = found[0].module.register_forward_pre_hook
    yield enters(lambda m, args, kwargs: stream.append(entering(args, kwargs)), with_kwargs=True)
    for block in found:
        yield block.module.register_forward_hook(lambda m, args, out: stream.append(leaving(out)))


def _run(model: nn.Module, calib: Calibration, after: Callable[[int], None] | None = None) -> None:
    """All samples through the model, one at a time and without padding; `after` each."""
    with undisturbed(model), uncached(model), torch.no_grad():
        for number, given in enumerate(sequences(model, calib)):
            attempt(model, given)
            if after:
                after(number)


def _spread(model: nn.Module, of: dict[tuple[str, ...], float]) -> Scores:
    """An equal part of each part's score for each entry of its parameters; it takes no memory."""
    tensors = {p.name: p.tensor for p in places(model) if isinstance(p.tensor, nn.Parameter)}
    scores: Scores = {}
    for paths, score in of.items():
        own = {n: p for n, p in tensors.items() if n.startswith(tuple(f"{path}." for path in paths))}
        count = sum(p.numel() for p in own.values())
        scores |= {n: torch.full((), score / count, dtype=torch.float64).expand(p.shape) for n, p in own.items()}
    return scores
