"""Class names and colours that come with a raster: inside the file, or in a file beside it.

    map.tif               attribute table (GDAL 3.12 on), class names as tags, palette
    map.tif.aux.xml       attribute table, category names
    map.tif.vat.dbf       attribute table of ArcGIS
    map.qml map.sld map.clr map.csv map.xlsx ...      styles and tables, by the raster's own name

GDAL's own reading comes first: a virtual copy of the raster holds, as XML, every attribute table, category name
and palette that GDAL finds, whatever the format. What it does not find is read here.
"""

import logging
import re
import struct
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import rasterio.shutil
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from cobertes.errors import InputFileError
from cobertes.geo.io import open_raster
from cobertes.labels.legend_tables import READERS, CodeTable, clean_name, from_columns, read_code_table

log = logging.getLogger(__name__)

GDAL_METADATA_TAG = 42112
TIFF_ORDERS = {b"II": "<", b"MM": ">"}
BLACK = "#000000"
TAG_PREFIX = "class_"
"""TIFF tags that hold class names, as our own maps have them: ``class_12``."""


@dataclass(frozen=True)
class ClassNames:
    """Class names and colours of a raster, and where they were found.

    names, colours            by code; colours are #rrggbb
    names_from, colours_from  for people: "attribute table in map.tif.aux.xml"; empty where there are none
    """

    names: dict[int, str]
    colours: dict[int, str]
    names_from: str = ""
    colours_from: str = ""

    def __bool__(self) -> bool:
        return bool(self.names or self.colours)


def read_class_names(raster: Path, *, table: Path | None = None, codes: Collection[int] = ()) -> ClassNames:
    """Names and colours of a raster's codes, from the source that knows most of them.

    table   a file to take them from, before all others: CSV, Excel, DBF, .qml, .sld, .clr
    codes   the codes that occur, which decide between sources; none: all codes count
    Names come from one source, so that two legends are never mixed; colours from the same, if it has any.
    Raises InputFileError where the raster or ``table`` can't be read; other files that can't be are passed over.
    """
    found = [(f"table {table.name}", read_code_table(table, codes))] if table else []
    if not found:
        found = [(where, source) for where, source in _sources(raster, codes) if source]
    named = max(found, key=lambda one: _known(one[1].names, codes), default=("", CodeTable()))
    coloured = max(
        found,
        key=lambda one: (_known(one[1].colours, codes), one[0] == named[0]),
        default=("", CodeTable()),
    )
    if _known(named[1].colours, codes) and named[1].names:
        coloured = named
    names, colours = named[1].names, coloured[1].colours
    return ClassNames(names, colours, named[0] if names else "", coloured[0] if colours else "")


def _known(by_code: dict[int, str], codes: Collection[int]) -> int:
    return len(by_code.keys() & set(codes)) if codes else len(by_code)


def _sources(raster: Path, codes: Collection[int]) -> Iterator[tuple[str, CodeTable]]:
    """Every source with its description, the most trusted first."""
    band, tags = _band_of(raster)
    inside = f"in {raster.name}"
    yield f"attribute table {inside}", _attribute_table(band, codes)
    yield f"attribute table {inside}", _attribute_table(_tiff_metadata(raster), codes)
    yield from _beside(raster, [raster.with_name(f"{raster.name}.vat.dbf"), raster.with_suffix(".vat.dbf")], codes)
    yield f"category names {inside}", CodeTable(_categories(band))
    yield f"tags {inside}", CodeTable(tags)
    files = [raster.with_suffix(suffix) for suffix in READERS]
    files += [raster.with_name(raster.name + suffix) for suffix in READERS]
    files += [
        raster.with_name(f"{raster.stem}{mark}legend{suffix}")
        for mark in "-_"
        for suffix in (".csv", ".xlsx", ".txt")
    ]
    yield from _beside(raster, files, codes)
    yield f"palette {inside}", CodeTable({}, _palette(band, codes))


def _beside(raster: Path, files: list[Path], codes: Collection[int]) -> Iterator[tuple[str, CodeTable]]:
    """Tables in files beside a raster. One that is no table of classes was not meant for us."""
    for file in files:
        if file != raster and file.is_file():
            try:
                yield file.name, read_code_table(file, codes)
            except InputFileError as error:
                log.info("no class names from %s: %s", file.name, error)


