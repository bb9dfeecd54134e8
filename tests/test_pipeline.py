"""The pass over a scene: interruptions, memory, parts of it and products beside the map, all to the byte."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import torch
from shapely.geometry import Polygon, box

from cobertes.engines.engine import Engine, EngineSpec
from cobertes.errors import (
    CobertesError,
    DeviceMemoryError,
    GridMismatchError,
    InputFileError,
    OutputExistsError,
    SettingsError,
    StorageError,
)
from cobertes.geo import ledger
from cobertes.geo.clip import open_clip
from cobertes.geo.scene import Scene, open_scene
from cobertes.geo.windows import Window
from cobertes.predict import predict, prediction_job
from cobertes.predict.pipeline import batches, in_background, map_blocks
from cobertes.predict.predict import predict_map
from helpers.engines import TENS, engine_of, reads_coordinates
from helpers.interruptions import StoppedAfter, contents, interrupt, run_until_killed
from helpers.map_runs import ENGINE, SHAPE, everything, network, run, scene_in
from helpers.rasters import ORIGIN, coordinates, grid_at, read_raster, write_raster

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _every_block_is_noted():
    with patch.object(ledger, "SECONDS", 0):
        yield


# --- the same result always --------------------------------------------------------------------------------


@pytest.fixture
def scene(tmp_path):
    return scene_in(tmp_path)


@pytest.mark.parametrize("blend", ["interior", "cosine", "gaussian"])
def test_memory_threads_and_columns_change_no_byte(tmp_path, scene, blend):
    run(scene, tmp_path / "a", blend=blend)
    with patch.object(prediction_job, "MIN_CARRIED_MB", 0.02), patch.object(prediction_job, "READ_THREADS", 7):
        budget = prediction_job.PredictionMemory.of(
            700, prediction_job.WindowPlan.of(SHAPE, 32, 8, blend), 4, ENGINE
        )
        assert budget.groups == (1 if blend == "interior" else 2)
        run(scene, tmp_path / "b", blend=blend, memory=700)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_memory_is_counted_for_all_models_and_seasons_that_are_in_it(caplog):
    plan = prediction_job.WindowPlan.of((3000, 3000), 256, 64, "interior")

    def needed(engine, memory=0):
        caplog.clear()
        prediction_job.PredictionMemory.of(memory, plan, 8, engine)
        return int(re.search(r"take about (\d+) MB", caplog.text)[1])

    one = engine_of(seasons=("april", "august"))
    each = replace(one, header=replace(one.header, inputs=replace(one.header.inputs, mode="separate")))
    pixels = 8 * 256**2 / 2**20
    assert needed(each) == needed(one), "a window has the channels of all seasons"
    three = replace(one, members=(one.header,) * 3)
    assert needed(three) - needed(one) == pytest.approx(
        2 * pixels * (prediction_job.FORWARD_BYTES + 4 * 4 * 4), abs=1
    )
    gpu = replace(one, specs=(EngineSpec(Path("model"), "cuda", "bf16", "torch", "none", None),))
    assert needed(one) - needed(gpu) == pytest.approx(pixels * prediction_job.FORWARD_BYTES, abs=1)


def test_a_window_s_answer_does_not_depend_on_its_batch(tmp_path, scene):
    run(scene, tmp_path / "a", batch_size=3)
    run(scene, tmp_path / "b", batch_size=3, bounds=None)
    seen = []

    def logits(x):
        seen.append(tuple(x.shape))
        assert x.is_contiguous(memory_format=torch.channels_last)
        return ENGINE.logits(x)

    run(scene, tmp_path / "c", Engine(ENGINE.header, logits, ENGINE.how, ENGINE.identity), batch_size=3)
    assert set(seen) == {(3, 2, 32, 32)}, "every batch has one shape, the last one too"
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


@pytest.mark.parametrize("blocks", [1, 2, 9, 20])
@pytest.mark.parametrize("blend", ["interior", "cosine"])
def test_an_interrupted_map_goes_on_and_ends_the_same(tmp_path, scene, blocks, blend):
    once = run(scene, tmp_path / "once", blend=blend)
    with pytest.raises(KeyboardInterrupt):
        run(scene, tmp_path / "twice", blend=blend, progress=StoppedAfter(blocks, interrupt))
    assert all(name.startswith(".") for name in os.listdir(tmp_path / "twice"))
    watch = StoppedAfter()
    with patch.object(prediction_job, "MIN_CARRIED_MB", 0.02):  # memory may be another
        twice = run(scene, tmp_path / "twice", blend=blend, resume="yes", memory=700, progress=watch)
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")
    assert (twice.counts, twice.windows, twice.skipped) == (once.counts, once.windows, once.skipped)
    assert len(watch.seen) == 1 + 24 - blocks, "what was written is not written again"


def test_a_killed_process_leaves_what_another_can_go_on_with(tmp_path):
    scene = scene_in(tmp_path)
    run(scene, tmp_path / "once")
    script = f"""
        import torch
        torch.set_num_threads(1)
        from pathlib import Path
        from cobertes.geo import ledger
        from cobertes.geo.scene import open_scene
        from helpers.map_runs import run
        from helpers.interruptions import StoppedAfter, kill
        ledger.SECONDS = 0
        folder = Path({str(tmp_path)!r})
        scene = {{"scene": open_scene([str(folder / "scene.tif")])}}
        progress = StoppedAfter(int(sys.argv[1]), kill)
        run(scene, folder / "twice", progress=progress, resume="if-same")
    """
    for blocks in (6, 8):  # killed twice
        run_until_killed(script, blocks)
    assert json.loads((tmp_path / "twice" / ".map.tif.partial" / "ledger.json").read_text())["done"]
    run(scene, tmp_path / "twice", resume="yes")
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")


def test_an_interrupt_while_outputs_get_their_names_is_mended_too(tmp_path, scene):
    from cobertes.geo import cog_writer

    run(scene, tmp_path / "once")
    copy = cog_writer._copy_to_cog

    def interrupted(partial, name, *rest):
        if name == "map.tif":  # the last one: all others have their names
            raise KeyboardInterrupt
        copy(partial, name, *rest)

    with patch.object(cog_writer, "_copy_to_cog", interrupted), pytest.raises(KeyboardInterrupt):
        run(scene, tmp_path / "twice")
    assert (tmp_path / "twice" / "entropy.tif").exists()
    run(scene, tmp_path / "twice", resume="yes")
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")


@pytest.mark.parametrize(
    "change", [{"blend": "gaussian"}, {"overlap": 4}, {"engine": network(5)}, {"batch_size": 5}]
)
def test_rows_of_other_settings_are_never_mixed_in(tmp_path, scene, change):
    if "engine" in change:
        change = {"engine": Engine(ENGINE.header, ENGINE.logits, ENGINE.how, "another file")}
    with pytest.raises(KeyboardInterrupt):
        run(scene, tmp_path / "out", progress=StoppedAfter(8, interrupt))
    with pytest.raises(SettingsError, match="begun with other inputs, settings or engine"):
        run(scene, tmp_path / "out", resume="yes", **change)
    run(scene, tmp_path / "out", resume="if-same", **change)
    run(scene, tmp_path / "new", **change)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


@pytest.mark.parametrize("change", [{"nodata": 5.0}, {"bands": (1, 0)}])
def test_rows_that_were_read_otherwise_are_never_mixed_in(tmp_path, scene, change):
    with pytest.raises(KeyboardInterrupt):
        run(scene, tmp_path / "out", progress=StoppedAfter(8, interrupt))
    bands = scene["scene"].bands
    if "bands" in change:  # of the same names
        change = {"bands": tuple(replace(a, index=b.index) for a, b in zip(bands, bands[::-1], strict=True))}
    with pytest.raises(SettingsError, match="begun with other inputs, settings or engine"):
        run({"scene": replace(scene["scene"], **change)}, tmp_path / "out", resume="yes")


def test_a_clip_of_several_files_is_another_one_where_one_of_them_changes(tmp_path, scene):
    wanted = np.ones(SHAPE, np.uint8)
    write_raster(tmp_path / "wanted.tif", wanted, grid_at(*SHAPE), nodata=0)
    rasterio.shutil.copy(tmp_path / "wanted.tif", tmp_path / "clip.vrt", driver="VRT")
    with pytest.raises(KeyboardInterrupt):
        run(scene, tmp_path / "out", clip=tmp_path / "clip.vrt", progress=StoppedAfter(8, interrupt))
    wanted[:, 60:] = 0
    write_raster(tmp_path / "wanted.tif", wanted, grid_at(*SHAPE), nodata=0)
    with pytest.raises(SettingsError, match="begun with other inputs"):
        run(scene, tmp_path / "out", clip=tmp_path / "clip.vrt", resume="yes")


def test_an_item_that_is_there_is_kept_unless_asked(tmp_path, scene):
    item = tmp_path / "map.json"
    item.write_text("mine")
    for resume in ("no", "yes"):
        with pytest.raises(OutputExistsError, match="map.json exists"):
            run(scene, tmp_path / "out", stac=item, resume=resume)
    assert item.read_text() == "mine"
    run(scene, tmp_path / "out", stac=item, overwrite=True)
    assert json.loads(item.read_text())["id"] == "map"


# --- parts of a scene --------------------------------------------------------------------------------------


@pytest.mark.parametrize("blend", ["interior", "cosine", "gaussian"])
def test_bounds_and_clips_give_the_full_map_s_pixels_there(tmp_path, scene, blend):
    run(scene, tmp_path / "full", blend=blend)
    west, north = ORIGIN[0] + 10 * 37, ORIGIN[1] - 10 * 41
    run(scene, tmp_path / "part", blend=blend, bounds=(west, north - 500, west + 610, north), batch_size=3)
    shape = Polygon([(west, north), (west + 600, north - 100), (west + 300, north - 550)])
    other = box(west + 700, north - 200, west + 750, north - 150)
    clip = tmp_path / "clip.gpkg"
    gpd.GeoDataFrame(geometry=[shape, other], crs="EPSG:32631").to_crs("EPSG:25831").to_file(clip)
    run(scene, tmp_path / "clip", blend=blend, clip=clip)
    inside = rasterio.features.geometry_mask([shape, other], SHAPE, grid_at(*SHAPE).affine, invert=True)
    for name, nodata in (("map", 0), ("confidence", 255), ("second", 0), ("entropy", 255), ("probabilities", 255)):
        full = read_raster(tmp_path / "full" / f"{name}.tif")
        part = read_raster(tmp_path / "part" / f"{name}.tif")
        np.testing.assert_array_equal(part, full[..., 41:91, 37:98])
        with rasterio.open(tmp_path / "clip" / f"{name}.tif") as file:
            found = file.read() if file.count > 1 else file.read(1)
            row, col = (
                round(v) for v in ((ORIGIN[1] - file.bounds.top) / 10, (file.bounds.left - ORIGIN[0]) / 10)
            )
        rows, cols = slice(row, row + found.shape[-2]), slice(col, col + found.shape[-1])
        expected = np.where(inside, full, nodata)[..., rows, cols]
        np.testing.assert_array_equal(found, expected)
        assert inside[rows, cols].sum() == inside.sum() > 1000


def test_a_raster_clips_too_and_windows_outside_are_not_read(tmp_path, scene):
    labels = np.zeros(SHAPE, np.uint8)
    labels[70:, 100:] = 3
    clip = write_raster(tmp_path / "labels.tif", labels, grid_at(*SHAPE), nodata=0)
    reads, read = [], Scene.read_hwc

    def counted(self, window):
        reads.append(window)
        return read(self, window)

    run(scene, tmp_path / "full")
    with patch.object(Scene, "read_hwc", counted):
        made = run(scene, tmp_path / "clip", clip=clip)
    assert len(reads) == made.windows <= 6
    expected = np.where(labels > 0, read_raster(tmp_path / "full" / "map.tif"), 0)
    np.testing.assert_array_equal(read_raster(tmp_path / "clip" / "map.tif"), expected)


def test_a_clip_by_a_relative_path_holds_in_another_folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    labels = np.eye(*SHAPE, dtype=np.uint8)
    write_raster(tmp_path / "labels.tif", labels, grid_at(*SHAPE), nodata=0)
    monkeypatch.chdir(tmp_path)
    clip = open_clip(Path("labels.tif"), grid_at(*SHAPE))
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(clip.inside(Window(0, 0, *SHAPE)), labels > 0)


def test_windows_that_a_sparse_file_does_not_store_are_not_read(tmp_path):
    values = coordinates((128, 256)).astype(np.uint16)
    values[:, :, 128:] = 0
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "SPARSE_OK": True}
    path = write_raster(tmp_path / "scene.tif", values, grid_at(128, 256), **options)
    reads, read = [], Scene.read_hwc
    with patch.object(Scene, "read_hwc", lambda self, window: reads.append(window) or read(self, window)):
        made = predict_map(engine_of(), {"scene": open_scene([str(path)])}, tmp_path / "map.tif", overlap=0)
    assert (len(reads), made.windows, made.skipped) == (16, 16, 16)
    # a value of empty pixels that the file does not declare: blocks left out hold 0, which is a measurement then
    reads.clear()
    scene = {"scene": open_scene([str(path)], nodata=9999)}
    with patch.object(Scene, "read_hwc", lambda self, window: reads.append(window) or read(self, window)):
        predict_map(engine_of(lambda x: torch.zeros(len(x), 10, 32, 32)), scene, tmp_path / "b.tif", overlap=0)
    assert len(reads) == 32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip": "no.gpkg"}, InputFileError, "no file at .*no.gpkg"),
        ({"clip": "bad.gpkg"}, InputFileError, "can't read .*bad.gpkg"),
        ({"clip": "far.gpkg"}, GridMismatchError, "do not touch the scene"),
        ({"clip": "far.gpkg", "bounds": (0, 0, 1, 1)}, SettingsError, "exclude each other"),
        ({"blend": "feather"}, SettingsError, "no blending 'feather'"),
        ({"stac": "map.tif"}, SettingsError, "must be different files"),
    ],
)
def test_parts_that_are_not_there_are_told(tmp_path, scene, options, error, message):
    (tmp_path / "bad.gpkg").write_text("no polygons")
    gpd.GeoDataFrame(geometry=[box(0, 0, 10, 10)], crs="EPSG:32631").to_file(tmp_path / "far.gpkg")
    options = {k: tmp_path / v if k in ("clip", "stac") else v for k, v in options.items()}
    with pytest.raises(error, match=message):
        predict_map(ENGINE, scene, tmp_path / "map.tif", **options)
    assert not (tmp_path / "map.tif").exists()


# --- beside the map ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_products_are_what_the_probabilities_say(tmp_path, scene, temperature):
    engine = Engine(ENGINE.header, ENGINE.logits, "x", "x", temperature)
    run(scene, tmp_path / "out", engine, blend="interior")
    values = read_raster(tmp_path / "scene.tif")
    valid = (values != 0).any(axis=0)
    logits = np.zeros((10, *SHAPE), np.float32)
    plan = prediction_job.WindowPlan.of(SHAPE, 32, 8, "interior")
    for row, col in np.ndindex(len(plan.rows), len(plan.cols)):
        window, block = plan.window(row, col), plan.block(row, col)
        x, _ = engine.read(scene, window)
        answer = engine.logits(torch.from_numpy(x[None]))[0].numpy()
        logits[:, *block.slices] = answer[:, *block.slices_in(window)]
    p = torch.from_numpy(logits / temperature).double().softmax(0).numpy()
    order = np.argsort(-logits, axis=0, kind="stable")
    codes = TENS.codes
    out = {name: read_raster(path) for name, path in everything(tmp_path / "out").items()}
    found = read_raster(tmp_path / "out" / "map.tif")
    assert (found != np.where(valid, codes[order[0]], 0)).mean() < 0.001  # ties in the last digit
    assert (out["second"] != np.where(valid, codes[order[1]], 0)).mean() < 0.001
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(0) / np.log(10)
    for name, share in (("confidence", p.max(0)), ("entropy", entropy)):
        assert (out[name][~valid] == 255).all()
        assert np.abs(out[name][valid] - 100 * share[valid]).max() < 0.52
    assert np.abs(out["probabilities"][:, valid] - 100 * p[:, valid]).max() < 0.52
    assert (out["probabilities"][:, ~valid] == 255).all()
    with rasterio.open(tmp_path / "out" / "probabilities.tif") as file:
        assert list(file.descriptions) == list(TENS.keys)
    assert len(np.unique(found)) > 3


def test_areas_stand_in_the_tags_and_a_stac_item_describes_the_map(tmp_path, scene):
    made = run(scene, tmp_path / "out", stac=tmp_path / "out" / "map.json")
    with rasterio.open(tmp_path / "out" / "map.tif") as file:
        tags, bounds = file.tags(), file.bounds
    for code, count in made.counts.items():
        assert tags[f"area_{code}"] == f"{count * 0.01:.2f} ha"
        assert made.hectares[code] == pytest.approx(count * 0.01)
    assert tags["engine"] == "torch by hand"
    item = json.loads((tmp_path / "out" / "map.json").read_text())
    assert (item["type"], item["stac_version"], item["id"]) == ("Feature", "1.1.0", "map")
    assert item["properties"]["proj:code"] == "EPSG:32631"
    assert item["properties"]["proj:shape"] == list(SHAPE)
    assert item["properties"]["cobertes:hectares"]["class-20"] == pytest.approx(made.hectares[20], abs=1e-3)
    assert set(item["assets"]) == {"map", "confidence", "second", "entropy", "probabilities"}
    assert item["assets"]["map"]["href"] == "./map.tif"
    assert item["assets"]["map"]["classification:classes"][0] == {
        "value": 10, "name": "class-10", "title": "Class & 10", "color_hint": "0A00FF"
    }  # fmt: skip
    west, south, east, north = item["bbox"]
    lon, lat = rasterio.warp.transform("EPSG:32631", "EPSG:4326", [bounds.left], [bounds.top])
    assert west - 1e-3 < lon[0] < east
    assert south < lat[0] < north + 1e-3
    assert item["properties"]["datetime"]


def test_the_time_of_an_item_comes_from_the_scenes_names(tmp_path):
    from cobertes.predict.stac import _times

    assert _times(["a/S2_CAT_201804_UTM.tif", "S2_CAT_20180815.tif"]) == (
        "2018-04-01T00:00:00Z",
        "2018-08-15T00:00:00Z",
    )
    path = tmp_path / "T31TDG.tif"
    path.touch()
    os.utime(path, (86400, 86400))
    assert _times([str(path)]) == ("1970-01-02T00:00:00Z",) * 2


# --- what goes wrong ---------------------------------------------------------------------------------------


def test_numbers_that_are_no_date_are_passed_over(tmp_path):
    from cobertes.predict.stac import _times

    assert _times([str(tmp_path / "s2_20180431_20180430.tif")])[0] == "2018-04-30T00:00:00Z"


def test_a_clip_without_a_polygon_is_told(tmp_path, scene):
    points = gpd.GeoDataFrame(geometry=[shapely.Point(500_050, 4_599_950), None], crs="EPSG:32631")
    points.to_file(tmp_path / "points.gpkg")
    with pytest.raises(InputFileError, match=r"points\.gpkg holds no polygons"):
        open_clip(tmp_path / "points.gpkg", next(iter(scene.values())).grid)


def test_a_read_error_in_the_middle_is_told_and_can_be_resumed(tmp_path, scene):
    run(scene, tmp_path / "once")
    read = Scene.read_hwc

    def failing(self, window):
        if window.row > 40 and window.col > 40:
            raise InputFileError("can't read rows 48 to 80 of scene.tif")
        return read(self, window)

    with patch.object(Scene, "read_hwc", failing), pytest.raises(InputFileError, match="rows 48 to 80"):
        run(scene, tmp_path / "twice")
    assert all(name.startswith(".") for name in os.listdir(tmp_path / "twice"))
    run(scene, tmp_path / "twice", resume="yes")
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")


@pytest.mark.parametrize("error", [RuntimeError("a fault"), DeviceMemoryError("a GPU is full")])
def test_a_model_that_fails_is_told_and_can_be_resumed(tmp_path, scene, error):
    run(scene, tmp_path / "once")
    calls = []

    def logits(x):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return ENGINE.logits(x)

    failing = Engine(ENGINE.header, logits, ENGINE.how, ENGINE.identity)
    with pytest.raises(type(error), match=str(error)):
        run(scene, tmp_path / "twice", failing)
    assert (tmp_path / "twice" / ".map.tif.partial" / "ledger.json").exists()
    run(scene, tmp_path / "twice", resume="yes")
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")


def test_an_output_folder_that_is_removed_is_told(tmp_path, scene):
    def remove():
        shutil.rmtree(tmp_path / "out")

    with pytest.raises(StorageError, match=r"out was removed or emptied while it was written to"):
        run(scene, tmp_path / "out", progress=StoppedAfter(7, remove))
    assert not (tmp_path / "out" / "map.tif").exists()
    run(scene, tmp_path / "out")  # and a new one starts anew


def test_mistakes_leave_nothing_behind(tmp_path, scene):
    def wrong(x):
        raise CobertesError("of the user's")

    with pytest.raises(CobertesError):
        run(scene, tmp_path / "out", Engine(ENGINE.header, wrong, "x"))
    assert not list((tmp_path / "out").glob("[!.]*"))


# --- threads -----------------------------------------------------------------------------------------------


def test_items_ahead_come_in_order_and_errors_in_their_turn():
    def items():
        yield from range(5)
        raise InputFileError("truncated")

    before = threading.active_count()
    feed = in_background(items())
    assert [next(feed) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(InputFileError, match="truncated"):
        next(feed)
    assert threading.active_count() == before


def test_a_caller_who_stops_ends_the_threads():
    ended = []

    def items():
        try:
            yield from range(1000)
        finally:
            ended.append(True)

    before = threading.active_count()
    feed = in_background(items())
    assert next(feed) == 0
    feed.close()
    assert ended == [True]
    assert threading.active_count() == before


def test_batches_are_full_across_what_is_left_out():
    x, valid = np.ones((3, 4, 4), np.float32), np.ones((4, 4), bool)
    seen = (((0, i), (x * i, valid) if i % 3 == 0 else None) for i in range(14))
    found = list(batches(seen, 2))
    assert [position for batch in found for position, _ in batch.windows] == [(0, i) for i in range(14)]
    full = [batch.channels for batch in found if batch.channels is not None]
    assert [tuple(channels.shape) for channels in full] == [(2, 3, 4, 4)] * 3
    assert full[0][1, 0, 0, 0] == 3
    assert not full[2][1].any(), "filled up with zeros"


def test_one_strip_does_not_wait_for_the_next():
    """Reading goes on into the next strip while the model is at this one."""
    scenes, started = coordinates((64, 64)), threading.Event()

    def read(position):
        if position == (1, 1):
            started.set()
        return scenes[:, :32, :32].astype(np.float32), np.ones((32, 32), bool)

    from cobertes.geo.blending import WindowPlan

    plan = WindowPlan.of((64, 64), 32, 0, "interior")
    feed = map_blocks(
        reads_coordinates, plan, [(0, 0), (0, 1), (1, 0), (1, 1)], read, batch_size=2, threads=1, ahead=4
    )
    next(feed)
    assert started.wait(20)
    feed.close()


def test_sigterm_ends_a_command_as_an_interrupt_does(tmp_path):
    code = f"""
import os, signal, sys, threading
sys.path[:0] = {sys.path!r}
from cobertes.cli.app import app
from cobertes.cli.options import command
import cobertes.cli.main
@command(app, "wait", "x")
def wait(console):
    "x"
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(60)
app(["wait"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr


def test_the_default_of_the_command_is_that_of_the_function():
    from cobertes.cli import maps
    from cobertes.settings import PredictSettings

    assert maps.DEFAULT_BLEND == predict.DEFAULT_BLEND == PredictSettings().blend


assert Path(__file__).parent in map(Path, sys.path)
