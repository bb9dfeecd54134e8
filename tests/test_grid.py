"""Grids: where pixels are, and how that is said."""

import logging
import re

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from cobertes.errors import GridMismatchError, InputFileError
from cobertes.geo.area import Area
from cobertes.geo.grid import (
    _warn_of_areas,
    bounds_window,
    crop,
    crs_name,
    describe,
    footprint,
    full_window,
    grid_of,
    pixel_hectares,
    require_same_grid,
    resolution,
    same_grid,
    warn_without_crs,
)
from cobertes.geo.io import open_raster
from cobertes.geo.scene import open_scene
from cobertes.geo.windows import Window
from helpers.rasters import DATA, ORIGIN, UTM, grid_at, needs, write_raster

US_FEET = "EPSG:2232"


def moved(grid, cols=0.0, rows=0.0):
    return GeoBox(grid.shape, grid.affine * Affine.translation(cols, rows), grid.crs)


def test_grids_are_the_same_to_a_hundredth_of_a_pixel():
    grid = grid_at(50, 70)
    assert same_grid(grid, moved(grid, 0.009, -0.009))
    assert not same_grid(grid, moved(grid, 0.011))
    assert not same_grid(grid, grid_at(50, 71))
    assert not same_grid(grid, grid_at(50, 70, crs="EPSG:32632"))
    assert not same_grid(grid, grid_at(50, 70, crs=None))
    assert same_grid(grid_at(50, 70, crs=None), grid_at(50, 70, crs=None))


def test_a_small_error_of_the_pixel_adds_up_over_a_wide_grid():
    # 10.000001 m instead of 10 m: nothing over 100 px, 3 cm over 30,000
    assert same_grid(grid_at(100, 100), grid_at(100, 100, pixel=10.000001))
    assert not same_grid(grid_at(30_000, 30_000), grid_at(30_000, 30_000, pixel=10.00001))


@pytest.mark.parametrize(
    ("grid", "text"),
    [
        (grid_at(20, 30), "30 x 20 px of 10 m, origin (240000, 4780000), EPSG:32631"),
        (grid_at(2, 3, 32.8083, US_FEET), "3 x 2 px of 32.8083 US-ft, origin (240000, 4780000), EPSG:2232"),
        (grid_at(2, 3, 1, "EPSG:2222"), "3 x 2 px of 1 foot, origin (240000, 4780000), EPSG:2222"),
        (grid_at(2, 3, 1e-4, "EPSG:4326", (6, 3)), "3 x 2 px of 0.0001 deg, origin (6, 3), EPSG:4326"),
        (GeoBox((2, 3), Affine.identity(), None), "3 x 2 px of 1, origin (0, 0), no CRS"),
    ],
)
def test_a_grid_is_described_as_a_person_would(grid, text):
    assert describe(grid) == text
    assert crs_name(grid) == text.rsplit(", ")[-1]


def test_the_area_of_a_pixel_knows_the_unit_of_the_crs():
    assert pixel_hectares(grid_at(2, 2)) == pytest.approx(0.01)
    feet = pixel_hectares(grid_at(2, 2, 1.0, US_FEET, (3_000_000, 1_600_000)))
    assert feet == pytest.approx((1200 / 3937) ** 2 / 10_000, rel=1e-9)  # a US survey foot
    assert pixel_hectares(grid_at(2, 2, 1e-4, "EPSG:4326", (6, 3))) is None
    assert pixel_hectares(grid_at(2, 2, crs=None)) is None
    turned = GeoBox((2, 2), Affine.rotation(30) * Affine.scale(10, -10), UTM)
    assert pixel_hectares(turned) == pytest.approx(0.01)
    assert resolution(turned) == pytest.approx(10)


def test_areas_are_told_only_where_they_are_those_on_the_ground(caplog):
    _warn_of_areas.cache_clear()
    mercator = grid_at(200, 200, 13.4, "EPSG:3857", (11_000, 5_090_000))  # at 41.5 degrees north
    assert pixel_hectares(mercator) is None
    assert pixel_hectares(mercator) is None
    assert pixel_hectares(grid_at(200, 200, 10.0, "EPSG:3857", (11_000, 50_000))) == pytest.approx(0.01)
    assert pixel_hectares(grid_at(200, 200, 10.0, "EPSG:3035", (3_600_000, 2_100_000))) == pytest.approx(0.01)
    (said,) = (record.getMessage() for record in caplog.records)
    assert re.search(r"no areas in hectares: those of EPSG:3857 .*equal-area CRS or their UTM zone", said)


