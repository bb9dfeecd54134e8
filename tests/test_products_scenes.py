"""Scenes of products and of other conventions: the map is the same, or the scene is refused in one line."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from typer.testing import CliRunner

from cobertes.cli.main import app
from cobertes.engines.engine import Engine
from cobertes.errors import BandMismatchError, GridMismatchError, InputFileError, SettingsError
from cobertes.geo.observation import Observation
from cobertes.geo.products.band_vocabulary import BandLabel
from cobertes.geo.quality_mask import quality_mask
from cobertes.geo.radiometry import RadiometricConvention
from cobertes.geo.scene import open_scene
from cobertes.geo.windows import Window
from cobertes.labels.legend import load_legend
from cobertes.learn.encoding import Inputs
from cobertes.learn.model_file import ModelHeader, read_header, save_model
from cobertes.learn.unet import UNet, UNetSettings
from cobertes.predict.predict import predict_map
from cobertes.settings import TileSettings
from cobertes.tiles.clouds import SpectralTests, impossible_scale
from cobertes.tiles.index import load_index
from cobertes.workflow.project import load_project
from cobertes.workflow.scene_paths import open_scenes, scene_files
from cobertes.workflow.scene_values import parse_told, tell_values
from helpers.product_files import (
    band_pixels,
    write,
    write_hls,
    write_landsat,
    write_maja,
    write_safe,
    zipped,
)
from helpers.projects import write_ground, write_project
from helpers.rasters import grid_at, needs, read_raster, write_raster

BANDS = ("B02", "B03", "B04", "B08")
MEAN, STD = np.array([[600.0, 700, 800, 2500]]), np.array([[200.0, 250, 300, 700]])
DEFAULT = RadiometricConvention(1e-4, 0.0, "reflectance")
SIDE = 64
EVERYTHING = Window(0, 0, SIDE, SIDE)


def save(folder, bands=BANDS, mean=MEAN, std=STD, conventions=None, wavelengths=None, name="model.safetensors"):
    """A model of random weights for one season."""
    torch.manual_seed(0)
    inputs = Inputs(("scene",), tuple(bands), mean, std, "stack", conventions, wavelengths)
    legend = load_legend("catalonia-12")
    settings = UNetSettings(len(bands), len(legend), "scratch", 8, 2, (), "transposed", 1, "unet")
    network = UNet(settings)
    for _ in range(10):
        network(3 * torch.randn(4, len(bands), 32, 32))
    state = network.state_dict()
    last = [key for key in state if key.endswith("weight")][-1]
    state[last] *= 100  # sure of what it says, so that other values give other probabilities
    save_model(folder / name, state, ModelHeader(settings, inputs, legend, None, 32, {}))
    return folder / name


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Trained on digital numbers that no file describes: reflectance x 10,000 is assumed."""
    return save(
        tmp_path_factory.mktemp("model"), conventions=(DEFAULT,) * 4, wavelengths=(492.7, 559.8, 664.6, 832.8)
    )


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """The same weights in a file that says nothing of conventions or wavelengths."""
    return save(tmp_path_factory.mktemp("older"))


def pixels(side=SIDE, seed=0):
    """(4, side, side) uint16 digital numbers of ground as the model knows it."""
    noise = np.random.default_rng(seed).normal(0, 1, (4, side, side))
    return (MEAN.T[:, :, None] + STD.T[:, :, None] * noise).clip(50, 9000).astype("u2")


def write_scene(path, values, names=BANDS, *, scales=None, offsets=None, **options):
    path = write_raster(path, values, grid_at(*values.shape[1:]), names=names or (), **options)
    if scales or offsets:
        with rasterio.open(path, "r+") as file:
            file.scales = [scales or 1.0] * len(values)
            file.offsets = [offsets or 0.0] * len(values)
    return path


