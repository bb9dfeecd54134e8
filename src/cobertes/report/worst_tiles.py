"""Tiles with the lowest accuracy: scene, labels, map and confidence at full resolution."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.area import ONLY_SEASON, Area
from cobertes.geo.io import open_raster, read_window
from cobertes.geo.windows import Window
from cobertes.labels.legend import IGNORE_INDEX, Legend
from cobertes.report import thumbnails
from cobertes.report.thumbnails import AreaRasters, Picture

SIDE = 256
"""Maximum side of a picture in pixels: larger tiles are cropped to their centre."""


@dataclass(frozen=True)
class WorstTile:
    """Tile with its location as a text, accuracy, most frequent confusion, and pictures by title."""

    area: str
    place: str
    accuracy: float
    mistake: str
    pictures: dict[str, Picture]


def worst_tiles(
    areas: Sequence[Area],
    assessment: Mapping[str, Any],
    legend: Legend,
    rgb: Sequence[str],
    rasters: AreaRasters,
) -> list[WorstTile]:
    """Worst tiles of an assessment, if their area has labels and a map of its shape."""
    maps, confidence, labels = rasters.maps, rasters.confidence, rasters.labels
    by_name = {area.name: area for area in areas}
    held_out: dict[str, list[Window]] = {}
    for block in assessment.get("block_scores") or []:
        held_out.setdefault(block["area"], []).append(Window(*block["window"]))
    tiles = []
    for one in assessment.get("worst_tiles") or []:
        name, window = one["area"], Window(*one["window"])
        if name in by_name and name in maps and name in labels and one["accuracy"] < 1:
            files = maps[name], confidence.get(name), labels[name]
            tile = _tile(by_name[name], window, held_out.get(name, [window]), legend, rgb, *files)
            if tile:
                mistake, shown = tile
                place = f"rows {window.row} to {window.row_stop}, columns {window.col} to {window.col_stop}"
                tiles.append(WorstTile(name, place, one["accuracy"], mistake, shown))
    return tiles


def _tile(
    area: Area,
    window: Window,
    blocks: Sequence[Window],
    legend: Legend,
    rgb: Sequence[str],
    predicted: Path,
    confidence: Path | None,
    labels: Path,
) -> tuple[str, dict[str, Picture]] | None:
    with open_raster(predicted) as file:
        if file.shape != area.shape:
            return None
    if max(window.shape) > SIDE:
        top, left = window.row + (window.height - SIDE) // 2, window.col + (window.width - SIDE) // 2
        window = Window(max(top, window.row), max(left, window.col), SIDE, SIDE).intersection(window) or window
    shown = {}
    for season, scene in area.scenes.items():
        picture = thumbnails.window_picture(scene, rgb, window)
        shown["scene" if season == ONLY_SEASON else season] = picture
    theirs, ours = _read(labels, window), _read(predicted, window)
    shown["labels"] = thumbnails.codes_picture(theirs, legend)
    shown["predicted"] = thumbnails.codes_picture(ours, legend)
    if confidence is not None:
        percent = _read(confidence, window).astype(np.float32)
        percent[percent > 100] = np.nan
        shown["confidence"] = thumbnails.shares_picture(percent / 100, thumbnails.CONFIDENCE)
    held_out = np.zeros(window.shape, bool)  # a tile may extend into training blocks, which are not evaluated
    for block in blocks:
        if part := window.intersection(block):
            held_out[part.slices_in(window)] = True
    return _mistake(legend, theirs, ours, held_out), shown


def _read(path: Path, window: Window) -> NDArray[np.uint8]:
    return read_window(path, window, 1)


def _mistake(
    legend: Legend, labels: NDArray[np.uint8], predicted: NDArray[np.uint8], held_out: NDArray[np.bool_]
) -> str:
    """Most frequent confusion of two classes among the held-out pixels, as a text."""
    index = legend.index_table()
    r, p = index[labels], index[predicted]
    wrong = held_out & (r != p) & (r != IGNORE_INDEX) & (p != IGNORE_INDEX)
    if not wrong.any():
        return ""
    pairs, counts = np.unique(r[wrong].astype(int) * len(legend) + p[wrong], return_counts=True)
    reference, mapped = divmod(int(pairs[counts.argmax()]), len(legend))
    return f"{legend.classes[reference].name} mapped as {legend.classes[mapped].name}"