@needs("denver-1m")
def test_a_real_map_in_us_feet_has_pixels_of_a_square_metre():
    with open_raster(DATA / "denver-1m" / "drcog_lulc_2018_1m.tif") as file:
        assert pixel_hectares(grid_of(file)) == pytest.approx(1e-4, rel=1e-4)


def test_footprints_follow_the_windows_with_and_without_crs():
    grid = grid_at(100, 200)
    x, y = ORIGIN
    part = crop(grid, Window(-10, 30, 20, 40))  # may reach out
    assert footprint(part).bounds == (x + 300, y - 100, x + 700, y + 100)
    assert crop(grid, full_window(grid)) == grid
    bare = GeoBox((100, 200), Affine.identity(), None)
    assert footprint(crop(bare, Window(5, 6, 7, 8))).bounds == (6, 5, 14, 12)
    assert footprint(bare, "EPSG:4326").bounds == (0, 0, 200, 100)  # it can't be projected
    lon, lat = footprint(grid, "EPSG:4326").centroid.coords[0]
    assert (lon, lat) == pytest.approx((-0.18, 43.09), abs=0.05)


@settings(deadline=None)
@given(st.integers(0, 39), st.integers(0, 29), st.integers(1, 40), st.integers(1, 30), st.sampled_from([10, 7.3]))
def test_bounds_of_whole_pixels_give_exactly_those(row, col, height, width, pixel):
    grid = grid_at(40, 30, pixel, origin=(240_003.7, 4_780_011.1))
    window = Window(row, col, height, width).clip((40, 30))
    assert bounds_window(grid, footprint(crop(grid, window)).bounds) == window


def test_bounds_cover_every_pixel_they_touch_and_are_clipped():
    grid = grid_at(40, 30)
    x, y = ORIGIN
    assert bounds_window(grid, (x + 14, y - 26, x + 16, y - 24)) == Window(2, 1, 1, 1)
    assert bounds_window(grid, (x + 19, y - 21, x + 21, y - 19)) == Window(1, 1, 2, 2)
    assert bounds_window(grid, (x - 500, y - 25, x + 5, y + 500)) == Window(0, 0, 3, 1)
    assert bounds_window(grid, (x + 19.999, y - 20.001, x + 20.001, y - 19.999)) == Window(2, 2, 1, 1)
    with pytest.raises(GridMismatchError, match=r"do not touch the scene \(30 x 40 px of 10 m.*W,S,E,N"):
        bounds_window(grid, (x + 300, y - 25, x + 400, y))


def test_areas_refuse_scenes_on_different_grids(tmp_path):
    april = write_raster(tmp_path / "april.tif", np.ones((20, 20), np.uint16), grid_at(20, 20))
    august = write_raster(
        tmp_path / "august.tif", np.ones((20, 20), np.uint16), grid_at(20, 20, origin=(0, 500_000))
    )
    scenes = {"april": open_scene([str(april)]), "august": open_scene([str(august)])}
    with pytest.raises(GridMismatchError, match=r"august\.tif is 20 x 20 px.*but .*april\.tif is.*gdalwarp"):
        Area("a", scenes)
    area = Area("a", {"april": scenes["april"]})
    assert (area.shape, area.grid) == ((20, 20), grid_at(20, 20))
    require_same_grid([("one", area.grid)])


def test_files_that_are_no_rasters_are_told(tmp_path):
    with pytest.raises(InputFileError, match=r"no file at .*absent\.tif\. Check the path"):
        open_raster(tmp_path / "absent.tif")
    (tmp_path / "text.tif").write_text("this is not a raster")
    with pytest.raises(InputFileError, match=r"can't read .*text\.tif as a raster"):
        open_raster(tmp_path / "text.tif")


def test_a_missing_crs_is_said_once_for_all_areas(caplog):
    with caplog.at_level(logging.WARNING):
        warn_without_crs(f"chip-{i}" for i in range(216))
        warn_without_crs([])
    assert [record.message for record in caplog.records] == [
        "no CRS in chip-0, chip-1, chip-2 and 213 more: using pixel coordinates, areas count as unrelated places"
    ]
