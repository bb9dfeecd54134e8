"""Evaluation: the model and its baselines on the same held-out blocks, each pixel once.

The model is judged by what the map will say: with the map's windows and overlap, cut to the held-out blocks.
"""

import logging
from dataclasses import dataclass
from typing import Any

from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.accuracy.forest import judge_forest, most_frequent, train_forest
from cobertes.apply.engine import Engine
from cobertes.apply.predict import default_overlap
from cobertes.errors import NoTilesError
from cobertes.learn.infer import judge, plan_as_mapped
from cobertes.progress import SILENT, Progress
from cobertes.tiles.ground import Ground
from cobertes.tiles.index import HELD_OUT
from cobertes.tiles.split import SPLIT_NAMES
from cobertes.tiles.statistics import Statistics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assessment:
    """Confusion matrices over the same ground; ``split`` names it: test where there is one, else validation."""

    split: str
    model: ConfusionMatrix
    baselines: dict[str, ConfusionMatrix]

    def to_dict(self, ground: Ground) -> dict[str, Any]:
        """For assessment.json."""
        scores = self.model.scores(ground.legend)
        return {
            "split": self.split,
            "pixels": int(self.model.counts.sum()),
            "miou_classes": scores["miou_classes"],
            "model": scores,
            "baselines": {name: matrix.scores(ground.legend) for name, matrix in self.baselines.items()},
        }


def assess(
    engine: Engine,
    ground: Ground,
    frame: Any,
    statistics: Statistics,
    *,
    window: int | None = None,
    overlap: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Assessment:
    """Judge a model, a random forest and the most frequent class on the held-out blocks.

    ground   areas, labels, legend and split
    frame    the tile index: the forest learns from its training tiles
    Raises NoTilesError where no held-out pixel is labelled.
    """
    split = "test" if any(area.windows(HELD_OUT["test"]) for area in ground.split.areas.values()) else "validation"
    letter = HELD_OUT[split]
    size = window or engine.header.window
    plan = plan_as_mapped(ground, letter, size, default_overlap(size) if overlap is None else overlap)
    with progress.bar(f"judging on {SPLIT_NAMES[letter]}", len(plan), "windows") as advance:
        model, _ = judge(engine.logits, engine.header.inputs, ground, plan, batch_size, advance)
    if not model.counts.any():
        raise NoTilesError(f"no labelled and observed pixel lies in the {split} blocks: nothing to judge by")
    forest = judge_forest(
        train_forest(ground, frame, seed=seed, progress=progress), ground, letter, progress=progress
    )
    baselines = {"most_frequent": most_frequent(model, statistics.class_counts), "random_forest": forest}
    return Assessment(split, model, baselines)
