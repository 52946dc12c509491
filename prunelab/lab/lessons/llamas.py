"""The Llama's texts, what it answers, and how a pruned one is judged: what the lessons on language models share."""

from __future__ import annotations

import sysconfig
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from ... import zoo
from ...calibration import Calibration
from ...language import next_token_loss, next_tokens, tokens, windows, write
from ...measurement import perplexity
from ..learn.stored_grid import Run

LENGTH = 256
TESTED = CALIBRATED = 16  # windows
QUESTION = "Why does a gardener prune a tree?"
WRITTEN = 32  # tokens
SOURCES = ("argparse", "ast", "calendar", "csv", "fractions", "heapq", "statistics")  # of the standard library


@dataclass(frozen=True)
class Text:
    """A text as windows of 256 tokens: 16 to test, the last 16 to calibrate, those between to heal."""

    test: Tensor
    train: Tensor
    calib: Calibration

    def some(self, count: int) -> Calibration:
        """The first windows of the calibration."""
        (inputs, targets), *_ = self.calib.batches
        return Calibration(((inputs[:count], targets[:count]),), self.calib.loss)


def text_for(llama: zoo.Llama, kind: str = "prose") -> Text:
    """The three pieces in the Llama's own tokens: of "prose", the Python reference, or "code", the standard library."""
    whole = zoo.reference_text() if kind == "prose" else source_text()
    rows = windows(tokens(llama.tokenizer, whole, llama.model), LENGTH)
    calib = Calibration((next_tokens(rows[-CALIBRATED:]),), next_token_loss)
    return Text(rows[:TESTED], rows[TESTED:-CALIBRATED], calib)


def source_text() -> str:
    """Some modules of Python's standard library, as they stand on the disk: code, and no download."""
    home = Path(sysconfig.get_path("stdlib"))
    return "\n\n".join((home / f"{name}.py").read_text(encoding="utf-8") for name in SOURCES)


def answer(llama: zoo.Llama, model: nn.Module | None = None, count: int = WRITTEN) -> str:
    """What the Llama, or a pruned one, says when asked why a gardener prunes a tree: always its likeliest words."""
    return write(llama.model if model is None else model, llama.tokenizer, llama.prompt(QUESTION), count).strip()


def judged(model: Any, llama: zoo.Llama, test: Tensor, *, writes: bool = True) -> Run:
    """A run of a grid: perplexity with its interval and its windows' losses, accuracy, size, and what is written."""
    found = perplexity(model, test)
    low, high = found.interval or (found.value, found.value)
    run = {"perplexity": found.value, "low": low, "high": high, "losses": [round(x, 5) for x in found.losses]}
    run |= {"accuracy": found.accuracy, "parameters": sum(p.numel() for p in model.parameters())}
    return run | {"text": answer(llama, model)} if writes else run


def streams(model: Any, ids: Tensor) -> list[Tensor]:
    """What enters each block, and what leaves the last: a list of (windows, tokens, hidden)."""
    inner = model.model
    norm, inner.norm = inner.norm, nn.Identity()  # else the last of them would come normed
    try:
        with torch.no_grad():
            states = [inner(one, output_hidden_states=True, use_cache=False).hidden_states for one in ids.split(1)]
    finally:
        inner.norm = norm
    return [torch.cat(layer) for layer in zip(*states, strict=True)]


def said(ax: Axes, title: str, run: Run) -> None:
    """What a Llama of a stored run says, as a page of text, under its name and its perplexity."""
    ax.axis("off")
    ax.set_title(f"{title}: perplexity {run['perplexity']:.3g}", loc="left", fontweight="bold")
    shown = " ".join(run["text"].split()).replace("$", r"\$") or "(nothing)"
    lines = "\n".join(textwrap.wrap(shown, 78, break_long_words=True)[:7])
    ax.text(0, 0.95, f"“{lines}”", va="top", ha="left", fontsize=11, family="serif", transform=ax.transAxes)
