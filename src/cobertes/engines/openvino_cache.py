"""Disk cache of networks converted for OpenVINO: converting takes seconds, reading a cached one hardly any.

    ~/.cache/cobertes/openvino/<key>/network.xml, network.bin   the network (XDG_CACHE_HOME, if set)
                                    /sums.json                  SHA-256 of both files

The key hashes the bytes of the model file, the window shape, and the versions of all that takes part in the
conversion: another model or another version is converted anew. A cached network has exactly the weights of the
model and gives the same map. An unwritable folder or a damaged entry only costs the conversion.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cobertes.fingerprints import fingerprint_of

log = logging.getLogger(__name__)

MAX_ENTRIES = 8
"""Cached networks; the least recently used are deleted. A ResNet50 takes 120 MB."""

XML, BIN, SUMS = "network.xml", "network.bin", "sums.json"

CONVERTS = ("openvino", "torch", "timm", "segmentation-models-pytorch", "numpy")
"""Packages whose versions are part of the key."""

SOURCES = ("learn/unet.py", "learn/architectures.py", "engines/runtimes.py", "engines/openvino_cache.py")
"""Modules of this package whose content is part of the key."""


def cache_folder() -> Path:
    """Cache folder of the user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cobertes" / "openvino"


def get_or_convert(model: Path, shape: tuple[int, int, int], convert: Callable[[], Any]) -> Any:
    """Network of a ``model`` file for windows of ``shape`` (C, H, W): cached, else ``convert()``."""
    try:
        entry = cache_folder() / _key(model, shape)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        log.debug("converted networks can't be kept: %s", error)
        return convert()
    network = _read(entry)
    if network is None:
        network = convert()
        _store(network, entry)
    return network


def is_cached(model: Path, shape: tuple[int, int, int]) -> bool:
    """Cache hit for a model and shape (C, H, W); a damaged entry counts."""
    try:
        return (cache_folder() / _key(model, shape) / SUMS).exists()
    except (OSError, RuntimeError):
        return False


def _key(model: Path, shape: tuple[int, int, int]) -> str:
    package, stat = Path(__file__).parents[1], model.stat()
    return fingerprint_of(
        _content_hash(model, stat.st_size, stat.st_mtime_ns),
        list(shape),
        [_version(name) for name in CONVERTS],
        [_hash(package / file) for file in SOURCES],
    )


@lru_cache(maxsize=MAX_ENTRIES)
def _content_hash(model: Path, size: int, modified: int) -> str:
    """Hash of a model file, computed once per size and modification time."""
    return _hash(model)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_intact(entry: Path) -> bool:
    try:
        sums = json.loads((entry / SUMS).read_text())
        return bool(sums == {name: _hash(entry / name) for name in (XML, BIN)})
    except (OSError, ValueError):
        return False


def _read(entry: Path) -> Any:
    """Read a network and mark its entry as used; None unless the entry is intact."""
    import openvino as ov

    if not _is_intact(entry):
        return None
    try:
        os.utime(entry)
    except OSError:
        log.debug("%s can't be marked as used", entry)
    try:
        return ov.Core().read_model(entry / XML)
    except RuntimeError as error:
        log.debug("%s can't be read: %s", entry, error)
        return None


def _store(network: Any, entry: Path) -> None:
    import openvino as ov

    partial = entry.with_name(f".{entry.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        ov.save_model(network, partial / XML, compress_to_fp16=False)
        (partial / SUMS).write_text(json.dumps({name: _hash(partial / name) for name in (XML, BIN)}))
        if not _is_intact(entry):  # else another process has written it meanwhile, and may be reading it
            shutil.rmtree(entry, ignore_errors=True)
            os.rename(partial, entry)
        entries = [path for path in entry.parent.iterdir() if path.is_dir()]
        for old in sorted(entries, key=lambda path: path.stat().st_mtime)[:-MAX_ENTRIES]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # disk full or read-only, or another process deleted it
        log.debug("a converted network can't be kept in %s: %s", entry, error)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
