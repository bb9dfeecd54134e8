"""Training samples, on rasters whose pixels hold their own coordinates, so that each can be checked exactly."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobertes.errors import InputFileError, NoTilesError
from cobertes.geo.area import Area
from cobertes.geo.scene import open_scene
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.learn import inference, loader
from cobertes.learn.augment import sample_augmentation
from cobertes.learn.encoding import Inputs
from cobertes.learn.loader import batches, read_sample
from cobertes.learn.sampler import Sampler, balanced
from cobertes.settings import Augmentation, AugmentationSettings, TrainSettings
from cobertes.tiles.dataset import LabelledDataset
from helpers.rasters import coordinates, grid_at, write_raster
from helpers.samples import (
    EXACT,
    EXACTLY,
    LEGEND,
    PLAIN,
    SCALE,
    STILL,
    area_with_letters,
    code_at,
    coordinate_project,
    project_of,
)


def places(x):
    """Row and column (from 0) of each pixel of a sample, -1 where nothing was observed."""
    return (np.rint(x * SCALE) - 1).astype(int)


# --- geometry ----------------------------------------------------------------------------------------------


def test_labels_move_with_the_image_through_crops_flips_and_turns(tmp_path):
    project = coordinate_project(tmp_path)
    sampler = project.sampler(window=13)
    ways = set()
    for epoch in (1, 2):
        for position, tile in enumerate(sampler.epoch(epoch)):
            x, y, _ = read_sample(sampler, EXACT, epoch, position, tile, 13)
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
        x, y, _ = read_sample(sampler, EXACT, 1, 0, tile, 16)
        expected = np.mgrid[row : row + 16, col : col + 16]
        np.testing.assert_array_equal(places(x), expected)
        np.testing.assert_array_equal(LEGEND.codes[y], code_at(*(expected + 1)))


def test_seasons_stand_side_by_side_and_move_together(tmp_path):
    shape = (96, 96)
    april = coordinates(shape)
    project = project_of(tmp_path, {"here": {"april": april, "august": april + 200}}, {"here": code_at(*april)})
    inputs = Inputs(("april", "august"), ("band1", "band2"), np.zeros((2, 2)), np.full((2, 2), SCALE))
    sampler = project.sampler()
    for position in range(8):
        x, y, _ = read_sample(sampler, inputs, 1, position, 0, 16)
        assert x.shape == (4, 16, 16)
        np.testing.assert_array_equal(places(x[2:]), places(x[:2]) + 200)
        np.testing.assert_array_equal(LEGEND.codes[y], code_at(*(places(x[:2]) + 1)))


def test_random_crops_keep_to_training_blocks_and_their_guard_band(tmp_path):
    project = area_with_letters(coordinate_project(tmp_path, (128, 128)), ["tttt", "tvtt", "ttte", "tttt"], 32)
    allowed = np.ones((128, 128), bool)
    allowed[32 - 8 : 64 + 8, 32 - 8 : 64 + 8] = False
    allowed[64 - 8 : 96 + 8, 96 - 8 :] = False
    index = project.index.table.assign(keep=True, split="train")
    sampler = Sampler.of(index, project.ground, TrainSettings(), (16,), EXACTLY)
    assert 0 < len(sampler.tiles) < len(index)  # tiles of other blocks and beside them fell away
    seen, starts = np.zeros((128, 128), bool), set()
    for epoch in range(1, 9):
        for position, tile in enumerate(sampler.epoch(epoch)):
            row, col = places(read_sample(sampler, EXACT, epoch, position, tile, 16)[0])
            assert allowed[row, col].all()
            seen[row, col] = True
            starts.add((row.min() % 16, col.min() % 16))
    assert seen[allowed].mean() > 0.9
    assert len(starts) > 100


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("tttve."), min_size=4, max_size=4), min_size=4, max_size=4),
    st.sets(st.integers(5, 20), min_size=1, max_size=3), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 12),
)  # fmt: skip
def test_no_crop_of_any_size_or_zoom_comes_near_held_out_ground(one, letters, sizes, zoom, guard):
    project = area_with_letters(one, letters, 40)
    split = replace(project.ground.split, guard=guard)
    shown = []

    @dataclass(frozen=True)
    class Watched(LabelledDataset):
        def read_hwc(self, area, window, seasons=None):
            shown.append(window)
            return super().read_hwc(area, window, seasons)

    ground = Watched({**project.ground.areas}, project.ground.labels, LEGEND, split)
    index = project.index.table.assign(keep=True, split="train", reason="")
    options = TrainSettings(zoom=zoom, samples=40)
    try:
        sampler = Sampler.of(index, ground, options, tuple(sorted(sizes)), EXACTLY)
    except NoTilesError:  # no room
        return
    for _ in batches(sampler, EXACT, 1, 8):
        pass
    held = np.kron(np.isin(letters, ["v", "e"]), np.ones((40, 40), bool))
    assert len(shown) >= 40  # smaller windows come in larger numbers
    for window in shown:
        assert window == window.clip(held.shape)
        assert not held[window.pad(guard).clip(held.shape).slices].any()


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A project of 160 x 160 px; its split is replaced."""
    return coordinate_project(tmp_path_factory.mktemp("one"), (160, 160))


