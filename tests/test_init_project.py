"""`cobertes init`: what it finds in files that nobody has described, and that what it writes is a project."""

import dataclasses
import tomllib

import numpy as np
import pytest
import rasterio

from cobertes.errors import GridMismatchError, InputFileError, OutputExistsError, SettingsError, StorageError
from cobertes.geo.area import ONLY_SEASON
from cobertes.labels import code_scan
from cobertes.labels.class_names import ClassNames, read_class_names
from cobertes.labels.code_scan import scan_codes
from cobertes.labels.crosswalk import load_crosswalk
from cobertes.labels.legend import load_legend
from cobertes.workflow import init_project
from cobertes.workflow.init_project import write_project
from cobertes.workflow.legend_proposal import is_same_name, propose_legend
from cobertes.workflow.project import load_project
from cobertes.workflow.scene_paths import open_scenes
from helpers.rasters import DATA, grid_at, needs, write_raster

BANDS = ("B02", "B03", "B04", "B08")


def write_map(folder, codes, *, shape=(96, 96), pixel=10.0, name="map.tif", dtype=np.uint8, nodata=0, **profile):
    """A map whose pixels take the codes in turn."""
    values = np.resize(np.array(codes, dtype), shape)
    return write_raster(folder / name, values, grid_at(*shape, pixel), nodata=nodata, **profile)


def write_scene(folder, name="scene.tif", names=BANDS, shape=(96, 96), bands=None):
    values = np.ones((bands or len(names), *shape), np.uint16)
    return write_raster(folder / name, values, grid_at(*shape), names=names)


ALL_12 = list(range(1, 13))


@pytest.fixture
def place(tmp_path):
    write_scene(tmp_path)
    write_map(tmp_path, ALL_12)
    return tmp_path


def settings_of(path):
    return tomllib.loads(path.read_text(encoding="utf-8"))


def test_a_scene_and_a_map_become_a_project(place):
    found = write_project([str(place / "scene.tif")], place / "map.tif", place / "fields.toml")
    project = load_project(place / "fields.toml")
    assert (project.settings.name, project.settings.legend) == ("fields", "catalonia-12")
    assert (project.bands, project.rgb) == (BANDS, ["B04", "B03", "B02"])
    assert project.areas[0].name == "scene"
    assert project.settings.tiles.size == 16
    assert f"tiles:  16 px, in blocks of {project.settings.split.block} px" in found
    assert (
        "scene:  96 x 96 px of 10 m, origin (240000, 4780000), EPSG:32631, 4 bands (B02, B03, B04, B08)" in found
    )
    assert "codes in all pixels:\n    1    8.33 %  Herbaceous crops" in found
    assert "legend: catalonia-12 (12 classes): the codes fit, check that they mean the same" in found


def test_paths_are_relative_to_the_project_file(place):
    (place / "projects").mkdir()
    write_project([str(place / "scene.tif")], place / "map.tif", place / "projects" / "p.toml")
    (area,) = settings_of(place / "projects" / "p.toml")["area"]
    assert (area["scenes"], area["reference"]) == ("../scene.tif", "../map.tif")
    assert load_project(place / "projects" / "p.toml").areas[0].shape == (96, 96)


def test_a_project_called_project_takes_its_folder_s_name(place, monkeypatch):
    monkeypatch.chdir(place)
    write_project(["scene.tif"], place / "map.tif", init_project.Path("project.toml"))
    assert settings_of(place / "project.toml")["name"] == place.name


@pytest.mark.parametrize("how", ["glob", "list", "shell"])
def test_band_files_become_one_scene(place, how):
    (place / "granule").mkdir()
    for name in ("B02", "B03", "B04"):
        write_scene(place / "granule", f"T31_{name}_10m.tif", (), bands=1)
    files = [str(place / "granule" / f"T31_{name}_10m.tif") for name in ("B02", "B03", "B04")]
    specs = {"glob": [str(place / "granule" / "*.tif")], "list": [",".join(files)], "shell": files}[how]
    found = write_project(specs, place / "map.tif", place / "p.toml")
    project = load_project(place / "p.toml")
    assert project.bands == ("B02", "B03", "B04")
    assert project.areas[0].name == "p"
    assert "3 bands (B02, B03, B04)" in found


