"""The same columns all course: what pruning cost, and what it bought."""

from __future__ import annotations

from typing import Any

from ... import measurement
from ...measurement import Measurement
from ..show import display
from ..show.figure import render_table
from ..show.measuring import NO_CUDA, measured
from . import progress

COLUMNS = ("network", "accuracy ± spread (seeds)", "stored bytes, indices included", "MACs",
           "latency on cpu, p50 [p10, p90]", "latency on cuda, p50 [p10, p90]")  # fmt: skip
Latency = tuple[float, float, float]  # p50, p10, p90 in seconds

_here: dict[str, dict[str, dict[str, Any]]] = {}  # this kernel's rows: notebook -> name -> row


def add(
    notebook: str,
    name: str,
    *,
    accuracy: float,
    bytes: int | str,
    macs: int | str,
    latency: Latency | None = None,
    latency_cuda: Latency | None = None,
    spread: float | None = None,
    seeds: int = 1,
) -> None:
    """Put one network's row on the scoreboard; the same notebook and name replace it.

    `accuracy` and `spread` (standard deviation over the seeds) are fractions; `bytes` counts the stored file with its
    indices; the latencies are (p50, p10, p90) in seconds. Bytes and MACs are counts, compared to the letter: pass
    `lab.measured(...)` where one depends on the run.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy={accuracy!r} is a fraction of the test images; did you mean {accuracy / 100:g}?")
    row = {
        "accuracy": float(accuracy),
        "spread": None if spread is None else float(spread),
        "seeds": int(seeds),
        "bytes": bytes if isinstance(bytes, str) else int(bytes),
        "macs": macs if isinstance(macs, str) else int(macs),
        "latency": _latency(latency),
        "latency_cuda": _latency(latency_cuda),
    }
    _here.setdefault(notebook, {})[name] = row
    progress.current().record("scoreboard", f"{notebook} {name}", row)


def add_measured(
    notebook: str, name: str, measured: Measurement, latency: measurement.Latency | None = None, **more: Any
) -> None:
    """`add` the row of a `pl.measure` result: its bytes are those of the smallest format that counts its indices.

    `latency`: that of a `compare`, timed in turns with the others; else the measurement's own. `more`: spread, seeds.
    """
    times = {"cpu": latency or measured.latency.get("cpu"), "cuda": measured.latency.get("cuda")}
    cpu, cuda = (None if t is None else (t.p50, t.p10, t.p90) for t in times.values())
    if measured.accuracy is None:
        raise ValueError(f"{name!r} was measured without data: the scoreboard needs its accuracy")
    smallest = min(measured.bytes[f] for f in ("dense", "csr", "bitmask") if f in measured.bytes)
    add(
        notebook,
        name,
        accuracy=measured.accuracy,
        bytes=smallest,
        macs=measured.macs,
        latency=cpu,
        latency_cuda=cuda,
        **more,
    )


def show(notebook: str) -> None:
    """Show a notebook's rows; in a live notebook those of the other notebooks stand above and below them."""
    own = [(name, row) for name, row in _here.get(notebook, {}).items()]
    text, html = render_table(f"Scoreboard of notebook {notebook}", COLUMNS, [_cells(n, r) for n, r in own])
    stored = progress.current().read()["scoreboard"]
    rows = [_cells(key, row) for key, row in sorted(stored.items(), key=lambda item: item[0][:2]) if _whole(row)]
    _, everything = render_table("Scoreboard: all notebooks you have run", COLUMNS, rows)
    display.show(text, html=html, widget=display.panel_html(f'<div class="jp-RenderedHTMLCommon">{everything}</div>'))


def rows(notebook: str) -> dict[str, dict[str, Any]]:
    """The rows of a notebook in this kernel, by name: for a claim to check."""
    return {name: dict(row) for name, row in _here.get(notebook, {}).items()}


def _latency(latency: Latency | None) -> list[float] | None:
    if latency is None:
        return None
    p50, p10, p90 = (float(x) for x in latency)
    if not 0 < p10 <= p50 <= p90:
        raise ValueError(f"latency={latency!r}: give (p50, p10, p90) in seconds, with p10 <= p50 <= p90")
    return [p50, p10, p90]


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    accuracy = measured(row["accuracy"], "%", spread=row["spread"])
    seeds = f"{row['seeds']} seed" + ("s" if row["seeds"] != 1 else "")
    counts = [v if isinstance(v, str) else f"{v:,}" for v in (row["bytes"], row["macs"])]
    cpu = _time(row["latency"], "not timed")
    return [name, f"{accuracy} ({seeds})", *counts, cpu, _time(row["latency_cuda"], NO_CUDA)]


def _time(latency: list[float] | None, otherwise: str) -> str:
    return otherwise if latency is None else measured(latency[0], "s", interval=(latency[1], latency[2]))


def _whole(row: Any) -> bool:
    return isinstance(row, dict) and set(row) >= {"accuracy", "spread", "seeds", "bytes", "macs", "latency"}
