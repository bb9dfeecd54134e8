"""The networks: shapes, skips, encoders of timm, shared seasons, and what is said where an encoder does not do."""

import pytest
import torch
from torch import nn

from cobertes.errors import SettingsError
from cobertes.learn.architectures import build_network, count_parameters
from cobertes.learn.unet import UNet, UNetSettings

BACKBONES = ("resnet18", "resnet50", "efficientnet_b0")


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(channels=3, classes=4, **options):
    return UNet(UNetSettings(channels, classes, "scratch", **{"width": 4, "depth": 2} | options))


# --- shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (3, 50), (1, 1), (2, 5), (300, 513)])
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (20, 41)])
def test_any_window_comes_back_in_its_size_with_a_channel_per_class(size, channels, classes):
    model = tiny(channels, classes).eval()
    assert model(torch.randn(2, channels, *size)).shape == (2, classes, *size)


def test_padding_inside_does_not_shift_the_result():
    model = tiny().eval()
    x = torch.randn(1, 3, 24, 24)
    padded = x.clone()
    padded[..., 22:, :] = 0
    padded[..., :, 21:] = 0
    assert torch.equal(model(x[..., :22, :21]), model(padded)[..., :22, :21])


@pytest.mark.parametrize("encoder", BACKBONES)
def test_backbones_give_logits_of_any_window_for_any_channels(encoder):
    model = UNet(UNetSettings(20, 12, encoder)).eval()
    assert model.stride == 32
    with torch.no_grad():
        assert model(torch.randn(1, 20, 33, 70)).shape == (1, 12, 33, 70)


@pytest.mark.parametrize("depth", [1, 3, 6])
def test_the_depth_of_a_scratch_encoder_is_free(depth):
    model = tiny(depth=depth).eval()
    assert model.stride == 2**depth
    assert len(model.decoder) == depth
    assert model(torch.randn(1, 3, 20, 20)).shape == (1, 4, 20, 20)


def test_a_scratch_decoder_mirrors_its_encoder():
    model = tiny(width=8, depth=3)
    assert model.encoder.widths == [8, 16, 32, 64]
    assert [up.up.out_channels for up in model.decoder] == [32, 16, 8]


@pytest.mark.parametrize(
    ("decoder", "widths"), [((), [256, 128, 64, 32, 16]), ((64, 8), [64, 64, 64, 64, 8]), ((9,), [9] * 5)]
)
def test_the_decoder_of_a_backbone_has_the_widths_asked_for(decoder, widths):
    model = UNet(UNetSettings(3, 4, "resnet18", decoder=decoder))
    assert [up.up.out_channels for up in model.decoder] == widths


def test_the_decoder_goes_up_by_transposed_convolutions():
    for model in (tiny(), UNet(UNetSettings(3, 4, "resnet18"))):
        ups = [m for m in model.modules() if isinstance(m, nn.ConvTranspose2d)]
        assert len(ups) == len(model.decoder)
        assert all((up.kernel_size, up.stride) == ((2, 2), (2, 2)) for up in ups)
        assert not any(isinstance(m, nn.Upsample) for m in model.modules())


