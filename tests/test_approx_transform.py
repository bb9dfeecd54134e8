"""Places of fine pixels in a map of another CRS: parabolas beside exact projection."""

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import transform as transform_points

from cobertes.geo.windows import Window
from cobertes.labels.approx_transform import CELLS, ApproxTransform, gather, smooth_cells
from cobertes.labels.reference_map import Alignment, ReferenceReader
from helpers.rasters import grid_at, write_raster

UTM = grid_at(64, 80)


def box(crs, transform, shape=(4000, 4000)):
    return GeoBox(shape, transform, crs)


def around(crs, pixel, turn=0.0):
    """A map grid with about the scene's corner at pixel (100, 200)."""
    (x,), (y,) = transform_points("EPSG:32631", crs, [UTM.affine.c], [UTM.affine.f])
    return box(
        crs,
        Affine.translation(x, y)
        * Affine.rotation(turn)
        * Affine.scale(pixel, -pixel)
        * Affine.translation(-200, -100),
    )


MAPS = {
    "same CRS, shifted": lambda: box(
        "EPSG:32631", Affine(1, 0, UTM.affine.c - 200.3, 0, -1, UTM.affine.f + 100.7)
    ),
    "turned": lambda: around("EPSG:32631", 1.1, 27),
    "another zone": lambda: around("EPSG:32632", 1.0),
    "Lambert": lambda: around("EPSG:3035", 0.9),
    "degrees": lambda: around("EPSG:4326", 1e-5),
    "web": lambda: around("EPSG:3857", 1.3),
}


@pytest.mark.parametrize("theirs", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("window", [Window(0, 0, 64, 80), Window(-3, -5, 9, 7), Window(17, 33, 1, 1)])
def test_every_fine_pixel_gets_the_map_pixel_under_its_centre(theirs, window):
    theirs, factor = theirs(), 10
    transform = ApproxTransform(theirs, UTM, factor)
    assert transform.cell == CELLS[0]
    cols, rows, cells = transform.nodes(window)
    # a map whose pixels tell where they are, one coordinate at a time
    exact = transform.to_map(
        *np.meshgrid(
            window.col + (np.arange(window.width * factor) + 0.5) / factor,
            window.row + (np.arange(window.height * factor) + 0.5) / factor,
        )
    )
    first = (window.row - cells.row * transform.cell) * factor, (window.col - cells.col * transform.cell) * factor
    smooth = smooth_cells(cols, rows)
    assert smooth.all()
    for axis, places in enumerate(exact):
        shape = [1400, 1400]
        source = (np.indices(shape)[1 - axis] % 251).astype(np.uint8)
        out = np.full(places.shape, 255, np.uint8)
        gather(source, 0, 0, cols, rows, smooth, transform.cell * factor, *first, out)
        doubtful = np.any([np.abs(place - np.rint(place)) < 2e-6 for place in exact], axis=0)
        assert doubtful.mean() < 0.001
        inside = ((exact[0] >= 0) & (exact[1] >= 0) & (exact[0] < 1400) & (exact[1] < 1400)) & ~doubtful
        assert inside.mean() > 0.6
        assert (out == np.floor(places).astype(int) % 251)[inside].all()
        assert (out[~inside & ~doubtful] == 255).all()


def test_what_a_pixel_gets_does_not_depend_on_the_window():
    transform = ApproxTransform(MAPS["Lambert"](), UTM, 10)
    source = np.random.default_rng(0).integers(0, 255, (1400, 1400)).astype(np.uint8)

    def read(window):
        cols, rows, cells = transform.nodes(window)
        out = np.empty((window.height * 10, window.width * 10), np.uint8)
        first = (window.row - cells.row * transform.cell) * 10, (window.col - cells.col * transform.cell) * 10
        gather(source, 0, 0, cols, rows, smooth_cells(cols, rows), transform.cell * 10, *first, out)
        return out

    whole = read(Window(0, 0, 64, 80))
    for window in (Window(0, 0, 1, 80), Window(31, 7, 20, 40), Window(63, 79, 1, 1)):
        rows, cols = window.slices
        part = whole[rows.start * 10 : rows.stop * 10, cols.start * 10 : cols.stop * 10]
        np.testing.assert_array_equal(read(window), part)


def test_cells_get_smaller_where_the_ground_is_curved():
    coarse = GeoBox((60, 60), Affine(20_000, 0, 200_000, 0, -20_000, 4_700_000), "EPSG:32631")
    transform = ApproxTransform(box("EPSG:4326", Affine(1e-3, 0, -5, 0, -1e-3, 45)), coarse, 64)
    assert transform.cell < CELLS[0]


def test_cells_at_the_end_of_the_world_are_not_smooth():
    nodes = np.add.outer(np.zeros(5), np.arange(9.0))
    assert smooth_cells(nodes, nodes).all()
    jump = nodes.copy()
    jump[:, 5:] += 360_000
    assert smooth_cells(jump, nodes).tolist() == [[True, True, False, True]] * 2
    edge = nodes.copy()
    edge[4, 8] = np.inf
    assert smooth_cells(nodes, edge).tolist() == [[True] * 4, [True] * 3 + [False]]


def test_a_scene_across_the_antimeridian_reads_both_ends_of_the_map(tmp_path):
    # Taveuni, Fiji: the 180th meridian goes through the scene; the map runs from -180 to 180
    grid = GeoBox((40, 40), Affine(5_000, 0, 720_000, 0, -5_000, 8_250_000), "EPSG:32760")
    codes = np.zeros((180, 360), np.uint8)
    codes[:, :10], codes[:, 350:] = 2, 3
    path = write_raster(
        tmp_path / "world.tif", codes, GeoBox((180, 360), Affine(1, 0, -180, 0, -1, 90), "EPSG:4326"), nodata=0
    )
    with ReferenceReader(path, grid, Alignment(1, 0.05, None, 1.0), fill_code=0) as reader:
        found, _ = reader.read(Window(0, 0, 40, 40))
    xs, ys = grid.affine * np.meshgrid(np.arange(40) + 0.5, np.arange(40) + 0.5)
    longitude, _ = transform_points("EPSG:32760", "EPSG:4326", xs.ravel(), ys.ravel())
    expected = np.where(np.array(longitude) < 0, 2, 3).reshape(40, 40)
    assert {2, 3} == set(np.unique(expected))
    np.testing.assert_array_equal(found, expected)
