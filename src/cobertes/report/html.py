"""Shared parts of the HTML pages: templates, and numbers as text, with a dash for unknown values."""

import math
from collections.abc import Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def environment(package: str = "cobertes.report") -> Environment:
    """Jinja environment with the templates of a package and of this one, and filters for numbers."""
    loader = ChoiceLoader([PackageLoader(name, ".") for name in dict.fromkeys((package, "cobertes.report"))])
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters |= {
        "score": score, "percent": percent, "count": count, "plain": plain, "between": between, "sort": sortable,
    }  # fmt: skip
    return templates


def known(value: Any) -> Any:
    """Value, or None if it is NaN or infinite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def known_range(ends: Sequence[float | None] | None) -> tuple[float, float] | None:
    """Ends of an interval; None unless both are known."""
    if ends is None or any(known(end) is None for end in ends):
        return None
    low, high = ends
    return (float(low), float(high)) if low is not None and high is not None else None


def score(value: float | None) -> str:
    """``0.812``."""
    return "–" if value is None or known(value) is None else f"{value:.3f}"


def percent(value: float | None) -> str:
    """``81.2 %``, without a break."""
    return "–" if value is None or known(value) is None else f"{100 * value:.1f}\u00a0%"


def between(ends: tuple[float, float] | None, unit: str = "") -> str:
    """``0.41 to 0.52``, or in percent; empty without an interval."""
    if ends is None:
        return ""
    if unit == "%":
        return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}\u00a0%"
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def count(value: float | None) -> str:
    """``1,234``."""
    return "–" if value is None or known(value) is None else f"{value:,.0f}"


def sortable(value: float | None) -> str:
    """Value for ``data-sort``; empty if unknown."""
    return "" if value is None or known(value) is None else str(value)


def plain(value: Any) -> str:
    """Any value as plain text."""
    if known(value) is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
