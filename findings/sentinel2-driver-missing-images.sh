#!/usr/bin/env bash
# GDAL's SENTINEL2 driver reads an image that is not there, or that is a GeoTIFF, as zeros, without an error.
#
# A Sentinel-2 L2A product (.SAFE) lists its images in MTD_MSIL2A.xml without their suffix. People delete bands to save
# space, interrupted downloads leave some out, and catalogues on object stores keep SAFE trees whose images are GeoTIFF
# (their manifest.safe says so). The driver opens such a product, gives every band its full size and description, and
# returns 0 for the pixels of each image that it can't find. 0 is also the product's nodata value, but the driver
# declares none: a reader takes the band for ground of zero reflectance.
#
# Versions: rasterio 1.4.4 (its wheel holds GDAL 3.10.3), numpy 2.2.6, Python 3.11.
# Output:   whole product: B4 1004, B3 1003, B2 1002, and B8 0, AOT 0, WVP 0, which the metadata do not list
#           B03 deleted:   B4 1004, B3 0, B2 1002, nodata None, no error
#           all GeoTIFF:   B4 0, B3 0, B2 0, nodata None, no error
# Exits with 1 if any of it changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install rasterio==1.4.4 numpy==2.2.6
cat > "$folder/try.py" <<'PY'
import sys, warnings
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

warnings.simplefilter("ignore")
NAME = "S2B_MSIL2A_20220413T150759_N0400_R025_T33XWJ_20220414T082126"
GRANULE = "L2A_T33XWJ_A026649_20220413T150756"
STEM = f"GRANULE/{GRANULE}/IMG_DATA/R10m/T33XWJ_20220413T150759"
SIDE = 120
BANDS = {"B02": (1, 1002), "B03": (2, 1003), "B04": (3, 1004)}
ABSENT = {"B8": 0, "AOT": 0, "WVP": 0}  # not even listed in the metadata


def spectral(number, band):
    return (f'<Spectral_Information bandId="{number}" physicalBand="B{int(band[1:])}"><RESOLUTION>10</RESOLUTION>'
            f'<Wavelength><MIN unit="nm">400</MIN><MAX unit="nm">500</MAX><CENTRAL unit="nm">450</CENTRAL></Wavelength>'
            f"</Spectral_Information>")


def product(folder, end, without=()):
    root = folder / f"{NAME}.SAFE"
    files = "".join(f"<IMAGE_FILE>{STEM}_{band}_10m</IMAGE_FILE>" for band in BANDS)
    (root / STEM).parent.mkdir(parents=True)
    (root / "MTD_MSIL2A.xml").write_text(
        '<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">'
        "<n1:General_Info><Product_Info><PRODUCT_START_TIME>2022-04-13T15:07:59.024Z</PRODUCT_START_TIME>"
        f"<PRODUCT_URI>{NAME}.SAFE</PRODUCT_URI><PROCESSING_LEVEL>Level-2A</PROCESSING_LEVEL>"
        "<PRODUCT_TYPE>S2MSI2A</PRODUCT_TYPE><PROCESSING_BASELINE>04.00</PROCESSING_BASELINE>"
        '<Query_Options completeSingleTile="true"><PRODUCT_FORMAT>SAFE_COMPACT</PRODUCT_FORMAT></Query_Options>'
        "<Product_Organisation><Granule_List><Granule "
        'granuleIdentifier="S2B_OPER_MSI_L2A_TL_ESRI_20220414T082127_A026649_T33XWJ_N04.00" imageFormat="JPEG2000">'
        f"{files}</Granule></Granule_List></Product_Organisation></Product_Info><Product_Image_Characteristics>"
        "<Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX>"
        "</Special_Values><QUANTIFICATION_VALUES_LIST>"
        '<BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE></QUANTIFICATION_VALUES_LIST>'
        "<Spectral_Information_List>" + "".join(spectral(n, b) for b, (n, _) in BANDS.items())
        + "</Spectral_Information_List></Product_Image_Characteristics></n1:General_Info></n1:Level-2A_User_Product>"
    )
    (root / "GRANULE" / GRANULE / "MTD_TL.xml").write_text(
        '<n1:Level-2A_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/S2_PDI_Level-2A_Tile_Metadata.xsd">'
        '<n1:General_Info><TILE_ID metadataLevel="Brief">S2B_OPER_MSI_L2A_TL_ESRI_20220414T082127_A026649_T33XWJ_N04.00'
        "</TILE_ID></n1:General_Info><n1:Geometric_Info><Tile_Geocoding><HORIZONTAL_CS_CODE>EPSG:32633"
        f'</HORIZONTAL_CS_CODE><Size resolution="10"><NROWS>{SIDE}</NROWS><NCOLS>{SIDE}</NCOLS></Size>'
        '<Geoposition resolution="10"><ULX>499980</ULX><ULY>8900040</ULY><XDIM>10</XDIM><YDIM>-10</YDIM></Geoposition>'
        "</Tile_Geocoding></n1:Geometric_Info></n1:Level-2A_Tile_ID>"
    )
    for band, (_, value) in BANDS.items():
        if band in without:
            continue
        options = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"} if end == ".jp2" else {}
        with rasterio.open(
            root / f"{STEM}_{band}_10m{end}", "w", width=SIDE, height=SIDE, count=1, dtype="uint16", crs="EPSG:32633",
            transform=from_origin(499980, 8900040, 10, 10), **options,
        ) as file:
            file.write(np.full((1, SIDE, SIDE), value, "u2"))
    return root


def seen(root):
    with rasterio.open(root / "MTD_MSIL2A.xml") as file:
        part = next(name for name in file.subdatasets if ":10m:" in name)
    with rasterio.open(part) as file:
        pixels = file.read()  # raises nothing
        return {d.split(",")[0]: int(p[5, 5]) for d, p in zip(file.descriptions, pixels)}, set(file.nodatavals)


here, right = Path(sys.argv[1]), True
for what, end, without, expected in (
    ("whole product", ".jp2", (), {"B4": 1004, "B3": 1003, "B2": 1002, **ABSENT}),
    ("B03 deleted", ".jp2", ("B03",), {"B4": 1004, "B3": 0, "B2": 1002, **ABSENT}),
    ("all GeoTIFF", ".tif", (), {"B4": 0, "B3": 0, "B2": 0, **ABSENT}),
):
    values, nodata = seen(product(here / what.replace(" ", "-"), end, without))
    print(f"{what}: {values}, nodata {nodata}")
    right &= values == expected and nodata == {None}
print(rasterio.__version__, rasterio.__gdal_version__)
sys.exit(0 if right else 1)
PY
"$folder/venv/bin/python" "$folder/try.py" "$folder"
