"""Every key of ``project.toml``, with its default: this file is the reference of the settings.

In TOML the keys have dashes (``drop-only``), here underscores. Unknown keys are refused. Paths stay text
until `cobertes.workflow.project` resolves them beside the TOML file.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Pixels = Annotated[int, Field(ge=1)]
Code = Annotated[int, Field(ge=0, le=255)]


WEIGHTS = ("random", "imagenet", "sentinel2-moco", "sentinel2-dino")
"""Names that ``model.weights`` may have; anything else is a file."""

SCRATCH = "scratch"
"""The encoder that is no backbone of timm."""
SCRATCH_RATE, BACKBONE_RATE = 0.004, 0.001
"""First learning rates."""
SCRATCH_WINDOWS = (16, 64)
"""Sides of training windows, in pixels, for a ``scratch`` encoder: it learns fastest from many small ones."""
FINAL_PHASE = 0.25
"""Share of a training, at its end, that sees the largest windows alone where the small ones come first."""
BATCH_SIZE, BATCH_PIXELS, SMALL = 12, 32_768, 64
"""A training step takes so many windows; of small ones, up to that side, as many as have so many pixels."""

LossName = Literal["cross-entropy", "focal", "dice", "lovasz"]
WeightName = Literal["none", "ins", "sqrt-ins", "median-frequency", "effective-number"]


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
    """By default the stem of the scene's file; what the area's outputs are called."""
    scenes: str | list[str] | dict[str, str | list[str]]
    """A SCENE, or a table season = SCENE. A SCENE is a file, a VRT, a folder, glob or list of band files."""
    reference: str | None = None
    """The reference map: a raster of class codes in any CRS, resolution and origin."""
    crosswalk: str | None = None
    """Name or file of the crosswalk from the reference map's codes to the legend."""
    masks: str | dict[str, str] = {}
    """Rasters of cloud and snow codes by season (Sentinel-2's SCL), of any grid; one path where there is one
    season. Seasons without one: clouds and snow are estimated from the bands."""


class LabelSettings(Section):
    """How the reference map becomes labels on the scene's grid."""

    method: str = "majority"
    """``majority``, ``weighted-majority`` or ``nearest``; where the map is coarser than the scene, all are
    nearest. `cobertes compare-labels` shows what each does to every class."""
    class_weights: str | dict[str, float] = "inverse-sqrt"
    """Of the weighted majority: ``equal``, ``inverse-sqrt`` or ``inverse`` (of the class's frequency in the
    map, to the power 0, 0.5 or 1), or ``{ water = 8, transport = 5 }``; classes left out weigh 1."""
    smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of the weighted majority: standard deviation, in scene pixels, of the Gaussian by which a vote fades with
    its distance from the pixel's centre; 0.5 makes boundaries smooth."""
    codes: dict[int, int | str] = {}
    """Single source codes that the legend lacks: ``{ 19 = "bare-soil", 41 = "nodata" }``."""
    as_nodata: list[int | str] = []
    """Classes of the legend that are not to be learnt or scored; their pixels count as nodata."""
    unknown: Literal["error", "nodata"] = "error"
    """What to do with codes that nothing above explains: ``error`` lists them with their counts."""
    min_valid: Share = 0.5
    """Share of a pixel that the reference map must know; below it the label is nodata (not by nearest)."""
    memory: Annotated[int, Field(ge=200)] = 900
    """Peak memory of the process in MB."""


class TileSettings(Section):
    """The cells of the index. No files are cut."""

    size: Pixels = 512
    """Side of a tile in pixels."""
    overlap: Annotated[int, Field(ge=0)] = 0
    """Pixels that neighbouring tiles share."""
    drop_only: list[int | str] = []
    """Tiles that hold nothing but these classes are left out (sea-only tiles: ``["water"]``)."""
    drop_single_class: bool = False
    """Whether tiles that hold one class alone are left out."""
    min_labelled: Share = 0.0
    """Share of a tile's pixels that must have both a label and a valid observation."""
    min_valid: Share = 0.0
    """Share of a tile's pixels that each season must have observed."""
    clouds: Literal["keep", "drop"] = "keep"
    """``drop`` leaves out tiles of which a season has more clouds than ``max-cloud``."""
    max_cloud: Share = 0.1
    """Share of a tile's observed pixels."""
    snow: Literal["keep", "drop"] = "keep"
    """``drop`` leaves out tiles of which a season has more snow than ``max-snow``."""
    max_snow: Share = 0.1
    """Share of a tile's observed pixels."""
    cloud_codes: list[Code] = [3, 8, 9, 10]
    """Codes of an area's ``masks`` that mean clouds; these are SCL's cloud shadow, clouds and cirrus."""
    snow_codes: list[Code] = [11]
    """Codes of an area's ``masks`` that mean snow."""
    reflectance_scale: Annotated[float, Field(gt=0)] = 10_000.0
    """Where clouds and snow are estimated: reflectance is (value + offset) / scale."""
    reflectance_offset: float = 0.0
    """-1000 for Sentinel-2 products from processing baseline 04.00 on (25 January 2022), if not yet applied."""
    unreadable: Literal["error", "skip"] = "error"
    """``skip`` leaves out, with a warning, tiles and windows that a scene can't give."""
    store: Literal["auto", "always", "never"] = "auto"
    """Whether labelled ground is copied once into a store that is fast to read: ``auto`` copies scenes that are
    slow to read by window (compressed, in several files, VRT, remote); uncompressed ones are read as they are."""
    store_gb: Annotated[float, Field(ge=0)] = 20.0
    """Disk that the store may take, in GB."""


