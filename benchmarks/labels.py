"""Labels against GDAL: wall time, gigapixels a second and peak memory, on real and generated maps.

    python benchmarks/labels.py --out /tmp/labels [--size 60000] [--case denver worldcover strips blocks wide]

Every contender is a process of its own and starts with the map in the page cache. ``gdalwarp`` comes from the
system (Debian: gdal-bin), rasterio's mode from the GDAL in its wheel. GDAL's contenders make one band of labels,
uncompressed and without overviews; ours make finished COGs. By default gdalwarp would read a map's
overviews in its place and vote on a few pixels, so ``-ovr NONE`` is said. Real maps are looked for in
COBERTES_DATA.

    denver       9,144 x 9,144 px of 1 m in feet, to EPSG:32613, 10 m
    worldcover   36,000 x 36,000 px in degrees, mostly sea, ten pixels to one
    strips       SIZE x SIZE px of 1 m, stored in strips of one row, as the 12-class map of the model case
    blocks       the same in 960 x 960 blocks, as its 41-class map
    wide         300,000 x 3,000 px in strips: does memory depend on the width?
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from cobertes.synthetic.demo import write_demo

DATA = Path(os.environ.get("COBERTES_DATA", Path(__file__).parents[2] / "shared" / "data"))
ROOT = Path(__file__).parents[1]
FULL_PIXELS = 300_000**2

REPROJECT = """
import sys, rasterio
from rasterio.enums import Resampling
from rasterio.warp import reproject
reference, like, out = sys.argv[1:]
with rasterio.open(like) as grid, rasterio.open(reference) as source:
    profile = dict(driver="GTiff", count=1, dtype="uint8", nodata=0, crs=grid.crs, transform=grid.transform,
                   height=grid.height, width=grid.width)
    with rasterio.open(out, "w", **profile) as target:
        reproject(rasterio.band(source, 1), rasterio.band(target, 1), resampling=Resampling.mode,
                  num_threads=2, warp_mem_limit=512)
