"""Tables of classes in files: codes, names and colours from CSV, Excel, DBF, QGIS, SLD and colour map files.

    Value  Class_Name  Red  Green  Blue        a table: columns found by their names
    21     Arable        5     63    42
    21 5 63 42 Arable                          a colour map: code, red, green, blue, name
    <paletteEntry value="21" .../>             a style of QGIS; <ColorMapEntry quantity="21" .../> of SLD

Each reader gives `CodeTable`: what the file says of each code, and nothing else.
"""

import csv
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from cobertes.errors import InputFileError

CODE_COLUMNS = (
    "value", "code", "gridcode", "classvalue", "pixelvalue", "rastervalue", "dn", "classcode", "classid", "lccode",
    "clccode", "class", "id", "codi", "codigo", "valor", "valeur", "wert", "cat",
)  # fmt: skip
NAME_COLUMNS = (
    "classname", "classnames", "name", "label", "label3", "category", "landcover", "description", "class",
    "legend", "title", "nom", "nombre", "nome", "libelle", "bezeichnung", "descripcio", "descripcion", "descricao",
)  # fmt: skip
COLOUR_COLUMNS = ("colour", "color", "hex", "rgb", "hexcode", "hexcolor", "colorcode", "rgbcolor")
CHANNELS = (("red", "green", "blue"), ("r", "g", "b"))


@dataclass(frozen=True)
class CodeTable:
    """``names`` and ``colours`` (#rrggbb) by code; either may be empty."""

    names: dict[int, str] = field(default_factory=dict)
    colours: dict[int, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.names or self.colours)


def read_code_table(path: Path, codes: Collection[int] = ()) -> CodeTable:
    """Names and colours of a table, style or colour map file, by its suffix.

    codes   the codes of the raster, which decide where a table has several columns of codes
    Raises InputFileError where the file can't be read, or nothing in it is a code with a name or a colour.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputFileError(
            f"{path} is no table of classes: its suffix must be {', '.join(sorted(READERS))}. Save it as CSV."
        )
    if not path.is_file():
        raise InputFileError(f"no file at {path}")
    try:
        found = reader(path, codes)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise InputFileError(f"can't read {path} as a table of classes: {error}") from error
    if not found:
        raise InputFileError(
            f"{path} names no classes: it needs a column of codes (value, code ...) and one of names (name, label "
            f"...) or colours (red, green and blue, or colour as #rrggbb)."
        )
    return found


def from_columns(
    header: Sequence[str], rows: Sequence[Sequence[object]], codes: Collection[int] = ()
) -> CodeTable:
    """Names and colours of a table's rows, its columns found by their names. Empty where it has no such columns.

    header  names of the columns, compared without case, blanks, "_" and "-"
    codes   the codes of the raster: of several columns of codes, the one that has most of them is taken
    """
    columns = {_plain(name): number for number, name in reversed(list(enumerate(header)))}
    coded = {name: [_whole(row[columns[name]]) for row in rows] for name in CODE_COLUMNS if name in columns}
    coded = {name: values for name, values in coded.items() if any(value is not None for value in values)}
    if not coded:
        return CodeTable()
    known = set(codes)
    by = max(coded, key=lambda name: len(known & set(coded[name])))
    name_column = _name_column(columns, rows, by)
    colour_of = _colour_reader(columns, rows)
    names, colours = {}, {}
    for code, row in zip(coded[by], rows, strict=True):
        if code is None:
            continue
        if name_column is not None and (name := clean_name(code, str(row[name_column] or ""))):
            names[code] = name
        if colour_of and (colour := colour_of(row)):
            colours[code] = colour
    return CodeTable(names, colours)


def clean_name(code: int, text: str) -> str:
    """A class's name on one line, without the code in front of it ("21 - Arable"); empty if nothing is left."""
    name = " ".join(text.split())
    name = re.sub(rf"^(?:\({code}\)|{code}\s*[-.:)–])\s+", "", f"{name} ").strip()
    return "" if name == str(code) else name


def hex_colour(text: str) -> str | None:
    """``#rrggbb`` of #RRGGBB, RRGGBB, ``230-0-77``, ``230,0,77`` or ``rgb(230 0 77)``; None for other texts."""
    plain = text.strip().lower()
    if found := re.fullmatch(r"#?([0-9a-f]{6})(?:[0-9a-f]{2})?", plain):
        return f"#{found[1]}"
    parts = re.findall(r"\d+", plain)
    if len(parts) in (3, 4) and re.fullmatch(r"(rgba?)?[\s\d,;()\[\]/-]+", plain):
        return _channels([float(part) for part in parts[:3]])
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


def _whole(value: object) -> int | None:
    """A code, where a cell holds a whole number."""
    try:
        number = float(str(value).strip())
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _name_column(columns: Mapping[str, int], rows: Sequence[Sequence[object]], by: str) -> int | None:
    """The column of names: by its own name, else the first one that holds words."""
    taken = {columns[by], *(columns[name] for name in COLOUR_COLUMNS if name in columns)}
    order = [*(columns[name] for name in NAME_COLUMNS if name in columns), *sorted(columns.values())]
    for number in order:
        cells = [str(row[number]) for row in rows if row[number] not in (None, "")]
        words = sum(_whole(cell) is None and hex_colour(cell) is None for cell in cells)
        if number not in taken and words > len(cells) / 2:
            return number
    return None


