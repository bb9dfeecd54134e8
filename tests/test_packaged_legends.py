"""Packaged legends and crosswalks against tables of their publishers, typed in here from a second source."""

import re
import tomllib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import rasterio

from cobertes.labels.crosswalk import load_crosswalk
from cobertes.labels.legend import legend_names, load_legend
from helpers.rasters import DATA, needs

FOLDER = Path(str(resources.files("cobertes.labels"))) / "legends"
CROSSWALKS = sorted(file.stem for file in (FOLDER / "crosswalks").glob("*.toml"))

# The renderer of the EEA's map service Corine/CLC2018_WM, its codes in the order of the grid codes 1 to 44.
CORINE = """
111 e6004d 112 ff0000 121 cc4df2 122 cc0000 123 e6cccc 124 e6cce6 131 a600cc 132 a64d00 133 ff4dff 141 ffa6ff
142 ffe6ff 211 ffffa8 212 ffff00 213 e6e600 221 e68000 222 f2a64d 223 e6a600 231 e6e64d 241 ffe6a6 242 ffe64d
243 e6cc4d 244 f2cca6 311 80ff00 312 00a600 313 4dff00 321 ccf24d 322 a6ff80 323 a6e64d 324 a6f200 331 e6e6e6
332 cccccc 333 ccffcc 334 000000 335 a6e6cc 411 a6a6ff 412 4d4dff 421 ccccff 422 e6e6ff 423 a6a6e6 511 00ccf2
512 80f2e6 521 00ffa6 522 a6ffe6 523 e6f2ff
"""

# (code, word of the name, colour) of each legend, from a source other than the one that its file was made from.
ANCHORS = {
    # WorldCover and Impact Observatory: colour maps of the Planetary Computer
    "worldcover": [(10, "tree", "#006400"), (40, "crop", "#f096ff"), (80, "water", "#0064c8"), (95, "mangrove", "#00cf75"), (100, "moss", "#fae6a0")],
    "impact-observatory": [(1, "water", "#419bdf"), (2, "tree", "#397d49"), (5, "crop", "#e49635"), (7, "built", "#c4281b"), (11, "rangeland", "#e3e2c3")],
    "impact-observatory-2020": [(3, "grass", "#88b053"), (6, "scrub", "#dfc35a"), (9, "snow", "#a8ebff")],
    # Dynamic World: table of Brown et al. 2022
    "dynamic-world": [(0, "water", "#419bdf"), (1, "tree", "#397d49"), (4, "crop", "#e49635"), (6, "built", "#c4281b"), (8, "snow", "#b39fe1")],
    # CLCplus Backbone: dimension table of the EEA, colours of the manual's annex
    "clcplus-backbone": [(1, "sealed", "#ff0000"), (2, "needle", "#228b22"), (4, "evergreen", "#00ff08"), (7, "periodically", "#ffff80"), (10, "water", "#0080ff"), (11, "snow", "#00ffff")],
    # CGLS-LC100: Earth Engine
    "cgls-lc100": [(20, "shrub", "#ffbb22"), (80, "water", "#0032c8"), (111, "closed forest, evergreen needle", "#58481f"), (124, "open forest, deciduous broad", "#a0dc00"), (200, "sea", "#000080")],
    # GLC_FCS30D: colours of a public program, names of another
    "glc-fcs30": [(10, "rainfed", "#ffff64"), (52, "closed evergreen broad", "#006400"), (72, "closed evergreen needle", "#003c00"), (130, "grass", "#ffb432"), (185, "mangrove", "#f57ab6"), (190, "impervious", "#c31400"), (220, "snow", "#ffffff")],
    # MapBiomas: the project's own style for QGIS
    "mapbiomas-brazil": [(3, "forest formation", "#1f8d49"), (4, "savanna", "#7dc975"), (15, "pasture", "#edde8e"), (24, "urban", "#d4271e"), (33, "river", "#2532e4"), (39, "soy", "#f5b3c8"), (62, "cotton", "#ff69b4")],
    # NLCD: Earth Engine, USGS/NLCD_RELEASES/2021_REL/NLCD
    "nlcd": [(11, "water", "#466b9f"), (21, "open space", "#dec5c5"), (42, "evergreen", "#1c5f2c"), (71, "grass", "#dfdfc2"), (82, "crop", "#ab6c28"), (95, "herbaceous wetland", "#6c9fb8")],
    # CDL: colour map of the Planetary Computer
    "cdl": [(1, "corn", "#ffd400"), (2, "cotton", "#ff2626"), (5, "soy", "#267300"), (24, "winter wheat", "#a87000"), (61, "fallow", "#bfbf7a"), (111, "water", "#4d70a3"), (142, "evergreen", "#95ce93"), (190, "woody wetland", "#80b3b3"), (254, "barley/soy", "#267300")],
    # OSO: nomenclature of CESBIO in public programs
    "oso": [(1, "dense", "#ff00ff"), (5, "rapeseed", "#ffff00"), (10, "maize", "#ff5500"), (16, "broadleaved", "#009c00"), (17, "conifer", "#003200"), (23, "water", "#0000ff")],
    "s2glc": [(62, "artificial", "#d20000"), (73, "cultivated", "#fdd327"), (83, "conifer", "#086200"), (102, "herbaceous", "#f99627"), (121, "material", "#9a9a9a"), (162, "water", "#1445f9")],
    # FLAIR: FLAIR-2 (the first thirteen), a public program (the rest)
    "flair": [(1, "building", "#db0e9a"), (5, "water", "#1553ae"), (7, "deciduous", "#46e483"), (9, "vineyard", "#660082"), (18, "greenhouse", "#9999ff"), (19, "other", "#000000")],
    "ukceh": [(1, "broadleaved", "#ff0000"), (2, "conifer", "#006600"), (3, "arable", "#732600"), (13, "saltwater", "#000080"), (20, "urban", "#000000"), (21, "suburban", "#808080")],
    "lucas": [(1, "artificial", "#cc0303"), (3, "woodland", "#235123"), (7, "water", "#2019a4"), (8, "wetland", "#aec3d6")],
}  # fmt: skip

