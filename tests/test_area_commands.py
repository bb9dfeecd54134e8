"""Samples drawn from maps and read back: the design that was asked for, a form that QGIS fills, areas that are right."""

import json
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pyogrio
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from typer.testing import CliRunner

from cobertes.cli.main import app
from cobertes.geo.cog_writer import Categories, RasterSpec, new_raster
from cobertes.survey import stratified_sampling
from cobertes.survey.stratified_sampling import _ranks, count_codes, draw_pixels, open_map, values_at
from helpers.rasters import grid_at, write_raster

NAMES = {3: "Forest", 5: "Bare & dry", 12: "Water"}
COLOURS = {3: "#33cc33", 5: "#ff9632", 12: "#0000dc"}
SHAPE = 120, 150
QGIS = Path("/usr/bin/python3")


def write_map(path, codes):
    with new_raster(
        path, grid_at(*codes.shape), RasterSpec("uint8", ("class",), 0, Categories(NAMES, COLOURS))
    ) as p:
        p[0] = codes
    return path


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """A map with errors, the truth, and strata that are not its classes."""
    folder, rng = tmp_path_factory.mktemp("maps"), np.random.default_rng(0)
    truth = rng.choice([3, 5, 12], SHAPE, p=[0.7, 0.25, 0.05]).astype(np.uint8)
    codes = np.where(rng.random(SHAPE) < 0.8, truth, rng.choice([3, 5, 12], SHAPE)).astype(np.uint8)
    codes[:10] = 0
    write_map(folder / "map.tif", codes)
    write_map(folder / "other.tif", np.where(codes == 0, 0, truth).astype(np.uint8))
    strata = np.where(codes == 0, 0, 1 + (np.indices(SHAPE)[1] > 100)).astype(np.uint8)
    write_raster(folder / "strata.tif", strata, grid_at(*SHAPE), nodata=0)
    return folder, codes, truth


def invoke(*arguments, code=0):
    shown = CliRunner().invoke(app, [*map(str, arguments)])
    assert shown.exit_code == code, shown.output
    return shown


def interpret(path, truth, *, skip=0, unclear=0, grid=None):
    """What an interpreter does who sees the truth."""
    index = pyogrio.read_dataframe(path, layer="sample")
    grid = grid or grid_at(*SHAPE)
    bounds = index.geometry.bounds
    col, row = ~grid.affine * (
        (bounds.minx + bounds.maxx).to_numpy() / 2, (bounds.miny + bounds.maxy).to_numpy() / 2
    )  # fmt: skip
    reference = truth[np.floor(row).astype(int), np.floor(col).astype(int)].astype(int)
    with sqlite3.connect(path) as base:
        base.create_function("ST_IsEmpty", 1, lambda g: 0)
        base.create_function("ST_MinX", 1, lambda g: 0.0)
        base.create_function("ST_MaxX", 1, lambda g: 0.0)
        base.create_function("ST_MinY", 1, lambda g: 0.0)
        base.create_function("ST_MaxY", 1, lambda g: 0.0)
        for i, (point, code) in enumerate(zip(index["point"], reference, strict=True)):
            value = None if i < skip else -1 if i < skip + unclear else int(code)
            base.execute("UPDATE sample SET reference = ? WHERE point = ?", (value, int(point)))
    base.close()
    return index


# --- drawing -----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 99))
def test_ranks_are_different_ascending_and_within(population, number, seed):
    number = min(number, population)
    ranks = _ranks(np.random.default_rng(seed), population, number)
    assert len(ranks) == number
    assert (np.diff(ranks) > 0).all()
    assert number == 0 or 0 <= ranks[0] <= ranks[-1] < population


@pytest.mark.parametrize("strip", [16_000_000, 1])
def test_pixels_are_of_the_class_they_were_drawn_for_whatever_the_strips(maps, monkeypatch, strip):
    folder, codes, _ = maps
    monkeypatch.setattr(stratified_sampling, "STRIP_PIXELS", strip)
    class_map = open_map(folder / "map.tif")
    counts = count_codes(class_map)
    assert counts[0] == 0
    np.testing.assert_array_equal(counts[1:], np.bincount(codes.ravel(), minlength=256)[1:])
    positions, drawn = draw_pixels(class_map, counts, {3: 40, 12: 25}, seed=4)
    np.testing.assert_array_equal(codes[positions[:, 0], positions[:, 1]], drawn)
    assert (drawn == 3).sum() == 40
    assert (drawn == 12).sum() == 25
    assert len({*map(tuple, positions.tolist())}) == 65
    again, _ = draw_pixels(class_map, counts, {3: 40, 12: 25}, seed=4)
    np.testing.assert_array_equal(positions, again)


