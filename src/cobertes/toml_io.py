"""TOML, written by tomli-w. (Python reads it: `tomllib`.)"""

from collections.abc import Mapping
from typing import Any

import tomli_w


def toml_text(settings: Mapping[str, Any]) -> str:
    """Nested settings as TOML. Keys become text, None is left out, and paths become text."""
    return tomli_w.dumps(_plain(settings))


def toml_value(value: str | list[str] | tuple[str, ...]) -> str:
    """Text, or a list of texts on one line, as a TOML value for a template."""
    if isinstance(value, str):
        return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")
    return f"[{', '.join(map(toml_value, value))}]"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, bool | int | float | str) else str(value)
