"""Evaluate stage: scores of the model and its baselines on held-out blocks."""

from typing import TYPE_CHECKING

from cobertes.atomic_io import read_json, write_json
from cobertes.errors import InputFileError
from cobertes.tiles.band_statistics import Statistics
from cobertes.workflow.context import StageContext, open_dataset
from cobertes.workflow.mapping import quantize_if_needed
from cobertes.workflow.project import Project
from cobertes.workflow.run_folder import RunFolder

if TYPE_CHECKING:
    from cobertes.accuracy.disagreement import AuditedArea

WORST_SIDE = 256
"""Side of the squares of which the report shows the worst, in pixels, unless tiles are smaller."""


def evaluate(context: StageContext) -> str:
    """Evaluate the model and its baselines on the held-out blocks. Returns a summary in one line."""
    from cobertes.accuracy.block_confusion import save_blocks
    from cobertes.engines.engine import open_engine
    from cobertes.evaluation.evaluate import evaluate as evaluate_model

    project, folder = context.project, context.folder
    settings, dataset = project.settings.predict, open_dataset(project, folder)
    if settings.precision == "int8":
        quantize_if_needed(project, folder, context.progress)
    engine = open_engine(
        folder.model, device=settings.device, precision=settings.precision, engine=settings.engine,
        tta=settings.views,
    )  # fmt: skip
    assessment = evaluate_model(
        engine,
        dataset,
        context.index,
        Statistics.from_dict(read_json(folder.statistics)),
        purity=context.existing(folder.purity),
        tile_size=min(project.settings.tiles.size, WORST_SIDE),
        window=settings.window,
        overlap=settings.overlap,
        blend=settings.blend,
        batch_size=settings.batch_size,
        progress=context.progress,
    )
    assessment.model.save_csv(folder.confusion, dataset.legend)
    assessment.model.save_json(folder.confusion.with_suffix(".json"), dataset.legend)
    save_blocks(folder.blocks, assessment.methods, dataset.legend.keys)
    write_json(folder.calibration, assessment.calibration)
    write_json(folder.assessment, assessment.to_dict(dataset))
    forest = assessment.baselines["random_forest"].total
    return (
        f"mIoU {assessment.model.miou:.3f} (forest {forest.miou:.3f}), overall accuracy "
        f"{assessment.model.overall_accuracy:.3f} (forest {forest.overall_accuracy:.3f}) on {assessment.split}"
    )


def audited_areas(project: Project, folder: RunFolder) -> list["AuditedArea"]:
    """Map, labels, confidence and its reliability of each area, for `audit_maps`.

    Raises InputFileError if an area has no map or no labels yet.
    """
    from cobertes.accuracy.disagreement import AuditedArea, is_calibrated

    known = read_json(folder.calibration)["reliability"] if folder.calibration.exists() else {}
    areas = []
    for area in project.areas:
        name = area.name
        for path in (folder.map(name), folder.confidence(name), folder.labels(name)):
            if not path.exists():
                raise InputFileError(f"no file at {path}: run all stages first, `cobertes run PROJECT`")
        table = known.get("after" if is_calibrated(folder.confidence(name)) else "before", [])
        areas.append(AuditedArea(name, folder.map(name), folder.labels(name), folder.confidence(name), table))
    return areas
