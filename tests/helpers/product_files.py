"""Products for tests: files named and described as the agencies do, with small pixels in them."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from helpers.rasters import DATA

SAFE_2019 = "S2A_MSIL2A_20190212T192651_N0212_R013_T07HFE_20201007T160857.SAFE"
SAFE_2022 = "S2B_MSIL2A_20220413T150759_N0400_R025_T33XWJ_20220414T082126.SAFE"
LANDSAT = "LC08_L2SP_198031_20180413_20200901_02_T1"
S30, L30 = "HLS.S30.T31TDG.2018103T105031.v2.0", "HLS.L30.T31TDG.2018103T104531.v2.0"
MAJA = "SENTINEL2A_20180412-105031-463_L2A_T31TDG_C_V2-2"
L3A = "SENTINEL2X_20180415-000000-000_L3A_T31TDG_C_V1-2"
SIDE = 48


def write(path, pixels, size=10.0, crs="EPSG:32631", at=(403_000.0, 4_597_000.0), **options):
    """A raster of (height, width) or (bands, height, width) pixels; JP2 without loss where the name ends so."""
    pixels = np.atleast_3d(pixels.T).T if pixels.ndim == 2 else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    jp2 = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
    options = (jp2 if path.suffix == ".jp2" else {"driver": "GTiff"}) | options
    profile = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    with rasterio.open(path, "w", crs=crs, transform=from_origin(*at, size, size), **profile, **options) as file:
        file.write(pixels)
    return path


def band_pixels(number, side, dtype="u2"):
    """(side, side) of 1000 + 100 per band, and the column: every band and place differs."""
    return np.broadcast_to(1000 + 100 * number + np.arange(side) % 50, (side, side)).astype(dtype)


def write_safe(folder, name=SAFE_2022, *, end=".jp2", skip=(), side=SIDE, resolutions=(10, 20, 60)):
    """A SAFE of the real metadata, with an image wherever they list one but for names that hold a text of ``skip``."""
    source, made = DATA / "safe-metadata" / name, folder / name
    shutil.copytree(source, made)
    text = (source / "MTD_MSIL2A.xml").read_text()
    images = [part.partition("<")[0].strip() for part in text.split("<IMAGE_FILE>")[1:]]
    for image in images:
        layer, size = image.rpartition("/")[2].split("_")[-2:]
        size = int(size[:-1])
        if any(word in image for word in skip) or size not in resolutions:
            continue
        n = side * 10 // size
        if layer == "TCI":
            pixels = np.full((3, n, n), 255, "u1")
        elif layer == "SCL":
            pixels = np.full((n, n), 4, "u1")
            pixels[0, :6] = (0, 3, 8, 10, 11, 5)
        else:
            pixels = band_pixels(len(layer) + int(layer[1:].rstrip("A")) if layer[0] == "B" else 50, n)
        write(made / f"{image}{end}", pixels, float(size))
    return made


def zipped(folder, inside=None):
    """The zip of a product's folder, beside it; its entries begin with the folder's name, or lie in ``inside``."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, str(Path(inside or folder.name) / file.relative_to(folder)))
    return path


