"""Sentinel-2 products in ESA's SAFE format: L1C and L2A, folder or zip, old and compact naming.

    X.SAFE/MTD_MSIL2A.xml                   IMAGE_FILE list, quantification, offset by band, baseline, nodata
    X.SAFE/GRANULE/L2A_.../IMG_DATA/R10m/T31TDG_..._B02_10m.jp2

The image files are read as they are, not through GDAL's SENTINEL2 driver: that orders bands by resolution (B4, B3,
B2, B8, AOT, WVP), declares no nodata, tags the offset on layers to which it does not apply, knows no offset before
GDAL 3.9, and returns zeros for images that are missing or that are GeoTIFFs, as in catalogues on object stores.
"""

import datetime
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from xml.etree import ElementTree

from cobertes.errors import InputFileError
from cobertes.geo.products.archive import ProductFiles, elements, text_of, texts
from cobertes.geo.products.band_vocabulary import BANDS, SENTINEL_2, identify
from cobertes.geo.products.record import Product, ProductBand, QualityLayer, scl_layer
from cobertes.geo.radiometry import Origin, RadiometricConvention

log = logging.getLogger(__name__)

METADATA = re.compile(r"(^|/)(MTD_MSIL(1C|2A)\.xml|S2[A-Z]_(OPER|USER)_MTD_SAFL(1C|2A)_[^/]*\.xml)$")
IMAGE = re.compile(r"_(B\d{2}|B8A)(?:_(10|20|60)m)?\.(?:jp2|tiff?)$", re.IGNORECASE)
SCENE_CLASSES = re.compile(r"_?SCL_(?:[^/]*_)?(20|60)m\.(?:jp2|tiff?)$", re.IGNORECASE)
IMAGE_ENDS = (".jp2", ".tif", ".tiff", ".TIF", ".JP2")
SENSED = re.compile(r"_(\d{4})(\d{2})(\d{2})T\d{6}")

BASELINE = re.compile(r"_N(\d{2})(\d{2})_")
USUAL_QUANTIFICATION = 10_000.0

NATIVE = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "B01": 60, "B09": 60, "B10": 60}
"""Side of a pixel in metres; 20 for the others."""

QUANTIFICATIONS = ("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE", "QUANTIFICATION_VALUE")
"""Tags of L2A, of L2A before 2018, and of L1C."""

SHIFTED_SINCE, SHIFT = 4.0, -1000.0
"""From this processing baseline on (25 January 2022), digital numbers are shifted (ESA, product specification)."""


@dataclass(frozen=True)
class _Metadata:
    """Metadata of a product; offsets in digital numbers by band name."""

    level: str
    baseline: str
    date: datetime.date | None
    quantification: float | None
    offsets: dict[str, float] | None
    nodata: float
    images: tuple[str, ...]
    origin: Origin = "product metadata"

    def convention(self, band: str) -> RadiometricConvention | None:
        """None where the metadata do not say by what reflectances are multiplied."""
        if self.quantification is None:
            return None
        shift = self.offsets.get(band, 0.0) if self.offsets is not None else 0.0
        if self.offsets is None and _number(self.baseline) >= SHIFTED_SINCE:
            shift = SHIFT
        return RadiometricConvention(
            1 / self.quantification, shift / self.quantification, "reflectance", self.origin
        )


def find_safe(files: ProductFiles) -> Product | None:
    """The product of a ``.SAFE`` folder, of the folder or zip that holds one, or of one of its granules; or None.

    Raises InputFileError for damaged metadata, for several products or granules, and where no image is there.
    """
    roots = _roots(files)
    if not roots:
        return None
    if len(roots) > 1:
        raise InputFileError(
            f"{files.path} holds {len(roots)} products ({', '.join(sorted(roots)[:3])}). Name one, or list them: "
            f"a list of granules in one CRS is read as a mosaic."
        )
    root, metadata_file = next(iter(roots.items()))
    images = [name for name in files.names if name.startswith(root) and "/IMG_DATA/" in f"/{name}"]
    metadata = _read_metadata(files, metadata_file) if metadata_file else None
    granules = sorted({_granule(name) for name in images})
    if len(granules) > 1:
        raise InputFileError(
            f"{files.path} holds {len(granules)} granules ({', '.join(granules[:3])}). Name one of its GRANULE "
            f"folders, or list them: granules in one CRS are read as a mosaic."
        )
    bands = _bands(files, images, metadata or _by_name(f"{files.path}/{root}"))
    if not bands:
        raise InputFileError(f"{files.path} has no images of bands in IMG_DATA: fetch the whole product.")
    level = metadata.level if metadata else "L2A" if "L2A" in f"{root}{images[0]}" else "L1C"
    baseline = metadata.baseline if metadata else _baseline_in(f"{files.path}/{root}")
    if metadata and metadata.offsets is None and _number(baseline) >= SHIFTED_SINCE:
        log.warning(
            "%s: baseline %s without offsets in its metadata: the -1000 of that baseline is taken",
            files.path,
            baseline,
        )
    sensed = metadata.date if metadata else _date_in([root, *images])
    missing = _missing(images, metadata)
    return Product(
        f"Sentinel-2 {level}",
        str(files.path),
        tuple(bands),
        sensed,
        baseline,
        tuple(_quality(files, root, images, level)),
        metadata.nodata if metadata else 0.0,
        {"missing": ", ".join(missing)} if missing else {},
    )


