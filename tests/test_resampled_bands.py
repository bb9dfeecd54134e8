"""Bands of another resolution: what bilinear resampling makes of nodata in one band, in several and in all.

The right values come from a formula: the weighted mean of valid neighbours. GDAL by itself blends nodata of one
band into its neighbours, and versions before 3.12 give a valid 0 in one band another value.
"""

import numpy as np
import pytest

from cobertes.geo.scene import open_scene
from cobertes.geo.windows import Window
from helpers.rasters import grid_at, write_raster

SIDE = 16
FILL = {"uint8": 255, "uint16": 65535, "int16": -9999, "float32": np.nan}


def interpolated(values, valid):
    """(2 H, 2 W) means of the valid ones among the nearest four pixels of (H, W) values, and their weight."""
    height, _ = values.shape
    position = (np.arange(2 * height) + 0.5) / 2 - 0.5
    first = np.floor(position).astype(int)
    weights, sums = np.zeros((2, 2 * height, 2 * height))
    for row, col in np.ndindex(2, 2):
        rows, cols = first + row, first + col
        inside = np.logical_and.outer((rows >= 0) & (rows < height), (cols >= 0) & (cols < height))
        at = np.ix_(rows.clip(0, height - 1), cols.clip(0, height - 1))
        share = np.outer(1 - abs(rows - position), 1 - abs(cols - position)) * (inside & valid[at])
        weights += share
        sums += share * np.where(valid, values, 0)[at]
    return sums / np.where(weights > 0, weights, 1), weights


def coarse_bands(tmp_path, values, nodata):
    """Bands 2 and 3 of a scene whose first band has half their pixel size, and which pixels are valid."""
    fine = write_raster(
        tmp_path / "fine.tif",
        np.ones((2 * SIDE, 2 * SIDE), values.dtype),
        grid_at(2 * SIDE, 2 * SIDE),
        nodata=nodata,
    )
    coarse = write_raster(tmp_path / "coarse.tif", values, grid_at(SIDE, SIDE, 20.0), nodata=nodata)
    pixels, valid = open_scene([str(fine), str(coarse)]).read_chw(Window(0, 0, 2 * SIDE, 2 * SIDE))
    return pixels[1:], valid


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_zero_in_one_band_is_a_value_that_blends(tmp_path, dtype):
    """Dark water: nodata 0 must fill all bands."""
    values = np.random.default_rng(0).integers(0, 4, (2, SIDE, SIDE)).astype(dtype)
    seen = values.any(axis=0)
    assert not seen.all()
    pixels, _ = coarse_bands(tmp_path, values, 0)
    for band, found in zip(values, pixels, strict=True):
        expected, weight = interpolated(band, seen)
        expected = np.floor(expected + 0.5) if dtype != "float32" else expected
        centre = np.kron(seen, np.ones((2, 2), bool))
        np.testing.assert_allclose(found[centre], expected[centre], atol=1e-6)
        assert (weight[centre] > 0).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_other_nodata_of_one_band_blends_into_nothing(tmp_path, dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(1, 5, (2, SIDE, SIDE)).astype(dtype)
    absent = rng.random(values.shape) < 0.4
    values[absent] = FILL[dtype]
    pixels, valid = coarse_bands(tmp_path, values, FILL[dtype])
    weights = []
    for band, lost, found in zip(values, absent, pixels, strict=True):
        expected, weight = interpolated(band, ~lost)
        expected = np.floor(expected + 0.5) if dtype != "float32" else expected
        np.testing.assert_allclose(found[weight > 0], expected[weight > 0], atol=1e-6)
        weights.append(weight)
    np.testing.assert_array_equal(valid, (np.array(weights) > 0).all(axis=0))
    assert not valid.all()