def by_mixture(x):
    """Logits (B, 12, H, W) of the class nearest to a mixture of the bands: all of them and their order count."""
    mixture = (x * torch.tensor([1.0, 2.0, -1.5, 0.7]).reshape(1, 4, 1, 1)).sum(dim=1, keepdim=True)
    return -((mixture - torch.linspace(-5, 5, 12).reshape(1, 12, 1, 1)) ** 2)


def make_map(model, scenes, folder, name="map.tif"):
    """The map that a model by hand makes, with the header of a model file."""
    engine = Engine(read_header(model), by_mixture, "by hand")
    opened = open_scenes([str(scenes)] if not isinstance(scenes, list) else scenes, engine.header.inputs.labels)
    predict_map(engine, opened, folder / name, overlap=8, overwrite=True)
    return read_raster(folder / name)


def agreement(a, b):
    return (a == b).mean()


# --- values of another convention ----------------------------------------------------------------------------


def test_numbers_shifted_by_1000_with_tags_give_the_same_map(model, tmp_path, caplog):
    plain = make_map(model, write_scene(tmp_path / "plain.tif", pixels()), tmp_path)
    shifted = write_scene(tmp_path / "shifted.tif", pixels() + 1000, scales=1e-4, offsets=-0.1)
    with caplog.at_level(logging.INFO):
        found = make_map(model, shifted, tmp_path)
    assert agreement(found, plain) == 1
    said = [record.message for record in caplog.records if "shifted.tif" in record.message]
    assert said == [
        f"{shifted}: reflectance = 0.0001 x stored - 0.1 (file tags), read as the model's reflectance = 0.0001 x "
        f"stored (default)"
    ]


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        ((pixels() / 1e4).astype("f4"), {}),
        (((pixels() / 1e4 + 0.2) / 2.75e-5).round().astype("u2"), {"scales": 2.75e-5, "offsets": -0.2}),
        ((pixels() / 50).round().astype("u1"), {"scales": 0.005}),
    ],
    ids=["float reflectance", "Landsat's factors", "bytes"],
)
def test_the_same_ground_in_other_numbers_gives_the_same_map(model, older, tmp_path, values, tags):
    scene = write_scene(tmp_path / "other.tif", values, **tags)
    plain = write_scene(tmp_path / "plain.tif", pixels())
    for one in (model, older):
        least = 0.8 if values.dtype == np.uint8 else 0.99  # bytes hold a fiftieth of the steps
        assert agreement(make_map(one, scene, tmp_path), make_map(one, plain, tmp_path, "plain-map.tif")) > least


def test_plain_scenes_are_read_as_before_to_the_bit(model, older, tmp_path):
    scene = open_scene([str(write_scene(tmp_path / "plain.tif", pixels()))])
    shown = scene.read_hwc(EVERYTHING)
    assert isinstance(shown, Observation)
    assert (shown.conversion, shown[0].dtype) == (None, np.uint16)
    np.testing.assert_array_equal(shown[0], pixels().transpose(1, 2, 0))
    for one in (model, older):
        inputs = read_header(one).inputs
        line = pixels().astype("f4") * (1 / STD.T)[..., None].astype("f4") + (-MEAN / STD).T[..., None].astype(
            "f4"
        )
        np.testing.assert_array_equal(inputs.encode({"scene": shown}), line.clip(-10, 10))
    assert (
        agreement(
            make_map(model, tmp_path / "plain.tif", tmp_path),
            make_map(older, tmp_path / "plain.tif", tmp_path, "o.tif"),
        )
        == 1
    )


def test_a_model_that_says_nothing_takes_stored_values_that_fit_it(tmp_path, caplog):
    """Trained on shifted numbers whose files had lost their tags, used on a scene that has them."""
    for name, conventions in (("older", None), ("assumed", (DEFAULT,) * 4)):
        trained = save(tmp_path, mean=MEAN + 1000, conventions=conventions, name=f"{name}.safetensors")
        lost = make_map(trained, write_scene(tmp_path / "lost.tif", pixels() + 1000), tmp_path)
        tagged = write_scene(tmp_path / "tagged.tif", pixels() + 1000, scales=1e-4, offsets=-0.1)
        caplog.clear()
        assert agreement(make_map(trained, tagged, tmp_path), lost) == 1
        assert "these fit its own as they are stored: they are not converted" in caplog.text
    told = save(tmp_path, mean=MEAN + 1000, conventions=(dataclasses.replace(DEFAULT, origin="project"),) * 4)
    caplog.clear()
    assert agreement(make_map(told, tagged, tmp_path), lost) < 0.5
    assert "not converted" not in caplog.text


