"""Full-scene prediction: speed and memory beside the bare model and TorchGeo's loop; seams; engines' parity.

    python benchmarks/prediction.py --out DIR [--encoders resnet18 resnet50] [--torchgeo PYTHON]
    python benchmarks/prediction.py --out DIR --only seams parity --run RUN --scenes april=... august=...

    speed    10 bands, uint16, pixel-interleaved in 96 x 96 blocks as in the model case: cobertes with
             each engine, the bare model on random windows of the same size and batch, and a window loop in fp32 as
             TorchGeo users write it (GridGeoSampler, segmentation-models-pytorch's Unet); random weights
    memory   a VRT of that scene 30,000 px wide, and one three times as tall
    seams    share of pixels that differ between two maps whose window grids are moved against each other
    parity   share of pixels on which engines agree with torch in fp32, and their mIoU on the validation blocks

Every contender is a process of its own. Net Mpx/s counts pixels of the map, computed Mpx/s those of all windows.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

SIDE, BANDS, CLASSES, WINDOW, BATCH = 10_000, 10, 12, 256, 8
OVERLAP = WINDOW // 4
TRANSFORM = Affine(10, 0, 240_000, 0, -10, 4_780_000)
ENGINES = (("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32"), ("openvino", "bf16"), ("onnx", "fp32"))


# --- data --------------------------------------------------------------------------------------------------


def make_scene(path: Path, height: int) -> Path:
    """Smooth random reflectances, so that compression and caches see something like ground."""
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    coarse = rng.integers(200, 4000, (BANDS, 32, 64)).astype(np.float32)
    line = np.repeat(np.repeat(coarse, 30, 1), 30, 2)
    block = (line + rng.normal(0, 80, line.shape)).clip(1).astype(np.uint16)
    profile = {"driver": "GTiff", "dtype": "uint16", "count": BANDS, "crs": "EPSG:32631", "transform": TRANSFORM}
    storage = {"tiled": True, "blockxsize": 96, "blockysize": 96, "interleave": "pixel", "bigtiff": "yes"}
    with rasterio.open(path, "w", height=height, width=SIDE, **profile, **storage) as file:
        for top in range(0, height, 960):
            rows = min(960, height - top)
            wide = np.tile(block, (1, 1, SIDE // block.shape[2] + 1))[:, :rows, :SIDE]
            file.write(np.roll(wide, top, axis=2), window=rasterio.windows.Window(0, top, SIDE, rows))
    return path


def make_mosaic(path: Path, source: Path, height: int, width: int) -> Path:
    """A VRT of copies of a scene side by side and one below the other."""
    with rasterio.open(source) as file:
        rows, cols = file.shape
        wkt = file.crs.to_wkt()
    bands = []
    for band in range(1, BANDS + 1):
        copies = "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="0">{source.resolve()}</SourceFilename>'
            f"<SourceBand>{band}</SourceBand>"
            f'<SrcRect xOff="0" yOff="0" xSize="{min(cols, width - x)}" ySize="{min(rows, height - y)}"/>'
            f'<DstRect xOff="{x}" yOff="{y}" xSize="{min(cols, width - x)}" ySize="{min(rows, height - y)}"/>'
            "</SimpleSource>"
            for y, x in product(range(0, height, rows), range(0, width, cols))
        )
        bands.append(f'<VRTRasterBand dataType="UInt16" band="{band}">{copies}</VRTRasterBand>')
    place = ",".join(str(v) for v in TRANSFORM.to_gdal())
    path.write_text(
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{wkt}</SRS>'
        f"<GeoTransform>{place}</GeoTransform>{''.join(bands)}</VRTDataset>"
    )
    return path


def make_model(path: Path, encoder: str, seasons: tuple[str, ...] = ("scene",)) -> Path:
    """A model file with random weights."""
    import torch

    from cobertes.labels.legend import load_legend
    from cobertes.learn.encoding import Inputs
    from cobertes.learn.model_file import ModelHeader, save_model
    from cobertes.learn.unet import UNet, UNetSettings

    if not path.exists():
        torch.manual_seed(0)
        settings = UNetSettings(BANDS * len(seasons), CLASSES, encoder, 16)
        bands = tuple(f"band{i}" for i in range(1, BANDS + 1))
        shape = len(seasons), BANDS
        inputs = Inputs(seasons, bands, np.full(shape, 2000.0), np.full(shape, 1100.0))
        header = ModelHeader(settings, inputs, load_legend("catalonia-12"), 10.0, WINDOW, {})
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(path, UNet(settings).state_dict(), header)
    return path


# --- contenders, each in a process of its own --------------------------------------------------------------


def bare(model: Path, engine: str, precision: str) -> dict[str, float]:
    """The model alone, on random windows in memory: the best of five batches."""
    import torch

    from cobertes.engines.engine import open_engine

    found = open_engine(model, engine=engine, precision=precision, device="cpu")
    x = torch.randn(BATCH, found.header.inputs.channels, WINDOW, WINDOW)
    x = x.contiguous(memory_format=torch.channels_last)
    found.logits(x)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        found.logits(x)
        times.append(time.perf_counter() - begin)
    return {
        "computed": BATCH * WINDOW**2 / 1e6 / min(times),
        "mean": BATCH * WINDOW**2 / 1e6 / float(np.mean(times)),
    }


def eager(scene: Path, encoder: str) -> dict[str, float]:
    """A window loop in fp32: TorchGeo's GridGeoSampler and DataLoader, smp's Unet, the map in an array."""
    import segmentation_models_pytorch as smp
    import torch
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    class Image(RasterDataset):
        filename_glob = scene.name

    dataset = Image(str(scene.parent))
    sampler = GridGeoSampler(dataset, size=WINDOW, stride=WINDOW - OVERLAP)  # in pixels
    model = smp.Unet(encoder, encoder_weights=None, in_channels=BANDS, classes=CLASSES).eval()
    mean, std = torch.full((1, BANDS, 1, 1), 2000.0), torch.full((1, BANDS, 1, 1), 1100.0)
    out, windows, begin = None, 0, time.perf_counter()
    with rasterio.open(scene) as file:
        out = np.zeros(file.shape, np.uint8)
    with torch.inference_mode():
        for batch in DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=stack_samples):
            codes = model((batch["image"].float() - mean) / std).argmax(1).to(torch.uint8).numpy()
            windows += len(codes)
            for code in codes:  # where it belongs costs nothing beside the model
                out[: code.shape[0], : code.shape[1]] = code
    seconds = time.perf_counter() - begin
    return {"computed": windows * WINDOW**2 / 1e6 / seconds, "net": out.size / 1e6 / seconds, "seconds": seconds}


def measured(command: list[str]) -> tuple[dict[str, float], float, float]:
    """The last line of a process's output as JSON, its seconds and its peak memory in MB."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    return json.loads(output.splitlines()[-1]), time.perf_counter() - begin, usage.ru_maxrss / 1e3


