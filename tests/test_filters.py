"""Which tiles are kept: clouds and snow from masks and bands, every rule with its reason, and no reading twice."""

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.vrt import WarpedVRT

from cobertes.errors import GridMismatchError, InputFileError, NoTilesError
from cobertes.geo.area import Area
from cobertes.geo.scene import Scene, open_scene
from cobertes.geo.windows import Window
from cobertes.labels.legend import Legend, LegendClass
from cobertes.settings import SplitSettings, TileSettings
from cobertes.synthetic.demo import BANDS as DEMO_BANDS
from cobertes.synthetic.demo import REFLECTANCE
from cobertes.tiles import tile_measurements
from cobertes.tiles.clouds import CLEAR, CLOUD, SNOW, SpectralTests, classify_codes
from cobertes.tiles.index import build_index
from helpers.rasters import DATA, grid_at, needs, write_raster

LEGEND = Legend("test", 0, tuple(LegendClass(c, f"c{c}", f"Class {c}", "#00ff00") for c in (10, 20, 30)))
SHAPE = (120, 120)
BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
GROUND, BRIGHT, ICE = (
    (400, 700, 500, 3500, 1800, 900),
    (5400, 5400, 5500, 5800, 4500, 3500),
    (8400, 8500, 8400, 7600, 1000, 800),
)
"""Crops, cloud, snow: reflectance x 10,000."""


def scene_of(folder, name="scene", cloud=None, snow=None, shape=SHAPE, **profile):
    values = np.empty((len(BANDS), *shape), np.uint16)
    values[:] = np.array(GROUND)[:, None, None]
    for where, spectrum in ((cloud, BRIGHT), (snow, ICE)):
        if where is not None:
            values[:, *where] = np.array(spectrum)[:, None, None]
    return write_raster(folder / f"{name}.tif", values, grid_at(*shape), names=BANDS, **profile)


def index_of(folder, scenes, *, codes=None, masks=None, split=None, cache=None, fingerprint="", **tiles):
    if codes is None:
        codes = np.random.default_rng(0).choice([10, 20, 30], SHAPE)
    labels = write_raster(folder / "labels.tif", codes.astype(np.uint8), grid_at(*codes.shape), nodata=0)
    area = Area("one", {season: open_scene([str(path)]) for season, path in scenes.items()}, masks=masks or {})
    return build_index(
        [area], {"one": labels}, LEGEND, tiles=TileSettings(**{"size": 20} | tiles), cache=cache, fingerprint=fingerprint,
        split=SplitSettings(**{"guard": 0, "block": 20} | (split or {})),
    )  # fmt: skip


def reasons_of(index):
    frame = index.table
    return {(r, c): reason for r, c, reason in zip(frame["row"], frame["col"], frame["reason"], strict=True)}


# --- clouds and snow -------------------------------------------------------------------------------------------


def test_the_demo_s_spectra_are_told_apart():
    tests = SpectralTests.for_bands(DEMO_BANDS, TileSettings())
    for name, reflectance in REFLECTANCE.items():
        classes = tests.classify((reflectance[None, None] * 10_000).astype(np.uint16))[0, 0]
        expected = {"cloud": CLOUD, "snow": SNOW}.get(name, CLEAR)
        assert classes == expected or name == "metal", name  # a bright roof has a cloud's spectrum


def test_reflectance_has_a_scale_and_an_offset():
    pixels = np.array([[BRIGHT, ICE, GROUND]], np.int32)
    for scale, offset in ((10_000, 0), (10_000, -1000), (255, 0)):
        tests = SpectralTests.for_bands(BANDS, TileSettings(reflectance_scale=scale, reflectance_offset=offset))
        shown = (pixels / 10_000 * scale - offset).round().astype(np.int32)
        assert tests.classify(shown).tolist() == [[CLOUD, SNOW, CLEAR]]