class SplitSettings(Section):
    """Which ground is learnt from and which is kept to judge."""

    method: Literal["block", "random"] = "block"
    """``random`` draws single tiles without guard bands, as is often done: neighbours on both sides flatter the
    scores. For comparison only; `cobertes audit-split` says by how much."""
    by: Literal["block", "area", "group", "polygons"] = "block"
    """What is drawn as a whole: a block of pixels, an area, or a group of areas; ``polygons``: nothing is."""
    block: Pixels | None = None
    """Side of a block in pixels; by default at least four tiles and the labels' range of autocorrelation, less
    where that leaves under 20 blocks."""
    guard: Annotated[int, Field(ge=0)] | None = None
    """Pixels between training windows and held-out blocks; by default half a tile."""
    groups: str | None = None
    """A CSV whose first two columns are area and group (``by = "group"``): a group is kept whole."""
    polygons: str | None = None
    """A vector file (GeoPackage, GeoJSON ...) whose column ``split`` says train, validation or test
    (``by = "polygons"``); it holds to a quarter of a tile, ground outside all polygons is left out."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the labelled ground for validation."""
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share for a test split that nothing is chosen by."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed draws another split."""
    require_all_classes: bool = False
    """Whether a class that one side lacks is an error instead of a warning."""


class ModelSettings(Section):
    """The network."""

    architecture: Literal["unet", "unet++", "deeplabv3+", "segformer"] = "unet"
    """``unet`` is our own; the others are those of segmentation-models-pytorch, on a timm backbone."""
    encoder: str = "scratch"
    """``scratch``, or a timm backbone with feature maps (``resnet18``, ``resnet50``, ``efficientnet_b0``)."""
    weights: str = "random"
    """Where a backbone starts: ``random``, ``imagenet`` (timm's hub), ``sentinel2-moco`` or ``sentinel2-dino``
    (resnet50; TorchGeo's hub), or a file of weights; they are brought to the bands by name."""
    width: Pixels = 32
    """Channels of the first level of a ``scratch`` encoder; doubled at each level below."""
    depth: Annotated[int, Field(ge=1, le=6)] = 2
    """Levels below the first of a ``scratch`` encoder."""
    decoder: list[Pixels] = []
    """Channels of the decoder, from the bottom up; by default 256 to 16, or a scratch encoder's mirrored."""
    upsampling: Literal["transposed", "bilinear", "nearest"] = "transposed"
    """How the decoder doubles the size of a feature map: a transposed convolution, or interpolation."""
    seasons: Literal["stack", "separate", "shared"] = "stack"
    """``stack``: the network sees all seasons side by side. ``separate``: it sees one, and their predictions are
    averaged. ``shared``: one encoder sees each, and their features are fused. With the latter two a season may be
    missing, in a pixel or altogether."""


