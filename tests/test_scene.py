"""Scenes: whatever files they are made of, a pixel is read where it lies."""

import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from scipy.ndimage import map_coordinates

from cobertes.errors import BandMismatchError, GridMismatchError, InputFileError
from cobertes.geo import scene as scene_module
from cobertes.geo.nodata import valid_mask_chw
from cobertes.geo.scene import Scene, open_scene
from cobertes.geo.windows import Window
from helpers.rasters import DATA, coordinates, grid_at, needs, write_raster

SHAPE = 120, 180
EVERYTHING = Window(0, 0, *SHAPE)


def write_granule(folder, crs="EPSG:32631"):
    """Bands of 10, 20 and 60 m: each pixel holds 100 times the coordinates (row or column) of its middle."""
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]] + 1.0
    made = {
        "B02": (rows, 1),
        "B03": (cols, 1),
        "B05": (rows, 2),
        "B11": (cols, 2),
        "B01": (rows, 6),
        "B09": (cols, 6),
    }
    for name, (values, factor) in made.items():
        height, width = SHAPE[0] // factor, SHAPE[1] // factor
        coarse = values.reshape(height, factor, width, factor).mean((1, 3))
        grid = grid_at(height, width, 10.0 * factor, crs)
        write_raster(folder / f"T31TDG_20180413_{name}_{10 * factor}m.tif", (100 * coarse).astype(np.uint16), grid)
    return sorted(str(path) for path in folder.glob("*.tif"))


# --- where pixels lie --------------------------------------------------------------------------------------


@pytest.mark.parametrize("crs", ["EPSG:32631", None])
def test_coarser_bands_come_onto_the_finest_grid_unshifted(tmp_path, crs):
    wanted = ["B02", "B03", "B05", "B11", "B01", "B09"]
    scene = open_scene(write_granule(tmp_path, crs), wanted)
    assert scene.band_names == tuple(wanted)
    assert scene.grid == grid_at(*SHAPE, crs=crs)
    assert (scene.dtype, scene.shape) == ("uint16", SHAPE)
    rows, cols = 100 * coordinates(SHAPE)
    for window in (EVERYTHING, Window(17, 33, 41, 57), Window(101, 3, 1, 1)):
        values, valid = scene.read_chw(window)
        assert valid.all()
        # a ramp stays a ramp under bilinear interpolation, but for half a coarse pixel at the edges
        inner = Window(3, 3, SHAPE[0] - 6, SHAPE[1] - 6)
        part = window.intersection(inner)
        for band, exact in zip(values, [rows, cols] * 3, strict=True):
            inside, truth = band[part.slices_in(window)], exact[part.slices]
            assert np.abs(inside.astype(int) - truth).max() <= 1  # uint16 rounds
        np.testing.assert_array_equal(values[0], rows[window.slices])
        np.testing.assert_array_equal(values[1], cols[window.slices])


def test_a_window_reads_what_the_whole_scene_holds_there(tmp_path):
    scene = open_scene(write_granule(tmp_path))
    whole, _ = scene.read_chw(EVERYTHING)
    for window in (Window(0, 0, 5, 5), Window(59, 77, 61, 103), Window(7, 100, 50, 1)):
        np.testing.assert_array_equal(scene.read_chw(window)[0], whole[:, *window.slices])


def test_only_the_bands_in_use_decide_the_grid(tmp_path):
    scene = open_scene(write_granule(tmp_path), ["B05", "B01"])
    assert scene.grid == grid_at(60, 90, 20.0)
    assert len(scene.files) == 2


@settings(max_examples=40, deadline=None)
@given(st.integers(-30, 60), st.integers(-30, 60), st.integers(1, 60), st.integers(1, 60))
def test_windows_that_reach_out_are_zero_and_invalid_there(scene_of_coordinates, row, col, height, width):
    scene, ground = scene_of_coordinates
    window = Window(row, col, height, width)
    values, valid = scene.read_chw(window)
    assert values.dtype == np.int32
    rows, cols = np.mgrid[row : row + height, col : col + width]
    inside = (rows >= 0) & (cols >= 0) & (rows < 31) & (cols < 43)
    np.testing.assert_array_equal(valid, inside)
    np.testing.assert_array_equal(values[0], np.where(inside, rows + 1, 0))
    np.testing.assert_array_equal(values[1], np.where(inside, cols + 1, 0))
    assert ground.shape == (2, 31, 43)


