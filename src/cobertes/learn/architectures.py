"""The networks by name: our U-Net, and others of segmentation-models-pytorch with the same settings and files."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cobertes.errors import SettingsError, did_you_mean
from cobertes.learn.unet import UNet, UNetSettings
from cobertes.settings import SCRATCH

OTHERS = {"unet++": "UnetPlusPlus", "deeplabv3+": "DeepLabV3Plus", "segformer": "Segformer"}
"""Names in the settings -> classes of segmentation-models-pytorch."""

ARCHITECTURES = ("unet", *OTHERS)


class SmpNetwork(nn.Module):
    """A network of segmentation-models-pytorch on a timm backbone, for any window size."""

    stride = 32

    def __init__(self, settings: UNetSettings) -> None:
        import segmentation_models_pytorch as smp

        super().__init__()
        self.settings = settings
        make: Callable[..., nn.Module] = getattr(smp, OTHERS[settings.architecture])
        options: dict[str, Any] = {}
        if settings.decoder and settings.architecture == "unet++":
            options["decoder_channels"] = settings.decoder
        try:
            self.network = make(
                f"tu-{settings.encoder}", encoder_weights=None, in_channels=settings.channels,
                classes=settings.classes, **options,
            )  # fmt: skip
        except Exception as error:  # 1,300 backbones of as many authors
            raise SettingsError(
                f"encoder '{settings.encoder}' can't be used in {settings.architecture} ({error}). Try resnet50."
            ) from error

    @property
    def backbone(self) -> nn.Module:
        """The part that pretrained weights are for."""
        found: nn.Module = self.network.encoder.model  # type: ignore[union-attr,assignment]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes, H, W) of ``x`` (B, channels, H, W)."""
        height, width = x.shape[-2:]
        logits: Tensor = self.network(F.pad(x, (0, -width % self.stride, 0, -height % self.stride)))
        return logits[..., :height, :width]


Network = UNet | SmpNetwork


def build_network(settings: UNetSettings) -> Network:
    """The network of these settings with random weights. Raises SettingsError for what can't be built."""
    if settings.architecture == "unet":
        return UNet(settings)
    if settings.architecture not in OTHERS:
        raise SettingsError(
            f"unknown architecture '{settings.architecture}'.{did_you_mean(settings.architecture, ARCHITECTURES)}"
        )
    if settings.encoder == SCRATCH:
        raise SettingsError(
            f"{settings.architecture} needs a timm backbone: set model.encoder, for example to resnet50. A "
            f'scratch encoder goes with model.architecture = "unet".'
        )
    if settings.seasons > 1:
        raise SettingsError(
            f'{settings.architecture} sees seasons stacked or separate, not model.seasons = "shared"'
        )
    return SmpNetwork(settings)


def backbone_of(network: Network) -> nn.Module | None:
    """The timm backbone of a network; None where its encoder is our own."""
    if isinstance(network, SmpNetwork):
        return network.backbone
    backbone: nn.Module | None = getattr(network.encoder, "backbone", None)
    return backbone


def freeze(network: Network, frozen: bool) -> None:
    """Keep a backbone as it is, its batch norm included, or let it learn (again); call it after ``train()``."""
    backbone = backbone_of(network)
    if backbone is not None:
        backbone.requires_grad_(not frozen).train(not frozen)


def hold_batch_norm(network: Network) -> None:
    """Let batch norm take what it has gathered for what it is; call it after ``train()``."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def count_parameters(network: nn.Module) -> int:
    """Number of trained values."""
    return sum(p.numel() for p in network.parameters())
