"""Labelled ground: areas with their labels and split, read window by window by all that learns or judges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.area import Area
from cobertes.geo.scene import Observed, seen_in_any
from cobertes.geo.validity import valid_where
from cobertes.geo.windows import Window
from cobertes.labels.legend import IGNORE_INDEX, Legend
from cobertes.tiles.census import read_labels
from cobertes.tiles.split import Split
from cobertes.tiles.store import Store


@dataclass(frozen=True)
class Ground:
    """The areas by name, their labels on the scenes' grid, legend and split, and a store of both."""

    areas: Mapping[str, Area]
    labels: Mapping[str, Path]
    legend: Legend
    split: Split
    store: Store | None = None

    def read(self, area: str, window: Window) -> tuple[dict[str, Observed], NDArray[np.uint8]]:
        """What was observed in each season, by band, and the class indices (height, width) uint8.

        The window may reach out of the area. IGNORE_INDEX stands outside, where nothing is labelled, and where
        no season was observed, whatever the label.
        """
        observed = {season: scene.read(window) for season, scene in self.areas[area].scenes.items()}
        return observed, self._labels(area, window, observed)

    def read_pixels(
        self, area: str, window: Window, seasons: Sequence[str] | None = None
    ) -> tuple[dict[str, Observed], NDArray[np.uint8]]:
        """The same with each pixel's bands together, of some seasons or all; from the store where it holds it."""
        scenes = self.areas[area].scenes
        observed = {season: self._pixels(area, season, window) for season in seasons or scenes}
        return observed, self._labels(area, window, observed)

    def _pixels(self, area: str, season: str, window: Window) -> Observed:
        scene = self.areas[area].scenes[season]
        stored = None if self.store is None else self.store.read(area, season, window)
        if stored is None:
            return scene.read_pixels(window)
        return stored, valid_where(stored, scene.nodata)

    def _labels(self, area: str, window: Window, observed: Mapping[str, Observed]) -> NDArray[np.uint8]:
        stored = None if self.store is None else self.store.read(area, None, window)
        if stored is not None:
            codes = stored[..., 0]
        else:
            codes = np.full(window.shape, self.legend.nodata, np.uint8)
            inside = window.clip(self.areas[area].shape)
            if 0 not in inside.shape:
                codes[inside.within(window)] = read_labels(self.labels[area], inside)
        y: NDArray[np.uint8] = self.legend.index_table()[codes]
        y[~seen_in_any(observed)] = IGNORE_INDEX
        return y
