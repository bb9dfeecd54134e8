"""Memory behind memory-mapped files."""

import mmap
from typing import Any


def release(pixels: Any) -> None:
    """Let go of the memory behind a ``np.memmap``; what was written stays in the file, what was read in its cache.

    Without this, every page that was touched counts as memory of the process. Safe while other threads work.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        pixels._mmap.madvise(mmap.MADV_DONTNEED)
