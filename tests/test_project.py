"""project.toml: what it may say, which files it finds, and what people read when it is wrong."""

import re
from pathlib import Path

import numpy as np
import pytest

from cobertes.errors import (
    BandMismatchError,
    GridMismatchError,
    InputFileError,
    LegendError,
    SettingsError,
    SplitError,
)
from cobertes.geo.bands import default_rgb
from cobertes.workflow.project import load_project
from cobertes.workflow.run_folder import RunFolder
from cobertes.workflow.scene_paths import file_name, open_scenes, scene_files
from helpers.projects import BANDS, write_ground, write_project
from helpers.rasters import DATA, grid_at, needs, write_raster


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ground")
    write_ground(folder)
    return folder


@pytest.fixture
def place(ground, tmp_path):
    for file in ground.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


def project_of(folder, text):
    path = folder / "project.toml"
    path.write_text(text, encoding="utf-8")
    return load_project(path)


HEAD = 'name = "p"\nlegend = "catalonia-12"\n'


def test_a_project_knows_its_areas_seasons_bands_and_legend(place):
    project = load_project(write_project(place))
    (area,) = project.areas
    assert (area.name, project.seasons, project.bands) == ("here", ("april", "august"), BANDS)
    assert area.shape == (96, 96)
    assert len(project.legend) == 12
    assert project.rgb == ["B04", "B03", "B02"]


def test_one_season_needs_no_name(place):
    project = project_of(place, HEAD + '[[area]]\nscenes = "april.tif"\nreference = "reference.tif"')
    assert project.areas[0].name == "april"
    assert len(project.seasons) == 1


@pytest.mark.parametrize("spec", ["$BASE/april.tif", "~/april.tif"])
def test_variables_and_the_home_folder_are_expanded(place, monkeypatch, spec):
    monkeypatch.setenv("BASE", str(place))
    monkeypatch.setenv("HOME", str(place))
    (place / "elsewhere").mkdir()
    text = HEAD + f'[[area]]\nscenes = "{spec}"\nreference = "../reference.tif"'
    assert project_of(place / "elsewhere", text).areas[0].shape == (96, 96)


def band_files(folder, grid=None):
    grid = grid or grid_at(20, 20)
    for number, name in enumerate(("B02", "B03", "B04")):
        write_raster(folder / f"T31_{name}_10m.tif", np.full((20, 20), 100 + number, np.uint16), grid)


@pytest.mark.parametrize(
    "spec",
    [
        '"T31_*.tif"',
        '"T31_B02_10m.tif, T31_B03_10m.tif,T31_B04_10m.tif"',
        '["T31_B02_10m.tif", "T31_B0[34]*.tif"]',
    ],
)
def test_a_scene_may_be_a_glob_or_a_list_of_band_files(tmp_path, spec):
    band_files(tmp_path)
    write_raster(tmp_path / "map.tif", np.ones((20, 20), np.uint8), grid_at(20, 20))
    project = project_of(tmp_path, HEAD + f'[[area]]\nname = "a"\nscenes = {spec}\nreference = "map.tif"')
    assert project.bands == ("B02", "B03", "B04")


def test_a_scene_may_be_a_folder(tmp_path):
    band_files(tmp_path)
    assert len(scene_files(".", tmp_path)) == 3


