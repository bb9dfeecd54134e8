"""Patches of disagreement: those that scipy labels, whatever the strips; ranked, outlined, found again when planted."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pyogrio
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, label
from typer.testing import CliRunner

from cobertes.accuracy import disagreement
from cobertes.accuracy.connected_patches import (
    BOTTOM,
    CONFIDENCE,
    CORE,
    KIND,
    LEFT,
    NONE,
    PIXELS,
    RIGHT,
    TOP,
    PatchFollower,
    core_of,
    overlapping,
)
from cobertes.accuracy.disagreement import AuditedArea, audit_maps, describe_patches, is_calibrated, write_patches
from cobertes.cli.main import app
from cobertes.errors import GridMismatchError
from cobertes.labels.legend import Legend, LegendClass
from helpers.projects import write_ground, write_project
from helpers.rasters import grid_at, write_raster

LEGEND = Legend("test", 0, tuple(LegendClass(c, f"c{c}", f"Class & {c}", f"#{c:02x}80ff") for c in (10, 200, 30)))
SHAPE = 60, 80


def slow_patches(kinds, core, confidence):
    """Rows (kind, pixels, core, confidence, top, bottom, left, right), sorted."""
    found = []
    for kind in np.unique(kinds[kinds != NONE]):
        numbers, count = label(kinds == kind)
        for number in range(1, count + 1):
            mask = numbers == number
            rows, cols = np.nonzero(mask)
            found.append((
                int(kind), len(rows), int(core[mask].sum()), int(confidence[mask].sum()),
                rows.min(), rows.max() + 1, cols.min(), cols.max() + 1,
            ))  # fmt: skip
    return sorted(found)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(1, 14), st.integers(1, 14), st.integers(1, 14), st.floats(0.2, 0.95))
def test_patches_are_those_of_a_labelling_of_the_whole_whatever_the_strips(seed, height, width, rows, density):
    rng = np.random.default_rng(seed)
    kinds = np.where(rng.random((height, width)) < density, rng.integers(0, 2, (height, width)), NONE).astype(
        np.int32
    )
    core, confidence = rng.random(kinds.shape) < 0.5, rng.integers(0, 101, kinds.shape).astype(np.uint8)
    follower, found = PatchFollower(width), []
    for row in range(0, height, rows):
        part = slice(row, row + rows)
        found.append(follower.add(kinds[part], core[part], confidence[part]))
    found.append(follower.finish())
    fields = [KIND, PIXELS, CORE, CONFIDENCE, TOP, BOTTOM, LEFT, RIGHT]
    assert sorted(map(tuple, np.concatenate(found)[:, fields].tolist())) == slow_patches(kinds, core, confidence)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12))
def test_the_core_is_what_erosion_leaves(seed, height, width):
    rng = np.random.default_rng(seed)
    kinds = (rng.random((height, width)) < 0.8).astype(np.int32) - 1
    np.testing.assert_array_equal(core_of(kinds), binary_erosion(kinds == 0, np.ones((3, 3))))
    for start, stop, first, last in overlapping(height, 3):
        inside = slice(first - start, last - start)
        np.testing.assert_array_equal(core_of(kinds[start:stop])[inside], core_of(kinds)[first:last])


def an_area(folder, changes, *, confidence=95, table=(), name="one", crs="EPSG:32631"):
    """Labels of one class; the map says others in rectangles (row, col, height, width, class, percent)."""
    folder.mkdir(exist_ok=True)
    labels = np.full(SHAPE, 10, np.uint8)
    labels[:, -5:] = 0
    predicted, percent = np.full(SHAPE, 10, np.uint8), np.full(SHAPE, confidence, np.uint8)
    for row, col, height, width, code, sure in changes:
        predicted[row : row + height, col : col + width] = code
        percent[row : row + height, col : col + width] = sure
    grid = grid_at(*SHAPE, crs=crs) if crs else None
    paths = [folder / f"{what}.tif" for what in ("map", "labels", "confidence")]
    for path, values, nodata in zip(paths, (predicted, labels, percent), (0, 0, 255), strict=True):
        write_raster(path, values, grid, nodata=nodata)
    return AuditedArea(name, *paths, table)


CHANGES = [
    (5, 5, 6, 6, 200, 90),  # core of 16 px
    (30, 10, 1, 40, 30, 99),  # a sliver: no core
    (20, 50, 10, 10, 30, 60),  # not sure
    (40, 40, 8, 8, 30, 85),  # core of 36
    (50, 70, 8, 10, 200, 99),  # half of it on ground without labels: 8 x 5, core 6 x 3
]


@pytest.mark.parametrize("strip", [8_000_000, 1])
def test_patches_are_ranked_by_their_core_and_confidence(tmp_path, monkeypatch, strip):
    monkeypatch.setattr(disagreement, "STRIP_PIXELS", strip)
    patches = audit_maps([an_area(tmp_path / "a", CHANGES)], LEGEND, min_confidence=0.7)
    assert [(p.core, round(p.confidence, 2), p.predicted) for p in patches] == [
        (18, 0.99, 1),
        (36, 0.85, 2),
        (16, 0.9, 1),
    ]
    assert [patch.score for patch in patches] == pytest.approx([18 * 99, 36 * 0.85 / 0.15, 16 * 9])
    first = patches[1]
    assert (first.area, first.reference, first.hectares) == ("one", 0, pytest.approx(0.64))
    assert first.pixels == 64
    left, bottom, right, top = first.outline.bounds
    assert (left, top) == grid_at(*SHAPE).affine * (40, 40)
    assert (right, bottom) == grid_at(*SHAPE).affine * (48, 48)
    assert first.outline.area == 6400
    assert len(audit_maps([an_area(tmp_path / "a", CHANGES)], LEGEND, top=1)) == 1
    assert len(audit_maps([an_area(tmp_path / "a", CHANGES)], LEGEND, min_confidence=0.5)) == 4


def test_confidences_are_taken_for_what_they_were_worth(tmp_path):
    table = [
        {"confidence": 0.5, "accuracy": 0.3, "pixels": 9},
        {"confidence": 0.99, "accuracy": 0.72, "pixels": 9},
    ]
    patches = audit_maps([an_area(tmp_path / "a", CHANGES, table=table)], LEGEND, min_confidence=0.7)
    assert [(p.core, round(p.confidence, 2)) for p in patches] == [(18, 0.72)]


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1))
@example(1368)  # patches of one score, met in another order strip by strip
def test_an_outline_is_that_of_the_whole_patch_whatever_the_strips(tmp_path, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    predicted = np.where(rng.random((200, 40)) < 0.62, 200, 10).astype(np.uint8)
    paths = [tmp_path / f"{what}.tif" for what in ("map", "labels", "confidence")]
    values = predicted, np.full(predicted.shape, 10, np.uint8), np.full(predicted.shape, 95, np.uint8)
    for path, one, nodata in zip(paths, values, (0, 0, 255), strict=True):
        write_raster(path, one, grid_at(*predicted.shape), nodata=nodata)
    outlines = []
    for strip in (8_000_000, 1):  # all at once, or 64 rows
        monkeypatch.setattr(disagreement, "STRIP_PIXELS", strip)
        found = audit_maps([AuditedArea("one", *paths)], LEGEND)
        outlines.append([patch.outline for patch in found])
        assert [patch.outline.area / 100 for patch in found] == [patch.pixels for patch in found]
        assert {patch.outline.geom_type for patch in found} == {"Polygon"}
    for whole, joined in zip(*outlines, strict=True):
        assert whole.equals(joined)


def test_areas_without_crs_lie_side_by_side_and_those_of_two_in_degrees(tmp_path):
    none = [an_area(tmp_path / name, CHANGES[3:4], name=name, crs=None) for name in "ab"]
    write_patches(audit_maps(none, LEGEND), LEGEND, tmp_path / "none.gpkg")
    index = pyogrio.read_dataframe(tmp_path / "none.gpkg", layer="patches")
    assert index.crs is None
    assert index.bounds.to_numpy().tolist() == [[40, -48, 48, -40], [121, -48, 129, -40]]
    two = [an_area(tmp_path / f"{crs}", CHANGES[3:4], name=f"{crs}", crs=f"EPSG:{crs}") for crs in (32631, 32630)]
    write_patches(audit_maps(two, LEGEND), LEGEND, tmp_path / "two.gpkg")
    index = pyogrio.read_dataframe(tmp_path / "two.gpkg", layer="patches")
    assert index.crs.to_epsg() == 4326
    west = dict(zip(index["area"], index.geometry.bounds.minx, strict=True))
    assert west["32631"] - west["32630"] == pytest.approx(6, abs=0.01)  # a zone apart


def test_patches_of_all_areas_are_ranked_together(tmp_path):
    areas = [an_area(tmp_path / "a", CHANGES[:1], name="a"), an_area(tmp_path / "b", CHANGES[3:4], name="b")]
    assert [patch.area for patch in audit_maps(areas, LEGEND)] == ["b", "a"]


def test_a_map_on_another_grid_is_refused(tmp_path):
    area = an_area(tmp_path / "a", CHANGES)
    write_raster(area.labels, np.full((20, 20), 10, np.uint8), grid_at(20, 20), nodata=0)
    with pytest.raises(GridMismatchError, match="Predict the whole scene"):
        audit_maps([area], LEGEND)


def test_the_geopackage_holds_classes_ground_and_confidence(tmp_path):
    patches = audit_maps([an_area(tmp_path / "a", CHANGES)], LEGEND)
    write_patches(patches, LEGEND, tmp_path / "p.gpkg")
    index = pyogrio.read_dataframe(tmp_path / "p.gpkg", layer="patches")
    assert index["rank"].tolist() == [1, 2, 3]
    assert index["reference_name"].tolist() == ["Class & 10"] * 3
    assert index["predicted"].tolist() == [200, 30, 200]
    assert index["hectares"].tolist() == pytest.approx([0.4, 0.64, 0.36])
    assert index["confidence"].tolist() == pytest.approx([0.99, 0.85, 0.9])
    assert index.geometry.area.tolist() == pytest.approx([4000, 6400, 3600])
    assert index.crs.to_epsg() == 32631
    shown = describe_patches(patches, LEGEND)
    assert "0.64" in shown
    assert shown.splitlines()[-2:] == [
        "                    2  Class & 10 -> Class & 200", "                    1  Class & 10 -> Class & 30",
    ]  # fmt: skip
    write_patches([], LEGEND, tmp_path / "none.gpkg")
    assert len(pyogrio.read_dataframe(tmp_path / "none.gpkg", layer="patches")) == 0
    assert "agrees" in describe_patches([], LEGEND)


def test_a_raster_says_whether_it_was_made_with_a_temperature(tmp_path):
    area = an_area(tmp_path / "a", [])
    assert not is_calibrated(area.confidence)
    import rasterio

    with rasterio.open(area.confidence, "r+") as file:
        file.update_tags(temperature="1.3")
    assert is_calibrated(area.confidence)


# --- on a run ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose labels were changed afterwards in two places: as if the ground had changed since."""
    folder = tmp_path_factory.mktemp("audit")
    write_ground(folder)
    project = write_project(folder)
    made = CliRunner().invoke(app, ["run", str(project), "--run", str(folder / "run"), "--quiet"])
    assert made.exit_code == 0, made.output
    path = folder / "run" / "labels" / "here.tif"
    import rasterio

    with rasterio.open(path) as file:
        labels, grid = file.read(1), grid_at(*file.shape)
    for row, col in ((8, 8), (56, 40)):
        labels[row : row + 16, col : col + 16] = 6  # urban, which is nowhere
    path.unlink()
    write_raster(path, labels, grid, nodata=0)
    return folder


