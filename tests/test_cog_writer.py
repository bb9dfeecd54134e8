"""Rasters written: whole, with their names and colours, or not there at all."""

import errno
import os
import shutil
import xml.etree.ElementTree as ET
from collections import namedtuple
from contextlib import contextmanager

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from cobertes.errors import InputFileError, OutputExistsError, StorageError
from cobertes.geo.cog_writer import Categories, RasterSpec, check_writable, new_raster
from cobertes.geo.grid import grid_of
from cobertes.geo.mmap_tiff import release
from helpers.rasters import coordinates, grid_at, read_raster

CATEGORIES = Categories(
    {1: "Water & <sea>", 12: "Sòl nu", 100: "Forest"}, {1: "#0000dc", 12: "#ff9632", 100: "#33cc33"}
)
CODES = RasterSpec("uint8", ("class",), 0, CATEGORIES, {"made": 'by "cobertes" <now>'})
PLAIN = RasterSpec("uint8", ("share",), 255)


@contextmanager
def unchanged(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not list(folder.glob(".*"))


def write(path, values, kind=CODES, grid=None, **options):
    values = np.asarray(values)
    with new_raster(path, grid or grid_at(*values.shape[-2:]), kind, **options) as pixels:
        pixels[:] = values
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_pixels_and_grid_come_back_exactly(tmp_path, dtype):
    values = coordinates((37, 53), dtype)
    for grid in (
        grid_at(37, 53, 10.0, origin=(240_003.3, 4_780_001.7)),
        grid_at(37, 53, 1 / 3, "EPSG:2232"),
        grid_at(37, 53, 1e-4, "EPSG:4326", (6.1, 3.2)),
        GeoBox((37, 53), Affine.rotation(20) * Affine.scale(3, -3), "EPSG:32631"),
        GeoBox((37, 53), Affine.identity(), None),
        grid_at(37, 53, 2.0, None),
    ):
        write(tmp_path / "a.tif", values, RasterSpec(dtype, ("row", "col"), 0), grid, overwrite=True)
        with rasterio.open(tmp_path / "a.tif") as file:
            np.testing.assert_array_equal(file.read(), values)
            assert grid_of(file) == grid
            assert (file.dtypes, file.descriptions, file.nodata) == ((dtype, dtype), ("row", "col"), 0)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("float32", -9999), ("float32", 16777215), ("float32", np.nan), ("uint16", 65535), ("uint8", None)],
)
def test_nodata_comes_back_exactly(tmp_path, dtype, nodata):
    write(tmp_path / "a.tif", np.ones((4, 4)), RasterSpec(dtype, ("a",), nodata))
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.nodata == nodata or (np.isnan(nodata) and np.isnan(file.nodata))