def test_two_globs_make_an_area_per_stem(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for stem in ("001", "002", "010"):
        write_raster(tmp_path / "images" / f"{stem}.tif", np.ones((3, 8, 8), np.uint16))
        write_raster(tmp_path / "labels" / f"{stem}.tif", np.ones((8, 8), np.uint8))
    write_raster(tmp_path / "images" / "099.tif", np.ones((3, 8, 8), np.uint16))
    project = project_of(tmp_path, HEAD + '[[area]]\nscenes = "images/*.tif"\nreference = "labels/*.tif"')
    assert [area.name for area in project.areas] == ["001", "002", "010"]
    assert project.areas[2].reference == tmp_path / "labels" / "010.tif"


def test_globs_of_seasons_meet_in_what_the_star_stands_for(tmp_path):
    for stem in ("north", "south"):
        for season in ("april", "august"):
            write_raster(tmp_path / f"s2_{stem}_{season}.tif", np.ones((3, 8, 8), np.uint16))
        write_raster(tmp_path / f"map_{stem}.tif", np.ones((8, 8), np.uint8))
    scenes = '{ april = "s2_*_april.tif", august = "s2_*_august.tif" }'
    project = project_of(tmp_path, HEAD + f'[[area]]\nscenes = {scenes}\nreference = "map_*.tif"')
    assert [area.name for area in project.areas] == ["north", "south"]
    assert project.areas[1].scenes["august"].files == (str(tmp_path / "s2_south_august.tif"),)


def test_files_without_coordinates_are_told_once(tmp_path, caplog):
    for stem in "ab":
        write_raster(tmp_path / f"i{stem}.tif", np.ones((3, 8, 8), np.uint16))
        write_raster(tmp_path / f"l{stem}.tif", np.ones((8, 8), np.uint8))
    project_of(tmp_path, HEAD + '[[area]]\nscenes = "i*.tif"\nreference = "l*.tif"')
    assert [record.message for record in caplog.records] == [
        "no CRS in a, b: using pixel coordinates, areas count as unrelated places"
    ]


def test_a_project_that_only_predicts_needs_no_reference_map(place):
    text = 'name = "p"\n[[area]]\nscenes = "april.tif"\n[predict]\nmodel = "model.safetensors"'
    project = project_of(place, text)
    assert project.predict_only
    with pytest.raises(SettingsError, match="has the model's legend"):
        _ = project.legend


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("name = ", SettingsError, "not valid TOML"),
        (HEAD, SettingsError, "'area' is missing"),
        (HEAD + "[[area]]\nscenes = 'april.tif'", SettingsError, "area 'april' has no reference map"),
        ("name = 'p'\n[[area]]\nscenes = 'april.tif'\nreference = 'reference.tif'", SettingsError, "`legend` is missing"),
        (HEAD + "[[area]]\nscene = 'april.tif'", SettingsError, "unknown key 'area.0.scene'. Did you mean 'scenes'"),
        (HEAD + "batchsize = 3\n[[area]]\nscenes = 'april.tif'", SettingsError, "unknown key 'batchsize'"),
        (HEAD + "[train]\nbatchsize = 3", SettingsError, "unknown key 'train.batchsize'. Did you mean 'batch-size'"),
        (HEAD + "[train]\nepochs = 0", SettingsError, "'train.epochs': input should be greater than or equal to 1, found 0"),
        (HEAD + "[train]\nbatch-size = 0", SettingsError, "'train.batch-size': input should be greater than or equal to 1 or 'auto', found 0"),
        (HEAD + "[train]\nwindow = 0", SettingsError, "'train.window': input should be greater than or equal to 1 or a valid list, found 0"),
        (HEAD + "[split]\nby = 'tile'", SettingsError, "'split.by': input should be 'block', 'area', 'group' or 'polygons', found 'tile'"),
        (HEAD + "[[area]]\nscenes = 'aprl.tif'\nreference = 'reference.tif'", InputFileError, "no scene at .*april.tif'"),
        (HEAD + "[[area]]\nscenes = 'april.tif'\nreference = 'refrence.tif'", InputFileError, "Did you mean 'reference.tif'"),
        (HEAD + "[[area]]\nscenes = 'x*.tif'\nreference = 'reference.tif'", InputFileError, "no raster matches .*x\\*"),
        (HEAD + "[[area]]\nscenes = 'a*.tif'\nreference = 'r*.tif'", InputFileError, "no stem is in both"),
        (HEAD.replace("-12", "-21") + "[[area]]\nscenes = 'april.tif'", LegendError, "Did you mean 'catalonia-12'"),
        (
            HEAD + "[tiles]\ndrop-only = ['wter']\n[[area]]\nscenes = 'april.tif'\nreference = 'reference.tif'",
            LegendError,
            "unknown class 'wter'.*Did you mean 'water'",
        ),
        (
            HEAD + "bands = ['reflectance']\n[[area]]\nscenes = 'april.tif'\nreference = 'reference.tif'",
            BandMismatchError,
            r"6 bands \(B02.*but 1 are named",
        ),
        (
            HEAD + "bands = ['B02', 'B99']\n[[area]]\nscenes = 'april.tif'\nreference = 'reference.tif'",
            BandMismatchError,
            "no band 'B99'",
        ),
        (HEAD + "[split]\nby = 'group'\n[[area]]\nscenes = 'april.tif'", SettingsError, "needs split.groups"),
        (HEAD + "[[area]]\nscenes = []\nreference = 'reference.tif'", InputFileError, "a scene without a file"),
        (HEAD + "[[area]]\nscenes = ' '\nreference = 'reference.tif'", InputFileError, "a scene without a file: ' '. Name"),
        ("name = ''\n[[area]]\nscenes = 'april.tif'", SettingsError, "'name': string should have at least 1 character"),
        (
            HEAD + "rgb = ['B04', 'B3', 'B02']\n[[area]]\nscenes = 'april.tif'\nreference = 'reference.tif'",
            BandMismatchError,
            "no band 'B3' to show in `rgb`. Did you mean 'B03'",
        ),
        (
            HEAD + "rgb = ['B04']\n[[area]]\nscenes = 'april.tif'\nreference = 'reference.tif'",
            SettingsError,
            "`rgb` names 1 bands, needed 3",
        ),
        (
            HEAD + "[split]\nvalidation = 0.6\ntest = 0.4\n[[area]]\nscenes = 'april.tif'",
            SettingsError,
            "split.validation = 0.6 and split.test = 0.4 leave nothing to train on",
        ),
        (
            HEAD + "[predict]\nprecision = 'int8'\nengine = 'torch'\n[[area]]\nscenes = 'april.tif'\nreference = 'reference.tif'",
            SettingsError,
            'precision = "int8" runs in OpenVINO on the processor, not with engine "torch"',
        ),
        (HEAD + "[model]\narchitecture = 'unet++'\n[[area]]\nscenes = 'april.tif'\nreference = 'reference.tif'", SettingsError, r"'unet\+\+' needs a timm backbone: set model.encoder"),
        (
            HEAD + "[model]\narchitecture = 'segformer'\nencoder = 'resnet18'\nseasons = 'shared'\n[[area]]\nscenes = 'april.tif'\nreference = 'reference.tif'",
            SettingsError,
            'model.seasons = "shared" goes with model.architecture = "unet", not \'segformer\'',
        ),
        (HEAD + "[train]\nfreeze-encoder = 1\n[[area]]\nscenes = 'april.tif'\nreference = 'reference.tif'", SettingsError, "one with random weights has learnt nothing yet"),
        (HEAD + "[train]\nclass-weights = { wter = 2 }\n[[area]]\nscenes = 'april.tif'\nreference = 'reference.tif'", LegendError, "unknown class 'wter'.*Did you mean 'water'"),
        (
            HEAD + "[labels]\nas-nodata = ['water']\n[train]\nclass-weights = { water = 2 }\n[[area]]\nscenes = 'april.tif'\nreference = 'reference.tif'",
            LegendError,
            "unknown class 'water'",
        ),
        (
            HEAD + "[predict]\nprecision = 'int8'\nwindow = 64\n[[area]]\nscenes = 'april.tif'\nreference = 'reference.tif'",
            SettingsError,
            "Leave predict.window out",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(place, text, error, message):
    with pytest.raises(error, match=message) as raised:
        project_of(place, text)
    assert "\n" not in str(raised.value)


def test_a_missing_project_file_says_how_to_get_one(tmp_path):
    with pytest.raises(InputFileError, match="no project file at .*cobertes init"):
        load_project(tmp_path / "project.toml")


def test_scenes_of_one_area_must_share_a_grid(place):
    write_raster(place / "other.tif", np.ones((6, 96, 95), np.uint16), grid_at(96, 95), names=BANDS)
    scenes = '{ april = "april.tif", august = "other.tif" }'
    with pytest.raises(GridMismatchError, match=r"other.tif is 95 x 96 px .* but .*april.tif is 96 x 96 px"):
        project_of(place, HEAD + f'[[area]]\nscenes = {scenes}\nreference = "reference.tif"')


def test_all_areas_need_the_same_seasons(place):
    areas = '[[area]]\nname = "{}"\nscenes = {{ {} = "april.tif" }}\nreference = "reference.tif"\n'
    with pytest.raises(SettingsError, match="area 'b' has the seasons august, but 'a' has april"):
        project_of(place, HEAD + areas.format("a", "april") + areas.format("b", "august"))
    with pytest.raises(SettingsError, match="two areas are called 'a'"):
        project_of(place, HEAD + areas.format("a", "april") * 2)


@pytest.mark.parametrize("file", [RunFolder.confidence, RunFolder.purity, RunFolder.fractions])
def test_areas_that_would_write_one_file_are_refused(place, file):
    name = file(RunFolder(place), "a").stem
    areas = "".join(
        f'[[area]]\nname = "{one}"\nscenes = "april.tif"\nreference = "reference.tif"\n' for one in (name, "a")
    )
    with pytest.raises(SettingsError, match=f"'a' and '{name}' would both write {name}.tif. Rename one"):
        project_of(place, HEAD + areas)


def test_an_area_without_a_group_is_named(place):
    (place / "groups.csv").write_text("area,group\nhre,1\n")
    text = HEAD + "[split]\nby = 'group'\ngroups = 'groups.csv'\n[[area]]\nname = 'here'\nscenes = 'april.tif'"
    with pytest.raises(SplitError, match="no group for 1 areas, first 'here'. Did you mean 'hre'"):
        project_of(place, text)


def test_seasons_on_the_command_line(place):
    scenes = open_scenes([f"april={place / 'april.tif'}", f"august={place / 'august.tif'}"])
    assert list(scenes) == ["april", "august"]
    with pytest.raises(SettingsError, match="two scenes of season 'april'"):
        open_scenes([f"april={place / 'april.tif'}", f"april={place / 'august.tif'}"])
    with pytest.raises(SettingsError, match="name the season of every scene"):
        open_scenes([f"april={place / 'april.tif'}", str(place / "august.tif")])
    with pytest.raises(BandMismatchError, match="'B02' is there more than once.*april=FILE"):
        open_scenes([str(place / "april.tif"), str(place / "august.tif")])


def test_natural_colours_are_found_by_name():
    assert default_rgb(["B02", "B03", "B04", "B08"]) == ["B04", "B03", "B02"]
    assert default_rgb(["blue", "nir", "green", "red"]) == ["red", "green", "blue"]
    assert default_rgb(["x", "y", "z", "w"]) == ["x", "y", "z"]
    assert default_rgb(["x"]) == ["x", "x", "x"]


@needs("hls-worldcover")
def test_216_chips_in_three_lines(monkeypatch):
    monkeypatch.setenv("COBERTES_DATA", str(DATA))
    path = Path(__file__).parents[1] / "examples" / "hls-worldcover.toml"
    project = load_project(path)
    assert len(project.areas) == 216
    assert len({area.group for area in project.areas}) > 20
    assert len(re.findall(r"^(?:\[\[area|scenes|reference)", path.read_text(), re.MULTILINE)) == 3


@pytest.mark.parametrize("reference", ["*/labels.tif", "?/labels.tif", "maps/*.tif"])
def test_a_star_may_stand_for_folders(tmp_path, reference):
    (tmp_path / "maps").mkdir()
    for stem in ("a", "b"):
        (tmp_path / stem).mkdir()
        write_raster(tmp_path / stem / "scene.tif", np.ones((3, 8, 8), np.uint16))
        write_raster(tmp_path / stem / "labels.tif", np.ones((8, 8), np.uint8))
        write_raster(tmp_path / "maps" / f"{stem}.tif", np.ones((8, 8), np.uint8))
    text = HEAD + f'[[area]]\nscenes = "*/scene.tif"\nreference = "{reference}"'
    if "?" in reference:  # what it stands for has no name
        with pytest.raises(SettingsError, match=r"both for the area 'labels'\. Name the files so"):
            project_of(tmp_path, text)
        return
    areas = project_of(tmp_path, text).areas
    assert [area.name for area in areas] == ["a", "b"]
    assert areas[1].scenes["scene"].files == (str(tmp_path / "b" / "scene.tif"),)


def test_files_without_a_partner_are_told(tmp_path, caplog):
    for name in ("i1", "i2", "i3"):
        write_raster(tmp_path / f"{name}.tif", np.ones((3, 8, 8), np.uint16), grid_at(8, 8))
    for name in ("l1", "l9"):
        write_raster(tmp_path / f"{name}.tif", np.ones((8, 8), np.uint8), grid_at(8, 8))
    project = project_of(tmp_path, HEAD + '[[area]]\nscenes = "i*.tif"\nreference = "l*.tif"')
    assert [area.name for area in project.areas] == ["1"]
    assert [record.message for record in caplog.records] == [
        "left out, because not every one of the patterns finds a file for them: 2, 3, 9"
    ]


def test_a_variable_that_is_not_set_is_named(place, monkeypatch):
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    for spec in ("$NO_SUCH_FOLDER/april.tif", "${NO_SUCH_FOLDER}/*.tif"):
        with pytest.raises(SettingsError, match="environment variable NO_SUCH_FOLDER is not set. Set it"):
            project_of(place, HEAD + f'[[area]]\nscenes = "{spec}"\nreference = "reference.tif"')
    (place / "a$b.tif").symlink_to(place / "april.tif")
    assert scene_files("a$b.tif", place) == [str(place / "a$b.tif")]


def test_names_stay_within_their_folder():
    names = {
        "Vall d'Aran": "Vall_d_Aran",
        "../../x": "__.._x",
        "..": "_",
        "/x": "_x",
        "s2_2018.v1-a": "s2_2018.v1-a",
    }
    assert {name: file_name(name) for name in names} == names


def test_an_area_whose_name_is_no_file_name_finds_its_group(place):
    (place / "groups.csv").write_text("area,group\nVall d'Aran,1\n")
    area = '[[area]]\nname = "Vall d\'Aran"\nscenes = "april.tif"\nreference = "reference.tif"'
    (found,) = project_of(place, HEAD + f"[split]\nby = 'group'\ngroups = 'groups.csv'\n{area}").areas
    assert (found.name, found.group) == ("Vall_d_Aran", "1")
