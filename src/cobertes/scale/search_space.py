"""Search space: settings by dotted key and their ranges, checked before the first trial."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from cobertes.errors import SettingsError, did_you_mean
from cobertes.settings import Range, Section, Settings
from cobertes.workflow.project import explain

SEARCHED = ("model", "train", "augmentation")
"""Sections whose settings can be searched."""

SHARED = {
    "train.targets": "all trials learn from the same labels",
    "train.epochs": "set tune.epochs",
    "train.minutes": "time would make a trial another one on another day: set tune.epochs",
    "train.threads": "set tune.cpus",
    "train.device": "set tune.gpus",
}
"""Keys of those sections that can't be searched, and the reason."""


def require_space(settings: Settings) -> None:
    """Raise SettingsError unless every key can be searched and every value in its range is valid.

    Checked are the ends of ranges and each choice, one by one, with the project's other settings.
    """
    if not settings.tune.search:
        raise SettingsError(
            'nothing to search: [tune] needs search = { "train.learning-rate" = { log-uniform = [1e-4, 1e-2] } }'
        )
    if settings.train.device == "cuda" and not settings.tune.gpus:
        raise SettingsError("train.device is cuda, but trials take no GPU: set tune.gpus (0.5 puts two on one)")
    for key, values in settings.tune.search.items():
        _require_key(key)
        for value in _extremes(values):
            try:
                with_values(settings, {key: value})
            except SettingsError as error:
                raise SettingsError(f'tune.search: "{key}" may become {value!r}: {error}') from error


def with_values(settings: Settings, drawn: Mapping[str, Any]) -> Settings:
    """Copy of the settings with some values, by dotted key, replaced. Raises SettingsError if one is invalid."""
    data = settings.model_dump(by_alias=True)
    for key, value in drawn.items():
        *tables, last = key.split(".")
        table = data
        for name in tables:
            table = table[name]
        table[last] = value
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise SettingsError("; ".join(explain(error))) from error


def param_space(search: Mapping[str, Range]) -> dict[str, Any]:
    """Ray Tune search space; choices, which may be tables, by their index."""
    from ray import tune

    space: dict[str, Any] = {}
    for key, values in search.items():
        if values.choice is not None:
            space[key] = tune.choice(list(range(len(values.choice))))
        elif values.uniform is not None:
            space[key] = tune.uniform(*values.uniform)
        elif values.log_uniform is not None:
            space[key] = tune.loguniform(*values.log_uniform)
        elif values.integer is not None:
            space[key] = tune.randint(values.integer[0], values.integer[1] + 1)
    return space


def drawn_values(search: Mapping[str, Range], config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings sampled by Ray Tune; floats are rounded to six significant digits, easy to copy."""
    values: dict[str, Any] = {}
    for key, span in search.items():
        value = config[key]
        if span.choice is not None:
            values[key] = span.choice[int(value)]
        elif span.integer is not None:
            values[key] = int(value)
        else:
            values[key] = float(f"{value:.6g}")
    return values


def position(values: Range, value: Any) -> float:
    """Relative position of a value in its range, 0 to 1 (log scale for log-uniform)."""
    if values.choice is not None:
        return (values.choice.index(value) + 0.5) / len(values.choice)
    if values.log_uniform is not None:
        low, high = map(math.log, values.log_uniform)
        return min(max((math.log(value) - low) / (high - low), 0.0), 1.0)
    low, high = values.uniform or values.integer or (0.0, 1.0)
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _require_key(key: str) -> None:
    section: Any = Settings
    names = key.split(".")
    if names[0] not in SEARCHED:
        known = _keys(Settings)
        why = (
            f"trials share labels, tiles and split, so only {', '.join(SEARCHED)} can be searched. Make a search "
            f"for each value of it"
            if names[0] in known
            else f"there is no such section.{did_you_mean(names[0], SEARCHED)}"
        )
        raise SettingsError(f'tune.search: "{key}": {why}')
    for depth, name in enumerate(names):
        if name not in _keys(section):
            beside = [".".join([*names[:depth], other]) for other in _keys(section)]
            raise SettingsError(f'tune.search: no setting "{key}".{did_you_mean(key, beside)}')
        field = next(f for n, f in section.model_fields.items() if (f.alias or n) == name)
        section = field.annotation
    if isinstance(section, type) and issubclass(section, BaseModel):
        raise SettingsError(
            f'tune.search: "{key}" is a table.{did_you_mean("", [f"{key}.{k}" for k in _keys(section)])}'
        )
    if key in SHARED:
        raise SettingsError(f'tune.search: "{key}" can\'t be searched: {SHARED[key]}')


def _keys(section: Any) -> list[str]:
    if not (isinstance(section, type) and issubclass(section, Section)):
        return []
    return [field.alias or name for name, field in section.model_fields.items()]


def _extremes(values: Range) -> list[Any]:
    return list(values.choice or values.uniform or values.log_uniform or values.integer or [])
