"""Area: scenes of one grid by season, and a reference map if there is one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from odc.geo.geobox import GeoBox

from cobertes.geo.grid import require_same_grid
from cobertes.geo.scene import Scene

ONLY_SEASON = "scene"
"""Key of a project's only season if it has no name."""


@dataclass(frozen=True)
class Area:
    """Area whose seasons are read together.

    ``scenes`` by season, in the order of the model's channels; ``reference`` file of the reference map;
    ``crosswalk`` name or file of its crosswalk; ``group`` areas of one group share a split; ``masks`` rasters
    of cloud and snow codes by season.
    """

    name: str
    scenes: dict[str, Scene]
    reference: Path | None = None
    crosswalk: str | None = None
    group: str | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_same_grid((scene.files[0], scene.grid) for scene in self.scenes.values())

    @property
    def grid(self) -> GeoBox:
        """Grid of all its scenes."""
        return next(iter(self.scenes.values())).grid

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)`` in pixels."""
        return int(self.grid.height), int(self.grid.width)
