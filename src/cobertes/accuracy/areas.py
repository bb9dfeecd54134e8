"""From a map to a sample for interpretation, and from the filled-in sample to areas and accuracies.

estimators, sampling <-- interpretation <-- areas
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.accuracy.estimators import SampleEstimates, allocate, estimate, sample_size
from cobertes.accuracy.interpretation import CANNOT_TELL, read_sample, write_sample
from cobertes.accuracy.sampling import CodedMap, count_codes, draw_pixels, open_map, require_grid_of, values_at
from cobertes.errors import InputFileError, SettingsError
from cobertes.progress import SILENT, Progress

EXPECTED = 0.8
"""User's accuracy that is expected of classes of which nothing better is known."""

Allocation = Literal["proportional", "equal"]


@dataclass(frozen=True)
class Drawn:
    """A sample that was drawn: by stratum code its name, pixels and points."""

    strata: dict[int, tuple[str, int, int]]
    expected_error: float

    @property
    def points(self) -> int:
        """Of all strata."""
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
) -> Drawn:
    """Draw a stratified random sample of a map's pixels and write it for interpretation.

    strata_file     raster of strata on the map's grid; by default the map's classes are the strata
    points          in all; or as many as ``standard_error`` of the overall accuracy needs
    allocation      in proportion to the strata's pixels, or equal
    minimum         points of each stratum, as far as it has as many pixels
    expected        user's accuracy by class name, for the size (0.8 where it is not named)
    Raises SettingsError, InputFileError, GridMismatchError, StorageError.
    """
    if (points is None) == (standard_error is None):
        raise SettingsError("say either how many points, or which standard error they are to reach")
    coded = open_map(map_file)
    by = open_map(strata_file) if strata_file else coded
    require_grid_of(by, coded)
    counts = count_codes(by, progress)
    codes = np.flatnonzero(counts)
    if not len(codes):
        raise InputFileError(f"{by.path} holds no class: nothing to draw from")
    classes = codes if strata_file is None else np.flatnonzero(count_codes(coded, progress))
    known = expected or {}
    shares = np.array([known.get(by.name(code), EXPECTED) for code in codes.tolist()])
    if points is None:
        points = max(sample_size(counts[codes], shares, float(standard_error or 0)), int(minimum) * len(codes))
    given = allocate(counts[codes], points, equal=allocation == "equal", minimum=minimum)
    places, stratum = draw_pixels(
        by, counts, dict(zip(codes.tolist(), given.tolist(), strict=True)), seed=seed, progress=progress
    )
    mapped = stratum if strata_file is None else values_at(coded, *_middles(coded, places))
    strata = {code: (by.name(code), int(counts[code])) for code in codes.tolist()}
    write_sample(out, coded, places, stratum, mapped, strata, classes.tolist(), seed=seed)
    weight = counts[codes] / counts[codes].sum()
    error = float(np.sqrt((weight**2 * shares * (1 - shares) / np.maximum(given, 1)).sum()))
    drawn = {code: (*strata[code], int(n)) for code, n in zip(codes.tolist(), given, strict=True)}
    return Drawn(drawn, error)


