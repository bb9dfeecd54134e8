"""Which product a path is: a folder, zip, tar or metadata file, told by the names and metadata inside it."""

import re
from pathlib import Path

from cobertes.geo.products.archive import ProductFiles, is_archive, open_files
from cobertes.geo.products.cube import SUFFIXES, find_cube
from cobertes.geo.products.eopf import find_eopf
from cobertes.geo.products.hls import find_hls
from cobertes.geo.products.landsat import find_landsat
from cobertes.geo.products.maja import find_maja
from cobertes.geo.products.record import Product
from cobertes.geo.products.safe import find_safe

METADATA_FILE = re.compile(r"(^MTD_MSIL|_MTD_SAFL|_MTL\.|_MTD_ALL\.)", re.IGNORECASE)
FINDERS = (find_eopf, find_safe, find_landsat, find_hls, find_maja)


def may_be_product(path: Path) -> bool:
    """True for what `detect_product` looks into: folders, archives, metadata files and cubes."""
    known = is_archive(path) or bool(METADATA_FILE.search(path.name)) or path.suffix.lower() in SUFFIXES
    return path.is_dir() or known


def detect_product(path: Path) -> Product | None:
    """The product at a path, None if it is none: a plain raster or a folder of band files.

    path   a folder, zip or tar, a product's metadata file (its folder is meant), or a netCDF or Zarr cube
    Raises InputFileError for damaged products, and for folders of several.
    """
    if METADATA_FILE.search(path.name) and path.is_file():
        path = path.parent
    if not (path.is_dir() or is_archive(path)):
        return find_cube(path)
    files = open_files(path)
    return _find(files) or (find_cube(path) if path.suffix.lower() in SUFFIXES else None)


def _find(files: ProductFiles) -> Product | None:
    for find in FINDERS:
        product = find(files)
        if product is not None:
            return product
    return None
