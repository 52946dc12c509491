"""What operators do to channel numbers where attention heads are looked for: the rules that differ from `operators`.

A view that splits channels keeps a number for every entry, (heads, head_dim). What combines a head's channels with
each other (a rotation, a norm over them, a dot product) ties them, so that a head is one unit; a product of two
activations that both have heads along a dimension ties these, and that is what makes a unit a head. What all heads
share (a norm's weight of one head's width, the keys of multi-query attention) is no head's own, and stays.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import operators
from .operators import RULES, folded, padded, reshaped, varying

SHARED = "is shared by all heads"
HEADS = dict(RULES)  # the rules by name, as in `operators`, with those below in their place


def instead(name: str) -> Any:
    """Use a function where heads are looked for, in place of that for this operator, and for all that it is for."""
    return operators.rule(*(other for other, rule in RULES.items() if rule is RULES[name]), rules=HEADS)


instead("split")(functools.partial(RULES["split"], alike=False))


def together(shadow: Any, ids: Tensor, dims: Any) -> Tensor:
    """Tie all ids along some dimensions, and give the one that stands for them, with size 1 there; 0 if all are."""
    dims = [d for d in dims if ids.shape[d] > 1]
    if not dims:
        return ids
    one = ids.amax(dims, keepdim=True)
    same(shadow, ids, one)
    return one


def same(shadow: Any, a: Tensor, b: Tensor) -> None:
    """Tie ids, where neither is 0: a part of a head may be constant."""
    a, b = torch.broadcast_tensors(a, b)
    there = (a > 0) & (b > 0)
    shadow.tie(a[there], b[there])


def are_heads(shadow: Any, ids: Tensor) -> bool:
    """Whether these are numbers of heads, one each, as attention scores have them."""
    return bool(shadow.heads) and not shadow.heads.keys().isdisjoint(ids.unique().tolist())


def join(shadow: Any, kept: list[Tensor], ids: Tensor) -> None:
    """Add ids to those that a tensor carries. What is laid out over others is theirs only if it meets a single one."""
    for at, other in enumerate(kept):
        mine, theirs = set(varying(ids)), set(varying(other))
        if mine == theirs:
            shadow.tie(ids, other) if len(mine) == 1 else same(shadow, ids, other)
        elif mine < theirs or theirs < mine:
            shadow.laid.append((ids, other) if mine < theirs else (other, ids))
            kept[at] = ids if theirs < mine else other
        elif mine & theirs:
            shadow.freeze(operators.AHEAD, ids, other)
        else:
            continue
        return
    kept.append(ids)


@operators.rule("copy_", rules=HEADS)
def _written(shadow: Any, out: Tensor, x: Tensor, source: Tensor, *_: Any) -> None:
    """A part of a tensor is written, along one of its dimensions: the whole of it has these ids there."""
    whole = x._base
    if whole is None or whole.shape == x.shape:
        meet(shadow, out, x, source)
        return
    apart = [d for d in range(x.dim()) if x.shape[d] != whole.shape[d]] if x.dim() == whole.dim() else []
    for ids in (padded(i, x.dim()) for i in shadow.of(source)):
        if len(apart) != 1 or x.stride() != whole.stride():
            shadow.freeze("is written into a part of a tensor", ids)
            continue
        (d,) = apart
        first = (x.storage_offset() - whole.storage_offset()) // whole.stride(d)
        sizes = [(whole if at == d else ids).shape[at] for at in range(x.dim())]
        full = ids.new_zeros(sizes)
        full.narrow(d, first, x.shape[d]).copy_(ids)
        _beside(shadow, whole, full)


def _beside(shadow: Any, whole: Tensor, full: Tensor) -> None:
    """Add ids of a part to those that a tensor has in its other parts; what all heads share is no head's own."""
    kept = [i for i in shadow.of(whole) if set(varying(i)) != set(varying(full))]
    same = [i for i in shadow.of(whole) if set(varying(i)) == set(varying(full))]
    every = [*kept, torch.where(full > 0, full, same[0]) if same else full]
    widest = max((varying(i) for i in every), key=len)
    shadow.freeze(SHARED, *(i for i in every if varying(i) != widest))
    shadow.put(whole, [i for i in every if varying(i) == widest])


