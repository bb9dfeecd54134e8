"""Atomic file writes: to a temporary name in the same folder, then renamed. A file is whole or absent."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cobertes.errors import CobertesError, InputFileError, StorageError

StrPath = str | os.PathLike[str]
"""Path of a file or folder, as public functions take it."""


@contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it to ``path`` on success, remove it on failure.

    mark   part of the temporary name; without it the next write replaces the leftover of a killed process
    Raises StorageError if the folder can't be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}{mark}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, CobertesError):
            raise
        raise StorageError(f"can't write {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; if several processes do so at the same time, the last one wins."""
    with replacing(path, f".{os.getpid()}") as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; NaN and infinity become null."""
    text = json.dumps(without_nan(data), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Raises InputFileError if the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputFileError(
            f"no file at {path}: an earlier stage has not run yet. Run all of them: `cobertes run PROJECT`"
        ) from error
    except (ValueError, OSError) as error:
        raise InputFileError(f"can't read {path}: {error}. Delete it and run the stage again.") from error


def without_nan(data: Any) -> Any:
    """Copy of nested data with None for NaN and infinity, which JSON lacks."""
    if isinstance(data, dict):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
