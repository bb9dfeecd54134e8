"""Windows: they cover, their interiors partition, and what is cut can be stitched."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobertes.errors import SettingsError
from cobertes.geo.windows import Window, interiors, plan_strips, tile_windows, window_starts
from helpers.rasters import stitch


@st.composite
def layouts(draw):
    """Length, size and overlap of a row of windows; the size may be larger than the length."""
    size = draw(st.integers(1, 70), "size")
    return draw(st.integers(1, 200), "length"), size, draw(st.integers(0, size - 1), "overlap")


small_windows = st.builds(
    Window, st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 20), st.integers(1, 20)
)


def pixels(window):
    return {(r, c) for r in range(window.row, window.row_stop) for c in range(window.col, window.col_stop)}


@settings(deadline=None)
@given(layouts())
def test_windows_cover_the_line_and_share_at_least_the_overlap(layout):
    length, size, overlap = layout
    first = window_starts(length, size, overlap)
    assert first[0] == 0
    assert first == sorted(set(first))
    if length <= size:
        assert first == [0]
    else:
        assert first[-1] + size == length
        assert all(b - a == size - overlap for a, b in pairwise(first[:-1]))
        assert 0 < first[-1] - first[-2] <= size - overlap


@settings(deadline=None)
@given(layouts())
def test_interiors_partition_the_line_within_their_windows(layout):
    length, size, overlap = layout
    parts = interiors(length, size, overlap)
    assert [pixel for _, a, b in parts for pixel in range(a, b)] == list(range(length))
    assert all(start <= a < b <= start + size for start, a, b in parts)
    # an inner border keeps half of the overlap on both sides
    for (one, _, cut), (other, _, _) in pairwise(parts):
        assert min(cut - other, one + size - cut) >= overlap // 2


def test_the_worked_examples_of_the_docstrings_hold():
    assert window_starts(110, 64, 32) == [0, 32, 46]
    assert interiors(110, 64, 32) == [(0, 0, 48), (32, 48, 71), (46, 71, 110)]
    assert interiors(14, 6, 2) == [(0, 0, 5), (4, 5, 9), (8, 9, 14)]


def test_an_overlap_as_large_as_the_window_is_refused():
    with pytest.raises(SettingsError, match="overlap 64 px must be smaller than the window of 64 px"):
        window_starts(100, 64, 64)


@settings(deadline=None)
@given(layouts(), st.integers(1, 150))
def test_tiles_cover_a_raster_and_stay_inside(layout, height):
    width, size, overlap = layout
    seen = np.zeros((height, width), int)
    for window in tile_windows((height, width), size, overlap):
        assert window.shape == (min(size, height), min(size, width))
        assert window.clip((height, width)) == window
        seen[window.slices] += 1
    assert seen.min() == 1 if overlap == 0 else seen.min() >= 1


@settings(deadline=None)
@given(layouts(), st.integers(1, 80), st.integers(-30, 30), st.integers(-30, 30))
def test_stitching_what_was_tiled_gives_it_back(layout, height, row, col):
    width, size, overlap = layout
    region = Window(row, col, height, width)
    around = region.pad(size)  # windows may reach out of a region smaller than them
    ground = np.random.default_rng(0).integers(0, 999, (2, *around.shape))
    out, touched = np.full((2, height, width), -1), np.zeros((height, width), int)
    last = row
    for strip in plan_strips(region, size, overlap):
        assert len({(one.interior.row, one.interior.row_stop) for one in strip}) == 1
        assert strip[0].interior.row == last  # a finished strip is a finished range of rows
        last = strip[0].interior.row_stop
        for one in strip:
            assert one.window.shape == (size, size)
            touched[one.interior.slices_in(region)] += 1
            stitch(out, region, one, ground[:, *one.window.slices_in(around)])
    np.testing.assert_array_equal(out, ground[:, *region.slices_in(around)])
    assert (touched == 1).all()


@settings(deadline=None)
@given(small_windows, small_windows, st.integers(0, 5))
def test_windows_are_sets_of_pixels(a, b, margin):
    shape = (b.height, b.width)
    assert pixels(a.clip(shape)) == pixels(a) & pixels(Window(0, 0, *shape))
    shared = a.intersection(b)
    assert (pixels(shared) if shared else set()) == pixels(a) & pixels(b)
    assert pixels(a) <= pixels(a.pad(margin))
    assert a.pad(margin).shape == (a.height + 2 * margin, a.width + 2 * margin)
    inside = np.zeros(a.pad(margin).shape, bool)
    inside[a.slices_in(a.pad(margin))] = True
    assert inside.sum() == a.height * a.width
