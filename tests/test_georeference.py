"""Geolocation is tested, not looked at: pixels that hold their own coordinates stay where they are, from the
reference map to labels, tiles, training samples and the predicted map."""

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import transform as transform_points
from shapely.geometry import box

from cobertes.engines.engine import Engine
from cobertes.geo.area import Area
from cobertes.geo.scene import open_scene
from cobertes.geo.windows import Window
from cobertes.labels.aggregate import make_labels
from cobertes.labels.recode import recode_table
from cobertes.learn.encoding import Inputs
from cobertes.learn.inference import evaluate_windows, plan_blocks
from cobertes.learn.loader import batches
from cobertes.learn.model_file import ModelHeader
from cobertes.learn.sampler import Sampler
from cobertes.predict.predict import predict_map
from cobertes.settings import Augmentation, AugmentationSettings, SplitSettings, TileSettings, TrainSettings
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.index import build_index
from helpers.engines import TENS, header_of, plan_as_mapped
from helpers.rasters import UTM, read_raster, write_raster

SHAPE = (150, 170)
GRIDS = {
    "whole metres": GeoBox(SHAPE, Affine(10, 0, 430_010, 0, -10, 4_600_030), UTM),
    "odd origin": GeoBox(SHAPE, Affine(10, 0, 430_003.37, 0, -10, 4_600_001.91), UTM),
    "far north, odd pixel": GeoBox(SHAPE, Affine(9.7, 0, 301_234.5, 0, -9.7, 7_700_123.25), "EPSG:32633"),
    "degrees": GeoBox(SHAPE, Affine(1 / 9000, 0, 1.23456, 0, -1 / 9000, 41.98765), "EPSG:4326"),
}
SIDE = 4
"""The ground is a chessboard of ten classes, in fields of so many scene pixels, without any symmetry."""


def code_at(row, col):
    """The class of a place given in the scene's pixels, fractions and negative ones included."""
    i, j = np.floor(np.asarray(row) / SIDE).astype(int), np.floor(np.asarray(col) / SIDE).astype(int)
    return TENS.codes[(3 * i + i * j % 7 + j) % len(TENS)]


def centres(shape):
    """(2, height, width): row and column of the pixels' centres."""
    return np.mgrid[: shape[0], : shape[1]] + 0.5


def ground_coordinates(grid):
    """(2, height, width) float64: x and y of each pixel's centre."""
    row, col = centres(grid.shape)
    return np.stack(grid.affine * (col, row))


def to_pixels(grid, x, y):
    """Row and column, fractions included, of places on the ground."""
    col, row = ~grid.affine * (x, y)
    return row, col


def write_scene(folder, grid, name="scene"):
    """A scene of two bands, the ground coordinates of each pixel's centre."""
    path = write_raster(folder / f"{name}.tif", ground_coordinates(grid), grid, names=("x", "y"), tiled=True, blockxsize=64, blockysize=48)  # fmt: skip
    return open_scene([str(path)])


def write_map(folder, grid, theirs):
    """A reference map on its own grid: each of its pixels has the class of the place under its centre."""
    x, y = ground_coordinates(theirs)
    if theirs.crs != grid.crs:
        there = transform_points(str(theirs.crs), str(grid.crs), x.ravel(), y.ravel())
        x, y = (np.reshape(values, x.shape) for values in there)
    return write_raster(folder / "map.tif", code_at(*to_pixels(grid, x, y)), theirs, nodata=0)


def nested(grid, factor, margin):
    """A finer grid whose pixels nest in the scene's, ``margin`` of its pixels wider on each side."""
    fine = Affine.scale(1 / factor) * Affine.translation(-margin, -margin)
    return GeoBox(tuple(n * factor + 2 * margin for n in grid.shape), grid.affine * fine, grid.crs)


def around(grid, crs, pixel):
    """A grid in another CRS that covers the scene."""
    there = grid.extent.to_crs(crs, resolution=50 * abs(grid.affine.a)).boundingbox
    shape = (int((there.top - there.bottom) / pixel) + 40, int((there.right - there.left) / pixel) + 40)
    return GeoBox(shape, Affine(pixel, 0, there.left - 17.3 * pixel, 0, -pixel, there.top + 16.6 * pixel), crs)


def labels_of(folder, grid, reference, method="majority"):
    make_labels(reference, grid, folder / "labels.tif", legend=TENS, table=recode_table(TENS), method=method)
    return folder / "labels.tif"


# --- labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("method", ["nearest", "majority"])
@pytest.mark.parametrize(("factor", "margin"), [(1, 0), (1, 3), (5, 0), (4, 13)])
def test_labels_of_a_nested_map_lie_where_they_belong(tmp_path, name, method, factor, margin):
    grid = GRIDS[name]
    reference = write_map(tmp_path, grid, nested(grid, factor, margin))
    labels = labels_of(tmp_path, grid, reference, method)
    np.testing.assert_array_equal(read_raster(labels), code_at(*centres(SHAPE)))
    with rasterio.open(labels) as file:
        assert file.transform.almost_equals(grid.affine, 1e-9)
        assert file.crs == str(grid.crs)


