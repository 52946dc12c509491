"""For tests and notebooks alike: a progress file of their own, so that nobody's real one is touched."""

import os
import re
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
LONG = ("test_families.py", "test_llama_real.py", "test_wheel.py")  # minutes each, in one process
LLAMAS = ("13_", "14_", "15_")  # the notebooks that need a language model


def pytest_configure(config):
    """The kernels that nbval starts inherit the environment."""
    if "PRUNELAB_HOME" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="prunelab-test-")
        os.environ["PRUNELAB_HOME"] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_ignore_collect(collection_path):
    """The examples that run are prunelab's: a helper or a benchmark of the tests is no module of examples."""
    helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if helper and not collection_path.is_relative_to(ROOT / "prunelab") else None


@pytest.hookimpl(optionalhook=True)  # a machine that only tries the GPU has no xdist
def pytest_xdist_make_scheduler(config, log):
    """Two processes share the tests by file, and the browser's by notebook: else one of them would drive all."""
    from xdist.scheduler import LoadFileScheduling

    class ByNotebook(LoadFileScheduling):
        def _split_scope(self, nodeid):
            notebook = re.search(r"test_(?:browser|lasting)\.py::.*\[.*?(\d\d_\w+)", nodeid)
            return f"{super()._split_scope(nodeid)} {notebook[1] if notebook else ''}"

    config.option.loadscopereorder = False  # by number of tests, a notebook of ninety seconds would come last
    return ByNotebook(config, log)


def pytest_collection_modifyitems(items):
    """What takes longest comes first; the Llama is fetched once, and where it can't be had its notebooks skip."""
    items.sort(
        key=lambda item: (item.path.suffix != ".ipynb", "browser" not in item.path.parts, item.path.name not in LONG)
    )
    needy = [item for item in items if item.path.name.startswith(LLAMAS)]
    if needy and (reason := _no_llama()):
        for item in needy:
            item.add_marker(pytest.mark.skip(f"the Llama of notebooks 13 to 15 can't be had: {reason}"))


def _no_llama():
    from prunelab.zoo import ZooError
    from prunelab.zoo.llama import llama_folder

    try:
        llama_folder()
    except ZooError as error:
        return str(error)
    return None