def test_bands_without_names_tell_nothing(tmp_path):
    assert SpectralTests.for_bands(("band1", "band2"), TileSettings()) is None
    assert SpectralTests.for_bands(BANDS[:-2], TileSettings()) is None
    assert SpectralTests.for_bands(BANDS[:-1], TileSettings()) is not None  # swir2 only sharpens
    path = write_raster(tmp_path / "plain.tif", np.full((2, *SHAPE), 5, np.uint16), grid_at(*SHAPE))
    index = index_of(tmp_path, {"scene": path}).table
    assert index[["cloud_scene", "snow_scene"]].isna().all().all()
    assert (index["valid_scene"] == 1).all()


def test_shares_are_of_the_observed_pixels_of_each_season(tmp_path):
    april = scene_of(tmp_path, "april", cloud=(slice(0, 5), slice(0, 20)), snow=(slice(20, 40), slice(0, 10)))
    with open_values(april) as values:
        values[:, 10:20, :20] = 0
    august = scene_of(tmp_path, "august")
    index = index_of(tmp_path, {"april": april, "august": august}).table
    assert index["cloud_april"][0] == pytest.approx(0.5)  # 5 rows of the 10 that were observed
    assert index["valid_april"][0] == pytest.approx(0.5)
    assert index["snow_april"][6] == pytest.approx(0.5)
    assert index["cloud_april"].sum() == pytest.approx(0.5)
    assert (index[["cloud_august", "snow_august"]] == 0).all().all()


class open_values:  # noqa: N801  (reads as a verb)
    """The pixels of a raster, written back at the end."""

    def __init__(self, path):
        self.file = rasterio.open(path, "r+")

    def __enter__(self):
        self.values = self.file.read()
        return self.values

    def __exit__(self, *error):
        self.file.write(self.values)
        self.file.close()


def test_a_mask_goes_before_the_bands_and_may_have_another_grid_and_crs(tmp_path):
    scene = scene_of(tmp_path, cloud=(slice(0, 20), slice(0, 20)))
    codes = np.full((60, 60), 4, np.uint8)  # Sentinel-2's SCL at 20 m: 4 is vegetation
    codes[10:20, :10], codes[:10, 10:20] = 9, 11
    mask = write_raster(tmp_path / "scl.tif", codes, grid_at(60, 60, 20))
    index = index_of(tmp_path, {"scene": scene}, masks={"scene": mask}).table
    assert index["cloud_scene"].tolist() == [float(i == 6) for i in range(36)]
    assert index["snow_scene"].tolist() == [float(i == 1) for i in range(36)]
    degrees = tmp_path / "degrees.tif"
    with rasterio.open(mask) as source, WarpedVRT(source, crs="EPSG:4326") as warped:
        rasterio.shutil.copy(warped, degrees, driver="GTiff")
    again = index_of(tmp_path, {"scene": scene}, masks={"scene": degrees}).table
    np.testing.assert_allclose(again["cloud_scene"], index["cloud_scene"], atol=0.2)


def test_codes_can_be_those_of_any_mask():
    codes = np.arange(16, dtype=np.uint8).reshape(4, 4)
    classes = classify_codes(codes, TileSettings())
    assert np.flatnonzero(classes == CLOUD).tolist() == [3, 8, 9, 10]
    assert np.flatnonzero(classes == SNOW).tolist() == [11]
    own = classify_codes(codes, TileSettings(cloud_codes=[1], snow_codes=[]))
    assert np.flatnonzero(own).tolist() == [1]


def test_masks_that_can_not_be_used_are_told(tmp_path):
    scene = scene_of(tmp_path)
    wide = write_raster(tmp_path / "wide.tif", np.ones(SHAPE, np.uint16), grid_at(*SHAPE))
    with pytest.raises(
        InputFileError, match=r"wide\.tif holds uint16, but a mask of cloud and snow codes holds uint8"
    ):
        index_of(tmp_path, {"scene": scene}, masks={"scene": wide})
    bare = write_raster(tmp_path / "bare.tif", np.ones(SHAPE, np.uint8))
    with pytest.raises(GridMismatchError, match=r"can't be placed on its scene: .*bare\.tif has no CRS"):
        index_of(tmp_path, {"scene": scene}, masks={"scene": bare})


