"""Crosswalks, and what becomes of every code of a reference map."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobertes.errors import InputFileError, LegendError
from cobertes.labels.crosswalk import Crosswalk, load_crosswalk
from cobertes.labels.kernels import find_slots, find_slots_of_floats
from cobertes.labels.legend import Legend, LegendClass, load_legend
from cobertes.labels.map_values import MapValues
from cobertes.labels.recode import recode_map, recode_table
from helpers.rasters import grid_at, write_raster


def legend_of(codes, nodata=0, also_nodata=()):
    classes = tuple(LegendClass(c, f"key-{c}", f"Name {c}", f"#{c:02x}80ff") for c in codes)
    return Legend("test", nodata, classes, also_nodata)


def bytes_of(*arguments, **options):
    """{source code: legend code} of a map of bytes, unknown codes left out."""
    table = recode_table(*arguments, **options).table
    return {code: int(target) for code, target in enumerate(table) if target >= 0}


# --- maps of bytes -----------------------------------------------------------------------------------------


def test_without_a_crosswalk_codes_are_the_legend_s_own():
    assert bytes_of(legend_of([7, 2, 250], nodata=9)) == {2: 2, 7: 7, 9: 9, 250: 250}


def test_further_codes_without_a_class_are_nodata():
    assert bytes_of(legend_of([1, 2], nodata=0, also_nodata=(10, 250))) == {0: 0, 1: 1, 2: 2, 10: 0, 250: 0}


def test_single_codes_go_to_a_class_by_any_name_or_to_nodata():
    legend = load_legend("catalonia-12")
    codes = {
        19: "bare-soil",
        41: "nodata",
        50: 12,
        51: "Forest",
        3: 4,
        60: 0,
        61: "2",
        "62": "water",
        300: "water",
    }
    found = bytes_of(legend, codes=codes)
    assert [found[c] for c in (19, 41, 50, 51, 3, 60, 61, 62)] == [5, 0, 12, 3, 4, 0, 2, 12]
    with pytest.raises(LegendError, match="Did you mean 'bare-soil'"):
        recode_table(legend, codes={19: "bare-sol"})


def test_ranges_and_a_default_give_way_to_single_codes():
    codes = {"10-19": "key-1", 12: "key-2", "17..18": "nodata"}
    with pytest.raises(LegendError, match="ranges 10-19 and 17-18 of source codes overlap"):
        recode_table(legend_of([1, 2]), codes=codes)
    codes = {"10-19": "key-1", 12: "key-2", "20..22": "nodata", "250-300": 2, "default": 1}
    found = recode_table(legend_of([1, 2]), codes=codes).table
    assert found[[10, 11, 12, 13, 19]].tolist() == [1, 1, 2, 1, 1]
    assert found[[20, 22]].tolist() == [0, 0]
    assert found[250:].tolist() == [2] * 6
    assert found[[23, 100, 249]].tolist() == [1, 1, 1]
    assert found[[0, 1, 2]].tolist() == [0, 1, 2]  # the legend's own codes stay


def test_classes_not_to_be_learnt_become_nodata_wherever_they_come_from():
    legend, crosswalk = load_legend("catalonia-12"), load_crosswalk("icgc-41")
    found = bytes_of(legend, crosswalk=crosswalk, codes={200: "water"}, as_nodata=["water", 5])
    sources = [s for s, target in crosswalk.codes.items() if target in (12, 5)]
    assert {found[code] for code in [*sources, 200]} == {0}
    assert found[1] == 1


def test_the_crosswalk_brings_all_41_classes_to_the_12():
    found = bytes_of(load_legend("catalonia-12"), crosswalk=load_crosswalk("icgc-41"))
    assert set(found) == set(range(42))
    assert set(found.values()) == set(range(13))
    assert found[0] == 0


def test_single_codes_win_over_the_crosswalk_and_what_neither_lists_is_unknown():
    crosswalk = Crosswalk("mine", {1: 2, 5: "key-1", 6: "nodata"})
    assert bytes_of(legend_of([1, 2]), crosswalk=crosswalk, codes={1: 1}) == {0: 0, 1: 1, 5: 1, 6: 0}
    with pytest.raises(LegendError, match="unknown class '9'"):
        recode_table(legend_of([1, 2]), crosswalk=Crosswalk("mine", {1: 9}))


# --- three things: declared nodata, the legend's nodata, code 0 --------------------------------------------


def test_declared_nodata_is_nodata_beside_the_legend_s():
    for declared, expected in (
        (255.0, {255: 0}),
        (-9999.0, {}),
        (1e9, {}),
        (float("nan"), {}),
        (0.5, {}),
        (None, {}),
    ):
        found = bytes_of(legend_of([1, 2]), source=MapValues(nodata=declared))
        assert found == {0: 0, 1: 1, 2: 2, **expected}


def test_a_map_that_declares_a_class_as_nodata_is_refused_until_one_of_the_two_is_said_to_be_wrong():
    legend, source = load_legend("dynamic-world"), MapValues(nodata=0, name="dw.tif")
    message = r"dw\.tif declares 0 as its nodata, but 0 is 'Water' in legend 'dynamic-world'\. .* -unsetnodata dw\.tif.* say so: `\[labels\] codes = \{ 0 = \"nodata\" \}`"
    with pytest.raises(LegendError, match=message):
        recode_table(legend, source=source)
    assert bytes_of(legend, source=source, codes={0: "nodata"})[0] == 255
    assert bytes_of(legend, source=source, codes={0: "water"})[0] == 0
    assert bytes_of(legend, source=source, crosswalk=Crosswalk("mine", {0: "water", 1: "trees"})) == {
        0: 0,
        1: 1,
        255: 255,
    }
    assert bytes_of(legend, source=source, as_nodata=["water"])[0] == 255


def test_class_0_is_a_class_in_every_year_of_a_product():
    legend = load_legend("dynamic-world")
    tables = [bytes_of(legend, source=MapValues(nodata=nodata)) for nodata in (255, None, -1)]
    assert tables[0] == tables[1] == tables[2] == {**{code: code for code in range(9)}, 255: 255}


# --- maps of other types -----------------------------------------------------------------------------------

INT32 = MapValues("int32", -9999)


def looked_up(table, values):
    """What kernels make of values: legend codes."""
    slots = table.slots
    out = np.empty(values.shape, np.uint8)
    if values.dtype.kind == "f":
        assert (
            find_slots_of_floats(
                values, np.nan, slots.empty, slots.first, slots.last, slots.slot, slots.other, out
            )
            == -1
        )
    else:
        find_slots(values, slots.first, slots.last, slots.slot, slots.other, out)
    return table.table[out]


def test_codes_beyond_bytes_are_led_to_classes():
    legend = load_legend("worldcover")
    table = recode_table(legend, crosswalk=load_crosswalk("corine-codes-to-worldcover"), source=INT32)
    codes = np.array([[111, 311, 523, 999, -9999, 0, 7, 312]], np.int32)
    assert looked_up(table, codes).tolist() == [[50, 10, 80, 0, 0, 0, -1, 10]]
    assert looked_up(table, codes.astype(np.float32)).tolist() == [[50, 10, 80, 0, 0, 0, -1, 10]]
    assert [table.legend_code(int(code)) for code in codes[0]] == [50, 10, 80, 0, 0, 0, -1, 10]


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(-(2**40), 2**40), st.sampled_from([1, 2, "nodata"]), max_size=400),
    st.lists(st.tuples(st.integers(-1000, 1000), st.integers(0, 300)), max_size=4),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([None, -9999, 3]),
)
def test_every_code_goes_where_its_rule_says(single, ranges, default, nodata):
    taken, kept, limits = -(10**6), {}, []
    for first, length in sorted(ranges):
        if first > taken:
            kept[f"{first}..{first + length}"] = 2
            limits.append((first, first + length))
            taken = first + length
    codes = {**single, **kept, **({} if default is None else {"default": default})}
    table = recode_table(legend_of([1, 2], also_nodata=(9,)), codes=codes, source=MapValues("int64", nodata))
    probe = sorted({*single, *(code + 1 for code in single), *range(-1010, 1310), nodata or 0})
    own = {0: 0, 1: 1, 2: 2, 9: 0}

    def expected(code):
        if code in single:
            return 0 if single[code] == "nodata" else single[code]
        if code == nodata:
            return 0
        in_range = any(first <= code <= last for first, last in limits)
        if in_range:
            return 2
        return own.get(code, -1 if default is None else default)

    found = looked_up(table, np.array([probe], np.int64))[0].tolist()
    assert found == [expected(code) for code in probe]
    assert [table.legend_code(code) for code in probe] == found


def test_more_than_253_codes_share_slots_by_class_and_fewer_are_counted_each():
    legend = legend_of([1, 2])
    many = recode_table(
        legend, codes={code: 1 + code % 2 for code in range(1000, 71_000)}, source=MapValues("int32")
    )
    values = np.array([[1000, 1001, 70_999, 71_000, 5]], np.int32)
    assert looked_up(many, values).tolist() == [[1, 2, 2, -1, -1]]
    assert many.source_counts(np.ones(256, np.int64)) == {0: 1}  # the only code that is nodata
    few = recode_table(legend, codes={1000: 1, 2000: 1, "3000-3999": 2}, source=MapValues("int32", 7))
    assert few.source_counts(np.ones(256, np.int64)) == {0: 1, 1: 1, 2: 1, 7: 1, 1000: 1, 2000: 1}


def test_floats_that_are_no_whole_numbers_are_found():
    table = recode_table(legend_of([1, 2]), source=MapValues("float32", -1.5))
    slots = table.slots
    for odd, where in ((1.5, 3), (np.inf, 3), (-np.inf, 3), (1e300, 3)):
        values = np.array([[1, 2], [np.nan, odd]])
        out = np.empty(values.shape, np.uint8)
        assert (
            find_slots_of_floats(values, -1.5, slots.empty, slots.first, slots.last, slots.slot, slots.other, out)
            == where
        )
    values = np.array([[1, -1.5], [np.nan, 2]])
    assert (
        find_slots_of_floats(values, -1.5, slots.empty, slots.first, slots.last, slots.slot, slots.other, out)
        == -1
    )
    assert table.table[out].tolist() == [[1, 0], [0, 2]]


def test_colours_lead_to_the_classes_that_have_them():
    legend = load_legend("dynamic-world")
    source = MapValues(nodata=255, bands=(1, 2, 3), name="rgb.tif")
    table = recode_table(legend, source=source)
    assert table.legend_code(0x419BDF) == 0
    assert table.legend_code(0xC4281B) == 6
    assert table.legend_code(0xFFFFFF) == 255
    assert table.legend_code(0) == -1  # black, not code 0
    with pytest.raises(
        LegendError, match="#ff6666 stands for several classes|stands for several classes of legend 'cdl'"
    ):
        recode_table(load_legend("cdl"), source=source)
    with pytest.raises(
        LegendError, match="declares #000000 as its nodata, but #000000 is 'Burnt areas' in legend 'corine'"
    ):
        recode_table(load_legend("corine"), source=replace(source, nodata=0))


# --- crosswalks in files -----------------------------------------------------------------------------------


def test_a_crosswalk_of_one_s_own_names_classes_as_one_likes(tmp_path):
    (tmp_path / "walk.toml").write_text(
        'name = "walk"\n[codes]\n1 = 2\n7 = "key-1"\n8 = "nodata"\n"20-29" = 1\ndefault = "Name 2"\n'
    )
    table = recode_table(legend_of([1, 2]), crosswalk=load_crosswalk("walk.toml", tmp_path)).table
    assert table[[1, 7, 8, 20, 25, 29, 30, 255]].tolist() == [2, 1, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("code,class\n111,key-1\n311-313,Name 2\n-5,2\n*,nodata\n", "utf-8-sig"),
        ("111;1\n311-313;2\n\n# mine\n-5;key-2\ndefault;nodata\n", "utf-8"),
        ("Source\tTarget\n111\t1\n311..313\t2\n-5\t2\nDEFAULT\tnodata\n", "cp1252"),
    ],
)
def test_a_crosswalk_as_a_table_of_two_columns(tmp_path, text, encoding):
    (tmp_path / "walk.csv").write_text(text, encoding=encoding)
    crosswalk = load_crosswalk("walk.csv", tmp_path)
    assert (crosswalk.name, crosswalk.target, crosswalk.source) == ("walk", None, None)
    table = recode_table(legend_of([1, 2]), crosswalk=crosswalk, source=INT32)
    assert [table.legend_code(code) for code in (111, 311, 312, 313, -5, 314, 0)] == [1, 2, 2, 2, 2, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "a"', r"a crosswalk needs `name` and \[codes\]"),
        ("[codes]\n1 = 2", r"a crosswalk needs `name` and \[codes\]"),
        ('name = "a"\ncodes = 3', r"a crosswalk needs `name` and \[codes\]"),
        ('name = "a"\n[codes]\n1 = 2.5', r"a crosswalk needs .*2\.5 is no code and no class"),
        ('name = "a"\n[codes]\n1 = true', r"a crosswalk needs .*True is no code and no class"),
        ("name = ", r"walk\.toml is not valid TOML"),
    ],
)
def test_bad_crosswalks_are_told_what_is_wrong(tmp_path, text, message):
    (tmp_path / "walk.toml").write_text(text)
    with pytest.raises(LegendError, match=message):
        load_crosswalk("walk.toml", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "two columns, source code and class, found 'nothing'"),
        ("code,class\n", "found 'nothing'"),
        ("1,2,3\n", "found '1,2,3'"),
        ("1\n", "found '1'"),
        ("1,\n", "found '1,'"),
        ("1,2\n1,1\n", "source '1' stands there more than once"),
    ],
)
def test_bad_tables_are_told_what_is_wrong(tmp_path, text, message):
    (tmp_path / "walk.csv").write_text(text)
    with pytest.raises(LegendError, match=message):
        load_crosswalk("walk.csv", tmp_path)


def test_missing_crosswalks_offer_the_near_miss(tmp_path):
    with pytest.raises(LegendError, match=r"no crosswalk 'icgc-14'\. Did you mean 'icgc-41'"):
        load_crosswalk("icgc-14")
    with pytest.raises(InputFileError, match=r"no crosswalk file at .*none\.csv"):
        load_crosswalk("none.csv", tmp_path)
    with pytest.raises(InputFileError, match=r"no crosswalk file at .*none\.toml"):
        load_crosswalk("none.toml", tmp_path)


def test_a_range_of_the_project_goes_before_the_legend_s_own_codes_and_a_crosswalk_s():
    legend = legend_of([1, 2, 3])
    assert bytes_of(legend, codes={"0-2": 3}) == {0: 3, 1: 3, 2: 3, 3: 3}
    crosswalk = Crosswalk("mine", {10: 1, "20-29": 2})
    assert bytes_of(legend, crosswalk=crosswalk, codes={"9-11": 3})[10] == 3
    with pytest.raises(LegendError, match="ranges 20-29 and 25-35 of source codes overlap"):
        recode_table(legend, crosswalk=crosswalk, codes={"25-35": 3})


def test_a_range_that_ends_before_it_begins_is_refused():
    with pytest.raises(LegendError, match="range 20-10 of a crosswalk ends before it begins"):
        recode_table(legend_of([1]), codes={"20-10": 1})


def test_a_crosswalk_to_another_legend_is_refused():
    crosswalk = load_crosswalk("icgc-41")
    with pytest.raises(LegendError, match="'icgc-41' leads to legend 'catalonia-12', but the legend is 'icgc-41'"):
        recode_table(load_legend("icgc-41"), crosswalk=crosswalk)
    renamed = replace(load_legend("catalonia-12"), name="les meves")
    assert bytes_of(renamed, crosswalk=crosswalk)[41] == 12


def test_sources_can_be_named_as_the_legend_that_they_come_from_names_them():
    crosswalk = Crosswalk("mine", {"Tree cover": 1, "water": 2}, source="worldcover")
    assert bytes_of(legend_of([1, 2]), crosswalk=crosswalk) == {0: 0, 10: 1, 80: 2}


def test_sources_can_be_named_as_the_map_names_them(tmp_path):
    raster = write_raster(tmp_path / "map.tif", np.array([[21, 33]], np.uint8), grid_at(1, 2), nodata=255)
    (tmp_path / "map.csv").write_text("value,name\n21,Arable\n33,Forest\n")
    table = recode_map(raster, legend_of([1, 2]), codes={"Arable": 1, "Forest": "key-2"})
    assert {code: int(target) for code, target in enumerate(table.table) if target >= 0} == {
        0: 0,
        1: 1,
        2: 2,
        21: 1,
        33: 2,
        255: 0,
    }
    with pytest.raises(
        LegendError,
        match="'Forst' is no code, range or class name of the reference map, which has 'Arable', 'Forest'",
    ):
        recode_map(raster, legend_of([1, 2]), codes={"Forst": 2})
    (tmp_path / "map.csv").unlink()
    with pytest.raises(
        LegendError,
        match="'Forest' is no code, range or class name of the reference map, which has no names at all",
    ):
        recode_map(raster, legend_of([1, 2]), codes={"Forest": 2})