@instead("copy")
def meet(shadow: Any, out: Any, *args: Any, **_: Any) -> None:
    """As `operators.meet`; a tensor of a fixed size along a head's channels leaves it whole."""
    out, given = operators._first(out), [t for t in args if isinstance(t, Tensor)]
    kept: list[Tensor] = []
    for tensor in given:
        for ids in (padded(i, out.dim()) for i in shadow.of(tensor)):
            dims = varying(ids)
            fixed = [d for d in dims for t in given if t is not tensor and operators._fixed(shadow, t, out.dim(), (d,))]
            if set(fixed) == set(dims) and fixed:
                if not are_heads(shadow, ids):
                    shadow.freeze(operators.AHEAD, ids)
                    continue
                shadow.guess(ids, "a tensor as large as the number of heads")
            elif fixed:
                together(shadow, ids, fixed)
            join(shadow, kept, ids)
    shadow.put(out, kept)


# ---- moving entries


@instead("view")
def _view(shadow: Any, out: Tensor, x: Tensor, size: Any, *_: Any) -> None:
    if isinstance(size, torch.dtype):
        RULES["view"](shadow, out, x, size)
        return
    carried = shadow.of(x)
    kept: list[Tensor] = []
    for ids in carried:
        if _laid_beside(ids, carried, tuple(x.shape), tuple(out.shape)):
            shadow.freeze(SHARED, ids)
        else:
            join(shadow, kept, reshaped(ids, tuple(x.shape), tuple(out.shape)))
    shadow.put(out, kept)