def _band_of(raster: Path) -> tuple[ElementTree.Element, dict[int, str]]:
    """Metadata of the first band as XML, and names by code from our own tags."""
    with open_raster(raster) as dataset, tempfile.TemporaryDirectory() as folder:
        tags = {
            int(key.removeprefix(TAG_PREFIX)): value
            for key, value in dataset.tags().items()
            if re.fullmatch(rf"{TAG_PREFIX}-?\d+", key)
        }
        copy = Path(folder) / "copy.vrt"
        try:
            rasterio.shutil.copy(dataset, copy, driver="VRT")
            band = ElementTree.parse(copy).getroot().find("VRTRasterBand")
        except (RasterioError, CPLE_BaseError, ElementTree.ParseError) as error:
            log.info("no class names from %s: %s", raster.name, error)
            band = None
    return ElementTree.Element("none") if band is None else band, tags


def _attribute_table(band: ElementTree.Element, codes: Collection[int]) -> CodeTable:
    table = band.find(".//GDALRasterAttributeTable")
    if table is None:
        return CodeTable()
    usages = {2: "classname", 5: "value", 6: "red", 7: "green", 8: "blue"}
    header = []
    for column in table.findall("FieldDefn"):
        usage = usages.get(int(column.findtext("Usage", "0")))
        # a usage that an earlier column has goes by its own name, as one without usage does
        header.append(usage if usage and usage not in header else column.findtext("Name", ""))
    rows = [[cell.text or "" for cell in row.findall("F")] for row in table.findall("Row")]
    rows = [row for row in rows if len(row) == len(header)]
    # Erdas writes no codes: a row's number is its code
    numbered = [[number, *row] for number, row in enumerate(rows)]
    return from_columns(header, rows, codes) or from_columns(["value", *header], numbered, codes)


def _categories(band: ElementTree.Element) -> dict[int, str]:
    """Names by code: the position of a category is its code, an empty one is none."""
    texts = [entry.text or "" for entry in band.findall("CategoryNames/Category")]
    names = {code: clean_name(code, text) for code, text in enumerate(texts)}
    return {code: name for code, name in names.items() if name}


def _palette(band: ElementTree.Element, codes: Collection[int]) -> dict[int, str]:
    """Colours by code. Palettes are filled up with black, so it is a colour only if a single code has it."""
    colours = {
        code: "#" + "".join(f"{int(entry.get(part, '0')):02x}" for part in ("c1", "c2", "c3"))
        for code, entry in enumerate(band.findall("ColorTable/Entry"))
    }
    black = [code for code, colour in colours.items() if colour == BLACK and (code in codes or not codes)]
    return {code: colour for code, colour in colours.items() if colour != BLACK or [code] == black}


def _tiff_metadata(raster: Path) -> ElementTree.Element:
    """The XML of a GeoTIFF's tag GDAL_METADATA, which hides an attribute table from GDAL before 3.12."""
    nothing = ElementTree.Element("none")
    try:
        text = _tiff_tag(raster, GDAL_METADATA_TAG)
        return ElementTree.fromstring(text) if text else nothing
    except (OSError, ValueError, struct.error, ElementTree.ParseError):
        return nothing


def _tiff_tag(path: Path, wanted: int) -> str:
    """Text of a tag of the first directory of a TIFF or BigTIFF; empty if the file has none such."""
    with path.open("rb") as file:
        head = file.read(16)
        order = TIFF_ORDERS.get(head[:2])
        if order is None:
            return ""
        big = struct.unpack(f"{order}H", head[2:4])[0] == 43
        start = struct.unpack(f"{order}Q", head[8:16])[0] if big else struct.unpack(f"{order}I", head[4:8])[0]
        count_code, entry_code = (f"{order}Q", f"{order}HHQ8s") if big else (f"{order}H", f"{order}HHI4s")
        file.seek(start)
        (entries,) = struct.unpack(count_code, file.read(struct.calcsize(count_code)))
        for _ in range(entries):
            tag, _, count, value = struct.unpack(entry_code, file.read(struct.calcsize(entry_code)))
            if tag == wanted:
                if count > len(value):
                    (place,) = struct.unpack(f"{order}{'Q' if big else 'I'}", value)
                    file.seek(place)
                    value = file.read(count)
                return value[:count].rstrip(b"\0").decode("utf-8")
    return ""
