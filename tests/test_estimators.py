"""Area estimates: to the digit those of the literature, and right as often as they say."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cobertes.errors import SettingsError
from cobertes.survey.estimators import Estimate, allocate, estimate, sample_size

# Olofsson et al. (2014): rows = map class, columns = reference; deforestation, forest gain, stable forest, non-forest
OLOFSSON = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])


def points_of(counts):
    mapped, reference = np.repeat(np.indices(counts.shape).reshape(2, -1), counts.ravel(), axis=1)
    return mapped, reference


def test_the_worked_example_of_olofsson_comes_out_to_the_digit():
    mapped, reference = points_of(OLOFSSON)
    found = estimate(PIXELS, mapped, mapped, reference, 4)
    hectares = PIXELS.sum() * 0.09
    assert round(found.areas[0].value * hectares) == 21_158
    assert round(found.areas[0].margin * hectares) == 6_158
    assert round(found.areas[0].value * PIXELS.sum()) == 235_086
    assert (round(found.overall.value, 3), round(found.overall.margin, 3)) == (0.947, 0.018)
    assert [round(one.value, 2) for one in found.users] == [0.88, 0.73, 0.93, 0.96]
    assert [round(one.value, 2) for one in found.producers] == [0.75, 0.85, 0.93, 0.96]
    np.testing.assert_array_equal(found.counts, OLOFSSON.T)  # ours: rows = reference
    assert found.proportions.sum() == pytest.approx(1)


def test_errors_are_those_of_olofssons_formulas():
    mapped, reference = points_of(OLOFSSON)
    found = estimate(PIXELS, mapped, mapped, reference, 4)
    n, weight = OLOFSSON.sum(axis=1), PIXELS / PIXELS.sum()
    p = OLOFSSON / n[:, None]
    for k in range(4):
        assert found.users[k].error == pytest.approx(np.sqrt(p[k, k] * (1 - p[k, k]) / (n[k] - 1)))  # their eq. 6
        area = np.sqrt((weight**2 * p[:, k] * (1 - p[:, k]) / (n - 1)).sum())  # eq. 10
        assert found.areas[k].error == pytest.approx(area)
        total, share = (PIXELS * p[:, k]).sum(), found.producers[k].value  # eq. 7
        others = sum(PIXELS[i] ** 2 * p[i, k] * (1 - p[i, k]) / (n[i] - 1) for i in range(4) if i != k)
        own = PIXELS[k] ** 2 * (1 - share) ** 2 * p[k, k] * (1 - p[k, k]) / (n[k] - 1)
        assert found.producers[k].error == pytest.approx(np.sqrt(own + share**2 * others) / total)


def a_world(rng, size=40_000):
    """Strata of very different size, a map with errors that depend on the stratum, and the truth."""
    stratum = rng.choice(4, size, p=[0.02, 0.08, 0.3, 0.6])
    truth = np.where(rng.random(size) < 0.85, np.minimum(stratum, 2), rng.integers(0, 3, size))
    mapped = np.where(rng.random(size) < 0.8, truth, rng.integers(0, 3, size))
    return stratum, mapped, truth


def draw(rng, stratum, points):
    return np.concatenate(
        [rng.choice(np.flatnonzero(stratum == h), n, replace=False) for h, n in enumerate(points)]
    )


@pytest.mark.parametrize("strata_are_classes", [True, False])
def test_intervals_hold_the_truth_in_95_of_100_samples(strata_are_classes):
    rng = np.random.default_rng(0)
    stratum, mapped, truth = a_world(rng)
    strata = mapped if strata_are_classes else stratum
    pixels = np.bincount(strata)
    points = allocate(pixels, 800, minimum=100)
    truths = {
        "overall": (mapped == truth).mean(),
        **{f"area {k}": (truth == k).mean() for k in range(3)},
        **{f"user {k}": (truth == k)[mapped == k].mean() for k in range(3)},
        **{f"producer {k}": (mapped == k)[truth == k].mean() for k in range(3)},
    }
    inside, values = dict.fromkeys(truths, 0), {name: [] for name in truths}
    for _ in range(1000):
        at = draw(rng, strata, points)
        found = estimate(pixels, strata[at], mapped[at], truth[at], 3)
        ours = {"overall": found.overall}
        for k in range(3):
            ours |= {f"area {k}": found.areas[k], f"user {k}": found.users[k], f"producer {k}": found.producers[k]}
        for name, one in ours.items():
            inside[name] += abs(one.value - truths[name]) <= one.margin
            values[name].append(one.value)
    for name, count in inside.items():
        # a producer's accuracy is a ratio whose denominator is estimated too: linearised, a little narrow
        assert (0.91 if name.startswith("producer") else 0.93) <= count / 1000 <= 0.975, (name, count)
        # unbiased: the mean of the estimates is the truth, as far as 1,000 of them can tell
        spread = np.std(values[name]) / np.sqrt(1000)
        assert abs(np.mean(values[name]) - truths[name]) < 4 * spread + 0.002, name


def test_a_census_has_no_error():
    rng = np.random.default_rng(1)
    stratum, mapped, truth = a_world(rng, 300)
    found = estimate(np.bincount(stratum), stratum, mapped, truth, 3)
    assert found.overall.error == pytest.approx(0, abs=1e-12)
    assert found.overall.value == pytest.approx((mapped == truth).mean())
    assert found.areas[1].value == pytest.approx((truth == 1).mean())


def test_a_class_that_no_point_shows_has_no_accuracy_and_intervals_stay_possible():
    mapped, reference = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
    found = estimate(np.array([1000, 1000]), mapped, mapped, reference, 3)
    assert np.isnan(found.users[2].value)
    assert np.isnan(found.producers[2].value)
    assert found.areas[2].value == 0
    # 2 of 3 points: a standard error of 1/3, and an interval that would end beyond 1
    assert found.users[1].interval(1.0) == pytest.approx((2 / 3 - 1.959964 / 3, 1.0), abs=1e-6)


def test_what_is_not_known_has_no_interval():
    assert np.isnan(Estimate(float("nan"), float("nan")).interval(1.0)).all()


def test_points_that_all_agree_leave_doubt_by_their_number():
    mapped, reference = np.repeat([0, 1], [2, 50]), np.repeat([0, 1], [2, 50])
    found = estimate(np.array([1000, 9000]), mapped, mapped, reference, 3)
    assert (found.users[0].value, found.users[0].error) == (1, 0)
    assert found.users[0].interval(1.0) == (pytest.approx(2 / (2 + 1.96**2), rel=1e-4), 1)  # Wilson (1927)
    assert found.users[1].interval(1.0) == (pytest.approx(50 / (50 + 1.96**2), rel=1e-4), 1)
    low, high = found.overall.interval(1.0)
    assert 0.5 < low < 0.95 < high == 1  # between the strata's
    low, high = found.areas[2].interval(1.0)  # a class that no point shows may be there
    assert low == 0 < high < 0.1
    # all pixels of class 0 were seen: nothing is left to doubt
    found = estimate(np.array([2, 9000]), mapped, mapped, reference, 2)
    assert found.users[0].interval(1.0) == (1, 1)
    assert found.users[1].interval(1.0)[0] < 0.95


def test_a_stratum_whose_only_pixel_was_seen_is_known():
    found = estimate(np.array([1, 99]), np.array([0, 1, 1]), np.array([0, 1, 1]), np.array([0, 1, 0]), 2)
    assert found.users[0].interval(1.0) == (1, 1)
    assert found.areas[0].value == pytest.approx(0.01 + 0.99 / 2)
    assert found.areas[0].error > 0


def test_a_stratum_of_one_point_is_refused():
    with pytest.raises(SettingsError, match="stratum 1 has 1 interpreted points: a variance needs two"):
        estimate(np.array([10, 10]), np.array([0, 0, 1]), np.zeros(3, int), np.zeros(3, int), 1)


# --- allocation --------------------------------------------------------------------------------------------


def test_the_sample_size_of_olofsson():
    # their section 5.1: SE 0.01, users' accuracies 0.7, 0.6, 0.9, 0.95 -> 641 points
    assert sample_size(PIXELS, [0.7, 0.6, 0.9, 0.95], 0.01) == 641


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=12),
    st.integers(2, 3000),
    st.integers(0, 60),
    st.booleans(),
)
@example(pixels=[1, 6], points=7, minimum=4, equal=True)
def test_allocations_sum_up_keep_the_minimum_and_never_exceed_a_stratum(pixels, points, minimum, equal):
    pixels = np.array(pixels)
    least = np.minimum(max(minimum, 2), pixels)
    if least.sum() > points:
        with pytest.raises(SettingsError, match="too few"):
            allocate(pixels, points, equal=equal, minimum=minimum)
        return
    found = allocate(pixels, points, equal=equal, minimum=minimum)
    assert (found <= pixels).all()
    assert (found >= least).all()
    assert found.sum() == min(points, pixels.sum())


def test_allocation_is_in_proportion_or_equal():
    assert allocate(np.array([1000, 3000, 6000]), 100).tolist() == [10, 30, 60]
    assert allocate(np.array([1000, 3000, 6000]), 99, equal=True).tolist() == [33, 33, 33]
    assert allocate(np.array([100, 3000, 6000]), 100, minimum=10).tolist() == [10, 30, 60]
    assert allocate(np.array([5, 3000, 6000]), 99, equal=True).tolist() == [5, 47, 47]
