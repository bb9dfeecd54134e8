"""The confusion matrix, the one object from which all scores derive. Rows = reference, columns = predicted."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cobertes.files import replacing
from cobertes.labels.legend import IGNORE_INDEX, Legend

MIOU_MIN_SUPPORT = 1000
"""Reference pixels that a class needs in the split to count in the mean IoU."""


@dataclass(frozen=True)
class ConfusionMatrix:
    """Exact counts (K, K) int64 of labelled pixels; matrices of disjoint ground can be added."""

    counts: NDArray[np.int64]

    @classmethod
    def empty(cls, classes: int) -> "ConfusionMatrix":
        """No pixels yet."""
        return cls(np.zeros((classes, classes), np.int64))

    @classmethod
    def of(cls, reference: NDArray[Any], predicted: NDArray[Any], classes: int) -> "ConfusionMatrix":
        """Of two arrays of class indices of one shape; where ``reference`` is IGNORE_INDEX nothing counts."""
        known = reference != IGNORE_INDEX
        pairs = reference[known].astype(np.int64) * classes + predicted[known]
        return cls(np.bincount(pairs, minlength=classes**2).reshape(classes, classes))

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        return ConfusionMatrix(self.counts + other.counts)

    @property
    def support(self) -> NDArray[np.int64]:
        """(K,) reference pixels per class."""
        return self.counts.sum(axis=1)

    @property
    def overall_accuracy(self) -> float:
        """Share of pixels whose class is right; NaN without pixels."""
        return float(_ratio(np.trace(self.counts), self.counts.sum()))

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) intersection over union; NaN where the class is not in the reference."""
        hits = np.diag(self.counts)
        return self._of_present(_ratio(hits, self.support + self.counts.sum(axis=0) - hits))

    @property
    def dice(self) -> NDArray[np.float64]:
        """(K,) Dice coefficient, which is F1; NaN where the class is not in the reference."""
        return self._of_present(_ratio(2 * np.diag(self.counts), self.support + self.counts.sum(axis=0)))

    @property
    def producers_accuracy(self) -> NDArray[np.float64]:
        """(K,) recall; NaN where the class is not in the reference."""
        return _ratio(np.diag(self.counts), self.support)

    @property
    def users_accuracy(self) -> NDArray[np.float64]:
        """(K,) precision; NaN where the class is never predicted."""
        return _ratio(np.diag(self.counts), self.counts.sum(axis=0))

    @property
    def averaged(self) -> NDArray[np.bool_]:
        """(K,) which classes enter means: at least 1,000 reference pixels, or any where none has as many."""
        enough = self.support >= MIOU_MIN_SUPPORT
        return enough if enough.any() else self.support > 0

    @property
    def miou(self) -> float:
        """Mean IoU over the `averaged` classes; NaN without pixels."""
        return float(self.iou[self.averaged].mean()) if self.averaged.any() else float("nan")

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the `averaged` classes; NaN without pixels."""
        return float(self.dice[self.averaged].mean()) if self.averaged.any() else float("nan")

    def _of_present(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(self.support > 0, values, np.nan)

    def scores(self, legend: Legend) -> dict[str, Any]:
        """Everything for assessment.json (SCORES); NaN where there is nothing to score."""
        columns = {
            "iou": self.iou,
            "dice": self.dice,
            "producers_accuracy": self.producers_accuracy,
            "users_accuracy": self.users_accuracy,
            "support": self.support,
        }
        return {
            "miou": self.miou,
            "overall_accuracy": self.overall_accuracy,
            "mean_dice": self.mean_dice,
            "miou_classes": [key for key, used in zip(legend.keys, self.averaged, strict=True) if used],
            "classes": {
                c.key: {"code": c.code, "name": c.name} | {name: v[i].item() for name, v in columns.items()}
                for i, c in enumerate(legend.classes)
            },
            "confusion_matrix": self.counts.tolist(),
        }

    def save_csv(self, path: Path, legend: Legend) -> None:
        """Write the counts with class keys; the corner says which side is which."""
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["reference \\ predicted", *legend.keys])
            for key, row in zip(legend.keys, self.counts.tolist(), strict=True):
                writer.writerow([key, *row])


def _ratio(part: Any, whole: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(whole) > 0, np.asarray(part) / np.asarray(whole, float), np.nan)
