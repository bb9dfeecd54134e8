"""The split: held-out ground is not seen in training, and the draw is fair and repeatable."""

import json
import logging

import geopandas as gpd
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shapely.geometry import Polygon, box

from cobertes.errors import InputFileError, SplitError
from cobertes.geo.area import Area
from cobertes.geo.band_selection import BandSource
from cobertes.geo.grid import crop, footprint
from cobertes.geo.scene import Scene
from cobertes.geo.windows import Window
from cobertes.settings import SplitSettings
from cobertes.tiles.block_split import MIN_BLOCKS, choose_block, guard_share, make_split
from cobertes.tiles.polygon_split import read_polygons
from cobertes.tiles.split import (
    AreaSplit,
    Part,
    Split,
    block_edges,
    read_groups,
    require_known_groups,
)
from cobertes.tiles.variogram import RangeEstimator
from helpers.rasters import DATA, ORIGIN, grid_at, needs

CLASSES = ["a", "b", "c"]
HELD = (Part.VALIDATION, Part.TEST)


def area_of(name, shape=(100, 100), crs="EPSG:32631", origin=ORIGIN, group=None, pixel=10.0):
    grid = grid_at(*shape, pixel, crs, origin)
    return Area(name, {"scene": Scene((BandSource("b", f"{name}.tif", 1),), grid, "uint16")}, group=group)


def edges_of(areas, block):
    return {a.name: (block_edges(a.shape[0], block), block_edges(a.shape[1], block)) for a in areas}


def counts_of(areas, edges, seed=0, classes=3, empty=0.1):
    """Random labelled pixels per block and class; some blocks have none."""
    result = {}
    for area in areas:
        rng = np.random.default_rng([seed, *area.name.encode()])
        rows, cols = (len(axis) - 1 for axis in edges[area.name])
        counts = rng.integers(1, 100, (rows, cols, classes))
        counts[rng.random((rows, cols)) < empty] = 0
        result[area.name] = counts
    return result


def split_of(areas, block=20, guard=5, counts=None, classes=CLASSES, **options):
    edges = edges_of(areas, block)
    counts = counts_of(areas, edges, classes=len(classes)) if counts is None else counts
    settings_ = SplitSettings(**options)
    return make_split(areas, counts, edges, block=block, guard=guard, classes=classes, settings=settings_)


def painted(split, shape):
    """The letter of every pixel of an area."""
    letters = np.full(shape, "?")
    for letter in (Part.TRAIN, *HELD, Part.GUARD, Part.NONE):
        for window in split.windows(letter):
            assert (letters[window.slices] == "?").all()
            letters[window.slices] = letter
    assert (letters != "?").all()
    return letters


def share_of(split, letter, counts):
    total = sum(c.sum() for c in counts.values())
    return sum(counts[name][area.parts == letter].sum() for name, area in split.areas.items()) / total


def letters_of(split):
    return {name: area.parts.tolist() for name, area in split.areas.items()}


def test_parts_of_a_window_are_what_it_shares_with_each_block():
    split = split_of([area_of("one", (100, 90))], 20, validation=0.4).areas["one"]
    for row, col, height, width in [(0, 0, 100, 90), (13, 37, 41, 20), (20, 40, 20, 20), (-5, 81, 30, 30)]:
        window = Window(row, col, height, width)
        for letter in (Part.TRAIN, Part.VALIDATION):
            expected = [part for block in split.windows(letter) if (part := window.intersection(block))]
            assert split.intersections(window, letter) == expected


# --- the guard band ----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_no_allowed_training_window_comes_near_held_out_ground(data):
    draw = data.draw
    shape = draw(st.integers(20, 90)), draw(st.integers(20, 90))
    block, guard = draw(st.integers(5, 30), "block"), draw(st.integers(0, 25), "guard")
    areas = [area_of("one", shape)]
    edges = edges_of(areas, block)
    assume((len(edges["one"][0]) - 1) * (len(edges["one"][1]) - 1) >= 8)
    counts = counts_of(areas, edges, draw(st.integers(0, 99), "seed"), empty=0.2)
    split = split_of(areas, block, guard, counts, test=draw(st.sampled_from([0, 0.2]))).areas["one"]
    held = np.isin(painted(split, shape), HELD)
    rng = np.random.default_rng(draw(st.integers(0, 99), "windows"))
    for row, col, size in rng.integers((-5, -5, 1), (*shape, 40), (40, 3)).tolist():
        window = Window(row, col, size, size)
        if 0 in window.clip(shape).shape:
            continue
        near = held[window.pad(guard).clip(shape).slices].any()
        # blocks are told as a whole, so near means: allowed exactly where no held-out pixel is within the guard
        assert split.allows_training(window, guard) == (not near)


