"""Vector files: reading of any format, and writing of GeoPackages with styles for QGIS."""

import logging
import sqlite3
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
from pyogrio.errors import DataSourceError

from cobertes.atomic_io import replacing
from cobertes.errors import InputFileError, StorageError, did_you_mean

log = logging.getLogger(__name__)


LAYER = "|layername="
"""Separator of a file and one of its layers, as QGIS writes it: ``areas.gpkg|layername=final``."""


MIXED = ("Unknown", "GeometryCollection")
"""Geometry types of layers that may hold polygons among others."""


def vector_file(path: Path | str) -> Path:
    """File of a path that may name a layer."""
    return Path(str(path).partition(LAYER)[0])


def read_polygon_layer(path: Path | str) -> gpd.GeoDataFrame:
    """Polygon layer of a vector file as a GeoDataFrame; without its null and empty geometries, which are counted.

    path   a file, or ``FILE|layername=LAYER``
    Raises InputFileError for a file without polygons, and for one with several layers of them if none is named.
    """
    file, _, wanted = str(path).partition(LAYER)
    try:
        layers = {str(name): str(kind) for name, kind in pyogrio.list_layers(file)}
        name = _polygon_layer(file, layers, wanted)
        found = gpd.read_file(file, layer=name)
    except (DataSourceError, OSError, ValueError) as error:
        if isinstance(error, InputFileError):
            raise
        raise InputFileError(f"can't read {path}: {error}") from error
    useful = np.array([shape is not None and not shape.is_empty for shape in found.geometry], bool)
    if not useful.any():
        raise InputFileError(f"{path} holds no polygons: {len(found)} of {len(found)} geometries are empty.")
    if not useful.all():
        log.warning("%s: %d of %d geometries are empty and left out", path, (~useful).sum(), len(found))
    return found[useful].reset_index(drop=True)


def _polygon_layer(file: str, layers: Mapping[str, str], wanted: str) -> str:
    """Name of the wanted layer, or of the only one with polygons."""
    if wanted:
        if wanted not in layers:
            raise InputFileError(f"{file} has no layer '{wanted}'.{did_you_mean(wanted, layers)}")
        return wanted
    polygons = [
        name for name, kind in layers.items() if "Polygon" in kind or kind in ("Unknown", "GeometryCollection")
    ]
    if not polygons:
        kinds = ", ".join(f"{name} ({kind})" for name, kind in layers.items())
        raise InputFileError(
            f"{file} holds no polygons, but {kinds}. Use a GeoPackage, GeoJSON or shapefile of polygons."
        )
    if len(polygons) > 1:
        raise InputFileError(
            f"{file} has {len(polygons)} layers of polygons: {', '.join(polygons)}. Name one: "
            f"'{file}{LAYER}{polygons[0]}'"
        )
    return polygons[0]


def write_layers(path: Path, layers: Mapping[str, Any], styles: Mapping[str, str]) -> None:
    """Write data frames as layers, those without geometry as tables; ``styles`` by layer are QML for QGIS.

    Raises StorageError if the file can't be written; an older file is then unchanged.
    """
    with replacing(path) as temporary:
        package = temporary.with_suffix(".gpkg")
        package.unlink(missing_ok=True)  # left by a run that was killed; GDAL would append to it
        try:
            for name, frame in layers.items():
                kind = "Polygon" if hasattr(frame, "geometry") else None
                with warnings.catch_warnings():  # areas without CRS are supported
                    warnings.filterwarnings("ignore", "'crs' was not provided")
                    pyogrio.write_dataframe(frame, package, layer=name, driver="GPKG", geometry_type=kind)
            with sqlite3.connect(package) as database:
                _add_styles(database, styles)
            database.close()
            package.rename(temporary)
        except (sqlite3.Error, DataSourceError, RuntimeError) as error:
            raise StorageError(f"can't write {path}: {error}. Is the disk full?") from error
        finally:
            package.unlink(missing_ok=True)


def _add_styles(database: sqlite3.Connection, styles: Mapping[str, str]) -> None:
    """Write the table in which QGIS looks for the default style of a layer."""
    database.execute(
        "CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT, f_table_catalog TEXT, "
        "f_table_schema TEXT, f_table_name TEXT, f_geometry_column TEXT, styleName TEXT, styleQML TEXT, "
        "styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT, ui TEXT, "
        "update_time DATETIME DEFAULT CURRENT_TIMESTAMP)"
    )
    database.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES "
        "('layer_styles', 'attributes', 'layer_styles')"
    )
    database.executemany(
        "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, "
        "styleName, styleQML, useAsDefault, description) VALUES ('', '', ?, 'geom', 'cobertes', ?, 1, "
        "'made by cobertes')",
        list(styles.items()),
    )