def test_a_window_larger_than_its_area_is_filled_up_with_nothing(tmp_path):
    areas = {name: coordinates((20, 24)) for name in "abcd"}
    project = project_of(
        tmp_path, {name: {"scene": v} for name, v in areas.items()}, {n: code_at(*v) for n, v in areas.items()},
        size=24, by="area", guard=0,
    )  # fmt: skip
    sampler = project.sampler(window=32)
    for position in range(10):
        x, y, _ = read_sample(sampler, EXACT, 1, position, 0, 32)
        row, col = places(x)
        inside = row >= 0
        assert inside.sum() == 20 * 24
        assert (x[:, ~inside] == 0).all()
        assert (y[~inside] == IGNORE_INDEX).all()
        np.testing.assert_array_equal(LEGEND.codes[y[inside]], code_at(row[inside] + 1, col[inside] + 1))


def test_pixels_without_observation_are_zero_and_without_label(tmp_path):
    values = coordinates((96, 96))
    cutout = (values[0] % 5 == 0) & (values[1] % 3 == 0)
    labels = code_at(*values)
    values = np.where(cutout, 0, values)
    project = project_of(tmp_path, {"here": {"scene": values}}, {"here": labels})
    sampler = project.sampler(augmentation=AugmentationSettings(jitter=Augmentation(strength=0.5)))
    for position, tile in enumerate(sampler.epoch(1)):
        x, y, _ = read_sample(sampler, EXACT, 1, position, tile, 16)
        np.testing.assert_array_equal(y == IGNORE_INDEX, (x == 0).all(axis=0))
        assert 0 < (y == IGNORE_INDEX).mean() < 0.2


def test_no_room_for_the_window_is_told_with_the_way_out(tmp_path):
    project = coordinate_project(tmp_path)
    with pytest.raises(NoTilesError, match=r"no window of 100 px .* guard band of 8 px.*smaller train.window"):
        project.sampler(window=100)
    nothing = project.index.table.assign(keep=False)
    with pytest.raises(NoTilesError, match="no window of 16 px"):
        Sampler.of(nothing, project.ground, TrainSettings(crops=False), (16,))


# --- which windows -----------------------------------------------------------------------------------------


def test_an_epoch_is_a_function_of_seed_and_number(tmp_path):
    project = coordinate_project(tmp_path)
    one, same, other = (project.sampler(seed=seed, samples=50) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.epoch(2), same.epoch(2))
    assert (one.epoch(2) != one.epoch(1)).any()
    assert (one.epoch(2) != other.epoch(2)).any()


def test_a_sample_is_a_function_of_seed_epoch_and_position(tmp_path):
    project = coordinate_project(tmp_path)
    jitter = AugmentationSettings(noise=Augmentation(strength=0.1))
    one, same, other = (project.sampler(seed=seed, augmentation=jitter) for seed in (3, 3, 4))
    x, y, _ = read_sample(one, EXACT, 2, 5, 1, 16)
    for again in (read_sample(same, EXACT, 2, 5, 1, 16), read_sample(one, EXACT, 2, 5, 1, 16)):
        np.testing.assert_array_equal(again[0], x)
        np.testing.assert_array_equal(again[1], y)
    for differs in (
        read_sample(one, EXACT, 3, 5, 1, 16),
        read_sample(one, EXACT, 2, 6, 1, 16),
        read_sample(other, EXACT, 2, 5, 1, 16),
    ):
        assert (differs[0] != x).any()


