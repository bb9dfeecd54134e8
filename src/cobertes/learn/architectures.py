"""Networks by name: our U-Net, and those of segmentation-models-pytorch, with the same settings and files."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cobertes.errors import SettingsError, did_you_mean
from cobertes.learn.unet import UNet, UNetSettings
from cobertes.settings import SCRATCH

SMP_CLASSES = {"unet++": "UnetPlusPlus", "deeplabv3+": "DeepLabV3Plus", "segformer": "Segformer"}
"""Architecture -> class of segmentation-models-pytorch."""

ARCHITECTURES = ("unet", *SMP_CLASSES)


class SmpNetwork(nn.Module):
    """A network of segmentation-models-pytorch on a timm backbone, for any window size."""

    stride = 32

    def __init__(self, settings: UNetSettings) -> None:
        import segmentation_models_pytorch as smp

        super().__init__()
        self.settings = settings
        build: Callable[..., nn.Module] = getattr(smp, SMP_CLASSES[settings.architecture])
        options: dict[str, Any] = {}
        if settings.decoder and settings.architecture == "unet++":
            options["decoder_channels"] = settings.decoder
        try:
            self.network = build(
                f"tu-{settings.encoder}", encoder_weights=None, in_channels=settings.channels,
                classes=settings.classes, **options,
            )  # fmt: skip
        except Exception as error:  # 1,300 backbones of as many authors
            raise SettingsError(
                f"encoder '{settings.encoder}' can't be used in {settings.architecture} ({error}). Try resnet50."
            ) from error

    @property
    def backbone(self) -> nn.Module:
        """The timm backbone, which pretrained weights are for."""
        backbone: nn.Module = self.network.encoder.model  # type: ignore[union-attr,assignment]
        return backbone

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes, H, W) of ``x`` (B, channels, H, W)."""
        height, width = x.shape[-2:]
        logits: Tensor = self.network(F.pad(x, (0, -width % self.stride, 0, -height % self.stride)))
        return logits[..., :height, :width]


Network = UNet | SmpNetwork


def build_network(settings: UNetSettings) -> Network:
    """Build a network with random weights. Raises SettingsError if its parts do not go together."""
    if settings.architecture == "unet":
        return UNet(settings)
    if settings.architecture not in SMP_CLASSES:
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
    """Timm backbone of a network; None if its encoder is our own."""
    if isinstance(network, SmpNetwork):
        return network.backbone
    backbone: nn.Module | None = getattr(network.encoder, "backbone", None)
    return backbone


def freeze(network: Network, frozen: bool) -> None:
    """Freeze the backbone, its batch norm included, or unfreeze it; call it after ``train()``."""
    backbone = backbone_of(network)
    if backbone is not None:
        backbone.requires_grad_(not frozen).train(not frozen)


def freeze_batch_norm(network: Network) -> None:
    """Use the running statistics of batch norm without updating them; call it after ``train()``."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def count_parameters(network: nn.Module) -> int:
    """Number of trainable and frozen weights."""
    return sum(p.numel() for p in network.parameters())
