"""Labels: what the pass makes of a reference map, beside brute force in numpy."""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.warp import transform as transform_points

from cobertes.errors import (
    GridMismatchError,
    InputFileError,
    LegendError,
    OutputExistsError,
    SettingsError,
    UnknownCodesError,
)
from cobertes.geo.grid import grid_of
from cobertes.labels import kernels, memory_plan
from cobertes.labels.aggregate import make_labels
from cobertes.labels.crosswalk import Crosswalk
from cobertes.labels.label_job import METHODS, SHARES
from cobertes.labels.legend import Legend, LegendClass, load_legend
from cobertes.labels.recode import recode_map, recode_table
from cobertes.labels.vote_weights import VoteWeights, integer_weights

DATA = Path(os.environ.get("COBERTES_DATA", Path(__file__).parents[2] / "shared" / "data"))

UTM = "EPSG:32631"
ORIGIN = (240_000.0, 4_780_000.0)

LAYOUTS = {
    "strips": {"blockysize": 1},
    "tiled": {"tiled": True, "blockxsize": 16, "blockysize": 32},
    "deflate": {"tiled": True, "blockxsize": 48, "blockysize": 48, "compress": "deflate"},
}


def legend_of(codes: list[int], nodata: int = 0) -> Legend:
    return Legend(
        "test", nodata, tuple(LegendClass(c, f"class-{c}", f"Class {c}", f"#{c:02x}80ff") for c in codes)
    )


# not in ascending order: ties go to the lower code, not to the first class
LEGEND = legend_of([7, 2, 3, 1, 12])
TABLE = recode_table(LEGEND)


def scene(height: int, width: int, pixel: float = 10.0, crs: str | None = UTM) -> GeoBox:
    return GeoBox((height, width), Affine(pixel, 0, ORIGIN[0], 0, -pixel, ORIGIN[1]), crs)


def fine_transform(grid: GeoBox, factor: int, row: int = 0, col: int = 0) -> Affine:
    """Transform of a map whose pixel (row, col) lies in the corner of the scene."""
    return grid.affine * Affine.scale(1 / factor) * Affine.translation(-col, -row)


def write_map(path, codes, transform=None, crs=UTM, layout="strips", nodata=0):
    profile = {"driver": "GTiff", "count": 1, "dtype": codes.dtype, "nodata": nodata, "crs": crs}
    height, width = codes.shape
    if transform is not None:
        profile["transform"] = transform
    with rasterio.open(path, "w", height=height, width=width, **profile, **LAYOUTS[layout]) as file:
        file.write(codes, 1)
    return path


def read(path):
    with rasterio.open(path) as file:
        return file.read(1) if file.count == 1 else file.read()


