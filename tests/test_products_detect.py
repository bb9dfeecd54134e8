"""Products as downloaded: their bands at the finest resolution, what their numbers mean, where clouds are."""

import datetime
import logging
import re
import tarfile

import numpy as np
import pytest
import rasterio

from cobertes.errors import InputFileError
from cobertes.geo.products import cube as cube_module
from cobertes.geo.products.band_folder import is_quality_name, layer_key, split_by_name
from cobertes.geo.products.detect import detect_product, may_be_product
from cobertes.geo.products.record import (
    CLEAR,
    CLOUD,
    SNOW,
    UNKNOWN,
    combine_covers,
)
from cobertes.geo.radiometry import RadiometricConvention
from helpers.product_files import (
    L3A,
    L30,
    LANDSAT,
    MAJA,
    MTL,
    S30,
    SAFE_2019,
    SAFE_2022,
    SIDE,
    band_pixels,
    write,
    write_eopf,
    write_hls,
    write_landsat,
    write_maja,
    write_safe,
    zipped,
)
from helpers.rasters import needs

REFLECTANCE = RadiometricConvention(1e-4, 0.0, "reflectance")
SHIFTED = RadiometricConvention(1e-4, -0.1, "reflectance")


def first_pixels(product):
    """Band -> the pixel at (5, 0), read through GDAL."""
    found = {}
    for band in product.bands:
        with rasterio.open(band.path) as file:
            assert file.res[0] == band.resolution
            found[band.name] = int(file.read(band.index)[5, 0])
    return found


def cover(layer, count=6):
    with rasterio.open(layer.path) as file:
        return layer.decode(file.read(layer.index))[0, :count].tolist()


# --- Sentinel-2 SAFE -----------------------------------------------------------------------------------------


@needs("safe-metadata")
def test_a_safe_of_baseline_04_has_its_bands_at_their_finest_and_its_offset(tmp_path):
    product = detect_product(write_safe(tmp_path))
    assert str(product) == "Sentinel-2 L2A, baseline 04.00, 2022-04-13"
    sides = {band.name: band.resolution for band in product.bands}
    assert sides == {
        "B01": 20, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20, "B07": 20, "B08": 10, "B8A": 20, "B09": 60,
        "B11": 20, "B12": 20,
    }  # fmt: skip
    assert {band.convention for band in product.bands} == {SHIFTED}
    assert {band.convention.origin for band in product.bands} == {"product metadata"}
    assert first_pixels(product)["B8A"] == 1000 + 100 * 11
    assert first_pixels(product)["B12"] == 1000 + 100 * 15
    assert (product.nodata, product.facts) == (0.0, {})
    (layer,) = product.quality
    assert layer.path.endswith("SCL_20m.jp2")
    assert cover(layer) == [UNKNOWN, CLOUD, CLOUD, CLOUD, SNOW, CLEAR]


@needs("safe-metadata")
def test_a_safe_of_baseline_02_has_no_offset_and_may_hold_geotiffs(tmp_path):
    product = detect_product(write_safe(tmp_path, SAFE_2019, end=".tif"))
    assert (product.baseline, product.date) == ("02.12", datetime.date(2019, 2, 12))
    assert {band.convention for band in product.bands} == {REFLECTANCE}
    assert {band.resolution for band in product.bands if band.name == "B01"} == {60}


@needs("safe-metadata")
@pytest.mark.parametrize("inside", [None, "", "download/S2/"])
def test_a_zip_gives_the_same_as_its_folder(tmp_path, inside):
    folder = write_safe(tmp_path, resolutions=(20, 60))
    archive = zipped(folder, inside if inside is None else f"{inside}{folder.name}" if inside else ".")
    from_folder, from_zip = detect_product(folder), detect_product(archive)
    assert [band.name for band in from_zip.bands] == [band.name for band in from_folder.bands]
    assert [band.convention for band in from_zip.bands] == [band.convention for band in from_folder.bands]
    assert first_pixels(from_zip) == first_pixels(from_folder)
    assert cover(from_zip.quality[0]) == cover(from_folder.quality[0])