def test_the_command_line_overrules_what_files_say(model, tmp_path):
    plain = write_scene(tmp_path / "plain.tif", pixels())
    wrong = write_scene(tmp_path / "wrong.tif", pixels() + 1000, scales=0.5)

    def probabilities(scene, *options):
        paths = tmp_path / "m.tif", tmp_path / "p.tif"
        fixed = ("--device", "cpu", "--engine", "torch", "--precision", "fp32", "--overwrite")
        call = ["predict", model, scene, "-o", paths[0], "--probabilities", paths[1], *fixed, *options]
        done = CliRunner().invoke(app, list(map(str, call)))
        return read_raster(paths[1]) if done.exit_code == 0 else done

    expected = probabilities(plain)
    told = probabilities(wrong, "--scale", "0.0001", "--offset", "scene=-0.1")
    assert np.abs(told.astype(int) - expected).max() <= 1
    assert np.abs(probabilities(wrong).astype(int) - expected).max() > 5
    refused = probabilities(wrong, "--scale", "B99=1")
    assert (refused.exit_code, "scale or offset of a band 'B99', but the bands are B02" in refused.output) == (
        2,
        True,
    )


def test_scale_and_offset_are_told_for_all_by_season_or_by_band(tmp_path):
    assert parse_told(None, "--scale") is None
    assert parse_told("0.0001", "--scale") == 1e-4
    assert parse_told("april=1, august=0.0001", "--scale") == {"april": 1.0, "august": 1e-4}
    with pytest.raises(
        SettingsError, match=r"--offset takes a number, or NAME=NUMBER by season or band.*found 'x'"
    ):
        parse_told("x", "--offset")
    scene = open_scene([str(write_scene(tmp_path / "s.tif", pixels()))])
    scenes = {"april": scene, "august": scene}
    told = tell_values(scenes, {"august": 1e-4}, {"august": -0.1}, "project")
    assert told["april"].conventions == scene.conventions
    assert set(told["august"].conventions) == {RadiometricConvention(1e-4, -0.1, "reflectance")}
    with pytest.raises(SettingsError, match="names the season 'may', but the seasons are april, august"):
        tell_values(scenes, {"august": 1.0, "may": 1.0}, None, "project")


def test_decibels_are_not_read_as_reflectance(tmp_path):
    path = write_scene(tmp_path / "db.tif", pixels(), scales=0.01)
    with rasterio.open(path, "r+") as file:
        file.units = ["dB"] * 4
    trained = save(tmp_path, conventions=(RadiometricConvention(1e-4, 0, "reflectance", "file tags"),) * 4)
    with pytest.raises(
        BandMismatchError, match=r"band B02: the scene holds decibel = 0\.01 x stored \(file tags\), needed"
    ):
        make_map(trained, path, tmp_path)


def test_other_quantities_than_reflectance_are_never_guessed_at(tmp_path):
    heights = np.linspace(0, 1.5, 4 * SIDE * SIDE, dtype="f4").reshape(4, SIDE, SIDE)
    scene = open_scene([str(write_scene(tmp_path / "dem.tif", heights, names=("dem", "slope", "x", "y")))])
    assert set(scene.conventions) == {RadiometricConvention()}
    assert scene.in_conventions((DEFAULT,) * 4).conversion is None