def ours(model: Path, scenes: list[str], out: Path, *options: str) -> tuple[dict[str, float], float, float]:
    """`cobertes predict` as a user runs it."""
    command = [sys.executable, "-m", "cobertes", "predict", str(model), *scenes, "-o", str(out), "--overwrite"]
    found, seconds, memory = measured([*command, "--json", "--quiet", *options])
    pixels = sum(found["counts"].values())  # type: ignore[attr-defined]
    return {
        "net": pixels / 1e6 / found["seconds"],
        "computed": found["windows"] * WINDOW**2 / 1e6 / found["seconds"],
        "seconds": found["seconds"],
        "end_to_end": pixels / 1e6 / seconds,
    }, seconds, memory  # fmt: skip


# --- parts -------------------------------------------------------------------------------------------------


def speed(options: argparse.Namespace) -> None:
    """One table per encoder."""
    scene = make_scene(options.out / "scene" / "scene.tif", options.rows)
    small = make_scene(options.out / "small" / "small.tif", max(options.rows // 4, 512))
    me = [sys.executable, __file__, "--out", str(options.out)]
    for encoder in options.encoders:
        model = make_model(options.out / encoder / "model.safetensors", encoder)
        print(f"\n{encoder}, {SIDE} x {options.rows} px, window {WINDOW}, overlap {OVERLAP}, batch {BATCH}\n")
        print("| | bare model, Mpx/s | cobertes, computed Mpx/s | of bare | net | end to end, net | peak MB |")
        print("|---|---|---|---|---|---|---|")
        for engine, precision in ENGINES:
            if f"{engine}-{precision}" in options.skip:
                continue
            alone, *_ = measured([*me, "--bare", str(model), engine, precision])
            found, _, memory = ours(
                model, [str(scene)], options.out / "map.tif", "--engine", engine, "--precision", precision,
                "--confidence", str(options.out / "confidence.tif"), *options.extra,
            )  # fmt: skip
            print(
                f"| {engine} {precision} | {alone['computed']:.2f} | {found['computed']:.2f} "
                f"| {found['computed'] / alone['computed']:.0%} | {found['net']:.2f} | {found['end_to_end']:.2f} "
                f"| {memory:,.0f} |",
                flush=True,
            )
        if options.torchgeo:
            found, seconds, memory = measured([options.torchgeo, *me[1:], "--eager", str(small), encoder])
            net = found["net"] * found["seconds"] / seconds
            print(
                f"| TorchGeo, smp, eager fp32 | | {found['computed']:.2f} | | {found['net']:.2f} | {net:.2f} "
                f"| {memory:,.0f} |",
                flush=True,
            )


def memory(options: argparse.Namespace) -> None:
    """Does the peak depend on the height?"""
    scene = make_scene(options.out / "scene" / "scene.tif", options.rows)
    model = make_model(options.out / options.encoders[0] / "model.safetensors", options.encoders[0])
    print(f"\n{options.encoders[0]}, 30,000 px wide\n\n| rows | blend | net Mpx/s | peak MB |\n|---|---|---|---|")
    for blend, rows in product(("interior", "cosine"), (options.rows // 2, options.rows * 3 // 2)):
        mosaic = make_mosaic(options.out / f"mosaic-{rows}.vrt", scene, rows, 3 * SIDE)
        more = ("--confidence", str(options.out / "confidence.tif"), "--blend", blend)
        found, _, peak = ours(model, [str(mosaic)], options.out / "map.tif", *more, *options.extra)
        print(f"| {rows} | {blend} | {found['net']:.2f} | {peak:,.0f} |", flush=True)


def miou_of(run: Path, codes: np.ndarray) -> float:
    """Of a map of the run's only area, on its validation blocks."""
    from cobertes.accuracy.confusion import ConfusionMatrix
    from cobertes.workflow.context import open_dataset
    from cobertes.workflow.run_folder import open_run

    project, files = open_run(run)
    ground = open_dataset(project, files)
    ((name, split),) = ground.split.areas.items()
    with rasterio.open(files.labels(name)) as file:
        labels = file.read(1)
    index, matrix = ground.legend.index_table(), ConfusionMatrix.empty(len(ground.legend))
    for part in split.rectangles("v"):
        predicted = np.minimum(index[codes[part.slices]], len(ground.legend) - 1)
        seen = np.where(codes[part.slices] == ground.legend.nodata, 255, index[labels[part.slices]])
        matrix += ConfusionMatrix.of(seen.astype(np.uint8), predicted, len(ground.legend))
    return float(matrix.miou)


def seams(options: argparse.Namespace) -> None:
    """Two maps of the same ground, the second from a scene that begins some pixels later."""
    from cobertes.engines.engine import open_engine
    from cobertes.learn.model_file import read_header
    from cobertes.predict.predict import predict_map
    from cobertes.workflow.scene_paths import open_scenes

    header = read_header(options.run)
    engine = open_engine(options.run, precision="fp32")
    down, right = options.offset
    moved = []
    for spec in options.scenes:
        season, _, _ = spec.rpartition("=")
        scene = open_scenes([spec], header.inputs.bands, header.scene_nodata)[season or "scene"]
        path = options.out / f"moved-{season or 'scene'}.tif"
        from cobertes.geo.grid import crop
        from cobertes.geo.windows import Window

        window = Window(down, right, scene.shape[0] - down, scene.shape[1] - right)
        values, _ = scene.read_chw(window)
        grid = crop(scene.grid, window)
        profile = {"driver": "GTiff", "dtype": scene.dtype, "count": len(values), "nodata": scene.nodata}
        with rasterio.open(
            path, "w", height=grid.height, width=grid.width, crs=grid.crs, transform=grid.affine, **profile
        ) as out:
            out.write(values)
            for i, name in enumerate(scene.band_names, start=1):
                out.set_band_description(i, name)
        moved.append(f"{season}={path}" if season else str(path))
    size, edge = header.window, 2 * header.window
    print(f"\nwindow {size} px, grids moved by {down} and {right} px\n")
    print("| blend | overlap | differing pixels | mIoU, validation | seconds |\n|---|---|---|---|---|")
    for blend, overlap in product(
        ("interior", "cosine", "gaussian"), options.overlaps or (0, size // 8, size // 4, size // 2)
    ):
        if overlap == 0 and blend != "interior":
            continue
        maps, seconds = [], 0.0
        for specs in (options.scenes, moved):
            scenes = open_scenes(specs, header.inputs.bands, header.scene_nodata)
            made = predict_map(
                engine,
                scenes,
                options.out / "seams.tif",
                overlap=overlap,
                blend=blend,
                batch_size=32,
                overwrite=True,
            )
            seconds += made.seconds / 2
            with rasterio.open(options.out / "seams.tif") as file:
                maps.append(file.read(1))
        a, b = maps[0][down:, right:][edge:-edge, edge:-edge], maps[1][edge:-edge, edge:-edge]
        score = f"{miou_of(options.run, maps[0]):.4f}" if options.labelled else ""
        print(f"| {blend} | {overlap} | {(a != b).mean():.3%} | {score} | {seconds:.1f} |", flush=True)
        np.save(options.out / f"seams-{blend}-{overlap}.npy", np.stack([a, b]))
    draw_seams(options.out, options.run, options.out / "seams.png")


def draw_seams(folder: Path, run: Path, picture: Path) -> None:
    """Maps and the pixels that differ between two window grids, at the place where most of them do."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap

    from cobertes.learn.model_file import read_header

    header = read_header(run)
    colours = np.zeros((256, 3))
    for land in header.legend.classes:
        colours[land.code] = [int(land.colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    size = header.window
    shown = [("interior", 0), ("interior", size // 4), ("cosine", size // 4), ("interior", size // 2)]
    found = [(name, np.load(folder / f"seams-{name[0]}-{name[1]}.npy")) for name in shown]
    side = 4 * size
    first = found[0][1]
    worst = max(
        product(range(0, first.shape[1] - side, size), range(0, first.shape[2] - side, size)),
        key=lambda at: int((first[0] != first[1])[at[0] : at[0] + side, at[1] : at[1] + side].sum()),
    )
    part = slice(worst[0], worst[0] + side), slice(worst[1], worst[1] + side)
    figure, axes = plt.subplots(2, len(found), figsize=(3 * len(found), 6.4), layout="constrained")
    for (above, below), ((blend, overlap), pair) in zip(axes.T, found, strict=True):
        a, b = pair[:, *part]
        above.imshow(colours[a], interpolation="nearest")
        above.set_title(f"{blend}, overlap {overlap} px", fontsize=9)
        below.imshow(a != b, cmap=ListedColormap(["#f4f4f4", "#c2185b"]), interpolation="nearest", vmin=0, vmax=1)
        below.set_title(f"{(pair[0] != pair[1]).mean():.2%} of the map differ", fontsize=9)
        for axis in (above, below):
            axis.set_xticks([])
            axis.set_yticks([])
    figure.suptitle(
        f"Above: the map. Below: pixels that change when the grid of {size} px windows is moved", fontsize=10
    )
    figure.savefig(picture, dpi=110)


def parity(options: argparse.Namespace) -> None:
    """Engines beside torch in fp32: on a scene, and on the validation blocks of the run."""
    from cobertes.engines.engine import Engine, open_engine
    from cobertes.engines.quantize import quantize_model
    from cobertes.engines.runtimes import is_quantized
    from cobertes.errors import CobertesError
    from cobertes.evaluation.held_out_map import HeldOutMap
    from cobertes.learn.inference import evaluate_windows
    from cobertes.predict.predict import predict_map
    from cobertes.workflow.context import open_dataset
    from cobertes.workflow.run_folder import open_run
    from cobertes.workflow.scene_paths import open_scenes

    project, files = open_run(options.run)
    ground = open_dataset(project, files)
    expected = None
    print("\n| engine | agrees with torch fp32 | mIoU, validation |\n|---|---|---|")
    for name, precision in (*ENGINES, ("openvino", "int8")):
        try:
            if precision == "int8" and not is_quantized(options.run):
                quantize_model(options.run, ground)
            engine: Engine = open_engine(options.run, engine=name, precision=precision)
        except CobertesError as error:
            print(f"| {name} {precision} | {error} | |")
            continue
        header = engine.header
        scenes = open_scenes(options.scenes, header.inputs.bands, header.scene_nodata)
        predict_map(engine, scenes, options.out / "parity.tif", batch_size=32, overwrite=True)
        with rasterio.open(options.out / "parity.tif") as file:
            codes = file.read(1)
        expected = codes if expected is None else expected
        valid = expected != header.legend.nodata
        plan = HeldOutMap(ground, header.window, header.window // 4, "interior").windows("v")
        matrix, _ = evaluate_windows(engine.logits, header.inputs, ground, plan, 32)
        print(f"| {name} {precision} | {(codes == expected)[valid].mean():.3%} | {matrix.miou:.4f} |", flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "speed": speed,
    "memory": memory,
    "seams": seams,
    "parity": parity,
}


def processor() -> str:
    """Name of the processor and the vector units that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    facts = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in lines if ":" in line}
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni") if unit in facts["flags"].split()]
    return f"{facts.get('model name', '?')}, {os.cpu_count()} cores, {' '.join(units)}"


def main() -> None:
    """Run the parts and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for scenes and maps, about 5 GB")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=["speed", "memory"])
    parser.add_argument("--encoders", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--rows", type=int, default=SIDE, help="height of the generated scene")
    parser.add_argument("--skip", nargs="*", default=[], help="contenders such as torch-fp32")
    parser.add_argument("--extra", nargs="*", default=[], help="further options of cobertes predict, after --")
    parser.add_argument("--torchgeo", help="a Python with torchgeo and segmentation-models-pytorch")
    parser.add_argument("--run", type=Path, help="of a trained model, for seams and parity")
    parser.add_argument("--scenes", nargs="+", default=[], help="SCENE or season=SCENE, for seams and parity")
    parser.add_argument(
        "--offset", nargs=2, type=int, default=(37, 53), help="pixels between the two window grids"
    )
    parser.add_argument(
        "--overlaps", nargs="+", type=int, help="for seams; default: 0, an eighth, a quarter, half"
    )
    parser.add_argument("--labelled", action="store_true", help="the scenes are those of the run: score the maps")
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--eager", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        print(json.dumps(bare(Path(options.bare[0]), *options.bare[1:])))
        return
    if options.eager:
        print(json.dumps(eager(Path(options.eager[0]), options.eager[1])))
        return
    for folder in ("scene", "small"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    print(processor())
    for part in options.only:
        PARTS[part](options)


if __name__ == "__main__":
    main()
