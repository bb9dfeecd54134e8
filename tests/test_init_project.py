"""`cobertes init`: what it finds in files that nobody has described, and that what it writes is a project."""

import dataclasses
import tomllib

import numpy as np
import pytest
import rasterio

from cobertes.errors import GridMismatchError, InputFileError, OutputExistsError, SettingsError, StorageError
from cobertes.geo.area import ONLY_SEASON
from cobertes.labels.legend import load_legend
from cobertes.workflow import init_project
from cobertes.workflow.init_project import propose_legend, scan_codes, write_project
from cobertes.workflow.project import load_project
from cobertes.workflow.scene_paths import open_scenes
from helpers.rasters import grid_at, write_raster

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
    assert project.table(project.areas[0])[[19, 41]].tolist() == [0, 0]


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
    proposed = propose_legend(scan_codes(write_map(tmp_path, list(codes))))
    assert (proposed and proposed.name) == legend


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
    monkeypatch.setattr(init_project, "SAMPLE_BLOCKS", 10)
    monkeypatch.setattr(init_project, "SAMPLE_PIXELS", 20_000)
    write_map(place, ALL_12, shape=(480, 480), pixel=2.0, tiled=True, blockxsize=32, blockysize=32)
    codes = scan_codes(place / "map.tif")
    assert not codes.all
    assert codes.counts.sum() == 19 * 32 * 32  # 225 blocks of which 20,000 pixels are 19
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
        (lambda f: write_map(f, [1, 300], dtype=np.int16), InputFileError, "holds 300, but class codes are from 0 to 255"),
        (lambda f: write_map(f, [1.5], dtype=np.float32), InputFileError, "holds float32, but class codes are whole numbers"),
        (lambda f: write_scene(f, "map.tif"), InputFileError, r"map\.tif has 4 bands, but a reference map has one"),
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
        InputFileError, match=r"can't read .*map\.tif, rows from \d+ on: .*truncated: fetch it again"
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
