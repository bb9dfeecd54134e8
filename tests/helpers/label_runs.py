"""A label pass of many small windows, with all of its outputs."""

from cobertes.labels.aggregate import make_labels
from cobertes.labels.legend import Legend, LegendClass
from cobertes.labels.recode import recode_table
from helpers.rasters import grid_at

LEGEND = Legend("test", 0, tuple(LegendClass(c, f"class-{c}", f"Class {c}", f"#{c:02x}80ff") for c in (1, 2, 3)))

TABLE = recode_table(LEGEND)

GRID = grid_at(24, 20)


def label(reference, folder, **options):
    folder.mkdir(exist_ok=True)
    outputs = {name: folder / f"{name}.tif" for name in ("purity", "fractions")}
    options = {"legend": LEGEND, "table": TABLE, "also": {"nearest": folder / "nearest.tif"}, **outputs, **options}
    return make_labels(reference, GRID, folder / "labels.tif", **options)
