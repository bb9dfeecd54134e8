"""Comparison of runs as an HTML page: scores with intervals, differences with verdicts, differing settings."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import cobertes
from cobertes.accuracy.run_comparison import SCORES, RunsComparison, comparison_notes, different_settings
from cobertes.atomic_io import write_text
from cobertes.report.html import environment

AXIS_LEFT, AXIS_RIGHT = 8.0, 312.0
"""Ends of the axis of a chart of intervals, in SVG units."""


def write_comparison_page(
    out: Path, comparison: RunsComparison, settings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write the comparison as one self-contained HTML file; ``out`` is replaced once the new one is complete.

    settings   by run, flat with dotted keys: those that differ are listed
    """
    facts = {
        "version": cobertes.__version__,
        "c": comparison,
        "titles": SCORES,
        "charts": {score: _chart(comparison, score) for score in SCORES},
        "notes": comparison_notes(comparison),
        "settings": different_settings(settings),
        "pixels": next(iter(comparison.matrices.values())).pixels,
    }
    write_text(out, environment().get_template("comparison.html.j2").render(facts))


def _chart(comparison: RunsComparison, score: str) -> list[dict[str, float]]:
    """Positions of value, low and high of every run on a common axis."""
    found = [comparison.scores[name][score] for name in comparison.names]
    ends = [x for one in found for x in one if isfinite(x)]
    if not ends:
        return []
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0

    def at(value: float) -> float:
        return AXIS_LEFT + (AXIS_RIGHT - AXIS_LEFT) * (value - low) / span

    return [dict(zip(("value", "low", "high"), _positions(one, at), strict=True)) for one in found]


def _positions(values: Sequence[float], at: Any) -> list[float]:
    value, low, high = values
    return [at(x if isfinite(x) else value) for x in (value, low, high)]