MTL = """GROUP = LANDSAT_METADATA_FILE
  GROUP = PRODUCT_CONTENTS
    PROCESSING_LEVEL = "L2SP"
    COLLECTION_NUMBER = 02
    PROCESSING_SOFTWARE_VERSION = "LPGS_15.3.1c"
  END_GROUP = PRODUCT_CONTENTS
  GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS
    REFLECTANCE_MULT_BAND_2 = 2.75e-05
    REFLECTANCE_ADD_BAND_2 = -0.2
    REFLECTANCE_MULT_BAND_5 = 2.75e-05
    REFLECTANCE_ADD_BAND_5 = -0.3
  END_GROUP = LEVEL2_SURFACE_REFLECTANCE_PARAMETERS
  GROUP = LEVEL1_RADIOMETRIC_RESCALING
    REFLECTANCE_MULT_BAND_2 = 2.0000E-05
    REFLECTANCE_ADD_BAND_2 = -0.100000
  END_GROUP = LEVEL1_RADIOMETRIC_RESCALING
END_GROUP = LANDSAT_METADATA_FILE
END
"""
MTL_GROUPS = {
    "LANDSAT_METADATA_FILE": {
        "PRODUCT_CONTENTS": {"PROCESSING_SOFTWARE_VERSION": "LPGS_15.3.1c"},
        "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS": {
            "REFLECTANCE_MULT_BAND_2": "2.75e-05", "REFLECTANCE_ADD_BAND_2": "-0.2",
            "REFLECTANCE_MULT_BAND_5": "2.75e-05", "REFLECTANCE_ADD_BAND_5": "-0.3",
        },
        "LEVEL1_RADIOMETRIC_RESCALING": {
            "REFLECTANCE_MULT_BAND_2": "2.0000E-05", "REFLECTANCE_ADD_BAND_2": "-0.1",
        },
    }
}  # fmt: skip


def write_landsat(folder, *, metadata="txt", numbers=range(1, 8), name=LANDSAT, side=SIDE):
    """Bands, thermal band, QA_PIXEL and QA_RADSAT, and metadata of one of the three forms, or none."""
    made = folder / name
    for number in numbers:
        write(made / f"{name}_SR_B{number}.TIF", band_pixels(number, side), 30.0)
    write(made / f"{name}_ST_B10.TIF", band_pixels(10, side), 30.0)
    write(made / f"{name}_QA_RADSAT.TIF", np.zeros((side, side), "u2"), 30.0)
    qa = np.full((side, side), 0b1010101000000, "u2")  # clear (bit 6), low confidences
    qa[0, :6] = [1, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5]
    write(made / f"{name}_QA_PIXEL.TIF", qa, 30.0)
    if metadata == "txt":
        (made / f"{name}_MTL.txt").write_text(MTL)
    elif metadata == "json":
        (made / f"{name}_MTL.json").write_text(json.dumps(MTL_GROUPS))
    elif metadata == "xml":
        (made / f"{name}_MTL.xml").write_text(_elements(MTL_GROUPS))
    return made


def _elements(tables):
    return "".join(
        f"<{key}>{_elements(value) if isinstance(value, dict) else value}</{key}>" for key, value in tables.items()
    )


def write_hls(folder, name=S30, side=SIDE):
    """All layers of an S30 or L30 granule, thermal bands and angles included; fill of -9999 in the last column."""
    layers = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B09", "B10", "B11"]
    layers += ["B08", "B8A", "B12"] if ".S30." in name else []
    made = folder / name
    for number, layer in enumerate([*layers, "SAA", "SZA"]):
        pixels = band_pixels(number, side, "i2")
        pixels[:, -1] = -9999
        write(made / f"{name}.{layer}.tif", pixels, 30.0)
    mask = np.zeros((side, side), "u1")
    mask[0, :6] = [1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 255]
    write(made / f"{name}.Fmask.tif", mask, 30.0)
    return made


MAJA_XML = """<Muscate_Metadata_Document>
  <Radiometric_Informations>
    <REFLECTANCE_QUANTIFICATION_VALUE>10000</REFLECTANCE_QUANTIFICATION_VALUE>
    <Special_Values_List>
      <SPECIAL_VALUE name="nodata">-10000</SPECIAL_VALUE>
      <SPECIAL_VALUE name="water_vapor_content_nodata">0</SPECIAL_VALUE>
    </Special_Values_List>
  </Radiometric_Informations>
</Muscate_Metadata_Document>
"""
MAJA_BANDS = {
    "B2": 10,
    "B3": 10,
    "B4": 10,
    "B5": 20,
    "B6": 20,
    "B7": 20,
    "B8": 10,
    "B8A": 20,
    "B11": 20,
    "B12": 20,
}