def _laid_beside(ids: Tensor, others: list[Tensor], before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether a view merges dimensions along which only others vary with that of some ids: (heads, 1), (1, width)."""
    for old, _ in operators._blocks(before, after):
        mine = set(varying(ids)) & set(old)
        rest = [set(varying(o)) & set(old) for o in others if o is not ids]
        if mine and any(r and not r & mine and min(r) < min(mine) for r in rest):
            return True
    return False


@instead("slice")
def _slice(
    shadow: Any, out: Tensor, x: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> None:
    where = (slice(None),) * (dim % x.dim()) + (slice(start, end, step),)
    shadow.put(out, [i[where] if dim % x.dim() in varying(i) else i for i in shadow.of(x)])


@instead("select")
def _select(shadow: Any, out: Tensor, x: Tensor, dim: int, index: int) -> None:
    dim %= x.dim()
    shadow.put(out, [i.select(dim, index if dim in varying(i) else 0) for i in shadow.of(x)])


@instead("index")
def _index(shadow: Any, out: Tensor, x: Tensor, *args: Any) -> None:
    indices = args[0] if isinstance(args[0], (tuple, list)) else [*[None] * (args[0] % x.dim()), args[1]]
    at = [d for d, index in enumerate(indices) if index is not None]
    if not any(set(varying(i)) & set(at) and len(varying(i)) > 1 for i in shadow.of(x)):
        RULES["index"](shadow, out, x, *args)
        return
    if any(i is not None and i.is_meta for i in indices):
        raise NotImplementedError("an index without values")  # the run is then repeated on values
    full = [torch.ops.aten.index(i.expand(x.shape), indices) for i in shadow.of(x)]
    shadow.put(out, [folded(i) for i in full])


@instead("cat")
def _cat(shadow: Any, out: Tensor, given: Sequence[Tensor], dim: int = 0) -> None:
    dim %= out.dim()
    along = {varying(i) for t in given for i in shadow.of(t) if dim in varying(i)}
    widest = max(along, key=len, default=())
    for tensor in given if len(along) > 1 else ():
        shadow.freeze(SHARED, *(i for i in shadow.of(tensor) if dim in varying(i) and varying(i) != widest))
        shadow.put(tensor, [i for i in shadow.of(tensor) if dim not in varying(i) or varying(i) == widest])
    if not along and _apart(shadow, given, dim):
        shadow.put(out, [torch.cat([shadow.of(t)[0] for t in given], dim)])
    else:
        RULES["cat"](shadow, out, given, dim)


def _apart(shadow: Any, given: Sequence[Tensor], dim: int) -> bool:
    """Whether these are the heads of one tensor, each handled by itself."""
    carried = [shadow.of(t) for t in given]
    if any(len(own) != 1 or t.shape[dim] > 1 for own, t in zip(carried, given, strict=True)):
        return False
    ids = torch.stack([own[0].flatten()[0] for own in carried])
    ends = torch.tensor([p.first + p.size for p in shadow.ports])
    ports = torch.bucketize(ids, ends, right=True)
    return len(ids) > 1 and len(ids.unique()) == len(ids) and len(ports.unique()) == 1


@instead("view_as_complex")
def _complex(shadow: Any, out: Tensor, x: Tensor) -> None:
    shadow.put(out, [together(shadow, i, [x.dim() - 1]).squeeze(-1) for i in shadow.of(x)])


# ---- sums, means and norms


def over(shadow: Any, ids: Tensor, dims: Any, exact: bool = False) -> Tensor | None:
    """What is left of ids that something averages over: of a head's channels the head, of all of them nothing."""
    mine = set(varying(ids)) & set(dims)
    if mine == set(varying(ids)):
        if not exact:
            shadow.average(ids)
        return None
    return together(shadow, ids, sorted(mine))


@instead("reduce")
def reduce(shadow: Any, out: Any, x: Tensor, dims: Any, keepdim: bool, exact: bool) -> None:
    """As `operators.reduce`; a sum over a head's channels is the head's."""
    along = operators.dimensions(x, dims)
    left = [over(shadow, i, along, exact) for i in shadow.of(x)]
    shadow.put(out, [i if keepdim else i.squeeze(tuple(along)) for i in left if i is not None])


@instead("_softmax")
def _softmax(shadow: Any, out: Tensor, x: Tensor, dim: int, *_: Any, **__: Any) -> None:
    for ids in shadow.of(x):
        if dim % x.dim() in varying(ids):
            over(shadow, ids, [dim % x.dim()])
    shadow.put(out, shadow.of(x))


@instead("native_layer_norm")
def _layer_norm(shadow: Any, out: Any, x: Tensor, size: Any, *args: Any, **_: Any) -> None:
    for ids in shadow.of(x):
        if set(varying(ids)) & set(range(x.dim() - len(size), x.dim())):
            over(shadow, ids, range(x.dim() - len(size), x.dim()))
    vectors = [t for t in args if isinstance(t, Tensor)]
    bare = shadow.bare.get(shadow.where[-1])
    kept = shadow.of(x)
    for ids in [padded(i, x.dim()) for t in vectors for i in shadow.of(t)] + ([] if bare is None else [bare]):
        join(shadow, kept, padded(ids, x.dim()))
    shadow.put(operators._first(out), kept)


# ---- products


@instead("mm")
def _product(shadow: Any, out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> None:
    inner = out.dim() - 1  # of (..., rows, inner, columns), as which both are seen
    every = [i.unsqueeze(-1) for i in shadow.of(a)] + [i.unsqueeze(-3) for i in shadow.of(b)]
    joint = [i for i in every if len(varying(i)) > 1 or (varying(i) != (inner,) and are_heads(shadow, i))]
    if not joint:
        RULES["mm"](shadow, out, a, b)
        return
    if not (shadow.of(a) and shadow.of(b)):
        shadow.put(out, [i.squeeze(inner) for i in joint if inner not in varying(i)])
        shadow.freeze(operators.AHEAD, *(i for i in every if inner in varying(i)))
        return
    common = set.intersection(*({d for d in varying(i) if d != inner} for i in joint))
    if not common:
        shadow.freeze(operators.AHEAD, *every)
        shadow.put(out, [])
        return
    shadow.freeze(SHARED, *(i for i in every if not common & set(varying(i))))
    mine = [i for i in every if common & set(varying(i))]
    ones = [together(shadow, i, set(varying(i)) - common) for i in mine]
    for one in ones[1:]:
        same(shadow, ones[0], one)
    shadow.heads.update(dict.fromkeys((int(n) for n in ones[0].unique() if n), shadow.where[-1]))
    whole = [i for i in mine if inner not in varying(i) and set(varying(i)) - common]
    shadow.put(out, [(whole[0] if len(whole) == 1 else ones[0]).squeeze(inner)])
