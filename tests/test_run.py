"""A whole run: every stage on a small project, what a second run does, and that a model is never replaced."""

import json
import math
import re
import shutil
import tomllib
from contextlib import contextmanager
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio

from cobertes.engines import quantize
from cobertes.engines.runtimes import is_quantized
from cobertes.errors import (
    BandMismatchError,
    CobertesError,
    LegendError,
    ModelFileError,
    NoTilesError,
    SettingsError,
    SplitError,
    UnknownCodesError,
)
from cobertes.learn.metrics_log import read_history
from cobertes.settings import Settings
from cobertes.workflow.context import StageContext, open_dataset
from cobertes.workflow.evaluation import evaluate
from cobertes.workflow.project import load_project
from cobertes.workflow.run import Run
from cobertes.workflow.run_folder import RunFolder, open_run
from cobertes.workflow.stages import STAGES as RECORDS
from helpers.interruptions import StoppedAfter
from helpers.projects import BANDS, PROJECT, write_ground, write_project
from helpers.rasters import grid_at, read_raster, write_raster

STAGES = [stage.name for stage in RECORDS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project and its finished run; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("finished")
    write_ground(folder)
    project = write_project(folder)
    run_of(project).run()
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def run_of(project: Path, **options) -> Run:
    return Run(load_project(project), project.parent / "run", **options)


def runs(project: Path, **selected) -> list[str]:
    return [step.stage for step in run_of(project).plan(**selected) if step.runs]


def test_every_stage_leaves_its_file(finished):
    files = {str(path.relative_to(finished / "run")) for path in (finished / "run").rglob("*") if path.is_file()}
    assert files >= {
        "project.toml", "labels/here.tif", "tiles.parquet", "statistics.json", "split.json", "checkpoints/last.ckpt",
        "model.safetensors", "metrics.jsonl", "assessment.json", "confusion.csv", "maps/here.tif",
        "maps/here.confidence.tif", "report.html",
    }  # fmt: skip
    assert not [name for name in files if "partial" in name]


def test_the_assessment_has_the_settled_keys_and_beats_guessing(finished):
    found = json.loads((finished / "run" / "assessment.json").read_text())
    assert found["split"] == "validation"
    assert set(found["baselines"]) == {"most_frequent", "random_forest"}
    scores = found["model"]
    assert set(scores["classes"]["water"]) >= {
        "code", "name", "iou", "dice", "producers_accuracy", "users_accuracy", "support"
    }  # fmt: skip
    assert scores["classes"]["urban"]["iou"] is None
    matrix = np.array(scores["confusion_matrix"])
    assert matrix.shape == (12, 12)
    assert matrix.sum() == found["pixels"]
    # rows are the reference: the forest saw the same pixels
    other = np.array(found["baselines"]["random_forest"]["confusion_matrix"])
    assert matrix.sum(axis=1).tolist() == other.sum(axis=1).tolist()
    assert found["baselines"]["random_forest"]["overall_accuracy"] > 0.9
    assert scores["overall_accuracy"] > found["baselines"]["most_frequent"]["overall_accuracy"]


def test_scores_are_those_of_the_map_in_the_held_out_blocks(finished):
    folder = finished / "run"
    split = json.loads((folder / "split.json").read_text())
    labels, mapped = read_raster(folder / "labels" / "here.tif"), read_raster(folder / "maps" / "here.tif")
    rows, cols = split["edges"]["here"]["rows"], split["edges"]["here"]["cols"]
    held = np.zeros(labels.shape, bool)
    for i, line in enumerate(split["areas"]["here"]):
        for j, letter in enumerate(line):
            held[rows[i] : rows[i + 1], cols[j] : cols[j + 1]] = letter == "v"
    held &= labels > 0
    found = json.loads((folder / "assessment.json").read_text())
    assert found["pixels"] == held.sum()
    assert found["model"]["overall_accuracy"] == pytest.approx((labels == mapped)[held].mean())


def test_the_index_opens_as_geoparquet(finished):
    frame = gpd.read_parquet(finished / "run" / "tiles.parquet")
    assert frame.crs.to_epsg() == 4326
    assert {"area", "row", "col", "split", "keep", "reason", "valid_april", "valid_august", "counts"} <= set(frame)


def test_the_map_has_the_scene_s_grid_names_and_nodata(finished):
    with (
        rasterio.open(finished / "run" / "maps" / "here.tif") as found,
        rasterio.open(finished / "april.tif") as scene,
    ):
        assert (found.transform, found.crs, found.shape) == (scene.transform, scene.crs, scene.shape)
        assert found.nodata == 0
        assert found.colormap(1)[12] == (0, 0, 220, 255)
        assert found.tags()["class_12"] == "Watercourses and water bodies"
        assert set(np.unique(found.read(1))) <= set(range(1, 13))
    names = (finished / "run" / "maps" / "here.tif.aux.xml").read_text()
    assert "<Category>Watercourses and water bodies</Category>" in names


def test_the_written_settings_are_a_project_again(finished):
    text = (finished / "run" / "project.toml").read_text()
    assert Settings.model_validate(tomllib.loads(text)) == load_project(finished / "project.toml").settings


def test_a_second_run_does_nothing(copy):
    before = {path: path.stat().st_mtime_ns for path in (copy / "run").rglob("*") if path.name != "project.toml"}
    told = []
    again = Run(load_project(copy / "project.toml"), copy / "run", on_message=lambda *line: told.append(line))
    again.folder.stages.write_text((copy / "run" / "stages.json").read_text())
    ran = again.run()
    # the copy's files are new, so what reads scenes and maps looks changed; what was learnt is the same
    assert "train" not in ran
    assert again.run() == []
    assert told[-6:] == [(stage, "up to date") for stage in STAGES]
    assert (copy / "run" / "model.safetensors").stat().st_mtime_ns == before[copy / "run" / "model.safetensors"]


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({}, []),
        ({"predict": "overlap = 2"}, ["evaluate", "predict", "report"]),
        ({"train": "learning-rate = 0.01"}, ["train", "evaluate", "predict", "report"]),
        ({"tiles": "overlap = 4"}, ["tiles", "train", "evaluate", "predict", "report"]),
    ],
)
def test_only_what_changed_is_planned(copy, tables, expected):
    run_of(copy / "project.toml").run()
    write_project(copy, **tables)
    assert runs(copy / "project.toml") == expected


