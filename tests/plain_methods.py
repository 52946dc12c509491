"""Wanda, SparseGPT and the scores of neurons, written from the papers' formulas alone: what ours must agree with.

Nothing of the library's own methods is used, no blocks of lazy updates, no shared selection: numbers in float64, each
step as the paper writes it. Slower, and short.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def wanda(weight: Tensor, x: Tensor, pattern, within=True) -> Tensor:
    """|W| * norm2(X_j); the lower half of each row goes, or of each four (eight): arXiv 2306.11695, eq. 1.

    What is not within an earlier mask goes first, and always.
    """
    within = torch.as_tensor(within).expand(weight.shape)
    score = torch.where(within, weight.abs().double() * x.double().norm(dim=0), -1)
    length = weight.shape[1] if pattern == 0.5 else pattern[1]
    goes = length // 2 if pattern == 0.5 else pattern[1] - pattern[0]
    lowest = score.unflatten(1, (-1, length)).topk(goes, largest=False).indices  # (out, in / length, goes)
    new = weight.unflatten(1, (-1, length)).scatter(2, lowest, 0).flatten(1)
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


# --- a Llama without whole blocks and neurons: plain torch and transformers, every score as its paper writes it ---

NEURONS = (
    "magnitude",
    "magnitude_l2",
    "random",
    "gradient",
    "taylor",
    "taylor_sum",
    "fisher",
    "grasp",
    "wanda",
    "fpgm",
    "glu_peak_to_peak",
)  # what scores neurons; block_influence, head_importance and reap are of other things, and synflow takes no tokens


def loss_of(model: nn.Module, row: Tensor) -> Tensor:
    """The mean surprise of the next token over one window of tokens."""
    logits = model(input_ids=row[None, :-1], use_cache=False).logits[0]
    return nn.functional.cross_entropy(logits, row[1:])


def perplexity(model: nn.Module, rows: Tensor) -> float:
    """The exponential of the mean loss over windows of the same length."""
    with torch.no_grad():
        return float(torch.stack([loss_of(model, row) for row in rows]).double().mean().exp())


def block_influence(model: nn.Module, rows: Iterable[Tensor]) -> Tensor:
    """1 - E cos(X_i, X_i+1) of each block i, over all tokens: arXiv 2403.03853, section 3.2."""
    inner, cosines = model.model, []
    with torch.no_grad():
        for row in rows:
            x = inner.embed_tokens(row[None])
            at = inner.rotary_emb(x, position_ids=torch.arange(len(row))[None])
            for block in inner.layers:
                before, x = x, block(x, position_embeddings=at)
                cosines.append(nn.functional.cosine_similarity(before.double(), x.double(), dim=-1)[0])
    return 1 - torch.stack(cosines).view(-1, len(inner.layers), cosines[0].numel()).mean((0, 2))


def without_blocks(model: nn.Module, gone: Iterable[int]) -> nn.Module:
    """A new Llama of the blocks that stay."""
    kept = [i for i in range(len(model.model.layers)) if i not in set(gone)]
    config = type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": len(kept)})
    small = type(model)(config).eval()
    for new, old in enumerate(kept):
        small.model.layers[new].load_state_dict(model.model.layers[old].state_dict())
    small.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    small.model.norm.load_state_dict(model.model.norm.state_dict())
    small.tie_weights()
    return small


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """All in the blocks, in their order."""
    return [m for m in model.model.layers.modules() if isinstance(m, nn.Linear)]


def entry_scores(name: str, model: nn.Module, rows: Tensor) -> list[Tensor]:
    """A score for every weight of every linear layer in the blocks, by the formula of that name."""
    weights = [layer.weight.detach() for layer in linear_layers(model)]
    if name == "magnitude":
        return [w.abs() for w in weights]
    if name == "magnitude_l2":
        return [w**2 for w in weights]
    if name == "random":  # the seed of the library's `Random(0)`
        dice = torch.Generator().manual_seed(0x5EED_CAFE)
        return [torch.rand(w.shape, generator=dice) for w in weights]
    if name == "fpgm":  # the distance of a row from all others of its layer, a part of it on each entry
        rows_apart = [torch.cdist(w.double(), w.double()).sum(1) for w in weights]
        return [(d / w.shape[1])[:, None].expand_as(w) for d, w in zip(rows_apart, weights, strict=True)]
    return _by_data(name, model, rows, weights)


def owl(model: nn.Module, rows: Tensor, sparsity: float, m: float, span: float) -> list[float]:
    """A share for each block, arXiv 2310.05175 as its code has it; all blocks are of one size."""
    scores = entry_scores("wanda", model, rows)
    each = len(scores) // len(model.model.layers)
    ratios = []
    for i in range(0, len(scores), each):
        block = torch.cat([s.double().flatten() for s in scores[i : i + each]])
        ratios.append(int((block > m * block.mean()).sum()) / len(block))
    scaled = [(r - min(ratios)) * 2 * span / (max(ratios) - min(ratios)) for r in ratios]
    return [1 - (s - sum(scaled) / len(scaled) + (1 - sparsity)) for s in scaled]


def _by_data(name: str, model: nn.Module, rows: Tensor, weights: list[Tensor]) -> list[Tensor]:
    layers = linear_layers(model)
    if name == "wanda":
        return [w.abs() * norm for w, norm in zip(weights, _input_norms(model, layers, rows), strict=True)]
    if name == "fisher":  # 1/2 E[g^2] w^2, g of single windows
        squares = _mean_square_gradients(model, layers, rows)
        return [s * w**2 / 2 for s, w in zip(squares, weights, strict=True)]
    g = _gradient(model, layers, rows)
    if name == "gradient":
        return [x.abs() for x in g]
    if name == "grasp":
        return [w * hg for w, hg in zip(weights, _hessian_times(model, layers, rows, g), strict=True)]
    product = [w * x for w, x in zip(weights, g, strict=True)]
    return product if name == "taylor_sum" else [x.abs() for x in product]


def _gradient(model: nn.Module, layers: list[nn.Linear], rows: Tensor) -> list[Tensor]:
    model.zero_grad()
    for row in rows:
        (loss_of(model, row) / len(rows)).backward()
    found = [layer.weight.grad.clone() for layer in layers]
    model.zero_grad()
    return found


def _mean_square_gradients(model: nn.Module, layers: list[nn.Linear], rows: Tensor) -> list[Tensor]:
    squares = [torch.zeros_like(layer.weight) for layer in layers]
    for row in rows:
        for square, g in zip(squares, _gradient(model, layers, row[None]), strict=True):
            square += g**2 / len(rows)
    return [s.detach() for s in squares]


def _hessian_times(model: nn.Module, layers: list[nn.Linear], rows: Tensor, fixed: list[Tensor]) -> list[Tensor]:
    """The mean loss differentiated twice: (dg/dw) fixed."""
    total, weights = [torch.zeros_like(g) for g in fixed], [layer.weight for layer in layers]
    with sdpa_kernel(SDPBackend.MATH):  # no other has a second derivative
        for row in rows:
            first = torch.autograd.grad(loss_of(model, row), weights, create_graph=True)
            product = sum((f * g).sum() for f, g in zip(fixed, first, strict=True))
            for t, hg in zip(total, torch.autograd.grad(product, weights), strict=True):
                t += hg / len(rows)
    return total


def _input_norms(model: nn.Module, layers: list[nn.Linear], rows: Tensor) -> list[Tensor]:
    squares = {layer: torch.zeros(layer.in_features, dtype=torch.float64) for layer in layers}

    def note(layer: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        squares[layer] += args[0][0].double().square().sum(0)

    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        for row in rows:
            model(input_ids=row[None, :-1], use_cache=False)
    for hook in hooks:
        hook.remove()
    return [squares[layer].sqrt() for layer in layers]


def neuron_scores(name: str, model: nn.Module, rows: Tensor) -> list[Tensor]:
    """Of each block (neurons,): the scores of a neuron's gate row, up row and down column added up."""
    mlps = [block.mlp for block in model.model.layers]
    if name == "glu_peak_to_peak":  # (max + |min|) of the gate row, and of the up row
        ranges = [[m.weight.amax(1) + m.weight.amin(1).abs() for m in (mlp.gate_proj, mlp.up_proj)] for mlp in mlps]
        return [(gate + up).detach() for gate, up in ranges]
    of = dict(zip(linear_layers(model), entry_scores(name, model, rows), strict=True))
    found = [
        of[m.gate_proj].double().sum(1) + of[m.up_proj].double().sum(1) + of[m.down_proj].double().sum(0) for m in mlps
    ]
    return [s.abs() for s in found] if name == "taylor_sum" else found


def neurons_kept(scores: list[Tensor], share: float, scope: str) -> list[Tensor]:
    """Of each block the indices of the neurons that stay: the lowest of each, or of all against their block's mean."""
    if scope == "layer":
        return [s.argsort(stable=True)[round(share * len(s)) :].sort().values for s in scores]
    everything = torch.cat([s / s.abs().mean() for s in scores])
    stays = torch.ones(len(everything), dtype=torch.bool)
    stays[everything.argsort(stable=True)[: round(share * len(everything))]] = False
    return [own.nonzero()[:, 0] for own in stays.split([len(s) for s in scores])]


def without_neurons(model: nn.Module, kept: list[Tensor]) -> nn.Module:
    """The Llama itself, its MLPs cut to the neurons that stay."""
    for block, stays in zip(model.model.layers, kept, strict=True):
        for layer, dim in ((block.mlp.gate_proj, 0), (block.mlp.up_proj, 0), (block.mlp.down_proj, 1)):
            layer.weight = nn.Parameter(layer.weight.detach().index_select(dim, stays))
            layer.out_features, layer.in_features = layer.weight.shape
    return model
