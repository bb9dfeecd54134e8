"""Files read through a memory map: the same pixels as GDAL's, whatever the layout; others are left to GDAL."""

import multiprocessing

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given, settings
from hypothesis import strategies as st

from cobertes.geo.mmap_tiff import mmap_geotiff
from cobertes.geo.nodata import valid_mask_chw, valid_mask_hwc
from cobertes.geo.scene import open_scene
from cobertes.geo.windows import Window
from helpers.rasters import grid_at, write_raster

SHAPE = (150, 170)
LAYOUTS = {
    "blocks": {"tiled": True, "blockxsize": 48, "blockysize": 32, "interleave": "pixel"},
    "strips": {"blockysize": 7, "interleave": "pixel"},
    "one strip": {"blockysize": 150, "interleave": "pixel"},
    "big": {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "pixel", "BIGTIFF": "YES"},
    "sparse": {"tiled": True, "blockxsize": 32, "blockysize": 32, "interleave": "pixel", "SPARSE_OK": "TRUE"},
}
OTHERS = {
    "by band": {"interleave": "band"},
    "deflate": {"interleave": "pixel", "compress": "deflate"},
    "big-endian": {"interleave": "pixel", "ENDIANNESS": "BIG"},
    "few bits": {"interleave": "pixel", "NBITS": 12},
}


def values_of(dtype="uint16"):
    values = np.random.default_rng(0).integers(1, 4000, (5, *SHAPE)).astype(dtype)
    values[:, :64, 64:128] = 0
    return values


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mapped")
    values = values_of()
    for name, layout in (LAYOUTS | OTHERS).items():
        write_raster(folder / f"{name}.tif", values, grid_at(*SHAPE), **layout)
    return folder, values


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 149), st.integers(0, 169), st.integers(1, 90), st.integers(1, 90))
def test_windows_of_any_layout_hold_the_file_s_pixels(written, layout, row, col, height, width):
    folder, values = written
    window = Window(row, col, height, width).clip(SHAPE)
    mapped = mmap_geotiff(str(folder / f"{layout}.tif"))
    found = mapped.read(window, np.arange(5))
    np.testing.assert_array_equal(found, np.moveaxis(values[:, *window.slices], 0, 2))
    np.testing.assert_array_equal(mapped.read(window, np.array([3, 0])), found[..., [3, 0]])


@pytest.mark.parametrize("layout", OTHERS)
def test_files_that_are_stored_otherwise_are_left_to_gdal(written, layout):
    folder, values = written
    assert mmap_geotiff(str(folder / f"{layout}.tif")) is None
    scene = open_scene([str(folder / f"{layout}.tif")])
    window = Window(20, 30, 60, 70)
    np.testing.assert_array_equal(scene.read_chw(window)[0], values[:, *window.slices])


def test_files_elsewhere_and_other_formats_are_left_to_gdal(written, tmp_path):
    folder, _ = written
    assert mmap_geotiff("/vsicurl/https://example.org/scene.tif") is None
    rasterio.shutil.copy(folder / "blocks.tif", tmp_path / "scene.vrt", driver="VRT")
    assert mmap_geotiff(str(tmp_path / "scene.vrt")) is None


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@settings(max_examples=20, deadline=None)
@given(st.integers(-20, 160), st.integers(-20, 180), st.integers(1, 60))
def test_by_pixel_and_by_band_a_scene_reads_the_same(tmp_path_factory, dtype, row, col, size):
    folder = tmp_path_factory.mktemp("scene")
    scenes = [
        open_scene([str(write_raster(folder / f"{name}.tif", values_of(dtype), grid_at(*SHAPE), **layout))])
        for name, layout in (("mapped", LAYOUTS["blocks"]), ("read", OTHERS["deflate"]))
    ]
    window = Window(row, col, size, size)
    expected, known = scenes[1].read_chw(window)
    if np.dtype(dtype).itemsize <= 2:  # larger ones only where the file happens to store them aligned
        assert scenes[0].memory_map is not None
    assert scenes[1].memory_map is None
    for scene in scenes:
        values, valid = scene.read_chw(window)
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(valid, known)
        pixels, seen = scene.read_hwc(window)
        np.testing.assert_array_equal(pixels, np.moveaxis(expected, 0, 2))
        np.testing.assert_array_equal(seen, known)
        assert pixels.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("nodata", [None, 0, 7, -1, 3.5, 65535, np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_one_rule_of_validity(dtype, nodata):
    rng = np.random.default_rng(0)
    values = rng.choice([0, 7, 9, 100], (3, 40, 50)).astype(dtype)
    if dtype == "float32":
        values[rng.random(values.shape) < 0.1] = np.nan
        values[rng.random(values.shape) < 0.1] = np.inf
    pixels = np.ascontiguousarray(np.moveaxis(values, 0, 2))
    np.testing.assert_array_equal(valid_mask_hwc(pixels, nodata), valid_mask_chw(values, nodata))


def test_a_truncated_file_is_not_mapped(written, tmp_path):
    folder, _ = written
    for layout in LAYOUTS:
        data = (folder / f"{layout}.tif").read_bytes()
        (tmp_path / "short.tif").write_bytes(data[:-1000])
        assert mmap_geotiff(str(tmp_path / "short.tif")) is None


def test_blocks_that_are_not_stored_hold_nodata_as_gdal_says(tmp_path):
    grid = grid_at(200, 200)
    layout = {"tiled": True, "blockxsize": 96, "blockysize": 96, "interleave": "pixel", "sparse_ok": True}
    for nodata in (0, 7):
        path = tmp_path / f"{nodata}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", height=200, width=200, count=2, dtype="uint16", nodata=nodata,
            crs="EPSG:32631", transform=grid.affine, **layout,
        ) as file:  # fmt: skip
            file.write(np.full((2, 96, 96), 5, np.uint16), window=rasterio.windows.Window(0, 0, 96, 96))
        pixels, seen = open_scene([str(path)]).read_hwc(Window(50, 50, 100, 100))
        assert (pixels[:46, :46] == 5).all()
        assert (pixels[46:] == nodata).all()
        np.testing.assert_array_equal(seen, pixels[..., 0] == 5)


def read_corner(scene):
    return scene.read_hwc(Window(70, 0, 30, 30))[0].sum()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("layout", ["blocks", "deflate"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_scenes_can_be_read_in_other_processes(written, method, layout):
    folder, values = written
    scene = open_scene([str(folder / f"{layout}.tif")])
    expected = read_corner(scene)  # the parent has the file open when it forks
    assert expected == values[:, 70:100, :30].sum()
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(read_corner, [scene] * 4) == [expected] * 4