def test_a_window_needs_the_whole_guard_band_and_no_more():
    split = split_of([area_of("one", (40, 80))], block=40, guard=0, counts={"one": np.ones((1, 2, 3), int)})
    blocks = split.areas["one"]
    col = 40 if blocks.parts[0, 0] == Part.VALIDATION else 0
    inner = {0: 20, 40: 45}[col]  # 15 px wide, 5 px from the border
    assert blocks.allows_training(Window(0, inner, 40, 15), 5)
    assert not blocks.allows_training(Window(0, inner, 40, 15), 6)


# --- the draw ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 99),
    st.integers(2, 6),
    st.integers(2, 6),
    st.sampled_from([0.1, 0.2, 0.5]),
    st.sampled_from([0, 0.2]),
)
def test_every_side_gets_blocks_and_every_labelled_block_a_side(seed, rows, cols, validation, test):
    areas = [area_of("one", (rows * 20, cols * 20))]
    counts = counts_of(areas, edges_of(areas, 20), seed)
    labelled = counts["one"].sum(2) > 0
    assume(labelled.sum() >= 3)
    split = split_of(areas, counts=counts, validation=validation, test=test, seed=seed).areas["one"]
    np.testing.assert_array_equal(split.parts == Part.NONE, ~labelled)
    assert {Part.TRAIN, Part.VALIDATION} <= set(np.unique(split.parts))
    assert (Part.TEST in split.parts) == (test > 0)


def test_very_unequal_blocks_still_leave_one_for_every_side():
    counts = {"one": np.array([1, 1, 9998]).reshape(1, 3, 1)}
    split = split_of([area_of("one", (20, 60))], counts=counts, classes=["a"], test=0.2)
    assert set(split.areas["one"].parts[0]) == {Part.TRAIN, Part.VALIDATION, Part.TEST}


def test_shares_come_near_what_was_asked_for_and_classes_are_alike():
    areas = [area_of("one", (200, 200))]
    counts = counts_of(areas, edges_of(areas, 20))
    split = split_of(areas, counts=counts, validation=0.2, test=0.1)
    assert share_of(split, Part.VALIDATION, counts) == pytest.approx(0.2, abs=0.02)
    assert share_of(split, Part.TEST, counts) == pytest.approx(0.1, abs=0.02)
    for i in range(3):
        one = {name: c[..., i : i + 1] for name, c in counts.items()}
        assert share_of(split, Part.VALIDATION, one) == pytest.approx(0.2, abs=0.04)


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_areas():
    areas = [area_of(name, origin=(i * 5000, 5e6)) for i, name in enumerate("abc")]
    first = letters_of(split_of(areas))
    assert letters_of(split_of(areas)) == first
    assert letters_of(split_of(areas[::-1])) == first
    assert letters_of(split_of(areas, seed=1)) != first


def test_a_rare_class_in_two_blocks_comes_on_both_sides():
    counts = np.zeros((5, 5, 2), int)
    counts[..., 0] = 1000
    counts[0, 0, 1] = counts[3, 4, 1] = 50
    split = split_of([area_of("one")], counts={"one": counts}, classes=["common", "rare"])
    letters = split.areas["one"].parts
    assert {letters[0, 0], letters[3, 4]} == {Part.TRAIN, Part.VALIDATION}


def test_areas_are_kept_whole_on_request():
    areas = [area_of(f"chip-{i:02}", (32, 32), crs=None) for i in range(30)]
    split = split_of(areas, block=32, by="area")
    assert all(len(set(area.parts.ravel()) - {Part.NONE}) <= 1 for area in split.areas.values())


