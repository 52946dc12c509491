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
from . import exercise, progress

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
    display.show(text, html=f"<div>{escape(text)}</div>" + display.PAGE + display.yours(_journey(notebook)))


def _journey(notebook: str) -> str:
    """Where the learner is: each lesson with what is solved of it, and the one that comes next."""
    solved, all_of = progress.current().solved(), exercise.by_lesson()
    steps = []
    for number in exercise.numbers():
        done, total = len(solved & all_of.get(number, set())), len(all_of.get(number, ()))
        mark = "●" if done == total else "◐" if done else "○"
        said = f"notebook {number}: {done} of {total} exercises solved"
        step = f'<span role="img" aria-label="{said}" title="{said}">{mark} {number}</span>'
        steps.append(f"<strong>{step}</strong>" if number == notebook else step)
    left = len(all_of.get(notebook, set()) - solved)
    here = f"{left} of its exercises are left." if left else "All of its exercises are solved."
    return f"<div>Your way through the course: {' &nbsp; '.join(steps)}<br>This is notebook {notebook}. {here}</div>"


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