def test_a_map_is_made_again_where_scenes_are_read_otherwise(finished, tmp_path):
    write_ground(tmp_path, seed=5, size=60)
    text = (
        'name = "there"\n{}[[area]]\nname = "there"\nscenes = {{ april = "april.tif", august = "august.tif" }}\n'
        f'[predict]\nmodel = "{finished / "run"}"\nprecision = "fp32"\n'
    )
    project = tmp_path / "project.toml"
    project.write_text(text.format(""))
    run_of(project).run()
    assert runs(project) == []
    project.write_text(text.format("scene-nodata = 500\n"))
    assert runs(project) == ["predict", "report"]


class _InterruptedAtMap:
    """A progress bar at which somebody presses Ctrl-C when the map of that number has begun; none where None."""

    def __init__(self, number=None):
        self.number, self.maps = number, 0

    @contextmanager
    def bar(self, name, total, unit):
        def advance(amount, note=""):
            if name == "map" and self.maps == self.number:
                raise KeyboardInterrupt

        self.maps += name == "map"
        yield advance


@pytest.fixture
def two_areas(finished, tmp_path):
    """A project that maps areas ``a`` and ``b`` with a finished model."""
    lines = ['name = "elsewhere"']
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        write_ground(tmp_path / name, seed=seed, size=60)
        scenes = f'{{ april = "{name}/april.tif", august = "{name}/august.tif" }}'
        lines.append(f'[[area]]\nname = "{name}"\nscenes = {scenes}')
    lines.append(f'[predict]\nmodel = "{finished / "run"}"\nprecision = "fp32"\ndevice = "cpu"\n')
    (tmp_path / "project.toml").write_text("\n".join(lines))
    return tmp_path / "project.toml"


