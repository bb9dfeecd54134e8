"""Overviews: every level beside brute force, and what QGIS would read from the file."""

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given, settings
from hypothesis import strategies as st

from cobertes.errors import StorageError
from cobertes.geo import overviews
from cobertes.geo.cog_writer import Categories, RasterSpec, new_raster
from cobertes.geo.overviews import level_shapes, write_levels
from helpers.rasters import grid_at


def brute(below, nodata, codes):
    """(bands, ceil(height / 2), ceil(width / 2)) of (bands, height, width), pixel by pixel."""
    bands, height, width = below.shape
    level = np.empty((bands, (height + 1) // 2, (width + 1) // 2), below.dtype)
    for band, row, col in np.ndindex(level.shape):
        four = below[band, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel()
        known = four[~np.isnan(four)] if below.dtype.kind == "f" else four
        known = known[known != nodata] if nodata is not None else known
        if known.size == 0:
            level[band, row, col] = four[0] if nodata is None else nodata
        elif codes:
            values, counts = np.unique(known, return_counts=True)
            level[band, row, col] = values[counts.argmax()]
        else:
            mean = known.astype(float).mean()
            level[band, row, col] = mean if below.dtype.kind == "f" else np.floor(mean + 0.5)
    return level


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_levels_equal_brute_force(tmp_path_factory, data):
    draw = data.draw
    dtype = draw(st.sampled_from(["uint8", "uint16", "int16", "float32"]))
    codes = dtype != "float32" and draw(st.booleans())
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 40))
    nodata = draw(st.sampled_from([None, 0, 7, np.nan] if dtype == "float32" else [None, 0, 7]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.integers(0, 9, shape).astype(dtype)
    if dtype == "int16":
        values -= 4
    if dtype == "float32":
        values[rng.random(shape) < 0.3] = np.nan
    folder = tmp_path_factory.mktemp("levels")
    values.tofile(folder / "pixels.raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overviews, "SMALLEST", draw(st.sampled_from([1, 5, 64])))
        patch.setattr(overviews, "STRIP_PIXELS", draw(st.sampled_from([1, 100, 10_000])))
        levels = write_levels(folder / "pixels.raw", dtype, shape, nodata=nodata, codes=codes)
        shapes = level_shapes(shape[1:])
        assert max(shapes[-1] if shapes else shape[1:]) <= overviews.SMALLEST
    assert len(levels) == len(shapes)
    below = values
    for path, level in zip(levels, shapes, strict=True):
        below = brute(below, nodata, codes)
        assert below.shape[1:] == level
        np.testing.assert_array_equal(np.fromfile(path, dtype).reshape(shape[0], *level), below)


@pytest.mark.parametrize("codes", [True, False])
def test_the_file_holds_these_levels_and_nothing_else_stays(tmp_path, codes):
    shape = (1100, 700)
    values = np.random.default_rng(0).integers(0, 4, (2, *shape)).astype(np.uint8)
    categories = Categories({1: "one", 2: "two", 3: "three"}, {1: "#ff0000"}) if codes else None
    with new_raster(tmp_path / "a.tif", grid_at(*shape), RasterSpec("uint8", ("a", "b"), 0, categories)) as pixels:
        pixels[:] = values
    with rasterio.open(tmp_path / "a.tif") as file:
        assert [file.overviews(band) for band in (1, 2)] == [[2, 4], [2, 4]]
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        np.testing.assert_array_equal(file.read(), values)
    below = values
    for level in range(2):
        below = brute(below, 0, codes)
        with rasterio.open(tmp_path / "a.tif", overview_level=level) as file:
            np.testing.assert_array_equal(file.read(), below)
    assert {path.name for path in tmp_path.iterdir()} <= {"a.qml", "a.tif", "a.tif.aux.xml"}


def test_a_small_raster_has_none(tmp_path):
    with new_raster(tmp_path / "a.tif", grid_at(512, 30), RasterSpec("float32", ("a",))) as pixels:
        pixels[:] = 1
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.overviews(1) == []


@pytest.mark.parametrize("level", [None, 0, 1])
def test_a_file_that_is_not_what_was_meant_is_told_at_every_level(tmp_path, monkeypatch, level):
    copy = rasterio.shutil.copy

    def damaged(source, target, **options):
        copy(source, target, **options)
        place = {} if level is None else {"overview_level": level}
        with rasterio.open(target, "r+", IGNORE_COG_LAYOUT_BREAK="YES", **place) as file:
            values = file.read(1)
            values[-1, -1] += 1
            file.write(values, 1)

    def write():
        kind = RasterSpec("uint8", ("share",), 255)
        with new_raster(tmp_path / "a.tif", grid_at(1100, 700), kind) as pixels:
            pixels[:] = 7

    monkeypatch.setattr(rasterio.shutil, "copy", damaged)
    with pytest.raises(StorageError, match="reads back otherwise"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_unknown_pixels_of_a_float_raster_read_back_as_they_are(tmp_path):
    values = np.full((1, 600, 1030), np.nan, np.float32)
    values[0, ::2, 4:] = np.float32(0.1)
    with new_raster(tmp_path / "a.tif", grid_at(600, 1030), RasterSpec("float32", ("a",), np.nan)) as pixels:
        pixels[:] = values
    with rasterio.open(tmp_path / "a.tif", overview_level=0) as file:
        np.testing.assert_array_equal(file.read(), brute(values, np.nan, False))


def test_an_error_in_one_strip_ends_the_others(tmp_path, monkeypatch):
    np.zeros((1, 1200, 1200), np.uint8).tofile(tmp_path / "pixels.raw")
    begun = []

    def refuse(*args):
        begun.append(args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(overviews, "_mean", refuse)
    monkeypatch.setattr(overviews, "STRIP_PIXELS", 2400)
    with pytest.raises(OSError, match="No space left"):
        write_levels(tmp_path / "pixels.raw", "uint8", (1, 1200, 1200), nodata=None, codes=False)
    assert len(begun) < 300
