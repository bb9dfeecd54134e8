"""Bands by name, common name and wavelength: the same light is found however a file calls it."""

import pytest

from cobertes.errors import BandMismatchError
from cobertes.geo.products.band_vocabulary import (
    HLS_L30,
    HLS_S30,
    LANDSAT_OLI,
    LANDSAT_TM,
    SENTINEL_2,
    BandLabel,
    identify,
    known_bands,
    match_bands,
    meanings,
    same_name,
    sensor_in,
    with_wavelengths,
)

MODEL = [BandLabel(name) for name in ("B02", "B03", "B04", "B08")]


def labels(*names, sensor=None):
    return [BandLabel(name, sensor=sensor) for name in names]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("B8", "B08"), ("B08", "B08"), ("b8a", "B8A"), ("B8A", "B8A"), ("B08A", "B8A"), ("nir", "B08"), ("NIR", "B08"),
        ("B8, central wavelength 842 nm", "B08"), ("S2A_MSIL2A_B04_10m", "B04"), ("swir 1", "B11"), ("SWIR22", "B12"),
        ("T31TDG_20180412T105031_B05_20m", "B05"), ("red_edge_2", "B06"), ("coastal aerosol", "B01"),
        ("SENTINEL2A_20180412-105031-463_L2A_T31TDG_C_V2-2_FRE_B2", "B02"),
    ],
)  # fmt: skip
def test_the_names_that_people_and_gdal_write_mean_one_band_of_sentinel_2(text, name):
    band = identify(text)
    assert (band.sensor, band.name) == (SENTINEL_2, name)


@pytest.mark.parametrize(
    ("text", "sensor", "name", "common", "wavelength"),
    [
        ("SR_B4", LANDSAT_OLI, "B4", "red", 655),
        ("LC08_L2SP_198031_20180413_20200901_02_T1_SR_B5", LANDSAT_OLI, "B5", "nir08", 865),
        ("LT05_L2SP_198031_19990413_20200901_02_T1_SR_B4", LANDSAT_TM, "B4", "nir08", 835),
        ("HLS.L30.T31TDG.2018103T104531.v2.0.B05", HLS_L30, "B05", "nir08", 865),
        ("HLS.S30.T31TDG.2018103T104531.v2.0.B05", HLS_S30, "B05", "rededge1", 704.1),
    ],
)
def test_the_same_number_is_other_light_in_another_sensor(text, sensor, name, common, wavelength):
    band = identify(text)
    assert (band.sensor, band.name, band.common_name, band.wavelength) == (sensor, name, common, wavelength)


@pytest.mark.parametrize("text", ["band1", "Band 4", "x", "gray", "ndvi", "B99", "2018"])
def test_positions_and_other_words_are_no_band(text):
    assert identify(text) is None


def test_a_lone_number_is_a_band_where_the_sensor_is_known():
    assert identify("Band 4", LANDSAT_OLI).common_name == "red"
    assert identify("Band 4", LANDSAT_TM).common_name == "nir08"


@pytest.mark.parametrize(
    ("found", "positions"),
    [
        (("nir", "red", "green", "blue"), [3, 2, 1, 0]),
        (("NIR", "Red", "Green", "Blue"), [3, 2, 1, 0]),
        (("b8", "B4", "B3", "B2"), [3, 2, 1, 0]),
        (("B8, central wavelength 842 nm", "B4, central wavelength 665 nm", "B3, central wavelength 560 nm",
          "B2, central wavelength 490 nm"), [3, 2, 1, 0]),
        (("B02", "B8A", "B03", "B04", "B08"), [0, 2, 3, 4]),
        (("blue", "green", "red"), [0, 1, 2, None]),
        (("a", "b", "c", "d"), [None] * 4),
    ],
)  # fmt: skip
def test_bands_of_a_file_are_found_by_name_and_light(found, positions):
    assert match_bands(labels(*found), MODEL) == positions


def test_near_infrared_of_landsat_is_not_the_red_edge_of_a_model_for_sentinel_2():
    product = labels("B02", "B03", "B04", "B05", "B06", "B07", sensor=HLS_L30)
    assert match_bands(product, labels("B02", "B03", "B04", "B05", "B8A")) == [0, 1, 2, None, 3]
    assert match_bands(product, labels("B11", "B12")) == [4, 5]
    known = [BandLabel("B05", 704.1)]
    assert match_bands(product, known) == [None]
    assert match_bands(labels("B05", sensor=HLS_S30), known) == [0]


def test_a_number_of_no_known_sensor_is_refused_where_the_product_has_another_light_for_it():
    product = [BandLabel("B05", 865.0, HLS_L30), BandLabel("B04", 655.0, HLS_L30)]
    with pytest.raises(
        BandMismatchError,
        match=r"'B05' means other light in Sentinel-2 than in Landsat: the product has B05 \(865 nm\)",
    ):
        match_bands(product, labels("B04", "B05"))


def test_plain_names_without_a_sensor_match_as_they_are():
    assert match_bands(labels("B2", "B3", "B4", "B5"), labels("B5", "B4")) == [3, 2]
    assert match_bands(labels("b5"), labels("B05")) == [0]


def test_a_plain_nir_may_be_the_narrow_band_but_two_are_asked_for():
    assert match_bands(labels("SR_B5", "SR_B4", sensor=LANDSAT_OLI), labels("nir", "red")) == [0, 1]
    assert match_bands(labels("B08", "B8A", "B04"), labels("nir")) == [0]
    with pytest.raises(BandMismatchError, match=r"'B08' may be nir or NIR\. Name the bands"):
        match_bands(labels("nir", "NIR", "red"), labels("B04", "B08"))
    with pytest.raises(BandMismatchError, match=r"'B08' and 'nir' both mean B08"):
        match_bands(labels("B04", "B08"), labels("B08", "nir"))


def test_two_bands_of_one_wavelength_are_ambiguous_and_both_are_named():
    found = [BandLabel("x", 865.0), BandLabel("y", 864.0), BandLabel("B04")]
    with pytest.raises(BandMismatchError, match=r"'B8A' may be x \(865 nm\) or y \(864 nm\)\. Name the bands"):
        match_bands(found, [BandLabel("B8A", 864.7)])


def test_names_say_their_wavelength_only_where_they_are_sure():
    assert [label.wavelength for label in with_wavelengths(labels("B02", "B05", "B8A"))] == [492.7, 704.1, 864.7]
    assert [label.wavelength for label in with_wavelengths(labels("B02", "B05"))] == [492.7, None]
    assert [label.wavelength for label in with_wavelengths(labels("nir", "band1"))] == [None, None]
    assert not known_bands(labels("band1", "x"))
    assert known_bands(labels("band1", "red"))
    assert meanings(labels("B5"))[0] is None


def test_names_that_differ_in_case_and_zeros_are_the_same():
    assert same_name("b04", "B4")
    assert same_name("Red", "red")
    assert not same_name("B8", "B8A")
    assert sensor_in("S2A_MSIL2A_20190212T192651") == SENTINEL_2
    assert sensor_in("mosaic_2018") is None
