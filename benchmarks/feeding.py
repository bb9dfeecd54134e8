"""Feeding: tiles of 300 x 300 px, 10 bands of uint16, to normalised and augmented float32 batches.

    python benchmarks/feeding.py --out /tmp/feeding              every contender that is installed

A 6,000 x 6,000 px scene with labels is generated, stored as in the model case (96 x 96 blocks, pixel-interleaved,
uncompressed) and as 512 x 512 deflate. Every contender gives batches of 16: random windows, flips and quarter
turns, a gain and an offset per band, labels along. ``--threads 1`` is one process with one thread of any library.
TorchGeo and Zarr are used where they are installed. Prints Markdown tables for LOG.md.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from cobertes.geo.area import Area
from cobertes.geo.scene import open_scene
from cobertes.geo.windows import Window
from cobertes.labels.legend import load_legend
from cobertes.learn import inference
from cobertes.learn.encoding import Inputs
from cobertes.learn.loader import batches
from cobertes.learn.sampler import Sampler
from cobertes.settings import SplitSettings, TileSettings, TrainSettings
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.index import build_index
from cobertes.tiles.store import make_store

SIDE, TILE, BANDS, BATCH = 6000, 300, 10, 16
LAYOUTS = {
    "blocks": {"tiled": True, "blockxsize": 96, "blockysize": 96, "interleave": "pixel"},
    "deflate": {"tiled": True, "blockxsize": 512, "blockysize": 512, "interleave": "pixel", "compress": "deflate"},
}
MEAN, STD = 2000.0, 900.0

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def generate(out: Path) -> None:
    """Scenes of smooth random ground, so that they can be compressed like real ones, and labels of patches."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    grid = GeoBox((SIDE, SIDE), Affine(10, 0, 240_000, 0, -10, 4_780_000), "EPSG:32631")
    place = {"driver": "GTiff", "height": SIDE, "width": SIDE, "crs": "EPSG:32631", "transform": grid.affine}
    for name, layout in LAYOUTS.items():
        path = out / f"{name}.tif"
        if path.exists():
            continue
        with rasterio.open(path, "w", count=BANDS, dtype="uint16", **place, **layout) as file:
            for row in range(0, SIDE, 480):
                height = min(480, SIDE - row)
                coarse = rng.integers(500, 6000, (BANDS, height // 8, SIDE // 8))
                values = np.kron(coarse, np.ones((1, 8, 8), int)) + rng.integers(0, 60, (BANDS, height, SIDE))
                file.write(values.astype(np.uint16), window=rasterio.windows.Window(0, row, SIDE, height))
    if not (out / "labels.tif").exists():
        codes = np.kron(rng.integers(1, 13, (SIDE // 20, SIDE // 20)), np.ones((20, 20), int)).astype(np.uint8)
        with rasterio.open(
            out / "labels.tif", "w", count=1, dtype="uint8", nodata=0, tiled=True, compress="deflate", **place
        ) as file:
            file.write(codes, 1)


def ours(out: Path, layout: str, store: str, threads: int) -> tuple[Sampler, Inputs]:
    """The sampler of a project over the scene: all of it is training ground."""
    inference.READ_THREADS = threads
    area = Area("one", {"scene": open_scene([str(out / f"{layout}.tif")])})
    labels = {"one": out / "labels.tif"}
    legend = load_legend("catalonia-12", Path())
    index = build_index(
        [area], labels, legend, tiles=TileSettings(size=TILE), split=SplitSettings(block=1200, guard=0),
        cache=out / f"{layout}.npz", fingerprint=layout,
    )  # fmt: skip
    ground = LabelledDataset({"one": area}, labels, legend, index.split)
    settings = TrainSettings(sampling="shuffled", samples=BATCH * 64)
    sampler = Sampler.of(index.table, ground, settings, (TILE,))
    if store != "none":
        held = make_store(
            out / f"store-{layout}-{store}", ground.areas, labels, {"one": [Window(0, 0, SIDE, SIDE)]},
            fingerprint=layout, every_scene=store == "all",
        )  # fmt: skip
        ground = dataclasses.replace(ground, store=held)
        sampler = dataclasses.replace(sampler, dataset=ground)
    return sampler, Inputs.of(index.statistics)


def feed_ours(out: Path, layout: str, store: str, threads: int) -> Callable[[], Batches]:
    """Our own feed."""
    sampler, inputs = ours(out, layout, store, threads)

    def epoch() -> Batches:
        for x, y, _ in batches(sampler, inputs, 1, BATCH, reuse=True):
            yield torch.from_numpy(x), torch.from_numpy(y)

    return epoch


def augment(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the others do to a raw batch (B, C, H, W): torch on the whole batch, as is usual."""
    x = x.float().sub_(MEAN).div_(STD)
    x.mul_(torch.empty(len(x), x.shape[1], 1, 1).normal_(1, 0.05)).add_(
        torch.empty(len(x), x.shape[1], 1, 1).normal_(0, 0.05)
    )
    turns, flip = int(torch.randint(4, ())), bool(torch.randint(2, ()))
    x, y = torch.rot90(x, turns, (2, 3)), torch.rot90(y, turns, (1, 2))
    return (x.flip(3), y.flip(2)) if flip else (x, y)


def random_windows(count: int) -> np.ndarray:
    """Top-left corners of random windows."""
    return np.random.default_rng(0).integers(0, SIDE - TILE, (count, 2))


def read_by(read: Callable[[int, int], tuple[np.ndarray, np.ndarray]], count: int) -> Callable[[], Batches]:
    """Batches from a function that reads values (C, H, W) or (H, W, C) and labels (H, W) at a row and column."""

    def epoch() -> Batches:
        corners = random_windows(count)
        for first in range(0, count, BATCH):
            parts = [read(int(row), int(col)) for row, col in corners[first : first + BATCH]]
            x = torch.from_numpy(np.stack([x.astype(np.int32) for x, _ in parts]))
            yield augment(x, torch.from_numpy(np.stack([y for _, y in parts])))

    return epoch


def feed_rasterio(out: Path, layout: str, _threads: int) -> Callable[[], Batches]:
    """Windows by rasterio from files that stay open."""
    scene, labels = rasterio.open(out / f"{layout}.tif"), rasterio.open(out / "labels.tif")

    def read(row: int, col: int) -> tuple[np.ndarray, np.ndarray]:
        window = rasterio.windows.Window(col, row, TILE, TILE)
        return scene.read(window=window), labels.read(1, window=window)

    return read_by(read, BATCH * 16)


def feed_memmap(out: Path, layout: str, _threads: int) -> Callable[[], Batches]:
    """Slices of one memory map of the whole scene, (bands, rows, cols): what an array in a file can do."""
    path = out / "plain.bin"
    if not path.exists():
        with rasterio.open(out / f"{layout}.tif") as file:
            plain = np.memmap(path, np.uint16, "w+", shape=(BANDS, SIDE, SIDE))
            for row in range(0, SIDE, 480):
                height = min(480, SIDE - row)
                plain[:, row : row + height] = file.read(window=rasterio.windows.Window(0, row, SIDE, height))
    values = np.memmap(path, np.uint16, "r", shape=(BANDS, SIDE, SIDE))
    with rasterio.open(out / "labels.tif") as file:
        codes = file.read(1)
    return read_by(
        lambda row, col: (
            values[:, row : row + TILE, col : col + TILE],
            codes[row : row + TILE, col : col + TILE],
        ),
        BATCH * 16,
    )


def feed_zarr(out: Path, layout: str, _threads: int) -> Callable[[], Batches] | None:
    """Zarr with blosc-lz4 in chunks of 256 x 256 px."""
    try:
        import zarr
        from zarr.codecs import BloscCodec
    except ImportError:
        return None
    path = out / "scene.zarr"
    if not path.exists():
        array = zarr.create_array(
            path, shape=(SIDE, SIDE, BANDS), chunks=(256, 256, BANDS), dtype="uint16",
            compressors=BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"),
        )  # fmt: skip
        with rasterio.open(out / f"{layout}.tif") as file:
            for row in range(0, SIDE, 512):
                height = min(512, SIDE - row)
                part = file.read(window=rasterio.windows.Window(0, row, SIDE, height))
                array[row : row + height] = np.moveaxis(part, 0, 2)
    values = zarr.open_array(path, mode="r")
    with rasterio.open(out / "labels.tif") as file:
        codes = file.read(1)

    def read(row: int, col: int) -> tuple[np.ndarray, np.ndarray]:
        window = values[row : row + TILE, col : col + TILE]
        return np.moveaxis(window, 2, 0), codes[row : row + TILE, col : col + TILE]

    return read_by(read, BATCH * 16)


def feed_torchgeo(out: Path, layout: str, threads: int) -> Callable[[], Batches] | None:
    """RandomGeoSampler and DataLoader, as in TorchGeo's tutorials; more than one thread are worker processes."""
    try:
        from torch.utils.data import DataLoader
        from torchgeo.datasets import RasterDataset, stack_samples
        from torchgeo.samplers import RandomGeoSampler
    except ImportError:
        return None

    class Image(RasterDataset):
        filename_glob = f"{layout}.tif"

    class Mask(RasterDataset):
        filename_glob = "labels.tif"
        is_image = False

    dataset = Image(str(out)) & Mask(str(out))
    sampler = RandomGeoSampler(dataset, size=TILE, length=BATCH * 8)

    def epoch() -> Batches:
        loader: Any = DataLoader(
            dataset, batch_size=BATCH, sampler=sampler, collate_fn=stack_samples,
            num_workers=0 if threads == 1 else threads,
        )  # fmt: skip
        for sample in loader:
            yield augment(sample["image"], sample["mask"].squeeze(1))

    return epoch


def measure(epoch: Callable[[], Batches], seconds: float = 4.0) -> float:
    """Tiles a second, after an epoch to warm up, over whole epochs of at least some seconds."""
    for x, _ in epoch():
        tuple(x.shape)
    tiles, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for x, _ in epoch():
            tiles += len(x)
    return tiles / (time.perf_counter() - begin)


def compare(out: Path, threads: int) -> None:
    """All contenders on both layouts."""
    torch.set_num_threads(threads)
    contenders: dict[str, Callable[[str], Callable[[], Batches] | None]] = {
        "cobertes": lambda layout: feed_ours(out, layout, "labels" if layout == "blocks" else "all", threads),
        "cobertes, without a store": lambda layout: feed_ours(out, layout, "none", threads),
        "cobertes, scene in the store too": lambda layout: feed_ours(out, layout, "all", threads),
        "TorchGeo": lambda layout: feed_torchgeo(out, layout, threads),
        "rasterio windows": lambda layout: feed_rasterio(out, layout, threads),
        "memmap of the whole scene": lambda layout: feed_memmap(out, layout, threads),
        "Zarr, blosc-lz4": lambda layout: feed_zarr(out, layout, threads),
    }
    print(f"| {threads} thread(s), tiles/s (MB/s of uint16) | blocks | deflate |\n|---|---|---|")
    for name, make in contenders.items():
        cells = []
        for layout in LAYOUTS:
            epoch = make(layout)
            speed = measure(epoch) if epoch else float("nan")
            cells.append(f"{speed:,.0f} ({speed * TILE * TILE * BANDS * 2 / 1e6:,.0f})" if epoch else "–")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def wait_for_steps(out: Path) -> None:
    """Share of the time that waits for data beside a step of 20 ms that needs no processor, as of a GPU."""
    print("| beside a simulated step of 20 ms for 16 tiles | waiting | tiles/s |\n|---|---|---|")
    for layout in LAYOUTS:
        for threads in (1, 2):
            epoch = feed_ours(out, layout, "all" if layout == "deflate" else "labels", threads)
            for _ in range(2):
                waited, count, begin = 0.0, 0, time.perf_counter()
                feed = epoch()
                while True:
                    asked = time.perf_counter()
                    batch = next(feed, None)
                    waited += time.perf_counter() - asked
                    if batch is None:
                        break
                    count += len(batch[0])
                    time.sleep(0.020)
                total = time.perf_counter() - begin
            print(
                f"| {layout}, {threads} reading thread(s) | {waited / total:.1%} | {count / total:,.0f} |",
                flush=True,
            )


def memory_over_epochs(out: Path) -> None:
    """Memory of the process that belongs to it alone, after each of some epochs."""
    epoch = feed_ours(out, "blocks", "labels", 2)
    found = []
    for _ in range(6):
        for x, _ in epoch():
            tuple(x.shape)
        with open(f"/proc/{os.getpid()}/smaps_rollup", encoding="ascii") as file:
            private = [int(line.split()[1]) for line in file if line.startswith("Private_Dirty")]
        found.append(private[0] / 1024)
    print("private memory after each epoch, MB: " + ", ".join(f"{value:,.0f}" for value in found))


def main() -> None:
    """Generate the data and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", action="store_true", help="only the waiting share beside simulated steps")
    arguments = parser.parse_args()
    generate(arguments.out)
    for path in arguments.out.glob("*.tif"):  # into the page cache
        path.read_bytes()
    if not arguments.steps:
        for threads in arguments.threads:
            compare(arguments.out, threads)
    wait_for_steps(arguments.out)
    memory_over_epochs(arguments.out)


if __name__ == "__main__":
    main()