def test_a_uniform_epoch_meets_each_tile_as_often(tmp_path):
    project = coordinate_project(tmp_path)
    even = {"sampling": "shuffled", "crops": False}
    n = len(project.sampler(**even).tiles)
    assert sorted(project.sampler(**even).epoch(1)) == list(range(n))
    counts = np.bincount(project.sampler(**even, samples=2 * n + 3).epoch(1), minlength=n)
    assert set(counts) == {2, 3}
    assert len(project.sampler(**even, samples=5).epoch(1)) == 5
    assert project.sampler(sampling="in-order", crops=False, samples=n + 2).epoch(1).tolist() == [*range(n), 0, 1]


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

    assert share("balanced") > 1.1 * share("shuffled")


# --- feeding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_do_not_depend_on_threads(tmp_path, monkeypatch, threads):
    project = coordinate_project(tmp_path)
    sampler = project.sampler(samples=11)
    monkeypatch.setattr(inference, "READ_THREADS", threads)
    found = [(x.copy(), y.copy()) for x, y, _ in batches(sampler, EXACT, 3, 4)]
    expected = [read_sample(sampler, EXACT, 3, i, tile, 16) for i, tile in enumerate(sampler.epoch(3))]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in found]), np.stack([x for x, _, _ in expected]))
    np.testing.assert_array_equal(np.concatenate([y for _, y in found]), np.stack([y for _, y, _ in expected]))


def test_a_batch_keeps_its_values_unless_its_memory_may_be_reused(tmp_path):
    sampler = coordinate_project(tmp_path).sampler(samples=60)
    expected = [x.copy() for x, _, _ in batches(sampler, EXACT, 1, 6)]
    kept = list(batches(sampler, EXACT, 1, 6))
    np.testing.assert_array_equal(np.stack([x for x, _, _ in kept]), np.stack(expected))
    assert len({x.__array_interface__["data"][0] for x, _, _ in kept}) == len(kept) == 10
    reused, addresses = [], set()
    for x, _, _ in batches(sampler, EXACT, 1, 6, reuse=True):
        reused.append(x.copy())
        addresses.add(x.__array_interface__["data"][0])
    np.testing.assert_array_equal(np.stack(reused), np.stack(expected))
    assert len(addresses) < 10


@pytest.mark.parametrize(
    ("samples", "batch_size", "sizes"),
    [(9, 8, [5, 4]), (8, 4, [4, 4]), (3, 8, [3]), (25, 12, [9, 8, 8]), (1, 1, [1])],
)
def test_a_last_batch_is_no_leftover(tmp_path, samples, batch_size, sizes):
    sampler = coordinate_project(tmp_path, (96, 96)).sampler(samples=samples)
    found = list(batches(sampler, EXACT, 1, batch_size))
    assert [len(x) for x, _, _ in found] == sizes
    x, y, _ = found[0]
    assert (x.shape[1:], x.dtype, y.shape[1:], y.dtype) == ((2, 16, 16), np.float32, (16, 16), np.uint8)


def test_a_damaged_scene_stops_the_feed_with_its_name(tmp_path):
    project = coordinate_project(tmp_path)
    path = tmp_path / "here-scene.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
    with pytest.raises(InputFileError, match=r"here-scene\.tif"):
        list(batches(project.sampler(), EXACT, 1, 4))


# --- scales and seasons ------------------------------------------------------------------------------------


def test_each_batch_draws_one_of_the_windows(tmp_path):
    sampler = coordinate_project(tmp_path).sampler(window=(12, 16), samples=64, window_order="random")
    sizes = [x.shape[-1] for x, _, _ in batches(sampler, EXACT, 1, 4)]
    assert sizes == [x.shape[-1] for x, _, _ in batches(sampler, EXACT, 1, 4)]
    assert set(sizes) == {12, 16}