def test_two_seasons_keep_their_names_and_order(place):
    for season in ("été", "abril"):
        write_scene(place, f"{season}.tif")
    found = write_project(
        [f"été={place / 'été.tif'}", f"abril={place / 'abril.tif'}"], place / "map.tif", place / "p.toml"
    )
    project = load_project(place / "p.toml")
    assert project.seasons == ("été", "abril")
    assert project.areas[0].name == "p"
    assert found.splitlines()[0].endswith(", seasons été, abril")


@pytest.mark.parametrize("name", ['a "quoted" \\ name', "a,b", "l'été", "b[1]", "café # 3"])
def test_strange_file_names_are_written_so_that_they_are_found_again(tmp_path, name):
    (tmp_path / name).mkdir()
    write_scene(tmp_path / name, f"{name}.tif")
    write_map(tmp_path, ALL_12, name=f"{name}.tif")
    # a comma divides files, so a scene of such a name is found by a glob
    write_project([str(tmp_path / "*" / "*.tif")], tmp_path / f"{name}.tif", tmp_path / f"{name}.toml")
    project = load_project(tmp_path / f"{name}.toml")
    assert project.areas[0].scenes["scene"].files == (str(tmp_path / name / f"{name}.tif"),)
    assert project.areas[0].reference == tmp_path / f"{name}.tif"
    assert project.settings.name == name


def test_stray_codes_are_named_for_the_user_to_explain(place):
    codes = np.resize(ALL_12, 96 * 96)
    codes[:30], codes[50:60] = 19, 41
    write_map(place, codes)
    found = write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    text = (place / "p.toml").read_text()
    assert '# codes = { 19 = "nodata", 41 = "nodata" }' in text
    assert "   19    0.33 %  outside the legend" in found
    load_project(place / "p.toml")
    (place / "p.toml").write_text(text.replace("\n# codes", "\ncodes"))
    project = load_project(place / "p.toml")
    assert project.table(project.areas[0]).table[[19, 41]].tolist() == [0, 0]


def test_a_map_of_no_known_legend_gets_one_in_its_own_colours(place):
    write_map(place, [0, 3, 77, 200])
    with rasterio.open(place / "map.tif", "r+") as file:
        file.write_colormap(1, {3: (1, 2, 3, 255), 77: (10, 200, 30, 255), 200: (255, 255, 255, 255)})
    found = write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    legend = load_legend("p-legend.toml", place)
    assert (legend.nodata, legend.codes.tolist()) == (0, [3, 77, 200])
    assert legend.colours == ["#010203", "#0ac81e", "#ffffff"]
    assert load_project(place / "p.toml").legend == legend
    assert "legend: none of the packaged ones fits; name the classes in" in found
    assert "    0   25.00 %  nodata" in found
    assert "  200   25.00 %\n" in found


def test_a_map_without_a_palette_gets_colours_that_differ(place):
    write_map(place, range(100, 112))
    write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    colours = load_legend("p-legend.toml", place).colours
    assert len(set(colours)) == 12


@pytest.mark.parametrize(
    ("codes", "legend"),
    [
        (ALL_12, "catalonia-12"),
        (range(1, 42), "icgc-41"),
        (range(1, 9), "nlcd-8"),
        ([10, 30, 40, 50, 80], "worldcover"),
        ([11, 21, 22, 31, 41, 42, 43, 52, 71], "nlcd"),
        ([1, 3, 12], None),  # codes that count from 1 say little
        ([100, 150], None),
        ([10, 20, 30, 40, 50, 60, 200], None),
    ],
)
def test_the_legend_that_fits_the_codes_is_proposed(tmp_path, codes, legend):
    proposed = propose_legend(scan_codes(write_map(tmp_path, list(codes))), ClassNames({}, {}))
    assert (proposed.legend.name if proposed.packaged else None) == legend


