"""Results of a search: trials.csv, tune.html, and best.toml, a project with the settings of the best trial."""

import csv
import io
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cobertes
from cobertes.atomic_io import write_text
from cobertes.report.html import environment
from cobertes.scale.search_space import position, with_values
from cobertes.scale.trials import Trial, trial_settings
from cobertes.settings import WEIGHTS, Range
from cobertes.toml_io import toml_text
from cobertes.workflow.project import Project
from cobertes.workflow.scene_paths import is_remote, resolve

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 1100.0, 380.0, 60.0, 40.0, 330.0
"""Layout of the charts, in SVG units."""


def write_results(folder: Path, project: Project, trials: list[Trial], best: Trial) -> tuple[Path, Path, Path]:
    """Write trials.csv, tune.html and best.toml into the search's folder; returns their paths."""
    search = project.settings.tune.search
    table, page, best_project = (folder / name for name in ("trials.csv", "tune.html", "best.toml"))
    write_text(table, _csv(trials, search))
    write_text(best_project, best_toml(project, folder, best))
    facts = {
        "version": cobertes.__version__,
        "name": project.settings.name,
        "trials": trials,
        "best": best,
        "keys": list(search),
        "tune": project.settings.tune,
        "axes": _axes(search, _worst_first(trials, best)),
        "curves": _curves(_worst_first(trials, best)),
        "shades": _shades(trials),
        "box": {"left": LEFT, "right": WIDTH - LEFT, "top": TOP, "bottom": BOTTOM, "w": WIDTH, "h": HEIGHT},
        "best_toml": best_project.read_text(encoding="utf-8"),
    }
    write_text(page, environment("cobertes.scale").get_template("tune.html.j2").render(facts))
    return table, page, best_project


def _csv(trials: list[Trial], search: Mapping[str, Range]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "outcome", "miou", "best_epoch", "epochs", "seconds", *search, "why"])
    for trial in trials:
        score = "" if math.isnan(trial.score) else f"{trial.score:.6f}"
        values = [trial.drawn.get(key, "") for key in search]
        best, epochs, seconds = trial.best_epoch or "", len(trial.history), f"{trial.seconds:.1f}"
        writer.writerow([trial.number, trial.outcome, score, best, epochs, seconds, *values, trial.failed or ""])
    return text.getvalue()


# --- the project of the best trial


def best_toml(project: Project, folder: Path, best: Trial) -> str:
    """Text of best.toml: all settings of the trial, valid in the search's folder, and their origin."""
    settings = trial_settings(project.settings, best.drawn)
    settings = with_values(
        settings, {"name": f"{settings.name}-best", "train.precision": best.precision or settings.train.precision}
    )
    data = settings.model_dump(by_alias=True, mode="json") | {"tune": None}
    drawn = "".join(f"#     {key} = {value}\n" for key, value in best.drawn.items())
    more = ""
    if best.outcome == "stopped":
        more = (
            f"# The trial was stopped after {len(best.history)} of {settings.train.epochs} epochs; this project "
            f"goes on to the end.\n"
        )
    return (
        f"# The best trial of a search (cobertes tune), of {project.path.absolute()}\n"
        f"# Trial {best.number}: validation mIoU {best.score:.6f} in epoch {best.best_epoch}, with\n{drawn}"
        f"# Device, precision and threads are those of the trial: training again gives the same score.\n{more}"
        f"#\n#     cobertes run best.toml\n\n"
        f"{toml_text(_moved(data, project, folder))}"
    )


