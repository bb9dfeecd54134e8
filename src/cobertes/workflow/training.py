"""Train stage: settings, tile store and checkpoints of a run brought together."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cobertes.atomic_io import read_json
from cobertes.settings import with_defaults
from cobertes.tiles.band_statistics import Statistics
from cobertes.tiles.store import Store, make_store
from cobertes.workflow.context import StageContext, open_dataset
from cobertes.workflow.stage_fingerprints import measurements_fingerprint, training_fingerprint

if TYPE_CHECKING:
    from cobertes.learn.training_cost import TrainingCost
    from cobertes.learn.training_setup import TrainingSetup


def train(context: StageContext) -> str:
    """Train the model, or resume from the last checkpoint. Returns a summary in one line."""
    from cobertes.learn.distributed import leave_process_group, rank_zero_first
    from cobertes.learn.train import train

    setup = set_up_training(context)
    # rank zero has also moved an old model and its checkpoints aside
    with rank_zero_first(context.project.settings.train.device):
        setup = setup.with_store(open_store(setup, context))
    header = train(setup, context.folder.path, progress=context.progress, on_epoch=context.on_epoch)
    leave_process_group()
    facts = header.training
    miou = facts["validation_miou"]
    score = "no held-out label to score it by" if miou is None else f"mIoU {miou:.3f}"
    return f"best of {facts['epochs']} epochs: {facts['best_epoch']}, {score}"


def set_up_training(context: StageContext) -> "TrainingSetup":
    """Training that the stage would run, on the tiles and labels of this run."""
    from cobertes.learn.training_setup import prepare_training

    project, folder = context.project, context.folder
    settings = project.settings
    return prepare_training(
        context.index,
        replace(open_dataset(project, folder), shares=_shares(context)),
        Statistics.from_dict(read_json(folder.statistics)),
        model=settings.model.model_copy(update={"weights": project.weights}),
        train=settings.train,
        augmentation=settings.augmentation,
        tile_size=settings.tiles.size,
        fingerprint=training_fingerprint(context),
    )


def open_store(setup: "TrainingSetup", context: StageContext) -> Store | None:
    """Tile store of the windows that a training reads, made or reused; None if the settings want none."""
    tiles, folder = context.project.settings.tiles, context.folder
    if tiles.store == "never":
        return None
    return make_store(
        folder.store,
        setup.dataset.areas,
        setup.dataset.labels,
        setup.windows_to_read(),
        shares=_shares(context),
        fingerprint=measurements_fingerprint(context),
        every_scene=tiles.store == "always",
        max_gb=tiles.store_gb,
        unreadable=tiles.unreadable,
        progress=context.progress,
    )


def _shares(context: StageContext) -> dict[str, Path]:
    """Fractions or purity by area, whichever training reads beside the labels."""
    train, names = context.project.settings.train, [area.name for area in context.project.areas]
    found = {name: context.folder.shares(name, train) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def estimate_cost(context: StageContext) -> "TrainingCost":
    """Time and memory of the training on this machine, from a few timed steps.

    Tiles are counted in the index, or estimated from the areas' sizes if there is none yet.
    """
    from cobertes.learn.training_cost import estimate_training
    from cobertes.learn.training_setup import network_settings

    project = context.project
    settings = project.settings
    train = with_defaults(settings.train, settings.model.encoder, settings.tiles.size)
    window = max(train.windows)
    held = settings.split.validation
    if context.folder.tiles.exists():
        index = context.index
        pixels = (index["height"] * index["width"])[index["keep"]].groupby(index["split"]).sum()
        learnt_pixels, held_pixels = pixels.get("train", 0), pixels.get("validation", 0)
    else:
        total = sum(area.shape[0] * area.shape[1] for area in project.areas)
        learnt_pixels, held_pixels = (1 - held - settings.split.test) * total, held * total
    return estimate_training(
        network_settings(settings.model, project.bands, project.seasons, len(project.legend)),
        train,
        window=window,
        windows=train.samples or max(1, round(learnt_pixels / window**2)),
        held_out=max(1, int(held_pixels / window**2)),
        passes=len(project.seasons) if settings.model.seasons == "separate" else 1,
    )
