"""Another rendering of a legend, whose colours the colour-blind tell apart.

Colours are drawn from a lattice of them, so that the nearest two are as far apart as can be (greedy farthest
points) for normal sight and for the three kinds of colour blindness together; then they are dealt out so that
classes keep as much of their own colour as possible. Distances are Euclidean in CIELAB (CIE 1976); sight is
simulated with the matrices of Machado et al. (2009, IEEE TVCG 15, 1291-1298) at full severity.
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
"""Linear RGB as it is seen."""

TO_XYZ = np.array([
    [0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041],
])  # fmt: skip
WHITE = TO_XYZ.sum(axis=1)
STEPS = (0, 51, 102, 153, 204, 255)
"""Values of a channel on the lattice: the 216 colours of old."""


def safe_colours(colours: Sequence[str]) -> list[str]:
    """As many colours ``#rrggbb`` for the classes, in their order; the same for the same legend."""
    lattice = np.array(list(product(STEPS, repeat=3)))
    seen = _seen(lattice)
    light = seen[0, :, 0]
    usable = np.flatnonzero((light > 12) & (light < 97))  # black and white are for lines and nodata
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
    """(sights, n, 3) CIELAB of colours (n, 3) from 0 to 255."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = np.stack([(linear @ matrix.T).clip(0, 1) for matrix in SIGHTS.values()])
    xyz = seen @ TO_XYZ.T / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _distance(seen: Floats, one: Floats) -> Floats:
    """(n,) distance to one colour for the eyes that see it least."""
    return np.linalg.norm(seen - one, axis=2).min(axis=0)
