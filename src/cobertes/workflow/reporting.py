"""Report stage: one self-contained HTML file on whatever the run has."""

from cobertes.atomic_io import read_json
from cobertes.workflow.context import StageContext
from cobertes.workflow.mapping import model_file


def report(context: StageContext) -> str:
    """Write the report. Returns its path."""
    from cobertes.learn.metrics_log import read_history
    from cobertes.learn.model_file import read_header
    from cobertes.report.report import RunRecords, write_report
    from cobertes.report.thumbnails import AreaRasters

    project, folder = context.project, context.folder
    header = read_header(model_file(project, folder))
    learnt = not project.predict_only
    write_report(
        folder.report,
        title=project.settings.name,
        areas=project.areas,
        legend=header.legend,
        rgb=project.rgb,
        rasters=AreaRasters(
            maps=context.existing(folder.map),
            confidence=context.existing(folder.confidence),
            labels=context.existing(folder.labels) if learnt else {},
        ),
        records=RunRecords(
            assessment=read_json(folder.assessment) if learnt and folder.assessment.exists() else None,
            calibration=read_json(folder.calibration) if learnt and folder.calibration.exists() else None,
            history=read_history(folder.metrics) if learnt else [],
            model=header.facts(),
            settings=context.settings,
            split=read_json(folder.split) if learnt and folder.split.exists() else None,
        ),
    )
    return str(folder.report)
