"""Files of a run: paths in its folder, and ``stages.json``, which records what each stage was made from.

runs/NAME/project.toml      the settings, defaults included
          labels/AREA.tif   tiles.parquet   statistics.json   split.json
          checkpoints/      metrics.jsonl   tensorboard/      model.safetensors
          assessment.json   confusion.csv   blocks.json       maps/AREA.tif   maps/AREA.confidence.tif
          calibration.json  report.html
          stages.json       fingerprint of each stage's inputs, so that a second run does only what changed
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cobertes.atomic_io import StrPath, read_json, write_json
from cobertes.errors import InputFileError, SettingsError
from cobertes.settings import TrainSettings
from cobertes.workflow.project import Project, load_project

HEAD = "# The settings of this run, defaults included."
"""First line of a run's project.toml; the second names the file that its relative paths refer to."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files in a run's folder."""

    path: Path

    def labels(self, area: str) -> Path:
        """Labels of an area."""
        return self.path / "labels" / f"{area}.tif"

    def fractions(self, area: str) -> Path:
        """Share of each class in each pixel, percent; made only if training learns from it."""
        return self.path / "labels" / f"{area}.fractions.tif"

    def purity(self, area: str) -> Path:
        """Share of each pixel that its label covers, percent."""
        return self.path / "labels" / f"{area}.purity.tif"

    def shares(self, area: str, settings: TrainSettings) -> Path | None:
        """Fractions or purity, whichever training reads beside the labels; None if neither."""
        if settings.targets == "fractions":
            return self.fractions(area)
        return self.purity(area) if settings.purity_weight else None

    def map(self, area: str) -> Path:
        """Predicted map of an area."""
        return self.path / "maps" / f"{area}.tif"

    def confidence(self, area: str) -> Path:
        """Confidence of the predicted map of an area."""
        return self.path / "maps" / f"{area}.confidence.tif"

    @property
    def project(self) -> Path:
        """Resolved settings, defaults included."""
        return self.path / "project.toml"

    @property
    def tiles(self) -> Path:
        """Tile index."""
        return self.path / "tiles.parquet"

    @property
    def measurements(self) -> Path:
        """Measurements of the scenes in each tile, independent of filters and split."""
        return self.path / "observations.npz"

    @property
    def store(self) -> Path:
        """Tile store: a copy of the labelled pixels for fast reading. It may be deleted after training."""
        return self.path / "store"

    @property
    def statistics(self) -> Path:
        """Mean and standard deviation per band, class counts."""
        return self.path / "statistics.json"

    @property
    def split(self) -> Path:
        """Split of each block."""
        return self.path / "split.json"

    @property
    def checkpoints(self) -> list[Path]:
        """Checkpoints that an interrupted training resumes from: the last one, and the one before."""
        return [self.path / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt")]

    @property
    def model(self) -> Path:
        """Trained model."""
        return self.path / "model.safetensors"

    @property
    def metrics(self) -> Path:
        """Metrics, one line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def assessment(self) -> Path:
        """Scores of the model and its baselines."""
        return self.path / "assessment.json"

    @property
    def confusion(self) -> Path:
        """Confusion matrix of the model."""
        return self.path / "confusion.csv"

    @property
    def blocks(self) -> Path:
        """Confusion matrices by held-out block, of the model and its baselines."""
        return self.path / "blocks.json"

    @property
    def calibration(self) -> Path:
        """Temperature that calibrates the confidences, and their reliability."""
        return self.path / "calibration.json"

    @property
    def report(self) -> Path:
        """Report."""
        return self.path / "report.html"

    @property
    def stages(self) -> Path:
        """Records of the stages."""
        return self.path / "stages.json"

    def read_record(self, stage: str) -> dict[str, Any]:
        """Record of a stage; empty if it never ran."""
        record: dict[str, Any] = self._records().get(stage, {})
        return record

    def update_record(self, stage: str, **entries: Any) -> None:
        """Change entries of a stage's record; the others stay."""
        write_json(self.stages, self._records() | {stage: self.read_record(stage) | entries})

    def _records(self) -> dict[str, Any]:
        records: dict[str, Any] = read_json(self.stages) if self.stages.exists() else {}
        return records


def require_run(path: StrPath) -> RunFolder:
    """Run folder at ``path``. Raises InputFileError if there is none."""
    path = Path(path)
    folder = RunFolder(path)
    if not folder.project.is_file():
        missing = f"it has no {folder.project.name}" if path.is_dir() else "there is no such folder"
        raise InputFileError(f"no run in {path}: {missing}. Name the folder of a run, under runs/.")
    return folder


def open_run(path: StrPath) -> tuple[Project, RunFolder]:
    """Project of a run, as it was last run, and the run's folder. Raises InputFileError, SettingsError."""
    folder = require_run(path)
    head, _, rest = folder.project.read_text(encoding="utf-8").partition("\n")
    project_file = rest.partition("\n")[0].removeprefix("# ")
    if not head.startswith(HEAD):
        raise SettingsError(f"{folder.project} was not written by a run. Name a run's folder, under runs/.")
    return load_project(folder.project, Path(project_file)), folder