def patches(rng, shape, codes):
    """A map of rectangles of one code, as land cover is, with some noise."""
    height, width = shape
    coarse = rng.choice(codes, (height // 7 + 1, width // 5 + 1)).astype(np.uint8)
    fine = np.kron(coarse, np.ones((7, 5), np.uint8))[:height, :width]
    noise = rng.random(shape) < 0.1
    return np.where(noise, rng.choice(codes, shape), fine).astype(np.uint8)


def under(codes, grid, factor, row, col, fill_code=0):
    """The fine pixels of a scene: (H, factor, W, factor) -> (H, W, factor ** 2); ``fill_code`` beyond the map."""
    height, width = grid.height * factor, grid.width * factor
    padded = np.pad(codes, ((height, height), (width, width)), constant_values=fill_code)
    rows, cols = max(-height, min(row, codes.shape[0])) + height, max(-width, min(col, codes.shape[1])) + width
    fine = padded[rows : rows + height, cols : cols + width]
    blocks = fine.reshape(grid.height, factor, grid.width, factor)
    return blocks.swapaxes(1, 2).reshape(grid.height, grid.width, factor**2)


def votes_of(blocks, table, legend):
    """(K, H, W) votes of (H, W, n) source codes."""
    codes = table.table[blocks]
    return np.stack([(codes == code).sum(-1) for code in legend.codes])


def winners(scores, legend):
    """Codes of the greatest of (K, H, W) scores, the lower code at ties."""
    ascending = np.argsort(legend.codes)
    return legend.codes[ascending[scores[ascending].argmax(0)]]


def brute(blocks, table, legend, min_valid=0.5):
    """Majority, its purity, fractions and ties of (H, W, n) source codes, as the definitions say."""
    votes = votes_of(blocks, table, legend)
    valid, pixels = votes.sum(0), blocks.shape[-1]
    labelled = (valid > 0) & (valid / pixels >= min_valid)
    label = np.where(labelled, winners(votes, legend), legend.nodata)
    with np.errstate(invalid="ignore", divide="ignore"):
        fractions = np.where(valid > 0, votes / pixels, np.nan)
    ties = labelled & ((votes == votes.max(0)).sum(0) > 1)
    return label, purity_of(votes, label, legend), fractions, ties


def purity_of(votes, label, legend):
    """Percent of the votes for the label, 255 without votes or label."""
    valid = votes.sum(0)
    own = sum(np.where(label == code, votes[k], 0) for k, code in enumerate(legend.codes))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((valid > 0) & (label != legend.nodata), np.floor(100 * own / valid + 0.5), 255)


def entropy_of(votes):
    """Percent of the greatest entropy of (K, H, W) votes, not rounded; 255 without votes."""
    shares = votes / np.maximum(votes.sum(0), 1)
    logs = np.where(shares > 0, np.log(np.where(shares > 0, shares, 1)), 0)
    most = np.log(len(votes)) if len(votes) > 1 else 1
    return np.where(votes.sum(0) > 0, -100 * (shares * logs).sum(0) / most, 255)


def smooth_scores(codes, table, legend, grid, factor, row, col, sigma):
    """(K, H, W) votes that fade with a Gaussian of the distance to the pixel's centre, neighbours included."""
    reach = int(np.ceil(3 * sigma - 0.5))
    pad = (grid.height + grid.width + reach) * factor + max(abs(row), abs(col))
    wide = table.table[np.pad(codes, pad)]
    places = (np.arange((2 * reach + 1) * factor) + 0.5) / factor - reach - 0.5
    line = np.maximum(1, np.rint(1024 * np.exp(-0.5 * (places / sigma) ** 2)))
    scores = np.zeros((len(legend), grid.height, grid.width))
    for r in range(grid.height):
        for c in range(grid.width):
            top, left = pad + row + (r - reach) * factor, pad + col + (c - reach) * factor
            near = wide[top : top + line.size, left : left + line.size]
            for k, code in enumerate(legend.codes):
                scores[k, r, c] = line @ (near == code) @ line
    return scores


def label_map(
    folder, codes, grid, factor, *, row=0, col=0, layout="strips", legend=LEGEND, table=TABLE, out=None, **options
):
    path = write_map(folder / "map.tif", codes, fine_transform(grid, factor, row, col), grid.crs, layout)
    out = out or folder / "labels.tif"
    report = make_labels(path, grid, out, legend=legend, table=table, **options)
    return read(out), report


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Whatever happens inside, the folder holds the same files afterwards."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not list(folder.glob(".*"))


# --- the definitions ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_all_products_of_one_pass_equal_brute_force(data):
    draw = data.draw
    factor = draw(st.integers(2, 20), "factor")
    grid = scene(draw(st.integers(1, 14), "height"), draw(st.integers(1, 14), "width"))
    rng = np.random.default_rng(draw(st.integers(0, 2**32), "seed"))
    shape = draw(st.integers(1, 15 * factor)), draw(st.integers(1, 15 * factor))
    # the map may begin before or after the scene, but touches it
    row = draw(st.integers(1 - grid.height * factor, shape[0] - 1), "row")
    col = draw(st.integers(1 - grid.width * factor, shape[1] - 1), "col")
    source = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12, unique=True), "source codes")
    targets = [draw(st.sampled_from([0, *LEGEND.codes.tolist()])) for _ in source]
    table = recode_table(LEGEND, crosswalk=Crosswalk("test", dict(zip(source, targets, strict=True))))
    codes = patches(rng, shape, source)
    codes[rng.random(shape) < draw(st.sampled_from([0, 0.02, 0.5, 0.9, 1]), "nodata share")] = 0
    min_valid = draw(st.sampled_from([0, 0.25, 0.5, 1]), "min_valid")
    given_weights = {code: draw(st.sampled_from([0.5, 1, 3.25, 40]), "weight") for code in LEGEND.codes.tolist()}
    sigma = draw(st.sampled_from([0, 0, 0.3, 0.5, 1]), "smoothing")
    main = draw(st.sampled_from(METHODS), "main method")
    with (
        tempfile.TemporaryDirectory() as name,
        patch.object(memory_plan, "WINDOW_PIXELS", draw(st.sampled_from([1, 3_000, 20_000]), "window")),
        patch.object(memory_plan, "_processors", lambda: draw(st.integers(1, 4), "threads")),
    ):
        made = {what: Path(name) / f"{what}.tif" for what in (*METHODS, *SHARES)}
        _, report = label_map(
            Path(name), codes, grid, factor, row=row, col=col, layout=draw(st.sampled_from(sorted(LAYOUTS))),
            table=table, min_valid=min_valid, memory=draw(st.sampled_from([200, 900])), method=main,
            weighting=VoteWeights(given_weights, sigma), out=made[main],
            also={method: made[method] for method in METHODS if method != main},
            **{what: made[what] for what in SHARES},
        )  # fmt: skip
        found = {what: read(path) for what, path in made.items()}
    blocks = under(codes, grid, factor, row, col)
    expected, _, fractions, _ = brute(blocks, table, LEGEND, min_valid)
    votes = votes_of(blocks, table, LEGEND)
    np.testing.assert_array_equal(found["majority"], expected)
    middle = table.table[blocks[:, :, factor // 2 * factor + factor // 2]]
    np.testing.assert_array_equal(found["nearest"], middle)
    weights = integer_weights(np.array([given_weights[code] for code in LEGEND.codes.tolist()], float))[
        :, None, None
    ]
    scores = smooth_scores(codes, table, LEGEND, grid, factor, row, col, sigma) if sigma else votes
    np.testing.assert_array_equal(
        found["weighted-majority"], np.where(expected == 0, 0, winners(scores * weights, LEGEND))
    )
    np.testing.assert_array_equal(found["purity"], purity_of(votes, found[main], LEGEND))
    known = ~np.isnan(fractions[0])
    assert (found["fractions"][:, ~known] == kernels.NO_SHARE).all()
    assert np.abs(found["fractions"][:, known] - 100 * fractions[:, known]).max(initial=0) <= 1
    np.testing.assert_array_equal(found["valid"], np.floor(100 * votes.sum(0) / factor**2 + 0.5 + 1e-9))
    np.testing.assert_array_equal(found["fractions"][:, known].astype(int).sum(0), found["valid"][known])
    assert np.abs(found["entropy"] - entropy_of(votes)).max() <= 0.5 + 1e-6
    # what was counted is what is there
    assert report.counts == {c: int((found[main] == c).sum()) for c in sorted([0, *LEGEND.codes.tolist()])}
    outside = under(np.full(shape, 1, np.uint8), grid, factor, row, col) == 0
    values, counts = np.unique(blocks[~outside], return_counts=True)
    assert report.source_counts == dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert report.unknown == {}
    assert report.factor == factor


@pytest.mark.parametrize(("factor", "middle"), [(10, 5), (4, 2), (3, 1), (1, 0)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nearest_takes_the_middle_pixel_and_shifts_nothing(tmp_path, factor, middle, layout):
    # pixels tell where they are; odd origins on both sides
    grid = scene(23, 31)
    rows, cols = np.mgrid[: 25 * factor, : 33 * factor]
    codes = ((37 * rows + 11 * cols) % 251 + 1).astype(np.uint8)
    row, col = factor // 2 + 1, 7
    everything = legend_of(list(range(1, 252)))
    label, report = label_map(
        tmp_path, codes, grid, factor, row=row, col=col, layout=layout, legend=everything,
        table=recode_table(everything), method="nearest",
    )  # fmt: skip
    i, j = np.mgrid[:23, :31]
    expected = (37 * (row + i * factor + middle) + 11 * (col + j * factor + middle)) % 251 + 1
    inside = (col + j * factor + middle) < 33 * factor
    np.testing.assert_array_equal(label, np.where(inside, expected, 0))
    assert report.how.startswith("nearest")


def test_majority_equals_gdal_mode_except_at_ties(tmp_path):
    rng = np.random.default_rng(5)
    grid = scene(90, 110)
    codes = patches(rng, (900, 1100), [0, 1, 2, 3, 7, 12])
    label, _ = label_map(tmp_path, codes, grid, 10, min_valid=0)
    gdal = np.zeros_like(label)
    reproject(
        rasterio.band(rasterio.open(tmp_path / "map.tif"), 1), gdal, dst_transform=grid.affine, dst_crs=UTM,
        dst_nodata=0, resampling=Resampling.mode,
    )  # fmt: skip
    *_, ties = brute(under(codes, grid, 10, 0, 0), TABLE, LEGEND, 0)
    np.testing.assert_array_equal(label[~ties], gdal[~ties])
    assert 0 < ties.sum() < 0.2 * ties.size
    assert (label != gdal)[ties].any()  # there GDAL takes the class that first reaches the top count


def test_a_tie_goes_to_the_lower_code(tmp_path):
    grid = scene(1, 2)
    label, _ = label_map(tmp_path, np.array([[7, 3, 12, 1], [3, 7, 1, 12]], np.uint8), grid, 2)
    np.testing.assert_array_equal(label, [[3, 1]])


def test_min_valid_is_a_share_of_the_pixel_and_nearest_ignores_it(tmp_path):
    grid = scene(1, 2)
    codes = np.zeros((10, 20), np.uint8)
    codes[:5, :10] = 1  # exactly half
    codes[:5, 10:] = 2
    codes[0, 10] = 0  # one pixel less
    label, _ = label_map(tmp_path, codes, grid, 10, min_valid=0.5)
    np.testing.assert_array_equal(label, [[1, 0]])
    codes[5, 15] = 2
    label, _ = label_map(tmp_path, codes, grid, 10, method="nearest", min_valid=1, overwrite=True)
    np.testing.assert_array_equal(label, [[0, 2]])


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 64), (64, 1)])
def test_tally_counts_every_pixel(shape):
    codes = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    counts = np.ones(256, np.int64)
    kernels.histogram(codes, counts)
    np.testing.assert_array_equal(counts, 1 + np.bincount(codes.ravel(), minlength=256))


def test_labels_open_with_names_colours_and_nodata(tmp_path):
    codes = np.full((40, 60), 7, np.uint8)
    outputs = {"purity": tmp_path / "p.tif", "fractions": tmp_path / "f.tif"}
    label_map(tmp_path, codes, scene(10, 15), 4, **outputs)
    with rasterio.open(tmp_path / "labels.tif") as file:
        assert (file.dtypes, file.nodata, file.descriptions) == (("uint8",), 0, ("class",))
        assert file.colormap(1)[7] == (0x07, 0x80, 0xFF, 255)
        assert file.tags()["class_7"] == "Class 7"
        assert grid_of(file) == scene(10, 15)
    with rasterio.open(tmp_path / "f.tif") as file:
        assert file.descriptions == tuple(LEGEND.keys)
        assert (file.dtypes[0], file.nodata) == ("uint8", 255)
    with rasterio.open(tmp_path / "p.tif") as file:
        assert (file.dtypes, file.nodata, file.read(1).min()) == (("uint8",), 255, 100)


# --- any grid ----------------------------------------------------------------------------------------------


def sampled(grid, factor, path):
    """Codes (H, W, factor ** 2) under the fine pixels of a grid, point by point; and which sit on an edge."""
    with rasterio.open(path) as file:
        codes, transform, crs = file.read(1), file.transform, file.crs
    fine = grid.affine * Affine.scale(1 / factor)
    cols, rows = np.meshgrid(np.arange(grid.width * factor) + 0.5, np.arange(grid.height * factor) + 0.5)
    xs, ys = fine * (cols.ravel(), rows.ravel())
    if grid.crs is not None and rasterio.crs.CRS.from_user_input(str(grid.crs)) != crs:
        xs, ys = transform_points(str(grid.crs), crs, xs, ys)
    c, r = ~transform * (np.array(xs), np.array(ys))
    edge = (np.abs(c - np.round(c)) < 1e-5) | (np.abs(r - np.round(r)) < 1e-5)
    c, r = np.floor(c).astype(int), np.floor(r).astype(int)
    inside = (c >= 0) & (r >= 0) & (c < codes.shape[1]) & (r < codes.shape[0])
    found = np.where(inside, codes[np.clip(r, 0, codes.shape[0] - 1), np.clip(c, 0, codes.shape[1] - 1)], 0)

    def blocks(values):
        shaped = values.reshape(grid.height, factor, grid.width, factor).swapaxes(1, 2)
        return shaped.reshape(grid.height, grid.width, factor**2)

    return blocks(found), blocks(edge).any(-1)


def assert_as_sampled(folder, path, grid, factor, legend=LEGEND, table=TABLE, **options):
    report = make_labels(path, grid, folder / "labels.tif", legend=legend, table=table, **options)
    codes, doubtful = sampled(grid, factor, path)
    expected, *_ = brute(codes, table, legend)
    np.testing.assert_array_equal(read(folder / "labels.tif")[~doubtful], expected[~doubtful])
    assert doubtful.mean() < 0.05
    return report


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "factor"), [(1.0, 10), (2.3, 4), (6.9, 1), (6.5, 2), (30.0, 1)])
def test_a_map_in_another_crs_equals_sampling_it_point_by_point(tmp_path, layout, size, factor):
    grid = scene(40, 50)
    degrees = size / 90_100  # a degree of latitude is 111 km, of longitude here 81 km
    n = int(700 / size)
    codes = patches(np.random.default_rng(1), (n, n), [0, 1, 2, 3, 7])
    west, north = transform_points(UTM, "EPSG:4326", [ORIGIN[0] - 30], [ORIGIN[1] + 20])
    transform = Affine(degrees, 0, west[0], 0, -degrees * 0.9, north[0])
    path = write_map(tmp_path / "map.tif", codes, transform, "EPSG:4326", layout)
    report = assert_as_sampled(tmp_path, path, grid, factor)
    assert report.how.startswith("nearest" if factor == 1 else f"majority of {factor} x {factor}")
    assert "EPSG:4326" in report.how
    assert report.factor == pytest.approx(10 / size, rel=0.01)


