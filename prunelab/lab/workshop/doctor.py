"""The evening before: is this machine ready for the course? Facts are gathered in one place and judged in another."""

from __future__ import annotations

import importlib.metadata as metadata
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from ... import recovery, zoo
from ..learn import progress, session
from . import stored_timings

GOOD, NOTE, BAD = "ok", "note", "PROBLEM"
PYTHON = (3, 11)
DISK, LLAMA_DISK = 0.2e9, 0.8e9  # bytes: progress, plans and copies; a language model besides
MEMORY = 1.5e9  # bytes a kernel may need where nothing was measured
SECONDS = 10.0  # of the trial
SLOW = 3.0  # times the reference machine's time: worth a sentence


@dataclass(frozen=True)
class Facts:
    """What was found on a machine; whatever could not be found out is None."""

    python: tuple[int, int]
    versions: str | None  # what does not fit, with the command that mends it
    folder: Path  # of the progress file
    unwritable: str | None  # why nothing can be written there
    unsaved: str | None  # why nothing can be written where we stand
    disk: float | None  # bytes free
    cores: int  # that this process may use
    threads: int  # that torch would take
    memory: float  # bytes available
    gpu: str | None
    trial: float | None  # seconds for one training step
    broken: str | None  # what went wrong in the trial


@dataclass(frozen=True)
class Finding:
    """One sentence about the machine; what to do, if anything, is part of it."""

    level: str
    text: str


def main() -> int:
    """Look, judge and print; 0 if the course can be taken here, 1 if something must be mended first."""
    print("Looking at this machine; a ten-second trial is part of it ...", flush=True)
    findings = judge(look(), stored_timings.reference())
    print("\n".join(f"{f.level:>7}  {f.text}" for f in findings))
    bad = [f for f in findings if f.level == BAD]
    print(f"\n{_verdict(len(bad))}")
    return int(bool(bad))


def look() -> Facts:
    """The facts of this machine."""
    folder = progress.current().path.parent
    facts = Facts(
        python=sys.version_info[:2],
        versions=_versions(),
        folder=folder,
        unwritable=_unwritable(folder),
        unsaved=_unwritable(Path.cwd()),
        disk=_disk(folder),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory=float(psutil.virtual_memory().available),
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        trial=None,
        broken=None,
    )
    try:
        return replace(facts, trial=trial())
    except Exception as error:  # whatever is wrong with this installation is what we are here to tell
        return replace(facts, broken=f"{type(error).__name__}: {error}")


def trial(seconds: float = SECONDS) -> float:
    """Train a small network on one thread for a while; the median seconds of computing for one step of 64 digits.

    What other programs take of the processor meanwhile does not count. RuntimeError if what it learned is not finite.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data, model = zoo.load("digits"), zoo.cnn(seed=0)
        times: list[float] = []
        began = time.perf_counter()
        while not times or time.perf_counter() - began < seconds:
            start = time.process_time()
            recovery.train(model, data.train[:640], epochs=1, batch_size=64, progress=False)
            times.append(time.process_time() - start)
        if not all(bool(p.isfinite().all()) for p in model.parameters()):
            raise RuntimeError("a short training ended in weights that are not finite")
        return statistics.median(times) / 10
    finally:
        torch.set_num_threads(before)


def judge(facts: Facts, reference: float | None = None) -> list[Finding]:
    """What the facts mean for the course. `reference`: seconds of the trial's step where the times were measured."""
    return [
        _of_python(facts),
        _of_versions(facts),
        *_of_disk(facts),
        _of_cores(facts),
        _of_memory(facts),
        _of_gpu(facts),
        _of_trial(facts, reference),
    ]


def _of_python(facts: Facts) -> Finding:
    have, need = (".".join(map(str, v)) for v in (facts.python, PYTHON))
    if facts.python < PYTHON:
        return Finding(
            BAD, f"Python {have}; the course needs {need} or newer. Install one, and make a new environment."
        )
    return Finding(GOOD, f"Python {have}.")


def _of_versions(facts: Facts) -> Finding:
    if facts.versions:
        return Finding(BAD, f"Packages: {facts.versions}")
    return Finding(GOOD, "Packages: all there, and the versions fit.")


def _of_disk(facts: Facts) -> list[Finding]:
    free = math.inf if facts.disk is None else facts.disk
    return list(_of_writing(facts)) or [_of_space(free, facts.folder)]