def test_codes_have_a_palette_names_and_tags(tmp_path):
    path = write(tmp_path / "map.tif", np.array([[1, 12], [100, 0]], np.uint8))
    with rasterio.open(path) as file:
        palette = file.colormap(1)
        assert palette[1] == (0, 0, 0xDC, 255)
        assert palette[12] == (0xFF, 0x96, 0x32, 255)
        assert palette[0][3] == 0  # nodata is transparent
        assert palette[13][:3] == (0, 0, 0)
        tags = file.tags()
    assert (tags["class_1"], tags["class_12"]) == ("Water & <sea>", "Sòl nu")
    assert tags["made"] == 'by "cobertes" <now>'
    names = [e.text or "" for e in ET.parse(tmp_path / "map.tif.aux.xml").iter("Category")]
    assert (len(names), names[0], names[1], names[12], names[100]) == (
        101,
        "",
        "Water & <sea>",
        "Sòl nu",
        "Forest",
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.qml", "map.tif", "map.tif.aux.xml"]


def blocks_of_two(shape):
    """Codes of which 3 out of 4 pixels in every 2 x 2 are class 100, the other class 1."""
    codes = np.full(shape, 100, np.uint8)
    codes[::2, ::2] = 1
    return codes


def test_the_file_is_a_cog_whose_overviews_keep_codes(tmp_path):
    # class 12 has the mean colour of the other two: what an overview must not make of them
    greys = Categories({1: "a", 12: "b", 100: "c"}, {1: "#000000", 12: "#bfbfbf", 100: "#ffffff"})
    kind = RasterSpec("uint8", ("class",), 0, greys)
    path = write(tmp_path / "map.tif", blocks_of_two((1500, 1100)), kind)
    with rasterio.open(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.tags(ns="IMAGE_STRUCTURE")["COMPRESSION"] == "DEFLATE"
        assert file.block_shapes == [(512, 512)]
        assert file.overviews(1) == [2, 4]
        assert set(np.unique(file.read(1, out_shape=(750, 550)))) == {100}  # the mode, not a mean


def test_overviews_of_shares_are_means(tmp_path):
    path = write(tmp_path / "share.tif", np.where(blocks_of_two((1500, 1100)) == 1, 40, 80), PLAIN)
    with rasterio.open(path) as file:
        assert set(np.unique(file.read(1, out_shape=(750, 550)))) == {70}
    assert not (tmp_path / "share.tif.aux.xml").exists()


def test_a_new_raster_starts_at_zero_and_release_keeps_what_was_written(tmp_path):
    with new_raster(tmp_path / "a.tif", grid_at(600, 700), PLAIN) as pixels:
        assert pixels.shape == (1, 600, 700)
        assert not pixels.any()
        pixels[0, 100:300] = 7
        release(pixels)
        assert (pixels[0, 100:300] == 7).all()
    values = read_raster(tmp_path / "a.tif")
    assert values.sum() == 7 * 200 * 700


def test_an_error_inside_leaves_the_old_raster_and_nothing_else(tmp_path):
    write(tmp_path / "map.tif", np.ones((4, 4)))
    for error in (ZeroDivisionError, KeyboardInterrupt, InputFileError):
        for name in ("map.tif", "other.tif"):
            with unchanged(tmp_path), pytest.raises(error):
                interrupt(tmp_path / name, error)


def interrupt(path, error):
    with new_raster(path, grid_at(9, 9), CODES, overwrite=True) as pixels:
        pixels[:] = 12
        raise error


def test_what_a_killed_process_left_behind_does_not_stand_in_the_way(tmp_path):
    (tmp_path / ".map.tif.partial").mkdir()
    (tmp_path / ".map.tif.partial" / "pixels.raw").write_text("half")
    write(tmp_path / "map.tif", np.ones((4, 4)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.qml", "map.tif", "map.tif.aux.xml"]


def test_existing_files_are_kept_unless_told_otherwise(tmp_path):
    path = write(tmp_path / "map.tif", np.ones((4, 4)))
    with unchanged(tmp_path), pytest.raises(OutputExistsError, match=r"map\.tif exists\. Use --overwrite"):
        write(path, np.ones((4, 4)))
    write(path, np.full((4, 4), 12), overwrite=True)
    assert (read_raster(path) == 12).all()


def test_names_of_an_older_map_do_not_outlive_it(tmp_path):
    path = write(tmp_path / "a.tif", np.ones((4, 4)))
    assert (tmp_path / "a.tif.aux.xml").exists()
    write(path, np.ones((4, 4)), PLAIN, overwrite=True)
    assert not (tmp_path / "a.tif.aux.xml").exists()


def test_a_folder_is_no_output(tmp_path):
    (tmp_path / "maps").mkdir()
    with unchanged(tmp_path), pytest.raises(OutputExistsError, match=r"maps is a folder\. Name a file in it"):
        write(tmp_path / "maps", np.ones((4, 4)), overwrite=True)


def test_a_full_disk_is_told_before_the_work_begins(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    message = r"has 1 MB free, the raster needs up to 3 MB. Free some space or choose another folder"
    with unchanged(tmp_path), pytest.raises(StorageError, match=message):
        write(tmp_path / "map.tif", np.ones((1000, 1000)))


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")]
)
def test_a_disk_that_fills_up_meanwhile_is_a_storage_error(tmp_path, monkeypatch, number, message):
    write(tmp_path / "map.tif", np.ones((4, 4)))

    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with unchanged(tmp_path), pytest.raises(StorageError, match=rf"can't write .*map\.tif: {message}"):
        write(tmp_path / "map.tif", np.ones((4, 4)), overwrite=True)


def test_a_folder_without_permission_is_told_before_the_work_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root
    with pytest.raises(StorageError, match=r"no permission to write into .*Choose another output"):
        check_writable(tmp_path / "map.tif", overwrite=False)


def test_a_folder_that_can_not_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't make the folder"):
        check_writable(tmp_path / "file" / "map.tif", overwrite=False)
    check_writable(tmp_path / "a" / "b" / "map.tif", overwrite=False)
    assert (tmp_path / "a" / "b").is_dir()
