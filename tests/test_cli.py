"""The command line as people and scripts meet it: exit codes, one line per error, JSON, and what is left behind."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import count

import numpy as np
import pytest
import rasterio.shutil
import torch
from rich.console import Console as RichConsole
from safetensors.torch import save_file

import cobertes
from cobertes.cli.console import _Bars
from helpers.command_line import call
from helpers.interruptions import wait_until
from helpers.projects import BANDS, PROJECT, write_ground, write_project
from helpers.rasters import grid_at, read_raster, write_raster

COMMAND = [sys.executable, "-c", "from cobertes.cli.main import main; main()"]


def fails(message, *arguments):
    """Call a command that has to fail in the way that a user can mend; nothing may be left half-written."""
    done = call(*arguments)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.exit_code == 2, done.stderr
    assert done.stderr.splitlines()[-1] == line
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert re.search(message, line), line
    return done


def state(folder):
    """Every file with its content, the settings and stage notes of runs aside."""
    notes = {"project.toml", "stages.json"}
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in notes}  # fmt: skip


def has_partial(folder):
    return [path for path in folder.rglob("*") if "partial" in path.name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project and its finished run, made from the command line."""
    folder = tmp_path_factory.mktemp("trained")
    write_ground(folder)
    write_project(folder)
    text = (folder / "project.toml").read_text()
    (folder / "project.toml").write_text(text.replace("epochs = 8", "epochs = 2"))
    done = call("run", folder / "project.toml")
    assert done.exit_code == 0, done.stderr
    (folder / "told.txt").write_text(done.stderr + "---\n" + done.stdout)
    return folder


@pytest.fixture
def place(trained, tmp_path):
    """Scenes and map of their own, and the path of the trained run."""
    for name in ("april.tif", "august.tif", "reference.tif"):
        shutil.copy(trained / name, tmp_path / name)
    return tmp_path


def model(trained):
    return trained / "runs" / "small"


# --- the commands ------------------------------------------------------------------------------------------


def test_the_version_and_the_overview():
    assert call("--version").stdout == f"cobertes {cobertes.__version__}\n"
    shown = call("--help")
    assert shown.exit_code == 0
    assert "..." not in shown.stdout.split("Commands:")[1]
    assert call("predcit").exit_code == 2


def test_a_run_tells_each_stage_and_ends_with_scores_and_places(trained):
    told, results = (trained / "told.txt").read_text().split("---\n")
    stages = [line.split()[0] for line in told.splitlines() if line[0].islower()]
    assert [s for s in stages if s in ("labels", "tiles", "train", "evaluate", "predict", "report")] == [
        "labels", "tiles", "train", "evaluate", "predict", "report",
    ]  # fmt: skip
    assert "epoch   2  loss" in told
    assert "labelled pixels of the validation blocks:" in results
    assert "U-Net          mIoU 0." in results
    assert "random forest  mIoU " in results
    assert f"map:    {model(trained) / 'maps' / 'here.tif'}\n" in results
    assert f"report: {model(trained) / 'report.html'}\n" in results


def test_a_second_run_does_nothing_and_a_plan_says_so(trained):
    before = state(model(trained))
    plan = call("run", trained / "project.toml", "--plan")
    assert [line.split()[1] for line in plan.stdout.splitlines()] == ["skip"] * 6
    again = call("run", trained / "project.toml", "--json")
    assert json.loads(again.stdout)["ran"] == []
    assert again.stderr.count("up to date") == 6
    assert state(model(trained)) == before


def test_a_plan_says_what_training_would_take(place):
    write_project(place)
    done = call("run", place / "project.toml", "--plan", "--json")
    training = json.loads(done.stdout)["training"]
    assert training["epochs"] * training["epoch_seconds"] == pytest.approx(training["seconds"])
    assert training["step_seconds"] > 0
    told = call("run", place / "project.toml", "--plan").stdout
    for word in ("million parameters", "Mpx/s", "held-out ones", "epochs at most", "GB for checkpoints"):
        assert word in told


def test_a_plan_writes_nothing(place):
    write_project(place)
    done = call("run", place / "project.toml", "--plan", "--json")
    steps = json.loads(done.stdout)["steps"]
    assert [(step["stage"], step["runs"]) for step in steps][:2] == [("labels", True), ("tiles", True)]
    assert steps[0]["why"] == "labels/here.tif is not there"
    assert not (place / "runs").exists()


