"""The report on accuracy: uncertainty shown as such, parts of the ground, worst tiles, colours for the colour-blind."""

import json
import math
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from cobertes.labels.legend import legend_names, load_legend
from cobertes.report.colour_blind_palette import SIGHTS, _rgb, _seen, safe_colours
from cobertes.report.worst_tiles import _mistake
from helpers.reports import LEGEND, an_assessment, files_of, report, scores


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return files_of(tmp_path_factory.mktemp("place"))


def brief(pixels, accuracy, miou=0.5):
    return {"pixels": pixels, "overall_accuracy": accuracy, "miou": miou}


def spread(low, high, units=9):
    names = ("iou", "dice", "producers_accuracy", "users_accuracy")
    return {"units": units} | {name: [low, high] for name in names}


def a_full_assessment(**changed):
    """With all that the evaluate stage of today writes."""
    return an_assessment(
        model=scores(rare=0.05),
        used_for=["choosing the epoch", "lowering the learning rate"],
        intervals={
            "level": 0.95, "units": 9, "miou": [0.64, 0.77], "overall_accuracy": [0.78, 0.84],
            "classes": {"forest": spread(0.75, 0.86), "rare": spread(0.01, 0.31, 3), "water": spread(0.4, 0.7)},
        },
        differences={"random_forest": {"miou": {"difference": 0.09, "interval": [0.02, 0.16], "verdict": "better"}}},
        block_scores=[
            {"area": "here <i>", "window": [0, 16, 12, 16], "pixels": 180, "overall_accuracy": 0.5},
            {"area": "here <i>", "window": [12, 16, 12, 16], "pixels": 170, "overall_accuracy": 0.9},
            {"area": "here <i>", "window": [12, 0, 12, 16], "pixels": 0, "overall_accuracy": None},
        ],
        areas={"here <i>": brief(350, 0.7), "there": brief(900, 0.6), "empty": brief(0, None, None)},
        seasons={"april": brief(300, 0.6), "august": brief(300, 0.7)},
        purity={"mean": 0.93, "groups": {"pure": brief(5000, 0.95), "75 to 99 %": brief(2000, 0.8),
                                         "50 to 74 %": brief(900, 0.6), "under 50 %": brief(0, None),
                                         "mixed": brief(2900, 0.75)}},
        boundaries={
            "zones": {"within 1 px": brief(2000, 0.6), "within 3 px": brief(3000, 0.7), "beyond 3 px": brief(5000, 0.99)},
            "boundary_iou": {"1 px": {"mean": 0.41, "classes": {}}, "3 px": {"mean": 0.61, "classes": {}}},
        },
        worst_tiles=[
            {"area": "here <i>", "window": [0, 16, 8, 8], "accuracy": 0.25, "pixels": 64},
            {"area": "gone", "window": [0, 0, 8, 8], "accuracy": 0.3, "pixels": 64},
        ],
    ) | changed  # fmt: skip


def test_a_class_of_few_pixels_is_an_interval_and_not_a_number(place, tmp_path):
    page, _ = report(tmp_path, place, assessment=a_full_assessment())
    row = page.row("5", "Rare")
    assert row[2] == "0.010 to 0.310"
    assert not any(cell.startswith("0.05") for cell in row)
    assert "120in 3 of 9" in row
    assert page.row("3", "Forest")[2].startswith("0.8120.750 to 0.860")
    # in one block there is no interval either
    few = a_full_assessment()
    few["intervals"]["classes"]["rare"] = spread(None, None, 1)
    page, _ = report(tmp_path, place, assessment=few)
    assert page.row("5", "Rare")[2] == "≈ 0.05?"


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (
            {"difference": 0.09, "interval": [0.02, 0.16], "verdict": "better"},
            "That is better than a random forest",
        ),
        (
            {"difference": -0.09, "interval": [-0.2, -0.02], "verdict": "worse"},
            "That is worse than a random forest",
        ),
        ({"difference": 0.01, "interval": [-0.02, 0.04], "verdict": "cannot tell"}, "may be as good"),
        (
            {"difference": 0.09, "interval": [None, None], "verdict": "cannot tell"},
            "0.090 above that of a random forest",
        ),
    ],
)
def test_the_summary_says_better_only_where_blocks_can_tell(place, tmp_path, difference, words):
    assessment = a_full_assessment(differences={"random_forest": {"miou": difference}})
    page, _ = report(tmp_path, place, assessment=assessment)
    assert words in " ".join(page.text.split())


