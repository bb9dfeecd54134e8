"""Areas of interest: polygons of any CRS and rasters of any grid, as masks of windows of a scene."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely

from cobertes.errors import GridMismatchError, InputFileError
from cobertes.geo.clip import open_clip
from cobertes.geo.windows import Window
from helpers.rasters import ORIGIN, grid_at, write_raster

GRID = grid_at(40, 60)
ALL = Window(0, 0, 40, 60)


def write_polygons(path, boxes, crs="EPSG:32631"):
    """Rectangles (first row, first column, end row, end column) of GRID."""
    shapes = [
        shapely.box(ORIGIN[0] + 10 * left, ORIGIN[1] - 10 * bottom, ORIGIN[0] + 10 * right, ORIGIN[1] - 10 * top)
        for top, left, bottom, right in boxes
    ]
    gpd.GeoDataFrame(geometry=shapes, crs="EPSG:32631").to_crs(crs).to_file(path)
    return path


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:25831"])
def test_polygons_hold_the_pixels_whose_centres_they_cover(tmp_path, crs):
    path = write_polygons(tmp_path / "area.gpkg", [(5, 7, 9, 20), (30, 41.4, 34, 50.6)], crs)
    expected = np.zeros(ALL.shape, bool)
    expected[5:9, 7:20] = True
    expected[30:34, 41:51] = True  # 41.4 leaves the centre 41.5 inside, 50.6 the centre 50.5
    found = open_clip(path, GRID)
    np.testing.assert_array_equal(found.inside(ALL), expected)
    np.testing.assert_array_equal(found.inside(Window(8, 15, 30, 40)), expected[8:38, 15:55])
    assert not found.inside(Window(12, 0, 10, 60)).any()
    region = found.region
    assert (region.row, region.row_stop) == (5, 34)
    assert (region.col, region.col_stop) == (7, 51)


def test_a_raster_holds_its_pixels_that_are_not_nodata(tmp_path):
    codes = np.random.default_rng(0).integers(0, 3, (40, 60)).astype(np.uint8)
    for nodata, expected in ((0, codes != 0), (2, codes != 2), (None, codes != 0)):
        path = write_raster(tmp_path / "codes.tif", codes, GRID, nodata=nodata)
        np.testing.assert_array_equal(open_clip(path, GRID).inside(ALL), expected)


@pytest.mark.parametrize("nodata", [0, 255])
def test_a_coarse_raster_of_several_bands_is_wanted_where_its_first_is(tmp_path, nodata):
    first = np.random.default_rng(0).choice([nodata, 3, 7], (20, 30)).astype(np.uint8)
    values = np.stack([first, np.full_like(first, 9)])
    path = write_raster(tmp_path / "coarse.tif", values, grid_at(20, 30, 20.0), nodata=nodata)
    expected = np.kron(first != nodata, np.ones((2, 2), bool))
    np.testing.assert_array_equal(open_clip(path, GRID).inside(ALL), expected)


def test_what_is_no_area_of_interest_is_refused(tmp_path):
    with pytest.raises(InputFileError, match=r"no file at .*none.gpkg. A clip is a vector file of polygons"):
        open_clip(tmp_path / "none.gpkg", GRID)
    gpd.GeoDataFrame(geometry=[shapely.Point(*ORIGIN)], crs="EPSG:32631").to_file(tmp_path / "points.gpkg")
    with pytest.raises(InputFileError, match="points.gpkg holds no polygons"):
        open_clip(tmp_path / "points.gpkg", GRID)
    bare = write_raster(tmp_path / "bare.tif", np.ones((4, 4), np.uint8))
    with pytest.raises(GridMismatchError, match="bare.tif can't be placed on the scene: .*bare.tif has no CRS"):
        open_clip(bare, GRID)


def layer(path, name, *shapes, mode="w"):
    frame = gpd.GeoDataFrame({"id": range(len(shapes))}, geometry=list(shapes), crs="EPSG:32631")
    frame.to_file(path, layer=name, driver="GPKG", mode=mode)
    return path


def box(top, left, bottom, right):
    """Rectangle of rows and columns of GRID."""
    return shapely.box(
        ORIGIN[0] + 10 * left, ORIGIN[1] - 10 * bottom, ORIGIN[0] + 10 * right, ORIGIN[1] - 10 * top
    )


def test_of_several_layers_of_polygons_one_is_named(tmp_path):
    path = layer(tmp_path / "two.gpkg", "draft", box(0, 0, 10, 10))
    layer(path, "final", box(10, 10, 30, 20), mode="a")
    with pytest.raises(
        InputFileError, match=r"2 layers of polygons: draft, final\. Name one: '.*two\.gpkg\|layername=draft'"
    ):
        open_clip(path, GRID)
    named = open_clip(Path(f"{path}|layername=final"), GRID)
    assert named.inside(ALL).sum() == 20 * 10
    with pytest.raises(InputFileError, match=r"no layer 'finl'\. Did you mean 'final'\?"):
        open_clip(Path(f"{path}|layername=finl"), GRID)


def test_the_layer_of_polygons_is_found_behind_one_of_points(tmp_path):
    path = layer(tmp_path / "p.gpkg", "gps", shapely.Point(ORIGIN))
    with pytest.raises(InputFileError, match=r"holds no polygons, but gps \(Point\)"):
        open_clip(path, GRID)
    layer(path, "area", box(1, 2, 3, 5), mode="a")
    np.testing.assert_array_equal(np.argwhere(open_clip(path, GRID).inside(ALL))[[0, -1]], [[1, 2], [2, 4]])


def test_empty_polygons_are_refused_or_counted(tmp_path, caplog):
    with pytest.raises(InputFileError, match="holds no polygons: 1 of 1 geometries are empty"):
        open_clip(layer(tmp_path / "e.gpkg", "a", shapely.Polygon()), GRID)
    found = open_clip(layer(tmp_path / "f.gpkg", "a", shapely.Polygon(), box(0, 0, 2, 2)), GRID)
    assert found.inside(ALL).sum() == 4
    assert "f.gpkg: 1 of 2 geometries are empty and left out" in caplog.text


def test_polygons_without_a_pixel_are_counted_or_refused(tmp_path, caplog):
    tiny = shapely.box(ORIGIN[0] + 11, ORIGIN[1] - 14, ORIGIN[0] + 14, ORIGIN[1] - 11)  # beside the centre at 15
    with pytest.raises(InputFileError, match=r"no pixel of the scene has its centre in a polygon.*10 wide"):
        open_clip(layer(tmp_path / "t.gpkg", "a", tiny), GRID)
    found = open_clip(layer(tmp_path / "u.gpkg", "a", tiny, box(5, 5, 6, 6)), GRID)
    assert found.inside(ALL).sum() == 1
    assert "u.gpkg: 1 of 2 polygons are too small to have a pixel" in caplog.text