@needs("granule-laos")
def test_a_clear_granule_has_hardly_a_cloud():
    bands = ["B02", "B03", "B04", "B08", "B11", "B12"]
    scene = open_scene([str(DATA / "granule-laos" / f"{band}.tif") for band in bands], bands)
    pixels, _ = scene.read_hwc(Window(0, 0, 1068, 1068))
    classes = SpectralTests.for_bands(scene.band_names, TileSettings()).classify(pixels)
    assert (classes == CLOUD).mean() < 0.001
    assert (classes == SNOW).mean() < 0.005  # blue roofs


# --- rules -----------------------------------------------------------------------------------------------------


def test_clouds_and_snow_are_kept_unless_they_are_to_be_dropped(tmp_path):
    scene = scene_of(tmp_path, cloud=(slice(0, 20), slice(0, 10)), snow=(slice(0, 5), slice(40, 60)))
    assert set(reasons_of(index_of(tmp_path, {"scene": scene})).values()) == {""}
    dropped = reasons_of(index_of(tmp_path, {"scene": scene}, clouds="drop", snow="drop"))
    assert {place: reason for place, reason in dropped.items() if reason} == {(0, 0): "cloudy", (0, 40): "snowy"}
    some = reasons_of(index_of(tmp_path, {"scene": scene}, clouds="drop", snow="drop", max_snow=0.3))
    assert {place: reason for place, reason in some.items() if reason} == {(0, 0): "cloudy"}


def test_one_cloudy_season_is_enough(tmp_path):
    scenes = {
        "april": scene_of(tmp_path, "april"),
        "august": scene_of(tmp_path, "august", cloud=(slice(20, 40), slice(0, 20))),
    }
    dropped = reasons_of(index_of(tmp_path, scenes, clouds="drop"))
    assert {place: reason for place, reason in dropped.items() if reason} == {(20, 0): "cloudy"}


def test_single_classes_and_little_observation_can_be_left_out(tmp_path):
    codes = np.random.default_rng(0).choice([10, 20, 30], SHAPE)
    codes[:20, :40] = 20
    codes[5, 25] = 0  # no label is no class
    april = scene_of(tmp_path, "april")
    with open_values(april) as values:
        values[:, 40:60, :9] = 0
    scenes = {"april": april, "august": scene_of(tmp_path, "august")}
    assert set(reasons_of(index_of(tmp_path, scenes, codes=codes)).values()) == {""}
    found = reasons_of(index_of(tmp_path, scenes, codes=codes, drop_single_class=True, min_valid=0.6))
    assert {place: reason for place, reason in found.items() if reason} == {
        (0, 0): "single class", (0, 20): "single class", (40, 0): "few valid pixels",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        ({"clouds": "drop"}, r"left out: cloudy 36\)\. tiles\.max-cloud asks for less: raise it, or set tiles\.clouds = \"keep\""),
        ({"min_valid": 1.0}, r"left out: few valid pixels 36\)\. tiles\.min-valid = 1 asks for more"),
    ],
)  # fmt: skip
def test_a_rule_that_leaves_nothing_says_what_to_do(tmp_path, tiles, message):
    scene = scene_of(tmp_path, cloud=(slice(0, 120), slice(0, 120)))
    with open_values(scene) as values:
        values[:, ::10, ::10] = 0
    with pytest.raises(NoTilesError, match=message):
        index_of(tmp_path, {"scene": scene}, **tiles)


# --- reading ---------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    """The windows of scenes that are read."""
    found, original = [], Scene.read_hwc

    def noted(self, window):
        found.append(window)
        return original(self, window)

    monkeypatch.setattr(Scene, "read_hwc", noted)
    return found


def test_ground_without_wanted_labels_is_never_read(tmp_path, reads):
    codes = np.random.default_rng(0).choice([10, 20, 30], SHAPE)
    codes[:60], codes[60:80] = 0, 30  # nothing, and open sea
    index = index_of(tmp_path, {"scene": scene_of(tmp_path)}, codes=codes, drop_only=[30]).table
    assert {window.row for window in reads} == {80, 100}
    assert len(reads) == index["keep"].sum() == 12
    assert index["valid_scene"].isna().sum() == 24


