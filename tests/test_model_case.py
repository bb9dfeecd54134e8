"""The model case in its exact storage, a hundredth of its area, from the map's two layouts to the report."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from cobertes.atomic_io import read_json
from cobertes.synthetic.demo import write_demo
from cobertes.tiles.index import load_index
from cobertes.workflow.run_folder import open_run
from helpers.rasters import read_raster

SIDE = 3000
LAYOUTS = {"strips": "data/reference-1m.tif", "blocks": "data/blocks-1m.tif"}


def run(project):
    """A process of its own, with all the threads that the tests do without."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "cobertes", "run", str(project), "--quiet"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_country_in_small_runs_in_both_layouts_of_its_map_to_the_same_end(tmp_path):
    text = write_demo(tmp_path, size=SIDE).read_text()
    data = tmp_path / "data"
    options = {"tiled": True, "blockxsize": 960, "blockysize": 960}
    rasterio.shutil.copy(data / "reference-1m.tif", data / "blocks-1m.tif", driver="GTiff", **options)
    for name, count, dtype, block in (
        ("april", 10, "uint16", (96, 96)), ("august", 10, "uint16", (96, 96)),
        ("reference-1m", 1, "uint8", (1, 10 * SIDE)), ("blocks-1m", 1, "uint8", (960, 960)),
    ):  # fmt: skip
        with rasterio.open(data / f"{name}.tif") as file:
            assert (file.count, file.dtypes[0], file.block_shapes[0]) == (count, dtype, block)
            assert file.compression is None
            assert file.crs.to_epsg() == 32631
            assert count == 1 or file.interleaving.value == "PIXEL"

    strays = tmp_path / "strays.toml"
    strays.write_text(re.sub(r"\ncodes = .*", "", text).replace('name = "demo"', 'name = "strays"'))
    stopped = run(strays)
    assert stopped.returncode == 2
    assert re.search(r"\b19\b.*\b41\b", stopped.stderr)

    files = {}
    for layout, reference in LAYOUTS.items():
        project = tmp_path / f"{layout}.toml"
        project.write_text(
            text.replace('name = "demo"', f'name = "{layout}"')
            .replace("data/reference-1m.tif", reference)
            .replace("minutes = 3.5", "")
            .replace("epochs = 100", "epochs = 3")
        )
        done = run(project)
        assert done.returncode == 0, done.stderr
        _, files[layout] = open_run(tmp_path / "runs" / layout)

    one, other = files.values()
    (area,) = read_json(one.split)["areas"]
    for path in ("labels", "map"):
        np.testing.assert_array_equal(
            read_raster(getattr(one, path)(area)), read_raster(getattr(other, path)(area))
        )
    index = load_index(one.tiles)
    assert index.drop(columns="geometry").equals(load_index(other.tiles).drop(columns="geometry"))
    assert {"only water", "no labels"} <= set(index["reason"])
    assert (read_raster(one.map(area)) == 0).any()  # outside the scene
    scores = read_json(one.assessment)
    assert scores["model"]["miou"] > 2 * scores["baselines"]["most_frequent"]["miou"]
    assert scores["model"] == read_json(other.assessment)["model"]
    assert "strips" in one.report.read_text()
