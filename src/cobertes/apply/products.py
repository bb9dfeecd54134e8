"""What a map tells of each pixel, from its logits: code, confidence, second class, entropy, probabilities."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.raster import RasterKind
from cobertes.jit import compiled
from cobertes.labels.legend import CODES, Legend

MAP, CONFIDENCE, SECOND, ENTROPY, PROBABILITIES = PRODUCTS = (
    "map",
    "confidence",
    "second",
    "entropy",
    "probabilities",
)

NO_CONFIDENCE = 255
"""Nodata of all that is in percent."""


def kind_of(product: str, legend: Legend) -> RasterKind:
    """What the raster of a product holds.

    map, second   legend codes: of the most and the second most probable class
    confidence    percent, the probability of the mapped class
    entropy       percent of the greatest possible: 0 sure, 100 all classes alike
    probabilities percent, a band per class key
    """
    if product in (MAP, SECOND):
        return RasterKind("uint8", ("class",), legend.nodata, legend.categories())
    bands = tuple(legend.keys) if product == PROBABILITIES else (product,)
    return RasterKind("uint8", bands, NO_CONFIDENCE, tags={"units": "percent"})


@compiled
def _describe(  # noqa: PLR0912
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
    height, width, classes = logits.shape
    shares = np.empty(classes, np.float32)
    sure, others, doubt, each = confidence.size > 0, second.size > 0, entropy.size > 0, probabilities.size > 0
    scale = np.float32(1 / temperature)
    most = np.float32(1 / np.log(max(classes, 2)))
    for row in range(height):
        for col in range(width):
            if not valid[row, col]:
                codes[row, col] = nodata
                if sure:
                    confidence[row, col] = 255
                if others:
                    second[row, col] = nodata
                if doubt:
                    entropy[row, col] = 255
                if each:
                    probabilities[:, row, col] = 255
                continue
            best, next_best = 0, -1
            for k in range(1, classes):
                if logits[row, col, k] > logits[row, col, best]:
                    best, next_best = k, best
                elif next_best < 0 or logits[row, col, k] > logits[row, col, next_best]:
                    next_best = k
            codes[row, col] = code_of[best]
            if others:
                second[row, col] = code_of[max(next_best, 0)]
            if not (sure or doubt or each):
                continue
            total = np.float32(0)
            for k in range(classes):
                shares[k] = np.exp((logits[row, col, k] - logits[row, col, best]) * scale)
                total += shares[k]
            if sure:
                confidence[row, col] = np.uint8(np.rint(np.float32(100) / total))
            if each:
                for k in range(classes):
                    probabilities[k, row, col] = np.uint8(np.rint(np.float32(100) * shares[k] / total))
            if doubt:
                # H = -sum p log p with p = s / T:  log T - sum s log s / T
                inner = np.float32(0)
                for k in range(classes):
                    if shares[k] > 0:
                        inner += shares[k] * (logits[row, col, k] - logits[row, col, best]) * scale
                value = np.float32(100) * (np.log(total) - inner / total) * most
                entropy[row, col] = np.uint8(np.rint(min(max(value, np.float32(0)), np.float32(100))))


@dataclass(frozen=True)
class Products:
    """The rasters of a map and how they are made: ``rasters`` (bands, height, width) uint8 by product."""

    rasters: Mapping[str, Any]
    legend: Legend
    temperature: float

    def write(
        self, rows: slice, cols: slice, logits: NDArray[np.float32] | None, valid: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Fill a part of all rasters, with nodata where not ``valid``; returns its (256,) pixels per code.

        logits  (height, width, classes); None where no pixel is valid
        """
        shape = valid.shape
        if logits is None:
            for name, raster in self.rasters.items():
                raster[:, rows, cols] = kind_of(name, self.legend).nodata
            counts = np.zeros(CODES, np.int64)
            counts[self.legend.nodata] = valid.size
            return counts
        # arrays of one layout, so that one compiled version serves all
        made = {name: np.empty(shape if name in self.rasters else (0, 0), np.uint8) for name in PRODUCTS[:-1]}
        shares = np.empty((len(self.legend), *shape) if PROBABILITIES in self.rasters else (0, 0, 0), np.uint8)
        table, nodata = self.legend.code_table(), self.legend.nodata
        logits, valid = np.ascontiguousarray(logits), np.ascontiguousarray(valid)
        codes, sure, second, entropy = made.values()
        _describe(logits, valid, self.temperature, table, nodata, codes, sure, second, entropy, shares)
        for name, raster in self.rasters.items():
            raster[:, rows, cols] = shares if name == PROBABILITIES else made[name]
        return np.bincount(made[MAP].ravel(), minlength=CODES)
