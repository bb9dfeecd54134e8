"""Reference maps as people have them: codes of any type, colours, masks; and that every way out of an error is one."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from typer.testing import CliRunner

from cobertes.cli.main import app
from cobertes.errors import InputFileError, LegendError, UnknownCodesError
from cobertes.labels.aggregate import make_labels
from cobertes.labels.crosswalk import Crosswalk, load_crosswalk
from cobertes.labels.legend import Legend, LegendClass, load_legend
from cobertes.labels.method_comparison import compare_labels
from cobertes.labels.recode import recode_map
from helpers.rasters import UTM, grid_at, read_raster, write_raster

SCENE = grid_at(12, 12)
FINE = grid_at(48, 48, 2.5)
CATALONIA = load_legend("catalonia-12")
CORINE = {1: 211, 3: 311, 6: 112, 12: 523}
"""A CORINE code for some classes of catalonia-12."""
WALK = Crosswalk("clc", {code: target for target, code in CORINE.items()})


def classes(seed=0, shape=(48, 48)):
    """Codes of catalonia-12 in patches of 6 px."""
    small = np.random.default_rng(seed).choice([1, 3, 6, 12], (shape[0] // 6, shape[1] // 6))
    return np.kron(small, np.ones((6, 6), np.uint8)).astype(np.uint8)


def as_corine(codes):
    return np.vectorize(CORINE.get)(codes)


def labels_of(folder, reference, *, legend=CATALONIA, crosswalk=None, codes=None, grid=SCENE, **options):
    out = folder / "labels.tif"
    table = recode_map(reference, legend, crosswalk=crosswalk, codes=codes)
    report = make_labels(reference, grid, out, legend=legend, table=table, overwrite=True, **options)
    return read_raster(out), report


def expected_labels(folder, codes, *, known=None, grid=SCENE, fine=FINE):
    """Labels of the same classes as a plain uint8 map: what all other types have to give."""
    plain = codes if known is None else np.where(known, codes, 0).astype(np.uint8)
    write_raster(folder / "plain.tif", plain, fine)
    return labels_of(folder, folder / "plain.tif", grid=grid)[0]


# --- codes of any type -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
)
def test_every_type_gives_the_labels_of_bytes(tmp_path, dtype):
    codes = classes()
    write_raster(tmp_path / "map.tif", codes.astype(dtype), FINE, nodata=0)
    found, report = labels_of(tmp_path, tmp_path / "map.tif")
    np.testing.assert_array_equal(found, expected_labels(tmp_path, codes))
    values, counts = np.unique(codes, return_counts=True)
    assert report.source_counts == dict(zip(values.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("off_grid", [False, True])
@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "int64", "float32", "float64"])
def test_codes_above_255_are_led_to_classes_by_a_crosswalk(tmp_path, dtype, off_grid):
    codes = classes()
    fine = grid_at(48, 48, 2.6) if off_grid else FINE
    write_raster(tmp_path / "map.tif", as_corine(codes).astype(dtype), fine, nodata=0)
    found, report = labels_of(tmp_path, tmp_path / "map.tif", crosswalk=WALK)
    np.testing.assert_array_equal(found, expected_labels(tmp_path, codes, fine=fine))
    assert set(report.source_counts) == set(CORINE.values())


def test_packaged_crosswalks_take_corine_and_icgc_as_they_come(tmp_path):
    codes = classes()
    write_raster(tmp_path / "clc.tif", as_corine(codes).astype(np.int16), FINE, nodata=-32768)
    corine = load_legend("corine")
    found, _ = labels_of(tmp_path, tmp_path / "clc.tif", legend=corine, crosswalk=load_crosswalk("corine-codes"))
    assert set(np.unique(found)) <= {2, 12, 23, 44, corine.nodata}
    icgc = np.select([codes == 1, codes == 3, codes == 6, codes == 12], [111, 221, 341, 466])
    write_raster(tmp_path / "icgc.tif", icgc.astype(np.uint16), FINE)
    found, _ = labels_of(tmp_path, tmp_path / "icgc.tif", crosswalk=load_crosswalk("icgc-codes-to-catalonia-12"))
    np.testing.assert_array_equal(found, expected_labels(tmp_path, codes))


def test_whole_numbers_as_floats_with_nan_and_a_declared_value(tmp_path):
    codes = classes().astype(np.float32)
    known = np.ones(codes.shape, bool)
    known[:10], known[:, :7] = False, False
    codes[:10] = np.nan
    codes[10:, :7] = -3.4028234663852886e38
    write_raster(tmp_path / "map.tif", codes, FINE, nodata=-3.4028234663852886e38)
    found, _ = labels_of(tmp_path, tmp_path / "map.tif")
    np.testing.assert_array_equal(found, expected_labels(tmp_path, classes(), known=known))


@pytest.mark.parametrize(("value", "said"), [(1.5, "1.5"), (np.inf, "inf"), (-0.25, "-0.25")])
def test_fractions_are_refused_in_one_line_and_nothing_is_written(tmp_path, value, said):
    codes = classes().astype(np.float32)
    codes[30, 5] = value
    write_raster(tmp_path / "map.tif", codes, FINE, nodata=np.nan)
    with pytest.raises(
        InputFileError, match=rf"holds {said} in rows \d+ to \d+, but class codes are whole numbers"
    ) as e:
        labels_of(tmp_path, tmp_path / "map.tif")
    assert "gdal" not in str(e.value)
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]


def test_70_000_codes_go_through_ranges_and_singles(tmp_path):
    grid = grid_at(30, 30)
    values = np.arange(90_000, dtype=np.int32).reshape(300, 300)
    write_raster(tmp_path / "map.tif", values, grid_at(300, 300, 1.0), nodata=-1)
    codes = {"0-29999": 1, "30000..59999": 3, "default": 12, 45_000: 6} | dict.fromkeys(range(70000, 140000, 2), 6)
    found, report = labels_of(tmp_path, tmp_path / "map.tif", codes=codes, grid=grid, method="nearest")
    picked = values[5::10, 5::10]
    expected = np.select([picked < 30_000, picked < 60_000, (picked >= 70_000) & (picked % 2 == 0)], [1, 3, 6], 12)
    # the legend's own codes lie in the first range, which goes before them
    np.testing.assert_array_equal(found, expected)
    assert report.unknown == {}


def test_unknown_codes_of_a_wide_map_are_counted_and_listed(tmp_path):
    codes = as_corine(classes()).astype(np.uint16)
    codes[:2, :3] = 700
    codes[0, 4] = 65_535
    write_raster(tmp_path / "map.tif", codes, FINE)
    with pytest.raises(
        UnknownCodesError, match=r"do not know: 700 \(6 px, 0\.26 %\), 65535 \(1 px, 0\.0434 %\)\. Say what"
    ):
        labels_of(tmp_path, tmp_path / "map.tif", crosswalk=WALK)
    _, report = labels_of(tmp_path, tmp_path / "map.tif", crosswalk=WALK, unknown="nodata")
    assert report.unknown == {700: 6, 65_535: 1}


def test_a_map_in_the_codes_of_a_packaged_crosswalk_is_told_which(tmp_path):
    write_raster(tmp_path / "map.tif", as_corine(classes()).astype(np.uint16), FINE)
    with pytest.raises(
        UnknownCodesError, match=r"do not know: 112 .* packaged crosswalk corine-codes: `--crosswalk corine-codes`"
    ):
        labels_of(tmp_path, tmp_path / "map.tif", legend=load_legend("corine"))


def test_the_comparison_of_methods_takes_wide_codes_too(tmp_path):
    codes = classes()
    write_raster(tmp_path / "map.tif", as_corine(codes).astype(np.int32), FINE)
    write_raster(tmp_path / "plain.tif", codes, FINE)
    found = {}
    for name, walk in (("map", WALK), ("plain", None)):
        path = tmp_path / f"{name}.tif"
        table = recode_map(path, CATALONIA, crosswalk=walk)
        found[name] = compare_labels(path, SCENE, tmp_path / name, legend=CATALONIA, table=table)
    np.testing.assert_array_equal(found["map"].fine, found["plain"].fine)
    np.testing.assert_array_equal(found["map"].labels, found["plain"].labels)
    np.testing.assert_array_equal(found["map"].objects.lost, found["plain"].objects.lost)


def test_an_interrupted_pass_over_wide_codes_ends_with_the_same_bytes(tmp_path, monkeypatch):
    from cobertes.labels import label_pass, memory_plan

    monkeypatch.setattr(memory_plan, "WINDOW_PIXELS", 300)
    codes = as_corine(classes()).astype(np.int32)
    write_raster(tmp_path / "map.tif", codes, FINE)
    whole, report = labels_of(tmp_path, tmp_path / "map.tif", crosswalk=WALK)
    (tmp_path / "labels.tif").unlink()
    real, calls = label_pass.label_window, []

    def fails(*arguments):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(label_pass, "label_window", fails)
    with pytest.raises(KeyboardInterrupt):
        labels_of(tmp_path, tmp_path / "map.tif", crosswalk=WALK)
    monkeypatch.setattr(label_pass, "label_window", real)
    again, resumed = labels_of(tmp_path, tmp_path / "map.tif", crosswalk=WALK, resume="yes")
    np.testing.assert_array_equal(again, whole)
    assert resumed.source_counts == report.source_counts


# --- class 0, nodata and the legend's nodata ---------------------------------------------------------------


@pytest.mark.parametrize("nodata", [255, None, -1])
def test_water_of_dynamic_world_is_water_in_every_year(tmp_path, nodata):
    legend = load_legend("dynamic-world")
    dtype = np.int16 if nodata == -1 else np.uint8
    codes = np.kron(np.arange(64).reshape(8, 8) % 9, np.ones((6, 6))).astype(dtype)
    write_raster(tmp_path / "map.tif", codes, FINE, nodata=nodata)
    found, report = labels_of(tmp_path, tmp_path / "map.tif", legend=legend, method="nearest")
    np.testing.assert_array_equal(found, codes[2::4, 2::4])
    assert report.counts[0] == (codes[2::4, 2::4] == 0).sum()
    with rasterio.open(tmp_path / "labels.tif") as file:
        assert file.nodata == 255


def test_a_class_that_is_declared_as_nodata_stops_the_pass(tmp_path):
    write_raster(tmp_path / "map.tif", classes(), FINE, nodata=6)
    with pytest.raises(LegendError, match=r"map\.tif declares 6 as its nodata, but 6 is 'Urban area'"):
        labels_of(tmp_path, tmp_path / "map.tif")
    found, _ = labels_of(tmp_path, tmp_path / "map.tif", codes={6: "urban"})
    assert 6 in found
    found, _ = labels_of(tmp_path, tmp_path / "map.tif", codes={6: "nodata"})
    assert 6 not in found


def test_pixels_of_the_legend_s_nodata_in_a_map_that_declares_another_are_told(tmp_path, caplog):
    codes = classes()
    codes[:6, :6] = 0
    write_raster(tmp_path / "map.tif", codes, FINE, nodata=255)
    labels_of(tmp_path, tmp_path / "map.tif")
    assert (
        "map.tif declares 255 as its nodata, but legend 'catalonia-12' has 0 for it too: 36 px of 0 are left out"
        in caplog.text
    )
    caplog.clear()
    write_raster(tmp_path / "map.tif", codes, FINE, nodata=0)
    labels_of(tmp_path, tmp_path / "map.tif")
    assert not caplog.records


# --- colours and masks -------------------------------------------------------------------------------------


def painted(codes, legend=CATALONIA):
    """(3, H, W) colours of codes, black for others."""
    table = np.zeros((256, 3), np.uint8)
    for one in legend.classes:
        table[one.code] = [int(one.colour[i : i + 2], 16) for i in (1, 3, 5)]
    return table[codes].transpose(2, 0, 1)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("off_grid", [False, True])
def test_colours_are_classes_by_the_legend_s_palette(tmp_path, alpha, off_grid):
    codes, fine = classes(), grid_at(48, 48, 2.6) if off_grid else FINE
    known = np.ones(codes.shape, bool)
    known[:9] = not alpha
    bands = [*painted(codes), *([np.where(known, 255, 0).astype(np.uint8)] if alpha else [])]
    write_raster(
        tmp_path / "map.tif", np.stack(bands), fine, photometric="RGB", **({"alpha": "yes"} if alpha else {})
    )
    found, report = labels_of(tmp_path, tmp_path / "map.tif")
    np.testing.assert_array_equal(found, expected_labels(tmp_path, codes, known=known, fine=fine))
    assert report.unknown == {}


def test_bands_of_colours_in_another_order_are_taken_by_what_they_are(tmp_path):
    codes = classes()
    path = write_raster(tmp_path / "map.tif", painted(codes)[::-1], FINE)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    np.testing.assert_array_equal(labels_of(tmp_path, path)[0], expected_labels(tmp_path, codes))


def test_colours_that_no_class_has_are_listed(tmp_path):
    codes = classes()
    codes[0, :5] = 0
    write_raster(tmp_path / "map.tif", painted(codes), FINE, photometric="RGB")
    with pytest.raises(
        UnknownCodesError,
        match=r"holds colours that legend 'catalonia-12' does not have: #000000 \(5 px, 0\.217 %\)\. Give",
    ):
        labels_of(tmp_path, tmp_path / "map.tif")
    write_raster(tmp_path / "map.tif", painted(codes), FINE, photometric="RGB", nodata=0)
    assert labels_of(tmp_path, tmp_path / "map.tif")[1].unknown == {}


def test_codes_with_an_alpha_band_are_taken_where_it_is_opaque(tmp_path):
    codes = classes()
    known = np.arange(48)[:, None] >= np.full((1, 48), 13)
    path = write_raster(tmp_path / "map.tif", np.stack([codes, np.where(known, 255, 0).astype(np.uint8)]), FINE)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    np.testing.assert_array_equal(labels_of(tmp_path, path)[0], expected_labels(tmp_path, codes, known=known))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_an_internal_mask_and_a_nodata_value_add_up(tmp_path, dtype):
    codes = classes().astype(dtype)
    codes[:, :9] = 99
    mask = np.full(codes.shape, 255, np.uint8)
    mask[40:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write_raster(tmp_path / "map.tif", codes, FINE, nodata=99)
        with rasterio.open(path, "r+") as file:
            file.write_mask(mask)
    known = (mask > 0) & (codes != 99)
    np.testing.assert_array_equal(labels_of(tmp_path, path)[0], expected_labels(tmp_path, classes(), known=known))


def test_several_bands_that_are_no_colours_are_refused_by_name(tmp_path):
    bands = np.stack([classes(), classes(1)])
    write_raster(tmp_path / "map.tif", bands, FINE, names=["confidence", "class"])
    with pytest.raises(
        InputFileError,
        match=r"has 2 bands \(1 confidence, 2 class\), .* one band of class codes.*-b NUMBER map\.tif",
    ):
        labels_of(tmp_path, tmp_path / "map.tif")


# --- every way out that an error offers is one -------------------------------------------------------------


needs_gdal = pytest.mark.skipif(not shutil.which("gdal_translate"), reason="no GDAL programs on this machine")


@needs_gdal
def test_the_band_of_codes_can_be_written_to_a_file_of_its_own(tmp_path):
    write_raster(tmp_path / "map.tif", np.stack([classes(1), classes()]), FINE)
    subprocess.run(["gdal_translate", "-q", "-b", "2", "map.tif", "codes.tif"], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(
        labels_of(tmp_path, tmp_path / "codes.tif")[0], expected_labels(tmp_path, classes())
    )


@pytest.mark.skipif(not shutil.which("gdal_edit.py"), reason="no gdal_edit.py on this machine")
def test_a_wrong_declaration_of_nodata_can_be_taken_away(tmp_path):
    write_raster(tmp_path / "map.tif", classes(), FINE, nodata=6)
    subprocess.run(["gdal_edit.py", "-unsetnodata", tmp_path / "map.tif"], check=True)
    np.testing.assert_array_equal(
        labels_of(tmp_path, tmp_path / "map.tif")[0], expected_labels(tmp_path, classes())
    )


def test_the_crosswalk_that_a_message_names_labels_the_map(tmp_path):
    write_raster(tmp_path / "map.tif", as_corine(classes()).astype(np.uint16), FINE)
    legend = load_legend("corine")
    with pytest.raises(UnknownCodesError) as told:
        labels_of(tmp_path, tmp_path / "map.tif", legend=legend)
    named = str(told.value).split("--crosswalk ")[1].split("`")[0]
    found, report = labels_of(tmp_path, tmp_path / "map.tif", legend=legend, crosswalk=load_crosswalk(named))
    assert report.unknown == {}
    assert set(np.unique(found)) <= {2, 12, 23, 44}


def test_classes_of_a_picture_can_be_given_its_colours(tmp_path):
    codes = classes()
    mine = Legend("mine", 0, tuple(LegendClass(c, f"k{c}", f"N{c}", f"#{c:02x}0a0b") for c in (1, 3, 6, 12)))
    write_raster(tmp_path / "map.tif", painted(codes, mine), FINE, photometric="RGB")
    with pytest.raises(UnknownCodesError, match="in a legend of your own"):
        labels_of(tmp_path, tmp_path / "map.tif")
    np.testing.assert_array_equal(
        labels_of(tmp_path, tmp_path / "map.tif", legend=mine)[0], expected_labels(tmp_path, codes)
    )


def test_a_legend_of_codes_above_255_is_told_to_use_a_crosswalk_and_that_works(tmp_path):
    with pytest.raises(LegendError, match=r'code 311 \(.*Number the classes from 1, .* crosswalk: 311 = "forest"'):
        Legend("clc", 0, (LegendClass(311, "forest", "Forest", "#00ff00"),))
    legend = Legend("clc", 0, (LegendClass(1, "forest", "Forest", "#00ff00"),))
    write_raster(tmp_path / "map.tif", np.full((48, 48), 311, np.uint16), FINE)
    (tmp_path / "walk.toml").write_text('name = "clc"\n[codes]\n311 = "forest"\n')
    found, _ = labels_of(
        tmp_path, tmp_path / "map.tif", legend=legend, crosswalk=load_crosswalk("walk.toml", tmp_path)
    )
    assert (found == 1).all()


# --- the command line --------------------------------------------------------------------------------------


def test_the_command_takes_a_crosswalk_of_two_columns(tmp_path):
    write_raster(tmp_path / "map.tif", as_corine(classes()).astype(np.float32), FINE, nodata=np.nan)
    write_raster(tmp_path / "scene.tif", np.ones((2, 12, 12), np.uint16), SCENE)
    (tmp_path / "walk.csv").write_text(
        "code;class\n211;herbaceous-crops\n300-399;forest\n112;Urban area\n523;12\n"
    )
    words = ["labels", "map.tif", "--like", "scene.tif", "-o", "l.tif", "--crosswalk", "walk.csv"]
    ended = CliRunner().invoke(app, [str(tmp_path / w) if "." in w else w for w in words])
    assert ended.exit_code == 0, ended.output
    np.testing.assert_array_equal(read_raster(tmp_path / "l.tif"), expected_labels(tmp_path, classes()))


def test_torch_is_not_loaded_by_names_and_recoding():
    script = "import sys, cobertes.labels.recode, cobertes.labels.class_names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_grid_that_is_turned_takes_wide_codes(tmp_path):
    from odc.geo.geobox import GeoBox

    turned = GeoBox((48, 48), FINE.affine * Affine.rotation(9), UTM)
    codes = classes()
    write_raster(tmp_path / "map.tif", as_corine(codes).astype(np.int16), turned)
    found, _ = labels_of(tmp_path, tmp_path / "map.tif", crosswalk=WALK)
    np.testing.assert_array_equal(found, expected_labels(tmp_path, codes, fine=turned))