@pytest.mark.parametrize("method", ["nearest", "majority"])
@pytest.mark.parametrize(("shift", "pixel"), [((0.31, -0.47), 2.0), ((3.3, 7.1), 3.0)])
def test_labels_of_a_map_off_the_grid_are_within_a_map_pixel(tmp_path, method, shift, pixel):
    grid = GRIDS["odd origin"]
    whole = nested(grid, 1, 4)
    shape = tuple(int(n * 10 / pixel) for n in whole.shape)
    corner = whole.affine * (0, 0)
    theirs = GeoBox(shape, Affine(pixel, 0, corner[0] + shift[0], 0, -pixel, corner[1] + shift[1]), grid.crs)
    found = read_raster(labels_of(tmp_path, grid, write_map(tmp_path, grid, theirs), method))
    np.testing.assert_array_equal(found, code_at(*centres(SHAPE)))


@pytest.mark.parametrize(
    ("name", "crs", "pixel"),
    [
        ("odd origin", "EPSG:3035", 2.0),
        ("odd origin", "EPSG:25830", 3.0),
        ("degrees", "EPSG:32631", 2.5),
        ("whole metres", "EPSG:4326", 1 / 45_000),
    ],
)
@pytest.mark.parametrize("method", ["nearest", "majority"])
def test_labels_of_a_map_in_another_crs_are_within_a_pixel(tmp_path, name, crs, pixel, method):
    grid = GRIDS[name]
    found = read_raster(labels_of(tmp_path, grid, write_map(tmp_path, grid, around(grid, crs, pixel)), method))
    row, col = centres(SHAPE)
    # fields are whole pixels wide: the centre of a pixel is half a pixel from the next field, more than the map's
    np.testing.assert_array_equal(found, code_at(row, col))


def test_a_shift_of_one_pixel_would_be_seen(tmp_path):
    grid = GRIDS["whole metres"]
    beside = GeoBox(SHAPE, grid.affine * Affine.translation(1, 0), grid.crs)
    found = read_raster(labels_of(tmp_path, grid, write_map(tmp_path, grid, nested(beside, 5, 10))))
    np.testing.assert_array_equal(found, code_at(*centres(SHAPE)))
    shifted = read_raster(write_raster(tmp_path / "s.tif", np.roll(found, 1, axis=1), grid))
    assert (shifted != code_at(*centres(SHAPE))).mean() > 0.2


# --- tiles, training samples -------------------------------------------------------------------------------


@pytest.fixture(params=list(GRIDS))
def ground(request, tmp_path):
    """Labels, tiles and split of a scene whose map is finer than it by five, on each of the grids."""
    grid = GRIDS[request.param]
    scene = write_scene(tmp_path, grid)
    labels = {"here": labels_of(tmp_path, grid, write_map(tmp_path, grid, nested(grid, 5, 7)))}
    area = Area("here", {"scene": scene})
    settings = SplitSettings(block=40, guard=6)
    index = build_index([area], labels, TENS, tiles=TileSettings(size=24, overlap=5), split=settings)
    return LabelledDataset({"here": area}, labels, TENS, index.split), index, grid


def inputs_of(grid):
    """Channels from which the coordinates can be told: units of about 200 pixels around the middle."""
    middle = ground_coordinates(grid).mean(axis=(1, 2))
    return Inputs(("scene",), ("x", "y"), middle[None], np.full((1, 2), 200 * abs(grid.affine.a)))


def places(x, inputs, grid):
    """Row and column of the pixels that channels (..., 2, height, width) come from."""
    means, stds = inputs.mean[0].astype(np.float32).astype(float), inputs.std[0]
    xs, ys = (np.asarray(x, float).swapaxes(0, -3)[i] * stds[i] + means[i] for i in range(2))
    return to_pixels(grid, xs, ys)


def test_the_index_says_where_its_tiles_are(ground):
    _, index, grid = ground
    index = index.table.to_crs(str(grid.crs))
    for tile in index.itertuples():
        (left, top), (right, bottom) = (
            grid.affine * (tile.col, tile.row),
            grid.affine * (tile.col + tile.width, tile.row + tile.height),
        )
        expected = box(left, bottom, right, top)
        assert tile.geometry.symmetric_difference(expected).area < 1e-4 * expected.area
        rows, cols = np.mgrid[tile.row : tile.row + tile.height, tile.col : tile.col + tile.width] + 0.5
        present = np.unique(code_at(rows, cols), return_counts=True)
        assert dict(zip(TENS.codes.tolist(), tile.counts, strict=True)) == dict.fromkeys(
            TENS.codes.tolist(), 0
        ) | dict(zip(*(values.tolist() for values in present), strict=True))


