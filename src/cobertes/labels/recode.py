"""Recoding a reference map: from the codes in the file to the codes of a legend, by one table of 256 entries.

    uint8 map     code -----------------------------> table[code]      a look-up, nothing else
    other maps    code --binary search--> slot -----> table[slot]      311 -> slot 4 -> 3 (forest)

Kernels count in bytes. Codes of other types (int8 to int64, whole-number floats, colours) are given a slot of
0 to 255 as they are read, so that everything after the reading is the same for all maps.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cobertes.atomic_io import StrPath
from cobertes.errors import LegendError
from cobertes.geo.io import open_raster
from cobertes.labels.class_names import read_class_names
from cobertes.labels.crosswalk import (
    Crosswalk,
    Rules,
    Source,
    has_names,
    require_apart,
    require_target,
    resolve_rules,
    source_names,
)
from cobertes.labels.legend import CODES, Legend
from cobertes.labels.map_values import MapValues, map_values

UNKNOWN = -1


@dataclass(frozen=True)
class CodeSlots:
    """Slots of the codes of a map that is not of bytes.

    first, last   (n,) int64: intervals of codes, ascending and apart
    slot          (n,) uint8: slot of each interval
    other         slot of all other codes
    empty         slot of ground without data: declared nodata, NaN, masked
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    slot: NDArray[np.uint8]
    other: int
    empty: int

    def source_codes(self) -> dict[int, int]:
        """Source code of each slot that stands for one code."""
        single = {}
        for first, last, slot in zip(self.first.tolist(), self.last.tolist(), self.slot.tolist(), strict=True):
            single[slot] = None if slot in single or first != last else first
        return {slot: code for slot, code in single.items() if code is not None}


@dataclass(frozen=True)
class RecodeTable:
    """Legend code of each code of a reference map.

    table   (256,) int16: legend code by source code (uint8 maps) or by slot, nodata for what is not to be used,
            -1 for unknown codes
    slots   None for uint8 maps
    """

    table: NDArray[np.int16]
    slots: CodeSlots | None = None

    def fingerprint(self) -> list[object]:
        """Everything that decides what becomes of a map."""
        slots = self.slots
        if slots is None:
            return self.table.tolist()
        return [self.table.tolist(), slots.first.tolist(), slots.last.tolist(), slots.slot.tolist()]

    def legend_code(self, code: int) -> int:
        """Legend code of a source code, -1 if it is unknown."""
        if self.slots is None:
            return int(self.table[code]) if 0 <= code < CODES else UNKNOWN
        i = int(np.searchsorted(self.slots.first, code, "right")) - 1
        known = i >= 0 and code <= self.slots.last[i]
        return int(self.table[self.slots.slot[i] if known else self.slots.other])

    def for_map(self, values: MapValues, nodata: int) -> "RecodeTable":
        """This table by slots, if it was made for bytes but a map holds other values."""
        if self.slots is not None or values.are_bytes:
            return self
        codes = [] if values.are_colours else np.flatnonzero(self.table >= 0).tolist()
        single = {code: int(self.table[code]) for code in codes}
        if values.nodata_code is not None:
            single.setdefault(values.nodata_code, nodata)
        return _slot_table(_intervals(single, {}), UNKNOWN, nodata)

    def source_counts(self, seen: NDArray[np.int64]) -> dict[int, int]:
        """Pixels by source code, from (256,) pixels by slot; without those of slots that many codes share."""
        codes = {code: code for code in range(CODES)} if self.slots is None else self.slots.source_codes()
        return {codes[slot]: int(seen[slot]) for slot in sorted(codes, key=codes.__getitem__) if seen[slot]}


def recode_table(
    legend: Legend,
    *,
    crosswalk: Crosswalk | None = None,
    codes: Mapping[Source, int | str] | None = None,
    as_nodata: Iterable[int | str] = (),
    source: MapValues | None = None,
) -> RecodeTable:
    """Legend code of each code of a reference map: the one table that the label kernels look up.

    legend      whole legend of the map, classes in ``as_nodata`` included
    codes       further source codes or ranges -> class (code, key or name) or ``"nodata"``; before the crosswalk
    source      the map's values; default: uint8 without nodata
    Raises LegendError for classes and codes that do not exist, and if the map declares a class as its nodata.
    """
    source = source or MapValues()
    dropped = {legend.find(what).code for what in as_nodata}
    rules = _rules(legend, crosswalk, codes or {}, source, dropped)
    single = {code: _used(target, dropped, legend) for code, target in rules.single.items()}
    ranges = {limits: _used(target, dropped, legend) for limits, target in rules.ranges.items()}
    default = UNKNOWN if rules.default is None else _used(rules.default, dropped, legend)
    if source.are_bytes:
        return RecodeTable(_byte_table(single, ranges, default))
    return _slot_table(_intervals(single, ranges), default, legend.nodata)


def recode_map(
    reference: StrPath,
    legend: Legend,
    *,
    crosswalk: Crosswalk | None = None,
    codes: Mapping[Source, int | str] | None = None,
    as_nodata: Iterable[int | str] = (),
) -> RecodeTable:
    """`recode_table` of a reference map's file: its type, its nodata, its own class names.

    Raises LegendError as `recode_table` does, InputFileError for a file that can't be read or holds no codes.
    """
    path = Path(reference)
    with open_raster(path) as dataset:
        source = map_values(path, dataset)
    if has_names([*(crosswalk.codes if crosswalk else ()), *(codes or ())]):
        names = read_class_names(path).names
        source = replace(source, names={name: code for code, name in names.items()})
    return recode_table(legend, crosswalk=crosswalk, codes=codes, as_nodata=as_nodata, source=source)


