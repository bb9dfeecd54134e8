"""Cubes of a variable per band: netCDF and Zarr, as far as GDAL has the drivers.

    s.nc          variables B02, B03, B04, x, y, crs      read as netcdf:s.nc:B02 and so on
    netcdf:s.nc:B02                                       one variable of it

Variables with a dimension of time hold several scenes: one date has to be chosen before.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from cobertes.errors import InputFileError
from cobertes.geo.products.band_folder import is_quality_name
from cobertes.geo.products.record import Product, ProductBand

SUFFIXES = {".nc": "netCDF", ".nc4": "netCDF", ".cdf": "netCDF", ".zarr": "Zarr"}
WAVELENGTH_TAGS = ("wavelength", "radiation_wavelength", "center_wavelength", "central_wavelength")
MICROMETRES = 100
"""Wavelengths under it are given in micrometres."""


def require_driver(driver: str, path: Path | str) -> None:
    """Raise InputFileError where this GDAL has no such driver."""
    with rasterio.Env() as environment:
        if driver not in environment.drivers():
            raise InputFileError(
                f"can't read {path}: this GDAL ({rasterio.__gdal_version__}) has no {driver} driver. Install a "
                f"rasterio that has it (conda-forge: libgdal-{driver.lower()}), or convert the bands to GeoTIFF."
            )


def find_cube(path: Path) -> Product | None:
    """The variables of a netCDF or Zarr cube as bands; None for other files, and where it opens as one raster.

    Raises InputFileError where the driver is missing, the file is damaged or its variables have several steps of
    time.
    """
    driver = SUFFIXES.get(path.suffix.lower())
    if driver is None:
        return None
    require_driver(driver, path)
    try:
        with rasterio.open(path) as dataset:
            if dataset.count:
                return None
            variables = list(dataset.subdatasets)
        found = [(name, *_inspect(name)) for name in variables]
    except RasterioError as error:
        raise InputFileError(f"can't read {path}: {error}") from error
    planes = [(name, shape, count, tags) for name, shape, count, tags in found if min(shape) > 1]
    if not planes:
        raise InputFileError(f"{path} holds no variable with rows and columns: name the file of a raster.")
    if all(count > 1 for _, _, count, _ in planes):
        raise InputFileError(
            f"{path}: {_variable(planes[0][0])} holds {planes[0][2]} layers (dates or levels), needed one per "
            f"band. Choose a date first (gdal_translate -b N, cdo seltimestep, xarray isel)."
        )
    bands = [
        ProductBand(_variable(name), name, wavelength=_wavelength(tags), common_name=tags.get("common_name"))
        for name, _, count, tags in planes
        if count == 1 and not is_quality_name(_variable(name))
    ]
    common = Counter(shape for _, shape, count, _ in planes if count == 1).most_common(1)[0][0]
    same = {name for name, shape, _, _ in planes if shape == common}
    kept = tuple(band for band in bands if band.path in same)
    return Product(f"{driver} cube", str(path), kept) if kept else None


def _inspect(name: str) -> tuple[tuple[int, int], int, dict[str, str]]:
    with rasterio.open(name) as dataset:
        return dataset.shape, dataset.count, _tags(dataset)


def _tags(dataset: Any) -> dict[str, str]:
    return {key.lower(): value for key, value in dataset.tags(1).items()}


def _variable(name: str) -> str:
    """``B02`` of ``netcdf:s.nc:B02`` and of ``ZARR:"s.zarr":/B02``."""
    return name.rpartition(":")[2].strip('"/').rpartition("/")[2]


def _wavelength(tags: dict[str, str]) -> float | None:
    """Centre in nm, None if no attribute says."""
    for key in WAVELENGTH_TAGS:
        try:
            value = float(tags.get(key, "").split()[0])
        except (ValueError, IndexError):
            continue
        return value * 1000 if value < MICROMETRES else value
    return None
