"""Context that the stages share: the project, the run's folder, and who is told about progress."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import geopandas as gpd

from cobertes.atomic_io import read_json
from cobertes.progress import SILENT, Progress
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.index import load_index
from cobertes.tiles.split import Split
from cobertes.workflow.project import Project
from cobertes.workflow.run_folder import RunFolder

if TYPE_CHECKING:
    from cobertes.predict.prediction_job import Executor

    OpenExecutor = Callable[[Event], AbstractContextManager[Executor]]
    """Opens an executor for maps; the event, once set, ends all that it computes."""


@dataclass(frozen=True)
class StageContext:
    """Inputs of a stage.

    ``on_epoch`` receives the metrics of each epoch of training. ``executor`` opens what computes the maps, by
    default this process. A context serves one stage: the tile index is read once.
    """

    project: Project
    folder: RunFolder
    progress: Progress = SILENT
    on_epoch: Callable[[dict[str, float]], None] = lambda record: None
    executor: "OpenExecutor | None" = None
    fingerprints: dict[str, str] = field(default_factory=dict, init=False, compare=False)
    """Fingerprints of stages that were computed in this context."""

    @cached_property
    def index(self) -> gpd.GeoDataFrame:
        """Tile index, as the tiles stage wrote it."""
        return load_index(self.folder.tiles)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings as plain values, with the keys of project.toml."""
        return self.project.settings.model_dump(by_alias=True, mode="json")

    def existing(self, path: Callable[[str], Path]) -> dict[str, Path]:
        """Files of the areas that exist, by area."""
        found = {area.name: path(area.name) for area in self.project.areas}
        return {name: file for name, file in found.items() if file.exists()}


def open_dataset(project: Project, folder: RunFolder) -> LabelledDataset:
    """Labelled pixels of a run, as its labels and tiles stages left them."""
    areas = {area.name: area for area in project.areas}
    labels = {name: folder.labels(name) for name in areas}
    split, unreadable = Split.from_dict(read_json(folder.split)), project.settings.tiles.unreadable
    return LabelledDataset(areas, labels, project.legend, split, unreadable=unreadable)


def count_of(number: int, noun: str) -> str:
    """Number and noun: ``1 map``, ``3 maps``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
