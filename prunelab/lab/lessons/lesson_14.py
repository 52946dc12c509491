"""Lesson 14, "Which weights can a Llama lose?": its experiments, grid, drawings and exercises' checks."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ... import zoo
from ...allocation import NM, allocate
from ...calibration import Calibration
from ...criteria import magnitude
from ...decoders import blocks
from ...granularity import weights
from ...layers import prunable
from ...layerwise import LayerSparsities, Owl
from ...masking import apply, bake, expand
from ...reconstruction import Method, SparseGPT, Wanda, blockwise
from ..learn.claim import plain
from ..learn.exercise import call
from ..learn.stored_grid import Ahead, Grid, Resumable, Run, ahead, grid
from ..show.figure import table
from ..show.measuring import measured
from .llamas import TESTED, judged, text_for

# Methods, and controls of them


@dataclass(frozen=True)
class Control:
    """Wanda with one thing changed: each layer's norms in another order, or no rows but whole layers."""

    shuffled: bool = False

    def gather(self, inputs: Tensor) -> Tensor:
        """(n, in) -> (in,): the sum of squares of each input, as Wanda's."""
        return Wanda().gather(inputs)

    def __call__(
        self, weight: Tensor, gathered: Tensor, sparsity: float | NM, name: str, within: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The pruned weight, and what it keeps; earlier masks are not looked at."""
        if self.shuffled:
            order = torch.randperm(len(gathered), generator=torch.Generator().manual_seed(0))
            return Wanda()(weight, gathered[order], sparsity, name)
        score = weight.abs() * gathered.sqrt()
        keep = score > score.flatten().kthvalue(score.numel() // 2).values
        return weight * keep, keep


def by_magnitude(model: nn.Module, sparsity: float | NM) -> nn.Module:
    """The smallest weights of each row at zero, in place."""
    groups, nm = weights(model), isinstance(sparsity, NM)
    keep = allocate(magnitude(model), groups, None if nm else sparsity, sparsity if nm else "row")  # type: ignore[arg-type]
    return bake(apply(model, expand(model, groups, keep)))


def pattern_of(sparsity: str) -> float | NM:
    """NM(2, 4) of "2:4", and 0.5 of "50 %"."""
    if ":" in sparsity:
        n, m = map(int, sparsity.split(":"))
        return NM(n, m)
    return float(sparsity.removesuffix(" %")) / 100


def owl_shares(model: nn.Module, calib: Calibration, sparsity: float, order: str = "OWL") -> LayerSparsities:
    """OWL's shares; or, as controls, each block's given to another, as ORDERS says."""
    shares = Owl(calib)(model, weights(model), sparsity)
    own = [[name for name in shares if name.startswith(f"{block.path}.")] for block in blocks(model)]
    takes = own  # of each block the layers whose shares it takes
    if order == "OWL reversed":
        takes = own[::-1]
    elif order == "OWL, ends swapped":
        takes = [own[-1], *own[1:-1], own[0]]
    elif order == "OWL sorted":  # the last block loses least
        takes = sorted(own, key=lambda names: -shares[names[0]])
    elif order != "OWL":
        takes = random.Random(order.removeprefix("OWL shuffled ")).sample(own, len(own))
    pairs = [pair for there, other in zip(own, takes, strict=True) for pair in zip(there, other, strict=True)]
    return {name: shares[other] for name, other in pairs}


def pruned_llama(
    llama: zoo.Llama, method: Method | None, sparsity: float | NM | LayerSparsities, calib: Calibration
) -> nn.Module:
    """A pruned copy: by a method, block by block, or by magnitude without one."""
    model = copy.deepcopy(llama.model)
    if method is None:
        return by_magnitude(model, sparsity)  # type: ignore[arg-type]
    blockwise(model, calib, method, sparsity)
    return model


# The stored grid: a real Llama with half of its weights


METHODS: dict[str, Method | None] = {
    "magnitude": None,
    "Wanda": Wanda(),
    "SparseGPT": SparseGPT(),
    "Wanda, whole layer": Control(),
    "Wanda, norms shuffled": Control(shuffled=True),
}
POINT = ("method", "pattern", "pages", "calib", "tested")
PATTERNS = ("50 %", "4:8", "2:4")
MAIN = tuple(METHODS)[:3]
PAGES = 4  # windows of either text, to look at and to be tested on, where two texts or a control are compared
ORDERS = ("OWL", "OWL reversed", "OWL, ends swapped", "OWL sorted", *(f"OWL shuffled {i}" for i in (1, 2, 3)))


def weights_grid() -> Resumable:
    """Notebook 14: single weights of the Llama to zero, by method, pattern and text: perplexity, answers."""
    llama = zoo.llama()
    texts = {kind: text_for(llama, kind) for kind in ("prose", "code")}
    last: dict[tuple[Any, ...], nn.Module] = {}  # the model pruned last: two points in a row test it on two texts

    def run(point: Run) -> Run:
        key = tuple(point[k] for k in POINT[:-1])
        name, _, order = point["method"].partition(" + ")
        if name != "dense" and key not in last:
            last.clear()
            calib, sparsity = texts[point["calib"]].some(point["pages"]), pattern_of(point["pattern"])
            shares = owl_shares(llama.model, calib, sparsity, order) if order else sparsity  # type: ignore[arg-type]
            last[key] = pruned_llama(llama, METHODS[name], shares, calib)
        test, model = texts[point["tested"]].test[: point["pages"]], last.get(key, llama.model)
        zeros = [w.detach() == 0 for w in prunable(model).values()]
        share = sum(int(z.sum()) for z in zeros) / sum(z.numel() for z in zeros)
        writes = point["pages"] == TESTED and point["pattern"] in ("0 %", *PATTERNS) and not order
        return judged(model, llama, test, writes=writes) | {"zeros": round(share, 5)}

    return _weights_points(), run


def _weights_points() -> list[Run]:
    """The methods on every pattern; OWL's shares; on fewer pages, what a control costs, and two texts to look at."""
    points: list[tuple[Any, ...]] = [("dense", "0 %", TESTED, "prose", "prose")]
    points += [(m, p, TESTED, "prose", "prose") for p in PATTERNS for m in MAIN]
    points += [(m, "70 %", TESTED, "prose", "prose") for m in MAIN[1:]]
    points += [(f"Wanda + {order}", "70 %", TESTED, "prose", "prose") for order in ORDERS]
    points += [(f"Wanda + {order}", "50 %", TESTED, "prose", "prose") for order in ORDERS[:2]]
    points += [(f"SparseGPT + {order}", "70 %", TESTED, "prose", "prose") for order in ORDERS[:2]]
    points += [("dense", "0 %", PAGES, "prose", test) for test in ("prose", "code")]
    points += [("Wanda", "50 %", PAGES, calib, test) for calib in ("prose", "code") for test in ("prose", "code")]
    points += [(m, "50 %", PAGES, "prose", "prose") for m in tuple(METHODS)[3:]]
    return [dict(zip(POINT, p, strict=True)) for p in points]


GRIDS: dict[str, Grid] = {"llama-weights": weights_grid}


def by_shares(runs: Sequence[Run], patterns: Sequence[str] = ("50 %", "70 %")) -> dict[tuple[str, str], Ahead]:
    """Show the perplexities under OWL's shares; by how many nats a token, page by page, each is above equal shares'."""
    found = {(r["method"], r["pattern"]): r for r in runs}
    apart, rows = {}, []
    for method, order in ((m, o) for m in MAIN[1:] for o in ("", *ORDERS)):
        name, row = f"{method} + {order}" if order else method, []
        for run, equal in ((found.get((name, p)), found.get((method, p))) for p in patterns):
            row += [run["perplexity"] if run else "", ""]
            if run and equal and order:
                lead = apart[name, run["pattern"]] = ahead(np.array(run["losses"]), np.array(equal["losses"]))
                row[-1] = measured(float(lead.mean), interval=(float(lead.low), float(lead.high)))
        rows += [[name if order else f"{method}, equal shares", *row]] if any(row) else []
    columns = {k: v for p in patterns for k, v in ((p, ""), (f"{p}: nats above", None))}
    table("Perplexity, and nats a token above equal shares (95 % interval)", {"shares": None, **columns}, rows)
    return apart


# The checks of the exercises, whose texts stand in 14.toml


SHAPES = ((4, 3, 10), (2, 7, 5), (6, 4, 8))  # out, in, tokens

SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "that is still magnitude: no input is asked, or all share one norm.": lambda w, x: w.abs(),
    "you kept the signs: a large negative weight would go first. Take `abs()` of the weight.":
        lambda w, x: w * x.norm(dim=0),
    "a sum or mean lets positive and negative inputs cancel. Wanda takes the norm.":
        lambda w, x: w.abs() * x.sum(0).abs(),
    "adding lets a weight of zero on a loud input survive: multiply.": lambda w, x: w.abs() + x.norm(dim=0),
    "you squared the norm: it ranks otherwise. Wanda takes the norm itself.":
        lambda w, x: w.abs() * x.square().sum(0),
    "a mean of sizes is another norm: one loud token counts for more in Wanda's.":
        lambda w, x: w.abs() * x.abs().mean(0),
}  # fmt: skip