def test_the_summary_has_intervals_and_what_the_blocks_were_used_for(place, tmp_path):
    page, _ = report(tmp_path, place, assessment=a_full_assessment())
    text = " ".join(page.text.split())
    assert "95\u00a0%: 0.640 to 0.770" in page.text.replace("&nbsp;", "\u00a0")
    assert "served for choosing the epoch, lowering the learning rate" in text
    assert "9 independent pieces of ground): so few that they are rough" in text
    assert "weakest at Water bodies" in text


def test_intervals_of_single_tiles_are_said_to_be_too_narrow(place, tmp_path):
    assessment = a_full_assessment()
    assessment["intervals"]["independent"] = False
    page, _ = report(tmp_path, place, assessment=assessment)
    assert "Intervals are too narrow" in page.text
    assert "independent pieces of ground" not in page.text


def test_very_many_blocks_of_a_split_are_joined(place, tmp_path, monkeypatch):
    monkeypatch.setattr("cobertes.report.report.MOST_BLOCKS", 11)
    split = {"block": 4, "guard": 0, "areas": {"here <i>": ["ttvv"] * 3}}
    _, text = report(tmp_path, place, assessment=a_full_assessment(), split=split)
    chart = re.search(r'<svg class="blocks"[^>]*aria-label="Split of .*?</svg>', text, re.DOTALL).group(0)
    rectangles = re.findall(r'<rect class="b-(\w)" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', chart)
    assert [(kind, x, y) for kind, x, y, *_ in rectangles] == [("t", "0", "0"), ("v", "8", "0")]


def test_parts_of_the_ground_have_their_own_scores(place, tmp_path):
    page, _ = report(tmp_path, place, assessment=a_full_assessment())
    assert page.row("pure") == ["pure", "95.0\u00a0%".replace("\u00a0", " "), "0.500", "5,000"]
    assert page.row("all mixed pixels")[3] == "2,900"
    assert not any(row and row[0] == "under 50 %" for row in page.rows)
    assert page.row("within 1 px")[1] == "60.0 %"
    assert page.row("august")[1] == "70.0 %"
    assert "Boundary IoU: 0.410 at 1 px, 0.610 at 3 px" in " ".join(page.text.split())
    names = [row[0].strip() for row in page.rows if row and row[0].strip() in ("here <i>", "there", "empty")]
    assert names[:2] == ["there", "here <i>"]  # the worst first, none for an area without pixels


def test_where_no_class_has_many_pixels_nothing_is_said_of_a_thousand(place, tmp_path):
    few = a_full_assessment(miou_classes=["forest", "rare", "water"])
    for one in few["model"]["classes"].values():
        one["support"] = min(one["support"], 900)
    text = " ".join(report(tmp_path, place, assessment=few)[0].text.split())
    assert "averaged over all classes of the validation blocks: none has 1,000 reference pixels" in text
    assert "at least 1,000" not in text
    assert "at least 1,000 reference pixels" in report(tmp_path, place, assessment=a_full_assessment())[0].text


def test_without_scripts_nothing_is_offered_that_needs_them(place, tmp_path):
    page, _ = report(tmp_path, place, assessment=a_full_assessment())
    groups = [one for tag, one in page.tags if tag == "div" and one.get("class", "").startswith("choice")]
    assert len(groups) == 2
    assert all("hidden" in one for one in groups)
    buttons = [one for tag, one in page.tags if tag == "button" and not {"data-by", "data-palette"} & set(one)]
    assert len(buttons) > 5
    assert all("disabled" in one for one in buttons)


