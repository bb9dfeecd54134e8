"""Commands on the tile index of a run: show-tiles, audit-split, export-tiles."""

from pathlib import Path
from typing import Annotated

import typer

from cobertes.cli.app import app
from cobertes.cli.console import Console
from cobertes.cli.options import Overwrite, command

RunFolderArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, after its tiles stage.", show_default=False)
]


@command(app, "show-tiles", "The tile index as a table and a map.")
def show_tiles(
    console: Console,
    *,
    run: RunFolderArgument,
    out: Annotated[
        Path | None, typer.Option("-o", metavar="FILE.gpkg", help="Also write a GeoPackage for QGIS.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--map", metavar="FILE.png", help="The map. Default: tiles.png in the run.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Which tiles a run keeps and why others are left out; how its splits share the classes; a map of both.

    cobertes show-tiles runs/catalonia -o tiles.gpkg
    """
    from cobertes.atomic_io import read_json
    from cobertes.geo.cog_writer import check_writable
    from cobertes.tiles.index import load_index
    from cobertes.tiles.tile_report import describe_summary, draw_tiles, summarise, write_tiles
    from cobertes.workflow.run_folder import RunFolder

    files = RunFolder(run)
    for path in filter(None, (out, picture)):
        check_writable(path, overwrite=overwrite)
    frame, split = load_index(files.tiles), read_json(files.split)
    keys = list(read_json(files.statistics)["class_counts"])
    summary = summarise(frame, keys)
    picture = picture or run / "tiles.png"
    draw_tiles(frame, picture, title=f"{len(frame):,} tiles, blocks of {split['block']} px")
    written = [f"map: {picture}"]
    if out is not None:
        write_tiles(frame, keys, out)
        written.append(f"GeoPackage: {out}")
    text = describe_summary(summary, split["block"], split["guard"])
    console.answer("\n".join([text, *written]), **summary, map=str(picture), geopackage=out and str(out))


@command(app, "audit-split", "By how much a random split would flatter.")
def audit_split(
    console: Console,
    *,
    run: RunFolderArgument,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Random splits of each kind.")] = 3,
) -> None:
    """Score a per-pixel forest and the nearest training pixel under random splits and under block splits.

    Neighbouring tiles resemble each other, so a split at random shows an accuracy that new ground does not give.

    cobertes audit-split runs/catalonia
    """
    from cobertes.accuracy import split_audit
    from cobertes.tiles.index import load_index
    from cobertes.workflow.context import open_dataset
    from cobertes.workflow.run_folder import open_run

    project, files = open_run(run)
    numbers = range(seeds)
    found = split_audit.audit_split(
        open_dataset(project, files), load_index(files.tiles), project.settings.split, project.settings.tiles,
        seeds=numbers, progress=console.progress,
    )  # fmt: skip
    console.answer(split_audit.describe_audit(found, numbers), **found.scores())


@command(app, "export-tiles", "The kept tiles as image and label GeoTIFFs.")
def export_tiles(
    console: Console,
    *,
    run: RunFolderArgument,
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write the kept tiles for other tools: train/images, train/labels, validation/images, validation/labels.

    cobertes export-tiles runs/catalonia tiles
    """
    from cobertes.tiles import export
    from cobertes.tiles.index import load_index
    from cobertes.workflow.context import open_dataset
    from cobertes.workflow.run_folder import open_run

    project, files = open_run(run)
    made = export.export_tiles(
        load_index(files.tiles), open_dataset(project, files), out, overwrite=overwrite, progress=console.progress
    )
    text = ", ".join(f"{count} {split}" for split, count in made.items())
    console.answer(f"{out}: {text} tiles", folder=str(out), tiles=made)
