"""Landsat Collection 2 products: folder or tar with MTL metadata, or band files alone.

    LC08_L2SP_198031_20180413_20200901_02_T1_MTL.txt        groups of KEY = VALUE; also as JSON and XML
    LC08_L2SP_198031_20180413_20200901_02_T1_SR_B4.TIF      reflectance = 2.75e-05 x stored - 0.2, 0 is fill
    LC08_L2SP_198031_20180413_20200901_02_T1_QA_PIXEL.TIF   bits of clouds, shadows, snow

The metadata of Level 2 repeat the factors of Level 1 under the same keys: the group decides.
"""

import json
import re
from collections.abc import Mapping
from datetime import date
from typing import Any
from xml.etree import ElementTree

from cobertes.errors import InputFileError
from cobertes.geo.products.archive import ProductFiles
from cobertes.geo.products.band_vocabulary import BANDS, LANDSAT_OLI, LANDSAT_TM
from cobertes.geo.products.record import Product, ProductBand, QualityLayer, qa_pixel_layer
from cobertes.geo.radiometry import Origin, RadiometricConvention

NAME = re.compile(
    r"(?P<id>L[COTE]0(?P<mission>\d)_(?P<level>L[12][A-Z]{2})_\d{6}_(?P<date>\d{8})_\d{8}"
    r"_(?P<collection>\d\d)_[A-Z]\w)"
    r"_(?P<layer>\w+)\.(?P<end>TIFF?|txt|json|xml)$",
    re.IGNORECASE,
)
BAND = re.compile(r"^(?:SR_)?B(\d{1,2})$", re.IGNORECASE)

SURFACE_SCALE, SURFACE_OFFSET = 2.75e-5, -0.2
"""Scale and offset of all Collection 2 surface reflectances (USGS LSDS-1619, section 5)."""
TOP_SCALE, TOP_OFFSET = 2e-5, -0.1
"""Scale and offset of Level 1 of Landsat 8 and 9, without the sun's elevation; older ones differ by scene."""
SURFACE, TOP = "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS", "LEVEL1_RADIOMETRIC_RESCALING"
NOT_REFLECTED = {"lwir", "lwir11", "lwir12", "pan"}
"""Thermal bands and the panchromatic one: other units, another grid."""
PIXEL_SIDE = 30.0
FILL = 0.0


def find_landsat(files: ProductFiles) -> Product | None:
    """The product of a folder or tar, None if no file is named like one.

    Raises InputFileError for damaged metadata, several products, or a product without band files.
    """
    named = files.matches(NAME.search)
    product = files.only_product(
        (found["id"].upper() for _, found in named),
        "Landsat",
        "Name one folder or tar each, or list them: products",
    )
    if product is None:
        return None
    facts = named[0][1]
    metadata_name = next((name for name, found in named if found["layer"].upper() == "MTL"), None)
    groups = read_mtl(files, metadata_name) if metadata_name else {}
    level = facts["level"].upper()
    bands = [
        band for name, found in named if found["end"].upper().startswith("TIF")
        if (band := _band(files, name, found, groups, level))
    ]  # fmt: skip
    if not bands:
        raise InputFileError(
            f"{files.path} has no band files of {product} (..._SR_B4.TIF): fetch the whole product."
        )
    day = facts["date"]
    return Product(
        f"Landsat {facts['mission']} Collection {int(facts['collection'])} {level}",
        str(files.path),
        tuple(sorted(bands, key=lambda band: band.wavelength or 0)),
        date(int(day[:4]), int(day[4:6]), int(day[6:])),
        _value(groups, "PROCESSING_SOFTWARE_VERSION"),
        tuple(_quality(files, named)),
        FILL,
    )


def _band(
    files: ProductFiles, name: str, found: re.Match[str], groups: Mapping[str, Mapping[str, str]], level: str
) -> ProductBand | None:
    """A band of reflectance, None for other layers."""
    number = BAND.match(found["layer"])
    sensor = LANDSAT_OLI if found["mission"] in "89" else LANDSAT_TM
    band = next((b for b in BANDS[sensor] if number and b.name == f"B{int(number[1])}"), None)
    if band is None or band.common_name in NOT_REFLECTED:
        return None
    convention = _convention(groups, band.name[1:], level, oli=sensor == LANDSAT_OLI)
    return ProductBand(
        band.name, files.gdal_path(name), 1, band.common_name, band.wavelength, band.width, convention, PIXEL_SIDE,
        sensor,
    )  # fmt: skip


def _convention(
    groups: Mapping[str, Mapping[str, str]], number: str, level: str, *, oli: bool
) -> RadiometricConvention | None:
    surface = level.startswith("L2")
    parameters = groups.get(SURFACE if surface else TOP, {})
    scale, offset = (parameters.get(f"REFLECTANCE_{what}_BAND_{number}") for what in ("MULT", "ADD"))
    origin: Origin = "product metadata"
    if scale is not None and offset is not None:
        return RadiometricConvention(float(scale), float(offset), "reflectance", origin)
    if surface:
        return RadiometricConvention(SURFACE_SCALE, SURFACE_OFFSET, "reflectance", "file names")
    return RadiometricConvention(TOP_SCALE, TOP_OFFSET, "reflectance", "file names") if oli else None


def _quality(files: ProductFiles, named: list[tuple[str, re.Match[str]]]) -> list[QualityLayer]:
    found = [name for name, match in named if match["layer"].upper() == "QA_PIXEL"]
    return [qa_pixel_layer(files.gdal_path(name)) for name in found[:1]]


def _value(groups: Mapping[str, Mapping[str, str]], key: str) -> str:
    return next((group[key] for group in groups.values() if key in group), "")


def read_mtl(files: ProductFiles, name: str) -> dict[str, dict[str, str]]:
    """The groups of an MTL file: name -> key -> text. Raises InputFileError for a damaged one."""
    text = files.read(name).decode("utf-8", "replace")
    try:
        if name.lower().endswith(".json"):
            return _of_tables(json.loads(text))
        if name.lower().endswith(".xml"):
            return _of_elements(ElementTree.fromstring(text))
    except (ValueError, ElementTree.ParseError) as error:
        raise InputFileError(f"{name} in {files.path} is damaged ({error}): fetch the product again.") from error
    return _of_lines(text)


def _of_lines(text: str) -> dict[str, dict[str, str]]:
    groups: dict[str, dict[str, str]] = {}
    inside: list[str] = []
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        if key == "GROUP":
            inside.append(value)
        elif key == "END_GROUP" and inside:
            inside.pop()
        elif inside and value:
            groups.setdefault(inside[-1], {})[key] = value.strip('"')
    return groups


def _of_tables(data: Any) -> dict[str, dict[str, str]]:
    groups: dict[str, dict[str, str]] = {}
    for name, group in data.items() if isinstance(data, dict) else ():
        if isinstance(group, dict):
            groups[name] = {key: str(value) for key, value in group.items() if not isinstance(value, dict)}
            groups |= _of_tables(group)
    return groups


def _of_elements(root: ElementTree.Element) -> dict[str, dict[str, str]]:
    groups: dict[str, dict[str, str]] = {}
    for element in root.iter():
        values = {child.tag: (child.text or "").strip() for child in element if len(child) == 0}
        if values:
            groups[element.tag] = values
    return groups
