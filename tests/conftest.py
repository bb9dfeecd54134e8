"""Settings that must stand before the first import of numpy or torch, and what several modules of tests use."""

import os

# Two test processes on two cores: more threads would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import json
import shutil
import subprocess

import pytest

SYSTEM_PYTHON = "/usr/bin/python3"
QGIS_BEGIN = """
import json, sys
from qgis.core import QgsApplication, QgsRasterLayer, QgsVectorLayer
app = QgsApplication([], False)
app.initQgis()
"""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Nothing is kept in the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def qgis():
    """Run a script in QGIS without a screen, and give the JSON that it prints. Needs Debian's python3-qgis."""
    ready = (
        shutil.which(SYSTEM_PYTHON)
        and not subprocess.run(
            [SYSTEM_PYTHON, "-c", "import qgis.core"], capture_output=True, check=False
        ).returncode
    )
    if not ready:
        pytest.skip("no python3-qgis on this machine")

    def run(script, path):
        environment = {"QT_QPA_PLATFORM": "offscreen", "HOME": str(path.parent), "PATH": "/usr/bin:/bin"}
        command = [SYSTEM_PYTHON, "-c", QGIS_BEGIN + script, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return json.loads(done.stdout.splitlines()[-1])

    return run
