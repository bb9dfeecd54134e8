#!/usr/bin/env bash
# rasterio's WarpedVRT and reproject blend the nodata value of ONE band into its neighbours, if another band is valid there.
#
# Input: two bands of uint16, 1000 everywhere, nodata 65535, one pixel of band 2 is nodata. Resampled bilinearly to half
# the pixel size. Each band alone: all valid pixels are 1000. Both in one file: pixels of band 2 around the gap hold up
# to 37300, which is neither nodata nor masked. Read alone through the same WarpedVRT (indexes=2) it is no better.
# Cause: rasterio sets GDAL's warp option UNIFIED_SRC_NODATA=YES (a pixel is nodata only if all bands are), which
# GDAL's page tells of gdalwarp -srcnodata, and rasterio's pages of none of its calls. (That GDAL before 3.12 also changes
# the nodata pixels themselves, -999 to -1000, is rasterio's issue 3508; the blending stays in GDAL 3.12.)
# With UNIFIED_SRC_NODATA="NO" as a keyword of WarpedVRT or reproject every valid pixel is 1000.
#
# Seen with rasterio 1.4.4 (GDAL 3.10.3), numpy 2.2.6. Prints the values; exits with 1 if this changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check rasterio==1.4.4 numpy==2.2.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject

COARSE, FINE = Affine(20, 0, 500000, 0, -20, 4500000), Affine(10, 0, 500000, 0, -10, 4500000)


def resampled(bands, nodata, read=None, **options):
    """Bands (n, 6, 6) at half the pixel size, through WarpedVRT and through reproject."""
    profile = {"driver": "GTiff", "count": len(bands), "height": 6, "width": 6, "dtype": "uint16", "crs": "EPSG:32631"}
    with rasterio.open("bands.tif", "w", transform=COARSE, nodata=nodata, **profile) as file:
        file.write(bands)
    how = {"resampling": Resampling.bilinear, "src_nodata": nodata} | options
    with rasterio.open("bands.tif") as file:
        with WarpedVRT(file, crs=file.crs, transform=FINE, width=12, height=12, nodata=nodata, **how) as vrt:
            first = vrt.read(read or list(range(1, len(bands) + 1)))
        second = np.zeros((len(bands), 12, 12), "uint16")
        reproject(bands, second, src_transform=COARSE, dst_transform=FINE, src_crs=file.crs, dst_crs=file.crs, dst_nodata=nodata, **how)
    return first, second


bands = np.full((2, 6, 6), 1000, "uint16")
bands[1, 2, 2] = 65535
valid = lambda values: sorted({int(value) for value in np.unique(values) if value != 65535})
alone = [valid(found) for found in resampled(bands[1:], 65535)]
both = [valid(found[1]) for found in resampled(bands, 65535)]
second_only = valid(resampled(bands, 65535, read=[2])[0])
apart = [valid(found[1]) for found in resampled(bands, 65535, UNIFIED_SRC_NODATA="NO")]
print("valid values, band 2 alone in a file:   ", alone)
print("valid values, beside a valid band:      ", both)
print("the same, only band 2 read:             ", second_only)
print('the same with UNIFIED_SRC_NODATA="NO":  ', apart)

as_told = alone == [[1000]] * 2 and apart == [[1000]] * 2 and all(max(found) > 30000 for found in both)
sys.exit(0 if as_told and max(second_only) > 30000 else 1)
PYTHON
