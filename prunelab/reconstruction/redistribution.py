"""Move the value of pruned weights to those that stay: as MAMA means it, and as its code was published."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..core import PruneError, check_loaded, lookup_all, shape
from ..layers import check_layout, from_out_in, layout_of, to_out_in
from ..masking import apply

SCOPES = ("row", "layer")


def redistributed(weight: Tensor, mask: Tensor, scope: str = "row") -> Tensor:
    """The weight with zeros where the mask is False, and what stood there shared out equally among the kept.

    Every row (all that feeds one output), or with scope="layer" the whole tensor, keeps its sum, to rounding: with R
    the sum of its removed weights and k the number kept, each kept weight becomes w + R/k. A row that keeps nothing
    has no one to give it to, and becomes 0. Rows lie along the first dimension: turn a
    transposed convolution's weight and mask, as `redistribute` does.

    MAMA means to move the value of unimportant weights to significant ones: Jiang, Fu and Zhang, arXiv 2505.14052.
    The rule, equal parts within a row, is ours; for what their published code does instead see `as_published`.

    >>> redistributed(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[False, True, True]]))  # 1 shared by two
    tensor([[0.0000, 2.5000, 3.5000]])
    """
    _check(weight, mask, scope)
    rows = weight.detach().double().reshape(len(weight) if scope == "row" else 1, -1)  # (rows, entries)
    kept = mask.reshape(rows.shape)
    removed = rows.masked_fill(kept, 0).sum(1, keepdim=True)  # R, (rows, 1)
    moved = (rows + removed / kept.sum(1, keepdim=True).clamp(min=1)).masked_fill(~kept, 0)
    # The same number added to weights of a size is rounded the same way each time, and the errors add up: the first
    # heir takes what rounding lost.
    lost = (moved - moved.to(weight.dtype).double()).sum(1, keepdim=True)
    moved = moved.to(weight.dtype).double().scatter_add(1, kept.int().argmax(1, keepdim=True), lost)
    return moved.to(weight.dtype).view(weight.shape)


def as_published(weight: Tensor, mask: Tensor) -> Tensor:
    """MAMA's redistribution in the order of its published code: the pruned weights are zeroed *before* they are summed.

    What is moved is therefore always 0, and the result is that of magnitude pruning alone, to the bit.

    >>> as_published(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[False, True, True]])).tolist()
    [[0.0, 2.0, 3.0]]
    """
    _check(weight, mask, "layer")
    pruned = weight.detach().masked_fill(~mask, 0)
    moved = pruned[~mask].sum()
    return pruned + mask * (moved / mask.sum().clamp(min=1))


def redistribute(model: nn.Module, masks: Mapping[str, Tensor], scope: str = "row") -> nn.Module:
    """Put masks on a model, as `masking.apply` does, and change the kept weights as `redistributed` says.

    Call it once, on masks that are new: again, and the same value is moved a second time. Changes the model, and
    returns it. Raises PruneError, before anything is changed, as `apply` does, and for an unknown scope.

    >>> net = nn.Linear(3, 1, bias=False)
    >>> net.weight.data = torch.tensor([[1.0, 2.0, 3.0]])
    >>> redistribute(net, {"weight": torch.tensor([[False, True, True]])}).weight.tolist()
    [[0.0, 2.5, 3.5]]
    """
    check_loaded(model)
    everywhere = lookup_all(model, masks)
    new = {}
    for name, mask in masks.items():
        place = everywhere[name][0]
        layout, size = layout_of(place), place.tensor.shape
        _check(place.tensor, mask, scope)
        if scope == "row":
            check_layout(name, size, layout, 'scope "row"')
        table = redistributed(to_out_in(place.tensor, layout), to_out_in(mask, layout), scope)
        new[name] = from_out_in(table, layout, size)
    apply(model, masks)
    with torch.no_grad():
        for name, weight in new.items():
            mask, tensor = masks[name], everywhere[name][0].tensor
            tensor.copy_(torch.where(mask, weight, tensor))  # what lies under the mask stays as it was
    return model


def _check(weight: Tensor, mask: Tensor, scope: str) -> None:
    if scope not in SCOPES:
        raise PruneError(f'scope {scope!r}: a sum is conserved within a "row" or a "layer"')
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != weight.shape:
        given = f"{mask.dtype} {shape(mask)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise PruneError(f"the mask is {given}, the weight {shape(weight)}: give bools of the same shape, True = keep")
    if not torch.isfinite(weight).all():
        raise PruneError(f"the weight {shape(weight)} holds NaN or infinities: their sum cannot be moved")
