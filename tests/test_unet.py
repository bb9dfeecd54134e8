"""The U-Net: shapes, skips, encoders of timm, and what is said where an encoder or its weights can't be had."""

import time

import huggingface_hub.constants
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import save_file
from torch import nn

from cobertes.errors import InputFileError, SettingsError
from cobertes.learn import unet
from cobertes.learn.unet import UNet, UNetSettings, count_parameters

BACKBONES = ("resnet18", "resnet50", "efficientnet_b0")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def tiny(channels=3, classes=4, **options):
    return UNet(UNetSettings(channels, classes, "scratch", **{"width": 4, "depth": 2} | options))


# --- shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (3, 50), (1, 1), (2, 5)])
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


def test_gradients_reach_every_weight():
    for model in (tiny(), UNet(UNetSettings(3, 4, "resnet18"))):
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []


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


# --- pretrained weights ------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub at which nobody answers, and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_an_unreachable_hub_is_told_at_once_with_the_way_out(hub):
    begin = time.monotonic()
    with pytest.raises(
        InputFileError, match=r'pretrained weights of \'resnet18\'.*model.weights = "random".*HF_HOME'
    ):
        UNet(UNetSettings(3, 4, "resnet18"), pretrained=True)
    assert time.monotonic() - begin < 20  # timm by itself goes on trying for 46 s


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("we cannot find the requested files in the local cache"),
        OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled"),
        OSError("[Errno 28] No space left on device"),
    ],
)
def test_weights_that_do_not_come_are_an_input_error(error, monkeypatch):
    create = timm.create_model

    def fails(name, *, pretrained=False, **options):
        if pretrained:
            raise error
        return create(name, **options)

    monkeypatch.setattr(unet, "_require_hub", lambda name: None)
    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(InputFileError, match=r"can't fetch the pretrained weights.*model.weights"):
        UNet(UNetSettings(3, 4, "resnet18"), pretrained=True)


def test_an_encoder_that_has_no_weights_is_a_settings_error():
    name = next(name for name in timm.list_models("resnet*") if not timm.get_pretrained_cfg(name).has_weights)
    with pytest.raises(SettingsError, match=r"can't start from pretrained weights.*Use model.weights"):
        UNet(UNetSettings(3, 4, name), pretrained=True)


def test_cached_weights_are_used_without_a_hub_and_fit_other_channel_counts(hub):
    torch.manual_seed(1)
    source = timm.create_model("resnet18")
    folder = hub / "models--timm--resnet18.a1_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(source.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    model = UNet(UNetSettings(10, 4, "resnet18"), pretrained=True)
    backbone = model.encoder.backbone.state_dict()
    assert torch.equal(backbone["layer4.1.conv2.weight"], source.layer4[1].conv2.weight)
    # timm repeats the three channels and scales them, so that the sum over channels keeps its size
    rgb = source.conv1.weight
    expected = rgb.repeat(1, 4, 1, 1)[:, :10] * 3 / 10
    torch.testing.assert_close(backbone["conv1.weight"], expected)
