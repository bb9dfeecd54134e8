"""Sampling of a map for interpretation, and estimation of areas and accuracies from the interpreted sample.

estimators, stratified_sampling <-- sample_file <-- area_estimation
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray

from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.atomic_io import StrPath
from cobertes.errors import InputFileError, LegendError, SettingsError
from cobertes.geo.grid import has_true_areas, pixel_hectares
from cobertes.progress import SILENT, Progress
from cobertes.survey.estimators import (
    Estimate,
    SampleEstimates,
    allocate,
    estimate,
    sample_size,
    too_few_points,
)
from cobertes.survey.sample_file import CANNOT_TELL, SamplePoints, read_sample, write_sample
from cobertes.survey.stratified_sampling import (
    ClassRaster,
    count_both,
    count_codes,
    draw_pixels,
    open_map,
    require_grid_of,
    values_at,
)

EXPECTED = 0.8
"""Default of the expected user's accuracy of a class."""

FEW = 3
"""Pixels of a stratum below which a warning is logged."""

SAME_EXTENT = 0.01
"""Maximum relative difference of the mapped area for the pixel counts of another map to be reported."""

log = logging.getLogger(__name__)

Allocation = Literal["proportional", "equal"]


@dataclass(frozen=True)
class DrawnSample:
    """Sample drawn from a map: stratum code -> (name, pixels, points)."""

    strata: dict[int, tuple[str, int, int]]
    expected_error: float

    @property
    def points(self) -> int:
        """Points of all strata."""
        return sum(points for _, _, points in self.strata.values())


