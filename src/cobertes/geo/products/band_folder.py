"""Band files and quality layers told apart by their names, in folders and files that are no known product.

T31TDG_20180412T105031_B04_20m.tif    spectral
T31TDG_20180412T105031_SCL_20m.tif    cloud codes, of a known meaning
T31TDG_20180412T105031_AOT_20m.tif    neither: left out
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cobertes.geo.products.record import (
    QualityLayer,
    clm_layer,
    flg_layer,
    fmask_layer,
    mg2_layer,
    qa_pixel_layer,
    scl_layer,
)

KNOWN: dict[str, Callable[[str], QualityLayer]] = {
    "scl": scl_layer, "qapixel": qa_pixel_layer, "fmask": fmask_layer, "clm": clm_layer, "mg2": mg2_layer,
    "flg": flg_layer,
}  # fmt: skip
"""Layers of clouds whose codes are known."""

OTHERS = {
    "qa", "qa60", "qaradsat", "srqaaerosol", "qaaerosol", "aot", "wvp", "tci", "tcir", "tcig", "tcib", "pvi",
    "qkl", "ql", "cld", "snw", "edg", "sat", "iab", "atb", "dfp", "dtf", "saa", "sza", "vaa", "vza",
    "cloudmask", "cloudprob", "cloudprobability", "clouds", "clp", "mskcldprb", "mskclassi", "mskclouds",
    "datamask", "validmask", "mask", "quality", "quicklook", "preview", "thumbnail", "browse", "stqa", "stemis",
    "stemsd", "stdrad", "sttrad", "sturad", "statran", "stcdist", "alpha",
}  # fmt: skip
"""Layers that are no reflectance: quality without known codes, aerosols, water vapour, angles, pictures."""

SIZES = re.compile(r"^(r?\d+m?|r[12])$", re.IGNORECASE)
WORDS = re.compile(r"[^A-Za-z0-9]+")


@dataclass(frozen=True)
class BandFolder:
    """Files by what they hold: ``spectral`` and ``others`` as paths, ``quality`` with the meaning of its codes."""

    spectral: tuple[str, ...]
    quality: tuple[QualityLayer, ...]
    others: tuple[str, ...]


def layer_key(text: str) -> str | None:
    """The key of a quality layer in `KNOWN` or `OTHERS` that a name or the end of a file's stem says; or None."""
    words = [word.lower() for word in WORDS.split(text) if word]
    while len(words) > 1 and SIZES.match(words[-1]):
        words.pop()
    for count in (3, 2, 1):
        tried = "".join(words[-count:]) if len(words) >= count else ""
        if tried in KNOWN or tried in OTHERS:
            return tried
    return None


def is_quality_name(text: str) -> bool:
    """True for the names of quality layers and pictures: ``SCL``, ``QA_PIXEL``, ``AOT``, ``TCI``."""
    return layer_key(text) is not None


def split_by_name(paths: Sequence[str]) -> BandFolder:
    """Tell the spectral bands of a list of single-band files from the rest.

    A single file, or a list in which nothing else would remain, is spectral whatever its name. Of a layer in
    several resolutions the first one in the list is taken.
    """
    keys = {path: layer_key(PurePosixPath(Path(path).as_posix()).stem) for path in paths}
    spectral = tuple(path for path in paths if keys[path] is None)
    if not spectral:
        return BandFolder(tuple(paths), (), ())
    quality: dict[str, QualityLayer] = {}
    others: list[str] = []
    for path, key in keys.items():
        if key in KNOWN:
            quality.setdefault(key, KNOWN[key](path))
        elif key is not None:
            others.append(path)
    return BandFolder(spectral, tuple(quality.values()), tuple(others))