SIZES = {
    "catalonia-12": 12, "cdl": 132, "cgls-lc100": 22, "clcplus-backbone": 12, "corine": 44, "corine-level-1": 5,
    "corine-level-2": 15, "dynamic-world": 9, "flair": 19, "glc-fcs30": 35, "icgc-41": 41, "impact-observatory": 8,
    "impact-observatory-2020": 9, "lucas": 8, "mapbiomas-brazil": 29, "nlcd": 16, "nlcd-8": 8, "oso": 23, "s2glc": 13,
    "ukceh": 21, "worldcover": 11,
}  # fmt: skip


def test_the_packaged_legends_are_these():
    assert {name: len(load_legend(name)) for name in legend_names()} == SIZES


@pytest.mark.parametrize("name", legend_names())
def test_every_legend_has_keys_names_and_colours_and_says_where_from(name):
    legend = load_legend(name)
    assert legend.name == name
    assert len(set(legend.keys)) == len({c.name for c in legend.classes}) == len(legend)
    for one in legend.classes:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one.key)
        assert re.fullmatch(r"#[0-9a-f]{6}", one.colour)
        assert one.name == one.name.strip()
    head = (FOLDER / f"{name}.toml").read_text(encoding="utf-8").partition("\nname =")[0]
    assert all(line.startswith("# ") for line in head.splitlines())
    assert re.search(r"\b20[0-9]{2}\b", head), "no date"


@pytest.mark.parametrize("name", ANCHORS)
def test_codes_names_and_colours_agree_with_a_second_source(name):
    legend = load_legend(name)
    for code, word, colour in ANCHORS[name]:
        found = legend.find(code)
        assert word in found.name.lower()
        assert found.colour == colour


def corine():
    words = CORINE.split()
    return dict(zip(map(int, words[::2]), words[1::2], strict=True))


def test_corine_has_the_colours_of_the_eea_in_both_codings():
    legend, codes = load_legend("corine"), load_crosswalk("corine-codes").codes
    published = corine()
    assert [c.colour[1:] for c in legend.classes] == list(published.values())
    assert [c.code for c in legend.classes] == list(range(1, 45))
    assert {code: codes[code] for code in published} == {code: i for i, code in enumerate(published, 1)}
    assert legend.nodata == 48


@pytest.mark.parametrize(("level", "digits"), [(1, 1), (2, 2)])
def test_the_levels_of_corine_are_its_first_digits(level, digits):
    both = [load_crosswalk(f"corine{coded}-to-level-{level}").codes for coded in ("", "-codes")]
    for i, code in enumerate(corine(), 1):
        assert both[0][i] == both[1][code] == int(str(code)[:digits])
    assert set(load_legend(f"corine-level-{level}").codes.tolist()) == {
        int(str(code)[:digits]) for code in corine()
    }