def test_every_pixel_of_a_class_is_drawn_equally_often(tmp_path):
    codes = np.array([[3, 3, 5, 3], [5, 3, 3, 5], [3, 5, 3, 3]], np.uint8)
    class_map = open_map(write_map(tmp_path / "m.tif", codes))
    counts, hits = count_codes(class_map), np.zeros(codes.shape)
    for seed in range(800):
        positions, _ = draw_pixels(class_map, counts, {3: 2}, seed=seed)
        hits[positions[:, 0], positions[:, 1]] += 1
    assert hits[codes == 5].sum() == 0
    assert (abs(hits[codes == 3] - 200) < 55).all()  # four standard deviations


def test_values_at_places_are_the_maps_and_nodata_outside(maps):
    folder, codes, _ = maps
    class_map = open_map(folder / "map.tif")
    x, y = class_map.grid.affine * (np.array([5.5, 149.5, -0.5]), np.array([50.5, 119.5, 3.5]))
    assert values_at(class_map, x, y).tolist() == [codes[50, 5], codes[119, 149], 0]


# --- the commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--points", "300", "--minimum", "20", "--allocation", "equal"], [100, 100, 100]),
        (["--points", "300", "--minimum", "40"], None),
    ],
)
def test_a_sample_has_the_design_that_was_asked_for(maps, tmp_path, options, expected):
    folder, *_ = maps
    found = json.loads(
        invoke("sample-accuracy", folder / "map.tif", "-o", tmp_path / "s.gpkg", *options, "--json").stdout
    )
    points = [one["points"] for one in found["strata"].values()]
    assert sum(points) == found["points"] == 300
    assert [one["name"] for one in found["strata"].values()] == list(NAMES.values())
    if expected:
        assert points == expected
    else:
        assert min(points) >= 40
    index = pyogrio.read_dataframe(tmp_path / "s.gpkg", layer="sample")
    assert index["reference"].isna().all()
    assert index["stratum"].value_counts().sort_index().tolist() == points
    assert not index["stratum"].is_monotonic_increasing  # the order tells nothing
    assert index.crs.to_epsg() == 32631
    assert index.geometry.area.tolist() == pytest.approx([100] * 300)


def test_the_size_reaches_the_standard_error(maps, tmp_path):
    folder, *_ = maps
    arguments = [
        "sample-accuracy",
        folder / "map.tif",
        "-o",
        tmp_path / "s.gpkg",
        "--standard-error",
        "0.02",
        "--json",
    ]
    found = json.loads(invoke(*arguments).stdout)
    assert found["expected_standard_error"] <= 0.0205
    assert found["points"] < 500


def test_an_interpreted_sample_gives_the_areas_of_the_ground(maps, tmp_path):
    folder, codes, truth = maps
    sample = tmp_path / "s.gpkg"
    invoke("sample-accuracy", folder / "map.tif", "-o", sample, "--points", "1500")
    interpret(sample, truth, skip=7, unclear=5)
    found = json.loads(invoke("estimate-accuracy", sample, "--json").stdout)
    assert (found["points"], found["not_interpreted"], found["cannot_tell"]) == (1488, 7, 5)
    known = codes > 0
    assert found["unit"] == "hectares"
    for code, name in NAMES.items():
        one = found["classes"][name]
        low, high = one["area"]["interval"]
        assert low <= (truth[known] == code).sum() * 0.01 <= high
        assert high - low < 0.4 * one["area"]["value"]
        assert one["mapped_area"] == pytest.approx((codes == code).sum() * 0.01)
    low, high = found["overall_accuracy"]["interval"]
    assert low <= (codes == truth)[known].mean() <= high
    # water is mapped far too often: counting pixels would be wrong
    assert found["classes"]["Water"]["mapped_area"] > found["classes"]["Water"]["area"]["interval"][1]
    shown = invoke("estimate-accuracy", sample).output
    assert "7 not interpreted, 5 unclear: left out" in shown