def test_a_header_holds_conventions_wavelengths_and_physical_statistics(tmp_path):
    told = (RadiometricConvention(1e-4, -0.1, "reflectance", "product metadata"),) * 4
    path = save(tmp_path, mean=MEAN + 1000, conventions=told, wavelengths=(492.7, 559.8, 664.6, None))
    header = read_header(path)
    assert header.inputs.conventions == told
    assert header.inputs.labels == tuple(
        BandLabel(name, nm) for name, nm in zip(BANDS, (492.7, 559.8, 664.6, None), strict=True)
    )
    physical = json.loads(header.to_json())["inputs"]["physical"]
    np.testing.assert_allclose(physical["mean"], MEAN / 1e4)
    np.testing.assert_allclose(physical["std"], STD / 1e4)
    with pytest.raises(ValueError, match="3 conventions or wavelengths for 4 bands"):
        Inputs.from_dict(header.inputs.to_dict() | {"wavelengths": [1, 2, 3]})


# --- bands by other names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("nir", "red", "green", "blue"),
        ("b8", "b4", "b3", "b2"),
        ("B8, central wavelength 842 nm", "B4, central wavelength 665 nm", "B3, central wavelength 560 nm",
         "B2, central wavelength 490 nm"),
    ],
)  # fmt: skip
def test_bands_named_otherwise_are_found_wherever_they_are(model, older, tmp_path, names):
    plain = write_scene(tmp_path / "plain.tif", pixels())
    turned = write_scene(tmp_path / "turned.tif", pixels()[::-1], names=names)
    for one in (model, older):
        assert agreement(make_map(one, turned, tmp_path), make_map(one, plain, tmp_path, "plain-map.tif")) == 1


def test_a_folder_of_colours_is_not_read_in_the_order_of_its_names(model, tmp_path):
    plain = make_map(model, write_scene(tmp_path / "plain.tif", pixels()), tmp_path)
    (tmp_path / "folder").mkdir()
    for name, band in zip(("blue", "green", "red", "nir"), pixels(), strict=True):
        write_scene(tmp_path / "folder" / f"{name}.tif", band[None], names=None)
    assert agreement(make_map(model, tmp_path / "folder", tmp_path), plain) == 1


def test_unnamed_bands_are_still_taken_by_position_and_strange_names_with_a_word(model, tmp_path, caplog):
    plain = make_map(model, write_scene(tmp_path / "plain.tif", pixels()), tmp_path)
    unnamed = write_scene(tmp_path / "unnamed.tif", pixels(), names=None)
    assert agreement(make_map(model, unnamed, tmp_path), plain) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    strange = write_scene(tmp_path / "strange.tif", pixels(), names=("p", "q", "r", "s"))
    assert agreement(make_map(model, strange, tmp_path), plain) == 1
    assert "the bands p, q, r, s are taken for B02, B03, B04, B08 by their position" in caplog.text


def test_known_bands_that_are_not_the_models_are_refused(model, tmp_path):
    scene = write_scene(tmp_path / "s.tif", pixels(), names=("swir16", "swir22", "rededge1", "coastal"))
    with pytest.raises(
        BandMismatchError, match=r"has the bands swir16, .*wanted are B02, B03, B04, B08: none of them"
    ):
        make_map(model, scene, tmp_path)
    some = write_scene(tmp_path / "some.tif", pixels(), names=("B02", "B03", "B04", "B11"))
    with pytest.raises(BandMismatchError, match=r"some\.tif: no band 'B08'"):
        make_map(model, some, tmp_path)


def test_red_edge_of_a_model_is_not_found_in_landsats_near_infrared(tmp_path):
    wanted = ["B03", "B04", "B05"]
    trained = save(
        tmp_path, wanted, MEAN[:, :3], STD[:, :3], conventions=(DEFAULT,) * 3, wavelengths=(559.8, 664.6, 704.1)
    )
    product = write_hls(tmp_path, name="HLS.L30.T31TDG.2018103T104531.v2.0")
    with pytest.raises(BandMismatchError, match="no band 'B05'"):
        make_map(trained, product, tmp_path)
    assert open_scene([str(write_hls(tmp_path))], read_header(trained).inputs.labels).band_names == tuple(wanted)
    with pytest.raises(BandMismatchError, match="'B05' means other light in Sentinel-2 than in Landsat"):
        open_scene([str(product)], wanted)


