"""show-tiles, audit-split and export-tiles, as users call them."""

import csv
import json
import shutil
import sqlite3

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from PIL import Image
from typer.testing import CliRunner

from cobertes.accuracy.split_audit import audit_split
from cobertes.cli.main import app
from cobertes.settings import SplitSettings
from cobertes.tiles.index import load_index
from cobertes.workflow.context import open_dataset
from cobertes.workflow.project import load_project
from cobertes.workflow.run import Run
from cobertes.workflow.run_folder import open_run
from helpers.projects import BANDS, write_ground, write_project
from helpers.rasters import read_raster


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run after its tiles stage, in a folder of its own."""
    folder = tmp_path_factory.mktemp("place")
    write_ground(folder, size=192)
    job = Run(load_project(write_project(folder)), folder / "runs" / "small")
    job.run(only="labels")
    job.run(only="tiles")
    return job.folder.path


# --- show-tiles ------------------------------------------------------------------------------------------------


def test_show_tiles_sums_up_draws_and_writes_for_qgis(run, tmp_path):
    done = call("show-tiles", run, "-o", tmp_path / "t.gpkg", "--map", tmp_path / "t.png")
    assert done.exit_code == 0, done.output
    index = load_index(run / "tiles.parquet")
    kept = index[index["keep"]]
    assert f"{len(index)} tiles, blocks of" in done.stdout
    assert f"{(kept['split'] == 'train').sum():,}  train" in done.stdout
    assert f"{(index['reason'] == 'guard band').sum():,}  guard band" in done.stdout
    assert "april: valid 100.0%, cloud 0.0%, snow 0.0%" in done.stdout
    layer = gpd.read_file(tmp_path / "t.gpkg", layer="tiles")
    assert len(layer) == len(index)
    np.testing.assert_allclose(layer.filter(like="share_").sum(axis=1), 1)
    assert (layer["shown"] == layer["split"].where(layer["keep"], layer["reason"])).all()
    assert layer.crs == "EPSG:4326"
    with sqlite3.connect(tmp_path / "t.gpkg") as base:
        styles = base.execute("SELECT f_table_name, useAsDefault, styleQML FROM layer_styles").fetchall()
    base.close()
    assert [row[:2] for row in styles] == [("tiles", 1)]
    assert all(f'value="{what}"' in styles[0][2] for what in set(layer["shown"]))
    again = call("show-tiles", run, "-o", tmp_path / "t.gpkg")
    assert again.exit_code == 2
    assert "t.gpkg exists. Use --overwrite" in again.stderr


def test_the_map_of_tiles_shows_each_in_its_place_and_colour(run, tmp_path):
    call("show-tiles", run, "--map", tmp_path / "t.png")
    picture = np.asarray(Image.open(tmp_path / "t.png").convert("RGB")).astype(int)
    index = load_index(run / "tiles.parquet")
    blue = (abs(picture - (0x00, 0x72, 0xB2)) < 3).all(axis=2)
    orange = (abs(picture - (0xE6, 0x9F, 0x00)) < 3).all(axis=2)
    light = (abs(picture - (0x9E, 0xCA, 0xE1)) < 3).all(axis=2)
    inside = slice(0, int(picture.shape[1] * 0.8))  # the legend's patches stand beside the map
    rows, cols = np.nonzero((blue | orange | light)[:, inside])
    top, bottom, left, right = rows.min(), rows.max() + 1, cols.min(), cols.max() + 1
    for tile in index.itertuples():
        row = int(top + (tile.row + 8) / 192 * (bottom - top))
        col = int(left + (tile.col + 8) / 192 * (right - left))
        shown = {"train": blue, "validation": orange}[tile.split] if tile.keep else light
        assert tile.keep or tile.reason == "guard band"
        assert shown[row, col], (tile.row, tile.col, tile.split, tile.reason)


def test_show_tiles_as_json(run):
    done = json.loads(call("show-tiles", run, "--json").stdout)
    index = load_index(run / "tiles.parquet")
    assert done["tiles"] == len(index) == sum(done["kept"].values()) + sum(done["reasons"].values())
    assert sum(share["train"] for share in done["classes"].values()) == pytest.approx(1)
    assert (run / "tiles.png").exists()


def test_a_folder_without_an_index_is_told(tmp_path):
    done = call("show-tiles", tmp_path)
    assert done.exit_code == 2
    assert "no tile index at" in done.stderr


def test_qgis_colours_the_tiles(run, tmp_path, qgis):
    assert call("show-tiles", run, "-o", tmp_path / "t.gpkg").exit_code == 0
    script = """