def luminance(colour):
    """Relative, of WCAG 2."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


def test_cells_of_the_matrix_are_legible_at_every_share(place, tmp_path):
    _, text = report(tmp_path, place, assessment=a_full_assessment())
    (switch,) = {*re.findall(r'toggle\("strong", share > ([\d.]+)\)', text)}
    weak = re.findall(r"--cell-ink: (#\w+);", text) or re.findall(r"--ink: (#\w+);", text)
    themes = list(zip(
        re.findall(r"--paper: (#\w+);", text), re.findall(r"--heat: ([\d, ]+);", text), weak,
        re.findall(r"--heat-ink: (#\w+);", text), strict=True,
    ))  # fmt: skip
    assert len(themes) == 2  # light and dark
    for paper, heat, below, above in themes:
        for share in np.linspace(0, 1, 201):
            cell = rgb(paper) + (np.array([float(x) for x in heat.split(",")]) - rgb(paper)) * share
            dark, light = sorted([luminance(cell), luminance(rgb(above if share > float(switch) else below))])
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (paper, share)


def rgb(text):
    return 255 * np.array(to_rgb(text))


def test_the_mistake_of_a_worst_tile_is_that_of_judged_ground(place, tmp_path):
    labels, predicted = np.full((4, 8), 3, np.uint8), np.full((4, 8), 3, np.uint8)
    predicted[:, :6] = 12  # on training ground
    predicted[0, 6] = 5
    judged = np.indices((4, 8))[1] >= 6
    assert _mistake(LEGEND, labels, predicted, judged) == "Forest mapped as Rare <b>&"
    assert _mistake(LEGEND, labels, predicted, ~judged) == "Forest mapped as Water bodies"
    # the whole way: blocks of the assessment that leave most of the tile out
    wrong = "mapped as"
    whole, _ = report(tmp_path, place, assessment=a_full_assessment())
    assert wrong in whole.text[whole.text.index("25.0") :]
    aside = a_full_assessment(
        block_scores=[{"area": "here <i>", "window": [12, 0, 12, 16], "pixels": 9, "overall_accuracy": 0.5}]
    )
    none, _ = report(tmp_path, place, assessment=aside)
    assert none.text.count(wrong) < whole.text.count(wrong)


def test_blocks_are_a_map_from_the_worst_to_the_best(place, tmp_path):
    _, text = report(tmp_path, place, assessment=a_full_assessment())
    chart = re.search(
        r'<svg class="blocks"[^>]*aria-label="Accuracy of the 2 judged.*?</svg>', text, re.DOTALL
    ).group(0)
    fills = re.findall(r'<rect style="fill:(#\w+)" x="(\d+)" y="(\d+)"', chart)
    assert fills == [("#00224e", "16", "0"), ("#fee838", "16", "12")]  # cividis: low is dark, high is light
    assert re.findall(r">(\d+)</text>", chart) == ["50", "90"]


def test_the_worst_tiles_are_shown_pixel_by_pixel(place, tmp_path):
    page, _ = report(tmp_path, place, assessment=a_full_assessment())
    shown = [alt for alt in page.images if "of a tile of here" in alt]
    assert [alt.split()[0] for alt in shown] == ["April", "August", "Labels", "Predicted", "Confidence"]
    labels, predicted = page.picture("Labels of a tile"), page.picture("Predicted of a tile")
    assert labels.shape == (8, 8, 4)
    assert (labels[:, :4, :3] == (0, 0, 220)).all()
    assert (labels[:, 4:, :3] == (0x33, 0xCC, 0x33)).all()
    assert (predicted[:, :, :3] == (0, 0, 220)).all()
    assert "25.0 % right, mostly Forest mapped as Water bodies" in " ".join(page.text.split())
    assert "gone" not in page.text


def test_an_older_assessment_still_gives_a_report(place, tmp_path):
    page, _ = report(tmp_path, place)
    assert "Where it is right" not in page.text
    assert "0.701" not in page.text


def test_the_files_that_went_in_are_listed(place, tmp_path):
    page, _ = report(tmp_path, place)
    row = page.row("here <i>", "april", "april.tif")
    assert int(row[3].replace(",", "")) > 100


def test_calibration_is_drawn_and_said(place, tmp_path):
    def table(shift):
        return [
            {"from": i / 20, "to": (i + 1) / 20, "pixels": 30 if i == 10 else 200, "confidence": i / 20 + 0.025,
             "accuracy": i / 20 + 0.025 - shift}
            for i in range(10, 20)
        ]  # fmt: skip

    facts = {
        "temperature": 1.834, "pixels": 1830, "reported_on": "validation, each half with the temperature of the other",
        "halves": [1.8, 1.9], "expected_calibration_error": {"before": 0.1, "after": 0.004},
        "reliability": {"before": table(0.1), "after": table(0.0)},
        "risk_coverage": [{"coverage": 0.5, "risk": 0.02, "confidence": 0.9},
                          {"coverage": 1.0, "risk": 0.2, "confidence": 0.5}],
    }  # fmt: skip
    page, text = report(tmp_path, place, assessment=a_full_assessment(), calibration=facts)
    words = " ".join(page.text.split())
    assert "off by 10.0 % on average" in words
    assert "temperature of 1.83, by 0.4 %" in words
    assert "are then 80.0 % sure on average are right 80.0 % of the time" in words
    assert "Of the surer half of the map 2.0 % is wrong, of all of it 20.0 %" in words
    chart = re.search(r'aria-label="Accuracy by confidence.*?</svg>', text, re.DOTALL).group(0)
    calibrated = re.search(r'<path class="curve c0" d="M([^"]*)"', chart).group(1)
    # on the diagonal, without the bin of 30 pixels
    assert calibrated.startswith("183.8 97.0L")
    assert calibrated.count("L") == 8


# --- colours -----------------------------------------------------------------------------------------------


def closest_pair(colours, sight="normal"):
    """CIELAB distance of the two colours that are hardest to tell apart, as some eyes see them."""
    lab = _seen(np.array([_rgb(colour) for colour in colours]))[list(SIGHTS).index(sight)]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    return distance[np.triu_indices(len(colours), 1)].min()


@pytest.mark.parametrize("name", legend_names())
def test_safe_colours_are_told_apart_by_all_eyes(name):
    legend = load_legend(name)
    safe = safe_colours(legend.colours)
    assert len(set(safe)) == len(legend)
    assert all(re.fullmatch(r"#[0-9a-f]{6}", colour) for colour in safe)
    worst = min(closest_pair(safe, sight) for sight in SIGHTS)
    assert worst > (19 if len(legend) <= 12 else 7 if len(legend) <= 50 else 1)
    assert worst > min(closest_pair(legend.colours, sight) for sight in SIGHTS)
    assert safe == safe_colours(legend.colours)


def test_simulated_sight_confuses_what_the_colour_blind_confuse():
    pair = ["#a00000", "#3f3f00"]  # a red and an olive of much the same look to a protanope
    assert closest_pair(pair, "protanopia") < closest_pair(pair, "normal") / 2
    assert closest_pair(["#000000", "#ffffff"]) == pytest.approx(100, abs=0.1)


PROBE = """<script>addEventListener("load", async () => {
  const found = {}, root = getComputedStyle(document.documentElement);
  const img = document.querySelector("img[data-classes]");
  const dot = image => { const c = document.createElement("canvas"); c.width = image.naturalWidth; c.height = image.naturalHeight;
    const x = c.getContext("2d"); x.drawImage(image, 0, 0); return [...x.getImageData(c.width - 1, 0, 1, 1).data]; };
  found.before = [dot(img), root.getPropertyValue("--k3").trim()];
  document.querySelector("[data-palette=safe]").click();
  await img.decode();
  found.after = [dot(img), root.getPropertyValue("--k3").trim()];
  document.querySelector("[data-palette=own]").click();
  await img.decode();
  found.again = dot(img);
  found.rows = [...document.querySelectorAll("table.sortable")].every(table => {
    const order = () => [...table.tBodies[0].rows].map(row => row.textContent);
    return [...table.querySelectorAll("thead button")].every(button => { button.click(); const a = order(); button.click();
      return a.length < 2 || JSON.stringify(a) !== JSON.stringify(order()) || new Set([...table.tBodies[0].rows].map(
        r => r.children[button.closest("th").cellIndex].dataset.sort)).size < 2; });
  });
  found.pictures = [...document.images].every(image => image.complete && image.naturalWidth);
  found.overflow = document.documentElement.scrollWidth > innerWidth;
  document.title = JSON.stringify(found);
})</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_in_a_browser_colours_change_and_back_and_all_tables_sort(place, tmp_path, width):
    _, text = report(tmp_path, place, assessment=a_full_assessment())
    (tmp_path / "probe.html").write_text(text.replace("</body>", PROBE), encoding="utf-8")
    # a browser's window has at least 500 px, a frame in it may be narrower
    frame = f'<iframe src="probe.html" style="width:{width}px;height:900px" onload="setTimeout(() => {{'
    frame += 'document.title = this.contentDocument.title}, 1500)"></iframe>'
    (tmp_path / "frame.html").write_text(f"<!doctype html><title>none</title>{frame}", encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = ["chromium", *flags.split(), "--disable-component-update", "--disable-sync", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'user'}", "--window-size=1400,1000", "--enable-logging=stderr"]
    command += ["--allow-file-access-from-files", "--virtual-time-budget=8000"]
    done = subprocess.run(
        [*command, f"file://{tmp_path / 'frame.html'}"], capture_output=True, text=True, timeout=60, check=True
    )
    found = json.loads(unescape(re.search("<title>(.*?)</title>", done.stdout).group(1)))
    assert "CONSOLE" not in done.stderr, done.stderr
    safe = safe_colours(LEGEND.colours)
    # the last dot of the first row of the labels is forest
    assert found["before"] == [[0x33, 0xCC, 0x33, 255], "#33cc33"]
    assert found["after"] == [[*(int(safe[0][i : i + 2], 16) for i in (1, 3, 5)), 255], safe[0]]
    assert found["again"] == found["before"][0]
    assert found["rows"] is True
    assert found["pictures"] is True
    assert found["overflow"] is False


def test_numbers_that_are_not_known_stay_so():
    from cobertes.report.html import between, known_range, percent, score

    assert known_range([0.1, math.nan]) is None
    assert known_range(None) is None
    assert (score(math.nan), percent(None), between(None)) == ("–", "–", "")
    assert between((0.1, 0.25), "%") == "10.0 to 25.0\u00a0%"