def map_states(project):
    """Of the map files of areas: bytes and time of change."""
    folder = project.parent / "run" / "maps"
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.glob("[ab]*"))}


def test_areas_that_were_mapped_before_an_interruption_are_not_mapped_again(two_areas):
    with pytest.raises(KeyboardInterrupt):
        run_of(two_areas, progress=_InterruptedAtMap(2)).run()
    before = map_states(two_areas)
    assert {name.split(".")[0] for name in before} == {"a"}
    assert runs(two_areas) == ["predict", "report"]
    told = []
    watch = _InterruptedAtMap()
    run = run_of(two_areas, progress=watch, on_message=lambda stage, text: told.append(text))
    assert run.run() == ["predict", "report"]
    assert watch.maps == 1
    assert re.match(r"1 map of 0\.00 Mpx at .*; 1 map from before$", told[0])
    after = map_states(two_areas)
    assert {name: after[name] for name in before} == before
    assert {name.split(".")[0] for name in after} == {"a", "b"}
    assert run_of(two_areas).run() == []


def test_what_an_interrupted_stage_left_is_not_gone_on_with_when_it_is_asked_for_anew(finished, tmp_path, caplog):
    write_ground(tmp_path)
    project = write_project(tmp_path)
    shutil.copytree(finished / "run", tmp_path / "run")
    caplog.set_level("INFO")
    for stage, name in (("predict", "map"), ("labels", "labels")):
        caplog.clear()
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run_of(project, progress=StoppedAfter(1, name=name)).run(start=stage)
            assert list((tmp_path / "run").rglob("ledger.json"))
        assert "going on from" not in caplog.text


@pytest.mark.parametrize("change", ["scene", "map", "setting", "from"])
def test_an_area_is_mapped_again_where_its_map_is_not_made_of_the_same(two_areas, change):
    run_of(two_areas).run(only="predict")
    before, selected, again = map_states(two_areas), {"only": "predict"}, "b"
    if change == "scene":
        write_ground(two_areas.parent / "b", seed=7, size=60)
    elif change == "map":
        (two_areas.parent / "run" / "maps" / "b.confidence.tif").unlink()
    elif change == "setting":
        two_areas.write_text(two_areas.read_text() + "overlap = 2\n")
        again = "ab"
    else:
        selected, again = {"start": "predict"}, "ab"
    assert "predict" in run_of(two_areas).run(**selected)
    after = map_states(two_areas)
    assert {name[0] for name in after if after[name][1] != before[name][1]} == set(again)


def test_a_stage_that_did_not_end_is_not_up_to_date_with_its_old_settings_either(two_areas):
    run_of(two_areas).run(only="predict")
    text = two_areas.read_text()
    before = map_states(two_areas)
    two_areas.write_text(text + 'overlap = 8\nblend = "cosine"\n')
    with pytest.raises(KeyboardInterrupt):
        run_of(two_areas, progress=_InterruptedAtMap(2)).run(only="predict")
    two_areas.write_text(text)
    (step,) = run_of(two_areas).plan(only="predict")
    assert (step.runs, step.why) == (True, "it did not end")
    run_of(two_areas).run(only="predict")
    after = map_states(two_areas)
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    assert after["b.tif"] == before["b.tif"]


def test_nan_as_the_scenes_nodata_is_the_same_setting_on_every_run(tmp_path):
    write_ground(tmp_path)
    write_project(tmp_path)
    project = tmp_path / "project.toml"
    project.write_text("scene-nodata = nan\n" + project.read_text().replace("epochs = 8", "epochs = 1"))
    assert run_of(project).run() == list(STAGES)
    assert run_of(project).run() == []


