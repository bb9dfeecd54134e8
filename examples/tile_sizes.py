"""Tile sizes compared: 300, 512 and 1000 px (and 512 px learnt in windows of 64) on generated landscapes.

    python examples/tile_sizes.py --out /tmp/sizes

Some landscapes of the demo's kind, one of them held out, are learnt with each tile size, with the same number of
pixels (so about the same time) and several seeds. Prints, as a Markdown table, how many tiles there are and are
kept, their bytes as arrays, seconds per epoch of an equal number of pixels, and mIoU on the held-out landscape.
Needs 9 GB of disk with the defaults and takes about an hour on two cores. Finished runs are not repeated.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from cobertes import Run, load_project
from cobertes.synthetic.demo import ORIGIN, write_demo
from cobertes.tiles.index import load_index

PROJECT = """
name = "tiles-of-{name}"
legend = "catalonia-12"
bands = ["B04", "B03", "B02", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]
{areas}
[labels]
codes = {{ 19 = "bare-soil", 41 = "water" }}

[tiles]
size = {size}
drop-only = ["water"]

[split]
by = "area"
seed = {seed}

[model]
encoder = "scratch"
width = 24

[train]
window = {window}
epochs = {epochs}
samples = {samples}
batch-size = {batch}
learning-rate = 0.002
seed = {seed}
"""

AREA = """
[[area]]
name = "landscape-{number}"
scenes = {{ april = "landscape-{number}/data/april.tif", august = "landscape-{number}/data/august.tif" }}
reference = "landscape-{number}/data/reference-1m.tif"
"""

VARIANTS = {
    "300": (300, 300, 3),
    "512": (512, 512, 1),
    "1000": (1000, 1000, 1),
    "512, windows of 64": (512, 64, 32),
}
"""Tile, window and batch: steps of about 0.1 to 1 million pixels."""


def move(folder: Path, pixels: int) -> None:
    """Give a landscape a place of its own: areas that lie on each other can't be split."""
    for path in (folder / "data").glob("*.tif"):
        with rasterio.open(path, "r+") as file:
            a = file.transform
            left = ORIGIN[0] + 10 * pixels
            if a.c != left:
                file.transform = Affine(a.a, a.b, left, a.d, a.e, a.f)


def main() -> None:
    """Generate, train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--landscapes", type=int, default=5)
    parser.add_argument("--side", type=int, default=2000, help="of a landscape, in pixels")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--mpx", type=float, default=15.0, help="millions of pixels per epoch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    for number in range(arguments.landscapes):
        folder = arguments.out / f"landscape-{number}"
        if not (folder / "project.toml").exists():
            print(f"generating {folder} ...", flush=True)
            write_demo(folder, size=arguments.side, seed=number)
        move(folder, number * 4 * arguments.side)
    areas = "".join(AREA.format(number=number) for number in range(arguments.landscapes))
    rows = []
    for name, (size, window, batch) in VARIANTS.items():
        scores, seconds = [], []
        for seed in arguments.seeds:
            path = arguments.out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.toml"
            samples = max(batch, round(arguments.mpx * 1e6 / window**2))
            path.write_text(
                PROJECT.format(
                    name=path.stem, areas=areas, size=size, window=window, batch=batch, samples=samples, seed=seed,
                    epochs=arguments.epochs,
                )
            )  # fmt: skip
            run = Run(
                load_project(path),
                arguments.out / "runs" / path.stem,
                on_message=lambda *text: print(*text, flush=True),
            )
            for stage in ("labels", "tiles", "train"):
                run.run(only=stage)
            epochs = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
            scores.append(max(epoch["miou"] for epoch in epochs))
            seconds.append(min(epoch["seconds"] for epoch in epochs))
        index = load_index(run.folder.tiles)
        kept = index[index["keep"]]
        pixels = int((kept["height"] * kept["width"]).sum())
        spread = np.std(scores, ddof=1) if len(scores) > 1 else 0
        train, held = ((kept["split"] == split).sum() for split in ("train", "validation"))
        steps = round(arguments.epochs * samples / batch)
        cells = [
            name, len(index), f"{train} + {held}", f"{pixels * 20 * 2 / 1e9:.2f} GB", f"{steps:,}",
            f"{min(seconds):.0f}", f"{np.mean(scores):.3f} ± {spread:.3f}",
        ]  # fmt: skip
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    print(
        "\n| tile, px | tiles | kept: train + validation | as arrays | steps | s / epoch | mIoU |\n"
        + "|---" * 7
        + "|"
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
