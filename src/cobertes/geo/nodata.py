"""Validity of pixels: one rule, for values band by band and pixel by pixel.

NaN or infinity in any band, or a declared nodata value other than 0 in any band, makes a pixel invalid. Dark water
may measure 0 in one band too, so 0 (declared, or assumed if nothing is) makes a pixel invalid only in all bands.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.numba_cache import compiled

ZERO_IN_ALL, VALUE_IN_ANY, NEVER = 0, 1, 2


def can_hold(dtype: np.dtype[Any], nodata: float | None) -> bool:
    """Check that pixels of a type can have this value."""
    if nodata is None:
        return False
    if np.issubdtype(dtype, np.floating):
        return True
    limits = np.iinfo(dtype)
    return float(nodata).is_integer() and limits.min <= nodata <= limits.max


def valid_mask_chw(values: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Valid pixels of ``values`` (bands, height, width): (height, width) bool."""
    rule = _rule(values.dtype, nodata)
    if rule == ZERO_IN_ALL:
        valid = (values != 0).any(axis=0)
    elif rule == VALUE_IN_ANY:
        valid = (values != values.dtype.type(nodata)).all(axis=0)
    else:
        valid = np.ones(values.shape[1:], bool)
    if np.issubdtype(values.dtype, np.floating):
        valid &= np.isfinite(values).all(axis=0)
    return valid


def valid_mask_hwc(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Valid pixels of ``pixels`` (height, width, bands): (height, width) bool."""
    rule, floating = _rule(pixels.dtype, nodata), np.issubdtype(pixels.dtype, np.floating)
    value = pixels.dtype.type(nodata if rule == VALUE_IN_ANY else 0)
    valid = np.empty(pixels.shape[:2], np.bool_)
    _find_valid(pixels, rule, value, floating, valid)
    return valid


def _rule(dtype: np.dtype[Any], nodata: float | None) -> int:
    if not nodata:
        return ZERO_IN_ALL
    return VALUE_IN_ANY if can_hold(dtype, nodata) else NEVER  # pixels can't have the value: all are valid


@compiled
def _find_valid(pixels: NDArray[Any], rule: int, value: Any, floating: bool, valid: NDArray[np.bool_]) -> None:
    height, width, bands = pixels.shape
    for row in range(height):
        for col in range(width):
            known = rule != 0
            for band in range(bands):
                if rule == 0:
                    if pixels[row, col, band] != 0:
                        known = True
                        break
                elif rule == 1 and pixels[row, col, band] == value:
                    known = False
                    break
            if floating and known:
                for band in range(bands):
                    known = known and np.isfinite(pixels[row, col, band])
            valid[row, col] = known