"""


@dataclass(frozen=True)
class Case:
    """A map, a raster with the grid that it goes to, and what to tell cobertes about its codes."""

    reference: Path
    like: Path
    options: tuple[str, ...]


def empty_like(path: Path, crs: str, transform: Affine, height: int, width: int) -> Path:
    """A raster that only says where pixels are."""
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": crs, "transform": transform}
    with rasterio.open(path, "w", height=height, width=width, sparse_ok=True, **profile):
        return path


def generated(folder: Path, layout: str, height: int, width: int) -> Case:
    """The demo's reference map, mirrored again and again."""
    path, like = folder / f"{layout}-{width}.tif", folder / f"{layout}-{width}-grid.tif"
    if not path.exists():
        demo = folder / "demo"
        if not demo.exists():
            write_demo(demo)
        with rasterio.open(demo / "data" / "reference-1m.tif") as file:
            codes = file.read(1)
        side = len(codes)
        storage = (
            {"blockysize": 1} if layout != "blocks" else {"tiled": True, "blockxsize": 960, "blockysize": 960}
        )
        profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 0, "crs": "EPSG:32631"}
        transform = Affine(1, 0, 240_000, 0, -1, 4_780_000)
        with rasterio.open(
            path, "w", height=height, width=width, transform=transform, bigtiff="if_safer", **profile, **storage
        ) as file:
            for top in range(0, height, 960):
                rows = np.arange(top, min(top + 960, height))
                turn, row = np.divmod(rows, side)
                strip = codes[np.where(turn % 2, side - 1 - row, row)]
                line = np.concatenate([strip, strip[:, ::-1]] * (width // side // 2 + 1), axis=1)[:, :width]
                file.write(line, 1, window=rasterio.windows.Window(0, top, width, len(rows)))
    if not like.exists():
        empty_like(like, "EPSG:32631", Affine(10, 0, 240_000, 0, -10, 4_780_000), height // 10, width // 10)
    return Case(path, like, ("--unknown", "nodata"))


def case_of(name: str, folder: Path, size: int) -> Case:
    """Find or make a case."""
    if name == "denver":
        reference, like = DATA / "denver-1m" / "drcog_lulc_2018_1m.tif", folder / "denver-grid.tif"
        if not like.exists():
            subprocess.run(
                ["gdalwarp", "-q", "-t_srs", "EPSG:32613", "-tr", "10", "10", "-tap", reference, like], check=True
            )
        return Case(reference, like, ("--legend", str(ROOT / "examples" / "legends" / "denver.toml")))
    if name == "worldcover":
        reference, like = DATA / "worldcover" / "worldcover_2021_n00e006.tif", folder / "worldcover-grid.tif"
        if not like.exists():
            with rasterio.open(reference) as file:
                grid = file.transform * Affine.scale(10)
                empty_like(like, "EPSG:4326", grid, file.height // 10, file.width // 10)
        return Case(reference, like, ("--legend", "worldcover"))
    if name == "wide":
        return generated(folder, "wide", 3000, 300_000)
    return generated(folder, name, size, size)


def contenders(case: Case, out: Path) -> dict[str, list[str]]:
    """Commands by name."""
    with rasterio.open(case.like) as like:
        west, south, east, north = like.bounds
        target = ["-t_srs", str(like.crs), "-te", str(west), str(south), str(east), str(north)]
        target += [
            "-ovr",
            "NONE",
            "-ts",
            str(like.width),
            str(like.height),
            "-overwrite",
            "-q",
            str(case.reference),
        ]
    ours = [sys.executable, "-m", "cobertes", "labels", str(case.reference), "--like", str(case.like), "--quiet"]
    ours += ["--overwrite", *case.options]
    labels, parts = (
        ["-o", str(out / "labels.tif")],
        ["--purity", str(out / "p.tif"), "--fractions", str(out / "f.tif")],
    )
    threads = ["-multi", "-wo", "NUM_THREADS=ALL_CPUS"]
    return {
        "cobertes majority + purity + fractions": [*ours, *labels, *parts],
        "cobertes majority": [*ours, *labels],
        "cobertes weighted-majority, smoothing 0.5": [
            *ours, *labels, "--method", "weighted-majority", "--smoothing", "0.5",
        ],
        "cobertes nearest": [*ours, *labels, "--method", "nearest"],
        "gdalwarp -r mode": ["gdalwarp", "-r", "mode", *target, str(out / "mode.tif")],
        "gdalwarp -r mode, all threads": ["gdalwarp", "-r", "mode", *threads, *target, str(out / "mode.tif")],
        "gdalwarp -r near": ["gdalwarp", "-r", "near", *target, str(out / "near.tif")],
        "rasterio Resampling.mode, 2 threads": [
            sys.executable, "-c", REPROJECT, str(case.reference), str(case.like), str(out / "rasterio.tif"),
        ],
    }  # fmt: skip


def measure(command: list[str], reference: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of a process that finds the map in the page cache."""
    with reference.open("rb", buffering=0) as file:
        while file.read(1 << 26):
            pass
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1e3


def processor() -> str:
    """Name of the processor and the vector units that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in lines if ":" in line}
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16") if unit in facts.get("flags", "").split()]
    return f"{facts.get('model name', '?')}, {os.cpu_count()} cores, {' '.join(units)}"


def main() -> None:
    """Run the cases and print a Markdown table each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for maps and results, about 10 GB")
    parser.add_argument("--size", type=int, default=60_000, help="side of the generated maps in pixels")
    parser.add_argument("--case", nargs="+", default=["denver", "worldcover", "strips", "blocks", "wide"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    print(processor())
    for name in options.case:
        # in another process: what a child's memory is said to be includes its parent's at the start
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            case = pool.submit(case_of, name, options.out, options.size).result()
        with rasterio.open(case.reference) as file:
            pixels = file.width * file.height
            print(f"\n{name}: {file.width} x {file.height} px, blocks {file.block_shapes[0]}\n", flush=True)
        print("| | seconds | Gpx/s | peak MB | 300,000 x 300,000 px would take |\n|---|---|---|---|---|")
        out = options.out / "results"
        for contender, command in contenders(case, out).items():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            seconds, memory = measure(command, case.reference)
            print(
                f"| {contender} | {seconds:.1f} | {pixels / seconds / 1e9:.2f} | {memory:,.0f} "
                f"| {FULL_PIXELS / pixels * seconds / 60:.1f} min |",
                flush=True,
            )


if __name__ == "__main__":
    main()
