"""Criteria that need no gradient: of the weights alone, or with what they multiply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..calibration import Calibration, input_norms
from ..calibration.samples import needed
from ..core import PruneError, Scores, lookup_all, places, shape
from ..layers import BATCH_NORM, check_layout, from_out_in, layout_of, prunable, to_out_in
from .registry import PartialScores, finite, register


@register("magnitude")
def magnitude(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|w|: what is small contributes little. Summed over a structure it is the structure's L1 norm.

    Han et al. 2015, arXiv 1506.02626; for filters Li et al. 2017, arXiv 1608.08710. Needs no data.

    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -0.5]])
    >>> magnitude(layer)["weight"]
    tensor([[3.0000, 0.5000]])
    """
    return {name: w.abs() for name, w in finite(prunable(model)).items()}


@register("magnitude_l2")
def magnitude_l2(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """w^2: ranks single weights as |w| does; summed over a structure it ranks as the structure's L2 norm.

    Needs no data. Half-precision weights are squared in float32, where small squares don't vanish.

    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -0.5]])
    >>> magnitude_l2(layer)["weight"]
    tensor([[9.0000, 0.2500]])
    """
    return {name: w.float().square() if w.itemsize < 4 else w.square() for name, w in finite(prunable(model)).items()}


@register("lamp")
def lamp(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """w_u^2 / sum of w_v^2 over all v of the layer that rank at or above u: what is lost, relative to what would stay.

    Within a layer it ranks as |w| does; across layers it makes them comparable, so that a global scope finds each
    layer's share, and none loses its last weight before all others have. Lee et al. 2021, arXiv 2010.07611.

    >>> layer = nn.Linear(3, 1)
    >>> layer.weight.data = torch.tensor([[1.0, -2.0, 0.0]])  # 1/(1 + 4), 4/4, 0/(0 + 1 + 4)
    >>> lamp(layer)["weight"]
    tensor([[0.2000, 1.0000, 0.0000]])
    """
    return {name: _lamp(w) for name, w in magnitude(model, calib).items()}


def _lamp(weight: Tensor) -> Tensor:
    squares = weight.double().square().reshape(-1)
    ascending, order = squares.sort(stable=True)
    above = ascending.flip(0).cumsum(0).flip(0)  # sum over v >= u, summed from the top
    scores = torch.zeros_like(squares)
    scores[order] = torch.where(above > 0, ascending / above, 0.0)  # a layer of zeros: nothing is lost
    return scores.to(torch.promote_types(weight.dtype, torch.float32)).view(weight.shape)


SEED_OFFSET = 0x5EED_CAFE  # added to every seed: torch draws a network's weights from the stream of its seed itself


@register("random")
@dataclass(frozen=True)
class Random:
    """A uniform random score: the control that every criterion must beat. The same seed, the same scores.

    They are independent of the weights of a network that was initialised with the same seed.

    >>> layer = nn.Linear(2, 1)
    >>> torch.equal(Random(seed=3)(layer)["weight"], Random(seed=3)(layer)["weight"])
    True
    """

    seed: int = 0

    def __call__(self, model: nn.Module, calib: Calibration | None = None) -> Scores:
        source = torch.Generator()  # of our own: no one's draws change
        source.manual_seed((self.seed + SEED_OFFSET) % (1 << 63))
        return {name: torch.rand(w.shape, generator=source).to(w.device) for name, w in finite(prunable(model)).items()}


random = Random()


@register("bn_slimming")
def bn_slimming(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|gamma| of BatchNorm: the scale of a channel, whatever filter made it. Network slimming. Needs no data.

    The scores are the BatchNorms' own, not their filters': a structure that contains a BatchNorm channel is worth its
    gamma to the digit, with nothing of the layers that read it mixed in, and single weights get no score. The paper
    trains with an L1 penalty on gamma, without which they differ little, and compares all layers by one threshold:
    allocate(..., reduce="mean"). Liu et al. 2017, arXiv 1708.06519.

    >>> norm = nn.BatchNorm1d(2)
    >>> norm.weight.data = torch.tensor([-2.0, 0.5])
    >>> bn_slimming(norm)["weight"]
    tensor([2.0000, 0.5000])
    """
    norms = [p for p in places(model) if isinstance(p.module, BATCH_NORM)]
    gammas = {p.name: p.tensor for p in norms if p.attribute == "weight"}
    if not gammas:
        raise PruneError(
            f"{type(model).__name__} has no BatchNorm with a scale (affine=True), and bn_slimming is its gamma: take "
            "magnitude or fpgm, which look at the filters themselves"
        )
    return {name: gamma.abs() for name, gamma in finite(gammas).items()}


@register("fpgm")
def fpgm(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """sum_j norm(F_i - F_j) over the filters (or neurons) j of the layer: what lies amid the others can be replaced.

    On signed weights. Each weight gets an equal part of its filter's distance, so that the filter's weights add up
    to it. The layers that read a filter add the same to each of its siblings, which ranks nobody: compare within
    a layer, as the paper does, where distances mean the same. He et al. 2019, arXiv 1811.00250. Needs no data.

    >>> layer = nn.Linear(1, 3)
    >>> layer.weight.data = torch.tensor([[0.0], [1.0], [5.0]])  # 1 + 5, 1 + 4, 5 + 4
    >>> fpgm(layer)["weight"].flatten()
    tensor([6., 5., 9.])
    """
    weights = finite(prunable(model))
    layouts = {name: layout_of(sharing[0]) for name, sharing in lookup_all(model, weights).items()}
    for name, w in weights.items():
        check_layout(name, w.shape, layouts[name], "fpgm")
    return {name: _among_siblings(w, layouts[name]) for name, w in weights.items()}


def _among_siblings(weight: Tensor, layout: int) -> Tensor:
    """The scores of a layer's filters; a neuron's siblings are those of its own expert."""
    filters = to_out_in(weight, layout)
    layers = [filters] if layout >= 0 else filters.chunk(len(weight))
    return from_out_in(torch.cat([_spread(layer) for layer in layers]), layout, weight.shape).contiguous()


def _spread(filters: Tensor) -> Tensor:
    """(filters, ...): each filter's distance from all the others, in equal parts on its weights."""
    rows = filters.flatten(1).double()
    each = torch.cdist(rows, rows).sum(1) / rows.shape[1]
    laid = each.view(-1, *[1] * (filters.dim() - 1)).expand_as(filters)
    return laid.to(torch.promote_types(filters.dtype, torch.float32), memory_format=torch.contiguous_format, copy=True)


@register("wanda")
def wanda(model: nn.Module, calib: Calibration | None = None) -> Scores:
    """|W_ij| * norm(X_j): how large the weight's share of an output is on real inputs. Needs inputs, no labels.

    To be compared within each output: scope="row". X_j is input j over all samples and positions; of a convolution,
    column j of the unfolded input, that is, input channel and kernel position. Padding that a dict's `attention_mask`
    marks does not count. A layer whose inputs are not seen (`input_norms` warns of it: experts, recurrent layers) gets
    no scores, and `prune` leaves it as it is. Sun et al. 2023, arXiv 2306.11695.

    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -0.5]])
    >>> inputs = torch.tensor([[1.0, 3.0], [0.0, 4.0]])  # columns of norm 1 and 5
    >>> wanda(layer, Calibration.of((inputs, torch.zeros(2))))["weight"]
    tensor([[3.0000, 2.5000]])
    """
    weights = finite(prunable(model))
    norms = input_norms(model, needed(calib, "wanda"))
    scores = {name: weights[name].abs() * norm for name, norm in norms.items()}
    return scores if len(scores) == len(weights) else PartialScores(scores)


def _moved(weight: Tensor, before: Tensor) -> Tensor:
    """|w (w - w0)|; of half precision in float32, where small products don't vanish."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(wide) * (weight.to(wide) - before.to(wide))).abs()


@register("mama")
@dataclass(frozen=True, eq=False, repr=False)
class Mama:
    """|w (w - w0)|: magnitude times movement since the weights w0 that fine-tuning started from. Needs no data.

    Make it with `Mama.of(pretrained)`. The idea, to weigh magnitude and movement together, is that of MAMA (Jiang,
    Fu and Zhang, arXiv 2505.14052). This formula is ours: the paper gives none that we could find.

    >>> layer = nn.Linear(2, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -0.5]])
    >>> before = Mama.of(layer)
    >>> layer.weight.data = torch.tensor([[3.0, -1.0]])
    >>> before(layer)["weight"]  # one has not moved
    tensor([[0.0000, 0.5000]])
    """

    w0: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if not isinstance(self.w0, Mapping) or not all(isinstance(w, Tensor) for w in self.w0.values()):
            raise PruneError(f"w0 is a {type(self.w0).__name__}, and no tensors by name: take Mama.of(pretrained)")

    @classmethod
    def of(cls, pretrained: nn.Module) -> Mama:
        """The criterion that measures movement from the present weights of a model, which are copied."""
        return cls({name: w.clone() for name, w in finite(prunable(pretrained)).items()})

    def __call__(self, model: nn.Module, calib: Calibration | None = None) -> Scores:
        weights = finite(prunable(model))
        for name, w in weights.items():
            self._check(model, name, w)
        return {name: _moved(w, self.w0[name].to(w.device)) for name, w in weights.items()}

    def _check(self, model: nn.Module, name: str, weight: Tensor) -> None:
        before = self.w0.get(name)
        if before is None or before.shape != weight.shape:
            given = "nothing" if before is None else shape(before)
            raise PruneError(
                f"w0 is of another model: for {name} {shape(weight)} of this {type(model).__name__} it has {given}. "
                "Take the same network before its fine-tuning: Mama.of(pretrained)"
            )

    def __repr__(self) -> str:
        return f"Mama(w0 of {sum(w.numel() for w in self.w0.values()):,} weights in {len(self.w0)} tensors)"
