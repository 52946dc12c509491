"""The doctor: what it says of machines we do not have, and that it looks at the one we have."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from prunelab.lab.learn import progress, session
from prunelab.lab.workshop import doctor, stored_timings
from prunelab.lab.workshop.doctor import BAD, GOOD, NOTE, Facts

HEALTHY = Facts(
    system="Linux", versions=None, folder=Path("/home/ada/prunelab"), unwritable=None, unsaved=None, disk=50e9, cores=4,
    threads=4, memory=8e9, gpu=None, trial=0.04, broken=None,
)  # fmt: skip


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch):
    monkeypatch.setattr(stored_timings, "known", dict)


def test_a_healthy_machine_is_ready():
    findings = doctor.judge(HEALTHY, 0.04)
    assert {level for level, _ in findings} == {GOOD}
    assert len(findings) == 7
    assert any("1.0 times the guide's machine" in text for _, text in findings)


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"system": "Darwin"}, NOTE, "macOS, where the course was not tried. It computes on the processor."),
        ({"system": "Windows"}, NOTE, "Windows, where the course was not tried"),
        ({"versions": "ipywidgets is 7.7.1. Run `python -m pip install ...`"}, BAD, "ipywidgets is 7.7.1"),
        ({"unwritable": "No space left on device"}, NOTE, "forgets your answers"),
        ({"unsaved": "Read-only file system"}, NOTE, "can't be saved"),
        ({"disk": 1e7}, BAD, "0.01 GB free"),
        ({"disk": 0.5e9}, NOTE, "except for a language model"),
        ({"disk": math.inf}, GOOD, "Disk"),
        ({"cores": 1}, NOTE, "one thread as everywhere"),
        ({"memory": 0.5e9}, BAD, "Close other programs"),
        ({"gpu": "H100"}, GOOD, "H100"),
        ({"broken": "ImportError: x"}, BAD, "a short training failed (ImportError: x)"),
        ({"trial": 0.4}, NOTE, "10.0 times the guide's machine"),
    ],
)
def test_each_trouble_is_said_with_what_to_do(change, level, words):
    findings = doctor.judge(replace(HEALTHY, **change), 0.04)
    (found,) = [f for f in findings if words in f[1]]
    assert found[0] == level
    assert {f[0] for f in findings if f is not found} == {GOOD}


def test_without_a_reference_the_trial_is_told_as_it_is():
    assert any("40 ms for a training step." in text for _, text in doctor.judge(HEALTHY))


@pytest.mark.parametrize(("change", "code", "last"), [({}, 0, "Ready."), ({"disk": 1e7}, 1, "Not ready: 1 problem to")])
def test_the_exit_code_says_whether_something_must_be_mended(monkeypatch, capsys, change, code, last):
    monkeypatch.setattr(doctor, "look", lambda: replace(HEALTHY, **change))
    assert doctor.main() == code
    out = capsys.readouterr().out
    assert out.strip().splitlines()[-1].startswith(last)
    assert out.count(BAD) == code


def test_it_looks_at_this_machine(monkeypatch, home):
    monkeypatch.setattr(doctor, "trial", lambda: 0.01)
    facts = doctor.look()
    assert facts.folder == home
    assert facts.unwritable is None
    assert facts.cores >= 1
    assert facts.memory > 0
    assert facts.disk > 0
    assert home.exists()


def test_an_old_package_is_found(monkeypatch):
    found = session.metadata.version
    monkeypatch.setattr(session, "requirements", lambda: [session.Requirement("ipywidgets>=8.1.5")])
    monkeypatch.setattr(session.metadata, "version", lambda n: "7.7.1" if n == "ipywidgets" else found(n))
    assert "ipywidgets is 7.7.1, and the course needs >=8.1.5. Run" in doctor._versions()


def test_a_folder_that_cant_be_written_is_found(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert doctor._unwritable(tmp_path / "file" / "deep")
    assert doctor._disk(tmp_path / "not" / "there") > 0
    monkeypatch.setattr(
        doctor.tempfile, "TemporaryFile", lambda dir: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    assert doctor._unwritable(tmp_path) == "No space left"


def test_whatever_breaks_in_the_trial_is_told(monkeypatch):
    monkeypatch.setattr(doctor.zoo, "load", lambda name: (_ for _ in ()).throw(ImportError("no sklearn")))
    assert doctor.look().broken == "ImportError: no sklearn"
    assert progress.current().read()["predictions"] == {}


def test_the_trial_trains_for_a_moment_and_leaves_the_threads_alone():
    before = doctor.torch.get_num_threads()
    assert 0 < doctor.trial(seconds=0.1) < 5
    assert doctor.torch.get_num_threads() == before
