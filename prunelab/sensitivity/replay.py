"""Run a model again from the first layer that changed: what was computed before it is remembered."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..core import lookup_all
from ..running import apart, call, children, cut, floating

Weights = dict[str, Tensor]  # parameter name -> what to compute with in its place
PROBED = 8  # samples on which a replay is compared with a whole forward
CLOSE = 1e-4  # of the largest output: float rounding is far below, any real difference far above


class _Reached(BaseException):
    """Thrown out of a forward when the first changing layer is entered: the rest of that run is not needed."""


class _Called(nn.Module):
    """A model under the one way of calling it that data of all kinds allow."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return call(self.model, inputs)


class Replay:
    """Runs a model with other values of the given tensors, each time from the first layer that holds one of them.

    A forward is a sequence of calls. Every submodule that had returned before that layer was entered computed the same
    as it will with other weights: `record` keeps what it returned for a batch, and in `run` it returns that at once.
    No graph is traced, so that any forward will do, residuals and loops included; only the code between the calls runs
    again. `reusable` compares with a whole forward, in case a model uses weights behind its layers' backs.
    A forward may write into what a module returned: so copies are kept, and copies given back.

    The model's forwards are wrapped for good: give a copy, in eval mode and without masks.
    """

    def __init__(self, model: nn.Module, tensors: Iterable[str]):
        self.called = _Called(model)
        self.outputs: list[Any] = []  # of the calls before the first changing layer, in order
        self._doing, self._at = "whole", 0
        self._open, self._inside, self._found = False, False, False
        owners = {place.module for places in lookup_all(model, tensors).values() for place in places}
        around = _ancestors(model, owners)
        unmissed = {child for module in around for child in _passed_on(module, around)}
        for module in model.modules():
            if module in owners:
                module.forward = self._entered(module.forward)
            elif module in around:
                module.forward = self._left(module.forward)
            else:
                module.forward = self._remembered(module.forward, keep=module not in unmissed)

    def whole(self, weights: Mapping[str, Tensor], inputs: Any) -> Any:
        """The outputs of a plain forward with these weights."""
        return functional_call(self.called, {f"model.{name}": w for name, w in weights.items()}, (inputs,))

    def record(self, inputs: Any) -> None:
        """Remember what comes before the changing layers, for the next `run`s on the same inputs."""
        self.outputs, self._open, self._found = [], True, False
        self._doing = "record"
        try:
            call(self.called.model, inputs)
        except _Reached:
            pass
        finally:
            self._doing = "whole"

    def run(self, weights: Mapping[str, Tensor], inputs: Any) -> Any:
        """The outputs with these weights, from what `record` remembers of the same inputs."""
        self._doing, self._at = "replay", 0
        try:
            return self.whole(weights, inputs)
        finally:
            self._doing = "whole"

    def stacked(self, several: Sequence[Weights], inputs: Any) -> Tensor:
        """`run` for several weights at once, their outputs along a new first dimension: one larger batch."""
        stack = {name: torch.stack([weights[name] for weights in several]) for name in several[0]}
        return vmap(lambda weights: self.run(weights, inputs))(stack)

    def reusable(self, weights: Weights, inputs: Any) -> bool:
        """Whether `run` can be relied on with this model: tried on a few samples of the inputs."""
        try:
            few = cut(inputs, PROBED)
            self.record(few)
            splits = self._found or bool(self.outputs)  # nothing comes before a first layer: that is no failure
            return splits and _close(self.run(weights, few), self.whole(weights, few))
        except Exception:  # whatever a model's code says to being run in parts
            return False

    def stackable(self, weights: Weights, inputs: Any) -> bool:
        """Whether `stacked` can: some operations cannot be batched, such as writing into what all share."""
        try:
            few = cut(inputs, PROBED)
            self.record(few)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # torch warns of operations that it can only batch in a slow loop
                each = self.stacked([weights, weights], few)
            return all(_close(outputs, self.run(weights, few)) for outputs in each)
        except Exception:  # whatever a model's code says to tensors that are several in one
            return False

    def _remembered(self, forward: Callable, *, keep: bool) -> Callable:
        """A submodule that no weight changes in: its calls before the first changing layer are kept, or given back."""

        @wraps(forward)
        def remembered(*args: Any, **kwargs: Any) -> Any:
            if self._doing == "replay" and self._at < len(self.outputs):
                self._at += 1
                return copy.deepcopy(self.outputs[self._at - 1])
            if self._doing != "record" or not self._open or self._inside:
                return forward(*args, **kwargs)
            self._inside = True
            try:
                out = forward(*args, **kwargs)
            finally:
                self._inside = False
            self.outputs.append(copy.deepcopy(out) if keep else None)
            return out

        return remembered

    def _entered(self, forward: Callable) -> Callable:
        """A layer whose weights change: nothing from here on is remembered."""

        @wraps(forward)
        def entered(*args: Any, **kwargs: Any) -> Any:
            if self._doing == "record" and self._open:
                self._open, self._found = False, True
                raise _Reached
            return forward(*args, **kwargs)

        return entered

    def _left(self, forward: Callable) -> Callable:
        """A module around such a layer: left without having entered it, it may have used the weights itself.

        MultiheadAttention does, with those of its out_proj. Then what came before the module is the most to remember.
        """

        @wraps(forward)
        def left(*args: Any, **kwargs: Any) -> Any:
            before = len(self.outputs)
            out = forward(*args, **kwargs)
            if self._doing == "record" and self._open:
                self._open = False
                del self.outputs[before:]
            return out

        return left


def _ancestors(model: nn.Module, owners: set[nn.Module]) -> set[nn.Module]:
    """The owners, and every module that has one somewhere inside."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found = set()
    for path, module in modules.items():
        if module in owners:
            parts = path.split(".") if path else []
            found |= {modules[".".join(parts[:i])] for i in range(len(parts) + 1)}
    return found


def _passed_on(module: nn.Module, around: set[nn.Module]) -> set[nn.Module]:
    """Children whose output nobody will miss: in a Sequential, each feeds the next, and that one is remembered too."""
    if type(module).forward is not nn.Sequential.forward:
        return set()
    own = list(children(module).values())
    once = {c for c in own if own.count(c) == 1}
    return {a for a, b in pairwise(own) if a in once and b in once and b not in around}


def _close(given: Any, expected: Any) -> bool:
    return apart(floating(expected), floating(given)) <= CLOSE
