"""Accuracy: counts that can be checked by hand, baselines that see only what the model sees."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from cobertes.accuracy import baselines
from cobertes.accuracy.baselines import evaluate_forest, most_frequent, pixel_features, train_forest
from cobertes.accuracy.block_confusion import Block, BlockMatrices
from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.atomic_io import read_json, write_json
from cobertes.geo.area import Area
from cobertes.geo.observation import Observation
from cobertes.geo.scene import Scene, open_scene
from cobertes.geo.windows import Window
from cobertes.labels.legend import IGNORE_INDEX, Legend, LegendClass
from cobertes.settings import SplitSettings, TileSettings
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.index import build_index
from helpers.rasters import grid_at, write_raster

LEGEND = Legend("test", 0, tuple(LegendClass(c, f"c{c}", f"Class {c}", f"#{c:02x}80ff") for c in (10, 200, 30)))


@st.composite
def pairs(draw, most=60):
    """Reference with some unlabelled pixels, prediction, number of classes."""
    classes, n = draw(st.integers(1, 6)), draw(st.integers(0, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    reference = rng.integers(0, classes, n).astype(np.uint8)
    reference[rng.random(n) < 0.2] = IGNORE_INDEX
    return reference, rng.integers(0, classes, n).astype(np.uint8), classes


# --- the confusion matrix ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(pairs())
def test_the_confusion_matrix_counts_pairs_one_by_one(pair):
    reference, predicted, classes = pair
    expected = np.zeros((classes, classes), int)
    for r, p in zip(reference.tolist(), predicted.tolist(), strict=True):
        if r != IGNORE_INDEX:
            expected[r, p] += 1  # rows = reference
    matrix = ConfusionMatrix.of(reference, predicted, classes)
    np.testing.assert_array_equal(matrix.counts, expected)
    assert matrix.counts.dtype == np.int64


@settings(deadline=None)
@given(pairs())
def test_scores_follow_their_definitions(pair):
    reference, predicted, classes = pair
    matrix = ConfusionMatrix.of(reference, predicted, classes)
    known = reference != IGNORE_INDEX
    r, p = reference[known], predicted[known]
    for i in range(classes):
        ours, theirs = r == i, p == i
        hits, either = (ours & theirs).sum(), (ours | theirs).sum()
        assert matrix.support[i] == ours.sum()
        if ours.any():
            assert matrix.iou[i] == pytest.approx(hits / either)
            assert matrix.dice[i] == pytest.approx(2 * hits / (ours.sum() + theirs.sum()))
            assert matrix.producers_accuracy[i] == pytest.approx(hits / ours.sum())
        else:  # absent: not 1, not 0
            assert np.isnan([matrix.iou[i], matrix.dice[i], matrix.producers_accuracy[i]]).all()
        assert np.isnan(matrix.users_accuracy[i]) if not theirs.any() else True
        if theirs.any():
            assert matrix.users_accuracy[i] == pytest.approx(hits / theirs.sum())
    if len(r):
        assert matrix.overall_accuracy == pytest.approx((r == p).mean())
        assert matrix.miou == pytest.approx(np.nanmean(matrix.iou))
        assert matrix.mean_dice == pytest.approx(np.nanmean(matrix.dice))
    else:
        assert np.isnan([matrix.overall_accuracy, matrix.miou, matrix.mean_dice]).all()


@settings(deadline=None)
@given(pairs(), st.integers(0, 60))
def test_matrices_of_parts_add_up_to_that_of_the_whole(pair, cut):
    reference, predicted, classes = pair
    parts = [ConfusionMatrix.of(reference[s], predicted[s], classes) for s in (slice(cut), slice(cut, None))]
    whole = ConfusionMatrix.empty(classes) + parts[0] + parts[1]
    np.testing.assert_array_equal(whole.counts, ConfusionMatrix.of(reference, predicted, classes).counts)


def test_rare_and_absent_classes_are_listed_and_not_averaged():
    counts = np.array([[1500, 500, 0], [0, 999, 0], [0, 0, 0]])
    matrix = ConfusionMatrix(counts)
    assert matrix.averaged.tolist() == [True, False, False]
    assert matrix.miou == pytest.approx(0.75)
    assert matrix.mean_dice == pytest.approx(2 * 1500 / 3500)
    scores = matrix.scores(LEGEND)
    assert scores["miou_classes"] == ["c10"]
    assert scores["classes"]["c200"]["support"] == 999
    # where no class has 1,000 pixels, all that occur count
    assert ConfusionMatrix(counts // 10).averaged.tolist() == [True, True, False]


def test_scores_are_json_that_a_person_can_read(tmp_path):
    matrix = ConfusionMatrix(np.array([[1500, 500, 0], [0, 999, 0], [0, 0, 0]]))
    write_json(tmp_path / "a.json", {"model": matrix.scores(LEGEND)})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)
    scores = read_json(tmp_path / "a.json")["model"]
    assert list(scores)[:2] == ["miou", "overall_accuracy"]
    assert set(scores["classes"]) == {"c10", "c200", "c30"}
    assert scores["classes"]["c30"] == {
        "code": 30, "name": "Class 30", "iou": None, "dice": None, "producers_accuracy": None,
        "users_accuracy": None, "support": 0,
    }  # fmt: skip
    assert scores["confusion_matrix"] == matrix.counts.tolist()


def test_the_csv_says_which_side_is_which(tmp_path):
    ConfusionMatrix(np.arange(9).reshape(3, 3)).save_csv(tmp_path / "c.csv", LEGEND)
    with (tmp_path / "c.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["reference \\ predicted", "c10", "c200", "c30"],
            ["c10", "0", "1", "2"],
            ["c200", "3", "4", "5"],
            ["c30", "6", "7", "8"],
        ]


@settings(deadline=None)
@given(pairs())
def test_the_most_frequent_class_is_judged_on_the_same_pixels(pair):
    reference, predicted, classes = pair
    matrix = ConfusionMatrix.of(reference, predicted, classes)
    frequent = classes - 1
    training = np.arange(classes) * 10
    expected = ConfusionMatrix.of(reference, np.full_like(predicted, frequent), classes)
    block = BlockMatrices((Block("one", Window(0, 0, 1, 1), "u"),), matrix.counts[None])
    np.testing.assert_array_equal(most_frequent(block, training).total.counts, expected.counts)


# --- the forest --------------------------------------------------------------------------------------------

SHAPE = 160, 200


def make_ground(folder, *, seed=0, guard=4, overlap=0):
    """Three classes in smooth shapes, told apart by two bands with noise; some pixels unlabelled or empty."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=SHAPE), 6)
    index = np.digitize(field, np.quantile(field, [0.5, 0.8]))
    codes = LEGEND.codes[index]
    codes[rng.random(SHAPE) < 0.05] = 0
    grid = grid_at(*SHAPE)
    scenes = {}
    for season, spectra in (("april", [(300, 3000), (900, 800), (2000, 2200)]), ("august", [(500, 900)] * 3)):
        values = np.array(spectra)[index].transpose(2, 0, 1) + rng.normal(0, 150, (2, *SHAPE))
        values = values.clip(1, 9999).astype(np.uint16)
        values[:, rng.random(SHAPE) < 0.05] = 0
        path = write_raster(folder / f"{season}.tif", values, grid, names=("red", "nir"))
        scenes[season] = open_scene([str(path)])
    labels = {"one": write_raster(folder / "labels.tif", codes, grid, nodata=0)}
    area = Area("one", scenes)
    index = build_index(
        [area], labels, LEGEND,
        tiles=TileSettings(size=20, overlap=overlap), split=SplitSettings(block=40, guard=guard),
    )  # fmt: skip
    ground = LabelledDataset({"one": area}, labels, LEGEND, index.split)
    return SimpleNamespace(ground=ground, index=index, codes=codes)


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "TREES", 20)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def forest(made):
    return train_forest(made.ground, made.index.table)


