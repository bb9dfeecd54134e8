"""Judging: all counts at once, beside slow counts by hand; blocks, boundaries, purity, worst tiles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobertes.accuracy.block_confusion import Block, BlockMatrices, load_blocks, save_blocks
from cobertes.accuracy.boundaries import FAR, PURITY_GROUPS, boundary_distance, boundary_iou
from cobertes.accuracy.confusion import ConfusionMatrix
from cobertes.accuracy.evaluation_counts import EvaluationCounts
from cobertes.errors import InputFileError
from cobertes.geo.area import Area
from cobertes.geo.scene import open_scene
from cobertes.geo.windows import TiledWindow, Window, plan_strips
from cobertes.labels.legend import IGNORE_INDEX, Legend, LegendClass
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.split import AreaSplit, Part, Split, block_edges
from helpers.rasters import grid_at, write_raster

LEGEND = Legend("test", 0, tuple(LegendClass(c, f"c{c}", f"Class {c}", f"#{c:02x}80ff") for c in (10, 200, 30)))
SHAPE = 60, 80
BLOCK = 20


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """An area of 3 x 4 blocks of 20 px; a checkerboard of them is validation ground."""
    folder = tmp_path_factory.mktemp("ground")
    grid = grid_at(*SHAPE)
    scene = open_scene([str(write_raster(folder / "s.tif", np.ones((1, *SHAPE), np.uint16), grid))])
    labels = write_raster(folder / "l.tif", np.full(SHAPE, 10, np.uint8), grid, nodata=0)
    letters = np.where(np.indices((3, 4)).sum(axis=0) % 2 == 0, "v", "t")
    split = AreaSplit(letters, block_edges(SHAPE[0], BLOCK), block_edges(SHAPE[1], BLOCK))
    return LabelledDataset(
        {"one": Area("one", {"scene": scene})}, {"one": labels}, LEGEND, Split({"one": split}, BLOCK, 0)
    )


def patches(rng, shape=SHAPE, unlabelled=0.05):
    index = np.kron(rng.integers(0, 3, (shape[0] // 5, shape[1] // 5)), np.ones((5, 5), int)).astype(np.uint8)
    index[rng.random(shape) < unlabelled] = IGNORE_INDEX
    return index


def evaluate_in_windows(ground, reference, predicted, purity=None, *, size=32, overlap=8, side=10):
    counts = EvaluationCounts.begin(ground, "v", side)
    split = ground.split.areas["one"]
    for strip in plan_strips(Window(0, 0, *SHAPE), size, overlap):
        for planned in strip:
            for part in split.intersections(planned.interior, "v"):
                w = planned.window
                cut = [None if x is None else x[w.slices] for x in (reference, predicted, purity)]
                counts.add("one", TiledWindow(w, part), *cut)
    return counts


def held_out(ground):
    mask = np.zeros(SHAPE, bool)
    for window in ground.split.areas["one"].windows(Part.VALIDATION):
        mask[window.slices] = True
    return mask


@pytest.mark.parametrize(("size", "overlap"), [(32, 8), (80, 8), (20, 6)])
def test_blocks_add_up_and_each_pixel_counts_once_however_the_ground_is_cut(ground, size, overlap):
    rng = np.random.default_rng(0)
    reference, predicted = patches(rng), rng.integers(0, 3, SHAPE).astype(np.uint8)
    counts = evaluate_in_windows(ground, reference, predicted, size=size, overlap=overlap)
    for block, matrix in zip(counts.blocks, counts.counts, strict=True):
        at = block.window.slices
        np.testing.assert_array_equal(matrix, ConfusionMatrix.of(reference[at], predicted[at], 3).counts)
    judged = np.where(held_out(ground), reference, IGNORE_INDEX)
    total = ConfusionMatrix.of(judged, predicted, 3)
    np.testing.assert_array_equal(counts.matrices.total.counts, total.counts)
    np.testing.assert_array_equal(counts.by_distance.sum(axis=0), total.counts)
    np.testing.assert_array_equal(counts.matrices.by_area()["one"].counts, total.counts)
    assert sum(sums[..., 0].sum() for sums in counts.tiles.values()) == total.pixels
    wrong = sum(sums[..., 1].sum() for sums in counts.tiles.values())
    assert wrong == total.pixels - np.trace(total.counts)
    np.testing.assert_allclose(counts.hectares(), total.support * 0.01)


def test_scores_by_purity_are_those_of_the_pixels_of_each_group(ground):
    rng = np.random.default_rng(1)
    reference, predicted = patches(rng), rng.integers(0, 3, SHAPE).astype(np.uint8)
    purity = rng.choice([100, 99, 80, 75, 60, 50, 49, 30, 255], SHAPE).astype(np.uint8)
    counts = evaluate_in_windows(ground, reference, predicted, purity)
    known = held_out(ground) & (reference != IGNORE_INDEX)
    limits = ((100, 100), (75, 99), (50, 74), (0, 49))
    found = counts.purity_scores()
    for name, (low, high) in zip(PURITY_GROUPS, limits, strict=True):
        where = known & (purity >= low) & (purity <= high)
        assert found["groups"][name]["pixels"] == where.sum()
        assert found["groups"][name]["overall_accuracy"] == pytest.approx((reference == predicted)[where].mean())
    where = known & (purity < 100)
    assert found["groups"]["mixed"]["overall_accuracy"] == pytest.approx((reference == predicted)[where].mean())
    assert found["mean"] == pytest.approx(purity[known & (purity != 255)].mean() / 100)
    assert evaluate_in_windows(ground, reference, predicted).purity_scores() is None


def test_near_and_far_from_boundaries_are_judged_apart(ground):
    rng = np.random.default_rng(2)
    reference = patches(rng, unlabelled=0)
    # wrong at the boundaries, right elsewhere
    near = slow_distance(reference, 3) <= 1
    predicted = np.where(near, (reference + 1) % 3, reference).astype(np.uint8)
    found = evaluate_in_windows(ground, reference, predicted).boundary_scores()
    assert found["zones"]["within 1 px"]["overall_accuracy"] == 0
    assert found["zones"]["beyond 3 px"]["overall_accuracy"] == 1
    assert found["zones"]["within 3 px"]["pixels"] == (slow_distance(reference, 3) <= 3)[held_out(ground)].sum()
    assert found["boundary_iou"]["1 px"]["mean"] == 0
    perfect = evaluate_in_windows(ground, reference, reference).boundary_scores()
    assert perfect["boundary_iou"]["1 px"]["mean"] == perfect["boundary_iou"]["3 px"]["mean"] == 1


def slow_distance(index, reach):
    distance = np.full(index.shape, FAR, np.uint8)
    for row, col in np.ndindex(*index.shape):
        if index[row, col] == IGNORE_INDEX:
            continue
        for d in range(reach, 0, -1):
            part = index[max(0, row - d) : row + d + 1, max(0, col - d) : col + d + 1]
            if ((part != index[row, col]) & (part != IGNORE_INDEX)).any():
                distance[row, col] = d
    return distance


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12), st.integers(1, 12))
def test_boundary_distance_is_that_to_the_nearest_pixel_of_another_class(seed, reach, height, width):
    rng = np.random.default_rng(seed)
    index = np.where(rng.random((height, width)) < 0.15, rng.integers(0, 3, (height, width)), 0).astype(np.uint8)
    index[rng.random(index.shape) < 0.1] = IGNORE_INDEX
    np.testing.assert_array_equal(boundary_distance(index, reach), slow_distance(index, reach))


def test_boundary_iou_is_that_of_the_bands_along_each_class(ground):
    rng = np.random.default_rng(3)
    reference = patches(rng)
    predicted = np.roll(patches(rng, unlabelled=0), 1, axis=1)
    counts = evaluate_in_windows(ground, reference, predicted, size=80)
    judged, known = held_out(ground), reference != IGNORE_INDEX
    mapped = np.where(known, predicted, IGNORE_INDEX)
    for t, tolerance in enumerate((1, 3)):
        near_r, near_p = slow_distance(reference, 3) <= tolerance, slow_distance(mapped, 3) <= tolerance
        for k in range(3):
            ours, theirs = near_r & (reference == k) & judged, near_p & (mapped == k) & judged
            expected = (ours & theirs).sum() / (ours | theirs).sum()
            assert boundary_iou(counts.bands)[t, k] == pytest.approx(expected)


def test_the_worst_tiles_are_those_with_most_errors(ground):
    reference = np.zeros(SHAPE, np.uint8)
    predicted = reference.copy()
    predicted[40:50, 0:10] = 1  # wholly wrong, in validation ground
    predicted[45:50, 10:20] = 2  # half wrong
    predicted[0:10, 20:30] = 1  # training ground
    reference[0:10, 0:6] = IGNORE_INDEX  # too little labelled to be judged
    predicted[0:10, 6:10] = 1
    worst = evaluate_in_windows(ground, reference, predicted).worst_tiles()
    assert worst[0] == {"area": "one", "window": [40, 0, 10, 10], "accuracy": 0.0, "pixels": 100}
    assert worst[1]["window"] == [40, 10, 10, 10]
    assert worst[1]["accuracy"] == 0.5
    assert worst[2]["accuracy"] == 1


@pytest.mark.torch
def test_a_model_judged_on_one_block_of_many_is_not_called_better(ground):
    from cobertes.evaluation.evaluate import Evaluation

    rng = np.random.default_rng(0)
    reference = np.full(SHAPE, IGNORE_INDEX, np.uint8)
    reference[:BLOCK, :BLOCK] = patches(rng, (BLOCK, BLOCK), unlabelled=0)
    model, forest = (
        evaluate_in_windows(
            ground, reference, np.where(rng.random(SHAPE) < right, reference % 3, 0).astype(np.uint8)
        )
        for right in (0.9, 0.5)
    )
    found = Evaluation("validation", model, {"random_forest": forest.matrices}, {}).differences()["random_forest"]
    for score in ("miou", "overall_accuracy"):
        assert found[score]["difference"] > 0.1
        assert np.isnan(found[score]["interval"]).all()
        assert found[score]["verdict"] == "cannot tell"


def test_a_class_that_the_legend_lacks_is_an_error(ground):
    with pytest.raises(ValueError, match="none of the legend's"):
        evaluate_in_windows(ground, np.zeros(SHAPE, np.uint8), np.full(SHAPE, 3, np.uint8))


# --- blocks ------------------------------------------------------------------------------------------------


def some_blocks(rng, n=5, units=None):
    blocks = tuple(
        Block("é" if i % 2 else "a", Window(i, 2 * i, 3, 4), (units or range(n))[i].__str__()) for i in range(n)
    )
    return BlockMatrices(blocks, rng.integers(0, 50, (n, 3, 3)) * (rng.random((n, 3, 3)) < 0.4))


def test_block_matrices_come_back_from_their_file(tmp_path):
    rng = np.random.default_rng(0)
    model = some_blocks(rng)
    forest = BlockMatrices(model.blocks, some_blocks(rng).counts)
    save_blocks(tmp_path / "blocks.json", {"model": model, "random_forest": forest}, LEGEND.keys)
    keys, methods = load_blocks(tmp_path / "blocks.json")
    assert (keys, list(methods)) == (LEGEND.keys, ["model", "random_forest"])
    for name, expected in (("model", model), ("random_forest", forest)):
        assert methods[name].blocks == expected.blocks
        np.testing.assert_array_equal(methods[name].counts, expected.counts)
    assert len((tmp_path / "blocks.json").read_text().splitlines()) < 25  # a block a line
    (tmp_path / "blocks.json").write_text('{"classes": ["a"]}')
    with pytest.raises(InputFileError, match=r"no block matrices.*evaluate stage again"):
        load_blocks(tmp_path / "blocks.json")


def test_pieces_of_polygons_are_one_unit_as_far_as_they_hang_together(ground):
    letters = np.full((12, 16), "t")
    letters[1:5, 1:6] = letters[5:7, 6:8] = "v"  # they touch by a corner
    letters[9, 3:12] = "v"
    split = AreaSplit(letters, block_edges(SHAPE[0], 5), block_edges(SHAPE[1], 5))
    pieces = LabelledDataset(ground.areas, ground.labels, LEGEND, Split({"one": split}, 5, 0, "pieces"))
    rng = np.random.default_rng(4)
    reference, predicted = patches(rng), rng.integers(0, 3, SHAPE).astype(np.uint8)
    counts = evaluate_in_windows(pieces, reference, predicted)
    assert len(counts.blocks) == 3  # rectangles, not 33 pieces
    assert counts.blocks[0].unit == counts.blocks[1].unit != counts.blocks[2].unit
    for block, matrix in zip(counts.blocks, counts.counts, strict=True):
        at = block.window.slices
        np.testing.assert_array_equal(matrix, ConfusionMatrix.of(reference[at], predicted[at], 3).counts)
    total = ConfusionMatrix.of(np.where(held_out(pieces), reference, IGNORE_INDEX), predicted, 3)
    np.testing.assert_array_equal(counts.matrices.total.counts, total.counts)
    assert len(counts.matrices.by_unit()) == 2


def test_groups_are_one_unit_and_empty_units_are_none():
    model = some_blocks(np.random.default_rng(1), units=["g", "h", "g", "h", "empty"])
    model.counts[4] = 0
    np.testing.assert_array_equal(model.by_unit(), [model.counts[[0, 2]].sum(0), model.counts[[1, 3]].sum(0)])


# --- a model on its ground ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_seasons(tmp_path_factory):
    """April shows the class of the labels (its band holds class index + 1), August another; parts are empty."""
    folder = tmp_path_factory.mktemp("seasons")
    grid, rng = grid_at(*SHAPE), np.random.default_rng(5)
    index = patches(rng, unlabelled=0)
    april, august = (index + 1).astype(np.uint16), ((index + 1) % 3 + 1).astype(np.uint16)
    april[:, :10] = 0
    august[:, 70:] = 0
    scenes = {
        name: open_scene([str(write_raster(folder / f"{name}.tif", values[None], grid, names=("b",)))])
        for name, values in (("april", april), ("august", august))
    }
    labels = write_raster(folder / "l.tif", LEGEND.codes[index], grid, nodata=0)
    letters = np.where(np.indices((3, 4)).sum(axis=0) % 2 == 0, "v", "t")
    split = AreaSplit(letters, block_edges(SHAPE[0], BLOCK), block_edges(SHAPE[1], BLOCK))
    area = Area("one", scenes)
    return LabelledDataset({"one": area}, {"one": labels}, LEGEND, Split({"one": split}, BLOCK, 0))


def engine_that_reads_classes(mode):
    import torch

    from cobertes.engines.engine import Engine
    from cobertes.learn.encoding import Inputs
    from cobertes.learn.inference import each_season
    from cobertes.learn.model_file import ModelHeader
    from cobertes.learn.unet import UNetSettings

    inputs = Inputs(("april", "august"), ("b",), np.zeros((2, 1)), np.ones((2, 1)), mode)

    def logits(x):  # the first season that is observed decides
        value = torch.where(x[:, 0] > 0, x[:, 0], x[:, -1])
        return torch.stack([10.0 * (value == k + 1) for k in range(3)], dim=1)

    network = UNetSettings(inputs.channels, 3, "scratch", 4, 2)
    header = ModelHeader(network, inputs, LEGEND, 10.0, 32, {"fingerprint": "by-hand"})
    return Engine(header, each_season(logits, inputs), "by hand")


def judged(ground, mode):
    from cobertes.evaluation.held_out_map import HeldOutMap
    from cobertes.evaluation.model_evaluation import ModelEvaluator

    held_out_map = HeldOutMap(ground, 32, 8, "interior")
    return ModelEvaluator(engine_that_reads_classes(mode), held_out_map, {}, 10).run(Part.VALIDATION)


@pytest.mark.torch
def test_each_season_is_judged_by_what_it_says_alone(two_seasons):
    ground = two_seasons
    seasons = judged(ground, "separate").seasons
    assert list(seasons) == ["april", "august"]
    assert (seasons["april"].overall_accuracy, seasons["august"].overall_accuracy) == (1, 0)
    assert seasons["april"].pixels == held_out(ground)[:, 10:].sum()
    assert seasons["august"].pixels == held_out(ground)[:, :70].sum()


@pytest.mark.torch
def test_where_seasons_are_stacked_pixels_are_told_apart_by_what_was_observed(two_seasons):
    ground = two_seasons
    counts = judged(ground, "stack")
    assert {name: m.overall_accuracy for name, m in counts.seasons.items()} == {
        "all seasons": 1, "april alone": 1, "august alone": 0,
    }  # fmt: skip
    assert sum(m.pixels for m in counts.seasons.values()) == counts.matrices.total.pixels


@pytest.mark.torch
def test_windows_without_a_label_are_not_predicted_and_few_labels_make_a_sample(two_seasons, tmp_path):
    from dataclasses import replace

    from cobertes.accuracy.calibration import LogitSample, calibrate
    from cobertes.evaluation.held_out_map import HeldOutMap
    from cobertes.evaluation.model_evaluation import ModelEvaluator

    codes = np.zeros(SHAPE, np.uint8)
    codes[2:4, 12:14], codes[45, 45] = 10, 200
    labels = write_raster(tmp_path / "l.tif", codes, grid_at(*SHAPE), nodata=0)
    ground = replace(two_seasons, labels={"one": labels})
    engine, seen = engine_that_reads_classes("stack"), []
    held_out_map = HeldOutMap(ground, 32, 8, "interior")
    counting = replace(engine, logits=lambda x: (seen.append(len(x)), engine.logits(x))[1])
    sample = LogitSample()
    counts = ModelEvaluator(counting, held_out_map, {}, 10, batch_size=2).run(Part.VALIDATION, sample=sample)
    assert counts.matrices.total.pixels == sum(map(len, sample.labels)) == 5
    assert sum(seen) == 2 < len(held_out_map.windows(Part.VALIDATION))
    assert calibrate(sample)["pixels"] == 5
