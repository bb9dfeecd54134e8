"""Pretrained weights of a backbone, mapped to a project's bands by their names.

    model.weights     bands of its first layer      weights of a project's band
    imagenet          red, green, blue              those of the colour nearest in wavelength
    sentinel2-moco    the 13 bands of Sentinel-2    its own
    sentinel2-dino    the same                      the same
    a file            3, 12 or 13 bands             as above

Bands without a known name take the mean of all. Every season takes the same weights. All are scaled by the number
of pretraining channels over the number of ours, so that sums over channels keep their size.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cobertes.errors import InputFileError, SettingsError
from cobertes.geo.bands import WAVELENGTHS, sentinel2_band
from cobertes.learn.architectures import Network, backbone_of
from cobertes.settings import WEIGHTS

RANDOM, IMAGENET = WEIGHTS[:2]
TIMM_FILE = "model.safetensors"

HUB_FILES = {
    ("resnet18", "sentinel2-moco"): (
        "torchgeo/resnet18_sentinel2_all_moco", "resnet18_sentinel2_all_moco-59bfdff9.pth",
    ),
    ("resnet50", "sentinel2-moco"): (
        "torchgeo/resnet50_sentinel2_all_moco", "resnet50_sentinel2_all_moco-df8b932e.pth",
    ),
    ("resnet50", "sentinel2-dino"): (
        "torchgeo/resnet50_sentinel2_all_dino", "resnet50_sentinel2_all_dino-d6c330e9.pth",
    ),
}  # fmt: skip
"""Encoder and weights -> repository and file on the Hugging Face hub (Wang et al. 2023, SSL4EO-S12)."""

LAYOUTS: Mapping[int, tuple[str, ...]] = {
    3: ("B04", "B03", "B02"),
    12: tuple(band for band in WAVELENGTHS if band != "B10"),
    13: tuple(WAVELENGTHS),
}
"""Number of channels of a first layer -> their Sentinel-2 bands."""

WRAPPINGS = ("state_dict", "model", "teacher", "student")
PREFIXES = ("module.", "encoder_q.", "backbone.", "encoder.", "model.")


def load_pretrained(network: Network, weights: str, bands: Sequence[str]) -> str:
    """Load pretrained weights into the network's backbone; returns a line of text about their mapping to bands.

    weights  one of `WEIGHTS` but random, or the path of a safetensors or PyTorch file
    bands    of a season, in the order of the channels
    Raises SettingsError if there is no backbone or no such weights of it, InputFileError if they can't be fetched
    or read, or are of another network.
    """
    backbone, encoder = backbone_of(network), network.settings.encoder
    if backbone is None:
        raise SettingsError(
            f'a scratch encoder has no pretrained weights (model.weights = "{weights}"): set model.encoder to a '
            f'timm backbone, for example resnet50, or model.weights = "random".'
        )
    source, name = _source(encoder, weights)
    own = backbone.state_dict()
    loaded, first, missing = {}, "", []
    for key, value in own.items():
        pretrained = source.get(key)
        if pretrained is not None and value.dim() == 4 and not first:  # the first layer
            if pretrained.shape[1] in LAYOUTS or pretrained.shape[1] != value.shape[1]:
                pretrained, first = _to_bands(pretrained, value.shape[1], bands, name)
            else:
                first = f"{value.shape[1]} channels as they are"
        if pretrained is not None and pretrained.shape == value.shape:
            loaded[key] = pretrained
        elif value.is_floating_point():
            missing.append(key)
    if len(missing) > len(own) // 2:
        raise InputFileError(
            f"{name} fits {len(own) - len(missing)} of {len(own)} tensors of {encoder}: it is of another network. "
            f"Set model.encoder to the one that it was trained with."
        )
    backbone.load_state_dict(own | loaded)
    rest = f"; left random: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}" if missing else ""
    return f"{encoder} starts from {name}: {first}{rest}"


def _to_bands(pretrained: Tensor, channels: int, bands: Sequence[str], name: str) -> tuple[Tensor, str]:
    """First layer's weights (out, channels, h, w) for our channels, and the mapping of bands in words."""
    count = pretrained.shape[1]
    layout = LAYOUTS.get(count)
    if layout is None:
        raise InputFileError(
            f"{name} has a first layer of {count} channels, which no layout of bands is known for: needed 3 (red, "
            f"green, blue), 12 or 13 (Sentinel-2), or the {channels} channels of this network."
        )
    columns, notes = [], []
    for band in bands:
        known = sentinel2_band(band)
        if known is None:
            columns.append(pretrained.mean(dim=1))
            notes.append(f"{band} the mean of all")
            continue
        nearest = min(layout, key=lambda other: abs(WAVELENGTHS[other] - WAVELENGTHS[known]))
        columns.append(pretrained[:, layout.index(nearest)])
        notes.append(band if nearest == known else f"{band} from {nearest}")
    seasons = channels // len(bands)
    mapped = torch.stack(columns * seasons, dim=1) * (count / channels)
    return mapped, ", ".join(notes) + (f", for each of {seasons} seasons" if seasons > 1 else "")


