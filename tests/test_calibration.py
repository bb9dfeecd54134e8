"""Calibration: a temperature that is found again, confidences that come true, nothing judged by what it was fitted to."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from cobertes.accuracy.calibration import (
    LogitSample,
    calibrate,
    calibrated,
    confidence_of,
    expected_calibration_error,
    fit_temperature,
    halves,
    read_calibration,
    reliability,
    risk_coverage,
)
from cobertes.errors import InputFileError


def pixels(rng, n, temperature, classes=5):
    """Logits and labels of a world in which softmax(logits / temperature) is the truth."""
    logits = rng.normal(0, 3, (n, classes))
    chance = softmax(logits / temperature, axis=1).cumsum(axis=1)
    labels = (rng.random((n, 1)) > chance).sum(axis=1)
    return logits, labels


def a_sample(rng, units=8, n=4000, temperature=2.0):
    sample = LogitSample(1.0)
    for unit in range(units):
        logits, labels = pixels(rng, n, temperature)
        sample.add(f"u{unit}", logits.astype(np.float32), labels.astype(np.uint8))
    return sample


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_the_world_is_found_again(temperature):
    logits, labels = pixels(np.random.default_rng(0), 20_000, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_a_calibrated_confidence_of_80_percent_is_right_8_times_out_of_10():
    facts = calibrate(a_sample(np.random.default_rng(1)))
    assert facts["temperature"] == pytest.approx(2, rel=0.05)
    (bin_80,) = [one for one in facts["reliability"]["after"] if one["from"] == 0.8]
    assert bin_80["accuracy"] == pytest.approx(bin_80["confidence"], abs=0.03)
    assert 0.8 < bin_80["confidence"] < 0.85
    error = facts["expected_calibration_error"]
    assert error["after"] < 0.02
    assert error["before"] > 0.1
    assert facts["negative_log_likelihood"]["after"] < facts["negative_log_likelihood"]["before"]


def test_what_is_reported_was_not_fitted_to_the_same_blocks():
    # one half of the ground is of another world: cross-fitting must show that the temperature does not carry over
    rng, sample = np.random.default_rng(2), LogitSample(1.0)
    for unit in range(2):
        logits, labels = pixels(rng, 8000, (0.5, 4.0)[unit])
        sample.add(f"u{unit}", logits.astype(np.float32), labels.astype(np.uint8))
    facts = calibrate(sample)
    assert sorted(round(t, 1) for t in facts["halves"]) == pytest.approx([0.5, 4.0], abs=0.3)
    assert facts["expected_calibration_error"]["after"] > facts["expected_calibration_error"]["before"]
    single = LogitSample(1.0, logits=sample.logits[:1], labels=sample.labels[:1], units=["u0"])
    assert "the same pixels" in calibrate(single)["reported_on"]


def test_where_test_blocks_judge_the_temperature_is_fitted_to_validation_blocks_alone():
    rng = np.random.default_rng(3)
    fitted, judged = a_sample(rng, temperature=2.0), a_sample(rng, temperature=1.0, n=2000)
    facts = calibrate(fitted, judged)
    assert (facts["fitted_on"], facts["reported_on"]) == ("validation", "test")
    assert (facts["fitted_pixels"], facts["pixels"]) == (32_000, 16_000)
    alone = calibrate(judged, split="test")
    assert (alone["fitted_on"], alone["reported_on"][:17]) == ("test", "test, each half w")
    assert facts["temperature"] == pytest.approx(2, rel=0.05)
    assert facts["expected_calibration_error"]["before"] < 0.02 < facts["expected_calibration_error"]["after"]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=12), st.integers(0, 9))
def test_halves_share_no_unit_and_are_about_equal(sizes, seed):
    unit = np.repeat(np.arange(len(sizes)), sizes)
    second = halves(unit, seed)
    assert 0 < second.sum() < len(unit)
    for number in range(len(sizes)):
        assert len(set(second[unit == number].tolist())) == 1
    assert abs(int(second.sum()) - int((~second).sum())) <= max(sizes)


@pytest.mark.torch
def test_the_expected_calibration_error_is_that_of_torchmetrics():
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error as theirs

    logits, labels = pixels(np.random.default_rng(4), 5000, 2.0)
    probabilities = softmax(logits, axis=1)
    expected = theirs(torch.from_numpy(probabilities), torch.from_numpy(labels), 5, n_bins=20, norm="l1")
    bins = reliability(confidence_of(logits), logits.argmax(axis=1) == labels)
    assert expected_calibration_error(bins) == pytest.approx(expected.item(), abs=1e-5)
    assert sum(one["pixels"] for one in bins) == 5000


def test_temperature_changes_confidence_and_no_class():
    logits, _ = pixels(np.random.default_rng(5), 100, 1.0)
    np.testing.assert_allclose(confidence_of(logits), softmax(logits, axis=1).max(axis=1))
    assert (confidence_of(logits, 3.0) < confidence_of(logits)).all()
    np.testing.assert_array_equal((logits / 3).argmax(axis=1), logits.argmax(axis=1))


def test_the_risk_falls_where_less_is_covered_and_ends_at_the_error_rate():
    confidence = np.linspace(0.2, 1, 1000)
    right = np.random.default_rng(6).random(1000) < confidence
    curve = risk_coverage(confidence, right)
    assert curve[-1] == {"coverage": 1.0, "risk": pytest.approx((~right).mean()), "confidence": 0.2}
    assert curve[5]["risk"] < curve[25]["risk"] < curve[-1]["risk"]
    order = np.argsort(-confidence)[:500]
    half = next(one for one in curve if one["coverage"] == 0.5)
    assert half["risk"] == pytest.approx((~right[order]).mean())


def collected(known, most):
    """A sample of windows (n, height, width); a pixel's logits are its own number."""
    sample = LogitSample(seed=3, max_pixels=most)
    for place, window in enumerate(known):
        numbers = sample.draw(window, (place,))
        taken = numbers < sample.share
        own = np.flatnonzero(taken) + place * window.size
        sample.add(f"u{place}", own[:, None].astype(np.float32), np.zeros(len(own), np.uint8), numbers[taken])
    return sample