@pytest.mark.parametrize(
    ("nodata", "dtype", "means"), [(255, np.uint8, 255), (-9999, np.int16, 255), (None, np.uint8, 0)]
)
def test_nodata_that_the_map_declares_is_no_class(place, nodata, dtype, means):
    codes = [0, 1, 60, 200] if nodata is None else [0, 1, 60, 200, nodata]
    write_map(place, codes, dtype=dtype, nodata=nodata)
    write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    legend = load_legend("p-legend.toml", place)
    assert legend.nodata == means
    assert legend.codes.tolist() == ([1, 60, 200] if nodata is None else [0, 1, 60, 200])
    load_project(place / "p.toml")


def test_of_a_large_map_a_part_is_looked_at(place, monkeypatch):
    monkeypatch.setattr(code_scan, "SAMPLE_BLOCKS", 10)
    monkeypatch.setattr(code_scan, "SAMPLE_PIXELS", 20_000)
    write_map(place, ALL_12, shape=(480, 480), pixel=2.0, tiled=True, blockxsize=32, blockysize=32)
    codes = scan_codes(place / "map.tif")
    assert not codes.all
    assert codes.pixels == 19 * 32 * 32  # 225 blocks of which 20,000 pixels are 19
    assert codes.found == ALL_12
    found = write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    assert "codes in 19,456 pixels looked at:" in found


def test_existing_files_are_kept_unless_asked(place):
    out = place / "p.toml"
    out.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"p\.toml exists\. Use --overwrite"):
        write_project([str(place / "scene.tif")], place / "map.tif", out)
    assert out.read_text() == "mine"
    write_project([str(place / "scene.tif")], place / "map.tif", out, overwrite=True)
    load_project(out)
    out.unlink()
    write_map(place, [100, 150])
    (place / "p-legend.toml").write_text("my classes")
    with pytest.raises(OutputExistsError, match=r"p-legend\.toml exists"):
        write_project([str(place / "scene.tif")], place / "map.tif", out)
    assert (place / "p-legend.toml").read_text() == "my classes"
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: (f / "map.tif").unlink(), InputFileError, r"no file at .*map\.tif"),
        (lambda f: (f / "scene.tif").unlink(), InputFileError, r"no scene at .*scene\.tif"),
        (lambda f: (f / "map.tif").write_text("text"), InputFileError, r"can't read .*map\.tif as a raster"),
        (lambda f: write_map(f, [0]), InputFileError, "holds no class codes: every pixel looked at is nodata"),
        (lambda f: write_map(f, range(300), dtype=np.int16), InputFileError, "holds 299 different codes, but a legend has at most 253 classes"),
        (lambda f: write_map(f, [1.5], dtype=np.float32), InputFileError, "holds 1.5, but class codes are whole numbers"),
        (lambda f: write_scene(f, "map.tif"), InputFileError, r"map\.tif has 4 bands \(1 B02, 2 B03, 3 B04, 4 B08\), but a reference map has one"),
        (
            lambda f: write_raster(f / "map.tif", np.ones((9, 9), np.uint8), grid_at(9, 9, origin=(0, 0))),
            GridMismatchError,
            r"map\.tif does not touch the scene",
        ),
    ],
)  # fmt: skip
def test_what_can_t_become_a_project_is_said_and_nothing_is_written(place, change, error, message):
    change(place)
    before = sorted(path.name for path in place.iterdir())
    with pytest.raises(error, match=message):
        write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    assert sorted(path.name for path in place.iterdir()) == before


def test_a_truncated_map_is_told(place):
    rng = np.random.default_rng(0)
    write_raster(place / "map.tif", rng.integers(1, 13, (96, 96)).astype(np.uint8), grid_at(96, 96), tiled=True, blockxsize=32, blockysize=32)  # fmt: skip
    whole = (place / "map.tif").read_bytes()
    (place / "map.tif").write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(
        InputFileError, match=r"can't read rows \d+ to \d+, columns .* of .*map\.tif: .*truncated: fetch it again"
    ):
        write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")


