"""An area: a place with its own grid, its scenes by season, and a reference map where there is one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from odc.geo.geobox import GeoBox

from cobertes.geo.grid import require_same_grid
from cobertes.geo.scene import Scene

ONLY_SEASON = "scene"
"""Key of the season where a project has one and does not name it."""


@dataclass(frozen=True)
class Area:
    """A place whose seasons are read together.

    ``scenes`` by season, in the order of the model's channels; ``reference`` the reference map's file;
    ``crosswalk`` its name or file; ``group`` the name of what it must share a split with; ``masks`` rasters of
    cloud and snow codes by season.
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
        """The grid all its scenes share."""
        return next(iter(self.scenes.values())).grid

    @property
    def shape(self) -> tuple[int, int]:
        """``(height, width)`` in pixels."""
        return int(self.grid.height), int(self.grid.width)