@pytest.mark.parametrize("crs", [UTM, None])
@pytest.mark.parametrize(
    ("size", "shift", "factor"), [(1.0, 0.4, 10), (3.7, 1.13, 3), (10.0, 4.3, 1), (31.5, 3, 1)]
)
def test_a_map_off_the_scenes_grid_equals_sampling_it_point_by_point(tmp_path, crs, size, shift, factor):
    grid = scene(30, 30, crs=crs)
    codes = patches(np.random.default_rng(2), (int(350 / size), int(280 / size)), [1, 2, 3, 7])
    transform = Affine(size, 0, ORIGIN[0] - shift, 0, -size, ORIGIN[1] + shift)
    path = write_map(tmp_path / "map.tif", codes, transform, crs)
    assert "off the scene's grid" in assert_as_sampled(tmp_path, path, grid, factor).how


def test_warped_labels_do_not_depend_on_memory_or_threads(tmp_path):
    grid = scene(300, 400)
    codes = patches(np.random.default_rng(3), (3000, 4000), [1, 2, 3, 7])
    transform = Affine(1, 0, ORIGIN[0] - 0.3, 0, -1, ORIGIN[1] + 0.4)
    path = write_map(tmp_path / "map.tif", codes, transform, layout="deflate")
    results = []
    for memory, threads in [(200, 1), (900, 3), (4000, 2)]:
        with patch.object(memory_plan, "_processors", lambda n=threads: n):
            make_labels(path, grid, tmp_path / "l.tif", legend=LEGEND, table=TABLE, memory=memory, overwrite=True)
        results.append((tmp_path / "l.tif").read_bytes())
    assert results[0] == results[1] == results[2]


