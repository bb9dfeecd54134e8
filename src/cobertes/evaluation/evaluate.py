"""Evaluation of a model and its baselines on the same held-out blocks, each pixel once.

The model is evaluated as it maps: with the map's windows, overlap, blending and test-time augmentation, cut to the
held-out blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cobertes.accuracy.baselines import evaluate_forest, most_frequent, train_forest
from cobertes.accuracy.block_confusion import BlockMatrices, block_scores
from cobertes.accuracy.bootstrap import overall_statistics, paired_difference, score_intervals
from cobertes.accuracy.calibration import LogitSample, calibrate
from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.accuracy.evaluation_counts import EvaluationCounts, brief_scores
from cobertes.engines.engine import Engine
from cobertes.errors import LegendError, NoTilesError
from cobertes.evaluation.held_out_map import HeldOutMap
from cobertes.evaluation.model_evaluation import ModelEvaluator
from cobertes.predict.predict import DEFAULT_BLEND, default_overlap
from cobertes.progress import SILENT, Progress
from cobertes.tiles.band_statistics import Statistics
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.split import Part

CALIBRATION_WINDOWS = 200
"""Windows of the validation blocks that a temperature is fitted to if test blocks are evaluated."""

USED_FOR = {
    "validation": ["choosing the epoch", "lowering the learning rate"],
    "test": [],
}
"""Choices that the blocks of a split were used for before the evaluation."""

FITTING = "fitting the temperature of confidences"


@dataclass(frozen=True)
class Evaluation:
    """Results on the blocks of ``split``: test if there are any, else validation.

    counts       all counts of the model
    baselines    confusion matrices by block of each baseline, on the same pixels
    calibration  content of calibration.json
    """

    split: str
    counts: EvaluationCounts
    baselines: dict[str, BlockMatrices]
    calibration: dict[str, Any]

    @property
    def model(self) -> ConfusionMatrix:
        """Confusion matrix of the model."""
        return self.counts.matrices.total

    @property
    def methods(self) -> dict[str, BlockMatrices]:
        """Confusion matrices by block of the model and the baselines."""
        return {"model": self.counts.matrices, **self.baselines}

    @property
    def _fits_temperature(self) -> bool:
        return bool(self.calibration["fitted_on"] == self.split)

    def differences(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Scores of the model minus those of each baseline, with confidence intervals, by baseline and score."""
        heads = overall_statistics(self.model.averaged)
        return {
            name: {
                score: paired_difference(
                    matrices.unit_sums(), self.counts.matrices.unit_sums(), heads[score]
                ).to_dict()
                for score in ("miou", "overall_accuracy")
            }
            for name, matrices in self.baselines.items()
        }

    def to_dict(self, dataset: LabelledDataset) -> dict[str, Any]:
        """Content of assessment.json."""
        hectares = self.counts.hectares()
        scores = self.model.scores(dataset.legend, hectares)
        baselines = {
            name: matrices.total.scores(dataset.legend, hectares) for name, matrices in self.baselines.items()
        }
        return {
            "split": self.split,
            "used_for": USED_FOR[self.split] + ([FITTING] if self._fits_temperature else []),
            "pixels": self.model.pixels,
            "blocks": len(self.counts.blocks),
            "miou_classes": scores["miou_classes"],
            "model": scores,
            "baselines": baselines,
            "intervals": score_intervals(self.counts.matrices.by_unit(), dataset.legend.keys)
            | {"independent": dataset.split.cells != "tiles"},
            "differences": self.differences(),
            "block_scores": block_scores(self.counts.matrices),
            "areas": brief_scores(self.counts.matrices.by_area(), self.model.averaged),
            "seasons": brief_scores(self.counts.seasons, self.model.averaged),
            "purity": self.counts.purity_scores(),
            "boundaries": self.counts.boundary_scores(),
            "calibration": {
                key: self.calibration[key]
                for key in ("temperature", "expected_calibration_error", "area_under_risk_coverage")
            },
            "worst_tiles": self.counts.worst_tiles(),
        }


def evaluate(
    engine: Engine,
    dataset: LabelledDataset,
    index: Any,
    statistics: Statistics,
    *,
    purity: Mapping[str, Path] | None = None,
    tile_size: int = 256,
    window: int | None = None,
    overlap: int | None = None,
    blend: str = DEFAULT_BLEND,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Evaluation:
    """Evaluate a model, a random forest and the most frequent class on the held-out blocks.

    dataset    areas, labels, legend and split
    index      tile index: the forest is trained on its training tiles
    purity     area name -> raster of the purity of its labels, percent; any may be missing
    tile_size  side in pixels of the squares of which the worst are listed
    window, overlap, blend  of the map, as in `predict_map`
    Raises NoTilesError if no held-out pixel is labelled; LegendError, BandMismatchError and ModelFileError if the
    model does not fit the dataset.
    """
    _require_same_classes(engine, dataset)
    has_test = any(area.windows(Part.TEST) for area in dataset.split.areas.values())
    part = Part.TEST if has_test else Part.VALIDATION
    size = window or engine.header.window
    held_out = HeldOutMap(dataset, size, default_overlap(size) if overlap is None else overlap, blend)
    evaluator = ModelEvaluator(engine, held_out, purity or {}, tile_size, batch_size)
    sample = LogitSample(seed=seed)
    counts = evaluator.run(part, sample=sample, progress=progress)
    if not counts.counts.any():
        raise NoTilesError(f"no labelled and observed pixel lies in the {part.label} blocks: nothing to judge by")
    model = train_forest(dataset, index, seed=seed, progress=progress)
    forest = evaluate_forest(model, dataset, part, progress=progress)
    frequent = most_frequent(counts.matrices, statistics.class_counts)
    if has_test:
        calibration = _calibrate_on_validation(evaluator, sample, seed, progress)
    else:
        calibration = calibrate(sample, None, split=part.label)
    calibration |= {"model": engine.header.training.get("fingerprint"), "views": engine.tta}
    return Evaluation(part.label, counts, {"most_frequent": frequent, "random_forest": forest}, calibration)


def _require_same_classes(engine: Engine, dataset: LabelledDataset) -> None:
    for area in dataset.areas.values():
        engine.check_scenes(area.scenes)
    model, labels = (
        [(c.code, c.key) for c in legend.classes] for legend in (engine.header.legend, dataset.legend)
    )
    if model != labels:
        raise LegendError("the labels have other classes than the model. Train again: --from train")


def _calibrate_on_validation(
    evaluator: ModelEvaluator, test: LogitSample, seed: int, progress: Progress
) -> dict[str, Any]:
    """Temperature fitted on validation blocks and evaluated on the test blocks, to which nothing is fitted."""
    held_out = evaluator.held_out
    windows = held_out.windows(Part.VALIDATION)
    if not held_out.blends:  # a subset is enough; blending needs all neighbours
        windows = windows[:: max(1, len(windows) // CALIBRATION_WINDOWS)]
    sample = LogitSample(seed=seed)
    replace(evaluator, purity={}).run(Part.VALIDATION, windows, sample, progress)
    if not sample.labels:  # no validation pixel is labelled
        return calibrate(test, None, split="test")
    return calibrate(sample, test, split="validation")
