"""Report of the tile index: a summary, a map of splits and reasons, and a GeoPackage styled for QGIS."""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import geopandas as gpd
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from cobertes.atomic_io import replacing
from cobertes.geo.qgis_style import hex_to_rgb
from cobertes.geo.vector import write_layers

SPLIT_COLOURS = {"train": "#0072b2", "validation": "#e69f00", "test": "#cc79a7"}
"""Colour-blind safe colours of Okabe & Ito (2008)."""

REASON_COLOURS = {
    "guard band": "#9ecae1", "between splits": "#c6dbef", "no labels": "#f0f0f0", "no observation": "#d9d9d9",
    "few labelled pixels": "#bdbdbd", "few valid pixels": "#969696", "single class": "#a1d99b",
    "cloudy": "#737373", "snowy": "#525252", "unreadable": "#d62728",
}  # fmt: skip
OTHER_REASON = "#74c476"

LAYER = "tiles"


def _categories(index: gpd.GeoDataFrame) -> list[str]:
    """Category of each tile: its split, or the reason why it is excluded."""
    return [
        split if keep else reason
        for split, keep, reason in zip(index["split"], index["keep"], index["reason"], strict=True)
    ]


def _colour(category: str) -> str:
    return SPLIT_COLOURS.get(category) or REASON_COLOURS.get(category, OTHER_REASON)


def summarise(index: gpd.GeoDataFrame, keys: Sequence[str]) -> dict[str, Any]:
    """Summarise the index for JSON; ``keys`` are the class keys (K,).

    tiles; kept: tiles by split; reasons: excluded tiles by reason; classes: share of each class among the labelled
    pixels, by split and of all tiles; seasons: mean valid, cloud and snow share of the tiles read.
    """
    kept = index[index["keep"]]
    counts = np.array(index["counts"].to_list(), float).reshape(len(index), len(keys))
    groups = {split: ((index["split"] == split) & index["keep"]).to_numpy() for split in kept["split"].unique()}
    groups = {split: groups[split] for split in SPLIT_COLOURS if split in groups}
    shares = {
        name: _shares(counts[chosen]) for name, chosen in (groups | {"all": np.ones(len(index), bool)}).items()
    }
    seasons = [column.removeprefix("valid_") for column in index.columns if column.startswith("valid_")]
    return {
        "tiles": len(index),
        "areas": int(index["area"].nunique()),
        "kept": {split: int(chosen.sum()) for split, chosen in groups.items()},
        "reasons": {str(k): int(v) for k, v in index.loc[~index["keep"], "reason"].value_counts().items()},
        "classes": {key: {name: float(share[i]) for name, share in shares.items()} for i, key in enumerate(keys)},
        "seasons": {
            season: {what: _mean(index[f"{what}_{season}"]) for what in ("valid", "cloud", "snow")}
            for season in seasons
        },
    }


def _shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    total = counts.sum()
    return np.asarray(counts.sum(axis=0) / total if total else counts.sum(axis=0))


def _mean(column: Any) -> float | None:
    return float(column.mean()) if column.notna().any() else None


def describe_summary(summary: Mapping[str, Any], block: int, guard: int) -> str:
    """Format the summary as lines of text."""
    areas = f" in {summary['areas']} areas" if summary["areas"] > 1 else ""
    lines = [f"{summary['tiles']:,} tiles{areas}, blocks of {block} px, guard band {guard} px", "kept:"]
    lines += [f"  {count:>7,}  {split}" for split, count in summary["kept"].items()]
    if summary["reasons"]:
        lines += ["left out:", *(f"  {count:>7,}  {reason}" for reason, count in summary["reasons"].items())]
    for season, means in summary["seasons"].items():
        known = [f"{what} {value:.1%}" for what, value in means.items() if value is not None]
        lines.append(f"{season}: {', '.join(known) or 'not read'}")
    splits = [*summary["kept"], "all"]
    lines.append(f"{'share of the labels':<28}" + "".join(f"{split:>12}" for split in splits))
    for key, shares in summary["classes"].items():
        lines.append(f"  {key:<26}" + "".join(f"{shares[split]:>12.2%}" for split in splits))
    return "\n".join(lines)