def test_a_map_nearly_on_the_grid_is_read_without_resampling(tmp_path):
    grid = scene(20, 20)
    codes = patches(np.random.default_rng(4), (200, 200), [1, 2, 3])
    moved = Affine(1, 0, ORIGIN[0] + 0.008, 0, -1, ORIGIN[1])
    path = write_map(tmp_path / "map.tif", codes, moved)
    report = make_labels(path, grid, tmp_path / "labels.tif", legend=LEGEND, table=TABLE)
    assert report.how == "majority of 10 x 10 px, aligned"
    np.testing.assert_array_equal(
        read(tmp_path / "labels.tif"), brute(under(codes, grid, 10, 0, 0), TABLE, LEGEND)[0]
    )


def test_partial_cover_is_told_and_the_rest_is_nodata(tmp_path, caplog):
    grid = scene(10, 10)
    with caplog.at_level(logging.INFO):
        label, report = label_map(tmp_path, np.full((100, 50), 3, np.uint8), grid, 10)
    assert "covers 50.0 % of the scene" in caplog.text
    assert report.counts[0] == 50
    assert report.source_counts == {3: 5000}
    assert (label[:, :5] == 3).all()
    assert (label[:, 5:] == 0).all()


@pytest.mark.parametrize(("map_crs", "scene_crs"), [(None, UTM), (UTM, None)])
def test_one_missing_crs_needs_a_whole_multiple(tmp_path, caplog, map_crs, scene_crs):
    codes = patches(np.random.default_rng(6), (40, 60), [1, 2, 3])
    grid = scene(10, 15, crs=scene_crs)
    path = write_map(tmp_path / "map.tif", codes, Affine(1, 0, 5, 0, -1, 9), map_crs)
    make_labels(path, grid, tmp_path / "l.tif", legend=LEGEND, table=TABLE)
    assert "laid on each other" in caplog.text
    np.testing.assert_array_equal(read(tmp_path / "l.tif"), brute(under(codes, grid, 4, 0, 0), TABLE, LEGEND)[0])
    with pytest.raises(GridMismatchError, match=r"whole multiple of it\. Assign the CRS"):
        make_labels(path, scene(10, 16, crs=scene_crs), tmp_path / "m.tif", legend=LEGEND, table=TABLE)


