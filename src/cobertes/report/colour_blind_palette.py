"""Palette for a legend that colour-blind readers can distinguish.

Colours are taken from a lattice so that the closest two are as far apart as possible (greedy farthest points) for
normal vision and the three kinds of colour blindness together; then they are assigned so that classes stay close
to their own colour. Distances are Euclidean in CIELAB (CIE 1976); vision is simulated with the matrices of Machado
et al. (2009, IEEE TVCG 15, 1291-1298) at full severity.

Published palettes end at 8 or 9 colours (Okabe & Ito 2008; Tol 2021). For the worst kind of vision, the closest
pair of Okabe & Ito without black, and of Tol's muted, is 16 apart; in two or three lightnesses, 4 with 14
colours and 5 with 21. The closest pair here is 21 apart with 12 classes and 10 with 41.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.float64]

SIGHTS = {
    "normal": np.eye(3),
    "protanopia": np.array([
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
    ]),
    "deuteranopia": np.array([
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
    ]),
    "tritanopia": np.array([
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900],
    ]),
}  # fmt: skip
"""Linear RGB -> linear RGB as perceived, by kind of vision."""

TO_XYZ = np.array([
    [0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041],
])  # fmt: skip
WHITE = TO_XYZ.sum(axis=1)
STEPS = (0, 51, 102, 153, 204, 255)
"""Channel values of the lattice: the 216 web-safe colours."""


def safe_colours(colours: Sequence[str]) -> list[str]:
    """Palette ``#rrggbb`` for classes of these ``colours``, in their order; deterministic."""
    lattice = np.array(list(product(STEPS, repeat=3)))
    seen = _seen(lattice)
    light = seen[0, :, 0]
    usable = np.flatnonzero((light > 12) & (light < 97))  # near black and white: reserved for lines and nodata
    own = _seen(np.array([_rgb(colour) for colour in colours]))
    first = usable[np.linalg.norm(seen[0][usable] - own[0][0], axis=1).argmin()]
    chosen = [int(first)]
    nearest = _distance(seen, seen[:, [first]])
    while len(chosen) < len(colours):
        best = int(usable[nearest[usable].argmax()])
        chosen.append(best)
        nearest = np.minimum(nearest, _distance(seen, seen[:, [best]]))
    cost = np.linalg.norm(own[0][:, None] - seen[0][chosen][None], axis=2)
    _, dealt = linear_sum_assignment(cost)
    return ["#{:02x}{:02x}{:02x}".format(*lattice[chosen[i]]) for i in dealt]


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _seen(rgb: NDArray[np.int64]) -> Floats:
    """CIELAB (kinds of vision, n, 3) of colours (n, 3) from 0 to 255."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = np.stack([(linear @ matrix.T).clip(0, 1) for matrix in SIGHTS.values()])
    xyz = seen @ TO_XYZ.T / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _distance(seen: Floats, one: Floats) -> Floats:
    """Distance (n,) to one colour, for the kind of vision with the smallest."""
    return np.linalg.norm(seen - one, axis=2).min(axis=0)