def test_a_sample_is_of_all_pixels_alike_however_many_there_are():
    known = np.random.default_rng(0).random((40, 50, 50)) < 0.9
    sample = collected(known, 2000)
    logits, _, unit = sample.arrays()
    pixels = logits[:, 0].astype(int)
    assert len(pixels) == 2000
    assert len(set(pixels.tolist())) == len(pixels)
    assert known.ravel()[pixels].all()
    np.testing.assert_array_equal(unit, pixels // 2500)  # every window is in it
    assert sample.share == pytest.approx(2000 / known.sum(), rel=0.1)
    per_window = np.bincount(unit, minlength=40)
    assert abs(per_window - len(pixels) / 40).max() < 5 * np.sqrt(len(pixels) / 40)
    np.testing.assert_array_equal(collected(known, 2000).arrays()[0], logits)


def test_of_few_labelled_pixels_each_is_in_the_sample():
    known = np.zeros((30, 50, 50), bool)
    known[7, 3, 4] = known[20, 9, 9] = True
    assert collected(known, 2000).arrays()[0][:, 0].tolist() == [7 * 2500 + 154, 20 * 2500 + 459]


# --- the file ----------------------------------------------------------------------------------------------


def test_the_file_gives_its_temperature_to_the_model_it_was_made_for(tmp_path):
    path = tmp_path / "calibration.json"
    assert read_calibration(path) is None
    path.write_text(json.dumps({"temperature": 1.7, "model": "abc", "views": "none"}))
    assert read_calibration(path) == read_calibration(path, "abc") == 1.7
    assert read_calibration(path, "another") is None
    assert read_calibration(path, "abc", "none") == 1.7
    assert read_calibration(path, "abc", "flips") is None
    path.write_text(json.dumps({"temperature": 1.7, "model": "abc", "views": "flips"}))
    assert read_calibration(path, "abc", "flips") == 1.7
    assert read_calibration(path, "abc", "none") is None


@pytest.mark.parametrize(
    "text",
    [
        '{"temperature": 0, "model": "abc", "views": "none"}',
        '{"temperature": 1.7}',  # for which model and views it was fitted is unknown
        '{"temperature": null}',
        "{}",
        "[]",
        '{"temperature": -1}',
    ],
)
def test_a_damaged_file_says_so(tmp_path, text):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(InputFileError, match=r"holds no temperature.*Delete it, or evaluate again"):
        read_calibration(tmp_path / "calibration.json")


def test_confidences_of_a_map_are_worth_what_pixels_like_them_were():
    table = [
        {"from": 0.5, "to": 0.55, "pixels": 9, "confidence": 0.5, "accuracy": 0.4},
        {"from": 0.9, "to": 0.95, "pixels": 9, "confidence": 0.9, "accuracy": 0.7},
        {"from": 0.95, "to": 1.0, "pixels": 9, "confidence": 1.0, "accuracy": 0.65},
    ]
    given_ = np.array([[50, 70, 90, 100, 255, 10]], np.uint8)
    assert calibrated(given_, table).tolist() == [[40, 54, 68, 68, 255, 40]]  # 0.675 from 90 % up


def test_a_bin_of_one_pixel_does_not_make_every_confidence_certain():
    table = [
        {"pixels": 1, "confidence": 0.2, "accuracy": 1.0},
        {"pixels": 999, "confidence": 0.6, "accuracy": 0.5},
        {"pixels": 5000, "confidence": 0.9, "accuracy": 0.8},
    ]
    assert calibrated(np.array([20, 60, 90], np.uint8), table).tolist() == [50, 50, 80]
