"""Scores beside two other implementations, on random data with absent classes and unlabelled pixels."""

import json
import multiprocessing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from cobertes.accuracy import metrics
from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.errors import InputFileError
from cobertes.labels.legend import IGNORE_INDEX, Legend, LegendClass

LEGEND = Legend("test", 0, tuple(LegendClass(c, f"c{c}", f"Class {c}", f"#{c:02x}80ff") for c in (10, 200, 30)))


@st.composite
def maps(draw):
    """Reference with unlabelled pixels and predicted, over K classes of which some may be absent on a side."""
    classes = draw(st.integers(2, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sides = [draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True)) for _ in range(2)]
    reference, predicted = (rng.choice(side, (9, 11)).astype(np.uint8) for side in sides)
    reference[rng.random(reference.shape) < 0.3] = IGNORE_INDEX
    reference[0, 0] = sides[0][0]
    return reference, predicted, classes


@settings(deadline=None)
@given(maps())
def test_scores_equal_those_of_scikit_learn(pair):
    reference, predicted, classes = pair
    matrix = ConfusionMatrix.of(reference, predicted, classes)
    known = reference != IGNORE_INDEX
    y, p, all_classes = reference[known], predicted[known], np.arange(classes)
    np.testing.assert_array_equal(matrix.counts, sklearn_metrics.confusion_matrix(y, p, labels=all_classes))
    assert matrix.overall_accuracy == pytest.approx(sklearn_metrics.accuracy_score(y, p))
    present = np.isin(all_classes, y)
    recall = sklearn_metrics.recall_score(y, p, labels=all_classes, average=None, zero_division=0)
    precision = sklearn_metrics.precision_score(y, p, labels=all_classes, average=None, zero_division=0)
    np.testing.assert_allclose(matrix.producers_accuracy, np.where(present, recall, np.nan))
    np.testing.assert_allclose(matrix.users_accuracy, np.where(np.isin(all_classes, p), precision, np.nan))
    jaccard = sklearn_metrics.jaccard_score(y, p, labels=all_classes, average=None, zero_division=0)
    np.testing.assert_allclose(matrix.iou, np.where(present, jaccard, np.nan))
    f1 = sklearn_metrics.f1_score(y, p, labels=all_classes, average=None, zero_division=0)
    np.testing.assert_allclose(matrix.dice, np.where(present, f1, np.nan))
    assert matrix.balanced_accuracy == pytest.approx(recall[present].mean())
    if len(np.union1d(y, p)) > 1:
        assert matrix.kappa == pytest.approx(sklearn_metrics.cohen_kappa_score(y, p))
    else:
        assert np.isnan(matrix.kappa)
    weights = np.bincount(y, minlength=classes) / len(y)
    assert matrix.frequency_weighted_iou == pytest.approx((weights * jaccard).sum())


@pytest.mark.torch
@settings(deadline=None, max_examples=30)
@given(maps())
def test_scores_equal_those_of_torchmetrics(pair):
    import torch
    import torchmetrics.functional.classification as tm

    reference, predicted, classes = pair
    matrix = ConfusionMatrix.of(reference, predicted, classes)
    given_ = torch.from_numpy(predicted).long()[None], torch.from_numpy(reference).long()[None]
    how = {"num_classes": classes, "ignore_index": IGNORE_INDEX}
    # theirs, too: rows = reference, columns = predicted
    np.testing.assert_array_equal(matrix.counts, tm.multiclass_confusion_matrix(*given_, **how).numpy())
    present = matrix.support > 0
    iou = tm.multiclass_jaccard_index(*given_, **how, average="none").numpy()
    np.testing.assert_allclose(matrix.iou[present], iou[present], rtol=1e-5)
    f1 = tm.multiclass_f1_score(*given_, **how, average="none").numpy()
    np.testing.assert_allclose(matrix.dice[present], f1[present], rtol=1e-5)
    micro = tm.multiclass_accuracy(*given_, **how, average="micro").item()
    assert matrix.overall_accuracy == pytest.approx(micro, rel=1e-5)