def test_scenes_that_do_not_belong_together_are_refused(place):
    write_scene(place, "other.tif", shape=(95, 96))
    with pytest.raises(GridMismatchError, match=r"other\.tif is 96 x 95 px"):
        write_project(
            [f"a={place / 'scene.tif'}", f"b={place / 'other.tif'}"], place / "map.tif", place / "p.toml"
        )
    with pytest.raises(SettingsError, match="name the season of every scene"):
        write_project([f"a={place / 'scene.tif'}", str(place / "other.tif")], place / "map.tif", place / "p.toml")
    (place / "file").touch()
    with pytest.raises(StorageError, match="can't make the folder"):
        write_project([str(place / "scene.tif")], place / "map.tif", place / "file" / "p.toml")


def test_the_map_and_the_scenes_are_never_overwritten(place):
    before = {path: path.read_bytes() for path in place.iterdir()}
    for name in ("map.tif", "scene.tif"):
        with pytest.raises(SettingsError, match=rf"{name} is an input"):
            write_project([str(place / "scene.tif")], place / "map.tif", place / name, overwrite=True)
    assert {path: path.read_bytes() for path in place.iterdir()} == before


def test_a_map_of_zeros_that_declares_nothing_holds_no_class(place):
    write_map(place, [0], nodata=None)
    with pytest.raises(InputFileError, match="holds no class codes"):
        write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    assert not list(place.glob("*.toml"))


@pytest.mark.parametrize(
    ("side", "tile"), [(96, 16), (227, 32), (300, 64), (572, 64), (640, 64), (1200, 128), (30_000, 512)]
)
def test_the_proposed_tile_fits_the_proposed_block(place, side, tile):
    scene = open_scenes([str(place / "scene.tif")])[ONLY_SEASON]
    size, block = init_project._tiling(dataclasses.replace(scene, grid=grid_at(side, side)))
    assert size == tile
    assert block >= tile


# --- names, codes and colours that come with the map -------------------------------------------------------

NAMES = {21: "Arable", 22: "Orchard", 33: "Forêt & bois", 44: "City"}


def write_names(folder, names, name="map.csv", colours=None):
    rows = [f'{code},"{text}"' + (f",{colours[code]}" if colours else "") for code, text in names.items()]
    (folder / name).write_text(
        "value,name" + (",colour" if colours else "") + "\n" + "\n".join(rows), encoding="utf-8"
    )


def classes_of(legend):
    return [(c.code, c.key, c.name, c.colour) for c in legend.classes]


def test_the_map_s_own_names_and_colours_become_its_legend(place):
    write_map(place, list(NAMES))
    write_names(place, NAMES, colours={21: "#010203", 22: "#040506", 33: "#070809", 44: "#0a0b0c"})
    found = write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    assert classes_of(load_legend("p-legend.toml", place)) == [
        (21, "arable", "Arable", "#010203"),
        (22, "orchard", "Orchard", "#040506"),
        (33, "foret-bois", "Forêt & bois", "#070809"),
        (44, "city", "City", "#0a0b0c"),
    ]
    assert "4 of 4 names from map.csv" in found
    assert "   21   25.00 %  Arable\n" in found
    assert load_project(place / "p.toml").legend.find("city").code == 44


def test_a_packaged_legend_of_other_names_is_not_proposed(place):
    names = {code: f"Thing {code}" for code in ALL_12} | {12: "Water"}
    write_names(place, names)
    found = write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    legend = load_legend("p-legend.toml", place)
    assert [c.name for c in legend.classes] == list(names.values())
    assert "12 of 12 names from map.csv; catalonia-12 has these codes, but other names" in found