def test_json_is_exactly_one_object_on_standard_output(trained, tmp_path):
    out = tmp_path / "map.tif"
    scenes = [f"{season}={trained / season}.tif" for season in ("april", "august")]
    calls = [
        ("legends",),
        ("legends", "worldcover"),
        ("run", trained / "project.toml"),
        ("labels", trained / "reference.tif", "--like", trained / "april.tif", "-o", tmp_path / "l.tif"),
        ("predict", model(trained), *scenes, "-o", out),
        ("init", *scenes, "--reference", trained / "reference.tif", "-o", tmp_path / "p.toml"),
    ]
    answers = [json.loads(call(*one, "--json").stdout) for one in calls]
    assert "catalonia-12" in answers[0]["legends"]
    assert answers[1]["class"][0]["code"] == 10
    assert set(answers[2]["scores"]) == {"model", "most_frequent", "random_forest"}
    assert sum(answers[3]["counts"].values()) == sum(answers[4]["counts"].values()) == 96 * 96
    assert answers[4]["map"] == str(out)
    assert answers[5]["project"] == str(tmp_path / "p.toml")
    failed = call(*calls[4], "--json")
    assert failed.exit_code == 2
    assert "exists" in json.loads(failed.stdout)["error"]


def test_quiet_leaves_the_result_only(trained, tmp_path):
    done = call("run", trained / "project.toml", "--quiet")
    assert done.stderr == ""
    assert done.stdout.startswith("On ")
    scenes = [f"{season}={trained / season}.tif" for season in ("april", "august")]
    done = call("predict", model(trained), *scenes, "-o", tmp_path / "map.tif", "--quiet")
    assert done.stderr == ""
    assert done.stdout.startswith(f"{tmp_path / 'map.tif'}: ")


def test_debug_shows_the_traceback_and_keeps_the_exit_code(tmp_path):
    done = call("run", tmp_path / "absent.toml", "--debug")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: no project file at")


def test_what_nobody_expected_is_one_line_and_exit_code_1(monkeypatch):
    def broken():
        raise RuntimeError("first line\nsecond [red]line[/red] :smile:")

    monkeypatch.setattr("cobertes.labels.legend.legend_names", broken)
    done = call("legends")
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        "error: unexpected RuntimeError: first line second [red]line[/red] :smile:. Run it again with --debug and "
        "report that."
    ]
    assert "Traceback" in call("legends", "--debug").stderr


