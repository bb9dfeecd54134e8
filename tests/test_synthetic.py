"""The generated mini-Catalonia: its files have the layout of the model case, its pixels the known mixture."""

import tomllib
from contextlib import nullcontext

import numpy as np
import pytest
import rasterio
from scipy import ndimage

from cobertes.errors import SettingsError, StorageError
from cobertes.labels.legend import load_legend
from cobertes.labels.recode import recode_table
from cobertes.settings import Settings
from cobertes.synthetic import demo as synthetic
from cobertes.synthetic.demo import BANDS, REFLECTANCE, SEASONS, write_demo
from cobertes.synthetic.landscape import build_landscape
from cobertes.synthetic.nature import MATERIALS
from helpers.rasters import read_raster

SIZE = 192
APRIL, AUGUST, REFERENCE = "data/april.tif", "data/august.tif", "data/reference-1m.tif"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), size=SIZE).parent


@pytest.fixture(scope="module")
def land():
    return build_landscape(SIZE, 0)


@pytest.fixture(scope="module")
def scenes(demo):
    return {season.name: read_raster(demo / f"data/{season.name}.tif").astype(float) for season in SEASONS}


def blocks(fine):
    """(height, width, 100): the fine pixels of each scene pixel."""
    height, width = (n // 10 for n in fine.shape)
    return fine.reshape(height, 10, width, 10).swapaxes(1, 2).reshape(height, width, 100)


def pure(land, *materials):
    """Scene pixels that hold one material, or any of several, only."""
    numbers = [list(MATERIALS).index(name) for name in materials]
    return np.isin(blocks(land.materials), numbers).all(axis=2) & (land.inside > 6)


def test_scenes_have_the_layout_of_the_model_case(demo):
    for name in (APRIL, AUGUST):
        with rasterio.open(demo / name) as file:
            assert file.profile["interleave"] == "pixel"
            assert file.block_shapes == [(96, 96)] * 10
            assert (file.count, file.shape) == (10, (SIZE, SIZE))
            assert set(file.dtypes) == {"uint16"}
            assert file.compression is None
            assert file.nodata is None
            assert file.crs.to_epsg() == 32631
            assert file.res == (10, 10)
            assert file.descriptions == BANDS
            assert file.descriptions[:3] == ("B04", "B03", "B02")  # red, green, blue


def test_reference_map_is_stored_in_strips_of_one_row(demo):
    with rasterio.open(demo / REFERENCE) as file, rasterio.open(demo / APRIL) as scene:
        assert file.block_shapes == [(1, SIZE * 10)]
        assert file.dtypes == ("uint8",)
        assert file.nodata == 0
        assert file.compression is None
        assert file.res == (1, 1)
        assert file.bounds == scene.bounds
        assert file.crs == scene.crs


@pytest.mark.parametrize(("size", "seed"), [(96, 1), (SIZE, 0), (300, 2)])
def test_every_class_and_both_stray_codes_occur_in_any_landscape(tmp_path, size, seed):
    project = write_demo(tmp_path, size=size, seed=seed)
    codes = np.bincount(read_raster(project.parent / REFERENCE).ravel(), minlength=256)
    share = codes / codes[1:].sum()
    assert set(np.flatnonzero(codes)) == {*range(13), 19, 41}
    assert 0.2 < share[3] < 0.45  # forest is the largest class
    assert share[3] == share[1:].max()
    assert 0.08 < share[1] < 0.25
    assert (share[1:13] > 0.003).all()
    assert 0 < share[19] < 0.03
    assert 0 < share[41] < 0.03
    assert 0.05 < codes[0] / codes.sum() < 0.3


def test_rare_classes_are_spread_over_the_ground(tmp_path):
    codes = read_raster(write_demo(tmp_path, size=384).parent / REFERENCE)
    quarters = [half for rows in np.array_split(codes, 2) for half in np.array_split(rows, 2, axis=1)]
    for code in (6, 7, 8, 9, 11):
        assert sum((quarter == code).sum() >= 5_000 for quarter in quarters) >= 3, code


def test_without_light_clouds_and_noise_a_pixel_is_the_mean_of_its_materials_spectra(land, tmp_path):
    mixture = synthetic._write_reference(tmp_path / "reference.tif", land, lambda amount: None)
    for number in (1, 2):
        spectra = np.array([REFLECTANCE[material[number]] for material in MATERIALS.values()])
        expected = spectra[blocks(land.materials)].mean(axis=2)
        ours = mixture[..., (number - 1) * 10 : number * 10]
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_reference_map_says_the_class_of_every_material_inside_the_region(demo, land):
    classes = np.array([code for code, _, _ in MATERIALS.values()])
    codes = read_raster(demo / REFERENCE)
    known = codes > 0
    np.testing.assert_array_equal(codes[known], classes[land.materials][known])
    within, without = (ndimage.binary_erosion(where) for where in (land.inside > 0, land.inside < 0))
    assert known[blocks_of(within)].all()
    assert not known[blocks_of(without)].any()


def blocks_of(coarse):
    return np.kron(coarse, np.ones((10, 10), bool))


def test_scenes_keep_most_of_the_mixture_after_light_clouds_and_noise(demo, land, scenes, tmp_path):
    mixture = synthetic._write_reference(tmp_path / "reference.tif", land, lambda amount: None)
    for number, season in enumerate(SEASONS):
        scene = scenes[season.name]
        clear = scene.any(axis=0) & (scene[2] < 3_500)
        for band in range(10):
            r = np.corrcoef(mixture[..., number * 10 + band][clear], scene[band][clear])[0, 1]
            assert r > 0.6, (season.name, BANDS[band])


def test_water_is_dark_in_the_infrared_in_both_seasons(land, scenes):
    water = pure(land, "sea", "reservoir", "river")
    forest = pure(land, "conifers", "holm oaks")
    for scene in scenes.values():
        infrared = scene[BANDS.index("B08")]
        assert np.median(infrared[water]) < 300
        assert np.median(infrared[forest]) > 1_000


def test_cereals_are_green_in_april_and_maize_in_august(land, scenes):
    def greenness(season, where):
        red, infrared = (np.median(scenes[season][BANDS.index(b)][where]) for b in ("B04", "B08"))
        return (infrared - red) / (infrared + red)

    cereals, maize = pure(land, "cereals"), pure(land, "maize")
    assert min(cereals.sum(), maize.sum()) > 50
    assert greenness("april", cereals) > 0.7
    assert greenness("august", cereals) < 0.4
    assert greenness("august", maize) > 0.7
    assert greenness("april", maize) < 0.4


def test_classes_share_spectra_so_that_colour_alone_does_not_tell_them_apart():
    classes = {}
    for code, april, august in MATERIALS.values():
        classes.setdefault((april, august), set()).add(code)
    assert {4, 6, 7, 8, 9} <= classes["grass", "grass"]
    assert {6, 7, 9} <= classes["tile", "tile"]
    assert {5, 6, 7, 8, 10} <= classes["light soil", "light soil"]
    assert {3, 8} <= classes["broadleaf in spring", "broadleaf in summer"]


def test_slopes_towards_the_sun_are_brighter():
    # a ridge that runs east: its southern slope (lower rows are north) faces the morning sun in the south-east
    elevation = np.repeat(np.concatenate([np.arange(20), np.arange(20)[::-1]])[:, None] * 3.0, 30, axis=1)
    light = synthetic._illumination(elevation, (54.0, 155.0))
    assert light[30, 15] > 1.05
    assert light[10, 15] < 0.95
    np.testing.assert_allclose(synthetic._illumination(np.zeros((5, 5)), (54.0, 155.0)), 1, rtol=1e-6)
    assert (
        synthetic._illumination(elevation.T.copy(), (54.0, 90.0))[15, 30] > 1.05
    )  # an eastern slope, sun in the east


def test_snow_lies_high_up_and_in_april_only(land, scenes):
    def snowy(scene):
        green, shortwave = scene[BANDS.index("B03")], scene[BANDS.index("B11")]
        return (green > 4_000) & ((green - shortwave) / (green + shortwave + 1) > 0.4)

    april, august = snowy(scenes["april"]), snowy(scenes["august"])
    assert 0.001 < april.mean() < 0.03
    assert august.sum() == 0
    assert np.median(land.elevation[april]) > np.quantile(land.elevation, 0.75)


def test_some_ground_is_cloudy(scenes):
    for scene in scenes.values():
        cloudy = (scene[2] > 3_500) & (scene[8] > 3_000)
        assert 0.002 < cloudy.mean() < 0.06


def test_border_is_zero_in_all_bands_and_nothing_else_is(demo, scenes):
    april, august = (scene.any(axis=0) for scene in scenes.values())
    for scene in scenes.values():
        np.testing.assert_array_equal(scene.any(axis=0), scene.all(axis=0))
    assert 0.6 < april.mean() < 0.95
    for seen in (april, august):
        assert not any(side.any() for side in (seen[0], seen[-1], seen[:, 0], seen[:, -1]))
    assert 0 < (april != august).mean() < 0.05
    labelled = (blocks(read_raster(demo / REFERENCE)) > 0).mean(axis=2) > 0.5
    assert (labelled & april).sum() > 0.95 * labelled.sum()


def test_same_seed_and_size_make_the_same_bytes(demo, tmp_path):
    again = write_demo(tmp_path, size=SIZE).parent
    for name in (APRIL, AUGUST, REFERENCE, "project.toml"):
        assert (again / name).read_bytes() == (demo / name).read_bytes(), name


def test_another_seed_is_another_landscape(demo, tmp_path):
    other = write_demo(tmp_path, size=SIZE, seed=1).parent
    same = read_raster(other / REFERENCE) == read_raster(demo / REFERENCE)
    assert same.mean() < 0.6


@pytest.mark.parametrize("size", [96, SIZE, 1200])
def test_project_file_is_valid_and_maps_the_stray_codes(size):
    settings = Settings.model_validate(tomllib.loads(synthetic._project(size)))
    assert settings.bands == list(BANDS)
    assert list(settings.area[0].scenes) == ["april", "august"]
    assert settings.tiles.size % 32 == 0
    assert settings.tiles.size * 3 <= size
    table = recode_table(load_legend(settings.legend), codes=settings.labels.codes).table
    assert (table[19], table[41]) == (5, 12)
    assert {code for code, _, _ in MATERIALS.values()} <= set(np.flatnonzero(table >= 0))


def test_project_names_the_files_that_were_written(demo):
    settings = Settings.model_validate(tomllib.loads((demo / "project.toml").read_text()))
    area = settings.area[0]
    assert sorted(p.name for p in (demo / "data").iterdir()) == ["april.tif", "august.tif", "reference-1m.tif"]
    assert all((demo / path).is_file() for path in [*area.scenes.values(), area.reference])


def test_progress_reaches_its_total(tmp_path):
    seen = []

    class Recorder:
        def bar(self, name, total, unit):
            seen.append(total)
            return nullcontext(lambda amount: seen.append(-amount))

    write_demo(tmp_path, size=96, progress=Recorder())
    assert sum(seen) == pytest.approx(0)


def test_too_small_a_landscape_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="size starts at 96"):
        write_demo(tmp_path, size=64)


def test_nothing_half_written_stays_after_a_failure(tmp_path, monkeypatch):
    def fails(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic, "mix_rows", fails)
    with pytest.raises(StorageError, match=r"reference-1m\.tif.*No space left"):
        write_demo(tmp_path, size=96)
    assert list((tmp_path / "data").iterdir()) == []
    assert not (tmp_path / "project.toml").exists()


def test_a_truncated_write_is_an_error_not_a_file(tmp_path):
    grid = synthetic._grid(100, 10.0)
    with (
        pytest.raises(StorageError, match="disk is full"),
        synthetic._writing(tmp_path / "scene.tif", grid, count=1, dtype="uint8", sparse_ok=True),
    ):
        pass  # nothing written: what a full disk leaves behind when the file is closed
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**6}))
    with pytest.raises(StorageError, match="1 MB free, the demo data need 11 MB"):
        write_demo(tmp_path, size=96)


def test_a_file_in_the_way_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(StorageError, match="can't make the folder"):
        write_demo(tmp_path, size=96)
