"""The whole U-Net (Ronneberger et al. 2015, arXiv:1505.04597) in one file.

    x ── level 0 (1/1) ────────────────── skip ── up ── head ── logits
          └─ level 1 (1/2) ──────────── skip ── up ──┘
               └─ level 2 (1/4) ───── skip ── up ──┘
                    └─ ...       ── skip ── up ──┘

The levels are our own double convolutions (``scratch``) or a timm backbone. Backbones start at half the
resolution, so a double convolution of the input beside them keeps the full-resolution skip.

With ``seasons`` over 1 one encoder takes each season by itself; at every level their features are fused:

    april  ── encoder ──┐
    august ── encoder ──┴ mean and maximum over the seasons that were observed ── decoder ── logits

so that the order of the seasons does not matter, and a missing or hidden season does not change the others.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cobertes.errors import SettingsError, did_you_mean
from cobertes.learn.devices import memory_format
from cobertes.settings import SCRATCH

BACKBONE_DECODER = (256, 128, 64, 32, 16)
STEM_WIDTH = 32


@dataclass(frozen=True)
class UNetSettings:
    """Settings that determine the network's shape.

    ``channels`` in, of all seasons; ``classes`` out; ``encoder`` scratch or a timm name; ``width`` and ``depth``
    of a scratch encoder; ``decoder`` channels from the bottom up, empty for the default: the widths of a scratch
    encoder mirrored, 256 … 16 after a backbone; ``upsampling`` a key of `UPSAMPLING`; ``seasons`` that share the
    encoder, 1 if they are stacked; ``architecture`` unet, or one of `cobertes.learn.architectures`.
    """

    channels: int
    classes: int
    encoder: str = SCRATCH
    width: int = 32
    depth: int = 2
    decoder: tuple[int, ...] = ()
    upsampling: str = "transposed"
    seasons: int = 1
    architecture: str = "unet"


class UNet(nn.Module):
    """U-Net for any window size: pads to a multiple of its stride inside, and crops back."""

    def __init__(self, settings: UNetSettings) -> None:
        super().__init__()
        self.settings = settings
        channels = settings.channels // settings.seasons
        self.encoder: ScratchEncoder | TimmEncoder
        if settings.encoder == SCRATCH:
            self.encoder = ScratchEncoder(channels, settings.width, settings.depth)
        else:
            self.encoder = TimmEncoder(settings.encoder, channels)
        fused = 1 if settings.seasons == 1 else 2  # mean and maximum
        skips = [fused * width for width in self.encoder.widths]  # at 1/1, 1/2, 1/4 ... of the size
        self.stride = 2 ** (len(skips) - 1)
        mirrored = tuple(self.encoder.widths[-2::-1])
        ups = settings.decoder or (BACKBONE_DECODER if settings.encoder != SCRATCH else mirrored)
        widths = _fit(ups, len(skips) - 1)
        below, beside = [skips[-1], *widths[:-1]], skips[-2::-1]
        self.decoder = nn.ModuleList(
            Up(b, s, w, settings.upsampling) for b, s, w in zip(below, beside, widths, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], settings.classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes, H, W) of ``x`` (B, channels, H, W)."""
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        # (B, C0, H, W), (B, C1, H/2, W/2), ... (B, Cn, H/stride, W/stride)
        *skips, y = self.encoder(x) if self.settings.seasons == 1 else self._each_season(x)
        for up, skip in zip(self.decoder, reversed(skips), strict=True):
            y = up(y, skip)  # (B, width, twice, twice)
        logits: Tensor = self.head(y)
        return logits[..., :height, :width]

    def _each_season(self, x: Tensor) -> list[Tensor]:
        """Features of every season by the one encoder, fused over the seasons observed in a pixel."""
        batch, count = x.shape[0], self.settings.seasons  # len(x) would be a constant in an exported network
        apart = x.reshape(batch, count, -1, *x.shape[-2:])  # (B, seasons, bands, H, W)
        observed = (apart != 0).any(dim=2).to(x.dtype)  # pixels without observation are 0 in all bands
        features = self.encoder(apart.flatten(0, 1).contiguous(memory_format=memory_format(x.device)))
        fused = []
        for level, y in enumerate(features):
            weight = F.max_pool2d(observed, 2**level).unsqueeze(2)  # (B, seasons, 1, h, w)
            each = y.reshape(batch, count, *y.shape[1:])  # (B, seasons, C, h, w)
            mean = (each * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
            lowest = torch.finfo(each.dtype).min
            highest = torch.where(weight > 0, each, lowest).amax(dim=1) * (weight.sum(dim=1) > 0)
            fused.append(torch.cat([mean, highest], dim=1))
        return fused


UPSAMPLING = ("transposed", "bilinear", "nearest")
"""Upsampling by 2 in the decoder: a transposed convolution, or a convolution and interpolation."""


class DoubleConv(nn.Sequential):
    """Double convolution: twice 3 x 3 convolution, batch norm, ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )


class Up(nn.Module):
    """Upsampling by 2, concatenation with the skip, then a double convolution."""

    def __init__(self, below: int, skip: int, width: int, upsampling: str = "transposed") -> None:
        super().__init__()
        self.up: nn.Module
        if upsampling == "transposed":
            self.up = nn.ConvTranspose2d(below, width, 2, stride=2)
        else:  # the convolution is cheaper before the map is four times as large, and commutes with it
            self.up = nn.Sequential(nn.Conv2d(below, width, 1), nn.Upsample(scale_factor=2, mode=upsampling))
        self.conv = DoubleConv(width + skip, width)

    def forward(self, y: Tensor, skip: Tensor) -> Tensor:
        """``y`` (B, below, h, w), ``skip`` (B, skip, 2h, 2w) -> (B, width, 2h, 2w)."""
        out: Tensor = self.conv(torch.cat([self.up(y), skip], dim=1))
        return out


class ScratchEncoder(nn.Module):
    """Encoder of max pooling and double convolutions; channels double at each level."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.widths = [width * 2**i for i in range(depth + 1)]
        self.levels = nn.ModuleList(DoubleConv(a, b) for a, b in pairwise([channels, *self.widths]))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features at 1/1, 1/2, 1/4 ... of the size of ``x``."""
        features = [self.levels[0](x)]
        for level in self.levels[1:]:
            features.append(level(F.max_pool2d(features[-1], 2)))
        return features


class TimmEncoder(nn.Module):
    """Encoder of a double convolution at 1/1 and a timm backbone's feature maps at 1/2, 1/4 ... 1/32."""

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.stem = DoubleConv(channels, STEM_WIDTH)
        self.backbone = _timm_backbone(name, channels)
        self.widths: list[int] = [STEM_WIDTH, *self.backbone.feature_info.channels()]  # type: ignore[operator,union-attr]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features from fine to coarse."""
        return [self.stem(x), *self.backbone(x)]


def _timm_backbone(name: str, channels: int) -> nn.Module:
    import timm  # with torchvision, seconds: a header is read and a converted network runs without

    known = timm.list_models()
    if name.split(".", maxsplit=1)[0] not in known:
        raise SettingsError(f"unknown encoder '{name}'.{did_you_mean(name, [SCRATCH, *known])}")
    try:
        backbone: nn.Module = timm.create_model(name, in_chans=channels, features_only=True)
        widths, reductions = backbone.feature_info.channels(), backbone.feature_info.reduction()  # type: ignore[operator,union-attr]
        if reductions == [2 ** (i + 1) for i in range(len(reductions))]:
            shapes = _shapes(backbone, channels)
        else:
            shapes = []
    except Exception as error:  # 1,300 models of as many authors
        raise SettingsError(f"encoder '{name}' can't be used in a U-Net ({error}). Try resnet50.") from error
    if shapes != [(width, 64 // r, 96 // r) for width, r in zip(widths, reductions, strict=True)]:
        scales = ", ".join(f"1/{r}" for r in reductions)
        raise SettingsError(
            f"encoder '{name}' has feature maps at {scales}, a U-Net needs 1/2, 1/4, 1/8 … Try resnet50."
        )
    return backbone


def _shapes(backbone: nn.Module, channels: int) -> list[tuple[int, ...]]:
    """Shapes of the feature maps of an oblong window: some models pad in other ways, or take one size only."""
    backbone.eval()
    with torch.no_grad():
        shapes = [tuple(y.shape[1:]) for y in backbone(torch.zeros(1, channels, 64, 96))]
    backbone.train()
    return shapes


def _fit(given: tuple[int, ...], levels: int) -> list[int]:
    """Decoder widths, one per level: the last ones given, the first of them repeated if they are too few."""
    widths = list(given)[-levels:]
    return [widths[0]] * (levels - len(widths)) + widths
