"""What each operator does to channel numbers: the rules of the tracer, one for each kind of operator.

A wrong tie is mended here, or, of attention heads, in `headwise`. Only operators have rules that reach torch's
dispatcher: a `reshape` or a `tile` comes as what it is made of.

A rule gets the shadow, the operator's output and its arguments, and says what ids the output carries and which ids
are tied or frozen by it. `follow` picks the rule by the operator's name, as PyTorch's own list of operators has it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import layers
from ..core import own_tensors

RULES: dict[str, Callable[..., None]] = {}
ELSEWHERE = (  # what they make has nothing to do with the entries that go in
    "new_", "zeros", "ones", "empty", "full", "rand", "arange", "scalar_tensor", "sym_", "_local_scalar_dense", "is_",
    "equal", "item",
)  # fmt: skip
SAME = {  # they pass on what they get, entry by entry
    "clone", "lift_fresh", "lift", "_to_copy", "native_dropout", "fill", "zero", "_conj", "detach", "alias",
    "bernoulli",
}  # fmt: skip
MOVED = {"permute", "transpose", "t", "expand", "unsqueeze", "squeeze"}  # done to the ids as to the entries
PER_CHANNEL = (  # they work on each channel's picture, and keep the ids along the first two dimensions
    "max_pool", "avg_pool", "adaptive_", "_adaptive_", "fractional_max", "upsample_", "_upsample", "reflection_pad",
    "replication_pad", "_pad_", "grid_sampler", "roi_align", "roi_pool", "max_unpool",
)  # fmt: skip
SUMS = {"sum", "nansum", "linalg_vector_norm", "norm"}  # zeros add nothing; in all the others they count
REDUCED = SUMS | {
    "mean", "amax", "amin", "max", "min", "argmax", "argmin", "logsumexp", "any", "all", "prod", "median",
    "count_nonzero", "aminmax", "var", "std", "var_mean", "std_mean",
}  # fmt: skip
ALONG = {  # why the ids stay that vary along the dimension that these work on; the others are as before
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp"), "is summed one after the other"),
    **dict.fromkeys(("topk", "sort"), "is sorted"),
    "gather": "is gathered by number",
    "roll": "is rolled by a fixed number",
    "unfold": "is read in windows",
}
AHEAD = "meets a tensor of a fixed size"


def rule(*names: str, rules: dict[str, Any] = RULES) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Use a function for the operators of these names."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        rules.update(dict.fromkeys(names, function))
        return function

    return register


def each(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As `rule`, for a function that says of each of the input's ids what the output carries of them, or None."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def all_of_them(shadow: Any, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
            found = [function(shadow, ids, x, _first(out), *args, **kwargs) for ids in shadow.of(x)]
            shadow.put(_first(out), [ids for ids in found if ids is not None])

        rule(*names)(all_of_them)
        return function

    return register


def follow(shadow: Any, func: Any, out: Any, given: list[Tensor], args: Any, kwargs: Any) -> None:
    """Do to the ids what the operator did to the entries."""
    name = func.overloadpacket.__name__
    plain = name if name in shadow.rules else name.rstrip("_")
    rules = shadow.rules
    if plain in rules:
        rules[plain](shadow, out, *args, **kwargs)
    elif plain in REDUCED or plain in ALONG:
        _by_dimension(shadow, plain, out, said(func, args, kwargs))
    elif plain in SAME or plain.endswith("_like"):
        shadow.put(_first(out), shadow.of(args[0]))
    elif plain in MOVED:
        x = args[0]
        shadow.put(out, [folded(func(i.expand(x.shape), *args[1:], **kwargs)) for i in shadow.of(x)])
    elif _pointwise(func):
        rules["copy"](shadow, out, *given)
    elif plain.startswith(PER_CHANNEL):
        _unless(shadow, _first(out), args[0], range(2, args[0].dim()), "is resized")
        shadow.freeze("says where to look", *(i for t in given if t is not args[0] for i in shadow.of(t)))
    elif not name.startswith(ELSEWHERE):
        why = f"meets {func.namespace}::{name}, unknown to the tracer,"
        shadow.freeze(why, *(i for t in given for i in shadow.of(t)))


def said(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """An operator's arguments, as far as they were given, by the names that its schema has for them."""
    return dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs


@functools.cache
def _pointwise(func: Any) -> bool:
    """Whether an operator, or its twin that is not in place, works entry by entry."""
    plain = getattr(getattr(torch.ops, func.namespace), func.overloadpacket.__name__.rstrip("_"), None)
    same = [getattr(plain, name, func) for name in ("default", "Tensor", "Scalar")]
    return any(torch.Tag.pointwise in each.tags for each in (func, *same))


def varying(ids: Tensor) -> tuple[int, ...]:
    """The dimensions along which ids differ."""
    return tuple([d for d, n in enumerate(ids.shape) if n > 1])


def folded(ids: Tensor) -> Tensor:
    """With size 1 wherever nothing changes."""
    for d in varying(ids):
        first = ids.narrow(d, 0, 1)
        if ids.stride(d) == 0 or bool((ids == first).all()):
            ids = first
    return ids


def padded(ids: Tensor, rank: int) -> Tensor:
    """With size 1 for the dimensions that broadcasting adds in front."""
    return ids.reshape((1,) * (rank - ids.dim()) + tuple(ids.shape))


def along(ids: Tensor, dim: int, rank: int) -> Tensor:
    """A list of ids as those of one dimension of a tensor."""
    return ids.reshape([-1 if d == dim else 1 for d in range(rank)])


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, (tuple, list)) else out


# ---- entry by entry


@rule("copy", "hardswish", "log_sigmoid_forward", "_prelu_kernel", "complex", "polar", "rrelu_with_noise",
      "rrelu_with_noise_functional")  # fmt: skip
def meet(shadow: Any, out: Any, *args: Any, **_: Any) -> None:
    """Ids along the same dimension are the same channels; an operand of fixed size holds those that it meets."""
    out, given = _first(out), [t for t in args if isinstance(t, Tensor)]
    kept: list[Tensor] = []
    for tensor in given:
        for ids in (padded(i, out.dim()) for i in shadow.of(tensor)):
            if any(_fixed(shadow, other, out.dim(), varying(ids)) for other in given if other is not tensor):
                shadow.freeze(AHEAD, ids)
            else:
                _join(shadow, kept, ids)
    shadow.put(out, kept)


def _fixed(shadow: Any, tensor: Tensor, rank: int, dims: tuple[int, ...]) -> bool:
    """Whether a tensor has a size of its own, and no channels, along one of the dimensions."""
    sizes = (1,) * (rank - tensor.dim()) + tuple(tensor.shape)
    own = {d for ids in shadow.of(tensor) for d in varying(padded(ids, rank))}
    return any(sizes[d] > 1 and d not in own and tensor.stride(d - rank) for d in dims)  # or else it is only expanded


def _join(shadow: Any, kept: list[Tensor], ids: Tensor) -> None:
    """Add ids to those that a tensor carries: tied where they vary along the same dimensions, or part of them."""
    for at, other in enumerate(kept):
        mine, theirs = set(varying(ids)), set(varying(other))
        if mine <= theirs or theirs <= mine:
            shadow.tie(ids, other)
            kept[at] = ids if theirs < mine else other
            return
        if mine & theirs:
            shadow.freeze(AHEAD, ids, other)
    kept.append(ids)


# ---- moving entries


@each("as_strided")
def _as_strided(shadow: Any, ids: Tensor, x: Tensor, out: Tensor, *_: Any) -> Any:
    return ids if out.shape == x.shape else shadow.freeze("is laid out anew", ids)


@rule("view", "_unsafe_view", "_reshape_alias", "view_copy")
def _view(shadow: Any, out: Tensor, x: Tensor, size: Any, *_: Any) -> None:
    if isinstance(size, torch.dtype):
        shadow.freeze("is read as another type", *shadow.of(x))
        return
    hint = [d for d, n in enumerate(size) if n == -1]
    blocks = _blocks(tuple(x.shape), tuple(out.shape)) if hint else []
    kept: list[Tensor] = []
    for ids in shadow.of(x):
        got = reshaped(ids, tuple(x.shape), tuple(out.shape))
        if len(varying(got)) > max(1, len(varying(ids))):
            got = _rows(shadow, got, x, hint)
        elif any(
            hint[0] not in varying(got) and hint[0] in new and set(old) & set(varying(ids)) for old, new in blocks
        ):
            shadow.split.update(got.flatten().tolist())  # into the channels of one head
        _join(shadow, kept, got)
    shadow.put(out, kept)


