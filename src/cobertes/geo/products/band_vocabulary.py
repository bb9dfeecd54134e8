"""Band vocabulary: one name, common name and wavelength for each band of each sensor, however a file writes it.

    "B8A"  "b08"  "SR_B4"  "T31TDG_20180412T105031_B04_10m"  "nir"  "B8, central wavelength 842 nm"
       \\______________________________ identify ______________________________/
                     sensor, name, common name, centre wavelength, width

Names alone are ambiguous: B05 is the red edge (704 nm) of Sentinel-2 and near infrared (865 nm) of Landsat 8 and
of HLS L30. So bands are compared by wavelength where both sides have one, by common name otherwise.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from cobertes.errors import BandMismatchError

SENTINEL_2, LANDSAT_OLI, LANDSAT_TM = "sentinel-2", "landsat-oli", "landsat-tm"
HLS_S30, HLS_L30 = "hls-s30", "hls-l30"


@dataclass(frozen=True)
class Band:
    """A band of a sensor: ``common_name`` of STAC's eo extension, ``wavelength`` (centre) and ``width`` in nm."""

    sensor: str
    name: str
    common_name: str
    wavelength: float
    width: float


# Centre and width of Sentinel-2A: ESA, Sentinel-2 Spectral Responses (S2-SRF), version 4.0; 2B and 2C differ by
# 4 nm at most up to B09, by 17 nm in B12.
_SENTINEL_2 = (
    ("B01", "coastal", 442.7, 20), ("B02", "blue", 492.7, 65), ("B03", "green", 559.8, 35),
    ("B04", "red", 664.6, 30), ("B05", "rededge1", 704.1, 14), ("B06", "rededge2", 740.5, 14),
    ("B07", "rededge3", 782.8, 19), ("B08", "nir", 832.8, 105), ("B8A", "nir08", 864.7, 21),
    ("B09", "nir09", 945.1, 19), ("B10", "cirrus", 1373.5, 29), ("B11", "swir16", 1613.7, 90),
    ("B12", "swir22", 2202.4, 174),
)  # fmt: skip

# Band edges: USGS, "What are the band designations for the Landsat satellites?" (OLI/TIRS, and TM/ETM+ as one).
_LANDSAT_OLI = (
    ("B1", "coastal", 443, 16), ("B2", "blue", 482, 60), ("B3", "green", 561, 57), ("B4", "red", 655, 37),
    ("B5", "nir08", 865, 28), ("B6", "swir16", 1609, 84), ("B7", "swir22", 2201, 187), ("B8", "pan", 590, 172),
    ("B9", "cirrus", 1373, 20), ("B10", "lwir11", 10895, 590), ("B11", "lwir12", 12005, 1010),
)  # fmt: skip
_LANDSAT_TM = (
    ("B1", "blue", 485, 70), ("B2", "green", 560, 80), ("B3", "red", 660, 60), ("B4", "nir08", 835, 130),
    ("B5", "swir16", 1650, 200), ("B6", "lwir", 11450, 2100), ("B7", "swir22", 2220, 260), ("B8", "pan", 710, 380),
)  # fmt: skip

BANDS: dict[str, tuple[Band, ...]] = {
    SENTINEL_2: tuple(Band(SENTINEL_2, *row) for row in _SENTINEL_2),
    HLS_S30: tuple(Band(HLS_S30, *row) for row in _SENTINEL_2),
    LANDSAT_OLI: tuple(Band(LANDSAT_OLI, *row) for row in _LANDSAT_OLI),
    LANDSAT_TM: tuple(Band(LANDSAT_TM, *row) for row in _LANDSAT_TM),
    # HLS writes Landsat's bands with a leading zero (HLS user guide v2, table 2)
    HLS_L30: tuple(
        Band(HLS_L30, f"B{int(name[1:]):02d}", common, centre, width)
        for name, common, centre, width in _LANDSAT_OLI
        if name != "B8"
    ),
}

