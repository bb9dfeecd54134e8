"""Bands of a scene's files: which there are, what they are called, and which of them are wanted.

    folder, zip, tar, SAFE ...  --> products.detect --+
    band files                  --> their names  -----+--> candidates --> choose_bands --> BandSource in order
    one file of many bands      --> descriptions -----+

Bands are found by name, then by what names and wavelengths mean; by position only where no name means anything.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import rasterio

from cobertes.errors import BandMismatchError, InputFileError, did_you_mean
from cobertes.geo.io import is_dataset_name, open_raster
from cobertes.geo.products.archive import is_archive
from cobertes.geo.products.band_folder import is_quality_name, split_by_name
from cobertes.geo.products.band_vocabulary import (
    BandLabel,
    known_bands,
    match_bands,
    other_light,
    sensor_in,
    with_wavelengths,
)
from cobertes.geo.products.detect import detect_in_list, detect_product, may_be_product
from cobertes.geo.products.record import Product, QualityLayer
from cobertes.geo.radiometry import RadiometricConvention
from cobertes.geo.raster_facts import RasterFacts

log = logging.getLogger(__name__)

WORDS = re.compile(r"[^A-Za-z0-9]+")
SENTINEL_BAND = re.compile(r"^[Bb]\d{1,2}[Aa]?$")


@dataclass(frozen=True)
class BandSource:
    """A band called ``name``: number ``index`` (from 1) of the file ``path``.

    ``wavelength`` in nm and ``convention`` of its values, where product metadata or names say.
    """

    name: str
    path: str
    index: int
    wavelength: float | None = None
    convention: RadiometricConvention | None = None

    @property
    def words(self) -> list[str]:
        """Words of the file's name, in lower case."""
        return [word.lower() for word in WORDS.split(Path(self.path).stem)]


@dataclass(frozen=True)
class SceneFiles:
    """The bands of one product or of a group of files.

    bands     candidates, in the order of the files; ``labels`` what is known of each
    extras    quality layers and pictures, taken only if asked for by their exact name
    single    paths of files with one band, whose own name may say which
    quality   layers of clouds and snow, whose codes are known
    nodata    value of empty pixels by product metadata
    product   None for plain files
    """

    bands: tuple[BandSource, ...]
    labels: tuple[BandLabel, ...]
    extras: tuple[BandSource, ...] = ()
    single: frozenset[str] = frozenset()
    quality: tuple[QualityLayer, ...] = ()
    nodata: float | None = None
    product: Product | None = None
    facts: Mapping[str, RasterFacts] = field(default_factory=dict)
    """Facts of the plain files, by path."""
    listed: bool = False
    """True if some files of a product were named, not the product."""

    @property
    def title(self) -> str:
        """``a.tif``, ``a.tif and 3 more files``, or the product's path."""
        if self.product is not None:
            return self.product.path
        files = list(dict.fromkeys(band.path for band in (*self.bands, *self.extras)))
        return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more files"


def find_bands(files: Sequence[str]) -> list[SceneFiles]:
    """The bands of each product among the files, and of all plain files together, in the order given.

    Raises InputFileError.
    """
    groups: list[SceneFiles] = []
    plain: list[str] = []
    for file in map(str, files):
        product = detect_product(Path(file)) if may_be_product(Path(file)) else None
        if product is not None:
            groups.append(_of_product(product))
        elif Path(file).is_dir():
            raise InputFileError(f"{file} is a folder of no known product, and holds no raster files by itself.")
        elif is_archive(Path(file)):
            raise InputFileError(f"{file} holds no product that is known here. Unpack it and name its band files.")
        else:
            plain.append(file)
    if plain:
        listed = detect_in_list(plain)
        groups.append(_of_files(plain) if listed is None else replace(_of_product(listed), listed=True))
    return groups


def _of_product(product: Product) -> SceneFiles:
    log.info("%s: %s, bands %s", product.path, product, ", ".join(band.name for band in product.bands))
    if product.facts.get("missing"):
        log.warning("%s: its metadata list %s, but no image is there", product.path, product.facts["missing"])
    bands = tuple(
        BandSource(band.name, band.path, band.index, band.wavelength, band.convention) for band in product.bands
    )
    labels = tuple(band.label for band in product.bands)
    single = frozenset(band.path for band in product.bands)
    return SceneFiles(bands, labels, (), single, product.quality, product.nodata, product)


def _of_files(files: Sequence[str]) -> SceneFiles:
    found = split_by_name(files)
    bands: list[BandSource] = []
    extras: list[BandSource] = []
    single: set[str] = set()
    facts: dict[str, RasterFacts] = {}
    for path in files:
        with open_raster(path) as dataset:
            if dataset.count == 0:
                raise InputFileError(f"{path} holds no bands of its own. Name one of its subdatasets or files.")
            facts[path] = RasterFacts.of(dataset)
            if dataset.count == 1:
                single.add(path)
            for i in dataset.indexes:
                name = _band_name(path, dataset, i, len(files), len(bands) + len(extras))
                no_band = path not in found.spectral or (dataset.count > 1 and is_quality_name(name))
                (extras if no_band else bands).append(BandSource(name, path, i))
    if not bands:  # nothing but quality layers in one file: it is taken as it is
        bands, extras = extras, []
    labels = with_wavelengths([BandLabel(band.name, None, sensor_in(Path(band.path).stem)) for band in bands])
    placed = tuple(replace(band, wavelength=label.wavelength) for band, label in zip(bands, labels, strict=True))
    return SceneFiles(placed, tuple(labels), tuple(extras), frozenset(single), found.quality, facts=facts)


