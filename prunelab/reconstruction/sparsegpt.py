"""SparseGPT: prune the columns of a weight one after the other, and let those to the right take over."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..allocation import NM, allocate, check_target
from ..core import Group, Member, PruneError, shape
from ..selection import lowest_where_gone

HARDER = 10.0  # times the damping, where the Hessian was not positive definite
ATTEMPTS = 4


def sparsegpt(
    weight: Tensor,
    gram: Tensor,
    sparsity: float | NM,
    *,
    damping: float = 0.01,
    columns: int = 128,
    name: str = "weight",
    within: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A pruned and repaired weight (out, in), and what it keeps (out, in) bool.

    It minimizes norm(W X - W' X)^2 for the layer's inputs X, given as the Gram matrix XX' (in, in), half the Hessian.
    With U the upper Cholesky factor of its inverse, a weight in column j costs w^2 / U_jj^2; each block of `columns`
    loses its cheapest, exactly the sparsity, or NM(n, m) of each m in a row; then, column by column, the error w / U_jj
    of what goes is spread over the columns not reached yet, by row j of U. An input that was always 0 keeps no weight.
    within: what an earlier pruning kept (out, in) bool. The others count as 0 from the start and stay so, and as part
    of the sparsity: of columns, or of m in a row, that have lost more already nothing more goes.

    Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1; the damping, a share of the mean diagonal, from §3.4.
    Raises PruneError for a Gram matrix of another size, or one that no damping makes positive definite.

    >>> x = torch.tensor([[1.0, 1.0], [1.0, -1.0]])  # two inputs that have nothing in common: nothing is made up for
    >>> weight, keep = sparsegpt(torch.tensor([[3.0, 1.0]]), x @ x.T, 0.5)
    >>> weight, keep
    (tensor([[3., 0.]]), tensor([[ True, False]]))
    """
    scope = sparsity if isinstance(sparsity, NM) else "layer"
    share = check_target(None if isinstance(sparsity, NM) else sparsity, scope)
    if isinstance(sparsity, NM) and columns % sparsity.m:
        raise PruneError(f"blocks of {columns} columns cut through the {sparsity.m} of {sparsity}: give a multiple")
    factor = inverse_factor(gram, weight, damping=damping, name=name)
    new = weight.detach().double().clone()  # in float32 rounding changes who goes, and later blocks make more of it
    new[:, gram.diagonal() == 0] = 0
    keep = kept_before(weight, within, name)
    new.masked_fill_(~keep, 0)
    for start in range(0, new.shape[1], columns):
        here = slice(start, start + columns)
        part, u = new[:, here], factor[here, here]
        costs = part.square() / u.diagonal().square()
        if not isinstance(sparsity, NM):
            keep[:, here] = cheapest_gone(costs, keep[:, here], share, scope)
        errors = _sweep(part, u, keep[:, here], sparsity if isinstance(sparsity, NM) else None)
        new[:, start + columns :] -= errors @ factor[here, start + columns :]
    return new.to(weight.dtype), keep


def inverse_factor(gram: Tensor, weight: Tensor, *, damping: float = 0.01, name: str = "weight") -> Tensor:
    """U (in, in), upper triangular, with U'U the inverse of the Gram matrix plus damping * its mean diagonal.

    Too few inputs, or rounding, can leave it short of positive definite: then the damping is raised tenfold, with a
    warning, up to three times, before PruneError.

    >>> inverse_factor(torch.diag(torch.tensor([4.0, 16.0])), torch.ones(1, 2), damping=0.0).diag().tolist()
    [0.5, 0.25]
    """
    n = weight.shape[1]
    if gram.shape != (n, n) or not torch.isfinite(gram).all():
        raise PruneError(f"the Gram matrix of {name} {shape(weight)} is {shape(gram)}: give finite numbers, ({n}, {n})")
    for attempt in range(ATTEMPTS):
        damped = gram.double().clone()
        diagonal = damped.diagonal()
        diagonal[diagonal == 0] = 1  # an input that was always 0: its column stands alone
        diagonal += damping * HARDER**attempt * diagonal.mean()
        factor = _factored(damped)
        if factor is not None:
            if attempt:
                warnings.warn(
                    f"the Hessian of {name} {shape(weight)} is not positive definite with damping={damping:g}: took "
                    f"{damping * HARDER**attempt:g}. More calibration text would help",
                    stacklevel=2,
                )
            return factor
    raise PruneError(
        f"the Hessian of {name} {shape(weight)} is not positive definite, not even with damping="
        f"{damping * HARDER ** (ATTEMPTS - 1):g}: give more calibration inputs than the layer's {n}, or more damping"
    )


def _factored(matrix: Tensor) -> Tensor | None:
    """chol(matrix^-1)', or None if the matrix, or its inverse as computed, is not positive definite.

    The matrix is overwritten: of a wide layer it is the largest thing in memory after the model.
    """
    failed = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix, out=(matrix, failed))
    if failed:
        return None
    inverse = torch.cholesky_inverse(matrix)
    torch.linalg.cholesky_ex(inverse, upper=True, out=(inverse, failed))
    return None if failed or not torch.isfinite(inverse).all() else inverse


def kept_before(weight: Tensor, within: Tensor | None, name: str) -> Tensor:
    """A copy of `within`, checked; all of the weight if it is None."""
    if within is None:
        return torch.ones_like(weight, dtype=torch.bool)
    if within.shape != weight.shape or within.dtype != torch.bool:
        raise PruneError(
            f"within of {name} {shape(weight)} is {within.dtype} {shape(within)}: give bools of its shape, True = keep"
        )
    return within.to(weight.device, copy=True)


def cheapest_gone(costs: Tensor, kept: Tensor, share: float | None, scope: str | NM) -> Tensor:
    """What stays (rows, columns) if what is not kept, then the cheapest of a table go; ties go by index."""
    group = Group("costs", costs.numel(), (Member("costs"),))
    stays = allocate({"costs": lowest_where_gone(costs, kept)}, [group], share, scope)["costs"]
    return stays.view(costs.shape) & kept


def _sweep(part: Tensor, u: Tensor, keep: Tensor, pattern: NM | None) -> Tensor:
    """Prune a block's columns (rows, columns) in place, left to right; the errors of each, for what lies beyond."""
    errors = torch.zeros_like(part)
    for j in range(part.shape[1]):
        if pattern is not None and j % pattern.m == 0:  # chosen late, of weights that were repaired so far
            ahead = slice(j, j + pattern.m)
            costs = part[:, ahead].square() / u.diagonal()[ahead].square()
            keep[:, ahead] = cheapest_gone(costs, keep[:, ahead], None, pattern)
        lost = torch.where(keep[:, j], 0, part[:, j])
        errors[:, j] = lost / u[j, j]
        part[:, j:] -= errors[:, j, None] * u[j, j:]  # column j itself: w - w / u_jj * u_jj, and exactly 0 below
        part[:, j].masked_fill_(~keep[:, j], 0)
    return errors
