"""Where a run keeps its files; `cobertes.workflow.run` draws the folder."""

from dataclasses import dataclass
from pathlib import Path

from cobertes.settings import TrainSettings


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files."""

    path: Path

    def labels(self, area: str) -> Path:
        """Labels of an area."""
        return self.path / "labels" / f"{area}.tif"

    def fractions(self, area: str) -> Path:
        """Share of each class in each pixel, percent; where they are learnt from."""
        return self.path / "labels" / f"{area}.fractions.tif"

    def purity(self, area: str) -> Path:
        """Share of each pixel that its label covers, percent."""
        return self.path / "labels" / f"{area}.purity.tif"

    def shares(self, area: str, settings: TrainSettings) -> Path | None:
        """What is learnt from beside the labels: fractions, or the purity."""
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
        """The settings, defaults included."""
        return self.path / "project.toml"

    @property
    def tiles(self) -> Path:
        """The tile index."""
        return self.path / "tiles.parquet"

    @property
    def observations(self) -> Path:
        """What the scenes showed in each tile, whatever rules and split make of it."""
        return self.path / "observations.npz"

    @property
    def store(self) -> Path:
        """Labelled ground that is copied for fast reading; may be deleted when training is over."""
        return self.path / "store"

    @property
    def statistics(self) -> Path:
        """Mean and deviation per band, class counts."""
        return self.path / "statistics.json"

    @property
    def split(self) -> Path:
        """A letter per block."""
        return self.path / "split.json"

    @property
    def checkpoints(self) -> list[Path]:
        """What an interrupted training goes on from: the last one, and the one before."""
        return [self.path / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt")]

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.path / "model.safetensors"

    @property
    def metrics(self) -> Path:
        """A line per epoch."""
        return self.path / "metrics.jsonl"

    @property
    def assessment(self) -> Path:
        """Scores of the model and its baselines."""
        return self.path / "assessment.json"

    @property
    def confusion(self) -> Path:
        """The model's confusion matrix."""
        return self.path / "confusion.csv"

    @property
    def blocks(self) -> Path:
        """Confusion matrices by held-out block, of the model and its baselines."""
        return self.path / "blocks.json"

    @property
    def calibration(self) -> Path:
        """The temperature that makes confidences true, and how true they are."""
        return self.path / "calibration.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    @property
    def stages(self) -> Path:
        """What each stage was made from."""
        return self.path / "stages.json"