def test_maps_and_scenes_without_any_coordinates_are_laid_on_each_other(tmp_path):
    codes = patches(np.random.default_rng(7), (36, 24), [1, 2, 3])
    path = write_map(tmp_path / "map.tif", codes, crs=None)
    for factor in (1, 3):
        grid = GeoBox((36 // factor, 24 // factor), Affine.identity(), None)
        make_labels(path, grid, tmp_path / "l.tif", legend=LEGEND, table=TABLE, overwrite=True)
        expected = brute(under(codes, grid, factor, 0, 0), TABLE, LEGEND)[0]
        np.testing.assert_array_equal(read(tmp_path / "l.tif"), expected)
    with pytest.raises(GridMismatchError, match="neither has coordinates"):
        make_labels(
            path, GeoBox((30, 30), Affine.identity(), None), tmp_path / "m.tif", legend=LEGEND, table=TABLE
        )


# --- any file ----------------------------------------------------------------------------------------------


def test_wider_integers_are_read_where_their_codes_fit(tmp_path):
    grid = scene(5, 5)
    codes = patches(np.random.default_rng(8), (50, 50), [1, 2, 3]).astype(np.int16)
    codes[:, :12] = -9999
    path = write_map(tmp_path / "map.tif", codes, fine_transform(grid, 10), nodata=-9999)
    make_labels(path, grid, tmp_path / "l.tif", legend=LEGEND, table=TABLE)
    expected = brute(under(np.maximum(codes, 0).astype(np.uint8), grid, 10, 0, 0), TABLE, LEGEND)[0]
    np.testing.assert_array_equal(read(tmp_path / "l.tif"), expected)


@pytest.mark.parametrize(
    ("dtype", "value", "error", "message"),
    [
        ("int16", 300, UnknownCodesError, r"do not know: 300 \(2,500 px, 100 %\)"),
        ("float32", 1.5, InputFileError, "holds 1.5 in rows .* whole numbers"),
        ("complex64", 1, InputFileError, "holds complex64, which can't be class codes"),
    ],
)
def test_a_map_without_class_codes_is_refused(tmp_path, dtype, value, error, message):
    grid = scene(5, 5)
    path = write_map(tmp_path / "map.tif", np.full((50, 50), value, dtype), fine_transform(grid, 10))
    with unchanged(tmp_path), pytest.raises(error, match=message):
        make_labels(path, grid, tmp_path / "l.tif", legend=LEGEND, table=TABLE)


def test_a_picture_of_a_map_is_refused(tmp_path):
    grid = scene(5, 5)
    with rasterio.open(
        tmp_path / "map.tif", "w", driver="GTiff", height=5, width=5, count=3, dtype="uint8", crs=UTM,
        transform=grid.affine,
    ) as file:  # fmt: skip
        file.write(np.ones((3, 5, 5), np.uint8))
    with pytest.raises(
        UnknownCodesError, match=r"holds colours that legend 'test' does not have: #010101 \(25 px"
    ):
        make_labels(tmp_path / "map.tif", grid, tmp_path / "l.tif", legend=LEGEND, table=TABLE)


@pytest.mark.parametrize("shift", [0, 0.4])
@pytest.mark.parametrize("layout", ["strips", "deflate"])
def test_a_truncated_map_names_file_and_rows(tmp_path, layout, shift):
    grid = scene(60, 60)
    codes = np.random.default_rng(9).integers(1, 4, (600, 600), dtype=np.uint8)
    path = write_map(
        tmp_path / "map.tif", codes, fine_transform(grid, 10) * Affine.translation(shift, 0), layout=layout
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with (
        unchanged(tmp_path),
        pytest.raises(InputFileError, match=r"rows \d+ to \d+, columns .*map\.tif|map\.tif as a raster"),
    ):
        make_labels(path, grid, tmp_path / "l.tif", legend=LEGEND, table=TABLE)


# --- codes that nobody knows -------------------------------------------------------------------------------


def test_unknown_codes_are_listed_together_and_nothing_is_written(tmp_path):
    grid = scene(40, 40)
    codes = np.full((400, 400), 3, np.uint8)
    codes[0, 0] = 19
    codes[-1, -10:] = 41
    with patch.object(memory_plan, "WINDOW_PIXELS", 5_000), pytest.raises(UnknownCodesError) as caught:
        label_map(tmp_path, codes, grid, 10)
    message = str(caught.value)
    assert "19 (1 px" in message
    assert "41 (10 px" in message
    assert '`[labels] codes = { 19 = "CLASS", 41 = "CLASS" }` (CLASS: class-7, ' in message
    assert '`unknown = "nodata"`' in message
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]


def test_unknown_codes_can_count_as_nodata_and_are_reported(tmp_path):
    codes = np.full((20, 20), 3, np.uint8)
    codes[:10, :10] = 19
    label, report = label_map(tmp_path, codes, scene(2, 2), 10, unknown="nodata")
    np.testing.assert_array_equal(label, [[0, 3], [3, 3]])
    assert report.unknown == {19: 100}
    assert report.source_counts == {3: 300, 19: 100}


def test_single_codes_and_unused_classes_go_through_the_table(tmp_path):
    codes = np.array([[19, 41], [12, 2]], np.uint8).repeat(3, 0).repeat(3, 1)
    table = recode_table(LEGEND, codes={19: "class-2", 41: "nodata"}, as_nodata=["class-12"])
    label, _ = label_map(tmp_path, codes, scene(2, 2), 3, table=table, legend=LEGEND.without(["class-12"]))
    np.testing.assert_array_equal(label, [[2, 0], [0, 2]])


def test_a_table_for_another_legend_is_refused(tmp_path):
    with pytest.raises(LegendError, match=r"leads to \[12\], which legend 'test' does not have"):
        label_map(tmp_path, np.ones((9, 9), np.uint8), scene(3, 3), 3, legend=LEGEND.without([12]))


# --- errors leave nothing behind ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "bilinear"}, "the mean of class 1 and class 3 is not class 2. Use 'majority'"),
        ({"method": "Average"}, "the mean of class 1 and class 3"),
        ({"method": "cubic_spline"}, "computes with class codes"),
        ({"method": "majorty"}, "Did you mean 'majority'"),
        ({"method": "mode"}, "GDAL's 'mode' is 'majority'"),
        ({"min_valid": 50}, "from 0 to 1, not 50"),
        ({"unknown": "ignore"}, "not 'ignore'"),
        ({"also": {"mode": Path("m.tif")}}, "GDAL's 'mode' is 'majority'"),
        ({"also": {"majority": Path("m.tif")}}, "the labels themselves are by majority"),
    ],
)
def test_impossible_settings_are_refused_before_the_map_is_opened(tmp_path, options, message):
    with pytest.raises(SettingsError, match=message):
        make_labels(
            tmp_path / "absent.tif", scene(2, 2), tmp_path / "l.tif", legend=LEGEND, table=TABLE, **options
        )


