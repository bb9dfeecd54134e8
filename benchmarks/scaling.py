"""Prediction on Ray against one process: its cost on one machine, the gain of workers, a model of 100 nodes.

    python benchmarks/scaling.py --out DIR [--side PIXELS] [--encoder resnet18]

    overhead     prediction with and without a local Ray, the same processors; best of --repeats
    efficiency   one thread a worker: one worker and as many as there are processors, on the same scene
    model        speed and efficiency up to 100 nodes, from what was measured and from assumptions that are printed

Speed counts pixels of the map from the first window to the finished COGs, of a process's second map: "cold" is the
first one, in which workers start and open the model. The maps must be the same to the byte.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import prediction
import rasterio

from cobertes.scale.ray_executor import PIECE_WINDOWS, PIECES_PER_WORKER

ASSUMED = {"read_gb_per_second": 5.0, "write_gb_per_second": 0.5, "lag_seconds": 0.02}
"""Of a cluster's storage for all nodes together, of the node that writes the map, and of a task's way."""

BYTES_IN, BYTES_OUT = 2 * prediction.BANDS, 2
"""Of a pixel: ten bands of uint16; code and confidence."""

SCENE = 900.0
"""Mpx of the scene of the model: 30,000 x 30,000 px."""

PIECE = PIECE_WINDOWS * (prediction.WINDOW - prediction.OVERLAP) ** 2 / 1e6
"""Mpx of a task at most."""

LEGEND = "catalonia-12"


def predict(model: Path, scene: Path, out: Path, threads: int, ray: str | None) -> None:
    """Map a scene twice in this process, and print the net Mpx/s of both: cold, and with what is open by then."""
    from cobertes.cli.options import open_executor
    from cobertes.engines.engine import open_engine
    from cobertes.geo.scene import open_scene
    from cobertes.predict.predict import predict_map
    from cobertes.predict.prediction_job import run_locally

    engine, found = open_engine(model, threads=threads), []
    with open_executor(ray, threads) as executor:
        for _ in range(2):
            made = predict_map(
                engine, {"scene": open_scene([str(scene)])}, out, overwrite=True, executor=executor or run_locally,
                confidence=out.with_name(f"{out.stem}.confidence.tif"),
            )  # fmt: skip
            found.append(made.mpx_per_second)
    print(json.dumps({"cold": found[0], "warm": found[1]}))


def same(a: Path, b: Path) -> str:
    """Whether two maps and their confidences are the same to the byte."""
    pairs = [(x, x.with_name(f"{x.stem}.confidence.tif")) for x in (a, b)]
    return "yes" if all(x.read_bytes() == y.read_bytes() for x, y in zip(*pairs, strict=True)) else "NO"


def copying(made: Path) -> float:
    """Mpx/s at which the finished rows of a map and its confidence become COGs, on the one machine that writes."""
    from cobertes.geo.cog_writer import new_raster
    from cobertes.geo.grid import grid_of
    from cobertes.labels.legend import load_legend
    from cobertes.predict.map_layers import CONFIDENCE, MAP, raster_spec

    seconds = 0.0
    for product, path in ((MAP, made), (CONFIDENCE, made.with_name(f"{made.stem}.confidence.tif"))):
        with rasterio.open(path) as file:
            grid, values = grid_of(file), file.read()
        with new_raster(
            made.with_name("copy.tif"), grid, raster_spec(product, load_legend(LEGEND)), overwrite=True
        ) as raw:
            raw[:] = values
            begin = time.perf_counter()
        seconds += time.perf_counter() - begin
    return values.size / 1e6 / seconds


def scaled(nodes: int, speed: float, copied: float) -> float:
    """Mpx/s of a map by ``nodes`` of ``speed`` each.

    The slowest of computing, reading and writing bounds the pass; then one machine makes the COGs. The last pieces
    end at different times: half a piece of each worker is lost.
    """
    piece = min(PIECE, SCENE / nodes / PIECES_PER_WORKER)
    taken = piece / speed + ASSUMED["lag_seconds"]
    computing = (SCENE / piece / nodes + 0.5) * taken
    reading = SCENE * BYTES_IN / 1e3 / ASSUMED["read_gb_per_second"]
    writing = SCENE * BYTES_OUT / 1e3 / ASSUMED["write_gb_per_second"]
    return SCENE / (max(computing, reading, writing) + SCENE / copied)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--side", type=int, default=4000, metavar="PIXELS")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--predict", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.predict:
        *paths, threads, ray = options.predict
        predict(*map(Path, paths), int(threads), None if ray == "no" else ray)
        return
    out, cpus = options.out, os.cpu_count() or 1
    out.mkdir(parents=True, exist_ok=True)
    prediction.SIDE = options.side
    scene = prediction.make_scene(out / f"scene-{options.side}.tif", options.side)
    model = prediction.make_model(out / options.encoder / "model.safetensors", options.encoder)
    runs: dict[str, tuple[int, str]] = {
        f"one process, {cpus} threads": (cpus, "no"),
        f"Ray, one worker of {cpus} threads": (cpus, "local"),
        "one process, one thread": (1, "no"),
        f"Ray, {cpus} workers of one thread": (1, "local"),
    }
    tries: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for _ in range(options.repeats):  # in turn: a slow moment of the machine meets all alike
        for number, (name, how) in enumerate(runs.items()):
            given = [str(model), str(scene), str(out / f"map-{number}.tif"), *map(str, how)]
            me = [sys.executable, __file__, "--out", str(out), "--predict", *given]
            tries[name].append(prediction.measured(me)[0])
    print(f"{options.encoder}, {options.side} x {options.side} px, best of {options.repeats}")
    print(f"{prediction.processor()}\n\n| | net Mpx/s | all | cold | same bytes |\n|---|---|---|---|---|")
    speeds = {name: max(one["warm"] for one in tried) for name, tried in tries.items()}
    for number, (name, tried) in enumerate(tries.items()):
        every = ", ".join(f"{one['warm']:.2f}" for one in tried)
        cold = max(one["cold"] for one in tried)
        same_bytes = same(out / "map-0.tif", out / f"map-{number}.tif")
        print(f"| {name} | {speeds[name]:.2f} | {every} | {cold:.2f} | {same_bytes} |")
    plain, ray, single, many = speeds.values()
    print(f"\noverhead of Ray on one machine: {plain / ray - 1:.1%} of the plain run's time")
    print(f"efficiency from 1 to {cpus} workers: {many / (cpus * single):.0%}\n")
    copied = copying(out / "map-0.tif")
    print("| nodes | Mpx/s | efficiency |\n|---|---|---|")
    alone = scaled(1, ray, copied)
    for nodes in (1, 2, 5, 10, 20, 50, 100):
        speed = scaled(nodes, ray, copied)
        print(f"| {nodes} | {speed:.1f} | {speed / (nodes * alone):.0%} |")
    print(f"\n{SCENE:g} Mpx; measured: a node {ray:.2f} Mpx/s, raw rows to COGs {copied:.0f} Mpx/s")
    print(f"assumed: {BYTES_IN} bytes read and {BYTES_OUT} written a pixel; {ASSUMED}")


if __name__ == "__main__":
    main()