def test_the_largest_windows_come_last(tmp_path):
    project = coordinate_project(tmp_path)
    sampler = project.sampler(window=(8, 12, 16), samples=64)
    for last, sizes in ((False, {8, 12}), (True, {16})):
        drawn = batches(sampler, EXACT, 1, 4, in_final_phase=last)
        assert {x.shape[-1] for x, _, _ in drawn} == sizes
    for alone in (16, (16, 16)):
        sampler = project.sampler(window=alone, samples=8)
        assert {x.shape[-1] for x, _, _ in batches(sampler, EXACT, 1, 4)} == {16}


def test_smaller_windows_come_in_numbers_that_have_the_pixels_of_the_largest(tmp_path):
    sampler = coordinate_project(tmp_path).sampler(window=(8, 16, 32), samples=64, window_order="random")
    found = [x.copy() for x, _, _ in batches(sampler, EXACT, 1, 4)]
    assert len(found) == 16
    assert {x.shape[-1]: len(x) for x in found} == {8: 64, 16: 16, 32: 4}
    halves = [[x.copy() for x, _, _ in batches(sampler, EXACT, 1, 4, (rank, 2))] for rank in range(2)]
    for whole, *parts in zip(found, *halves, strict=True):
        assert len(whole) == sum(map(len, parts))
    places = np.concatenate([x.reshape(*x.shape[:2], -1)[..., 0] for x in found if x.shape[-1] == 8])
    assert len(np.unique(places, axis=0)) > 0.9 * len(places)  # drawn one by one


def test_in_order_goes_from_tile_to_tile_whatever_the_windows(tmp_path):
    sampler = coordinate_project(tmp_path).sampler(window=(8, 16), sampling="in-order", samples=3)
    assert sampler.epoch(1).tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_zoomed_sample_shows_more_or_less_ground_and_its_labels(tmp_path):
    values = coordinates((160, 160))
    stripes = np.where(values[1] % 32 < 16, 10, 20)  # wide enough that nearest and bilinear agree inside
    project = project_of(tmp_path, {"here": {"scene": values}}, {"here": stripes}, size=32)
    sampler = project.sampler(window=32, augmentation=STILL, zoom=0.5, samples=40)
    steps = []
    for position, tile in enumerate(sampler.epoch(1)):
        x, y, _ = read_sample(sampler, EXACT, 1, position, tile, 32)
        row, col = x * SCALE
        step = np.diff(col[16]).mean()
        steps.append(step)
        np.testing.assert_allclose(np.diff(row[4:-4], axis=0), step, atol=0.1)
        inside = abs(col % 16 - 8) < 6
        np.testing.assert_array_equal(LEGEND.codes[y][inside], np.where(col % 32 < 16, 10, 20)[inside])
    assert min(steps) < 0.8
    assert max(steps) > 1.25
    assert 0.6 < min(steps) < max(steps) < 1.55


@pytest.mark.parametrize("bands", [1, 5])
def test_shares_move_with_the_image_through_crops_turns_and_zoom(tmp_path, bands):
    project = coordinate_project(tmp_path)
    row, col = coordinates((150, 170))
    kept = np.stack([(row * (k + 3) + col) % 101 for k in range(bands)]).astype(np.uint8)
    kept[:, :20] = 255  # nothing is known of the north
    paths = {"here": write_raster(tmp_path / "shares.tif", kept, grid_at(150, 170), nodata=255)}
    ground = replace(project.ground, shares=paths)
    for zoom in (0.0, 0.5):
        sampler = replace(project, ground=ground).sampler(window=13, zoom=zoom, samples=60)
        assert sampler.share_bands == bands
        for position, tile in enumerate(sampler.epoch(1)):
            x, y, shares = read_sample(sampler, EXACT, 1, position, tile, 13)
            assert shares.shape == (13, 13, bands)
            if zoom:  # values are interpolated, classes and shares nearest: of one pixel
                assert (shares[y == IGNORE_INDEX] == 0).all()
                continue
            r, c = places(x)
            expected = np.moveaxis(kept[:, r, c], 0, -1)
            np.testing.assert_array_equal(shares, np.where(expected == 255, 0, expected))
        for x, y, shares in batches(sampler, EXACT, 1, 8):
            assert shares.shape == (len(x), *y.shape[1:], bands)


