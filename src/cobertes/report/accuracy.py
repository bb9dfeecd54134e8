"""Accuracy sections of the report: table rows and values from assessment.json; nothing is computed twice.

An unknown value (null, NaN) stays unknown and is never shown as 0 or 1. An older assessment without
intervals, blocks or groups gives a report without them.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex

from cobertes.labels.legend import Legend, LegendClass
from cobertes.report.html import known, known_range

ENOUGH_PIXELS = 1000
"""Minimum reference pixels of an averaged class, if the assessment does not list the averaged ones."""

BLOCK_COLOURS = matplotlib.colormaps["cividis"]

CLASS_SCORES = ("iou", "dice", "producers_accuracy", "users_accuracy")


def judgement(assessment: Mapping[str, Any], legend: Legend) -> dict[str, Any]:
    """Summary: methods side by side, best and worst class, classes in the average."""
    model, baselines = assessment["model"], assessment.get("baselines") or {}
    averaged = _averaged(assessment)
    ranked = sorted(
        (row for row in class_rows(assessment, legend) if row["iou"] is not None and row["land"].key in averaged),
        key=lambda row: row["iou"],
    )
    worst = ranked[0] if len(ranked) > 1 else None
    intervals = assessment.get("intervals") or {}
    return {
        "split": assessment.get("split", "validation"),
        "used_for": assessment.get("used_for", ["choosing the epoch"]),
        "pixels": assessment.get("pixels"),
        "units": intervals.get("units"),
        "independent": intervals.get("independent", True),
        "intervals": {key: known_range(intervals.get(key)) for key in ("miou", "overall_accuracy")},
        "against": _against(assessment),
        "methods": {name: _heads(scores) for name, scores in {"model": model, **baselines}.items()},
        "forest": _heads(baselines["random_forest"]) if "random_forest" in baselines else None,
        "best": ranked[-1] if ranked else None,
        "worst": worst,
        "weak": ranked[: max(0, min(3, len(ranked) - 1))],
        "taken_for": _taken_for(model["confusion_matrix"], legend, worst["land"]) if worst else None,
        "averaged": len(averaged),
        "enough": any(model["classes"].get(key, {}).get("support", 0) >= ENOUGH_PIXELS for key in averaged),
    }


def _heads(scores: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        key: known(scores.get(key))
        for key in ("miou", "overall_accuracy", "balanced_accuracy", "kappa", "frequency_weighted_iou")
    }


def _against(assessment: Mapping[str, Any]) -> dict[str, Any]:
    """Baseline -> score -> difference with interval and verdict; empty if the assessment has none."""
    return {
        name: {key: {**one, "interval": known_range(one["interval"])} for key, one in found.items()}
        for name, found in (assessment.get("differences") or {}).items()
    }


def _averaged(assessment: Mapping[str, Any]) -> set[str]:
    listed = assessment.get("miou_classes", assessment["model"].get("miou_classes"))
    if listed is not None:
        return set(listed)
    return {key for key, scores in assessment["model"]["classes"].items() if scores["support"] >= ENOUGH_PIXELS}


def _taken_for(matrix: Sequence[Sequence[int]], legend: Legend, land: LegendClass) -> tuple[str, float] | None:
    """Most frequent wrong class of the pixels of ``land``, and its share of the reference pixels."""
    index = legend.index(land.key)
    row = np.array(matrix[index], float)
    others = np.where(np.arange(len(row)) == index, 0, row)
    if not others.any():
        return None
    return legend.classes[int(others.argmax())].name, float(others.max() / row.sum())


def class_rows(assessment: Mapping[str, Any], legend: Legend) -> list[dict[str, Any]]:
    """One row per class of the legend; ``state`` is ``absent`` (no reference pixel), ``few`` or empty.

    ``ranges`` holds an interval per score, or None; ``units`` the blocks with reference pixels of the class.
    """
    scores = assessment["model"]["classes"]
    forest = (assessment.get("baselines") or {}).get("random_forest", {}).get("classes", {})
    intervals = (assessment.get("intervals") or {}).get("classes", {})
    averaged = _averaged(assessment)
    rows = []
    for land in legend.classes:
        mine, spread = scores.get(land.key, {}), intervals.get(land.key, {})
        support = mine.get("support") or 0
        state = "absent" if not support else "" if land.key in averaged else "few"
        row = {key: None if state == "absent" else known(mine.get(key)) for key in CLASS_SCORES}
        row["ranges"] = {key: known_range(spread.get(key)) if state != "absent" else None for key in CLASS_SCORES}
        other = None if state == "absent" else known(forest.get(land.key, {}).get("iou"))
        rows.append({
            "land": land, "support": support, "hectares": known(mine.get("hectares")), "state": state,
            "units": spread.get("units"), "forest": other, **row,
        })  # fmt: skip
    return rows


def matrix_rows(counts: Sequence[Sequence[int]], legend: Legend) -> list[dict[str, Any]]:
    """Rows of the confusion matrix; every cell with its count and its share of its row and of its column."""
    matrix = np.array(counts, float)
    with np.errstate(invalid="ignore"):
        by_row = matrix / matrix.sum(axis=1, keepdims=True)
        by_col = matrix / matrix.sum(axis=0, keepdims=True)
    return [
        {
            "land": land,
            "cells": [
                {"count": int(n), "row": known(float(r)), "col": known(float(c)), "predicted": legend.classes[j]}
                for j, (n, r, c) in enumerate(zip(matrix[i], by_row[i], by_col[i], strict=True))
            ],
        }
        for i, land in enumerate(legend.classes)
    ]


# --- groups of pixels


def parts(assessment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of scores by purity, distance to boundaries and season; those that are known."""
    found = []
    purity, boundaries = assessment.get("purity"), assessment.get("boundaries")
    if purity and purity["groups"]["mixed"]["pixels"]:  # a map as coarse as the scene has no mixed pixels
        found.append({
            "kind": "purity", "title": "Pure and mixed pixels", "mean": known(purity.get("mean")),
            "rows": _part_rows({name: one for name, one in purity["groups"].items() if name != "mixed"}),
            "mixed": _part_rows({"mixed": purity["groups"]["mixed"]}),
        })  # fmt: skip
    if boundaries:
        iou = {name: known(one["mean"]) for name, one in boundaries["boundary_iou"].items()}
        rows = _part_rows(boundaries["zones"])
        found.append({"kind": "boundaries", "title": "Near and far from boundaries", "rows": rows, "iou": iou})
    if len(assessment.get("seasons") or {}) > 1:
        rows = _part_rows(assessment["seasons"])
        found.append({"kind": "seasons", "title": "Seasons", "rows": rows})
    return found


