"""Radiometric conventions: what the numbers that a file stores mean.

    physical value = scale * stored value + offset          0.0001 * 1500 - 0.1 = 0.05 (reflectance)

Sentinel-2 products before and after processing baseline 04.00, Landsat's, HLS's and plain reflectances hold the
same ground in different numbers. A scene's values are never copied: a conversion is a gain and a bias, which
normalisation takes up.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import BandMismatchError, SettingsError

Unit = Literal["reflectance", "digital-number", "decibel"]
"""``digital-number``: physical values of a unit that nothing names."""

Origin = Literal["command line", "project", "product metadata", "file names", "file tags", "values", "default"]
"""Origin of a convention; an earlier one overrules a later one."""

ORIGINS: tuple[Origin, ...] = get_args(Origin)

DECIBEL_UNITS = {"db", "decibel", "decibels"}
UNITLESS = {"", "1", "reflectance", "unitless", "none", "dn/10000"}
REFLECTANCE_SCALE = 1e-4
"""The commonest way to store reflectance as whole numbers: x 10,000."""

BRIGHTEST = 2.0
"""Reflectances over it are none: clouds and glints reach about 1.6."""

ROUND_DIGITS = 12
"""Significant digits of a conversion: -0.1 / 0.0001 is -1000, not -1000.0000000000001."""


@dataclass(frozen=True)
class RadiometricConvention:
    """Meaning of a band's stored values: ``scale * stored + offset`` in ``unit``; ``origin``: who says so."""

    scale: float = 1.0
    offset: float = 0.0
    unit: Unit = "digital-number"
    origin: Origin = field(default="default", compare=False)

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale != 0 and np.isfinite(self.offset)):
            raise SettingsError(
                f"scale {self.scale:g} and offset {self.offset:g} ({self.origin}) give no values: a scale is a "
                f"number other than 0, an offset any number. physical value = scale x stored value + offset."
            )

    @property
    def assumed(self) -> bool:
        """True if no file, product or person says so."""
        return self.origin in ("default", "values")

    def __str__(self) -> str:
        """``reflectance = 0.0001 x stored - 0.1 (file tags)``."""
        sign = "" if self.offset == 0 else f" {'-' if self.offset < 0 else '+'} {abs(self.offset):g}"
        times = "" if self.scale == 1 else f"{self.scale:g} x "
        unit = "value" if self.unit == "digital-number" else self.unit
        return f"{unit} = {times}stored{sign} ({self.origin})"

    def physical(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Physical values of stored ones, of the same shape."""
        return np.asarray(self.scale * np.asarray(stored, np.float64) + self.offset)

    def to_dict(self) -> dict[str, Any]:
        """Convention as JSON values."""
        return {"scale": self.scale, "offset": self.offset, "unit": self.unit, "origin": self.origin}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RadiometricConvention":
        """From what `to_dict` gives. Raises ValueError for a unit or origin that is not known."""
        if data["unit"] not in get_args(Unit) or data["origin"] not in ORIGINS:
            raise ValueError(f"a radiometric convention of unit '{data['unit']}', origin '{data['origin']}'")
        return cls(float(data["scale"]), float(data["offset"]), data["unit"], data["origin"])


@dataclass(frozen=True)
class Conversion:
    """From one convention into another: ``gain * stored + bias``, each (bands,) as a tuple."""

    gain: tuple[float, ...]
    bias: tuple[float, ...]

    def select(self, positions: Sequence[int]) -> "Conversion":
        """The conversion of some of the bands."""
        return Conversion(tuple(self.gain[i] for i in positions), tuple(self.bias[i] for i in positions))

    def apply(self, values: NDArray[Any], axis: int) -> NDArray[np.float32]:
        """Stored values converted, float32; bands lie along ``axis``."""
        shape = [1] * values.ndim
        shape[axis] = len(self.gain)
        gain, bias = (np.array(part, np.float32).reshape(shape) for part in (self.gain, self.bias))
        return np.asarray(values.astype(np.float32) * gain + bias, np.float32)


def convert_stored(source: RadiometricConvention, target: RadiometricConvention, band: str) -> tuple[float, float]:
    """Gain and bias that turn values stored by ``source`` into values stored by ``target``; (1, 0) if they agree.

    Where units differ, but one of them is only assumed, values stay as they are.
    Raises BandMismatchError where one is a reflectance and the other decibels, or one of no known unit.
    """
    if source == target:
        return 1.0, 0.0
    if source.unit != target.unit and (source.assumed or target.assumed):
        return 1.0, 0.0  # nobody says that they differ
    if source.unit != target.unit:
        raise BandMismatchError(
            f"band {band}: the scene holds {source}, needed {target}. One can't be made from the other: say what "
            f"the stored values mean with scale and offset ([[area]] in the project, --scale and --offset)."
        )
    return rounded(source.scale / target.scale), rounded((source.offset - target.offset) / target.scale)


def rounded(value: float) -> float:
    """A quotient without the last digits, which are the computer's."""
    return float(f"{value:.{ROUND_DIGITS}g}")


def conversion_between(
    sources: Sequence[RadiometricConvention], targets: Sequence[RadiometricConvention], bands: Sequence[str]
) -> Conversion | None:
    """The conversion of a scene's bands, None where all conventions agree. Raises as `convert_stored` does."""
    pairs = [convert_stored(a, b, name) for a, b, name in zip(sources, targets, bands, strict=True)]
    if all(pair == (1.0, 0.0) for pair in pairs):
        return None
    gain, bias = zip(*pairs, strict=True)
    return Conversion(tuple(gain), tuple(bias))


def convention_of_tags(scale: float, offset: float, unit: str | None) -> RadiometricConvention | None:
    """Convention from GDAL's scale, offset and unit of a band; None if they are GDAL's defaults."""
    told = (unit or "").strip().lower()
    if told in DECIBEL_UNITS:
        return RadiometricConvention(scale, offset, "decibel", "file tags")
    if (scale, offset) == (1.0, 0.0):
        return RadiometricConvention(1.0, 0.0, "reflectance", "file tags") if told == "reflectance" else None
    quantity: Unit = "reflectance" if told in UNITLESS else "digital-number"
    return RadiometricConvention(scale, offset, quantity, "file tags")


def default_convention(dtype: np.dtype[Any]) -> RadiometricConvention:
    """The convention of last resort: reflectance x 10,000 in whole numbers of 16 bits and more, none in bytes.

    Floating-point numbers are looked at, see `convention_of_values`.
    """
    if dtype.itemsize == 1:
        return RadiometricConvention()
    return RadiometricConvention(REFLECTANCE_SCALE, 0.0, "reflectance", "default")


def convention_of_values(values: NDArray[Any]) -> RadiometricConvention:
    """The convention of floating-point ``values`` (any shape) that nothing describes.

    Reflectances from 0 to 1 where nearly all lie between -0.2 and 2, x 10,000 where most are larger, of no known
    unit where many are negative (decibels, indices).
    """
    known = values[np.isfinite(values) & (values != 0)]
    if not known.size:
        return default_convention(values.dtype)
    low, high = np.quantile(known, [0.02, 0.98])
    if low < -0.2 and high < BRIGHTEST * 5:
        return RadiometricConvention(1.0, 0.0, "digital-number", "values")
    scale = 1.0 if high <= BRIGHTEST else REFLECTANCE_SCALE
    return RadiometricConvention(scale, 0.0, "reflectance", "values")


def first_told(candidates: Iterable[RadiometricConvention | None]) -> RadiometricConvention | None:
    """The convention whose origin overrules the others', None where there is none."""
    told = [one for one in candidates if one is not None]
    return min(told, key=lambda one: ORIGINS.index(one.origin)) if told else None


def conventions_by_user(
    told: Sequence[RadiometricConvention],
    bands: Sequence[str],
    scale: float | Mapping[str, float] | None,
    offset: float | Mapping[str, float] | None,
    origin: Origin,
) -> tuple[RadiometricConvention, ...]:
    """The conventions of bands with what a person says of their ``scale`` and ``offset``: for all, or by band.

    Raises SettingsError for a band that is not there.
    """
    for name in [*(scale if isinstance(scale, Mapping) else ()), *(offset if isinstance(offset, Mapping) else ())]:
        if name not in bands:
            raise SettingsError(f"scale or offset of a band '{name}', but the bands are {', '.join(bands)}")

    def of(value: float | Mapping[str, float] | None, name: str) -> float | None:
        return value.get(name) if isinstance(value, Mapping) else value

    made = []
    for one, name in zip(told, bands, strict=True):
        s, o = of(scale, name), of(offset, name)
        if s is None and o is None:
            made.append(one)
            continue
        unit: Unit = "decibel" if one.unit == "decibel" else "reflectance"
        made.append(replace(one, scale=one.scale if s is None else s, offset=one.offset if o is None else o,
                            unit=unit, origin=origin))  # fmt: skip
    return tuple(made)


def describe_conventions(conventions: Sequence[RadiometricConvention], bands: Sequence[str]) -> str:
    """One line for people: the convention if all bands share it, else each group of bands with its own."""
    groups: dict[str, list[str]] = {}
    for one, name in zip(conventions, bands, strict=True):
        groups.setdefault(str(one), []).append(name)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in groups.items())
