"""Project: ``project.toml`` read, validated and resolved into areas, scenes and a legend.

The files are checked here, before any stage runs: seasons, bands and grids that do not fit stop the run at once.
Their paths are resolved by `cobertes.workflow.scene_paths`.
"""

import logging
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cobertes.errors import BandMismatchError, InputFileError, SettingsError, did_you_mean
from cobertes.geo.area import Area
from cobertes.geo.bands import default_rgb
from cobertes.geo.grid import warn_without_crs
from cobertes.geo.products.band_vocabulary import BandLabel
from cobertes.geo.scene import Scene, open_scene
from cobertes.labels.crosswalk import load_crosswalk
from cobertes.labels.legend import Legend, load_legend
from cobertes.labels.recode import RecodeTable, recode_map
from cobertes.settings import SCRATCH, WEIGHTS, AreaSettings, Settings, with_defaults
from cobertes.tiles.split import read_groups, require_known_groups
from cobertes.workflow.scene_paths import file_name, find_areas, resolve
from cobertes.workflow.scene_values import in_one_convention, tell_values

log = logging.getLogger(__name__)

BESIDE = ("confidence", "purity", "fractions")
"""Rasters that a run writes beside the map and the labels of an area, as ``AREA.confidence.tif``."""


@dataclass(frozen=True)
class Project:
    """Project ready to run.

    ``path`` is the TOML file, ``areas`` hold opened scenes, ``source_legend`` is the whole legend (None if the
    project only predicts).
    """

    path: Path
    settings: Settings
    areas: tuple[Area, ...]
    source_legend: Legend | None

    @property
    def folder(self) -> Path:
        """Folder that paths are relative to."""
        return self.path.parent

    @property
    def predict_only(self) -> bool:
        """True if the project names a trained model, so that nothing is learnt."""
        return self.settings.predict.model is not None

    @property
    def legend(self) -> Legend:
        """Classes that are learnt and mapped: the legend less ``labels.as-nodata``."""
        if self.source_legend is None:
            raise SettingsError(f"{self.path}: a project that only predicts has the model's legend")
        return self.source_legend.without(self.settings.labels.as_nodata)

    @property
    def polygons(self) -> Path | None:
        """Polygons of a user's own split, if there are any."""
        split = self.settings.split
        return resolve(split.polygons, self.folder) if split.by == "polygons" and split.polygons else None

    @property
    def weights(self) -> str:
        """Initial weights of a backbone: a name, or the path of a file."""
        named = self.settings.model.weights
        return named if named in WEIGHTS else str(resolve(named, self.folder))

    @property
    def seasons(self) -> tuple[str, ...]:
        """Seasons in the order of the channels."""
        return tuple(self.areas[0].scenes)

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands in the order of the channels."""
        return next(iter(self.areas[0].scenes.values())).band_names

    @property
    def rgb(self) -> list[str]:
        """Bands shown as red, green and blue."""
        return self.settings.rgb or default_rgb(self.bands)

    def table(self, area: Area) -> RecodeTable:
        """Recode table of the area's reference map."""
        if self.source_legend is None or area.reference is None:
            raise SettingsError(f"area '{area.name}' has no reference map")
        labels = self.settings.labels
        crosswalk = load_crosswalk(area.crosswalk, self.folder) if area.crosswalk else None
        return recode_map(
            area.reference,
            self.source_legend,
            crosswalk=crosswalk,
            codes=labels.codes,
            as_nodata=labels.as_nodata,
        )


