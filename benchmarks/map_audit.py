"""Changes planted into the demo's reference map, a model trained on it, and how many of them audit-map finds.

    .venv/bin/python benchmarks/map_audit.py --out /tmp/map-audit

Discs of 3 to 8 scene pixels in radius get another class in the reference map: for the labels, the ground has
changed since. The model learns from those labels, errors included, and maps the scene; audit-map ranks where it
disagrees. A patch is a hit where more than half of its pixels are planted ones; a change is found where a hit
touches it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import rasterio

from cobertes.accuracy.map_audit import audit_maps, write_patches
from cobertes.project import load_project
from cobertes.run import Run
from cobertes.stages import audited_areas
from cobertes.synthetic.demo import write_demo

RADII = 3, 8


def plant(reference: Path, factor: int, number: int, seed: int) -> np.ndarray:
    """Change discs of a map in place; returns which scene pixels were changed, by number, 0 elsewhere."""
    rng = np.random.default_rng(seed)
    with rasterio.open(reference, "r+") as file:
        codes = file.read(1)
        height, width = codes.shape[0] // factor, codes.shape[1] // factor
        middle = codes[factor // 2 :: factor, factor // 2 :: factor][:height, :width]
        planted = np.zeros((height, width), np.int32)
        classes = np.unique(middle[(middle > 0) & (middle < 12)])  # water is never taken for land
        rows, cols = np.indices(planted.shape)
        while planted.max() < number:
            radius = int(rng.integers(RADII[0], RADII[1] + 1))
            row, col = rng.integers(radius, height - radius), rng.integers(radius, width - radius)
            disc = (rows - row) ** 2 + (cols - col) ** 2 <= radius**2
            near = (rows - row) ** 2 + (cols - col) ** 2 <= (radius + 12) ** 2
            found, counts = np.unique(middle[disc], return_counts=True)
            if planted[near].any() or found[counts.argmax()] not in classes or counts.max() < 0.9 * disc.sum():
                continue
            other = rng.choice(classes[classes != found[counts.argmax()]])
            planted[disc] = planted.max() + 1
            at = slice((row - radius) * factor, (row + radius + 1) * factor)
            across = slice((col - radius) * factor, (col + radius + 1) * factor)
            fine = np.kron(disc[row - radius : row + radius + 1, col - radius : col + radius + 1],
                           np.ones((factor, factor), bool))  # fmt: skip
            codes[at, across] = np.where(fine, other, codes[at, across])
        file.write(codes, 1)
    return planted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=1200)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    noted = arguments.out / "planted.npy"
    if not noted.exists():
        write_demo(arguments.out, size=arguments.size)
        np.save(noted, plant(arguments.out / "data" / "reference-1m.tif", 10, arguments.planted, arguments.seed))
    planted = np.load(noted)
    project = load_project(arguments.out / "project.toml")
    run = Run(project, arguments.out / "runs" / "audit", tell=print)
    run.run()
    patches = audit_maps(audited_areas(project, run.files), project.legend, top=arguments.top)
    write_patches(patches, project.legend, arguments.out / "patches.gpkg", overwrite=True)
    hits, found = [], set()
    for patch in patches:
        inside = planted[tuple(patch.pixels.T)]
        hits.append(bool((inside > 0).mean() > 0.5))
        if hits[-1]:
            found |= set(inside[inside > 0].tolist())
    result = {
        "planted": int(planted.max()), "patches": len(patches), "precision": float(np.mean(hits)),
        "recall": len(found) / int(planted.max()),
        "precision of the first 50": float(np.mean(hits[:50])),
    }  # fmt: skip
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
