"""Harmonized Landsat Sentinel-2: S30 (from Sentinel-2) and L30 (from Landsat 8 and 9), a file per band.

    HLS.S30.T31TDG.2018103T105031.v2.0.B05.tif    red edge, 704 nm
    HLS.L30.T31TDG.2018103T105031.v2.0.B05.tif    near infrared, 865 nm: another band of the same name
    ...Fmask.tif                                  bits of clouds

Surface reflectance x 10,000, -9999 is fill (HLS user guide v2, tables 6 to 9). Thermal bands and angles are left
out.
"""

import re
from datetime import date, timedelta

from cobertes.errors import InputFileError
from cobertes.geo.products.archive import ProductFiles
from cobertes.geo.products.band_vocabulary import BANDS, HLS_L30, HLS_S30
from cobertes.geo.products.landsat import NOT_REFLECTED
from cobertes.geo.products.record import Product, ProductBand, fmask_layer
from cobertes.geo.radiometry import RadiometricConvention

NAME = re.compile(
    r"^(?P<id>HLS\.(?P<kind>[SL]30)\.T\d{2}[A-Z]{3}\.(?P<year>\d{4})(?P<day>\d{3})(?:T\d{6})?\.v(?P<version>\d+\.\d+))"
    r"\.(?P<layer>\w+)(?:\.\w+)*\.tiff?$",
    re.IGNORECASE,
)
SCALE, FILL, PIXEL_SIDE = 1e-4, -9999.0, 30.0


def find_hls(files: ProductFiles) -> Product | None:
    """The product of a folder or archive, None if no file is named like one.

    Raises InputFileError for several products, or one without band files.
    """
    named = files.matches(NAME.match)
    product = files.only_product(
        (found["id"] for _, found in named), "HLS", "Keep one in a folder, or list the folders: products"
    )
    if product is None:
        return None
    facts = named[0][1]
    sensor = HLS_S30 if facts["kind"].upper() == "S30" else HLS_L30
    layers = {found["layer"].upper(): name for name, found in named}
    convention = RadiometricConvention(SCALE, 0.0, "reflectance", "product metadata")
    bands = tuple(
        ProductBand(
            band.name, files.gdal_path(layers[band.name]), 1, band.common_name, band.wavelength, band.width,
            convention, PIXEL_SIDE, sensor,
        )
        for band in BANDS[sensor]
        if band.name in layers and band.common_name not in NOT_REFLECTED
    )  # fmt: skip
    if not bands:
        raise InputFileError(f"{files.path} has no band files of {product} (...B04.tif): fetch the whole product.")
    quality = (fmask_layer(files.gdal_path(layers["FMASK"])),) if "FMASK" in layers else ()
    day = date(int(facts["year"]), 1, 1) + timedelta(days=int(facts["day"]) - 1)
    return Product(
        f"HLS {facts['kind'].upper()}", str(files.path), bands, day, facts["version"], quality, FILL
    )  # fmt: skip
