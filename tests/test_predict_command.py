"""`cobertes predict` and `cobertes export` as users call them, and what GDAL's own tools make of the outputs."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cobertes.cli.main import app
from cobertes.labels.legend import load_legend
from cobertes.learn.model_file import save_model
from cobertes.learn.unet import UNet
from helpers.engines import header_of
from helpers.rasters import ORIGIN, grid_at, read_raster, write_raster

LEGEND = load_legend("catalonia-12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with random weights and a scene for it, April 2018."""
    folder = tmp_path_factory.mktemp("predict")
    torch.manual_seed(0)
    header = header_of(legend=LEGEND)
    network = UNet(header.network)
    for _ in range(10):
        network(3 * torch.randn(4, 2, 32, 32))
    save_model(folder / "model.safetensors", network.state_dict(), header)
    values = np.random.default_rng(0).integers(1, 3000, (2, 90, 120)).astype(np.uint16)
    values[:, :20, :30] = 0
    write_raster(folder / "s2_20180412.tif", values, grid_at(90, 120))
    return folder


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def predict(folder, out, *options):
    fixed = ("--device", "cpu", "--engine", "torch", "--precision", "fp32", "--json")
    done = call("predict", folder / "model.safetensors", folder / "s2_20180412.tif", "-o", out, *fixed, *options)
    return done.exit_code, json.loads(done.stdout.splitlines()[-1])


def test_all_outputs_in_one_call(folder, tmp_path):
    options = [f"--{name}={tmp_path / name}.tif" for name in ("confidence", "probabilities", "entropy", "second")]
    code, found = predict(
        folder, tmp_path / "map.tif", *options, f"--stac={tmp_path / 'map.json'}", "--blend", "gaussian"
    )
    assert code == 0
    assert found["engine"] == "torch on cpu in fp32 (as set)"
    assert sum(found["counts"].values()) == 90 * 120
    assert found["hectares"]["0"] == pytest.approx(600 * 0.01)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"map.tif", "map.tif.aux.xml", "map.qml", "map.json", "second.tif", "second.qml"} <= names
    item = json.loads((tmp_path / "map.json").read_text())
    assert item["properties"]["datetime"] == "2018-04-12T00:00:00Z"
    assert read_raster(tmp_path / "probabilities.tif").shape == (12, 90, 120)


def test_the_terminal_shows_areas(folder, tmp_path):
    done = call("predict", folder / "model.safetensors", folder / "s2_20180412.tif", "-o", tmp_path / "m.tif", "--device", "cpu", "--engine", "torch")  # fmt: skip
    assert done.exit_code == 0
    assert re.search(r"hectares +code +pixels +share +class", done.stdout)
    assert re.search(r"^ +6\.00 +0 +600 +5\.56%  nodata$", done.stdout, re.MULTILINE)
    assert "engine: torch on cpu in" in done.stderr


def test_gdal_and_qgis_show_the_legend(folder, tmp_path, in_qgis):
    assert predict(folder, tmp_path / "map.tif", "--second", tmp_path / "second.tif")[0] == 0
    for name in ("map.tif", "second.tif"):
        shown = in_qgis(tmp_path / name)
        assert (shown["valid"], shown["crs"], shown["renderer"], shown["nodata"]) == (
            True,
            "EPSG:32631",
            "paletted",
            0,
        )
        assert shown["classes"] == [[c.code, c.name, c.colour] for c in LEGEND.classes]


@pytest.mark.skipif(shutil.which("gdalinfo") is None, reason="needs Debian's gdal-bin")
def test_gdalinfo_finds_names_colours_and_areas(folder, tmp_path):
    assert predict(folder, tmp_path / "map.tif")[0] == 0
    done = subprocess.run(
        ["gdalinfo", "-json", str(tmp_path / "map.tif")], capture_output=True, text=True, check=True
    )
    info = json.loads(done.stdout)
    band = info["bands"][0]
    assert info["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    assert (band["noDataValue"], band["colorInterpretation"]) == (0, "Palette")
    areas = {key: value for key, value in info["metadata"][""].items() if key.startswith("area_")}
    assert set(areas) == {f"area_{code}" for code in (0, *LEGEND.codes)}
    assert sum(float(value.removesuffix(" ha")) for value in areas.values()) == pytest.approx(108.0)
    assert band["colorTable"]["entries"][12][:3] == [int(LEGEND.find(12).colour[i : i + 2], 16) for i in (1, 3, 5)]


def test_a_part_is_the_same_as_the_whole_there(folder, tmp_path):
    assert predict(folder, tmp_path / "map.tif")[0] == 0
    west, north = ORIGIN
    code, found = predict(
        folder, tmp_path / "part.tif", "--bounds", f"{west + 200},{north - 600},{west + 900},{north - 100}"
    )
    assert (code, sum(found["counts"].values())) == (0, 50 * 70)
    np.testing.assert_array_equal(
        read_raster(tmp_path / "part.tif"), read_raster(tmp_path / "map.tif")[10:60, 20:90]
    )
    code, found = predict(folder, tmp_path / "x.tif", "--bounds", "1,2,3")
    assert (code, found["error"]) == (2, "--bounds takes four numbers W,S,E,N, found '1,2,3'")


def test_several_models_and_views(folder, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path / "other.safetensors")
    code, found = predict(
        folder, tmp_path / "map.tif", "--also", tmp_path / "other.safetensors", "--views", "flips"
    )
    assert code == 0
    assert found["engine"] == "mean of 2 models: torch on cpu in fp32 (as set), mean of 4 views"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--blend", "cosin"), "no blending 'cosin'. Did you mean 'cosine'?"),
        (("--views", "flip"), "no views 'flip'. Did you mean 'flips'?"),
        (("--precision", "int8"), "engine 'torch' runs in fp32, bf16, not in int8"),
        (("--clip", "nothing.gpkg"), "no file at nothing.gpkg"),
        (("--also", "nothing.safetensors"), "no model at nothing.safetensors"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, options, message):
    code, found = predict(folder, tmp_path / "map.tif", *options)
    assert code == 2
    assert message in found["error"]
    assert not list(tmp_path.iterdir())


def test_existing_maps_are_kept_unless_asked(folder, tmp_path):
    (tmp_path / "map.tif").write_text("mine")
    assert predict(folder, tmp_path / "map.tif")[0] == 2
    assert predict(folder, tmp_path / "map.tif", "--resume")[0] == 2
    assert (tmp_path / "map.tif").read_text() == "mine"
    assert predict(folder, tmp_path / "map.tif", "--overwrite")[0] == 0


def test_export_writes_onnx(folder, tmp_path):
    pytest.importorskip("onnx")
    done = call("export", folder / "model.safetensors", "-o", tmp_path / "m.onnx", "--window", 48, "--json")
    assert (done.exit_code, json.loads(done.stdout)["window"]) == (0, 48)
    assert (tmp_path / "m.onnx").stat().st_size > 1000
    assert call("export", folder / "model.safetensors", "-o", tmp_path / "m.onnx").exit_code == 2
