"""Settings that must stand before the first import of numpy or torch, and what several modules of tests use."""

import os

# Two test processes on two cores: more threads would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import json
import logging
import shutil
import subprocess

import pytest

pytest_plugins = ["helpers.skips", "helpers.torch_free"]
pytest.register_assert_rewrite("helpers")

SYSTEM_PYTHON = "/usr/bin/python3"
QGIS_BEGIN = """
import json, sys
from qgis.core import QgsApplication, QgsRasterLayer, QgsVectorLayer
app = QgsApplication([], False)
app.initQgis()
"""
LAYER_SCRIPT = """
layer = QgsRasterLayer(sys.argv[1], "layer")
renderer = layer.renderer()
print(json.dumps({
    "valid": layer.isValid(), "crs": layer.crs().authid(), "renderer": renderer.type(),
    "bands": [layer.bandName(i + 1) for i in range(layer.bandCount())],
    "nodata": layer.dataProvider().sourceNoDataValue(1),
    "classes": [[c.value, c.label, c.color.name()] for c in renderer.classes()] if renderer.type() == "paletted" else [],
}))
"""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Nothing is kept in the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_logging():
    """The command line sets the level and the handlers of the package's logger: a test must not leave them behind."""
    log = logging.getLogger("cobertes")
    # to the state of an import: what stands before this test may come from a fixture of its module
    log.setLevel(logging.NOTSET)
    log.handlers.clear()
    yield
    log.setLevel(logging.NOTSET)
    log.handlers.clear()


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
        pytest.skip("needs Debian's python3-qgis")

    def run(script, path):
        environment = {"QT_QPA_PLATFORM": "offscreen", "HOME": str(path.parent), "PATH": "/usr/bin:/bin"}
        command = [SYSTEM_PYTHON, "-c", QGIS_BEGIN + script, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def in_qgis(qgis):
    """Open a raster in QGIS, and say what it shows."""
    return lambda path: qgis(LAYER_SCRIPT, path)


@pytest.fixture(scope="session")
def cluster():
    """A Ray cluster: a head, and two nodes of one processor that work. This process is its driver."""
    from cobertes.scale.cluster import VARIABLES

    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'cobertes[scale]'")
    os.environ.update(VARIABLES)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "memory": 4 * 2**30, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    quick = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}  # a busy machine answers late
    found = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0, "_system_config": quick})
    found.pad = lambda: found.add_node(**node)
    try:
        found.pad()
        found.pad()
        # connected once: workers outlive the tests, and need not import torch anew
        ray.init(found.address, log_to_driver=False, logging_level=logging.ERROR)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


@pytest.fixture
def one_thread():
    """Torch in one thread, its random numbers from the same seed."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
