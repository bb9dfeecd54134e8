"""Running a model over planned windows: each held-out pixel once, and the same result as the map's."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from cobertes.errors import InputFileError
from cobertes.geo.windows import Window, plan_strips
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.learn import inference
from cobertes.learn.inference import batched, evaluate_windows, plan_blocks, prefetch
from cobertes.learn.unet import UNet, UNetSettings
from helpers.engines import plan_as_mapped
from helpers.rasters import coordinates, stitch
from helpers.samples import EXACT, LEGEND, SCALE, area_with_letters, code_at, coordinate_project, project_of

PLANS = [plan_blocks, plan_as_mapped]
K = len(LEGEND)


def knows_all(x):
    """A model that reads the coordinates of its pixels, and so gives each its true class."""
    row, col = np.rint(x.numpy() * SCALE).astype(int).swapaxes(0, 1)
    index = LEGEND.index_table()[code_at(row, col)]
    return 50 * torch.nn.functional.one_hot(torch.from_numpy(index).long(), K).movedim(-1, 1).float()


def held_out(project, letter="v"):
    """(height, width) bool: the held-out ground of the only area."""
    mask = np.zeros(project.ground.areas["here"].shape, bool)
    for block in project.ground.split.areas["here"].windows(letter):
        mask[block.slices] = True
    return mask


@pytest.fixture
def project(tmp_path):
    """170 x 170 px with validation ground at the border, in neighbouring blocks and alone, and test ground."""
    return area_with_letters(
        coordinate_project(tmp_path, (170, 170)), ["vttte", "ttvvt", "tttvt", "ettt-", "vtttv"], 34
    )


pytestmark = pytest.mark.usefixtures("one_thread")


# --- what is planned ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("size", "overlap"), [(16, 4), (33, 8), (64, 0), (200, 50)])
@pytest.mark.parametrize("letter", ["v", "e"])
def test_each_held_out_pixel_is_planned_once(project, plan, size, overlap, letter):
    seen = np.zeros((170, 170), int)
    for name, planned in plan(project.ground, letter, size, overlap):
        assert name == "here"
        assert planned.window.shape == (size, size)
        assert planned.window.row <= planned.interior.row
        assert planned.interior.col_stop <= planned.window.col_stop
        seen[planned.interior.slices] += 1
    expected = np.zeros((170, 170), int)
    for block in project.ground.split.areas["here"].windows(letter):
        expected[block.slices] = 1
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("plan", PLANS)
def test_each_held_out_label_is_judged_once(project, plan):
    matrix, loss = evaluate_windows(knows_all, EXACT, project.ground, plan(project.ground, "v", 24, 6), 5)
    mask = held_out(project)
    codes = code_at(*coordinates((170, 170)))
    np.testing.assert_array_equal(matrix.support, [(codes[mask] == c).sum() for c in LEGEND.codes])
    assert matrix.miou == 1.0
    assert loss == pytest.approx(0, abs=1e-6)


def test_pixels_without_label_or_observation_are_not_judged(tmp_path):
    values = coordinates((128, 128))
    labels = code_at(*values)
    labels[::3] = 0
    unseen = np.where(values[1] % 4 == 0, 0, values)
    project = project_of(tmp_path, {"here": {"scene": unseen}}, {"here": labels})
    matrix, _ = evaluate_windows(knows_all, EXACT, project.ground, plan_blocks(project.ground, "v", 24, 6), 5)
    expected = held_out(project) & (labels > 0) & (values[1] % 4 > 0)
    assert matrix.support.sum() == expected.sum() > 0
    assert matrix.miou == 1.0


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_score_is_that_of_the_stitched_map(project, batch_size):
    torch.manual_seed(0)
    model = UNet(UNetSettings(2, K, "scratch", 4, 2))
    for _ in range(30):  # give batch norm statistics to work with, so that all classes occur
        model(torch.rand(4, 2, 32, 32))
    model.eval()

    def forward(x):
        with torch.inference_mode():
            return model(x)

    size, overlap = 32, 8
    scene = project.ground.areas["here"].scenes["scene"]
    whole = Window(0, 0, 170, 170)
    logits = np.zeros((K, 170, 170), np.float32)
    for strip in plan_strips(whole, size, overlap):
        for planned in strip:
            x, _ = EXACT.read({"scene": scene}, planned.window)
            stitch(logits, whole, planned, forward(torch.from_numpy(x[None]))[0].numpy())
    labels = LEGEND.index_table()[code_at(*coordinates((170, 170)))]
    mask = held_out(project)
    expected = np.zeros((K, K), int)
    np.add.at(expected, (labels[mask], logits.argmax(0)[mask]), 1)
    plan = plan_as_mapped(project.ground, "v", size, overlap)
    matrix, loss = evaluate_windows(forward, EXACT, project.ground, plan, batch_size)
    np.testing.assert_array_equal(matrix.counts, expected)
    assert len(np.unique(logits.argmax(0))) > 1
    mean = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits[:, mask].T), torch.from_numpy(labels[mask]).long()
    )
    assert loss == pytest.approx(float(mean), rel=1e-4)


def test_ground_without_labels_has_no_score(project):
    matrix, loss = evaluate_windows(knows_all, EXACT, project.ground, [], 4)
    assert not matrix.counts.any()
    assert np.isnan(loss)
    _, y = project.ground.read_chw("here", Window(500, 500, 4, 4))
    assert (y == IGNORE_INDEX).all()


def test_progress_counts_the_windows(project):
    plan = plan_blocks(project.ground, "v", 24, 6)
    seen = []
    evaluate_windows(knows_all, EXACT, project.ground, plan, 4, seen.append)
    assert (sum(seen), max(seen)) == (len(plan), 4)


# --- reading ahead -----------------------------------------------------------------------------------------


def test_items_come_in_order_whatever_is_read_first():
    is_read, order = [threading.Event() for _ in range(23)], []

    def read(item):
        if item % 2 == 0 and item < 22:  # the next one is ready first
            assert is_read[item + 1].wait(60)
        order.append(item)
        is_read[item].set()
        return item * 10

    found = list(prefetch(batched(range(23), 4), read, threads=2))
    assert order[:4] != [0, 1, 2, 3]
    assert [len(batch) for batch in found] == [4, 4, 4, 4, 4, 3]
    assert [pair for batch in found for pair in batch] == [(i, i * 10) for i in range(23)]
    assert list(prefetch(batched([], 4), read)) == []


def test_reading_goes_on_while_the_caller_computes_but_not_without_end():
    asked, read = [], threading.Semaphore(0)

    def batches():
        for batch in batched(range(100), 2):
            asked.append(batch)
            yield batch

    feed = prefetch(batches(), lambda item: read.release(), ahead=4)
    next(feed)
    for _ in range(2 * 4):
        assert read.acquire(timeout=60)
    assert len(asked) == 4
    feed.close()


def test_no_more_batches_are_read_than_asked_for():
    taken = []

    def source():
        for number in range(10):
            taken.append(number)
            yield [number]

    feed = prefetch(source(), lambda number: -number, threads=1, ahead=2)
    assert next(feed) == [(0, 0)]
    assert taken == [0, 1]
    assert next(feed) == [(1, -1)]
    assert taken == [0, 1, 2]
    feed.close()


def test_an_error_comes_out_in_its_turn_and_ends_the_threads():
    def read(item):
        if item == 5:
            raise InputFileError("scene.tif is truncated")
        return item

    before, feed = threading.active_count(), prefetch(batched(range(100), 2), read)
    assert [item for batch in (next(feed), next(feed)) for item, _ in batch] == [0, 1, 2, 3]
    with pytest.raises(InputFileError, match="truncated"):
        next(feed)
    assert threading.active_count() == before


def test_a_caller_who_stops_leaves_no_reading_behind(monkeypatch):
    done, stopped, before = [], threading.Event(), threading.active_count()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            stopped.set()
            super().shutdown(wait=wait)

    def read(item):
        assert item < 8 or stopped.wait(60)
        done.append(item)

    monkeypatch.setattr(inference, "ThreadPoolExecutor", Pool)
    feed = prefetch(batched(range(1000), 8), read, threads=3)
    next(feed)
    feed.close()
    assert threading.active_count() == before
    assert len(done) <= 8 + 3
