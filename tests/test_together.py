"""Writers beside each other, in threads and in processes: each is either wholly there or not at all, none is lost."""

from __future__ import annotations

import multiprocessing
import stat
import threading
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

import prunelab as pl
from prunelab import zoo
from prunelab.lab.learn import progress

WRITERS = 3
RECORDS = 100  # more of them, by hand: nothing lost


def network(seed):
    return zoo.mlp(inputs=4, hidden=[6], classes=2, seed=seed)


def save_plans(folder: Path, seed: int) -> None:
    model = network(seed)
    groups = pl.granularity.neurons(model, torch.zeros(1, 4))
    keep = pl.allocate(pl.criteria.magnitude(model), groups, 0.4)
    for _ in range(3):
        pl.save_plan(folder, groups, keep, pl.shrink(model, groups, keep))
        pl.load_plan(folder, network(9))


def save_networks(folder: Path, seed: int) -> None:
    card = {"architecture": "mlp", "arguments": {"inputs": 4, "hidden": [6], "classes": 2}}
    for n in range(4):
        zoo.trained.save_checkpoint(f"of-{seed}-{n}", network(seed), card, folder=folder)
        zoo.trained.save_checkpoint("shared", network(seed), card, folder=folder)


def record(folder: Path, seed: int) -> None:
    kernel = progress.Store(folder)
    for n in range(RECORDS):
        kernel.record("exercises", f"{seed}-{n}", {"solved": True})


def quietly(job, failed) -> None:
    try:
        job()
    except BaseException as error:
        failed.put(repr(error))


def together(kind: str, jobs) -> list[str]:
    """Run them at once; what went wrong."""
    context = multiprocessing.get_context("fork")
    failed = context.Queue()
    begin = threading.Thread if kind == "threads" else context.Process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of fork beside threads; the children only write files
        workers = [begin(target=quietly, args=(job, failed)) for job in jobs]
        for worker in workers:
            worker.start()
    for worker in workers:
        worker.join()
    return [failed.get() for _ in range(failed.qsize())]


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_savers_and_readers_of_one_plan(tmp_path, kind):
    assert together(kind, [partial(save_plans, tmp_path / "plan", seed) for seed in range(WRITERS)]) == []
    pl.load_plan(tmp_path / "plan", network(9))
    assert len(list((tmp_path / "plan").glob("weights-*"))) == 1, "the others' weights have gone, and none that count"


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_savers_of_networks_in_one_folder(tmp_path, kind):
    assert together(kind, [partial(save_networks, tmp_path, seed) for seed in range(WRITERS)]) == []
    assert len(zoo.checkpoints(tmp_path)) == 4 * WRITERS + 1, "no card was lost to another's"
    for name in zoo.checkpoints(tmp_path):
        zoo.checkpoint(name, folder=tmp_path)
    assert not list(tmp_path.glob("*.new"))


def test_two_kernels_with_hundreds_of_records(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "LOCK_SECONDS", 60.0)  # on a busy machine one waits long while the other never rests
    assert together("processes", [partial(record, tmp_path, seed) for seed in range(2)]) == []
    kept = progress.Store(tmp_path).read()
    assert len(kept["exercises"]) == 2 * RECORDS
    assert len(kept["learner"]) == 32
    assert stat.S_IMODE((tmp_path / "progress.json").stat().st_mode) & 0o077 == 0


def test_threads_that_trace_and_count_leave_torchs_switches_as_they_were():
    """Two that set a switch of the process and put it back in turns would leave it off."""

    def job() -> None:
        net = network(1)
        for _ in range(40):
            pl.measurement.macs(net, torch.zeros(2, 4))
            pl.granularity.neurons(net, torch.zeros(2, 4))

    assert together("threads", [job] * 4) == []
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled == torch.backends.mkldnn.is_available()
    assert torch.backends.cuda.flash_sdp_enabled()
