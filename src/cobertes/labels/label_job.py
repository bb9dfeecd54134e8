"""Label job: one frozen record of the map, the grid, the classes and the plan of a label pass."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.geo.grid import grid_of, same_crs
from cobertes.geo.io import open_raster
from cobertes.geo.windows import Window
from cobertes.labels.legend import Legend
from cobertes.labels.map_values import MapValues, map_values
from cobertes.labels.recode import RecodeTable
from cobertes.labels.reference_map import Alignment, ReferenceReader, align

NEAREST, MAJORITY, WEIGHTED = METHODS = ("nearest", "majority", "weighted-majority")

SHARES = ("purity", "fractions", "entropy", "valid")
"""Further layers of a pass, in percent."""


@dataclass(frozen=True)
class Layout:
    """Storage of a map, as far as it decides how to read it.

    ``block`` (height, width) of its storage on the fine grid; ``itemsize`` bytes of a pixel; ``width`` of the
    map in its own pixels; ``in_strips``: blocks are as wide as the map and run along the scene's rows.
    """

    block: tuple[int, int]
    itemsize: int
    width: int
    in_strips: bool

    @classmethod
    def of(cls, dataset: rasterio.DatasetReader, itemsize: int, alignment: Alignment, grid: GeoBox) -> "Layout":
        """Layout of an open map for a scene's grid."""
        block = dataset.block_shapes[0]
        in_strips = block[1] >= dataset.width
        if alignment.origin is not None:
            return cls(block, itemsize, dataset.width, in_strips)
        rotated = not same_crs(grid_of(dataset), grid) or bool(grid.affine.b or dataset.transform.b)
        return cls((1, 1), itemsize, dataset.width, in_strips and not rotated)


@dataclass(frozen=True)
class AlignedMap:
    """Reference map with its position on a scene's grid: ``map_grid`` is its own, ``grid`` the scene's."""

    path: Path
    map_grid: GeoBox
    grid: GeoBox
    alignment: Alignment
    layout: Layout
    values: MapValues

    @classmethod
    def open(cls, path: Path, grid: GeoBox) -> Self:
        """Align a file with a grid. Raises as `align` does."""
        with open_raster(path) as dataset:
            alignment = align(path, dataset, grid)
            values = map_values(path, dataset)
            layout = Layout.of(dataset, values.pixel_bytes, alignment, grid)
            return cls(path, grid_of(dataset), grid, alignment, layout, values)


@dataclass(frozen=True)
class LabelJob:
    """Everything that a label pass needs but its outputs.

    source     the map on the scene's grid
    table      from `recode_table`: legend code of each source code
    method     method of the main labels, which purity describes
    weights    (K,) int64 for the weighted majority
    gaussian_kernel  ((2 radius + 1) * factor,) int64 from `vote_weights`, empty without smoothing
    windows    partition of the scene, read by ``workers`` threads; ``cache`` bytes are GDAL's (`memory_plan`)
    """

    source: AlignedMap
    legend: Legend
    table: RecodeTable
    method: str
    min_valid: float = 0.0
    weights: NDArray[np.int64] = field(default_factory=lambda: np.ones(0, np.int64))
    gaussian_kernel: NDArray[np.int64] = field(default_factory=lambda: np.ones(0, np.int64))
    windows: tuple[Window, ...] = ()
    workers: int = 1
    cache: int = 0

    @property
    def grid(self) -> GeoBox:
        """Grid of the labels."""
        return self.source.grid

    @property
    def alignment(self) -> Alignment:
        """Position of the map on the grid."""
        return self.source.alignment

    def open_reader(self) -> ReferenceReader:
        """Reader of the map for one thread."""
        return ReferenceReader(
            self.source.path, self.grid, self.alignment, fill_code=self.fill_code, slots=self.by_slot.slots
        )

    @cached_property
    def by_slot(self) -> RecodeTable:
        """The table for the map's type of values: by source code if these are bytes, else by slot."""
        return self.table.for_map(self.source.values, self.legend.nodata)

    @cached_property
    def recode(self) -> NDArray[np.uint8]:
        """(256,) legend code of each source code or slot; unknown ones are nodata."""
        table = self.by_slot.table
        return np.where(table >= 0, table, self.legend.nodata).astype(np.uint8)

    @cached_property
    def class_index(self) -> NDArray[np.uint8]:
        """(256,) class index of each legend code, K for nodata."""
        return np.minimum(self.legend.index_table(), len(self.legend)).astype(np.uint8)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(K,) class indexes by ascending code."""
        return np.argsort(self.legend.codes)

    @property
    def pixels(self) -> int:
        """Fine pixels of a scene pixel."""
        return self.alignment.factor**2

    @property
    def radius(self) -> int:
        """Neighbouring scene pixels on each side whose votes count."""
        return self.gaussian_kernel.size // self.alignment.factor // 2

    @property
    def fill_code(self) -> int:
        """Source code or slot for pixels outside of the map: one that means nodata."""
        by_slot = self.by_slot
        return (
            by_slot.slots.empty if by_slot.slots else int(np.flatnonzero(by_slot.table == self.legend.nodata)[0])
        )
