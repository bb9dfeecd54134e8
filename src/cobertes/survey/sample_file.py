"""Sample file: a GeoPackage for interpretation in QGIS, written and read back.

layer ``sample``    a square per point, the pixel's outline: ``reference`` (to be filled in), ``comment``;
                    ``stratum``, ``mapped``, hidden in the form, as the map's class would bias the interpreter
table ``strata``    code, name, pixels and points of each stratum
table ``classes``   code, name and colour: the value list of ``reference``; pixels of the map among the strata's
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
from numpy.typing import NDArray
from pyogrio.errors import DataLayerError, DataSourceError
from shapely.geometry import Polygon

from cobertes.errors import InputFileError, LegendError, did_you_mean
from cobertes.geo.vector import write_layers
from cobertes.survey.stratified_sampling import ClassRaster

LAYER = "sample"
CANNOT_TELL = -1
"""Value of ``reference`` for a point that the interpreter could not classify; such points are left out."""

COLUMNS = ("point", "reference", "comment", "stratum", "mapped")


@dataclass(frozen=True)
class Sample:
    """Sample as read from its file.

    points   outline, and codes of stratum, map and reference (NaN: not interpreted yet) of every point
    strata   code -> (name, pixels);  classes  code -> name
    mapped   code -> pixels of the map within the strata
    """

    points: gpd.GeoDataFrame
    strata: dict[int, tuple[str, int]]
    classes: dict[int, str]
    mapped: dict[int, int]


@dataclass(frozen=True)
class SamplePoints:
    """Drawn points: ``positions`` (n, 2) row and column on the map's grid, codes (n,) of stratum and map."""

    positions: NDArray[np.int64]
    stratum: NDArray[np.int64]
    mapped: NDArray[np.int64]


def write_sample(
    path: Path,
    class_map: ClassRaster,
    drawn: SamplePoints,
    strata: Mapping[int, tuple[str, int]],
    classes: Mapping[int, int],
    *,
    seed: int = 0,
) -> None:
    """Write a sample for interpretation, in random order, so that the order does not reveal the stratum.

    strata    code -> (name, pixels)
    classes   codes that the interpreter can choose -> pixels of the map within the strata
    Raises StorageError.
    """
    order = np.random.default_rng((seed, 1)).permutation(len(drawn.positions))
    layer = gpd.GeoDataFrame(
        {
            "point": np.arange(1, len(order) + 1),
            "reference": pd.array([None] * len(order), dtype="Int32"),
            "comment": pd.array([None] * len(order), dtype="string"),
            "stratum": drawn.stratum[order].astype(np.int32),
            "mapped": drawn.mapped[order].astype(np.int32),
        },
        geometry=[_square(class_map, row, col) for row, col in drawn.positions[order]],
        crs=None if class_map.grid.crs is None else class_map.grid.crs.proj,
    )
    points = {code: int((drawn.stratum == code).sum()) for code in strata}
    tables = {
        "strata": pd.DataFrame(
            [(code, name, pixels, points[code]) for code, (name, pixels) in strata.items()],
            columns=["code", "name", "pixels", "points"],
        ),
        "classes": pd.DataFrame(
            [
                (code, class_map.name(code), class_map.colours.get(code, "#808080"), n)
                for code, n in classes.items()
            ],
            columns=["code", "name", "colour", "pixels"],
        ),
    }
    style = sample_style({code: class_map.name(code) for code in classes})
    write_layers(path, {LAYER: layer, **tables}, {LAYER: style})


def _square(class_map: ClassRaster, row: int, col: int) -> Polygon:
    corners = [(col, row), (col + 1, row), (col + 1, row + 1), (col, row + 1)]
    return Polygon([class_map.grid.affine * (float(x), float(y)) for x, y in corners])


