"""The whole made-up landscape: nature first, then what people built, then what that did to the fields."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cobertes.synthetic.nature import (
    FACTOR,
    FIELDS,
    TEXTURE,
    Cover,
    Floats,
    fractal,
    grow,
    inside_of,
    planes_of,
    relief,
    river_lines,
)
from cobertes.synthetic.settlement import add_rivers, settle


@dataclass(frozen=True)
class Landscape:
    """``cover`` (10 size, 10 size) uint8: material numbers. The others are (size, size).

    ``parcels`` uint16: a number for each field, 0 elsewhere; ``elevation`` float32, metres;
    ``inside`` float32: pixels to the border of the mapped region, negative outside of it.
    """

    cover: Cover
    parcels: NDArray[np.uint16]
    elevation: Floats
    inside: Floats


def build(size: int, seed: int) -> Landscape:
    """Make a landscape; the same for the same size and seed."""
    rng = np.random.default_rng([seed, size])
    rivers = river_lines(rng, size)
    coast, elevation = relief(rng, size, rivers)
    cover, parcels = grow(rng, planes_of(rng, coast, elevation))
    texture = fractal(rng, TEXTURE, 3.0, 250)
    add_rivers(rng, cover, rivers, coast, texture)
    settle(rng, cover, coast, elevation, texture)
    parcels[~FIELDS[cover[FACTOR // 2 :: FACTOR, FACTOR // 2 :: FACTOR]]] = 0  # built over, or grown over
    return Landscape(cover, parcels, elevation, inside_of(rng, size))