def test_areas_of_several_blocks_are_kept_whole_too():
    areas = [area_of(f"chip-{i:02}", (60, 60), crs=None) for i in range(8)]
    split = split_of(areas, block=20, by="area")
    assert all(len(set(area.parts.ravel()) - {Part.NONE}) == 1 for area in split.areas.values())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=12, max_size=30).filter(lambda g: len(set(g)) > 3), st.integers(0, 9))
def test_groups_are_kept_whole(groups, seed):
    areas = [area_of(f"chip-{i:02}", (32, 32), crs=None, group=f"{g}") for i, g in enumerate(groups)]
    counts = {area.name: np.ones((1, 1, 3), int) for area in areas}
    split = split_of(areas, block=32, counts=counts, by="group", seed=seed, test=0.2)
    for group in set(groups):
        letters = {split.areas[a.name].parts[0, 0] for a, g in zip(areas, groups, strict=True) if g == group}
        assert len(letters) == 1
    assert {a.parts[0, 0] for a in split.areas.values()} == {Part.TRAIN, Part.VALIDATION, Part.TEST}


def test_a_split_survives_json():
    split = split_of([area_of("one", (110, 97)), area_of("two", (50, 40), crs=None)])
    again = Split.from_dict(json.loads(json.dumps(split.to_dict())))
    assert letters_of(again) == letters_of(split)
    assert (again.block, again.guard, again.cells) == (20, 5, "blocks")
    window = Window(31, 17, 20, 20)
    assert again.areas["one"].parts_under(window).tolist() == split.areas["one"].parts_under(window).tolist()


# --- areas on the same ground ------------------------------------------------------------------------------


def on_the_ground(areas, split, letter, crs):
    return [
        (area.name, footprint(crop(area.grid, window), crs))
        for area in areas
        for window in split.areas[area.name].windows(letter)
    ]


@pytest.mark.parametrize("guard", [0, 5])
@pytest.mark.parametrize(
    "second",
    [
        {"origin": (ORIGIN[0] + 630, ORIGIN[1] - 10)},  # overlaps
        {"origin": (ORIGIN[0] + 1000, ORIGIN[1])},  # touches
        {"origin": (ORIGIN[0] + 1030, ORIGIN[1] - 470)},  # 3 px away
        {"origin": (ORIGIN[0] + 700, ORIGIN[1] - 300), "pixel": 20.0},
        {"origin": (-248_500, 4_816_000), "crs": "EPSG:32632"},  # the same ground in the next zone
    ],
)
def test_areas_on_the_same_ground_do_not_leak_into_each_other(second, guard):
    areas = [area_of("one"), area_of("two", **second)]
    left_out = 0
    for seed in range(3):
        split = split_of(areas, guard=guard, test=0.2, seed=seed)
        for area in areas:
            others = [other for other in areas if other is not area]
            crs, pixel = area.grid.crs, area.grid.affine.a
            held = [s for letter in HELD for _, s in on_the_ground(others, split, letter, crs)]
            for _, shape in on_the_ground([area], split, Part.TRAIN, crs):
                assert all(shape.distance(other) >= (guard - 0.02) * pixel for other in held)
            tested = [s for _, s in on_the_ground(others, split, Part.TEST, crs)]
            for _, shape in on_the_ground([area], split, Part.VALIDATION, crs):
                assert all(shape.intersection(other).area < pixel**2 for other in tested)
        left_out += sum((area.parts == Part.GUARD).sum() for area in split.areas.values())
        assert any(Part.TRAIN in area.parts for area in split.areas.values())
    apart = second["origin"][0] - ORIGIN[0]
    assert (left_out > 0) == (apart < 1000 or guard > (apart - 1000) / 10)


def test_left_out_ground_is_not_trained_on():
    split = split_of([area_of("one"), area_of("two")], guard=0)
    letters = split.areas["one"].parts
    assert Part.GUARD in letters
    row, col = np.argwhere(letters == Part.GUARD)[0]
    assert not split.areas["one"].allows_training(split.areas["one"].block(row, col), 0)


def test_areas_far_apart_or_without_crs_leave_nothing_out():
    far = [area_of("one"), area_of("two", origin=(600_000, 4_000_000)), area_of("three", crs="EPSG:32723")]
    bare = [area_of("one", crs=None), area_of("two", crs=None), area_of("three")]
    for areas in (far, bare):
        split = split_of(areas)
        assert not any(Part.GUARD in area.parts for area in split.areas.values())