def test_labels_by_several_methods_with_all_shares(trained, tmp_path):
    made = {name: tmp_path / f"{name}.tif" for name in ("purity", "fractions", "entropy", "valid", "near")}
    done = call(
        "labels", trained / "reference.tif", "--like", trained / "april.tif", "-o", tmp_path / "l.tif", "--json",
        "--method", "weighted-majority", "--class-weights", "water=3,forest=0.5", "--smoothing", "0.4",
        "--purity", made["purity"], "--fractions", made["fractions"], "--entropy", made["entropy"],
        "--valid", made["valid"], "--also", f"nearest={made['near']}", "--resume",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["weights"]["water"] == 3
    assert result["how"].startswith("weighted majority of 2 x 2 px, class weights given, smoothing 0.4 px")
    assert read_raster(made["fractions"]).shape[0] == 12
    assert {read_raster(made[name]).shape for name in ("purity", "entropy", "valid", "near")} == {(96, 96)}


def test_labels_options_are_checked(trained, tmp_path):
    like = "labels", trained / "reference.tif", "--like", trained / "april.tif", "-o", tmp_path / "l.tif"
    fails("--also takes METHOD=FILE, found 'nearest'", *like, "--also", "nearest")
    fails("Did you mean 'nearest'", *like, "--also", f"nearset={tmp_path / 'n.tif'}")
    fails("Did you mean 'inverse'", *like, "--class-weights", "invers")
    fails("Did you mean 'water'", *like, "--class-weights", "watr=2")
    fails("from 0 to 1 scene pixels", *like, "--smoothing", "2")
    assert not list(tmp_path.iterdir())


def test_compare_labels_writes_tables_labels_and_a_picture(trained, tmp_path):
    command = "compare-labels", trained / "reference.tif", "--like", trained / "april.tif", "-o", tmp_path / "c"
    done = call(*command)
    assert done.exit_code == 0, done.stderr
    assert "bias of the area, %" in done.stdout
    assert {path.name for path in (tmp_path / "c").iterdir() if path.suffix not in (".xml", ".qml")} == {
        "nearest.tif", "majority.tif", "weighted-majority.tif", "comparison.csv", "comparison.json", "comparison.png",
    }  # fmt: skip
    fails(r"exists\. Use --overwrite", *command)
    again = call(*command, "--overwrite", "--json")
    assert json.loads(again.stdout)["methods"]["nearest"]["agreement"]["nearest"] == 1
    fails("is a folder|exists", *command[:-1], trained / "april.tif")


def test_labels_prints_a_table_of_the_classes(trained, tmp_path):
    done = call("labels", trained / "reference.tif", "--like", trained / "april.tif", "-o", tmp_path / "l.tif")
    head, titles, *rows = done.stdout.splitlines()
    assert head == f"{tmp_path / 'l.tif'}: majority of 2 x 2 px, aligned"
    assert titles.split() == ["code", "pixels", "share", "class"]
    assert rows[-1].endswith("  nodata")
    assert rows[11].endswith("Watercourses and water bodies")
    counts = {int(row.split()[0]): int(row.split()[1].replace(",", "")) for row in rows}
    values, found = np.unique(read_raster(tmp_path / "l.tif"), return_counts=True)
    assert {code: n for code, n in counts.items() if n} == dict(zip(values.tolist(), found.tolist(), strict=True))


def test_a_part_of_the_scene_is_predicted(trained, tmp_path):
    scenes = [f"{season}={trained / season}.tif" for season in ("april", "august")]
    bounds = "240100,4779500,240500,4779900"
    done = call(
        "predict", model(trained), *scenes, "-o", tmp_path / "part.tif", "--bounds", bounds, "--precision", "fp32"
    )
    assert done.exit_code == 0, done.stderr
    whole = read_raster(model(trained) / "maps" / "here.tif")
    np.testing.assert_array_equal(read_raster(tmp_path / "part.tif"), whole[10:50, 10:50])
    fails("takes four numbers W,S,E,N, found '1,2,3'", "predict", model(trained), *scenes, "-o", tmp_path / "x.tif", "--bounds", "1,2,3")  # fmt: skip


def test_the_package_s_legends_are_listed_and_shown():
    assert call("legends").stdout.splitlines()[0] == "catalonia-12"
    shown = call("legends", "catalonia-12").stdout.splitlines()
    assert shown[0] == "catalonia-12, nodata 0"
    assert len(shown) == 13
    fails(r"no legend 'catalonia-21'\. Did you mean 'catalonia-12'", "legends", "catalonia-21")


def test_init_labels_and_run_work_as_the_help_shows_them(trained, tmp_path):
    project = tmp_path / "p.toml"
    done = call("init", f"april={trained / 'april.tif'}", f"august={trained / 'august.tif'}", "--reference", trained / "reference.tif", "-o", project)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"wrote {project}. Look it over, then: cobertes run {project}"
    assert call("run", project, "--plan").exit_code == 0
    fails(r"p\.toml exists\. Use --overwrite", "init", trained / "april.tif", "--reference", trained / "reference.tif", "-o", project)  # fmt: skip


# --- bad input ---------------------------------------------------------------------------------------------


def run_of(folder, **tables):
    return "run", write_project(folder, **tables)


def nothing_but_settings(folder):
    """Whether a failed run left no more than its own settings."""
    return {path.name for path in (folder / "runs").rglob("*") if path.is_file()} <= {"project.toml"}


def truncate(path, share=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("april.tif", r"no scene at .*april\.tif\."),
        ("reference.tif", r"no reference map at .*reference\.tif\."),
    ],
)
def test_a_missing_file(place, name, message):
    (place / name).unlink()
    fails(message, *run_of(place))
    assert not (place / "runs").exists()


@pytest.mark.parametrize("name", ["april.tif", "reference.tif"])
def test_a_file_that_is_no_raster(place, name):
    (place / name).write_text("<html>404</html>")
    fails(rf"can't read .*{name} as a raster", *run_of(place))
    assert not (place / "runs").exists() or nothing_but_settings(place)