def load_project(path: str | PathLike[str], relative_to: Path | None = None) -> Project:
    """Read, validate and resolve a project file, and inspect every file that it names.

    relative_to   the file that its paths are relative to, if that is another one
    Raises SettingsError for the file itself; InputFileError, BandMismatchError, GridMismatchError and
    LegendError for what it names.
    """
    path = Path(path)
    settings = read_settings(path)
    path = relative_to or path
    folder = path.parent
    legend = load_legend(settings.legend, folder) if settings.legend else None
    if legend is None and settings.predict.model is None:
        raise SettingsError(
            f"{path}: `legend` is missing. Name one of the packaged legends (`cobertes legends`) or a TOML file, "
            f"or a trained model in predict.model to predict only."
        )
    if legend is not None:
        for what in [*settings.labels.as_nodata, *settings.tiles.drop_only]:
            legend.find(what)
        if isinstance(settings.train.class_weights, dict):
            learnt = legend.without(settings.labels.as_nodata)
            for what in settings.train.class_weights:
                learnt.find(what)
    _require_overlaps(settings, path)
    _require_fitting_network(settings, path)
    _require_int8_runs(settings, path)
    if settings.model.weights not in WEIGHTS and not resolve(settings.model.weights, folder).is_file():
        near = did_you_mean(settings.model.weights, WEIGHTS)
        raise InputFileError(
            f"{path}: no weights at {resolve(settings.model.weights, folder)} (model.weights). Name a file, or "
            f"one of {', '.join(WEIGHTS)}.{near if 'Did' in near else ''}"
        )
    if settings.split.validation + settings.split.test >= 1:
        raise SettingsError(
            f"{path}: split.validation = {settings.split.validation:g} and split.test = {settings.split.test:g} "
            f"leave nothing to train on: together they must be less than 1."
        )
    if settings.split.by == "polygons" and settings.split.polygons is None:
        raise SettingsError(
            f'{path}: split.by = "polygons" needs split.polygons, a vector file with a column `split`'
        )
    areas = _open_areas(settings, path)
    _require_same_seasons(areas)
    if settings.predict.model is None:
        for area in areas:
            if area.reference is None:
                raise SettingsError(
                    f"{path}: area '{area.name}' has no reference map to learn from. Add `reference`, or name a "
                    f"trained model in predict.model to predict only."
                )
    _require_shown_bands(settings.rgb, areas[0], path)
    warn_without_crs(area.name for area in areas if area.grid.crs is None)
    return Project(path, settings, tuple(areas), legend)


def read_settings(path: Path) -> Settings:
    """Parse and validate a project file. Raises InputFileError, SettingsError naming every key that is wrong."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputFileError(
            f"no project file at {path}. `cobertes init SCENE --reference MAP` writes one."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"can't read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise SettingsError(f"{path}: {'; '.join(explain(error))}") from error


# --- validation errors in words


KINDS = re.compile(r"[\[\]]|^(str|dict|(constrained-)?(int|float))$")
"""Parts of an error's location in the settings that are kinds of values, not keys."""


def explain(error: ValidationError) -> list[str]:
    """Mistakes in words, each once: the key, what is wrong, what was found."""
    lines: dict[str, str] = {}
    for item in error.errors():
        where = [part for part in item["loc"] if not (isinstance(part, str) and KINDS.search(part))]
        key = ".".join(str(part) for part in where)
        if item["type"] == "extra_forbidden":
            lines[key] = f"unknown key '{key}'.{did_you_mean(str(where[-1]), _keys_beside(where[:-1]))}"
        elif item["type"] == "missing":
            lines[key] = f"'{key}' is missing"
        else:
            needed = item["msg"].lower()
            if key in lines:  # of another kind that the value may have
                needed = f"{lines[key].rpartition(', found ')[0]} or {needed.removeprefix('input should be ')}"
            else:
                needed = f"'{key}': {needed}"
            lines[key] = f"{needed}, found {item['input']!r}"
    return list(lines.values())


def _keys_beside(where: Sequence[int | str]) -> list[str]:
    """Keys of the table at ``where``."""
    section: Any = Settings
    for part in where:
        if isinstance(part, int):
            continue
        field = next((f for n, f in section.model_fields.items() if part in (f.alias, n)), None)
        section = AreaSettings if part == "area" else getattr(field, "annotation", None)
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
    return [field.alias or name for name, field in section.model_fields.items()]


# --- areas and their files


def _open_areas(settings: Settings, path: Path) -> list[Area]:
    found = [one for area in settings.area for one in find_areas(area, path)]
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise SettingsError(f"{path}: two areas are called '{twice[0]}'. Give each [[area]] a `name` of its own.")
    _require_files_of_their_own(names, path)
    groups = _groups(settings, path, names)
    bands: list[str | BandLabel] = [*settings.bands] or _model_bands(settings, path)
    opened = []
    for one in found:
        scenes: dict[str, Scene] = {}
        for season, files in one.scenes.items():
            scenes[season] = open_scene(files, bands, settings.scene_nodata)
            bands = bands or list(scenes[season].labels)
        opened.append((one.name, tell_values(scenes, one.scale, one.offset, "project")))
    return [
        Area(one.name, scenes, one.reference, one.crosswalk, groups.get(one.name), one.masks)
        for one, scenes in zip(found, in_one_convention(opened), strict=True)
    ]


