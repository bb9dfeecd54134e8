"""Trainings of seconds: a landscape that a network learns, plans, and where somebody pulls the plug."""

import numpy as np
import torch

from cobertes.learn.model_file import load_model
from cobertes.learn.training_setup import prepare_training
from cobertes.settings import Augmentation, AugmentationSettings, ModelSettings, TrainSettings
from helpers.samples import LEGEND, project_of

JITTERED = AugmentationSettings(jitter=Augmentation(strength=0.05))

SCRATCH = {"encoder": "scratch", "width": 4, "depth": 2}


def landscape(folder):
    """A project: a landscape of patches, each class with a colour of its own in two bands, under noise."""
    rng = np.random.default_rng(0)
    index = np.kron(rng.choice(len(LEGEND), (16, 16), p=[0.5, 0.2, 0.15, 0.1, 0.05]), np.ones((8, 8), int))
    colours = np.array([[600, 900], [1500, 700], [900, 2500], [2200, 2100], [300, 3000]])
    values = np.moveaxis(colours[index], -1, 0) + rng.normal(0, 250, (2, *index.shape))
    labels = LEGEND.codes[index]
    labels[rng.random(labels.shape) < 0.05] = 0
    return project_of(folder, {"here": {"scene": values.clip(1).astype(np.uint16)}}, {"here": labels}, guard=4)


def plan_of(project, *, model=SCRATCH, fingerprint="same", **options):
    options = {
        "epochs": 3, "samples": 24, "batch_size": 6, "learning_rate": 0.001, "schedule": "plateau",
        "precision": "fp32", "device": "cpu",
    } | options  # fmt: skip
    return prepare_training(
        project.index.table, project.ground, project.index.statistics,
        model=ModelSettings(**model), augmentation=options.pop("augmentation", JITTERED),
        train=TrainSettings(**options), tile_size=16, fingerprint=fingerprint,
    )  # fmt: skip


class StopError(Exception):
    """Somebody pulls the plug."""


def stop_after(epoch):
    def report(record):
        if record["epoch"] == epoch:
            raise StopError

    return report


def same_weights(a, b):
    first, second = load_model(a)[0].state_dict(), load_model(b)[0].state_dict()
    return all(torch.equal(first[name], second[name]) for name in first)
