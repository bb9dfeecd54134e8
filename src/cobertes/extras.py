"""Import of optional dependencies: a missing one is an error that names the pip command."""

import warnings
from importlib import import_module
from typing import Any

from cobertes.errors import SettingsError


def require_extra(module: str, extra: str) -> Any:
    """Import a module of an extra. Raises SettingsError with the pip command if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        raise SettingsError(f"{module} is not installed. Install it: pip install 'cobertes[{extra}]'") from error