def _band_name(path: str, dataset: rasterio.DatasetReader, index: int, files: int, before: int) -> str:
    description = dataset.descriptions[index - 1]
    if description:
        return str(description)
    if is_dataset_name(path):
        return path.rpartition(":")[2].strip("/").rpartition("/")[2]
    if files > 1 and dataset.count == 1:
        words = [word for word in WORDS.split(Path(path).stem) if SENTINEL_BAND.match(word)]
        return words[-1].upper() if words else Path(path).stem
    return f"band{before + 1}"


def choose_bands(files: SceneFiles, wanted: Sequence[str | BandLabel]) -> list[BandSource]:
    """The wanted bands in order, named as they are asked for; all of them if none is named.

    Raises BandMismatchError where one is not there, may be two, or where names contradict an order of positions.
    """
    labels = [BandLabel(one) if isinstance(one, str) else one for one in wanted]
    _require_unique([label.name for label in labels] or [band.name for band in files.bands], files.title)
    if not labels:
        return list(files.bands)
    by_name = {label.name: _called(files, label) for label in labels}
    by_meaning = _by_meaning(files, labels)
    if not any(by_name.values()) and not any(by_meaning):
        return _by_position(files, labels)
    chosen = []
    for label, meant in zip(labels, by_meaning, strict=True):
        named = [meant] if meant is not None else by_name[label.name]
        if not named:
            raise BandMismatchError(f"{files.title}: no band '{label.name}'.{_hint(files, label)}")
        if len(named) > 1:
            a, b = (f"band {band.index} of {band.path}" for band in named[:2])
            raise BandMismatchError(f"{files.title}: '{label.name}' may be {a} or {b}. Name the files one by one.")
        chosen.append(replace(named[0], name=label.name))
    return chosen


def _hint(files: SceneFiles, label: BandLabel) -> str:
    missing = files.product.facts.get("missing", "") if files.product else ""
    if label.name in missing.split(", "):
        return " The product's metadata list it, but its image is missing: fetch the product again."
    return did_you_mean(label.name, (band.name for band in files.bands))


def _by_meaning(files: SceneFiles, wanted: Sequence[BandLabel]) -> list[BandSource | None]:
    """By name and meaning, None where several bands have the very name: those are told apart by their files."""
    names = [label.name.lower() for label in files.labels]
    clear = [i for i, name in enumerate(names) if names.count(name) == 1]
    positions = match_bands([files.labels[i] for i in clear], wanted)
    return [None if position is None else files.bands[clear[position]] for position in positions]


def _called(files: SceneFiles, label: BandLabel) -> list[BandSource]:
    """The bands of this name, in whatever case; where there is none, those whose file has it in its own name."""
    if files.product is not None:  # its bands are known by what they mean
        return []
    told, name = dict(zip(files.bands, files.labels, strict=True)), label.name.lower()
    everything = [
        band for band in (*files.bands, *files.extras) if band not in told or not other_light(label, told[band])
    ]
    named = [band for band in everything if band.name.lower() == name]
    return named or [band for band in everything if band.path in files.single and name in band.words]


def _by_position(files: SceneFiles, wanted: Sequence[BandLabel]) -> list[BandSource]:
    """The bands in the order of the files, where no name of theirs means anything."""
    names = ", ".join(band.name for band in files.bands)
    if len(files.bands) != len(wanted):
        raise BandMismatchError(
            f"{files.title}: {len(files.bands)} bands ({names}), but {len(wanted)} are named "
            f"({', '.join(label.name for label in wanted)}). Name the bands of the scene in `bands`, in its order."
        )
    if known_bands(files.labels) and known_bands(wanted):
        raise BandMismatchError(
            f"{files.title} has the bands {names}, wanted are {', '.join(label.name for label in wanted)}: none "
            f"of them is there. Give a scene with these bands, or set its bands' descriptions (gdal_edit.py)."
        )
    if any(band.name != f"band{i}" for i, band in enumerate(files.bands, start=1)):
        log.warning(
            "%s: the bands %s are taken for %s by their position, because their names say nothing",
            files.title, names, ", ".join(label.name for label in wanted),
        )  # fmt: skip
    return [replace(band, name=label.name) for label, band in zip(wanted, files.bands, strict=True)]


def _require_unique(names: list[str], where: str) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise BandMismatchError(
            f"{where}: the band '{twice[0]}' is there more than once. Say in `bands` which bands to use, each "
            f"once; where the files are seasons, name them: april=FILE august=FILE."
        )
