"""Legends and crosswalks: what codes mean."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobertes.errors import InputFileError, LegendError
from cobertes.labels.crosswalk import load_crosswalk
from cobertes.labels.legend import IGNORE_INDEX, Legend, LegendClass, legend_names, load_legend
from helpers.rasters import DATA

FACTS = DATA.parent / "facts"


def legend_of(codes, nodata=0):
    return Legend("test", nodata, tuple(LegendClass(c, f"key-{c}", f"Name {c}", f"#{c:02x}80ff") for c in codes))


def facts(name):
    path = FACTS / name
    if not path.is_file():
        pytest.skip(f"needs {path}: set COBERTES_DATA to the folder of the real data")
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@st.composite
def legends(draw):
    codes = draw(st.lists(st.integers(0, 255), min_size=1, max_size=60, unique=True))
    nodata = draw(st.integers(0, 255).filter(lambda code: code not in codes))
    return legend_of(codes, nodata)


# --- in the package ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", legend_names())
def test_every_packaged_legend_loads_and_survives_json(name):
    legend = load_legend(name)
    assert legend.name == name
    assert Legend.from_dict(json.loads(json.dumps(legend.to_dict()))) == legend


def test_catalonia_12_is_as_published():
    rows = facts("catalonia-12.csv")
    expected = tuple(
        LegendClass(int(r["code"]), r["key"], r["name"], r["colour"]) for r in rows if r["code"] != "0"
    )
    legend = load_legend("catalonia-12")
    assert legend.classes == expected
    assert legend.nodata == 0


def test_icgc_41_and_its_crosswalk_are_as_published():
    rows = facts("icgc-41.csv")
    legend = load_legend("icgc-41")
    assert [(c.code, c.name, c.colour) for c in legend.classes] == [
        (int(r["code"]), r["english"], r["colour"]) for r in rows
    ]
    assert load_crosswalk("icgc-41").codes == {int(r["code"]): int(r["catalonia12"]) for r in rows}


def test_worldcover_and_nlcd_have_their_own_codes():
    assert load_legend("worldcover").codes.tolist() == [10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100]
    assert load_legend("nlcd-8").codes.tolist() == list(range(1, 9))
    assert {11, 21, 31, 41, 52, 71, 81, 95} <= set(load_legend("nlcd").codes.tolist())


# --- codes and indices -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(legends())
def test_every_code_comes_back_as_itself_and_the_last_class_is_not_lost(legend):
    index, code = legend.index_table(), legend.code_table()
    np.testing.assert_array_equal(code[index[legend.codes]], legend.codes)
    np.testing.assert_array_equal(index[legend.codes], np.arange(len(legend)))
    others = np.setdiff1d(np.arange(256), legend.codes)
    assert (index[others] == IGNORE_INDEX).all()
    assert (code[len(legend) :] == legend.nodata).all()
    assert index[legend.classes[-1].code] == len(legend) - 1


def test_255_classes_fit():
    legend = legend_of(range(255), nodata=255)
    assert legend.index_table()[254] == 254
    assert legend.index_table()[255] == IGNORE_INDEX
    assert legend.code_table()[IGNORE_INDEX] == 255


def test_a_class_is_found_by_key_name_and_code_with_near_misses():
    legend = load_legend("catalonia-12")
    for what in ("water", "Watercourses and water bodies", 12, "12"):
        assert legend.index(what) == 11
    with pytest.raises(LegendError, match=r"unknown class 'wter' in legend 'catalonia-12'\. Did you mean 'water'"):
        legend.find("wter")
    with pytest.raises(LegendError, match="unknown class '13'"):
        legend.find(13)


def test_a_legend_without_some_classes_keeps_the_codes_of_the_others():
    legend = load_legend("worldcover").without(["snow", 90, "100"])
    assert legend.codes.tolist() == [10, 20, 30, 40, 50, 60, 80, 95]
    assert legend.index_table()[90] == IGNORE_INDEX
    with pytest.raises(LegendError, match="legend 'test' has no classes"):
        legend_of([1, 2]).without([1, 2])


def test_categories_hold_names_and_colours_by_code():
    categories = legend_of([10, 200]).categories()
    assert categories.names == {10: "Name 10", 200: "Name 200"}
    assert categories.colours == {10: "#0a80ff", 200: "#c880ff"}


# --- files of one's own ------------------------------------------------------------------------------------

TOML = """
name = "mine"
nodata = 255
[[class]]
code = 0
key = "land"
colour = "#00FF00"
[[class]]
code = 10
key = "sea"
name = "The sea"
colour = "#0000ff"
"""


def test_a_legend_of_one_s_own_is_found_beside_the_project(tmp_path):
    (tmp_path / "mine.toml").write_text(TOML)
    legend = load_legend("mine.toml", tmp_path)
    assert (legend.name, legend.nodata) == ("mine", 255)
    assert legend.classes == (
        LegendClass(0, "land", "land", "#00ff00"),
        LegendClass(10, "sea", "The sea", "#0000ff"),
    )
    assert load_legend(str(tmp_path / "mine.toml")) == legend


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("code = 10", "code = 0"), "has the code 0 more than once"),
        (('key = "sea"', 'key = "land"'), "has the key land more than once"),
        (('"#0000ff"', '"blue"'), "colour 'blue' of 'sea' is not #rrggbb"),
        (("code = 10", "code = 255"), r"code 255 \('sea'\) is nodata too\. Give nodata a code that is no class"),
        (("nodata = 255", "nodata = 255\nalso-nodata = [3, 10]"), r"code 10 \('sea'\) is nodata too"),
        (("nodata = 255", 'nodata = 255\nalso-nodata = ["3"]'), "'3' is not a whole number"),
        (
            ("code = 10", "code = 256"),
            r'code 256 .* must be 0 to 255\. Number the classes .* by a crosswalk: 256 = "sea"',
        ),
        (("nodata = 255", "nodata = 256"), "nodata 256 must be a code from 0 to 255"),
        (("nodata = 255", "nodata = -1"), "nodata -1 must be a code"),
        (("code = 10", "code = 1.5"), r"1\.5 is not a whole number"),
        (("code = 10", 'code = "10"'), "is not a whole number"),
        (('colour = "#0000ff"', 'color = "#0000ff"'), "needs `name` and .*colour"),
        (('name = "mine"', ""), "needs `name`"),
        (("[[class]]", "[[classes]]"), r"needs `name` and \[\[class\]\]"),
        (("[[class]]", "class = 3 #"), r"not valid TOML|needs `name`"),
        (("nodata = 255", "nodata = "), "not valid TOML"),
    ],
)
def test_bad_legends_are_told_what_is_wrong(tmp_path, change, message):
    (tmp_path / "mine.toml").write_text(TOML.replace(*change))
    with pytest.raises(LegendError, match=message):
        load_legend("mine.toml", tmp_path)


def test_missing_legends_offer_the_near_miss(tmp_path):
    with pytest.raises(LegendError, match=r"no legend 'worldcovr'\. Did you mean 'worldcover'\? Or name a TOML"):
        load_legend("worldcovr")
    with pytest.raises(InputFileError, match=r"no legend file at .*mine\.toml"):
        load_legend("mine.toml", tmp_path)
    with pytest.raises(LegendError, match="no legend 'sub/mine'"):
        load_legend("sub/mine", tmp_path)
    (tmp_path / "latin.toml").write_bytes('name = "català"'.encode("latin-1"))
    with pytest.raises(LegendError, match=r"latin\.toml is not valid TOML"):
        load_legend("latin.toml", tmp_path)
