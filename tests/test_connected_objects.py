"""Connected objects: streamed counts beside scipy's labels of the whole map."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from cobertes.labels.connected_objects import ObjectCounter


def brute(fine, labels, factor, classes, limits):
    """Counts as `ObjectCounts` has them, from the whole map at once."""
    objects = np.zeros((len(limits), classes), int)
    lost = np.zeros((len(labels), len(limits), classes), int)
    for kind in range(classes):
        numbers, count = scipy.ndimage.label(fine == kind, np.ones((3, 3)))
        kept = [np.kron(method == kind, np.ones((factor, factor), bool)) for method in labels]
        for one in range(1, count + 1):
            pixels = numbers == one
            for i, limit in enumerate(limits):
                if pixels.sum() < limit:
                    objects[i, kind] += 1
                    for m in range(len(labels)):
                        lost[m, i, kind] += not (pixels & kept[m]).any()
    return objects, lost


def streamed(fine, labels, factor, classes, limits, cuts):
    counter = ObjectCounter(labels.shape[2], factor, classes, len(labels), limits)
    edges = [0, *sorted(cuts), labels.shape[1]]
    for top, bottom in pairwise(edges):
        if bottom > top:
            counter.add(fine[top * factor : bottom * factor], labels[:, top:bottom])
    return counter.finish()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_objects_equal_those_of_the_whole_map(data):
    draw = data.draw
    factor, classes = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    height, width, methods = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    nodata = draw(st.sampled_from([classes, 255]))  # every index from K on
    kinds = [*range(classes), nodata][: draw(st.integers(1, classes + 1))]
    fine = rng.choice(kinds, (height * factor, width * factor)).astype(np.uint8)
    for _ in range(draw(st.integers(0, 2), "smoothing")):  # larger objects
        fine = scipy.ndimage.median_filter(fine, 3)
    labels = rng.choice([*range(classes), 255], (methods, height, width)).astype(np.uint8)
    limits = (factor**2, 10 * factor**2)
    found = streamed(fine, labels, factor, classes, limits, draw(st.lists(st.integers(0, height), max_size=5)))
    objects, lost = brute(fine, labels, factor, classes, limits)
    np.testing.assert_array_equal(found.objects, objects)
    np.testing.assert_array_equal(found.lost, lost)


def comb(size):
    """Teeth that only the last row joins to one object."""
    fine = np.full((size, size), 255, np.uint8)
    fine[:, ::2] = 0
    fine[-1] = 0
    return fine


def spiral(size):
    """One path of one pixel's width that turns inwards."""
    fine = np.full((size, size), 255, np.uint8)
    row, col, step, turns = 0, 0, (0, 1), 0
    fine[0, 0] = 0
    while turns < 4:
        ahead = row + 2 * step[0], col + 2 * step[1]
        one = row + step[0], col + step[1]
        inside = all(0 <= n < size for n in one)
        taken = all(0 <= n < size for n in ahead) and fine[ahead] == 0
        if inside and not taken and fine[one] != 0:
            row, col, turns = *one, 0
            fine[row, col] = 0
        else:
            step, turns = (step[1], -step[0]), turns + 1
    return fine


@pytest.mark.parametrize("shape", [comb, spiral])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("rows", [1, 3, 21])
def test_what_joins_late_is_one_object(shape, turns, rows):
    fine = np.rot90(shape(21), turns).copy()
    nothing = np.full((1, 21, 21), 255, np.uint8)
    size = int((fine == 0).sum())
    cuts = range(rows, 21, rows)
    found = streamed(fine, nothing, 1, 1, (size, size + 1), cuts)
    assert found.objects.tolist() == [[0], [1]]
    assert found.lost.tolist() == [[[0], [1]]]


def test_one_label_anywhere_keeps_an_object():
    fine = np.zeros((30, 30), np.uint8)
    labels = np.full((2, 3, 3), 255, np.uint8)
    labels[1, 2, 2] = 0
    found = streamed(fine, labels, 10, 1, (901,), [1, 2])
    assert found.lost.tolist() == [[[1]], [[0]]]


def test_memory_does_not_grow_with_the_map():
    counter = ObjectCounter(40, 2, 3, 1, (4, 40))
    rng = np.random.default_rng(0)
    held = []
    for _ in range(200):
        counter.add(rng.integers(0, 4, (8, 80)).astype(np.uint8), np.zeros((1, 4, 40), np.uint8))
        held.append(len(counter.follower.components))
    assert max(held) <= 80
    assert counter.finish().objects[1].sum() > 2000