def _moved(data: dict[str, Any], project: Project, folder: Path) -> dict[str, Any]:
    """Settings with relative paths rewritten for another base folder."""
    prefix = os.path.relpath(project.folder.absolute(), folder.absolute())

    def path(text: str) -> str:
        return text if is_remote(text) or text.startswith(("/", "~", "$")) else f"{prefix}/{text}"

    def scene(spec: str | list[str]) -> str | list[str]:
        """One spec is a comma-separated list of files; an item of a list is a single file."""
        if isinstance(spec, list):
            return [path(one) for one in spec]
        return ",".join(path(part.strip()) for part in spec.split(","))

    def each(found: Any, move: Callable[[Any], Any]) -> Any:
        """Apply to a single value, or to the values by season."""
        return {name: move(one) for name, one in found.items()} if isinstance(found, dict) else move(found)

    def file(text: str | None) -> str | None:
        """Rewrite a path; names of built-in resources stay."""
        return path(text) if text and resolve(text, project.folder).is_file() else text

    moves = {"scenes": scene, "reference": path, "masks": path}
    return data | {
        "legend": file(data["legend"]),
        "area": [
            area
            | {key: each(area[key], move) for key, move in moves.items() if area[key]}
            | {"crosswalk": file(area["crosswalk"])}
            for area in data["area"]
        ],
        "split": data["split"] | {key: file(data["split"][key]) for key in ("groups", "polygons")},
        "model": data["model"]
        | ({} if data["model"]["weights"] in WEIGHTS else {"weights": file(data["model"]["weights"])}),
    }


# --- the page


def _shades(trials: list[Trial]) -> dict[int, float]:
    """Line opacity of each scored trial, by number: rising with the score."""
    scores = [trial.score for trial in trials if not math.isnan(trial.score)]
    low, high = min(scores), max(scores)
    span = (high - low) or 1.0
    return {t.number: 0.2 + 0.8 * (t.score - low) / span for t in trials if not math.isnan(t.score)}


def _worst_first(trials: list[Trial], best: Trial) -> list[Trial]:
    """Scored trials in drawing order: the best lies on top."""
    scored = [trial for trial in trials if not math.isnan(trial.score)]
    return sorted(scored, key=lambda trial: (trial.score, trial.number == best.number))


def _axes(search: Mapping[str, Range], scored: list[Trial]) -> dict[str, Any]:
    """Parallel coordinates: an axis per setting and one for the score, a polyline per scored trial."""
    low, high = scored[0].score, scored[-1].score
    names = [*search, "mIoU"]
    step = (WIDTH - 2 * LEFT) / max(len(names) - 1, 1)
    at = [LEFT + step * i for i in range(len(names))]

    def y(share: float) -> float:
        return BOTTOM - share * (BOTTOM - TOP)

    ticks = [
        [(y(position(values, value)), _short(value)) for value in _ends(values)] for values in search.values()
    ]
    ticks.append([(y(0.0), f"{low:.3f}"), (y(1.0), f"{high:.3f}")] if high > low else [(y(0.5), f"{low:.3f}")])
    lines = {}
    for trial in scored:
        shares = [position(values, trial.drawn[key]) for key, values in search.items()]
        shares.append((trial.score - low) / (high - low) if high > low else 0.5)
        lines[trial.number] = " ".join(f"{x:.1f},{y(share):.1f}" for x, share in zip(at, shares, strict=True))
    return {
        "axes": [{"name": n, "x": x, "ticks": t} for n, x, t in zip(names, at, ticks, strict=True)],
        "lines": lines,
    }


def _ends(values: Range) -> list[Any]:
    return list(values.choice or values.uniform or values.log_uniform or values.integer or [])


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 22 else f"{text[:21]}…"


def _curves(scored: list[Trial]) -> dict[str, Any]:
    """Learning curves: validation mIoU by epoch, a polyline per trial."""
    points = {
        trial.number: [(r["epoch"], r["miou"]) for r in trial.history if not math.isnan(r["miou"])]
        for trial in scored
    }
    every = [point for line in points.values() for point in line]
    last, top = max(e for e, _ in every), max(m for _, m in every)
    first, low = min(e for e, _ in every), min(m for _, m in every)

    def x(epoch: float) -> float:
        return LEFT + (WIDTH - 2 * LEFT) * ((epoch - first) / (last - first) if last > first else 0.5)

    def y(score: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * ((score - low) / (top - low) if top > low else 0.5)

    return {
        "lines": {name: " ".join(f"{x(e):.1f},{y(m):.1f}" for e, m in line) for name, line in points.items()},
        "ends": {name: (x(line[-1][0]), y(line[-1][1])) for name, line in points.items()},
        "x_ticks": [(x(e), f"{e:.0f}") for e in sorted({first, (first + last) // 2, last})],
        "y_ticks": [(y(m), f"{m:.3f}") for m in ([low, (low + top) / 2, top] if top > low else [low])],
    }