def test_a_packaged_legend_is_proposed_where_names_agree(place):
    write_map(place, [10, 30, 40, 50, 80])
    write_names(
        place, {10: "Trees", 30: "Grassland", 40: "Crops", 50: "Built up area", 80: "Water bodies", 95: "Mangrove"}
    )
    found = write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    assert "legend: worldcover (11 classes): the codes fit and the names agree (map.csv)" in found
    assert settings_of(place / "p.toml")["legend"] == "worldcover"
    assert not (place / "p-legend.toml").exists()


def test_colours_are_evidence_for_a_legend_and_against_it(place):
    legend = load_legend("catalonia-12")
    path = write_map(place, ALL_12)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(
            1, {c.code: tuple(int(c.colour[i : i + 2], 16) for i in (1, 3, 5)) for c in legend.classes}
        )
    found = write_project([str(place / "scene.tif")], path, place / "p.toml")
    assert (
        "legend: catalonia-12 (12 classes): the codes fit, 12 of 12 colours too (palette in map.tif), check"
        in found
    )
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {code: (code, 2 * code, 255 - code) for code in ALL_12})
    found = write_project([str(place / "scene.tif")], path, place / "q.toml")
    assert (
        "legend: catalonia-12 (12 classes): the codes fit, 0 of 12 colours do (palette in map.tif), check" in found
    )


@pytest.mark.parametrize("nodata", [255, None])
def test_two_years_of_one_product_have_the_same_classes(place, nodata):
    write_map(place, range(9), nodata=nodata)
    found = write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    assert "legend: dynamic-world (9 classes)" in found
    assert "    0   11.11 %  Water\n" in found
    told = "check:  class 0 (11.1 % of the pixels) is 'Water' there, unless codes = { 0 = \"nodata\" }" in found
    assert told is (nodata is None)
    project = load_project(place / "p.toml")
    assert project.table(project.areas[0]).table[:9].tolist() == list(range(9))


def test_a_map_of_unknown_codes_with_zeros_is_told_that_0_may_be_a_class(place):
    write_map(place, [0, 77, 78], nodata=None)
    found = write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    assert "    0   33.33 %  nodata\n" in found
    assert "check:  class 0 (33.3 % of the pixels) may be a class" in found


def test_names_decide_whether_0_is_a_class(place):
    write_map(place, [0, 77, 78], nodata=None)
    write_names(place, {0: "Sea", 77: "Land", 78: "No data"})
    found = write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    legend = load_legend("p-legend.toml", place)
    assert classes_of(legend)[0][:3] == (0, "sea", "Sea")
    assert (legend.nodata, legend.also_nodata) == (255, (78,))
    assert "may be a class" not in found
    project = load_project(place / "p.toml")
    assert project.table(project.areas[0]).table[[0, 77, 78]].tolist() == [0, 77, 255]


def test_codes_of_corine_are_led_to_its_legend_by_the_packaged_crosswalk(place):
    write_map(place, [*load_crosswalk("corine-codes").codes][:40], dtype=np.int16, nodata=-32768)
    found = write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    assert "legend: corine (44 classes): by crosswalk corine-codes, the codes fit" in found
    assert settings_of(place / "p.toml")["area"][0]["crosswalk"] == "corine-codes"
    project = load_project(place / "p.toml")
    assert project.table(project.areas[0]).legend_code(311) == 23


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_codes_that_no_legend_can_have_are_numbered_and_get_a_crosswalk(place, dtype):
    write_map(place, [-5, 1000, 70_000], dtype=dtype, nodata=0)
    write_names(place, {-5: "Sea", 1000: "Land", 70_000: "Ice"})
    write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    assert [c[:3] for c in classes_of(load_legend("p-legend.toml", place))] == [
        (1, "sea", "Sea"),
        (2, "land", "Land"),
        (3, "ice", "Ice"),
    ]
    assert load_crosswalk("p-crosswalk.toml", place).codes == {-5: 1, 1000: 2, 70_000: 3}
    project = load_project(place / "p.toml")
    assert [project.table(project.areas[0]).legend_code(code) for code in (-5, 1000, 70_000, 0, 7)] == [
        1,
        2,
        3,
        0,
        -1,
    ]