COMMON_ALIASES = {
    "coastal": ("coastalaerosol", "aerosol", "ultrablue"),
    "blue": ("blu",),
    "green": ("grn",),
    "red": (),
    "rededge1": ("rededge071", "re1", "vegetationrededge1"),
    "rededge2": ("rededge075", "re2", "vegetationrededge2"),
    "rededge3": ("rededge078", "re3", "vegetationrededge3"),
    "nir": ("nearinfrared", "nir1", "nirbroad"),
    "nir08": ("nirnarrow", "narrownir", "nir2", "bnir", "nira", "rededge4"),
    "nir09": ("watervapour", "watervapor"),
    "cirrus": (),
    "swir16": ("swir1", "swir", "shortwaveinfrared1"),
    "swir22": ("swir2", "shortwaveinfrared2"),
    "pan": ("panchromatic",),
    "lwir11": ("tir1", "thermal1"),
    "lwir12": ("tir2", "thermal2"),
}
"""Common name -> how people write it, without spaces, dashes and case."""

FAMILIES = {"nir": ("nir", "nir08"), "swir": ("swir16",), "rededge": ("rededge1", "rededge2", "rededge3")}
"""A plain word -> the bands that it may mean, the likeliest first."""


SAME_IN_BOTH = {"1", "2", "3", "4"}
"""Numbers that mean the same colour in Sentinel-2, Landsat 8 and 9, and HLS."""

NUMBER = re.compile(r"^b_?0*(\d{1,2}a?)$", re.IGNORECASE)
LONE_NUMBER = re.compile(r"^band[ _]*0*(\d{1,2}a?)$", re.IGNORECASE)
WAVELENGTH = re.compile(r"(\d{3,5}(?:\.\d+)?)\s*nm\b", re.IGNORECASE)
SENSOR_WORDS = (
    (re.compile(r"\bHLS[._]S30\b"), HLS_S30),
    (re.compile(r"\bHLS[._]L30\b"), HLS_L30),
    (re.compile(r"(^|[^A-Z0-9])L[COT]0[89]_|(^|[^A-Z0-9])LC8\d{6}"), LANDSAT_OLI),
    (re.compile(r"(^|[^A-Z0-9])L[ET]0[457]_"), LANDSAT_TM),
    (
        re.compile(r"(^|[^A-Z0-9])(S2[ABCD]_|SENTINEL-?2[ABCDX]?_|T\d\d[A-Z]{3}_\d{8}T|L2A_T\d\d[A-Z]{3}_)"),
        SENTINEL_2,
    ),
    (re.compile(r"(^|[^A-Z0-9])SR_B\d"), LANDSAT_OLI),
)
WORDS = re.compile(r"[^A-Za-z0-9]+")


@dataclass(frozen=True)
class BandLabel:
    """A band as a file or a model names it; ``wavelength`` in nm and ``sensor`` where they are known."""

    name: str
    wavelength: float | None = None
    sensor: str | None = None

    def __str__(self) -> str:
        return self.name if self.wavelength is None else f"{self.name} ({self.wavelength:g} nm)"


@dataclass(frozen=True)
class Meaning:
    """Common name of a band, and its centre wavelength in nm if known; ``plain`` if only a word says so."""

    common_name: str
    wavelength: float | None = None
    plain: bool = False


def band_number(text: str) -> str | None:
    """``"8a"`` of ``B8A``, ``b08a``; ``"4"`` of ``B04``; None for other texts."""
    match = NUMBER.match(text)
    return match[1].lower() if match else None


def same_name(a: str, b: str) -> bool:
    """True if two names differ in case and zero padding at most: ``b4`` and ``B04``."""
    number = band_number(a)
    return a.lower() == b.lower() or (number is not None and number == band_number(b))


def sensor_in(text: str) -> str | None:
    """The sensor that a file or product is named after: ``S2A_``, ``T31TDG_``, ``LC08_``, ``HLS.L30``."""
    return next((sensor for pattern, sensor in SENSOR_WORDS if pattern.search(text.upper())), None)


