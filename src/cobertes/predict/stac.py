"""STAC item of a map (stacspec.org, version 1.1.0): grid, dates, classes, files."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from odc.geo.geobox import GeoBox
from shapely.geometry import mapping

from cobertes.atomic_io import write_json
from cobertes.geo.grid import crs_name, footprint
from cobertes.labels.legend import Legend

EXTENSIONS = [
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
]
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
TITLES = {
    "map": "Land cover",
    "confidence": "Probability of the mapped class, percent",
    "second": "Second most probable class",
    "entropy": "Entropy of the class probabilities, percent of the maximum",
    "probabilities": "Probability of each class, percent",
}
DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])?(?!\d)")


def write_item(
    path: Path,
    grid: GeoBox,
    legend: Legend,
    files: Mapping[str, Path],
    hectares: Mapping[int, float],
    engine: str,
    sources: Sequence[str],
) -> None:
    """Write the STAC item of a map.

    files     rasters by product: the assets, with relative paths if in the folder of the item
    hectares  area by legend code; left out if empty
    sources   files of the scenes: dates are taken from their names (``20180412``, ``201804``), else from their
              modification times
    """
    begin, end = _times(sources)
    same = begin == end
    properties: dict[str, Any] = {
        "datetime": begin if same else None,
        **({} if same else {"start_datetime": begin, "end_datetime": end}),
        "created": _text(datetime.now(UTC)),
        "proj:code": crs_name(grid) if grid.crs is not None and grid.crs.epsg else None,
        "proj:shape": [int(grid.height), int(grid.width)],
        "proj:transform": [*grid.affine][:6],
        "cobertes:engine": engine,
        "cobertes:legend": legend.name,
        "cobertes:sources": [Path(source).name for source in sources],
    }
    if hectares:
        properties["cobertes:hectares"] = {c.key: round(hectares[c.code], 4) for c in legend.classes}
    outline = footprint(grid, "EPSG:4326") if grid.crs is not None else None
    write_json(
        path,
        {
            "type": "Feature",
            "stac_version": "1.1.0",
            "stac_extensions": EXTENSIONS,
            "id": files["map"].stem,
            "geometry": None if outline is None else mapping(outline),
            **({} if outline is None else {"bbox": [*outline.bounds]}),
            "properties": properties,
            "links": [],
            "assets": {name: _asset(name, file, path, legend) for name, file in files.items()},
        },
    )


def _asset(name: str, file: Path, item: Path, legend: Legend) -> dict[str, Any]:
    beside = file.resolve().parent == item.resolve().parent
    asset: dict[str, Any] = {
        "href": f"./{file.name}" if beside else str(file.resolve()),
        "type": COG,
        "title": TITLES[name],
        "roles": ["data" if name == "map" else "metadata"],
        "data_type": "uint8",
        "nodata": legend.nodata if name in ("map", "second") else 255,
    }
    if name in ("map", "second"):
        asset["classification:classes"] = [
            {"value": c.code, "name": c.key, "title": c.name, "color_hint": c.colour.lstrip("#").upper()}
            for c in legend.classes
        ]
    if name == "probabilities":
        asset["bands"] = [{"name": c.key, "description": c.name} for c in legend.classes]
    return asset


def _times(sources: Sequence[str]) -> tuple[str, str]:
    """First and last date of the scenes, RFC 3339 in UTC."""
    dates = []
    for source in sources:
        for match in DATE.finditer(Path(source).stem):
            try:
                dates.append(datetime(int(match[1]), int(match[2]), int(match[3] or 1), tzinfo=UTC))
            except ValueError:  # 31 April: not a date
                continue
            break
    if not dates:
        modified = [Path(source).stat().st_mtime for source in sources if Path(source).exists()]
        dates = [datetime.fromtimestamp(time, UTC) for time in modified] or [datetime.now(UTC)]
    return _text(min(dates)), _text(max(dates))


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