def _roots(files: ProductFiles) -> dict[str, str | None]:
    """Prefix of each product among the names ("" for the path itself) -> its metadata file, or None."""
    roots: dict[str, str | None] = {}
    for name in files.names:
        found = METADATA.search(name)
        if found and "/GRANULE/" not in f"/{name}" and "/DATASTRIP/" not in f"/{name}":
            roots.setdefault(name[: found.start(2)], name)
    images = [name for name in files.names if "/IMG_DATA/" in f"/{name}" and _is_image(name)]
    for name in images:
        before = f"/{name}".partition("/IMG_DATA/")[0].removeprefix("/")
        root = before.partition("GRANULE/")[0] if "GRANULE/" in f"{before}/" else f"{before}/".lstrip("/")
        if not any(root.startswith(known) for known in roots):
            roots[root] = None
    return roots


def _baseline_in(name: str) -> str:
    """``05.10`` of ``S2A_MSIL2A_..._N0510_...``; "" if a name has none."""
    found = BASELINE.search(name)
    return f"{found[1]}.{found[2]}" if found else ""


def _by_name(name: str) -> _Metadata | None:
    """Values by the processing baseline in a product's name, where its metadata are missing."""
    baseline = _baseline_in(name)
    if not baseline:
        return None
    return _Metadata("", baseline, None, USUAL_QUANTIFICATION, None, 0.0, (), "file names")


def _is_image(name: str) -> bool:
    return bool(IMAGE.search(name) or SCENE_CLASSES.search(name))


def _granule(name: str) -> str:
    """The folder of GRANULE that an image lies in."""
    before = f"/{name}".partition("/IMG_DATA/")[0]
    return PurePosixPath(before).name


def _read_metadata(files: ProductFiles, name: str) -> _Metadata:
    root = files.xml(name)
    start = text_of(root, "PRODUCT_START_TIME") or text_of(root, "DATATAKE_SENSING_START") or ""
    level = (text_of(root, "PROCESSING_LEVEL") or "").removeprefix("Level-")
    quantification = next((float(value) for tag in QUANTIFICATIONS for value in texts(root, tag)), None)
    order = _band_order(root)
    offsets = {
        order[int(element.get("band_id", "-1"))]: float(element.text or 0)
        for tag in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET")
        for element in elements(root, tag)
        if int(element.get("band_id", "-1")) in order
    }
    special = dict(zip(texts(root, "SPECIAL_VALUE_TEXT"), texts(root, "SPECIAL_VALUE_INDEX"), strict=False))
    return _Metadata(
        f"L{level}",
        text_of(root, "PROCESSING_BASELINE") or "",
        datetime.date.fromisoformat(start[:10]) if re.match(r"\d{4}-\d\d-\d\d", start) else None,
        quantification,
        offsets or None,
        float(special.get("NODATA", 0)),
        tuple(texts(root, "IMAGE_FILE") or texts(root, "IMAGE_FILE_2A") or texts(root, "IMAGE_ID")),
    )


def _band_order(root: ElementTree.Element) -> dict[int, str]:
    """Band number in the metadata -> canonical name; the sensor's order where the metadata have no list."""
    named = {
        int(element.get("bandId", "-1")): band.name
        for element in elements(root, "Spectral_Information")
        if (band := identify(element.get("physicalBand", ""), SENTINEL_2))
    }
    return named or {number: band.name for number, band in enumerate(BANDS[SENTINEL_2])}


def _bands(files: ProductFiles, images: Iterable[str], metadata: _Metadata | None) -> list[ProductBand]:
    """Each band once, from its finest copy, in the sensor's order."""
    finest: dict[str, tuple[int, str]] = {}
    for name in images:
        found = IMAGE.search(name)
        if found:
            band = found[1].upper()
            side = int(found[2] or NATIVE.get(band, 20))
            if band not in finest or side < finest[band][0]:
                finest[band] = (side, name)
    return [
        ProductBand(
            band.name,
            files.gdal_path(finest[band.name][1]),
            1,
            band.common_name,
            band.wavelength,
            band.width,
            metadata.convention(band.name) if metadata else None,
            float(finest[band.name][0]),
            SENTINEL_2,
        )
        for band in BANDS[SENTINEL_2]
        if band.name in finest
    ]


def _missing(images: Iterable[str], metadata: _Metadata | None) -> list[str]:
    """Bands that the metadata list, in any resolution, and that have no image."""
    there = {found[1].upper() for name in images if (found := IMAGE.search(name))}
    listed = {
        found[1].upper()
        for name in (metadata.images if metadata else ())
        if (found := IMAGE.search(f"{name}.jp2"))
    }
    return sorted(listed - there)


def _quality(files: ProductFiles, root: str, images: Iterable[str], level: str) -> list[QualityLayer]:
    """The scene classification of L2A; the raster mask of L1C from baseline 04.00 on: opaque, cirrus, snow."""
    classes = sorted(
        (int(found[1]), name)
        for name in files.names
        if name.startswith(root) and (found := SCENE_CLASSES.search(name))
    )
    if classes:
        return [scl_layer(files.gdal_path(classes[0][1]))]
    masks = [name for name in files.names if name.startswith(root) and "/MSK_CLASSI_B00" in name]
    if level != "L1C" or not masks:
        return []
    path = files.gdal_path(masks[0])
    return [
        QualityLayer("MSK_CLASSI opaque", path, cloud=(1,), index=1),
        QualityLayer("MSK_CLASSI cirrus", path, cloud=(1,), index=2),
        QualityLayer("MSK_CLASSI snow", path, cloud=(), snow=(1,), index=3),
    ]


def _date_in(names: Iterable[str]) -> datetime.date | None:
    for name in names:
        found = SENSED.search(f"_{name}")
        if found:
            try:
                return datetime.date(*(int(part) for part in found.groups()))
            except ValueError:
                continue
    return None


def _number(baseline: str) -> float:
    """4.0 of ``04.00``; 99.99 marks reprocessed products that carry their own offsets or none."""
    try:
        value = float(baseline)
    except ValueError:
        return 0.0
    return 0.0 if value > 90 else value
