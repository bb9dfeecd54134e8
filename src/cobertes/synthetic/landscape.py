"""Synthetic landscape: relief and vegetation, then settlements, then the fields that remain."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobertes.synthetic.nature import (
    FACTOR,
    FIELDS,
    TEXTURE,
    Floats,
    Materials,
    fractal,
    grow,
    region_distance,
    relief,
    river_lines,
    vegetation_planes,
)
from cobertes.synthetic.settlement import add_rivers, settle


@dataclass(frozen=True)
class Landscape:
    """Landscape: ``materials`` (10 size, 10 size) uint8, material numbers. The others are (size, size).

    ``parcels`` uint16: a number for each field, 0 elsewhere; ``elevation`` float32, metres;
    ``inside`` float32: distance to the border of the region in pixels, negative outside.
    """

    materials: Materials
    parcels: NDArray[np.uint16]
    elevation: Floats
    inside: Floats


def build_landscape(size: int, seed: int) -> Landscape:
    """Build a landscape of ``size`` x ``size`` pixels of 10 m; the same for the same size and seed."""
    rng = np.random.default_rng([seed, size])
    rivers = river_lines(rng, size)
    coast, elevation = relief(rng, size, rivers)
    materials, parcels = grow(rng, vegetation_planes(rng, coast, elevation))
    texture = fractal(rng, TEXTURE, 3.0, 250)
    add_rivers(rng, materials, rivers, coast, texture)
    settle(rng, materials, coast, elevation, texture)
    parcels[~FIELDS[materials[FACTOR // 2 :: FACTOR, FACTOR // 2 :: FACTOR]]] = 0  # built on, or overgrown
    return Landscape(materials, parcels, elevation, region_distance(rng, size))