@pytest.mark.parametrize("upsampling", ["bilinear", "nearest"])
def test_the_decoder_can_interpolate_instead(upsampling):
    model = UNet(UNetSettings(3, 4, "scratch", 4, 3, upsampling=upsampling)).eval()
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in model.modules())
    assert {m.mode for m in model.modules() if isinstance(m, nn.Upsample)} == {upsampling}
    assert model(torch.randn(2, 3, 33, 50)).shape == (2, 4, 33, 50)
    model.train()(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("encoder", ["scratch", "resnet18"])
def test_every_scale_has_a_skip_that_matters(encoder):
    model = UNet(UNetSettings(3, 4, encoder, width=4, depth=3))
    x = torch.randn(2, 3, 64, 64)
    levels = len(model.encoder(x))
    original = model.encoder.forward
    with torch.no_grad():
        expected = model(x)
        for level in range(levels):

            def without(x, level=level):
                features = original(x)
                assert features[level].shape[-1] == 64 // 2**level
                features[level] = torch.zeros_like(features[level])
                return features

            model.encoder.forward = without
            assert (model(x) - expected).abs().max() > 1e-4, f"level {level} is not used"
    assert levels == (4 if encoder == "scratch" else 6)


# --- seasons that share an encoder -------------------------------------------------------------------------


def shared(seasons=3, encoder="scratch"):
    return UNet(UNetSettings(4 * seasons, 5, encoder, 4, 2, seasons=seasons)).eval()


@pytest.mark.parametrize("encoder", ["scratch", "resnet18"])
def test_the_order_of_shared_seasons_does_not_matter(encoder):
    model = shared(encoder=encoder)
    x = torch.randn(2, 12, 40, 33)
    a, b, c = x.split(4, dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(torch.cat([c, a, b], dim=1)), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_season_that_was_not_observed_changes_nothing():
    model = shared(2)
    a = torch.randn(2, 4, 40, 32)
    none = torch.zeros_like(a)
    one = model(torch.cat([a, none], dim=1))
    torch.testing.assert_close(one, model(torch.cat([none, a], dim=1)), rtol=1e-3, atol=1e-4)
    # a model of one season with the same weights, whose mean and maximum are that season's features
    torch.testing.assert_close(one, model(torch.cat([a, a], dim=1)), rtol=1e-3, atol=1e-4)
    assert (one - model(torch.cat([a, torch.randn_like(a)], dim=1))).abs().max() > 1e-3
    assert model(torch.cat([none, none], dim=1)).isfinite().all()


@torch.no_grad()
def test_a_season_hidden_in_places_counts_where_it_was_observed():
    model = shared(2)
    a, b = torch.randn(1, 4, 64, 64), torch.randn(1, 4, 64, 64)
    b[..., :32] = 0
    both, alone = model(torch.cat([a, b], dim=1)), model(torch.cat([a, torch.zeros_like(b)], dim=1))
    torch.testing.assert_close(both[..., :8], alone[..., :8], rtol=1e-3, atol=1e-4)  # far from what b shows
    assert (both - alone)[..., 40:].abs().max() > 1e-3


def test_gradients_of_shared_seasons_reach_every_weight():
    model = shared(2).train()
    model(torch.randn(2, 8, 64, 64)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# --- other architectures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "unett"}, "unknown architecture 'unett'. Did you mean 'unet'"),
        ({"architecture": "unet++", "encoder": "scratch"}, r"unet\+\+ needs a timm backbone: set model.encoder"),
        ({"architecture": "segformer", "seasons": 2}, "segformer sees seasons stacked or separate"),
        ({"architecture": "deeplabv3+", "encoder": "resnet1"}, r"'resnet1' can't be used in deeplabv3\+"),
    ],
)
def test_networks_that_can_not_be_built_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        build_network(UNetSettings(4, 3, **{"encoder": "resnet18"} | options))


def test_parameters_are_counted():
    assert count_parameters(nn.Conv2d(3, 4, 3)) == 3 * 4 * 9 + 4


# --- encoders that do not do -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("resnet5O", r"unknown encoder 'resnet5O'. Did you mean 'resnet50'\?"),
        ("scrach", r"unknown encoder 'scrach'. Did you mean 'scratch'\?"),
        (
            "vit_tiny_patch16_224",
            r"'vit_tiny_patch16_224' has feature maps at 1/16, .*needs 1/2, 1/4.*Try resnet50",
        ),
        ("convnext_atto", r"feature maps at 1/4, 1/8, 1/16, 1/32, a U-Net needs 1/2"),
        ("coatnet_nano_rw_224", r"'coatnet_nano_rw_224' can't be used in a U-Net .*Try resnet50"),
        ("resnet18.nonsense", "Invalid pretrained tag"),
    ],
)
def test_encoders_that_can_not_carry_a_unet_are_refused_with_the_way_out(encoder, message):
    with pytest.raises(SettingsError, match=message):
        UNet(UNetSettings(3, 4, encoder))


def test_building_leaves_a_backbone_ready_to_train():
    model = UNet(UNetSettings(3, 4, "resnet18"))
    assert all(m.training for m in model.modules())
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        assert int(norm.num_batches_tracked) == 0
        assert not norm.running_mean.any()