# --- products ------------------------------------------------------------------------------------------------


@needs("safe-metadata")
def test_a_safe_folder_and_its_zip_are_scenes(model, tmp_path):
    product = write_safe(tmp_path)
    scene = open_scene([str(product)])
    assert scene.band_names == ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
    assert scene.inputs == (str(product),)
    for path in (product, zipped(product)):
        chosen = open_scene(scene_files(str(path)), ["B04", "B8A"])
        assert chosen.shape == (48, 48)
        values, valid = chosen.read_chw(Window(0, 0, 48, 48))
        np.testing.assert_array_equal(values[0], band_pixels(7, 48))
        assert valid.all()
        converted = chosen.in_conventions((DEFAULT,) * 2).read_chw(Window(0, 0, 48, 48))
        np.testing.assert_array_equal(converted.converted(0)[0], band_pixels(7, 48) - 1000.0)
    maps = [make_map(model, path, tmp_path) for path in (product, product.with_suffix(".zip"))]
    np.testing.assert_array_equal(*maps)


@needs("safe-metadata")
def test_files_of_a_safe_keep_the_products_offset(tmp_path):
    product = write_safe(tmp_path)
    listed = open_scene(scene_files(str(product / "GRANULE/*/IMG_DATA/R10m/*_B0*_10m.jp2")))
    assert listed.band_names == ("B02", "B03", "B04", "B08")
    assert set(listed.conventions) == {RadiometricConvention(1e-4, -0.1, "reflectance")}
    (images,) = product.glob("GRANULE/*/IMG_DATA/R20m")
    folder = open_scene(scene_files(str(images)))
    assert folder.shape == (24, 24)
    assert "B8A" in folder.band_names
    assert set(folder.conventions) == set(listed.conventions)


def test_landsat_hls_and_theia_products_are_scenes_with_their_fill(tmp_path):
    landsat = open_scene([str(write_landsat(tmp_path))], ["nir", "red"])
    assert landsat.conventions == (
        RadiometricConvention(2.75e-5, -0.3, "reflectance"),
        RadiometricConvention(2.75e-5, -0.2, "reflectance"),
    )
    assert landsat.read_chw(Window(5, 0, 1, 1))[0].ravel().tolist() == [1500, 1400]
    hls = open_scene([str(write_hls(tmp_path))], ["B04", "B8A"])
    assert hls.read_chw(Window(0, 0, 48, 48))[1].sum() == 48 * 47
    maja = open_scene([str(write_maja(tmp_path))], ["B04", "B08"])
    assert maja.read_chw(Window(0, 0, 48, 48))[1].sum() == 47 * 48
    coarse = open_scene([str(tmp_path / maja.source)], ["B04", "B8A"]).read_chw(Window(0, 0, 48, 48))[1]
    assert not coarse[0].any()


def test_quality_layers_are_masks_and_never_bands(tmp_path):
    scene = open_scene([str(write_maja(tmp_path))])
    assert scene.band_names == ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    cover = quality_mask(scene).read(Window(0, 0, 48, 48))
    assert cover[0, :5].tolist() == [1, 1, 1, 0, 2]
    for name, dtype, value in (("B04", "u2", 900), ("SCL", "u1", 9), ("AOT", "u2", 100), ("TCI", "u1", 3)):
        write(tmp_path / "R20m" / f"T31TDG_20180412T105031_{name}_20m.tif", np.full((8, 8), value, dtype), 20.0)
    write(tmp_path / "R20m" / "T31TDG_20180412T105031_B03_20m.tif", np.full((8, 8), 700, "u2"), 20.0)
    folder = open_scene(scene_files(str(tmp_path / "R20m")))
    assert folder.band_names == ("B03", "B04")
    assert quality_mask(folder).read(Window(0, 0, 8, 8)).tolist() == [[1] * 8] * 8
    assert open_scene(scene_files(str(tmp_path / "R20m")), ["B03", "AOT"]).band_names == ("B03", "AOT")
    exported = write_scene(tmp_path / "export.tif", pixels(), names=("B04", "B08", "SCL", "QA60"))
    assert open_scene([str(exported)]).band_names == ("B04", "B08")
    assert quality_mask(open_scene([str(exported)])) is None


