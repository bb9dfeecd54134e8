"""Commands on reference maps: labels, compare-labels, legends."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cobertes.cli.app import app
from cobertes.cli.console import Console, class_table
from cobertes.cli.options import Memory, Overwrite, Resume, command

if TYPE_CHECKING:
    from cobertes.labels.legend import Legend
    from cobertes.labels.recode import RecodeTable

LegendOption = Annotated[str, typer.Option(metavar="NAME|FILE", help="See `cobertes legends`.")]
CrosswalkOption = Annotated[str | None, typer.Option(metavar="NAME|FILE", help="Source codes -> legend codes.")]
ClassWeights = Annotated[
    str,
    typer.Option(
        metavar="NAME|CLASS=NUMBER,...",
        help="Class weights of weighted-majority: equal, inverse-sqrt or inverse (frequency), or by class.",
    ),
]
Smoothing = Annotated[
    float,
    typer.Option(metavar="PIXELS", help="Standard deviation of the Gaussian of weighted-majority, 0 to 1."),
]
MinValid = Annotated[float, typer.Option(metavar="SHARE", help="Minimum valid share of a pixel.")]
Unknown = Annotated[str, typer.Option(metavar="error|nodata", help="Codes outside the legend.")]


@command(app, "labels", "Bring a reference map onto a scene's grid.")
def labels(
    console: Console,
    *,
    reference: Annotated[str, typer.Argument(metavar="MAP", help="The reference land-cover map.")],
    like: Annotated[str, typer.Option(metavar="SCENE", help="The scene whose grid the labels take.")],
    out: Annotated[Path, typer.Option("-o", metavar="FILE", help="The labels to write.")],
    legend: LegendOption = "catalonia-12",
    crosswalk: CrosswalkOption = None,
    method: Annotated[
        str, typer.Option(metavar="METHOD", help="nearest, majority or weighted-majority.")
    ] = "majority",
    class_weights: ClassWeights = "inverse-sqrt",
    smoothing: Smoothing = 0.0,
    purity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Share of the label's class in each pixel, percent.")
    ] = None,
    fractions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Share of every class in each pixel, percent, a band each.")
    ] = None,
    entropy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="How mixed each pixel is, percent of the maximum.")
    ] = None,
    valid: Annotated[Path | None, typer.Option(metavar="FILE", help="Valid share of each pixel, percent.")] = None,
    also: Annotated[
        list[str] | None, typer.Option(metavar="METHOD=FILE", help="Labels by another method, from the same pass.")
    ] = None,
    min_valid: MinValid = 0.5,
    unknown: Unknown = "error",
    memory: Memory = 900,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Bring a reference map onto the grid of a scene, without blending classes.

    cobertes labels landcover_1m.tif --like s2_april.tif -o labels.tif --legend catalonia-12
    """
    from cobertes.geo.cog_writer import check_not_input
    from cobertes.geo.scene import open_scene
    from cobertes.labels.aggregate import make_labels
    from cobertes.labels.legend import load_legend
    from cobertes.labels.vote_weights import VoteWeights, parse_weights
    from cobertes.workflow.scene_paths import resolve, scene_files

    map_file = resolve(reference, Path())
    classes = load_legend(legend)
    scene = open_scene(scene_files(like))
    others = _assignments(also or [], "--also takes METHOD=FILE")
    outputs = (out, purity, fractions, entropy, valid, *others.values())
    check_not_input(outputs, scene.files)
    made = make_labels(
        map_file,
        scene.grid,
        out,
        legend=classes,
        table=_table_of(map_file, classes, crosswalk),
        method=method,
        weighting=VoteWeights(parse_weights(class_weights), smoothing),
        min_valid=min_valid,
        unknown=unknown,  # type: ignore[arg-type]  # checked there
        memory=memory,
        purity=purity,
        fractions=fractions,
        entropy=entropy,
        valid=valid,
        also=others,
        resume="yes" if resume else "no",
        overwrite=overwrite,
        progress=console.progress,
    )
    console.answer(
        f"{out}: {made.how}\n{class_table(classes, made.counts)}",
        labels=str(out),
        counts=made.counts,
        unknown=made.unknown,
        how=made.how,
        weights=made.weights,
    )


