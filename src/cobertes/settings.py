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
"""Names for ``model.weights``; any other value is a file."""

SCRATCH = "scratch"
"""Encoder trained from scratch, not a timm backbone."""
SCRATCH_RATE, BACKBONE_RATE = 0.004, 0.001
"""Default learning rates."""
SCRATCH_WINDOWS = (16, 64)
"""Sides of training windows, in pixels, for a ``scratch`` encoder: it learns fastest from many small ones."""
FINAL_PHASE = 0.25
"""Share of a training, at its end, with the largest windows alone if ``window_order`` is small-first."""
BATCH_SIZE, BATCH_PIXELS, SMALL = 12, 32_768, 64
"""Default batch: 12 windows; of windows up to 64 px a side, as many as have 32,768 pixels."""

LossName = Literal["cross-entropy", "focal", "dice", "lovasz"]
WeightName = Literal["none", "ins", "sqrt-ins", "median-frequency", "effective-number"]


def _dashed(name: str) -> str:
    return name.replace("_", "-")


class Section(BaseModel):
    """Table of the project file: frozen, dashed keys, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=_dashed, populate_by_name=True, protected_namespaces=()
    )


class AreaSettings(Section):
    """One ``[[area]]``: scenes on one grid. A glob in both paths makes an area per matching stem."""

    name: str | None = None
    """Name of the area's outputs; by default the stem of the scene's file."""
    scenes: str | list[str] | dict[str, str | list[str]]
    """SCENE, or a table season = SCENE. A SCENE is a file, a VRT, a folder, glob or list of band files, a product
    as downloaded (folder, zip or tar: docs/scenes.md), or a list of products, read as a mosaic."""
    reference: str | None = None
    """Reference map: a raster of class codes in any CRS, resolution and origin."""
    crosswalk: str | None = None
    """Name or file of the crosswalk from the reference map's codes to the legend."""
    masks: str | dict[str, str] = {}
    """Rasters of cloud and snow codes by season (Sentinel-2's SCL), on any grid; one path if there is one season.
    For seasons without one, the product's own masks (SCL, QA_PIXEL, Fmask ...) are used, or clouds and snow are
    estimated from the bands."""
    scale: float | dict[str, float] | None = None
    """Scale of stored values: physical value = scale x stored value + offset, reflectances from 0 to 1. Overrules
    product metadata and tags of files. One number, or a table by season or by band: ``{ august = 0.0001 }``."""
    offset: float | dict[str, float] | None = None
    """Offset of stored values, see ``scale``; -0.1 for Sentinel-2 from baseline 04.00 on."""


class LabelSettings(Section):
    """Aggregation of the reference map to labels on the scene's grid."""

    method: str = "majority"
    """``majority``, ``weighted-majority`` or ``nearest``; if the map is coarser than the scene, all are nearest.
    `cobertes compare-labels` shows their effect on every class."""
    class_weights: str | dict[str, float] = "inverse-sqrt"
    """Votes of the weighted majority: ``equal``, ``inverse-sqrt`` or ``inverse`` (of the class's frequency in the
    map, to the power 0, 0.5 or 1), or ``{ water = 8, transport = 5 }``; classes left out weigh 1."""
    smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Standard deviation, in scene pixels, of the Gaussian by which a vote of the weighted majority decreases with
    its distance from the pixel's centre; 0.5 smooths boundaries."""
    codes: dict[int | str, int | str] = {}
    """Mapping of source codes that the legend lacks, ranges and a default too:
    ``{ 19 = "bare-soil", "311-313" = "forest", default = "nodata" }``."""
    as_nodata: list[int | str] = []
    """Classes of the legend excluded from training and evaluation; their pixels count as nodata."""
    unknown: Literal["error", "nodata"] = "error"
    """Action on codes without a class: ``error`` lists them with their counts, ``nodata`` ignores them."""
    min_valid: Share = 0.5
    """Least share of a pixel with a class in the reference map; below it the label is nodata (not by nearest)."""
    memory: Annotated[int, Field(ge=200)] = 900
    """Peak memory of the process in MB."""


