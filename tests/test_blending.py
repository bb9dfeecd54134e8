"""Blending: shares sum to one, blocks partition the scene, and little memory gives what plenty would."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobertes.errors import SettingsError
from cobertes.geo.blending import BLENDS, Blender, WindowPlan, spans
from cobertes.geo.windows import interiors, window_starts

SIZES = st.integers(4, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


@given(st.integers(1, 300), SIZES, st.sampled_from(BLENDS))
def test_blocks_partition_an_axis_and_zones_lie_in_both_windows(length, size_overlap, blend):
    size, overlap = size_overlap
    found = spans(length, size, overlap, blend)
    assert [span.start for span in found] == window_starts(length, size, overlap)
    assert (found[0].first, found[-1].last, found[-1].stop) == (0, length, length)
    for before, after in pairwise(found):
        assert (before.last, before.stop) == (after.first, after.first + len(after.fade))
        assert after.start <= after.first <= after.first + len(after.fade) <= before.start + size
        assert before.first + len(before.fade) <= after.first, "zones of one window must not overlap"
        assert len(after.fade) <= overlap
    for span in found:
        assert span.first < span.last
        assert (np.diff(span.fade) >= 0).all()
        assert ((span.fade >= 0) & (span.fade <= 1)).all()


@given(st.integers(1, 300), SIZES)
def test_interior_blocks_are_those_of_the_strips(length, size_overlap):
    found = spans(length, *size_overlap, "interior")
    assert [(s.start, s.first, s.last) for s in found] == interiors(length, *size_overlap)
    assert not any(s.fade.size for s in found)


def test_a_worked_example():
    # windows of 8 at 0, 4 and 8 over 16 pixels meet at 6 and 10, and fade over 4 pixels
    a, b, c = spans(16, 8, 4, "cosine")
    assert [(s.first, s.last, s.stop) for s in (a, b, c)] == [(0, 4, 8), (4, 8, 12), (8, 16, 16)]
    np.testing.assert_allclose(b.fade, [0.0381, 0.3087, 0.6913, 0.9619], atol=1e-4)
    gaussian = spans(16, 8, 4, "gaussian")[1].fade
    # centres at 4 and 8, sigma 1: at 4.5 the shares are as exp(-0.125) and exp(-6.125)
    np.testing.assert_allclose(gaussian[0], np.exp(-6.125) / (np.exp(-6.125) + np.exp(-0.125)), rtol=1e-5)


@pytest.mark.parametrize(
    ("overlap", "blend", "message"),
    [(8, "cosine", "overlap 8 px must be smaller"), (2, "cosin", r"no blending 'cosin'\. Did you mean 'cosine'")],
)
def test_impossible_plans_are_refused(overlap, blend, message):
    with pytest.raises(SettingsError, match=message):
        spans(30, 8, overlap, blend)


def shares(span, size, following):
    """(size,) float64: what a window's pixels count along an axis, written out."""
    place = np.arange(span.start, span.start + size)
    share = ((place >= span.first) & (place < span.stop)).astype(float)
    share[(place >= span.first) & (place < span.first + len(span.fade))] = span.fade
    if following is not None:
        share[(place >= span.last) & (place < span.stop)] = 1 - following.fade
    return share


def answers(plan, classes=3):
    rng = np.random.default_rng(1)
    return rng.normal(size=(len(plan.rows), len(plan.cols), plan.size, plan.size, classes)).astype(np.float32)


def assembled(plan, values, groups=1):
    """All blocks, with columns worked off in groups."""
    out = np.full((plan.rows[-1].last, plan.cols[-1].last, values.shape[-1]), np.nan, np.float32)
    blender, cols = Blender(plan), len(plan.cols)
    edges = [cols * g // groups for g in range(groups + 1)]
    for first, stop in pairwise(edges):
        for row in range(len(plan.rows)):
            for col in range(max(first - 1, 0), stop):
                block = blender.add(row, col, values[row, col])
                if col >= first:
                    out[plan.block(row, col).slices] = block
    return out


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize(
    ("shape", "size", "overlap"), [((50, 70), 16, 4), ((33, 45), 16, 8), ((41, 30), 12, 11), ((9, 40), 16, 5)]
)
def test_blocks_are_the_weighted_means_of_all_windows(blend, shape, size, overlap):
    plan = WindowPlan.of(shape, size, overlap, blend)
    values = answers(plan)
    total, weight = np.zeros((200, 200, 3)), np.zeros((200, 200, 1))
    for row, y in enumerate(plan.rows):
        for col, x in enumerate(plan.cols):
            below = plan.rows[row + 1] if row + 1 < len(plan.rows) else None
            right = plan.cols[col + 1] if col + 1 < len(plan.cols) else None
            share = shares(y, size, below)[:, None, None] * shares(x, size, right)[None, :, None]
            place = plan.window(row, col).slices
            total[place] += share * values[row, col]
            weight[place] += share
    np.testing.assert_allclose(weight[: shape[0], : shape[1]], 1, rtol=1e-6)
    np.testing.assert_allclose(assembled(plan, values), total[: shape[0], : shape[1]], atol=2e-6)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("groups", [2, 3, 6])
def test_groups_of_columns_give_the_same_bits(blend, groups):
    plan = WindowPlan.of((50, 75), 16, 6, blend)
    values = answers(plan)
    np.testing.assert_array_equal(assembled(plan, values, groups), assembled(plan, values))


def test_what_is_kept_between_strips_is_their_zone():
    plan = WindowPlan.of((100, 3000), 32, 8, "cosine")
    blender, values = Blender(plan), np.zeros((32, 32, 5), np.float32)
    for row in range(3):
        for col in range(len(plan.cols)):
            blender.add(row, col, values)
    kept = sum(array.size for _, array in blender.above.values())
    assert kept <= 8 * 3000 * 5 == plan.carry_over() * 5
    assert WindowPlan.of((100, 3000), 32, 8, "interior").carry_over() == 0
