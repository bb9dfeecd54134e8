"""Commands on trained models: predict."""

from pathlib import Path
from typing import Annotated

import typer

from cobertes.cli.app import app
from cobertes.cli.console import Console, class_table
from cobertes.cli.options import Overwrite, command


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
        Path | None, typer.Option(metavar="FILE", help="Also write the confidence, percent.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=16, help="Default: that of training.")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=0, help="Default: a quarter window.")
    ] = None,
    bounds: Annotated[
        str | None, typer.Option(metavar="W,S,E,N", help="Only this part, in the scene's CRS.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where to compute.")] = "auto",
    precision: Annotated[str, typer.Option(metavar="auto|fp32|bf16", help="How to compute.")] = "auto",
    memory: Annotated[int, typer.Option(metavar="MB", help="Peak memory of the process.")] = 3500,
    overwrite: Overwrite = False,
) -> None:
    """Map a whole scene with a trained model, in bounded memory.

    cobertes predict runs/catalonia april=s2_april.tif august=s2_august.tif -o map.tif --confidence confidence.tif
    """
    from cobertes.apply.engine import open_engine
    from cobertes.apply.predict import predict_map
    from cobertes.geo.raster import check_not_input, check_writable
    from cobertes.learn.modelfile import model_path
    from cobertes.sources import open_scenes

    check_not_input((out, confidence), [model_path(model)])
    check_writable(out, overwrite=overwrite)
    engine = open_engine(model, device=device, precision=precision)
    console.say(f"engine: {engine.how}")
    made = predict_map(
        engine,
        open_scenes(scenes, engine.header.inputs.bands, engine.header.scene_nodata),
        out,
        confidence=confidence,
        window=window,
        overlap=overlap,
        bounds=_bounds(bounds),
        memory=memory,
        overwrite=overwrite,
        progress=console.progress,
    )
    speed = f"{made.mpx_per_second:.2f} Mpx/s, {made.windows} windows, {made.skipped} empty ones skipped"
    table = class_table(engine.header.legend, made.counts)
    console.answer(
        f"{out}: {speed}\n{table}", map=str(out), counts=made.counts, windows=made.windows, skipped=made.skipped
    )


def _bounds(text: str | None) -> tuple[float, float, float, float] | None:
    from cobertes.errors import SettingsError

    if text is None:
        return None
    try:
        west, south, east, north = map(float, text.split(","))
    except ValueError as error:
        raise SettingsError(f"--bounds takes four numbers W,S,E,N, found '{text}'") from error
    return west, south, east, north
