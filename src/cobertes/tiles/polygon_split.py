"""Split given by the user: polygons with the part (train, validation or test) of each location."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray

from cobertes.errors import InputFileError, SplitError, did_you_mean
from cobertes.geo.area import Area
from cobertes.geo.grid import crop, footprint
from cobertes.geo.vector import read_polygon_layer, vector_file
from cobertes.tiles.split import AreaSplit, Part

COLUMN = "split"
PARTS = {part.label: part for part in (Part.TRAIN, Part.VALIDATION, Part.TEST)}


def read_polygons(path: Path) -> gpd.GeoDataFrame:
    """Read polygons with a column ``split``. Raises InputFileError; SplitError for a bad column, CRS or value."""
    if not vector_file(path).is_file():
        raise InputFileError(f"no file of polygons at {path} (split.polygons)")
    found = read_polygon_layer(path)
    if COLUMN not in found.columns:
        columns = [str(name) for name in found.columns if name != "geometry"]
        raise SplitError(
            f"{path} has no column '{COLUMN}' that says train, validation or test; found {', '.join(columns)}."
        )
    if found.crs is None:
        raise SplitError(f"{path} has no CRS: its polygons can't be placed on the scenes.")
    for name in found[COLUMN].unique():
        if name not in PARTS:
            raise SplitError(
                f"{path}: a polygon's {COLUMN} is '{name}', needed train, validation or test."
                f"{did_you_mean(str(name), PARTS)}"
            )
    if "validation" not in set(found[COLUMN]) or "train" not in set(found[COLUMN]):
        raise SplitError(
            f"{path} needs polygons of both train and validation, found {', '.join(found[COLUMN].unique())}"
        )
    return found.assign(geometry=found.geometry.make_valid())


def split_by_polygons(
    area: Area,
    edges: tuple[NDArray[np.int64], NDArray[np.int64]],
    counts: NDArray[np.int64],
    polygons: gpd.GeoDataFrame,
) -> AreaSplit:
    """Assign each block the part of the polygon over its centre.

    edges     borders of the block rows and columns, in pixels
    counts    (block rows, block cols, K) labelled pixels per class
    A training block that held-out polygons touch, and a block outside all polygons, is left out (`Part.GUARD`).
    In an overlap of polygons, test takes precedence over validation, and validation over train.
    Raises SplitError without a CRS.
    """
    if area.grid.crs is None:
        raise SplitError(
            f"area '{area.name}' has no CRS, so polygons can't be placed on it. Split by area instead."
        )
    shapes = polygons.to_crs(area.grid.crs.proj)
    rows, cols = edges
    parts = np.full(counts.shape[:2], Part.GUARD, "<U1")
    centre = np.meshgrid((cols[:-1] + cols[1:]) / 2, (rows[:-1] + rows[1:]) / 2)
    x, y = area.grid.affine * (centre[0].ravel(), centre[1].ravel())
    for name, part in PARTS.items():
        region = shapes[shapes[COLUMN] == name].union_all()
        shapely.prepare(region)
        parts[shapely.contains_xy(region, x, y).reshape(parts.shape)] = part
    held_out = shapes[shapes[COLUMN] != "train"].union_all()
    shapely.prepare(held_out)
    split = AreaSplit(parts, rows, cols)
    for row, col in np.argwhere(parts == Part.TRAIN):
        outline = footprint(crop(area.grid, split.block(int(row), int(col))))
        if held_out.intersects(outline) and not held_out.touches(outline):
            parts[row, col] = Part.GUARD
    parts[counts.sum(axis=2) == 0] = Part.NONE
    return split
