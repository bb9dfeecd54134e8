"""Paths of scenes, reference maps and masks: resolves files, folders, globs and stems of a project.

    scenes = "images/*.tif"       one area per stem that both globs know: 001.tif -> area 001
    reference = "labels/*.tif"

    scenes = { april = "s2_april.tif", august = "granule/B*.tif" }      two seasons, one of band files
    reference = "map.tif"

Paths are relative to the project's folder; ``~`` and environment variables are expanded.
"""

import glob
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cobertes.atomic_io import StrPath
from cobertes.errors import InputFileError, SettingsError, did_you_mean
from cobertes.geo import scene as scenes
from cobertes.geo.area import ONLY_SEASON
from cobertes.geo.io import is_dataset_name
from cobertes.geo.products.band_vocabulary import BandLabel
from cobertes.geo.products.detect import detect_product
from cobertes.geo.scene import Scene
from cobertes.settings import AreaSettings

log = logging.getLogger(__name__)

OBJECT_STORES = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}

RASTER_SUFFIXES = {".tif", ".tiff", ".vrt", ".jp2", ".img"}


@dataclass(frozen=True)
class FoundArea:
    """Files of an area, before they are opened: band files by season, masks by season."""

    name: str
    scenes: dict[str, list[str]]
    reference: Path | None
    crosswalk: str | None
    masks: dict[str, Path]
    scale: float | dict[str, float] | None = None
    offset: float | dict[str, float] | None = None


def find_areas(area: AreaSettings, path: Path) -> list[FoundArea]:
    """One area, or one per stem if scenes and reference map are both globs.

    path   the project file
    Raises SettingsError, InputFileError.
    """
    folder = path.parent
    seasons = area.scenes if isinstance(area.scenes, dict) else {ONLY_SEASON: area.scenes}
    if not seasons:
        raise SettingsError(f"{path}: an area needs at least one scene")
    if _is_glob(area.reference, folder) and all(_is_glob(spec, folder) for spec in seasons.values()):
        return _areas_by_stem(area, {season: str(spec) for season, spec in seasons.items()}, path)
    scenes = {season: scene_files(spec, folder) for season, spec in seasons.items()}
    reference = _existing(resolve(area.reference, folder), "reference map") if area.reference else None
    name = area.name or (Path(next(iter(scenes.values()))[0]).stem if len(scenes) == 1 else path.stem)
    masks = {
        season: _existing(resolve(text, folder), "mask")
        for season, text in _mask_specs(area, seasons, path).items()
    }
    found = FoundArea(file_name(name), scenes, reference, area.crosswalk, masks, area.scale, area.offset)
    return [found]