@pytest.mark.parametrize("as_list", [False, True])
def test_a_netcdf_of_a_variable_per_band_is_read(model, tmp_path, as_list):
    plain = write_scene(tmp_path / "plain.tif", pixels(), names=None)
    rasterio.shutil.copy(plain, tmp_path / "s.nc", driver="netCDF")
    with rasterio.open(tmp_path / "s.nc") as file:
        variables = file.subdatasets
    found = make_map(model, [",".join(variables) if as_list else str(tmp_path / "s.nc")], tmp_path)
    assert agreement(found, make_map(model, plain, tmp_path, "plain-map.tif")) == 1


def test_a_variable_of_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputFileError, match=r"no scene at .*gone\.nc"):
        scene_files("netcdf:gone.nc:B02", tmp_path)


def test_an_archive_of_no_product_is_told(tmp_path):
    folder = tmp_path / "bands"
    folder.mkdir()
    write_scene(folder / "red.tif", pixels()[:1], names=None)
    with pytest.raises(InputFileError, match=r"bands\.zip holds no product that is known here\. Unpack it"):
        open_scene([str(zipped(folder))])


def test_a_file_name_with_a_comma_is_one_file(tmp_path):
    path = write_scene(tmp_path / "april, may.tif", pixels())
    assert scene_files("april, may.tif", tmp_path) == [str(path)]


# --- mosaics -------------------------------------------------------------------------------------------------


def granule(folder, name, at, values, *, crs="EPSG:32631", baseline="02.12", offset=None):
    """A SAFE of two bands of 10 m at a place, of one value each."""
    made = folder / f"{name}.SAFE"
    images = made / "GRANULE" / f"L2A_{name}" / "IMG_DATA" / "R10m"
    for band, value in zip(("B03", "B04"), values, strict=True):
        data = np.full((20, 30), value, "u2")
        data[:2] = 0
        write(images / f"{name}_20180412T105031_{band}_10m.jp2", data, 10.0, crs, at)
    shift = (
        "".join(f'<BOA_ADD_OFFSET band_id="{i}">{offset}</BOA_ADD_OFFSET>' for i in range(13)) if offset else ""
    )
    (made / "MTD_MSIL2A.xml").write_text(
        f"<a><PROCESSING_LEVEL>Level-2A</PROCESSING_LEVEL><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>"
        f"<BOA_QUANTIFICATION_VALUE>10000</BOA_QUANTIFICATION_VALUE>{shift}</a>"
    )
    return str(made)


def test_granules_in_one_crs_are_a_mosaic_and_the_first_one_wins(tmp_path):
    west = granule(tmp_path, "T31TDG", (400_000, 4_600_000), (500, 600))
    east = granule(tmp_path, "T31TEG", (400_200, 4_600_050), (700, 800))
    scene = open_scene([west, east])
    assert scene.grid.affine * (0, 0) == (400_000, 4_600_050)
    assert scene.shape == (25, 50)
    assert scene.inputs == (west, east)
    values, valid = scene.read_chw(Window(0, 0, 25, 50))
    expected = np.zeros((25, 50), "u2")
    expected[2:20, 20:] = 700
    expected[7:25, :30] = 500
    np.testing.assert_array_equal(values[0], expected)
    np.testing.assert_array_equal(valid, expected > 0)
    part = scene.read_hwc(Window(5, 15, 8, 20))
    np.testing.assert_array_equal(part[0][..., 0], expected[5:13, 15:35])
    other = open_scene([east, west]).read_chw(Window(0, 0, 25, 50))[0][0]
    assert (other[10, 25], values[0][10, 25]) == (700, 500)


