"""Legends: the classes of a map with codes, keys, names and colours.

They are TOML, in the package (`legend_names`) or the user's own. A class *code* is the value in a raster;
a class *index* (0 .. K-1) exists inside a model only; 255 is the index of everything that is not to be
learnt or scored.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.atomic_io import StrPath
from cobertes.errors import InputFileError, LegendError, did_you_mean
from cobertes.geo.cog_writer import Categories
from cobertes.geo.qgis_style import hex_to_rgb
from cobertes.html_repr import Swatch, html_table

IGNORE_INDEX = 255
"""Class index of pixels without a label: ``ignore_index`` of the loss."""

CODES = 256
"""Number of possible codes of a reference map: uint8."""


@dataclass(frozen=True)
class LegendClass:
    """Class of a legend: ``code`` in rasters, ``key`` in settings and JSON, ``name`` for people,
    ``colour`` as #rrggbb."""

    code: int
    key: str
    name: str
    colour: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        return hex_to_rgb(self.colour)


@dataclass(frozen=True)
class Legend:
    """Classes of a map in the order of their class index, and the nodata code.

    also_nodata   further codes of reference maps without a class: cloud, outside of the mapped area ...
    """

    name: str
    nodata: int
    classes: tuple[LegendClass, ...]
    also_nodata: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.classes:
            raise LegendError(f"legend '{self.name}' has no classes")
        if not 0 <= self.nodata < CODES:
            raise LegendError(f"legend '{self.name}': nodata {self.nodata} must be a code from 0 to 255")
        for what in ("code", "key"):
            values = [getattr(c, what) for c in self.classes]
            twice = sorted({str(v) for v in values if values.count(v) > 1})
            if twice:
                raise LegendError(f"legend '{self.name}' has the {what} {', '.join(twice)} more than once")
        for c in self.classes:
            if c.code in (self.nodata, *self.also_nodata):
                raise LegendError(
                    f"legend '{self.name}': code {c.code} ('{c.key}') is nodata too. Give nodata "
                    f"a code that is no class."
                )
            if not 0 <= c.code < CODES:
                raise LegendError(
                    f"legend '{self.name}': code {c.code} ('{c.key}') must be 0 to 255. Number the classes from "
                    f'1, and lead the map\'s codes to them by a crosswalk: {c.code} = "{c.key}".'
                )
            if not re.fullmatch(r"#[0-9a-fA-F]{6}", c.colour):
                raise LegendError(f"legend '{self.name}': colour '{c.colour}' of '{c.key}' is not #rrggbb")

    def _repr_html_(self) -> str:
        """Table of the classes in their colours."""
        rows = [(entry.code, entry.key, entry.name, Swatch(entry.colour)) for entry in self.classes]
        return html_table(("code", "key", "name", "colour"), rows, f"{self.name}, nodata {self.nodata}")

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def codes(self) -> NDArray[np.uint8]:
        """(K,) uint8: code of each class index."""
        return np.array([c.code for c in self.classes], np.uint8)

    @property
    def keys(self) -> list[str]:
        """Keys in the order of class index."""
        return [c.key for c in self.classes]

    @property
    def colours(self) -> list[str]:
        """Colours in the order of class index."""
        return [c.colour for c in self.classes]

    def find(self, what: int | str) -> LegendClass:
        """Find the class of a key, name or code. Raises LegendError with the near miss."""
        for c in self.classes:
            if what in (c.key, c.name, c.code) or str(what) == str(c.code):
                return c
        raise LegendError(f"unknown class '{what}' in legend '{self.name}'.{did_you_mean(str(what), self.keys)}")

    def index(self, what: int | str) -> int:
        """Class index of a key, name or code."""
        return self.classes.index(self.find(what))

    def without(self, dropped: Iterable[int | str]) -> "Legend":
        """Legend without some classes, whose codes then mean nodata."""
        gone = {self.find(what) for what in dropped}
        return replace(self, classes=tuple(c for c in self.classes if c not in gone))

    def index_table(self) -> NDArray[np.uint8]:
        """(256,) uint8: class index of each code, IGNORE_INDEX for codes without a class."""
        table = np.full(CODES, IGNORE_INDEX, np.uint8)
        table[self.codes] = np.arange(len(self.classes), dtype=np.uint8)
        return table

    def code_table(self) -> NDArray[np.uint8]:
        """(256,) uint8: code of each class index, nodata for every other value."""
        table = np.full(CODES, self.nodata, np.uint8)
        table[: len(self.classes)] = self.codes
        return table

    def categories(self) -> Categories:
        """Names and colours for a raster of codes."""
        return Categories({c.code: c.name for c in self.classes}, {c.code: c.colour for c in self.classes})

    def to_dict(self) -> dict[str, Any]:
        """Dictionary as in the TOML file, for JSON headers."""
        classes = [{"code": c.code, "key": c.key, "name": c.name, "colour": c.colour} for c in self.classes]
        more = {"also-nodata": list(self.also_nodata)} if self.also_nodata else {}
        return {"name": self.name, "nodata": self.nodata, **more, "class": classes}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "legend") -> "Legend":
        """Legend from the dictionary of `to_dict` or of a TOML file. Raises LegendError."""
        try:
            classes = tuple(
                LegendClass(
                    _whole(c["code"]), str(c["key"]), str(c.get("name", c["key"])), str(c["colour"]).lower()
                )
                for c in data["class"]
            )
            also_nodata = tuple(_whole(code) for code in data.get("also-nodata", ()))
            return cls(str(data["name"]), _whole(data.get("nodata", 0)), classes, also_nodata)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, LegendError):
                raise
            raise LegendError(
                f"{where}: a legend needs `name` and [[class]] tables with code, key, name and colour ({error!r})"
            ) from error


def legend_names() -> list[str]:
    """Names of the legends in the package."""
    return toml_names("legend")


def load_legend(name: StrPath, folder: Path = Path()) -> Legend:
    """Load a legend by name, or from a TOML file (relative to ``folder``)."""
    return Legend.from_dict(load_toml(str(name), folder, "legend"), str(name))


def toml_names(what: str) -> list[str]:
    """Names of the packaged files of a kind: "legend" or "crosswalk"."""
    return sorted(f.name.removesuffix(".toml") for f in _folder(what).iterdir() if f.name.endswith(".toml"))


def _folder(what: str) -> Any:
    legends = resources.files("cobertes.labels") / "legends"
    return legends / "crosswalks" if what == "crosswalk" else legends


def load_toml(name: str, folder: Path, what: str) -> dict[str, Any]:
    """A packaged "legend" or "crosswalk" by name, or a TOML file. Raises LegendError, InputFileError."""
    path = folder / name
    if path.is_file():
        source: Any = path
    elif name in (known := toml_names(what)):
        source = _folder(what) / f"{name}.toml"
    elif name.endswith(".toml"):
        raise InputFileError(f"no {what} file at {path}")
    else:
        raise LegendError(f"no {what} '{name}'.{did_you_mean(name, known)} Or name a TOML file.")
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise LegendError(f"{name} is not valid TOML: {error}") from error
    except OSError as error:
        raise InputFileError(f"can't read {path}: {error.strerror}") from error


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value
