"""Report of a run: one self-contained HTML file on accuracy, weaknesses and evidence of a map.

    write_report -> values per section (`report.accuracy`, `worst_tiles`, `_panels`, `_areas_table`, `_charts`,
                    `_blocks`) -> report.html.j2 with report.css and report.js: all texts and the layout

Nothing is computed twice: scores are taken from assessment.json. An unknown value (null, NaN) stays unknown and is
never shown as 0 or 1.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import cobertes
from cobertes.atomic_io import write_text
from cobertes.geo.area import ONLY_SEASON, Area
from cobertes.geo.cog_writer import check_writable
from cobertes.geo.grid import describe, pixel_hectares
from cobertes.labels.legend import Legend
from cobertes.report import thumbnails
from cobertes.report.accuracy import (
    BLOCK_COLOURS,
    area_rows,
    block_map,
    block_range,
    calibration_facts,
    class_rows,
    judgement,
    matrix_rows,
    parts,
)
from cobertes.report.charts import Chart, draw_chart
from cobertes.report.colour_blind_palette import safe_colours
from cobertes.report.html import environment, known
from cobertes.report.thumbnails import AreaRasters, Picture
from cobertes.report.worst_tiles import worst_tiles
from cobertes.tiles.split import AreaSplit
from cobertes.toml_io import toml_text

MOST_BLOCKS = 2000
"""Maximum number of blocks of an area drawn one by one."""

SHOWN_AREAS = 6
LONGEST_DOTS, LONGEST_OF_MANY = 700, 420
"""Longer side of a picture in pixels, for up to two areas and for more: the file has to fit into a mail."""


@dataclass(frozen=True)
class Panel:
    """Picture with its caption, alternative text and the name of its key (``ramp``)."""

    title: str
    picture: Picture
    alt: str
    note: str = ""
    ramp: str = "classes"


@dataclass(frozen=True)
class ShownArea:
    """Area in the report: description of its grid, pictures, and outlines of its split blocks."""

    name: str
    grid: str
    shape: tuple[int, int]
    panels: list[Panel] = field(default_factory=list)
    blocks: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class RunRecords:
    """Records of a run.

    assessment, calibration  contents of assessment.json and calibration.json; None without an evaluation
    history                  records of metrics.jsonl
    model                    properties of the model (encoder, parameters, bands, ...; any key may be missing)
    settings                 of the project
    split                    {"block": px, "guard": px, "areas": {name: one string per row of blocks}}, a letter
                             per block: t training, v validation, e test, g guard or left out, - no labels
    """

    assessment: Mapping[str, Any] | None
    calibration: Mapping[str, Any] | None
    history: Sequence[Mapping[str, Any]]
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    split: Mapping[str, Any] | None


def write_report(
    out: Path,
    *,
    title: str,
    areas: Sequence[Area],
    legend: Legend,
    rgb: Sequence[str],
    rasters: AreaRasters,
    records: RunRecords,
) -> None:
    """Write the report of a run; ``out`` is replaced once the new file is complete.

    rgb  names of the bands shown as red, green and blue
    Raises InputFileError for rasters that can't be read, StorageError if ``out`` can't be written.
    """
    check_writable(out, overwrite=True)
    assessment, split = records.assessment, records.split
    chosen = _choose_areas(areas, split, assessment)
    longest = LONGEST_DOTS if len(chosen) <= 2 else LONGEST_OF_MANY
    facts: dict[str, Any] = {
        "title": title,
        "version": cobertes.__version__,
        "written": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        "legend": legend,
        "area_count": len(areas),
        "shown": [
            ShownArea(
                name=area.name,
                grid=describe(area.grid),
                shape=area.shape,
                panels=_panels(area, legend, rgb, longest, rasters),
                blocks=_blocks(area, split),
            )
            for area in chosen
        ],
        "ramps": {
            "confidence": thumbnails.css_gradient(thumbnails.CONFIDENCE),
            "blocks": thumbnails.css_gradient(BLOCK_COLOURS),
            "disagreement": thumbnails.css_gradient(thumbnails.DISAGREEMENT),
        },
        "worst_tiles": worst_tiles(areas, assessment or {}, legend, rgb, rasters),
        "safe": dict(zip(legend.keys, safe_colours(legend.colours), strict=True)),
        "inputs": _inputs(areas),
        "charts": _charts(records.history, records.model.get("best_epoch")),
        "history": [{key: known(value) for key, value in record.items()} for record in records.history],
        "ground": _areas_table(areas, rasters.maps, legend),
        "split": _split_facts(split),
        "model": records.model,
        "settings": toml_text(records.settings),
        **_accuracy_facts(records, legend, [area.name for area in chosen]),
    }
    write_text(out, environment().get_template("report.html.j2").render(facts))


def _accuracy_facts(records: RunRecords, legend: Legend, shown: Sequence[str]) -> dict[str, Any]:
    """Values of the sections on accuracy and calibration; empty ones without an evaluation."""
    assessment = records.assessment
    return {
        "judgement": judgement(assessment, legend) if assessment else None,
        "classes": class_rows(assessment, legend) if assessment else [],
        "matrix": matrix_rows(assessment["model"]["confusion_matrix"], legend) if assessment else [],
        "calibration": calibration_facts(records.calibration) if records.calibration else None,
        "parts": parts(assessment) if assessment else [],
        "area_rows": area_rows(assessment) if assessment else [],
        "block_map": block_map(assessment, shown) if assessment else {},
        "block_range": block_range(assessment) if assessment and assessment.get("block_scores") else None,
    }


# --- learning


def _charts(history: Sequence[Mapping[str, Any]], best: Any) -> list[Chart]:
    if not history:
        return []
    epochs = [int(record["epoch"]) for record in history]

    def series(**names: str) -> dict[str, Sequence[float | None]]:
        return {name.replace("_", " "): [known(r.get(key)) for r in history] for name, key in names.items()}

    charts = [
        draw_chart("Loss", epochs, series(training="loss", validation="validation_loss"), mark=best),
        draw_chart("Validation scores", epochs, series(mIoU="miou", mean_Dice="mean_dice"), mark=best),
        draw_chart("Learning rate", epochs, series(learning_rate="learning_rate"), log=True, mark=best),
    ]
    return [chart for chart in charts if chart]


# --- areas


def _choose_areas(
    areas: Sequence[Area], split: Mapping[str, Any] | None, assessment: Mapping[str, Any] | None
) -> list[Area]:
    """All areas if they are few, else the first ones with evaluated blocks."""
    if len(areas) <= SHOWN_AREAS or not split:
        return list(areas[:SHOWN_AREAS])
    letter = "e" if assessment and assessment.get("split") == "test" else "v"
    evaluated = [area for area in areas if letter in "".join(split["areas"].get(area.name, []))]
    return (evaluated or list(areas))[:SHOWN_AREAS]


def _panels(
    area: Area,
    legend: Legend,
    rgb: Sequence[str],
    longest: int,
    rasters: AreaRasters,
) -> list[Panel]:
    """Pictures of an area: every season, then labels, map, confidence and disagreement if available."""
    maps, confidence, labels = rasters.maps, rasters.confidence, rasters.labels
    cell = thumbnails.cell_size(area.shape, longest)
    name = area.name
    panels = [
        Panel(_season_title(season), picture, f"Scene of {name}, {season}", ", ".join(rgb), "")
        for season, picture in zip(
            area.scenes, thumbnails.scene_pictures([*area.scenes.values()], rgb, cell), strict=True
        )
    ]
    for what, files in (("Labels", labels), ("Predicted map", maps)):
        if name in files:
            codes = thumbnails.read_codes(files[name], cell)
            alt = f"{what} of {name}: {_in_words(codes, legend)}"
            panels.append(Panel(what, thumbnails.codes_picture(codes, legend), alt))
    if name in confidence:
        percent = thumbnails.read_confidence(confidence[name], cell)
        mean = "none known" if np.isnan(percent).all() else f"{np.nanmean(percent):.0f}\u00a0% on average"
        picture = thumbnails.shares_picture(percent / 100, thumbnails.CONFIDENCE)
        panels.append(Panel("Confidence", picture, f"Confidence of the map of {name}: {mean}", mean, "confidence"))
    if name in maps and name in labels:
        shares = thumbnails.disagreement(maps[name], labels[name], legend, cell)
        if shares is not None:
            picture = thumbnails.shares_picture(shares, thumbnails.DISAGREEMENT)
            note = "share of pixels where map and labels differ, training ground included"
            panels.append(Panel("Disagreement", picture, f"Disagreement in {name}: {note}", note, "disagreement"))
    return panels


def _season_title(season: str) -> str:
    return "Scene" if season == ONLY_SEASON else f"Scene, {season}"


def _in_words(codes: np.ndarray[Any, np.dtype[np.uint8]], legend: Legend) -> str:
    """Three most frequent classes with their shares, as a text."""
    counts = {land.name: int((codes == land.code).sum()) for land in legend.classes}
    total = sum(counts.values())
    common = Counter({name: n for name, n in counts.items() if n}).most_common(3)
    return ", ".join(f"{name} {100 * n / total:.0f} %" for name, n in common) or "no class"


def _areas_table(areas: Sequence[Area], maps: Mapping[str, Path], legend: Legend) -> dict[str, Any] | None:
    """Pixels, share and hectares per class over all maps; hectares are None if a CRS has no true areas."""
    mapped = [area for area in areas if area.name in maps]
    if not mapped:
        return None
    pixels, hectares = np.zeros(256, np.int64), np.zeros(256)
    for area in mapped:
        counts, size = thumbnails.count_codes(maps[area.name]), pixel_hectares(area.grid)
        pixels += counts
        hectares += counts * (math.nan if size is None else size)
    total = int(pixels[legend.codes].sum())
    rows = [
        {
            "land": land,
            "pixels": int(pixels[land.code]),
            "share": int(pixels[land.code]) / total if total else None,
            "hectares": known(float(hectares[land.code])),
        }
        for land in legend.classes
    ]
    total_hectares = known(float(hectares[legend.codes].sum()))
    return {"rows": rows, "pixels": total, "hectares": total_hectares, "maps": len(mapped)}


def _blocks(area: Area, split: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rectangles of the split's blocks in pixels; the last of a row or column ends with the area.

    More than `MOST_BLOCKS` are merged into larger rectangles of one letter, so that the page stays small.
    """
    if not split:
        return []
    side, (height, width) = int(split["block"]), area.shape
    rows = split["areas"].get(area.name, [])
    if sum(map(len, rows)) > MOST_BLOCKS:
        row_edges, col_edges = (
            np.array([*range(0, cells * side, side), end], np.int64)
            for cells, end in ((len(rows), height), (len(rows[0]), width))
        )
        joined = AreaSplit(np.array([list(letters) for letters in rows]), row_edges, col_edges)
        return [
            {"letter": str(letter), "x": w.col, "y": w.row, "width": w.width, "height": w.height}
            for letter in np.unique(joined.parts)
            for w in joined.rectangles(letter)
        ]
    return [
        {
            "letter": letter,
            "x": col * side,
            "y": row * side,
            "width": width - col * side if col == len(letters) - 1 else side,
            "height": height - row * side if row == len(rows) - 1 else side,
        }
        for row, letters in enumerate(rows)
        for col, letter in enumerate(letters)
    ]


def _split_facts(split: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not split:
        return None
    counts = Counter(letter for rows in split["areas"].values() for row in rows for letter in row)
    return {"block": split["block"], "guard": split.get("guard"), "counts": counts}


def _inputs(areas: Sequence[Area]) -> list[dict[str, Any]]:
    """Input files with their sizes: scenes by season, and reference maps."""
    rows = []
    for area in areas:
        files = [(season, path) for season, scene in area.scenes.items() for path in scene.files]
        if area.reference is not None:
            files.append(("reference map", str(area.reference)))
        for what, path in files:
            size = Path(path).stat().st_size if Path(path).is_file() else None
            rows.append({"area": area.name, "what": what, "name": Path(path).name, "bytes": size})
    return rows