class TrainSettings(Section):
    """The training loop."""

    epochs: Pixels = 100
    """Epochs at most; the model of the best one, by validation mIoU, is kept."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall time after which training ends, even where epochs are left."""
    window: Pixels | Annotated[list[Pixels], Field(min_length=1)] | None = None
    """Side of a training window in pixels; by default the tile's, with a scratch encoder 16 and then 64. Of
    several, each batch has one; of smaller ones it takes as many as have the same pixels."""
    window_order: Literal["random", "small-first"] = "small-first"
    """Of several window sizes: each batch draws one, or the largest comes in the last quarter of the training
    alone, when batch norm stays as it is."""
    batch_size: Pixels | Literal["auto"] | None = None
    """Windows per step, of the largest size, of all processes together; by default 12; of windows of 64 px
    and less, as many as have 32,768 pixels. ``auto``: as many as fit in the memory of the GPU, 256 and an eighth
    of an epoch (but 12) at most; the default on other devices."""
    samples: Pixels | None = None
    """Windows per epoch, of the largest size; by default as many as have the pixels of the training tiles."""
    sampling: Literal["in-order", "shuffled", "balanced", "ins"] = "balanced"
    """Tiles in order, shuffled, or drawn so that rare classes are met more often: ``balanced`` by ``balance``;
    ``ins`` as often as their pixels weigh by the inverse number of samples of their classes."""
    balance: Share = 0.25
    """How far ``balanced`` goes: 0 leaves classes as frequent as they are, 1 aims at meeting all equally often."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """The optimizer."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Its first step size; by default 0.001, with a scratch encoder 0.004."""
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the running average of the weights, which is validated and kept; 0: the weights themselves."""
    schedule: Literal["plateau", "cosine", "one-cycle", "constant"] = "cosine"
    """The learning rate: halved where validation no longer improves; half a cosine after a warm-up; up and down
    once; or as it is. Cosine and one-cycle end with the epochs or the minutes, whichever are over first."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The learning rate is multiplied by it when the validation loss no longer falls."""
    plateau_patience: Annotated[int, Field(ge=0)] = 3
    """Validations without a lower loss that are waited for."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the training in which ``cosine`` rises to its learning rate."""
    stop_after: Pixels | None = None
    """Training ends after so many epochs without a higher validation mIoU."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradients are scaled down to this norm where theirs is larger."""
    accumulate: Pixels = 1
    """Batches whose gradients are added up for one step."""
    validate_every: Pixels = 1
    """Epochs from one validation to the next."""
    compile: bool = False
    """Whether torch.compile makes the network faster: after minutes of compiling, where a compiler is there."""
    freeze_encoder: Annotated[int, Field(ge=0)] = 0
    """Epochs at the beginning in which the encoder stays as it is: for pretrained weights."""
    loss: LossName | dict[LossName, Annotated[float, Field(gt=0)]] = "cross-entropy"
    """``cross-entropy``, ``focal``, ``dice``, ``lovasz``, or several with weights:
    ``{ cross-entropy = 1, dice = 0.5 }``."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """How much less the focal loss counts pixels that are known already; 0 makes it the cross-entropy."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of every label that is spread over all classes."""
    targets: Literal["labels", "fractions"] = "labels"
    """``fractions``: a mixed pixel is learnt as the share of each class that the reference map has in it."""
    purity_weight: bool = False
    """Whether a pixel weighs by the share of its commonest class: mixed ones less than pure ones."""
    class_weights: WeightName | dict[str, Annotated[float, Field(ge=0)]] = "none"
    """In cross-entropy and focal loss, from the training pixels' classes: ``ins`` (inverse number of samples),
    ``sqrt-ins``, ``median-frequency``, ``effective-number``, or by hand, ``{ water = 2 }``, 1 for others. Their
    mean is 1."""
    crops: bool = True
    """Windows anywhere in the training blocks, at random; without, those in the middle of the tiles."""
    zoom: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Ground of a window may be larger or smaller by this share, and is brought to its size: 0.25 draws 1/1.25 to
    1.25 times the side."""
    season_order: Literal["random", "in-turn"] = "random"
    """With ``model.seasons = "separate"``: which season of a place a sample shows."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of first weights, windows and variations."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    threads: Pixels | None = None
    """Processor threads of PyTorch; by default all. In another number, sums may differ in the last digit."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto`` tries a few steps of each and takes the faster one."""

    @property
    def windows(self) -> tuple[int, ...]:
        """Sides of the training windows, in pixels; none where that is left open, see `with_defaults`."""
        return tuple(self.window) if isinstance(self.window, list) else (self.window,) if self.window else ()

    @property
    def rate(self) -> float:
        """The first learning rate."""
        return self.learning_rate or BACKBONE_RATE


def default_batch(side: int) -> int:
    """Windows of a ``side`` in pixels that a step takes where nothing else is asked."""
    return BATCH_PIXELS // side**2 if side <= SMALL else BATCH_SIZE


def _scratch_windows(tile_size: int) -> list[int]:
    return sorted({min(side, tile_size) for side in SCRATCH_WINDOWS})


def with_defaults(train: TrainSettings, encoder: str, tile_size: int) -> TrainSettings:
    """The same with window and learning rate filled in where they are left open."""
    small = encoder == SCRATCH
    window = train.window or (_scratch_windows(tile_size) if small else tile_size)
    rate = train.learning_rate or (SCRATCH_RATE if small else BACKBONE_RATE)
    return train.model_copy(update={"window": window, "learning_rate": rate})


class Augmentation(Section):
    """A variation of samples: how often, and how strong."""

    probability: Share = 1.0
    """Share of the samples that it happens to."""
    strength: Share = 0.0
    """How strong it is; 0 switches it off."""


