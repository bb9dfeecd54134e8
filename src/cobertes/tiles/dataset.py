"""Labelled dataset: areas with their labels and split, read window by window for training and evaluation."""

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
from cobertes.geo.observation import Observation
from cobertes.geo.scene import Scene, valid_in_any
from cobertes.geo.windows import Window
from cobertes.labels.legend import IGNORE_INDEX, Legend
from cobertes.numba_cache import compiled
from cobertes.tiles.label_io import count_bands, read_labels, read_shares
from cobertes.tiles.split import Split
from cobertes.tiles.store import LABELS, SCENE, SHARES, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledDataset:
    """Areas by name, their labels on the scenes' grid, legend, split, and a tile store of both.

    ``shares`` are files by area with the share of each class, or the purity, if they are training targets;
    ``unreadable``: scene windows that can't be read raise InputFileError ("error"), or are logged and taken as not
    observed ("skip").
    """

    areas: Mapping[str, Area]
    labels: Mapping[str, Path]
    legend: Legend
    split: Split
    store: Store | None = None
    unreadable: Literal["error", "skip"] = "error"
    shares: Mapping[str, Path] = field(default_factory=dict)

    def read_chw(self, area: str, window: Window) -> tuple[dict[str, Observation], NDArray[np.uint8]]:
        """Read each season (bands, height, width) with its validity, and class indices (height, width) uint8.

        The window may extend beyond the area. IGNORE_INDEX marks pixels outside, without a label, and those that
        no season observed, whatever the label. Raises InputFileError.
        """
        observed: dict[str, Observation] = {}
        for season, scene in self.areas[area].scenes.items():
            try:
                observed[season] = scene.read_chw(window)
            except InputFileError as error:
                self._skip(error)
                observed[season] = _unobserved((len(scene.bands), *window.shape), window, scene)
        return observed, self._labels(area, window, observed)

    def read_hwc(
        self, area: str, window: Window, seasons: Sequence[str] | None = None
    ) -> tuple[dict[str, Observation], NDArray[np.uint8]]:
        """Read as `read_chw`, but (height, width, bands), of some seasons or all; from the store if possible."""
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
                return Observation(stored, valid, scene.conversion)
            pixels, observed = shown = _unobserved((*window.shape, len(scene.bands)), window, scene)
            pixels[inside.slices_in(window)], observed[inside.slices_in(window)] = stored, valid
            return shown
        try:
            return scene.read_hwc(window)
        except InputFileError as error:
            self._skip(error)
            return _unobserved((*window.shape, len(scene.bands)), window, scene)

    def _labels(self, area: str, window: Window, observed: Mapping[str, Observation]) -> NDArray[np.uint8]:
        y = np.full(window.shape, IGNORE_INDEX, np.uint8)
        inside = window.clip(self.areas[area].shape)
        if 0 not in inside.shape:
            stored = self._stored(area, LABELS, "", inside)
            codes = read_labels(self.labels[area], inside) if stored is None else stored[..., 0]
            part = inside.slices_in(window)
            _index_codes(codes, valid_in_any(observed)[part], self.legend.index_table(), y[part])
        return y

    def read_shares(self, area: str, window: Window) -> NDArray[np.uint8]:
        """Read class shares, or purity, (height, width, bands) uint8 percent; 0 if unknown or outside the area."""
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
def _index_codes(
    codes: NDArray[np.uint8], observed: NDArray[np.bool_], table: NDArray[np.uint8], out: NDArray[np.uint8]
) -> None:
    """Write the class indices of the ``observed`` pixels' ``codes`` to ``out``; all (height, width)."""
    for row in range(codes.shape[0]):
        for col in range(codes.shape[1]):
            if observed[row, col]:
                out[row, col] = table[codes[row, col]]


def _unobserved(shape: tuple[int, ...], window: Window, scene: Scene) -> Observation:
    """Zeros of ``shape``, and a validity mask (height, width) that is False everywhere."""
    return Observation(np.zeros(shape, scene.dtype), np.zeros(window.shape, bool), scene.conversion)
