"""First weights of a backbone: from small files made here, from a cache, and where no hub answers."""

import time

import huggingface_hub.constants
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import save_file

from cobertes.errors import InputFileError, SettingsError
from cobertes.geo.bands import WAVELENGTHS, sentinel2_band
from cobertes.learn import pretrained
from cobertes.learn.architectures import build_network
from cobertes.learn.pretrained import load_pretrained
from cobertes.learn.unet import UNetSettings

TEN = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
"""The bands of the model case, in its order."""


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub at which nobody answers, and an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def cached(hub, repository, file, tensors):
    """Put tensors where the hub's library keeps what it has fetched."""
    folder = hub / ("models--" + repository.replace("/", "--"))
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    path = folder / "snapshots" / "abc" / file
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def network(encoder="resnet18", channels=10, **options):
    return build_network(UNetSettings(channels, 4, encoder, **options))


def first_layer(backbone):
    return next(value for value in backbone.state_dict().values() if value.dim() == 4)


# --- which band takes which weights ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "band"),
    [("B02", "B02"), ("b2", "B02"), ("B8A", "B8A"), ("B8a_20m", "B8A"), ("B08_10m", "B08"), ("B12", "B12"),
     ("red", "B04"), ("swir16", "B11"), ("nir", "B08"), ("B13", None), ("B20", None), ("ndvi", None), ("band1", None)],
)  # fmt: skip
def test_bands_are_known_by_the_names_they_go_by(name, band):
    assert sentinel2_band(name) == band


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "efficientnet_b0"])
@pytest.mark.parametrize("seasons", [1, 2])
def test_thirteen_bands_of_a_file_go_to_the_same_bands_of_each_season(tmp_path, encoder, seasons):
    source = timm.create_model(encoder, in_chans=13)
    torch.save(source.state_dict(), tmp_path / "s2.pth")
    model = network(encoder, 10 * seasons)
    told = load_pretrained(model, str(tmp_path / "s2.pth"), TEN)
    theirs, ours = first_layer(source), first_layer(model.encoder.backbone)
    order = list(WAVELENGTHS)
    for season in range(seasons):
        for number, band in enumerate(TEN):
            expected = theirs[:, order.index(band)] * 13 / (10 * seasons)
            torch.testing.assert_close(ours[:, 10 * season + number], expected)
    assert f"{encoder} starts from" in told
    assert ("for each of 2 seasons" in told) is (seasons == 2)
    assert "left random" not in told
    kept = source.state_dict()
    for name, value in model.encoder.backbone.state_dict().items():
        assert value.dim() == 4 or torch.equal(value, kept[name]), name


def test_three_colours_go_to_the_bands_nearest_to_them(tmp_path):
    source = timm.create_model("resnet18")
    save_file(source.state_dict(), tmp_path / "rgb.safetensors")
    model = network(channels=11)
    told = load_pretrained(model, str(tmp_path / "rgb.safetensors"), (*TEN, "slope"))
    red, green, blue = (source.conv1.weight[:, i] * 3 / 11 for i in range(3))
    ours = model.encoder.backbone.conv1.weight
    for number, expected in enumerate(
        (red, green, blue, red, red, red, red, red, red, red, (red + green + blue) / 3)
    ):
        torch.testing.assert_close(ours[:, number], expected)
    assert "B05 from B04" in told
    assert "slope the mean of all" in told


def test_three_bands_take_their_colours_by_name_in_whatever_order(tmp_path):
    source = timm.create_model("resnet18")
    save_file(source.state_dict(), tmp_path / "rgb.safetensors")
    model = network(channels=3)
    load_pretrained(model, str(tmp_path / "rgb.safetensors"), ("blue", "green", "nir"))
    red, green, blue = (source.conv1.weight[:, i] for i in range(3))
    for number, expected in enumerate((blue, green, red)):
        torch.testing.assert_close(model.encoder.backbone.conv1.weight[:, number], expected)


def test_as_many_channels_as_the_network_s_own_are_taken_as_they_are(tmp_path):
    source = timm.create_model("resnet18", in_chans=7)
    save_file(source.state_dict(), tmp_path / "own.safetensors")
    model = network(channels=7)
    told = load_pretrained(model, str(tmp_path / "own.safetensors"), tuple("abcdefg"))
    assert torch.equal(model.encoder.backbone.conv1.weight, source.conv1.weight)
    assert "7 channels as they are" in told


