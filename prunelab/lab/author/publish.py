"""Run a notebook as its authors store it: `python -m prunelab.lab publish notebooks/00_start_here.ipynb`.

From the top, in a fresh kernel, with an empty progress file, and without the views of widgets that no kernel knows
any more: an editor that opens the file then shows the static picture until the learner runs the cell.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from ...core import PruneError
from ...files import write_whole
from ..show.display import WIDGET_VIEW
from ..workshop import course
from ..workshop.notebook import Notebook

# tqdm's text is that of its first moment, 0 %; a reader of the stored notebook wants to see that it came to its end.
BAR = re.compile(r"(\w[\w ]*:) +\d+%\|[^|]*\| *\d+/(\d+) \[[^\]]*\]")


def publish(path: Path, timeout: float = 180) -> None:
    """Execute the notebook in its folder and store it."""
    nb, before = course.read(path), path.read_bytes()
    resources = {"metadata": {"path": str(path.parent)}}
    with tempfile.TemporaryDirectory() as empty:
        client = NotebookClient(nb, timeout=timeout, store_widget_state=False, resources=resources)
        client.execute(env={**os.environ, "PRUNELAB_HOME": empty})
    if path.read_bytes() != before:
        raise PruneError(f"{path} was changed while it ran, and is left as it is now: publish it again")
    store_notebook(strip_views(nb), path)


def store_notebook(nb: Notebook, path: Path) -> None:
    """Write a notebook, whole or not at all."""
    write_whole(path, (nbformat.writes(nb) + "\n").encode())


def strip_views(nb: Notebook) -> Notebook:
    """The notebook without widget views, saved widget state, and the times of execution."""
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        for data in (out.get("data", {}) for out in cell.outputs):
            data.pop(WIDGET_VIEW, None)
            if "text/plain" in data:
                data["text/plain"] = BAR.sub(r"\1 100%|██████████| \2/\2 [done]", data["text/plain"])
        cell.outputs = [out for out in cell.outputs if out.get("data", True)]
    return nb