def test_whole_numbers_as_floats_with_nan_are_codes(place):
    values = np.resize(np.array([*ALL_12, np.nan], np.float32), (96, 96))
    write_raster(place / "map.tif", values, grid_at(96, 96), nodata=np.nan)
    found = write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    assert "legend: catalonia-12 (12 classes)" in found
    assert load_project(place / "p.toml").legend.name == "catalonia-12"


def test_a_picture_of_a_map_is_led_to_classes_by_its_colours(place):
    legend = load_legend("catalonia-12")
    codes = np.resize(np.array(ALL_12), (96, 96))
    table = np.array([[0] * 3, *([int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in legend.colours)], np.uint8)
    write_raster(place / "map.tif", table[codes].transpose(2, 0, 1), grid_at(96, 96), photometric="RGB")
    found = write_project([str(place / "scene.tif")], place / "map.tif", place / "p.toml")
    assert "legend: catalonia-12 (12 classes)" in found
    assert "  #ffff00    8.33 %  Herbaceous crops\n" in found
    project = load_project(place / "p.toml")
    assert project.table(project.areas[0]).legend_code(0xFFFF00) == 1
    write_raster(place / "map.tif", (table + 1)[codes].transpose(2, 0, 1), grid_at(96, 96), photometric="RGB")
    write_project([str(place / "scene.tif")], place / "map.tif", place / "q.toml")
    project = load_project(place / "q.toml")
    own = load_legend("q-legend.toml", place)
    assert {project.table(project.areas[0]).legend_code(int(c.colour[1:], 16)) for c in own.classes} == set(
        range(1, 13)
    )


def test_a_named_table_gives_the_names(place):
    write_map(place, list(NAMES))
    write_names(place, NAMES, name="legend.csv")
    write_project(
        [str(place / "scene.tif")], place / "map.tif", place / "p.toml", names_table=place / "legend.csv"
    )
    assert [c.name for c in load_legend("p-legend.toml", place).classes] == list(NAMES.values())


def test_other_legends_that_fit_as_well_are_told(tmp_path):
    scan = scan_codes(write_map(tmp_path, range(1, 12)))
    proposal = propose_legend(scan, ClassNames({}, {}))
    assert proposal.packaged
    (told,) = proposal.doubts
    assert {proposal.legend.name, *told.removeprefix("also fits: ").split(", ")} >= {
        "catalonia-12",
        "clcplus-backbone",
    }


def test_a_few_scattered_codes_of_a_large_legend_are_enough(tmp_path):
    scan = scan_codes(write_map(tmp_path, [1, 5, 24, 36, 37, 61, 111, 121, 141, 176, 190]))
    assert propose_legend(scan, ClassNames({}, {})).legend.name == "cdl"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Trees", "Tree cover", True),
        ("Built Area", "Built-up", True),
        ("Permanent water bodies", "Water", True),
        ("Crops", "Cropland", True),
        ("Arable", "Woody crops", False),
        ("City", "Forest", False),
        ("Class 7", "Isolated urban areas", False),
        ("", "Water", False),
        ("Conreus herbacis", "Herbaceous crops", False),
    ],
)
def test_names_agree_by_their_words(one, other, same):
    assert is_same_name(one, other) is same


@needs("worldcover")
def test_a_real_worldcover_map_is_known_by_its_codes_and_colours():
    path = DATA / "worldcover" / "worldcover_2021_n00e006.tif"
    scan = scan_codes(path)
    proposal = propose_legend(scan, read_class_names(path, codes=scan.found))
    assert proposal.legend.name == "worldcover"
    assert "colours too" in proposal.evidence


@needs("zion")
def test_a_real_map_of_nlcd_groups_is_known_by_its_codes():
    path = DATA / "zion" / "nlcd_8class.tif"
    scan = scan_codes(path)
    proposal = propose_legend(scan, read_class_names(path, codes=scan.found))
    assert proposal.legend.name == "nlcd-8"
