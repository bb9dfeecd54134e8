"""Confident disagreement of map and reference map: candidates for change, or for errors of the reference.

    connected_patches <-- disagreement

A patch is a connected component of pixels with one class in the labels and another in the map, above a minimum
confidence. Along every boundary map and labels differ by a pixel; so patches are ranked by the size of their
*core*, the pixels with all neighbours in the patch, times the odds c / (1 - c) of their mean confidence c: a patch
of 95 % ranks as one four times as large of 83 %.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.features import shapes
from scipy.ndimage import label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely.affinity import affine_transform
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from cobertes.accuracy.calibration import calibrated
from cobertes.accuracy.connected_patches import (
    BOTTOM,
    CONFIDENCE,
    CORE,
    KIND,
    LEFT,
    NONE,
    PIXELS,
    RIGHT,
    SEED_COL,
    SEED_ROW,
    TOP,
    PatchFollower,
    core_of,
    overlapping,
)
from cobertes.errors import GridMismatchError
from cobertes.geo.cog_writer import check_writable
from cobertes.geo.grid import describe, grid_of, pixel_hectares, same_grid
from cobertes.geo.io import open_raster, read_window
from cobertes.geo.vector import write_layers
from cobertes.geo.windows import Window
from cobertes.labels.legend import IGNORE_INDEX, Legend
from cobertes.progress import SILENT, Progress

STRIP_PIXELS = 8_000_000
"""Pixels read at once: 266 rows of a map 30,000 px wide."""

SUREST = 0.99

LAYER = "patches"


@dataclass(frozen=True)
class AuditedArea:
    """Files of an area on one grid: codes of map and labels, confidence in percent.

    table   `reliability` table to calibrate the confidence with; empty if it is calibrated already
    """

    name: str
    predicted: Path
    labels: Path
    confidence: Path
    table: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class Patch:
    """Candidate: class indices of labels and map, mean calibrated confidence (0 to 1), size, outline.

    pixels    of which ``core`` have all their neighbours in the patch
    hectares  None as for `pixel_hectares`
    outline   in the grid's coordinates
    left      column offset of the area, if areas are drawn side by side without a CRS
    """

    area: str
    reference: int
    predicted: int
    confidence: float
    core: int
    pixels: int
    hectares: float | None
    outline: BaseGeometry
    grid: GeoBox
    left: int = 0

    @property
    def score(self) -> float:
        """Rank score: core pixels times odds."""
        return self.core * odds(self.confidence)


def is_calibrated(confidence: Path) -> bool:
    """Return True if a confidence raster has the tag ``temperature``. Raises InputFileError."""
    with open_raster(confidence) as file:
        return "temperature" in file.tags()


def odds(confidence: Any) -> Any:
    """Odds of a confidence (0 to 1), capped at those of 0.99, as confidence is stored in percent."""
    return confidence / (1 - np.minimum(confidence, SUREST))


def audit_maps(
    areas: Sequence[AuditedArea],
    legend: Legend,
    *,
    min_confidence: float = 0.7,
    top: int = 1000,
    progress: Progress = SILENT,
) -> list[Patch]:
    """Find the ``top`` patches over all areas, by decreasing score.

    min_confidence   minimum calibrated confidence of a pixel, 0 to 1
    Raises InputFileError; GridMismatchError if the files of an area are on different grids.
    """
    best: list[tuple[tuple[float, int, int, int], tuple[AuditedArea, int], NDArray[np.int64]]] = []
    left = 0
    for number, area in enumerate(areas):
        for found in _complete_patches(area, legend, min_confidence, progress):
            scores = found[:, CORE] * odds(found[:, CONFIDENCE] / found[:, PIXELS] / 100)
            for score, patch in zip(scores.tolist(), found, strict=True):
                key = (score, -number, -int(patch[SEED_ROW]), -int(patch[SEED_COL]))  # unique for any strip height
                if score > 0 and (len(best) < top or key > best[0][0]):
                    entry = (key, (area, left), patch.copy())
                    (heapq.heappush if len(best) < top else heapq.heapreplace)(best, entry)
        with open_raster(area.predicted) as file:
            left += file.width + 1
    ranked = sorted(best, key=lambda one: one[0], reverse=True)
    return [_outlined(area, left, patch, legend, min_confidence) for _, (area, left), patch in ranked]


def _complete_patches(
    area: AuditedArea, legend: Legend, min_confidence: float, progress: Progress
) -> Iterator[NDArray[np.int64]]:
    """Iterate over the patches (n, FIELDS) of an area, as they are completed strip by strip."""
    with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS", GDAL_CACHEMAX=128 << 20), open_raster(area.predicted) as file:
        grid, (height, width) = grid_of(file), file.shape
        for path in (area.labels, area.confidence):
            with open_raster(path) as other:
                if not same_grid(grid, grid_of(other)):
                    raise GridMismatchError(
                        f"{path} is {describe(grid_of(other))}, but {area.predicted} is {describe(grid)}. "
                        f"Predict the whole scene that the labels lie on."
                    )
        follower = PatchFollower(width)
        rows = max(64, STRIP_PIXELS // width)
        with progress.bar(f"audit: {area.name}", height * width / 1e6, "Mpx") as advance:
            for start, stop, first, last in overlapping(height, rows):
                kinds, confidence = _kinds(area, Window(start, 0, stop - start, width), legend, min_confidence)
                inside = slice(first - start, last - start)
                core = core_of(kinds)
                yield follower.add(kinds[inside], core[inside], confidence[inside])
                advance((last - first) * width / 1e6)
        yield follower.finish()


def _kinds(
    area: AuditedArea, window: Window, legend: Legend, min_confidence: float
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Kind of each pixel (reference * K + predicted if they differ, else NONE), and calibrated confidence."""
    index = legend.index_table()
    layers = [read_window(path, window, 1) for path in (area.labels, area.predicted, area.confidence)]
    reference, predicted = index[layers[0]], index[layers[1]]
    confidence = calibrated(layers[2], [dict(one) for one in area.table]) if area.table else layers[2]
    sure = (confidence >= round(100 * min_confidence)) & (confidence <= 100)
    differs = sure & (reference != predicted) & (reference != IGNORE_INDEX) & (predicted != IGNORE_INDEX)
    kinds = np.where(differs, reference.astype(np.int32) * len(legend) + predicted, NONE).astype(np.int32)
    return kinds, confidence


