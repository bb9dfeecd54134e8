"""Layers of a map from its logits: class code, confidence, second class, entropy, probabilities."""

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
"""Nodata of the layers in percent."""


def raster_spec(product: str, legend: Legend) -> RasterSpec:
    """Raster specification of a product, uint8.

    map, second   legend codes of the most and the second most probable class
    confidence    percent, probability of the mapped class
    entropy       percent of the maximum: 0 certain, 100 uniform over the classes
    probabilities percent, a band per class key
    """
    if product in (MAP, SECOND):
        return RasterSpec("uint8", ("class",), legend.nodata, legend.categories())
    bands = tuple(legend.keys) if product == PROBABILITIES else (product,)
    return RasterSpec("uint8", bands, NO_CONFIDENCE, tags={"units": "percent"})


@compiled
def _fill_layers(  # noqa: PLR0912 (one branch per output)
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
    """Fill the outputs (height, width), probabilities (classes, height, width); those of size 0 are not wanted.

    logits (height, width, classes); softmax of ``logits / temperature``; ties go to the lower index
    """
    # row by row, class by class: branch-free loops over a row are vectorised (8 or 16 pixels at once), several
    # times faster than pixel by pixel
    height, width, classes = logits.shape
    planes = np.empty((classes, width), np.float32)
    most, next_most = np.empty(width, np.float32), np.empty(width, np.float32)
    best, next_best = np.empty(width, np.int32), np.empty(width, np.int32)
    total, weighted = np.empty(width, np.float32), np.empty(width, np.float32)
    with_confidence, with_second = confidence.size > 0, second.size > 0
    with_entropy, with_probabilities = entropy.size > 0, probabilities.size > 0
    scale = np.float32(1 / temperature)
    percent = np.float32(100)
    greatest = np.float32(100 / np.log(max(classes, 2)))
    for row in range(height):
        observed = valid[row]
        for col in range(width):
            for k in range(classes):
                planes[k, col] = logits[row, col, k]
        _rank(planes, most, best, next_most, next_best, with_second)
        for col in range(width):
            codes[row, col] = code_of[best[col]] if observed[col] else nodata
        if with_second:
            for col in range(width):
                second[row, col] = code_of[next_best[col]] if observed[col] else nodata
        if not (with_confidence or with_entropy or with_probabilities):
            continue
        _softmax(planes, most, scale, total, weighted)
        if with_confidence:
            for col in range(width):
                value = np.rint(percent / total[col])
                confidence[row, col] = np.uint8(value) if observed[col] else NO_CONFIDENCE
        if with_entropy:
            for col in range(width):
                # H = -sum p log p with p = s / T:  log T - sum s log s / T
                value = (np.log(total[col]) - weighted[col] / total[col]) * greatest
                value = np.rint(min(max(value, np.float32(0)), percent))
                entropy[row, col] = np.uint8(value) if observed[col] else NO_CONFIDENCE
        if with_probabilities:
            for k in range(classes):
                for col in range(width):
                    value = np.rint(percent * planes[k, col] / total[col])
                    probabilities[k, row, col] = np.uint8(value) if observed[col] else NO_CONFIDENCE


@compiled
def _rank(
    planes: NDArray[np.float32],
    most: NDArray[np.float32],
    best: NDArray[np.int32],
    next_most: NDArray[np.float32],
    next_best: NDArray[np.int32],
    with_second: bool,
) -> None:
    """Maximum over the classes of ``planes`` (classes, width), and its index; ``with_second``: also the second."""
    classes, width = planes.shape
    most[:], best[:], next_most[:], next_best[:] = planes[0], 0, -np.inf, 0
    for k in range(1, classes):
        plane, index = planes[k], np.int32(k)
        if with_second:
            for col in range(width):
                value, top, after = plane[col], most[col], next_most[col]
                candidate = best[col] if value > top else index
                lower = top if value > top else value
                # the earlier class wins ties; of two classes, one is second even at -inf
                closer = lower > after or value > top or k == 1
                next_best[col] = candidate if closer else next_best[col]
                next_most[col] = lower if closer else after
        for col in range(width):
            value, top = plane[col], most[col]
            best[col] = index if value > top else best[col]
            most[col] = value if value > top else top


@compiled
def _softmax(
    planes: NDArray[np.float32],
    most: NDArray[np.float32],
    scale: np.float32,
    total: NDArray[np.float32],
    weighted: NDArray[np.float32],
) -> None:
    """Softmax numerators: ``planes`` (classes, width) become s = exp((logit - ``most``) * scale), in place.

    total     (width,) sum of s; ``weighted`` sum of s log s

    exp(x) = 2^n exp(r) with integer n and |r| <= log(2) / 2, for which seven terms of the power series are exact
    to the last digit of a float32; 2^n is assembled from its bits.
    """
    classes, width = planes.shape
    bits = np.empty(width, np.int32)
    power = bits.view(np.float32)
    rest = np.empty(width, np.float32)
    per_log2, log2 = np.float32(1 / np.log(2)), np.float32(np.log(2))
    least, one = np.float32(-87), np.float32(1)  # below, exp underflows in float32
    total[:], weighted[:] = 0, 0
    for k in range(classes):
        plane = planes[k]
        for col in range(width):
            x = (plane[col] - most[col]) * scale
            plane[col] = x if x > least else least  # NaN too becomes the least
        for col in range(width):
            powers = plane[col] * per_log2
            n = np.rint(powers)
            rest[col] = (powers - n) * log2
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
            weighted[col] += rest[col] * plane[col]
        for col in range(width):
            total[col] += rest[col]
            plane[col] = rest[col]


Layers = dict[str, NDArray[np.uint8]]
"""(bands, height, width) uint8 by product."""


def layers_from_logits(
    logits: NDArray[np.float32],
    valid: NDArray[np.bool_],
    products: Collection[str],
    legend: Legend,
    temperature: float,
) -> tuple[Layers, NDArray[np.int64]]:
    """Layers of a block, nodata outside of ``valid``; and the histogram of its codes, (256,) int64.

    logits  (height, width, classes) float32
    valid   (height, width) bool
    """
    shape = valid.shape
    # unwanted layers are empty arrays of the same layout: one compiled version for all combinations
    flat = {name: np.empty(shape if name in (MAP, *products) else (0, 0), np.uint8) for name in PRODUCTS[:-1]}
    probabilities = np.empty((len(legend), *shape) if PROBABILITIES in products else (0, 0, 0), np.uint8)
    logits, valid = np.ascontiguousarray(logits), np.ascontiguousarray(valid)
    codes, confidence, second, entropy = flat.values()
    _fill_layers(
        logits, valid, temperature, legend.code_table(), legend.nodata,
        codes, confidence, second, entropy, probabilities,
    )  # fmt: skip
    layers = {name: probabilities if name == PROBABILITIES else flat[name][None] for name in products}
    return layers, np.bincount(codes.ravel(), minlength=CODES)