def test_a_model_can_learn_from_the_shares_of_classes(tmp_path):
    write_ground(tmp_path)
    project = load_project(write_project(tmp_path, train='targets = "fractions"\npurity-weight = true'))
    run = Run(project, tmp_path / "run")
    for stage in ("labels", "tiles", "train"):
        run.run(only=stage)
    (area,) = project.areas
    with rasterio.open(run.folder.fractions(area.name)) as file:
        assert file.count == len(project.legend)
        assert file.descriptions == tuple(project.legend.keys)
    assert run.folder.purity(area.name).exists()
    assert not math.isnan(read_history(run.folder.metrics)[0]["loss"])
    assert run.run(only="labels") == []


def test_shares_of_other_labels_are_not_learnt_from(tmp_path):
    write_ground(tmp_path)
    with_shares = write_project(tmp_path, train='targets = "fractions"').read_text()
    project = tmp_path / "project.toml"
    run_of(project).run(only="labels")
    files = run_of(project).folder
    (area,) = load_project(project).areas
    assert files.fractions(area.name).exists()
    project.write_text(with_shares.replace('targets = "fractions"', ""))
    assert run_of(project).run(only="labels") == ["labels"]
    assert not files.fractions(area.name).exists()
    project.write_text(with_shares)
    assert run_of(project).run(only="labels") == ["labels"]
    assert files.fractions(area.name).exists()


@pytest.mark.parametrize(("table", "line", "first"), [("tiles", "drop-single-class = true", "tiles"), ("split", "seed = 5", "tiles"),
                                                      ("train", "zoom = 0.1", "train")])  # fmt: skip
def test_the_way_out_names_the_first_stage_that_changes(copy, table, line, first):
    project = write_project(copy, **{table: line})
    with pytest.raises(SettingsError, match=rf"--run NEW, or --from {first}, which keeps"):
        run_of(project).run()
    if first == "tiles":
        with pytest.raises(SettingsError, match="the tiles stage is not up to date .*Use --from tiles"):
            run_of(project).run(start="train")


def test_a_map_does_not_depend_on_the_memory_it_was_made_in(copy):
    assert runs(write_project(copy, predict="memory = 2000")) == ["report"]  # which prints the settings


def test_changed_learning_settings_stop_before_anything_is_touched(copy):
    run_of(copy / "project.toml").run()
    write_project(copy, train="learning-rate = 0.01")
    before = {path: path.read_bytes() for path in (copy / "run").rglob("*") if path.is_file()}
    with pytest.raises(SettingsError, match=r"other settings \(train.learning-rate\).*--run NEW, or --from train"):
        run_of(copy / "project.toml").run()
    assert {path: path.read_bytes() for path in (copy / "run").rglob("*") if path.is_file()} == before


def test_from_train_keeps_the_old_model(copy):
    old = (copy / "run" / "model.safetensors").read_bytes()
    for times in (1, 2):
        ran = run_of(copy / "project.toml").run(start="train")
        assert ran == ["train", "evaluate", "predict", "report"]
        kept = sorted((copy / "run").glob("model.*.safetensors"))
        assert len(kept) == times
        assert old in [path.read_bytes() for path in kept]


def test_from_train_gets_past_a_damaged_model(copy):
    model = copy / "run" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:100])
    with pytest.raises(ModelFileError):
        run_of(copy / "project.toml").run()
    run_of(copy / "project.toml").run(start="train")
    assert (copy / "run" / "model.damaged.safetensors").stat().st_size == 100
    assert model.stat().st_size > 100


@pytest.mark.parametrize(
    ("before", "line", "changed"),
    [
        ("[[area]]", f"bands = {list(BANDS[::-1])}", "bands"),
        ("[tiles]", "[labels]\nas-nodata = ['water']", "labels.as-nodata"),
    ],
)
def test_a_model_is_not_judged_by_other_bands_or_classes(copy, before, line, changed):
    text = (copy / "project.toml").read_text()
    (copy / "project.toml").write_text(text.replace(before, f"{line}\n{before}", 1))
    for options in ({"only": "evaluate"}, {"start": "evaluate"}):
        with pytest.raises(SettingsError, match=rf"other settings \({changed}\)"):
            run_of(copy / "project.toml").run(**options)
    project = load_project(copy / "project.toml")
    with pytest.raises((BandMismatchError, LegendError), match=r"bands|other classes than the model"):
        evaluate(StageContext(project, RunFolder(copy / "run")))