@needs("safe-metadata")
def test_metadata_files_parents_and_granules_stand_for_the_product(tmp_path):
    made = write_safe(tmp_path, resolutions=(60,))
    names = [band.name for band in detect_product(made).bands]
    for path in (made / "MTD_MSIL2A.xml", tmp_path):
        assert [band.name for band in detect_product(path).bands] == names
    granule = next((made / "GRANULE").iterdir())
    assert [band.name for band in detect_product(granule).bands] == names


@needs("safe-metadata")
def test_missing_images_are_taken_from_a_coarser_copy_or_listed(tmp_path):
    product = detect_product(write_safe(tmp_path, skip=("B02_10m", "_B11_", "SCL")))
    sides = {band.name: band.resolution for band in product.bands}
    assert sides["B02"] == 20
    assert "B11" not in sides
    assert product.facts == {"missing": "B11"}
    assert product.quality == ()


@needs("safe-metadata")
def test_a_new_baseline_without_offsets_is_shifted_and_said(tmp_path, caplog):
    made = write_safe(tmp_path, resolutions=(60,))
    text = (made / "MTD_MSIL2A.xml").read_text()
    text = re.sub(r"<BOA_ADD_OFFSET_VALUES_LIST>.*</BOA_ADD_OFFSET_VALUES_LIST>", "", text, flags=re.DOTALL)
    (made / "MTD_MSIL2A.xml").write_text(text)
    with caplog.at_level(logging.WARNING):
        product = detect_product(made)
    assert {band.convention for band in product.bands} == {SHIFTED}
    assert "baseline 04.00 without offsets in its metadata: the -1000 of that baseline is taken" in caplog.text


@needs("safe-metadata")
def test_offsets_are_each_bands_own(tmp_path):
    made = write_safe(tmp_path, resolutions=(60,))
    text = (made / "MTD_MSIL2A.xml").read_text()
    changed = text.replace('<BOA_ADD_OFFSET band_id="8">-1000', '<BOA_ADD_OFFSET band_id="8">-900')
    (made / "MTD_MSIL2A.xml").write_text(changed.replace(">10000</BOA_QUANT", ">20000</BOA_QUANT"))
    offsets = {band.name: band.convention for band in detect_product(made).bands}
    assert offsets["B8A"] == RadiometricConvention(5e-5, -0.045, "reflectance")
    assert offsets["B09"] == RadiometricConvention(5e-5, -0.05, "reflectance")


