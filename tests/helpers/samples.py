"""Small projects up to their tiles stage; most hold their own coordinates, so that each sample can be checked exactly."""

from dataclasses import dataclass, replace

import numpy as np

from cobertes.geo.area import Area
from cobertes.geo.scene import open_scene
from cobertes.labels.legend import Legend, LegendClass
from cobertes.learn.encoding import Inputs
from cobertes.learn.sampler import Sampler
from cobertes.settings import Augmentation, AugmentationSettings, SplitSettings, TileSettings, TrainSettings
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.index import TileIndex, build_index
from cobertes.tiles.split import AreaSplit, Split
from helpers.rasters import UTM, coordinates, grid_at, write_raster

LEGEND = Legend(
    "test", 0, tuple(LegendClass(c, f"class-{c}", f"Class {c}", "#00ff00") for c in (10, 20, 30, 40, 50))
)

SCALE = 1024.0
"""Coordinates are divided by a power of two: they come back exactly."""

STILL = AugmentationSettings(flips=False, turns=False, jitter=Augmentation())

EXACTLY = AugmentationSettings(jitter=Augmentation())
"""Turned and mirrored, but every value as it is."""

PLAIN = {"crops": False, "sampling": "shuffled", "augmentation": STILL}


def code_at(row, col):
    """The label of a pixel (row, col from 1): no two neighbours alike, and no symmetry."""
    return LEGEND.codes[(3 * row + row * col % 7 + col) % len(LEGEND)]


@dataclass(frozen=True)
class Project:
    """A small project up to its tiles stage."""

    ground: LabelledDataset
    index: TileIndex

    def sampler(self, window=16, augmentation=EXACTLY, **options):
        windows = window if isinstance(window, tuple) else (window,)
        return Sampler.of(self.index.table, self.ground, TrainSettings(**options), windows, augmentation)


def project_of(folder, scenes, labels, *, legend=LEGEND, size=16, crs=UTM, nodata=None, **split):
    """A project of ``scenes`` {area: {season: (bands, height, width)}} and ``labels`` {area: (height, width)}."""
    areas, paths = [], {}
    for i, (name, seasons) in enumerate(scenes.items()):
        height, width = labels[name].shape
        grid = grid_at(height, width, crs=crs, origin=(240_000.0 + 1e5 * i, 4_780_000.0))
        opened = {
            season: open_scene([write_raster(folder / f"{name}-{season}.tif", values, grid, nodata=nodata)])
            for season, values in seasons.items()
        }
        areas.append(Area(name, opened))
        paths[name] = write_raster(folder / f"{name}-labels.tif", labels[name].astype(np.uint8), grid, nodata=0)
    settings = SplitSettings(**{"block": 2 * size, "guard": size // 2, "validation": 0.25} | split)
    index = build_index(areas, paths, legend, tiles=TileSettings(size=size), split=settings)
    return Project(LabelledDataset({area.name: area for area in areas}, paths, legend, index.split), index)


def coordinate_project(folder, shape=(150, 170), **options):
    values = coordinates(shape)
    return project_of(folder, {"here": {"scene": values}}, {"here": code_at(*values)}, **options)


EXACT = Inputs(("scene",), ("band1", "band2"), np.zeros((1, 2)), np.full((1, 2), SCALE))


def area_with_letters(project, rows, edge):
    """The same project with another split: a letter per block of ``edge`` pixels."""
    letters = np.array([list(row) for row in rows])
    edges = [np.arange(n + 1) * edge for n in letters.shape]
    split = Split({"here": AreaSplit(letters, *edges)}, edge, project.ground.split.guard)
    return replace(project, ground=replace(project.ground, split=split))
