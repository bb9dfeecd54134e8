"""From scenes to channels: normalisation, what was not observed, and which scenes a model takes."""

import numpy as np
import pytest

from cobertes.errors import BandMismatchError, SettingsError
from cobertes.geo.scene import open_scene
from cobertes.geo.windows import Window
from cobertes.learn.encoding import CLIP, Inputs
from cobertes.tiles.band_statistics import Statistics
from helpers.rasters import coordinates, grid_at, write_raster

INPUTS = Inputs(
    ("april", "august"),
    ("B04", "B08"),
    np.array([[500.0, 3000.0], [700.0, 2500.0]]),
    np.array([[100.0, 800.0], [0.05, 900.0]]),
)


def observe(rng, dtype, shape=(6, 9)):
    values = (500 + 3000 * rng.random((*shape, 2))).astype(dtype)
    valid = rng.random(shape) < 0.7
    return values, valid


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "float32", "float64"])
def test_channels_are_normalised_cut_off_and_zero_where_nothing_was_observed(dtype):
    rng = np.random.default_rng(0)
    observed = {season: observe(rng, dtype) for season in ("august", "april")}
    before = {season: (values.copy(), valid.copy()) for season, (values, valid) in observed.items()}
    x = INPUTS.encode(observed)
    assert (x.shape, x.dtype) == ((4, 6, 9), np.float32)
    for channel, (season, band) in enumerate([("april", 0), ("april", 1), ("august", 0), ("august", 1)]):
        values, valid = observed[season]
        i = INPUTS.seasons.index(season)
        exact = (values[..., band].astype(float) - INPUTS.mean[i, band]) / INPUTS.std[i, band]
        np.testing.assert_allclose(x[channel][valid], np.clip(exact, -CLIP, CLIP)[valid], rtol=1e-5, atol=1e-5)
        assert not x[channel][~valid].any()
    for season, (values, valid) in observed.items():  # what was read is left as it was
        np.testing.assert_array_equal(values, before[season][0])
        np.testing.assert_array_equal(valid, before[season][1])


def test_a_season_without_observation_is_zero_while_the_other_shows():
    rng = np.random.default_rng(0)
    values, _ = observe(rng, "uint16")
    x = INPUTS.encode({"april": (values, np.ones((6, 9), bool)), "august": (values, np.zeros((6, 9), bool))})
    assert x[:2].any()
    assert not x[2:].any()


@pytest.mark.parametrize("empty", [np.nan, np.inf, -3.4e38, -1.7e308])
def test_huge_and_missing_values_of_empty_pixels_are_zero_without_a_warning(empty):
    values = np.full((3, 3, 2), 600.0, "float64" if abs(empty) > 1e39 else "float32")
    values[0] = empty
    valid = np.ones((3, 3), bool)
    valid[0] = False
    x = INPUTS.encode({"april": (values, valid), "august": (values, valid)})
    assert np.isfinite(x).all()
    assert not x[:, 0].any()


def scenes_on(folder, **bands):
    """A scene per season, with the bands named."""
    grid = grid_at(20, 30)
    return {
        season: open_scene([write_raster(folder / f"{season}.tif", coordinates((20, 30)), grid, names=names)])
        for season, names in bands.items()
    }


def test_a_window_may_reach_out_of_the_scenes(tmp_path):
    inputs = Inputs(("april",), ("row", "col"), np.zeros((1, 2)), np.full((1, 2), 64.0))
    x, seen = inputs.read(scenes_on(tmp_path, april=("row", "col")), Window(17, -2, 5, 6))
    expected = np.zeros((5, 6), bool)
    expected[:3, 2:] = True
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(x[0] * 64, np.where(expected, np.arange(18, 23)[:, None], 0))
    np.testing.assert_array_equal(x[1] * 64, np.where(expected, np.arange(-1, 5), 0))


@pytest.mark.parametrize(
    ("bands", "error", "message"),
    [
        (
            {"april": ("B04", "B08")},
            SettingsError,
            "needs a scene of season 'august', found april",
        ),
        (
            {"april": ("B04", "B08"), "augst": ("B04", "B08")},
            SettingsError,
            r"season 'august', found april, augst. Did you mean 'augst'\?",
        ),
        (
            {"april": ("B04", "B08"), "august": ("B04", "B08"), "may": ("B04", "B08")},
            SettingsError,
            "does not know season 'may'.* Known: april, august",
        ),
        (
            {"april": ("B04", "B08"), "august": ("B04", "B03")},
            BandMismatchError,
            r"august\.tif gives bands B04, B03, the model was trained on B04, B08. Give it those bands in that",
        ),
        ({"april": ("B08", "B04"), "august": ("B04", "B08")}, BandMismatchError, r"april\.tif gives bands B08"),
    ],
)  # fmt: skip
def test_scenes_of_other_seasons_or_bands_are_refused(tmp_path, bands, error, message):
    with pytest.raises(error, match=message):
        INPUTS.check(scenes_on(tmp_path, **bands))


def test_the_scenes_of_the_training_are_taken_in_any_order_of_seasons(tmp_path):
    INPUTS.check(scenes_on(tmp_path, august=("B04", "B08"), april=("B04", "B08")))


def test_inputs_come_from_the_statistics_and_survive_json():
    statistics = Statistics(
        ("s",), ("B04",), np.array([[1 / 3]]), np.array([[0.1]]), np.zeros((1, 1, 7)), 9, np.array([1, 2])
    )
    inputs = Inputs.of(statistics)
    again = Inputs.from_dict(inputs.to_dict())
    assert (again.seasons, again.bands, again.channels) == (("s",), ("B04",), 1)
    np.testing.assert_array_equal(again.mean, statistics.mean)
    np.testing.assert_array_equal(again.std, statistics.std)


def test_statistics_that_do_not_fit_the_bands_are_refused():
    data = INPUTS.to_dict() | {"bands": ["B04"]}
    with pytest.raises(ValueError, match="2 seasons and 1 bands"):
        Inputs.from_dict(data)
