"""Variants of a project's settings against each other: same ground, same number of samples, several seeds.

    python benchmarks/variants.py demo/project.toml --out /tmp/clouds --seeds 0 1 2 --epochs 20 \\
        --variant keep --variant 'drop: tiles.clouds="drop", tiles.snow="drop"'

A variant is a name, and the settings in which it differs (TOML values, dotted keys). A seed is that of split and
training. The budget is epochs, never minutes, so other work on the machine costs time but not accuracy. Scores
are those of the best epoch on the validation blocks, by which it was chosen: for comparing variants only.
Finished runs are not repeated.
"""

import argparse
import dataclasses
import logging
import platform
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from cobertes.learn.metrics_log import best_epoch, read_history
from cobertes.settings import Settings
from cobertes.workflow.project import Project, load_project
from cobertes.workflow.run import Run
from cobertes.workflow.run_folder import RunFolder

SCORES = ("miou", "overall_accuracy")


def parse(variant: str) -> tuple[str, dict[str, Any]]:
    """Name and nested settings of ``name: table.key=value, ...``."""
    name, _, text = variant.partition(":")
    return name.strip(), tomllib.loads(text.replace(", ", "\n"))


def merged(project: Project, changes: dict[str, Any], seed: int, epochs: int) -> Project:
    """The project with changed settings, another seed, and a budget of epochs."""
    settings = project.settings.model_dump(by_alias=True)
    settings["train"] |= {"epochs": epochs, "minutes": None}
    for table, keys in changes.items():
        settings[table] |= keys
    for table in ("split", "train"):
        settings[table]["seed"] = seed
    return dataclasses.replace(project, settings=Settings.model_validate(settings))


def run_until(stage: str, project: Project, folder: Path) -> RunFolder:
    """A run up to a stage, ``tiles`` or ``train``; what is there is not made again."""
    run = Run(project, folder, on_message=lambda stage, text: print(f"  {stage}: {text}", flush=True))
    for each in ("labels", "tiles", "train"):
        run.run(only=each)
        if each == stage:
            break
    return run.folder


def options(description: str | None) -> argparse.ArgumentParser:
    """What a comparison of trainings is asked for: project, seeds, epochs and where the runs go."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.3f}"


def main() -> None:
    """Train every variant with every seed and print the table."""
    parser = options(__doc__)
    parser.add_argument("--variant", action="append", required=True, type=parse)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="  %(message)s")
    project = load_project(arguments.project)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        for name, changes in arguments.variant:
            print(f"seed {seed}, {name}", flush=True)
            one = merged(project, changes, seed, arguments.epochs)
            epochs = read_history(run_until("train", one, arguments.out / f"{name}-{seed}").metrics)
            best = best_epoch(epochs)
            seconds = float(np.mean([record["seconds"] for record in epochs[1:] or epochs]))
            found.setdefault(name, []).append(best | {"seconds": seconds})
            print(f"  mIoU {best['miou']:.3f} in epoch {best['epoch']:.0f}", flush=True)
    print(f"\n{arguments.epochs} epochs, {platform.processor() or platform.machine()}\n")
    print("| variant | " + " | ".join(f"mIoU, seed {seed}" for seed in arguments.seeds), end="")
    print(" | mIoU | overall accuracy | s / epoch |\n|" + "---|" * (len(arguments.seeds) + 4))
    for name, runs in found.items():
        miou, accuracy = ([run[key] for run in runs] for key in SCORES)
        seconds = float(np.mean([run["seconds"] for run in runs]))
        each = " | ".join(f"{v:.3f}" for v in miou)
        print(f"| {name} | {each} | {spread(miou)} | {spread(accuracy)} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