def draw_sample(
    map_file: Path,
    out: Path,
    *,
    strata_file: Path | None = None,
    points: int | None = None,
    standard_error: float | None = None,
    allocation: Allocation = "proportional",
    minimum: int = 50,
    expected: Mapping[str, float] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> DrawnSample:
    """Draw a stratified random sample of the pixels of a map and write it for interpretation.

    strata_file     raster of strata on the map's grid; default: the map's classes
    points          total number; or as many as a ``standard_error`` of the overall accuracy requires
    allocation      proportional to the pixels of the strata, or equal
    minimum         points of each stratum, if it has as many pixels
    expected        user's accuracy by class name, for the sample size (default 0.8)
    Raises SettingsError, InputFileError, GridMismatchError, StorageError.
    """
    if (points is None) == (standard_error is None):
        raise SettingsError("say either how many points, or which standard error they are to reach")
    class_map = open_map(map_file)
    strata_map = open_map(strata_file) if strata_file else class_map
    require_grid_of(strata_map, class_map)
    counts, in_map = _count(class_map, strata_map if strata_file else None, progress)
    codes = np.flatnonzero(counts)
    if not len(codes):
        raise InputFileError(f"{strata_map.path} holds no class: nothing to draw from")
    for code in codes[counts[codes] < FEW].tolist():
        log.warning(
            "stratum '%s' has %d pixel%s: where the interpreter can't tell what is there, no estimate is possible",
            strata_map.name(code), counts[code], "s" if counts[code] > 1 else "",
        )  # fmt: skip
    known = expected or {}
    shares = np.array([known.get(strata_map.name(code), EXPECTED) for code in codes.tolist()])
    if points is None:
        points = max(sample_size(counts[codes], shares, float(standard_error or 0)), int(minimum) * len(codes))
    allocated = allocate(counts[codes], points, equal=allocation == "equal", minimum=minimum)
    positions, stratum = draw_pixels(
        strata_map,
        counts,
        dict(zip(codes.tolist(), allocated.tolist(), strict=True)),
        seed=seed,
        progress=progress,
    )
    mapped = stratum if strata_file is None else values_at(class_map, *_centres(class_map, positions))
    strata = {code: (strata_map.name(code), int(counts[code])) for code in codes.tolist()}
    # a class that the map never shows may occur: the interpreter can choose every class with a name
    offered = sorted(({*class_map.names} - {class_map.nodata}) | {*np.flatnonzero(in_map).tolist()})
    classes = {code: int(in_map[code]) for code in offered}
    write_sample(out, class_map, SamplePoints(positions, stratum, mapped), strata, classes, seed=seed)
    weight = counts[codes] / counts[codes].sum()
    error = float(np.sqrt((weight**2 * shares * (1 - shares) / np.maximum(allocated, 1)).sum()))
    drawn = {code: (*strata[code], int(n)) for code, n in zip(codes.tolist(), allocated, strict=True)}
    return DrawnSample(drawn, error)


def _count(
    class_map: ClassRaster, strata: ClassRaster | None, progress: Progress
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the pixels (256,) of every stratum, and of every map class within the strata; 0 for nodata."""
    if strata is None:
        counts = count_codes(class_map, progress)
        return counts, counts
    both = count_both(class_map, strata, progress)
    none, outside = (
        np.zeros(256, bool) if one.nodata is None else np.arange(256) == one.nodata for one in (class_map, strata)
    )
    empty, lost = int(both[none][:, ~outside].sum()), int(both[~none][:, outside].sum())
    if empty:
        log.warning(
            "%s pixels of the strata have no class in %s: they are drawn from, and count as wrongly mapped",
            f"{empty:,}", class_map.path,
        )  # fmt: skip
    if lost:
        log.warning(
            "%s mapped pixels of %s lie in no stratum: areas and accuracies are those of the strata alone",
            f"{lost:,}", class_map.path,
        )  # fmt: skip
    both[:, outside] = 0
    return both.sum(axis=0), np.where(none, 0, both.sum(axis=1))


def _centres(
    class_map: ClassRaster, positions: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = class_map.grid.affine * (positions[:, 1] + 0.5, positions[:, 0] + 0.5)
    return np.asarray(x), np.asarray(y)


@dataclass(frozen=True)
class AreaReport:
    """Areas and accuracies of a map, estimated from interpreted points.

    codes, names  class codes and names;  ``estimates`` by class index
    pixels        number of pixels in all strata
    mapped        (K,) mapped area within the strata, in pixels of the sample; None if unknown
    hectares      area of a pixel, None as for `pixel_hectares`
    used          number of points;  ``todo`` not interpreted yet;  ``unclear`` without a decision
    """

    codes: list[int]
    names: list[str]
    estimates: SampleEstimates
    pixels: int
    mapped: NDArray[np.float64] | None
    hectares: float | None
    used: int
    todo: int
    unclear: int

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON: areas in hectares or pixels and accuracies, with standard errors and 95 % intervals."""
        e, unit = self.estimates, self._unit
        keys = [
            name if self.names.count(name) == 1 else f"{name} (code {code})"
            for code, name in zip(self.codes, self.names, strict=True)
        ]

        def one(value: Any, scale: float = 1.0, most: float = 1.0) -> dict[str, Any]:
            ends = value.interval(most)
            return {
                "value": value.value * scale, "standard_error": value.error * scale,
                "interval": [ends[0] * scale, ends[1] * scale],
            }  # fmt: skip

        return {
            "points": self.used, "not_interpreted": self.todo, "cannot_tell": self.unclear,
            "unit": "hectares" if self.hectares else "pixels",
            "overall_accuracy": one(e.overall),
            "classes": {
                name: {
                    "code": code, "area": one(e.areas[k], self.pixels * unit),
                    "mapped_area": None if self.mapped is None else float(self.mapped[k] * unit),
                    "users_accuracy": one(e.users[k]), "producers_accuracy": one(e.producers[k]),
                }
                for k, (code, name) in enumerate(zip(self.codes, keys, strict=True))
            },
            "confusion_matrix": {"rows": "reference", "columns": "predicted", "points": e.counts.tolist(),
                                 "area_proportions": e.proportions.tolist()},
        }  # fmt: skip

    @property
    def _unit(self) -> float:
        return self.hectares or 1.0

    def describe(self) -> str:
        """Format as a table for a terminal."""
        e, what = self.estimates, "hectares" if self.hectares else "pixels"
        left = [f"{n} {why}" for n, why in ((self.todo, "not interpreted"), (self.unclear, "unclear")) if n]
        lines = [
            f"{self.used} points" + (f" ({', '.join(left)}: left out)" if left else ""),
            f"overall accuracy {_cell(e.overall)}",
            f"{'class':<28}{f'mapped, {what}':>18}{f'estimated, {what}':>30}{'user’s':>16}{'producer’s':>16}",
        ]
        for k, name in enumerate(self.names):
            counted = "-" if self.mapped is None else f"{self.mapped[k] * self._unit:,.0f}"
            scale = self.pixels * self._unit
            area, cells = _cell(e.areas[k], scale, ",.0f"), [_cell(x) for x in (e.users[k], e.producers[k])]
            lines.append(f"{name[:27]:<28}{counted:>18}{area:>30}{cells[0]:>16}{cells[1]:>16}")
        lines.append(
            "± is half of the 95 % interval (1.96 standard errors); its ends stand where all points agree."
        )
        lines.append(ConfusionMatrix(e.counts).describe([str(code) for code in self.codes]))
        return "\n".join(lines)


def _cell(x: Estimate, scale: float = 1.0, form: str = ".3f") -> str:
    if not np.isfinite(x.value):
        return "-"
    if x.points is None:
        return f"{x.value * scale:{form}} ± {x.margin * scale:{form}}"
    low, high = x.interval(1.0)
    return f"{low * scale:{form}} to {high * scale:{form}}"


def estimate_areas(
    sample_file: StrPath, map_file: StrPath | None = None, progress: Progress = SILENT
) -> AreaReport:
    """Estimate areas and accuracies from an interpreted sample.

    map_file   map to evaluate, of the same extent; default: the map of the sample, by the classes in its file
    Raises InputFileError, LegendError; SettingsError for a stratum with too few interpreted points.
    """
    sample_file, map_file = Path(sample_file), None if map_file is None else Path(map_file)
    sample = read_sample(sample_file)
    points = sample.points
    done = points["reference"].notna() & (points["reference"] != CANNOT_TELL)
    unclear = int((points["reference"] == CANNOT_TELL).sum())
    used = points[done]
    if used.empty:
        raise SettingsError(f"{sample_file}: no point has a reference class yet. Fill in the column 'reference'.")
    codes, names = list(sample.strata), [name for name, _ in sample.strata.values()]
    pixels = np.array([n for _, n in sample.strata.values()])
    seen = np.array([int((used["stratum"] == code).sum()) for code in codes])
    short = [f"{names[i]} ({seen[i]})" for i in np.flatnonzero(too_few_points(pixels, seen))]
    if short:
        raise SettingsError(
            f"{sample_file}: too few interpreted points in {', '.join(short)}; a variance needs two per stratum"
        )
    mapped = used["mapped"].to_numpy(int)
    hectares = _hectares(used)
    classes = dict(sample.classes)
    counted: dict[int, float] | None = {code: float(n) for code, n in sample.mapped.items()}
    if map_file is not None:
        class_map = open_map(map_file)
        _require_classes(class_map, classes, sample_file)
        # pixel centres: the distortion of a 10 m square in degrees is less than rounding
        centres = gpd.GeoSeries(shapely.centroid(used.geometry.to_numpy()), crs=used.crs)
        if class_map.grid.crs is not None and centres.crs is not None:
            centres = centres.to_crs(class_map.grid.crs.proj)
        mapped = values_at(class_map, centres.x.to_numpy(), centres.y.to_numpy())
        found_codes = count_codes(class_map, progress)
        classes |= {
            code: class_map.name(code) for code in np.flatnonzero(found_codes).tolist() if code not in classes
        }
        counted = _scaled_counts(class_map, found_codes, int(pixels.sum()), hectares)
    shown = {*mapped.tolist(), *used["reference"].astype(int), *(code for code, n in (counted or {}).items() if n)}
    # a point that the map does not classify is wrong: it gets a class of its own, that no reference has
    listed = [code for code in classes if code in shown] + sorted(shown - set(classes))
    index = {code: number for number, code in enumerate(listed)}
    found = estimate(
        pixels,
        np.array([codes.index(code) for code in used["stratum"].astype(int)]),
        np.array([index[code] for code in mapped.tolist()]),
        np.array([index[code] for code in used["reference"].astype(int)]),
        len(listed),
    )
    for k, code in enumerate(listed):
        if code not in classes:  # every pixel has a class in reality
            found.areas[k] = Estimate(0.0, 0.0)
    return AreaReport(
        listed, [classes.get(code, "not mapped") for code in listed], found, int(pixels.sum()),
        None if counted is None else np.array([counted.get(code, 0.0) for code in listed]), hectares,
        len(used), len(points) - int(done.sum()) - unclear, unclear,
    )  # fmt: skip


def _scaled_counts(
    class_map: ClassRaster, counts: NDArray[np.int64], pixels: int, hectares: float | None
) -> dict[int, float] | None:
    """Mapped area by class of another map, in pixels of the sample; None if its total differs.

    pixels, hectares   number of pixels in all strata, and area of one pixel
    """
    own = pixel_hectares(class_map.grid)
    if (own is None) != (hectares is None):
        return None
    scale = 1.0 if own is None or hectares is None else own / hectares
    if abs(counts.sum() * scale / pixels - 1) > SAME_EXTENT:
        log.warning(
            "%s maps %.3g times the ground that the sample was drawn from: its mapped areas are left out",
            class_map.path, counts.sum() * scale / pixels,
        )  # fmt: skip
        return None
    return {code: float(n * scale) for code, n in enumerate(counts.tolist()) if n}


def _require_classes(class_map: ClassRaster, classes: Mapping[int, str], sample_file: Path) -> None:
    """Raise LegendError if a code of the map means another class in the sample."""
    for code in sorted({*class_map.names} & {*classes}):
        ours, theirs = classes[code], class_map.names[code]
        if ours != f"code {code}" and ours.strip().casefold() != theirs.strip().casefold():
            raise LegendError(
                f"{class_map.path}: code {code} is '{theirs}', but '{ours}' in {sample_file}. A sample judges "
                f"maps of its own legend: bring it to the sample's codes first."
            )


def _hectares(points: Any) -> float | None:
    """Area of a pixel in hectares, from the outlines of the points; None as for `pixel_hectares`."""
    if points.crs is None or not points.crs.is_projected:
        return None
    metres = points.crs.axis_info[0].unit_conversion_factor
    total, outlines = points.geometry.area.sum() * metres**2, points.geometry.to_crs("EPSG:4326")
    if not has_true_areas(total, outlines, points.crs.name):
        return None
    return float(points.geometry.area.median() * metres**2 / 10_000)