@command(app, "compare-labels", "Show what each aggregation method does to each class.")
def compare_labels(
    console: Console,
    *,
    reference: Annotated[str, typer.Argument(metavar="MAP", help="The reference land-cover map.")],
    like: Annotated[str, typer.Option(metavar="SCENE", help="The scene whose grid the labels take.")],
    out: Annotated[Path, typer.Option("-o", metavar="DIR", help="The folder for labels, table and picture.")],
    legend: LegendOption = "catalonia-12",
    crosswalk: CrosswalkOption = None,
    class_weights: ClassWeights = "inverse-sqrt",
    smoothing: Smoothing = 0.0,
    min_valid: MinValid = 0.5,
    unknown: Unknown = "error",
    memory: Memory = 900,
    overwrite: Overwrite = False,
) -> None:
    """Make labels by nearest, majority and weighted majority, and measure them against the map.

    For every class: its area beside the map's, and the share of its small objects (connected map pixels under
    the area of one and of ten scene pixels) of which nothing is left. For every method: length of boundaries,
    agreement with the others. Written to DIR: METHOD.tif, comparison.csv, comparison.json, comparison.png.

    cobertes compare-labels landcover_1m.tif --like s2_april.tif -o comparison --legend catalonia-12
    """
    from cobertes.geo.cog_writer import check_not_input, check_writable
    from cobertes.geo.scene import open_scene
    from cobertes.labels.legend import load_legend
    from cobertes.labels.method_comparison import as_dict, compare_labels
    from cobertes.labels.vote_weights import VoteWeights, parse_weights
    from cobertes.report.label_comparison import comparison_table, write_comparison_picture
    from cobertes.workflow.scene_paths import resolve, scene_files

    map_file = resolve(reference, Path())
    classes, scene = load_legend(legend), open_scene(scene_files(like))
    picture = out / "comparison.png"
    check_not_input([picture], [map_file, *scene.files])
    check_writable(picture, overwrite=overwrite)
    table = _table_of(map_file, classes, crosswalk)
    found = compare_labels(
        map_file,
        scene.grid,
        out,
        legend=classes,
        table=table,
        weighting=VoteWeights(parse_weights(class_weights), smoothing),
        min_valid=min_valid,
        unknown=unknown,  # type: ignore[arg-type]  # checked there
        memory=memory,
        overwrite=overwrite,
        progress=console.progress,
    )
    write_comparison_picture(found, map_file, scene.grid, out, table, picture)
    console.answer(f"{comparison_table(found)}\n\npicture: {picture}", picture=str(picture), **as_dict(found))


def _table_of(reference: Path, legend: "Legend", crosswalk: str | None) -> "RecodeTable":
    """Recode table of a reference map."""
    from cobertes.labels.crosswalk import load_crosswalk
    from cobertes.labels.recode import recode_map

    return recode_map(reference, legend, crosswalk=load_crosswalk(crosswalk) if crosswalk else None)


def _assignments(texts: list[str], usage: str) -> dict[str, Path]:
    """``name=file`` as a table."""
    from cobertes.errors import SettingsError

    pairs = [text.partition("=") for text in texts]
    if not all(name and file for name, _, file in pairs):
        raise SettingsError(f"{usage}, found '{' '.join(texts)}'")
    return {name: Path(file) for name, _, file in pairs}


@command(app, "legends", "Show the packaged legends.")
def legends(
    console: Console,
    *,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A legend to show.")] = None,
) -> None:
    """List the packaged legends and crosswalks, or the classes of a legend.

    cobertes legends catalonia-12
    """
    from cobertes.labels.crosswalk import crosswalk_names
    from cobertes.labels.legend import legend_names, load_legend

    if name is None:
        walks = "\n".join(f"  {walk}" for walk in crosswalk_names())
        console.answer(
            "\n".join(legend_names()) + f"\n\ncrosswalks:\n{walks}",
            legends=legend_names(),
            crosswalks=crosswalk_names(),
        )
        return
    legend = load_legend(name)
    rows = [f"{c.code:>4}  {c.colour}  {c.key:<24} {c.name}" for c in legend.classes]
    nodata = ", ".join(map(str, (legend.nodata, *legend.also_nodata)))
    console.answer(f"{legend.name}, nodata {nodata}\n" + "\n".join(rows), **legend.to_dict())