def sample_style(classes: Mapping[int, str]) -> str:
    """QGIS style: outlines, with points to interpret in orange; a form with a value list."""
    choices = [(name, code) for code, name in classes.items()] + [("cannot tell", CANNOT_TELL)]
    listed = "".join(
        f'<Option type="Map"><Option name={quoteattr(name)} value="{code}" type="QString"/></Option>'
        for name, code in choices
    )
    value_map = f'<Option type="Map"><Option name="map" type="List">{listed}</Option></Option>'
    hidden = "".join(
        f'<field name="{name}"><editWidget type="Hidden"><config><Option/></config></editWidget></field>'
        for name in ("stratum", "mapped")
    )
    states = (("to do", "230,110,0,255"), ("done", "0,114,178,255"))
    categories = "".join(
        f'<category value="{state}" label="{state}" symbol="{i}" render="true"/>'
        for i, (state, _) in enumerate(states)
    )
    symbols = "".join(
        f'<symbol name="{i}" type="fill" alpha="1"><layer class="SimpleFill" enabled="1">'
        f'<prop k="style" v="no"/><prop k="outline_color" v="{colour}"/><prop k="outline_width" v="0.5"/>'
        f'<prop k="outline_style" v="solid"/></layer></symbol>'
        for i, (_, colour) in enumerate(states)
    )
    attribute = quoteattr("CASE WHEN \"reference\" IS NULL THEN 'to do' ELSE 'done' END")
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'><qgis version=\"3.22\" "
        'styleCategories="Symbology|Fields|Forms">'
        f'<renderer-v2 type="categorizedSymbol" attr={attribute}><categories>{categories}</categories>'
        f"<symbols>{symbols}</symbols></renderer-v2>"
        f'<fieldConfiguration><field name="reference"><editWidget type="ValueMap"><config>{value_map}</config>'
        f"</editWidget></field>{hidden}</fieldConfiguration></qgis>"
    )


def read_sample(path: Path) -> Sample:
    """Read a sample, complete or not. Raises InputFileError; LegendError for a code that is no class."""
    if not path.is_file():
        raise InputFileError(f"no file at {path}. `cobertes sample-accuracy MAP -o FILE.gpkg` makes one.")
    try:
        points = pyogrio.read_dataframe(path, layer=LAYER)
        strata, classes = (pyogrio.read_dataframe(path, layer=name) for name in ("strata", "classes"))
        known = {int(r.code): (str(r.name), int(r.pixels)) for r in _rows(strata)}
        names = {int(r.code): str(r.name) for r in _rows(classes)}
        mapped = {int(r.code): int(r.pixels) for r in _rows(classes)}
    except (DataSourceError, DataLayerError, AttributeError, ValueError) as error:
        raise InputFileError(
            f"{path} is no sample of `cobertes sample-accuracy`, with layers sample, strata and classes: {error}"
        ) from error
    for column in ("reference", "stratum", "mapped"):
        if column not in points.columns:
            raise InputFileError(f"{path}: no column '{column}'.{did_you_mean(column, points.columns)}")
    reference = pd.to_numeric(points["reference"], errors="coerce")
    odd = points["reference"].notna() & (reference.isna() | ~reference.isin([*names, CANNOT_TELL]))
    if odd.any():
        value = points.loc[odd, "reference"].iloc[0]
        listed = ", ".join(f"{code} {name}" for code, name in names.items())
        raise LegendError(f"{path}: a point's reference is '{value}', none of the classes: {listed}")
    strays = set(points["stratum"].dropna().astype(int)) - set(known)
    for column in ("stratum", "mapped"):
        if points[column].isna().any() or (column == "stratum" and strays):
            what = "belongs to no stratum" if column == "stratum" else "has no class of the map"
            raise InputFileError(f"{path}: a point {what}. Points must not be added by hand.")
    return Sample(points.assign(reference=reference), known, names, mapped)


def _rows(table: Any) -> Any:
    """Rows of a table as named tuples; ``name`` is a column, not the index."""
    return table[[c for c in ("code", "name", "pixels") if c in table.columns]].itertuples(index=False)