# --- blocks ------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 700))
def test_blocks_cover_an_axis_and_none_is_under_half_a_block(length, block):
    edges = block_edges(length, block)
    assert (edges[0], edges[-1]) == (0, length)
    sizes = np.diff(edges)
    assert (sizes[:-1] == block).all()
    assert 0 < sizes[-1] <= 1.5 * block
    assert len(sizes) == 1 or sizes[-1] >= block / 2


def blocks_in(shapes, block):
    return sum((len(block_edges(h, block)) - 1) * (len(block_edges(w, block)) - 1) for h, w in shapes)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(60, 5000), st.integers(60, 5000)), min_size=1, max_size=4), st.integers(8, 512)
)
def test_the_default_block_leaves_at_least_20(shapes, stride):
    block = choose_block(shapes, stride, SplitSettings())
    assert blocks_in(shapes, block) >= MIN_BLOCKS
    assert block <= 4 * stride
    if block >= stride:
        assert block % stride == 0


def test_the_model_case_gets_blocks_of_four_tiles():
    assert choose_block([(30_000, 30_000)], 512, SplitSettings()) == 2048
    assert choose_block([(128, 128)] * 216, 128, SplitSettings()) == 512
    assert choose_block([(128, 128), (90, 200)], 64, SplitSettings(by="area")) == 200


def test_a_block_as_large_as_the_area_is_refused():
    for block in (1000, 5000, 700):
        message = rf"split\.block = {block} px, but the area has 1000 x 800 px: one block.*at most 200 px"
        with pytest.raises(SplitError, match=message):
            choose_block([(800, 1000)], 256, SplitSettings(block=block))
    assert choose_block([(800, 1000)], 256, SplitSettings(block=500)) == 500
    assert choose_block([(800, 1000), (800, 1000)], 256, SplitSettings(block=5000)) == 5000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"found 1 labelled blocks to split, needed at least 2\. Use smaller tiles"),
        ({"test": 0.1}, "needed at least 3"),
        ({"by": "area"}, r"found 1 labelled areas.*Add areas, or split them by block"),
        ({"by": "group"}, r"found 1 labelled groups.*Add areas of other groups"),
    ],
)
def test_too_little_ground_is_told_with_a_way_out(options, message):
    counts = np.zeros((5, 5, 3), int)
    counts[2, 2] = 7
    with pytest.raises(SplitError, match=message):
        split_of([area_of("one", group="g")], counts={"one": counts}, **options)


# --- what is said ------------------------------------------------------------------------------------------


def counts_where(**where):
    """25 blocks; class ``a`` everywhere, the others in the given blocks only."""
    counts = np.zeros((5, 5, 3), int)
    counts[..., 0] = 100
    for key, blocks in where.items():
        for row, col in blocks:
            counts[row, col, CLASSES.index(key)] = 10
    return {"one": counts}


def test_a_class_on_one_side_only_is_told(caplog):
    counts = counts_where(b=[(1, 1)], c=[(0, 0), (4, 4), (2, 0)])
    with caplog.at_level(logging.WARNING):
        split = split_of([area_of("one")], counts=counts, guard=0)
    side = "validation" if split.areas["one"].parts[1, 1] == Part.VALIDATION else "train"
    other, lacks = {"validation": ("train", "learnt"), "train": ("validation", "judged")}[side]
    assert [record.message for record in caplog.records] == [
        f"class 'b' is in {side} but not in {other}: it can't be {lacks}"
    ]
    with pytest.raises(SplitError, match=r"class 'b' is in .*require-all-classes = false, or use smaller blocks"):
        split_of([area_of("one")], counts=counts, require_all_classes=True)


def test_a_class_that_never_occurs_is_told(caplog):
    counts = counts_where(b=[(0, 0), (4, 4), (2, 0)])
    with caplog.at_level(logging.WARNING):
        split_of([area_of("one")], counts=counts, guard=0)
    assert [record.message for record in caplog.records] == [
        "class 'c' never occurs in the labels: it can't be learnt or judged"
    ]
    with pytest.raises(SplitError, match=r"class 'c' never occurs in the labels\..*leave it out of the legend"):
        split_of([area_of("one")], counts=counts, require_all_classes=True)