def test_granules_of_two_baselines_are_one_scene_of_true_values(tmp_path):
    old = granule(tmp_path, "T31TDG", (400_000, 4_600_000), (500, 600))
    new = granule(tmp_path, "T31TEG", (400_300, 4_600_000), (1500, 1600), baseline="05.10", offset=-1000)
    mosaic = open_scene([old, new]).in_conventions((DEFAULT,) * 2)
    shown = mosaic.read_hwc(Window(0, 0, 20, 60))
    assert (shown[0].dtype, mosaic.dtype, shown.conversion) == (np.float32, "float32", None)
    assert np.unique(shown[0][shown[1]], axis=0).tolist() == [[500, 600]]
    with pytest.raises(InputFileError, match=r"holds 2 products .*Name one, or list them"):
        open_scene([str(tmp_path)])


def test_granules_of_two_zones_are_refused_with_the_command_that_mends_it(tmp_path):
    one = granule(tmp_path, "T31TDG", (400_000, 4_600_000), (500, 600))
    other = granule(tmp_path, "T30TYM", (400_300, 4_600_000), (500, 600), crs="EPSG:32630")
    with pytest.raises(
        GridMismatchError,
        match=r"T30TYM\.SAFE is in EPSG:32630, but .*need one CRS.*gdalwarp -t_srs EPSG:32631 -tr 10 10 -tap",
    ):
        open_scene([one, other])
    apart = granule(tmp_path, "T31TEG", (400_303, 4_600_000), (500, 600))
    with pytest.raises(GridMismatchError, match="need the same lattice of pixels"):
        open_scene([one, apart])


# --- projects ------------------------------------------------------------------------------------------------


def test_a_project_of_mixed_conventions_has_one_statistics(tmp_path):
    write_ground(tmp_path)
    values = shift_august(tmp_path)
    project = load_project(write_project(tmp_path))
    april, august = project.areas[0].scenes.values()
    assert april.conversion is None
    assert august.conversion.bias == (-1000.0,) * 6
    shown = august.read_hwc(Window(0, 0, 96, 96))
    np.testing.assert_array_equal(shown.converted(2), values.transpose(1, 2, 0).astype("f4"))


def test_the_projects_scale_is_taken_before_the_files(tmp_path):
    write_ground(tmp_path)
    project = load_project(write_project(tmp_path, area="scale = 0.0001\noffset = { august = -0.1 }"))
    april, august = project.areas[0].scenes.values()
    assert set(april.conventions) == {DEFAULT}
    assert {one.origin for one in april.conventions} == {"project"}
    assert august.conversion.bias == (-1000.0,) * 6


def test_clouds_are_estimated_from_reflectance_whatever_the_numbers(tmp_path):
    bands = ("B02", "B03", "B04", "B08", "B11", "B12")
    cloud = np.full((1, 1, 6), [4000, 4000, 3900, 4500, 4200, 3000], "f8")
    for scale, offset in ((1e-4, 0.0), (1e-4, -0.1), (2.75e-5, -0.2), (1.0, 0.0)):
        told = (RadiometricConvention(scale, offset, "reflectance", "file tags"),) * 6
        stored = ((cloud / 1e4 - offset) / scale).astype("f4")
        assert SpectralTests.for_bands(bands, TileSettings(), told).classify(stored).item() == 1
    decibel = (RadiometricConvention(0.01, 0.0, "decibel", "file tags"),) * 6
    assert SpectralTests.for_bands(bands, TileSettings(), decibel) is None


def test_a_scale_that_no_ground_can_have_is_told():
    rng = np.random.default_rng(0)
    ground = rng.uniform(0.02, 0.5, (500, 5))
    assert impossible_scale(ground) is None
    assert impossible_scale(np.concatenate([ground, rng.uniform(0.3, 1.2, (300, 5))])) is None  # clouds
    assert impossible_scale((ground + 0.2) / 0.275).startswith("0.8")
    assert impossible_scale(ground / 1e4)
    assert impossible_scale(ground[:3] * 100) is None  # too few to tell


