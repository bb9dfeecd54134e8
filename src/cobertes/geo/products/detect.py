"""Which product a path is: a folder, zip, tar or metadata file, told by the names and metadata inside it."""

import re
from collections.abc import Sequence
from pathlib import Path

from cobertes.geo.products.archive import ProductFiles, is_archive, open_files, open_folder
from cobertes.geo.products.cube import SUFFIXES, find_cube
from cobertes.geo.products.eopf import find_eopf
from cobertes.geo.products.hls import find_hls
from cobertes.geo.products.landsat import find_landsat
from cobertes.geo.products.maja import find_maja
from cobertes.geo.products.record import Product
from cobertes.geo.products.safe import find_safe

METADATA_FILE = re.compile(r"(^MTD_MSIL|_MTD_SAFL|_MTL\.|_MTD_ALL\.)", re.IGNORECASE)
FEWEST = 2
"""Fewer files are no list of bands: a lone file is read as it is."""
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
    root = _safe_root(path)
    if root is not None:
        return _part_of_safe(path, root)
    return _find(open_files(path)) or (find_cube(path) if path.suffix.lower() in SUFFIXES else None)


def detect_in_list(paths: Sequence[str]) -> Product | None:
    """The product whose band files a list names, with its metadata from the folder; None for other files.

    Only the listed files become bands: ``R10m/*_B0[234]_10m.jp2`` of a SAFE gives three.
    """
    folders = {Path(path).parent for path in paths}
    local = all(Path(path).is_file() for path in paths)
    if not local or len(paths) < FEWEST or any(is_archive(Path(path)) for path in paths):
        return None
    roots = {_safe_root(folder) for folder in folders}
    root = roots.pop() if len(roots) == 1 else None
    if root is None and len(folders) > 1:
        return None
    above = root or next(iter(folders))
    names = {Path(path).relative_to(above).as_posix() for path in paths}
    metadata = [file.name for file in above.iterdir() if METADATA_FILE.search(file.name)]
    return _find(open_folder(above, (*sorted(names), *metadata)))


def _safe_root(path: Path) -> Path | None:
    """The ``.SAFE`` folder that a folder lies in, None for the product itself and for others."""
    return next((above for above in path.parents if above.suffix.upper() == ".SAFE"), None)


def _part_of_safe(path: Path, root: Path) -> Product | None:
    """A granule or an image folder of a product, with the product's metadata."""
    inside = path.relative_to(root).as_posix()
    listed = open_files(root)
    below = [name for name in listed.names if name.startswith(f"{inside}/")]
    metadata = [name for name in listed.names if "/" not in name and METADATA_FILE.search(name)]
    return _find(open_folder(root, (*below, *metadata)))


def _find(files: ProductFiles) -> Product | None:
    for find in FINDERS:
        product = find(files)
        if product is not None:
            return product
    return None