def test_a_truncated_reference_map(place):
    truncate(place / "reference.tif")
    fails(r"can't read rows \d+ to \d+, columns .*reference\.tif: .*truncated: fetch it again", *run_of(place))
    assert nothing_but_settings(place)


def test_a_truncated_scene(place):
    write_raster(place / "august.tif", read_raster(place / "august.tif"), grid_at(96, 96))
    truncate(place / "august.tif")
    fails(r"can't read rows \d+ to \d+, .*august\.tif.*truncated: fetch it again", *run_of(place))
    assert {path.name for path in (place / "runs" / "small").iterdir()} == {
        "labels",
        "observations.npz",  # what was read so far
        "project.toml",
        "stages.json",
    }
    assert not has_partial(place)


def test_a_file_that_is_truncated_in_its_header(place):
    truncate(place / "april.tif", 0.001)
    fails(r"can't read .*april\.tif", *run_of(place))


def test_bands_that_do_not_match(place):
    write_raster(place / "august.tif", np.ones((5, 96, 96), np.uint16), grid_at(96, 96))
    fails(r"august\.tif: 5 bands \(band1.*but 6 are named \(B02", *run_of(place))
    names = [*BANDS[:-1], "B99"]
    write_raster(place / "august.tif", np.ones((6, 96, 96), np.uint16), grid_at(96, 96), names=names)
    fails(r"august\.tif: no band 'B12'\. Did you mean", *run_of(place))
    assert not (place / "runs").exists()


def test_a_map_that_does_not_overlap_the_scene(place):
    write_raster(
        place / "reference.tif", np.ones((50, 50), np.uint8), grid_at(50, 50, origin=(500_000, 4_000_000))
    )
    fails(r"reference\.tif does not touch the scene: the map is 50 x 50 px", *run_of(place))
    assert nothing_but_settings(place)


def test_no_labelled_tile_is_left(place):
    write_raster(place / "reference.tif", np.zeros((192, 192), np.uint8), grid_at(192, 192, 5), nodata=0)
    fails(r"none of 36 tiles has a label", *run_of(place))
    assert not list((place / "runs").rglob("tiles.parquet"))


def test_a_class_that_never_occurs_is_a_warning(trained):
    told = (trained / "told.txt").read_text()
    lines = [line for line in told.splitlines() if "never occur" in line]
    assert any("urban" in line for line in lines)
    assert all(line.startswith("warning: ") for line in lines)
    assert not any("water" in line for line in lines)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"tiles": 'drop-only = ["wter"]'}, "unknown class 'wter' in legend 'catalonia-12'. Did you mean 'water'"),
        ({"train": "epoch = 5"}, "unknown key 'train.epoch'. Did you mean 'epochs'"),
        ({"train": 'optimizer = "adan"'}, "'train.optimizer': input should be 'adam' or 'adamw', found 'adan'"),
        ({"area": '[labels]\nmethod = "bilinear"'}, "'bilinear' computes with class codes, but the mean of class 1 and class 3"),
        ({"area": '[labels]\nmethod = "cubic"'}, "'cubic' computes with class codes"),
        ({"area": '[labels]\nmethod = "mode"'}, "GDAL's 'mode' is 'majority' here"),
        ({"split": "block = 400"}, "split.block = 400 px, but the area has 96 x 96 px: one block can't be split"),
    ],
)  # fmt: skip
def test_settings_that_say_something_impossible(place, tables, message):
    fails(message, *run_of(place, **tables))
    assert not list((place / "runs").rglob("*.parquet"))
    assert not has_partial(place)


def test_bilinear_is_refused_with_the_reason(place):
    for method in ("bilinear", "cubic"):
        fails(
            f"'{method}' computes with class codes, but the mean of class 1 and class 3 is not class 2. Use 'majority'",
            "labels", place / "reference.tif", "--like", place / "april.tif", "-o", place / "l.tif", "--method", method,
        )  # fmt: skip
    assert not (place / "l.tif").exists()


