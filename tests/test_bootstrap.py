"""Intervals: as wide as blocks differ, right as often as they say; runs compared on common ground."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cobertes.accuracy import metrics
from cobertes.accuracy.block_confusion import Block, BlockMatrices, save_blocks
from cobertes.accuracy.bootstrap import (
    Difference,
    bootstrap,
    half_width,
    interval,
    paired_difference,
    resample_weights,
    resampled_sums,
    score_intervals,
)
from cobertes.accuracy.run_comparison import compare_runs, describe_comparison
from cobertes.cli.main import app
from cobertes.errors import SettingsError
from cobertes.geo.windows import Window
from cobertes.report.run_comparison import write_comparison_page

KEYS = ["a", "b", "c"]


def clustered(rng, blocks, *, mean=0.8, spread=0.1, pixels=2000):
    """(blocks, 2, 2): pixels of a block are right together, with an accuracy of its own around ``mean``."""
    share = (mean * (1 - mean) / spread**2) - 1
    own = rng.beta(mean * share, (1 - mean) * share, blocks)
    size = rng.integers(pixels // 2, pixels * 3 // 2, blocks)
    right = rng.binomial(size, own)
    counts = np.zeros((blocks, 2, 2), np.int64)
    counts[:, 0, 0], counts[:, 0, 1] = right, size - right
    return counts


def ends_of(counts, resamples=2000, seed=0):
    """The interval of the overall accuracy."""
    drawn = bootstrap(counts, resample_weights(len(counts), resamples, seed), metrics.overall_accuracy)
    return interval(metrics.overall_accuracy(counts.sum(axis=0)), drawn, len(counts))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000))
def test_a_draw_is_the_sum_of_the_matrices_it_drew(units, classes, seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, (units, classes, classes))
    weights = resample_weights(units, 7, seed)
    assert (weights.sum(axis=1) == units).all()
    drawn = np.concatenate(list(resampled_sums(counts, weights)))
    for draw, weight in zip(drawn, weights, strict=True):
        np.testing.assert_array_equal(draw, np.repeat(counts, weight, axis=0).sum(axis=0))


def test_draws_in_parts_are_the_draws_at_once(monkeypatch):
    counts, weights = clustered(np.random.default_rng(0), 9), resample_weights(9, 50)
    whole = bootstrap(counts, weights, metrics.overall_accuracy)
    monkeypatch.setattr("cobertes.accuracy.bootstrap.CHUNK_BYTES", 100)
    np.testing.assert_array_equal(bootstrap(counts, weights, metrics.overall_accuracy), whole)


def test_the_fewer_units_the_more_deviations_an_interval_reaches():
    assert half_width(20) == pytest.approx(2.093 * np.sqrt(20 / 19), rel=1e-3)
    assert half_width(4) == pytest.approx(3.182 * np.sqrt(4 / 3), rel=1e-3)
    assert half_width(10**6) == pytest.approx(1.96, rel=1e-3)
    assert np.isnan(half_width(1))


@pytest.mark.parametrize(("blocks", "least"), [(4, 0.9), (10, 0.91), (40, 0.91)])
def test_intervals_hold_the_true_accuracy_as_often_as_they_say(blocks, least):
    rng, inside, naive = np.random.default_rng(7), 0, 0
    trials = 400
    for trial in range(trials):
        counts = clustered(rng, blocks)
        low, high = ends_of(counts, 400, trial)
        inside += low <= 0.8 <= high
        total = counts.sum(axis=0)
        share = total[0, 0] / total.sum()
        naive += abs(share - 0.8) < 1.96 * np.sqrt(share * (1 - share) / total.sum())
    assert least <= inside / trials <= 0.99
    assert naive / trials < 0.5  # the binomial interval of the pixels is what we are warned of


def test_no_interval_from_a_single_block_and_wide_ones_for_classes_of_few():
    counts = np.zeros((5, 3, 3), np.int64)
    counts[:, 0, 0], counts[:, 0, 1] = [90, 80, 70, 95, 60], [10, 20, 30, 5, 40]
    counts[0, 1, 1], counts[0, 1, 0] = 50, 50  # in one block only
    found = score_intervals(counts, KEYS)
    assert found["units"] == 5
    assert found["classes"]["b"]["units"] == 1
    assert np.isnan(found["classes"]["b"]["producers_accuracy"]).all()
    assert np.isnan(found["classes"]["c"]["iou"]).all()  # absent
    low, high = found["classes"]["a"]["producers_accuracy"]
    assert low < 0.79 < high
    assert np.isnan(score_intervals(counts[:1], KEYS)["overall_accuracy"]).all()


def test_the_same_seed_draws_the_same_interval():
    counts = clustered(np.random.default_rng(0), 12)
    one, two, other = (score_intervals(counts, KEYS[:2], seed=seed) for seed in (0, 0, 1))
    assert one["overall_accuracy"] == two["overall_accuracy"] != other["overall_accuracy"]
    assert one["classes"]["a"] == two["classes"]["a"]


def test_a_small_steady_gain_is_told_though_the_scores_intervals_overlap():
    rng = np.random.default_rng(3)
    first = clustered(rng, 20, spread=0.15)
    second = first.copy()
    moved = (first[:, 0, 1] * rng.uniform(0.05, 0.15, 20)).astype(int)
    second[:, 0, 0] += moved
    second[:, 0, 1] -= moved
    gain = paired_difference(first, second, metrics.overall_accuracy)
    assert gain.verdict == "better"
    assert paired_difference(second, first, metrics.overall_accuracy).verdict == "worse"
    ends = [ends_of(first), ends_of(second)]
    assert ends[0][1] > ends[1][0]  # each alone could not tell
    same = paired_difference(first, first, metrics.overall_accuracy)
    assert (same.difference, same.low, same.high, same.verdict) == (0, 0, 0, "cannot tell")


def test_units_without_a_judged_pixel_tell_nothing():
    rng = np.random.default_rng(5)
    first, second = clustered(rng, 6, mean=0.7), clustered(rng, 6, mean=0.9)
    empty = np.zeros((14, 2, 2), np.int64)
    padded = [np.concatenate([one, empty]) for one in (first, second)]
    assert paired_difference(*padded, metrics.overall_accuracy) == paired_difference(
        first, second, metrics.overall_accuracy
    )
    alone = paired_difference(
        *(np.concatenate([one[:1], empty]) for one in (first, second)), metrics.overall_accuracy
    )
    assert alone.difference > 0
    assert (np.isnan([alone.low, alone.high]).all(), alone.verdict) == (True, "cannot tell")
    none = paired_difference(empty, empty, metrics.overall_accuracy)
    assert (np.isnan(none.difference), none.verdict) == (True, "cannot tell")


def test_differences_that_are_none_are_rarely_called_real():
    rng, told = np.random.default_rng(11), 0
    for trial in range(300):
        first, second = clustered(rng, 16), clustered(rng, 16)
        told += (
            paired_difference(first, second, metrics.overall_accuracy, resamples=300, seed=trial).verdict
            != "cannot tell"
        )
    assert told / 300 < 0.08


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.2, "better"), (-0.2, -0.1, "worse"), (-0.1, 0.1, "cannot tell")]
)
def test_verdicts(low, high, verdict):
    assert Difference(0.0, low, high).verdict == verdict
    assert Difference(0.0, np.nan, np.nan).verdict == "cannot tell"


# --- runs --------------------------------------------------------------------------------------------------


def run_file(path, counts, *, keys=KEYS, first=0, size=10):
    blocks = tuple(
        Block("one", Window((first + i) * size, 0, size, size), f"u{first + i}") for i in range(len(counts))
    )
    path.parent.mkdir(exist_ok=True)
    save_blocks(path, {"model": BlockMatrices(blocks, counts)}, keys)
    return path


def three_classes(rng, n, accuracy):
    counts = np.zeros((n, 3, 3), np.int64)
    for k in range(3):
        right = rng.binomial(1000, accuracy, n)
        counts[:, k, k], counts[:, k, (k + 1) % 3] = right, 1000 - right
    return counts


def test_runs_are_compared_on_the_blocks_that_all_held_out(tmp_path):
    rng = np.random.default_rng(0)
    a, b = three_classes(rng, 12, 0.8), three_classes(rng, 14, 0.9)
    files = {"old": run_file(tmp_path / "a.json", a), "new": run_file(tmp_path / "b.json", b, first=2)}
    found = compare_runs(files)
    assert (found.blocks, found.left_out) == (10, {"old": 2, "new": 4})
    np.testing.assert_array_equal(found.matrices["old"].counts, a[2:].sum(axis=0))
    np.testing.assert_array_equal(found.matrices["new"].counts, b[:10].sum(axis=0))
    gain = found.differences["new"]["overall_accuracy"]
    assert gain.verdict == "better"
    assert gain.difference == pytest.approx(
        found.scores["new"]["overall_accuracy"][0] - found.scores["old"]["overall_accuracy"][0]
    )
    text = describe_comparison(found)
    assert "10 common held-out blocks" in text
    assert "better" in text
    assert "2 blocks that old held out are not held out by all" in text


def test_classes_are_matched_by_key_and_other_legends_refused(tmp_path):
    rng = np.random.default_rng(0)
    a = three_classes(rng, 5, 0.8)
    order = [2, 0, 1]
    turned = a[:, order][:, :, order]
    files = {
        "a": run_file(tmp_path / "a.json", a),
        "b": run_file(tmp_path / "b.json", turned, keys=["c", "a", "b"]),
    }
    found = compare_runs(files)
    assert found.differences["b"]["overall_accuracy"].difference == 0
    assert found.relabelled == 0
    np.testing.assert_array_equal(found.matrices["a"].counts, found.matrices["b"].counts)
    files["b"] = run_file(tmp_path / "b.json", a, keys=["a", "b", "d"])
    with pytest.raises(SettingsError, match="b has other classes: c, d"):
        compare_runs(files)


def test_runs_without_common_ground_and_single_runs_are_refused(tmp_path):
    a = three_classes(np.random.default_rng(0), 3, 0.8)
    files = {"a": run_file(tmp_path / "a.json", a), "b": run_file(tmp_path / "b.json", a, first=10)}
    with pytest.raises(SettingsError, match="share no held-out block"):
        compare_runs(files)
    with pytest.raises(SettingsError, match="one run can't be compared"):
        compare_runs({"a": files["a"]})


def test_runs_that_were_judged_by_other_labels_are_pointed_out(tmp_path):
    rng = np.random.default_rng(0)
    a, b = three_classes(rng, 5, 0.8), three_classes(rng, 5, 0.8)
    b[3, 0, 0] += 5
    found = compare_runs({"a": run_file(tmp_path / "a.json", a), "b": run_file(tmp_path / "b.json", b)})
    assert found.relabelled == 1
    assert "In 1 blocks the runs were judged by different labels" in describe_comparison(found)
    assert "Only 5 independent units" in describe_comparison(found)


def test_one_common_block_gives_scores_without_intervals(tmp_path):
    a = three_classes(np.random.default_rng(0), 1, 0.8)
    found = compare_runs({"a": run_file(tmp_path / "a.json", a), "b": run_file(tmp_path / "b.json", a)})
    value, low, high = found.scores["a"]["miou"]
    assert value > 0.5
    assert np.isnan([low, high]).all()
    assert found.differences["b"]["miou"].verdict == "cannot tell"


def of_which_b_is_in(blocks, right, rng):
    """20 blocks; class b in some of the first only, with a share of it ``right``."""
    counts = three_classes(rng, 20, 0.8)
    counts[:, 1] = 0
    counts[:, 0] = counts[:, 0][:, [0, 2, 1]]  # nothing else is taken for b
    counts[:blocks, 1, 1], counts[:blocks, 1, 0] = right, 1000 - right
    return counts


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_class_of_one_common_block_has_no_certain_verdict(tmp_path, blocks):
    a, b = (of_which_b_is_in(blocks, right, np.random.default_rng(0)) for right in (700, 720))
    found = compare_runs({"a": run_file(tmp_path / "a.json", a), "b": run_file(tmp_path / "b.json", b)})
    one = found.differences["b"]["iou of b"]
    assert one.difference == pytest.approx(0.02)
    if blocks == 1:  # whatever is drawn, the class has the pixels of its one block
        assert np.isnan([one.low, one.high]).all()
        assert one.verdict == "cannot tell"
    else:  # two blocks: t of one degree of freedom, not of nineteen
        weights = resample_weights(20)
        drawn = [bootstrap(x, weights, lambda c: metrics.iou(c)[:, 1]) for x in (a, b)]
        assert one.high - one.difference == pytest.approx(half_width(2) * np.nanstd(drawn[1] - drawn[0]))


def test_the_number_of_differences_is_told_with_two_runs_too(tmp_path):
    a = of_which_b_is_in(0, 0, np.random.default_rng(0))
    files = {name: run_file(tmp_path / f"{name}.json", a) for name in "abc"}
    two = describe_comparison(compare_runs({name: files[name] for name in "ab"}))
    assert "5 differences are told" in two  # three scores and the two classes that occur
    assert "10 differences are told" in describe_comparison(compare_runs(files))


def test_without_an_interval_there_is_none_in_words(tmp_path):
    a = three_classes(np.random.default_rng(0), 1, 0.8)
    found = compare_runs({name: run_file(tmp_path / f"{name}.json", a) for name in "ab"})
    write_comparison_page(tmp_path / "page.html", found, {})
    page = (tmp_path / "page.html").read_text()
    for text in (describe_comparison(found), page):
        assert "nan to" not in text
        assert "no interval" in text


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def two_runs(tmp_path):
    rng = np.random.default_rng(0)
    for name, accuracy, width in (("plain", 0.8, 16), ("weighted", 0.9, 24)):
        run_file(tmp_path / name / "blocks.json", three_classes(rng, 12, accuracy))
        (tmp_path / name / "project.toml").write_text(f'name = "x"\n[model]\nwidth = {width}\n')
    return tmp_path


def invoke(*arguments):
    return CliRunner().invoke(app, ["compare-runs", *map(str, arguments)])


def test_the_command_prints_a_table_and_writes_a_page(two_runs):
    page = two_runs / "page.html"
    shown = invoke(two_runs / "plain", two_runs / "weighted", "-o", page, "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert found["differences"]["weighted"]["miou"]["verdict"] == "better"
    low, high = found["differences"]["weighted"]["miou"]["interval"]
    assert 0 < low < found["differences"]["weighted"]["miou"]["difference"] < high
    html = page.read_text()
    assert "src=" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert re.search(r"model\.width.*?16.*?24", html, re.DOTALL)
    assert html.count("better") > 2
    again = invoke(two_runs / "plain", two_runs / "weighted", "-o", page)
    assert again.exit_code == 2
    assert "--overwrite" in again.output


def test_the_command_warns_of_single_tiles(two_runs):
    runs = two_runs / "plain", two_runs / "weighted"
    assert "too narrow" not in invoke(*runs).output
    (runs[1] / "project.toml").write_text('name = "x"\n[split]\nmethod = "random"\n')
    assert "weighted: single tiles were drawn" in " ".join(invoke(*runs).output.split())


def test_the_command_says_what_is_missing(two_runs):
    (two_runs / "weighted" / "blocks.json").unlink()
    shown = invoke(two_runs / "plain", two_runs / "weighted")
    assert shown.exit_code == 2
    assert "blocks.json" in shown.output
    assert invoke(two_runs / "plain").exit_code == 2
    assert "named twice" in invoke(two_runs / "plain", two_runs / "plain").output


def test_a_folder_that_is_no_run_is_told_apart_from_a_run_that_was_not_judged(two_runs):
    (two_runs / "other").mkdir()
    for folder, message in (
        (two_runs / "other", f"no run in {two_runs / 'other'}: it has no project.toml. Name the folder of a run"),
        (two_runs / "wieghted", f"no run in {two_runs / 'wieghted'}: there is no such folder"),
    ):
        shown = invoke(two_runs / "plain", folder)
        assert shown.exit_code == 2
        assert message in " ".join(shown.output.split())
    (two_runs / "weighted" / "blocks.json").unlink()
    assert "an earlier stage has not run yet" in " ".join(
        invoke(two_runs / "plain", two_runs / "weighted").output.split()
    )