@pytest.mark.torch
def test_planted_changes_are_found_and_the_map_says_what_is_there_now(run):
    shown = CliRunner().invoke(app, ["audit-map", str(run / "run"), "-o", str(run / "p.gpkg"), "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["patches"] >= 2
    index = pyogrio.read_dataframe(run / "p.gpkg", layer="patches")
    best = index.iloc[:2]
    assert (best["reference_name"] == "Urban area").all()
    assert set(best["predicted"]) <= {1, 3, 12}
    rows = {round((4_780_000 - y) / 10) for y in best.geometry.centroid.y}
    assert all(8 <= row <= 24 or 56 <= row <= 72 for row in rows)
    again = CliRunner().invoke(app, ["audit-map", str(run / "run"), "-o", str(run / "p.gpkg")])
    assert again.exit_code == 2
    assert "--overwrite" in again.output


@pytest.mark.torch
def test_a_run_without_a_map_says_what_to_do(run, tmp_path):
    (run / "run" / "maps" / "here.confidence.tif").rename(run / "kept.tif")
    try:
        shown = CliRunner().invoke(app, ["audit-map", str(run / "run"), "-o", str(tmp_path / "p.gpkg")])
    finally:
        (run / "kept.tif").rename(run / "run" / "maps" / "here.confidence.tif")
    assert shown.exit_code == 2
    assert "run all stages first" in " ".join(shown.output.split())


QGIS = Path("/usr/bin/python3")
STYLE = """
import sys
from qgis.core import QgsApplication, QgsVectorLayer
QgsApplication.setPrefixPath("/usr", True)
app = QgsApplication([], False); app.initQgis()
layer = QgsVectorLayer(sys.argv[1] + "|layername=patches", "patches", "ogr")
print(layer.isValid(), layer.loadDefaultStyle()[1], [c.label() for c in layer.renderer().categories()])
"""


def test_qgis_draws_patches_in_the_classes_colours(tmp_path):
    probe = [QGIS, "-c", "import qgis.core"]
    if not QGIS.exists() or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs Debian's python3-qgis")
    write_patches(audit_maps([an_area(tmp_path / "a", CHANGES)], LEGEND), LEGEND, tmp_path / "p.gpkg")
    environment = {"QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [QGIS, "-c", STYLE, tmp_path / "p.gpkg"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert done.stdout.split("\n")[0] == "True True ['Class & 10', 'Class & 200', 'Class & 30']", done.stderr
