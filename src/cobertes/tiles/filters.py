"""Which tiles are kept: rules with reasons, in order; the first one that a tile breaks is its reason.

    by the labels alone     no labels -> only CLASSES -> single class        (such tiles are never read)
    by what was observed    unreadable -> no observation -> few labelled pixels -> few valid pixels
                            -> cloudy -> snowy
    by the place            between splits -> guard band

A rule looks at what was measured and kept, so changing one costs no reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.windows import Window
from cobertes.labels.legend import Legend
from cobertes.settings import TileSettings
from cobertes.tiles.split import EMPTY, LEFT_OUT, SPLIT_NAMES, TRAIN, AreaSplit
from cobertes.tiles.tile_measurements import TileMeasurements

CLOUDY, SNOWY = "cloudy", "snowy"
GUARD, BETWEEN = "guard band", "between splits"

POOR = (CLOUDY, SNOWY, "unreadable")
"""Reasons for which not even a random crop may touch a tile's own ground."""

Reasons = NDArray[np.object_]
"""(n,) a reason per tile, "" where there is none."""


def judge_labels(counts: NDArray[np.int64], settings: TileSettings, legend: Legend) -> Reasons:
    """What the labels alone rule out. ``counts`` (n, K) pixels per class."""
    present = counts > 0
    reasons = np.full(len(counts), "", object)
    dropped = np.zeros(len(legend), bool)
    dropped[[legend.index(what) for what in settings.drop_only]] = True
    nothing = ~present.any(axis=1)
    only = ~nothing & ~(present & ~dropped).any(axis=1)
    reasons[nothing] = "no labels"
    for number in np.flatnonzero(only):
        reasons[number] = f"only {', '.join(legend.keys[i] for i in np.flatnonzero(present[number]))}"
    if settings.drop_single_class:
        reasons[(present.sum(axis=1) == 1) & (reasons == "")] = "single class"
    return reasons


def judge_observations(seen: TileMeasurements, sizes: NDArray[np.int64], settings: TileSettings) -> Reasons:
    """What was seen rules out. ``sizes`` (n,) pixels of each tile; tiles that were not read have no reason."""
    labelled = seen.counts.sum(axis=1)
    rules = [
        ("unreadable", seen.unreadable),
        ("no observation", labelled == 0),
        ("few labelled pixels", labelled < settings.min_labelled * sizes),
        ("few valid pixels", (seen.valid < settings.min_valid).any(axis=1)),
    ]
    if settings.clouds == "drop":
        rules.append((CLOUDY, (seen.cloud > settings.max_cloud).any(axis=1)))
    if settings.snow == "drop":
        rules.append((SNOWY, (seen.snow > settings.max_snow).any(axis=1)))
    reasons = np.full(len(labelled), "", object)
    for reason, broken in reversed(rules):
        reasons[broken & seen.read] = reason
    return reasons


@dataclass(frozen=True)
class Situation:
    """Where a tile lies in the split: the ``block`` under its middle, the name of its ``split``, a ``reason``."""

    block: str
    split: str
    reason: str


def judge_place(window: Window, split: AreaSplit, guard: int) -> Situation:
    """Whether a tile lies in one split, and far enough from others."""
    letters = set(np.unique(split.touched(window)).tolist()) - {EMPTY}
    block = "{}-{}".format(*split.block_of(window))
    name = SPLIT_NAMES[next(iter(letters))] if len(letters) == 1 else SPLIT_NAMES[EMPTY]
    reason = ""
    if len(letters) > 1:
        reason = BETWEEN
    elif letters == {LEFT_OUT} or (letters == {TRAIN} and not split.allows_training(window, guard)):
        reason = GUARD
    return Situation(block, name, reason)


def first_reasons(*judged: Sequence[str] | Reasons) -> Reasons:
    """Of several judgements in order, the first reason of each tile."""
    found = np.full(len(judged[0]), "", object)
    for reasons in judged:
        found = np.where(found == "", np.asarray(reasons, object), found)
    return found
