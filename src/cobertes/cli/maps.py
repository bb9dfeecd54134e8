"""Commands on trained models: predict, export."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from cobertes.cli.app import app
from cobertes.cli.console import Console, class_table
from cobertes.cli.options import Memory, Overwrite, Ray, Resume, command, open_executor
from cobertes.settings import EngineName

DEFAULT_BLEND = "interior"
"""Default of `predict_map`, whose module is too heavy for a help text; a test compares them."""


@command(app, "predict", "Map a scene with a trained model.")
def predict(
    console: Console,
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model.safetensors, or a run's folder.")],
    scenes: Annotated[
        list[str],
        typer.Argument(metavar="SCENE", help="A scene, or season=SCENE for each season of the model."),
    ],
    out: Annotated[Path, typer.Option("-o", metavar="FILE", help="The map to write.")],
    confidence: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Probability of the mapped class, percent.")
    ] = None,
    probabilities: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Probability of every class, percent, a band each.")
    ] = None,
    entropy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Entropy of the probabilities, percent of the maximum."),
    ] = None,
    second: Annotated[Path | None, typer.Option(metavar="FILE", help="The second most probable class.")] = None,
    stac: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="A STAC item that describes the map.")
    ] = None,
    also: Annotated[
        list[Path] | None, typer.Option(metavar="MODEL", help="Another model to average with; may be repeated.")
    ] = None,
    views: Annotated[
        str,
        typer.Option(
            metavar="none|flips|turns",
            help="Test-time augmentation over 4 flips or 8 symmetries.",
        ),
    ] = "none",
    window: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=16, help="Side of a window. Default: that of training.")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", min=0, help="Overlap of windows. Default: a quarter window."),
    ] = None,
    blend: Annotated[
        str, typer.Option(metavar="interior|cosine|gaussian", help="Blending of neighbouring windows.")
    ] = DEFAULT_BLEND,
    bounds: Annotated[
        str | None, typer.Option(metavar="W,S,E,N", help="Map only this rectangle, in the scene's CRS.")
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Map only inside these polygons, or the valid pixels of this raster."),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER", help="Reflectance = scale x stored + offset; or NAME=NUMBER by season or band."
        ),
    ] = None,
    offset: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="See --scale: -0.1 for Sentinel-2 from baseline 04.00 on.")
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="|".join(get_args(EngineName)), help="Inference engine.")
    ] = "auto",
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Device.")] = "auto",
    precision: Annotated[str, typer.Option(metavar="auto|fp32|bf16|int8", help="Numeric precision.")] = "auto",
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Windows computed together.")] = 8,
    memory: Memory = 3500,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="CPU threads per process. Default: all.")
    ] = None,
    ray: Ray = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Map a whole scene with a trained model, in bounded memory.

    Seasons are read as in training. The map does not depend on the memory or on interruptions. The int8 model is
    calibrated on the run's training tiles on first use. With --ray, the processes of a Ray cluster share the work,
    to the same bytes; model and scenes must have the same paths on every node.

    cobertes predict runs/catalonia april=s2_april.tif august=s2_august.tif -o map.tif --confidence confidence.tif
    """
    from cobertes.engines.engine import ensemble, open_engine
    from cobertes.engines.runtimes import choose_runtime
    from cobertes.geo.cog_writer import check_not_input, check_writable
    from cobertes.learn.model_file import model_path
    from cobertes.predict.predict import predict_map
    from cobertes.predict.prediction_job import run_locally
    from cobertes.workflow.mapping import quantize_model_of_run
    from cobertes.workflow.scene_paths import open_scenes
    from cobertes.workflow.scene_values import parse_told, tell_values

    models = [model, *(also or [])]
    check_not_input((out, confidence, probabilities, entropy, second, stac), map(model_path, models))
    if not resume:
        check_writable(out, overwrite=overwrite)
    if stac is not None:
        check_writable(stac, overwrite=overwrite)
    choose_runtime(engine, device, precision)  # before minutes of quantisation
    for one in models if precision == "int8" else ():
        quantize_model_of_run(one, console.progress)
    running = ensemble(
        [
            open_engine(one, device=device, precision=precision, engine=engine, tta=views, threads=threads)
            for one in models
        ]
    )
    console.say(f"engine: {running.how}")
    with open_executor(ray, threads) as executor:
        made = predict_map(
            running,
            tell_values(
                open_scenes(scenes, running.header.inputs.labels),
                parse_told(scale, "--scale"),
                parse_told(offset, "--offset"),
                "command line",
            ),
            out,
            confidence=confidence,
            probabilities=probabilities,
            entropy=entropy,
            second=second,
            stac=stac,
            window=window,
            overlap=overlap,
            blend=blend,
            batch_size=batch,
            bounds=_bounds(bounds),
            clip=clip,
            memory=memory,
            resume="yes" if resume else "no",
            overwrite=overwrite,
            progress=console.progress,
            executor=executor or run_locally,
        )
    speed = f"{made.mpx_per_second:.2f} Mpx/s, {made.windows} windows, {made.skipped} empty ones skipped"
    table = class_table(running.header.legend, made.counts, made.hectares)
    console.answer(
        f"{out}: {speed}\n{table}",
        map=str(out),
        engine=running.how,
        counts=made.counts,
        hectares=made.hectares,
        windows=made.windows,
        skipped=made.skipped,
        seconds=made.seconds,
    )


@command(app, "export", "Write a model for other programs.")
def export(
    console: Console,
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model.safetensors, or a run's folder.")],
    out: Annotated[Path, typer.Option("-o", metavar="FILE.onnx", help="The file to write.")],
    window: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=16, help="Side of the windows. Default: that of training.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a model as ONNX: pixel values of the bands in, probabilities of the classes out.

    Normalisation and softmax are inside. Names of bands and classes, codes and colours are in the file's metadata.

    cobertes export runs/catalonia -o catalonia.onnx
    """
    from cobertes.engines.onnx_export import export_onnx
    from cobertes.geo.cog_writer import check_not_input, check_writable
    from cobertes.learn.model_file import model_path

    path = model_path(model)
    check_not_input([out], [path])
    check_writable(out, overwrite=overwrite)
    size = export_onnx(path, out, window)
    console.answer(f"{out}: windows of {size} x {size} px, any batch", onnx=str(out), window=size)


def _bounds(text: str | None) -> tuple[float, float, float, float] | None:
    from cobertes.errors import SettingsError

    if text is None:
        return None
    try:
        west, south, east, north = map(float, text.split(","))
    except ValueError as error:
        raise SettingsError(f"--bounds takes four numbers W,S,E,N, found '{text}'") from error
    return west, south, east, north
