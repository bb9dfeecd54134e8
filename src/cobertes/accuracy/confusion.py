"""Confusion matrix, the object from which all scores derive. Rows = reference, columns = predicted."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.accuracy import metrics
from cobertes.atomic_io import StrPath, read_json, replacing, write_text
from cobertes.errors import InputFileError
from cobertes.html_repr import html_table
from cobertes.labels.legend import IGNORE_INDEX, Legend
from cobertes.numba_cache import compiled

MIOU_MIN_SUPPORT = 1000
"""Minimum reference pixels in the split for a class to enter the mean IoU."""

CORNER = "reference \\ predicted"
LANES = 4


@compiled
def _count_pairs(reference: NDArray[Any], predicted: NDArray[Any], counts: NDArray[np.int64]) -> int:
    """Count the pairs of two flat arrays in ``counts``; returns the number out of range.

    counts  (LANES, K, K): alternating lanes, since repeated additions to one cell would stall the processor
    """
    classes, invalid = counts.shape[1], 0
    for i in range(reference.size):
        r, p = reference[i], predicted[i]
        if r == IGNORE_INDEX:
            continue
        if 0 <= r < classes and 0 <= p < classes:
            counts[i & (LANES - 1), r, p] += 1
        else:
            invalid += 1
    return invalid


@dataclass(frozen=True)
class ConfusionMatrix:
    """Exact counts (K, K) int64 of labelled pixels; rows = reference, columns = predicted.

    Matrices of disjoint pixels (windows, blocks, areas, processes) can be added, also with ``sum``.
    """

    counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        shape, kind = self.counts.shape, self.counts.dtype
        if len(shape) != 2 or shape[0] != shape[1] or kind.kind not in "iu" or (self.counts < 0).any():
            raise ValueError(f"a confusion matrix holds (K, K) counts, not {shape} of {kind}")

    @classmethod
    def empty(cls, classes: int) -> "ConfusionMatrix":
        """Create a matrix of zeros."""
        return cls(np.zeros((classes, classes), np.int64))

    @classmethod
    def of(cls, reference: NDArray[Any], predicted: NDArray[Any], classes: int) -> "ConfusionMatrix":
        """Count two arrays of class indices of equal shape; pixels with the reference IGNORE_INDEX are ignored.

        Raises ValueError for different shapes, or an index that is no class.
        """
        if reference.shape != predicted.shape:
            raise ValueError(f"reference is {reference.shape}, predicted is {predicted.shape}")
        lanes = np.zeros((LANES, classes, classes), np.int64)
        invalid = _count_pairs(np.ravel(reference), np.ravel(predicted), lanes)
        if invalid:
            raise ValueError(f"{invalid} pixels have a class index outside 0 to {classes - 1}")
        return cls(lanes.sum(axis=0))

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        if self.counts.shape != other.counts.shape:
            raise ValueError(f"matrices of {len(self.counts)} and {len(other.counts)} classes can't be added")
        return ConfusionMatrix(self.counts + other.counts)

    def __radd__(self, other: int) -> "ConfusionMatrix":
        return self if other == 0 else NotImplemented

    def _repr_html_(self) -> str:
        """Table of the counts (rows: reference, columns: predicted) with overall scores."""
        head = ["reference", *map(str, range(len(self.counts))), "producer's accuracy"]
        rows = [
            (str(k), *map(int, row), float(recall))
            for k, (row, recall) in enumerate(zip(self.counts, self.producers_accuracy, strict=True))
        ]
        rows.append(("user's accuracy", *map(float, self.users_accuracy), ""))
        caption = f"mIoU {self.miou:.3f}, overall accuracy {self.overall_accuracy:.3f}, {self.pixels:,} pixels"
        return html_table(head, rows, caption)

    def plot(self, legend: Legend | None = None, ax: Any = None) -> Any:
        """Draw the matrix, each row as shares of its reference pixels; returns the matplotlib axes."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(layout="constrained")[1]
        support = np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        image = ax.imshow(self.counts / support, vmin=0, vmax=1, cmap="Blues")
        names = legend.keys if legend else list(map(str, range(len(self.counts))))
        ax.set_xticks(range(len(names)), names, rotation=90)
        ax.set_yticks(range(len(names)), names)
        ax.set_xlabel("predicted")
        ax.set_ylabel("reference")
        ax.figure.colorbar(image, ax=ax, label="share of the reference class")
        return ax

    def __str__(self) -> str:
        return self.describe([str(k) for k in range(len(self.counts))])

    def describe(self, names: list[str]) -> str:
        """Format the counts as a table with class names and labelled sides."""
        cells = [[CORNER, *names], *([name, *map(str, row)] for name, row in zip(names, self.counts, strict=True))]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells)

    @property
    def pixels(self) -> int:
        """Number of evaluated pixels."""
        return int(self.counts.sum())

    @property
    def support(self) -> NDArray[np.int64]:
        """Support (K,): reference pixels per class."""
        return self.counts.sum(axis=1)

    @property
    def overall_accuracy(self) -> float:
        """Share of pixels predicted correctly; NaN without pixels."""
        return float(metrics.overall_accuracy(self.counts))

    @property
    def balanced_accuracy(self) -> float:
        """Mean producer's accuracy over the `averaged` classes; NaN without pixels."""
        return float(metrics.mean_over(self.producers_accuracy, self.averaged))

    @property
    def kappa(self) -> float:
        """Cohen's kappa; NaN without pixels, or with one and the same class on both sides."""
        return float(metrics.kappa(self.counts))

    @property
    def frequency_weighted_iou(self) -> float:
        """IoU weighted by the reference pixels of the classes; NaN without pixels."""
        return float(metrics.frequency_weighted_iou(self.counts))

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union (K,); NaN for a class not in the reference."""
        return metrics.iou(self.counts)

    @property
    def dice(self) -> NDArray[np.float64]:
        """Dice coefficient (K,), or F1; NaN for a class not in the reference."""
        return metrics.dice(self.counts)

    @property
    def producers_accuracy(self) -> NDArray[np.float64]:
        """Producer's accuracy (K,), or recall; NaN for a class not in the reference."""
        return metrics.producers_accuracy(self.counts)

    @property
    def users_accuracy(self) -> NDArray[np.float64]:
        """User's accuracy (K,), or precision; NaN for a class never predicted."""
        return metrics.users_accuracy(self.counts)

    @property
    def averaged(self) -> NDArray[np.bool_]:
        """Classes (K,) that enter means: at least 1,000 reference pixels, or any if no class has as many."""
        enough = self.support >= MIOU_MIN_SUPPORT
        return enough if enough.any() else self.support > 0

    @property
    def miou(self) -> float:
        """Mean IoU over the `averaged` classes; NaN without pixels."""
        return float(metrics.mean_over(self.iou, self.averaged))

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the `averaged` classes; NaN without pixels."""
        return float(metrics.mean_over(self.dice, self.averaged))

    def scores(self, legend: Legend, hectares: NDArray[np.float64] | None = None) -> dict[str, Any]:
        """Scores for assessment.json (SCORES); NaN for scores without pixels.

        hectares   (K,) area of the support, if the pixel size is known
        """
        columns: dict[str, NDArray[Any]] = {
            "iou": self.iou,
            "dice": self.dice,
            "producers_accuracy": self.producers_accuracy,
            "users_accuracy": self.users_accuracy,
            "support": self.support,
        }
        if hectares is not None:
            columns["hectares"] = hectares
        return {
            **self.overall_scores(),
            "miou_classes": [key for key, used in zip(legend.keys, self.averaged, strict=True) if used],
            "classes": {
                c.key: {"code": c.code, "name": c.name} | {name: v[i].item() for name, v in columns.items()}
                for i, c in enumerate(legend.classes)
            },
            "confusion_matrix": self.counts.tolist(),
        }

    def overall_scores(self) -> dict[str, float]:
        """Scores over all classes."""
        return {
            "miou": self.miou,
            "overall_accuracy": self.overall_accuracy,
            "mean_dice": self.mean_dice,
            "balanced_accuracy": self.balanced_accuracy,
            "kappa": self.kappa,
            "frequency_weighted_iou": self.frequency_weighted_iou,
        }

    def save_csv(self, path: StrPath, legend: Legend) -> None:
        """Write the counts as CSV with class keys; the corner cell labels the sides."""
        with replacing(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([CORNER, *legend.keys])
            for key, row in zip(legend.keys, self.counts.tolist(), strict=True):
                writer.writerow([key, *row])

    def save_json(self, path: StrPath, legend: Legend) -> None:
        """Write the counts as JSON with class keys and labelled sides, one line per row."""
        rows = ",\n    ".join(map(json.dumps, self.counts.tolist()))
        head = json.dumps({"rows": "reference", "columns": "predicted", "classes": legend.keys}, indent=2)
        write_text(Path(path), f'{head[:-2]},\n  "counts": [\n    {rows}\n  ]\n}}\n')

    @classmethod
    def load_json(cls, path: StrPath, keys: list[str]) -> "ConfusionMatrix":
        """Read a file of `save_json`. Raises InputFileError if damaged, or for classes other than ``keys``."""
        return cls.from_dict(read_json(Path(path)), keys, Path(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], keys: list[str], path: Path) -> "ConfusionMatrix":
        """Restore from the content of the file ``path``; errors as `load_json`."""
        try:
            if (data["rows"], data["columns"]) != ("reference", "predicted"):
                raise ValueError(f"its rows are '{data['rows']}'")
            if list(data["classes"]) != keys:
                raise ValueError(f"its classes are {', '.join(data['classes'])}")
            return cls(np.array(data["counts"], np.int64).reshape(len(keys), len(keys)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputFileError(f"{path} is no confusion matrix of {', '.join(keys)}: {error}") from error