def _mask_specs(area: AreaSettings, seasons: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Mask of each season, as the settings name it."""
    if isinstance(area.masks, str):
        if len(seasons) > 1:
            raise SettingsError(
                f"{path}: `masks` is one path, but there are {len(seasons)} seasons: name them, "
                f'masks = {{ {next(iter(seasons))} = "{area.masks}" }}'
            )
        return dict.fromkeys(seasons, area.masks)
    for season in area.masks:
        if season not in seasons:
            raise SettingsError(f"{path}: `masks` names the season '{season}'.{did_you_mean(season, seasons)}")
    return area.masks


def _areas_by_stem(area: AreaSettings, seasons: Mapping[str, str], path: Path) -> list[FoundArea]:
    folder = path.parent
    scenes = {season: _by_stem(pattern, folder) for season, pattern in seasons.items()}
    references = _by_stem(str(area.reference), folder)
    masks = {season: _by_stem(text, folder) for season, text in _mask_specs(area, seasons, path).items()}
    stems = [stem for stem in references if all(stem in files for files in scenes.values())]
    if not stems:
        listed = ", ".join(f"{pattern} ({len(scenes[season])} files)" for season, pattern in seasons.items())
        raise InputFileError(
            f"{path}: no stem is in both {listed} and {area.reference} ({len(references)} files), looked for "
            f"beside the project file. Scenes and reference maps of an area must share what the * stands for."
        )
    alone = sorted(set(references).union(*scenes.values()) - set(stems))
    if alone:
        shown = ", ".join(alone[:3]) + (f" and {len(alone) - 3} more" if len(alone) > 3 else "")
        log.warning("left out, because not every one of the patterns finds a file for them: %s", shown)
    prefix = f"{area.name}-" if area.name else ""
    return [
        FoundArea(
            file_name(f"{prefix}{stem}"),
            {season: [str(files[stem])] for season, files in scenes.items()},
            references[stem],
            area.crosswalk,
            {season: files[stem] for season, files in masks.items() if stem in files},
            area.scale,
            area.offset,
        )
        for stem in stems
    ]


def file_name(name: str) -> str:
    """File name for an area or a project: never hidden, nor in another folder."""
    return re.sub(r"[^\w.-]+|^\.+", "_", name)


def _by_stem(pattern: str, folder: Path) -> dict[str, Path]:
    """Files by stem, the text that the first ``*`` of the pattern matches: ``s2_*_april.tif`` -> the area's name.

    Without a ``*`` in the file name, the one in the nearest folder counts: ``*/scene.tif``.
    Raises SettingsError if two files have the same stem.
    """
    where = resolve(pattern, folder)
    at = max((i for i, part in enumerate(where.parts) if "*" in part), default=len(where.parts) - 1)
    before, star, after = where.parts[at].partition("*")
    expression = re.compile(re.escape(before) + "(.*)" + re.escape(after.replace("*", "\0")).replace("\0", ".*"))
    files: dict[str, Path] = {}
    for file in map(Path, sorted(glob.glob(str(where)))):
        match = expression.fullmatch(file.parts[at]) if star else None
        stem = match[1] if match else file.stem
        if stem in files:
            raise SettingsError(
                f"{pattern} finds {files[stem]} and {file}, both for the area '{stem}'. Name the files so that "
                f"what the * stands for differs, or write an [[area]] for each."
            )
        files[stem] = file
    return files


def scene_files(spec: str | Iterable[str], folder: Path = Path()) -> list[str]:
    """Files of a SCENE: a file, a VRT, a folder or glob of band files, or a list of them.

    A text may hold several, separated by commas. Raises InputFileError if one does not exist.
    """
    parts = _parts(spec, folder) if isinstance(spec, str) else list(spec)
    if not parts or not all(parts):
        raise InputFileError(f"a scene without a file: {spec!r}. Name a file, a folder, a glob or a list of them.")
    files: list[str] = []
    for part in parts:
        if is_remote(part):
            files.append(_for_gdal(part))
            continue
        if is_dataset_name(part):
            files.append(_variable(part, folder))
            continue
        path = resolve(part, folder)
        if _is_glob(part, folder):
            found = [Path(file) for file in sorted(glob.glob(str(path)))]
        elif path.is_dir():
            found = [path] if detect_product(path) is not None else _rasters_in(path)
        else:
            found = [_existing(path, "scene")]
        if not found:
            raise InputFileError(f"no raster matches {path}. Check the path; it is relative to the project file.")
        files += map(str, found)
    return files


def _parts(spec: str, folder: Path) -> list[str]:
    """A text's SCENEs, divided by commas; a file whose name has a comma is one."""
    if "," in spec and not is_remote(spec) and not is_dataset_name(spec) and resolve(spec, folder).exists():
        return [spec]
    return [part.strip() for part in spec.split(",")]


def _rasters_in(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.suffix.lower() in RASTER_SUFFIXES]


def _variable(name: str, folder: Path) -> str:
    """GDAL's name of a variable, with the path of its file resolved."""
    driver, _, rest = name.partition(":")
    file, _, variable = rest.rpartition(":")
    path = _existing(resolve(file.strip('"'), folder), "scene")
    return f'{driver}:"{path}":{variable}'


def season_specs(arguments: Sequence[str]) -> dict[str, list[str]]:
    """SCENE by season, from ``SCENE`` or ``season=SCENE`` arguments.

    Several without a season are the band files of one scene: a shell has expanded ``B*.tif``.
    Raises SettingsError if a season is named twice, or is missing beside others.
    """
    specs: dict[str, list[str]] = {}
    for argument in arguments:
        season, equals, scene = argument.partition("=")
        if not equals or not re.fullmatch(r"[\w-]+", season):
            season, scene = ONLY_SEASON, argument
        elif season in specs:
            raise SettingsError(f"two scenes of season '{season}': every season has one, april=SCENE august=SCENE")
        specs.setdefault(season, []).append(scene)
    if ONLY_SEASON in specs and len(specs) > 1:
        raise SettingsError("name the season of every scene: april=SCENE august=SCENE")
    return specs


def open_scenes(
    arguments: Sequence[str], bands: Sequence[str | BandLabel] = (), nodata: float | None = None
) -> dict[str, Scene]:
    """Scene by season, from ``SCENE`` or ``season=SCENE`` arguments; `scene_files` describes a SCENE.

    bands, nodata   as for `open_scene`
    """
    return {
        season: scenes.open_scene([file for spec in specs for file in scene_files(spec)], bands, nodata)
        for season, specs in season_specs(arguments).items()
    }


def open_scene(
    scene: StrPath | Sequence[StrPath], bands: Sequence[str] = (), nodata: float | None = None
) -> Scene:
    """Open a SCENE: a file, a VRT, a folder or glob of band files, or a list of them.

    bands    names wanted, in order; by default all (`geo.scene.open_scene`)
    nodata   value of empty pixels for files that do not declare one
    Raises InputFileError, BandMismatchError, GridMismatchError.
    """
    one = isinstance(scene, str | os.PathLike)
    files = scene_files(os.fspath(scene) if one else [os.fspath(file) for file in scene])  # type: ignore[arg-type, union-attr]
    return scenes.open_scene(files, list(bands), nodata)


def resolve(text: str, folder: Path) -> Path:
    """Resolve a path of the project file: expands ``~`` and variables, relative to the file's folder.

    Raises SettingsError for a variable that is not set, unless a file has it in its name.
    """
    if is_remote(text):
        return Path(_for_gdal(text, as_path=True))
    path = folder / Path(os.path.expandvars(text)).expanduser()
    unset = re.search(r"\$\{?(\w+)", str(path))
    if unset and not path.exists() and not glob.glob(str(path)):
        raise SettingsError(
            f"'{text}': the environment variable {unset[1]} is not set. Set it (export {unset[1]}=FOLDER), or "
            f"write the path out."
        )
    return path


def is_remote(text: str) -> bool:
    """True if a file is on none of this machine's disks: ``s3://``, ``gs://``, ``https://``, ``/vsi...``"""
    return "://" in text or text.startswith("/vsi")


def _for_gdal(text: str, *, as_path: bool = False) -> str:
    """Name that GDAL opens; it takes keys of object stores from its own variables (AWS_ACCESS_KEY_ID and others).

    as_path   a name that survives `Path`, which turns two slashes into one
    """
    kind, _, rest = text.partition("://")
    if kind in OBJECT_STORES:
        return f"{OBJECT_STORES[kind]}{rest}"
    if as_path and kind in ("http", "https"):
        return f"/vsicurl?url={quote(text, safe='')}"
    return text


def _is_glob(spec: Any, folder: Path) -> bool:
    """True if a text is a pattern and not the name of a file, which may hold brackets too."""
    if not isinstance(spec, str) or is_remote(spec):
        return False
    return bool(re.search(r"[*?]|\[.+\]", spec)) and not resolve(spec, folder).exists()


def _existing(path: Path, what: str) -> Path:
    if not is_remote(str(path)) and not path.exists():
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, beside) if len(beside) <= 1000 else ""
        near = hint if hint.startswith(" Did") else ""
        raise InputFileError(f"no {what} at {path}.{near} Paths in a project are relative to its file.")
    return path
