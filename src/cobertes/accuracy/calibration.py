"""Calibration: whether a confidence of 0.8 is right 8 times out of 10, and the temperature that makes it so.

Networks are surer than they are right. Dividing the logits by one number, the temperature, before the softmax
repairs most of that and changes no class (Guo et al. 2017, ICML). It is fitted by least negative log-likelihood to
a sample of held-out pixels. What is reported of it is *cross-fitted*: blocks are dealt into two halves, and each
half is judged with the temperature of the other; the temperature that is kept is that of all.
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
"""Held-out pixels that temperature and diagram rest on."""

BINS = 20
"""Of equal width in confidence, for the reliability diagram and the expected calibration error."""

COLDEST, HOTTEST = 0.1, 10.0

Floats = NDArray[np.float64]


@dataclass
class LogitSample:
    """Logits of some labelled pixels, collected window by window: a random sample, however many there will be.

    Each pixel draws a number from seed and window alone, and is in the sample where that is below ``share``. When
    twice ``most`` are in it, and at the end, the share shrinks to what leaves ``most``.
    """

    share: float = 1.0
    seed: int = 0
    most: int = PIXELS
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    labels: list[NDArray[np.uint8]] = field(default_factory=list)
    numbers: list[NDArray[np.float64]] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    pixels: int = 0

    def draw(self, known: NDArray[np.bool_], place: Sequence[int]) -> Floats:
        """The numbers (height, width) of a window's pixels; infinite where they are not ``known``."""
        return np.where(known, np.random.default_rng((self.seed, *place)).random(known.shape), np.inf)

    def add(
        self, unit: str, logits: NDArray[np.float32], labels: NDArray[np.uint8], numbers: Floats | None = None
    ) -> None:
        """Take in logits (n, K) of pixels of a unit, with class indices and numbers (n,) below ``share``.

        Without numbers they draw theirs here.
        """
        if numbers is None:
            numbers = np.random.default_rng((self.seed, len(self.units))).random(len(labels)) * self.share
        if len(labels):
            self.logits.append(logits)
            self.labels.append(labels)
            self.numbers.append(numbers)
            self.units.append(unit)
            self.pixels += len(labels)
        if self.pixels > 2 * self.most:
            self._thin()

    def _thin(self) -> None:
        self.share = float(np.partition(np.concatenate(self.numbers), self.most)[self.most])
        kept = [numbers < self.share for numbers in self.numbers]
        parts = zip(self.units, self.logits, self.labels, self.numbers, kept, strict=True)
        left = [(unit, z[at], y[at], n[at]) for unit, z, y, n, at in parts if at.any()]
        self.units, self.logits, self.labels, self.numbers = map(list, zip(*left, strict=True))
        self.pixels = self.most

    def arrays(self) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
        """Logits (n, K), class indices (n,) and the number of each pixel's unit (n,)."""
        if self.pixels > self.most:
            self._thin()
        numbers = {unit: number for number, unit in enumerate(dict.fromkeys(self.units))}
        unit = np.repeat([numbers[u] for u in self.units], [len(part) for part in self.labels])
        return np.concatenate(self.logits).astype(float), np.concatenate(self.labels).astype(np.int64), unit


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """The temperature of least negative log-likelihood, from 0.1 to 10; logits (n, K), class indices (n,)."""
    from scipy.optimize import minimize_scalar  # half a second, which a map does not need

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(logits, labels, math.exp(log_temperature))

    found = minimize_scalar(loss, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded")
    return float(math.exp(found.x))


def negative_log_likelihood(logits: Floats, labels: NDArray[np.int64], temperature: float) -> float:
    """Mean over the pixels."""
    return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())


def confidence_of(logits: Floats, temperature: float | Floats = 1.0) -> Floats:
    """(n,) probability of the likeliest class; one temperature, or one per pixel (n, 1)."""
    return np.asarray(np.exp(log_softmax(logits / temperature, axis=1).max(axis=1)))