def write_maja(folder, *, name=MAJA, kinds=("FRE", "SRE"), xml=MAJA_XML, side=SIDE):
    """Bands of MAJA (FRE and SRE) or of a synthesis (FRC), with masks; the first row is empty."""
    made = folder / name
    for kind in kinds:
        for number, (band, size) in enumerate(MAJA_BANDS.items()):
            pixels = band_pixels(number, side * 10 // size, "i2") + (1 if kind == "SRE" else 0)
            pixels[0] = -10_000
            write(made / f"{name}_{kind}_{band}.tif", pixels.astype("i2"), float(size))
    for suffix, size in (("R1", 10), ("R2", 20)):
        n = side * 10 // size
        masks = {"CLM": np.zeros((n, n), "u1"), "MG2": np.zeros((n, n), "u1")}
        if "FRC" in kinds:
            masks = {"FLG": np.full((n, n), 4, "u1")}
            masks["FLG"][0, :4] = (0, 1, 2, 3)
        else:
            masks["CLM"][0, :5] = (1 << 1, 1 << 7, 1 << 5, 1 << 4, 0)
            masks["MG2"][0, :5] = (0, 0, 0, 1 << 0, 1 << 2)
        for mask, pixels in masks.items():
            write(made / "MASKS" / f"{name}_{mask}_{suffix}.tif", pixels, float(size))
    write(made / f"{name}_ATB_R1.tif", np.zeros((2, side, side), "u1"), 10.0)
    if xml:
        (made / f"{name}_MTD_ALL.xml").write_text(xml)
    return made


def write_eopf(path, *, version=2, side=SIDE, epsg=32631):
    """A Zarr of EOPF's layout with uncompressed chunks: bands of 10, 20 and 60 m, and the scene classes."""
    held, root = (
        {},
        {"stac_discovery": {"properties": {"datetime": "2025-02-27T10:30:00Z", "processing:version": "05.11"}}},
    )
    layout = {
        "r10m": ("b02", "b03", "b04", "b08"),
        "r20m": ("b02", "b05", "b8a", "b11", "b12"),
        "r60m": ("b01", "b09"),
    }
    arrays = [(f"measurements/reflectance/{group}", band) for group, bands in layout.items() for band in bands]
    arrays.append(("conditions/mask/l2a_classification/r20m", "scl"))
    for number, (group, band) in enumerate(arrays):
        size = int(group[-3:-1])
        n = side * 10 // size
        pixels = np.full((n, n), 4, "u1") if band == "scl" else band_pixels(number, n)
        scale = {} if band == "scl" else {"scale_factor": 0.0001, "add_offset": -0.1, "fill_value": 0}
        attributes = {"_ARRAY_DIMENSIONS": ["y", "x"], "proj:epsg": epsg, "_eopf_attrs": scale}
        _write_array(path, f"{group}/{band}", pixels, attributes, held)
        for axis, start, step in (("x", 403_000.0, size), ("y", 4_597_000.0, -size)):
            centres = start + step * (np.arange(n) + 0.5)
            _write_array(path, f"{group}/{axis}", centres, {"_ARRAY_DIMENSIONS": [axis]}, held)
    held[".zgroup"], held[".zattrs"] = {"zarr_format": 2}, root
    for group in {"/".join(key.split("/")[:i]) for key in list(held) for i in range(1, key.count("/"))}:
        held[f"{group}/.zgroup"] = {"zarr_format": 2}
    for key, value in held.items():
        (path / key).parent.mkdir(parents=True, exist_ok=True)
        (path / key).write_text(json.dumps(value))
    (path / ".zmetadata").write_text(json.dumps({"metadata": held, "zarr_consolidated_format": 1}))
    return path


def _write_array(path, name, values, attributes, held):
    held[f"{name}/.zarray"] = {
        "chunks": list(values.shape), "compressor": None, "dtype": values.dtype.str, "fill_value": 0, "filters": None,
        "order": "C", "shape": list(values.shape), "zarr_format": 2,
    }  # fmt: skip
    held[f"{name}/.zattrs"] = attributes
    chunk = path / name / ".".join(["0"] * values.ndim)
    chunk.parent.mkdir(parents=True, exist_ok=True)
    chunk.write_bytes(np.ascontiguousarray(values).tobytes())