def _middles(coded: CodedMap, places: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = coded.grid.affine * (places[:, 1] + 0.5, places[:, 0] + 0.5)
    return np.asarray(x), np.asarray(y)


@dataclass(frozen=True)
class AreaReport:
    """What the interpreted points say of a map.

    codes, names  of the classes;  estimates by class index
    pixels        of the whole map;  ``mapped`` (K,) counted in the map, None where that was not read
    hectares      of a pixel, None without a projected CRS
    used          points;  ``todo`` not interpreted yet;  ``unclear`` where the interpreter could not tell
    """

    codes: list[int]
    names: list[str]
    estimates: SampleEstimates
    pixels: int
    mapped: NDArray[np.int64] | None
    hectares: float | None
    used: int
    todo: int
    unclear: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON: shares and accuracies with standard errors and 95 % intervals, areas in hectares or pixels."""
        e, unit = self.estimates, self._unit

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
                for k, (code, name) in enumerate(zip(self.codes, self.names, strict=True))
            },
            "confusion_matrix": {"rows": "reference", "columns": "predicted", "points": e.counts.tolist(),
                                 "area_proportions": e.proportions.tolist()},
        }  # fmt: skip

    @property
    def _unit(self) -> float:
        return self.hectares or 1.0

    def describe(self) -> str:
        """A table for a terminal."""
        e, what = self.estimates, "hectares" if self.hectares else "pixels"
        left = [f"{n} {why}" for n, why in ((self.todo, "not interpreted"), (self.unclear, "unclear")) if n]
        lines = [
            f"{self.used} points" + (f" ({', '.join(left)}: left out)" if left else ""),
            f"overall accuracy {e.overall.value:.3f} ± {e.overall.margin:.3f}",
            f"{'class':<28}{f'mapped, {what}':>18}{f'estimated, {what}':>30}{'user’s':>16}{'producer’s':>16}",
        ]
        for k, name in enumerate(self.names):
            counted = "-" if self.mapped is None else f"{self.mapped[k] * self._unit:,.0f}"
            scale = self.pixels * self._unit
            area = f"{e.areas[k].value * scale:,.0f} ± {e.areas[k].margin * scale:,.0f}"
            both = e.users[k], e.producers[k]
            cells = [f"{x.value:.3f} ± {x.margin:.3f}" if np.isfinite(x.value) else "-" for x in both]
            lines.append(f"{name[:27]:<28}{counted:>18}{area:>30}{cells[0]:>16}{cells[1]:>16}")
        lines.append("± is half of the 95 % interval (1.96 standard errors).")
        lines.append(ConfusionMatrix(e.counts).describe([str(code) for code in self.codes]))
        return "\n".join(lines)


def estimate_areas(sample_file: Path, map_file: Path | None = None, progress: Progress = SILENT) -> AreaReport:
    """Areas and accuracies from a filled-in sample.

    map_file   the map to judge: any on the same ground. By default the one that the sample was drawn from, by the
               classes that were noted then
    Raises InputFileError, LegendError, SettingsError where a stratum has fewer than two interpreted points.
    """
    sample = read_sample(sample_file)
    points = sample.points
    done = points["reference"].notna() & (points["reference"] != CANNOT_TELL)
    unclear = int((points["reference"] == CANNOT_TELL).sum())
    used = points[done]
    if used.empty:
        raise SettingsError(f"{sample_file}: no point has a reference class yet. Fill in the column 'reference'.")
    codes, names = list(sample.strata), [name for name, _ in sample.strata.values()]
    short = [
        f"{name} ({n})"
        for code, name in zip(codes, names, strict=True)
        if (n := int((used["stratum"] == code).sum())) < 2 and sample.strata[code][1] > 0
    ]
    if short:
        raise SettingsError(
            f"{sample_file}: too few interpreted points in {', '.join(short)}; a variance needs two per stratum"
        )
    mapped = used["mapped"].to_numpy(int)
    pixels = np.array([n for _, n in sample.strata.values()])
    counted: dict[int, int] = {}
    classes = dict(sample.classes)
    if map_file is not None:
        coded = open_map(map_file)
        places = used.geometry.centroid
        if coded.grid.crs is not None and places.crs is not None:
            places = places.to_crs(coded.grid.crs.proj)
        mapped = values_at(coded, places.x.to_numpy(), places.y.to_numpy())
        counted = {code: int(n) for code, n in enumerate(count_codes(coded, progress)) if n}
        classes |= {code: coded.name(code) for code in counted if code not in classes}
    elif set(codes) <= set(classes):
        counted = dict(zip(codes, pixels.tolist(), strict=True))
    # a map without a class at a point is wrong there: it gets a class of its own, that no reference has
    listed = [*classes, *sorted(set(mapped.tolist()) - set(classes))]
    index = {code: number for number, code in enumerate(listed)}
    found = estimate(
        pixels,
        np.array([codes.index(code) for code in used["stratum"].astype(int)]),
        np.array([index[code] for code in mapped.tolist()]),
        np.array([index[code] for code in used["reference"].astype(int)]),
        len(listed),
    )
    hectares = _hectares(used)
    return AreaReport(
        listed, [classes.get(code, "not mapped") for code in listed], found, int(pixels.sum()),
        np.array([counted.get(code, 0) for code in listed]) if counted else None, hectares,
        len(used), len(points) - int(done.sum()) - unclear, unclear,
    )  # fmt: skip


def _hectares(points: Any) -> float | None:
    """Of a pixel, from the outlines of the points; None without a projected CRS."""
    if points.crs is None or not points.crs.is_projected:
        return None
    metres = points.crs.axis_info[0].unit_conversion_factor
    return float(points.geometry.area.median() * metres**2 / 10_000)
