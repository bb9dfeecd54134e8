"""Theia's Sentinel-2 products: MAJA L2A (single dates) and WASP L3A (monthly syntheses).

    SENTINEL2A_20180412-105..._L2A_T31TDG_C_V2-2_FRE_B8A.tif    reflectance of flattened slopes; SRE: as it is
    MASKS/..._CLM_R1.tif, ..._MG2_R1.tif                        clouds; clouds, snow and shadows, as bits
    SENTINEL2X_20180415-000..._L3A_T31TDG_C_V1-2_FRC_B8A.tif    synthesis; MASKS/..._FLG_R1.tif: status
    ..._MTD_ALL.xml                                             REFLECTANCE_QUANTIFICATION_VALUE, nodata -10000

FRE is taken where it is there: maps of classes should not follow the slopes.
"""

import re
from datetime import date

from cobertes.errors import InputFileError
from cobertes.geo.products.archive import ProductFiles, elements, text_of
from cobertes.geo.products.band_vocabulary import BANDS, SENTINEL_2
from cobertes.geo.products.record import Product, ProductBand, QualityLayer, clm_layer, flg_layer, mg2_layer
from cobertes.geo.products.safe import NATIVE
from cobertes.geo.radiometry import RadiometricConvention

NAME = re.compile(
    r"^(?P<id>SENTINEL2[ABCDX]_(?P<date>\d{8})-\d{6}-\d{3}_(?P<level>L[23]A)_T\d{2}[A-Z]{3}"
    r"_\w_V(?P<version>\d+-\d+))"
    r"_(?P<layer>\w+)\.(?:tiff?|xml)$",
    re.IGNORECASE,
)
BAND = re.compile(r"^(FRE|SRE|FRC)_B(\d{1,2}A?)$", re.IGNORECASE)
PREFERRED = ("FRE", "FRC", "SRE")
QUANTIFICATION, NODATA = 10_000.0, -10_000.0
"""Defaults if the metadata are missing (CNES, MAJA product format)."""


def find_maja(files: ProductFiles) -> Product | None:
    """The product of a folder or zip, None if no file is named like one.

    Raises InputFileError for damaged metadata, several products, or one without band files.
    """
    named = files.matches(NAME.match)
    ids = (found["id"] for _, found in named)
    product = files.only_product(ids, "Theia", "Name one, or list them: granules")
    if product is None:
        return None
    facts = named[0][1]
    layers = {found["layer"].upper(): name for name, found in named if not name.lower().endswith(".xml")}
    metadata = next((name for name, found in named if found["layer"].upper() == "MTD_ALL"), None)
    convention, nodata = _convention(files, metadata)
    bands = _bands(files, layers, convention)
    if not bands:
        raise InputFileError(
            f"{files.path} has no band files of {product} (..._FRE_B4.tif): fetch the whole product."
        )
    day, level = facts["date"], facts["level"].upper()
    kind = {"L2A": "Theia MAJA L2A", "L3A": "Theia L3A synthesis"}[level]
    corrected = next(choice for choice in PREFERRED if any(layer.startswith(choice) for layer in layers))
    return Product(
        kind,
        str(files.path),
        tuple(bands),
        date(int(day[:4]), int(day[4:6]), int(day[6:])),
        facts["version"].replace("-", "."),
        tuple(_quality(files, layers)),
        nodata,
        {"reflectance": corrected},
    )


def _convention(files: ProductFiles, metadata: str | None) -> tuple[RadiometricConvention, float]:
    """The convention of all bands, and the value of empty pixels."""
    if metadata is None:
        return RadiometricConvention(1 / QUANTIFICATION, 0.0, "reflectance", "file names"), NODATA
    root = files.xml(metadata)
    factor = float(text_of(root, "REFLECTANCE_QUANTIFICATION_VALUE") or QUANTIFICATION)
    special = {element.get("name", ""): element.text or "" for element in elements(root, "SPECIAL_VALUE")}
    convention = RadiometricConvention(1 / factor, 0.0, "reflectance", "product metadata")
    return convention, float(special.get("nodata") or NODATA)


def _bands(files: ProductFiles, layers: dict[str, str], convention: RadiometricConvention) -> list[ProductBand]:
    found: dict[str, str] = {}
    for layer, name in layers.items():
        match = BAND.match(layer)
        if match:
            key = match[2].upper()
            band = key if key.endswith("A") else f"{int(key):02d}"
            best = found.get(f"B{band}")
            if best is None or PREFERRED.index(match[1].upper()) < PREFERRED.index(best[:3]):
                found[f"B{band}"] = f"{match[1].upper()}{name}"
    return [
        ProductBand(
            band.name, files.gdal_path(found[band.name][3:]), 1, band.common_name, band.wavelength, band.width,
            convention, float(NATIVE.get(band.name, 20)), SENTINEL_2,
        )
        for band in BANDS[SENTINEL_2]
        if band.name in found
    ]  # fmt: skip


def _quality(files: ProductFiles, layers: dict[str, str]) -> list[QualityLayer]:
    """The masks of 10 m where they are there, those of 20 m else."""
    made = []
    for name, layer in (("CLM", clm_layer), ("MG2", mg2_layer), ("FLG", flg_layer)):
        for suffix in ("R1", "R2"):
            if f"{name}_{suffix}" in layers:
                made.append(layer(files.gdal_path(layers[f"{name}_{suffix}"])))
                break
    return made