def test_every_crosswalk_leads_to_classes_and_knows_every_class_of_its_legend():
    for name in CROSSWALKS:
        crosswalk = load_crosswalk(name)
        assert crosswalk.name == name
        assert crosswalk.target in legend_names()
        target = load_legend(crosswalk.target)
        for to in crosswalk.codes.values():
            assert to == "nodata" or target.find(to).code == to
        source = tomllib.loads((FOLDER / "crosswalks" / f"{name}.toml").read_text(encoding="utf-8"))["from"]
        if source in legend_names():
            missing = set(load_legend(source).codes.tolist()) - set(crosswalk.codes)
            assert not missing, f"{name}: {missing}"
        else:
            assert source in ("corine-codes", "icgc-codes")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # what the products' own definitions say
        ("worldcover-to-dynamic-world", {80: 0, 10: 1, 95: 3, 100: "nodata"}),
        ("dynamic-world-to-worldcover", {0: 80, 1: 10, 6: 50, 255: "nodata"}),
        ("impact-observatory-to-worldcover", {1: 80, 7: 50, 10: "nodata", 11: "nodata"}),
        (
            "corine-codes-to-worldcover",
            {311: 10, 512: 80, 131: 60, 221: 20, 222: 10, 324: "nodata", 999: "nodata"},
        ),
        ("corine-to-dynamic-world", {14: 3, 12: 4, 44: 0, 48: "nodata"}),
        ("corine-codes-to-dynamic-world", {213: 3, 211: 4, 523: 0}),
        ("cgls-lc100-to-worldcover", {126: 10, 111: 10, 200: 80, 0: "nodata"}),
        ("glc-fcs30-to-worldcover", {12: 10, 185: 95, 181: 10, 182: 90, 250: "nodata"}),
        ("mapbiomas-brazil-to-worldcover", {4: 10, 15: 30, 30: 60, 39: 40, 27: "nodata"}),
        ("nlcd-to-worldcover", {11: 80, 21: "nodata", 90: 10, 95: 90}),
        ("cdl-to-nlcd", {1: 82, 36: 81, 69: 82, 111: 11, 142: 42, 176: 81, 81: "nodata", 63: "nodata"}),
        ("nlcd-to-nlcd-8", {11: 1, 12: 1, 24: 2, 43: 4, 82: 7, 95: 8}),
        ("icgc-codes", {111: 1, 116: 6, 221: 7, 229: 15, 233: 19, 341: 21, 355: 35, 461: 36, 466: 41}),
        ("icgc-codes-to-catalonia-12", {111: 1, 113: 2, 221: 3, 466: 12}),
        ("icgc-41-to-worldcover", {1: 40, 3: 20, 7: 10, 41: 80, 17: "nodata"}),
        ("ukceh-to-worldcover", {1: 10, 3: 40, 13: 80, 21: 50}),
        ("s2glc-to-worldcover", {62: 50, 162: 80, 0: "nodata", 255: "nodata"}),
        ("oso-to-worldcover", {5: 40, 15: 20, 17: 10, 23: 80}),
        ("flair-to-worldcover", {1: 50, 9: 20, 11: 40, 15: "nodata"}),
        ("clcplus-backbone-to-worldcover", {1: 50, 7: 40, 253: 80, 254: "nodata"}),
        ("worldcover-to-lucas", {10: 3, 60: 6, 80: 7}),
        ("lucas-to-worldcover", {3: 10, 7: 80}),
    ],
)
def test_crosswalks_lead_where_the_products_definitions_say(name, expected):
    codes = load_crosswalk(name).codes
    assert {code: codes[code] for code in expected} == expected


def test_codes_of_the_icgc_are_the_same_41_classes():
    codes = load_crosswalk("icgc-codes").codes
    assert sorted(codes.values()) == list(range(1, 42))
    assert [sum(code // 100 == group for code in codes) for group in (1, 2, 3, 4)] == [6, 14, 15, 6]


@needs("worldcover")
def test_a_real_worldcover_map_has_the_legend_s_codes_and_colours():
    legend = load_legend("worldcover")
    with rasterio.open(DATA / "worldcover" / "worldcover_2021_n00e006.tif") as file:
        found = np.unique(file.read(1, out_shape=(900, 900)))
        palette = file.colormap(1) if file.colorinterp[0].name == "palette" else {}
    assert set(found.tolist()) - {legend.nodata} <= set(legend.codes.tolist())
    for one in legend.classes:
        if one.code in palette:
            assert "#{:02x}{:02x}{:02x}".format(*palette[one.code][:3]) == one.colour
