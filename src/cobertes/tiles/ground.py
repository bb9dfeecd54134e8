"""Labelled ground: areas with their labels and split, read window by window by all that learns or judges."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.area import Area
from cobertes.geo.windows import Window
from cobertes.labels.legend import IGNORE_INDEX, Legend
from cobertes.tiles.census import read_labels
from cobertes.tiles.split import Split

Observed = tuple[NDArray[Any], NDArray[np.bool_]]
"""Values (bands, height, width) and validity (height, width) of a season, as `Scene.read` gives them."""


def seen_in_any(observed: Mapping[str, Observed]) -> NDArray[np.bool_]:
    """(height, width): where at least one season has an observation."""
    return np.any([valid for _, valid in observed.values()], axis=0)


@dataclass(frozen=True)
class Ground:
    """The areas by name, their labels on the scenes' grid, the legend and the split."""

    areas: Mapping[str, Area]
    labels: Mapping[str, Path]
    legend: Legend
    split: Split

    def read(self, area: str, window: Window) -> tuple[dict[str, Observed], NDArray[np.uint8]]:
        """What was observed in each season, and the class indices (height, width) uint8.

        The window may reach out of the area. IGNORE_INDEX stands outside, where nothing is labelled, and where
        no season was observed, whatever the label.
        """
        place = self.areas[area]
        observed = {season: scene.read(window) for season, scene in place.scenes.items()}
        y = np.full(window.shape, IGNORE_INDEX, np.uint8)
        inside = window.clip(place.shape)
        if 0 not in inside.shape:
            y[inside.within(window)] = self.legend.index_table()[read_labels(self.labels[area], inside)]
        y[~seen_in_any(observed)] = IGNORE_INDEX
        return observed, y
