"""Faults of a file system: an error, or the process's end, at any step of a write and after any byte."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.truncate", "shutil.rmtree", "shutil.move"}
PATIENCE = 60.0  # seconds
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Steps:
    """An audit hook that sees each step that changes a folder, and may fail or die at one of them.

    Hooks cannot be taken off again, so there is one, which looks away unless it is told to watch.
    """

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen = 0
        self.at: int | None = None
        self.die = False
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if self.folder is None or event not in STEPS or not self._ours(event, args):
            return
        self.seen += 1
        if self.seen - 1 == self.at:
            if self.die:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, "injected: no space left on device")

    def _ours(self, event: str, args: tuple[object, ...]) -> bool:
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITES):
            return False
        return self.folder in os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else False

    @contextmanager
    def watch(self, folder: Path, at: int | None = None, *, die: bool = False) -> Iterator[Steps]:
        """Count the steps in a folder; fail or die at the one numbered `at`."""
        self.seen, self.at, self.die, self.folder = 0, at, die, str(folder)
        try:
            yield self
        finally:
            self.folder = None


STEP = Steps()


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the write that wants to is cut short, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def killed(work: Callable[[], object], *, step: tuple[Path, int] | None = None, size: int | None = None) -> bool:
    """Run in a copy of this process that is killed at a step, or by the kernel at a byte; whether it was.

    tqdm has one lock for a process and its copies: whoever is killed with it would stop all others for ever.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of fork beside threads; the child only writes files
        child = os.fork()
    if child == 0:
        try:
            tqdm.set_lock(threading.RLock())
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if size is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            if step is not None:
                with STEP.watch(step[0], step[1], die=True):
                    work()
            else:
                work()
        finally:
            os._exit(0)
    end = time.monotonic() + PATIENCE
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"the copy did not come to an end within {PATIENCE} s")
        time.sleep(0.001)
    return os.WIFSIGNALED(found[1])
