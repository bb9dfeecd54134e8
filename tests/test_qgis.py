"""What QGIS shows of our rasters: the legend's entries, and no others. Needs Debian's python3-qgis."""

import numpy as np
import pytest

from cobertes.geo.cog_writer import RasterSpec, new_raster
from cobertes.geo.qgis_style import style_path
from cobertes.labels.legend import load_legend
from helpers.rasters import grid_at


@pytest.mark.parametrize("name", ["catalonia-12", "worldcover", "icgc-41"])
def test_the_legend_s_entries_are_ours(tmp_path, in_qgis, name):
    legend = load_legend(name)
    kind = RasterSpec("uint8", ("class",), legend.nodata, legend.categories())
    with new_raster(tmp_path / "labels.tif", grid_at(20, 30), kind) as pixels:
        pixels[:] = np.resize([legend.nodata, *legend.codes], (20, 30))
    found = in_qgis(tmp_path / "labels.tif")
    assert (found["valid"], found["crs"], found["renderer"]) == (True, "EPSG:32631", "paletted")
    assert found["nodata"] == legend.nodata
    assert found["classes"] == [[c.code, c.name, c.colour] for c in legend.classes]


def test_bands_of_fractions_have_the_classes_names(tmp_path, in_qgis):
    legend = load_legend("catalonia-12")
    with new_raster(tmp_path / "f.tif", grid_at(5, 5), RasterSpec("uint8", tuple(legend.keys), 255)) as pixels:
        pixels[:] = 3
    bands = in_qgis(tmp_path / "f.tif")["bands"]
    assert [band.split(": ")[1] for band in bands] == legend.keys


def test_a_style_made_by_hand_is_kept_and_ours_is_replaced(tmp_path):
    legend = load_legend("worldcover")
    kind = RasterSpec("uint8", ("class",), legend.nodata, legend.categories())
    path = tmp_path / "labels.tif"
    style = style_path(path)
    for before, after in (
        (None, "Tree cover"),
        ("<!-- made by cobertes -->", "Tree cover"),
        ("by hand", "by hand"),
    ):
        if before:
            style.write_text(before)
        with new_raster(path, grid_at(5, 5), kind, overwrite=True) as pixels:
            pixels[:] = 10
        assert after in style.read_text()
