"""How a long stage tells that it is alive, without knowing who listens.

A stage calls ``with progress.bar("labels", total=144, unit="Mpx") as advance: ... advance(1.5)``, or
``advance(1.5, "what else is worth knowing now")``.
The command line passes a bar of rich; a library caller gets `SILENT` and pays nothing.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Moves a bar on by an amount in its unit; ``note`` stands below it until the next one."""

    def __call__(self, amount: float, note: str = "", /) -> None:
        """Move on."""
        ...


class Progress(Protocol):
    """Something that shows how far a stage is."""

    def bar(self, name: str, total: float, unit: str) -> AbstractContextManager[Advance]:
        """Open a bar; what it yields moves it on, by amounts in ``unit``."""
        ...


class _Silent:
    @contextmanager
    def bar(self, name: str, total: float, unit: str) -> Iterator[Advance]:
        yield lambda amount, note="": None


SILENT: Progress = _Silent()


class SharedBar:
    """Of several things at once whose amounts are in one unit: each moves the same bar."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    @contextmanager
    def bar(self, name: str, total: float, unit: str) -> Iterator[Advance]:
        """Yield what moves the bar that is there."""
        yield self.advance