def _part_rows(groups: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"name": name, **{key: known(value) for key, value in scores.items()}}
        for name, scores in groups.items()
        if scores["pixels"]
    ]


def area_rows(assessment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores by area, if there are several; the worst first."""
    areas = assessment.get("areas") or {}
    rows = _part_rows(areas) if len(areas) > 1 else []
    return sorted(rows, key=lambda row: (row["overall_accuracy"] is None, row["overall_accuracy"]))


def block_map(assessment: Mapping[str, Any], shown: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Held-out blocks by area, with accuracy and a colour from the worst to the best; shown areas only."""
    found = [one for one in assessment.get("block_scores") or [] if one["pixels"] and one["area"] in shown]
    if not found:
        return {}
    low, high = block_range(assessment)
    areas: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        share = (one["overall_accuracy"] - low) / (high - low) if high > low else 1.0
        row, col, height, width = one["window"]
        areas.setdefault(one["area"], []).append({
            "x": col, "y": row, "width": width, "height": height, "accuracy": one["overall_accuracy"],
            "pixels": one["pixels"], "colour": to_hex(BLOCK_COLOURS(share)),
            "ink": "#fff" if share < 0.55 else "#000",
        })  # fmt: skip
    return areas


def block_range(assessment: Mapping[str, Any]) -> tuple[float, float]:
    """Lowest and highest overall accuracy of the held-out blocks."""
    shares = [one["overall_accuracy"] for one in assessment["block_scores"] if one["pixels"]]
    return min(shares), max(shares)


# --- calibration

PLOT = (40.0, 290.0, 12.0, 212.0)
"""Left, right, top and bottom of a diagram from 0 to 1, in SVG units."""

FEW = 50
"""Minimum pixels of a bin in the reliability diagram: with fewer, its accuracy is chance."""


def calibration_facts(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """Temperature, errors, and the two diagrams as SVG paths."""
    curves = {
        name: [(one["confidence"], one["accuracy"]) for one in table if one["pixels"] >= FEW]
        for name, table in calibration["reliability"].items()
    }
    risk = [(one["coverage"], one["risk"]) for one in calibration["risk_coverage"]]
    top = max(0.05, ceil(20 * max(value for _, value in risk)) / 20)  # five even steps of whole percents
    return {
        **{key: calibration[key] for key in ("temperature", "reported_on", "pixels")},
        "halves": calibration.get("halves"),
        "error": calibration["expected_calibration_error"],
        "curves": {
            name: {"path": _line(points), "dots": _dots(points)} for name, points in curves.items() if points
        },
        "said": _said(calibration["reliability"]["after"]),
        "risk": _line([(x, y / top) for x, y in risk]),
        "risk_top": top,
        "half": next((one["risk"] for one in calibration["risk_coverage"] if one["coverage"] >= 0.5), None),
        "all": risk[-1][1],
    }


def _dots(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    left, right, top, bottom = PLOT
    return [(round(left + (right - left) * x, 1), round(bottom - (bottom - top) * y, 1)) for x, y in points]


def _line(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in _dots(points)) if points else ""


def _said(table: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """Pixels with 75 to 85 % confidence: number, confidence and accuracy; None if they are few."""
    chosen = [one for one in table if 0.74 < one["from"] < 0.84]
    pixels = sum(one["pixels"] for one in chosen)
    if pixels < FEW:
        return None
    return {
        key: sum(one[key] * one["pixels"] for one in chosen) / pixels for key in ("confidence", "accuracy")
    } | {"pixels": pixels}