def reshaped(ids: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    """Ids of a tensor of one shape as those of another: block by block, so that what is constant stays folded."""
    shape: list[int] = []
    full: list[int] = []
    for old, new in _blocks(before, after):
        varies = any(ids.shape[d] > 1 for d in old)
        full += [before[d] if varies else 1 for d in old]
        shape += [after[d] if varies else 1 for d in new]
    return folded(ids.expand(full).reshape(shape))


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of dimensions, old and new, that hold the same entries."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old: list[int] = []
        new: list[int] = []
        a = b = 1
        while not (old and new and a == b) and (i < len(before) or j < len(after)):
            if i < len(before) and (a <= b or j >= len(after)):
                old.append(i)
                a, i = a * before[i], i + 1
            else:
                new.append(j)
                b, j = b * after[j], j + 1
        found.append((old, new))
    return found


def _rows(shadow: Any, ids: Tensor, x: Tensor, hint: list[int]) -> Tensor:
    """One dimension became several: the same columns leave in all the rows, and the rows stay."""
    dims = varying(ids)
    column = dims[-1]
    if hint and hint[0] in dims:
        column = hint[0]
    elif x.dim() == 2 and ids.dim() >= 4:  # a picture made of a list of features
        column = dims[0]
    same = ids
    for d in dims:
        if d != column:
            same = same.narrow(d, 0, 1)
    shadow.tie(ids, same)
    shadow.guess(same, "a view that splits its channels")
    shadow.split.update(same.flatten().tolist())
    return same


@each("slice")
def _slice(shadow: Any, ids: Tensor, x: Tensor, _: Any, dim: int = 0, start: Any = None, end: Any = None,
           step: int = 1) -> Any:  # fmt: skip
    dim %= x.dim()
    size = x.shape[dim]
    first, last = slice(start, end).indices(size)[:2]
    if dim not in varying(ids) or (last - first == size and step == 1):
        return ids
    if _proportional(shadow, ids, dim, first, last, step):
        return ids.narrow(dim, first, last - first)[(slice(None),) * dim + (slice(None, None, step),)]
    return shadow.freeze("is cut at fixed places", ids)


def _proportional(shadow: Any, ids: Tensor, dim: int, first: int, last: int, step: int) -> bool:
    """Whether a slice is one of equal parts, consecutive or interleaved, which then leave alike."""
    size = ids.shape[dim]
    part = last - first if step == 1 else step
    if part <= 0 or size % part or (first % part if step == 1 else last != size or first >= step):
        return False
    table = ids.movedim(dim, -1).unflatten(-1, (-1, part))
    shadow.tie(table, table.narrow(-2 if step == 1 else -1, 0, 1))
    shadow.guess(ids, "a slice of its channels")
    return True


@rule("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "unbind", "split_copy",
      "split_with_sizes_copy")  # fmt: skip
def _split(shadow: Any, out: Sequence[Tensor], x: Tensor, *args: Any, dim: int = 0, alike: bool = True) -> None:
    single = len(out) > 0 and out[0].dim() < x.dim()  # unbind has no sizes
    place = args[0] if single and args else args[1] if len(args) > 1 else dim
    place %= x.dim()
    sizes = [1 if single else part.shape[place] for part in out]
    found: list[list[Tensor]] = [[] for _ in out]
    for ids in shadow.of(x):
        parts = list(ids.split(sizes, place)) if place in varying(ids) else [ids] * len(out)
        if alike and place in varying(ids) and len(out) > 1:
            if single or len(set(sizes)) > 1:
                shadow.freeze("is split into fixed widths", ids)
                continue
            for part in parts[1:]:
                shadow.tie(parts[0], part)
            shadow.guess(ids, "a split into equal parts")
        for own, part in zip(found, parts, strict=True):
            own.append(part.squeeze(place) if single else part)
    for tensor, own in zip(out, found, strict=True):
        shadow.put(tensor, own)


@each("select")
def _select(shadow: Any, ids: Tensor, x: Tensor, out: Tensor, dim: int, index: int) -> Any:
    return ids.squeeze(dim) if ids.shape[dim] == 1 else shadow.freeze("is selected by number", ids)


@rule("cat")
def _cat(shadow: Any, out: Tensor, given: Sequence[Tensor], dim: int = 0) -> None:
    dim %= out.dim()
    given = [t for t in given if t.dim() == out.dim()]  # torch lets an empty tensor of one dimension pass
    parts, others = [], []
    for t in given:
        along = [i for i in shadow.of(t) if dim in varying(i)]
        shadow.freeze("is joined to others", *along[1:])
        parts.append(along[0] if along else torch.zeros([1] * out.dim(), dtype=torch.int64))
        others.append([i for i in shadow.of(t) if dim not in varying(i)])
    wide = [max(p.shape[d] for p in parts) for d in range(out.dim())]
    sizes = [[t.shape[d] if d == dim else n for d, n in enumerate(wide)] for t in given]
    found = [folded(torch.cat([p.expand(s) for p, s in zip(parts, sizes, strict=True)], dim))]
    found += _alike(shadow, others, given)
    shadow.put(out, found)


@rule("stack")
def _stack(shadow: Any, out: Tensor, given: Sequence[Tensor], dim: int = 0) -> None:
    found = _alike(shadow, [shadow.of(t) for t in given], given)
    shadow.put(out, [ids.unsqueeze(dim % out.dim()) for ids in found])


def _alike(shadow: Any, carried: list[list[Tensor]], given: Sequence[Tensor]) -> list[Tensor]:
    """Ids of tensors laid side by side: the same channels in all of them, or none."""
    found = []
    for pattern in dict.fromkeys(varying(i) for own in carried for i in own):
        alike = [next((i for i in own if varying(i) == pattern), None) for own in carried]
        there = [i for i in alike if i is not None]
        empty = [t.numel() == 0 for t in given]
        if any(i is None and not e for i, e in zip(alike, empty, strict=True)):
            shadow.freeze(AHEAD, *there)
            continue
        for ids in there[1:]:
            shadow.tie(there[0], ids)
        found.append(there[0])
    return found


def _unless(shadow: Any, out: Any, x: Tensor, dims: Sequence[int], why: str) -> None:
    """The output's ids are the input's, but for those along the dimensions, which stay."""
    kept = []
    for ids in shadow.of(x):
        if set(varying(ids)) & set(dims):
            shadow.freeze(why, ids)
        else:
            kept.append(ids)
    shadow.put(out, kept)


@each("flip")
def _flip(shadow: Any, ids: Tensor, x: Tensor, out: Tensor, dims: Sequence[int]) -> Tensor:
    return ids.flip([d % x.dim() for d in dims])


@each("repeat")
def _repeat(shadow: Any, ids: Tensor, x: Tensor, out: Tensor, times: Sequence[int]) -> Tensor:
    ids = padded(ids, out.dim())
    return ids.repeat([n if d in varying(ids) else 1 for d, n in enumerate(times)])


@each("constant_pad_nd")
def _pad(shadow: Any, ids: Tensor, x: Tensor, out: Tensor, pad: Sequence[int], *_: Any) -> Tensor:
    width = [n if x.dim() - 1 - at // 2 in varying(ids) else 0 for at, n in enumerate(pad)]
    return F.pad(ids, width, value=0)


@each("pixel_shuffle", "pixel_unshuffle")
def _pixels(shadow: Any, ids: Tensor, x: Tensor, out: Tensor, factor: int) -> Any:
    if varying(ids) != (x.dim() - 3,):
        return shadow.freeze("is shuffled between pixels", ids)
    if out.shape[-1] < x.shape[-1]:
        return ids.repeat_interleave(factor**2, x.dim() - 3)
    fine = F.pixel_shuffle(ids, factor)
    shadow.tie(fine, fine[..., :1, :1])
    return fine[..., :1, :1]


@each("channel_shuffle", "native_channel_shuffle")
def _shuffle(shadow: Any, ids: Tensor, x: Tensor, out: Tensor, groups: int) -> Tensor:
    if ids.shape[1] == 1:
        return ids
    table = ids.unflatten(1, (groups, -1))
    shadow.tie(table, table.narrow(1, 0, 1))
    return table.transpose(1, 2).flatten(1, 2)


@each("glu")
def _glu(shadow: Any, ids: Tensor, x: Tensor, out: Tensor, dim: int = -1) -> Tensor:
    if ids.shape[dim] == 1:
        return ids
    one, other = ids.chunk(2, dim)
    shadow.tie(one, other)
    return one


@each("index", "index_select", "_unsafe_index")
def _index(shadow: Any, ids: Tensor, x: Tensor, out: Tensor, *args: Any) -> Any:
    indices = args[0] if isinstance(args[0], (tuple, list)) else [*[None] * (args[0] % x.dim()), args[1]]
    at: list[int] = []  # the dimensions that the indices look up
    d = 0
    for index in indices:
        width = 1 if index is None or index.dtype not in (torch.bool, torch.uint8) else index.dim()
        at += [] if index is None else range(d, d + width)
        d += width
    if set(varying(ids)) & set(at):
        return shadow.freeze("is looked up by number", ids)
    rest = [ids.shape[d] for d in range(x.dim()) if d not in at]
    front = at[0] if at and at == list(range(at[0], at[-1] + 1)) else 0
    return ids.squeeze(tuple(at)).reshape(rest[:front] + [1] * (out.dim() - len(rest)) + rest[front:])


@each("embedding")
def _embedding(shadow: Any, ids: Tensor, weight: Tensor, out: Tensor, *_: Any, **__: Any) -> Any:
    if ids.shape[0] > 1:
        return shadow.freeze("is looked up by number", ids)
    return along(ids, out.dim() - 1, out.dim())


@each("view_as_complex")
def _complex(shadow: Any, ids: Tensor, *_: Any) -> Any:
    return ids.squeeze(-1) if ids.shape[-1] == 1 else shadow.freeze("is read as complex numbers", ids)


@each("view_as_real")
def _real(shadow: Any, ids: Tensor, *_: Any) -> Tensor:
    return ids.unsqueeze(-1)


# ---- sums, means and norms


def _by_dimension(shadow: Any, name: str, out: Any, told: dict[str, Any]) -> None:
    """What works along one dimension, or some: sums and the like, and what sorts or moves entries along it."""
    x = told["self"]
    dims = told.get("dim", told.get("dimension", told.get("dims", [-1] if name in ("topk", "sort") else None)))
    if isinstance(told.get("other"), Tensor):  # the larger of two
        shadow.rules["copy"](shadow, out, x, told["other"])
    elif name in REDUCED:
        exact = name in SUMS and told.get("ord", told.get("p")) != float("-inf")
        shadow.rules["reduce"](shadow, out, x, dims, told.get("keepdim", False), exact)
    else:
        _unless(shadow, out, x, dimensions(x, dims), ALONG[name])
        for ids in shadow.of(out) if name == "gather" else ():
            shadow.guess(ids, "an index as wide as its channels")
        if name == "unfold":
            shadow.put(out, [i.unsqueeze(-1) for i in shadow.of(out)])


def dimensions(x: Tensor, dims: Any) -> list[int]:
    """The dimensions that an operator names; all of them if none."""
    given = range(x.dim()) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return sorted({d % x.dim() for d in given}) if x.dim() else []


@rule("reduce")
def reduce(shadow: Any, out: Any, x: Tensor, dims: Any, keepdim: bool, exact: bool) -> None:
    """Ids along what is summed over end here; a mean counts zeros, so that what it averages over is inexact."""
    over = dimensions(x, dims)
    kept = []
    for ids in shadow.of(x):
        if not set(varying(ids)) & set(over):
            kept.append(ids if keepdim else ids.squeeze(tuple(over)))
            continue
        if not exact:
            shadow.average(ids)
        if set(varying(ids)) - set(over):
            shadow.freeze("is summed over in part", ids)
    shadow.put(out, kept)


@each("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def _softmax(shadow: Any, ids: Tensor, x: Tensor, out: Tensor, dim: int, *_: Any, **__: Any) -> Tensor:
    if ids.shape[dim] > 1:
        shadow.average(ids)
    return ids


def _normed(shadow: Any, out: Any, x: Tensor, args: Sequence[Any], over: Sequence[int], dim: int) -> None:
    """A norm's own vectors belong to the channels that it scales; those that it averages over are inexact."""
    own = [t for t in args if isinstance(t, Tensor)]
    mine = [padded(i, x.dim()) if over else along(i, dim, x.dim()) for t in own for i in shadow.of(t)]
    bare = shadow.bare.get(shadow.where[-1])
    if bare is not None:
        mine.append(along(bare.repeat(x.shape[dim] // len(bare)), dim, x.dim()))  # an instance norm lays samples there
    scaled = {varying(ids) for ids in mine}
    carried = [(varying(ids), ids) for ids in shadow.of(x)]
    for ids in mine:
        _belongs(shadow, ids, [there for dims, there in carried if dims == varying(ids)])
    for dims, ids in carried:
        if set(dims) & set(over):
            shadow.average(ids)
        if dim in dims and dims not in scaled and own:
            shadow.freeze(AHEAD, ids)
    shadow.put(_first(out), shadow.of(x))


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "miopen_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update")  # fmt: skip
def _batch_norm(shadow: Any, out: Any, x: Tensor, *args: Any, **_: Any) -> None:
    shadow.average(*(i for i in shadow.of(x) if set(varying(i)) - {1}))  # of a weight that is standardised
    _normed(shadow, out, x, args, (), 1)


@rule("native_layer_norm", "_fused_rms_norm")
def _layer_norm(shadow: Any, out: Any, x: Tensor, size: Any, *args: Any, **_: Any) -> None:
    over = range(x.dim() - len(size), x.dim())
    _normed(shadow, out, x, args, over, x.dim() - 1 if len(size) == 1 else x.dim() - len(size))


@rule("native_group_norm")
def _group_norm(
    shadow: Any, out: Any, x: Tensor, w: Any, b: Any, n: Any, c: Any, hw: Any, groups: int, *_: Any
) -> None:
    for ids in (i.reshape(-1) for i in shadow.of(x) if varying(i) == (1,)):
        if groups == 1:
            shadow.average(ids)
        else:
            shadow.tie(ids.view(groups, -1), ids.view(groups, -1)[:, :1])
    _normed(shadow, out, x, (w, b), (), 1)


# ---- products


@rule("mm", "bmm", "_scaled_mm")
def _product(shadow: Any, out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> None:
    last, before = out.dim() - 1, out.dim() - 2
    if out.dim() == 3 and _are_heads(shadow, a, b):
        shadow.put(out, [])
        return
    left = [i for i in shadow.of(a) if i.shape[last] > 1]
    right = [i for i in shadow.of(b) if i.shape[before] > 1]
    for x, y in itertools.product(left, right):
        if len(varying(x)) > 1 or len(varying(y)) > 1:
            shadow.freeze(AHEAD, x, y)
        else:
            shadow.tie(x.transpose(-1, -2), y)
    if not (left and right):
        shadow.freeze(AHEAD, *left, *right)
    kept = [i for i in shadow.of(a) if i.shape[last] == 1]
    for ids in (i for i in shadow.of(b) if i.shape[before] == 1):
        _join(shadow, kept, ids)
    shadow.put(out, kept)


def _are_heads(shadow: Any, a: Tensor, b: Tensor) -> bool:
    """Channels that a view laid side by side, in a product of two activations: heads, which leave whole or not."""
    both = [*shadow.of(a), *shadow.of(b)]
    heads = any(not shadow.split.isdisjoint(i.flatten().tolist()) for i in both)
    if heads:
        shadow.freeze("is inside an attention head (granularity.heads removes whole ones)", *both)
    return heads


@rule("addmm", "addbmm", "baddbmm")
def _added(shadow: Any, out: Tensor, add: Tensor, a: Tensor, b: Tensor, **_: Any) -> None:
    shadow.rules["mm"](shadow, out, a, b)
    shadow.rules["copy"](shadow, out, out, add)


@rule("mv")
def _mv(shadow: Any, out: Tensor, a: Tensor, v: Tensor) -> None:
    for ids in (i for i in shadow.of(a) if varying(i) == (1,)):
        _belongs(shadow, ids, [i.reshape(1, -1) for i in shadow.of(v)])
    shadow.put(out, [i.squeeze(1) for i in shadow.of(a) if varying(i) == (0,)])


def _belongs(shadow: Any, ids: Tensor, others: Sequence[Tensor]) -> None:
    """Ids of what others have with them, such as a bias: tied to theirs; without any, they stay."""
    for other in others:
        shadow.tie(other, ids)
    if not others:
        shadow.freeze(AHEAD, ids)


@rule("convolution", "_convolution")
def _convolution(
    shadow: Any, out: Tensor, x: Tensor, w: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, *_: Any,
) -> None:  # fmt: skip
    own = {varying(i)[0]: i.reshape(-1) for i in shadow.of(w) if len(varying(i)) == 1 and varying(i)[0] < 2}
    plain = [i.reshape(-1) for i in shadow.of(x) if varying(i) == (1,)]
    shadow.freeze("is convolved along its channels", *(i for i in shadow.of(x) if varying(i) != (1,)))
    none = torch.zeros(1, dtype=torch.int64)
    read = plain[0] if plain else none.expand(x.shape[1])
    rows = own.get(0, none.expand(w.shape[0]))
    columns = own.get(1, none.expand(w.shape[1]))
    if groups == 1:
        reads, made = (rows, columns) if transposed else (columns, rows)
        shadow.tie(read, reads)
    else:
        made = _grouped(shadow, read, rows, columns, transposed, groups, out.shape[1])
    shadow.put(out, [along(made, 1, out.dim())])
    for ids in shadow.of(bias):
        _belongs(shadow, along(ids, 1, out.dim()), shadow.of(out))


@rule("deform_conv2d")
def _deformed(shadow: Any, out: Tensor, x: Tensor, w: Tensor, offset: Tensor, mask: Tensor, bias: Any, *a: Any) -> None:
    shadow.freeze("says where a convolution looks", *shadow.of(offset), *shadow.of(mask))
    _convolution(shadow, out, x, w, bias, a[:2], a[2:4], a[4:6], False, 0, a[6])


def _grouped(
    shadow: Any, read: Tensor, rows: Tensor, columns: Tensor, transposed: bool, groups: int, width: int
) -> Tensor:
    """Whole groups leave, by dimension 0 of the weight, whose dimension 1 counts within one group.

    Where all groups turned out to be tied, as the halves that a split attention adds: the same place in every group.
    """
    table = read.view(groups, -1)
    if shadow.where[-1] in shadow.by_place:
        shadow.tie(table, columns)
        shadow.tie(rows.view(groups, -1), rows[: len(rows) // groups])
        return rows
    if len(columns) > 1:
        shadow.freeze("counts within a group of channels", columns[columns > 0])
    shadow.tie(table, table[:, :1])
    if transposed:
        shadow.tie(rows, read)
        return table[:, :1].expand(groups, width // groups).reshape(-1)
    if width > groups:  # of a depthwise convolution every channel is a group
        shadow.grouped[shadow.where[-1]] = table[:, 0]
    shadow.tie(rows.view(groups, -1), table[:, :1])
    return rows


def bare_channels(module: nn.Module) -> int:
    """How many channels a norm without parameters declares; 0 for everything else."""
    return 0 if any(True for _ in own_tensors(module)) else layers.channels(module) or 0


def makes(module: nn.Module) -> tuple[str, int] | None:
    """What kind of layer makes channels, and along which dimension of its weight."""
    if isinstance(module, layers.CONVOLUTION):
        alone = module.groups == module.in_channels == module.out_channels  # each channel is handed on by itself
        return "depthwise" if alone else "convolution", int(module.transposed and module.groups == 1)
    if isinstance(module, nn.Linear):
        return "linear", 0
    if isinstance(module, nn.Embedding):
        return "embedding", 1
    return ("linear", 1) if layers.layer_of(module) is layers.CONV1D else None


def made_at(model: nn.Module, name: str) -> int | None:
    """Along which dimension of a tensor its layer makes channels, if it does."""
    path, _, attribute = name.rpartition(".")
    kind = makes(model.get_submodule(path)) if attribute == "weight" else None
    return kind and kind[1]
