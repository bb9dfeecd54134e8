"""Model files: what comes back, what a person can read in them, and what is said of files that are not ours."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from cobertes.errors import BandMismatchError, InputFileError, ModelFileError, SettingsError, StorageError
from cobertes.geo.scene import open_scene
from cobertes.labels.legend import Legend, LegendClass
from cobertes.learn import model_file
from cobertes.learn.encoding import Inputs
from cobertes.learn.model_file import ModelHeader, load_model, model_path, read_header, save_model
from cobertes.learn.unet import UNet, UNetSettings
from helpers.rasters import coordinates, grid_at, write_raster

LEGEND = Legend(
    "proves", 0, (LegendClass(10, "water", "Aigües", "#0000dc"), LegendClass(100, "snow", "Neu", "#ffffff"))
)
HEADER = ModelHeader(
    UNetSettings(2, 2, "scratch", 4, 2, (8, 4)),
    Inputs(("april",), ("row", "col"), np.array([[1 / 3, 2.0]]), np.array([[0.1, 5.0]])),
    LEGEND,
    10.0,
    64,
    {"fingerprint": "abc", "best_epoch": 3, "precision": "bf16"},
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return UNet(HEADER.network)


@pytest.fixture
def path(tmp_path, model):
    save_model(tmp_path / "model.safetensors", model.state_dict(), HEADER)
    return tmp_path / "model.safetensors"


def header_text(path):
    """The JSON that a safetensors file begins with, read without any library."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def test_weights_and_header_come_back(path, model):
    again, header = load_model(path)
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert header.to_json() == HEADER.to_json()
    assert (header.network, header.legend) == (HEADER.network, LEGEND)
    np.testing.assert_array_equal(header.inputs.mean, HEADER.inputs.mean)
    x = torch.randn(1, 2, 20, 20)
    assert torch.equal(again(x), model.eval()(x))


def test_weights_in_channels_last_come_back_the_same(tmp_path, model):
    save_model(tmp_path / "m.safetensors", model.to(memory_format=torch.channels_last).state_dict(), HEADER)
    again, _ = load_model(tmp_path / "m.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_the_header_is_json_that_a_person_can_read(path):
    header = json.loads(header_text(path)["__metadata__"]["cobertes"])
    assert header["legend"]["class"][0] == {"code": 10, "key": "water", "name": "Aigües", "colour": "#0000dc"}
    assert header["network"]["encoder"] == "scratch"
    assert header["inputs"]["bands"] == ["row", "col"]
    assert (header["resolution"], header["window"], header["training"]["best_epoch"]) == (10.0, 64, 3)
    assert HEADER.facts()["precision"] == "bf16"


def test_a_run_folder_stands_for_its_model(path):
    assert model_path(path.parent) == path
    assert load_model(path.parent)[1].window == 64


@pytest.mark.parametrize("read", [model_path, read_header, load_model])
def test_a_missing_model_is_told_with_the_way_out(tmp_path, read):
    for missing in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(InputFileError, match=r"no model at .*Name a model.safetensors or a run's folder"):
            read(missing)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_model_is_told(path, keep):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ModelFileError, match=r"is not a whole safetensors file: .*Copy it again"):
        load_model(path)


def test_foreign_files_are_told(tmp_path):
    picture = tmp_path / "map.tif"
    picture.write_bytes(b"II*\0" + bytes(500))
    with pytest.raises(ModelFileError, match=r"map\.tif is not a whole safetensors file"):
        load_model(picture)
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match="not a model of cobertes: its header lacks 'cobertes'"):
        load_model(tmp_path / "other.safetensors")


def _changed(**changes):
    return json.dumps(json.loads(HEADER.to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_changed(format=2), "format 2, this cobertes reads 1"),
        ("{", "can't read"),
        ("[]", "can't read"),
        ("{}", "'format'"),
        (_changed(network={"channels": 2}), "can't read"),
        (_changed(network=[1]), "can't read"),
        (_changed(legend={"name": "x", "class": []}), "no classes"),
        (_changed(legend={"name": "x", "class": ["water"]}), "can't read"),
        (_changed(inputs={"seasons": ["a"], "bands": ["b"], "mean": [1], "std": [1]}), "1 seasons and 1 bands"),
        (_changed(window=None), "can't read"),
    ],
)
def test_headers_of_other_formats_are_told(tmp_path, model, text, message):
    save_file(model.state_dict(), tmp_path / "m.safetensors", metadata={"cobertes": text})
    with pytest.raises(ModelFileError, match=rf"m\.safetensors has a header .*{message}"):
        load_model(tmp_path / "m.safetensors")


def test_weights_that_do_not_fit_the_header_are_told(tmp_path, model):
    wider = replace(HEADER, network=replace(HEADER.network, width=8))
    save_model(tmp_path / "m.safetensors", model.state_dict(), wider)
    with pytest.raises(ModelFileError, match="the weights do not fit the network its header describes"):
        load_model(tmp_path / "m.safetensors")


def test_a_save_that_fails_keeps_the_old_model(path, model, monkeypatch):
    before = path.read_bytes()

    def full(tensors, name, metadata):
        name.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(model_file, "save_file", full)
    with pytest.raises(StorageError, match=r"can't write .*model\.safetensors: .*No space left on device"):
        save_model(path, model.state_dict(), HEADER)

    def interrupted(tensors, name, metadata):
        name.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(model_file, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(path, model.state_dict(), HEADER)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


# --- which scenes it takes ---------------------------------------------------------------------------------


def scene_on(folder, grid, names=("row", "col"), season="april"):
    path = write_raster(folder / "scene.tif", coordinates((20, 30)), grid, names=names)
    return {season: open_scene([path])}


def test_scenes_like_those_of_the_training_are_taken(tmp_path):
    HEADER.check_scenes(scene_on(tmp_path, grid_at(20, 30)))
    HEADER.check_scenes(scene_on(tmp_path, grid_at(20, 30, pixel=10.05)))
    HEADER.check_scenes(scene_on(tmp_path, None))  # nothing is known of its pixels
    replace(HEADER, resolution=None).check_scenes(scene_on(tmp_path, grid_at(20, 30, pixel=30)))


@pytest.mark.parametrize(
    ("pixel", "crs", "message"),
    [
        (20, "EPSG:32631", r"pixels of 20 \(EPSG:32631\), the model was trained on pixels of 10\. .*gdalwarp -tr"),
        (0.0001, "EPSG:4326", r"pixels of 0.0001 \(EPSG:4326\), the model was trained on pixels of 10"),
    ],
)
def test_scenes_of_another_resolution_are_refused(tmp_path, pixel, crs, message):
    origin = (2, 42) if crs == "EPSG:4326" else (240_000, 4_780_000)
    with pytest.raises(ModelFileError, match=message):
        HEADER.check_scenes(scene_on(tmp_path, grid_at(20, 30, pixel, crs, origin)))


def test_scenes_of_other_bands_or_seasons_are_refused(tmp_path):
    with pytest.raises(BandMismatchError, match="gives bands row, B08, the model was trained on row, col"):
        HEADER.check_scenes(scene_on(tmp_path, grid_at(20, 30), names=("row", "B08")))
    with pytest.raises(SettingsError, match=r"season 'april', found apri\. Did you mean 'apri'"):
        HEADER.check_scenes(scene_on(tmp_path, grid_at(20, 30), season="apri"))


def test_a_header_keeps_the_value_of_empty_pixels(tmp_path):
    header = replace(HEADER, scene_nodata=65535.0)
    assert ModelHeader.from_json(header.to_json()).scene_nodata == 65535.0
