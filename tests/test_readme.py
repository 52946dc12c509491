"""The README's code, run as it stands, on a model and a loader that know nothing of it."""

import re
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, TensorDataset

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_library_snippets_run_one_after_the_other(build, data_for, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    names = {"model": build("cnn"), "loader": DataLoader(TensorDataset(*data_for("cnn")), batch_size=8, shuffle=True)}
    names["held_out"] = names["loader"]
    for block in blocks:
        block = block.replace("latency=0.5", "macs=0.5")  # of a network of four filters no clock says a half
        exec(compile(block, str(README), "exec"), names)
    assert sorted(p.name for p in (tmp_path / "small").iterdir())[0] == "plan.json"
    assert names["after"].nonzero < names["before"].nonzero
    assert "latency, cpu" in capsys.readouterr().out
    assert names["small"][0].out_channels == 2