def test_few_blocks_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        split_of([area_of("one", (60, 60))], guard=0, counts={"one": np.ones((3, 3, 3), int)})
    assert [r.message for r in caplog.records] == [
        "only 9 labelled blocks to split: scores from less than 20 say little about other ground"
    ]


def test_guard_bands_that_take_much_are_told(caplog, monkeypatch):
    areas = [area_of("one")]
    with caplog.at_level(logging.WARNING):
        split = split_of(areas, guard=20, counts=counts_where(b=[(0, 0), (4, 4)], c=[(1, 1), (3, 3)]))
    (message,) = [r.message for r in caplog.records if "guard bands take" in r.message]
    assert "larger blocks (split.block = 20 px) or a narrower split.guard (20 px now)" in message
    # what it says is what is lost, pixel by pixel
    held = np.isin(painted(split.areas["one"], (100, 100)), HELD)
    lost = sum(
        held[Window(r, c, 1, 1).pad(20).clip((100, 100)).slices].any() and not held[r, c]
        for r in range(100) for c in range(100)
    ) / 10_000  # fmt: skip
    assert guard_share(split, {"one": np.ones((5, 5, 1), int)}) == pytest.approx(lost, abs=0.02)
    monkeypatch.setattr("cobertes.tiles.block_split.GUARD_CELLS", 400)  # 5 x 5 px each, as of a very large area
    assert guard_share(split, {"one": np.ones((5, 5, 1), int)}) == pytest.approx(lost, abs=0.05)


def test_narrow_guard_bands_say_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        split_of([area_of("one")], guard=0, counts={"one": np.ones((5, 5, 3), int)})
    assert not caplog.records


# --- groups from a file ------------------------------------------------------------------------------------


@needs("hls-worldcover")
def test_the_groups_of_real_chips_are_read():
    groups = read_groups(DATA / "hls-worldcover" / "chips.csv")
    assert len(groups) == 216
    assert groups["001"] == "1"
    require_known_groups(["001", "005"], groups, DATA / "hls-worldcover" / "chips.csv")


def test_a_groups_file_may_come_from_a_spreadsheet(tmp_path):
    (tmp_path / "g.csv").write_text("﻿area,group,note\na , north,x\n\nb,south,\n", encoding="utf-8")
    assert read_groups(tmp_path / "g.csv") == {"a": "north", "b": "south"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"area,group\n", "needs a header and two columns"),
        (b"area\na\n", "needs a header and two columns"),
        (b"area,group\na,1\na,2\n", "area 'a' is in the groups 1 and 2"),
        (b"area,group\n\xff,1\n", "as a CSV"),
    ],
)
def test_bad_groups_files_are_told(tmp_path, text, message):
    (tmp_path / "g.csv").write_bytes(text)
    with pytest.raises(InputFileError, match=message):
        read_groups(tmp_path / "g.csv")


def test_missing_groups_are_told(tmp_path):
    with pytest.raises(InputFileError, match=r"no groups file at .*g\.csv"):
        read_groups(tmp_path / "g.csv")
    with pytest.raises(SplitError, match=r"g\.csv: no group for 2 areas, first 'chip-1'\. Did you mean 'chip-01'"):
        require_known_groups(["chip-1", "x", "b"], {"chip-01": "1", "b": "1"}, tmp_path / "g.csv")


# --- a user's own polygons -------------------------------------------------------------------------------------


def polygons_of(path, crs="EPSG:32631", **shapes):
    """A GeoPackage of boxes (row, col, height, width) in pixels of 10 m from `ORIGIN`, by split."""
    rows = [
        {"split": name, "geometry": box(
            ORIGIN[0] + 10 * col, ORIGIN[1] - 10 * (row + height), ORIGIN[0] + 10 * (col + width), ORIGIN[1] - 10 * row
        )}
        for name, windows in shapes.items() for row, col, height, width in windows
    ]  # fmt: skip
    gpd.GeoDataFrame(rows, crs="EPSG:32631").to_crs(crs).to_file(path)
    return path


