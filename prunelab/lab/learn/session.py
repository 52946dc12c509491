"""The first cell of every notebook: the same seeds, threads and style everywhere, and versions that fit."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import random
import re
from html import escape

import matplotlib
import numpy as np
import torch
from packaging.requirements import Requirement

from ..show import display, figure
from ..show.measuring import NO_CUDA, measured

SEED = 0


class VersionError(RuntimeError):
    """A package is missing or does not fit; the message says which command mends it."""


def start(notebook: str) -> None:
    """Seed torch, NumPy and random, take one thread, set the figure style, check versions; safe to run again."""
    if not re.fullmatch(r"\d\d", notebook):
        raise ValueError(f'lab.start takes the notebook\'s two digits, e.g. lab.start("04"); it got {notebook!r}')
    check_versions(requirements())
    random.seed(SEED)
    np.random.seed(SEED)  # the global generators too: a learner's own code may use them
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    matplotlib.rcParams.update(figure.STYLE)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cuda = measured(count, "CUDA devices" if count > 1 else "CUDA device", digits=1) if count else NO_CUDA
    text = f"Notebook {notebook} is ready: seed {SEED}, one torch thread (steadier timings), versions fit, GPU: {cuda}."
    display.show(text, html=f"<div>{escape(text)}</div>")


def requirements() -> list[Requirement]:
    """What the installed prunelab says it needs: one place, pyproject.toml, decides."""
    try:
        lines = metadata.requires("prunelab") or []
    except metadata.PackageNotFoundError:
        return []  # run from a source folder: nobody promised versions
    parsed = [Requirement(line) for line in lines]
    return [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]


def check_versions(needed: list[Requirement]) -> None:
    """Raise VersionError, with the command that mends it, for each package that is missing or does not fit."""
    problems = []
    for requirement in needed:
        try:
            have = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append((requirement, "is missing"))
            continue
        if not requirement.specifier.contains(have, prereleases=True):
            problems.append((requirement, f"is {have}, and the course needs {requirement.specifier}"))
    if problems:
        what = "; ".join(f"{r.name} {trouble}" for r, trouble in problems)
        wanted = " ".join(f'"{r.name}{r.specifier}"' for r, _ in problems)
        raise VersionError(f"{what}. Run `python -m pip install {wanted}` in a terminal, then restart the kernel.")
