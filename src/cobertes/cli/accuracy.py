"""Commands on accuracy: compare-runs, sample-accuracy, estimate-accuracy, audit-map."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from cobertes.cli.app import app
from cobertes.cli.console import Console
from cobertes.cli.options import Overwrite, command


@command(app, "compare-runs", "Several runs in one table: better, worse, or cannot tell.")
def compare_runs(
    console: Console,
    *,
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of runs, after their evaluate stage; the first is "
                                   "what the others are compared with.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("-o", metavar="FILE.html", help="Also write the comparison as a page.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Compare runs on the blocks of ground that all of them held out, each with its 95 % interval.

    Differences have intervals of their own, from whole blocks drawn again for both runs alike: one that leaves out
    0 is called better or worse, any other says nothing.

    cobertes compare-runs runs/plain runs/weighted -o comparison.html
    """
    from cobertes.accuracy.run_comparison import compare_runs, describe_comparison, read_flat_settings, run_names
    from cobertes.geo.cog_writer import check_writable
    from cobertes.workflow.run_folder import RunFolder, require_run

    if out is not None:
        check_writable(out, overwrite=overwrite)
    files = {name: RunFolder(run) for name, run in run_names(runs).items()}
    for run in files.values():
        if not run.blocks.exists():
            require_run(run.path)  # one that was not judged yet is told apart from what is no run
    settings = {name: read_flat_settings(run.project) for name, run in files.items()}
    found = compare_runs({name: run.blocks for name, run in files.items()})
    text = describe_comparison(found)
    drawn_at_random = [name for name, one in settings.items() if one.get("split.method") == "random"]
    if drawn_at_random:
        logging.getLogger("cobertes").warning(
            "%s: single tiles were drawn (split.method = \"random\"), so neighbours judge each other: intervals "
            "are too narrow", ", ".join(drawn_at_random),
        )  # fmt: skip
    if out is not None:
        from cobertes.report.run_comparison import write_comparison_page

        write_comparison_page(out, found, settings)
        text += f"\npage: {out}"
    console.answer(text, **found.to_dict(), page=out and str(out))