def _model_bands(settings: Settings, path: Path) -> list[str | BandLabel]:
    """Bands of the model that a project predicts with; empty if it trains its own."""
    named = settings.predict.model
    if named is None or not resolve(named, path.parent).exists():  # the stage itself says what is missing
        return []
    from cobertes.learn.model_file import read_header

    return list(read_header(resolve(named, path.parent)).inputs.labels)


def _require_files_of_their_own(names: Sequence[str], path: Path) -> None:
    """Refuse an area whose outputs would collide with another's: ``x``, ``x.confidence``."""
    for name in names:
        stem, _, beside = name.rpartition(".")
        if beside in BESIDE and stem in names:
            raise SettingsError(
                f"{path}: the areas '{stem}' and '{name}' would both write {name}.tif. Rename one of them."
            )


def _groups(settings: Settings, path: Path, names: Sequence[str]) -> dict[str, str]:
    if settings.split.by != "group":
        return {}
    if settings.split.groups is None:
        raise SettingsError(f'{path}: split.by = "group" needs split.groups, a CSV of area and group')
    file = resolve(settings.split.groups, path.parent)
    groups = {file_name(area): group for area, group in read_groups(file).items()}  # as areas are called
    require_known_groups(names, groups, file)
    return groups


def _require_same_seasons(areas: Sequence[Area]) -> None:
    first = areas[0]
    for area in areas:
        if list(area.scenes) != list(first.scenes):
            raise SettingsError(
                f"area '{area.name}' has the seasons {', '.join(area.scenes)}, but '{first.name}' has "
                f"{', '.join(first.scenes)}: all areas need the same seasons, in the same order."
            )


def _require_overlaps(settings: Settings, path: Path) -> None:
    """Refuse overlaps that prediction would refuse after hours of training."""
    trained = with_defaults(settings.train, settings.model.encoder, settings.tiles.size)
    window = settings.predict.window or max(trained.windows)
    for key, overlap, size in (
        ("tiles.overlap", settings.tiles.overlap, settings.tiles.size),
        ("predict.overlap", settings.predict.overlap, window),
    ):
        known = key != "predict.overlap" or settings.predict.window or settings.predict.model is None
        if overlap is not None and overlap >= size and known:
            raise SettingsError(f"{path}: {key} = {overlap} px must be smaller than the window of {size} px")


def _require_fitting_network(settings: Settings, path: Path) -> None:
    """Refuse networks that can't be built or frozen, before training."""
    model, unet = settings.model, settings.model.architecture == "unet"
    if not unet and model.encoder == SCRATCH:
        raise SettingsError(
            f"{path}: model.architecture = {model.architecture!r} needs a timm backbone: set model.encoder, for "
            f"example to resnet50"
        )
    if not unet and model.seasons == "shared":
        raise SettingsError(
            f'{path}: model.seasons = "shared" goes with model.architecture = "unet", not {model.architecture!r}'
        )
    if settings.train.freeze_encoder and (model.encoder == SCRATCH or model.weights == "random"):
        raise SettingsError(
            f"{path}: train.freeze-encoder keeps a backbone as it is, but one with random weights has learnt "
            f"nothing yet. Set it to 0, or take a backbone with pretrained weights (model.encoder, model.weights)."
        )


def _require_int8_runs(settings: Settings, path: Path) -> None:
    """Refuse settings that int8 does not support, before training."""
    predict = settings.predict
    if predict.precision != "int8":
        return
    if predict.engine not in ("auto", "openvino") or predict.device not in ("auto", "cpu"):
        raise SettingsError(
            f'{path}: predict.precision = "int8" runs in OpenVINO on the processor, not with engine '
            f'"{predict.engine}" and device "{predict.device}". Leave both out, or use another precision.'
        )
    if predict.window is not None:
        raise SettingsError(
            f'{path}: predict.precision = "int8" is for windows of the model\'s own size. Leave predict.window '
            f"out, or use another precision."
        )


def _require_shown_bands(rgb: Sequence[str], area: Area, path: Path) -> None:
    """Refuse bands that the report, the last stage, could not show."""
    bands = next(iter(area.scenes.values())).band_names
    if rgb and len(rgb) != 3:
        raise SettingsError(f"{path}: `rgb` names {len(rgb)} bands, needed 3: those shown as red, green and blue")
    for name in rgb:
        if name not in bands:
            raise BandMismatchError(f"{path}: no band '{name}' to show in `rgb`.{did_you_mean(name, bands)}")