def test_shares_are_zero_where_nothing_was_observed(tmp_path):
    values = coordinates((96, 96))
    labels = code_at(*values)
    values = np.where((values[0] % 5 == 0) & (values[1] % 3 == 0), 0, values)
    project = project_of(tmp_path, {"here": {"scene": values}}, {"here": labels})
    paths = {"here": write_raster(tmp_path / "shares.tif", np.full((3, 96, 96), 30, np.uint8), grid_at(96, 96))}
    sampler = replace(project, ground=replace(project.ground, shares=paths)).sampler()
    for position, tile in enumerate(sampler.epoch(1)):
        _, y, shares = read_sample(sampler, EXACT, 1, position, tile, 16)
        np.testing.assert_array_equal(shares, np.where(y == IGNORE_INDEX, 0, 30)[..., None].repeat(3, -1))
        assert (y == IGNORE_INDEX).any()


def two_seasons(folder):
    shape = (96, 96)
    april = coordinates(shape)
    august = np.where(april[1] < 40, 0, april + 200)  # clouds of nodata in the west
    project = project_of(folder, {"here": {"april": april, "august": august}}, {"here": code_at(*april)})
    scales = np.zeros((2, 2)), np.full((2, 2), SCALE)
    return project, Inputs(("april", "august"), ("band1", "band2"), *scales, "separate")


@pytest.mark.parametrize("order", ["random", "in-turn"])
def test_a_separate_sample_shows_one_season_and_its_own_labels(tmp_path, order):
    project, inputs = two_seasons(tmp_path)
    sampler = project.sampler(season_order=order, augmentation=STILL, samples=40)
    assert inputs.channels == 2
    shown = []
    for position, tile in enumerate(sampler.epoch(1)):
        x, y, _ = read_sample(sampler, inputs, 1, position, tile, 16)
        assert x.shape == (2, 16, 16)
        observed = (x != 0).all(axis=0)
        np.testing.assert_array_equal(y == IGNORE_INDEX, ~observed)
        if observed.any():
            shown.append("august" if places(x)[0][observed].min() > 190 else "april")
            row, col = places(x) - (200 if shown[-1] == "august" else 0)
            np.testing.assert_array_equal(LEGEND.codes[y[observed]], code_at(row + 1, col + 1)[observed])
        else:
            shown.append("august")
    assert set(shown) == {"april", "august"}
    if order == "in-turn":
        assert shown == ["august", "april"] * 20  # from epoch to epoch the other way round


def test_large_windows_show_seasons_in_turn_too(tmp_path, monkeypatch):
    project, inputs = two_seasons(tmp_path)
    plain = project.sampler(season_order="in-turn", augmentation=STILL, samples=8)
    sampler = replace(
        plain, windows=(4, 16), settings=plain.settings.model_copy(update={"window_order": "small-first"})
    )
    shown = []
    monkeypatch.setattr(
        loader, "_seasons", lambda sampler, rng, inputs, turn: shown.append(turn % 2) or inputs.seasons[:1]
    )
    for last, each in ((False, 16), (True, 1)):
        for batch in batches(sampler, inputs, 1, 2, in_final_phase=last):
            assert len(batch.x) == 2 * each
        assert sorted(shown) == [0] * 4 * each + [1] * 4 * each
        shown.clear()


def test_crops_reach_the_training_ground_of_tiles_beside_held_out_blocks(tmp_path):
    project = area_with_letters(coordinate_project(tmp_path, (128, 128)), ["tttt", "tvtt", "ttte", "tttt"], 32)
    index = project.index.table.assign(keep=False, reason="guard band")
    sampler = Sampler.of(index, project.ground, TrainSettings(), (16,), EXACTLY)
    assert len(sampler.tiles) > 0
    assert sampler.weights.max() > 1.5 * sampler.weights.min()  # less of a tile fits, less often it is drawn
    with pytest.raises(NoTilesError):
        Sampler.of(index, project.ground, TrainSettings(crops=False), (16,), EXACTLY)