def check_wanda(answer: Any) -> str | None:
    """|W_ij| * norm(X_j), up to one positive factor, which changes no ranking."""
    cases = [_case(*shape, seed) for seed, shape in enumerate(SHAPES)]
    found = [torch.as_tensor(call(answer, w.clone(), x.clone())) for w, x in cases]
    if any(f.shape != w.shape for f, (w, _) in zip(found, cases, strict=True)):
        return "return a tensor of the weight's shape, (out, in): one score a weight."
    if _proportional(found, [w.abs() * x.norm(dim=0) for w, x in cases]):
        return None
    for message, wrong in SCORES.items():
        if _proportional(found, [wrong(w, x) for w, x in cases]):
            return message
    return "a weight's score is |w| times the norm of *its own* input over all tokens."


def _case(out: int, inputs: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if seed == 1 else torch.float32
    loudness = torch.logspace(-1, 1, inputs, dtype=dtype)
    weight = torch.randn(out, inputs, generator=source, dtype=dtype)
    return weight, torch.randn(tokens, inputs, generator=source, dtype=dtype) * loudness


def _proportional(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether each is the wanted one times a positive number."""
    pairs = [[x.double() / x.double().abs().max() for x in pair] for pair in zip(found, wanted, strict=True)]
    return all(torch.allclose(f, w, rtol=1e-3, atol=1e-6) for f, w in pairs)


OFFERS = ("Wanda", "SparseGPT", "magnitude")
KERNEL, LIMIT = "2:4", 3.0  # what the machine can read, and how many times the whole Llama's perplexity is borne


def check_offer(answer: Any) -> str | None:
    """Of methods and patterns of the stored table: what a 2:4 kernel can use within three times the perplexity."""
    given = plain(answer)
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not all(isinstance(x, str) for x in given):
        return 'give a method and a pattern as the table writes them, such as `("Wanda", "50 %")`.'
    method, pattern = (
        next((o for o in known if o.lower() == str(x).strip().lower().replace("50%", "50 %")), None)
        for x, known in zip(given, (OFFERS, PATTERNS), strict=True)
    )
    if method is None or pattern is None:
        return f"the table has {', '.join(OFFERS)} and {', '.join(PATTERNS)}; your answer names something else."
    if pattern != KERNEL:
        return f"zeros as {pattern} are of no use to this machine: its kernel wants two of *every* four neighbours."
    runs = [r for r in grid("llama-weights") if r["pages"] == TESTED]
    found = {(r["method"], r["pattern"]): r["perplexity"] for r in runs}
    times = found[method, pattern] / found["dense", "0 %"]
    if times <= LIMIT:
        return None
    return f"{method} at {pattern} costs {times:.1f} times the whole Llama's perplexity; {LIMIT:g} times is the limit."