@pytest.fixture(scope="module")
def scene_of_coordinates(tmp_path_factory):
    ground = coordinates((31, 43))
    path = tmp_path_factory.mktemp("scene") / "s.tif"
    return open_scene([str(write_raster(path, ground, grid_at(31, 43)))]), ground


def test_scenes_without_crs_are_read_in_pixels(tmp_path):
    path = write_raster(tmp_path / "chip.tif", coordinates((12, 9), np.int16))
    scene = open_scene([str(path)])
    assert scene.grid == GeoBox((12, 9), Affine.identity(), None)
    np.testing.assert_array_equal(scene.read_chw(Window(3, 4, 5, 5))[0], coordinates((12, 9))[:, 3:8, 4:9])


@needs("granule-laos")
def test_a_real_granule_is_read_at_10_m_unshifted():
    names = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
    scene = open_scene([str(DATA / "granule-laos" / f"{name}.tif") for name in names])
    assert scene.band_names == tuple(names)
    assert scene.shape == (1068, 1068)
    window = Window(301, 402, 240, 240)
    values, valid = scene.read_chw(window)
    assert valid.all()
    for name, factor in (("B04", 1), ("B8A", 2), ("B11", 2), ("B01", 6)):
        with rasterio.open(DATA / "granule-laos" / f"{name}.tif") as file:
            stored = file.read(1).astype(float)
        # bilinear: the middle of a fine pixel, in coarse pixels counted from the middle of the first
        at = [(np.arange(start, start + 240) + 0.5) / factor - 0.5 for start in (window.row, window.col)]
        exact = map_coordinates(stored, np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")
        assert np.abs(values[names.index(name)] - exact).max() <= 0.51  # uint16 rounds


@needs("granule-laos")
def test_a_granule_s_bands_can_be_chosen_by_name():
    files = sorted(str(path) for path in (DATA / "granule-laos").glob("B*.tif"))
    scene = open_scene(files, ["b8a", "B11"])
    assert scene.shape == (534, 534)
    assert [band.path.rsplit("/", 1)[1] for band in scene.bands] == ["B8A.tif", "B11.tif"]


# --- which bands -------------------------------------------------------------------------------------------


def flat(path, bands=1, size=4, names=(), value=None, **options):
    values = np.stack([np.full((size, size), 1 + i if value is None else value) for i in range(bands)])
    return str(
        write_raster(
            path, values.astype(options.pop("dtype", "uint16")), grid_at(size, size), names=names, **options
        )
    )


def first_values(scene):
    return scene.read_chw(Window(0, 0, 1, 1))[0][:, 0, 0].tolist()


def test_bands_are_found_by_description_in_any_order(tmp_path):
    path = flat(tmp_path / "a.tif", 3, names=("B02", "B03", "B04"))
    assert open_scene([path]).band_names == ("B02", "B03", "B04")
    scene = open_scene([path], ["b04", "B02"])
    assert (scene.band_names, first_values(scene)) == (("b04", "B02"), [3, 1])


def test_bands_are_found_by_a_word_of_the_file_name(tmp_path):
    files = [flat(tmp_path / f"L8_{name}_30m.tif", value=i) for i, name in enumerate(("nir", "red"), start=1)]
    assert first_values(open_scene(files, ["red", "nir"])) == [2, 1]
    assert open_scene(files).band_names == ("L8_nir_30m", "L8_red_30m")
    # also where the files have descriptions that say something else
    files = [
        flat(tmp_path / f"T31_{name}.tif", names=("reflectance",), value=i) for i, name in ((1, "B02"), (2, "B03"))
    ]
    assert first_values(open_scene(files, ["B03", "B02"])) == [2, 1]


def test_unnamed_bands_are_named_in_the_order_of_the_files(tmp_path):
    path = flat(tmp_path / "a.tif", 2)
    assert open_scene([path]).band_names == ("band1", "band2")
    scene = open_scene([path], ["red", "nir"])
    assert (scene.band_names, first_values(scene)) == (("red", "nir"), [1, 2])
    files = [flat(tmp_path / "a.tif", 2), flat(tmp_path / "b.tif", 2, value=7)]
    assert open_scene(files).band_names == ("band1", "band2", "band3", "band4")
    assert first_values(open_scene(files, ["a", "b", "c", "d"])) == [1, 2, 7, 7]


def test_bands_that_do_not_match_are_told_with_the_near_miss(tmp_path):
    path = flat(tmp_path / "a.tif", 3, names=("B02", "B03", "B04"))
    with pytest.raises(BandMismatchError, match=r"a\.tif: no band 'B08'\. Did you mean 'B0[234]'\?"):
        open_scene([path], ["B02", "B08"])
    with pytest.raises(BandMismatchError, match=r"a\.tif: no band 'nir'\. Known: B02, B03, B04"):
        open_scene([path], ["red", "nir"])
    with pytest.raises(BandMismatchError, match=r"3 bands \(B02, B03, B04\), but 2 are named \(x, y\)"):
        open_scene([path], ["x", "y"])
    with pytest.raises(BandMismatchError, match="the band 'B02' is there more than once"):
        open_scene([path], ["B02", "B02"])


def test_two_files_of_one_band_are_not_guessed_between(tmp_path):
    files = [
        flat(tmp_path / "T31_B02_10m.tif"),
        flat(tmp_path / "T31_B02_20m.tif"),
        flat(tmp_path / "T31_B03_10m.tif"),
    ]
    with pytest.raises(BandMismatchError, match=r"'B02' may be band 1 of .*10m\.tif or band 1 of .*20m\.tif"):
        open_scene(files, ["B02", "B03"])
    with pytest.raises(BandMismatchError, match=r"the band 'B02' is there more than once\. Say in `bands`"):
        open_scene(files)


def test_bands_of_other_ground_are_refused(tmp_path):
    one = flat(tmp_path / "a.tif")
    far = write_raster(tmp_path / "b.tif", np.ones((4, 4), np.uint16), grid_at(4, 4, origin=(0, 10_000)))
    with pytest.raises(GridMismatchError, match=r"b\.tif is 4 x 4 px.*must share CRS and extent"):
        open_scene([one, str(far)])
    other = write_raster(tmp_path / "c.tif", np.ones((4, 4), np.uint16), grid_at(4, 4, crs="EPSG:32632"))
    with pytest.raises(GridMismatchError, match="EPSG:32632"):
        open_scene([one, str(other)])


def test_bands_of_several_types_share_one_that_holds_all(tmp_path):
    files = [flat(tmp_path / "a.tif", value=200, dtype="uint8"), flat(tmp_path / "b.tif", value=-3, dtype="int16")]
    scene = open_scene(files)
    assert (scene.dtype, first_values(scene)) == ("int16", [200, -3])


# --- which pixels are empty --------------------------------------------------------------------------------


def valid_of(tmp_path, pixels, nodata=None, assumed=None):
    """Validity of a row of pixels, each given by its bands."""
    values = np.array(pixels).T[:, None]
    path = write_raster(tmp_path / "s.tif", values, grid_at(1, len(pixels)), nodata=nodata)
    scene = open_scene([str(path)], None, assumed)
    return scene.read_chw(Window(0, 0, 1, len(pixels)))[1][0].tolist()


def test_zero_in_all_bands_is_empty_where_nothing_says_so_or_zero_is_declared(tmp_path):
    pixels = np.array([(0, 0), (0, 5), (5, 0), (5, 5)], np.uint16)
    assert valid_of(tmp_path, pixels) == [False, True, True, True]
    assert valid_of(tmp_path, pixels, nodata=0) == [False, True, True, True]


def test_a_declared_value_empties_a_pixel_in_any_band(tmp_path):
    pixels = np.array([(0, 0), (65535, 5), (65535, 65535), (5, 5)], np.uint16)
    assert valid_of(tmp_path, pixels, nodata=65535) == [True, False, False, True]
    assert valid_of(tmp_path, pixels, assumed=65535) == [True, False, False, True]
    # what a file says comes before what the settings assume
    assert valid_of(tmp_path, pixels, nodata=5, assumed=65535) == [True, False, True, False]


def test_nan_empties_a_pixel_in_any_band(tmp_path):
    nan, inf = np.nan, np.inf
    pixels = np.array([(0, 0), (nan, 1), (nan, nan), (inf, 1), (1, 1)], np.float32)
    assert valid_of(tmp_path, pixels) == [False, False, False, False, True]
    assert valid_of(tmp_path, pixels, nodata=nan) == [True, False, False, False, True]
    assert valid_of(tmp_path, pixels, nodata=-9999) == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("uint16", -9999.0), ("int16", 65535.0), ("uint8", 0.5), ("uint16", np.nan)]
)
def test_a_value_that_pixels_can_not_have_empties_none(dtype, nodata):
    # 65535 would wrap to -1 in int16, -9999 to 55537 in uint16: both are values of valid pixels
    values = np.array([-1, 55537, 0, 1]).astype(dtype).reshape(1, 2, 2)
    assert valid_mask_chw(values, nodata).all()


