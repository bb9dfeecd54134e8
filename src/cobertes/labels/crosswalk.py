"""Crosswalks: source codes of a reference map -> classes of a legend, from TOML or a table of two columns.

    [codes]                      code,class
    111 = "urban"                111,urban
    "311-313" = "forest"         311-313,forest
    default = "nodata"           default,nodata

A source is a code, a range of codes (both ends included), a class name of the map, or ``default``: every other
code. A single code goes before a range, a range before the default.
"""

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from cobertes.atomic_io import StrPath
from cobertes.errors import InputFileError, LegendError
from cobertes.labels.legend import Legend, legend_names, load_legend, load_toml, toml_names
from cobertes.labels.legend_tables import CODE_COLUMNS, read_text

DEFAULT = "default"
DEFAULTS = (DEFAULT, "*")
SOURCE_COLUMNS = (*CODE_COLUMNS, "source", "from", "old", "oldcode", "sourcecode", "name")
TABLES = (".csv", ".tsv", ".txt")

Source = int | str
"""A code, a range as text ("311-313"), or a class name of the reference map."""


@dataclass(frozen=True)
class Crosswalk:
    """Source codes -> classes of a legend (code, key or name) or ``"nodata"``. Others are ``default`` or unknown.

    codes    by code, by range ("311-313"), by a name that the reference map gives a class, or ``default``
    target   legend that it leads to, None if its file names none (``to``)
    source   legend that it comes from (``from``), whose names are also names of the reference map
    """

    name: str
    codes: Mapping[Source, int | str]
    target: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Rules:
    """Legend code of source codes: ``single`` codes, ``ranges`` (first, last) and all others (None: unknown)."""

    single: dict[int, int] = field(default_factory=dict)
    ranges: dict[tuple[int, int], int] = field(default_factory=dict)
    default: int | None = None


def require_apart(ranges: Iterable[tuple[int, int]]) -> None:
    """Raise LegendError if ranges of codes overlap."""
    for (first, last), (next_first, next_last) in pairwise(sorted(ranges)):
        if next_first <= last:
            raise LegendError(f"ranges {first}-{last} and {next_first}-{next_last} of source codes overlap")


def crosswalk_names(legend: Legend | None = None) -> list[str]:
    """Names of the crosswalks in the package, or of those that lead to a legend."""
    found = toml_names("crosswalk")
    return found if legend is None else [name for name in found if load_crosswalk(name).target == legend.name]


def load_crosswalk(name: StrPath, folder: Path = Path()) -> Crosswalk:
    """A crosswalk by name, or from a TOML or CSV file (relative to ``folder``).

    Raises LegendError for what is no crosswalk, InputFileError for a missing file.
    """
    name = str(name)
    if Path(name).suffix.lower() in TABLES:
        return _from_table(folder / name)
    data = load_toml(name, folder, "crosswalk")
    try:
        codes = {_source(key): _target(value) for key, value in data["codes"].items()}
        return Crosswalk(str(data["name"]), codes, data.get("to"), data.get("from"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LegendError(
            f"{name}: a crosswalk needs `name` and [codes] with source = target ({error!r})"
        ) from error


def resolve_rules(legend: Legend, sources: Mapping[Source, int | str], names: Mapping[str, int]) -> Rules:
    """Rules of a crosswalk or of single codes, with classes and names replaced by codes.

    names   code of each class name that the reference map has
    Raises LegendError for unknown classes and names, and for ranges that overlap.
    """
    single: dict[int, int] = {}
    ranges: dict[tuple[int, int], int] = {}
    default = None
    for key, what in sources.items():
        source, target = (
            _source(key),
            legend.nodata if what in ("nodata", legend.nodata) else legend.find(what).code,
        )
        if isinstance(source, int):
            single[source] = target
        elif source == DEFAULT:
            default = target
        elif (limits := range_of(source)) is not None:
            ranges[limits] = target
        elif source in names:
            single[names[source]] = target
        else:
            known = ", ".join(f"'{name}'" for name in sorted(names)[:12]) or "no names at all"
            raise LegendError(
                f"'{source}' is no code, range or class name of the reference map, which has {known}"
            )
    require_apart(ranges)
    return Rules(single, ranges, default)


def has_names(sources: Iterable[Source]) -> bool:
    """True if a source is given by a class name of the reference map."""
    words = [source for source in map(_source, sources) if isinstance(source, str) and source != DEFAULT]
    return any(range_of(word) is None for word in words)


def source_names(crosswalk: Crosswalk | None) -> dict[str, int]:
    """Code of each name and key of the packaged legend that a crosswalk comes from; empty without one."""
    if crosswalk is None or crosswalk.source not in legend_names():
        return {}
    classes = load_legend(str(crosswalk.source)).classes
    return {name: c.code for c in classes for name in (c.key, c.name)}


def range_of(text: str) -> tuple[int, int] | None:
    """First and last code of "311-313" or "311..313"; None for other texts. Raises LegendError if it is empty."""
    found = re.fullmatch(r"(-?\d+)\s*(?:-|–|\.\.)\s*(-?\d+)", text.strip())
    if found is None:
        return None
    first, last = int(found[1]), int(found[2])
    if first > last:
        raise LegendError(f"range {text} of a crosswalk ends before it begins")
    return first, last


def require_target(crosswalk: Crosswalk, legend: Legend) -> None:
    """Raise LegendError if a crosswalk's numbers would be taken for the classes of another legend.

    A legend of the user's own may go by another name, so a packaged target is compared by its codes.
    """
    if crosswalk.target in (None, legend.name) or crosswalk.target not in legend_names():
        return
    if set(load_legend(str(crosswalk.target)).codes.tolist()) != set(legend.codes.tolist()):
        raise LegendError(
            f"crosswalk '{crosswalk.name}' leads to legend '{crosswalk.target}', but the legend is "
            f"'{legend.name}'. Use legend '{crosswalk.target}', or leave the crosswalk out."
        )


def _source(key: str | int) -> Source:
    text = str(key).strip()
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return DEFAULT if text.lower() in DEFAULTS else text


def _target(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{value!r} is no code and no class")
    return value


def _from_table(path: Path) -> Crosswalk:
    if not path.is_file():
        raise InputFileError(f"no crosswalk file at {path}")
    lines = [line for line in read_text(path).splitlines() if line.strip() and not line.startswith("#")]
    delimiter = max(",;\t|", key=lines[0].count) if lines else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    if rows and re.sub(r"[\s_-]+", "", rows[0][0]).lower() in SOURCE_COLUMNS:
        rows = rows[1:]
    odd = next((row for row in rows if len(row) != 2 or not all(row)), None)
    if odd is not None or not rows:
        raise LegendError(
            f"{path}: a table of a crosswalk has two columns, source code and class, found "
            f"'{delimiter.join(odd) if odd else 'nothing'}'"
        )
    codes: dict[Source, int | str] = {}
    for key, value in rows:
        source = _source(key)
        if source in codes:
            raise LegendError(f"{path}: source '{key}' stands there more than once")
        codes[source] = int(value) if re.fullmatch(r"-?\d+", value) else value
    return Crosswalk(path.stem, codes)