def test_a_new_training_that_can_t_start_leaves_the_old_model_in_its_place(copy):
    old = (copy / "run" / "model.safetensors").read_bytes()
    text = (copy / "project.toml").read_text()
    (copy / "project.toml").write_text(text.replace('encoder = "scratch"', 'encoder = "resnt50"'))
    with pytest.raises(SettingsError, match="unknown encoder 'resnt50'"):
        run_of(copy / "project.toml").run(start="train")
    assert (copy / "run" / "model.safetensors").read_bytes() == old
    assert not list((copy / "run").glob("model.*.safetensors"))


def test_a_project_file_is_not_taken_for_the_settings_of_a_run(tmp_path):
    write_ground(tmp_path)
    project = write_project(tmp_path)
    before = project.read_bytes()
    with pytest.raises(
        SettingsError, match=r"project.toml was not written by a run and would be replaced.*--run DIR"
    ):
        Run(load_project(project), tmp_path).run(only="labels")
    assert project.read_bytes() == before


def test_new_labels_do_not_replace_the_model(copy):
    fine = read_raster(copy / "reference.tif")
    fine[:40] = 3
    write_raster(copy / "reference.tif", fine, grid_at(192, 192, 5), nodata=0)
    with pytest.raises(SettingsError, match="on other tiles, and a trained model is never replaced"):
        run_of(copy / "project.toml").run()
    assert (copy / "run" / "model.safetensors").exists()


def test_one_stage_alone_needs_the_ones_before(finished, tmp_path):
    write_ground(tmp_path)
    project = write_project(tmp_path)
    with pytest.raises(CobertesError, match="no file at .*an earlier stage has not run|no tile index"):
        run_of(project).run(only="train")
    with pytest.raises(SettingsError, match="no stage 'trian' in this project. Did you mean 'train'"):
        run_of(project).run(only="trian")
    assert run_of(project).run(only="labels") == ["labels"]


def test_a_finished_model_maps_another_place(finished, tmp_path):
    write_ground(tmp_path, seed=5, size=60)
    (tmp_path / "project.toml").write_text(
        'name = "elsewhere"\n[[area]]\nname = "there"\nscenes = { april = "april.tif", august = "august.tif" }\n'
        f'[predict]\nmodel = "{finished / "run"}"\nprecision = "fp32"\n'
    )
    assert run_of(tmp_path / "project.toml").run() == ["predict", "report"]
    assert read_raster(tmp_path / "run" / "maps" / "there.tif").shape == (60, 60)
    assert "was not judged" in (tmp_path / "run" / "report.html").read_text()


def with_precision(folder: Path, precision: str, more: str = "") -> Path:
    return write_project(folder, PROJECT.replace('"fp32"\ndevice = "cpu"\n{predict}', f'"{precision}"\n{more}'))


def test_int8_views_and_blending_of_the_settings_are_judged_as_they_map(copy, monkeypatch):
    pytest.importorskip("nncf")
    monkeypatch.setattr(quantize, "MAX_LOSS", 1.0)
    project = with_precision(copy, "int8", 'views = "flips"\nblend = "cosine"\n')
    assert run_of(project).run() == ["evaluate", "predict", "report"]
    assert runs(project) == []
    run = copy / "run"
    with rasterio.open(run / "maps" / "here.tif") as file:
        assert "openvino on cpu in int8" in file.tags()["engine"]
        assert "mean of 4 views" in file.tags()["engine"]
    assert json.loads((run / "calibration.json").read_text())["views"] == "flips"
    loaded, files = open_run(run)
    ground = open_dataset(loaded, files)
    index, k = loaded.legend.index_table(), len(loaded.legend)
    codes, labels = index[read_raster(run / "maps" / "here.tif")], index[read_raster(run / "labels" / "here.tif")]
    expected = np.zeros((k, k), int)
    for block in ground.split.areas["here"].windows("v"):
        known = labels[block.slices] != 255
        np.add.at(expected, (labels[block.slices][known], codes[block.slices][known]), 1)
    found = json.loads((run / "assessment.json").read_text())["model"]["confusion_matrix"]
    np.testing.assert_array_equal(found, expected)


