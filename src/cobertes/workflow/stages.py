"""Stages of a run: one record each. A new stage is a new record in `STAGES`.

    labels -> tiles -> train -> evaluate -> predict -> report        (predict-only projects: predict -> report)

A stage reads and writes files in the run's folder and never calls another one; `cobertes.workflow.run` is the only
place that strings them together.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cobertes.fingerprints import fingerprint_of
from cobertes.geo.ledger import discard
from cobertes.workflow import evaluation, mapping, preparation, reporting, training
from cobertes.workflow import stage_fingerprints as prints
from cobertes.workflow.context import StageContext


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    name            on the command line and in stages.json
    make            runs it; returns a summary in one line
    outputs         files that it leaves
    fingerprint     of its settings and inputs, as they are on disk now
    settings        sections of project.toml that this stage is the first to use
    clear           deletes caches and interrupted work, so that the stage starts anew
    needs_labels    if the stage has no meaning in a project that only predicts
    """

    name: str
    make: Callable[[StageContext], str]
    outputs: Callable[[StageContext], list[Path]]
    fingerprint: Callable[[StageContext], str]
    settings: frozenset[str] = frozenset()
    clear: Callable[[StageContext], None] = lambda context: None
    needs_labels: bool = True

    def missing(self, context: StageContext) -> list[Path]:
        """Outputs that do not exist."""
        return [path for path in self.outputs(context) if not path.exists()]

    def inputs(self, context: StageContext) -> str:
        """Fingerprint of settings and inputs, computed once in a context: it reads pieces of every file."""
        if self.name not in context.fingerprints:
            context.fingerprints[self.name] = self.fingerprint(context)
        return context.fingerprints[self.name]

    def state(self, context: StageContext) -> tuple[bool, str]:
        """True if the stage is up to date; and why, in a few words."""
        if missing := self.missing(context):
            return False, f"{missing[0].relative_to(context.folder.path)} is not there"
        now = self.inputs(context)
        recorded = context.folder.read_record(self.name).get("fingerprint", "")
        if recorded == now or (self is TRAIN and prints.trained_fingerprint(context.folder.model) == now):
            return True, "up to date"
        return False, "it did not end" if recorded is None else "its settings or inputs changed"


def _labels_outputs(context: StageContext) -> list[Path]:
    project, folder = context.project, context.folder
    names = [area.name for area in project.areas]
    shares = [folder.shares(name, project.settings.train) for name in names]
    return [path for name in names for path in (folder.labels(name), folder.purity(name))] + [
        path for path in shares if path is not None
    ]


def _maps(context: StageContext) -> list[Path]:
    folder = context.folder
    return [path(area.name) for area in context.project.areas for path in (folder.map, folder.confidence)]


def _discard_partial(paths: list[Path]) -> None:
    discard({str(path): path for path in paths})


def _clear_maps(context: StageContext) -> None:
    context.folder.update_record("predict", areas={})
    _discard_partial(_maps(context))


LABELS = Stage(
    name="labels",
    make=preparation.label_areas,
    outputs=_labels_outputs,
    fingerprint=prints.labels_fingerprint,
    settings=frozenset({"legend", "bands", "scene-nodata", "labels"}),
    clear=lambda context: _discard_partial(_labels_outputs(context)),
)
TILES = Stage(
    name="tiles",
    make=preparation.index_tiles,
    outputs=lambda context: [context.folder.tiles, context.folder.statistics, context.folder.split],
    fingerprint=prints.tiles_fingerprint,
    settings=frozenset({"tiles", "split"}),
    clear=lambda context: context.folder.measurements.unlink(missing_ok=True),
)
TRAIN = Stage(
    name="train",
    make=training.train,
    outputs=lambda context: [context.folder.model],
    fingerprint=prints.training_fingerprint,
    settings=frozenset({"model", "train", "augmentation"}),
    clear=lambda context: shutil.rmtree(context.folder.store, ignore_errors=True),
)
EVALUATE = Stage(
    name="evaluate",
    make=evaluation.evaluate,
    outputs=lambda context: [
        context.folder.assessment, context.folder.confusion, context.folder.blocks, context.folder.calibration,
    ],
    fingerprint=prints.evaluation_fingerprint,
)  # fmt: skip
PREDICT = Stage(
    name="predict",
    make=mapping.predict,
    outputs=_maps,
    fingerprint=lambda context: fingerprint_of(mapping.map_inputs(context)),
    clear=_clear_maps,
    needs_labels=False,
)
REPORT = Stage(
    name="report",
    make=reporting.report,
    outputs=lambda context: [context.folder.report],
    fingerprint=prints.report_fingerprint,
    needs_labels=False,
)

STAGES = (LABELS, TILES, TRAIN, EVALUATE, PREDICT, REPORT)
