"""Calibration by temperature scaling: of the pixels with a confidence of 0.8, 80 % should be correct.

Networks are overconfident. Dividing the logits by one number, the temperature, before the softmax corrects most of
that and changes no class (Guo et al. 2017, ICML). It is fitted by minimum negative log-likelihood to a sample of
held-out pixels. The reported figures are *cross-fitted*: blocks are divided into two halves, and each half is
evaluated with the temperature of the other; the saved temperature is fitted to all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from cobertes.atomic_io import read_json
from cobertes.errors import InputFileError

PIXELS = 200_000
"""Held-out pixels in the sample for temperature and reliability diagram."""

BINS = 20
"""Bins of equal width in confidence, for the reliability diagram and the expected calibration error."""

COLDEST, HOTTEST = 0.1, 10.0

Floats = NDArray[np.float64]


@dataclass
class LogitSample:
    """Random sample of logits of labelled pixels, collected window by window; their number need not be known.

    Each pixel has a random number, from seed and window alone, and is in the sample if that is below ``share``. At
    twice ``max_pixels``, and at the end, the share shrinks to leave ``max_pixels``.
    """

    share: float = 1.0
    seed: int = 0
    max_pixels: int = PIXELS
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    labels: list[NDArray[np.uint8]] = field(default_factory=list)
    numbers: list[NDArray[np.float64]] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    pixels: int = 0

    def draw(self, known: NDArray[np.bool_], position: Sequence[int]) -> Floats:
        """Draw the random numbers (height, width) of the window at ``position``; infinite if not ``known``."""
        return np.where(known, np.random.default_rng((self.seed, *position)).random(known.shape), np.inf)

    def add(
        self, unit: str, logits: NDArray[np.float32], labels: NDArray[np.uint8], numbers: Floats | None = None
    ) -> None:
        """Add logits (n, K) of pixels of a unit, with class indices and random numbers (n,) below ``share``.

        Numbers default to random ones.
        """
        if numbers is None:
            numbers = np.random.default_rng((self.seed, len(self.units))).random(len(labels)) * self.share
        if len(labels):
            self.logits.append(logits)
            self.labels.append(labels)
            self.numbers.append(numbers)
            self.units.append(unit)
            self.pixels += len(labels)
        if self.pixels > 2 * self.max_pixels:
            self._thin()

    def _thin(self) -> None:
        self.share = float(np.partition(np.concatenate(self.numbers), self.max_pixels)[self.max_pixels])
        masks = [numbers < self.share for numbers in self.numbers]
        parts = zip(self.units, self.logits, self.labels, self.numbers, masks, strict=True)
        left = [(unit, z[at], y[at], n[at]) for unit, z, y, n, at in parts if at.any()]
        self.units, self.logits, self.labels, self.numbers = map(list, zip(*left, strict=True))
        self.pixels = self.max_pixels

    def arrays(self) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
        """Logits (n, K), class indices (n,) and unit index (n,) of the sample."""
        if self.pixels > self.max_pixels:
            self._thin()
        numbers = {unit: number for number, unit in enumerate(dict.fromkeys(self.units))}
        unit = np.repeat([numbers[u] for u in self.units], [len(part) for part in self.labels])
        return np.concatenate(self.logits).astype(float), np.concatenate(self.labels).astype(np.int64), unit


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Fit the temperature, 0.1 to 10, by minimum negative log-likelihood; logits (n, K), class indices (n,)."""
    from scipy.optimize import minimize_scalar  # takes half a second, and prediction does not need it

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits, labels, math.exp(log_temperature))

    found = minimize_scalar(loss, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded")
    return float(math.exp(found.x))


def negative_log_likelihood(logits: Floats, labels: NDArray[np.int64], temperature: float) -> float:
    """Mean negative log-likelihood; logits (n, K), class indices (n,)."""
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())


def confidence_of(logits: Floats, temperature: float | Floats = 1.0) -> Floats:
    """Confidence (n,): probability of the most likely class; one temperature, or one per pixel (n, 1)."""
    return np.asarray(np.exp(log_softmax(logits / temperature, axis=1).max(axis=1)))


