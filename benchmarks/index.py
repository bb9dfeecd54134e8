"""The tile index of a whole country: two seasons of 30,000 x 30,000 px, 10 bands, stored as in the model case.

    python benchmarks/index.py --out /tmp/index --side 30000

The scene and the labels of `cobertes demo` are repeated over a square; labels only within a disc that covers 36 %
of it, as Catalonia does. Two files of 18 GB each at the full side. Prints tiles, seconds and peak memory, for a
first index, for one with other rules and another split, and a summary of what was read.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

SEASONS = ("april", "august")
BLOCK = 96
STRIP = 960

INDEX = """
import json, sys, time
from pathlib import Path
from cobertes.geo.area import Area
from cobertes.geo.scene import open_scene
from cobertes.labels.legend import load_legend
from cobertes.settings import SplitSettings, TileSettings
from cobertes.tiles.index import build_index, save_index
import logging
logging.basicConfig(level=logging.INFO, format="  %(message)s", stream=sys.stderr)
out, size, rules = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
begin = time.monotonic()
scenes = {season: open_scene([str(out / f"{season}.tif")]) for season in ("april", "august")}
areas, legend = [Area("country", scenes)], load_legend("catalonia-12", Path())
index = build_index(areas, {"country": out / "labels.tif"}, legend,
    tiles=TileSettings(size=size, drop_only=["water"], **rules.get("tiles", {})),
    split=SplitSettings(**rules.get("split", {})), cache=out / f"{size}.npz", fingerprint="benchmark")
save_index(index.table, out / f"{size}.parquet")
kept = index.table["keep"]
print(len(index.table), int(kept.sum()), int(index.table["valid_april"].notna().sum()), index.split.block,
    f"{time.monotonic() - begin:.1f}")
"""


def generate(out: Path, side: int) -> None:
    """Scenes and labels from those of the demo, repeated."""
    out.mkdir(parents=True, exist_ok=True)
    demo = out / "demo"
    if not (demo / "project.toml").exists():
        from cobertes.synthetic.demo import write_demo
        from cobertes.workflow.project import load_project
        from cobertes.workflow.run import Run

        Run(load_project(write_demo(demo)), demo / "run").run(only="labels")
    place = {"driver": "GTiff", "height": side, "width": side, "crs": "EPSG:32631", "BIGTIFF": "IF_SAFER"}
    place["transform"] = Affine(10, 0, 240_000, 0, -10, 4_780_000)
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "pixel"}
    for season in SEASONS:
        path = out / f"{season}.tif"
        if path.exists():
            continue
        with rasterio.open(demo / "data" / f"{season}.tif") as source:
            values, names = source.read(), source.descriptions
        with rasterio.open(path, "w", count=len(values), dtype="uint16", **place, **layout) as file:
            file.descriptions = names
            for row in range(0, side, STRIP):
                rows = np.arange(row, min(row + STRIP, side)) % values.shape[1]
                strip = values[:, rows][:, :, np.arange(side) % values.shape[2]]
                file.write(strip, window=rasterio.windows.Window(0, row, side, len(rows)))
    if not (out / "labels.tif").exists():
        with rasterio.open(demo / "run" / "labels" / "mini-catalonia.tif") as source:
            codes = source.read(1)
        cols = np.arange(side)
        with rasterio.open(
            out / "labels.tif", "w", count=1, dtype="uint8", nodata=0, tiled=True, blockxsize=512, blockysize=512,
            compress="deflate", **place,
        ) as file:  # fmt: skip
            for row in range(0, side, 512):
                rows = np.arange(row, min(row + 512, side))
                strip = codes[rows % codes.shape[0]][:, cols % codes.shape[1]]
                inside = (rows[:, None] - side / 2) ** 2 + (cols - side / 2) ** 2 < 0.36 / np.pi * side**2
                file.write(np.where(inside, strip, 0), 1, window=rasterio.windows.Window(0, row, side, len(rows)))


def measure(out: Path, size: int, what: str, rules: str) -> None:
    """One index in a process of its own."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", INDEX, str(out), str(size), rules], stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.monotonic() - begin
    tiles, kept, read, block, _ = done.stdout.split()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"| {what} | {size} | {tiles} | {read} | {kept} | {block} | {seconds:.1f} | {peak:,.0f} |", flush=True)


def main() -> None:
    """Generate the data and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=30_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[300])
    arguments = parser.parse_args()
    generate(arguments.out, arguments.side)
    print("| index | tile | tiles | read | kept | block | seconds | peak MB so far |\n" + "|---" * 8 + "|")
    for size in arguments.sizes:
        (arguments.out / f"{size}.npz").unlink(missing_ok=True)
        measure(arguments.out, size, "first", "{}")
        other = '{"tiles": {"clouds": "drop", "min_labelled": 0.5}, "split": {"seed": 1, "test": 0.1}}'
        measure(arguments.out, size, "other rules and split", other)


if __name__ == "__main__":
    main()