def test_the_sum_over_channels_keeps_its_size(tmp_path):
    source = timm.create_model("resnet18", in_chans=13)
    with torch.no_grad():
        source.conv1.weight[:] = source.conv1.weight[:, :1]  # all bands alike
    torch.save(source.state_dict(), tmp_path / "s2.pth")
    model = network(channels=20)
    load_pretrained(model, str(tmp_path / "s2.pth"), TEN)
    one = torch.ones(1, 1, 8, 8)
    torch.testing.assert_close(
        model.encoder.backbone.conv1(one.expand(1, 20, 8, 8)), source.conv1(one.expand(1, 13, 8, 8)),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("wrap", [
    lambda state: {"state_dict": {f"module.encoder_q.{name}": value for name, value in state.items()}},
    lambda state: {"model": {f"backbone.{name}": value for name, value in state.items()}, "epoch": 3},
    lambda state: {f"encoder.{name}": value for name, value in state.items()},
])  # fmt: skip
def test_what_training_scripts_put_around_a_state_is_taken_off(tmp_path, wrap):
    source = timm.create_model("resnet18", in_chans=13)
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    model = network()
    load_pretrained(model, str(tmp_path / "w.pth"), TEN)
    assert torch.equal(model.encoder.backbone.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_shared_seasons_and_other_architectures_take_them_too(tmp_path):
    source = timm.create_model("resnet18", in_chans=13)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    shared = network(channels=20, seasons=2)
    load_pretrained(shared, str(tmp_path / "w.pth"), TEN)
    assert shared.encoder.backbone.conv1.weight.shape[1] == 10
    other = network(architecture="deeplabv3+")
    assert "left random" not in load_pretrained(other, str(tmp_path / "w.pth"), TEN)
    assert torch.equal(other.backbone.layer1[0].conv1.weight, source.layer1[0].conv1.weight)


# --- what can't be had -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"no weights at .*w\.pth.*one of: random, imagenet, sentinel2-moco"),
        (lambda path: path.write_bytes(b"\0" * 100), r"can't read weights from .*w\.pth"),
        (lambda path: torch.save([1, 2], path), r"can't read weights from .*w\.pth"),
        (lambda path: torch.save(timm.create_model("efficientnet_b0").state_dict(), path), r"fits \d+ of \d+ tensors of resnet18"),
        (lambda path: torch.save(timm.create_model("resnet18", in_chans=7).state_dict(), path), r"first layer of 7 channels.*needed 3 .*12 or 13"),
    ],
)  # fmt: skip
def test_files_that_do_not_do_are_told(tmp_path, make, message):
    make(tmp_path / "w.pth")
    with pytest.raises(InputFileError, match=message):
        load_pretrained(network(), str(tmp_path / "w.pth"), TEN)


def test_a_scratch_encoder_has_no_weights():
    with pytest.raises(SettingsError, match="a scratch encoder has no pretrained weights"):
        load_pretrained(network("scratch"), "imagenet", TEN)


def test_weights_that_nobody_made_for_an_encoder_are_told():
    with pytest.raises(SettingsError, match='no weights "sentinel2-dino" of resnet18 are known, only of resnet50'):
        load_pretrained(network(), "sentinel2-dino", TEN)


@pytest.mark.parametrize(("weights", "way_out"), [
    ("imagenet", r'model.weights = "random".*HF_HOME'),
    ("sentinel2-moco", r"Save http.*resnet18_sentinel2_all_moco-59bfdff9.pth on this machine.*model.weights"),
])  # fmt: skip
def test_an_unreachable_hub_is_told_at_once_with_the_way_out(hub, weights, way_out):
    begin = time.monotonic()
    with pytest.raises(InputFileError, match=rf"weights.*resnet18.*{way_out}"):
        load_pretrained(network(), weights, TEN)
    assert time.monotonic() - begin < 20  # the libraries by themselves go on trying for 46 s


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("we cannot find the requested files in the local cache"),
        OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled"),
        OSError("[Errno 28] No space left on device"),
    ],
)
def test_weights_that_do_not_come_are_an_input_error(error, monkeypatch):
    model = network()

    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(pretrained, "_require_hub", lambda *where: None)
    monkeypatch.setattr(timm, "create_model", fails)
    monkeypatch.setattr(pretrained, "hf_hub_download", fails)
    for weights in ("imagenet", "sentinel2-moco"):
        with pytest.raises(InputFileError, match=r"can't fetch the .*weights.*model.weights"):
            load_pretrained(model, weights, TEN)


def test_an_encoder_that_has_no_weights_is_a_settings_error():
    name = next(name for name in timm.list_models("resnet*") if not timm.get_pretrained_cfg(name).has_weights)
    with pytest.raises(SettingsError, match=r"can't start from pretrained weights.*Use model.weights"):
        load_pretrained(network(name), "imagenet", TEN)


def test_cached_weights_are_used_without_a_hub(hub):
    source = timm.create_model("resnet18")
    cached(hub, "timm/resnet18.a1_in1k", "model.safetensors", source.state_dict())
    model = network()
    load_pretrained(model, "imagenet", TEN)
    assert torch.equal(model.encoder.backbone.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    torch.testing.assert_close(model.encoder.backbone.conv1.weight[:, 0], source.conv1.weight[:, 0] * 3 / 10)
    thirteen = timm.create_model("resnet18", in_chans=13)
    repository, file = pretrained.HUB_FILES["resnet18", "sentinel2-moco"]
    cached(hub, repository, file, thirteen.state_dict())
    load_pretrained(model, "sentinel2-moco", TEN)
    assert torch.equal(model.encoder.backbone.layer1[0].conv1.weight, thirteen.layer1[0].conv1.weight)