def test_scenes_of_nothing_but_nodata_are_invalid_everywhere(tmp_path):
    assert not any(valid_of(tmp_path, np.full((5, 2), 65535, np.uint16), nodata=65535))
    assert not any(valid_of(tmp_path, np.full((5, 2), np.nan, np.float32)))


@pytest.mark.parametrize(("declared", "assumed"), [(65535, None), (None, 65535)])
def test_nodata_of_a_coarse_band_does_not_blend_into_its_neighbours(tmp_path, declared, assumed):
    coarse = np.full((10, 10), 1000, np.uint16)
    coarse[:, :5] = 65535
    files = [
        str(write_raster(tmp_path / "B02.tif", np.full((20, 20), 7, np.uint16), grid_at(20, 20), nodata=declared)),
        str(write_raster(tmp_path / "B05.tif", coarse, grid_at(10, 10, 20.0), nodata=declared)),
    ]
    values, valid = open_scene(files, None, assumed).read_chw(Window(0, 0, 20, 20))
    assert set(np.unique(values[1])) == {1000, 65535}
    assert valid[:, 10:].all()
    assert not valid[:, :9].any()


def test_files_that_declare_different_nodata_are_refused(tmp_path):
    files = [
        flat(tmp_path / "B02.tif", nodata=0),
        flat(tmp_path / "B03.tif", nodata=65535),
        flat(tmp_path / "B04.tif"),
    ]
    with pytest.raises(BandMismatchError, match=r"B03\.tif declares nodata 65535, but .*B02\.tif declares 0"):
        open_scene(files)
    assert open_scene(files, ["B02", "B04"]).nodata == 0