def _of_writing(facts: Facts) -> Iterator[Finding]:
    if facts.unwritable:
        yield Finding(
            NOTE,
            f"Disk: nothing can be written in {facts.folder} ({facts.unwritable}). The course works, but forgets your "
            "answers when a kernel stops. Free some space, or set PRUNELAB_HOME to a folder you can write to.",
        )
    if facts.unsaved:
        yield Finding(
            NOTE,
            f"Disk: nothing can be written in the folder you stand in ({facts.unsaved}). Notebooks run there, but "
            "can't be saved: free some space, or copy them elsewhere with `python -m prunelab.lab copy FOLDER`.",
        )


def _of_space(free: float, folder: Path) -> Finding:
    if free < DISK:
        return Finding(
            BAD,
            f"Disk: {free / 1e9:.2f} GB free at {folder}; the course needs {DISK / 1e9:.1f} GB. Delete what you do not "
            "need, or set PRUNELAB_HOME to a folder on another disk.",
        )
    if free < DISK + LLAMA_DISK:
        return Finding(
            NOTE,
            f"Disk: {free / 1e9:.1f} GB free. Enough, except for a language model of your own (about "
            f"{LLAMA_DISK / 1e9:.1f} GB more).",
        )
    return Finding(GOOD, f"Disk: {free / 1e9:.0f} GB free; progress is kept in {folder}.")


def _of_cores(facts: Facts) -> Finding:
    if facts.cores == 1:
        return Finding(
            NOTE,
            "Cores: one. All notebooks run, on one thread as everywhere; close other programs while one is timed, "
            "because whatever else runs takes the same core.",
        )
    return Finding(GOOD, f"Cores: {facts.cores}, and torch would take {facts.threads} threads; the notebooks take one.")


def _of_memory(facts: Facts) -> Finding:
    need = max([t.peak for t in stored_timings.known().values()], default=MEMORY)
    if facts.memory < need:
        return Finding(
            BAD,
            f"Memory: {facts.memory / 1e9:.1f} GB free, and the largest notebook needs {need / 1e9:.1f} GB. Close "
            "other programs (a browser, other kernels), and run one notebook at a time.",
        )
    return Finding(GOOD, f"Memory: {facts.memory / 1e9:.1f} GB free; the largest notebook needs {need / 1e9:.1f} GB.")


def _of_gpu(facts: Facts) -> Finding:
    if facts.gpu:
        return Finding(GOOD, f"GPU: {facts.gpu}. It adds columns to the tables; nothing depends on it.")
    return Finding(GOOD, "GPU: none that torch can use, and none is needed: each notebook says so and goes on.")


def _of_trial(facts: Facts, reference: float | None) -> Finding:
    if facts.broken or facts.trial is None:
        return Finding(
            BAD,
            f"Trial: a short training failed ({facts.broken}). Mend the packages above first; if they are fine, make a "
            "new environment and install the course there.",
        )
    if not reference:
        return Finding(GOOD, f"Trial: {1e3 * facts.trial:.0f} ms for a training step.")
    ratio = facts.trial / reference
    text = f"Trial: {1e3 * facts.trial:.0f} ms for a training step, {ratio:.1f} times the guide's machine"
    if ratio > SLOW:
        return Finding(
            NOTE,
            f"{text}. Expect the notebooks to take as many times longer; plug in the power, leave any saving mode, and "
            "try again.",
        )
    return Finding(GOOD, f"{text}.")


def _verdict(bad: int) -> str:
    if bad:
        return f"Not ready: {bad} problem{'s' if bad > 1 else ''} to mend. Then run this again."
    return "Ready. Start with `jupyter lab` and notebook 00."


def _versions() -> str | None:
    try:
        session.check_versions(session.requirements())
    except session.VersionError as error:
        return str(error)
    try:
        metadata.requires("prunelab")
    except metadata.PackageNotFoundError:
        return "prunelab is not installed here. Run `python -m pip install -e . -c constraints.txt` in its folder."
    return None


def _unwritable(folder: Path) -> str | None:
    """Why a small file can't be written into a folder; None if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"prunelab" * 2**13)
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _disk(folder: Path) -> float | None:
    """Bytes free where a folder is, or would be."""
    try:
        place = next(p for p in (folder, *folder.parents) if p.exists())
        return float(shutil.disk_usage(place).free)
    except (OSError, StopIteration):
        return None
