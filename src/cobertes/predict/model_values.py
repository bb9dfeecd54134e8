"""Scenes read in the values that a model learnt from, whatever their own radiometric convention.

Where neither the model's header nor its scenes said what their values mean, reflectance x 10,000 is assumed; a few
windows of the scene tell if its values fit the model's statistics better so, or as they are stored.
"""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cobertes.geo.radiometry import RadiometricConvention, default_convention, describe_conventions
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window
from cobertes.learn.encoding import Inputs

log = logging.getLogger(__name__)

SIDE, WINDOWS = 64, 4
"""4 x 4 windows of so many pixels, spread over the scene."""
FEWEST = 100
"""Valid pixels, at least, that tell."""


def in_model_values(scene: Scene, season: str, inputs: Inputs) -> Scene:
    """The scene with its values converted on reading into those of the model; the conversion is said once.

    Raises BandMismatchError where one can't be made from the other: reflectances and decibels.
    """
    target = inputs.conventions or (default_convention(np.dtype("uint16")),) * len(inputs.bands)
    made = scene.in_conventions(target)
    converted = [part for part in (made, *made.parts) if part.conversion is not None]
    if not converted:
        return made
    found = describe_conventions(scene.conventions, scene.band_names)
    title = scene.source or scene.files[0]
    if _is_open(target, scene.conventions) and _fits_as_stored(scene, made, season, inputs):
        log.warning(
            "%s: %s. The model does not say what its values mean, and these fit its own as they are stored: they "
            "are not converted. If they should be, give --scale and --offset", title, found,
        )  # fmt: skip
        return scene
    log.info("%s: %s, read as the model's %s", title, found, describe_conventions(target, inputs.bands))
    return made


def _is_open(target: Sequence[RadiometricConvention], found: Sequence[RadiometricConvention]) -> bool:
    """True if the model's convention is assumed, and no person says what the scene holds."""
    told = any(one.origin in ("command line", "project") for one in found)
    return any(one.assumed for one in target) and not told


def _fits_as_stored(scene: Scene, made: Scene, season: str, inputs: Inputs) -> bool:
    """True if stored values lie nearer to the model's statistics than converted ones."""
    if season not in inputs.seasons:
        return False
    stored, converted = _sample(scene), _sample(made)
    if len(stored) < FEWEST:
        return False
    number = inputs.seasons.index(season)
    mean, std = inputs.mean[number], inputs.std[number]
    return _distance(stored, mean, std) < _distance(converted, mean, std)


def _distance(values: NDArray[np.float32], mean: NDArray[np.float64], std: NDArray[np.float64]) -> float:
    """Mean over the bands of how far the median is from the model's mean, and the spread from its own."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75], axis=0)
    spread = np.maximum(high - low, 1e-9) / (1.35 * std)  # 1.35: quartiles of a normal distribution
    return float(np.mean(np.abs(middle - mean) / std + np.abs(np.log(spread))))


def _sample(scene: Scene) -> NDArray[np.float32]:
    """Valid pixels (n, bands) of windows spread over a scene."""
    height, width = scene.shape
    rows, cols = (np.linspace(0, max(n - SIDE, 0), WINDOWS, dtype=int) for n in (height, width))
    found = []
    for row in rows:
        for col in cols:
            shown = scene.read_hwc(Window(int(row), int(col), min(SIDE, height), min(SIDE, width)))
            found.append(np.asarray(shown.converted(2)[shown[1]], np.float32))
    return np.concatenate(found)
