"""Progress reporting, independent of how it is displayed.

A stage calls ``with progress.bar("labels", total=144, unit="Mpx") as advance: ... advance(1.5)``, or
``advance(1.5, "what else is worth knowing now")``.
The command line passes a bar of rich; a library caller gets `SILENT` and pays nothing.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Callback that advances a bar by an amount in its unit; ``note`` is shown below it until the next one."""

    def __call__(self, amount: float, note: str = "", /) -> None:
        """Advance the bar."""
        ...


class Progress(Protocol):
    """Display of the progress of a stage."""

    def bar(self, name: str, total: float, unit: str) -> AbstractContextManager[Advance]:
        """Open a bar; yields its callback, which takes amounts in ``unit``."""
        ...


class _Silent:
    @contextmanager
    def bar(self, name: str, total: float, unit: str) -> Iterator[Advance]:
        yield lambda amount, note="": None


SILENT: Progress = _Silent()


class SharedBar:
    """Progress shared by concurrent jobs: all advance one bar, in the same unit."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    @contextmanager
    def bar(self, name: str, total: float, unit: str) -> Iterator[Advance]:
        """Yield the callback of the shared bar."""
        yield self.advance