@command(app, "sample-accuracy", "A random sample of a map, to be interpreted in QGIS.")
def sample_accuracy(
    console: Console,
    *,
    map_file: Annotated[Path, typer.Argument(metavar="MAP", help="A map of class codes.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", metavar="FILE.gpkg", help="The sample to write.")],
    points: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Number of points. Default: what --standard-error needs."),
    ] = None,
    standard_error: Annotated[
        float,
        typer.Option(metavar="SHARE", min=1e-4, max=0.5, help="Target for the overall accuracy."),
    ] = 0.01,
    allocation: Annotated[
        str, typer.Option(metavar="proportional|equal", help="Allocation of the points to the strata.")
    ] = "proportional",
    minimum: Annotated[int, typer.Option(metavar="N", min=2, help="Minimum number of points per stratum.")] = 50,
    strata: Annotated[
        Path | None, typer.Option(metavar="RASTER", help="Strata on the map's grid. Default: the map's classes.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run with the expected user's accuracies. Default: 0.8.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the random sample.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw a stratified random sample of pixels and write it as a GeoPackage for photo-interpretation.

    In QGIS its form has a list of the classes for the column `reference`; the map's own class is hidden.

    cobertes sample-accuracy map.tif -o sample.gpkg --standard-error 0.01
    """
    from cobertes.atomic_io import read_json
    from cobertes.errors import SettingsError, did_you_mean
    from cobertes.geo.cog_writer import check_not_input, check_writable
    from cobertes.survey.area_estimation import draw_sample
    from cobertes.workflow.run_folder import RunFolder

    if allocation not in ("proportional", "equal"):
        near = did_you_mean(allocation, ("proportional", "equal"))
        raise SettingsError(f"no allocation '{allocation}'.{near}")
    check_not_input([out], [map_file, *([strata] if strata else [])])
    check_writable(out, overwrite=overwrite)
    expected = {}
    if run is not None:
        found = read_json(RunFolder(run).assessment)["model"]["classes"].values()
        expected = {c["name"]: c["users_accuracy"] for c in found if c["users_accuracy"] is not None}
    drawn = draw_sample(
        map_file, out, strata_file=strata, points=points, standard_error=None if points else standard_error,
        allocation="equal" if allocation == "equal" else "proportional", minimum=minimum, expected=expected,
        seed=seed, progress=console.progress,
    )  # fmt: skip
    lines = [f"{'stratum':<32}{'pixels':>16}{'points':>9}"]
    lines += [f"{name[:31]:<32}{pixels:>16,}{n:>9,}" for name, pixels, n in drawn.strata.values()]
    lines.append(f"{'all':<32}{'':>16}{drawn.points:>9,}")
    lines.append(f"expected standard error of the overall accuracy: {drawn.expected_error:.4f}")
    lines.append(f"Fill in the column 'reference' of {out} in QGIS, then: cobertes estimate-accuracy {out}")
    console.answer(
        "\n".join(lines), sample=str(out), points=drawn.points, expected_standard_error=drawn.expected_error,
        strata={str(code): {"name": a, "pixels": b, "points": n} for code, (a, b, n) in drawn.strata.items()},
    )  # fmt: skip


@command(app, "estimate-accuracy", "Areas and accuracies from an interpreted sample.")
def estimate_accuracy(
    console: Console,
    *,
    sample: Annotated[
        Path, typer.Argument(metavar="FILE.gpkg", help="The sample, filled in.", show_default=False)
    ],
    map_file: Annotated[
        Path | None,
        typer.Option("--map", metavar="MAP", help="Map to evaluate. Default: that of the sample."),
    ] = None,
) -> None:
    """Estimate the area of each class and the accuracy of a map, with 95 % intervals.

    Areas are those of the ground, corrected for the map's errors (Olofsson et al. 2014); strata need not be the
    map's classes (Stehman 2014), so a sample can judge any map of the same ground.

    cobertes estimate-accuracy sample.gpkg
    """
    from cobertes.survey.area_estimation import estimate_areas

    found = estimate_areas(sample, map_file, console.progress)
    console.answer(found.describe(), **found.to_dict())


@command(app, "audit-map", "Where map and reference map disagree: changes, or errors.")
def audit_map(
    console: Console,
    *,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", metavar="FILE.gpkg", help="The patches to write.")],
    min_confidence: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Minimum calibrated confidence of a pixel.")
    ] = 0.7,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Maximum number of patches.")] = 1000,
    overwrite: Overwrite = False,
) -> None:
    """Rank connected patches where the map is sure of another class than the reference map.

    They are candidates for change since the reference map was made, or for errors in it.

    cobertes audit-map runs/catalonia -o patches.gpkg
    """
    from cobertes.accuracy import disagreement
    from cobertes.geo.cog_writer import check_writable
    from cobertes.workflow.evaluation import audited_areas
    from cobertes.workflow.run_folder import open_run

    check_writable(out, overwrite=overwrite)
    project, files = open_run(run)
    areas = audited_areas(project, files)
    if not all(area.table for area in areas):
        logging.getLogger("cobertes").warning(
            "no calibration.json in %s: confidences are taken as they are. The evaluate stage makes it.", run
        )
    patches = disagreement.audit_maps(
        areas, project.legend, min_confidence=min_confidence, top=top, progress=console.progress
    )
    disagreement.write_patches(patches, project.legend, out, overwrite=overwrite)
    text = f"{disagreement.describe_patches(patches, project.legend)}\n{out}"
    ground = [patch.hectares for patch in patches if patch.hectares is not None]
    console.answer(text, patches=len(patches), hectares=sum(ground) if ground else None, geopackage=str(out))
