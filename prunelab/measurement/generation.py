"""How fast a language model reads and writes: tokens per second of a prompt, and of what it adds to one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import PruneError, device_of, shape
from ..language import check_tokens
from .conditions import attempt, undisturbed
from .rounds import Task, interleaved, resolved, waited_for
from .text import html, table
from .timing import Comparison, check_candidates, speedups, summary


@dataclass(frozen=True, repr=False)
class Rates:
    """Tokens a second of several models, timed in turns: `prefill` reads a prompt of `length`, `decode` adds one token.

    Each is a `Comparison`, whose latencies are seconds a prompt and seconds a token.
    """

    prefill: Comparison
    decode: Comparison
    length: int

    def prefill_rate(self, name: str) -> float:
        """Tokens of a prompt read in a second."""
        return self.length / self.prefill.latency[name].p50

    def decode_rate(self, name: str) -> float:
        """Tokens written in a second, after a prompt of `length`."""
        return 1 / self.decode.latency[name].p50

    def _lines(self) -> tuple[str, list[str], list[list[str]]]:
        title = f"Tokens a second, prompt of {self.length}, {self.decode.latency[self.decode.baseline].conditions}"
        head = ["model", "prefill", f"against {self.prefill.baseline}", "decode", f"against {self.decode.baseline}"]
        rows = [
            [
                name,
                f"{self.prefill_rate(name):.1f}",
                str(self.prefill.speedup[name]),
                f"{self.decode_rate(name):.1f}",
                str(self.decode.speedup[name]),
            ]
            for name in self.prefill.latency
        ]
        return title, head, rows

    def __str__(self) -> str:
        return table(*self._lines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html(*self._lines())


def rates(
    models: Mapping[str, nn.Module], ids: Tensor, *, threads: int = 1, rounds: int | None = None, clock: str = "wall"
) -> Rates:
    """Time plain models on one prompt (1, n) of token ids: reading all of it, and writing one token after it.

    Writing is timed with the prompt in the cache, which is cut back after each token. `threads`, `rounds` and `clock`
    as in `compare`. Raises PruneError for masks (`bake` first), and a prompt that is no (1, n) of known tokens.
    """
    if ids.dim() != 2 or len(ids) != 1 or ids.shape[1] < 2:
        raise PruneError(f"the prompt's ids are {shape(ids)}: give (1, n), n at least 2")
    reading: dict[str, Task] = {}
    writing: dict[str, Task] = {}
    check_candidates(models)
    with ExitStack() as stack, torch.no_grad():
        for name, model in models.items():
            check_tokens(model, ids)
            stack.enter_context(undisturbed(model))
            reading[name], writing[name] = _tasks(model, ids, name)
        device = device_of(next(iter(models.values()))).type
        clock = resolved(clock, threads, device)
        times = [interleaved(t, threads=threads, rounds=rounds, clock=clock, device=device) for t in (reading, writing)]
    found = [{name: summary(values, 1, threads, device, clock) for name, values in blocks.items()} for blocks in times]
    prefill, decode = (Comparison(f, speedups(t)) for f, t in zip(found, times, strict=True))
    return Rates(prefill, decode, ids.shape[1])


def _tasks(model: Any, ids: Tensor, name: str) -> tuple[Task, Task]:
    device = device_of(model)
    prompt = ids.to(device)
    try:
        first = model(input_ids=prompt, use_cache=True)
    except TypeError as error:  # no such arguments: `attempt` would drop all of the output but its logits
        raise PruneError(
            f"{name}, a {type(model).__name__}, takes no input_ids and use_cache ({error}): give a causal language "
            "model, such as AutoModelForCausalLM loads"
        ) from error
    cache = copy.deepcopy(_cache(first))
    following = first.logits[:, -1:].argmax(-1)

    def read() -> None:
        attempt(model, {"input_ids": prompt, "use_cache": True})

    def write() -> None:
        model(input_ids=following, **{_argument(first): cache}, use_cache=True)
        cache.crop(-1)

    return waited_for(read, device), waited_for(write, device)


def _argument(output: Any) -> str:
    """Transformers renames `past_key_values` to `cache`; the output says which one it is."""
    return "cache" if getattr(output, "cache", None) is not None else "past_key_values"


def _cache(output: Any) -> Any:
    return getattr(output, _argument(output))
