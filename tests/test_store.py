"""The tile store: the same pixels as the scene, copied once, within a budget, and again after a kill."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from cobertes.errors import InputFileError, StorageError
from cobertes.geo.area import Area
from cobertes.geo.scene import Scene, open_scene
from cobertes.geo.windows import Window
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.learn.loader import read_sample
from cobertes.tiles import store as store_module
from cobertes.tiles.store import make_store
from helpers.interruptions import run_until_killed
from helpers.rasters import coordinates, grid_at, write_raster
from helpers.samples import EXACT, EXACTLY, code_at, project_of

SHAPE = (150, 170)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "CHUNK", 32)
    monkeypatch.setattr(store_module, "RUN", 2)
    values = coordinates(SHAPE)
    values[:, 40:60, 40:60] = 0
    return project_of(tmp_path, {"here": {"april": values, "august": values + 1000}}, {"here": code_at(*values)})


def store_of(project, folder, *, fingerprint="a", **options):
    ground = project.ground
    windows = {"here": [Window(0, 0, 90, 60), Window(100, 130, 60, 60)]}
    return make_store(
        folder, ground.areas, ground.labels, windows, fingerprint=fingerprint, **({"every_scene": True} | options)
    )


def test_a_store_holds_what_the_scenes_and_labels_hold(project, tmp_path):
    store = store_of(project, tmp_path / "store")
    plain, fed = project.ground, replace(project.ground, store=store)
    rng = np.random.default_rng(0)
    stored = 0
    for _ in range(200):
        row, col, size = rng.integers(-10, 150), rng.integers(-10, 170), rng.integers(1, 50)
        window = Window(int(row), int(col), int(size), int(size))
        (expected, y), (found, z) = (g.read_hwc("here", window) for g in (plain, fed))
        np.testing.assert_array_equal(z, y)
        for season in ("april", "august"):
            np.testing.assert_array_equal(found[season][0], expected[season][0])
            np.testing.assert_array_equal(found[season][1], expected[season][1])
        inside = window.clip(SHAPE)
        stored += 0 not in inside.shape and store.read("here", "scene", "april", inside) is not None
    assert 20 < stored < 150  # some come from the store, some from the scenes
    assert store.read("here", "scene", "april", Window(0, 0, 96, 64)) is not None
    assert store.read("here", "scene", "april", Window(0, 0, 97, 64)) is None


def test_beyond_the_edge_of_a_stored_area_nothing_was_observed_whatever_nodata_is(tmp_path):
    values = coordinates((64, 64))
    project = project_of(tmp_path, {"here": {"scene": values}}, {"here": code_at(*values)}, nodata=65535)
    ground = project.ground
    whole = make_store(
        tmp_path / "store", ground.areas, ground.labels, {"here": [Window(0, 0, 64, 64)]}, fingerprint="a",
        every_scene=True,
    )  # fmt: skip
    window = Window(50, -6, 20, 20)
    for kept in (None, whole):
        observed, y = replace(ground, store=kept).read_hwc("here", window)
        pixels, seen = observed["scene"]
        expected = np.zeros((20, 20), bool)
        expected[:14, 6:] = True
        np.testing.assert_array_equal(seen, expected)
        np.testing.assert_array_equal(y == IGNORE_INDEX, ~expected)
        np.testing.assert_array_equal(pixels[:14, 6:], np.moveaxis(values[:, 50:64, 0:14], 0, 2))


def test_scenes_that_can_be_read_as_they_are_stay_where_they_are(project, tmp_path):
    grid, values = grid_at(*SHAPE), coordinates(SHAPE).astype(np.uint16)
    write_raster(tmp_path / "here-april.tif", values, grid, interleave="pixel")
    write_raster(tmp_path / "here-august.tif", values, grid, interleave="pixel", compress="deflate")
    seasons = {name: open_scene([str(tmp_path / f"here-{name}.tif")]) for name in ("april", "august")}
    project = replace(project, ground=replace(project.ground, areas={"here": Area("here", seasons)}))
    store = store_of(project, tmp_path / "store", every_scene=False)
    assert set(store.chunks) == {("here", "scene", "august"), ("here", "labels", "")}


def test_samples_do_not_depend_on_the_store(project, tmp_path):
    shares = np.random.default_rng(0).integers(0, 101, (3, *SHAPE)).astype(np.uint8)
    shares[:, :30] = 255
    paths = {"here": write_raster(tmp_path / "shares.tif", shares, grid_at(*SHAPE), nodata=255)}
    project = replace(project, ground=replace(project.ground, shares=paths))
    store = store_of(project, tmp_path / "store", shares=paths)
    assert store.read("here", "shares", "", Window(0, 0, 40, 40)).shape == (40, 40, 3)
    fed = replace(project, ground=replace(project.ground, store=store))
    inputs = replace(EXACT, seasons=("april", "august"), mean=np.zeros((2, 2)), std=np.full((2, 2), 1024.0))
    one, other = (p.sampler(augmentation=EXACTLY, samples=30) for p in (project, fed))
    for position, tile in enumerate(one.epoch(1)):
        for a, b in zip(
            read_sample(one, inputs, 1, position, tile, 16),
            read_sample(other, inputs, 1, position, tile, 16),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def test_a_store_is_made_once_and_again_where_something_changed(project, tmp_path, monkeypatch):
    read = []
    original = Scene.read_hwc

    def noted(self, window):
        read.append(window)
        return original(self, window)

    monkeypatch.setattr(Scene, "read_hwc", noted)
    store_of(project, tmp_path / "store")
    count = len(read)
    assert count > 0
    store_of(project, tmp_path / "store")
    assert len(read) == count
    store_of(project, tmp_path / "store", fingerprint="b")
    assert len(read) == 2 * count
    (tmp_path / "store" / "ledger.json").write_text("{")
    store_of(project, tmp_path / "store", fingerprint="b")
    assert len(read) == 3 * count


def test_a_store_that_lacks_only_what_can_not_be_read_is_left_as_it_is(project, tmp_path, monkeypatch):
    original = Scene.read_hwc

    def damaged(self, window):
        if window.row == 0 == window.col:
            raise InputFileError("damaged")
        return original(self, window)

    monkeypatch.setattr(Scene, "read_hwc", damaged)
    store = store_of(project, tmp_path / "store", unreadable="skip")
    ledger = tmp_path / "store" / "ledger.json"
    before = ledger.stat().st_mtime_ns, ledger.stat().st_ino
    again = store_of(project, tmp_path / "store", unreadable="skip")
    assert (ledger.stat().st_mtime_ns, ledger.stat().st_ino) == before
    for key, mapped in store.chunks.items():
        np.testing.assert_array_equal(again.chunks[key].offsets, mapped.offsets)
    monkeypatch.setattr(Scene, "read_hwc", original)
    store_of(project, tmp_path / "store", unreadable="skip")  # mended
    assert ledger.stat().st_ino != before[1]


def test_a_copy_that_failed_goes_on_where_it_stopped(project, tmp_path, monkeypatch):
    original, calls, lock = Scene.read_hwc, [], threading.Lock()

    def failing(self, window):
        with lock:
            calls.append(window)
            if len(calls) > 6:
                raise KeyboardInterrupt
        return original(self, window)

    monkeypatch.setattr(Scene, "read_hwc", failing)
    with pytest.raises(KeyboardInterrupt):
        store_of(project, tmp_path / "store")
    monkeypatch.setattr(Scene, "read_hwc", original)
    again = []
    monkeypatch.setattr(Scene, "read_hwc", lambda self, window: (again.append(window), original(self, window))[1])
    store = store_of(project, tmp_path / "store")
    whole = store_of(project, tmp_path / "other")
    assert 0 < len(again) // 2 < len(again)
    for key, mapped in whole.chunks.items():
        np.testing.assert_array_equal(store.chunks[key].values.flat, mapped.values.flat)


def test_a_killed_copy_goes_on_with_the_same_bytes(project, tmp_path):
    script = f"""
        from pathlib import Path
        from cobertes.geo import ledger
        from cobertes.geo.scene import Scene, open_scene
        from cobertes.geo.area import Area
        from cobertes.geo.windows import Window
        from cobertes.tiles import store
        from helpers.interruptions import kill
        ledger.SECONDS = 0.0
        store.CHUNK, store.RUN, store.COPY_THREADS = 32, 2, 1
        original, calls = Scene.read_hwc, []
        def killed(self, window):
            calls.append(window)
            if len(calls) == 5:
                kill()
            return original(self, window)
        Scene.read_hwc = killed
        folder = Path({str(tmp_path)!r})
        scenes = {{s: open_scene([str(folder / f"here-{{s}}.tif")]) for s in ("april", "august")}}
        store.make_store(folder / "store", {{"here": Area("here", scenes)}}, {{"here": folder / "here-labels.tif"}},
            {{"here": [Window(0, 0, 90, 60), Window(100, 130, 60, 60)]}}, fingerprint="a", every_scene=True)
    """
    run_until_killed(script)
    noted = (tmp_path / "store" / "ledger.json").read_text()
    assert '"done": [\n    0,' in noted
    store, whole = store_of(project, tmp_path / "store"), store_of(project, tmp_path / "other")
    assert (tmp_path / "store" / "pixels.bin").read_bytes() == (tmp_path / "other" / "pixels.bin").read_bytes()
    assert set(store.chunks) == set(whole.chunks)


def test_a_store_keeps_to_its_budget_and_says_so(project, tmp_path, caplog):
    assert store_of(project, tmp_path / "store", max_gb=1e-6) is None
    assert "the tile store would take 0.0 GB, tiles.store-gb allows 1e-06" in caplog.text
    assert not (tmp_path / "store").exists()


def test_a_full_disk_is_told_before_the_copy(project, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(StorageError, match=r'0 MB free, the tile store needs .* set tiles\.store = "never"'):
        store_of(project, tmp_path / "store")
