"""For tests and notebooks alike: a progress file of their own, so that nobody's real one is touched."""

import os
import tempfile


def pytest_configure(config):
    """The kernels that nbval starts inherit the environment."""
    if "PRUNELAB_HOME" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="prunelab-test-")
        os.environ["PRUNELAB_HOME"] = folder.name
        config.add_cleanup(folder.cleanup)