# --- how it is read ----------------------------------------------------------------------------------------


def test_a_truncated_file_is_named_with_the_rows_that_are_lost(tmp_path):
    path = write_raster(tmp_path / "s.tif", coordinates((400, 50)), grid_at(400, 50), blockysize=8)
    path.write_bytes(path.read_bytes()[:-20_000])
    scene = open_scene([str(path)])
    assert scene.read_chw(Window(0, 0, 8, 50))[1].all()
    message = r"can't read rows 300 to 400, columns 5 to 45 of .*s\.tif: .*The file may be truncated"
    with pytest.raises(InputFileError, match=message):
        scene.read_chw(Window(300, 5, 200, 40))


def test_a_truncated_coarse_band_is_told_too(tmp_path):
    coarse = write_raster(tmp_path / "B05.tif", coordinates((200, 200))[0], grid_at(200, 200, 20.0), blockysize=8)
    fine = write_raster(tmp_path / "B02.tif", coordinates((400, 400))[0], grid_at(400, 400))
    coarse.write_bytes(coarse.read_bytes()[:-80_000])
    with pytest.raises(InputFileError, match=r"can't read rows 300 to 400.*B05\.tif"):
        open_scene([str(fine), str(coarse)]).read_chw(Window(300, 0, 100, 100))


