"""Full-scene prediction: every pixel is what the model says of it, and no file is ever half-written."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from cobertes.engines.engine import open_engine
from cobertes.errors import (
    BandMismatchError,
    GridMismatchError,
    InputFileError,
    ModelFileError,
    OutputExistsError,
    SettingsError,
    StorageError,
)
from cobertes.geo.scene import open_scene
from cobertes.geo.windows import Window, plan_strips
from cobertes.learn.model_file import load_model, save_model
from cobertes.learn.unet import UNet
from cobertes.predict.map_layers import NO_CONFIDENCE
from cobertes.predict.predict import name_seasons, predict_map
from helpers.engines import SCALE, TENS, code_at, engine_of, header_of, percent_at, reads_coordinates
from helpers.interruptions import run_until_killed
from helpers.rasters import ORIGIN, coordinates, grid_at, read_raster, write_raster

TESTS = Path(__file__).parent


def scene_of(folder, shape=(70, 90), *, values=None, name="scene.tif", grid=None, **profile):
    values = coordinates(shape) if values is None else values
    grid = grid_at(*values.shape[1:]) if grid is None else grid
    return {"scene": open_scene([str(write_raster(folder / name, values, grid, **profile))])}


def files(folder):
    """All but what an interrupted map goes on from."""
    return sorted(path.name for path in folder.rglob("*") if ".partial" not in str(path))


# --- what the map says -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(70, 90), (32, 32), (7, 5), (1, 1), (33, 200), (31, 65)])
@pytest.mark.parametrize("overlap", [None, 0, 31])
def test_every_pixel_is_what_the_model_says_of_it(tmp_path, shape, overlap):
    if overlap == 31 and shape == (33, 200):
        overlap = 17  # 31 would compute 340 windows
    made = predict_map(
        engine_of(),
        scene_of(tmp_path, shape),
        tmp_path / "map.tif",
        confidence=tmp_path / "c.tif",
        overlap=overlap,
    )
    places = coordinates(shape)
    np.testing.assert_array_equal(read_raster(tmp_path / "map.tif"), code_at(*places))
    np.testing.assert_array_equal(read_raster(tmp_path / "c.tif"), percent_at(*places))
    assert sum(made.counts.values()) == shape[0] * shape[1]
    assert made.counts == {0: 0} | {int(c): int((code_at(*places) == c).sum()) for c in TENS.codes}


def test_codes_with_gaps_come_back_as_themselves_the_last_one_too(tmp_path):
    predict_map(engine_of(), scene_of(tmp_path), tmp_path / "map.tif")
    assert set(np.unique(read_raster(tmp_path / "map.tif"))) == set(range(10, 101, 10))


def test_the_map_has_the_scene_s_grid_palette_names_and_nodata(tmp_path):
    predict_map(engine_of(), scene_of(tmp_path), tmp_path / "map.tif", confidence=tmp_path / "c.tif")
    with (
        rasterio.open(tmp_path / "map.tif") as found,
        rasterio.open(tmp_path / "c.tif") as confidence,
        rasterio.open(tmp_path / "scene.tif") as scene,
    ):
        for file in (found, confidence):
            assert (file.transform, file.crs, file.shape) == (scene.transform, scene.crs, scene.shape)
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (found.nodata, confidence.nodata) == (0, NO_CONFIDENCE)
        assert found.colormap(1)[100] == (100, 0, 255, 255)
        assert found.tags()["class_100"] == "Class & 100"
        assert confidence.tags()["units"] == "percent"
    assert "<Category>Class &amp; 100</Category>" in (tmp_path / "map.tif.aux.xml").read_text()
    assert files(tmp_path) == ["c.tif", "map.qml", "map.tif", "map.tif.aux.xml", "scene.tif"]


def test_each_pixel_comes_from_the_window_in_whose_interior_it_lies(tmp_path):
    def position(x):
        """Class by the place in the window: tells from which window a pixel came."""
        rows, cols = np.mgrid[: x.shape[2], : x.shape[3]]
        index = torch.from_numpy((3 * rows + cols) % len(TENS)).expand(len(x), -1, -1)
        return torch.nn.functional.one_hot(index, len(TENS)).movedim(-1, 1).float()

    shape = (75, 101)
    predict_map(engine_of(position), scene_of(tmp_path, shape), tmp_path / "map.tif", window=24, overlap=10)
    expected = np.zeros(shape, int)
    for strip in plan_strips(Window(0, 0, *shape), 24, 10):
        for planned in strip:
            rows, cols = np.mgrid[planned.interior.slices]
            expected[rows, cols] = TENS.codes[
                (3 * (rows - planned.window.row) + cols - planned.window.col) % len(TENS)
            ]
    np.testing.assert_array_equal(read_raster(tmp_path / "map.tif"), expected)


def test_pixels_that_no_season_observed_are_nodata(tmp_path):
    april, august = coordinates((50, 60)), coordinates((50, 60))
    april[:, :20] = 0
    august[:, 10:30, :40] = 0
    scenes = scene_of(tmp_path, values=april, name="april.tif") | {
        "august": scene_of(tmp_path, values=august, name="august.tif")["scene"]
    }
    scenes["april"] = scenes.pop("scene")
    engine = engine_of(lambda x: reads_coordinates(torch.maximum(x[:, :2], x[:, 2:])), seasons=("april", "august"))
    made = predict_map(engine, scenes, tmp_path / "map.tif", confidence=tmp_path / "c.tif")
    expected, percent = code_at(*coordinates((50, 60))), percent_at(*coordinates((50, 60)))
    expected[10:20, :40], percent[10:20, :40] = 0, NO_CONFIDENCE
    np.testing.assert_array_equal(read_raster(tmp_path / "map.tif"), expected)
    np.testing.assert_array_equal(read_raster(tmp_path / "c.tif"), percent)
    assert made.counts[0] == 400


def test_windows_without_an_observation_are_not_computed(tmp_path):
    values = coordinates((128, 96))
    values[:, :70] = 0
    computed = []

    def logits(x):
        computed.append(len(x))
        return reads_coordinates(x)

    made = predict_map(
        engine_of(logits), scene_of(tmp_path, values=values), tmp_path / "map.tif", overlap=0, batch_size=2
    )
    assert (made.windows, made.skipped) == (6, 6)
    assert sum(computed) == 6
    found = read_raster(tmp_path / "map.tif")
    assert not found[:70].any()
    np.testing.assert_array_equal(found[70:], code_at(*coordinates((128, 96)))[70:])


def test_an_empty_scene_gives_an_empty_map_and_a_warning(tmp_path, caplog):
    scene = scene_of(tmp_path, values=np.zeros((2, 40, 40), np.uint16))
    made = predict_map(engine_of(), scene, tmp_path / "map.tif")
    assert (made.windows, made.counts[0]) == (0, 1600)
    assert not read_raster(tmp_path / "map.tif").any()
    assert any("no valid pixel" in record.message and record.levelname == "WARNING" for record in caplog.records)


def test_nan_counts_as_not_observed(tmp_path):
    values = coordinates((40, 50)).astype(np.float32)
    values[1, 3:9, 4:30] = np.nan
    predict_map(engine_of(), scene_of(tmp_path, values=values), tmp_path / "map.tif")
    expected = code_at(*coordinates((40, 50)))
    expected[3:9, 4:30] = 0
    np.testing.assert_array_equal(read_raster(tmp_path / "map.tif"), expected)


def test_where_no_file_says_what_is_empty_the_model_s_scenes_do(tmp_path):
    values = coordinates((40, 50)).astype(np.uint16)
    values[:, :, :20] = 65535
    trained = replace(engine_of(), header=replace(header_of(), scene_nodata=65535.0))
    made = predict_map(trained, scene_of(tmp_path, values=values), tmp_path / "map.tif")
    assert made.counts[0] == 40 * 20
    says = scene_of(tmp_path, values=values, name="says.tif", nodata=7)
    assert name_seasons(says, trained)["scene"].nodata == 7


def test_bounds_give_exactly_the_full_map_s_pixels_there(tmp_path):
    # a real network with random weights: its answer depends on the window that a pixel is seen in
    torch.manual_seed(1)
    save_model(tmp_path / "m.safetensors", UNet(header_of().network).state_dict(), header_of())
    engine = open_engine(tmp_path / "m.safetensors", device="cpu", precision="fp32")
    rng = np.random.default_rng(0)
    scene = scene_of(tmp_path, values=rng.integers(1, 3000, (2, 140, 150)).astype(np.int32))
    predict_map(engine, scene, tmp_path / "all.tif", confidence=tmp_path / "all-c.tif")
    west, north = ORIGIN[0] + 10 * 37, ORIGIN[1] - 10 * 41
    bounds = (west, north - 10 * 50, west + 10 * 61, north)
    made = predict_map(
        engine, scene, tmp_path / "part.tif", confidence=tmp_path / "part-c.tif", bounds=bounds, batch_size=3
    )
    assert sum(made.counts.values()) == 50 * 61
    for full, part in (("all.tif", "part.tif"), ("all-c.tif", "part-c.tif")):
        np.testing.assert_array_equal(
            read_raster(tmp_path / part), read_raster(tmp_path / full)[41 : 41 + 50, 37 : 37 + 61]
        )
    with rasterio.open(tmp_path / "part.tif") as file:
        assert file.bounds == pytest.approx(bounds)
    with pytest.raises(GridMismatchError, match="do not touch the scene"):
        predict_map(engine, scene, tmp_path / "x.tif", bounds=(0, 0, 1, 1))


def test_two_runs_and_other_memory_give_the_same_bytes(tmp_path):
    scene = scene_of(tmp_path, (90, 100))
    for name, memory in (("a", 3500), ("b", 3500), ("c", 600)):
        (tmp_path / name).mkdir()
        predict_map(
            engine_of(), scene, tmp_path / name / "map.tif", confidence=tmp_path / name / "c.tif", memory=memory
        )
    for file in ("map.tif", "map.tif.aux.xml", "c.tif"):
        first = (tmp_path / "a" / file).read_bytes()
        assert (tmp_path / "b" / file).read_bytes() == first
        assert (tmp_path / "c" / file).read_bytes() == first


def test_scenes_without_coordinates_are_mapped_in_pixels(tmp_path):
    scene = {"scene": open_scene([str(write_raster(tmp_path / "chip.tif", coordinates((20, 20))))])}
    predict_map(engine_of(), scene, tmp_path / "map.tif")
    np.testing.assert_array_equal(read_raster(tmp_path / "map.tif"), code_at(*coordinates((20, 20))))
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.crs is None


# --- the engine --------------------------------------------------------------------------------------------


def test_the_fp32_engine_says_what_plain_torch_says(tmp_path):
    torch.manual_seed(0)
    header = header_of()
    save_model(tmp_path / "m.safetensors", UNet(header.network).state_dict(), header)
    plain, _ = load_model(tmp_path / "m.safetensors")
    engine = open_engine(tmp_path / "m.safetensors", device="cpu", precision="fp32", engine="torch")
    assert engine.how == "torch on cpu in fp32 (as set)"
    x = np.random.default_rng(0).normal(size=(2, 2, 30, 45)).astype(np.float32)
    with torch.no_grad():
        expected = plain(torch.from_numpy(x))
    torch.testing.assert_close(engine.logits(torch.from_numpy(x)), expected, rtol=1e-4, atol=1e-5)


def test_a_map_is_what_the_network_says_window_by_window(tmp_path):
    torch.manual_seed(3)
    header = header_of(window=16)
    save_model(tmp_path / "m.safetensors", UNet(header.network).state_dict(), header)
    plain, _ = load_model(tmp_path / "m.safetensors")
    values = np.random.default_rng(0).integers(1, 3000, (2, 40, 52)).astype(np.int32)
    engine = open_engine(tmp_path / "m.safetensors", device="cpu", precision="fp32")
    predict_map(engine, scene_of(tmp_path, values=values), tmp_path / "map.tif", overlap=4)
    found = read_raster(tmp_path / "map.tif")
    differing = 0
    for strip in plan_strips(Window(0, 0, 40, 52), 16, 4):
        for planned in strip:
            x = torch.from_numpy((values[:, *planned.window.slices] / SCALE).astype(np.float32))
            with torch.no_grad():
                expected = TENS.codes[plain(x[None]).argmax(1)[0].numpy()]
            inner = planned.interior.slices_in(planned.window)
            differing += (found[planned.interior.slices] != expected[inner]).sum()
    assert differing <= 2  # ties in the last digit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpx"}, 'can\'t use device \'cpx\'.*"auto" or "cpu"'),
        ({"precision": "fp-32"}, r"no precision 'fp-32'\. Did you mean 'fp32'"),
    ],
)
def test_devices_and_precisions_that_are_not_there_are_told(tmp_path, options, message):
    save_model(tmp_path / "m.safetensors", UNet(header_of().network).state_dict(), header_of())
    with pytest.raises(SettingsError, match=message):
        open_engine(tmp_path / "m.safetensors", **options)


# --- what does not fit -------------------------------------------------------------------------------------


def test_a_model_of_one_season_takes_a_scene_without_a_name(tmp_path):
    scene = scene_of(tmp_path)
    predict_map(engine_of(seasons=("august",)), scene, tmp_path / "map.tif")
    np.testing.assert_array_equal(read_raster(tmp_path / "map.tif"), code_at(*coordinates((70, 90))))
    predict_map(engine_of(), {"august": scene["scene"]}, tmp_path / "map.tif", overwrite=True)
    with pytest.raises(SettingsError, match=r"season 'august', found augst\. Did you mean 'augst'"):
        predict_map(engine_of(seasons=("august",)), {"augst": scene["scene"]}, tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("header", "error", "message"),
    [
        ({"bands": ("band1", "B08")}, BandMismatchError, "gives bands band1, band2, the model was trained on band1, B08"),
        ({"resolution": 20.0}, ModelFileError, r"pixels of 10 \(EPSG:32631\), the model was trained on pixels of 20"),
        ({"seasons": ("april", "august")}, SettingsError, "needs a scene of season 'april', found scene"),
    ],
)  # fmt: skip
def test_a_model_of_other_scenes_is_refused(tmp_path, header, error, message):
    scene = scene_of(tmp_path)
    with pytest.raises(error, match=message):
        predict_map(engine_of(**header), scene, tmp_path / "map.tif")
    assert files(tmp_path) == ["scene.tif"]


def test_seasons_on_other_grids_are_refused(tmp_path):
    scenes = {
        "april": scene_of(tmp_path)["scene"],
        "august": scene_of(tmp_path, (70, 91), name="august.tif")["scene"],
    }
    with pytest.raises(GridMismatchError, match="august.tif is 91 x 70 px .* but .*scene.tif is 90 x 70 px"):
        predict_map(engine_of(seasons=("april", "august")), scenes, tmp_path / "map.tif")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"overlap": 32}, SettingsError, "overlap 32 px must be smaller than the window of 32 px"),
        ({"confidence": "map.tif"}, SettingsError, "must be different files"),
        ({"confidence": "scene.tif", "overwrite": True}, SettingsError, "scene.tif is an input"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(tmp_path, options, error, message):
    scene = scene_of(tmp_path)
    before = (tmp_path / "scene.tif").read_bytes()
    options = {k: tmp_path / v if k == "confidence" else v for k, v in options.items()}
    with pytest.raises(error, match=message):
        predict_map(engine_of(), scene, tmp_path / "map.tif", **options)
    assert (tmp_path / "scene.tif").read_bytes() == before
    assert files(tmp_path) == ["scene.tif"]


def test_an_existing_map_is_kept_unless_asked(tmp_path):
    (tmp_path / "map.tif").write_text("old")
    with pytest.raises(OutputExistsError, match=r"map\.tif exists\. Use --overwrite"):
        predict_map(engine_of(), scene_of(tmp_path), tmp_path / "map.tif")
    assert (tmp_path / "map.tif").read_text() == "old"


# --- what goes wrong half-way ------------------------------------------------------------------------------


def old_map(folder):
    (folder / "map.tif").write_text("old")
    return folder / "map.tif"


def test_a_truncated_scene_leaves_the_old_map(tmp_path):
    rng = np.random.default_rng(0)
    scene_of(
        tmp_path,
        values=rng.integers(1, 60_000, (2, 300, 300)).astype(np.uint16),
        tiled=True,
        blockxsize=64,
        blockysize=64,
    )
    path = tmp_path / "scene.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    out = old_map(tmp_path)
    with pytest.raises(InputFileError, match=r"can't read rows \d+ to \d+, columns .* of .*scene\.tif.*truncated"):
        predict_map(
            engine_of(), {"scene": open_scene([str(path)])}, out, confidence=tmp_path / "c.tif", overwrite=True
        )
    assert out.read_text() == "old"
    assert files(tmp_path) == ["map.tif", "scene.tif"]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_model_that_fails_half_way_leaves_the_old_map(tmp_path, error):
    calls = []

    def logits(x):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return reads_coordinates(x)

    out = old_map(tmp_path)
    with pytest.raises(type(error)):
        predict_map(engine_of(logits), scene_of(tmp_path), out, overwrite=True, batch_size=1)
    assert out.read_text() == "old"
    assert files(tmp_path) == ["map.tif", "scene.tif"]


def test_a_killed_prediction_leaves_no_map_and_the_next_one_cleans_up(tmp_path):
    scene = scene_of(tmp_path, (200, 200))
    script = f"""
        from itertools import count
        from pathlib import Path
        from cobertes.geo.scene import open_scene
        from cobertes.predict.predict import predict_map
        from helpers.engines import engine_of, reads_coordinates
        from helpers.interruptions import kill
        folder, batches = Path({str(tmp_path)!r}), count()
        def logits(x):
            return kill() if next(batches) == 20 else reads_coordinates(x)
        scene = {{"scene": open_scene([str(folder / "scene.tif")])}}
        predict_map(engine_of(logits), scene, folder / "out" / "map.tif", batch_size=1)
    """
    run_until_killed(script)
    assert (tmp_path / "out").exists()
    assert not (tmp_path / "out" / "map.tif").exists()
    predict_map(engine_of(), scene, tmp_path / "out" / "map.tif")
    np.testing.assert_array_equal(read_raster(tmp_path / "out" / "map.tif"), code_at(*coordinates((200, 200))))
    assert files(tmp_path / "out") == ["map.qml", "map.tif", "map.tif.aux.xml"]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    # lazily: GDAL may keep the damaged file open for a while
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_told_before_the_work(tmp_path, small_disk):
    out = old_map(small_disk)
    computed = []
    with pytest.raises(StorageError, match="has 2 MB free, the raster needs up to 3 MB"):
        predict_map(engine_of(computed.append), scene_of(tmp_path, (950, 1000)), out, overwrite=True)
    assert computed == []
    assert out.read_text() == "old"
    assert files(small_disk) == ["map.tif"]


@pytest.mark.parametrize("left", [0, 300_000])
def test_a_disk_that_fills_up_half_way_leaves_the_old_map(tmp_path, small_disk, left):
    out = old_map(small_disk)
    rng = np.random.default_rng(0)

    def logits(x):
        others = small_disk / "others"
        if not others.exists():
            state = os.statvfs(small_disk)
            others.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - left)))
        return torch.from_numpy(rng.normal(size=(len(x), 10, *x.shape[2:])).astype(np.float32))

    with pytest.raises(StorageError, match=r"can't write .*map\.tif"):
        predict_map(engine_of(logits), scene_of(tmp_path, (700, 1000)), out, overwrite=True, window=512)
    assert out.read_text() == "old"
    assert files(small_disk) == ["map.tif", "others"]


def test_a_folder_that_can_t_be_written_is_told(tmp_path, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for out in (small_disk / "map.tif", small_disk / "maps" / "map.tif"):
        with pytest.raises(StorageError, match="no permission to write into|can't make the folder"):
            predict_map(engine_of(), scene_of(tmp_path), out)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="can't make the folder .*file"):
        predict_map(engine_of(), scene_of(tmp_path), tmp_path / "file" / "map.tif")


# --- memory ------------------------------------------------------------------------------------------------

TALL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
from helpers.engines import engine_of
from cobertes.predict.predict import predict_map
from cobertes.geo import cog_writer
from cobertes.geo.scene import open_scene
torch.set_num_threads(1)
cog_writer.GDAL_CACHE_BYTES = 4 * 2**20  # both scenes fill it while their COGs are made
folder = Path({folder!r})
def logits(x):
    answer = torch.zeros(len(x), 2, *x.shape[2:])
    answer[:, 1] = 1
    return answer
engine = engine_of(logits, bands=tuple(f"band{{i}}" for i in range(1, 5)), window=256)
for height in ({low}, {high}):
    scene = {{"scene": open_scene([str(folder / f"{{height}}.tif")], nodata=7)}}
    predict_map(engine, scene, folder / f"map{{height}}.tif", batch_size=2, memory=500)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_scene_s_height(tmp_path):
    # 16 kB a row: even the low scene has more than GDAL's cache of 64 MB holds; sparse files take no disk
    low, high = 4_800, 14_400
    for height in (low, high):
        profile = {"tiled": True, "blockxsize": 256, "blockysize": 256, "SPARSE_OK": True}
        place = {"crs": "EPSG:32631", "transform": grid_at(1, 1).affine}
        shape = {"count": 4, "height": height, "width": 512}
        with rasterio.open(
            tmp_path / f"{height}.tif", "w", driver="GTiff", dtype="float64", **shape, **place, **profile
        ):
            pass
    code = TALL.format(tests=str(TESTS), folder=str(tmp_path), low=low, high=high)
    env = os.environ | {
        "MALLOC_ARENA_MAX": "1"
    }  # else threads by chance leave more or less in arenas of their own
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    first, second = map(int, done.stdout.split())
    assert second < first * 1.05, f"{first} MB, then {second} MB"
    with rasterio.open(tmp_path / f"map{high}.tif") as file:
        assert (file.read(1, window=rasterio.windows.Window(0, high - 300, 512, 300)) == 20).all()
