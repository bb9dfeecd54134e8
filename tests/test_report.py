"""The report: one HTML file that holds everything, says what is known and no more, and is the right way up."""

import io
import json
import math
import re
import shutil
import subprocess
import tomllib
from html import unescape
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import rasterio

from cobertes.errors import BandMismatchError
from cobertes.geo.area import Area
from cobertes.geo.scene import open_scene
from cobertes.report.charts import draw_chart
from cobertes.report.thumbnails import (
    cell_size,
    count_codes,
    disagreement,
    read_codes,
    scene_cells,
    scene_pictures,
)
from cobertes.toml_io import toml_text
from helpers.reports import (
    HEIGHT,
    LEGEND,
    WIDTH,
    an_assessment,
    files_of,
    report,
    scores,
    write_codes,
    write_scene,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return files_of(tmp_path_factory.mktemp("place"))


def test_the_report_is_one_file_that_needs_no_other(place, tmp_path):
    page, text = report(tmp_path, place)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert not re.search(r"https?://|url\(|@import", text)
    for tag, attributes in page.tags:
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:")), (tag, attributes)
    assert any("default-src 'none'" in (a.get("content") or "") for _, a in page.tags)


def test_names_are_shown_as_text_never_as_markup(place, tmp_path):
    page, _ = report(tmp_path, place)
    assert not any(tag == "i" and not attributes for tag, attributes in page.tags)
    assert "Zion <b>&" in page.text
    assert "Rare <b>&" in page.text
    assert "here <i>" in page.text


def test_the_summary_says_how_good_and_what_the_blocks_were_used_for(place, tmp_path):
    page, _ = report(tmp_path, place)
    words = " ".join(page.text.split())
    assert "On 8,000 labelled pixels of the validation blocks" in words
    assert "mean IoU (mIoU) of 0.700 and an overall accuracy of 81.2 %" in words
    assert "0.090 above that of a random forest" in words
    assert "Validation: also used to choose the epoch." in words
    assert "25.0 % of it is mapped as Forest" in words  # 500 of 2000 water pixels
    assert page.row("U-Net")[1] == "0.700"
    assert page.row("Random forest")[1] == "0.610"
    assert page.row("Most frequent class")[1] == "0.200"


def test_a_test_split_and_a_stronger_forest_are_said(place, tmp_path):
    stronger = {"random_forest": scores(miou=0.75)}
    page, _ = report(tmp_path, place, assessment=an_assessment(split="test", baselines=stronger))
    words = " ".join(page.text.split())
    assert "also used to choose the epoch" not in words
    assert "pixels of the test blocks" in words
    assert "0.050 below that of a random forest" in words


def test_an_absent_class_is_neither_0_nor_1(place, tmp_path):
    page, _ = report(tmp_path, place)
    code, name, *values = page.row("5", "Rare")
    assert (code, name) == ("5", "Rare <b>&not in the validation blocks")
    assert values == ["–"] * 5 + ["0"]
    assert page.row("5 Rare")[1:] == ["–"] * 3
    assert "nan" not in page.text.lower()


def test_a_class_of_few_pixels_is_listed_as_not_averaged(place, tmp_path):
    page, _ = report(tmp_path, place, assessment=an_assessment(model=scores(rare=0.05)))
    assert page.row("5", "Rare")[1:3] == ["Rare <b>&few pixels: not averaged", "≈ 0.05?"]
    assert "Worst classWater bodies" in "".join(line.strip() for line in page.text.split("\n"))


def test_the_class_table_holds_our_scores_beside_the_forest_s(place, tmp_path):
    page, text = report(tmp_path, place)
    assert page.row("12", "Water")[2:] == ["0.588", "0.432", "0.588", "58.8 %", "–", "2,000"]
    assert any(tag == "table" and a.get("class") == "sortable" for tag, a in page.tags)
    assert 'querySelectorAll("table.sortable")' in text
    assert all("scope" in a or "rowspan" in a or "colspan" in a for tag, a in page.tags if tag == "th")


def test_the_confusion_matrix_names_rows_as_reference_and_columns_as_predicted(place, tmp_path):
    page, _ = report(tmp_path, place)
    assert page.row("Reference")[1].startswith("Predicted")
    assert page.row("3 Forest", "90") == ["3 Forest", "90", "·", "10"]
    cell = next(a for _, a in page.tags if a.get("title", "").startswith("Water bodies mapped as Forest"))
    assert (cell["data-row"], cell["data-count"]) == ("0.25", "500")
    assert float(cell["data-col"]) == pytest.approx(500 / 5900, abs=1e-4)


def test_a_map_is_the_right_way_up_in_the_legend_s_colours(place, tmp_path):
    page, _ = report(tmp_path, place)
    dots = page.picture("Predicted map")
    assert dots.shape == (HEIGHT, WIDTH, 4)
    assert dots[0, 0, 3] == 0
    assert dots[0, -1].tolist() == [0, 0, 0xDC, 255]
    assert dots[-1, 0].tolist() == [0xFF, 0x96, 0x32, 255]
    assert dots[-1, 8].tolist() == [0x33, 0xCC, 0x33, 255]


def test_confidence_and_disagreement_are_empty_where_nothing_is_known(place, tmp_path):
    page, _ = report(tmp_path, place)
    assert page.picture("Confidence")[..., 3].tolist() == page.picture("Predicted map")[..., 3].tolist()
    assert "80\u00a0% on average" in page.text
    differs = page.picture("Disagreement")
    assert differs[10, 5].tolist() == differs[10, 18].tolist() != differs[10, 25].tolist()


def test_seasons_share_a_stretch(place, tmp_path):
    page, _ = report(tmp_path, place)
    april, august = page.picture("Scene of here <i>, april"), page.picture("Scene of here <i>, august")
    assert (august[..., :3] >= april[..., :3]).all()
    assert (august[12, 10, :3] > april[12, 10, :3]).all()
    assert april[0, 0, 1] < april[-1, 0, 1]  # green grows with the row: the top is the top
    assert april[0, 0, 2] < april[0, -1, 2]


def test_areas_are_counted_in_hectares(place, tmp_path):
    page, _ = report(tmp_path, place)
    water = int((np.mgrid[:HEIGHT, :WIDTH][1] >= 16).sum())
    assert page.row("12", "Water", f"{water / 100:.1f}")[3] == str(water)
    assert "Counted pixels, not an unbiased area estimate." in page.text


def test_without_a_crs_areas_are_pixels(place, tmp_path):
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint16", "height": HEIGHT, "width": WIDTH}
    with rasterio.open(tmp_path / "bare.tif", "w", **profile) as file:
        file.write(np.full((3, HEIGHT, WIDTH), 7, np.uint16))
    scene = open_scene([str(tmp_path / "bare.tif")], ["red", "green", "blue"])
    (tmp_path / "out").mkdir()
    page, _ = report(tmp_path / "out", place, areas=[Area("here <i>", {"april": scene})])
    assert "areas are given in pixels only" in page.text
    assert "Hectares" not in page.text


def test_a_predict_only_project_has_no_accuracy_sections(place, tmp_path):
    page, text = report(tmp_path, place, assessment=None, history=[], labels={}, split=None, model={}, settings={})
    assert "was not judged" in page.text
    assert "Area per class" in page.text
    for word in ("Confusion matrix", "mIoU", "Disagreement", "Learning", "Split"):
        assert word not in page.text
    assert 'id="maps"' in text


def test_areas_without_map_labels_or_confidence_show_their_scene(place, tmp_path):
    page, _ = report(tmp_path, place, maps={}, labels={}, confidence={})
    assert len(page.images) == 2
    assert "Area per class" not in page.text


def test_of_many_areas_those_with_validation_ground_are_shown(place, tmp_path):
    scenes = {"april": place["areas"][0].scenes["april"]}
    areas = [Area(f"a{i}", scenes) for i in range(9)]
    split = {"block": 32, "guard": 0, "areas": {f"a{i}": ["v" if i in (2, 7) else "t"] for i in range(9)}}
    page, _ = report(tmp_path, place, areas=areas, maps={}, labels={}, confidence={}, split=split)
    assert list(page.images) == ["Scene of a2, april", "Scene of a7, april"]
    assert "2 of 9 areas are shown" in page.text
    assert "training: 7 blocks" in page.text
    assert "validation: 2 blocks" in page.text


def test_the_split_map_draws_every_block_in_its_place(place, tmp_path):
    page, _ = report(tmp_path, place)
    blocks = [a for tag, a in page.tags if tag == "rect"]
    assert [b["class"] for b in blocks] == ["b-t", "b-v", "b-g", "b-none"]
    assert [(b["x"], b["y"], b["width"], b["height"]) for b in blocks[1:3]] == [
        ("16", "0", "16", "16"),
        ("0", "16", "16", "8"),
    ]


def test_the_last_block_of_a_row_reaches_the_edge(place, tmp_path):
    split = {"block": 14, "guard": 0, "areas": {"here <i>": ["tv", "vt"]}}
    page, _ = report(tmp_path, place, split=split)
    blocks = [a for tag, a in page.tags if tag == "rect"]
    assert [(b["x"], b["y"], b["width"], b["height"]) for b in blocks] == [
        ("0", "0", "14", "14"),
        ("14", "0", "18", "14"),
        ("0", "14", "14", "10"),
        ("14", "14", "18", "10"),
    ]


def test_an_old_report_survives_a_failure(place, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("old")
    with pytest.raises(BandMismatchError, match="no band 'rouge' to show"):
        report(tmp_path, place, rgb=["rouge", "green", "blue"])
    assert out.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_settings_read_as_toml():
    settings = {"name": "a", "train": {"epochs": 4, "minutes": None}, "area": [{"name": "x"}], "out": Path("b")}
    read = tomllib.loads(toml_text(settings))
    assert read == {"name": "a", "out": "b", "train": {"epochs": 4}, "area": [{"name": "x"}]}


@pytest.mark.parametrize("nodata", [0, 65535])
def test_cells_are_means_of_valid_pixels(tmp_path, nodata):
    rng = np.random.default_rng(0)
    values = rng.integers(1, 1000, (3, 50, 70))
    values[:, :20, :20] = nodata
    scene = write_scene(tmp_path / "s.tif", values, nodata)
    cells = scene_cells(scene, 8)
    assert cells.shape == (3, 7, 9)
    assert np.isnan(cells[:, 0, 0]).all()
    block = values[:, 16:24, 16:24].astype(float)
    assert cells[:, 2, 2] == pytest.approx(block[:, block[0] != nodata].mean(axis=1))
    assert cells[:, 6, 8] == pytest.approx(values[:, 48:, 64:].mean(axis=(1, 2)))


def test_overviews_give_the_same_picture_as_all_pixels(tmp_path):
    rows, cols = np.mgrid[:256, :256]
    values = np.stack([100 + rows, 100 + cols, 100 + rows + cols])
    slow = scene_cells(write_scene(tmp_path / "s.tif", values), 8)
    with rasterio.open(tmp_path / "s.tif", "r+") as file:
        file.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
    assert scene_cells(open_scene([str(tmp_path / "s.tif")]), 8) == pytest.approx(slow, abs=1)


def test_large_codes_are_reduced_to_their_commonest(tmp_path):
    codes = np.full((90, 120), 3, np.uint8)
    codes[:30, :40] = 12
    codes[5:7, 5:7] = 5
    path = write_codes(tmp_path / "m.tif", codes)
    cell = cell_size(codes.shape, 12)
    small = read_codes(path, cell)
    assert (cell, small.shape) == (10, (9, 12))
    assert small.tolist() == codes[1::10, 1::10].tolist()
    assert np.flatnonzero(count_codes(path)).tolist() == [3, 5, 12]
    assert count_codes(path)[12] == 1200 - 4


def test_disagreement_counts_every_labelled_pixel(tmp_path):
    rng = np.random.default_rng(1)
    a, b = (rng.choice(np.array([0, 3, 5, 12], np.uint8), (45, 64)) for _ in "ab")
    shares = disagreement(write_codes(tmp_path / "a.tif", a), write_codes(tmp_path / "b.tif", b), LEGEND, 10)
    cut = slice(40, 45), slice(60, 64)
    known = (a[cut] > 0) & (b[cut] > 0)
    assert shares.shape == (5, 7)
    assert shares[4, 6] == pytest.approx((a[cut] != b[cut])[known].mean())
    other = write_codes(tmp_path / "c.tif", a[:40])
    assert disagreement(other, tmp_path / "b.tif", LEGEND, 10) is None


def test_a_scene_without_a_valid_pixel_is_an_empty_picture(tmp_path):
    scene = write_scene(tmp_path / "s.tif", np.zeros((3, 8, 8)))
    (picture,) = scene_pictures([scene], ["red", "green", "blue"], 1)
    assert (matplotlib.image.imread(io.BytesIO(picture.png))[..., 3] == 0).all()


def test_curves_break_at_gaps_and_skip_what_is_unknown():
    chart = draw_chart("t", [1, 2, 3, 4], {"a": [0.1, None, 0.3, 0.4], "b": [None] * 4}, mark=3)
    (curve,) = chart.curves
    assert curve.path.count("M") == 2
    assert (curve.last, len(curve.dots)) == ("0.4", 3)
    assert draw_chart("t", [1], {"a": [None]}, mark=None) is None
    rate = draw_chart("t", [1, 2], {"a": [0.001, 0.0]}, log=True, mark=9)
    assert [text for _, text in rate.y_ticks] == ["1e-3", "2e-3", "5e-3", "1e-2"]
    assert rate.mark is None


def test_the_template_s_words_are_escaped_once(place, tmp_path):
    _, text = report(tmp_path, place)
    assert "&amp;amp;" not in text
    assert "&amp;lt;" not in text
    assert unescape("Rare &lt;b&gt;&amp;") in unescape(text)


PROBE = """<script>addEventListener("load", () => {
  const table = document.querySelector("#classes table"), found = {};
  const order = () => [...table.tBodies[0].rows].map(row => row.children[0].textContent.trim());
  table.querySelectorAll("thead button")[2].click();
  found.falling = order();
  table.querySelectorAll("thead button")[2].click();
  found.rising = order();
  document.querySelector("[data-by=col]").click();
  found.byColumn = [...document.querySelectorAll(".matrix tbody tr")].map(row => row.children[1].textContent);
  document.querySelector(".zoom").click();
  found.wide = document.querySelectorAll("figure.wide").length;
  found.pictures = [...document.images].filter(image => image.complete && image.naturalWidth).length;
  found.overflow = document.documentElement.scrollWidth > innerWidth;
  document.title = JSON.stringify(found);
})</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
@pytest.mark.parametrize("width", [500, 1280])
def test_in_a_browser_tables_sort_pictures_load_and_nothing_complains(place, tmp_path, width):
    _, text = report(tmp_path, place)
    (tmp_path / "probe.html").write_text(text.replace("</body>", PROBE), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = ["chromium", *flags.split(), "--disable-component-update", "--disable-sync", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'user'}", f"--window-size={width},900", "--enable-logging=stderr"]
    done = subprocess.run(
        [*command, f"file://{tmp_path / 'probe.html'}"], capture_output=True, text=True, timeout=60, check=True
    )
    found = json.loads(unescape(re.search("<title>(.*?)</title>", done.stdout).group(1)))
    assert "CONSOLE" not in done.stderr
    assert found == {
        "falling": ["3", "12", "5"],  # the absent class stays last either way
        "rising": ["12", "3", "5"],
        "byColumn": ["92", "·", "8"],
        "wide": 1,
        "pictures": 6,
        "overflow": False,
    }


def test_settings_are_toml_whatever_they_hold():
    settings = {"nodata": math.nan, "scenes": {"april 2018": "a.tif", 'b"c': "b.tif"}}
    found = tomllib.loads(toml_text(settings))
    assert math.isnan(found["nodata"])
    assert found["scenes"] == settings["scenes"]