def test_strata_need_not_be_the_classes_and_another_map_can_be_judged(maps, tmp_path):
    folder, codes, truth = maps
    sample = tmp_path / "s.gpkg"
    invoke(
        "sample-accuracy", folder / "map.tif", "-o", sample, "--points", "1200", "--strata", folder / "strata.tif"
    )
    index = interpret(sample, truth)
    assert set(index["stratum"]) == {1, 2}
    assert set(index["mapped"]) == set(NAMES)
    found = json.loads(invoke("estimate-accuracy", sample, "--json").stdout)
    low, high = found["overall_accuracy"]["interval"]
    assert low <= (codes == truth)[codes > 0].mean() <= high
    other = json.loads(invoke("estimate-accuracy", sample, "--map", folder / "other.tif", "--json").stdout)
    assert other["overall_accuracy"]["value"] == 1
    assert other["classes"]["Forest"]["mapped_area"] == pytest.approx(((truth == 3) & (codes > 0)).sum() * 0.01)


def draw(folder, sample, *options, points=600):
    return invoke("sample-accuracy", folder / "map.tif", "-o", sample, "--points", points, *options)


def estimated(sample, *options):
    return json.loads(invoke("estimate-accuracy", sample, *options, "--json").stdout)


def test_strata_with_the_codes_of_classes_are_not_the_maps_areas(maps, tmp_path):
    folder, codes, truth = maps
    strata = np.where(codes == 0, 0, np.where(np.indices(SHAPE)[1] > 100, 3, 5)).astype(np.uint8)
    write_raster(tmp_path / "strata.tif", strata, grid_at(*SHAPE), nodata=0)
    sample = tmp_path / "s.gpkg"
    draw(folder, sample, "--strata", tmp_path / "strata.tif")
    interpret(sample, truth)
    for code, name in NAMES.items():
        assert estimated(sample)["classes"][name]["mapped_area"] == pytest.approx((codes == code).sum() * 0.01)


def test_strata_beyond_the_map_and_ground_without_stratum_are_said(maps, tmp_path):
    folder, codes, truth = maps
    strata = np.full(SHAPE, 1, np.uint8)
    strata[100:] = 0
    write_raster(tmp_path / "strata.tif", strata, grid_at(*SHAPE), nodata=0)
    sample = tmp_path / "s.gpkg"
    said = " ".join(draw(folder, sample, "--strata", tmp_path / "strata.tif").output.split())
    assert "1,500 pixels of the strata have no class in" in said
    assert "3,000 mapped pixels of" in said
    interpret(sample, truth)
    mapped = {name: one["mapped_area"] for name, one in estimated(sample)["classes"].items()}
    assert mapped == {"not mapped": 0} | {
        name: pytest.approx((codes[:100] == code).sum() * 0.01) for code, name in NAMES.items()
    }


def test_a_class_that_the_map_never_shows_can_be_chosen(maps, tmp_path):
    _, codes, truth = maps
    write_map(tmp_path / "map.tif", np.where(codes == 12, 3, codes).astype(np.uint8))
    sample = tmp_path / "s.gpkg"
    draw(tmp_path, sample)
    assert pyogrio.read_dataframe(sample, layer="classes")["code"].tolist() == [3, 5, 12]
    interpret(sample, truth)
    water = estimated(sample)["classes"]["Water"]
    low, high = water["area"]["interval"]
    assert low <= ((truth == 12) & (codes > 0)).sum() * 0.01 <= high
    assert (water["mapped_area"], water["producers_accuracy"]["value"]) == (0, 0)
    assert water["users_accuracy"]["interval"] == [None, None]
    # a class that is neither mapped nor found is none of the table's
    interpret(sample, np.full(SHAPE, 3))
    assert set(estimated(sample)["classes"]) == {"Forest", "Bare & dry"}