def test_an_output_can_not_be_the_map_or_another_output(tmp_path):
    path = write_map(tmp_path / "map.tif", np.ones((4, 4), np.uint8), scene(4, 4).affine)
    for outputs in ({"out": path}, {"out": tmp_path / "l.tif", "purity": tmp_path / "l.tif"}):
        with unchanged(tmp_path), pytest.raises(SettingsError, match="must be different files"):
            make_labels(path, scene(4, 4), **outputs, legend=LEGEND, table=TABLE, overwrite=True)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (UTM, Affine(1, 0, ORIGIN[0] + 300, 0, -1, ORIGIN[1])),
        (UTM, Affine(1.5, 0, ORIGIN[0] - 1e6, 0, -1.5, ORIGIN[1])),
        ("EPSG:4326", Affine(1e-4, 0, 10, 0, -1e-4, 10)),
        ("EPSG:2232", Affine(1, 0, 3219998, 0, -1, 1740001)),
    ],
)
def test_a_map_of_other_ground_is_told_before_it_is_read(tmp_path, crs, transform):
    path = write_map(tmp_path / "map.tif", np.ones((100, 100), np.uint8), transform, crs)
    with unchanged(tmp_path), pytest.raises(GridMismatchError, match=r"does not touch the scene.*Choose a map"):
        make_labels(path, scene(20, 20), tmp_path / "l.tif", legend=LEGEND, table=TABLE)


