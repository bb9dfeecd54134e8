"""Tile filters, in order; the first filter that excludes a tile is its reason.

    by labels               no labels -> only CLASSES -> single class        (such tiles are never read)
    by measurements         unreadable -> no observation -> few labelled pixels -> few valid pixels
                            -> cloudy -> snowy
    by location             between splits -> guard band

Filters use cached measurements, so changing one reads no scene.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.windows import Window
from cobertes.labels.legend import Legend
from cobertes.settings import TileSettings
from cobertes.tiles.split import AreaSplit, Part
from cobertes.tiles.tile_measurements import TileMeasurements

CLOUDY, SNOWY = "cloudy", "snowy"
GUARD, BETWEEN = "guard band", "between splits"

POOR = (CLOUDY, SNOWY, "unreadable")
"""Reasons that exclude the tile's interior from random crops as well."""

Reasons = NDArray[np.object_]
"""(n,) reason per tile, "" if none."""


def filter_by_labels(counts: NDArray[np.int64], settings: TileSettings, legend: Legend) -> Reasons:
    """Exclude tiles by their labels alone; ``counts`` (n, K) pixels per class."""
    present = counts > 0
    reasons = np.full(len(counts), "", object)
    dropped = np.zeros(len(legend), bool)
    dropped[[legend.index(what) for what in settings.drop_only]] = True
    unlabelled = ~present.any(axis=1)
    only = ~unlabelled & ~(present & ~dropped).any(axis=1)
    reasons[unlabelled] = "no labels"
    for number in np.flatnonzero(only):
        reasons[number] = f"only {', '.join(legend.keys[i] for i in np.flatnonzero(present[number]))}"
    if settings.drop_single_class:
        reasons[(present.sum(axis=1) == 1) & (reasons == "")] = "single class"
    return reasons


def filter_by_measurements(
    measurements: TileMeasurements, sizes: NDArray[np.int64], settings: TileSettings
) -> Reasons:
    """Exclude tiles by what was measured; ``sizes`` (n,) pixels of each tile. Tiles not read have no reason."""
    labelled = measurements.counts.sum(axis=1)
    filters = [
        ("unreadable", measurements.unreadable),
        ("no observation", labelled == 0),
        ("few labelled pixels", labelled < settings.min_labelled * sizes),
        ("few valid pixels", (measurements.valid < settings.min_valid).any(axis=1)),
    ]
    if settings.clouds == "drop":
        filters.append((CLOUDY, (measurements.cloud > settings.max_cloud).any(axis=1)))
    if settings.snow == "drop":
        filters.append((SNOWY, (measurements.snow > settings.max_snow).any(axis=1)))
    reasons = np.full(len(labelled), "", object)
    for reason, excluded in reversed(filters):
        reasons[excluded & measurements.read] = reason
    return reasons


@dataclass(frozen=True)
class SplitLocation:
    """Location of a tile: ``block`` under its centre, name of its ``split``, ``reason`` to exclude it or ""."""

    block: str
    split: str
    reason: str


def locate_in_split(window: Window, split: AreaSplit, guard: int) -> SplitLocation:
    """Locate a tile in the split; excluded if it spans parts or lies within ``guard`` pixels of another."""
    parts = {Part(letter) for letter in np.unique(split.parts_under(window))} - {Part.NONE}
    block = "{}-{}".format(*split.block_of(window))
    part = next(iter(parts)) if len(parts) == 1 else Part.NONE
    reason = ""
    if len(parts) > 1:
        reason = BETWEEN
    elif parts == {Part.GUARD} or (parts == {Part.TRAIN} and not split.allows_training(window, guard)):
        reason = GUARD
    return SplitLocation(block, part.label, reason)


def first_reasons(*filters: Sequence[str] | Reasons) -> Reasons:
    """Combine the reasons of several filters, in order: the first reason of each tile."""
    found = np.full(len(filters[0]), "", object)
    for reasons in filters:
        found = np.where(found == "", np.asarray(reasons, object), found)
    return found