def test_codes_outside_the_legend(place):
    fine = read_raster(place / "reference.tif")
    fine[5, :7], fine[9, :3] = 19, 41
    write_raster(place / "reference.tif", fine, grid_at(192, 192, 5), nodata=0)
    like = "labels", place / "reference.tif", "--like", place / "april.tif", "-o", place / "l.tif"
    fails(r"do not know: 19 \(7 px, .*41 \(3 px", *like)
    assert not (place / "l.tif").exists()
    done = call(*like, "--unknown", "nodata", "--json")
    assert json.loads(done.stdout)["unknown"] == {"19": 7, "41": 3}


def test_existing_outputs_are_kept(trained, place):
    (place / "old.tif").write_text("old")
    fails(r"old\.tif exists\. Use --overwrite", "labels", place / "reference.tif", "--like", place / "april.tif", "-o", place / "old.tif")  # fmt: skip
    scenes = f"april={place / 'april.tif'}", f"august={place / 'august.tif'}"
    fails(r"old\.tif exists\. Use --overwrite", "predict", model(trained), *scenes, "-o", place / "old.tif")
    fails(r"is a folder\. Name a file in it", "predict", model(trained), *scenes, "-o", place)
    assert (place / "old.tif").read_text() == "old"
    assert call("predict", model(trained), *scenes, "-o", place / "old.tif", "--overwrite").exit_code == 0
    assert read_raster(place / "old.tif").shape == (96, 96)


def test_an_output_is_never_an_input(trained, place):
    before = state(place)
    scenes = f"april={place / 'april.tif'}", f"august={place / 'august.tif'}"
    fails("is an input", "predict", model(trained), *scenes, "-o", place / "april.tif", "--overwrite")
    weights = model(trained) / "model.safetensors"
    learnt = weights.read_bytes()
    fails("is an input", "predict", model(trained), *scenes, "-o", weights, "--overwrite")
    assert weights.read_bytes() == learnt
    fails("must be different files", "labels", place / "reference.tif", "--like", place / "april.tif", "-o", place / "reference.tif", "--overwrite")  # fmt: skip
    fails("is an input", "labels", place / "reference.tif", "--like", place / "april.tif", "-o", place / "april.tif", "--overwrite")  # fmt: skip
    assert state(place) == before


@pytest.mark.parametrize("suffix", [".vrt", ".tif"])  # GDAL goes by the content, not by the name
def test_an_output_is_never_a_file_that_a_virtual_input_refers_to(trained, place, suffix):
    for name in ("april", "reference"):
        inner, outer = place / f"{name}-inner.vrt", place / f"{name}-outer{suffix}"
        rasterio.shutil.copy(place / f"{name}.tif", inner, driver="VRT")
        outer.write_text(inner.read_text().replace(f"{name}.tif", inner.name))
    (place / "linked.tif").hardlink_to(place / "april.tif")
    before = state(place)
    scenes = f"april={place / f'april-outer{suffix}'}", f"august={place / 'august.tif'}"
    for out in ("april.tif", "april-inner.vrt", "linked.tif"):
        fails(rf"{out} is an input \(of .*april-outer", "predict", model(trained), *scenes, "-o", place / out, "--overwrite")  # fmt: skip
    reference = place / f"reference-outer{suffix}"
    fails(r"reference\.tif is an input \(of .*reference-outer", "labels", reference, "--like", place / "april.tif", "-o", place / "reference.tif", "--overwrite")  # fmt: skip
    assert state(place) == before


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk(place, small_disk):
    fails(r"can't write .*: .*[Nn]o space left|MB free", *run_of(place), "--run", small_disk / "run")
    assert read_raster(small_disk / "run" / "labels" / "here.tif").shape == (96, 96)
    assert not (small_disk / "run" / "model.safetensors").exists()
    assert not has_partial(small_disk)
    (small_disk / "fill").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    fails(r"can't write .*p-legend\.toml: No space left on device", "init", place / "april.tif", "--reference", place / "reference.tif", "-o", small_disk / "p.toml")  # fmt: skip
    assert not list(small_disk.glob("*.toml"))