def _colour_reader(
    columns: Mapping[str, int], rows: Sequence[Sequence[object]]
) -> Callable[[Sequence[object]], str | None] | None:
    for trio in CHANNELS:
        if all(name in columns for name in trio):
            numbers = [columns[name] for name in trio]
            values = [_floats([row[number] for number in numbers]) for row in rows]
            flat = [value for found in values if found for value in found]
            # Erdas and ArcGIS write shares of 1, others 0 to 255
            scale = 255.0 if flat and max(flat) <= 1 and any(not value.is_integer() for value in flat) else 1.0
            return lambda row: _channels([scale * v for v in _floats([row[n] for n in numbers])])
    for name in COLOUR_COLUMNS:
        if name in columns:
            number = columns[name]
            return lambda row: hex_colour(str(row[number] or ""))
    return None


def _floats(cells: Sequence[object]) -> list[float]:
    """Numbers of cells, none if one of them is no number."""
    try:
        return [float(str(cell)) for cell in cells]
    except ValueError:
        return []


def _channels(values: Sequence[float]) -> str | None:
    if len(values) != 3 or not all(0 <= value <= 255 for value in values):
        return None
    return "#" + "".join(f"{round(value):02x}" for value in values)


def read_text(path: Path) -> str:
    """Text of a file in UTF-8, else in the encoding of older Windows programs."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")


def _from_csv(path: Path, codes: Collection[int]) -> CodeTable:
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        return CodeTable()
    delimiter = max(",;\t|", key=lines[0].count)
    header, *rows = csv.reader(lines, delimiter=delimiter)
    return from_columns(header, [[*row, *[""] * len(header)][: len(header)] for row in rows], codes)


def _from_sheet(path: Path, codes: Collection[int]) -> CodeTable:
    """Read the first sheet of an Excel, OpenDocument or dBASE file."""
    import pyogrio  # with its GDAL, which only those wait for who have such a table

    try:
        meta, _, _, fields = pyogrio.raw.read(path, layer=0, read_geometry=False)
    except pyogrio.errors.DataSourceError as error:
        raise ValueError(f"{error}. Save it as CSV") from error
    return from_columns(list(meta["fields"]), list(zip(*fields, strict=True)), codes)


def _from_xml(path: Path, codes: Collection[int]) -> CodeTable:
    """Read the palette and exact colour ramps of a QGIS style (.qml) or SLD."""
    names, colours = {}, {}
    for entry in _entries(ElementTree.parse(path).getroot()):
        code = _whole(entry.get("value", entry.get("quantity", "")))
        if code is None:
            continue
        if name := clean_name(code, entry.get("label", "")):
            names[code] = name
        if colour := hex_colour(entry.get("color", "")) or _ramp_colour(entry):
            colours[code] = colour
    return CodeTable(names, colours)


def _entries(root: ElementTree.Element) -> Iterator[ElementTree.Element]:
    for element in root.iter():
        kind = element.tag.rpartition("}")[2]
        if kind in ("paletteEntry", "ColorMapEntry", "colorRampEntry"):
            yield element
        elif kind == "colorrampshader":
            yield from element.iter("item")


def _ramp_colour(entry: ElementTree.Element) -> str | None:
    return _channels(_floats([entry.get(name) for name in CHANNELS[0]]))


def _from_colour_map(path: Path, codes: Collection[int]) -> CodeTable:
    """Read colours of ArcGIS (.clr), GDAL and QGIS (.txt): lines of code, red, green, blue, alpha or not, name."""
    names, colours = {}, {}
    for line in read_text(path).splitlines():
        text = line.strip()
        if not text or text.startswith(("#", "INTERPOLATION")):
            continue
        found = re.fullmatch(
            r"(-?\d+)[,\s]+(\d{1,3})[,\s]+(\d{1,3})[,\s]+(\d{1,3})(?:[,\s]+(\d{1,3}))?(?:[,\s]+(.*))?", text
        )
        if found is None:
            raise ValueError(f"'{text}' is not a code, red, green and blue")
        code = int(found[1])
        if colour := _channels([float(part) for part in found.groups()[1:4]]):
            colours[code] = colour
        if name := clean_name(code, found[6] or ""):
            names[code] = name
    return CodeTable(names, colours)


READERS: Mapping[str, Callable[[Path, Collection[int]], CodeTable]] = {
    ".csv": _from_csv, ".tsv": _from_csv, ".xlsx": _from_sheet, ".ods": _from_sheet, ".dbf": _from_sheet,
    ".qml": _from_xml, ".sld": _from_xml, ".clr": _from_colour_map, ".txt": _from_colour_map,
}  # fmt: skip