def test_crops_keep_off_tiles_that_were_left_out_for_clouds(tmp_path):
    project = coordinate_project(tmp_path)
    index = project.index.table.copy()
    cloudy = index.index[index["keep"] & (index["split"] == "train")][::3]
    index.loc[cloudy, "keep"], index.loc[cloudy, "reason"] = False, "cloudy"
    bad = np.zeros((150, 170), bool)
    for row, col, height, width in index.loc[cloudy, ["row", "col", "height", "width"]].to_numpy():
        bad[row : row + height, col : col + width] = True
    for row, col, height, width in index.loc[index["keep"], ["row", "col", "height", "width"]].to_numpy():
        bad[row : row + height, col : col + width] = False  # what a good tile shares is good
    sampler = Sampler.of(index, project.ground, TrainSettings(samples=300), (8,), EXACTLY)
    for position, tile in enumerate(sampler.epoch(1)):
        row, col = places(read_sample(sampler, EXACT, 1, position, tile, 8)[0])
        assert not bad[row, col].any()


@given(st.integers(1, 6), st.floats(0, 1), st.integers(0, 99))
@settings(deadline=None)
def test_balanced_weights_bring_classes_nearer_to_equal(classes, strength, seed):
    rng = np.random.default_rng(seed)
    counts = rng.dirichlet(np.full(classes, 0.3), 40) * 100
    even = np.full(40, 1 / 40)
    weights = balanced(even, counts, strength)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() > 0.2 / 40

    def spread(w):
        met = w @ (counts / counts.sum(1, keepdims=True))
        return met.max() - met.min()

    assert spread(weights) <= spread(even) + 1e-3
    np.testing.assert_allclose(balanced(even, counts, 0.0), even, rtol=0.05)


# --- what happens to values ------------------------------------------------------------------------------------


def test_jitter_is_a_gain_and_an_offset_per_band():
    settings = AugmentationSettings(jitter=Augmentation(strength=0.05))
    drawn = [sample_augmentation(np.random.default_rng(seed), settings, 2, 3, 16) for seed in range(200)]
    gains = np.array([season.gain for one in drawn for season in one.seasons])
    offsets = np.array([season.offset for one in drawn for season in one.seasons])
    assert gains.mean() == pytest.approx(1, abs=0.01)
    assert offsets.mean() == pytest.approx(0, abs=0.01)
    assert gains.std(axis=0) == pytest.approx(0.05, rel=0.15)
    assert offsets.std(axis=0) == pytest.approx(0.05, rel=0.15)
    assert len(np.unique(gains)) == gains.size


def test_brightness_and_contrast_are_shared_by_the_bands_of_a_season():
    still = {"jitter": Augmentation()}
    settings = AugmentationSettings(
        **still, brightness=Augmentation(strength=0.2), contrast=Augmentation(strength=0.3)
    )
    for seed in range(20):
        for season in sample_augmentation(np.random.default_rng(seed), settings, 2, 3, 16).seasons:
            assert np.ptp(season.gain) == np.ptp(season.offset) == 0
            assert season.gain[0] != 1
            assert season.offset[0] != 0


def test_a_probability_alone_keeps_the_variation_s_own_strength():
    said = AugmentationSettings.model_validate(
        {"season-dropout": {"probability": 0.2}, "jitter": {"probability": 0.5}}
    )
    assert said.season_dropout == Augmentation(probability=0.2, strength=1.0)
    assert said.jitter == Augmentation(probability=0.5, strength=0.02)
    assert AugmentationSettings.model_validate({"noise": {"strength": 0.1}}).noise == Augmentation(strength=0.1)
    draws = [sample_augmentation(np.random.default_rng(n), said, 2, 3, 16) for n in range(500)]
    assert 0.14 < np.mean([any(season.dropped for season in one.seasons) for one in draws]) < 0.26


def test_probability_is_the_share_of_samples():
    settings = AugmentationSettings(
        jitter=Augmentation(probability=0.3, strength=0.1), season_dropout=Augmentation(probability=0.2, strength=1),
        cut_out=Augmentation(probability=0.4, strength=0.5), band_dropout=Augmentation(probability=1, strength=0.25),
    )  # fmt: skip
    drawn = [sample_augmentation(np.random.default_rng(seed), settings, 2, 8, 16) for seed in range(2000)]
    kept = [season for one in drawn for season in one.seasons]
    assert np.mean([any(s.dropped for s in one.seasons) for one in drawn]) == pytest.approx(0.2, abs=0.03)
    assert all(any(not s.dropped for s in one.seasons) for one in drawn)  # never all of them
    assert np.mean([any(s.cutout for s in one.seasons) for one in drawn]) == pytest.approx(0.4, abs=0.04)
    assert np.mean([(s.gain == 0).mean() for s in kept]) == pytest.approx(0.25, abs=0.02)
    assert np.mean([np.isin(s.gain, [0, 1]).all() for s in kept]) == pytest.approx(0.7, abs=0.03)
    assert {s.cutout[2] for s in kept if s.cutout} == {8}


