"""The evening before: is this machine ready for the course? Facts are gathered in one place and judged in another."""

from __future__ import annotations

import importlib.metadata as metadata
import math
import os
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ... import recovery, zoo
from ..learn import progress, session
from . import stored_timings

GOOD, NOTE, BAD = "ok", "note", "PROBLEM"
DISK, LLAMA_DISK = 0.2e9, 0.8e9  # bytes: progress, plans and copies; a language model besides
MEMORY = 1.5e9  # bytes a kernel may need where nothing was measured
SECONDS = 10.0  # of the trial
SLOW = 3.0  # times the reference machine's time: worth a sentence

Finding = tuple[str, str]  # how bad it is, and a sentence about the machine; what to do, if anything, is part of it


@dataclass(frozen=True)
class Facts:
    """What was found on a machine."""

    system: str  # "Linux", "Darwin", "Windows"
    versions: str | None  # what does not fit, with the command that mends it
    folder: Path  # of the progress file
    unwritable: str | None  # why nothing can be written there
    unsaved: str | None  # why nothing can be written where we stand
    disk: float  # bytes free
    cores: int  # that this process may use
    threads: int  # that torch would take
    memory: float  # bytes available
    gpu: str | None
    trial: float  # seconds for one training step
    broken: str | None  # what went wrong in the trial


def main() -> int:
    """Look, judge and print; 0 if the course can be taken here, 1 if something must be mended first."""
    print("Looking at this machine; a ten-second trial is part of it ...", flush=True)
    findings = judge(look(), stored_timings.stored().get("trial"))
    print("\n".join(f"{level:>7}  {text}" for level, text in findings))
    bad = sum(level == BAD for level, _ in findings)
    if bad:
        print(f"\nNot ready: {bad} problem{'s' if bad > 1 else ''} to mend. Then run this again.")
    else:
        print("\nReady. Next: `python -m prunelab.lab copy mine && jupyter lab mine/00_start_here.ipynb`")
    return int(bad > 0)


def look() -> Facts:
    """The facts of this machine."""
    folder = progress.current().path.parent
    step, broken = math.nan, None
    try:
        step = trial()
    except Exception as error:  # whatever is wrong with this installation is what we are here to tell
        broken = f"{type(error).__name__}: {error}"
    return Facts(
        system=platform.system(),
        versions=_versions(),
        folder=folder,
        unwritable=_unwritable(folder),
        unsaved=_unwritable(Path.cwd()),
        disk=_disk(folder),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory=float(psutil.virtual_memory().available),
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        trial=step,
        broken=broken,
    )


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
    none = "none that torch can use, and none is needed: each notebook says so and goes on."
    gpu = f"{facts.gpu}. It adds columns to the tables; nothing depends on it." if facts.gpu else none
    packages = (BAD, facts.versions) if facts.versions else (GOOD, "all there, and the versions fit.")
    return [
        _of_system(facts),
        (packages[0], f"Packages: {packages[1]}"),
        *(_of_writing(facts) or [_of_space(facts)]),
        _of_cores(facts),
        _of_memory(facts),
        (GOOD, f"GPU: {gpu}"),
        _of_trial(facts, reference),
    ]


def _of_system(facts: Facts) -> Finding:
    python = f"Python {platform.python_version()}"
    if facts.system == "Linux":
        return GOOD, f"{python}, Linux."
    if facts.system == "Darwin":
        mps = "Apple's GPU (MPS) is left alone: it has no 64-bit floats, and scores and proofs are summed in them."
        return NOTE, f"{python}, macOS, where the course was not tried. It computes on the processor. {mps}"
    return NOTE, f"{python}, {facts.system}, where the course was not tried: say what fails, please."


def _of_writing(facts: Facts) -> list[Finding]:
    lost = (
        f"Disk: nothing can be written in {facts.folder} ({facts.unwritable}). The course works, but forgets your "
        "answers when a kernel stops. Free some space, or set PRUNELAB_HOME to a folder you can write to."
    )
    unsaved = (
        f"Disk: nothing can be written in the folder you stand in ({facts.unsaved}). Notebooks run there, but can't be "
        "saved: free some space, or copy them elsewhere with `python -m prunelab.lab copy FOLDER`."
    )
    return [(NOTE, lost)] * bool(facts.unwritable) + [(NOTE, unsaved)] * bool(facts.unsaved)


def _of_space(facts: Facts) -> Finding:
    free = facts.disk / 1e9
    if facts.disk < DISK:
        return BAD, (
            f"Disk: {free:.2f} GB free at {facts.folder}; the course needs {DISK / 1e9:.1f} GB. Delete what you do not "
            "need, or set PRUNELAB_HOME to a folder on another disk."
        )
    if facts.disk < DISK + LLAMA_DISK:
        more = f"(about {LLAMA_DISK / 1e9:.1f} GB more)"
        return NOTE, f"Disk: {free:.1f} GB free. Enough, except for a language model of your own {more}."
    return GOOD, f"Disk: {free:.0f} GB free; progress is kept in {facts.folder}."


def _of_cores(facts: Facts) -> Finding:
    if facts.cores == 1:
        return NOTE, (
            "Cores: one. All notebooks run, on one thread as everywhere; close other programs while one is timed, "
            "because whatever else runs takes the same core."
        )
    return GOOD, f"Cores: {facts.cores}, and torch would take {facts.threads} threads; the notebooks take one."


def _of_memory(facts: Facts) -> Finding:
    need = max([t.peak for t in stored_timings.known().values()], default=MEMORY)
    found = f"Memory: {facts.memory / 1e9:.1f} GB free"
    if facts.memory < need:
        return BAD, (
            f"{found}, and the largest notebook needs {need / 1e9:.1f} GB. Close other programs (a browser, other "
            "kernels), and run one notebook at a time."
        )
    return GOOD, f"{found}; the largest notebook needs {need / 1e9:.1f} GB."


def _of_trial(facts: Facts, reference: float | None) -> Finding:
    if facts.broken:
        return BAD, (
            f"Trial: a short training failed ({facts.broken}). Mend the packages above first; if they are fine, make a "
            "new environment and install the course there."
        )
    text = f"Trial: {1e3 * facts.trial:.0f} ms for a training step"
    if not reference:
        return GOOD, f"{text}."
    text += f", {facts.trial / reference:.1f} times the guide's machine."
    if facts.trial > SLOW * reference:
        return NOTE, (
            f"{text} Expect the notebooks to take as many times longer; plug in the power, leave any saving mode, and "
            "try again."
        )
    return GOOD, text


def _versions() -> str | None:
    try:
        metadata.requires("prunelab")
        session.check_versions(session.requirements())
    except metadata.PackageNotFoundError:
        return "prunelab is not installed here. Run `python -m pip install -e . -c constraints.txt` in its folder."
    except session.VersionError as error:
        return str(error)
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


def _disk(folder: Path) -> float:
    """Bytes free where a folder is, or would be; unlimited where that can't be found out."""
    try:
        place = next(p for p in (folder, *folder.parents) if p.exists())
        return shutil.disk_usage(place).free
    except (OSError, StopIteration):
        return math.inf
