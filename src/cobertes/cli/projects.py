"""Commands on projects: demo, run, init."""

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cobertes.cli.app import app
from cobertes.cli.console import Console
from cobertes.cli.options import Overwrite, Ray, command

if TYPE_CHECKING:
    from cobertes.scale.tuning import Search
    from cobertes.workflow.run import Run

ProjectFile = Annotated[Path, typer.Argument(help="The project file, project.toml.", metavar="PROJECT")]
RunOption = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help="The run's folder. Default: runs/NAME beside the project file."),
]


@command(app, "demo", "Run everything on generated data.")
def demo(
    console: Console,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for data, run and map.")] = Path("demo"),
    size: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=192, help="Side of the generated scenes. Default: 1200.")
    ] = None,
) -> None:
    """Run all stages on a generated miniature of Catalonia: labels, tiles, training, accuracy, map and report.

    Two seasons of 10 bands at 10 m and a reference map at 1 m are generated first. A second call resumes where
    the first one stopped.

    cobertes demo --out demo
    """
    from cobertes.errors import SettingsError
    from cobertes.synthetic.demo import write_demo
    from cobertes.workflow.project import load_project

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
            "--from",
            metavar="STAGE",
            help="Rerun this and all later stages. An existing model is renamed.",
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Print the stages to run and the cost of training, from a few timed steps."),
    ] = False,
    ray: Ray = None,
) -> None:
    """Run a project: labels -> tiles -> train -> evaluate -> predict -> report.

    A second run does only what changed. A trained model is never replaced. With --ray, maps are computed there.

    cobertes run project.toml
    """
    from cobertes.workflow.project import load_project
    from cobertes.workflow.run import Run
    from cobertes.workflow.scene_paths import file_name

    loaded = load_project(project)
    folder = run or project.parent / "runs" / file_name(loaded.settings.name)
    job = Run(
        loaded,
        folder,
        progress=console.progress,
        on_message=lambda stage, text: console.say(f"{stage:<9} {text}"),
        on_epoch=lambda record: console.say(_epoch_line(record)),
    )
    if plan:
        steps = job.plan(only, start)
        lines = [f"{step.stage:<9} {'run' if step.runs else 'skip':<5} {step.why}" for step in steps]
        training = None
        if any(step.stage == "train" and step.runs for step in steps):
            from cobertes.workflow.training import estimate_cost

            found = estimate_cost(job.context())
            training, lines = found.to_dict(), [*lines, "", *found.lines()]
        console.answer("\n".join(lines), steps=[vars(step) for step in steps], training=training)
        return
    if ray is not None:
        from cobertes.scale.cluster import require_cluster
        from cobertes.scale.ray_executor import ray_executor

        require_cluster(ray)
        job.executor = lambda stop: ray_executor(ray, stop=stop)
    ran = job.run(only, start)
    if job.is_rank_zero:
        _print_results(console, job, ran)


def _epoch_line(record: dict[str, float]) -> str:
    held_out = (
        f"held out {record['validation_loss']:.3f}  mIoU {record['miou']:.3f}  Dice {record['mean_dice']:.3f}  "
        f"accuracy {record['overall_accuracy']:.3f}  "
    )
    return (
        f"epoch {record['epoch']:>3.0f}  loss {record['loss']:.3f}  {'' if isnan(record['miou']) else held_out}"
        f"lr {record['learning_rate']:.2g}  {record['seconds']:.0f} s, {record['tiles_per_second']:.3g} tiles/s, "
        f"{record['waiting_share']:.0%} for data"
    )


def _print_results(console: Console, job: "Run", ran: list[str]) -> None:
    """Print the paths of the results, and the scores beside the baselines."""
    from cobertes.atomic_io import read_json

    folder, names = job.folder, [area.name for area in job.project.areas]
    maps = [str(folder.map(name)) for name in names if folder.map(name).exists()]
    result: dict[str, object] = {"run": str(folder.path), "ran": ran, "maps": maps}
    lines = []
    if folder.assessment.exists() and not job.project.predict_only:
        assessment = read_json(folder.assessment)
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
    if folder.report.exists():
        lines.append(f"report: {folder.report}")
        result["report"] = str(folder.report)
    console.answer("\n".join(lines) or f"run: {folder.path}", **result)


@command(app, "init", "Write a first project file.")
def init(
    console: Console,
    *,
    scenes: Annotated[
        list[str], typer.Argument(metavar="SCENE", help="A scene, or season=SCENE for each of several seasons.")
    ],
    reference: Annotated[str, typer.Option(metavar="MAP", help="The reference land-cover map.")],
    out: Annotated[Path, typer.Option("-o", metavar="FILE", help="The project file to write.")] = Path(
        "project.toml"
    ),
    names: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Names of the map's codes: CSV, Excel, DBF, .qml, .sld, .clr. Default: the map's own.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Inspect scenes and a reference map, and write a commented project file for them.

    A SCENE is a file, a VRT, a folder or glob of per-band files, or a comma-separated list of them.

    cobertes init april=s2_april.tif august=s2_august.tif --reference landcover.tif
    """
    from cobertes.workflow.init_project import write_project
    from cobertes.workflow.scene_paths import resolve

    found = write_project(scenes, resolve(reference, Path()), out, names_table=names, overwrite=overwrite)
    console.answer(f"{found}\nwrote {out}. Look it over, then: cobertes run {out}", project=str(out), found=found)


@command(app, "tune", "Search for better settings.")
def tune(
    console: Console,
    *,
    project: ProjectFile,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="DIR", help="The search's folder. Default: runs/NAME-tune beside the project file."
        ),
    ] = None,
    ray: Ray = "local",
) -> None:
    """Search for the settings of training that score best on the validation blocks, as [tune] of the project says.

    Labels, tiles and store are made once, then many trainings are tried, and weak ones stopped early. The same
    command goes on after an interruption. The best settings become best.toml, a project to run.

    cobertes tune project.toml
    """
    from cobertes.scale.tuning import tune as search
    from cobertes.workflow.project import load_project
    from cobertes.workflow.scene_paths import file_name

    loaded = load_project(project)
    folder = run or project.parent / "runs" / f"{file_name(loaded.settings.name)}-tune"
    found = search(
        loaded,
        folder,
        address=ray or "local",
        progress=console.progress,
        on_message=lambda what, text: console.say(f"{what:<9} {text}"),
    )
    console.answer(
        _trials_table(found),
        best=found.best.drawn,
        miou=found.best.score,
        trials=len(found.trials),
        project=str(found.project),
        page=str(found.page),
        table=str(found.table),
    )


def _trials_table(found: "Search") -> str:
    """Text table of the trials, best first, and paths of the results."""
    keys = list(found.best.drawn)
    rows = [["trial", "mIoU", "epochs", "outcome", *keys]]
    order = sorted(found.trials, key=lambda trial: -1.0 if isnan(trial.score) else trial.score, reverse=True)
    for trial in order:
        score = "-" if isnan(trial.score) else f"{trial.score:.3f}"
        values = [str(trial.drawn.get(key, "-")) for key in keys]
        rows.append([str(trial.number), score, str(len(trial.history)), trial.outcome, *values])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines += [f"trial {trial.number}: {trial.failed}" for trial in order if trial.failed]
    said = [f"page: {found.page}", f"best: {found.project}. Train it again: cobertes run {found.project}"]
    return "\n".join([*lines, "", *said])