def test_existing_outputs_are_kept_unless_told_otherwise(tmp_path):
    grid, codes = scene(3, 3), np.full((9, 9), 2, np.uint8)
    (tmp_path / "fractions.tif").write_text("mine")
    path = write_map(tmp_path / "map.tif", codes, fine_transform(grid, 3))
    with unchanged(tmp_path), pytest.raises(OutputExistsError, match=r"fractions\.tif exists\. Use --overwrite"):
        make_labels(
            path, grid, tmp_path / "l.tif", legend=LEGEND, table=TABLE, fractions=tmp_path / "fractions.tif"
        )
    make_labels(path, grid, tmp_path / "fractions.tif", legend=LEGEND, table=TABLE, overwrite=True)
    assert (read(tmp_path / "fractions.tif") == 2).all()


def test_progress_counts_the_fine_pixels(tmp_path):
    seen = []

    class Bar:
        @contextmanager
        def bar(self, name, total, unit):
            seen.append((name, total, unit))
            yield seen.append

    label_map(tmp_path, np.ones((90, 60), np.uint8), scene(30, 20), 3, progress=Bar())
    assert seen[0] == ("labels", 0.0054, "Mpx")
    assert sum(seen[1:]) == pytest.approx(0.0054)


def test_kernels_work_where_no_cache_can_be_written():
    # numba then refuses `cache=True`; a locator that finds no place stands for a read-only installation
    code = (
        "import numpy as np; from cobertes.labels.kernels import histogram; n = np.zeros(256, np.int64);"
        "histogram(np.ones((2, 5), np.uint8), n); print(n[1])"
    )
    environment = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "_ZipCacheLocator"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("10", 0), done.stderr


