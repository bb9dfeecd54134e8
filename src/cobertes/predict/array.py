"""Prediction of arrays in memory: numpy or xarray in, class codes and probabilities out."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.engines.engine import Engine
from cobertes.errors import BandMismatchError, GridMismatchError, SettingsError
from cobertes.geo.area import ONLY_SEASON
from cobertes.geo.blending import WindowPlan
from cobertes.geo.nodata import valid_mask_chw
from cobertes.geo.observation import Observation
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window
from cobertes.labels.legend import Legend
from cobertes.learn.inference import READ_THREADS
from cobertes.predict.pipeline import WindowData, map_blocks
from cobertes.predict.predict import DEFAULT_BLEND, default_overlap, name_seasons


@dataclass(frozen=True)
class ArrayPrediction:
    """Map of an array.

    codes          (H, W) uint8 legend codes; the legend's nodata if no season has an observation
    probabilities  (K, H, W) float32, classes in the legend's order; NaN where the codes are nodata
    legend         the model's

    Both are DataArrays with the coordinates of the input if that was a DataArray, else numpy arrays.
    """

    codes: Any
    probabilities: Any
    legend: Legend


@dataclass(frozen=True)
class ArrayScene:
    """Scene in memory, with the reading side of `Scene`: values (bands, H, W), valid (H, W) bool."""

    values: NDArray[Any]
    valid: NDArray[np.bool_]
    band_names: tuple[str, ...]
    grid: GeoBox
    nodata: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)``."""
        return self.valid.shape[0], self.valid.shape[1]

    def read_hwc(self, window: Window) -> Observation:
        """Values (height, width, bands) and validity of a window; 0 and False outside the array."""
        pixels = np.zeros((*window.shape, len(self.values)), self.values.dtype)
        valid = np.zeros(window.shape, bool)
        inside = window.clip(self.shape)
        if 0 not in inside.shape:
            pixels[inside.slices_in(window)] = self.values[:, *inside.slices].transpose(1, 2, 0)
            valid[inside.slices_in(window)] = self.valid[inside.slices]
        return Observation(pixels, valid)


def predict_array(
    engine: Engine,
    seasons: Any,
    *,
    nodata: float | None = None,
    window: int | None = None,
    overlap: int | None = None,
    blend: str = DEFAULT_BLEND,
    batch_size: int = 8,
) -> ArrayPrediction:
    """Map an array in memory, window by window as `predict_map` does.

    seasons  (bands, H, W) array or DataArray in the model's band order, with values as in its training scenes
             (`Inputs.conventions`), or a mapping of them by season. A DataArray whose band coordinate is text is
             put in order by it.
    nodata   value of empty pixels; by default that of the DataArray, of the model, else 0 in all bands. NaN is
             always empty.
    window, overlap, blend, batch_size  as in `predict_map`
    Raises BandMismatchError, GridMismatchError, ModelFileError, SettingsError.
    """
    arrays = dict(seasons) if isinstance(seasons, Mapping) else {ONLY_SEASON: seasons}
    if not arrays:
        raise SettingsError("no season to predict: give an array (bands, height, width), or one by season")
    bands = engine.header.inputs.bands
    default = engine.header.scene_nodata
    found = {season: _array_scene(season, array, bands, nodata, default) for season, array in arrays.items()}
    shapes = {season: scene.shape for season, scene in found.items()}
    if len(set(shapes.values())) > 1:
        raise GridMismatchError(f"seasons of an area share a grid, but their shapes are {shapes}")
    scenes = cast(dict[str, ArrayScene], name_seasons(cast(dict[str, Scene], found), engine))
    size = window or engine.header.window
    plan = WindowPlan.of(
        next(iter(shapes.values())), size, default_overlap(size) if overlap is None else overlap, blend
    )
    codes, probabilities = _predict(engine, scenes, plan, min(batch_size, plan.count))
    template = next(iter(arrays.values()))
    if _is_data_array(template):
        return _labelled(codes, probabilities, engine.header.legend, template)
    return ArrayPrediction(codes, probabilities, engine.header.legend)


