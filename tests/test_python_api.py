"""The Python API: what a notebook calls, with public names alone."""

import json
import os
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import rasterio
import torch

import cobertes
from cobertes import (
    BandMismatchError,
    ConfusionMatrix,
    GridMismatchError,
    Legend,
    SettingsError,
    TileDataset,
    Window,
    build_index,
    load_legend,
    load_model,
    load_project,
    open_dataset,
    open_engine,
    open_scene,
    predict_array,
    predict_map,
)
from cobertes.geo.radiometry import RadiometricConvention
from helpers.engines import engine_of
from helpers.projects import BANDS, write_ground, write_project
from helpers.rasters import coordinates, grid_at, read_raster, write_raster


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Project folder and its finished run, by public names alone and with paths as text."""
    folder = tmp_path_factory.mktemp("api")
    write_ground(folder)
    project = load_project(os.fspath(write_project(folder)))
    run = cobertes.Run(project, os.fspath(folder / "run"))
    run.run()
    return folder, run


# --- scenes


def written(folder):
    """A scene whose pixels hold their own coordinates; the first one is empty."""
    values = coordinates((40, 50))
    values[:, 0, 0] = 0
    return write_raster(folder / "s.tif", values, grid_at(40, 50), names=("row", "col"))


def test_a_scene_is_read_by_window_and_by_box(tmp_path):
    scene = open_scene(os.fspath(written(tmp_path)))
    values, valid = scene.read()
    assert values.shape == (2, 40, 50)
    assert valid.sum() == 40 * 50 - 1  # the first pixel is 0 in both bands
    part, _ = scene.read(window=Window(3, 4, 5, 6))
    np.testing.assert_array_equal(part, coordinates((40, 50))[:, 3:8, 4:10])
    west, north = scene.grid.affine * (4, 3)
    east, south = scene.grid.affine * (10, 8)
    for box in ({"bbox": (west, south, east, north)}, {"bbox": (west, south, east, north), "crs": scene.grid.crs}):
        np.testing.assert_array_equal(scene.read(**box)[0], part)
    with pytest.raises(GridMismatchError, match="exclude each other"):
        scene.read(window=Window(0, 0, 1, 1), bbox=(west, south, east, north))


def test_a_box_in_degrees_is_brought_to_the_scene(tmp_path):
    path = write_raster(tmp_path / "s.tif", coordinates((40, 50)), grid_at(40, 50))
    scene = open_scene(path)
    box = scene.grid.extent.to_crs("EPSG:4326").boundingbox
    values, _ = scene.read(bbox=tuple(box), crs="EPSG:4326")
    assert values.shape == (2, 40, 50)


def test_a_scene_becomes_a_data_array_that_knows_where_it_is(tmp_path):
    pytest.importorskip("odc.geo.xr")  # registers the accessor

    scene = open_scene([written(tmp_path)])
    array = scene.to_xarray(window=Window(3, 4, 5, 6))
    assert array.band.values.tolist() == ["row", "col"]
    assert array.odc.geobox == scene.grid[3:8, 4:10]
    np.testing.assert_array_equal(array.values, coordinates((40, 50))[:, 3:8, 4:10])
    assert np.isnan(scene.to_xarray().values[:, 0, 0]).all()


def test_a_scene_of_another_convention_is_read_in_the_one_asked_for(tmp_path):
    pytest.importorskip("odc.geo.xr")
    scene = open_scene(written(tmp_path))
    stored, valid = scene.read()
    halves = [RadiometricConvention(0.5, 0.0, "reflectance", "project")] * 2
    ones = [RadiometricConvention(1.0, 0.0, "reflectance", "project")] * 2
    there = scene.with_conventions(halves).in_conventions(ones)
    np.testing.assert_allclose(there.read()[0][:, valid], stored[:, valid] / 2)
    np.testing.assert_allclose(there.to_xarray().values[:, valid], stored[:, valid] / 2)


# --- prediction in memory


def test_the_caller_s_nodata_comes_before_that_of_the_array():
    xr = pytest.importorskip("xarray")
    engine = engine_of()
    bands = len(engine.header.inputs.bands)
    values = np.full((bands, 40, 50), 7.0)
    values[:, :20] = 9
    array = xr.DataArray(values, dims=("band", "y", "x"), attrs={"_FillValue": 7, "nodata": 7})
    empty = engine.header.legend.nodata
    assert ((predict_array(engine, array).codes == empty).values == (values[0] == 7)).all()
    assert ((predict_array(engine, array, nodata=9).codes == empty).values == (values[0] == 9)).all()


def test_an_array_is_mapped_as_its_file_is(finished, tmp_path):
    _, run = finished
    engine = open_engine(os.fspath(run.folder.model), engine="torch", precision="fp32")
    scenes = run.project.areas[0].scenes
    predict_map(engine, scenes, os.fspath(tmp_path / "map.tif"), confidence=os.fspath(tmp_path / "c.tif"))
    found = predict_array(engine, {season: scene.read()[0] for season, scene in scenes.items()})
    np.testing.assert_array_equal(found.codes, read_raster(tmp_path / "map.tif"))
    observed = found.codes != found.legend.nodata
    np.testing.assert_allclose(found.probabilities[:, observed].sum(axis=0), 1, atol=1e-5)
    confidence = read_raster(tmp_path / "c.tif")
    assert np.abs(100 * found.probabilities.max(axis=0)[observed] - confidence[observed]).max() <= 0.501
    assert np.isnan(found.probabilities[:, ~observed]).all()


def test_a_data_array_comes_back_in_its_place(finished):
    pytest.importorskip("odc.geo.xr")
    _, run = finished
    engine = open_engine(run.folder.path, engine="torch", precision="fp32")
    scenes = run.project.areas[0].scenes
    arrays = {season: scene.to_xarray() for season, scene in scenes.items()}
    plain = predict_array(engine, {season: scene.read()[0] for season, scene in scenes.items()})
    found = predict_array(engine, arrays)
    np.testing.assert_array_equal(found.codes.values, plain.codes)
    assert found.codes.odc.geobox == next(iter(scenes.values())).grid
    assert found.probabilities.dims[0] == "class"
    assert found.probabilities["class"].values.tolist() == plain.legend.keys
    mixed = {season: array.isel(band=slice(None, None, -1)) for season, array in arrays.items()}
    np.testing.assert_array_equal(predict_array(engine, mixed).codes.values, plain.codes)  # bands by name
    other = {season: array.assign_coords(band=["x", *array.band.values[1:]]) for season, array in arrays.items()}
    with pytest.raises(BandMismatchError, match=f"no '{BANDS[0]}'"):
        predict_array(engine, other)


def test_arrays_that_do_not_fit_are_refused():
    engine = engine_of(seasons=("april", "august"))
    bands = len(engine.header.inputs.bands)
    with pytest.raises(BandMismatchError, match=rf"shape \(40, 50\), needed \({bands}, height, width\)"):
        predict_array(engine, {"april": np.ones((40, 50)), "august": np.ones((bands, 40, 50))})
    with pytest.raises(GridMismatchError, match="their shapes are"):
        predict_array(engine, {"april": np.ones((bands, 40, 50)), "august": np.ones((bands, 40, 51))})
    with pytest.raises(SettingsError, match="no season to predict"):
        predict_array(engine, {})


# --- learning


def test_tiles_are_a_dataset_of_torch(finished):
    _, run = finished
    dataset = open_dataset(run.project, run.folder)
    index = build_index(
        dataset.areas.values(), {name: os.fspath(path) for name, path in dataset.labels.items()}, dataset.legend,
        tiles=run.project.settings.tiles, split=run.project.settings.split,
    )  # fmt: skip
    tiles = TileDataset(dataset, index.table, index.statistics)
    rows = index.table[index.table["keep"] & (index.table["split"] == "train")]
    assert len(tiles) == len(rows) > 0
    x, y = tiles[0]
    first = rows.iloc[0]
    assert x.shape == (2 * len(BANDS), first["height"], first["width"])
    assert (x.dtype, y.dtype, y.shape) == (torch.float32, torch.int64, x.shape[1:])
    assert (y != 255).sum() == sum(first["counts"])
    loader = torch.utils.data.DataLoader(tiles, batch_size=2)
    assert next(iter(loader))[0].shape[0] == 2
    with pytest.raises(IndexError):
        tiles[len(tiles)]


def test_a_model_is_a_module_and_its_header(finished):
    _, run = finished
    model, header = load_model(os.fspath(run.folder.model))
    assert isinstance(model, torch.nn.Module)
    assert header.legend.keys == run.project.legend.keys
    assert model(torch.zeros(1, header.inputs.channels, 32, 32)).shape == (1, len(header.legend), 32, 32)


# --- notebooks


def test_objects_show_themselves_in_a_notebook(finished):
    _, run = finished
    shown = run._repr_html_()
    assert all(f'<td style="text-align:left">{stage.name}</td>' in shown for stage in run.stages)
    scene = next(iter(run.project.areas[0].scenes.values()))
    assert ", ".join(BANDS) in scene._repr_html_()
    legend = load_legend("catalonia-12")
    assert "background:#0000dc" in legend._repr_html_()
    odd = Legend("<b>", 0, (cobertes.LegendClass(1, "a", "A & <b>", "#112233"),))
    assert "A &amp; &lt;b&gt;" in odd._repr_html_()
    assert "<b>" not in odd._repr_html_()


def test_a_confusion_matrix_shows_and_draws_itself():
    mpl.use("Agg")
    matrix = ConfusionMatrix(np.array([[2000, 0], [1000, 1000]]))
    assert "mIoU 0.583, overall accuracy 0.750, 4,000 pixels" in matrix._repr_html_()
    ax = matrix.plot()
    np.testing.assert_allclose(ax.images[0].get_array(), [[1, 0], [0.5, 0.5]])
    assert ax.get_xlabel() == "predicted"
    mpl.pyplot.close(ax.figure)


# --- the package


def test_the_package_imports_without_a_warning_and_lists_its_names():
    code = "import json, cobertes; print(json.dumps(dir(cobertes)))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == cobertes.__all__
    assert done.stderr == ""


def test_everything_that_a_labelling_needs_is_public(tmp_path):
    legend = load_legend("catalonia-12")
    fine = np.kron(np.random.default_rng(0).choice([1, 3, 12], (20, 20)), np.ones((10, 10))).astype(np.uint8)
    reference = write_raster(tmp_path / "fine.tif", fine, grid_at(200, 200, pixel=1.0), nodata=0)
    scene = open_scene(write_raster(tmp_path / "s.tif", np.ones((1, 20, 20), np.uint16), grid_at(20, 20)))
    made = cobertes.make_labels(
        os.fspath(reference), scene.grid, os.fspath(tmp_path / "labels.tif"), legend=legend,
        weighting=cobertes.VoteWeights("equal", 0.0),
    )  # fmt: skip
    with rasterio.open(tmp_path / "labels.tif") as file:
        np.testing.assert_array_equal(file.read(1), fine[::10, ::10])
    assert made.counts[12] == (fine[::10, ::10] == 12).sum()
