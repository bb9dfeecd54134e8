"""Training samples, on rasters whose pixels hold their own coordinates, so that each can be checked exactly."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest

from cobertes.errors import InputFileError, NoTilesError
from cobertes.geo.area import Area
from cobertes.geo.scene import open_scene
from cobertes.labels.legend import IGNORE_INDEX, LandClass, Legend
from cobertes.learn import infer
from cobertes.learn.inputs import Inputs
from cobertes.learn.samples import Sampler, augment, batches
from cobertes.settings import SplitSettings, TileSettings, TrainSettings
from cobertes.tiles.ground import Ground
from cobertes.tiles.index import TileIndex, build_index
from cobertes.tiles.split import AreaSplit, Split
from rasters import UTM, coordinates, grid_at, write_raster

LEGEND = Legend(
    "test", 0, tuple(LandClass(c, f"class-{c}", f"Class {c}", "#00ff00") for c in (10, 20, 30, 40, 50))
)
SCALE = 1024.0
"""Coordinates are divided by a power of two: they come back exactly."""

PLAIN = {"jitter": 0.0, "flips": False, "turns": False, "crops": False, "sampling": "uniform"}


def code_at(row, col):
    """The label of a pixel (row, col from 1): no two neighbours alike, and no symmetry."""
    return LEGEND.codes[(3 * row + row * col % 7 + col) % len(LEGEND)]


@dataclass(frozen=True)
class Project:
    """A small project up to its tiles stage."""

    ground: Ground
    index: TileIndex

    def sampler(self, window=16, **options):
        return Sampler.of(self.index.frame, self.ground, TrainSettings(**options), window)


def project_of(folder, scenes, labels, *, legend=LEGEND, size=16, crs=UTM, nodata=None, **split):
    """A project of ``scenes`` {area: {season: (bands, height, width)}} and ``labels`` {area: (height, width)}."""
    areas, paths = [], {}
    for i, (name, seasons) in enumerate(scenes.items()):
        height, width = labels[name].shape
        grid = grid_at(height, width, crs=crs, origin=(240_000.0 + 1e5 * i, 4_780_000.0))
        opened = {
            season: open_scene([write_raster(folder / f"{name}-{season}.tif", values, grid, nodata=nodata)])
            for season, values in seasons.items()
        }
        areas.append(Area(name, opened))
        paths[name] = write_raster(folder / f"{name}-labels.tif", labels[name].astype(np.uint8), grid, nodata=0)
    settings = SplitSettings(**{"block": 2 * size, "guard": size // 2, "validation": 0.25} | split)
    index = build_index(areas, paths, legend, tiles=TileSettings(size=size), split=settings)
    return Project(Ground({area.name: area for area in areas}, paths, legend, index.split), index)


def coordinate_project(folder, shape=(150, 170), **options):
    values = coordinates(shape)
    return project_of(folder, {"here": {"scene": values}}, {"here": code_at(*values)}, **options)


EXACT = Inputs(("scene",), ("band1", "band2"), np.zeros((1, 2)), np.full((1, 2), SCALE))


def places(x):
    """Row and column (from 0) of each pixel of a sample, -1 where nothing was observed."""
    return (np.rint(x * SCALE) - 1).astype(int)


def area_with_letters(project, rows, edge):
    """The same project with another split: a letter per block of ``edge`` pixels."""
    letters = np.array([list(row) for row in rows])
    edges = [np.arange(n + 1) * edge for n in letters.shape]
    split = Split({"here": AreaSplit(letters, *edges)}, edge, project.ground.split.guard)
    return replace(project, ground=replace(project.ground, split=split))


# --- geometry ----------------------------------------------------------------------------------------------


def test_labels_move_with_the_image_through_crops_flips_and_turns(tmp_path):
    project = coordinate_project(tmp_path)
    sampler = project.sampler(window=13, jitter=0)
    ways = set()
    for epoch in (1, 2):
        for position, tile in enumerate(sampler.epoch(epoch)):
            x, y = sampler.sample(EXACT, epoch, position, tile)
            row, col = places(x)
            np.testing.assert_array_equal(LEGEND.codes[y], code_at(row + 1, col + 1))
            # each pixel of one window, once
            top, left = row.min(), col.min()
            window = {(top + i, left + j) for i in range(13) for j in range(13)}
            assert set(zip(row.flat, col.flat, strict=True)) == window
            ways.add((row[0, 0] - top, col[0, 0] - left, row[0, -1] - top, col[0, -1] - left))
    assert len(ways) == 8  # every flip and turn of a square was met


def test_without_variation_a_sample_is_its_tile(tmp_path):
    project = coordinate_project(tmp_path)
    sampler = project.sampler(**PLAIN)
    for tile, (row, col, _, _) in enumerate(sampler.tiles):
        x, y = sampler.sample(EXACT, 1, 0, tile)
        expected = np.mgrid[row : row + 16, col : col + 16]
        np.testing.assert_array_equal(places(x), expected)
        np.testing.assert_array_equal(LEGEND.codes[y], code_at(*(expected + 1)))


def test_seasons_stand_side_by_side_and_move_together(tmp_path):
    shape = (96, 96)
    april = coordinates(shape)
    project = project_of(tmp_path, {"here": {"april": april, "august": april + 200}}, {"here": code_at(*april)})
    inputs = Inputs(("april", "august"), ("band1", "band2"), np.zeros((2, 2)), np.full((2, 2), SCALE))
    sampler = project.sampler(jitter=0)
    for position in range(8):
        x, y = sampler.sample(inputs, 1, position, 0)
        assert x.shape == (4, 16, 16)
        np.testing.assert_array_equal(places(x[2:]), places(x[:2]) + 200)
        np.testing.assert_array_equal(LEGEND.codes[y], code_at(*(places(x[:2]) + 1)))


def test_random_crops_keep_to_training_blocks_and_their_guard_band(tmp_path):
    project = area_with_letters(coordinate_project(tmp_path, (128, 128)), ["tttt", "tvtt", "ttte", "tttt"], 32)
    allowed = np.ones((128, 128), bool)
    allowed[32 - 8 : 64 + 8, 32 - 8 : 64 + 8] = False
    allowed[64 - 8 : 96 + 8, 96 - 8 :] = False
    frame = project.index.frame.assign(keep=True, split="train")
    sampler = Sampler.of(frame, project.ground, TrainSettings(jitter=0), 16)
    assert 0 < len(sampler.tiles) < len(frame)  # tiles of other blocks and beside them fell away
    seen, starts = np.zeros((128, 128), bool), set()
    for epoch in range(1, 9):
        for position, tile in enumerate(sampler.epoch(epoch)):
            row, col = places(sampler.sample(EXACT, epoch, position, tile)[0])
            assert allowed[row, col].all()
            seen[row, col] = True
            starts.add((row.min() % 16, col.min() % 16))
    assert seen[allowed].mean() > 0.9
    assert len(starts) > 100


def test_a_window_larger_than_its_area_is_filled_up_with_nothing(tmp_path):
    areas = {name: coordinates((20, 24)) for name in "abcd"}
    project = project_of(
        tmp_path, {name: {"scene": v} for name, v in areas.items()}, {n: code_at(*v) for n, v in areas.items()},
        size=24, by="area", guard=0,
    )  # fmt: skip
    sampler = project.sampler(window=32, jitter=0)
    for position in range(10):
        x, y = sampler.sample(EXACT, 1, position, 0)
        row, col = places(x)
        inside = row >= 0
        assert inside.sum() == 20 * 24
        assert (x[:, ~inside] == 0).all()
        assert (y[~inside] == IGNORE_INDEX).all()
        np.testing.assert_array_equal(LEGEND.codes[y[inside]], code_at(row[inside] + 1, col[inside] + 1))


def test_pixels_without_observation_are_zero_and_without_label(tmp_path):
    values = coordinates((96, 96))
    hole = (values[0] % 5 == 0) & (values[1] % 3 == 0)
    labels = code_at(*values)
    values = np.where(hole, 0, values)
    project = project_of(tmp_path, {"here": {"scene": values}}, {"here": labels})
    sampler = project.sampler(jitter=0.5)
    for position, tile in enumerate(sampler.epoch(1)):
        x, y = sampler.sample(EXACT, 1, position, tile)
        np.testing.assert_array_equal(y == IGNORE_INDEX, (x == 0).all(axis=0))
        assert 0 < (y == IGNORE_INDEX).mean() < 0.2


def test_no_room_for_the_window_is_told_with_the_way_out(tmp_path):
    project = coordinate_project(tmp_path)
    with pytest.raises(NoTilesError, match=r"no window of 100 px .* guard band of 8 px.*smaller train.window"):
        project.sampler(window=100)
    nothing = project.index.frame.assign(keep=False)
    with pytest.raises(NoTilesError, match="no window of 16 px"):
        Sampler.of(nothing, project.ground, TrainSettings(), 16)


# --- which windows -----------------------------------------------------------------------------------------


def test_an_epoch_is_a_function_of_seed_and_number(tmp_path):
    project = coordinate_project(tmp_path)
    one, same, other = (project.sampler(seed=seed, samples=50) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.epoch(2), same.epoch(2))
    assert (one.epoch(2) != one.epoch(1)).any()
    assert (one.epoch(2) != other.epoch(2)).any()


def test_a_sample_is_a_function_of_seed_epoch_and_position(tmp_path):
    project = coordinate_project(tmp_path)
    one, same, other = (project.sampler(seed=seed) for seed in (3, 3, 4))
    x, y = one.sample(EXACT, 2, 5, 1)
    for again in (same.sample(EXACT, 2, 5, 1), one.sample(EXACT, 2, 5, 1)):
        np.testing.assert_array_equal(again[0], x)
        np.testing.assert_array_equal(again[1], y)
    for differs in (one.sample(EXACT, 3, 5, 1), one.sample(EXACT, 2, 6, 1), other.sample(EXACT, 2, 5, 1)):
        assert (differs[0] != x).any()


def test_a_uniform_epoch_meets_each_tile_as_often(tmp_path):
    project = coordinate_project(tmp_path)
    n = len(project.sampler().tiles)
    assert sorted(project.sampler(sampling="uniform").epoch(1)) == list(range(n))
    counts = np.bincount(project.sampler(sampling="uniform", samples=2 * n + 3).epoch(1), minlength=n)
    assert set(counts) == {2, 3}
    assert len(project.sampler(sampling="uniform", samples=5).epoch(1)) == 5


def test_balanced_sampling_meets_rare_classes_more_often_and_forgets_no_tile(tmp_path):
    labels = np.full((160, 160), 10)
    labels[::16, 64:80] = 50  # a rare class, in one column of tiles
    values = coordinates((160, 160))
    project = project_of(tmp_path, {"here": {"scene": values}}, {"here": labels}, seed=1)

    def share(sampling):
        sampler = project.sampler(sampling=sampling, samples=4000)
        rare = sampler.tiles[:, 1] == 64
        assert 0 < rare.sum() < len(rare) / 3
        drawn = sampler.epoch(1)
        assert set(drawn) == set(range(len(sampler.tiles)))
        return rare[drawn].mean()

    assert share("balanced") > 1.1 * share("uniform")


# --- feeding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_do_not_depend_on_threads(tmp_path, monkeypatch, threads):
    project = coordinate_project(tmp_path)
    sampler = project.sampler(samples=11)
    monkeypatch.setattr(infer, "READ_THREADS", threads)
    found = list(batches(sampler, EXACT, 3, 4))
    expected = [sampler.sample(EXACT, 3, i, tile) for i, tile in enumerate(sampler.epoch(3))]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in found]), np.stack([x for x, _ in expected]))
    np.testing.assert_array_equal(np.concatenate([y for _, y in found]), np.stack([y for _, y in expected]))


@pytest.mark.parametrize(
    ("samples", "batch_size", "sizes"),
    [(9, 8, [5, 4]), (8, 4, [4, 4]), (3, 8, [3]), (25, 12, [9, 8, 8]), (1, 1, [1])],
)
def test_a_last_batch_is_no_leftover(tmp_path, samples, batch_size, sizes):
    sampler = coordinate_project(tmp_path, (96, 96)).sampler(samples=samples)
    found = list(batches(sampler, EXACT, 1, batch_size))
    assert [len(x) for x, _ in found] == sizes
    x, y = found[0]
    assert (x.shape[1:], x.dtype, y.shape[1:], y.dtype) == ((2, 16, 16), np.float32, (16, 16), np.uint8)


def test_a_damaged_scene_stops_the_feed_with_its_name(tmp_path):
    project = coordinate_project(tmp_path)
    path = tmp_path / "here-scene.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
    with pytest.raises(InputFileError, match=r"here-scene\.tif"):
        list(batches(project.sampler(), EXACT, 1, 4))


# --- colours -----------------------------------------------------------------------------------------------


def test_jitter_is_a_gain_and_an_offset_per_channel():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 40, 40)).astype(np.float32)
    x[:, :5] = 0
    settings = SimpleNamespace(flips=False, turns=False, jitter=0.05)
    gains, offsets = [], []
    for seed in range(300):
        varied, _ = augment(np.random.default_rng(seed), x.copy(), np.zeros((40, 40), np.uint8), settings)
        assert varied.dtype == np.float32
        assert not varied[:, :5].any()
        for before, after in zip(x[:, 5:], varied[:, 5:], strict=True):
            gain, offset = np.polyfit(before.ravel(), after.ravel(), 1)
            np.testing.assert_allclose(after, before * gain + offset, atol=1e-5)
            gains.append(gain)
            offsets.append(offset)
    assert np.mean(gains) == pytest.approx(1, abs=0.01)
    assert np.std(gains) == pytest.approx(0.05, rel=0.15)
    assert np.mean(offsets) == pytest.approx(0, abs=0.01)
    assert np.std(offsets) == pytest.approx(0.05, rel=0.15)


@pytest.mark.parametrize(("flips", "turns", "ways"), [(False, False, 1), (True, False, 2), (False, True, 4)])
def test_each_variation_can_be_switched_off(flips, turns, ways):
    x = np.arange(1, 10, dtype=np.float32).reshape(1, 3, 3)
    settings = SimpleNamespace(flips=flips, turns=turns, jitter=0)
    found = set()
    for seed in range(60):
        varied, y = augment(np.random.default_rng(seed), x.copy(), x[0].astype(np.uint8), settings)
        np.testing.assert_array_equal(varied[0], y)
        found.add(tuple(y.ravel().tolist()))
    assert len(found) == ways