def write_l1c(folder, *, old=False, baseline="05.10"):
    """A Level-1C product of compact or old naming, with metadata as short as they can be."""
    made = folder / "S2A_MSIL1C_20230412T105031_N0510_R051_T31TDG_20230412T130000.SAFE"
    granule = (
        "S2A_OPER_MSI_L1C_TL_EPA__20160930T155947_A000734_T31TDG_N02.04"
        if old
        else "L1C_T31TDG_A040779_20230412T105525"
    )
    stem = granule.removesuffix("_N02.04") if old else "T31TDG_20230412T105031"
    images = made / "GRANULE" / granule / "IMG_DATA"
    for number, (band, size) in enumerate({"B02": 10, "B8A": 20, "B10": 60}.items()):
        write(images / f"{stem}_{band}.jp2", band_pixels(number, SIDE * 10 // size), float(size))
    if not old:
        mask = np.zeros((3, 8, 8), "u1")
        mask[0, 0, 0] = mask[1, 0, 1] = mask[2, 0, 2] = 1
        write(made / "GRANULE" / granule / "QI_DATA" / "MSK_CLASSI_B00.jp2", mask, 60.0)
    offsets = "".join(f'<RADIO_ADD_OFFSET band_id="{i}">-1000</RADIO_ADD_OFFSET>' for i in range(13))
    name = "S2A_OPER_MTD_SAFL1C_PDMC_20160930T1.xml" if old else "MTD_MSIL1C.xml"
    (made / name).write_text(
        f"<n1:Level-1C_User_Product xmlns:n1='https://x'><PRODUCT_START_TIME>2023-04-12T10:50:31.024Z"
        f"</PRODUCT_START_TIME><PROCESSING_LEVEL>Level-1C</PROCESSING_LEVEL><PROCESSING_BASELINE>{baseline}"
        f"</PROCESSING_BASELINE><QUANTIFICATION_VALUE>10000</QUANTIFICATION_VALUE>{'' if old else offsets}"
        f"</n1:Level-1C_User_Product>"
    )
    return made


def test_level_1c_is_read_in_compact_naming_with_its_cloud_mask(tmp_path):
    product = detect_product(write_l1c(tmp_path))
    assert str(product) == "Sentinel-2 L1C, baseline 05.10, 2023-04-12"
    assert [(band.name, band.resolution, band.convention) for band in product.bands] == [
        ("B02", 10, SHIFTED), ("B8A", 20, SHIFTED), ("B10", 60, SHIFTED),
    ]  # fmt: skip
    covers = [cover(layer, 3) for layer in product.quality]
    assert covers == [[CLOUD, CLEAR, CLEAR], [CLEAR, CLOUD, CLEAR], [CLEAR, CLEAR, SNOW]]
    assert combine_covers([np.array(one, "u1") for one in covers]).tolist() == [CLOUD, CLOUD, SNOW]


def test_level_1c_is_read_in_old_naming(tmp_path):
    product = detect_product(write_l1c(tmp_path, old=True, baseline="02.04"))
    assert {band.name: band.convention for band in product.bands} == dict.fromkeys(
        ("B02", "B8A", "B10"), REFLECTANCE
    )
    assert first_pixels(product) == {"B02": 1000, "B8A": 1100, "B10": 1200}


def test_images_without_metadata_are_found_and_nothing_is_claimed_of_their_numbers(tmp_path):
    images = tmp_path / "X.SAFE" / "GRANULE" / "L2A_T31TDG" / "IMG_DATA"
    for size, names in ((10, ("B02", "B08")), (20, ("B02", "B05", "SCL"))):
        for number, name in enumerate(names):
            pixels = band_pixels(number, SIDE * 10 // size, "u1" if name == "SCL" else "u2")
            write(images / f"R{size}m" / f"T31TDG_20180412T105031_{name}_{size}m.jp2", pixels, float(size))
    product = detect_product(tmp_path / "X.SAFE")
    assert {band.name: (band.resolution, band.convention) for band in product.bands} == {
        "B02": (10, None), "B05": (20, None), "B08": (10, None),
    }  # fmt: skip
    assert (product.date, product.nodata) == (datetime.date(2018, 4, 12), 0.0)
    assert [layer.name for layer in product.quality] == ["SCL"]


@needs("safe-metadata")
@pytest.mark.parametrize(("name", "expected"), [(SAFE_2022, SHIFTED), (SAFE_2019, REFLECTANCE)])
def test_without_metadata_the_baseline_in_the_name_says_what_the_numbers_mean(tmp_path, name, expected):
    made = write_safe(tmp_path, name, resolutions=(60,))
    (made / "MTD_MSIL2A.xml").unlink()
    product = detect_product(made)
    assert {band.convention for band in product.bands} == {expected}
    assert {band.convention.origin for band in product.bands} == {"file names"}
    assert product.baseline == ("04.00" if name == SAFE_2022 else "02.12")


@needs("safe-metadata")
def test_damaged_products_are_refused_in_one_line(tmp_path):
    archive = zipped(write_safe(tmp_path, resolutions=(60,)))
    archive.write_bytes(archive.read_bytes()[:-5000])
    with pytest.raises(
        InputFileError, match=r"can't read .*\.zip: File is not a zip file\. It may be truncated: fetch it"
    ):
        detect_product(archive)
    (tmp_path / SAFE_2022 / "MTD_MSIL2A.xml").write_text("<a><b></a>")
    with pytest.raises(InputFileError, match=r"MTD_MSIL2A\.xml in .* is no whole XML .*fetch the product again"):
        detect_product(tmp_path / SAFE_2022)


@needs("safe-metadata")
def test_several_products_in_a_folder_are_not_mixed(tmp_path):
    for name in (SAFE_2019, SAFE_2022):
        write_safe(tmp_path, name, resolutions=(60,))
    with pytest.raises(InputFileError, match=r"holds 2 products \(S2A_MSIL2A_2019.*Name one, or list them"):
        detect_product(tmp_path)
    made = tmp_path / SAFE_2022
    first = next((made / "GRANULE").iterdir())
    (made / "GRANULE" / "L2A_T33XWK").mkdir()
    for file in [*first.rglob("*.jp2")]:
        target = made / "GRANULE" / "L2A_T33XWK" / file.relative_to(first)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    with pytest.raises(
        InputFileError, match=r"holds 2 granules \(L2A_T33XWJ_A026649_20220413T150756, L2A_T33XWK\)"
    ):
        detect_product(made)


# --- Landsat -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metadata", ["txt", "json", "xml"])
def test_a_landsat_folder_has_surface_reflectance_and_no_thermal_or_quality_band(tmp_path, metadata):
    product = detect_product(write_landsat(tmp_path, metadata=metadata))
    assert str(product).startswith("Landsat 8 Collection 2 L2SP, baseline LPGS_15.3.1c, 2018-04-13")
    bands = {band.name: band for band in product.bands}
    assert list(bands) == ["B1", "B2", "B3", "B4", "B5", "B6", "B7"]
    assert (bands["B5"].common_name, bands["B5"].wavelength) == ("nir08", 865)
    # the metadata of Level 2 repeat keys of Level 1 with other factors
    assert bands["B2"].convention == RadiometricConvention(2.75e-5, -0.2, "reflectance")
    assert bands["B5"].convention == RadiometricConvention(2.75e-5, -0.3, "reflectance")
    assert bands["B2"].convention.origin == "product metadata"
    assert first_pixels(product)["B5"] == 1500
    assert product.nodata == 0
    (layer,) = product.quality
    assert cover(layer, 7) == [UNKNOWN, CLOUD, CLOUD, CLOUD, CLOUD, SNOW, CLEAR]


def test_a_landsat_tar_is_read_in_place(tmp_path):
    made = write_landsat(tmp_path)
    path = tmp_path / f"{LANDSAT}.tar"
    with tarfile.open(path, "w") as archive:
        for file in sorted(made.iterdir()):
            archive.add(file, file.name)
    product = detect_product(path)
    assert first_pixels(product) == first_pixels(detect_product(made))
    assert cover(product.quality[0], 7) == [UNKNOWN, CLOUD, CLOUD, CLOUD, CLOUD, SNOW, CLEAR]
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(InputFileError, match=r"can't read .*\.tar: unexpected end of data\. It may be truncated"):
        detect_product(path)


def test_landsat_files_without_metadata_are_known_by_their_names(tmp_path):
    bands = detect_product(write_landsat(tmp_path, metadata=None, numbers=(2, 3))).bands
    assert {band.convention for band in bands} == {RadiometricConvention(2.75e-5, -0.2, "reflectance")}
    assert {band.convention.origin for band in bands} == {"file names"}


def test_level_1_of_landsat_is_reflectance_at_the_top_of_the_atmosphere(tmp_path):
    name = LANDSAT.replace("L2SP", "L1TP")
    for number in (2, 8, 10):
        write(tmp_path / f"{name}_B{number}.TIF", band_pixels(number, 8), 30.0)
    (band,) = detect_product(tmp_path).bands
    assert (band.name, band.convention) == ("B2", RadiometricConvention(2e-5, -0.1, "reflectance"))
    (tmp_path / f"{name}_MTL.txt").write_text(MTL.replace("-0.100000", "-0.125"))
    assert detect_product(tmp_path).bands[0].convention == RadiometricConvention(2e-5, -0.125, "reflectance")


def test_bands_of_older_landsats_are_theirs(tmp_path):
    name = "LT05_L2SP_198031_20080413_20200901_02_T1"
    bands = detect_product(write_landsat(tmp_path, metadata=None, numbers=(1, 4, 5, 7), name=name)).bands
    assert [(band.name, band.common_name) for band in bands] == [
        ("B1", "blue"), ("B4", "nir08"), ("B5", "swir16"), ("B7", "swir22"),
    ]  # fmt: skip


def test_damaged_landsat_metadata_are_refused(tmp_path):
    made = write_landsat(tmp_path, metadata="json")
    (made / f"{LANDSAT}_MTL.json").write_text("{")
    with pytest.raises(InputFileError, match=r"_MTL\.json in .* is damaged .*fetch the product again"):
        detect_product(made)
    write_landsat(made, name=LANDSAT.replace("198031", "198030"), numbers=(2,))
    with pytest.raises(InputFileError, match="holds 2 Landsat products"):
        detect_product(made)


# --- HLS -----------------------------------------------------------------------------------------------------


def test_hls_b05_is_red_edge_from_sentinel_2_and_near_infrared_from_landsat(tmp_path):
    s30, l30 = detect_product(write_hls(tmp_path)), detect_product(write_hls(tmp_path, L30))
    assert (str(s30), str(l30)) == ("HLS S30, baseline 2.0, 2018-04-13", "HLS L30, baseline 2.0, 2018-04-13")
    lights = [{band.name: band.wavelength for band in product.bands}["B05"] for product in (s30, l30)]
    assert lights == [704.1, 865]
    assert [band.name for band in l30.bands] == ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B09"]
    assert len(s30.bands) == 13
    for product in (s30, l30):
        assert {band.convention for band in product.bands} == {REFLECTANCE}
        assert product.nodata == -9999
        assert cover(product.quality[0]) == [CLOUD, CLOUD, CLOUD, SNOW, CLEAR, UNKNOWN]


def test_dates_of_hls_are_not_mixed(tmp_path):
    write_hls(tmp_path)
    write_hls(tmp_path, S30.replace("2018103", "2018108"))
    with pytest.raises(InputFileError, match=r"holds 2 HLS products .*list the folders"):
        detect_product(tmp_path)


# --- Theia ---------------------------------------------------------------------------------------------------


def test_a_maja_folder_gives_flattened_reflectance_and_both_masks(tmp_path):
    product = detect_product(write_maja(tmp_path))
    assert str(product) == "Theia MAJA L2A, baseline 2.2, 2018-04-12"
    assert {band.name: int(band.resolution) for band in product.bands} == {
        "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20, "B07": 20, "B08": 10, "B8A": 20, "B11": 20, "B12": 20,
    }  # fmt: skip
    assert all("_FRE_" in band.path for band in product.bands)
    assert first_pixels(product)["B8A"] == 1700
    assert (product.nodata, {band.convention for band in product.bands}) == (-10_000, {REFLECTANCE})
    covers = [cover(layer, 5) for layer in product.quality]
    assert covers == [[CLOUD, CLOUD, CLOUD, CLEAR, CLEAR], [CLEAR, CLEAR, CLEAR, CLEAR, SNOW]]
    assert all("_R1" in layer.path for layer in product.quality)


def test_surface_reflectance_is_taken_where_there_is_no_flattened_one(tmp_path):
    product = detect_product(write_maja(tmp_path, kinds=("SRE",), xml=None))
    assert first_pixels(product)["B8A"] == 1701
    assert product.facts == {"reflectance": "SRE"}
    assert (product.nodata, product.bands[0].convention.origin) == (-10_000, "file names")


def test_quantification_and_nodata_are_the_metadatas(tmp_path):
    from helpers.product_files import MAJA_XML

    xml = MAJA_XML.replace(">10000<", ">1000<").replace(">-10000<", ">-9990<")
    product = detect_product(write_maja(tmp_path, xml=xml))
    assert product.nodata == -9990
    assert product.bands[0].convention == RadiometricConvention(1e-3, 0.0, "reflectance")


def test_a_monthly_synthesis_has_its_status_flag_as_mask(tmp_path):
    product = detect_product(write_maja(tmp_path, name=L3A, kinds=("FRC",)))
    assert str(product) == "Theia L3A synthesis, baseline 1.2, 2018-04-15"
    assert all("_FRC_" in band.path for band in product.bands)
    assert cover(product.quality[0], 4) == [UNKNOWN, CLOUD, SNOW, CLEAR]


# --- Zarr and netCDF -----------------------------------------------------------------------------------------


def test_an_eopf_product_is_read_through_the_zarr_driver(tmp_path):
    product = detect_product(write_eopf(tmp_path / "S2B_MSIL2A_20250227T103000_N0511_R108_T31TDG.zarr"))
    assert str(product) == "Sentinel-2 L2A (EOPF Zarr), baseline 05.11, 2025-02-27"
    assert {band.name: int(band.resolution) for band in product.bands} == {
        "B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B08": 10, "B8A": 20, "B09": 60, "B11": 20, "B12": 20,
    }  # fmt: skip
    assert {band.convention for band in product.bands} == {SHIFTED}
    assert first_pixels(product)["B08"] == 1300
    with rasterio.open(product.bands[1].path) as file:
        assert (file.crs.to_epsg(), file.transform.c, file.transform.f) == (32631, 403_000, 4_597_000)
    assert product.quality[0].name == "SCL"


def test_a_gdal_without_the_driver_is_said_in_one_line(tmp_path, monkeypatch):
    made = write_eopf(tmp_path / "x.zarr")

    class Without:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

        def drivers(self):
            return {"GTiff": "rw"}

    monkeypatch.setattr(cube_module.rasterio, "Env", Without)
    with pytest.raises(InputFileError, match=r"has no Zarr driver\. Install a rasterio that has it .*or convert"):
        detect_product(made)
    with pytest.raises(InputFileError, match=r"has no netCDF driver"):
        detect_product(tmp_path / "x.nc")


@pytest.mark.parametrize("name", ["s.nc", "s.zarr"])
def test_a_cube_of_a_variable_per_band_is_a_product(tmp_path, name):
    import rasterio.shutil

    plain = write(tmp_path / "plain.tif", np.stack([band_pixels(i, SIDE) for i in range(3)]))
    rasterio.shutil.copy(
        plain, tmp_path / name, driver="netCDF" if name.endswith("nc") else "Zarr", SINGLE_ARRAY="NO"
    )
    product = detect_product(tmp_path / name)
    assert [band.name for band in product.bands] == ["Band1", "Band2", "Band3"]
    with rasterio.open(product.bands[2].path) as file:
        assert file.read(1)[5, 0] == 1200


# --- what is no product --------------------------------------------------------------------------------------


def test_plain_folders_and_rasters_are_no_product(tmp_path):
    path = write(tmp_path / "B02.tif", band_pixels(1, SIDE))
    assert detect_product(tmp_path) is None
    assert detect_product(path) is None
    assert may_be_product(tmp_path)
    assert not may_be_product(path)


def test_quality_layers_are_told_from_bands_by_their_names():
    names = [
        "T31TDG_20180412T105031_B04_20m.tif", "T31TDG_20180412T105031_SCL_20m.tif", "T31TDG_20180412T105031_AOT_20m.tif",
        "T31TDG_20180412T105031_WVP_10m.tif", "T31TDG_20180412T105031_TCI_10m.jp2", f"{LANDSAT}_SR_B4.TIF",
        f"{LANDSAT}_QA_PIXEL.TIF", f"{LANDSAT}_SR_QA_AEROSOL.TIF", f"{S30}.Fmask.tif", f"{MAJA}_CLM_R2.tif",
        "cloud_mask.tif", "nir.tif",
    ]  # fmt: skip
    found = split_by_name(names)
    assert [name for name in names if name in found.spectral] == [names[0], names[5], "nir.tif"]
    assert {layer.name: layer.path for layer in found.quality} == {
        "SCL": names[1], "QA_PIXEL": names[6], "Fmask": names[8], "CLM": names[9],
    }  # fmt: skip
    assert found.others == (names[2], names[3], names[4], names[7], "cloud_mask.tif")


def test_a_lone_file_is_a_scene_whatever_its_name():
    assert split_by_name(["mosaic_mask.tif"]).spectral == ("mosaic_mask.tif",)
    assert split_by_name(["cloudfree_april.tif", "B02.tif"]).others == ()
    assert is_quality_name("QA60")
    assert not is_quality_name("B04")
    assert layer_key("T31TDG_SCL_20m") == "scl"
