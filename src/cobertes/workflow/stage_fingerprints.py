"""Fingerprints of what each stage is made from: a second run repeats only the stages whose inputs changed."""

import math
from pathlib import Path
from typing import Any

from cobertes.atomic_io import read_json
from cobertes.fingerprints import fingerprint_of, stamp
from cobertes.geo.area import Area
from cobertes.geo.grid import describe
from cobertes.geo.io import source_files
from cobertes.settings import WEIGHTS
from cobertes.workflow.context import StageContext
from cobertes.workflow.project import Project

LEARNING_SECTIONS = (
    "legend", "bands", "scene-nodata", "labels", "tiles", "split", "model", "train", "augmentation",
)  # fmt: skip
"""Settings that decide what a model learns."""

NOT_LEARNT = {"labels": {"memory"}, "tiles": {"store", "store-gb"}, "train": {"device", "precision", "threads"}}
"""Keys of those sections that change how something is computed, but not the result."""

MEASURING = (
    "size", "overlap", "cloud-codes", "snow-codes", "reflectance-scale", "reflectance-offset", "unreadable",
)  # fmt: skip
"""Keys of ``[tiles]`` that decide what is measured in the scenes; the other keys only filter the measurements."""


def learning_settings(project: Project) -> dict[str, Any]:
    """Settings that decide what a model learns, as plain values."""
    settings = project.settings.model_dump(by_alias=True, mode="json")
    learning = {}
    for name in LEARNING_SECTIONS:
        section = settings[name]
        if isinstance(section, float) and not math.isfinite(section):
            section = str(section)  # JSON has no NaN, and NaN would differ from itself on the next run
        skipped = NOT_LEARNT.get(name, set())
        learning[name] = {k: v for k, v in section.items() if k not in skipped} if skipped else section
    return learning


def raster_stamps(path: str | Path) -> list[Any]:
    """Stamps of a raster and, if it is a VRT, of the files that it refers to."""
    return [stamp(file) for file in source_files(str(path))]


def scene_stamps(area: Area) -> list[Any]:
    """Stamps of every file of an area's scenes, and what their values are converted into."""
    stamps = [raster_stamps(path) for scene in area.scenes.values() for path in scene.files]
    told = [one.to_dict() for scene in area.scenes.values() for one in scene.conventions if not one.assumed]
    target = next(iter(area.scenes.values())).target_conventions
    converted = any(part.conversion for scene in area.scenes.values() for part in (scene, *scene.parts))
    return [*stamps, *told, *([one.to_dict() for one in target] if converted else [])]


def _quality_stamps(project: Project) -> list[Any]:
    """Stamps of the cloud masks that came with scenes; nothing if none did."""
    scenes = [scene for area in project.areas for scene in area.scenes.values() if scene.quality]
    return [[raster_stamps(layer.path) for scene in scenes for layer in scene.quality]] if scenes else []


def _grids(project: Project) -> list[Any]:
    return [(area.name, list(area.scenes), describe(area.grid)) for area in project.areas]


def _label_stamps(context: StageContext) -> list[Any]:
    return [stamp(context.folder.labels(area.name)) for area in context.project.areas]


def prediction_settings(project: Project) -> dict[str, Any]:
    """Settings that decide the bytes of a map."""
    settings = project.settings.predict.model_dump(by_alias=True, mode="json")
    return {key: value for key, value in settings.items() if key != "memory"}


def labels_fingerprint(context: StageContext) -> str:
    """Fingerprint of reference maps, grids, legend and label settings."""
    project, learning = context.project, learning_settings(context.project)
    tables = [project.table(area).fingerprint() for area in project.areas]
    maps = [raster_stamps(str(area.reference)) for area in project.areas]
    return fingerprint_of(
        _grids(project), maps, project.legend.to_dict(), tables, learning["labels"], learning["train"]["targets"]
    )


def measurements_fingerprint(context: StageContext) -> str:
    """Fingerprint of scenes, masks and labels of the tiles, and of how they are measured."""
    project, settings = context.project, learning_settings(context.project)
    return fingerprint_of(
        _grids(project),
        [scene_stamps(area) for area in project.areas],
        [{season: stamp(path) for season, path in area.masks.items()} for area in project.areas],
        *_quality_stamps(project),
        _label_stamps(context),
        [land.key for land in project.legend.classes],
        settings["bands"],
        settings["scene-nodata"],
        {key: settings["tiles"][key] for key in MEASURING},
    )


def tiles_fingerprint(context: StageContext) -> str:
    """Fingerprint of measurements, filters and split."""
    project, learning = context.project, learning_settings(context.project)
    polygons = project.polygons
    # the columns of a shapefile are in another file of the same name
    drawn = sorted(polygons.parent.glob(f"{polygons.stem}.*")) if polygons else []
    return fingerprint_of(
        measurements_fingerprint(context),
        [area.group for area in project.areas],
        [stamp(path) for path in drawn],
        learning["tiles"],
        learning["split"],
    )


def training_fingerprint(context: StageContext) -> str:
    """Fingerprint of the *content* of index, split and statistics: relabelling to the same end changes nothing."""
    project, folder = context.project, context.folder
    if not folder.tiles.exists():
        return ""
    index = context.index
    columns = ["area", "row", "col", "height", "width", "split", "keep", "reason"]
    rows = index[columns].to_dict("list") | {"counts": [list(map(int, c)) for c in index["counts"]]}
    learning = learning_settings(project)
    learnt = [learning[section] for section in ("bands", "model", "train", "augmentation")]
    learnt.append([(land.code, land.key) for land in project.legend.classes])
    if project.weights not in WEIGHTS:
        learnt.append([stamp(project.weights)])
    return fingerprint_of(rows, read_json(folder.statistics), read_json(folder.split), learnt)


def evaluation_fingerprint(context: StageContext) -> str:
    """Fingerprint of model, index, labels and prediction settings."""
    folder = context.folder
    how = prediction_settings(context.project)
    return fingerprint_of(stamp(folder.model), stamp(folder.tiles), _label_stamps(context), how)


def map_fingerprints(context: StageContext, model: Path, temperature: float | None) -> dict[str, str]:
    """Fingerprint of every area's map: model and temperature, scenes, and prediction settings."""
    project, learning = context.project, learning_settings(context.project)
    how = prediction_settings(project)
    common = stamp(model), temperature, learning["bands"], learning["scene-nodata"], how
    return {
        area.name: fingerprint_of(common, list(area.scenes), describe(area.grid), scene_stamps(area))
        for area in project.areas
    }


def report_fingerprint(context: StageContext) -> str:
    """Fingerprint of settings, labels, maps, scores and metrics."""
    project, folder = context.project, context.folder
    maps = [path(area.name) for area in project.areas for path in (folder.map, folder.confidence)]
    inputs = [stamp(path) for path in (folder.assessment, folder.metrics, *maps)]
    return fingerprint_of(context.settings, project.rgb, _label_stamps(context), inputs)


def trained_fingerprint(model: Path) -> str:
    """Fingerprint of the data and settings that a model was trained on, from its header."""
    from cobertes.learn.model_file import read_header

    return str(read_header(model).training.get("fingerprint", ""))