def draw_tiles(index: gpd.GeoDataFrame, path: Path, title: str = "") -> None:
    """Write a PNG map of the tiles, coloured by split or by the reason why they are excluded.

    Coordinates are pixels of the scenes; several areas are side by side. Raises StorageError.
    """
    names = list(dict.fromkeys(index["area"]))
    ends = index.assign(bottom=index["row"] + index["height"], right=index["col"] + index["width"])
    sides = ends.groupby("area")[["bottom", "right"]].max()
    step = sides.max() * 1.04
    columns = ceil(sqrt(len(names) * step["bottom"] / step["right"]))
    offset = {name: (i // columns * step["bottom"], i % columns * step["right"]) for i, name in enumerate(names)}
    categories = _categories(index)
    gap = 0.02 * float(index["width"].median())
    squares, colours = [], []
    for (area, row, col, height, width), category in zip(
        index[["area", "row", "col", "height", "width"]].itertuples(index=False), categories, strict=True
    ):
        top, left = row + offset[area][0], col + offset[area][1]
        bottom, right = top + height - gap, left + width - gap
        squares.append([(left, top), (right, top), (right, bottom), (left, bottom)])
        colours.append(_colour(category))
    size = (min(columns, len(names)) * step["right"], ceil(len(names) / columns) * step["bottom"])
    if len(names) == 1:
        size = (sides["right"].iloc[0], sides["bottom"].iloc[0])
    figure = Figure(figsize=(9, min(14, 1 + 7 * size[1] / size[0])), layout="constrained")
    axes = figure.add_subplot()
    axes.add_collection(PolyCollection(squares, facecolors=colours, edgecolors="none"))
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0), aspect="equal", title=title)
    if len(names) == 1:
        axes.set(xlabel="column (px)", ylabel="row (px)")
    else:
        axes.set_axis_off()
    order = [*SPLIT_COLOURS, *REASON_COLOURS]
    found = sorted(set(categories), key=lambda c: (order.index(c) if c in order else len(order), c))
    handles = [Patch(color=_colour(c), label=f"{c} ({categories.count(c):,})") for c in found]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def write_tiles(index: gpd.GeoDataFrame, keys: Sequence[str], path: Path) -> None:
    """Write the index for QGIS, with a column for the share of each class and a style by split and reason.

    Raises StorageError if the file can't be written.
    """
    counts = np.array(index["counts"].to_list(), float).reshape(len(index), len(keys))
    shares = counts / np.maximum(counts.sum(axis=1), 1)[:, None]
    flat = index.drop(columns="counts").assign(
        shown=_categories(index), **{f"share_{key}": shares[:, i] for i, key in enumerate(keys)}
    )
    write_layers(path, {LAYER: flat}, {LAYER: _style(sorted(set(flat["shown"])))})


def _style(categories: Sequence[str]) -> str:
    """QGIS style: polygons coloured by the column ``shown``."""
    entries = "".join(
        f'<category value={quoteattr(category)} label={quoteattr(category)} symbol="{i}" render="true"/>'
        for i, category in enumerate(categories)
    )
    symbols = "".join(
        f'<symbol name="{i}" type="fill" alpha="0.6"><layer class="SimpleFill" enabled="1">'
        f'<prop k="color" v="{_rgba(_colour(category))}"/><prop k="outline_color" v="80,80,80,255"/>'
        f'<prop k="outline_width" v="0.1"/><prop k="style" v="solid"/></layer></symbol>'
        for i, category in enumerate(categories)
    )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'><qgis version=\"3.22\" "
        'styleCategories="Symbology"><renderer-v2 type="categorizedSymbol" attr="shown" enableorderby="0">'
        f"<categories>{entries}</categories><symbols>{symbols}</symbols></renderer-v2></qgis>"
    )


def _rgba(colour: str) -> str:
    return ",".join(map(str, (*hex_to_rgb(colour), 255)))