def reliability(confidence: Floats, right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Pixels, mean confidence and accuracy of every bin of confidence that holds a pixel."""
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(number, minlength=BINS)
    total, hits = (np.bincount(number, values, BINS) for values in (confidence, right.astype(float)))
    return [
        {
            "from": i / BINS, "to": (i + 1) / BINS, "pixels": int(count[i]),
            "confidence": float(total[i] / count[i]), "accuracy": float(hits[i] / count[i]),
        }
        for i in np.flatnonzero(count).tolist()
    ]  # fmt: skip


def expected_calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """Mean gap between confidence and accuracy over the pixels (Naeini et al. 2015), of `reliability`'s bins."""
    pixels = sum(one["pixels"] for one in bins)
    return sum(one["pixels"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / pixels


def risk_coverage(confidence: Floats, right: NDArray[np.bool_], points: int = 50) -> list[dict[str, float]]:
    """Share of errors among the surest pixels, by the share that is kept (El-Yaniv & Wiener 2010)."""
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~right[order])
    kept = np.unique(np.ceil(np.linspace(0, 1, points + 1)[1:] * len(order)).astype(int))
    least = confidence[order][kept - 1]
    return [
        {"coverage": float(n / len(order)), "risk": float(wrong[n - 1] / n), "confidence": float(c)}
        for n, c in zip(kept, least, strict=True)
    ]


def halves(unit: NDArray[np.int64], seed: int = 0) -> NDArray[np.bool_]:
    """(n,) which half each pixel is in: units are dealt as wholes, the largest first, to the lighter half."""
    sizes = np.bincount(unit).astype(float)
    order = np.argsort(-sizes + np.random.default_rng(seed).random(len(sizes)) * 0.5, kind="stable")
    second, load = np.zeros(len(sizes), bool), [0.0, 0.0]
    for one in order:
        side = int(load[1] < load[0])
        second[one] = bool(side)
        load[side] += sizes[one]
    return second[unit]


def calibrate(
    sample: LogitSample, judged: LogitSample | None = None, *, split: str = "validation"
) -> dict[str, Any]:
    """Temperature and what is known of it, for calibration.json; ``pixels`` are those that it is reported on.

    sample   of the blocks of ``split``, the validation blocks where they are labelled: the temperature is fitted
             to it
    judged   of the test blocks where there are some; else halves of the sample judge each other
    """
    logits, labels, unit = sample.arrays()
    temperature = fit_temperature(logits, labels)
    facts: dict[str, Any] = {"temperature": temperature, "fitted_on": split, "fitted_pixels": len(labels)}
    applied: float | Floats = temperature
    if judged is not None:
        logits, labels, unit = judged.arrays()
        facts |= {"reported_on": "test"}
    elif unit.max() > 0:
        second = halves(unit)
        each = [fit_temperature(logits[part], labels[part]) for part in (~second, second)]
        applied = np.where(second, each[0], each[1])[:, None]
        facts |= {"reported_on": f"{split}, each half with the temperature of the other", "halves": each}
    else:
        facts |= {"reported_on": f"{split}, the same pixels: there is one block"}
    right = logits.argmax(axis=1) == labels
    before, after = confidence_of(logits), confidence_of(logits, applied)
    tables = {"before": reliability(before, right), "after": reliability(after, right)}
    log_p = log_softmax(logits / applied, axis=1)[np.arange(len(labels)), labels]
    curve = risk_coverage(after, right)
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
    """The temperature that logits are divided by before the softmax; None where there is no calibration.

    path         calibration.json of a run
    fingerprint  of the model's training: None too where the file was made for another model
    views        of the windows (`apply.engine.VIEWS`): None too where the file was made for others, as the mean of
                 several views is less sure than each
    Raises InputFileError where the file is damaged.
    """
    if not path.exists():
        return None
    data = read_json(path)
    try:
        temperature = float(data["temperature"])
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature {temperature}")
    except (KeyError, TypeError, ValueError) as error:
        raise InputFileError(f"{path} holds no temperature ({error}). Delete it, or evaluate again.") from error
    if fingerprint is not None and data.get("model") not in (None, fingerprint):
        return None
    if tta is not None and data.get("views", "none") != tta:
        return None
    return temperature


def calibrated(percent: NDArray[np.uint8], table: Sequence[dict[str, float]]) -> NDArray[np.uint8]:
    """What confidences in percent are worth by a table of `reliability`, for maps made without temperature.

    percent   uint8 of any shape, values over 100 are no confidence and stay

    A surer pixel is worth as much or more: bins that say otherwise are pooled by their pixels (isotonic
    regression; Zadrozny & Elkan 2002), so that a bin of few is no match for one of many.
    """
    from sklearn.isotonic import isotonic_regression

    rise = isotonic_regression([one["accuracy"] for one in table], sample_weight=[one["pixels"] for one in table])
    values = np.interp(np.arange(101), [100 * one["confidence"] for one in table], 100 * rise)
    lookup = np.arange(256, dtype=np.uint8)
    lookup[:101] = np.round(values).astype(np.uint8)
    return lookup[percent]
