"""How a long stage tells that it is alive, without knowing who listens.

A stage calls ``with progress.bar("labels", total=144, unit="Mpx") as advance: ... advance(1.5)``.
The command line passes a bar of rich; a library caller gets `SILENT` and pays nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[float], None]


class Progress(Protocol):
    """Something that shows how far a stage is."""

    def bar(self, name: str, total: float, unit: str) -> AbstractContextManager[Advance]:
        """Open a bar; the returned function moves it on by an amount in ``unit``."""
        ...


class _Silent:
    @contextmanager
    def bar(self, name: str, total: float, unit: str) -> Iterator[Advance]:
        yield lambda amount: None


SILENT: Progress = _Silent()