# --- windows -----------------------------------------------------------------------------------------------


@given(
    st.integers(1, 400), st.integers(1, 400), st.integers(1, 12), st.integers(1, 500), st.integers(1, 64),
    st.integers(-999, 999),
)  # fmt: skip
def test_cuts_cover_an_axis_in_steps_that_fit(length, step, factor, block, origin_blocks, origin):
    cuts = memory_plan._cuts(length, step, factor, block, origin * origin_blocks)
    assert cuts[0] == 0
    assert cuts[-1] == length
    assert cuts == sorted(set(cuts))
    assert max(np.diff(cuts)) <= step


@pytest.mark.parametrize(("block", "steps"), [(960, 96), (1024, 512)])
def test_windows_of_a_tiled_map_end_where_its_blocks_end(block, steps):
    cuts = memory_plan._cuts(30_000, 1000, 10, block, 0)
    assert all(cut % steps == 0 for cut in cuts[:-1])
    assert max(np.diff(cuts)) > 1000 - steps


# --- real data ---------------------------------------------------------------------------------------------


def real(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path}: set COBERTES_DATA to the folder of the real data")
    return path


def test_zion_land_cover_comes_onto_the_landsat_grid(tmp_path):
    with rasterio.open(real("zion", "landsat8_20150818_b2.tif")) as file:
        grid = grid_of(file)
    path = real("zion", "nlcd_8class.tif")
    legend = load_legend("nlcd-8")
    table = recode_map(path, legend)
    report = make_labels(path, grid, tmp_path / "l.tif", legend=legend, table=table)
    assert report.how == (
        "nearest: the map is coarser than the scene (0.95 map pixels per scene pixel), map warped from EPSG:26912"
    )
    assert 1300 < report.counts[1] < 1500  # water, all but lost by careless resampling
    part = grid[600:800, 300:600]
    assert_as_sampled(tmp_path, path, part, 1, legend, table)
    np.testing.assert_array_equal(read(tmp_path / "labels.tif"), read(tmp_path / "l.tif")[600:800, 300:600])


def test_denver_land_cover_of_1_m_comes_onto_a_utm_grid_of_10_m(tmp_path):
    path = real("denver-1m", "drcog_lulc_2018_1m.tif")
    legend = legend_of(list(range(1, 9)))
    grid = GeoBox((70, 60), Affine(10, 0, 528_003, 0, -10, 4_408_007), "EPSG:32613")
    report = assert_as_sampled(tmp_path, path, grid, 10, legend, recode_table(legend))
    assert report.how == "majority of 10 x 10 px, map warped from EPSG:2232"


def test_denver_on_its_own_grid_equals_gdal_mode_except_at_ties(tmp_path):
    path = real("denver-1m", "drcog_lulc_2018_1m.tif")
    legend = legend_of(list(range(1, 9)))
    with rasterio.open(path) as file:
        grid = GeoBox((200, 300), file.transform * Affine.translation(3000, 4000) * Affine.scale(10), file.crs)
        codes = file.read(1)
    # GDAL is given round coordinates: with the map's own, in feet, 7 of 59,842 labels differ (rounding, it seems)
    gdal = np.zeros(grid.shape, np.uint8)
    reproject(
        codes, gdal, src_transform=Affine(1, 0, -3000, 0, -1, 4000), src_crs=UTM, src_nodata=0,
        dst_transform=Affine(10, 0, 0, 0, -10, 0), dst_crs=UTM, dst_nodata=0, resampling=Resampling.mode,
    )  # fmt: skip
    make_labels(path, grid, tmp_path / "l.tif", legend=legend, table=recode_table(legend))
    label = read(tmp_path / "l.tif")
    expected, _, _, ties = brute(under(codes, grid, 10, 4000, 3000), recode_table(legend), legend)
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(label[~ties], gdal[~ties])
    assert ties.mean() < 0.01


def test_a_table_without_a_code_for_nodata_is_refused(tmp_path):
    table = recode_table(LEGEND, codes={0: "class-2"})
    with pytest.raises(LegendError, match="none is left for ground that the map does not cover"):
        label_map(tmp_path, np.ones((9, 9), np.uint8), scene(3, 3), 3, table=table)
    table = recode_table(LEGEND, codes={0: "class-2", 255: "nodata"})
    label, _ = label_map(tmp_path, np.zeros((9, 9), np.uint8), scene(3, 3), 3, table=table)
    assert (label == 2).all()