def run_stages(folder, *stages):
    for stage in stages:
        done = CliRunner().invoke(app, ["run", str(folder / "project.toml"), "--only", stage])
        assert done.exit_code == 0, done.output
    return folder / "runs" / "small"


def shift_august(folder):
    """August as after baseline 04.00: the same ground in numbers 1,000 higher, with the tags that say so."""
    with rasterio.open(folder / "august.tif") as file:
        values, profile, names = file.read(), file.profile, file.descriptions
    with rasterio.open(folder / "august.tif", "w", **profile) as file:
        file.write(np.where(values > 0, values + 1000, 0).astype("u2"))
        file.scales, file.offsets, file.descriptions = [1e-4] * 6, [-0.1] * 6, names
    return values


def test_statistics_and_tiles_of_mixed_conventions_are_those_of_one(tmp_path):
    found = []
    for name in ("plain", "mixed"):
        folder = tmp_path / name
        folder.mkdir()
        write_ground(folder)
        if name == "mixed":
            shift_august(folder)
        write_project(folder, tiles='clouds = "drop"\nsnow = "drop"')
        run = run_stages(folder, "labels", "tiles")
        found.append(json.loads((run / "statistics.json").read_text()))
    plain, mixed = found
    for key in ("mean", "std", "percentiles"):
        for season in ("april", "august"):
            before, after = plain[key][season], mixed[key][season]
            pairs = [(before, after)] if key != "percentiles" else [(before[p], after[p]) for p in before]
            for a, b in pairs:
                np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-3)
    assert mixed["class_counts"] == plain["class_counts"]


def test_clouds_of_a_scenes_own_mask_drop_tiles(tmp_path):
    write_ground(tmp_path)
    (tmp_path / "april").mkdir()
    with rasterio.open(tmp_path / "april.tif") as file:
        for band, name in zip(file.read(), file.descriptions, strict=True):
            write_raster(tmp_path / "april" / f"T31TDG_20180412T105031_{name}_10m.tif", band, grid_at(96, 96))
    classes = np.full((48, 48), 4, "u1")
    classes[8:16, 16:24] = 9  # the tile at (16, 32), in pixels of 20 m
    write_raster(tmp_path / "april" / "T31TDG_20180412T105031_SCL_20m.tif", classes, grid_at(48, 48, 20.0))
    path = write_project(tmp_path, tiles='clouds = "drop"')
    path.write_text(path.read_text().replace('april = "april.tif"', 'april = "april"'))
    run = run_stages(tmp_path, "labels", "tiles")
    index = load_index(run / "tiles.parquet")
    cloudy = index[index["reason"] == "cloudy"][["row", "col"]].to_numpy().tolist()
    assert cloudy == [[16, 32]]


def test_a_project_that_only_predicts_takes_the_models_bands_of_a_product(model, tmp_path):
    granule(tmp_path, "T31TDG", (400_000, 4_600_000), (500, 600))
    trained = save(tmp_path, ("B04",), MEAN[:, :1], STD[:, :1], name="one.safetensors")
    project = tmp_path / "project.toml"
    project.write_text(
        f'name = "p"\n[[area]]\nname = "a"\nscenes = "T31TDG.SAFE"\n[predict]\nmodel = "{trained.name}"\n'
    )
    assert load_project(project).bands == ("B04",)


def test_exported_tiles_say_what_their_values_mean(tmp_path):
    write_ground(tmp_path)
    shift_august(tmp_path)
    write_project(tmp_path)
    run = run_stages(tmp_path, "labels", "tiles")
    done = CliRunner().invoke(app, ["export-tiles", str(run), str(tmp_path / "tiles")])
    assert done.exit_code == 0, done.output
    with rasterio.open(next((tmp_path / "tiles").rglob("images/*.tif"))) as file:
        assert file.scales == (1e-4,) * 12
        assert file.offsets == (0.0,) * 6 + (-0.1,) * 6
