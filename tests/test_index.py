"""The tile index: every pixel counts once, training statistics come from training ground alone."""

import logging
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cobertes.errors import InputFileError, NoTilesError, SettingsError, SplitError
from cobertes.geo.area import Area
from cobertes.geo.scene import Scene, open_scene
from cobertes.geo.windows import Window, interiors
from cobertes.labels.legend import IGNORE_INDEX, Legend, LegendClass
from cobertes.settings import SplitSettings, TileSettings
from cobertes.tiles.band_statistics import Moments, Statistics
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.index import build_index, load_index, save_index
from cobertes.tiles.label_io import read_labels
from helpers.rasters import UTM, grid_at, write_raster

# not contiguous, not in order
CODES = [10, 200, 30]
LEGEND = Legend("test", 0, tuple(LegendClass(c, f"c{c}", f"Class {c}", f"#{c:02x}80ff") for c in CODES))


def patches(rng, shape, choices, side=9):
    coarse = rng.choice(choices, (shape[0] // side + 1, shape[1] // side + 1))
    return np.kron(coarse, np.ones((side, side), int))[: shape[0], : shape[1]]


def make_area(
    folder,
    shape=(150, 170),
    name="one",
    seed=0,
    codes=None,
    scenes=None,
    crs=UTM,
    origin=(240_000, 4.78e6),
    **profile,
):
    """An area of two seasons with its labels: pixels are random, 5 % of them empty in each season."""
    rng = np.random.default_rng(seed)
    grid = grid_at(*shape, crs=crs, origin=origin)
    where = grid if crs else None
    if codes is None:
        codes = patches(rng, shape, [0, *CODES, *CODES])
    if scenes is None:
        scenes = {}
        for season in ("april", "august"):
            values = rng.integers(1, 3000, (3, *shape))
            values[:, rng.random(shape) < 0.05] = 0
            scenes[season] = values.astype(np.uint16)
    opened = {
        season: open_scene([str(write_raster(folder / f"{name}-{season}.tif", values, where, **profile))])
        for season, values in scenes.items()
    }
    profile["nodata"] = 0
    labels = write_raster(folder / f"{name}-labels.tif", codes.astype(np.uint8), where, **profile)
    return SimpleNamespace(area=Area(name, opened), labels=labels, codes=codes, scenes=scenes, name=name)


def index_of(*made, tiles=None, split=None):
    return build_index(
        [one.area for one in made],
        {one.name: one.labels for one in made},
        LEGEND,
        tiles=TileSettings(**{"size": 20} | (tiles or {})),
        split=SplitSettings(**{"block": 30, "guard": 2} | (split or {})),
    )


def windows_of(frame):
    return [Window(*(int(v) for v in row)) for row in frame[["row", "col", "height", "width"]].to_numpy()]


def interior_of(window, shape, size, overlap):
    (top, bottom), (left, right) = (
        next((a, b) for start, a, b in interiors(length, size, overlap) if start == begin)
        for length, begin in zip(shape, (window.row, window.col), strict=True)
    )
    return slice(top, bottom), slice(left, right)


# --- every pixel once --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return make_area(tmp_path_factory.mktemp("one"))


@settings(
    max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)  # to shrink takes minutes
@given(st.integers(8, 29), st.data())
def test_statistics_equal_brute_force_over_training_interiors_at_any_overlap(one, size, data):
    overlap = data.draw(st.integers(0, size - 1 if size < 12 else size // 2), "overlap")
    guard = data.draw(st.integers(0, 10), "guard")
    try:
        index = index_of(one, tiles={"size": size, "overlap": overlap}, split={"guard": guard})
    except NoTilesError:
        return
    frame, shape = index.table, one.area.shape
    training = np.zeros(shape, int)
    held = np.zeros(shape, bool)
    for window in index.split.areas["one"].windows("v"):
        held[window.slices] = True
    for window, split, keep in zip(windows_of(frame), frame["split"], frame["keep"], strict=True):
        if keep and split == "train":
            training[interior_of(window, shape, size, overlap)] += 1
            assert not held[window.pad(guard).clip(shape).slices].any()
    assert training.max() == 1  # no pixel twice
    used = training == 1
    assert not held[used].any()
    seen = np.any([values.any(0) for values in one.scenes.values()], axis=0)
    statistics = index.statistics
    expected = [int((used & seen & (one.codes == code)).sum()) for code in CODES]
    assert statistics.class_counts.tolist() == expected
    for i, season in enumerate(("april", "august")):
        values = one.scenes[season].astype(float)[:, used & one.scenes[season].any(0)]
        np.testing.assert_allclose(statistics.mean[i], values.mean(1), rtol=1e-12)
        np.testing.assert_allclose(statistics.std[i], values.std(1), rtol=1e-9)
    assert (statistics.seasons, statistics.bands) == (("april", "august"), ("band1", "band2", "band3"))


def test_tiles_tell_what_they_hold(one):
    frame = index_of(one).table
    seen = np.any([values.any(0) for values in one.scenes.values()], axis=0)
    assert len(frame) == 8 * 9
    for window, (_, row) in zip(windows_of(frame), frame.iterrows(), strict=True):
        codes = one.codes[window.slices]
        assert row["labelled"] == pytest.approx((codes > 0).mean())
        read = row["reason"] != "no labels"
        observed = seen[window.slices] if read else np.ones(codes.shape, bool)
        counts = [int((observed & (codes == code)).sum()) for code in CODES]
        assert list(row["counts"]) == counts
        assert row["dominant"] == (LEGEND.keys[int(np.argmax(counts))] if any(counts) else None)
        for season in ("april", "august"):
            share = one.scenes[season].any(0)[window.slices].mean()
            assert row[f"valid_{season}"] == pytest.approx(share) if read else np.isnan(row[f"valid_{season}"])
        assert (row["reason"] == "") == row["keep"]
        assert row["keep"] <= (row["split"] in ("train", "validation"))


def test_both_seasons_of_a_place_share_a_split(one):
    frame = index_of(one).table
    assert not frame.duplicated(["area", "row", "col"]).any()  # a season is never a row


def test_the_index_does_not_depend_on_the_order_of_areas(tmp_path):
    made = [make_area(tmp_path, (90, 90), name, i, origin=(i * 2000, 4e6)) for i, name in enumerate("ab")]
    one, other = index_of(*made), index_of(*made[::-1])
    assert one.table.drop(columns="geometry").equals(other.table.drop(columns="geometry"))
    np.testing.assert_array_equal(one.statistics.mean, other.statistics.mean)


def test_held_out_ground_does_not_reach_the_statistics(tmp_path, one):
    before = index_of(one)
    scenes = {season: values.copy() for season, values in one.scenes.items()}
    for window in before.split.areas["one"].windows("v"):
        for values in scenes.values():
            values[:, *window.slices] = 60_000
    after = index_of(make_area(tmp_path, codes=one.codes, scenes=scenes))
    np.testing.assert_array_equal(after.statistics.mean, before.statistics.mean)
    np.testing.assert_array_equal(after.statistics.std, before.statistics.std)


# --- why a tile is left out --------------------------------------------------------------------------------


def test_tiles_without_labels_or_with_only_dropped_classes_say_so(tmp_path):
    codes = np.full((120, 120), 10)
    codes[:, 60:] = 30
    codes[:20, :40] = 0
    codes[100:, 100:] = 200
    codes[100:, 80:90] = 0
    made = make_area(tmp_path, (120, 120), codes=codes)
    index = index_of(made, tiles={"drop_only": [200, "Class 30"]}, split={"guard": 0, "block": 20}).table
    reasons = {(r, c): reason for r, c, reason in zip(index["row"], index["col"], index["reason"], strict=True)}
    assert reasons[0, 0] == reasons[0, 20] == "no labels"
    assert reasons[100, 100] == "only c200"
    assert reasons[100, 80] == reasons[0, 60] == "only c30"
    assert reasons[60, 0] == ""
    assert set(index["reason"]) == {"", "no labels", "only c200", "only c30"}


def test_tiles_between_splits_and_in_guard_bands_say_so(one):
    frame = index_of(one, split={"guard": 10}).table
    counted = frame["reason"].value_counts()
    assert counted["between splits"] > 0
    assert counted["guard band"] > 0
    assert set(frame.loc[frame["reason"] == "between splits", "split"]) == {"none"}


def test_tiles_that_nothing_observed_or_too_little_say_so(tmp_path):
    scenes = {season: np.full((1, 120, 120), 9, np.uint16) for season in ("april", "august")}
    for values in scenes.values():
        values[:, :20, :20] = 0
    scenes["april"][:, 20:40, :20] = 0  # one season is enough
    scenes["april"][:, :20, 20:30] = scenes["august"][:, :20, 20:30] = 0
    codes = np.full((120, 120), 10)
    codes[:20, 30:40] = 0  # labelled where not observed, observed where not labelled
    codes[40:60, :11] = 0
    codes[0, 100] = 200
    made = make_area(tmp_path, (120, 120), codes=codes, scenes=scenes)
    index = index_of(made, tiles={"min_labelled": 0.5}, split={"guard": 0, "block": 20}).table
    reasons = {(r, c): reason for r, c, reason in zip(index["row"], index["col"], index["reason"], strict=True)}
    assert reasons[0, 0] == reasons[0, 20] == "no observation"
    assert reasons[20, 0] == ""
    assert reasons[40, 0] == "few labelled pixels"
    assert sum(reason == "" for reason in reasons.values()) == 33


def test_nan_pixels_are_not_observed(tmp_path):
    rng = np.random.default_rng(1)
    values = rng.normal(5, 2, (2, 150, 170)).astype(np.float32)
    values[:, 30:50, 40:] = np.nan
    values[1, 100, 100] = np.nan
    made = make_area(tmp_path, scenes={"scene": values})
    index = index_of(made, tiles={"size": 10})
    assert np.isfinite(index.statistics.mean).all()
    assert index.statistics.mean[0, 0] == pytest.approx(5, abs=0.1)
    assert (index.table["reason"] == "no observation").any()


# --- nothing left ------------------------------------------------------------------------------------------


def test_an_empty_reference_map_is_told(tmp_path):
    made = make_area(tmp_path, codes=np.zeros((150, 170)))
    with pytest.raises(NoTilesError, match=r"none of 72 tiles has a label\. Check that the reference map lies on"):
        index_of(made)


@pytest.mark.parametrize("value", [0, np.nan, 65535])
def test_scenes_of_nothing_but_nodata_are_told(tmp_path, value):
    dtype = np.float32 if np.isnan(value) else np.uint16
    empty = np.full((2, 150, 170), value, dtype)
    made = make_area(tmp_path, scenes={"scene": empty}, nodata=value)
    message = r"no train tile is left of 72 \(left out: .*no observation.*hold no valid pixel there.*scene-nodata"
    with pytest.raises(NoTilesError, match=message):
        index_of(made, split={"guard": 0})


def test_one_empty_season_is_told(tmp_path):
    rng = np.random.default_rng(0)
    scenes = {
        "april": rng.integers(1, 99, (2, 150, 170)).astype(np.uint16), "august": np.zeros((2, 150, 170), np.uint16)
    }  # fmt: skip
    with pytest.raises(NoTilesError, match="season 'august' has no valid pixel in the training tiles"):
        index_of(make_area(tmp_path, scenes=scenes))


@pytest.mark.parametrize(
    ("tiles", "split", "message"),
    [
        (
            {"size": 40},
            {},
            r"Tiles of 40 px do not fit blocks of 30 px: smaller tiles\.size or larger split\.block",
        ),
        ({"drop_only": CODES}, {}, r"Check the reference map's place, its codes and tiles\.drop-only"),
        ({"min_labelled": 1.0}, {"guard": 0}, r"tiles\.min-labelled = 1 asks for more"),
    ],
)
def test_no_tile_left_is_told_with_reasons_and_a_way_out(one, tiles, split, message):
    with pytest.raises(NoTilesError, match=r"no \w+ tile is left of \d+ \(left out: .*\)\. .*" + message):
        index_of(one, tiles=tiles, split=split)


def test_impossible_settings_are_told(one):
    with pytest.raises(SettingsError, match=r"tiles\.overlap = 20 px must be smaller than tiles\.size = 20 px"):
        index_of(one, tiles={"overlap": 20})
    with pytest.raises(SplitError, match="one block can't be split"):
        index_of(one, split={"block": 200})


def test_labels_that_can_not_be_read_are_told(tmp_path, one):
    with pytest.raises(InputFileError, match=r"can't read the labels .*Run the labels stage again"):
        read_labels(tmp_path / "absent.tif", Window(0, 0, 1, 1))


# --- many small areas, files without CRS -------------------------------------------------------------------


def chips(folder, count=12, shape=(30, 26), crs=None, **options):
    return [
        make_area(
            folder,
            shape,
            f"chip-{i:02}",
            i,
            crs=crs,
            origin=(i * 900, 4e6),
            codes=np.full(shape, CODES[i % 3]),
            **options,
        )
        for i in range(count)
    ]


def test_areas_smaller_than_a_tile_are_one_tile_each(tmp_path):
    index = index_of(*chips(tmp_path), tiles={"size": 64}, split={"by": "area", "block": None})
    assert windows_of(index.table) == [Window(0, 0, 30, 26)] * 12
    assert index.table["keep"].all()
    assert index.split.guard == 2
    training = index.table["split"] == "train"
    assert index.statistics.class_counts.sum() == pytest.approx(training.sum() * 30 * 26, rel=0.02)


@pytest.mark.parametrize("crs", [UTM, None])
def test_the_index_survives_geoparquet(tmp_path, crs):
    frame = index_of(*chips(tmp_path, crs=crs), split={"block": None}).table
    save_index(frame, tmp_path / "tiles.parquet")
    again = load_index(tmp_path / "tiles.parquet")
    assert again.crs == (None if crs is None else "EPSG:4326")
    assert list(again.columns) == list(frame.columns)
    assert again["counts"].map(list).tolist() == frame["counts"].tolist()
    assert again.drop(columns="counts").equals(frame.drop(columns="counts"))
    assert [path.name for path in tmp_path.glob(".*")] == []
    # whatever the CRS, tiles of different areas lie apart and those of one area side by side
    outlines = again.dissolve("area").geometry.set_crs(None, allow_override=True)
    assert outlines.area.min() > 0
    for i, outline in enumerate(outlines):
        assert not outlines.iloc[i + 1 :].intersects(outline).any()


def test_a_missing_or_damaged_index_is_told(tmp_path):
    with pytest.raises(InputFileError, match=r"no tile index at .*--only tiles"):
        load_index(tmp_path / "tiles.parquet")
    (tmp_path / "tiles.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputFileError, match="Run the tiles stage again"):
        load_index(tmp_path / "tiles.parquet")


def test_a_class_that_never_occurs_is_told(tmp_path, caplog):
    codes = patches(np.random.default_rng(0), (150, 170), [10, 30])
    with caplog.at_level(logging.WARNING):
        index_of(make_area(tmp_path, codes=codes))
    assert "class 'c200' never occurs in the labels: it can't be learnt or judged" in caplog.messages


# --- ground ------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(-20, 160), st.integers(-20, 180), st.integers(1, 40))
def test_ground_is_labelled_where_a_season_was_observed(one, row, col, size):
    ground = LabelledDataset({"one": one.area}, {"one": one.labels}, LEGEND, None)
    window = Window(row, col, size, size)
    observed, y = ground.read_chw("one", window)
    assert list(observed) == ["april", "august"]
    expected = np.full((size, size), IGNORE_INDEX, np.uint8)
    part = window.clip(one.area.shape)
    if 0 not in part.shape:
        seen = np.any([values[:, *part.slices].any(0) for values in one.scenes.values()], axis=0)
        codes = one.codes[part.slices]
        expected[part.slices_in(window)] = np.where(seen, LEGEND.index_table()[codes], IGNORE_INDEX)
    np.testing.assert_array_equal(y, expected)


# --- moments -----------------------------------------------------------------------------------------------


def moments_of(parts):
    """Of arrays (bands, n), measured part by part."""
    count = np.array([[part.shape[1]] * len(part) for part in parts])
    mean = np.array([part.mean(1) if part.size else np.zeros(len(part)) for part in parts])
    squares = np.array([((part - m[:, None]) ** 2).sum(1) for part, m in zip(parts, mean, strict=True)])
    return Moments.total(count, mean, squares)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 99))
def test_moments_of_parts_add_up_to_those_of_the_whole(sizes, seed):
    values = np.random.default_rng(seed).normal(1e4, 3, (2, sum(sizes)))
    total = moments_of(np.split(values, np.cumsum(sizes)[:-1], axis=1))
    assert total.count.tolist() == [sum(sizes)] * 2
    if sum(sizes) > 1:
        np.testing.assert_allclose(total.mean, values.mean(1), rtol=1e-12)
        np.testing.assert_allclose(total.std, values.std(1), rtol=1e-6)


def test_a_constant_band_can_be_divided_by():
    values = np.full((1, 10_007), 0.1)  # its mean is not exactly 0.1
    assert moments_of(np.array_split(values, 7, axis=1)).std.tolist() == [1.0]
    assert moments_of([np.zeros((2, 0))]).std.tolist() == [1.0, 1.0]


def test_statistics_survive_json(one):
    statistics = index_of(one).statistics
    again = Statistics.from_dict(statistics.to_dict(LEGEND.keys))
    np.testing.assert_array_equal(again.mean, statistics.mean)
    np.testing.assert_array_equal(again.class_counts, statistics.class_counts)
    assert (again.seasons, again.bands, again.pixels) == (statistics.seasons, statistics.bands, statistics.pixels)


# --- size --------------------------------------------------------------------------------------------------


def test_a_large_area_is_indexed_strip_by_strip(tmp_path, monkeypatch):
    side = 2560
    codes = np.kron(np.random.default_rng(0).choice(CODES, (40, 40)), np.ones((64, 64), int)).astype(np.uint8)
    values = np.ones((2, side, side), np.uint16)
    made = make_area(
        tmp_path, (side, side), codes=codes, scenes={"scene": values}, tiled=True, blockxsize=256, blockysize=256
    )
    read = []

    def noted(self, window, original=Scene.read_hwc):
        read.append(window)
        return original(self, window)

    monkeypatch.setattr(Scene, "read_hwc", noted)
    del codes, values
    tracemalloc.start()
    index = index_of(made, tiles={"size": 64}, split={"block": 512, "guard": 32})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(index.table) == 40 * 40
    assert len(read) == len(set(read)) > 1000  # each tile once
    assert {window.shape for window in read} == {(64, 64)}
    assert peak < 16e6  # the scene alone has 26 MB