def test_no_permission(trained, place, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    fails(r"can't (write|make).*Read-only file system", *run_of(place), "--run", small_disk / "run")
    scenes = f"april={place / 'april.tif'}", f"august={place / 'august.tif'}"
    fails("no permission to write into", "predict", model(trained), *scenes, "-o", small_disk / "map.tif")
    fails("no permission to write into", "labels", place / "reference.tif", "--like", place / "april.tif", "-o", small_disk / "l.tif")  # fmt: skip


@pytest.mark.parametrize("value", [0, np.nan])
def test_scenes_without_a_valid_pixel(trained, place, value):
    for season in ("april", "august"):
        values = np.full((6, 96, 96), value, np.float32)
        write_raster(place / f"{season}.tif", values, grid_at(96, 96), names=BANDS)
    fails("hold no valid pixel there: check their nodata value", *run_of(place))
    assert not list((place / "runs").rglob("tiles.parquet"))
    scenes = f"april={place / 'april.tif'}", f"august={place / 'august.tif'}"
    done = call("predict", model(trained), *scenes, "-o", place / "map.tif")
    assert done.exit_code == 0
    assert "warning: " in done.stderr
    assert "no valid pixel" in done.stderr
    assert not read_raster(place / "map.tif").any()


def test_some_nan_pixels_are_nodata_in_the_map(trained, place):
    for season in ("april", "august"):
        values = read_raster(place / f"{season}.tif").astype(np.float32)
        values[2, 40:44, 50:57] = np.nan
        write_raster(place / f"{season}.tif", values, grid_at(96, 96), names=BANDS)
    scenes = f"april={place / 'april.tif'}", f"august={place / 'august.tif'}"
    assert call("predict", model(trained), *scenes, "-o", place / "map.tif").exit_code == 0
    empty = read_raster(place / "map.tif") == 0
    assert empty[40:44, 50:57].all()
    assert empty.sum() == 28


def test_a_model_of_other_scenes(trained, place):
    out = "-o", place / "map.tif"
    fails("needs a scene of season 'april', found scene", "predict", model(trained), place / "april.tif", *out)
    for season in ("april", "august"):
        write_raster(place / f"{season}.tif", np.ones((6, 48, 48), np.uint16), grid_at(48, 48, 20), names=BANDS)
    scenes = f"april={place / 'april.tif'}", f"august={place / 'august.tif'}"
    fails(r"pixels of 20 \(EPSG:32631\), the model was trained on pixels of 10", "predict", model(trained), *scenes, *out)  # fmt: skip
    names = ("B1", "B2", "B3", "B8", "B11", "B12")
    write_raster(place / "august.tif", np.ones((6, 96, 96), np.uint16), grid_at(96, 96), names=names)
    fails(r"august\.tif: no band 'B04'", "predict", model(trained), *scenes, *out)
    write_raster(place / "august.tif", np.ones((5, 96, 96), np.uint16), grid_at(96, 96))
    fails(r"august\.tif: 5 bands", "predict", model(trained), *scenes, *out)
    assert not (place / "map.tif").exists()


def test_damaged_and_foreign_models(trained, place):
    scenes = f"april={place / 'april.tif'}", f"august={place / 'august.tif'}"
    out = "-o", place / "map.tif"
    broken = place / "broken.safetensors"
    shutil.copy(model(trained) / "model.safetensors", broken)
    truncate(broken)
    fails(r"broken\.safetensors is not a whole safetensors file", "predict", broken, *scenes, *out)
    save_file({"x": torch.zeros(2)}, place / "foreign.safetensors")
    fails(
        r"foreign\.safetensors is not a model of cobertes", "predict", place / "foreign.safetensors", *scenes, *out
    )
    torch.save({"x": torch.zeros(2)}, place / "pickle.pt")
    fails(r"pickle\.pt is not a whole safetensors file", "predict", place / "pickle.pt", *scenes, *out)
    fails("no model at .*absent", "predict", place / "absent", *scenes, *out)
    assert not (place / "map.tif").exists()


def test_stages_and_seasons_that_are_not_known(trained, place):
    fails(
        "no stage 'trian' in this project. Did you mean 'train'",
        "run",
        trained / "project.toml",
        "--only",
        "trian",
    )
    fails(
        "--only and --from exclude each other",
        "run",
        trained / "project.toml",
        "--only",
        "train",
        "--from",
        "train",
    )
    fails(
        r"season 'april', found apr, august\. Did you mean 'apr'",
        "predict", model(trained), f"apr={place / 'april.tif'}", f"august={place / 'august.tif'}", "-o", place / "m.tif",
    )  # fmt: skip


def test_a_command_leaves_signals_as_they_were(place):
    before = signal.getsignal(signal.SIGTERM)
    assert call("legends").exit_code == 0
    assert call("predict", place / "none", place / "april.tif", "-o", place / "m.tif").exit_code == 2
    assert signal.getsignal(signal.SIGTERM) is before


# --- real processes ----------------------------------------------------------------------------------------


def start(*arguments):
    """A process as a terminal starts it: Ctrl-C reaches it, also where the tests run in the background."""
    command = [*COMMAND, *map(str, arguments)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children inherit what is ignored
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_during_training_stops_cleanly_and_the_same_command_goes_on(place):
    project = write_project(place)
    text = PROJECT.format(area="", tiles="", split="", train="", predict="")
    project.write_text(text.replace("epochs = 8", "epochs = 30").replace("samples = 64", "samples = 16"))
    for stage in ("labels", "tiles"):
        assert call("run", project, "--only", stage).exit_code == 0
    process = start("run", project, "--only", "train")
    metrics = place / "runs" / "small" / "metrics.jsonl"
    wait_until(lambda: process.poll() is not None or (metrics.exists() and metrics.read_text()))
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=180)
    assert process.returncode == 130, told
    assert told.splitlines()[-1].startswith("error: interrupted; nothing is half-written.")
    assert "Traceback" not in told
    assert not (place / "runs" / "small" / "model.safetensors").exists()
    assert not has_partial(place)
    epochs = len(metrics.read_text().splitlines())
    assert 0 < epochs < 30
    done = call("run", project, "--only", "train")
    assert done.exit_code == 0, done.stderr
    assert f"going on after epoch {epochs}\n" in done.stderr
    assert len(metrics.read_text().splitlines()) == 30


def test_a_real_process_keeps_results_and_messages_apart(trained, tmp_path):
    labels = "labels", trained / "reference.tif", "--like", trained / "april.tif", "-o", tmp_path / "l.tif"
    process = start(*labels, "--json")
    out, told = process.communicate()
    assert process.returncode == 0
    assert json.loads(out)["labels"] == str(tmp_path / "l.tif")
    assert told == ""
    process = start(*labels)
    out, told = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert told == f"error: {tmp_path / 'l.tif'} exists. Use --overwrite to replace it, or another -o FILE.\n"


def test_a_line_of_progress_fits_a_terminal_of_80_columns():
    stream = io.StringIO()
    clock = count()
    console = RichConsole(
        file=stream, width=80, force_terminal=True, color_system=None, get_time=lambda: next(clock) / 10
    )
    with _Bars(console).bar("judging on test", 90_000, "windows") as advance:
        advance(12_345)
        advance(45_678)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).splitlines()
    assert any(re.search(r"58,023/90,000 windows +\S+/s", line) for line in lines)
    # a line that is too long would go on in a second one
    assert all(line.startswith("judging on test") for line in lines if line.strip())


