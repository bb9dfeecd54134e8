"""Networks converted for OpenVINO, kept for the next time: converting takes seconds, reading one back hardly any.

    ~/.cache/cobertes/openvino/<key>/network.xml, network.bin   the network (XDG_CACHE_HOME, where it is set)
                                    /sums.json                  of both files

The key is a hash of the model file's bytes, of the shape of windows and of all that takes part in converting. So
another model, or another version of anything, is converted anew. A kept network has the very numbers of the model:
it gives the same map. Where the folder can't be written, or what lies in it is damaged, all works as without it.
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

MOST_KEPT = 8
"""Networks; those that were used longest ago are deleted. A ResNet50 takes 120 MB."""

XML, BIN, SUMS = "network.xml", "network.bin", "sums.json"

CONVERTS = ("openvino", "torch", "timm", "segmentation-models-pytorch", "numpy")
"""Packages whose version is part of the key."""

SOURCES = ("learn/unet.py", "learn/architectures.py", "engines/runtimes.py", "engines/openvino_cache.py")
"""Our own modules that are, too."""


def cache_folder() -> Path:
    """Where networks are kept, of the user's own."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cobertes" / "openvino"


def get_or_convert(model: Path, shape: tuple[int, int, int], make: Callable[[], Any]) -> Any:
    """The network of a ``model`` file for windows of ``shape`` (C, H, W): a kept one, else ``make()``, kept."""
    try:
        place = cache_folder() / _key(model, shape)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        log.debug("converted networks can't be kept: %s", error)
        return make()
    network = _read(place)
    if network is None:
        network = make()
        _keep(network, place)
    return network


def is_cached(model: Path, shape: tuple[int, int, int]) -> bool:
    """Whether there is one, whole or damaged."""
    try:
        return (cache_folder() / _key(model, shape) / SUMS).exists()
    except (OSError, RuntimeError):
        return False


def _key(model: Path, shape: tuple[int, int, int]) -> str:
    package, facts = Path(__file__).parents[1], model.stat()
    return fingerprint_of(
        _content(model, facts.st_size, facts.st_mtime_ns),
        list(shape),
        [_version(name) for name in CONVERTS],
        [_hash(package / file) for file in SOURCES],
    )


@lru_cache(maxsize=MOST_KEPT)
def _content(model: Path, size: int, modified: int) -> str:
    """Hash of a model file, once for as long as it stays as it is."""
    return _hash(model)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(place: Path) -> bool:
    try:
        return bool(json.loads((place / SUMS).read_text()) == {name: _hash(place / name) for name in (XML, BIN)})
    except (OSError, ValueError):
        return False


def _read(place: Path) -> Any:
    """The network that lies there, marked as used; None without a whole one."""
    import openvino as ov

    if not _is_whole(place):
        return None
    try:
        os.utime(place)
    except OSError:
        log.debug("%s can't be marked as used", place)
    try:
        return ov.Core().read_model(place / XML)
    except RuntimeError as error:
        log.debug("%s can't be read: %s", place, error)
        return None


def _keep(network: Any, place: Path) -> None:
    import openvino as ov

    whole = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        whole.mkdir(parents=True, exist_ok=True)
        ov.save_model(network, whole / XML, compress_to_fp16=False)
        (whole / SUMS).write_text(json.dumps({name: _hash(whole / name) for name in (XML, BIN)}))
        if not _is_whole(place):  # else another process has made it meanwhile, and may be reading it
            shutil.rmtree(place, ignore_errors=True)
            os.rename(whole, place)
        for old in sorted(_places(place.parent), key=lambda path: path.stat().st_mtime)[:-MOST_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # full, read-only, or another process was at it
        log.debug("a converted network can't be kept in %s: %s", place, error)
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def _places(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]
