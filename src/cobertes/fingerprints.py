"""Fingerprints: short hashes of settings and of the state of files, to decide what is up to date."""

import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

SAMPLES, SAMPLE_BYTES = 32, 4096
"""Pieces of a file that its stamp hashes, spread evenly from the first to the last byte."""

SERVER_SECONDS = 10.0
"""Time limit for a server to name the version of a file."""

VSICURL = re.compile(r"/vsicurl(?:\?url=|/)(?P<url>.+)")


def fingerprint_of(*parts: Any) -> str:
    """Hash of the parts, which must be JSON values: sixteen hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stamp(path: str | Path) -> list[Any]:
    """State of a file, as JSON values: two stamps are equal if the file did not change in between.

    A local file: name, size, time of modification, and a hash of pieces of its content, since size and time can be
    restored. (Not its inode and the time of its last change of status: a project that is copied or moved keeps its
    results.) A folder: the same of each file, without the content. A file on a server: its ETag, or Last-Modified,
    and size. Any other: its name alone.
    """
    if (url := _url(str(path))) is not None:
        return [str(path), *_version_on_server(url)]
    path = Path(path)
    try:
        state = path.stat()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            return [path.name, [[str(file.relative_to(path)), *_times(file.stat())] for file in files]]
        return [path.name, *_times(state), _sampled_hash(path, state.st_size)]
    except OSError:  # absent, or on none of this machine's disks (/vsis3/, /vsizip/)
        return [str(path)]


def _times(state: os.stat_result) -> list[int]:
    return [state.st_size, state.st_mtime_ns]


def _sampled_hash(path: Path, size: int) -> str:
    """Hash of `SAMPLES` pieces of a file; of a small file, of all its bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= SAMPLES * SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for number in range(SAMPLES):
                file.seek((size - SAMPLE_BYTES) * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _url(path: str) -> str | None:
    """HTTP address of a file, also as GDAL or `Path` writes it; None for other files."""
    if match := VSICURL.fullmatch(path):
        path = unquote(match["url"])
    match = re.match(r"(https?):/+(.*)", path)
    return f"{match[1]}://{match[2]}" if match else None


def _version_on_server(url: str) -> list[str | None]:
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=SERVER_SECONDS) as answer:
            headers = answer.headers
    except (urllib.error.URLError, OSError, ValueError):  # reading the file will say what is wrong
        return []
    return [headers.get("ETag") or headers.get("Last-Modified"), headers.get("Content-Length")]


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
