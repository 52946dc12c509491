import random

import matplotlib
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from prunelab import lab
from prunelab.lab.learn import session


@pytest.fixture(autouse=True)
def as_it_was():
    """Threads, random states and style belong to the other tests too."""
    threads, torch_state, numpy_state, state = (
        torch.get_num_threads(), torch.get_rng_state(), np.random.get_state(), random.getstate())  # fmt: skip
    flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    with matplotlib.rc_context():
        yield
    torch.set_num_threads(threads)
    torch.set_rng_state(torch_state)
    np.random.set_state(numpy_state)
    random.setstate(state)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = flags


def test_start_gives_the_same_numbers_and_the_same_line_each_time(capsys):
    drawn = []
    for _ in range(2):
        lab.start("04")
        drawn.append((torch.rand(3).tolist(), np.random.rand(), random.random()))
    first, second = capsys.readouterr().out.splitlines()
    assert drawn[0] == drawn[1]
    assert first == second
    assert first.startswith("Notebook 04 is ready: seed 0, one torch thread")
    assert torch.get_num_threads() == 1


def test_the_line_says_what_gpu_there_is_in_the_measured_form(capsys, monkeypatch):
    import re

    from prunelab.lab.show.measuring import PATTERN

    lines = []
    for count in (0, 1, 2):
        monkeypatch.setattr(torch.cuda, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        lab.start("04")
        lines.append(capsys.readouterr().out)
    assert len(set(lines)) == 3
    assert len({re.sub(PATTERN, "", line) for line in lines}) == 1


@pytest.mark.parametrize("notebook", ["3", "003", "", "ab", "03 "])
def test_a_notebook_has_two_digits(notebook):
    with pytest.raises(ValueError, match="two digits"):
        lab.start(notebook)


def test_versions_that_do_not_fit_are_named_with_the_command_that_mends_it():
    needs = [Requirement("torch>=99"), Requirement("no-such-package>=1"), Requirement("numpy>=1")]
    with pytest.raises(session.VersionError) as caught:
        session.check_versions(needs)
    message = str(caught.value)
    assert 'python -m pip install "torch>=99" "no-such-package>=1"' in message
    assert "numpy" not in message
    session.check_versions([Requirement("numpy>=1")])


def test_the_requirements_are_those_of_the_package(monkeypatch):
    lines = ["torch>=2.9", 'pytest>=8; extra == "test"']
    monkeypatch.setattr(session.metadata, "requires", lambda name: lines)
    assert [str(r) for r in session.requirements()] == ["torch>=2.9"]

    def absent(name):
        raise session.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(session.metadata, "requires", absent)
    assert session.requirements() == []
