"""A clock that counts MACs, for tests of searches: nothing depends on how busy the real machine is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from prunelab.measurement import macs
from prunelab.measurement.timing import Speedup

MAC, LAUNCH = 1e-9, 1e-7  # seconds


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `fit_budget` and the exam time by it."""
    monkeypatch.setattr("prunelab.budget.costs.in_turns", counted)
    monkeypatch.setattr("prunelab.budget.search.compare", compared)
    monkeypatch.setattr("prunelab.budget.job.liked_multiple", lambda *_: 4)
    monkeypatch.setattr("prunelab.lab.learn.exam.compare", compared)


def counted(tasks: dict[str, Any], on: Any) -> dict[str, list[float]]:
    """The times of single layers."""
    times = {}
    for name, task in tasks.items():
        with FlopCounterMode(display=False) as counter:
            task()
        times[name] = [LAUNCH + MAC * counter.get_total_flops() / 2] * 7
    return times


def compared(models: dict[str, Any], data: Any, **_: Any) -> SimpleNamespace:
    """The times of whole networks, on a batch or on a list of batches of (inputs, targets)."""
    batch, size = (data[:1], len(data)) if isinstance(data, Tensor) else (data[0][0], len(data[0][1]))
    taken = {n: 10 * LAUNCH + MAC * macs(m, batch) * size for n, m in models.items()}
    first = next(iter(taken.values()))
    speed = {n: Speedup(*[first / t] * 3) for n, t in taken.items()}
    return SimpleNamespace(latency={n: SimpleNamespace(p50=t) for n, t in taken.items()}, speedup=speed)
