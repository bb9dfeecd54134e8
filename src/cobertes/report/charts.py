"""Charts of the training history, laid out in SVG units for the report's template."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BOTTOM = 46.0, 348.0, 12.0, 170.0


@dataclass(frozen=True)
class Curve:
    """Line of a chart: SVG ``path``, ``dots`` at its points if there are few, ``last`` value as text."""

    name: str
    path: str
    dots: tuple[tuple[float, float], ...]
    last: str


@dataclass(frozen=True)
class Chart:
    """Curves over epochs in SVG units; ticks are (position, text); ``mark`` is the x of the best epoch."""

    title: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    mark: float | None


def draw_chart(
    title: str, epochs: Sequence[int], series: dict[str, Sequence[float | None]], *, log: bool = False, mark: Any
) -> Chart | None:
    """Lay out curves over epochs; None marks a gap. Returns None if no value is known.

    log   logarithmic axis; values of 0 and below are gaps
    mark  epoch to highlight, or None
    """
    lines = {name: [_scaled(value, log) for value in values] for name, values in series.items()}
    known = [value for values in lines.values() for value in values if value is not None]
    if not known:
        return None
    ticks = _log_ticks(known) if log else MaxNLocator(5, min_n_ticks=3).tick_values(min(known), max(known))
    low, high = float(ticks[0]), float(ticks[-1])

    def x(epoch: float) -> float:
        span = max(epochs) - min(epochs)
        return PLOT_LEFT + (PLOT_RIGHT - PLOT_LEFT) * ((epoch - min(epochs)) / span if span else 0.5)

    def y(value: float) -> float:
        return PLOT_BOTTOM - (PLOT_BOTTOM - PLOT_TOP) * (value - low) / (high - low)

    curves = []
    for name, values in lines.items():
        points = [None if v is None else (x(e), y(v)) for e, v in zip(epochs, values, strict=True)]
        dots = tuple(point for point in points if point) if len(epochs) <= 20 else ()
        last = next((v for v in reversed(series[name]) if v is not None), None)
        if last is not None:
            curves.append(Curve(name, _path(points), dots, f"{last:.3g}"))
    integers = [t for t in MaxNLocator(6, integer=True).tick_values(min(epochs), max(epochs)) if t == int(t)]
    x_ticks = tuple((x(t), f"{t:.0f}") for t in integers if min(epochs) <= t <= max(epochs))
    y_ticks = tuple((y(t), f"{10**t:.0e}".replace("e-0", "e-") if log else f"{t:.6g}") for t in ticks)
    marked = mark if isinstance(mark, int) and min(epochs) <= mark <= max(epochs) else None
    return Chart(title, tuple(curves), x_ticks, y_ticks, None if marked is None else x(marked))


def _scaled(value: float | None, log: bool) -> float | None:
    if value is None or (log and value <= 0):
        return None
    return math.log10(value) if log else value


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Powers of ten around the logarithms ``values``; within one decade, also its multiples 2 and 5."""
    low, high = math.floor(min(values) + 1e-9), math.ceil(max(values) - 1e-9)
    if high - low > 1:
        return [float(t) for t in range(low, high + 1)]
    return [low, low + math.log10(2), low + math.log10(5), low + 1.0]


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """SVG path, interrupted at every gap."""
    parts, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
        else:
            parts.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
            pen = "L"
    return "".join(parts)
