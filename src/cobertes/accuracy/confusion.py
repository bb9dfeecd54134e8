"""The confusion matrix, the one object from which all scores derive. Rows = reference, columns = predicted."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.accuracy import metrics
from cobertes.atomic_io import read_json, replacing, write_text
from cobertes.errors import InputFileError
from cobertes.labels.legend import IGNORE_INDEX, Legend
from cobertes.numba_cache import compiled

MIOU_MIN_SUPPORT = 1000
"""Reference pixels that a class needs in the split to count in the mean IoU."""

CORNER = "reference \\ predicted"
LANES = 4


@compiled
def _count_pairs(reference: NDArray[Any], predicted: NDArray[Any], counts: NDArray[np.int64]) -> int:
    """Add the pairs of two flat arrays to ``counts``; returns how many were out of range.

    counts  (LANES, K, K): runs of one pair would wait for their own last addition, so lanes take turns
    """
    classes, strays = counts.shape[1], 0
    for i in range(reference.size):
        r, p = reference[i], predicted[i]
        if r == IGNORE_INDEX:
            continue
        if 0 <= r < classes and 0 <= p < classes:
            counts[i & (LANES - 1), r, p] += 1
        else:
            strays += 1
    return strays


@dataclass(frozen=True)
class ConfusionMatrix:
    """Exact counts (K, K) int64 of labelled pixels; rows = reference, columns = predicted.

    Matrices of disjoint ground (windows, blocks, areas, processes) can be added, also with ``sum``.
    """

    counts: NDArray[np.int64]

    def __post_init__(self) -> None:
        shape, kind = self.counts.shape, self.counts.dtype
        if len(shape) != 2 or shape[0] != shape[1] or kind.kind not in "iu" or (self.counts < 0).any():
            raise ValueError(f"a confusion matrix holds (K, K) counts, not {shape} of {kind}")

    @classmethod
    def empty(cls, classes: int) -> "ConfusionMatrix":
        """No pixels yet."""
        return cls(np.zeros((classes, classes), np.int64))

    @classmethod
    def of(cls, reference: NDArray[Any], predicted: NDArray[Any], classes: int) -> "ConfusionMatrix":
        """Of two arrays of class indices of one shape; where ``reference`` is IGNORE_INDEX nothing counts.

        Raises ValueError where the shapes differ, or an index elsewhere is not one of the classes.
        """
        if reference.shape != predicted.shape:
            raise ValueError(f"reference is {reference.shape}, predicted is {predicted.shape}")
        lanes = np.zeros((LANES, classes, classes), np.int64)
        strays = _count_pairs(np.ravel(reference), np.ravel(predicted), lanes)
        if strays:
            raise ValueError(f"{strays} pixels have a class index outside 0 to {classes - 1}")
        return cls(lanes.sum(axis=0))

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        if self.counts.shape != other.counts.shape:
            raise ValueError(f"matrices of {len(self.counts)} and {len(other.counts)} classes can't be added")
        return ConfusionMatrix(self.counts + other.counts)

    def __radd__(self, other: int) -> "ConfusionMatrix":
        return self if other == 0 else NotImplemented

    def __str__(self) -> str:
        return self.describe([str(k) for k in range(len(self.counts))])

    def describe(self, names: list[str]) -> str:
        """The counts as a table for people, with the classes' names and which side is which."""
        cells = [[CORNER, *names], *([name, *map(str, row)] for name, row in zip(names, self.counts, strict=True))]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells)

    @property
    def pixels(self) -> int:
        """Labelled pixels that were judged."""
        return int(self.counts.sum())

    @property
    def support(self) -> NDArray[np.int64]:
        """(K,) reference pixels per class."""
        return self.counts.sum(axis=1)

    @property
    def overall_accuracy(self) -> float:
        """Share of pixels whose class is right; NaN without pixels."""
        return float(metrics.overall_accuracy(self.counts))

    @property
    def balanced_accuracy(self) -> float:
        """Mean producer's accuracy over the `averaged` classes; NaN without pixels."""
        return float(metrics.mean_over(self.producers_accuracy, self.averaged))

    @property
    def kappa(self) -> float:
        """Cohen's kappa; NaN without pixels, or where one class is all there is on both sides."""
        return float(metrics.kappa(self.counts))

    @property
    def frequency_weighted_iou(self) -> float:
        """IoU weighted by the reference pixels of the classes; NaN without pixels."""
        return float(metrics.frequency_weighted_iou(self.counts))

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) intersection over union; NaN where the class is not in the reference."""
        return metrics.iou(self.counts)

    @property
    def dice(self) -> NDArray[np.float64]:
        """(K,) Dice coefficient, which is F1; NaN where the class is not in the reference."""
        return metrics.dice(self.counts)

    @property
    def producers_accuracy(self) -> NDArray[np.float64]:
        """(K,) recall; NaN where the class is not in the reference."""
        return metrics.producers_accuracy(self.counts)

    @property
    def users_accuracy(self) -> NDArray[np.float64]:
        """(K,) precision; NaN where the class is never predicted."""
        return metrics.users_accuracy(self.counts)

    @property
    def averaged(self) -> NDArray[np.bool_]:
        """(K,) which classes enter means: at least 1,000 reference pixels, or any where none has as many."""
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
        """Everything for assessment.json (SCORES); NaN where there is nothing to score.

        hectares   (K,) of the support, where the pixels' size on the ground is known
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
            **self.heads(),
            "miou_classes": [key for key, used in zip(legend.keys, self.averaged, strict=True) if used],
            "classes": {
                c.key: {"code": c.code, "name": c.name} | {name: v[i].item() for name, v in columns.items()}
                for i, c in enumerate(legend.classes)
            },
            "confusion_matrix": self.counts.tolist(),
        }

    def heads(self) -> dict[str, float]:
        """The scores of all classes together."""
        return {
            "miou": self.miou,
            "overall_accuracy": self.overall_accuracy,
            "mean_dice": self.mean_dice,
            "balanced_accuracy": self.balanced_accuracy,
            "kappa": self.kappa,
            "frequency_weighted_iou": self.frequency_weighted_iou,
        }

    def save_csv(self, path: Path, legend: Legend) -> None:
        """Write the counts with class keys; the corner says which side is which."""
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([CORNER, *legend.keys])
            for key, row in zip(legend.keys, self.counts.tolist(), strict=True):
                writer.writerow([key, *row])

    def save_json(self, path: Path, legend: Legend) -> None:
        """Write the counts with class keys as JSON that says which side is which, a row a line."""
        rows = ",\n    ".join(map(json.dumps, self.counts.tolist()))
        head = json.dumps({"rows": "reference", "columns": "predicted", "classes": legend.keys}, indent=2)
        write_text(path, f'{head[:-2]},\n  "counts": [\n    {rows}\n  ]\n}}\n')

    @classmethod
    def load_json(cls, path: Path, keys: list[str]) -> "ConfusionMatrix":
        """What `save_json` wrote. Raises InputFileError where it is damaged or of other classes than ``keys``."""
        return cls.from_dict(read_json(path), keys, path)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], keys: list[str], path: Path) -> "ConfusionMatrix":
        """The same from what the file ``path`` holds."""
        try:
            if (data["rows"], data["columns"]) != ("reference", "predicted"):
                raise ValueError(f"its rows are '{data['rows']}'")
            if list(data["classes"]) != keys:
                raise ValueError(f"its classes are {', '.join(data['classes'])}")
            return cls(np.array(data["counts"], np.int64).reshape(len(keys), len(keys)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputFileError(f"{path} is no confusion matrix of {', '.join(keys)}: {error}") from error
