"""Choice of the bands of a scene among its files: by description, by file name, or by order."""

import re
from dataclasses import dataclass
from pathlib import Path

import rasterio

from cobertes.errors import BandMismatchError, did_you_mean

WORDS = re.compile(r"[^A-Za-z0-9]+")
SENTINEL_BAND = re.compile(r"^[Bb]\d{1,2}[Aa]?$")


@dataclass(frozen=True)
class BandSource:
    """A band called ``name``: number ``index`` (from 1) of the file ``path``."""

    name: str
    path: str
    index: int

    @property
    def words(self) -> list[str]:
        """Words of the file's name, in lower case."""
        return [word.lower() for word in WORDS.split(Path(self.path).stem)]


def band_sources(path: str, dataset: rasterio.DatasetReader, files: int, before: int) -> list[BandSource]:
    """Bands of an open file, named by description, file name or number.

    files    number of files of the scene;  before: number of bands in the files before this one
    """
    return [
        BandSource(_band_name(path, dataset, index, files, before + i), path, index)
        for i, index in enumerate(dataset.indexes)
    ]


def _band_name(path: str, dataset: rasterio.DatasetReader, index: int, files: int, before: int) -> str:
    description = dataset.descriptions[index - 1]
    if description:
        return str(description)
    if files > 1 and dataset.count == 1:
        words = [word for word in WORDS.split(Path(path).stem) if SENTINEL_BAND.match(word)]
        return words[-1].upper() if words else Path(path).stem
    return f"band{before + 1}"


def choose_bands(found: list[BandSource], wanted: list[str], single: set[str]) -> list[BandSource]:
    """Bands called ``wanted``, in that order; all of them if it is empty.

    found    bands of all files, in the order of the files
    single   files with one band, which may be called as the file is
    If no wanted name is found and the numbers agree, ``wanted`` names the bands in their order.
    Raises BandMismatchError for bands that are missing, ambiguous or named twice.
    """
    files = list(dict.fromkeys(band.path for band in found))
    source = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more files"
    _require_unique(wanted or [band.name for band in found], source)
    if not wanted:
        return found
    by_name = {name: _matches(found, name, single) for name in wanted}
    if not any(by_name.values()):
        if len(found) != len(wanted):
            raise BandMismatchError(
                f"{source}: {len(found)} bands ({', '.join(band.name for band in found)}), but {len(wanted)} are "
                f"named ({', '.join(wanted)}). Name the bands of the scene in `bands`, in its order."
            )
        return [BandSource(name, band.path, band.index) for name, band in zip(wanted, found, strict=True)]
    for name, bands in by_name.items():
        if not bands:
            hint = did_you_mean(name, (band.name for band in found))
            raise BandMismatchError(f"{source}: no band '{name}'.{hint}")
        if len(bands) > 1:
            a, b = (f"band {band.index} of {band.path}" for band in bands[:2])
            raise BandMismatchError(f"{source}: '{name}' may be {a} or {b}. Name the files one by one.")
    return [BandSource(name, by_name[name][0].path, by_name[name][0].index) for name in wanted]


def _require_unique(names: list[str], source: str) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise BandMismatchError(
            f"{source}: the band '{twice[0]}' is there more than once. Say in `bands` which bands to use, each "
            f"once; where the files are seasons, name them: april=FILE august=FILE."
        )


def _matches(found: list[BandSource], name: str, single: set[str]) -> list[BandSource]:
    """Bands of this name; if there is none, those of one-band files with the name among their words."""
    named = [band for band in found if band.name.lower() == name.lower()]
    return named or [band for band in found if band.path in single and name.lower() in band.words]
