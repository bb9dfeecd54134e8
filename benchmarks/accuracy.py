"""The U-Net and the random forest on the same blocks, over several splits: mean, spread, and IoU per class.

    python benchmarks/accuracy.py examples/hls-worldcover.toml --seeds 0 1 2 --out /tmp/accuracy

A seed is that of the split and of the training. Prints a Markdown table for LOG.md. Runs that are finished
are not repeated.
"""

import argparse
import dataclasses
import json
import logging
import platform
from pathlib import Path

import numpy as np
import torch

from cobertes.workflow.project import Project, load_project
from cobertes.workflow.run import Run

METHODS = ("model", "random_forest", "most_frequent")


def with_seed(project: Project, seed: int) -> Project:
    """The same project with another split and other first weights."""
    settings = project.settings
    changed = {name: getattr(settings, name).model_copy(update={"seed": seed}) for name in ("split", "train")}
    return dataclasses.replace(project, settings=settings.model_copy(update=changed))


def assess(project: Project, folder: Path) -> dict:
    """The assessment of one run, made where it is not there."""
    run = Run(project, folder, on_message=lambda stage, text: print(f"  {stage}: {text}", flush=True))
    for stage in ("labels", "tiles", "train", "evaluate"):
        run.run(only=stage)
    return json.loads(run.folder.assessment.read_text(encoding="utf-8"))


def spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    known = np.array([np.nan if value is None else value for value in values], float)
    if np.isnan(known).all():
        return "–"
    return f"{np.nanmean(known):.3f} ± {np.nanstd(known, ddof=1) if len(known) > 1 else 0:.3f}"


def table(found: list[dict]) -> str:
    """Scores by method: all seeds, then the mean; IoU per class."""
    lines = ["| | U-Net | forest | most frequent |", "|---|---|---|---|"]
    for key in ("miou", "overall_accuracy"):
        rows = {method: [scores_of(one, method)[key] for one in found] for method in METHODS}
        for seed, values in enumerate(zip(*rows.values(), strict=True)):
            lines.append(f"| {key}, split {seed + 1} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
        lines.append(f"| **{key}** | " + " | ".join(f"**{spread(values)}**" for values in rows.values()) + " |")
    for name in found[0]["model"]["classes"]:
        values = [[scores_of(one, method)["classes"][name]["iou"] for one in found] for method in METHODS]
        lines.append(f"| IoU {name} | " + " | ".join(spread(v) for v in values) + " |")
    return "\n".join(lines)


def scores_of(assessment: dict, method: str) -> dict:
    """SCORES of the model or of a baseline."""
    return assessment["model"] if method == "model" else assessment["baselines"][method]


def main() -> None:
    """Run every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="  %(message)s")
    project = load_project(arguments.project)
    found = []
    for seed in arguments.seeds:
        print(f"seed {seed}", flush=True)
        found.append(assess(with_seed(project, seed), arguments.out / f"seed-{seed}"))
    processor = torch.backends.cpu.get_cpu_capability()
    print(f"\n{arguments.project.name}, {platform.machine()} {processor}, {torch.get_num_threads()} threads\n")
    print(table(found))


if __name__ == "__main__":
    main()