def test_windows_anywhere_hold_what_lies_there(ground):
    here, _, grid = ground
    for window in (
        Window(0, 0, 20, 20),
        Window(131, 149, 19, 21),
        Window(47, 63, 33, 65),
        Window(-7, 160, 20, 30),
    ):
        observed, y = here.read_chw("here", window)
        values, valid = observed["scene"]
        rows, cols = np.mgrid[window.row : window.row_stop, window.col : window.col_stop] + 0.5
        inside = (rows > 0) & (cols > 0) & (rows < SHAPE[0]) & (cols < SHAPE[1])
        np.testing.assert_array_equal(valid, inside)
        row, col = to_pixels(grid, *values)
        np.testing.assert_allclose(row[inside], rows[inside], atol=1e-4)
        np.testing.assert_allclose(col[inside], cols[inside], atol=1e-4)
        np.testing.assert_array_equal(TENS.codes[y[inside]], code_at(rows, cols)[inside])
        assert (y[~inside] == 255).all()


def test_training_batches_hold_image_and_label_of_the_same_place(ground):
    here, index, grid = ground
    inputs = inputs_of(grid)
    sampler = Sampler.of(index.table, here, TrainSettings(), (17,), AugmentationSettings(jitter=Augmentation()))
    pixels = 0
    for x, y, _ in batches(sampler, inputs, 1, 8):
        row, col = places(x, inputs, grid)
        np.testing.assert_array_equal(TENS.codes[y], code_at(row, col))
        pixels += y.size
    assert pixels == len(sampler) * 17**2


# --- prediction --------------------------------------------------------------------------------------------


def knows(inputs, grid):
    """A model that tells the class of each pixel from the ground coordinates that it sees."""

    def logits(x):
        row, col = places(x.numpy(), inputs, grid)
        index = torch.from_numpy(TENS.index_table()[code_at(row, col)]).long()
        return 50 * torch.nn.functional.one_hot(index, len(TENS)).movedim(-1, 1).float()

    return logits


def engine_on(grid):
    header = header_of(bands=("x", "y"), resolution=None)
    inputs = inputs_of(grid)
    header = ModelHeader(header.network, inputs, TENS, None, 32, {})
    return Engine(header, knows(inputs, grid), "by hand")


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(("window", "overlap"), [(32, 9), (47, 0), (256, 64)])
def test_the_map_s_classes_lie_where_the_scene_showed_them(tmp_path, name, window, overlap):
    grid = GRIDS[name]
    predict_map(
        engine_on(grid),
        {"scene": write_scene(tmp_path, grid)},
        tmp_path / "map.tif",
        window=window,
        overlap=overlap,
    )
    with rasterio.open(tmp_path / "map.tif") as file:
        codes = file.read(1)
        # the map's own georeference decides which place a pixel stands for
        x, y = file.transform * centres(SHAPE)[::-1]
        assert file.crs == str(grid.crs)
    np.testing.assert_array_equal(codes, code_at(*to_pixels(grid, x, y)))


@pytest.mark.parametrize("name", ["odd origin", "degrees"])
def test_a_part_of_the_map_lies_where_the_whole_one_does(tmp_path, name):
    grid = GRIDS[name]
    (left, top), (right, bottom) = grid.affine * (33.4, 21.7), grid.affine * (120.2, 99.9)
    predict_map(
        engine_on(grid),
        {"scene": write_scene(tmp_path, grid)},
        tmp_path / "map.tif",
        bounds=(left, bottom, right, top),
    )
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.shape == (79, 88)
        np.testing.assert_array_equal(
            file.read(1), code_at(*to_pixels(grid, *(file.transform * centres(file.shape)[::-1])))
        )


@pytest.mark.parametrize("plan", [plan_blocks, plan_as_mapped])
def test_held_out_ground_is_judged_by_its_own_labels(ground, plan):
    here, _, grid = ground
    engine = engine_on(grid)
    windows = plan(here, "v", 32, 8)
    matrix, _ = evaluate_windows(engine.logits, engine.header.inputs, here, windows, 4)
    assert matrix.overall_accuracy == 1
    assert matrix.counts.sum() == sum(b.height * b.width for b in here.split.areas["here"].windows("v"))


def test_band_files_of_two_resolutions_stay_on_each_other(tmp_path):
    """A 20 m band that holds its own coordinates says, interpolated, what the 10 m band says (away from edges)."""
    grid = GRIDS["odd origin"]
    coarse = GeoBox((75, 85), grid.affine * Affine.scale(2), grid.crs)
    fine_file = write_raster(tmp_path / "s_B02_10m.tif", ground_coordinates(grid)[:1], grid)
    coarse_file = write_raster(tmp_path / "s_B05_20m.tif", ground_coordinates(coarse)[:1], coarse)
    values, _ = open_scene([str(fine_file), str(coarse_file)]).read_chw(Window(11, 23, 90, 101))
    np.testing.assert_allclose(values[1], values[0], atol=0.01)