layer = QgsVectorLayer(sys.argv[1] + "|layername=tiles", "tiles", "ogr")
print(json.dumps({
    "valid": layer.isValid(), "count": layer.featureCount(),
    "colours": {c.value(): c.symbol().color().name() for c in layer.renderer().categories()},
}))
"""
    found = qgis(script, tmp_path / "t.gpkg")
    assert found["valid"]
    assert found["count"] == len(load_index(run / "tiles.parquet"))
    assert {"train", "validation"} <= found["colours"].keys()
    assert len(set(found["colours"].values())) == len(found["colours"])


# --- export-tiles ----------------------------------------------------------------------------------------------


def test_exported_tiles_hold_what_training_sees(run, tmp_path):
    done = call("export-tiles", run, tmp_path / "out")
    assert done.exit_code == 0, done.output
    project, files = open_run(run)
    ground, index = open_dataset(project, files), load_index(files.tiles)
    kept = index[index["keep"]]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "train",
        "validation",
        "tiles.csv",
        "legend.csv",
    }
    legend = project.legend
    for tile in kept.itertuples():
        name = f"here_{tile.row:05d}_{tile.col:05d}.tif"
        window = (slice(tile.row, tile.row + tile.height), slice(tile.col, tile.col + tile.width))
        with rasterio.open(tmp_path / "out" / tile.split / "images" / name) as image:
            assert image.descriptions == tuple(f"{s}:{b}" for s in ("april", "august") for b in BANDS)
            assert image.crs == ground.areas["here"].grid.crs
            assert image.transform * (0, 0) == ground.areas["here"].grid.affine * (tile.col, tile.row)
            expected = [read_raster(run.parents[1] / f"{s}.tif")[:, *window] for s in ("april", "august")]
            np.testing.assert_array_equal(image.read(), np.concatenate(expected))
        with rasterio.open(tmp_path / "out" / tile.split / "labels" / name) as labels:
            np.testing.assert_array_equal(labels.read(1), read_raster(files.labels("here"))[window])
            assert labels.nodata == legend.nodata
            colour = legend.classes[0].colour
            assert labels.colormap(1)[legend.classes[0].code][:3] == tuple(
                int(colour[i : i + 2], 16) for i in (1, 3, 5)
            )
    written = sorted(path.stem for path in (tmp_path / "out").rglob("images/*.tif"))
    with (tmp_path / "out" / "tiles.csv").open() as file:
        assert sorted(row["name"] for row in csv.DictReader(file)) == written
    assert len(written) == len(kept)


def test_an_export_replaces_only_its_own_folder(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.docx").write_text("years")
    for options in ([], ["--overwrite"]):
        done = call("export-tiles", run, tmp_path / "mine", *options)
        assert done.exit_code == 2
        assert "mine" in done.stderr
    assert (tmp_path / "mine" / "thesis.docx").read_text() == "years"
    assert call("export-tiles", run, tmp_path / "out").exit_code == 0
    assert call("export-tiles", run, tmp_path / "out").exit_code == 2
    assert call("export-tiles", run, tmp_path / "out", "--overwrite").exit_code == 0
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_export_leaves_nothing(run, tmp_path, monkeypatch):
    from cobertes.tiles import export

    original, done = export._export, []

    def stopping(*arguments):
        done.append(1)
        if len(done) == 5:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(export, "_export", stopping)
    assert call("export-tiles", run, tmp_path / "out").exit_code == 130
    assert not list(tmp_path.iterdir())


# --- audit-split -----------------------------------------------------------------------------------------------


def test_audit_split_prints_both_splits_and_the_difference(run):
    done = call("audit-split", run, "--seeds", 1)
    assert done.exit_code == 0, done.output
    for word in ("random tiles", "held-out blocks", "flattered by", "random forest", "nearest in space", "mIoU"):
        assert word in done.stdout
    scores = json.loads(call("audit-split", run, "--seeds", 1, "--json").stdout)
    assert set(scores) == {"random", "blocks"}
    for method in ("random_forest", "nearest_in_space"):
        assert 0 <= scores["blocks"][method]["overall_accuracy"] <= 1


def test_where_place_alone_tells_the_class_the_random_split_flatters(tmp_path, monkeypatch):
    """Regions much larger than a tile: the nearest pixel knows the class, unless a block lies between."""
    monkeypatch.setattr("cobertes.accuracy.split_audit.TREES", 5)
    monkeypatch.setattr("cobertes.accuracy.split_audit.TRAINING_PIXELS", 3000)
    write_ground(tmp_path, size=320)
    codes = np.kron(np.random.default_rng(0).choice([1, 3, 12], (5, 5)), np.ones((64, 64), int)).astype(np.uint8)
    with rasterio.open(tmp_path / "reference.tif", "r+") as file:
        file.write(np.kron(codes, np.ones((2, 2), np.uint8)), 1)
    job = Run(load_project(write_project(tmp_path, split="block = 64")), tmp_path / "runs" / "small")
    job.run(only="labels")
    job.run(only="tiles")
    ground, index = open_dataset(job.project, job.folder), load_index(job.folder.tiles)
    found = audit_split(ground, index, SplitSettings(), job.project.settings.tiles, seeds=[0, 1])
    nearest = {
        split: found.scores()[split]["nearest_in_space"]["overall_accuracy"] for split in ("random", "blocks")
    }
    assert nearest["random"] > nearest["blocks"] + 0.3
    again = audit_split(ground, index, SplitSettings(), job.project.settings.tiles, seeds=[0, 1]).scores()
    for split in ("random", "blocks"):
        assert again[split]["nearest_in_space"] == found.scores()[split]["nearest_in_space"]
    for split in ("random", "blocks"):  # both judge the same pixels
        for ours, theirs in zip(
            found.matrices[split]["random_forest"], found.matrices["blocks"]["random_forest"], strict=True
        ):
            np.testing.assert_array_equal(ours.support, theirs.support)


# --- runs ------------------------------------------------------------------------------------------------------


def test_a_run_is_opened_wherever_it_lies(run, tmp_path):
    project, files = open_run(run)
    assert project.settings.name == "small"
    assert project.folder == run.parents[1]
    shutil.copytree(run, tmp_path / "elsewhere")
    moved, _ = open_run(tmp_path / "elsewhere")
    assert moved.areas[0].scenes["april"].files == project.areas[0].scenes["april"].files
    assert files.path == run


@pytest.mark.parametrize(("text", "message"), [(None, "no run in"), ("name = 'mine'", "was not written by a run")])
def test_other_folders_are_no_runs(tmp_path, text, message):
    if text:
        (tmp_path / "project.toml").write_text(text)
    for command in (["audit-split", tmp_path], ["export-tiles", tmp_path, tmp_path / "out"]):
        done = call(*command)
        assert done.exit_code == 2
        assert message in done.stderr
