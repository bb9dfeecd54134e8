"""Fingerprints: short hashes of settings and of the state of files, to tell what is up to date."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def fingerprint_of(*parts: Any) -> str:
    """Hash of the parts, which must be JSON values: sixteen hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stamp(path: str | Path) -> list[Any]:
    """Name, size and time of change of a file: its content is too large to read for a comparison."""
    try:
        state = Path(path).stat()
    except OSError:  # not there, or not on this machine's disks (s3://, /vsizip/)
        return [str(path)]
    return [Path(path).name, state.st_size, state.st_mtime_ns]


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the keys that differ between two nested tables."""
    changed: list[str] = []
    for key in sorted({*old, *new}):
        name = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changed += changed_keys(before, after, f"{name}.")
        elif before != after:
            changed.append(name)
    return changed
