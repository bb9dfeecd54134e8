"""Vector files: reading of any format, and writing of GeoPackages with styles for QGIS."""

import sqlite3
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import pyogrio
from pyogrio.errors import DataSourceError

from cobertes.atomic_io import replacing
from cobertes.errors import InputFileError, StorageError


def read_vector(path: Path) -> Any:
    """First layer of a vector file as a GeoDataFrame, or as a DataFrame if it has no geometry.

    Raises InputFileError.
    """
    try:
        return gpd.read_file(path)
    except (DataSourceError, OSError, ValueError) as error:
        raise InputFileError(f"can't read {path}: {error}") from error


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