def sensor_of(names: Iterable[str]) -> str | None:
    """Sentinel-2 if a set of names can be no other's (``B8A``, ``B12``, ``B08`` and others), None if it may be."""
    numbers = {number for number in map(band_number, names) if number is not None}
    if numbers & {"8a", "12"}:
        return SENTINEL_2
    return SENTINEL_2 if "8" in numbers and len(numbers) > 1 and "10" not in numbers else None


@cache
def identify(text: str, sensor: str | None = None) -> Band | None:
    """The band of a sensor that a text names, None if unknown.

    text    a name, an alias, a description or the stem of a band file
    sensor  of `BANDS`; by default what the text says (``S2A_``, ``HLS.L30``), else Sentinel-2
    ``Band 4`` is a band's number only where the sensor is known: elsewhere it is a position in a file.
    """
    told = sensor or sensor_in(text)
    bands = BANDS.get(told or SENTINEL_2, ())
    named = WAVELENGTH.search(text)
    if named:
        near = [band for band in bands if same_wavelength(band.wavelength, float(named[1]))]
        if near:
            return min(near, key=lambda band: abs(band.wavelength - float(named[1])))
    alone = LONE_NUMBER.match(text)
    if alone and told is None:
        return None
    by_number = {number: band for band in bands if (number := band_number(band.name))}
    words = [alone[1]] if alone else [word for word in WORDS.split(text) if word]
    for word in reversed(words):
        number = word.lower().lstrip("0") if alone else band_number(word)
        if number in by_number:
            return by_number[number]
    common = common_name(text)
    return next((band for band in bands if band.common_name == common), None)


@cache
def common_name(text: str) -> str | None:
    """The common name that a word, or the last of a text, stands for: ``NIR``, ``S2_nir``, ``swir 1``; or None."""
    words = [word.lower() for word in WORDS.split(text) if word]
    for tried in ("".join(words), "".join(words[-2:]), *reversed(words)):
        for name, aliases in COMMON_ALIASES.items():
            if tried == name or tried in aliases:
                return name
        if tried in FAMILIES:
            return tried
    return None


def same_wavelength(a: float, b: float) -> bool:
    """True if two centre wavelengths in nm are those of one band: within 15 nm, in the shortwave within 4 %."""
    return abs(a - b) <= (15 if min(a, b) < 1000 else 0.04 * min(a, b))


def meanings(labels: Sequence[BandLabel]) -> list[Meaning | None]:
    """The meaning of each band of a file or model; None if a name says nothing, or may mean two bands."""
    shared = sensor_of(label.name for label in labels)
    return [_meaning(label, label.sensor or sensor_in(label.name) or shared) for label in labels]


def _meaning(label: BandLabel, sensor: str | None) -> Meaning | None:
    band = identify(label.name, sensor)
    word = common_name(label.name)
    told = WAVELENGTH.search(label.name)
    wavelength = label.wavelength if label.wavelength is not None else float(told[1]) if told else None
    if wavelength is not None:
        near = next((b for b in BANDS[sensor or SENTINEL_2] if same_wavelength(b.wavelength, wavelength)), None)
        known = near or band
        return Meaning(known.common_name if known else word or label.name, wavelength)
    number = band_number(label.name) if sensor is None else None
    if number is not None and number not in SAME_IN_BOTH:
        return None
    if band is not None and (number is not None or sensor is not None or word is None):
        return Meaning(band.common_name, band.wavelength)
    return Meaning(word, plain=True) if word is not None else None


def known_bands(labels: Sequence[BandLabel]) -> bool:
    """True if at least one of the bands has a name that means something."""
    return any(meaning is not None for meaning in meanings(labels))


