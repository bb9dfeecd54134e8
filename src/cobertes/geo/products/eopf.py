"""Sentinel-2 products of ESA's EOPF in Zarr: ``X.zarr`` folders with an array for each band and resolution.

    measurements/reflectance/r10m/b02       digital numbers, scale_factor and add_offset in the attributes
    conditions/mask/l2a_classification/r20m/scl

Attributes are read from the consolidated metadata (``.zmetadata`` of Zarr 2, ``zarr.json`` of Zarr 3). GDAL's Zarr
driver reads the pixels; it finds the pixels' place in the arrays x and y, but no CRS, which is added.
"""

import json
import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from cobertes.errors import InputFileError
from cobertes.geo.products.archive import ProductFiles
from cobertes.geo.products.band_vocabulary import BANDS, SENTINEL_2
from cobertes.geo.products.cube import require_driver
from cobertes.geo.products.record import Product, ProductBand, QualityLayer, scl_layer
from cobertes.geo.radiometry import RadiometricConvention

ARRAY = re.compile(r"^measurements/reflectance/r(10|20|60)m/(b\d{2}|b8a)$")
CLASSES = re.compile(r"^conditions/mask/l2a_classification/r(20|60)m/scl$")
CONSOLIDATED = (".zmetadata", "zarr.json")


def find_eopf(files: ProductFiles) -> Product | None:
    """The product of a ``.zarr`` folder, None if it is no EOPF product.

    Raises InputFileError for damaged metadata, and where GDAL has no Zarr driver.
    """
    name = next((name for name in CONSOLIDATED if name in files.names), None)
    if name is None:
        return None
    arrays, root = _attributes(files, name)
    found = [(match, path) for path in arrays if (match := ARRAY.match(path))]
    if not found:
        return None
    require_driver("Zarr", files.path)
    finest: dict[str, tuple[int, str]] = {}
    for match, path in found:
        band, side = match[2].upper(), int(match[1])
        if band not in finest or side < finest[band][0]:
            finest[band] = side, path
    properties = root.get("stac_discovery", {}).get("properties", {})
    bands = tuple(
        ProductBand(
            band.name, _gdal_path(files, path, arrays[path], properties), 1, band.common_name, band.wavelength,
            band.width, _convention(arrays[path]), float(side), SENTINEL_2,
        )
        for band in BANDS[SENTINEL_2]
        if band.name in finest
        for side, path in (finest[band.name],)
    )  # fmt: skip
    level = "L2A" if any("l2a" in path for path in arrays) or "L2A" in files.path.name else "L1C"
    start = str(properties.get("datetime") or properties.get("start_datetime") or "")
    return Product(
        f"Sentinel-2 {level} (EOPF Zarr)",
        str(files.path),
        bands,
        date.fromisoformat(start[:10]) if re.match(r"\d{4}-\d\d-\d\d", start) else _date_of(files.path.name),
        str(properties.get("processing:version") or ""),
        tuple(_quality(files, arrays, properties)),
        _fill(arrays[found[0][1]]),
    )


def _attributes(files: ProductFiles, name: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Attributes of every array by its path, and those of the product."""
    try:
        data = json.loads(files.read(name))
        if name == "zarr.json":
            held = data.get("consolidated_metadata", {}).get("metadata", {})
            arrays = {
                path: {"fill_value": item.get("fill_value")} | item.get("attributes", {})
                for path, item in held.items()
                if item.get("node_type") == "array"
            }
            return arrays, data.get("attributes", {})
        held = data["metadata"]
        arrays = {
            path.removesuffix("/.zarray"): {"fill_value": item.get("fill_value")}
            | held.get(path.replace("/.zarray", "/.zattrs"), {})
            for path, item in held.items()
            if path.endswith("/.zarray")
        }
        return arrays, held.get(".zattrs", {})
    except (ValueError, KeyError, AttributeError) as error:
        raise InputFileError(f"{name} in {files.path} is damaged ({error!r}): fetch the product again.") from error


def _told(attributes: Mapping[str, Any], key: str) -> Any:
    """A value of an array's attributes, or of those that EOPF keeps among them."""
    return attributes.get(key, attributes.get("_eopf_attrs", {}).get(key))


def _convention(attributes: Mapping[str, Any]) -> RadiometricConvention | None:
    scale, offset = _told(attributes, "scale_factor"), _told(attributes, "add_offset")
    if scale is None:
        return None
    return RadiometricConvention(float(scale), float(offset or 0), "reflectance", "product metadata")


def _fill(attributes: Mapping[str, Any]) -> float:
    value = _told(attributes, "fill_value")
    return 0.0 if value is None or isinstance(value, str) else float(value)


def _gdal_path(
    files: ProductFiles, array: str, attributes: Mapping[str, Any], properties: Mapping[str, Any]
) -> str:
    code = attributes.get("proj:epsg") or properties.get("proj:epsg") or properties.get("proj:code")
    code = str(code or attributes.get("proj:code") or "").rpartition(":")[2]
    dataset = f'ZARR:"{files.path.resolve()}":/{array}'
    return f"vrt://{dataset}?a_srs=EPSG:{code}" if code else dataset


def _quality(
    files: ProductFiles, arrays: Mapping[str, dict[str, Any]], properties: Mapping[str, Any]
) -> list[QualityLayer]:
    found = sorted((int(match[1]), path) for path in arrays if (match := CLASSES.match(path)))
    return [scl_layer(_gdal_path(files, path, arrays[path], properties)) for _, path in found[:1]]


def _date_of(name: str) -> date | None:
    found = re.search(r"_(\d{4})(\d{2})(\d{2})T\d{6}", name)
    return date(int(found[1]), int(found[2]), int(found[3])) if found else None