def split_by(path, areas, block=5, guard=5, **options):
    edges = edges_of(areas, block)
    counts = counts_of(areas, edges, empty=0)
    settings_ = SplitSettings(by="polygons", polygons=str(path), **options)
    return make_split(
        areas, counts, edges, block=block, guard=guard, classes=CLASSES, settings=settings_,
        polygons=read_polygons(path),
    )  # fmt: skip


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:4326"])
def test_polygons_say_which_ground_is_whose(tmp_path, crs):
    path = polygons_of(
        tmp_path / "p.gpkg", crs, train=[(0, 0, 100, 60)], validation=[(0, 60, 50, 40)], test=[(52, 62, 30, 30)]
    )
    letters = painted(split_by(path, [area_of("a")]).areas["a"], (100, 100))
    assert (letters[:, :58] == Part.TRAIN).all()
    assert (letters[:48, 62:] == Part.VALIDATION).all()
    assert (letters[55:80, 65:90] == Part.TEST).all()
    assert (letters[85:, 65:] == Part.GUARD).all()  # outside all polygons
    assert set(np.unique(letters)) == {Part.TRAIN, Part.VALIDATION, Part.TEST, Part.GUARD}
    assert split_by(path, [area_of("a")]).cells == "pieces"


def test_training_keeps_the_guard_band_from_polygons(tmp_path):
    path = polygons_of(tmp_path / "p.gpkg", train=[(0, 0, 100, 100)], validation=[(33, 33, 31, 31)])
    split = split_by(path, [area_of("a")], guard=7)
    letters = painted(split.areas["a"], (100, 100))
    held = np.zeros((100, 100), bool)
    held[33:64, 33:64] = True
    assert not (held & (letters == Part.TRAIN)).any()  # also the blocks that a polygon only touches
    rng = np.random.default_rng(0)
    for _ in range(300):
        window = Window(int(rng.integers(0, 80)), int(rng.integers(0, 80)), 12, 12)
        if split.areas["a"].allows_training(window, 7):
            near = window.pad(7).clip((100, 100))
            assert not (letters[near.slices] == Part.VALIDATION).any()
            assert not held[window.slices].any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: f.rename(columns={"split": "part"}), SplitError, "has no column 'split'.*found part"),
        (lambda f: f.replace("train", "trian"), SplitError, "split is 'trian'.*Did you mean 'train'"),
        (lambda f: f[f["split"] == "train"], SplitError, "both train and validation, found train"),
        (lambda f: f.set_crs(None, allow_override=True), SplitError, "has no CRS"),
    ],
)
@pytest.mark.filterwarnings("ignore:'crs' was not provided:UserWarning")
def test_polygons_that_say_too_little_are_refused(tmp_path, change, error, message):
    path = polygons_of(tmp_path / "p.gpkg", train=[(0, 0, 100, 50)], validation=[(0, 50, 100, 50)])
    change(gpd.read_file(path)).to_file(
        tmp_path / "changed.geojson" if "CRS" not in message else tmp_path / "changed.gpkg"
    )
    changed = next(tmp_path.glob("changed.*"))
    with pytest.raises(error, match=message):
        read_polygons(changed)


def test_a_polygon_that_crosses_itself_still_says_which_ground_it_means(tmp_path):
    bow = Polygon([(0, 0), (60, 100), (60, 0), (0, 100)])  # two triangles that meet at (30, 50)
    rows = [
        {"split": "train", "geometry": box(60, 0, 100, 100)},
        {"split": "validation", "geometry": bow},
    ]
    index = gpd.GeoDataFrame(rows, crs="EPSG:32631")
    index["geometry"] = index.geometry.affine_transform([10, 0, 0, -10, *ORIGIN])
    index.to_file(tmp_path / "p.gpkg")
    letters = painted(split_by(tmp_path / "p.gpkg", [area_of("a")]).areas["a"], (100, 100))
    assert letters[50, 5] == Part.VALIDATION
    assert letters[50, 55] == Part.VALIDATION
    assert letters[5, 30] == Part.GUARD  # above the knot
    assert (letters[:, 65:] == Part.TRAIN).all()


def test_polygon_files_that_can_not_be_read_are_told(tmp_path):
    with pytest.raises(InputFileError, match=r"no file of polygons at .*split\.polygons"):
        read_polygons(tmp_path / "p.gpkg")
    (tmp_path / "p.gpkg").write_bytes(b"no")
    with pytest.raises(InputFileError, match="can't read"):
        read_polygons(tmp_path / "p.gpkg")
    path = polygons_of(tmp_path / "q.gpkg", train=[(0, 0, 100, 50)], validation=[(0, 50, 100, 50)])
    with pytest.raises(SplitError, match="area 'a' has no CRS, so polygons can't be placed on it"):
        split_by(path, [area_of("a", crs=None)])


