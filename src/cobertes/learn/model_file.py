"""Model files: ``model.safetensors`` has the weights and, in its header, everything needed to apply them.

No pickle: a model file from elsewhere cannot run code. The header is JSON under the key ``cobertes``:
legend, seasons, bands, statistics, resolution, window, network, settings, fingerprint.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cobertes.atomic_io import StrPath, replacing
from cobertes.errors import InputFileError, ModelFileError
from cobertes.geo.grid import crs_name, resolution
from cobertes.geo.scene import Scene
from cobertes.labels.legend import Legend
from cobertes.learn.architectures import build_network
from cobertes.learn.encoding import Inputs
from cobertes.learn.unet import UNetSettings

HEADER = "cobertes"
FORMAT = 1
RESOLUTION_TOLERANCE = 0.01
MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class ModelHeader:
    """Header of a model file.

    resolution    side of a pixel in the units of the scenes' CRS; None for scenes without one
    window        side of the training windows in pixels
    training      settings, fingerprint, best epoch and score of the training
    scene_nodata  value of empty pixels in files without a nodata tag
    """

    network: UNetSettings
    inputs: Inputs
    legend: Legend
    resolution: float | None
    window: int
    training: Mapping[str, Any]
    scene_nodata: float | None = None

    def facts(self) -> dict[str, Any]:
        """Facts of the model for the report."""
        return {
            "architecture": self.network.architecture,
            "encoder": self.network.encoder,
            "seasons": list(self.inputs.seasons),
            "bands": list(self.inputs.bands),
            "classes": len(self.legend),
            "resolution": self.resolution,
            "window": self.window,
        } | {key: self.training[key] for key in ("best_epoch", "precision", "fingerprint") if key in self.training}

    def to_json(self) -> str:
        """Header as JSON text."""
        data = {
            "format": FORMAT,
            "network": asdict(self.network),
            "inputs": self.inputs.to_dict(),
            "legend": self.legend.to_dict(),
            "resolution": self.resolution,
            "window": self.window,
            "training": dict(self.training),
            "scene_nodata": self.scene_nodata,
        }
        return json.dumps(data, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "ModelHeader":
        """Read `to_json`'s text. Raises KeyError, TypeError or ValueError if damaged or of another format."""
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}, this cobertes reads {FORMAT}")
        network = data["network"] | {"decoder": tuple(data["network"]["decoder"])}
        return cls(
            UNetSettings(**network),
            Inputs.from_dict(data["inputs"]),
            Legend.from_dict(data["legend"]),
            data["resolution"],
            int(data["window"]),
            data["training"],
            data["scene_nodata"],
        )

    @property
    def drops_seasons(self) -> bool:
        """True if it was trained with season dropout, so that a season may be missing."""
        if "augmentation" not in self.training:  # a header made by hand
            return False
        return bool(self.training["augmentation"]["season-dropout"]["probability"] > 0)

    def check_scenes(self, scenes: Mapping[str, Scene]) -> None:
        """Raise SettingsError, BandMismatchError, ModelFileError if seasons, bands, pixel size are not its own."""
        self.inputs.check(scenes, drops_seasons=self.drops_seasons)
        grid = next(iter(scenes.values())).grid
        if self.resolution is None or grid.crs is None:
            return
        if abs(resolution(grid) / self.resolution - 1) > RESOLUTION_TOLERANCE:
            raise ModelFileError(
                f"the scene has pixels of {resolution(grid):g} ({crs_name(grid)}), the model was trained on "
                f"pixels of {self.resolution:g}. Bring the scene to that resolution (gdalwarp -tr)."
            )


def model_path(path: StrPath) -> Path:
    """Path of the model file itself, or of that in a run folder. Raises InputFileError if there is none."""
    path = Path(path)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputFileError(f"no model at {file}. Name a {MODEL_FILE} or a run's folder that holds one.")
    return file


def save_model(path: Path, state: Mapping[str, Tensor], header: ModelHeader) -> None:
    """Write weights and header atomically. Raises StorageError."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={HEADER: header.to_json()})
        except SafetensorError as error:  # its error on a full disk
            raise OSError(str(error)) from error


def read_header(path: StrPath) -> ModelHeader:
    """Read the header alone. Raises InputFileError without a file, ModelFileError for damaged and foreign ones."""
    path = model_path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is not a whole safetensors file: {error}. Copy it again.") from error
    if HEADER not in metadata:
        raise ModelFileError(f"{path} is not a model of cobertes: its header lacks '{HEADER}'.")
    try:
        return ModelHeader.from_json(metadata[HEADER])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} has a header that this cobertes can't read: {error!r}") from error


def load_model(path: StrPath) -> tuple[nn.Module, ModelHeader]:
    """Load the network with its weights, in evaluation mode, and its header. Raises as `read_header` does."""
    path = model_path(path)
    header = read_header(path)
    model = build_network(header.network)
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelFileError(
            f"{path}: the weights do not fit the network its header describes ({error})"
        ) from error
    return model.eval(), header