class AugmentationSettings(Section):
    """How training samples are varied. Strengths are in standard deviations of a band, unless said otherwise."""

    flips: bool = True
    """Mirror images."""
    turns: bool = True
    """Quarter turns."""
    jitter: Augmentation = Augmentation(strength=0.02)
    """Random gain and offset per band (multispectral colour jitter)."""
    brightness: Augmentation = Augmentation()
    """A random offset that all bands of a season share."""
    contrast: Augmentation = Augmentation()
    """A random gain that all bands of a season share."""
    noise: Augmentation = Augmentation()
    """Gaussian noise per pixel and band."""
    band_dropout: Augmentation = Augmentation()
    """Bands that are not seen; the strength is the share of the bands."""
    season_dropout: Augmentation = Augmentation(probability=0.0, strength=1.0)
    """A season that is not seen, where there are several; only its probability counts."""
    cut_out: Augmentation = Augmentation()
    """A square of a season that is not seen; the strength is its side as a share of the window's."""

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_said(cls, data: Any) -> Any:
        """A table that names a probability alone keeps the variation's own strength, and the other way round."""
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, field in cls.model_fields.items():
            for key in (name, field.alias):
                if isinstance(field.default, Augmentation) and isinstance(data.get(key), dict):
                    kept[key] = field.default.model_dump(by_alias=True) | data[key]
        return data | kept


class PredictSettings(Section):
    """The map."""

    model: str | None = None
    """A trained model (``model.safetensors``) or run: a project that names one only predicts."""
    window: Pixels | None = None
    """Side of a prediction window in pixels; by default the model's own."""
    overlap: Annotated[int, Field(ge=0)] | None = None
    """Pixels that neighbouring windows share; by default a quarter of the window."""
    blend: Literal["interior", "cosine", "gaussian"] = "interior"
    """How neighbouring windows share pixels: each from one of them, or fading from one into the other."""
    views: Literal["none", "flips", "turns"] = "none"
    """``flips``: the mean over 4 mirror images of every window; ``turns``: over all 8 symmetries of the square. 4
    and 8 times the work, of evaluation as well as of the map."""
    batch_size: Pixels = 8
    """Windows computed together."""
    engine: Literal["auto", "torch", "openvino", "onnx"] = "auto"
    """What computes; ``auto``: OpenVINO on processors where it is installed, else PyTorch."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """``auto``: bf16 where the hardware multiplies it itself. ``int8`` (OpenVINO) is made from the training tiles,
    and refused where it loses more than 0.005 of mIoU on the validation blocks."""
    memory: Annotated[int, Field(ge=500)] = 3500
    """Peak memory of the process in MB."""


class Range(Section):
    """What a searched setting is drawn from: one of these."""

    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """Any of these values."""
    uniform: tuple[float, float] | None = None
    """A number between two."""
    log_uniform: tuple[float, float] | None = None
    """A number between two, each power of ten as likely."""
    integer: tuple[int, int] | None = None
    """A whole number between two, both included."""

    @model_validator(mode="after")
    def _one_of_them(self) -> "Range":
        given = [ends for ends in (self.choice, self.uniform, self.log_uniform, self.integer) if ends is not None]
        if len(given) != 1:
            raise ValueError("needs one of choice, uniform, log-uniform and integer")
        if self.choice is None and not given[0][0] < given[0][1]:
            raise ValueError("the first number must be less than the second")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError("log-uniform needs numbers above 0")
        return self


class TuneSettings(Section):
    """The search of `cobertes tune`."""

    search: dict[str, Range] = {}
    """What is searched, of ``[model]``, ``[train]`` and ``[augmentation]``:
    ``"train.learning-rate" = { log-uniform = [1e-4, 1e-2] }``, ``"train.batch-size" = { integer = [4, 32] }``,
    ``"model.encoder" = { choice = ["scratch", "resnet18"] }``,
    ``"augmentation.jitter.strength" = { uniform = [0, 0.2] }``."""
    trials: Pixels = 20
    """Trainings that are tried."""
    epochs: Pixels | None = None
    """Of a trial, at most; by default ``train.epochs``."""
    grace_epochs: Pixels = 5
    """Epochs before a weak trial may be stopped."""
    algorithm: Literal["random", "tpe"] = "tpe"
    """How values are drawn: at random, or by Optuna's tree of Parzen estimators, which learns from the trials."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall time after which the search ends with what it has."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Processors of a trial; less than 1 puts several on one."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of a trial; 0.5 puts two on one. With 0, trials train on processors, also where there is a GPU."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the values that are drawn. (What a training draws comes from ``train.seed``.)"""


class Settings(Section):
    """A whole ``project.toml``."""

    name: Annotated[str, Field(min_length=1)]
    """What the run and the report are called."""
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
    augmentation: AugmentationSettings = AugmentationSettings()
    predict: PredictSettings = PredictSettings()
    tune: TuneSettings = TuneSettings()
