"""An interrupted label pass goes on where it stopped, and the result is the same to the byte."""

import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from cobertes.errors import InputFileError, OutputExistsError, SettingsError, StorageError, UnknownCodesError
from cobertes.geo import cog_writer, ledger
from cobertes.geo.cog_writer import partial_folder
from cobertes.labels import memory_plan
from cobertes.labels.recode import RecodeTable
from cobertes.labels.vote_weights import VoteWeights
from helpers.interruptions import StoppedAfter, contents, run_until_killed
from helpers.label_runs import GRID, TABLE, label
from helpers.rasters import grid_at, write_raster


@pytest.fixture(autouse=True)
def small_windows_entered_at_once():
    with (
        patch.object(memory_plan, "WINDOW_PIXELS", 500),
        patch.object(memory_plan, "_processors", lambda: 1),
        patch.object(ledger, "SECONDS", 0),
    ):
        yield


@pytest.fixture
def reference(tmp_path):
    codes = np.random.default_rng(5).integers(0, 4, (240, 200)).astype(np.uint8)
    return write_raster(tmp_path / "map.tif", codes, grid_at(240, 200, 1.0), nodata=0)


@pytest.mark.parametrize("windows", [0, 1, 7, 23])
def test_an_interrupted_pass_goes_on_and_ends_the_same(tmp_path, reference, windows):
    options = {"method": "weighted-majority", "weighting": VoteWeights("inverse", 0.4)}
    once = label(reference, tmp_path / "once", **options)
    with pytest.raises(KeyboardInterrupt):
        label(reference, tmp_path / "twice", progress=StoppedAfter(windows + 1, name="labels"), **options)
    assert all(name.startswith(".") for name in os.listdir(tmp_path / "twice"))
    watch = StoppedAfter()
    twice = label(reference, tmp_path / "twice", resume="yes", progress=watch, **options)
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")
    assert twice == once
    # what was done is not done again: the first step of the bar is what was there
    assert watch.seen[0] >= (windows + 1) * GRID.width * 100 / 1e6


def test_a_killed_process_leaves_what_another_can_go_on_with(tmp_path, reference):
    label(reference, tmp_path / "once")
    script = f"""
        from pathlib import Path
        from cobertes.geo import ledger
        from cobertes.labels import memory_plan
        from helpers.label_runs import label
        from helpers.interruptions import StoppedAfter, kill
        memory_plan._processors, memory_plan.WINDOW_PIXELS, ledger.SECONDS = lambda: 1, 500, 0
        reference, folder = Path({str(reference)!r}), Path({str(tmp_path / "twice")!r})
        label(reference, folder, progress=StoppedAfter(9, kill))
    """
    run_until_killed(script)
    assert (partial_folder(tmp_path / "twice" / "labels.tif") / "ledger.json").exists()
    label(reference, tmp_path / "twice", resume="yes")
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")


def test_an_interrupt_while_outputs_get_their_names_is_mended_too(tmp_path, reference):
    label(reference, tmp_path / "once")
    copy = cog_writer._copy_to_cog

    def interrupted(partial, name, *rest):
        if name == "labels.tif":  # the last one: all others have their names
            raise KeyboardInterrupt
        copy(partial, name, *rest)

    with patch.object(cog_writer, "_copy_to_cog", interrupted), pytest.raises(KeyboardInterrupt):
        label(reference, tmp_path / "twice")
    assert (tmp_path / "twice" / "fractions.tif").exists()
    label(reference, tmp_path / "twice", resume="yes")
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")


def test_a_full_disk_can_be_mended_and_resumed(tmp_path, reference):
    label(reference, tmp_path / "once")
    with (
        patch.object(cog_writer, "_read_back", side_effect=StorageError("is the disk full?")),
        pytest.raises(StorageError),
    ):
        label(reference, tmp_path / "twice")
    label(reference, tmp_path / "twice", resume="yes")
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")


def label_half(reference, folder, **options):
    with pytest.raises(KeyboardInterrupt):
        label(reference, folder, progress=StoppedAfter(4, name="labels"), **options)


def test_rows_of_other_settings_are_never_mixed_in(tmp_path, reference):
    label_half(reference, tmp_path / "out")
    before = contents(tmp_path / "out" / ".labels.tif.partial")
    with pytest.raises(SettingsError, match="begun with other inputs, settings or --memory"):
        label(reference, tmp_path / "out", resume="yes", min_valid=0.9)
    assert contents(tmp_path / "out" / ".labels.tif.partial") == before
    label(reference, tmp_path / "out", resume="if-same", min_valid=0.9)
    label(reference, tmp_path / "new", min_valid=0.9)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_without_resume_a_pass_starts_anew(tmp_path, reference):
    label_half(reference, tmp_path / "out")
    watch = StoppedAfter()
    label(reference, tmp_path / "out", progress=watch)
    assert sum(watch.seen) == pytest.approx(0.048)
    assert len(set(watch.seen)) == 1
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("text", ["", "{}", '{"made_from": 3'])
def test_a_damaged_ledger_is_told(tmp_path, reference, text):
    label_half(reference, tmp_path / "out")
    (tmp_path / "out" / ".labels.tif.partial" / "ledger.json").write_text(text)
    with pytest.raises(InputFileError, match=r"ledger\.json is damaged"):
        label(reference, tmp_path / "out", resume="yes")
    label(reference, tmp_path / "out", resume="if-same")
    label(reference, tmp_path / "new")
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_a_missing_part_is_told(tmp_path, reference):
    label_half(reference, tmp_path / "out")
    (tmp_path / "out" / ".purity.tif.partial" / "pixels.raw").unlink()
    with pytest.raises(SettingsError, match=r"purity\.tif is gone"):
        label(reference, tmp_path / "out", resume="yes")


def test_existing_outputs_are_asked_about_before_the_pass(tmp_path, reference):
    label_half(reference, tmp_path / "out")
    (tmp_path / "out" / "labels.tif").write_text("mine")
    with pytest.raises(OutputExistsError):
        label(reference, tmp_path / "out", resume="yes")
    assert (tmp_path / "out" / "labels.tif").read_text() == "mine"


def test_nothing_is_kept_after_an_error_of_the_map(tmp_path, reference):
    with pytest.raises(UnknownCodesError):
        label(
            reference,
            tmp_path / "out",
            table=RecodeTable(np.where(np.arange(256) == 3, -1, TABLE.table).astype(np.int16)),
        )
    assert not list((tmp_path / "out").iterdir())


def test_resume_with_nothing_there_starts(tmp_path, reference):
    label(reference, tmp_path / "out", resume="yes")
    assert Path(tmp_path / "out" / "labels.tif").exists()