def _predict(
    engine: Engine, scenes: Mapping[str, ArrayScene], plan: WindowPlan, batch: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    shape = next(iter(scenes.values())).shape
    legend, whole = engine.header.legend, Window(0, 0, *shape)
    codes = np.full(shape, legend.nodata, np.uint8)
    probabilities = np.full((len(legend), *shape), np.nan, np.float32)

    def read(position: tuple[int, int]) -> WindowData | None:
        x, valid = engine.read(cast(Mapping[str, Scene], scenes), plan.window(*position))
        return (x, valid) if valid.any() else None

    positions = np.ndindex(len(plan.rows), len(plan.cols))
    blocks = map_blocks(
        engine.logits, plan, positions, read, batch_size=batch, threads=READ_THREADS, ahead=2 * batch
    )
    with closing(blocks):  # type: ignore[type-var]
        for block in blocks:
            if block.logits is None or block.valid is None:
                continue
            outline = plan.block(*block.position)
            part = outline.intersection(whole)
            if part is None:
                continue
            inside = part.slices_in(outline)
            logits, valid = block.logits[inside] / np.float32(engine.temperature), block.valid[inside]
            exponents = np.exp(logits - logits.max(axis=2, keepdims=True))
            shares = (exponents / exponents.sum(axis=2, keepdims=True)).transpose(2, 0, 1)
            codes[part.slices][valid] = legend.codes[logits.argmax(axis=2)][valid]
            probabilities[:, *part.slices] = np.where(valid, shares, np.float32(np.nan))
    return codes, probabilities


def _array_scene(
    season: str, array: Any, bands: tuple[str, ...], nodata: float | None, default: float | None
) -> ArrayScene:
    """Scene of an array; ``nodata`` of the caller, else as declared, else the ``default``.

    Raises BandMismatchError if its shape or its bands do not fit.
    """
    grid, declared = None, None
    if _is_data_array(array):
        array = _in_order(season, array, bands)
        declared = array.odc.nodata if hasattr(array, "odc") else array.attrs.get("_FillValue")
        grid = array.odc.geobox if hasattr(array, "odc") else None
    nodata = next((float(value) for value in (nodata, declared, default) if value is not None), None)
    values = np.asarray(array)
    if values.ndim != 3 or len(values) != len(bands):
        raise BandMismatchError(
            f"season '{season}' is an array of shape {values.shape}, needed ({len(bands)}, height, width): the "
            f"bands {', '.join(bands)}"
        )
    grid = grid or GeoBox(values.shape[1:], Affine.scale(1, -1), None)
    return ArrayScene(values, valid_mask_chw(values, nodata), bands, grid, nodata)


def _in_order(season: str, array: Any, bands: tuple[str, ...]) -> Any:
    """DataArray (bands, y, x) with the model's bands, chosen by name if its band coordinate has names."""
    if array.ndim != 3:
        raise BandMismatchError(f"season '{season}' has the dimensions {array.dims}, needed (band, y, x)")
    first = array.dims[0]
    names = [str(name) for name in array[first].values] if first in array.coords else []
    if not names or not isinstance(array[first].values[0], str):
        return array
    missing = [name for name in bands if name not in names]
    if missing:
        raise BandMismatchError(f"season '{season}' has the bands {', '.join(names)}, but no '{missing[0]}'")
    return array.sel({first: list(bands)})


def _is_data_array(array: Any) -> bool:
    """True for an xarray DataArray, without importing xarray."""
    return type(array).__module__.split(".")[0] == "xarray" and hasattr(array, "dims")


def _labelled(
    codes: NDArray[np.uint8], probabilities: NDArray[np.float32], legend: Legend, template: Any
) -> ArrayPrediction:
    """Prediction as DataArrays, with the coordinates of the template's plane."""
    import xarray as xr

    first, *plane = template.dims
    coords = {name: coord for name, coord in template.coords.items() if first not in coord.dims}
    named = {"class": legend.keys, **coords}
    mapping = {key: value for key, value in template.attrs.items() if key == "grid_mapping"}
    return ArrayPrediction(
        xr.DataArray(codes, dims=plane, coords=coords, name="class", attrs={**mapping, "nodata": legend.nodata}),
        xr.DataArray(probabilities, dims=("class", *plane), coords=named, name="probability", attrs=mapping),
        legend,
    )
