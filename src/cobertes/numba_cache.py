"""Compilation of pixel loops by numba, with an on-disk cache that survives a read-only installation."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile on the first call and cache the machine code on disk for the next process.

    The cache is beside the module, else in the user's cache folder. If neither can be written (a read-only
    installation without a home), every process compiles again: a few seconds.
    """
    try:
        kernel: Function = njit(function, nogil=True, cache=True)
    except RuntimeError:  # numba: "no locator available"
        kernel = njit(function, nogil=True)
    return kernel
