"""Models made by hand: what they say of a pixel is known, so a map can be checked pixel by pixel."""

import numpy as np
import torch

from cobertes.engines.engine import Engine
from cobertes.evaluation.held_out_map import HeldOutMap
from cobertes.labels.legend import Legend, LegendClass
from cobertes.learn.encoding import Inputs
from cobertes.learn.model_file import ModelHeader
from cobertes.learn.unet import UNetSettings

TENS = Legend(
    "tens",
    0,
    tuple(LegendClass(c, f"class-{c}", f"Class & {c}", f"#{c:02x}00ff") for c in range(10, 101, 10)),
)
SCALE = 1024.0
"""Coordinates are divided by a power of two: they come back exactly."""


def code_at(row, col):
    """The class of a pixel (row, col from 1): no two neighbours alike, and no symmetry."""
    return TENS.codes[(3 * row + row * col % 7 + col) % len(TENS)]


def percent_at(row, col):
    """The confidence of a pixel, 50 to 89."""
    return 50 + (5 * row + col) % 40


def header_of(seasons=("scene",), bands=("band1", "band2"), *, window=32, resolution=10.0, legend=TENS):
    """Of a model whose channels are the bands divided by SCALE."""
    shape = len(seasons), len(bands)
    network = UNetSettings(shape[0] * shape[1], len(legend), "scratch", 4, 2)
    inputs = Inputs(tuple(seasons), tuple(bands), np.zeros(shape), np.full(shape, SCALE))
    return ModelHeader(network, inputs, legend, resolution, window, {"fingerprint": "by-hand"})


def reads_coordinates(x):
    """Logits by which each pixel gets the class and the confidence of the coordinates that it holds."""
    row, col = np.rint(x.numpy()[:, :2] * SCALE).astype(int).swapaxes(0, 1)
    index = TENS.index_table()[code_at(row, col)]
    share = percent_at(row, col) / 100
    others = (1 - share) / (len(TENS) - 1)
    p = np.repeat(others[:, None], len(TENS), axis=1)
    np.put_along_axis(p, index[:, None].astype(int), share[:, None], axis=1)
    return torch.from_numpy(np.log(p).astype(np.float32))


def plan_as_mapped(ground, letter, size, overlap):
    """The windows of a map that keeps their interiors, cut to held-out blocks."""
    return HeldOutMap(ground, size, overlap, "interior").windows(letter)


def engine_of(logits=reads_coordinates, **header):
    return Engine(header_of(**header), logits, "by hand")