def test_another_maps_areas_are_of_its_own_pixels_and_of_the_same_ground(maps, tmp_path):
    folder, codes, truth = maps
    sample = tmp_path / "s.gpkg"
    draw(folder, sample)
    interpret(sample, truth)
    fine, grid = np.kron(codes, np.ones((2, 2), np.uint8)), grid_at(2 * SHAPE[0], 2 * SHAPE[1], pixel=5)
    with new_raster(
        tmp_path / "fine.tif", grid, RasterSpec("uint8", ("class",), 0, Categories(NAMES, COLOURS))
    ) as p:
        p[0] = fine
    found = estimated(sample, "--map", tmp_path / "fine.tif")
    assert found["overall_accuracy"] == estimated(sample)["overall_accuracy"]
    for code, name in NAMES.items():
        assert found["classes"][name]["mapped_area"] == pytest.approx((codes == code).sum() * 0.01)
    part = codes.copy()
    part[60:] = 0
    write_map(tmp_path / "part.tif", part)
    shown = invoke("estimate-accuracy", sample, "--map", tmp_path / "part.tif").output
    assert "maps 0.455 times the ground" in " ".join(shown.split())
    found = estimated(sample, "--map", tmp_path / "part.tif", "--quiet")
    assert {one["mapped_area"] for one in found["classes"].values()} == {None}


def test_a_map_of_another_legend_is_refused(maps, tmp_path):
    folder, codes, truth = maps
    sample = tmp_path / "s.gpkg"
    draw(folder, sample)
    interpret(sample, truth)
    names = NAMES | {5: "Vineyards"}
    kind = RasterSpec("uint8", ("class",), 0, Categories(names, COLOURS))
    with new_raster(tmp_path / "other.tif", grid_at(*SHAPE), kind) as p:
        p[0] = codes
    shown = invoke("estimate-accuracy", sample, "--map", tmp_path / "other.tif", code=2)
    assert "code 5 is 'Vineyards', but 'Bare & dry' in" in " ".join(shown.output.split())


def test_a_class_of_one_pixel_is_said_and_can_be_estimated(maps, tmp_path):
    _, codes, truth = maps
    rare = np.where(codes == 12, 3, codes).astype(np.uint8)
    rare[50, 50] = 12
    write_map(tmp_path / "map.tif", rare)
    sample = tmp_path / "s.gpkg"
    assert "stratum 'Water' has 1 pixel:" in " ".join(draw(tmp_path, sample).output.split())
    interpret(sample, np.where(rare == 12, 12, truth))
    assert estimated(sample)["classes"]["Water"]["users_accuracy"]["interval"] == [1, 1]


@pytest.mark.parametrize(
    ("crs", "place"),
    [("EPSG:4326", (1e-4, 0, 2, 0, -1e-4, 42)), ("EPSG:3857", (13, 0, 222_000, 0, -13, 5_160_000))],
    ids=["degrees", "Web Mercator"],
)
def test_a_sample_of_a_map_without_true_areas_is_judged_in_pixels(tmp_path, crs, place):
    codes = np.random.default_rng(0).choice([3, 5, 12], SHAPE).astype(np.uint8)
    grid = GeoBox(SHAPE, Affine(*place), crs)
    with new_raster(
        tmp_path / "map.tif", grid, RasterSpec("uint8", ("class",), 0, Categories(NAMES, COLOURS))
    ) as p:
        p[0] = codes
    sample = tmp_path / "s.gpkg"
    draw(tmp_path, sample, points=300)
    interpret(sample, codes, grid=grid)
    found = estimated(sample, "--map", tmp_path / "map.tif")
    assert (found["overall_accuracy"]["value"], found["unit"]) == (1, "pixels")
    assert found["classes"]["Forest"]["mapped_area"] == (codes == 3).sum()


def test_two_codes_of_one_name_are_two_classes(maps, tmp_path):
    _, codes, truth = maps
    kind = RasterSpec("uint8", ("class",), 0, Categories(NAMES | {5: "Forest"}, COLOURS))
    with new_raster(tmp_path / "map.tif", grid_at(*SHAPE), kind) as p:
        p[0] = codes
    sample = tmp_path / "s.gpkg"
    draw(tmp_path, sample)
    interpret(sample, truth)
    assert [*estimated(sample)["classes"]] == ["Forest (code 3)", "Forest (code 5)", "Water"]


