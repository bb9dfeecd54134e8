"""Radiometric conventions: the same ground in other numbers, converted exactly or refused."""

import numpy as np
import pytest

from cobertes.errors import BandMismatchError, SettingsError
from cobertes.geo.radiometry import (
    Conversion,
    RadiometricConvention,
    convention_of_tags,
    convention_of_values,
    conventions_by_user,
    conversion_between,
    convert_stored,
    default_convention,
    describe_conventions,
    first_told,
)

PLAIN = RadiometricConvention(1e-4, 0.0, "reflectance", "project")
SHIFTED = RadiometricConvention(1e-4, -0.1, "reflectance", "product metadata")
LANDSAT = RadiometricConvention(2.75e-5, -0.2, "reflectance", "file tags")
UNIT = RadiometricConvention(1.0, 0.0, "reflectance", "values")
DECIBEL = RadiometricConvention(0.01, 0.0, "decibel", "file tags")


def test_conversions_are_exact():
    assert convert_stored(SHIFTED, PLAIN, "B04") == (1.0, -1000.0)
    assert convert_stored(PLAIN, SHIFTED, "B04") == (1.0, 1000.0)
    assert convert_stored(UNIT, PLAIN, "B04") == (10_000.0, 0.0)
    assert convert_stored(LANDSAT, PLAIN, "B04") == (0.275, -2000.0)
    assert convert_stored(PLAIN, PLAIN, "B04") == (1.0, 0.0)


@pytest.mark.parametrize("source", [PLAIN, SHIFTED, LANDSAT, UNIT])
@pytest.mark.parametrize("target", [PLAIN, SHIFTED, LANDSAT, UNIT])
def test_a_conversion_keeps_the_physical_value(source, target):
    stored = np.array([1.0, 500.0, 12_345.0]) / (1 if source.scale < 1 else 1e4)
    gain, bias = convert_stored(source, target, "B04")
    np.testing.assert_allclose(target.physical(gain * stored + bias), source.physical(stored), atol=1e-12)


def test_reflectance_is_not_made_from_decibels_or_unknown_units():
    with pytest.raises(
        BandMismatchError, match=r"band vv: the scene holds decibel = 0\.01 x stored \(file tags\), needed"
    ):
        convert_stored(DECIBEL, PLAIN, "vv")
    with pytest.raises(
        BandMismatchError, match=r"One can't be made from the other: say what the stored values mean"
    ):
        convert_stored(RadiometricConvention(0.1, 0.0, "digital-number", "file tags"), SHIFTED, "x")
    assert convert_stored(RadiometricConvention(), SHIFTED, "x") == (1.0, 0.0)  # nobody says that they differ
    assert convert_stored(DECIBEL, RadiometricConvention(1.0, 0.0, "decibel"), "vv") == (0.01, 0.0)


def test_nothing_is_converted_where_conventions_agree_whoever_says_so():
    told = RadiometricConvention(1e-4, 0.0, "reflectance", "file tags")
    assert conversion_between([PLAIN, told], [told, PLAIN], ["a", "b"]) is None
    made = conversion_between([SHIFTED, PLAIN], [PLAIN, PLAIN], ["a", "b"])
    assert made == Conversion((1.0, 1.0), (-1000.0, 0.0))
    values = np.array([[1500, 1500], [1000, 7]], "u2")
    np.testing.assert_array_equal(made.apply(values, 1), [[500, 1500], [0, 7]])
    np.testing.assert_array_equal(made.apply(values, 0), [[500, 500], [1000, 7]])


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ((1.0, 0.0, None), None),
        ((1.0, 0.0, "m"), None),
        ((1e-4, -0.1, None), RadiometricConvention(1e-4, -0.1, "reflectance")),
        ((1e-4, 0.0, "1"), RadiometricConvention(1e-4, 0.0, "reflectance")),
        ((1.0, 0.0, "reflectance"), RadiometricConvention(1.0, 0.0, "reflectance")),
        ((0.01, 0.0, "dB"), RadiometricConvention(0.01, 0.0, "decibel")),
        ((0.00341802, 149.0, "K"), RadiometricConvention(0.00341802, 149.0, "digital-number")),
    ],
)
def test_scale_offset_and_unit_of_a_file_say_what_it_holds(tags, expected):
    assert convention_of_tags(*tags) == expected


