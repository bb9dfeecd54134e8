"""Meaning of stored values in all scenes of a project: told by the user, brought to one convention.

[[area]] scale, offset  or  --scale, --offset   -->  the user's word overrules metadata and tags
first scene of a project, or the model          -->  the convention that all others are read in
"""

import logging
from collections.abc import Mapping, Sequence

from cobertes.errors import BandMismatchError, SettingsError
from cobertes.geo.area import ONLY_SEASON
from cobertes.geo.radiometry import Origin, RadiometricConvention, conventions_by_user, describe_conventions
from cobertes.geo.scene import Scene

log = logging.getLogger(__name__)

Told = float | Mapping[str, float] | None
"""A scale or offset for all bands, or by season or band."""


def tell_values(scenes: Mapping[str, Scene], scale: Told, offset: Told, origin: Origin) -> dict[str, Scene]:
    """Season -> scene whose values mean what the user says.

    scale, offset  one number, by season, or by band
    Raises SettingsError for names that are neither season nor band.
    """
    if scale is None and offset is None:
        return dict(scenes)
    told = {}
    for season, scene in scenes.items():
        parts = [_of_season(value, season, scenes) for value in (scale, offset)]
        conventions = conventions_by_user(scene.conventions, scene.band_names, parts[0], parts[1], origin)
        told[season] = scene.with_conventions(conventions)
    return told


def _of_season(value: Told, season: str, seasons: Mapping[str, Scene]) -> Told:
    if isinstance(value, Mapping) and set(value) & set(seasons):
        if unknown := set(value) - set(seasons):
            raise SettingsError(
                f"scale or offset names the season '{min(unknown)}', but the seasons are {', '.join(seasons)}"
            )
        return value.get(season)
    return value


def parse_told(text: str | None, option: str) -> Told:
    """``0.0001``, or ``august=0.0001,april=1``: by season or band. Raises SettingsError."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return float(text)
        pairs = (part.partition("=") for part in text.split(","))
        return {name.strip(): float(value) for name, _, value in pairs}
    except ValueError as error:
        raise SettingsError(
            f"{option} takes a number, or NAME=NUMBER by season or band, divided by commas; found '{text}'"
        ) from error


def in_one_convention(areas: Sequence[tuple[str, dict[str, Scene]]]) -> list[dict[str, Scene]]:
    """The scenes of all areas, read in the convention of the first one, which is said unless it is assumed.

    areas   name and season -> scene
    Raises BandMismatchError where one can't be made from the other.
    """
    first = next(iter(areas[0][1].values()))
    target = first.conventions
    if not all(one.assumed for one in target):
        log.info("values: %s", describe_conventions(target, first.band_names))
    return [
        {season: convert(scene, target, _title(name, season)) for season, scene in scenes.items()}
        for name, scenes in areas
    ]


def _title(area: str, season: str) -> str:
    return area if season == ONLY_SEASON else f"{area}, {season}"


def convert(scene: Scene, target: Sequence[RadiometricConvention], title: str) -> Scene:
    """The scene read in other conventions, with a word on it where there is something to convert.

    title   what it is called: ``here, august``
    """
    if len(scene.bands) != len(target):
        raise BandMismatchError(f"{title} has {len(scene.bands)} bands, needed {len(target)}")
    made = scene.in_conventions(target)
    if any(part.conversion is not None for part in (made, *made.parts)):
        found = describe_conventions(scene.conventions, scene.band_names)
        wanted = describe_conventions(target, scene.band_names)
        log.info("%s: %s, read as %s", title, found, wanted)
    return made
