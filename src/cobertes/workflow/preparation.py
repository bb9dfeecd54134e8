"""Stages that prepare training: labels on the scenes' grids, and the tile index with its split."""

from collections.abc import Sequence
from pathlib import Path

from cobertes.atomic_io import write_json
from cobertes.labels.aggregate import make_labels
from cobertes.labels.vote_weights import VoteWeights
from cobertes.tiles.index import build_index, save_index
from cobertes.workflow.context import StageContext, count_of
from cobertes.workflow.project import Project
from cobertes.workflow.stage_fingerprints import measurements_fingerprint


def label_areas(context: StageContext) -> str:
    """Resample every area's reference map onto its scene's grid. Returns a summary in one line."""
    project, folder = context.project, context.folder
    settings = project.settings.labels
    methods, counts = set(), 0
    with_fractions = project.settings.train.targets == "fractions"
    for area in project.areas:
        if not with_fractions:  # fractions of other labels must not be taken for these
            folder.fractions(area.name).unlink(missing_ok=True)
        made = make_labels(
            Path(str(area.reference)),
            area.grid,
            folder.labels(area.name),
            legend=project.legend,
            table=project.table(area),
            method=settings.method,
            weighting=VoteWeights(settings.class_weights, settings.smoothing),
            min_valid=settings.min_valid,
            unknown=settings.unknown,
            memory=settings.memory,
            purity=folder.purity(area.name),
            fractions=folder.fractions(area.name) if with_fractions else None,
            resume="if-same",
            overwrite=True,
            progress=context.progress,
        )
        methods.add(made.how)
        counts += sum(made.counts.values()) - made.counts[project.legend.nodata]
    areas = count_of(len(project.areas), "area")
    return f"{areas}, {counts:,} labelled pixels; {'; '.join(sorted(methods)[:3])}"


def index_tiles(context: StageContext) -> str:
    """Index the tiles, draw the split, compute the statistics of the training tiles. Returns a summary."""
    project, folder = context.project, context.folder
    settings = project.settings
    index = build_index(
        project.areas,
        {area.name: folder.labels(area.name) for area in project.areas},
        project.legend,
        tiles=settings.tiles.model_copy(update={"drop_only": _learnt(project, settings.tiles.drop_only)}),
        split=settings.split,
        polygons=project.polygons,
        cache=folder.measurements,
        fingerprint=measurements_fingerprint(context),
        progress=context.progress,
    )
    save_index(index.table, folder.tiles)
    write_json(folder.statistics, index.statistics.to_dict(project.legend.keys))
    write_json(folder.split, index.split.to_dict())
    kept = index.table[index.table["keep"]]["split"].value_counts()
    left = index.table[~index.table["keep"]]["reason"].value_counts()
    text = ", ".join(f"{count} {split}" for split, count in kept.items())
    dropped = "".join(f"; {reason}: {count}" for reason, count in left.items())
    reach = "" if index.range_px is None else f", labels alike over {index.range_px:.0f} px"
    return f"{len(index.table)} tiles: {text}{dropped}. Blocks of {index.split.block} px{reach}"


def _learnt(project: Project, classes: Sequence[int | str]) -> list[str]:
    """Keys of the classes that labels hold: the others are nodata there (``labels.as-nodata``)."""
    whole = project.source_legend or project.legend
    return [key for key in (whole.find(name).key for name in classes) if key in project.legend.keys]