def _outlined(
    area: AuditedArea, left: int, patch: NDArray[np.int64], legend: Legend, min_confidence: float
) -> Patch:
    """Create a `Patch` with its outline, which is read again."""
    with open_raster(area.predicted) as file:
        grid = grid_of(file)
    a = grid.affine
    outline = affine_transform(_outline(area, patch, legend, min_confidence), (a.a, a.b, a.d, a.e, a.c, a.f))
    reference, predicted = divmod(int(patch[KIND]), len(legend))
    hectares = pixel_hectares(grid)
    return Patch(
        area=area.name, reference=reference, predicted=predicted,
        confidence=float(patch[CONFIDENCE] / patch[PIXELS] / 100), core=int(patch[CORE]),
        pixels=int(patch[PIXELS]),
        hectares=None if hectares is None else float(patch[PIXELS]) * hectares,
        outline=outline, grid=grid, left=left,
    )  # fmt: skip


def _outline(area: AuditedArea, patch: NDArray[np.int64], legend: Legend, min_confidence: float) -> BaseGeometry:
    """Outline of a patch as x = column, y = row, from strips of its box, which may be as large as the map.

    The first pass joins components that touch from strip to strip, the second polygonises those connected to the
    seed pixel of the patch.
    """
    width = int(patch[RIGHT] - patch[LEFT])
    rows = max(64, STRIP_PIXELS // width)
    tops = range(int(patch[TOP]), int(patch[BOTTOM]), rows)

    def strip(top: int) -> NDArray[np.int32]:
        window = Window(top, int(patch[LEFT]), min(rows, int(patch[BOTTOM]) - top), width)
        kinds, _ = _kinds(area, window, legend, min_confidence)
        numbers: NDArray[np.int32] = label(kinds == patch[KIND])[0]
        return numbers

    pairs, first, seed = [], [0], 0  # numbers continue from the strip above: first[i] + 1 is the lowest of strip i
    above = np.zeros(width, np.int64)
    for top in tops:
        numbers = strip(top)
        here = np.where(numbers[0] > 0, numbers[0] + first[-1], 0)
        pairs.append(np.stack([above, here])[:, (above > 0) & (here > 0)])
        if top <= patch[SEED_ROW] < top + len(numbers):
            seed = int(numbers[patch[SEED_ROW] - top, patch[SEED_COL] - patch[LEFT]]) + first[-1]
        above = np.where(numbers[-1] > 0, numbers[-1] + first[-1], 0)
        first.append(first[-1] + int(numbers.max()))
    touching = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(touching.shape[1], bool), tuple(touching)), shape=(first[-1] + 1, first[-1] + 1))
    group = connected_components(graph, directed=False)[1]
    parts: list[BaseGeometry] = []
    for top, lowest in zip(tops, first, strict=False):
        numbers = strip(top)
        wanted = np.flatnonzero(group[lowest + 1 : lowest + 1 + int(numbers.max())] == group[seed]) + 1
        mask = np.isin(numbers, wanted)
        transform = Affine.translation(int(patch[LEFT]), top)
        parts += [shape(one) for one, _ in shapes(mask.astype(np.uint8), mask=mask, transform=transform)]
    return shapely.union_all(parts) if len(parts) > 1 else parts[0]