def test_int8_that_loses_too_much_stops_the_run(copy, monkeypatch):
    pytest.importorskip("nncf")
    monkeypatch.setattr(quantize, "MAX_LOSS", -2.0)
    with pytest.raises(ModelFileError, match=r"int8 would lose too much.*Use precision bf16 or fp32"):
        run_of(with_precision(copy, "int8")).run()
    assert not list((copy / "run").glob("*int8*"))


def test_int8_is_calibrated_on_the_run_of_a_named_model_and_refused_without_one(copy, tmp_path, monkeypatch):
    pytest.importorskip("nncf")
    monkeypatch.setattr(quantize, "MAX_LOSS", 1.0)
    write_ground(tmp_path, seed=5, size=60)
    text = (
        'name = "elsewhere"\n[[area]]\nname = "there"\nscenes = {{ april = "april.tif", august = "august.tif" }}\n'
        '[predict]\nmodel = "{}"\nprecision = "int8"\n'
    )
    project = tmp_path / "project.toml"
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(copy / "run" / "model.safetensors", alone)
    project.write_text(text.format(alone))
    with pytest.raises(
        SettingsError, match="has no int8 version and is not the model of a run.*Name a run's folder"
    ):
        run_of(project).run()
    project.write_text(text.format(copy / "run"))
    assert run_of(project).run() == ["predict", "report"]
    assert is_quantized(copy / "run")


def test_stray_codes_stop_the_run_and_can_be_mapped(tmp_path):
    write_ground(tmp_path)
    fine = read_raster(tmp_path / "reference.tif")
    fine[5, :7], fine[9, :3] = 19, 41
    write_raster(tmp_path / "reference.tif", fine, grid_at(192, 192, 5), nodata=0)
    with pytest.raises(UnknownCodesError, match=r"19 \(7 px.*41 \(3 px"):
        run_of(write_project(tmp_path)).run(only="labels")
    assert not list((tmp_path / "run" / "labels").glob("*"))
    mapped = write_project(tmp_path, area='[labels]\ncodes = { 19 = "bare-soil", 41 = "nodata" }')
    assert run_of(mapped).run(only="labels") == ["labels"]


def test_a_scene_without_a_valid_pixel_says_so(tmp_path):
    write_ground(tmp_path, empty=96)
    run = run_of(write_project(tmp_path))
    with pytest.raises(NoTilesError, match="hold no valid pixel there: check their nodata value"):
        run.run()
    assert not run.folder.tiles.exists()


def test_a_block_larger_than_the_area_is_refused(tmp_path):
    write_ground(tmp_path)
    with pytest.raises(SplitError, match=r"split.block = 500 px, but the area has 96 x 96 px"):
        run_of(write_project(tmp_path, split="block = 500")).run()


def test_tiles_of_only_named_classes_are_left_out_with_the_reason(tmp_path):
    write_ground(tmp_path)
    fine = read_raster(tmp_path / "reference.tif")
    fine[:64, :] = 12
    write_raster(tmp_path / "reference.tif", fine, grid_at(192, 192, 5), nodata=0)
    run = run_of(write_project(tmp_path, tiles='drop-only = ["water"]'))
    run.run(only="labels")
    run.run(only="tiles")
    index = gpd.read_parquet(run.folder.tiles)
    assert (index.loc[index["row"] < 32, "reason"] == "only water").all()
    only_water = index["counts"].map(lambda counts: counts[11] == sum(counts) > 0)
    assert (index["reason"] == "only water").tolist() == only_water.tolist()
    assert not only_water.all()


