"""What notebook 13 and its grids share: the text cut in three, depth cuts by a rule, and what is left."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from ... import zoo
from ...allocation import NM, allocate, expand
from ...calibration import Calibration
from ...core import Group, Keep
from ...criteria import AngularDistance, BlockInfluence, magnitude
from ...granularity import by_name as granularity_named
from ...granularity import weights
from ...language import next_token_loss, next_tokens, tokens, windows, write
from ...masking import apply, bake
from ...reconstruction import Method, blockwise
from ...surgery import shrink
from ...units import tensors_of
from ..show import display

LENGTH = 256
TESTED = CALIBRATED = 16  # windows
QUESTION = "Why does a gardener prune a tree?"
WRITTEN = 32  # tokens


@dataclass(frozen=True)
class Text:
    """The Python reference as windows of 256 tokens: 16 to test, the last 16 to calibrate, those between to heal."""

    test: Tensor
    train: Tensor
    calib: Calibration

    def some(self, count: int) -> Calibration:
        """The first windows of the calibration."""
        (inputs, targets), *_ = self.calib.batches
        return Calibration(((inputs[:count], targets[:count]),), self.calib.loss)


def text_for(llama: zoo.Llama) -> Text:
    """The three pieces in the Llama's own tokens."""
    rows = windows(tokens(llama.tokenizer, zoo.reference_text(), llama.model), LENGTH)
    calib = Calibration((next_tokens(rows[-CALIBRATED:]),), next_token_loss)
    return Text(rows[:TESTED], rows[TESTED:-CALIBRATED], calib)


def answer(llama: zoo.Llama, model: nn.Module | None = None, count: int = WRITTEN) -> str:
    """What the Llama, or a pruned one, says when asked why a gardener prunes a tree: always its likeliest words."""
    return write(llama.model if model is None else model, llama.tokenizer, llama.prompt(QUESTION), count).strip()


def inputs_of(model: nn.Module, layer: nn.Module, calib: Calibration) -> Tensor:
    """All that flows into a linear layer on the calibration text: (tokens, in)."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    try:
        with torch.no_grad():
            for ids in calib.batches[0][0].split(1):
                model(input_ids=ids, use_cache=False)
    finally:
        hook.remove()
    return torch.cat(seen)


def conversation(answers: Mapping[str, str]) -> None:
    """The question, and what each Llama answers."""
    lines = {"the question": QUESTION, **answers}
    text = "\n".join(f"{name}: {said}" for name, said in lines.items())
    rows = (
        f"<dt><strong>{escape(n)}</strong></dt><dd style='margin: 0 0 0.5em 1.5em'>{escape(s)}</dd>"
        for n, s in lines.items()
    )
    display.show(text, html=f'<dl style="max-width: {display.WIDTH}">{"".join(rows)}</dl>')


def order(
    model: nn.Module, what: str, rule: str, calib: Calibration | None = None, *, seed: int = 0, n: int = 1
) -> list[int]:
    """Units of "layers", "mlps" or "attentions" in the order in which a rule takes them.

    "influence": the part's own Block Influence, lowest first; "block influence": that of the whole block; "run": the
    run of n blocks of least angular distance first; "last": from the end, but the very last stays to the end;
    "random": by the seed.
    """
    (group,) = granularity_named(what)(model)
    if rule == "random":
        return random.Random(seed).sample(range(group.units), group.units)
    if rule == "last":
        return [*reversed(range(group.units - 1)), group.units - 1]
    criterion: Any = AngularDistance(n) if rule == "run" else BlockInfluence("layers" if rule[:5] == "block" else what)
    scores = criterion(model, calib)
    by_unit = [sum(float(scores[t].sum()) for t in _of_unit(group, unit, scores)) for unit in range(group.units)]
    return sorted(range(group.units), key=by_unit.__getitem__)


def _of_unit(group: Group, unit: int, names: Any) -> set[str]:
    mine = tuple(p for p in group.parts if p.unit == unit)
    return tensors_of(Group(group.name, group.units, (), parts=mine), names)


def keep_without(what: str, units: int, out: Sequence[int]) -> Keep:
    """A keep of one group of whole modules, all but some."""
    kept = torch.ones(units, dtype=torch.bool)
    kept[list(out)] = False
    return {what: kept}


def without(model: nn.Module, what: str, out: Sequence[int]) -> nn.Module:
    """A copy of the model that really lacks some of its layers, MLPs or attentions."""
    groups = granularity_named(what)(model)
    return shrink(model, groups, keep_without(what, groups[0].units, out))


Curves = dict[str, dict[str, dict[int, list[float]]]]  # what leaves -> rule -> how many are gone -> perplexities


def curves(runs: Iterable[dict[str, Any]], whats: Sequence[str], rules: Sequence[str]) -> Curves:
    """The depth grid's perplexities as curves, several values where there are several seeds."""
    found: Curves = {what: {rule: {} for rule in rules} for what in whats}
    for run in runs:
        if run["what"] in whats and run["rule"] in rules and run["removed"]:
            found[run["what"]][run["rule"]].setdefault(run["removed"], []).append(run["perplexity"])
    return found


def middle(values: Sequence[float]) -> float:
    """The geometric mean: of perplexities, the exponential of the mean loss."""
    return math.exp(sum(map(math.log, values)) / len(values))


def rows(found: Curves) -> list[list[Any]]:
    """The same as the rows of a table."""
    return [
        [what, rule, str(count), middle(points[count])]
        for what, by_rule in found.items()
        for rule, points in by_rule.items()
        for count in sorted(points)
    ]


def pattern_of(sparsity: str) -> float | NM:
    """NM(2, 4) of "2:4", and 0.5 of "50 %"."""
    if ":" in sparsity:
        n, m = map(int, sparsity.split(":"))
        return NM(n, m)
    return float(sparsity.removesuffix(" %")) / 100


def by_magnitude(model: nn.Module, sparsity: float | NM) -> nn.Module:
    """The smallest weights of each row at zero, in place."""
    groups, nm = weights(model), isinstance(sparsity, NM)
    keep = allocate(magnitude(model), groups, None if nm else sparsity, sparsity if nm else "row")  # type: ignore[arg-type]
    return bake(apply(model, expand(model, groups, keep)))


def pruned_llama(llama: zoo.Llama, method: Method | None, sparsity: float | NM, calib: Calibration) -> nn.Module:
    """A pruned copy: by Wanda or SparseGPT, block by block, or by magnitude without a method."""
    model = copy.deepcopy(llama.model)
    if method is None:
        return by_magnitude(model, sparsity)
    blockwise(model, calib, method, sparsity)
    return model