def test_a_point_without_the_maps_class_is_said(maps, tmp_path):
    folder, _, truth = maps
    sample = tmp_path / "s.gpkg"
    draw(folder, sample)
    interpret(sample, truth)
    index = pyogrio.read_dataframe(sample, layer="sample")
    index.loc[3, "mapped"] = None
    pyogrio.write_dataframe(index, sample, layer="sample")
    shown = invoke("estimate-accuracy", sample, code=2)
    assert "a point has no class of the map. Points must not be added by hand" in " ".join(shown.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--points", "20"], "20 points are too few for 3 strata"),
        (["--allocation", "eqaul"], "Did you mean 'equal'"),
        (["--strata", "SMALL"], "Bring the strata onto the map's grid"),
    ],
)
def test_what_cannot_be_drawn_is_said(maps, tmp_path, arguments, message):
    folder, *_ = maps
    small = write_raster(tmp_path / "small.tif", np.ones((5, 5), np.uint8), grid_at(5, 5), nodata=0)
    given_ = [small if a == "SMALL" else a for a in arguments]
    shown = invoke("sample-accuracy", folder / "map.tif", "-o", tmp_path / "s.gpkg", *given_, code=2)
    assert message in " ".join(shown.output.split())
    assert not (tmp_path / "s.gpkg").exists()


def test_what_was_filled_in_wrongly_is_said(maps, tmp_path):
    folder, _, truth = maps
    sample = tmp_path / "s.gpkg"
    invoke("sample-accuracy", folder / "map.tif", "-o", sample, "--points", "200")
    assert "no point has a reference class yet" in invoke("estimate-accuracy", sample, code=2).output
    interpret(sample, np.full(SHAPE, 77))
    shown = " ".join(invoke("estimate-accuracy", sample, code=2).output.split())
    assert "a point's reference is '77', none of the classes: 3 Forest, 5 Bare & dry, 12 Water" in shown
    interpret(sample, truth, skip=199)
    assert "too few interpreted points in" in invoke("estimate-accuracy", sample, code=2).output
    assert "no sample of" in " ".join(invoke("estimate-accuracy", folder / "map.tif", code=2).output.split())
    exists = invoke("sample-accuracy", folder / "map.tif", "-o", sample, code=2)
    assert "--overwrite" in exists.output


def test_a_map_of_something_else_is_refused(tmp_path):
    path = write_raster(tmp_path / "m.tif", np.ones((5, 5), np.float32), grid_at(5, 5))
    assert (
        "one band of uint8 class codes"
        in invoke("sample-accuracy", path, "-o", tmp_path / "s.gpkg", code=2).output
    )


FORM = """
import sys
from qgis.core import QgsApplication, QgsVectorLayer
QgsApplication.setPrefixPath("/usr", True)
app = QgsApplication([], False); app.initQgis()
layer = QgsVectorLayer(sys.argv[1] + "|layername=sample", "sample", "ogr")
assert layer.isValid()
message, loaded = layer.loadDefaultStyle()
field = layer.fields().indexFromName("reference")
setup = layer.editorWidgetSetup(field)
choices = {k: v for one in setup.config()["map"] for k, v in one.items()}
hidden = [layer.editorWidgetSetup(layer.fields().indexFromName(n)).type() for n in ("stratum", "mapped")]
layer.startEditing()
feature = next(layer.getFeatures())
assert layer.changeAttributeValue(feature.id(), field, 12)
assert layer.commitChanges(), layer.commitErrors()
print(loaded, setup.type(), choices, hidden, layer.renderer().type(), len(layer.renderer().categories()))
"""


def test_qgis_shows_a_form_with_the_classes_and_saves_what_is_filled_in(maps, tmp_path):
    probe = [QGIS, "-c", "import qgis.core"]
    has_qgis = QGIS.exists() and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    if not has_qgis:
        pytest.skip("needs Debian's python3-qgis")
    folder, *_ = maps
    sample = tmp_path / "s.gpkg"
    invoke("sample-accuracy", folder / "map.tif", "-o", sample, "--points", "200")
    environment = {"QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [QGIS, "-c", FORM, sample], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == (
        "True ValueMap {'Forest': '3', 'Bare & dry': '5', 'Water': '12', 'cannot tell': '-1'} "
        "['Hidden', 'Hidden'] categorizedSymbol 2"
    )
    assert pyogrio.read_dataframe(sample, layer="sample")["reference"].dropna().tolist() == [12]


def test_a_sample_without_the_pixels_of_its_classes_is_refused(maps, tmp_path):
    folder, *_ = maps
    sample = tmp_path / "s.gpkg"
    draw(folder, sample)
    classes = pyogrio.read_dataframe(sample, layer="classes").drop(columns="pixels")
    pyogrio.write_dataframe(classes, sample, layer="classes")
    shown = invoke("estimate-accuracy", sample, code=2)
    assert "is no sample of `cobertes sample-accuracy`" in " ".join(shown.output.split())