def _source(encoder: str, weights: str) -> tuple[Mapping[str, Tensor], str]:
    """Tensors by the backbone's parameter names, and the name of the weights."""
    if weights == IMAGENET:
        return _imagenet(encoder), "ImageNet weights"
    if weights not in WEIGHTS:
        return _read(Path(weights)), weights
    if (encoder, weights) not in HUB_FILES:
        known = ", ".join(name for name, kind in HUB_FILES if kind == weights)
        raise SettingsError(
            f'no weights "{weights}" of {encoder} are known, only of {known}. Choose one of those as '
            f"model.encoder, or name a file in model.weights."
        )
    repository, file = HUB_FILES[encoder, weights]
    try:
        if try_to_load_from_cache(repository, file) is None:
            _require_hub(repository, file)
        return _read(Path(hf_hub_download(repository, file))), weights
    except InputFileError:
        raise
    except Exception as error:  # an unreachable hub raises errors of whichever HTTP library is below
        raise InputFileError(
            f"can't fetch the weights {weights} of {encoder}: {error}. Save {hf_hub_url(repository, file)} on "
            f'this machine and name that file in model.weights, or use model.weights = "random".'
        ) from error


def _imagenet(encoder: str) -> Mapping[str, Tensor]:
    try:
        repository = getattr(timm.models.get_pretrained_cfg(encoder), "hf_hub_id", None)
        if repository and try_to_load_from_cache(repository, TIMM_FILE) is None:
            _require_hub(repository, TIMM_FILE)
        model: nn.Module = timm.create_model(encoder, pretrained=True, features_only=True)
    except RuntimeError as error:
        raise SettingsError(
            f"encoder '{encoder}' can't start from pretrained weights ({error}). Use model.weights = \"random\"."
        ) from error
    except Exception as error:  # as above
        raise InputFileError(
            f"can't fetch the pretrained weights of '{encoder}': {error}. Use model.weights = \"random\", name a "
            f"file of timm's weights there, or put them into the Hugging Face cache (HF_HOME) of this machine."
        ) from error
    return model.state_dict()


def _require_hub(repository: str, file: str) -> None:
    """Try one request to the hub and raise its error: the libraries above would retry for a minute."""
    try:
        get_hf_file_metadata(hf_hub_url(repository, file), timeout=10)
    except HfHubHTTPError:
        pass  # the hub answers


def _read(path: Path) -> Mapping[str, Tensor]:
    """Read the tensors of a file, by names without the prefixes of training scripts."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for key in WRAPPINGS:
                state = state[key] if isinstance(state.get(key), Mapping) else state
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    except FileNotFoundError as error:
        raise InputFileError(
            f"no weights at {path} (model.weights). Name a file, or one of: {', '.join(WEIGHTS)}."
        ) from error
    except (
        SafetensorError, OSError, RuntimeError, EOFError, ValueError, AttributeError, pickle.UnpicklingError
    ) as error:  # fmt: skip
        raise InputFileError(f"can't read weights from {path}: {error}") from error
    return {_without_prefixes(name): value for name, value in tensors.items()}


def _without_prefixes(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
