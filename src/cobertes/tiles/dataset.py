"""Labelled ground: areas with their labels and split, read window by window by all that learns or judges."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cobertes.errors import InputFileError
from cobertes.geo.area import Area
from cobertes.geo.nodata import valid_mask_hwc
from cobertes.geo.scene import Observation, Scene, valid_in_any
from cobertes.geo.windows import Window
from cobertes.labels.legend import IGNORE_INDEX, Legend
from cobertes.numba_cache import compiled
from cobertes.tiles.label_counts import count_bands, read_labels, read_shares
from cobertes.tiles.split import Split
from cobertes.tiles.store import LABELS, SCENE, SHARES, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledDataset:
    """The areas by name, their labels on the scenes' grid, legend and split, and a store of both.

    ``shares`` are files by area with the share of each class, or with the purity, where they are learnt from;
    ``unreadable`` says what becomes of windows that a scene can't give: InputFileError, or a warning, and nothing
    was observed there.
    """

    areas: Mapping[str, Area]
    labels: Mapping[str, Path]
    legend: Legend
    split: Split
    store: Store | None = None
    unreadable: Literal["error", "skip"] = "error"
    shares: Mapping[str, Path] = field(default_factory=dict)

    def read_chw(self, area: str, window: Window) -> tuple[dict[str, Observation], NDArray[np.uint8]]:
        """What was observed in each season, by band, and the class indices (height, width) uint8.

        The window may reach out of the area. IGNORE_INDEX stands outside, where nothing is labelled, and where
        no season was observed, whatever the label.
        """
        observed: dict[str, Observation] = {}
        for season, scene in self.areas[area].scenes.items():
            try:
                observed[season] = scene.read_chw(window)
            except InputFileError as error:
                self._skip(error)
                observed[season] = _nothing((len(scene.bands), *window.shape), window, scene)
        return observed, self._labels(area, window, observed)

    def read_hwc(
        self, area: str, window: Window, seasons: Sequence[str] | None = None
    ) -> tuple[dict[str, Observation], NDArray[np.uint8]]:
        """The same with each pixel's bands together, of some seasons or all; from the store where it holds it."""
        scenes = self.areas[area].scenes
        observed = {season: self._pixels(area, season, window) for season in seasons or scenes}
        return observed, self._labels(area, window, observed)

    def _pixels(self, area: str, season: str, window: Window) -> Observation:
        scene = self.areas[area].scenes[season]
        inside = window.clip(scene.shape)
        stored = self._stored(area, SCENE, season, inside)
        if stored is not None:
            valid = valid_mask_hwc(stored, scene.nodata)
            if inside == window:
                return stored, valid
            pixels, seen = _nothing((*window.shape, len(scene.bands)), window, scene)
            pixels[inside.slices_in(window)], seen[inside.slices_in(window)] = stored, valid
            return pixels, seen
        try:
            return scene.read_hwc(window)
        except InputFileError as error:
            self._skip(error)
            return _nothing((*window.shape, len(scene.bands)), window, scene)

    def _labels(self, area: str, window: Window, observed: Mapping[str, Observation]) -> NDArray[np.uint8]:
        y = np.full(window.shape, IGNORE_INDEX, np.uint8)
        inside = window.clip(self.areas[area].shape)
        if 0 not in inside.shape:
            stored = self._stored(area, LABELS, "", inside)
            codes = read_labels(self.labels[area], inside) if stored is None else stored[..., 0]
            part = inside.slices_in(window)
            _look_up(codes, valid_in_any(observed)[part], self.legend.index_table(), y[part])
        return y

    def read_shares(self, area: str, window: Window) -> NDArray[np.uint8]:
        """Shares of classes, or purity, (height, width, bands) uint8 percent; 0 where nothing is known."""
        inside = window.clip(self.areas[area].shape)
        if 0 in inside.shape:
            return np.zeros((*window.shape, count_bands(self.shares[area])), np.uint8)
        known = self._stored(area, SHARES, "", inside)
        known = read_shares(self.shares[area], inside) if known is None else known
        if inside == window:
            return known
        shares = np.zeros((*window.shape, known.shape[2]), np.uint8)
        shares[inside.slices_in(window)] = known
        return shares

    def _stored(self, area: str, kind: str, season: str, inside: Window) -> NDArray[Any] | None:
        if self.store is None or 0 in inside.shape:
            return None
        return self.store.read(area, kind, season, inside)

    def _skip(self, error: InputFileError) -> None:
        if self.unreadable == "error":
            raise error
        log.warning("left out: %s", error)


@compiled
def _look_up(
    codes: NDArray[np.uint8], seen: NDArray[np.bool_], table: NDArray[np.uint8], out: NDArray[np.uint8]
) -> None:
    """Class indices of ``codes`` where something was ``seen``; all (height, width)."""
    for row in range(codes.shape[0]):
        for col in range(codes.shape[1]):
            if seen[row, col]:
                out[row, col] = table[codes[row, col]]


def _nothing(shape: tuple[int, ...], window: Window, scene: Scene) -> Observation:
    """What a window shows where nothing was observed."""
    return np.zeros(shape, scene.dtype), np.zeros(window.shape, bool)