@pytest.mark.parametrize(("flips", "turns", "ways"), [(False, False, 1), (True, False, 2), (False, True, 4)])
def test_each_turn_can_be_switched_off(flips, turns, ways):
    settings = AugmentationSettings(flips=flips, turns=turns)
    drawn = {sample_augmentation(np.random.default_rng(seed), settings, 1, 2, 8).turn for seed in range(60)}
    assert len(drawn) == ways


def test_noise_is_gaussian_where_something_was_observed(tmp_path):
    values = coordinates((96, 96))
    values[:, 30:50] = 0
    project = project_of(tmp_path, {"here": {"scene": values}}, {"here": np.full((96, 96), 10)})
    noisy = project.sampler(augmentation=replace_chances(noise=Augmentation(strength=0.3)))
    plain = project.sampler(augmentation=STILL)
    differences = []
    for position, tile in enumerate(noisy.epoch(1)):
        x, _, _ = read_sample(noisy, EXACT, 1, position, tile, 16)
        same, _, _ = read_sample(plain, EXACT, 1, position, tile, 16)
        assert not x[same == 0].any()
        differences.append((x - same)[same != 0])
    found = np.concatenate(differences)
    assert found.mean() == pytest.approx(0, abs=0.02)
    assert found.std() == pytest.approx(0.3, rel=0.05)


def replace_chances(**chances):
    return STILL.model_copy(update=chances)


def test_what_no_season_shows_any_more_is_not_asked_for(tmp_path):
    shape = (96, 96)
    april = coordinates(shape)
    project = project_of(tmp_path, {"here": {"april": april, "august": april + 200}}, {"here": code_at(*april)})
    inputs = Inputs(("april", "august"), ("band1", "band2"), np.zeros((2, 2)), np.full((2, 2), SCALE))
    holes = replace_chances(cut_out=Augmentation(strength=0.5))
    both = replace_chances(
        cut_out=Augmentation(strength=0.5), season_dropout=Augmentation(probability=1, strength=1)
    )
    for augmentation, ignored in ((holes, {0}), (both, {0, 64})):
        sampler = project.sampler(augmentation=augmentation, samples=30)
        found = set()
        for position, tile in enumerate(sampler.epoch(1)):
            x, y, _ = read_sample(sampler, inputs, 1, position, tile, 16)
            assert ((x == 0).all(axis=0) == (y == IGNORE_INDEX)).all()
            assert (x == 0).any()
            found.add(int((y == IGNORE_INDEX).sum()))
        assert found == ignored


# --- files that can't be read ----------------------------------------------------------------------------------


def test_a_block_that_can_not_be_read_can_be_skipped(tmp_path, caplog):
    values = coordinates((96, 96)).astype(np.uint16)
    project = project_of(tmp_path, {"here": {"scene": values}}, {"here": code_at(*coordinates((96, 96)))})
    path = tmp_path / "here-scene.tif"
    write_raster(path, values, grid_at(96, 96), compress="deflate", blockysize=8)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    project = replace(
        project, ground=replace(project.ground, areas={"here": Area("here", {"scene": open_scene([path])})})
    )
    with pytest.raises(InputFileError, match=r"rows \d+ to \d+, columns \d+ to \d+ of .*here-scene\.tif"):
        list(batches(project.sampler(samples=40), EXACT, 1, 4))
    lenient = replace(project, ground=replace(project.ground, unreadable="skip"))
    labelled = [
        (y != IGNORE_INDEX).any() for _, ys, _ in batches(lenient.sampler(samples=40), EXACT, 1, 4) for y in ys
    ]
    assert 0 < sum(labelled) < 40
    assert "left out: can't read rows" in caplog.text
