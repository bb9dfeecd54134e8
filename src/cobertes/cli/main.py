"""The command line. Heavy modules are imported inside the commands: ``cobertes --help`` stays quick."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cobertes.cli.console import Console
from cobertes.cli.options import command

if TYPE_CHECKING:
    from cobertes.labels.legend import Legend
    from cobertes.run import Run

app = typer.Typer(
    name="cobertes",
    help="Satellite mosaics and a reference land-cover map in; a U-Net, an accuracy report and a map out.\n\n"
    "Start with: cobertes demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

ProjectFile = Annotated[Path, typer.Argument(help="The project file, project.toml.", metavar="PROJECT")]
RunOption = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help="The run's folder. Default: runs/NAME beside the project file."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]


def main() -> None:
    """The entry point of the ``cobertes`` command."""
    app()


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        import cobertes

        typer.echo(f"cobertes {cobertes.__version__}")
        raise typer.Exit


@command(app, "demo", "Run everything on generated data.")
def demo(
    console: Console,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where data, run and map go.")] = Path("demo"),
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=192, help="Side of the generated scenes. Default: 1200.")
    ] = None,
) -> None:
    """The main job on a generated mini-Catalonia: labels, tiles, training, accuracy, map and report.

    Two seasons of 10 bands at 10 m and a reference map at 1 m are generated, then everything is run on them.
    A second call goes on where the first one stopped.

    cobertes demo --out demo
    """
    from cobertes.errors import SettingsError
    from cobertes.project import load_project
    from cobertes.synthetic.demo import write_demo

    project_file = out / "project.toml"
    if not project_file.exists():
        console.say("generating scenes and a reference map ...")
        write_demo(out, size=size or 1200, progress=console.progress)
    elif size is not None and (shape := load_project(project_file).areas[0].shape) != (size, size):
        raise SettingsError(
            f"{out} holds scenes of {shape[1]} x {shape[0]} px, not of {size} x {size} px. Name another --out, or "
            f"leave --size out to go on with these."
        )
    run(console, project=project_file)


@command(app, "run", "Run a project, from labels to report.")
def run(
    console: Console,
    *,
    project: ProjectFile,
    run: RunOption = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="STAGE", help="This stage alone, unless it is up to date.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="STAGE", help="This stage and all later ones, up to date or not; keeps an old model."
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, and stop.")] = False,
) -> None:
    """Run a project: labels -> tiles -> train -> evaluate -> predict -> report.

    A second run does only what changed. A trained model is never replaced.

    cobertes run project.toml
    """
    from cobertes.project import file_name, load_project
    from cobertes.run import Run

    loaded = load_project(project)
    folder = run or project.parent / "runs" / file_name(loaded.settings.name)
    job = Run(
        loaded,
        folder,
        progress=console.progress,
        tell=lambda stage, text: console.say(f"{stage:<9} {text}"),
        on_epoch=lambda record: console.say(_epoch_line(record)),
    )
    if plan:
        steps = job.plan(only, start)
        lines = [f"{step.stage:<9} {'run' if step.runs else 'skip':<5} {step.why}" for step in steps]
        console.answer("\n".join(lines), steps=[vars(step) for step in steps])
        return
    ran = job.run(only, start)
    _tell_results(console, job, ran)


def _epoch_line(record: dict[str, float]) -> str:
    return (
        f"epoch {record['epoch']:>3.0f}  loss {record['loss']:.3f}  held out {record['validation_loss']:.3f}  "
        f"mIoU {record['miou']:.3f}  Dice {record['mean_dice']:.3f}  accuracy {record['overall_accuracy']:.3f}  "
        f"lr {record['learning_rate']:.2g}  {record['seconds']:.0f} s"
    )


def _tell_results(console: Console, job: "Run", ran: list[str]) -> None:
    """Where everything is, and the scores beside the baselines."""
    from cobertes.files import read_json

    files, names = job.files, [area.name for area in job.project.areas]
    maps = [str(files.map(name)) for name in names if files.map(name).exists()]
    result: dict[str, object] = {"run": str(files.path), "ran": ran, "maps": maps}
    lines = []
    if files.assessment.exists() and not job.project.predict_only:
        assessment = read_json(files.assessment)
        scored = {"model": assessment["model"], **assessment["baselines"]}
        lines.append(f"On {assessment['pixels']:,} labelled pixels of the {assessment['split']} blocks:")
        for name, scores in scored.items():
            words = f"  {'U-Net' if name == 'model' else name.replace('_', ' '):<14}"
            lines.append(f"{words} mIoU {scores['miou']:.3f}   overall accuracy {scores['overall_accuracy']:.3f}")
        result["scores"] = {
            name: {key: scores[key] for key in ("miou", "overall_accuracy")} for name, scores in scored.items()
        }
    if maps:
        lines.append(f"map:    {maps[0]}" + (f" and {len(maps) - 1} more" if len(maps) > 1 else ""))
    if files.report.exists():
        lines.append(f"report: {files.report}")
        result["report"] = str(files.report)
    console.answer("\n".join(lines) or f"run: {files.path}", **result)


@command(app, "init", "Write a first project file.")
def init(
    console: Console,
    *,
    scenes: Annotated[
        list[str], typer.Argument(metavar="SCENE", help="A scene, or season=SCENE for each of several seasons.")
    ],
    reference: Annotated[Path, typer.Option(metavar="MAP", help="The reference land-cover map.")],
    out: Annotated[Path, typer.Option("-o", metavar="FILE", help="The project file to write.")] = Path(
        "project.toml"
    ),
    overwrite: Overwrite = False,
) -> None:
    """Inspect scenes and a reference map, and write a commented project file for them.

    A SCENE is a file, a VRT, a folder or glob of per-band files, or a comma-separated list of them.

    cobertes init april=s2_april.tif august=s2_august.tif --reference landcover.tif
    """
    from cobertes.propose import write_project

    found = write_project(scenes, reference, out, overwrite=overwrite)
    console.answer(f"{found}\nwrote {out}. Look it over, then: cobertes run {out}", project=str(out), found=found)


@command(app, "labels", "Bring a reference map onto a scene's grid.")
def labels(
    console: Console,
    *,
    reference: Annotated[Path, typer.Argument(metavar="MAP", help="The reference land-cover map.")],
    like: Annotated[str, typer.Option(metavar="SCENE", help="The scene whose grid the labels take.")],
    out: Annotated[Path, typer.Option("-o", metavar="FILE", help="The labels to write.")],
    legend: Annotated[str, typer.Option(metavar="NAME|FILE", help="See `cobertes legends`.")] = "catalonia-12",
    crosswalk: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Source codes -> legend codes.")
    ] = None,
    method: Annotated[str, typer.Option(metavar="METHOD", help="nearest or majority.")] = "majority",
    purity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Share of the winning class, percent.")
    ] = None,
    fractions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Share of each class in each pixel.")
    ] = None,
    min_valid: Annotated[float, typer.Option(metavar="SHARE", help="Share of a pixel that must be known.")] = 0.5,
    unknown: Annotated[str, typer.Option(metavar="error|nodata", help="Codes outside the legend.")] = "error",
    memory: Annotated[int, typer.Option(metavar="MB", help="Peak memory of the process.")] = 900,
    overwrite: Overwrite = False,
) -> None:
    """Bring a reference map onto the grid of a scene, without blending classes.

    cobertes labels landcover_1m.tif --like s2_april.tif -o labels.tif --legend catalonia-12
    """
    from cobertes.geo.raster import check_not_input
    from cobertes.geo.scene import open_scene
    from cobertes.labels.aggregate import make_labels
    from cobertes.labels.legend import load_crosswalk, load_legend, translation
    from cobertes.labels.reference import reference_nodata
    from cobertes.project import scene_files

    classes = load_legend(legend)
    table = translation(
        classes,
        crosswalk=load_crosswalk(crosswalk) if crosswalk else None,
        source_nodata=reference_nodata(reference),
    )
    scene = open_scene(scene_files(like))
    check_not_input((out, purity, fractions), scene.files)
    made = make_labels(
        reference,
        scene.grid,
        out,
        legend=classes,
        table=table,
        method=method,
        min_valid=min_valid,
        unknown=unknown,  # type: ignore[arg-type]  # checked there
        memory=memory,
        purity=purity,
        fractions=fractions,
        overwrite=overwrite,
        progress=console.progress,
    )
    console.answer(
        f"{out}: {made.how}\n{_class_table(classes, made.counts)}",
        labels=str(out),
        counts=made.counts,
        unknown=made.unknown,
        how=made.how,
    )


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
    from cobertes.project import open_scenes

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
    table = _class_table(engine.header.legend, made.counts)
    console.answer(
        f"{out}: {speed}\n{table}", map=str(out), counts=made.counts, windows=made.windows, skipped=made.skipped
    )


def _class_table(legend: "Legend", counts: dict[int, int]) -> str:
    """Pixels and share of each class, nodata last."""
    names = {c.code: c.name for c in legend.classes} | {legend.nodata: "nodata"}
    total = max(sum(counts.values()), 1)
    rows = [
        f"{code:>4}  {counts[code]:>14,}  {counts[code] / total:>7.2%}  {name}" for code, name in names.items()
    ]
    return "\n".join([f"{'code':>4}  {'pixels':>14}  {'share':>7}  class", *rows])


def _bounds(text: str | None) -> tuple[float, float, float, float] | None:
    from cobertes.errors import SettingsError

    if text is None:
        return None
    try:
        west, south, east, north = map(float, text.split(","))
    except ValueError as error:
        raise SettingsError(f"--bounds takes four numbers W,S,E,N, found '{text}'") from error
    return west, south, east, north


@command(app, "legends", "Show the packaged legends.")
def legends(
    console: Console,
    *,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A legend to show.")] = None,
) -> None:
    """List the packaged legends, or the classes of one.

    cobertes legends catalonia-12
    """
    from cobertes.labels.legend import legend_names, load_legend

    if name is None:
        console.answer("\n".join(legend_names()), legends=legend_names())
        return
    legend = load_legend(name)
    rows = [f"{c.code:>4}  {c.colour}  {c.key:<24} {c.name}" for c in legend.classes]
    console.answer(f"{legend.name}, nodata {legend.nodata}\n" + "\n".join(rows), **legend.to_dict())