def held_out(made, letter="v"):
    mask = np.zeros(SHAPE, bool)
    for window in made.index.split.areas["one"].windows(letter):
        mask[window.slices] = True
    return mask


def test_the_forest_beats_the_most_frequent_class_on_held_out_ground(made, forest):
    matrix = evaluate_forest(forest, made.ground, "v").total
    frequent = most_frequent(evaluate_forest(forest, made.ground, "v"), made.index.statistics.class_counts).total
    assert matrix.overall_accuracy > 0.9 > frequent.overall_accuracy + 0.2
    assert matrix.miou > 0.85 > frequent.miou + 0.4
    assert frequent.support.tolist() == matrix.support.tolist()


@pytest.mark.parametrize("chunk", [512, 17])
def test_every_held_out_pixel_is_judged_exactly_once(made, forest, monkeypatch, chunk):
    monkeypatch.setattr(baselines, "CHUNK", chunk)
    _, y = made.ground.read_chw("one", Window(0, 0, *SHAPE))
    judged = y[held_out(made)]
    matrix = evaluate_forest(forest, made.ground, "v").total
    assert matrix.support.tolist() == [int((judged == i).sum()) for i in range(3)]


def test_judging_does_not_depend_on_how_the_ground_is_cut(made, forest, monkeypatch):
    whole = evaluate_forest(forest, made.ground, "v").total
    monkeypatch.setattr(baselines, "CHUNK", 17)
    np.testing.assert_array_equal(evaluate_forest(forest, made.ground, "v").total.counts, whole.counts)


