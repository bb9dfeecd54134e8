"""Cloud mask of a product: its quality layers (SCL, QA_PIXEL, Fmask, CLM, MG2), read onto the scene's grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.geo.band_selection import BandSource
from cobertes.geo.products.record import UNKNOWN, QualityLayer, combine_covers
from cobertes.geo.raster_facts import inspect_raster
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window


@dataclass(frozen=True)
class QualityMask:
    """Quality layers of a scene; those of a mosaic's granules as well, each on its own ground."""

    layers: tuple[QualityLayer, ...]
    grid: GeoBox

    def read(self, window: Window) -> NDArray[np.uint8]:
        """(height, width) uint8 CLEAR, CLOUD, SNOW or UNKNOWN. Raises InputFileError."""
        covers = []
        for layer, (scene, layer_grid) in zip(self.layers, self._scenes, strict=True):
            values = scene.read_chw(window)[0][0]
            cover = layer.decode(values)
            cover[~_inside(layer_grid, self.grid, window)] = UNKNOWN
            covers.append(cover)
        return combine_covers(covers)

    @cached_property
    def _scenes(self) -> list[tuple[Scene, GeoBox]]:
        """The layers as scenes of one band on the grid, by nearest, and the grids of their own."""
        return [
            (
                Scene((BandSource(layer.name, layer.path, layer.index),), self.grid, facts.dtype, None, "nearest"),
                facts.grid,
            )
            for layer in self.layers
            for facts in (inspect_raster(layer.path),)
        ]


def _inside(layer: GeoBox, grid: GeoBox, window: Window) -> NDArray[np.bool_]:
    """(height, width) bool: pixels of a window that lie on the layer's own ground."""
    to_layer = ~layer.affine * grid.affine
    rows, cols = np.mgrid[window.row : window.row_stop, window.col : window.col_stop] + 0.5
    x, y = to_layer * (cols, rows)
    return np.asarray((x >= 0) & (x < layer.width) & (y >= 0) & (y < layer.height))


def quality_mask(scene: Scene) -> QualityMask | None:
    """The cloud mask that came with a scene, None if none did."""
    return QualityMask(scene.quality, scene.grid) if scene.quality else None


def names_of(layers: Sequence[QualityLayer]) -> str:
    """``SCL`` or ``CLM and MG2``, for people."""
    return " and ".join(dict.fromkeys(layer.name for layer in layers))