def test_a_class_may_be_nodata_and_dropped_at_once(tmp_path):
    write_ground(tmp_path)
    labels = '[labels]\nas-nodata = ["water"]'
    run = run_of(write_project(tmp_path, area=labels, tiles='drop-only = ["Watercourses and water bodies", 3]'))
    run.run(only="labels")
    run.run(only="tiles")
    index = gpd.read_parquet(run.folder.tiles)
    assert index["keep"].any()
    assert len(index["counts"][0]) == 11


def test_a_class_that_never_occurs_is_told(tmp_path, caplog):
    write_ground(tmp_path)
    run = run_of(write_project(tmp_path))
    run.run(only="labels")
    run.run(only="tiles")
    assert any(re.search("urban.*never occur|never occur.*urban", record.message) for record in caplog.records)


def test_chips_without_coordinates_run_from_labels_to_report(tmp_path):
    write_ground(tmp_path, size=96)
    april, codes = read_raster(tmp_path / "april.tif"), read_raster(tmp_path / "reference.tif")[::2, ::2]
    for kind in ("i", "l"):
        (tmp_path / kind).mkdir()
    for number in range(9):
        row, col = 32 * (number // 3), 32 * (number % 3)
        write_raster(tmp_path / "i" / f"{number}.tif", april[:, row : row + 32, col : col + 32])
        write_raster(tmp_path / "l" / f"{number}.tif", codes[row : row + 32, col : col + 32], nodata=0)
    (tmp_path / "groups.csv").write_text("chip,group\n" + "".join(f"{n},{n // 2}\n" for n in range(9)))
    (tmp_path / "project.toml").write_text(
        f'name = "chips"\nlegend = "catalonia-12"\nbands = {list(BANDS)}\n[[area]]\nscenes = "i/*.tif"\nreference = "l/*.tif"\n'
        '[tiles]\nsize = 32\n[split]\nby = "group"\ngroups = "groups.csv"\n'
        '[model]\nencoder = "scratch"\nwidth = 8\ndepth = 2\n[train]\nepochs = 2\nprecision = "fp32"\n'
    )
    run = run_of(tmp_path / "project.toml")
    assert run.run() == list(STAGES)
    index = gpd.read_parquet(run.folder.tiles)
    assert index.crs is None
    sides = index.assign(group=index["area"].astype(int) // 2).groupby("group")["split"].nunique()
    assert (sides == 1).all()
    assert len(list((tmp_path / "run" / "maps").glob("?.tif"))) == 9


def test_a_plan_says_where_the_run_would_stop(copy):
    run_of(copy / "project.toml").run()
    write_project(copy, train="learning-rate = 0.01")
    step = next(step for step in run_of(copy / "project.toml").plan() if step.stage == "train")
    assert step.runs
    assert step.why == "its settings or inputs changed: it will stop, use --run NEW or --from train"


def test_where_test_blocks_judge_the_temperature_is_fitted_to_validation_blocks(tmp_path):
    write_ground(tmp_path, size=192)
    project = write_project(tmp_path, split="test = 0.2\nblock = 48", train="minutes = 0.05")
    run_of(project).run()
    assessment = json.loads((tmp_path / "run" / "assessment.json").read_text())
    assert (assessment["split"], assessment["used_for"]) == ("test", [])
    calibration = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert (calibration["fitted_on"], calibration["reported_on"]) == ("validation", "test")
    assert calibration["temperature"] > 0
    assert "served for nothing but this judgement" in (tmp_path / "run" / "report.html").read_text()


def test_a_stage_looks_at_its_inputs_once(copy, monkeypatch):
    calls = []
    tiles = RECORDS[1]
    monkeypatch.setitem(
        vars(tiles), "fingerprint", lambda context, real=tiles.fingerprint: calls.append(1) or real(context)
    )
    (copy / "run" / "tiles.parquet").touch()
    (copy / "run" / "stages.json").unlink()
    assert run_of(copy / "project.toml").run(only="tiles") == ["tiles"]
    assert len(calls) == 1