def test_the_same_seed_grows_the_same_forest(made, forest):
    again = evaluate_forest(train_forest(made.ground, made.index.table), made.ground, "v").total
    np.testing.assert_array_equal(again.counts, evaluate_forest(forest, made.ground, "v").total.counts)


@pytest.mark.parametrize("guard", [0, 1, 4])
def test_the_forest_learns_without_a_look_at_held_out_ground(tmp_path, monkeypatch, guard):
    made = make_ground(tmp_path, guard=guard, overlap=4)
    held, read = held_out(made), []

    def noted(self, window, original=Scene.read_chw):
        read.append(window)
        return original(self, window)

    monkeypatch.setattr(Scene, "read_chw", noted)
    monkeypatch.setattr(baselines, "TREES", 2)
    train_forest(made.ground, made.index.table)
    assert read
    assert not any(held[window.clip(SHAPE).slices].any() for window in read)


def test_the_forest_takes_a_sample_where_there_is_more_than_it_needs(made, monkeypatch):
    monkeypatch.setattr(baselines, "TRAINING_PIXELS", 500)
    monkeypatch.setattr(baselines, "TREES", 3)
    taken = []
    original = baselines.RandomForestClassifier.fit

    def fit(self, x, y):
        taken.append((x, y))
        return original(self, x, y)

    monkeypatch.setattr(baselines.RandomForestClassifier, "fit", fit)
    train_forest(made.ground, made.index.table)
    ((x, y),) = taken
    assert 400 < len(y) < 600
    assert set(np.unique(y)) == {0, 1, 2}
    # per season: red, nir, their difference; and the means of these
    assert x.shape == (len(y), 2 * 2 * 3)


# --- features ----------------------------------------------------------------------------------------------


def test_features_are_bands_differences_and_means_of_what_was_observed():
    rng = np.random.default_rng(0)
    values = rng.integers(1, 5000, (2, 12, 14)).astype(np.uint16)
    valid = rng.random((12, 14)) < 0.8
    values[:, ~valid] = 60_000  # whatever stands there
    features = pixel_features({"s": Observation(values, valid)}, ["B04", "B08"])
    assert (features.shape, features.dtype) == ((6, 12, 14), np.float32)
    red, nir = np.where(valid, values, 0).astype(float)
    with np.errstate(invalid="ignore"):
        ndvi = np.where(valid, (nir - red) / (nir + red), 0)
    np.testing.assert_allclose(features[:3], [red, nir, ndvi], rtol=1e-5, atol=1e-6)
    for row, col in ((5, 6), (2, 11), (9, 3)):
        part = slice(row - 2, row + 3), slice(col - 2, col + 3)
        known = valid[part]
        expected = [layer[part][known].mean() for layer in (red, nir, ndvi)]
        np.testing.assert_allclose(features[3:, row, col], expected, rtol=1e-4)


def test_ground_that_nothing_observed_has_features_of_zero():
    unseen = Observation(np.full((2, 9, 9), 60_000, np.uint16), np.zeros((9, 9), bool))
    features = pixel_features({"s": unseen}, ["a", "b"])
    assert features.shape == (4, 9, 9)  # bands of unknown colours give no differences
    assert not features.any()