class TileSettings(Section):
    """Tiles: the cells of the index. No files are cut."""

    size: Pixels = 512
    """Side of a tile in pixels."""
    overlap: Annotated[int, Field(ge=0)] = 0
    """Pixels that neighbouring tiles share."""
    drop_only: list[int | str] = []
    """Leave out tiles that contain nothing but these classes (sea-only tiles: ``["water"]``)."""
    drop_single_class: bool = False
    """Leave out tiles of a single class."""
    min_labelled: Share = 0.0
    """Least share of a tile's pixels with both a label and a valid observation."""
    min_valid: Share = 0.0
    """Least share of a tile's pixels that each season observed."""
    clouds: Literal["keep", "drop"] = "keep"
    """``drop`` leaves out tiles with more clouds than ``max-cloud`` in any season."""
    max_cloud: Share = 0.1
    """Largest share of clouds among a tile's observed pixels."""
    snow: Literal["keep", "drop"] = "keep"
    """``drop`` leaves out tiles with more snow than ``max-snow`` in any season."""
    max_snow: Share = 0.1
    """Largest share of snow among a tile's observed pixels."""
    cloud_codes: list[Code] = [3, 8, 9, 10]
    """Codes of an area's ``masks`` that mean clouds; these are SCL's cloud shadow, clouds and cirrus."""
    snow_codes: list[Code] = [11]
    """Codes of an area's ``masks`` that mean snow."""
    reflectance_scale: Annotated[float, Field(gt=0)] = 10_000.0
    """Scale of reflectance, (value + offset) / scale, from which clouds and snow are estimated if nothing else
    says what the values mean."""
    reflectance_offset: float = 0.0
    """Offset of reflectance: -1000 for Sentinel-2 products from processing baseline 04.00 on (25 January 2022), if
    not yet applied."""
    unreadable: Literal["error", "skip"] = "error"
    """``skip`` leaves out, with a warning, tiles and windows that can't be read from a scene."""
    store: Literal["auto", "always", "never"] = "auto"
    """Copy labelled areas once into a tile store that is fast to read: ``auto`` copies scenes that are slow to
    read by window (compressed, in several files, VRT, remote); uncompressed ones are read as they are."""
    store_gb: Annotated[float, Field(ge=0)] = 20.0
    """Limit of the tile store in GB."""


class SplitSettings(Section):
    """Split into training, validation and test blocks."""

    method: Literal["block", "random"] = "block"
    """``random`` draws single tiles without guard bands, as is often done: neighbours on both sides inflate the
    scores. For comparison only; `cobertes audit-split` measures by how much."""
    by: Literal["block", "area", "group", "polygons"] = "block"
    """Unit of the split: a block of pixels, an area, or a group of areas; ``polygons`` gives the split by hand."""
    block: Pixels | None = None
    """Side of a block in pixels; by default at least four tiles and the labels' range of autocorrelation, less
    if there would be under 20 blocks."""
    guard: Annotated[int, Field(ge=0)] | None = None
    """Pixels between training windows and held-out blocks; by default half a tile."""
    groups: str | None = None
    """CSV whose first two columns are area and group (``by = "group"``): a group is never divided."""
    polygons: str | None = None
    """Vector file (GeoPackage, GeoJSON ...) whose column ``split`` is train, validation or test
    (``by = "polygons"``); accurate to a quarter of a tile. Pixels outside all polygons are left out."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the labelled area for validation."""
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the labelled area held out as a test split: used for no choice of model or settings."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random split."""
    require_all_classes: bool = False
    """Raise an error, instead of a warning, if a class is missing in training or validation."""