@settings(deadline=None)
@given(maps())
def test_a_perfect_map_scores_one_and_a_constant_map_what_theory_says(pair):
    reference, _, classes = pair
    perfect = ConfusionMatrix.of(reference, np.where(reference == IGNORE_INDEX, 0, reference), classes)
    present = perfect.support > 0
    assert perfect.overall_accuracy == perfect.miou == perfect.balanced_accuracy == 1
    assert perfect.frequency_weighted_iou == pytest.approx(1)
    assert (perfect.iou[present] == 1).all()
    assert np.isnan(perfect.iou[~present]).all()
    assert perfect.kappa == 1 or present.sum() == 1
    constant = ConfusionMatrix.of(reference, np.zeros_like(reference), classes)
    share = constant.support / constant.pixels
    assert constant.overall_accuracy == pytest.approx(share[0])
    if present[0]:
        assert constant.iou[0] == pytest.approx(share[0])
        assert constant.balanced_accuracy == pytest.approx(1 / present.sum())
        assert constant.miou == pytest.approx(share[0] / present.sum())
        assert constant.frequency_weighted_iou == pytest.approx(share[0] ** 2)
    if present[1:].any():
        assert constant.kappa == pytest.approx(0)


@settings(deadline=None, max_examples=30)
@given(maps(), st.integers(1, 5))
def test_scores_of_many_matrices_side_by_side_are_those_of_each(pair, n):
    reference, predicted, classes = pair
    rng = np.random.default_rng(n)
    stack = np.stack(
        [
            ConfusionMatrix.of(
                reference, rng.permutation(predicted.ravel()).reshape(predicted.shape), classes
            ).counts
            for _ in range(n)
        ]
    )
    names = ("overall_accuracy", "producers_accuracy", "users_accuracy", "iou", "dice", "kappa")
    for name in (*names, "frequency_weighted_iou"):
        together = getattr(metrics, name)(stack)
        one_by_one = [getattr(ConfusionMatrix(counts), name) for counts in stack]
        np.testing.assert_allclose(together, one_by_one)


# --- the matrix itself -------------------------------------------------------------------------------------


def _of_strip(strip):
    return ConfusionMatrix.of(*strip, 3)


def test_matrices_of_several_processes_add_up_to_that_of_the_whole():
    rng = np.random.default_rng(1)
    reference, predicted = rng.integers(0, 3, (2, 40, 30)).astype(np.uint8)
    strips = [(reference[i : i + 10], predicted[i : i + 10]) for i in range(0, 40, 10)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.map(_of_strip, strips)
    np.testing.assert_array_equal(sum(parts).counts, ConfusionMatrix.of(reference, predicted, 3).counts)


def test_rows_are_the_reference_in_type_and_in_print():
    matrix = ConfusionMatrix.of(np.array([0, 0, 1]), np.array([1, 1, 1]), 2)
    assert matrix.counts.tolist() == [[0, 2], [0, 1]]
    assert "rows = reference, columns = predicted" in ConfusionMatrix.__doc__
    lines = str(matrix).splitlines()
    assert lines[0].split() == ["reference", "\\", "predicted", "0", "1"]
    assert lines[1].split() == ["0", "0", "2"]


@pytest.mark.parametrize(("reference", "predicted"), [([0, 3], [0, 0]), ([0, 1], [0, 255]), ([0, 1], [-1, 0])])
def test_an_index_that_is_no_class_is_an_error_and_not_a_count_elsewhere(reference, predicted):
    with pytest.raises(ValueError, match="1 pixels have a class index outside 0 to 2"):
        ConfusionMatrix.of(np.array(reference), np.array(predicted), 3)


def test_what_is_no_matrix_of_counts_is_refused():
    with pytest.raises(ValueError, match="not \\(2, 3\\)"):
        ConfusionMatrix(np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="float64"):
        ConfusionMatrix(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="2 and 3 classes"):
        ConfusionMatrix.empty(2) + ConfusionMatrix.empty(3)
    with pytest.raises(ValueError, match="reference is"):
        ConfusionMatrix.of(np.zeros(4, int), np.zeros((2, 2), int), 2)


def test_a_matrix_comes_back_from_json_exactly(tmp_path):
    counts = np.random.default_rng(0).integers(0, 2**53, (3, 3))
    ConfusionMatrix(counts).save_json(tmp_path / "c.json", LEGEND)
    data = json.loads((tmp_path / "c.json").read_text())
    assert (data["rows"], data["columns"], data["classes"]) == ("reference", "predicted", LEGEND.keys)
    np.testing.assert_array_equal(ConfusionMatrix.load_json(tmp_path / "c.json", LEGEND.keys).counts, counts)
    with pytest.raises(InputFileError, match="no confusion matrix of a, b"):
        ConfusionMatrix.load_json(tmp_path / "c.json", ["a", "b"])
    (tmp_path / "c.json").write_text(json.dumps(data | {"rows": "predicted"}))
    with pytest.raises(InputFileError, match="its rows are 'predicted'"):
        ConfusionMatrix.load_json(tmp_path / "c.json", LEGEND.keys)
