"""What a map tells of each pixel, from its logits: code, confidence, second class, entropy, probabilities."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.cog_writer import RasterSpec
from cobertes.labels.legend import CODES, Legend
from cobertes.numba_cache import compiled

MAP, CONFIDENCE, SECOND, ENTROPY, PROBABILITIES = PRODUCTS = (
    "map",
    "confidence",
    "second",
    "entropy",
    "probabilities",
)

NO_CONFIDENCE = 255
"""Nodata of all that is in percent."""


def kind_of(product: str, legend: Legend) -> RasterSpec:
    """What the raster of a product holds.

    map, second   legend codes: of the most and the second most probable class
    confidence    percent, the probability of the mapped class
    entropy       percent of the greatest possible: 0 sure, 100 all classes alike
    probabilities percent, a band per class key
    """
    if product in (MAP, SECOND):
        return RasterSpec("uint8", ("class",), legend.nodata, legend.categories())
    bands = tuple(legend.keys) if product == PROBABILITIES else (product,)
    return RasterSpec("uint8", bands, NO_CONFIDENCE, tags={"units": "percent"})


@compiled
def _describe(  # noqa: PLR0912 (an output, a branch)
    logits: NDArray[np.float32],
    valid: NDArray[np.bool_],
    temperature: float,
    code_of: NDArray[np.uint8],
    nodata: int,
    codes: NDArray[np.uint8],
    confidence: NDArray[np.uint8],
    second: NDArray[np.uint8],
    entropy: NDArray[np.uint8],
    probabilities: NDArray[np.uint8],
) -> None:
    """Fill the outputs that have pixels; (height, width), probabilities (classes, height, width).

    logits (height, width, classes); softmax is that of ``logits / temperature``; the lower index at ties
    """
    # a row at a time, class by class: loops over a row without branches are what processors do 8 or 16 pixels of
    # at once, several times faster than pixel by pixel
    height, width, classes = logits.shape
    planes = np.empty((classes, width), np.float32)
    most, next_most = np.empty(width, np.float32), np.empty(width, np.float32)
    best, next_best = np.empty(width, np.int32), np.empty(width, np.int32)
    total, inner = np.empty(width, np.float32), np.empty(width, np.float32)
    sure, others, doubt, each = confidence.size > 0, second.size > 0, entropy.size > 0, probabilities.size > 0
    scale = np.float32(1 / temperature)
    percent = np.float32(100)
    greatest = np.float32(100 / np.log(max(classes, 2)))
    for row in range(height):
        seen = valid[row]
        for col in range(width):
            for k in range(classes):
                planes[k, col] = logits[row, col, k]
        _rank(planes, most, best, next_most, next_best, others)
        for col in range(width):
            codes[row, col] = code_of[best[col]] if seen[col] else nodata
        if others:
            for col in range(width):
                second[row, col] = code_of[next_best[col]] if seen[col] else nodata
        if not (sure or doubt or each):
            continue
        _soften(planes, most, scale, total, inner)
        if sure:
            for col in range(width):
                value = np.rint(percent / total[col])
                confidence[row, col] = np.uint8(value) if seen[col] else NO_CONFIDENCE
        if doubt:
            for col in range(width):
                # H = -sum p log p with p = s / T:  log T - sum s log s / T
                value = (np.log(total[col]) - inner[col] / total[col]) * greatest
                value = np.rint(min(max(value, np.float32(0)), percent))
                entropy[row, col] = np.uint8(value) if seen[col] else NO_CONFIDENCE
        if each:
            for k in range(classes):
                for col in range(width):
                    value = np.rint(percent * planes[k, col] / total[col])
                    probabilities[k, row, col] = np.uint8(value) if seen[col] else NO_CONFIDENCE


@compiled
def _rank(
    planes: NDArray[np.float32],
    most: NDArray[np.float32],
    best: NDArray[np.int32],
    next_most: NDArray[np.float32],
    next_best: NDArray[np.int32],
    others: bool,
) -> None:
    """The greatest of ``planes`` (classes, width) and its index; also the second, where ``others`` asks for it."""
    classes, width = planes.shape
    most[:], best[:], next_most[:], next_best[:] = planes[0], 0, -np.inf, 0
    for k in range(1, classes):
        plane, index = planes[k], np.int32(k)
        if others:
            for col in range(width):
                value, top, after = plane[col], most[col], next_most[col]
                place = best[col] if value > top else index
                lower = top if value > top else value
                # what led so far comes before equal ones; of two classes, one is second whatever its value
                closer = lower > after or value > top or k == 1
                next_best[col] = place if closer else next_best[col]
                next_most[col] = lower if closer else after
        for col in range(width):
            value, top = plane[col], most[col]
            best[col] = index if value > top else best[col]
            most[col] = value if value > top else top


@compiled
def _soften(
    planes: NDArray[np.float32],
    most: NDArray[np.float32],
    scale: np.float32,
    total: NDArray[np.float32],
    inner: NDArray[np.float32],
) -> None:
    """``planes`` (classes, width) become s = exp((logit - ``most``) * scale), ``total`` their sum, ``inner`` that
    of s log s.

    exp(x) = 2^n exp(r) with whole n and r of at most half log 2, where seven terms of the power series are exact
    to the last digit of a float32; 2^n is made from its bits.
    """
    classes, width = planes.shape
    bits = np.empty(width, np.int32)
    power = bits.view(np.float32)
    rest = np.empty(width, np.float32)
    per_log2, log2 = np.float32(1 / np.log(2)), np.float32(np.log(2))
    least, one = np.float32(-87), np.float32(1)  # below, there is no such float32
    total[:], inner[:] = 0, 0
    for k in range(classes):
        plane = planes[k]
        for col in range(width):
            x = (plane[col] - most[col]) * scale
            plane[col] = x if x > least else least  # nor is NaN above it
        for col in range(width):
            turns = plane[col] * per_log2
            n = np.rint(turns)
            rest[col] = (turns - n) * log2
            bits[col] = (np.int32(n) + np.int32(127)) << np.int32(23)
        for col in range(width):
            r = rest[col]
            series = r * np.float32(1 / 5040) + np.float32(1 / 720)
            series = series * r + np.float32(1 / 120)
            series = series * r + np.float32(1 / 24)
            series = series * r + np.float32(1 / 6)
            series = series * r + np.float32(1 / 2)
            series = series * r + one
            rest[col] = (series * r + one) * power[col]
        for col in range(width):
            inner[col] += rest[col] * plane[col]
        for col in range(width):
            total[col] += rest[col]
            plane[col] = rest[col]


Made = dict[str, NDArray[np.uint8]]
"""(bands, height, width) by product."""


def layers_from_logits(
    logits: NDArray[np.float32],
    valid: NDArray[np.bool_],
    products: Collection[str],
    legend: Legend,
    temperature: float,
) -> tuple[Made, NDArray[np.int64]]:
    """What the products say of some pixels, nodata where not ``valid``; and (256,) pixels per code.

    logits  (height, width, classes)
    """
    shape = valid.shape
    # arrays of one layout, so that one compiled version serves all
    made = {name: np.empty(shape if name in (MAP, *products) else (0, 0), np.uint8) for name in PRODUCTS[:-1]}
    shares = np.empty((len(legend), *shape) if PROBABILITIES in products else (0, 0, 0), np.uint8)
    logits, valid = np.ascontiguousarray(logits), np.ascontiguousarray(valid)
    codes, sure, second, entropy = made.values()
    _describe(logits, valid, temperature, legend.code_table(), legend.nodata, codes, sure, second, entropy, shares)
    found = {name: shares if name == PROBABILITIES else made[name][None] for name in products}
    return found, np.bincount(codes.ravel(), minlength=CODES)
