"""Small projects for tests of whole stages: two seasons of six bands over ground that a network can learn."""

from pathlib import Path

import numpy as np

from helpers.rasters import grid_at, write_raster

BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
SPECTRA = {
    1: (400, 700, 500, 3500, 1800, 900),
    3: (200, 400, 250, 2500, 900, 400),
    12: (500, 500, 300, 150, 80, 50),
}
"""Crops, forest, water: reflectance x 10,000."""


def write_ground(folder: Path, *, size: int = 96, factor: int = 2, seed: int = 0, empty: int = 0) -> None:
    """Scenes april.tif and august.tif, and reference.tif with ``factor`` times their resolution.

    Patches of 8 px of the three classes; the first ``empty`` rows of the scenes hold no observation.
    """
    rng = np.random.default_rng(seed)
    patches = rng.choice(list(SPECTRA), (-(-size // 8), -(-size // 8))).astype(np.uint8)
    codes = np.kron(patches, np.ones((8, 8), np.uint8))[:size, :size]
    grid = grid_at(size, size)
    means = np.zeros((13, len(BANDS)))
    means[list(SPECTRA)] = list(SPECTRA.values())
    for season, gain in (("april", 1.0), ("august", 0.8)):
        values = np.moveaxis(means[codes], -1, 0) * gain + rng.normal(0, 30, (len(BANDS), size, size))
        values = values.clip(1, 10_000).astype(np.uint16)
        values[:, :empty] = 0
        write_raster(folder / f"{season}.tif", values, grid, names=BANDS)
    fine = np.kron(codes, np.ones((factor, factor), np.uint8))
    write_raster(folder / "reference.tif", fine, grid_at(size * factor, size * factor, 10 / factor), nodata=0)


PROJECT = """
name = "small"
legend = "catalonia-12"

[[area]]
name = "here"
scenes = {{ april = "april.tif", august = "august.tif" }}
reference = "reference.tif"
{area}
[tiles]
size = 16
{tiles}
[split]
guard = 4
{split}
[model]
encoder = "scratch"
width = 8
depth = 2

[train]
epochs = 8
samples = 64
batch-size = 8
precision = "fp32"
device = "cpu"
{train}
[predict]
precision = "fp32"
device = "cpu"
{predict}
"""


def write_project(folder: Path, text: str = PROJECT, **tables: str) -> Path:
    """A project file for `write_ground`; ``tables`` adds lines to its tables."""
    lines = {name: tables.get(name, "") for name in ("area", "tiles", "split", "train", "predict")}
    path = folder / "project.toml"
    path.write_text(text.format(**lines), encoding="utf-8")
    return path
