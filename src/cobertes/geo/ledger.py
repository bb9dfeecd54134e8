"""The ledger of a long pass: which windows are in its raw files for good, so that it can go on from there.

    windows 0 1 2 3 4 5 ...   written to pixels.raw by any thread, in any order
            x x x   x         every 15 seconds: raw files synced, then the ledger replaced
            ^^^^^^^^^ killed: windows 3 and 5, ... are done again; the result is the same to the byte

What a pass adds up (counts of codes) is kept with the windows it was added from.
"""

import json
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import InputFileError, SettingsError
from cobertes.files import write_json

SECONDS = 15.0
"""Between two entries, at least: what is lost at most when a pass is killed. Syncing takes the disk's time."""


class Ledger:
    """Done windows and sums of a pass, in a JSON file. Threads may share it.

    made_from  fingerprint of inputs, settings and window plan: rows of another pass are never mixed in
    sums       (n,) int64 arrays by name; `enter` adds to them
    notes      whatever else the pass must find again
    """

    def __init__(self, path: Path, made_from: str, windows: int, sums: Mapping[str, int]) -> None:
        self.path, self.made_from, self.windows = path, made_from, windows
        self.done: set[int] = set()
        self.sums: dict[str, NDArray[np.int64]] = {name: np.zeros(size, np.int64) for name, size in sums.items()}
        self.notes: dict[str, Any] = {}
        self._lock, self._saving = threading.Lock(), threading.Lock()
        self._saved = time.monotonic()

    @property
    def complete(self) -> bool:
        """Whether every window is done."""
        return len(self.done) == self.windows

    def load(self) -> None:
        """Take up what an interrupted pass left.

        Raises SettingsError where it was another pass's, InputFileError where the ledger is damaged.
        """
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            same = found["made_from"] == self.made_from and found["windows"] == self.windows
            done, notes = set(found["done"]), dict(found["notes"])
            sums = {name: np.array(found["sums"][name], np.int64) for name in self.sums}
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputFileError(
                f"{self.path} is damaged. Start anew: leave --resume out (finished rows are lost)."
            ) from error
        if not same:
            raise SettingsError(
                f"{self.path.parent} was begun with other inputs, settings or --memory. Give the same to go on, "
                f"or leave --resume out to start anew."
            )
        self.done, self.sums, self.notes = done, sums, notes

    def clear(self) -> None:
        """Begin with nothing."""
        self.done, self.notes = set(), {}
        for values in self.sums.values():
            values[:] = 0

    def enter(self, window: int, sums: Mapping[str, NDArray[np.int64]]) -> None:
        """Note that a window is written."""
        with self._lock:
            self.done.add(window)
            for name, values in sums.items():
                self.sums[name] += values

    def save_if_due(self, files: Iterable[np.memmap[Any, Any]]) -> None:
        """`save`, if the last time is long ago and no other thread is at it."""
        if time.monotonic() - self._saved >= SECONDS and self._saving.acquire(blocking=False):
            try:
                self._save(files)
            finally:
                self._saving.release()

    def save(self, files: Iterable[np.memmap[Any, Any]]) -> None:
        """Sync the raw files, then replace the ledger: it never names a window that the disk lacks."""
        with self._saving:
            self._save(files)

    def _save(self, files: Iterable[np.memmap[Any, Any]]) -> None:
        with self._lock:
            state = {
                "made_from": self.made_from,
                "windows": self.windows,
                "done": sorted(self.done),
                "sums": {name: values.tolist() for name, values in self.sums.items()},
                "notes": self.notes,
            }
        for pixels in files:
            pixels.flush()
        write_json(self.path, state)
        self._saved = time.monotonic()
