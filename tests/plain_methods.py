"""Wanda and SparseGPT once more, written from the papers' formulas alone: what the library's must agree with.

Nothing of the library's own methods is used, no blocks of lazy updates, no shared selection: numbers in float64, each
step as the paper writes it. Slower, and short.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def wanda(weight: Tensor, x: Tensor, pattern, within=True) -> Tensor:
    """|W| * norm2(X_j); the lower half of each row goes, or of each four (eight): arXiv 2306.11695, eq. 1.

    What is not within an earlier mask goes first, and always.
    """
    within = torch.as_tensor(within).expand(weight.shape)
    score = torch.where(within, weight.abs().double() * x.double().norm(dim=0), -1)
    length = weight.shape[1] if pattern == 0.5 else pattern[1]
    goes = length // 2 if pattern == 0.5 else pattern[1] - pattern[0]
    new = weight.clone()
    for begin in range(0, weight.shape[1], length):
        lowest = score[:, begin : begin + length].topk(goes, largest=False).indices + begin
        new.scatter_(1, lowest, 0)
    return torch.where(within, new, 0)


def sparsegpt(weight: Tensor, x: Tensor, pattern, columns: int = 128, within=True) -> Tensor:
    """Algorithm 1 of arXiv 2301.00774: H = XX' + lambda I, and rows of the Cholesky factor of its inverse.

    What is not within an earlier mask is 0 from the start, goes first, and always.
    """
    within = torch.as_tensor(within).expand(weight.shape)
    weight = torch.where(within, weight, 0)
    w, h = weight.double().clone(), x.double().T @ x.double()
    h += 0.01 * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    u = torch.linalg.cholesky(torch.linalg.inv(h)).T  # upper: H^-1 = L L' = U' U
    gone = torch.zeros_like(w, dtype=torch.bool)
    for j in range(w.shape[1]):
        step = columns if pattern == 0.5 else pattern[1]
        if j % step == 0:
            cost = w[:, j : j + step] ** 2 / u.diagonal()[j : j + step] ** 2
            cost = torch.where(within[:, j : j + step], cost, -1)
            if pattern == 0.5:
                chosen = torch.zeros(cost.numel(), dtype=torch.bool)
                chosen[cost.flatten().argsort()[: cost.numel() // 2]] = True
                gone[:, j : j + step] = chosen.view(cost.shape)
            else:
                gone[:, j : j + step].scatter_(1, cost.argsort(1)[:, : pattern[1] - pattern[0]], True)
            gone |= ~within
        error = torch.where(gone[:, j], w[:, j], 0.0) / u[j, j]
        w[:, j:] -= error[:, None] * u[j, j:]
    return torch.where(gone, 0.0, w).to(weight.dtype)


def layer_by_layer(model: nn.Module, rows: Iterable[Tensor], method, pattern) -> None:
    """Every linear layer of a Llama's blocks, each block on what comes out of the pruned ones before it."""
    inner = model.model
    with torch.no_grad():
        hidden = [inner.embed_tokens(row[None]) for row in rows]
        where = [inner.rotary_emb(x, position_ids=torch.arange(x.shape[1])[None]) for x in hidden]
        for block in inner.layers:
            seen: dict[nn.Module, list[Tensor]] = {}
            hooks = [
                m.register_forward_hook(lambda m, args, out, to=seen: to.setdefault(m, []).append(args[0][0]))
                for m in block.modules()
                if isinstance(m, nn.Linear)
            ]
            for x, at in zip(hidden, where, strict=True):
                block(x, position_embeddings=at)
            for hook in hooks:
                hook.remove()
            for layer, inputs in seen.items():
                layer.weight.copy_(method(layer.weight, torch.cat(inputs), pattern))
            hidden = [block(x, position_embeddings=at) for x, at in zip(hidden, where, strict=True)]