def reliability(confidence: Floats, correct: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Reliability diagram: pixels, mean confidence and accuracy of every nonempty bin of confidence."""
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(number, minlength=BINS)
    total, hits = (np.bincount(number, values, BINS) for values in (confidence, correct.astype(float)))
    return [
        {
            "from": i / BINS, "to": (i + 1) / BINS, "pixels": int(count[i]),
            "confidence": float(total[i] / count[i]), "accuracy": float(hits[i] / count[i]),
        }
        for i in np.flatnonzero(count).tolist()
    ]  # fmt: skip


def expected_calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """Expected calibration error: mean |confidence - accuracy| over the pixels (Naeini et al. 2015, AAAI)."""
    pixels = sum(b["pixels"] for b in bins)
    return sum(b["pixels"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / pixels


def risk_coverage(confidence: Floats, correct: NDArray[np.bool_], points: int = 50) -> list[dict[str, float]]:
    """Risk-coverage curve: error rate among the most confident pixels, by their share (El-Yaniv & Wiener 2010)."""
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~correct[order])
    counts = np.unique(np.ceil(np.linspace(0, 1, points + 1)[1:] * len(order)).astype(int))
    least = confidence[order][counts - 1]
    return [
        {"coverage": float(n / len(order)), "risk": float(wrong[n - 1] / n), "confidence": float(c)}
        for n, c in zip(counts, least, strict=True)
    ]


def halves(unit: NDArray[np.int64], seed: int = 0) -> NDArray[np.bool_]:
    """Half (n,) of each pixel: units are assigned whole, the largest first, to the smaller half."""
    sizes = np.bincount(unit).astype(float)
    order = np.argsort(-sizes + np.random.default_rng(seed).random(len(sizes)) * 0.5, kind="stable")
    second, load = np.zeros(len(sizes), bool), [0.0, 0.0]
    for one in order:
        side = int(load[1] < load[0])
        second[one] = bool(side)
        load[side] += sizes[one]
    return second[unit]


def calibrate(
    sample: LogitSample, test: LogitSample | None = None, *, split: str = "validation"
) -> dict[str, Any]:
    """Fit the temperature and evaluate it, for calibration.json; ``pixels`` are those it is evaluated on.

    sample   of the blocks of ``split`` (the validation blocks, if labelled); the temperature is fitted to it
    test     of the test blocks, if any; otherwise the halves of ``sample`` evaluate each other
    """
    logits, labels, unit = sample.arrays()
    temperature = fit_temperature(logits, labels)
    facts: dict[str, Any] = {"temperature": temperature, "fitted_on": split, "fitted_pixels": len(labels)}
    applied: float | Floats = temperature
    if test is not None:
        logits, labels, unit = test.arrays()
        facts |= {"reported_on": "test"}
    elif unit.max() > 0:
        second = halves(unit)
        each = [fit_temperature(logits[part], labels[part]) for part in (~second, second)]
        applied = np.where(second, each[0], each[1])[:, None]
        facts |= {"reported_on": f"{split}, each half with the temperature of the other", "halves": each}
    else:
        facts |= {"reported_on": f"{split}, the same pixels: there is one block"}
    correct = logits.argmax(axis=1) == labels
    before, after = confidence_of(logits), confidence_of(logits, applied)
    tables = {"before": reliability(before, correct), "after": reliability(after, correct)}
    log_p = log_softmax(logits / applied, axis=1)[np.arange(len(labels)), labels]
    curve = risk_coverage(after, correct)
    return facts | {
        "pixels": len(labels),
        "units": int(unit.max()) + 1,
        "expected_calibration_error": {name: expected_calibration_error(table) for name, table in tables.items()},
        "negative_log_likelihood": {
            "before": negative_log_likelihood(logits, labels, 1.0), "after": float(-log_p.mean()),
        },
        "reliability": tables,
        "risk_coverage": curve,
        "area_under_risk_coverage": float(np.mean([one["risk"] for one in curve])),
    }  # fmt: skip


def read_calibration(path: Path, fingerprint: str | None = None, tta: str | None = None) -> float | None:
    """Read the temperature that divides the logits before the softmax; None without a calibration.

    path         calibration.json of a run
    fingerprint  of the model's training; None is returned for the calibration of another model
    tta          test-time augmentation (`engines.engine.TTA`); None is returned for the calibration of another,
                 as the mean over several views is less confident than each
    Raises InputFileError for a damaged file.
    """
    if not path.exists():
        return None
    data = read_json(path)
    try:
        temperature = float(data["temperature"])
        model, views = data["model"], data["views"]
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature {temperature}")
    except (KeyError, TypeError, ValueError) as error:
        raise InputFileError(f"{path} holds no temperature ({error}). Delete it, or evaluate again.") from error
    if fingerprint is not None and model not in (None, fingerprint):
        return None
    if tta is not None and views != tta:
        return None
    return temperature


def calibrated(percent: NDArray[np.uint8], table: Sequence[dict[str, float]]) -> NDArray[np.uint8]:
    """Calibrate confidences of a map made without temperature, by isotonic regression of a `reliability` table.

    percent   uint8 of any shape; values over 100 are no confidence and are unchanged

    The result increases with the confidence: bins that violate that are pooled, weighted by pixels (Zadrozny &
    Elkan 2002, KDD).
    """
    from sklearn.isotonic import isotonic_regression

    accuracy = isotonic_regression([b["accuracy"] for b in table], sample_weight=[b["pixels"] for b in table])
    values = np.interp(np.arange(101), [100 * b["confidence"] for b in table], 100 * accuracy)
    lookup = np.arange(256, dtype=np.uint8)
    lookup[:101] = np.round(values).astype(np.uint8)
    return lookup[percent]
