"""Evaluation: the model and its baselines on the same held-out blocks, each pixel once.

The model is judged by what the map will say: with the map's windows, overlap, blending and views, cut to the
held-out blocks.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobertes.accuracy.baselines import evaluate_forest, most_frequent, train_forest
from cobertes.accuracy.block_confusion import BlockMatrices, block_scores
from cobertes.accuracy.bootstrap import overall_statistics, paired_difference, score_intervals
from cobertes.accuracy.boundaries import NOT_KNOWN
from cobertes.accuracy.calibration import LogitSample, calibrate
from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.accuracy.evaluation_counts import EvaluationCounts, brief_scores
from cobertes.engines.engine import Engine
from cobertes.errors import LegendError, NoTilesError
from cobertes.evaluation.held_out_map import AsMapped
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.learn.encoding import Inputs
from cobertes.learn.inference import HeldOut, batched, prefetch
from cobertes.predict.predict import DEFAULT_BLEND, default_overlap
from cobertes.progress import SILENT, Progress
from cobertes.tiles.band_statistics import Statistics
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.label_io import read_labels
from cobertes.tiles.split import Part

log = logging.getLogger(__name__)

CALIBRATION_WINDOWS = 200
"""Windows of the validation blocks that a temperature is fitted to where test blocks judge."""

USED_FOR = {
    "validation": ["choosing the epoch", "lowering the learning rate"],
    "test": [],
}
"""What the blocks of a split served for before they judge."""

FITTING = "fitting the temperature of confidences"


@dataclass(frozen=True)
class Assessment:
    """What was found on the blocks of ``split``: test where there is one, else validation.

    ``judgement`` holds all counts of the model, ``baselines`` their matrices on the same blocks, ``calibration``
    what goes into calibration.json.
    """

    split: str
    judgement: EvaluationCounts
    baselines: dict[str, BlockMatrices]
    calibration: dict[str, Any]

    @property
    def model(self) -> ConfusionMatrix:
        """The model's confusion matrix."""
        return self.judgement.matrices.total

    @property
    def methods(self) -> dict[str, BlockMatrices]:
        """Matrices by block of the model and the baselines."""
        return {"model": self.judgement.matrices, **self.baselines}

    @property
    def _fits_temperature(self) -> bool:
        return bool(self.calibration["fitted_on"] == self.split)

    def differences(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By how much the model is better than each baseline, with intervals, by score."""
        heads = overall_statistics(self.model.averaged)
        return {
            name: {
                score: paired_difference(
                    found.unit_sums(), self.judgement.matrices.unit_sums(), heads[score]
                ).to_dict()
                for score in ("miou", "overall_accuracy")
            }
            for name, found in self.baselines.items()
        }

    def to_dict(self, ground: LabelledDataset) -> dict[str, Any]:
        """For assessment.json."""
        hectares = self.judgement.hectares()
        scores = self.model.scores(ground.legend, hectares)
        baselines = {name: found.total.scores(ground.legend, hectares) for name, found in self.baselines.items()}
        return {
            "split": self.split,
            "used_for": USED_FOR[self.split] + ([FITTING] if self._fits_temperature else []),
            "pixels": self.model.pixels,
            "blocks": len(self.judgement.blocks),
            "miou_classes": scores["miou_classes"],
            "model": scores,
            "baselines": baselines,
            "intervals": score_intervals(self.judgement.matrices.by_unit(), ground.legend.keys)
            | {"independent": ground.split.cells != "tiles"},
            "differences": self.differences(),
            "block_scores": block_scores(self.judgement.matrices),
            "areas": brief_scores(self.judgement.matrices.by_area(), self.model.averaged),
            "seasons": brief_scores(self.judgement.seasons, self.model.averaged),
            "purity": self.judgement.purity_scores(),
            "boundaries": self.judgement.boundary_scores(),
            "calibration": {
                key: self.calibration[key]
                for key in ("temperature", "expected_calibration_error", "area_under_risk_coverage")
            },
            "worst_tiles": self.judgement.worst_tiles(),
        }


def assess(
    engine: Engine,
    ground: LabelledDataset,
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
) -> Assessment:
    """Judge a model, a random forest and the most frequent class on the held-out blocks.

    ground     areas, labels, legend and split
    index      the tile index: the forest learns from its training tiles
    purity     area name -> raster of the purity of its labels, percent; any may be missing
    tile_size  side of the squares of which the worst are pointed out, in pixels
    window, overlap, blend  those of the map, as in `predict_map`
    Raises NoTilesError where no held-out pixel is labelled; LegendError, BandMismatchError and ModelFileError
    where the model is not one of this ground.
    """
    for area in ground.areas.values():
        engine.check_scenes(area.scenes)
    model, labels = ([(c.code, c.key) for c in legend.classes] for legend in (engine.header.legend, ground.legend))
    if model != labels:
        raise LegendError("the labels have other classes than the model. Train again: --from train")
    has_test = any(area.windows(Part.TEST) for area in ground.split.areas.values())
    part = Part.TEST if has_test else Part.VALIDATION
    size = window or engine.header.window
    mapped = AsMapped(ground, size, default_overlap(size) if overlap is None else overlap, blend)
    sample = LogitSample(seed=seed)
    judgement = judge_model(
        engine, ground, part, mapped.held_out(part), mapped=mapped, purity=purity or {}, tile_size=tile_size,
        batch_size=batch_size, sample=sample, progress=progress,
    )  # fmt: skip
    if not judgement.counts.any():
        raise NoTilesError(f"no labelled and observed pixel lies in the {part.label} blocks: nothing to judge by")
    forest = evaluate_forest(
        train_forest(ground, index, seed=seed, progress=progress), ground, part, progress=progress
    )
    frequent = most_frequent(judgement.matrices, statistics.class_counts)
    fitted, judged, fitted_on = sample, None, part.label
    if has_test:  # nothing is fitted to blocks that are to be free of doubt
        others = mapped.held_out(Part.VALIDATION)
        if not mapped.blends:  # some will do; blending needs neighbours
            others = others[:: max(1, len(others) // CALIBRATION_WINDOWS)]
        fitted = LogitSample(seed=seed)
        judge_model(
            engine, ground, Part.VALIDATION, others, mapped=mapped, purity={}, tile_size=tile_size,
            batch_size=batch_size, sample=fitted, progress=progress,
        )  # fmt: skip
        if fitted.labels:
            judged, fitted_on = sample, "validation"
        else:  # no validation pixel is labelled
            fitted = sample
    calibration = calibrate(fitted, judged, split=fitted_on)
    calibration |= {"model": engine.header.training.get("fingerprint"), "views": engine.tta}
    return Assessment(part.label, judgement, {"most_frequent": frequent, "random_forest": forest}, calibration)


def judge_model(
    engine: Engine,
    ground: LabelledDataset,
    part: Part,
    plan: Sequence[HeldOut],
    *,
    mapped: AsMapped,
    purity: Mapping[str, Path],
    tile_size: int,
    batch_size: int = 8,
    sample: LogitSample | None = None,
    progress: Progress = SILENT,
) -> EvaluationCounts:
    """Count what the model says in windows of a split's held-out blocks; collect a ``sample`` of logits.

    plan  of ``mapped.held_out(part)``, all or some; where windows blend, some would be other logits
    Other arguments as in `assess`.
    """
    judgement = EvaluationCounts.begin(ground, part, tile_size)
    mapped.begin()
    waiting: list[tuple[HeldOut, _Read]] = []
    with progress.bar(f"judging on {part.label}", len(plan), "windows") as advance:
        for batch in prefetch(batched(plan, batch_size), _reader(mapped, engine.header.inputs, purity)):
            waiting += [(item, one) for item, one in batch if one is not None]
            if len(waiting) >= batch_size:
                _judge(engine, mapped, judgement, waiting[:batch_size], sample)
                del waiting[:batch_size]
            advance(len(batch))
        if waiting:
            _judge(engine, mapped, judgement, waiting, sample)
    return judgement


@dataclass(frozen=True)
class _Read:
    """A window as it was read: channels, class indices, purity, and where each season was observed."""

    x: NDArray[np.float32]
    labels: NDArray[np.uint8]
    purity: NDArray[np.uint8] | None
    seen: dict[str, NDArray[np.bool_]]


def _reader(mapped: AsMapped, inputs: Inputs, purity: Mapping[str, Path]) -> Any:
    ground = mapped.ground
    known = ground.legend.index_table() != IGNORE_INDEX

    def read(item: HeldOut) -> _Read | None:
        area, window = item[0], item[1].window
        share = mapped.reach(item) if mapped.blends else item[1].interior
        if not known[read_labels(ground.labels[area], share)].any():
            return None  # nothing to judge: with sparse labels, most windows
        observed, labels = ground.read_hwc(area, window)
        shares = None
        if area in purity:
            shares = np.full(window.shape, NOT_KNOWN, np.uint8)
            inside = window.clip(ground.areas[area].shape)
            shares[inside.slices_in(window)] = read_labels(purity[area], inside)
        return _Read(inputs.encode(observed), labels, shares, {s: valid for s, (_, valid) in observed.items()})

    return read


def _judge(
    engine: Engine,
    mapped: AsMapped,
    judgement: EvaluationCounts,
    batch: list[tuple[HeldOut, _Read]],
    sample: LogitSample | None,
) -> None:
    """Predict a batch of windows and count their interiors."""
    x = torch.from_numpy(np.stack([one.x for _, one in batch]))
    logits = mapped.blend([item for item, _ in batch], engine.logits(x))
    predicted = _classes(logits)
    for i, ((area, planned), one) in enumerate(batch):
        if not planned.interior.height:  # it only lends to others
            continue
        block = judgement.add(area, planned, one.labels, predicted[i], one.purity)
        if sample is not None:
            known = np.zeros(one.labels.shape, bool)
            inside = planned.interior.slices_in(planned.window)
            known[inside] = one.labels[inside] != IGNORE_INDEX
            place = list(judgement.tiles).index(area), planned.interior.row, planned.interior.col
            numbers = sample.draw(known, place)
            taken = numbers < sample.share
            chosen = logits[i][:, torch.from_numpy(taken).to(logits.device)].float().cpu().numpy()
            sample.add(judgement.blocks[block].unit, chosen.T, one.labels[taken], numbers[taken])
    if len(engine.header.inputs.seasons) > 1:
        _judge_seasons(engine, judgement, batch, x, predicted)


def _judge_seasons(
    engine: Engine,
    judgement: EvaluationCounts,
    batch: list[tuple[HeldOut, _Read]],
    x: Tensor,
    predicted: NDArray[np.uint8],
) -> None:
    """Count by season: what each says alone where a model can do with one, else by what was observed."""
    inputs = engine.header.inputs
    bands, one_will_do = len(inputs.bands), inputs.mode != "stack"
    if not one_will_do:
        for (item, one), mapped in zip(batch, predicted, strict=True):
            every = np.all([*one.seen.values()], axis=0)
            _add_season(judgement, "all seasons", item, one, mapped, every)
    for number, season in enumerate(inputs.seasons):
        if one_will_do:
            alone = torch.zeros_like(x)
            channels = slice(number * bands, (number + 1) * bands)
            alone[:, channels] = x[:, channels]
            predicted = _classes(engine.logits(alone))
        for (item, one), mapped in zip(batch, predicted, strict=True):
            others = [valid for name, valid in one.seen.items() if name != season]
            if one_will_do:
                _add_season(judgement, season, item, one, mapped, one.seen[season])
                continue
            _add_season(
                judgement, f"{season} alone", item, one, mapped, one.seen[season] & ~np.any(others, axis=0)
            )


def _add_season(
    judgement: EvaluationCounts,
    name: str,
    item: HeldOut,
    one: _Read,
    predicted: NDArray[np.uint8],
    where: NDArray[np.bool_],
) -> None:
    inside = item[1].interior.slices_in(item[1].window)
    judged = np.where(where, one.labels, IGNORE_INDEX)[inside]
    if (judged != IGNORE_INDEX).any():
        judgement.add_season(name, judged, predicted[inside])


def _classes(logits: Tensor) -> NDArray[np.uint8]:
    indices: NDArray[np.uint8] = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
    return indices
