"""Comparison of aggregation methods: a table, and a figure of one window and of all biases."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from cobertes.atomic_io import replacing
from cobertes.geo.io import open_raster, read_window
from cobertes.geo.windows import Window, tile_windows
from cobertes.labels.label_job import METHODS, AlignedMap, LabelJob
from cobertes.labels.legend import Legend
from cobertes.labels.method_comparison import Comparison
from cobertes.labels.recode import RecodeTable

SHOWN = 48
"""Side of the window shown, in scene pixels."""

WIDEST_BIAS = 100.0
"""Percent at which bars are cut; larger values are written beside them."""

METHOD_COLOURS = ("#777777", "#1b7ac2", "#d9730d")


def comparison_table(comparison: Comparison) -> str:
    """Text table: a row per class, then the totals."""
    c = comparison
    area = "hectares" if c.hectares else "pixels"
    unit = c.hectares or 1.0
    head = f"{'':<38}{'bias of the area, %':>27}{'lost, under 1 px, %':>27}{'lost, under 10 px, %':>27}"
    names = "".join(f"{name:>9}" for name in ("nearest", "majority", "weighted"))
    lines = [head, f"{'class':<24}{area:>14}" + names * 3]
    for k, land in enumerate(c.legend.classes):
        if c.fine[k] == 0:
            continue
        cells = [*c.bias[:, k], *c.lost[:, 0, k], *c.lost[:, 1, k]]
        row = "".join(f"{value:>9.1f}" if np.isfinite(value) else f"{'-':>9}" for value in cells)
        lines.append(f"{land.name[:23]:<24}{c.fine[k] * unit:>14,.0f}{row}")
    small, all_small = c.objects.objects.sum(1), c.objects.lost.sum(2)
    lost = [
        100 * all_small[m, i] / small[i] if small[i] else np.nan for i in range(2) for m in range(len(METHODS))
    ]
    lines.append(f"{'all':<24}{c.fine.sum() * unit:>14,.0f}{'':>27}" + "".join(f"{value:>9.1f}" for value in lost))
    lines.append("")
    length, what = (1000.0, "km") if c.hectares else (1.0, "px")
    for m, method in enumerate(METHODS):
        agree = ", ".join(
            f"{100 * c.agreement[m, other]:.1f} % with {METHODS[other]}"
            for other in range(len(METHODS))
            if other != m
        )
        lines.append(
            f"{method:<18} area moved {c.moved[m]:.2f} %; boundaries {c.boundary[m] / length:,.0f} {what} "
            f"(fine map {c.boundary[-1] / length:,.0f}); agrees {agree}"
        )
    return "\n".join(lines)


def write_comparison_picture(
    comparison: Comparison, reference: Path, grid: GeoBox, folder: Path, table: RecodeTable, out: Path
) -> None:
    """Draw the window with most class changes by every method, and the bias of every class, as a PNG.

    folder  where `compare_labels` wrote METHOD.tif;  table  from `recode_table`
    """
    window = _most_varied(folder / f"{METHODS[1]}.tif", grid)
    figure = Figure(figsize=(14, 4.2 + 0.34 * len(comparison.legend)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    rows = [4.0, 0.4 + 0.34 * len(comparison.legend)]
    grid_of_two = figure.add_gridspec(2, 1, height_ratios=rows)
    above, below = figure.add_subfigure(grid_of_two[0]), figure.add_subfigure(grid_of_two[1])
    axes = above.subplots(1, len(METHODS) + 1)
    fine = _fine(reference, grid, comparison.legend, table, window)
    _show(axes[0], fine, comparison, f"reference map, {comparison.factor} x {comparison.factor} per pixel")
    for ax, method in zip(axes[1:], METHODS, strict=True):
        codes = read_window(folder / f"{method}.tif", window, 1)
        _show(ax, codes, comparison, method.replace("-", " "))
    _bars(below.subplots(), comparison)
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png")


def _fine(reference: Path, grid: GeoBox, legend: Legend, table: RecodeTable, window: Window) -> NDArray[np.uint8]:
    """Legend codes of the fine map under a window of the scene."""
    job = LabelJob(AlignedMap.open(reference, grid), legend, table, METHODS[0])
    with job.open_reader() as reader:
        codes, _ = reader.read(window)
    return job.recode[codes]


def _most_varied(labels: Path, grid: GeoBox) -> Window:
    """Window of `SHOWN` pixels with most class changes between neighbouring pixels."""
    best, most = Window(0, 0, *grid.shape), -1
    size = min(SHOWN, *grid.shape)
    with open_raster(labels) as file:
        for window in tile_windows(tuple(grid.shape), size):
            codes = read_window(file, window, 1)
            changes = int((codes[1:] != codes[:-1]).sum() + (codes[:, 1:] != codes[:, :-1]).sum())
            if changes > most:
                best, most = window, changes
    return best


def _show(ax: Axes, codes: NDArray[np.uint8], comparison: Comparison, title: str) -> None:
    legend = comparison.legend
    index = np.minimum(legend.index_table()[codes], len(legend))
    ax.imshow(
        index, cmap=ListedColormap([*legend.colours, "#ffffff"]), vmin=0, vmax=len(legend), interpolation="nearest"
    )
    ax.set_title(title, fontsize=10)
    ax.set_xticks([])
    ax.set_yticks([])


def _bars(ax: Axes, comparison: Comparison) -> None:
    """Bias of every class by method; the class's colour beside its name."""
    c = comparison
    shown = [k for k in range(len(c.legend)) if c.fine[k] > 0]
    for m, method in enumerate(METHODS):
        at = np.arange(len(shown)) + 0.27 * (m - 1)
        values = c.bias[m, shown]
        ax.barh(
            at, np.clip(values, -WIDEST_BIAS, WIDEST_BIAS), 0.25, color=METHOD_COLOURS[m],
            label=method.replace("-", " "),
        )  # fmt: skip
        for y, value in zip(at, values, strict=True):
            if abs(value) > WIDEST_BIAS:
                ax.text(np.sign(value) * WIDEST_BIAS, y, f" {value:+.0f} %", va="center", fontsize=7)
    for row, k in enumerate(shown):
        ax.plot(-0.007, row, marker="s", ms=9, mfc=c.legend.colours[k], mec="#444444", mew=0.5,
                transform=ax.get_yaxis_transform(), clip_on=False)  # fmt: skip
    ax.set_yticks(range(len(shown)), [c.legend.classes[k].name for k in shown], fontsize=9)
    ax.tick_params(axis="y", length=0, pad=16)
    ax.invert_yaxis()
    ax.axvline(0, color="#444444", lw=0.8)
    ax.set_xlabel("area beside the reference map's, percent")
    ax.legend(loc="best", fontsize=9)
    ax.grid(axis="x", alpha=0.3)