class ModelSettings(Section):
    """Network architecture and initial weights."""

    architecture: Literal["unet", "unet++", "deeplabv3+", "segformer"] = "unet"
    """``unet`` is our own; the others are those of segmentation-models-pytorch, on a timm backbone."""
    encoder: str = "scratch"
    """``scratch``, or a timm backbone with feature maps (``resnet18``, ``resnet50``, ``efficientnet_b0``)."""
    weights: str = "random"
    """Initial weights of a backbone: ``random``, ``imagenet`` (timm's hub), ``sentinel2-moco`` or
    ``sentinel2-dino`` (resnet50; TorchGeo's hub), or a file of weights; they are mapped to the bands by name."""
    width: Pixels = 32
    """Channels of the first level of a ``scratch`` encoder; doubled at each level below."""
    depth: Annotated[int, Field(ge=1, le=6)] = 2
    """Levels below the first of a ``scratch`` encoder."""
    decoder: list[Pixels] = []
    """Channels of the decoder, from the bottom up; by default 256 to 16, or a scratch encoder's mirrored."""
    upsampling: Literal["transposed", "bilinear", "nearest"] = "transposed"
    """Upsampling by 2 in the decoder: a transposed convolution, or interpolation."""
    seasons: Literal["stack", "separate", "shared"] = "stack"
    """``stack``: all seasons are input channels. ``separate``: the input is one season, and predictions are
    averaged over seasons. ``shared``: one encoder takes each season, and features are fused. With the latter two a
    season may be missing, in a pixel or altogether."""


class TrainSettings(Section):
    """The training loop."""

    epochs: Pixels = 100
    """Largest number of epochs; the model is that of the epoch with the highest validation mIoU."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall time in minutes after which training ends, even if epochs are left."""
    window: Pixels | Annotated[list[Pixels], Field(min_length=1)] | None = None
    """Side of a training window in pixels; by default the tile's, with a scratch encoder 16 and then 64. If
    there are several, a batch has one of them; smaller windows come in larger numbers, with as many pixels."""
    window_order: Literal["random", "small-first"] = "small-first"
    """Order of several window sizes: a random one for each batch, or the largest in the last quarter of the
    training alone, when batch norm is frozen."""
    batch_size: Pixels | Literal["auto"] | None = None
    """Windows per step, of the largest size, of all processes together; by default 12; of windows up to 64 px,
    as many as have 32,768 pixels. ``auto``: as many as fit in the memory of the GPU, 256 and an eighth
    of an epoch (but 12) at most; the default on other devices."""
    samples: Pixels | None = None
    """Windows per epoch, of the largest size; by default as many as have the pixels of the training tiles."""
    sampling: Literal["in-order", "shuffled", "balanced", "ins"] = "balanced"
    """Tiles in order, shuffled, or drawn by weights that favour rare classes: ``balanced`` by ``balance``; ``ins``
    by the inverse number of samples of the classes of their pixels."""
    balance: Share = 0.25
    """Strength of ``balanced``: 0 leaves class frequencies as they are, 1 aims at equal ones."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Optimizer."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Initial learning rate; by default 0.001, with a scratch encoder 0.004."""
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the exponential moving average (EMA) of the weights, which is validated and saved; 0: no
    average."""
    schedule: Literal["plateau", "cosine", "one-cycle", "constant"] = "cosine"
    """Learning-rate schedule: halved when validation no longer improves; half a cosine after a warm-up; up and
    down once; or constant. Cosine and one-cycle end with the epochs or the minutes, whichever end first."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor of the learning rate when the validation loss no longer falls (``plateau``)."""
    plateau_patience: Annotated[int, Field(ge=0)] = 3
    """Validations without a lower loss before the rate is reduced (``plateau``)."""
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the training in which ``cosine`` rises to the learning rate."""
    stop_after: Pixels | None = None
    """Early stopping: epochs without a higher validation mIoU after which training ends."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradient clipping: largest norm of the gradients."""
    accumulate: Pixels = 1
    """Gradient accumulation: batches per optimizer step."""
    validate_every: Pixels = 1
    """Epochs from one validation to the next."""
    compile: bool = False
    """Compile the network with torch.compile: faster after minutes of compiling; needs a C++ compiler."""
    freeze_encoder: Annotated[int, Field(ge=0)] = 0
    """Epochs at the beginning with a frozen encoder: for pretrained weights."""
    loss: LossName | dict[LossName, Annotated[float, Field(gt=0)]] = "cross-entropy"
    """``cross-entropy``, ``focal``, ``dice``, ``lovasz``, or several with weights:
    ``{ cross-entropy = 1, dice = 0.5 }``."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    """Focusing parameter of the focal loss: well-classified pixels count less; 0 is the cross-entropy."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of every label that is spread evenly over all classes."""
    targets: Literal["labels", "fractions"] = "labels"
    """``fractions``: the target of a mixed pixel is the share of each class in the reference map (soft labels)."""
    purity_weight: bool = False
    """Weight pixels by their purity, the share of their commonest class: mixed pixels less than pure ones."""
    class_weights: WeightName | dict[str, Annotated[float, Field(ge=0)]] = "none"
    """Class weights of cross-entropy and focal loss, from the training pixels: ``ins`` (inverse number of
    samples), ``sqrt-ins``, ``median-frequency``, ``effective-number``, or by hand, ``{ water = 2 }``, 1 for
    others. Their mean is 1."""
    crops: bool = True
    """Random crops: windows anywhere in the training blocks; if false, those in the middle of the tiles."""
    zoom: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Scale augmentation: windows are read with 1/(1 + zoom) to 1 + zoom times their side, and resampled to their
    size."""
    season_order: Literal["random", "in-turn"] = "random"
    """Choice of a sample's season with ``model.seasons = "separate"``."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of initial weights, windows and augmentation."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device; ``auto`` takes a GPU if there is one."""
    threads: Pixels | None = None
    """CPU threads of PyTorch; by default all. With another number, sums may differ in the last digit."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto`` times a few steps of each and takes the faster one."""

    @property
    def windows(self) -> tuple[int, ...]:
        """Sides of the training windows, in pixels; none if they are left open, see `with_defaults`."""
        return tuple(self.window) if isinstance(self.window, list) else (self.window,) if self.window else ()

    @property
    def rate(self) -> float:
        """Initial learning rate."""
        return self.learning_rate or BACKBONE_RATE