@pytest.mark.parametrize(("notes", "shown"), [(["", ""], None), (["loss 0.5", ""], "0.5"), (["loss 0.5", "loss 0.25"], "0.25")])  # fmt: skip
def test_what_is_noted_stands_under_its_bar_until_the_next_note(notes, shown):
    stream = io.StringIO()
    console = RichConsole(file=stream, width=60, force_terminal=True, color_system=None)
    with _Bars(console).bar("epoch 1", 8, "tiles") as advance:
        for note in notes:
            advance(3, note)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).rpartition("epoch 1")[2]
    assert "6/8 tiles" in last
    assert re.findall(r"^  loss (\S+)", last, re.MULTILINE) == ([shown] if shown else [])


def test_a_demo_of_another_size_is_not_passed_off_as_the_one_asked_for(place):
    write_project(place)
    fails(r"holds scenes of 96 x 96 px, not of 192 x 192 px\. Name another --out", "demo", "--out", place, "--size", 192)  # fmt: skip


@pytest.mark.slow
def test_the_demo_runs_at_its_smallest_size_and_a_second_call_does_nothing(tmp_path):
    done = call("demo", "--out", tmp_path / "demo", "--size", 192)
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "demo" / "runs" / "demo" / "report.html").exists()
    again = call("demo", "--out", tmp_path / "demo", "--size", 192, "--json")
    assert json.loads(again.stdout)["ran"] == []
