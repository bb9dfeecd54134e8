"""What the comparison of aggregation methods says, beside maps whose answer is known."""

import csv
import json

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from cobertes.errors import OutputExistsError, UnknownCodesError
from cobertes.labels import method_comparison
from cobertes.labels.label_job import METHODS
from cobertes.labels.legend import Legend, LegendClass
from cobertes.labels.map_values import MapValues
from cobertes.labels.method_comparison import compare_labels
from cobertes.labels.recode import recode_table
from cobertes.labels.vote_weights import VoteWeights
from cobertes.report.label_comparison import comparison_table, write_comparison_picture
from helpers.rasters import DATA, grid_at, needs, read_raster, write_raster

LEGEND = Legend(
    "test", 0,
    tuple(LegendClass(c, key, key.title(), colour) for c, key, colour in (
        (5, "forest", "#33cc33"), (2, "road", "#adaaca"), (9, "sea", "#0000dc"), (11, "moss", "#ffff00"),
    )),
)  # fmt: skip
TABLE = recode_table(LEGEND)


def compared(folder, codes, factor=10, **options):
    height, width = codes.shape
    reference = write_raster(folder / "map.tif", codes.astype(np.uint8), grid_at(height, width, 1.0), nodata=0)
    grid = grid_at(height // factor, width // factor, float(factor))
    found = compare_labels(reference, grid, folder / "out", legend=LEGEND, table=TABLE, **options)
    return found, reference, grid


def test_a_thin_road_through_a_forest(tmp_path):
    codes = np.full((100, 200), 5)
    codes[:, 44:46] = 2  # two of ten: nearest meets it (45), majority never, weights may
    codes[12:15, 120:123] = 9  # a pond of nine pixels that only weights could see
    codes[60:80, 100:150] = 0  # not known
    found, *_ = compared(tmp_path, codes, weighting=VoteWeights("inverse"))
    nearest, majority = 0, 1
    assert METHODS == ("nearest", "majority", "weighted-majority")
    assert found.fine.tolist() == pytest.approx([187.91, 2.0, 0.09, 0])
    assert found.hectares == pytest.approx(0.01)
    assert found.labels[:, 1].tolist() == [10, 0, 10]
    assert found.bias[nearest, 1] == pytest.approx(400)
    assert found.bias[majority, 1] == -100
    assert np.isnan(found.bias[:, 3]).all()
    # the road has 200 pixels: more than one scene pixel, fewer than ten
    assert found.objects.objects[:, 1].tolist() == [0, 1]
    assert found.lost[:, 1, 1].tolist() == [0, 100, 0]
    assert found.objects.objects[:, 2].tolist() == [1, 1]
    assert found.lost[:, 0, 2].tolist() == [100, 100, 0]
    assert np.isnan(found.lost[:, 0, 0]).all()
    # boundaries in metres: both sides of the road, and twelve sides of the pond; none with nodata
    assert found.boundary.tolist() == [200, 0, 240, 212]
    assert found.agreement[nearest, majority] == pytest.approx(180 / 190)
    assert np.diag(found.agreement).tolist() == [1, 1, 1]
    assert found.weights["road"] == pytest.approx(18791 / 200)
    assert found.moved[majority] == pytest.approx(100 * 209 / 19000)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_sums_equal_brute_force_in_any_strips(tmp_path_factory, data):
    draw = data.draw
    factor, shape = draw(st.integers(1, 5)), (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = rng.choice([0, 2, 5, 9], np.multiply(shape, factor)).astype(np.uint8)
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method_comparison, "STRIP_PIXELS", draw(st.sampled_from([1, 60, 10_000])))
        found, *_ = compared(folder, codes, factor)
    for k, land in enumerate(LEGEND.classes):
        assert found.fine[k] == pytest.approx((codes == land.code).sum() / factor**2)
    made = [read_raster(folder / "out" / f"{method}.tif") for method in METHODS]
    for m, labels in enumerate([*made, codes]):
        pixel = factor if m < len(made) else 1
        edges = [
            ((a != b) & (a > 0) & (b > 0)).sum()
            for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1]))
        ]
        assert found.boundary[m] == pytest.approx(pixel * sum(edges))
    for a in range(len(made)):
        assert found.labels[a].tolist() == [(made[a] == land.code).sum() for land in LEGEND.classes]
        for b in range(len(made)):
            both = (made[a] > 0) & (made[b] > 0)
            if both.any():
                assert found.agreement[a, b] == pytest.approx((made[a] == made[b])[both].mean())


def test_files_table_and_picture(tmp_path):
    codes = np.kron(np.random.default_rng(1).choice([2, 5, 9], (20, 30)), np.ones((10, 10), int))
    codes[::7, ::5] = 9
    found, reference, grid = compared(tmp_path, codes)
    folder = tmp_path / "out"
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert len(rows) == len(LEGEND) * len(METHODS)
    assert float(rows[0]["hectares"]) == pytest.approx(found.labels[0, 0] * 0.01)
    assert rows[-1]["bias_percent"] == ""  # no moss anywhere
    saved = json.loads((folder / "comparison.json").read_text())
    assert saved["methods"]["majority"]["bias_percent"]["road"] == pytest.approx(found.bias[1, 1])
    assert saved["methods"]["majority"]["bias_percent"]["moss"] is None
    text = comparison_table(found)
    assert "Forest" in text
    assert "Moss" not in text
    write_comparison_picture(found, reference, grid, folder, TABLE, folder / "comparison.png")
    with rasterio.open(folder / "comparison.png") as picture:
        pixels = picture.read()
    assert pixels.shape[2] == 1540
    for colour in ("33cc33", "adaaca", "0000dc"):
        wanted = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)])[:, None, None]
        assert (pixels[:3] == wanted).all(0).sum() > 1000


def test_nothing_is_written_where_codes_are_unknown_or_files_exist(tmp_path):
    codes = np.full((50, 50), 77)
    with pytest.raises(UnknownCodesError, match="77"):
        compared(tmp_path, codes)
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "out" / "majority.tif").write_text("mine")
    with pytest.raises(OutputExistsError):
        compared(tmp_path, np.full((50, 50), 5))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["majority.tif"]


@needs("zion")
def test_a_map_off_the_scene_s_grid_is_compared_too(tmp_path):
    from cobertes.geo.grid import grid_of
    from cobertes.geo.io import open_raster
    from cobertes.labels.legend import load_legend

    legend = load_legend("nlcd-8")
    with open_raster(DATA / "zion" / "landsat8_20150818_b2.tif") as file:
        grid = grid_of(file)
    found = compare_labels(
        DATA / "zion" / "nlcd_8class.tif", grid, tmp_path,
        legend=legend, table=recode_table(legend, source=MapValues(nodata=255)),
    )  # fmt: skip
    # the map is coarser than the scene: all methods are nearest
    assert found.factor == 1
    assert (found.labels == found.labels[0]).all()
    assert found.moved.tolist() == [0, 0, 0]
