"""Every key of ``project.toml``, with its default: this file is the reference of the settings.

In TOML the keys have dashes (``drop-only``), here underscores. Unknown keys are refused. Paths stay text
until `cobertes.project` resolves them beside the TOML file.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Pixels = Annotated[int, Field(ge=1)]


def _dashed(name: str) -> str:
    return name.replace("_", "-")


class Section(BaseModel):
    """A table of the project file: frozen, dashed keys, nothing unknown."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=_dashed,
        populate_by_name=True,
        protected_namespaces=(),
    )


class AreaSettings(Section):
    """One ``[[area]]``: a place with its own grid. A glob in both paths makes an area per matching stem."""

    name: str | None = None
    scenes: str | list[str] | dict[str, str | list[str]]
    """A SCENE, or a table season = SCENE. A SCENE is a file, a VRT, a folder, glob or list of band files."""
    reference: str | None = None
    crosswalk: str | None = None
    """Name or file of the crosswalk from the reference map's codes to the legend."""


class LabelSettings(Section):
    """How the reference map becomes labels on the scene's grid."""

    method: str = "majority"
    codes: dict[int, int | str] = {}
    """Single source codes that the legend lacks: ``{ 19 = "bare-soil", 41 = "nodata" }``."""
    as_nodata: list[int | str] = []
    """Classes of the legend that are not to be learnt or scored; their pixels count as nodata."""
    unknown: Literal["error", "nodata"] = "error"
    min_valid: Share = 0.5
    """Share of a pixel that the reference map must know; below it the label is nodata (majority only)."""
    memory: Annotated[int, Field(ge=200)] = 900


class TileSettings(Section):
    """The cells of the index. No files are cut."""

    size: Pixels = 512
    overlap: Annotated[int, Field(ge=0)] = 0
    drop_only: list[int | str] = []
    """Tiles that hold nothing but these classes are left out (sea-only tiles: ``["water"]``)."""
    min_labelled: Share = 0.0
    """Share of a tile's pixels that must have both a label and a valid observation."""


class SplitSettings(Section):
    """Which ground is learnt from and which is kept to judge."""

    by: Literal["block", "area", "group"] = "block"
    block: Pixels | None = None
    """Side of a block in pixels; by default a multiple of the tile that leaves at least 20 blocks."""
    guard: Annotated[int, Field(ge=0)] | None = None
    """Pixels between training windows and other blocks; by default half a tile."""
    groups: str | None = None
    """A CSV whose first two columns are area and group (``by = "group"``): a group is kept whole."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    seed: int = 0
    require_all_classes: bool = False


class ModelSettings(Section):
    """The network."""

    encoder: str = "resnet50"
    """``scratch``, or a timm backbone with feature maps (``resnet18``, ``resnet50``, ``efficientnet_b0``)."""
    weights: Literal["random", "imagenet"] = "random"
    """Where the encoder starts; ``imagenet`` is fetched by timm from its hub."""
    width: Pixels = 32
    """Channels of the first level of a ``scratch`` encoder; doubled at each level below."""
    depth: Annotated[int, Field(ge=1, le=6)] = 4
    """Levels below the first of a ``scratch`` encoder."""
    decoder: list[Pixels] = []
    """Channels of the decoder, from the bottom up; by default 256 to 16, or a scratch encoder's mirrored."""


class TrainSettings(Section):
    """The training loop."""

    epochs: Pixels = 100
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall time after which training ends, even where epochs are left."""
    window: Pixels | None = None
    """Side of a training window in pixels; by default the tile's."""
    batch_size: Pixels = 12
    samples: Pixels | None = None
    """Windows per epoch; by default as many as there are training tiles."""
    sampling: Literal["uniform", "balanced"] = "balanced"
    """``balanced``: half of the windows are drawn so that rare classes are met more often."""
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 0.001
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    plateau_patience: Annotated[int, Field(ge=0)] = 3
    class_weights: Literal["none", "ins"] = "none"
    """``ins``: inverse number of samples, mean weight 1 over the training pixels' classes."""
    flips: bool = True
    turns: bool = True
    """Quarter turns."""
    crops: bool = True
    """Windows shifted at random off the tile's place, within the training blocks."""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Standard deviation of the random gain and offset per band (multispectral colour jitter)."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto`` tries a few steps of each and takes the faster one."""


class PredictSettings(Section):
    """The map."""

    model: str | None = None
    """A trained model (``model.safetensors``) or run: a project that names one only predicts."""
    window: Pixels | None = None
    """Side of a prediction window in pixels; by default the model's own."""
    overlap: Annotated[int, Field(ge=0)] | None = None
    """Pixels that neighbouring windows share; by default a quarter of the window."""
    batch_size: Pixels = 8
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory: Annotated[int, Field(ge=500)] = 3500


class Settings(Section):
    """A whole ``project.toml``."""

    name: str
    legend: str | None = None
    """A legend's name (``cobertes legends``) or file; a predict-only project takes the model's."""
    bands: list[str] = []
    """The bands to use, in the model's order; by default those of the first scene."""
    scene_nodata: float | None = None
    """Value of empty scene pixels where the files do not say (without either: 0 in all bands)."""
    rgb: list[str] = []
    """The bands shown as red, green and blue; by default found by name."""
    area: Annotated[list[AreaSettings], Field(min_length=1)]
    labels: LabelSettings = LabelSettings()
    tiles: TileSettings = TileSettings()
    split: SplitSettings = SplitSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    predict: PredictSettings = PredictSettings()