def with_wavelengths(labels: Sequence[BandLabel]) -> list[BandLabel]:
    """The same labels, each with the wavelength that its name stands for where it has none."""
    return [
        label if label.wavelength is not None or meaning is None else replace(label, wavelength=meaning.wavelength)
        for label, meaning in zip(labels, meanings(labels), strict=True)
    ]


def other_light(a: BandLabel, b: BandLabel) -> bool:
    """True if both have a wavelength, and these are not those of one band."""
    return (
        a.wavelength is not None and b.wavelength is not None and not same_wavelength(a.wavelength, b.wavelength)
    )


def match_bands(found: Sequence[BandLabel], wanted: Sequence[BandLabel]) -> list[int | None]:
    """Position in ``found`` of each band in ``wanted``, None where there is none.

    By name first (case and zero padding apart), unless the wavelengths contradict it; then by wavelength, by
    common name. Raises BandMismatchError where two bands may be meant, or one is wanted under two names.
    """
    theirs, ours = meanings(found), meanings(wanted)
    positions: list[int | None] = []
    for label, meaning in zip(wanted, ours, strict=True):
        fitting = _fitting(label, meaning, found, theirs)
        if len(fitting) > 1:
            a, b = (found[i] for i in fitting[:2])
            raise BandMismatchError(
                f"'{label.name}' may be {a} or {b}. Name the bands to use in `bands`, as the files name them."
            )
        positions.append(fitting[0] if fitting else None)
    for i, position in enumerate(positions):
        if position is not None and position in positions[:i]:
            other = wanted[positions.index(position)]
            raise BandMismatchError(
                f"'{other.name}' and '{wanted[i].name}' both mean {found[position]}. Name each band once."
            )
    return positions


def _fitting(
    label: BandLabel, meaning: Meaning | None, found: Sequence[BandLabel], theirs: Sequence[Meaning | None]
) -> list[int]:
    """Positions of the bands that a wanted one may be, the best kind of evidence only."""
    exact = [i for i, other in enumerate(found) if other.name == label.name]
    named = exact or [i for i, other in enumerate(found) if same_name(other.name, label.name)]
    sure = [i for i in named if not _contradict(meaning, theirs[i])]
    if named and meaning is None and band_number(label.name):
        _require_known_sensor(label, [found[i] for i in named if found[i].wavelength is not None])
    if sure:
        return sure
    if meaning is None:
        return []
    if meaning.wavelength is not None:
        same = [i for i, other in enumerate(theirs) if _same_light(meaning, other)]
        if same:
            return same
    words = FAMILIES.get(meaning.common_name, (meaning.common_name,)) if meaning.plain else (meaning.common_name,)
    for word in words:
        fitting = [i for i, other in enumerate(theirs) if _may_be(word, meaning, other)]
        if fitting:
            return fitting
    return []


def _contradict(a: Meaning | None, b: Meaning | None) -> bool:
    if a is None or b is None:
        return False
    if a.wavelength is not None and b.wavelength is not None:
        return not same_wavelength(a.wavelength, b.wavelength)
    return not (a.plain or b.plain) and a.common_name != b.common_name


def _same_light(meaning: Meaning, other: Meaning | None) -> bool:
    if other is None or other.wavelength is None or meaning.wavelength is None:
        return False
    return same_wavelength(meaning.wavelength, other.wavelength)


def _may_be(word: str, meaning: Meaning, other: Meaning | None) -> bool:
    """True if a band has this common name, one side at least being a plain word without a wavelength."""
    if other is None or _contradict(meaning, other):
        return False
    theirs = FAMILIES.get(other.common_name, (other.common_name,)) if other.plain else (other.common_name,)
    return word in theirs


def _require_known_sensor(label: BandLabel, found: Sequence[BandLabel]) -> None:
    if found and band_number(label.name) not in SAME_IN_BOTH:
        raise BandMismatchError(
            f"'{label.name}' means other light in Sentinel-2 than in Landsat: the product has {found[0]}, but "
            f"nothing says which is wanted. Name the bands by colour (red, nir08, swir16), or give band files."
        )