def test_rules_and_split_change_without_reading_again(tmp_path, reads):
    scene = scene_of(tmp_path, cloud=(slice(0, 20), slice(0, 20)))
    codes = np.random.default_rng(0).choice([10, 20], SHAPE)
    codes[100:] = 30
    how = {"codes": codes, "cache": tmp_path / "kept.npz", "fingerprint": "a"}
    first = index_of(tmp_path, {"scene": scene}, **how, drop_only=[30])
    assert len(reads) == 30
    other = index_of(
        tmp_path,
        {"scene": scene},
        **how,
        drop_only=[30],
        clouds="drop",
        split={"seed": 3, "guard": 5, "block": 40},
    )
    assert len(reads) == 30
    assert (other.table["reason"] == "cloudy").sum() == 1
    all_of_it = index_of(tmp_path, {"scene": scene}, **how)
    assert len(reads) == 36  # the six that were not wanted before
    assert all_of_it.table["keep"].all()
    again = index_of(tmp_path, {"scene": scene}, **how, drop_only=[30])
    assert again.table.drop(columns=["valid_scene", "cloud_scene", "snow_scene"]).equals(
        first.table.drop(columns=["valid_scene", "cloud_scene", "snow_scene"])
    )
    np.testing.assert_array_equal(again.statistics.mean, first.statistics.mean)
    np.testing.assert_array_equal(again.statistics.percentiles, first.statistics.percentiles)
    index_of(tmp_path, {"scene": scene}, **how | {"fingerprint": "b"})
    assert len(reads) == 72  # other scenes or labels


def test_what_was_read_before_an_interruption_is_kept(tmp_path, reads, monkeypatch):
    scene, cache = scene_of(tmp_path), tmp_path / "kept.npz"
    original = tile_measurements.TileReader.measure

    def failing(self, tile, number, out):
        if number == 20:
            raise KeyboardInterrupt
        original(self, tile, number, out)

    monkeypatch.setattr(tile_measurements.TileReader, "measure", failing)
    with pytest.raises(KeyboardInterrupt):
        index_of(tmp_path, {"scene": scene}, cache=cache)
    before = len(reads)
    monkeypatch.setattr(tile_measurements.TileReader, "measure", original)
    index = index_of(tmp_path, {"scene": scene}, cache=cache)
    assert before >= 19
    assert len(reads) == 36
    assert index.table["keep"].all()


def test_a_damaged_file_of_observations_is_read_anew(tmp_path, caplog):
    cache = tmp_path / "kept.npz"
    cache.write_bytes(b"PK no")
    index = index_of(tmp_path, {"scene": scene_of(tmp_path)}, cache=cache)
    assert index.table["keep"].all()
    assert "kept.npz can't be used" in caplog.text


def test_tiles_that_can_not_be_read_stop_the_index_or_are_left_out(tmp_path, caplog):
    path = scene_of(tmp_path, tiled=True, blockxsize=32, blockysize=32, compress="deflate")
    with rasterio.open(path) as file:
        begin = int(file.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[begin : begin + 40] = b"\xff" * 40  # one storage block is damaged
    path.write_bytes(data)
    with pytest.raises(InputFileError, match=r"can't read rows \d+ to \d+, columns \d+ to \d+ of .*scene\.tif"):
        index_of(tmp_path, {"scene": path})
    index = index_of(tmp_path, {"scene": path}, unreadable="skip").table
    assert (index["reason"] == "unreadable").sum() == 9  # of 20 px, over rows and columns 32 to 63
    assert "left out: can't read rows" in caplog.text


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_percentiles_are_near_those_of_all_training_pixels(tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("percentiles")
    values = np.random.default_rng(seed).gamma(3, 500, (2, *SHAPE)).astype(np.float32) + 1
    path = write_raster(folder / "scene.tif", values, grid_at(*SHAPE))
    index = index_of(folder, {"scene": path})
    training = np.zeros(SHAPE, bool)
    for row, col in index.table.loc[index.table["split"] == "train", ["row", "col"]].to_numpy():
        training[row : row + 20, col : col + 20] = True
    asked = np.array((1, 2, 25, 50, 75, 98, 99))
    for band, found in zip(values[:, training], index.statistics.percentiles[0], strict=True):
        ranks = [100 * (band < value).mean() for value in found]
        np.testing.assert_allclose(ranks, asked, atol=2)
