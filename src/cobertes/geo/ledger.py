"""Ledger of a long pass: the windows that are safely in its raw files, so that an interrupted pass can resume.

    windows 0 1 2 3 4 5 ...   written to pixels.raw by any thread, in any order
            x x x   x         every 15 seconds: raw files synced, then the ledger replaced
            ^^^^^^^^^ killed: window 3 and those after 4 are written again; the result is byte-identical

Sums of a pass (counts of codes) are saved together with the windows they were computed from.
"""

import json
import logging
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cobertes.atomic_io import write_json
from cobertes.errors import CobertesError, InputFileError, SettingsError, StorageError
from cobertes.geo.cog_writer import RAW, check_writable, partial_folder

log = logging.getLogger(__name__)

LEDGER = "ledger.json"

Resume = Literal["no", "yes", "if-same"]

SECONDS = 15.0
"""Least time between two saves: the most that a killed pass loses. Syncing more often would keep the disk busy."""


class Ledger:
    """Finished windows and sums of a pass, in a JSON file. Threads may share it.

    fingerprint  of inputs, settings and window plan: rows of another pass are never mixed in
    sums         (n,) int64 arrays by name; `mark_done` adds to them
    notes        further values that a resumed pass needs
    same         wording of what must be unchanged to resume
    """

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        windows: int,
        sums: Mapping[str, int],
        same: str = "inputs, settings or --memory",
    ) -> None:
        self.path, self.fingerprint, self.windows, self.same = path, fingerprint, windows, same
        self.done: set[int] = set()
        self.sums: dict[str, NDArray[np.int64]] = {name: np.zeros(size, np.int64) for name, size in sums.items()}
        self.notes: dict[str, Any] = {}
        self._lock, self._saving = threading.Lock(), threading.Lock()
        self._saved = time.monotonic()

    @property
    def complete(self) -> bool:
        """True once every window is done."""
        return len(self.done) == self.windows

    def load(self) -> None:
        """Load the state of an interrupted pass.

        Raises SettingsError if it is another pass's, InputFileError if the file is damaged.
        """
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            same = found["made_from"] == self.fingerprint and found["windows"] == self.windows
            done, notes = set(found["done"]), dict(found["notes"])
            sums = {name: np.array(found["sums"][name], np.int64) for name in self.sums}
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputFileError(
                f"{self.path} is damaged. Start anew: leave --resume out (finished rows are lost)."
            ) from error
        if not same:
            raise SettingsError(
                f"{self.path.parent} was begun with other {self.same}. Give the same to go on, or "
                f"leave --resume out to start anew."
            )
        self.done, self.sums, self.notes = done, sums, notes

    def clear(self) -> None:
        """Reset to no finished window."""
        self.done, self.notes = set(), {}
        for values in self.sums.values():
            values[:] = 0

    def mark_done(self, window: int, sums: Mapping[str, NDArray[np.int64]]) -> None:
        """Record that a window is written, and add its sums."""
        with self._lock:
            self.done.add(window)
            for name, values in sums.items():
                self.sums[name] += values

    def save_if_due(self, files: Iterable[np.memmap[Any, Any]]) -> None:
        """`save` if `SECONDS` have passed and no other thread is saving."""
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
                "made_from": self.fingerprint,
                "windows": self.windows,
                "done": sorted(self.done),
                "sums": {name: values.tolist() for name, values in self.sums.items()},
                "notes": self.notes,
            }
        for pixels in files:
            if not Path(str(pixels.filename)).exists():  # writing to a removed file raises no error
                raise StorageError(f"{self.path.parent.parent} was removed or emptied while it was written to")
            pixels.flush()
        write_json(self.path, state)
        self._saved = time.monotonic()


def resume_or_start(ledger: Ledger, paths: Mapping[str, Path], resume: Resume, *, overwrite: bool) -> list[str]:
    """Load the state of an interrupted pass, or delete it; returns the outputs that are not finished.

    An output that got its final name before the interruption has no raw file any more.
    """
    missing = list(paths)
    if resume != "no" and ledger.path.exists():
        try:
            ledger.load()
            missing = [name for name, path in paths.items() if (partial_folder(path) / RAW).exists()]
            named = [paths[name] for name in paths if name not in missing]
            if named and not (ledger.complete and all(path.exists() for path in named)):
                raise SettingsError(
                    f"the unfinished {', '.join(map(str, named))} is gone, so the pass can't go on. "
                    f"Leave --resume out to start anew."
                )
            log.info("going on from %d of %d windows", len(ledger.done), ledger.windows)
        except CobertesError:
            if resume == "yes":
                raise
            ledger.clear()
            missing = list(paths)
    elif resume == "yes":
        log.info("no interrupted pass to go on from: starting anew")
    for name in missing:
        check_writable(paths[name], overwrite=overwrite)
    if not ledger.done:
        discard(paths)
    return missing


def discard(paths: Mapping[str, Path]) -> None:
    """Delete the unfinished files of outputs."""
    for path in paths.values():
        shutil.rmtree(partial_folder(path), ignore_errors=True)