def default_batch(side: int) -> int:
    """Default batch size for windows of a ``side`` in pixels."""
    return BATCH_PIXELS // side**2 if side <= SMALL else BATCH_SIZE


def _scratch_windows(tile_size: int) -> list[int]:
    return sorted({min(side, tile_size) for side in SCRATCH_WINDOWS})


def with_defaults(train: TrainSettings, encoder: str, tile_size: int) -> TrainSettings:
    """Fill in the defaults of window and learning rate, which depend on encoder and tile size."""
    is_scratch = encoder == SCRATCH
    window = train.window or (_scratch_windows(tile_size) if is_scratch else tile_size)
    rate = train.learning_rate or (SCRATCH_RATE if is_scratch else BACKBONE_RATE)
    return train.model_copy(update={"window": window, "learning_rate": rate})


class Augmentation(Section):
    """Probability and strength of one kind of augmentation."""

    probability: Share = 1.0
    """Share of the samples to which it is applied."""
    strength: Share = 0.0
    """Strength; 0 switches it off."""


class AugmentationSettings(Section):
    """Augmentation of training samples. Strengths are in standard deviations of a band, unless stated
    otherwise."""

    flips: bool = True
    """Random mirror images."""
    turns: bool = True
    """Random rotations by quarter turns."""
    jitter: Augmentation = Augmentation(strength=0.02)
    """Random gain and offset per band (multispectral colour jitter)."""
    brightness: Augmentation = Augmentation()
    """Random offset that all bands of a season share."""
    contrast: Augmentation = Augmentation()
    """Random gain that all bands of a season share."""
    noise: Augmentation = Augmentation()
    """Gaussian noise per pixel and band."""
    band_dropout: Augmentation = Augmentation()
    """Random bands are hidden; the strength is the share of the bands."""
    season_dropout: Augmentation = Augmentation(probability=0.0, strength=1.0)
    """A random season is hidden, if there are several; only the probability counts."""
    cut_out: Augmentation = Augmentation()
    """A random square of a season is hidden (cutout); the strength is its side as a share of the window's."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_own_defaults(cls, data: Any) -> Any:
        """Fill a table that has a probability alone with its own kind's default strength, and the other way
        round."""
        if not isinstance(data, dict):
            return data
        tables = {}
        for name, field in cls.model_fields.items():
            for key in (name, field.alias):
                if isinstance(field.default, Augmentation) and isinstance(data.get(key), dict):
                    tables[key] = field.default.model_dump(by_alias=True) | data[key]
        return data | tables


EngineName = Literal["auto", "torch", "openvino", "onnx"]
"""``auto``, or a key of `engines.runtimes.RUNTIMES`."""


class PredictSettings(Section):
    """Prediction of the map."""

    model: str | None = None
    """Trained model (``model.safetensors``) or run: a project with one only predicts."""
    window: Pixels | None = None
    """Side of a prediction window in pixels; by default the model's own."""
    overlap: Annotated[int, Field(ge=0)] | None = None
    """Pixels that neighbouring windows share; by default a quarter of the window."""
    blend: Literal["interior", "cosine", "gaussian"] = "interior"
    """Blending of neighbouring windows: each pixel from one of them, or a weighted mean (cosine, gaussian)."""
    views: Literal["none", "flips", "turns"] = "none"
    """Test-time augmentation (TTA): ``flips``, the mean over 4 mirror images of every window; ``turns``, over all
    8 symmetries of the square. 4 and 8 times the computation, in evaluation as well as for the map."""
    batch_size: Pixels = 8
    """Windows per batch."""
    engine: EngineName = "auto"
    """Inference engine; ``auto``: OpenVINO on CPUs if it is installed, else PyTorch."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device; ``auto`` takes a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """``auto``: bf16 if the hardware has instructions for it. ``int8`` (OpenVINO) is calibrated on the training
    tiles, and refused if it loses more than 0.005 of mIoU on the validation blocks."""
    memory: Annotated[int, Field(ge=500)] = 3500
    """Peak memory of the process in MB."""


class Range(Section):
    """Search range of a setting: one of these."""

    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """List of values."""
    uniform: tuple[float, float] | None = None
    """Number between two, uniformly distributed."""
    log_uniform: tuple[float, float] | None = None
    """Number between two, log-uniformly distributed."""
    integer: tuple[int, int] | None = None
    """Whole number between two, both included."""

    @model_validator(mode="after")
    def _require_one(self) -> "Range":
        given = [ends for ends in (self.choice, self.uniform, self.log_uniform, self.integer) if ends is not None]
        if len(given) != 1:
            raise ValueError("needs one of choice, uniform, log-uniform and integer")
        if self.choice is None and not given[0][0] < given[0][1]:
            raise ValueError("the first number must be less than the second")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError("log-uniform needs numbers above 0")
        return self


class TuneSettings(Section):
    """Hyperparameter search of `cobertes tune`."""

    search: dict[str, Range] = {}
    """Search ranges by setting of ``[model]``, ``[train]`` and ``[augmentation]``:
    ``"train.learning-rate" = { log-uniform = [1e-4, 1e-2] }``, ``"train.batch-size" = { integer = [4, 32] }``,
    ``"model.encoder" = { choice = ["scratch", "resnet18"] }``,
    ``"augmentation.jitter.strength" = { uniform = [0, 0.2] }``."""
    trials: Pixels = 20
    """Number of trials, each a training."""
    epochs: Pixels | None = None
    """Largest number of epochs of a trial; by default ``train.epochs``."""
    grace_epochs: Pixels = 5
    """Epochs before a trial with a low score may be stopped."""
    algorithm: Literal["random", "tpe"] = "tpe"
    """Search algorithm: random, or Optuna's tree-structured Parzen estimator (TPE), which learns from the
    trials."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall time in minutes after which the search ends with the trials so far."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPUs per trial; with less than 1, several trials share one."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per trial; with 0.5, two trials share one. With 0, trials train on CPUs, even if there is a GPU."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the search. (That of a training is ``train.seed``.)"""


class Settings(Section):
    """All settings of a ``project.toml``."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the run and the report."""
    legend: str | None = None
    """Name (``cobertes legends``) or file of the legend; a predict-only project takes the model's."""
    bands: list[str] = []
    """Bands to use, in the model's order; by default those of the first scene."""
    scene_nodata: float | None = None
    """Value of empty scene pixels in files without a nodata tag (without either: 0 in all bands)."""
    rgb: list[str] = []
    """Bands shown as red, green and blue; by default found by name."""
    area: Annotated[list[AreaSettings], Field(min_length=1)]
    labels: LabelSettings = LabelSettings()
    tiles: TileSettings = TileSettings()
    split: SplitSettings = SplitSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    predict: PredictSettings = PredictSettings()
    tune: TuneSettings = TuneSettings()
