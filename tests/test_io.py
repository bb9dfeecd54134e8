"""Opening and reading rasters: damaged files are named, and the process's warning filters stay as they are."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
from typer.testing import CliRunner

from cobertes.accuracy.disagreement import AuditedArea, audit_maps
from cobertes.cli.main import app
from cobertes.errors import InputFileError
from cobertes.geo.cog_writer import RasterSpec, new_raster
from cobertes.geo.io import open_raster, read_window, without_georeference_warning
from cobertes.geo.qgis_style import hex_to_rgb
from cobertes.geo.windows import Window
from cobertes.labels.legend import Legend, LegendClass
from cobertes.report import thumbnails, worst_tiles
from cobertes.survey.stratified_sampling import count_codes, open_map, values_at
from helpers.rasters import coordinates, grid_at, write_raster

LEGEND = Legend("two", 0, (LegendClass(1, "a", "A", "#102030"), LegendClass(2, "b", "B", "#a0b0c0")))
DAMAGED = r"can't read rows \d+ to \d+, columns \d+ to \d+ of .*damaged\.tif: .*may be truncated: fetch it again"


@pytest.fixture
def damaged(tmp_path):
    """A map of 256 x 256 codes, the lower two thirds of whose file are gone."""
    codes = np.random.default_rng(0).integers(1, 3, (256, 256)).astype(np.uint8)
    path = write_raster(tmp_path / "damaged.tif", codes, grid_at(256, 256), nodata=0, blockysize=8)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    return path


@pytest.fixture
def intact(tmp_path):
    codes = np.random.default_rng(1).integers(1, 3, (256, 256)).astype(np.uint8)
    return write_raster(tmp_path / "intact.tif", codes, grid_at(256, 256), nodata=0)


def audit(damaged, intact):
    audit_maps([AuditedArea("area", damaged, intact, intact)], LEGEND)


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda bad, _: thumbnails.read_codes(bad, 4), id="report, map"),
        pytest.param(lambda bad, _: thumbnails.read_confidence(bad, 4), id="report, confidence"),
        pytest.param(lambda bad, good: thumbnails.disagreement(good, bad, LEGEND, 4), id="report, disagreement"),
        pytest.param(lambda bad, _: thumbnails.count_codes(bad), id="report, areas"),
        pytest.param(lambda bad, _: worst_tiles._read(bad, Window(200, 0, 50, 50)), id="report, worst tiles"),
        pytest.param(audit, id="audit-map"),
        pytest.param(lambda bad, _: count_codes(open_map(bad)), id="sample-accuracy"),
        pytest.param(
            lambda bad, _: values_at(
                open_map(bad), *(grid_at(256, 256).affine * (np.array([9.5]), np.array([250.5])))
            ),
            id="estimate-accuracy",
        ),
    ],
)
def test_every_reader_names_the_damaged_file_and_the_window(damaged, intact, read):
    with pytest.raises(InputFileError, match=DAMAGED):
        read(damaged, intact)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample-accuracy", "damaged.tif", "-o", "sample.gpkg"],
        ["labels", "damaged.tif", "--like", "intact.tif", "-o", "labels.tif", "--legend", "two.toml"],
        ["compare-labels", "damaged.tif", "--like", "intact.tif", "-o", "comparison", "--legend", "two.toml"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_end_with_2_and_one_line(damaged, intact, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.toml").write_text(
        'name = "two"\nnodata = 0\n'
        '[[class]]\ncode = 1\nkey = "a"\ncolour = "#102030"\n[[class]]\ncode = 2\nkey = "b"\ncolour = "#a0b0c0"\n'
    )
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "error: can't read rows" in " ".join(result.stderr.split())
    assert "damaged.tif" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_window_is_read_from_a_file_or_a_dataset_in_the_shape_of_its_bands(tmp_path):
    values = coordinates((40, 50))
    path = write_raster(tmp_path / "a.tif", values, grid_at(40, 50))
    window = Window(3, 7, 10, 20)
    np.testing.assert_array_equal(read_window(path, window), values[:, 3:13, 7:27])
    with open_raster(path) as dataset:
        np.testing.assert_array_equal(read_window(dataset, window, 2), values[1, 3:13, 7:27])
        np.testing.assert_array_equal(read_window(dataset, None, [2, 1]), values[::-1])
        assert read_window(dataset, None, 1, shape=(4, 5)).shape == (4, 5)
        assert read_window(dataset, None, [1], shape=(4, 5)).shape == (1, 4, 5)


def test_importing_leaves_the_warning_filters_alone():
    script = (
        "import warnings; before = list(warnings.filters); import cobertes.geo.scene as s, cobertes.geo.clip; "
    )
    script += (
        "own = [f for f in warnings.filters if f not in before and 'Georeferenced' in f[2].__name__]; print(own)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_file_without_transform_is_opened_without_warning(tmp_path):
    path = write_raster(tmp_path / "plain.tif", np.ones((4, 4), np.uint8), grid_at(4, 4, crs=None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with without_georeference_warning():  # as from another thread, which is still inside
            open_raster(path).close()
        assert list(warnings.filters) == before


def test_the_specification_of_a_raster_stays_as_it_is_while_tags_come_last(tmp_path):
    spec = RasterSpec("uint8", ("a",), tags={"units": "percent"})
    with pytest.raises(TypeError):
        spec.tags["units"] = "m"
    written = []
    with new_raster(
        tmp_path / "a.tif", grid_at(8, 8), spec, final_tags=lambda: {"rows": str(len(written))}
    ) as pixels:
        pixels[:] = 1
        written.append(8)
    with open_raster(tmp_path / "a.tif") as file:
        assert (file.tags()["units"], file.tags()["rows"]) == ("percent", "1")
    assert dict(spec.tags) == {"units": "percent"}


def test_windows_and_colours_for_other_programs():
    window = Window(3, 7, 10, 20).to_rasterio()
    assert (window.row_off, window.col_off, window.height, window.width) == (3, 7, 10, 20)
    assert hex_to_rgb("#0a80FF") == (10, 128, 255)
