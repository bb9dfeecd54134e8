"""What a map tells of each pixel, beside the definitions in float64."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from cobertes.labels.legend import Legend
from cobertes.predict.map_layers import (
    CONFIDENCE,
    ENTROPY,
    MAP,
    NO_CONFIDENCE,
    PROBABILITIES,
    PRODUCTS,
    SECOND,
    layers_from_logits,
)

CODES = (3, 5, 6, 20, 44, 90)


def legend_of(classes: int) -> Legend:
    land = [
        {"code": code, "key": f"c{code}", "name": f"C {code}", "colour": "#102030"} for code in CODES[:classes]
    ]
    return Legend.from_dict({"name": "test", "nodata": 0, "class": land})


def described(
    logits: NDArray[np.float32], valid: NDArray[np.bool_], temperature: float = 1.0
) -> Mapping[str, NDArray[np.uint8]]:
    """All products of (height, width, classes)."""
    made, counts = layers_from_logits(logits, valid, PRODUCTS, legend_of(logits.shape[2]), temperature)
    assert np.array_equal(counts, np.bincount(made[MAP].ravel(), minlength=256))
    return made


def shares_of(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    x = (logits.astype(np.float64) - logits.max(axis=2, keepdims=True)) / temperature
    return np.exp(x) / np.exp(x).sum(axis=2, keepdims=True)


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, len(CODES)))


values = st.floats(-200, 200, width=32) | st.sampled_from([0.0, 1.0, -1.0])


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, shapes(), elements=values), st.sampled_from([1.0, 0.5, 3.0]), st.integers(0, 99))
def test_products_are_those_of_the_definitions(logits, temperature, seed):
    valid = np.random.default_rng(seed).random(logits.shape[:2]) < 0.8
    found = described(logits, valid, temperature)
    codes, shares = np.array(CODES), shares_of(logits, temperature)
    order = np.argsort(-logits, axis=2, kind="stable")  # the lower index at ties
    expected = np.where(valid, codes[order[..., 0]], 0)
    assert np.array_equal(found[MAP][0], expected)
    assert np.array_equal(found[SECOND][0], np.where(valid, codes[order[..., min(1, logits.shape[2] - 1)]], 0))

    def is_percent(product: NDArray[np.uint8], share: NDArray[np.float64]) -> None:
        assert (product[~valid] == NO_CONFIDENCE).all()
        # as near as a whole number can be, and the last digits of a float32
        assert np.abs(product[valid] - 100 * share[valid]).max(initial=0) <= 0.5 + 1e-3

    is_percent(found[CONFIDENCE][0], shares.max(axis=2))
    for k in range(logits.shape[2]):
        is_percent(found[PROBABILITIES][k], shares[..., k])
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=2) / np.log(max(logits.shape[2], 2))
    is_percent(found[ENTROPY][0], entropy)


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.float32, shapes(), elements=values), st.data())
def test_a_part_is_described_as_it_is_in_the_whole(logits, data):
    """Whatever processors do at a time: --bounds, --clip and columns give the very bits of the full map."""
    height, width, _ = logits.shape
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    part = slice(top, bottom), slice(left, right)
    whole = described(logits, np.ones((height, width), bool), 0.7)
    alone = described(logits[part], np.ones((bottom - top, right - left), bool), 0.7)
    for name in PRODUCTS:
        assert np.array_equal(whole[name][:, *part], alone[name]), name


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_give_codes_of_the_legend(value):
    logits = np.zeros((1, 3, 4), np.float32)
    logits[0, 0], logits[0, 1, 2] = value, value
    found = described(logits, np.ones((1, 3), bool))
    for name in (MAP, SECOND):
        assert np.isin(found[name], CODES[:4]).all(), name
    for name in (CONFIDENCE, ENTROPY, PROBABILITIES):
        assert (found[name] <= 100).all(), name
