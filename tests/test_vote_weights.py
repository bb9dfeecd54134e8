"""Weights of the weighted majority."""

import numpy as np
import pytest

from cobertes.errors import LegendError, SettingsError
from cobertes.labels.aggregate import make_labels
from cobertes.labels.legend import Legend, LegendClass
from cobertes.labels.recode import recode_table
from cobertes.labels.vote_weights import (
    VoteWeights,
    class_counts,
    describe_weights,
    gaussian_kernel,
    integer_weights,
    parse_weights,
)
from helpers.rasters import grid_at, read_raster, write_raster

LEGEND = Legend(
    "test",
    0,
    tuple(LegendClass(c, key, key.title(), "#808080") for c, key in ((3, "forest"), (2, "road"), (9, "sea"))),
)
TABLE = recode_table(LEGEND)


@pytest.mark.parametrize(
    ("name", "expected"), [("equal", [1, 1, 1]), ("inverse-sqrt", [1, 5, 1.25]), ("inverse", [1, 25, 1.5625])]
)
def test_weights_by_frequency(name, expected):
    assert VoteWeights(name).weights(LEGEND, np.array([100, 4, 64])) == pytest.approx(expected)


def test_an_absent_class_does_not_change_the_others():
    assert VoteWeights("inverse").weights(LEGEND, np.array([100, 0, 50]))[[0, 2]] == pytest.approx([1, 2])


def test_given_weights_are_by_code_key_or_name_and_others_weigh_one():
    assert VoteWeights({"road": 4.5, "Sea": 0.5}).weights(LEGEND).tolist() == [1, 4.5, 0.5]
    assert VoteWeights({2: 4.5}).weights(LEGEND).tolist() == [1, 4.5, 1]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: VoteWeights("invers"), SettingsError, "Did you mean 'inverse'"),
        (lambda: VoteWeights("equal", 1.5), SettingsError, "from 0 to 1 scene pixels, not 1.5"),
        (lambda: VoteWeights("equal", -0.1), SettingsError, "not -0.1"),
        (lambda: VoteWeights({"rode": 2}).weights(LEGEND), LegendError, "Did you mean 'road'"),
        (lambda: VoteWeights({"road": 0}).weights(LEGEND), SettingsError, "greater than 0, found 0"),
        (lambda: VoteWeights({"road": float("nan")}).weights(LEGEND), SettingsError, "greater than 0"),
        (lambda: parse_weights("road=x"), SettingsError, "found 'road=x'"),
        (lambda: parse_weights("road=2,sea"), SettingsError, "CLASS=NUMBER"),
    ],
)
def test_impossible_weights_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_weights_that_were_printed_can_be_given_again():
    weights = VoteWeights("inverse").weights(LEGEND, np.array([100, 3, 64]))
    again = VoteWeights(parse_weights(describe_weights(LEGEND, weights))).weights(LEGEND)
    assert again == pytest.approx(weights, rel=1e-3)


def test_whole_weights_keep_their_proportion_and_none_vanishes():
    assert integer_weights(np.array([1.0, 2.0, 4.0])).tolist() == [2**18, 2**19, 2**20]
    assert integer_weights(np.array([1e-12, 1.0])).tolist() == [1, 2**20]


@pytest.mark.parametrize(
    ("smoothing", "factor", "size"), [(0.1, 10, 10), (0.5, 10, 30), (0.5, 3, 9), (1.0, 4, 28)]
)
def test_the_bell_is_symmetric_and_greatest_at_the_centre(smoothing, factor, size):
    line = gaussian_kernel(smoothing, factor)
    assert line.size == size
    assert (line == line[::-1]).all()
    assert line.argmax() in (size // 2, size // 2 - 1)
    assert line.min() >= 1
    one = np.abs((np.arange(size) + 0.5) / factor - size / factor / 2)
    assert np.abs(line / 1024 - np.exp(-0.5 * (one / smoothing) ** 2)).max() < 1 / 1024


def test_the_greatest_sum_fits_in_64_bits():
    line = gaussian_kernel(1.0, 64)
    assert int(line.sum()) ** 2 * int(integer_weights(np.array([1.0])).max()) < 2**63


def test_class_counts_go_through_the_table():
    table = recode_table(LEGEND, codes={7: "road", 8: "nodata"})
    seen = np.zeros(256, np.int64)
    seen[[0, 2, 3, 7, 8, 100]] = 1, 20, 300, 4000, 50_000, 600_000
    assert class_counts(LEGEND, table, seen).tolist() == [300, 4020, 0]


def test_a_rare_class_survives_and_its_weight_is_told(tmp_path):
    # a road of two map pixels' width crosses a forest: never the majority
    codes = np.full((100, 100), 3, np.uint8)
    codes[:, 44:46] = 2
    reference = write_raster(tmp_path / "map.tif", codes, grid_at(100, 100, 1.0), nodata=0)
    made = {}
    for weights in ("equal", "inverse-sqrt", "inverse"):
        made[weights] = make_labels(
            reference, grid_at(10, 10), tmp_path / f"{weights}.tif", legend=LEGEND, table=TABLE,
            method="weighted-majority", weighting=VoteWeights(weights),
        )  # fmt: skip
    assert not (read_raster(tmp_path / "equal.tif") == 2).any()
    # 20 votes x 7 against 80 x 1, and x 49
    assert (read_raster(tmp_path / "inverse-sqrt.tif")[:, 4] == 2).all()
    assert (read_raster(tmp_path / "inverse.tif") == read_raster(tmp_path / "inverse-sqrt.tif")).all()
    assert made["inverse"].weights == pytest.approx({"forest": 1, "road": 49, "sea": 9800})
    assert made["inverse"].how == "weighted majority of 10 x 10 px, class weights inverse, aligned"


def test_equal_weights_without_smoothing_are_the_majority(tmp_path):
    codes = np.random.default_rng(3).choice([2, 3, 9], (120, 80)).astype(np.uint8)
    reference = write_raster(tmp_path / "map.tif", codes, grid_at(120, 80, 1.0), nodata=0)
    make_labels(
        reference, grid_at(30, 20, 4.0), tmp_path / "w.tif", legend=LEGEND, table=TABLE, method="weighted-majority",
        weighting=VoteWeights("equal"), also={"majority": tmp_path / "m.tif"},
    )  # fmt: skip
    assert (read_raster(tmp_path / "w.tif") == read_raster(tmp_path / "m.tif")).all()


def test_smoothing_takes_the_step_out_of_a_slanting_boundary(tmp_path):
    rows, cols = np.mgrid[:400, :400]
    codes = np.where(cols > 130 + rows * 0.37 + 14 * np.sin(rows / 2.5), 3, 2).astype(np.uint8)
    reference = write_raster(tmp_path / "map.tif", codes, grid_at(400, 400, 1.0), nodata=0)
    made = {}
    for smoothing in (0.0, 0.5, 1.0):
        make_labels(
            reference, grid_at(40, 40), tmp_path / "w.tif", legend=LEGEND, table=TABLE, overwrite=True,
            method="weighted-majority", weighting=VoteWeights("equal", smoothing),
        )  # fmt: skip
        labels = read_raster(tmp_path / "w.tif")
        made[smoothing] = int((labels[1:] != labels[:-1]).sum() + (labels[:, 1:] != labels[:, :-1]).sum())
    assert made[1.0] <= made[0.5] < made[0.0]