def test_scenes_travel_between_processes(tmp_path):
    scene = open_scene(write_granule(tmp_path), ["B02", "B05"], 9)
    before = scene.read_chw(EVERYTHING)
    again = pickle.loads(pickle.dumps(scene))
    assert again == scene
    assert isinstance(again, Scene)
    for a, b in zip(before, again.read_chw(EVERYTHING), strict=True):
        np.testing.assert_array_equal(a, b)


def test_threads_read_the_same_scene_at_once(tmp_path):
    scene = open_scene(write_granule(tmp_path))
    whole, _ = scene.read_chw(EVERYTHING)
    windows = [Window(row, col, 40, 40) for row in range(0, 80, 7) for col in range(0, 140, 11)]
    with ThreadPoolExecutor(4) as pool:
        for window, (values, _) in zip(windows, pool.map(scene.read_chw, windows), strict=True):
            np.testing.assert_array_equal(values, whole[:, *window.slices])


def test_a_thread_keeps_few_files_open_however_many_scenes_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(scene_module, "OPEN_FILES", 5)
    scenes = [open_scene([flat(tmp_path / f"{i}.tif", value=i + 1, compress="deflate")]) for i in range(12)]
    counted = []

    def read_all():
        for _ in range(2):
            for i, scene in enumerate(scenes):
                assert first_values(scene) == [i + 1]
                counted.append(len(scene_module._handles.open))

    thread = threading.Thread(target=read_all)
    thread.start()
    thread.join()
    assert len(counted) == 24
    assert max(counted) == 5


def test_a_file_that_was_replaced_is_seen_by_a_new_scene(tmp_path):
    path = flat(tmp_path / "s.tif", value=3)
    assert first_values(open_scene([path])) == [3]
    (tmp_path / "s.tif").unlink()
    flat(tmp_path / "s.tif", value=4)
    assert first_values(open_scene([path])) == [4]


def test_a_file_of_subdatasets_is_told(tmp_path):
    from_bands = {"driver": "GTiff", "dtype": "uint8", "height": 4, "width": 4, "count": 1}
    with rasterio.open(tmp_path / "page.tif", "w", **from_bands) as file:
        file.write(np.ones((1, 4, 4), np.uint8))
    (tmp_path / "container.vrt").write_text(
        '<VRTDataset rasterXSize="4" rasterYSize="4"><Metadata domain="SUBDATASETS">'
        f'<MDI key="SUBDATASET_1_NAME">{tmp_path / "page.tif"}</MDI></Metadata></VRTDataset>'
    )
    with pytest.raises(InputFileError, match=r"container\.vrt"):
        open_scene([str(tmp_path / "container.vrt")])


def test_a_vrt_is_a_scene(tmp_path):
    files = write_granule(tmp_path)
    source = next(path for path in files if "B02" in path)
    (tmp_path / "s.vrt").write_text(
        f'<VRTDataset rasterXSize="{SHAPE[1]}" rasterYSize="{SHAPE[0]}"><SRS>EPSG:32631</SRS>'
        "<GeoTransform>240000,10,0,4780000,0,-10</GeoTransform>"
        '<VRTRasterBand dataType="UInt16" band="1"><Description>B02</Description>'
        f"<SimpleSource><SourceFilename>{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    )
    scene = open_scene([str(tmp_path / "s.vrt")], ["B02"])
    np.testing.assert_array_equal(scene.read_chw(EVERYTHING)[0][0], 100 * coordinates(SHAPE)[0])


def test_opening_says_nothing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        open_scene(write_granule(tmp_path))
    assert not caplog.records