def write_patches(patches: Sequence[Patch], legend: Legend, out: Path, *, overwrite: bool = False) -> None:
    """Write patches for QGIS, with rank, both classes, size and confidence, in the map's class colours.

    Areas of different CRS are reprojected to EPSG:4326; if one has no CRS, all are in pixels, areas side by side
    as in the tile index. Raises OutputExistsError, StorageError.
    """
    check_writable(out, overwrite=overwrite)
    table = pd.DataFrame(
        {
            "rank": np.arange(1, len(patches) + 1),
            "area": [p.area for p in patches],
            "reference": [int(legend.classes[p.reference].code) for p in patches],
            "reference_name": [legend.classes[p.reference].name for p in patches],
            "predicted": [int(legend.classes[p.predicted].code) for p in patches],
            "predicted_name": [legend.classes[p.predicted].name for p in patches],
            "pixels": [p.pixels for p in patches],
            "hectares": [np.nan if p.hectares is None else p.hectares for p in patches],
            "confidence": [round(p.confidence, 4) for p in patches],
            "score": [round(p.score, 2) for p in patches],
        }
    )
    outlines, crs = _in_one_crs(patches)
    layer = gpd.GeoDataFrame(table, geometry=outlines, crs=crs)
    write_layers(out, {LAYER: layer}, {LAYER: _style(legend)})


def _in_one_crs(patches: Sequence[Patch]) -> tuple[list[BaseGeometry], Any]:
    """Outlines in one coordinate system, and its CRS or None."""
    systems = {str(patch.grid.crs): patch.grid.crs for patch in patches}
    if None in systems.values():
        shifted = []
        for patch in patches:
            a = ~patch.grid.affine
            in_pixels = affine_transform(patch.outline, (a.a, a.b, a.d, a.e, a.c, a.f))
            shifted.append(affine_transform(in_pixels, (1, 0, 0, -1, patch.left, 0)))  # rows go down
        return shifted, None
    if len(systems) > 1:
        reprojected = [gpd.GeoSeries([p.outline], crs=p.grid.crs.proj).to_crs(4326).iloc[0] for p in patches]
        return reprojected, 4326
    crs = next(iter(systems.values()), None)
    return [p.outline for p in patches], None if crs is None else crs.proj


def _style(legend: Legend) -> str:
    """QGIS style: each patch in the colour of its predicted class."""
    categories, symbols = "", ""
    for i, entry in enumerate(legend.classes):
        name = entry.name.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
        colour = ",".join(map(str, entry.rgb))
        categories += f'<category value="{entry.code}" label="{name}" symbol="{i}" render="true"/>'
        symbols += (
            f'<symbol name="{i}" type="fill" alpha="1"><layer class="SimpleFill" enabled="1">'
            f'<prop k="color" v="{colour},120"/><prop k="style" v="solid"/>'
            f'<prop k="outline_color" v="0,0,0,255"/><prop k="outline_width" v="0.4"/></layer></symbol>'
        )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'><qgis version=\"3.22\" "
        'styleCategories="Symbology"><renderer-v2 type="categorizedSymbol" attr="predicted">'
        f"<categories>{categories}</categories><symbols>{symbols}</symbols></renderer-v2></qgis>"
    )


def describe_patches(patches: Sequence[Patch], legend: Legend, shown: int = 10) -> str:
    """Format the first patches as a table for a terminal, with the number of patches per pair of classes."""
    if not patches:
        return "no patch: the map agrees with the reference map wherever it is sure"
    lines = [
        f"{len(patches)} patches, the strongest first",
        f"{'rank':>4}{'hectares':>10}{'sure':>7}  reference -> map",
    ]
    for rank, patch in enumerate(patches[:shown], start=1):
        size = f"{patch.hectares:.2f}" if patch.hectares is not None else f"{patch.pixels} px"
        pair = f"{legend.classes[patch.reference].name} -> {legend.classes[patch.predicted].name}"
        lines.append(f"{rank:>4}{size:>10}{patch.confidence:>7.0%}  {pair}")
    pairs = Counter((patch.reference, patch.predicted) for patch in patches)
    lines.append(f"{'patches':>21}  reference -> map")
    for (reference, predicted), number in pairs.most_common(shown):
        lines.append(f"{number:>21}  {legend.classes[reference].name} -> {legend.classes[predicted].name}")
    return "\n".join(lines)