def test_the_last_resort_is_reflectance_times_10000_and_nothing_for_bytes():
    assert default_convention(np.dtype("uint16")) == RadiometricConvention(1e-4, 0.0, "reflectance")
    assert default_convention(np.dtype("uint8")) == RadiometricConvention()
    assert default_convention(np.dtype("uint16")).assumed


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.linspace(0.01, 0.6, 50), UNIT),
        (np.linspace(100, 5000, 50), PLAIN),
        (np.linspace(-25, -3, 50), RadiometricConvention()),
        (np.linspace(-0.9, 0.9, 50), RadiometricConvention()),
        (np.append(np.linspace(-0.01, 0.6, 99), np.nan), UNIT),
        (np.full(4, np.nan), PLAIN),
    ],
)
def test_floating_point_values_are_looked_at(values, expected):
    assert convention_of_values(values.astype("f4")) == expected


def test_who_overrules_whom():
    user = RadiometricConvention(1.0, 0.0, "reflectance", "command line")
    project = RadiometricConvention(0.5, 0.0, "reflectance", "project")
    for told, expected in (
        ([LANDSAT, SHIFTED], SHIFTED),
        ([default_convention(np.dtype("u2")), LANDSAT, None], LANDSAT),
        ([SHIFTED, project], project),
        ([project, user, SHIFTED], user),
        ([UNIT, default_convention(np.dtype("u2"))], UNIT),
    ):
        assert first_told(told).origin == expected.origin
    assert first_told([None]) is None


def test_a_person_says_scale_and_offset_for_all_bands_or_one():
    bands = ("B04", "B08")
    both = conventions_by_user((PLAIN, PLAIN), bands, 1e-4, -0.1, "command line")
    assert both == (RadiometricConvention(1e-4, -0.1, "reflectance"),) * 2
    assert {one.origin for one in both} == {"command line"}
    one = conventions_by_user((PLAIN, LANDSAT), bands, None, {"B08": 0.0}, "project")
    assert one == (PLAIN, RadiometricConvention(2.75e-5, 0.0, "reflectance"))
    assert [c.origin for c in one] == ["project", "project"]
    with pytest.raises(SettingsError, match="scale or offset of a band 'B99', but the bands are B04, B08"):
        conventions_by_user((PLAIN, PLAIN), bands, {"B99": 1.0}, None, "project")
    with pytest.raises(SettingsError, match=r"scale 0 and offset 0 \(project\) give no values"):
        conventions_by_user((PLAIN, PLAIN), bands, 0.0, None, "project")


def test_a_convention_in_words_and_in_json():
    assert str(SHIFTED) == "reflectance = 0.0001 x stored - 0.1 (product metadata)"
    assert str(UNIT) == "reflectance = stored (values)"
    assert str(RadiometricConvention()) == "value = stored (default)"
    assert describe_conventions((PLAIN, PLAIN), ("a", "b")) == "reflectance = 0.0001 x stored (project)"
    assert describe_conventions((PLAIN, UNIT), ("a", "b")).startswith(
        "a: reflectance = 0.0001 x stored (project); b:"
    )
    assert RadiometricConvention.from_dict(LANDSAT.to_dict()) == LANDSAT
    assert RadiometricConvention.from_dict(LANDSAT.to_dict()).origin == "file tags"
    with pytest.raises(ValueError, match="a radiometric convention of unit 'kelvin'"):
        RadiometricConvention.from_dict(LANDSAT.to_dict() | {"unit": "kelvin"})
