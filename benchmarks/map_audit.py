"""Changes planted into the demo, and how many of them audit-map finds among its strongest patches.

    .venv/bin/python benchmarks/map_audit.py --out /tmp/map-audit [--when before|after]

Discs of 3 to 8 scene pixels in radius get another class: ``after`` training in the labels, as where a model is
used on ground that has changed since; ``before`` it in the reference map, so that the model learns from the errors
too. A patch is a hit where more than half of its pixels are planted; a change is found where a hit touches it.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
from rasterio.features import rasterize

from cobertes.accuracy.disagreement import Patch, audit_maps, write_patches
from cobertes.synthetic.demo import write_demo
from cobertes.workflow.evaluation import audited_areas
from cobertes.workflow.project import load_project
from cobertes.workflow.run import Run

RADII = 3, 8


def plant(labels: np.ndarray, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels (height, width) of labels are changed, by number (0: not), and the codes that they get."""
    rng = np.random.default_rng(seed)
    height, width = labels.shape
    planted, codes = np.zeros(labels.shape, np.int32), labels.copy()
    classes = np.unique(labels[(labels > 0) & (labels < 12)])  # water is never taken for land
    rows, cols = np.indices(labels.shape)
    while planted.max() < number:
        radius = int(rng.integers(RADII[0], RADII[1] + 1))
        row, col = rng.integers(radius, height - radius), rng.integers(radius, width - radius)
        distance = (rows - row) ** 2 + (cols - col) ** 2
        disc, near = distance <= radius**2, distance <= (radius + 12) ** 2
        found, counts = np.unique(labels[disc], return_counts=True)
        most = found[counts.argmax()]
        if planted[near].any() or most not in classes or counts.max() < 0.9 * disc.sum():
            continue
        planted[disc] = planted.max() + 1
        codes[disc] = rng.choice(classes[classes != most])
    return planted, codes


def plant_in_file(path: Path, number: int, seed: int, factor: int = 1) -> np.ndarray:
    """Change discs of a raster in place, ``factor`` of whose pixels make one of the scene; returns the planted."""
    with rasterio.open(path) as file:
        profile, fine, colours = file.profile, file.read(1), file.colormap(1)
    middle = fine[factor // 2 :: factor, factor // 2 :: factor]
    planted, codes = plant(middle, number, seed)
    changed = np.kron(planted > 0, np.ones((factor, factor), bool))
    fine[: len(changed), : changed.shape[1]][changed] = np.kron(codes, np.ones((factor, factor), np.uint8))[
        changed
    ]
    path.unlink()
    with rasterio.open(path, "w", **(profile | {"driver": "GTiff"})) as file:
        file.write(fine, 1)
        file.write_colormap(1, colours)
    return planted


def judge(patches: Sequence[Patch], planted: np.ndarray) -> dict[str, float]:
    """Precision and recall of ranked patches."""
    hits, found = [], set()
    for patch in patches:
        there = rasterize([patch.outline], planted.shape, transform=patch.grid.affine) > 0
        inside = planted[there]
        hits.append(bool((inside > 0).mean() > 0.5))
        if hits[-1]:
            found |= set(inside[inside > 0].tolist())
    return {
        "planted": int(planted.max()),
        "patches": len(patches),
        "precision": float(np.mean(hits)),
        "precision of the first 50": float(np.mean(hits[:50])),
        "recall": len(found) / int(planted.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--when", choices=("before", "after"), default="after")
    parser.add_argument("--size", type=int, default=1200)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--min-confidence", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    noted = arguments.out / "planted.npy"
    if not (arguments.out / "project.toml").exists():
        write_demo(arguments.out, size=arguments.size)
        if arguments.when == "before":
            reference = arguments.out / "data" / "reference-1m.tif"
            np.save(noted, plant_in_file(reference, arguments.planted, arguments.seed, factor=10))
    project = load_project(arguments.out / "project.toml")
    run = Run(project, arguments.out / "runs" / "demo", on_message=print)
    if not run.folder.calibration.exists():
        run.run()
    areas = audited_areas(project, run.folder)
    if arguments.when == "after":
        changed = arguments.out / "changed.tif"
        shutil.copy(areas[0].labels, changed)
        np.save(noted, plant_in_file(changed, arguments.planted, arguments.seed))
        areas = [replace(areas[0], labels=changed)]
    patches = audit_maps(areas, project.legend, top=arguments.top, min_confidence=arguments.min_confidence)
    write_patches(patches, project.legend, arguments.out / "patches.gpkg", overwrite=True)
    print(json.dumps(judge(patches, np.load(noted)), indent=2))


if __name__ == "__main__":
    main()