def _used(target: int, dropped: set[int], legend: Legend) -> int:
    return legend.nodata if target in dropped else target


def _rules(
    legend: Legend,
    crosswalk: Crosswalk | None,
    codes: Mapping[Source, int | str],
    source: MapValues,
    dropped: set[int],
) -> Rules:
    """All rules in one: the legend's own codes or a crosswalk, then single codes, then declared nodata."""
    names = {**source_names(crosswalk), **source.names}
    own = resolve_rules(legend, codes, names)
    if crosswalk is not None:
        require_target(crosswalk, legend)
        given = resolve_rules(legend, crosswalk.codes, names)
    elif source.are_colours:
        given = Rules(_colour_codes(legend))
    else:
        given = Rules(dict.fromkeys(legend.also_nodata, legend.nodata) | {c.code: c.code for c in legend.classes})
    ranges = {**given.ranges, **own.ranges}
    require_apart(ranges)
    single = {**_outside(given.single, own.ranges), **own.single}
    if not source.are_colours:
        single = {**_outside({legend.nodata: legend.nodata}, ranges), **single}
    explicit = own.single if crosswalk is None else single
    declared = source.nodata_code
    if declared is not None and (declared not in explicit or single[declared] == legend.nodata):
        _check_declared(legend, single.get(declared, legend.nodata), source, dropped)
        single[declared] = legend.nodata
    return Rules(single, ranges, given.default if own.default is None else own.default)


def _outside(single: dict[int, int], ranges: Iterable[tuple[int, int]]) -> dict[int, int]:
    """The single codes that no range, which is the user's own word, says otherwise of."""
    limits = list(ranges)
    return {code: to for code, to in single.items() if not any(a <= code <= b for a, b in limits)}


def _check_declared(legend: Legend, target: int, source: MapValues, dropped: set[int]) -> None:
    """Raise LegendError if the value that a map declares as nodata is a class: one of the two is wrong."""
    if target == legend.nodata or target in dropped or source.nodata_code is None:
        return
    code, name = source.text(source.nodata_code), legend.find(target).name
    raise LegendError(
        f"{source.name} declares {code} as its nodata, but {code} is '{name}' in legend '{legend.name}'. If "
        f"those pixels are that class, take the declaration away: gdal_edit.py -unsetnodata {source.name}. If "
        f'they are not, say so: `[labels] codes = {{ {source.nodata_code} = "nodata" }}`, or in a crosswalk.'
    )


def _colour_codes(legend: Legend) -> dict[int, int]:
    """Legend code of each colour, as red x 65536 + green x 256 + blue."""
    twice = sorted({c for c in legend.colours if legend.colours.count(c) > 1})
    if twice:
        raise LegendError(
            f"the reference map holds colours, but {twice[0]} stands for several classes of legend "
            f"'{legend.name}'. Use a map of class codes, or a legend with a colour for each class."
        )
    return {int(c.colour[1:], 16): c.code for c in legend.classes}


def _byte_table(single: dict[int, int], ranges: dict[tuple[int, int], int], default: int) -> NDArray[np.int16]:
    table = np.full(CODES, default, np.int16)
    for (first, last), target in ranges.items():
        table[max(first, 0) : max(last + 1, 0)] = target
    for code, target in single.items():
        if 0 <= code < CODES:
            table[code] = target
    return table


def _intervals(single: dict[int, int], ranges: dict[tuple[int, int], int]) -> list[tuple[int, int, int]]:
    """(first, last, target) in ascending order and apart: single codes cut the ranges that they lie in."""
    pieces = [(code, code, target) for code, target in single.items()]
    codes = sorted(single)
    for (first, last), target in ranges.items():
        start = first
        for code in codes[bisect_left(codes, first) : bisect_right(codes, last)]:
            if start < code:
                pieces.append((start, code - 1, target))
            start = code + 1
        if start <= last:
            pieces.append((start, last, target))
    return sorted(pieces)


def _slot_table(intervals: list[tuple[int, int, int]], default: int, nodata: int) -> RecodeTable:
    """A slot for each interval if there are slots enough, so that every code is counted; else for each target."""
    targets = [target for *_, target in intervals]
    if len(intervals) > CODES - 2:
        order = sorted(set(targets))
        slots = [order.index(target) for target in targets]
    else:
        order, slots = targets, list(range(len(targets)))
    table = np.full(CODES, UNKNOWN, np.int16)
    if len(order) > CODES - 2:
        raise LegendError("a map of codes beyond 0 to 255 can't have more than 253 classes: group them")
    table[: len(order)] = order
    table[CODES - 2 :] = default, nodata
    first, last = ([one[i] for one in intervals] for i in (0, 1))
    return RecodeTable(
        table,
        CodeSlots(
            np.array(first, np.int64), np.array(last, np.int64), np.array(slots, np.uint8), CODES - 2, CODES - 1
        ),
    )
