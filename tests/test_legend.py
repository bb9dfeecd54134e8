"""Legends and crosswalks: what codes mean."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobertes.errors import InputFileError, LegendError
from cobertes.labels.legend import (
    IGNORE_INDEX,
    Crosswalk,
    Legend,
    LegendClass,
    legend_names,
    load_crosswalk,
    load_legend,
    recode_table,
)
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


def test_the_packaged_legends_are_these():
    assert legend_names() == ["catalonia-12", "icgc-41", "nlcd", "nlcd-8", "worldcover"]


@pytest.mark.parametrize("name", legend_names())
def test_every_packaged_legend_loads_and_survives_json(name):
    legend = load_legend(name)
    assert legend.name == name
    assert len(set(legend.colours)) == len(legend) == len({c.name for c in legend.classes})
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


def test_the_crosswalk_brings_all_41_classes_to_the_12():
    table = recode_table(load_legend("catalonia-12"), crosswalk=load_crosswalk("icgc-41"))
    assert (table[1:42] >= 1).all()
    assert set(table[1:42].tolist()) == set(range(1, 13))
    assert table[0] == 0
    assert (table[42:] == -1).all()


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


# --- translation -------------------------------------------------------------------------------------------


def test_without_a_crosswalk_codes_are_the_legend_s_own():
    table = recode_table(legend_of([7, 2, 250], nodata=9))
    assert {i: int(code) for i, code in enumerate(table) if code >= 0} == {2: 2, 7: 7, 9: 9, 250: 250}


def test_single_codes_go_to_a_class_by_any_name_or_to_nodata():
    legend = load_legend("catalonia-12")
    codes = {19: "bare-soil", 41: "nodata", 50: 12, 51: "Forest", 3: 4, 60: 0, 61: "2"}
    table = recode_table(legend, codes=codes)
    assert [table[c] for c in (19, 41, 50, 51, 3, 60, 61)] == [5, 0, 12, 3, 4, 0, 2]
    with pytest.raises(LegendError, match="Did you mean 'bare-soil'"):
        recode_table(legend, codes={19: "bare-sol"})
    with pytest.raises(LegendError, match="code 300 is out of range"):
        recode_table(legend, codes={300: "water"})


def test_classes_not_to_be_learnt_become_nodata_wherever_they_come_from():
    legend = load_legend("catalonia-12")
    crosswalk = load_crosswalk("icgc-41")
    table = recode_table(legend, crosswalk=crosswalk, codes={200: "water"}, as_nodata=["water", 5])
    sources = [s for s, target in crosswalk.codes.items() if target in (12, 5)]
    assert (table[[*sources, 200]] == 0).all()
    assert table[1] == 1


def test_the_map_s_own_nodata_is_known_unless_it_is_a_class():
    legend = legend_of([1, 2])
    assert recode_table(legend, source_nodata=255.0)[255] == 0
    assert recode_table(legend, source_nodata=2.0)[2] == 2
    for beyond in (-9999.0, 1e9, float("nan"), None):
        np.testing.assert_array_equal(recode_table(legend, source_nodata=beyond), recode_table(legend))


def test_single_codes_win_over_the_crosswalk_and_what_neither_lists_is_unknown():
    crosswalk = Crosswalk("mine", {1: 2, 5: "key-1", 6: "nodata"})
    table = recode_table(legend_of([1, 2]), crosswalk=crosswalk, codes={1: 1})
    assert [int(table[code]) for code in (1, 2, 5, 6)] == [1, -1, 1, 0]
    with pytest.raises(LegendError, match="unknown class '9'"):
        recode_table(legend_of([1, 2]), crosswalk=Crosswalk("mine", {1: 9}))


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
        (("code = 10", "code = 255"), r"code 255 \('sea'\) must be 0 to 255, not nodata \(255\)"),
        (("code = 10", "code = 256"), "code 256 .* must be 0 to 255"),
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
    with pytest.raises(LegendError, match=r"no crosswalk 'icgc-14'\. Did you mean 'icgc-41'"):
        load_crosswalk("icgc-14")
    (tmp_path / "latin.toml").write_bytes('name = "català"'.encode("latin-1"))
    with pytest.raises(LegendError, match=r"latin\.toml is not valid TOML"):
        load_legend("latin.toml", tmp_path)


def test_a_crosswalk_of_one_s_own_names_classes_as_one_likes(tmp_path):
    (tmp_path / "walk.toml").write_text('name = "walk"\n[codes]\n1 = 2\n7 = "key-1"\n8 = "nodata"\n')
    table = recode_table(legend_of([1, 2]), crosswalk=load_crosswalk("walk.toml", tmp_path))
    assert [int(table[code]) for code in (1, 2, 7, 8)] == [2, -1, 1, 0]


@pytest.mark.parametrize(
    "text",
    [
        'name = "a"',
        "[codes]\n1 = 2",
        'name = "a"\n[codes]\nx = 2',
        'name = "a"\ncodes = 3',
        'name = "a"\n[codes]\n1 = 2.5',
    ],
)
def test_bad_crosswalks_are_told_what_is_wrong(tmp_path, text):
    (tmp_path / "walk.toml").write_text(text)
    with pytest.raises(LegendError, match=r"a crosswalk needs `name` and \[codes\]"):
        load_crosswalk("walk.toml", tmp_path)


def test_a_crosswalk_to_another_legend_is_refused():
    crosswalk = load_crosswalk("icgc-41")
    with pytest.raises(LegendError, match="'icgc-41' leads to legend 'catalonia-12', but the legend is 'icgc-41'"):
        recode_table(load_legend("icgc-41"), crosswalk=crosswalk)
    renamed = replace(load_legend("catalonia-12"), name="les meves")
    assert recode_table(renamed, crosswalk=crosswalk)[41] == 12