# --- how far labels resemble each other ------------------------------------------------------------------------


def squares_of(side, size=600, classes=4, seed=0):
    codes = np.random.default_rng(seed).integers(0, classes, (size // side + 1,) * 2)
    index = np.kron(codes, np.ones((side, side), int))[:size, :size]
    return np.stack([index == k for k in range(classes)]).astype(np.int32)


def measure_range(areas):
    meter = RangeEstimator(
        [(counts.shape[1] * side, counts.shape[2] * side) for counts, side in areas], areas[0][1]
    )
    for counts, side in areas:
        meter.add(counts, side)
    return meter.result()


@pytest.mark.parametrize("side", [15, 40, 80])
def test_the_range_follows_the_size_of_the_patches(side):
    found = measure_range([(squares_of(side), 1)])
    assert side < found.range_ < 2.6 * side
    # in cells of 5 px it is the same ground
    coarse = squares_of(side).reshape(4, 120, 5, 120, 5).sum(axis=(2, 4))
    assert measure_range([(coarse, 5)]).range_ == pytest.approx(found.range_, rel=0.25)


def test_the_variogram_is_that_of_brute_force():
    counts = squares_of(7, 40)
    counts[:, :10, :12] = 0  # not labelled
    found = measure_range([(counts, 1)])
    index, known = counts.argmax(axis=0), counts.any(axis=0)
    rows, cols = np.nonzero(known)
    distance = np.hypot(rows[:, None] - rows, cols[:, None] - cols)
    differs = index[rows, cols][:, None] != index[rows, cols]
    for lag in (2.0, 5.0, 9.0):
        bin_ = np.argmin(abs(found.lag - lag))
        near = (distance > found.lag[bin_] - 0.5) & (distance < found.lag[bin_] + 0.5)
        assert found.value[bin_] == pytest.approx(differs[near].mean(), abs=0.03)


def test_a_map_of_one_class_or_hardly_a_pixel_has_no_range():
    assert measure_range([(np.ones((1, 50, 50), np.int32), 1)]).range_ is None
    assert measure_range([(squares_of(2, 6), 1)]).range_ is None
    assert measure_range([(np.zeros((3, 50, 50), np.int32), 1)]).range_ is None


def test_blocks_are_as_large_as_the_range_where_there_is_room():
    shapes = [(30_000, 30_000)]
    assert choose_block(shapes, 300, SplitSettings(), 500.0) == 1200
    assert choose_block(shapes, 300, SplitSettings(), 2000.0) == 2100
    assert choose_block(shapes, 300, SplitSettings(block=900), 2000.0) == 900
    assert len(block_edges(1200, choose_block([(1200, 1200)], 64, SplitSettings(), 900.0))) ** 2 > 20


# --- at random, for comparison ---------------------------------------------------------------------------------


def test_a_random_split_draws_single_tiles(caplog):
    areas = [area_of("a", (200, 200))]
    split = split_of(areas, block=10, guard=0, method="random", validation=0.25)
    letters = split.areas["a"].parts
    held = (letters == Part.VALIDATION).sum() / (letters != Part.NONE).sum()
    assert held == pytest.approx(0.25, abs=0.05)
    assert (split_of(areas, block=10, guard=0, method="random", seed=1).areas["a"].parts != letters).any()


# --- rectangles ------------------------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 999))
def test_rectangles_cover_each_block_of_a_split_once(rows, cols, seed):
    letters = np.random.default_rng(seed).choice([Part.TRAIN, Part.VALIDATION, Part.NONE], (rows, cols))
    area = AreaSplit(letters, np.arange(rows + 1) * 3, np.arange(cols + 1) * 5)
    covered = np.zeros((rows * 3, cols * 5), int)
    for window in area.rectangles(Part.VALIDATION):
        covered[window.slices] += 1
    np.testing.assert_array_equal(covered, np.kron(letters == Part.VALIDATION, np.ones((3, 5), int)))
    assert len(area.rectangles(Part.VALIDATION)) <= (letters == Part.VALIDATION).sum()
