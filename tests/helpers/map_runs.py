"""A map of many small windows, with all of its outputs."""

import numpy as np
import torch

from cobertes.engines.engine import Engine
from cobertes.geo.scene import open_scene
from cobertes.learn.unet import UNet
from cobertes.predict.predict import predict_map
from helpers.engines import header_of
from helpers.rasters import grid_at, write_raster

SHAPE = (100, 130)


def network(seed=0):
    """A network with random weights, whose answer depends on the window in which it sees a pixel."""
    torch.manual_seed(seed)
    model = UNet(header_of().network)
    for _ in range(20):
        model(torch.rand(4, 2, 32, 32))
    model = model.eval()

    def logits(x):
        with torch.inference_mode():
            return 20 * model(x)

    return Engine(header_of(), logits, "torch by hand", "one")


ENGINE = network()


def scene_in(folder, shape=SHAPE, **profile):
    """Random pixels, with a corner and a hole that are empty."""
    values = np.random.default_rng(0).integers(1, 3000, (2, *shape)).astype(np.int32)
    values[:, :40, :50] = 0
    values[:, 60:63, 70:80] = 0
    folder.mkdir(exist_ok=True)
    return {"scene": open_scene([str(write_raster(folder / "scene.tif", values, grid_at(*shape), **profile))])}


def everything(folder):
    folder.mkdir(exist_ok=True)
    return {name: folder / f"{name}.tif" for name in ("confidence", "probabilities", "entropy", "second")}


def run(scene, folder, engine=ENGINE, **options):
    options = {"blend": "cosine", "batch_size": 4, **everything(folder), **options}
    return predict_map(engine, scene, folder / "map.tif", **options)
