"""Evaluation of a model window by window: pixels of held-out blocks, predicted as the map predicts them.

prefetch windows ─> logits, blended as in the map ─> EvaluationCounts, sample of logits, counts by season
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobertes.accuracy.boundaries import NOT_KNOWN
from cobertes.accuracy.calibration import LogitSample
from cobertes.accuracy.evaluation_counts import EvaluationCounts
from cobertes.engines.engine import Engine
from cobertes.evaluation.held_out_map import HeldOutMap
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.learn.inference import HeldOut, batched, prefetch
from cobertes.progress import SILENT, Progress
from cobertes.tiles.label_io import read_labels
from cobertes.tiles.split import Part


@dataclass(frozen=True)
class _Window:
    """Data of a window.

    x         channels (C, H, W) float32
    labels    class indices (H, W) uint8
    purity    percent (H, W) uint8; None if not available
    observed  valid mask (H, W) by season
    """

    item: HeldOut
    x: NDArray[np.float32]
    labels: NDArray[np.uint8]
    purity: NDArray[np.uint8] | None
    observed: dict[str, NDArray[np.bool_]]

    @property
    def interior(self) -> tuple[slice, slice]:
        """Slices of the held-out pixels in the window."""
        return self.item[1].interior.slices_in(self.item[1].window)


@dataclass(frozen=True)
class ModelEvaluator:
    """Evaluates an engine on the blocks of a split.

    held_out   window plans and labelled dataset
    purity     area name -> raster of the purity of its labels, percent; any may be missing
    tile_size  side in pixels of the squares that are ranked by accuracy
    """

    engine: Engine
    held_out: HeldOutMap
    purity: Mapping[str, Path]
    tile_size: int
    batch_size: int = 8

    def run(
        self,
        part: Part,
        windows: Sequence[HeldOut] | None = None,
        sample: LogitSample | None = None,
        progress: Progress = SILENT,
    ) -> EvaluationCounts:
        """Count the predictions of the blocks of a part of the split; add logits to a ``sample``.

        windows  of ``held_out.windows(part)``, by default all; a subset only if they do not blend
        """
        windows = self.held_out.windows(part) if windows is None else windows
        counts = EvaluationCounts.begin(self.held_out.dataset, part, self.tile_size)
        self.held_out.reset()
        waiting: list[_Window] = []
        with progress.bar(f"judging on {part.label}", len(windows), "windows") as advance:
            for batch in prefetch(batched(windows, self.batch_size), self._reader()):
                waiting += [window for _, window in batch if window is not None]
                if len(waiting) >= self.batch_size:
                    self._evaluate(counts, waiting[: self.batch_size], sample)
                    del waiting[: self.batch_size]
                advance(len(batch))
            if waiting:
                self._evaluate(counts, waiting, sample)
        return counts

    def _reader(self) -> Callable[[HeldOut], _Window | None]:
        """Function that reads a window; it returns None if no pixel that the window contributes to is labelled."""
        dataset = self.held_out.dataset
        known = dataset.legend.index_table() != IGNORE_INDEX

        def read(item: HeldOut) -> _Window | None:
            area, window = item[0], item[1].window
            part = self.held_out.extent(item) if self.held_out.blends else item[1].interior
            if not known[read_labels(dataset.labels[area], part)].any():
                return None  # with sparse labels, most windows
            observed, labels = dataset.read_hwc(area, window)
            purity = None
            if area in self.purity:
                purity = np.full(window.shape, NOT_KNOWN, np.uint8)
                inside = window.clip(dataset.areas[area].shape)
                purity[inside.slices_in(window)] = read_labels(self.purity[area], inside)
            x = self.engine.header.inputs.encode(observed)
            return _Window(item, x, labels, purity, {s: valid for s, (_, valid) in observed.items()})

        return read

    def _evaluate(self, counts: EvaluationCounts, batch: list[_Window], sample: LogitSample | None) -> None:
        """Predict a batch of windows and count their interiors."""
        x = torch.from_numpy(np.stack([window.x for window in batch]))
        logits = self.held_out.blend([window.item for window in batch], self.engine.logits(x))
        predicted = _argmax(logits)
        for i, window in enumerate(batch):
            area, planned = window.item
            if not planned.interior.height:  # it only contributes to other blocks
                continue
            block = counts.add(area, planned, window.labels, predicted[i], window.purity)
            if sample is not None:
                _add_to_sample(sample, window, logits[i], counts, block)
        if len(self.engine.header.inputs.seasons) > 1:
            self._evaluate_seasons(counts, batch, x, predicted)

    def _evaluate_seasons(
        self, counts: EvaluationCounts, batch: list[_Window], x: Tensor, predicted: NDArray[np.uint8]
    ) -> None:
        """Count by season: predictions from each alone if the model allows it, else by the seasons observed."""
        inputs = self.engine.header.inputs
        bands, stacked = len(inputs.bands), inputs.mode == "stack"
        if stacked:
            for window, classes in zip(batch, predicted, strict=True):
                _add_season(counts, "all seasons", window, classes, np.all([*window.observed.values()], axis=0))
        for number, season in enumerate(inputs.seasons):
            if not stacked:
                alone = torch.zeros_like(x)
                channels = slice(number * bands, (number + 1) * bands)
                alone[:, channels] = x[:, channels]
                predicted = _argmax(self.engine.logits(alone))
            for window, classes in zip(batch, predicted, strict=True):
                observed = window.observed[season]
                if not stacked:
                    _add_season(counts, season, window, classes, observed)
                    continue
                others = [valid for name, valid in window.observed.items() if name != season]
                _add_season(counts, f"{season} alone", window, classes, observed & ~np.any(others, axis=0))


def _add_to_sample(
    sample: LogitSample, window: _Window, logits: Tensor, counts: EvaluationCounts, block: int
) -> None:
    """Draw labelled pixels of a window's interior into the sample; the draw depends on their position alone."""
    area, planned = window.item
    known = np.zeros(window.labels.shape, bool)
    known[window.interior] = window.labels[window.interior] != IGNORE_INDEX
    position = list(counts.tiles).index(area), planned.interior.row, planned.interior.col
    numbers = sample.draw(known, position)
    drawn = numbers < sample.share
    values = logits[:, torch.from_numpy(drawn).to(logits.device)].float().cpu().numpy()
    sample.add(counts.blocks[block].unit, values.T, window.labels[drawn], numbers[drawn])


def _add_season(
    counts: EvaluationCounts, name: str, window: _Window, predicted: NDArray[np.uint8], mask: NDArray[np.bool_]
) -> None:
    labels = np.where(mask, window.labels, IGNORE_INDEX)[window.interior]
    if (labels != IGNORE_INDEX).any():
        counts.add_season(name, labels, predicted[window.interior])


def _argmax(logits: Tensor) -> NDArray[np.uint8]:
    indices: NDArray[np.uint8] = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
    return indices
