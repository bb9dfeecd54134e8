"""A user's own split: polygons that say which ground is learnt from and which is kept to judge."""

from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray

from cobertes.errors import InputFileError, SplitError, did_you_mean
from cobertes.geo.area import Area
from cobertes.geo.grid import crop, footprint
from cobertes.geo.vector import read_vector
from cobertes.geo.windows import Window
from cobertes.tiles.split import EMPTY, LEFT_OUT, TEST, TRAIN, VALIDATION

COLUMN = "split"
LETTERS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def read_polygons(path: Path) -> gpd.GeoDataFrame:
    """Polygons with a column ``split``. Raises InputFileError, SplitError where they are not what is needed."""
    if not path.is_file():
        raise InputFileError(f"no file of polygons at {path} (split.polygons)")
    found = read_vector(path)
    if not isinstance(found, gpd.GeoDataFrame):
        raise SplitError(f"{path} holds no polygons. Use a GeoPackage, GeoJSON or shapefile.")
    if COLUMN not in found.columns:
        columns = [str(name) for name in found.columns if name != "geometry"]
        raise SplitError(
            f"{path} has no column '{COLUMN}' that says train, validation or test; found {', '.join(columns)}."
        )
    if found.crs is None:
        raise SplitError(f"{path} has no CRS: its polygons can't be placed on the scenes.")
    for name in found[COLUMN].unique():
        if name not in LETTERS:
            raise SplitError(
                f"{path}: a polygon's {COLUMN} is '{name}', needed train, validation or test."
                f"{did_you_mean(str(name), LETTERS)}"
            )
    if "validation" not in set(found[COLUMN]) or "train" not in set(found[COLUMN]):
        raise SplitError(
            f"{path} needs polygons of both train and validation, found {', '.join(found[COLUMN].unique())}"
        )
    return found.assign(geometry=found.geometry.make_valid())


def letters_of(
    area: Area,
    edges: tuple[NDArray[np.int64], NDArray[np.int64]],
    counts: NDArray[np.int64],
    polygons: gpd.GeoDataFrame,
) -> NDArray[np.str_]:
    """A letter per block: that of the polygon over its middle.

    A block of training ground that held-out polygons touch, and ground outside all polygons, is left out.
    Where polygons overlap, test goes before validation, and that before train. Raises SplitError without CRS.
    """
    if area.grid.crs is None:
        raise SplitError(
            f"area '{area.name}' has no CRS, so polygons can't be placed on it. Split by area instead."
        )
    shapes = polygons.to_crs(area.grid.crs.proj)
    rows, cols = edges
    letters = np.full(counts.shape[:2], LEFT_OUT, "<U1")
    middle = np.meshgrid((cols[:-1] + cols[1:]) / 2, (rows[:-1] + rows[1:]) / 2)
    x, y = area.grid.affine * (middle[0].ravel(), middle[1].ravel())
    for name in ("train", "validation", "test"):
        ground = shapes[shapes[COLUMN] == name].union_all()
        shapely.prepare(ground)
        letters[shapely.contains_xy(ground, x, y).reshape(letters.shape)] = LETTERS[name]
    held_out = shapes[shapes[COLUMN] != "train"].union_all()
    shapely.prepare(held_out)
    for row, col in np.argwhere(letters == TRAIN):
        top, left = int(rows[row]), int(cols[col])
        block = Window(top, left, int(rows[row + 1]) - top, int(cols[col + 1]) - left)
        outline = footprint(crop(area.grid, block))
        if held_out.intersects(outline) and not held_out.touches(outline):
            letters[row, col] = LEFT_OUT
    letters[counts.sum(axis=2) == 0] = EMPTY
    return letters
