"""The same labels from a map however it is stored, and GDAL's own where GDAL has the method."""

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import Resampling
from rasterio.warp import reproject

from cobertes.labels.aggregate import make_labels
from cobertes.labels.legend import Legend, LegendClass
from cobertes.labels.recode import recode_table
from helpers.rasters import grid_at, read_raster, write_raster

LEGEND = Legend("test", 0, tuple(LegendClass(c, f"c{c}", f"C{c}", "#808080") for c in (1, 2, 3, 7)))
FINE = grid_at(700, 930, 1.0)
GRID = grid_at(70, 93, 10.0)


@pytest.fixture(scope="module")
def codes():
    rng = np.random.default_rng(4)
    patches = np.kron(rng.choice([0, 1, 2, 3, 7], (100, 155)), np.ones((7, 6), int))
    return np.where(rng.random((700, 930)) < 0.1, 7, patches).astype(np.uint8)


def as_cog(folder, codes):
    write_raster(folder / "plain.tif", codes, FINE, nodata=0)
    rasterio.shutil.copy(folder / "plain.tif", folder / "map.tif", driver="COG", BLOCKSIZE="256", COMPRESS="LZW")
    return folder / "map.tif"


def as_vrt(folder, codes):
    """A mosaic of six files."""
    sources = []
    for row in (0, 400):
        for col in (0, 310, 620):
            part = codes[row : row + 400, col : col + 310]
            name = f"part-{row}-{col}.tif"
            write_raster(folder / name, part, nodata=0)
            size = f'xSize="{part.shape[1]}" ySize="{part.shape[0]}"'
            sources.append(
                f'<SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename><SourceBand>1</SourceBand>'
                f'<SrcRect xOff="0" yOff="0" {size}/><DstRect xOff="{col}" yOff="{row}" {size}/></SimpleSource>'
            )
    a = FINE.affine
    (folder / "map.vrt").write_text(
        f'<VRTDataset rasterXSize="930" rasterYSize="700"><SRS>EPSG:32631</SRS>'
        f"<GeoTransform>{a.c},{a.a},{a.b},{a.f},{a.d},{a.e}</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1"><NoDataValue>0</NoDataValue>{"".join(sources)}</VRTRasterBand>'
        f"</VRTDataset>"
    )
    return folder / "map.vrt"


def as_blocks(folder, codes):
    return write_raster(folder / "map.tif", codes, FINE, nodata=0, tiled=True, blockxsize=96, blockysize=96)


def as_strips(folder, codes):
    return write_raster(folder / "map.tif", codes, FINE, nodata=0, blockysize=1)


def as_wide_strips_of_int16(folder, codes):
    return write_raster(folder / "map.tif", codes.astype(np.int16), FINE, nodata=0, blockysize=37, compress="zstd")


def labels(reference, out, **options):
    make_labels(reference, GRID, out, legend=LEGEND, table=recode_table(LEGEND), min_valid=0, **options)
    return read_raster(out)


@pytest.mark.parametrize("store", [as_cog, as_vrt, as_blocks, as_strips, as_wide_strips_of_int16])
@pytest.mark.parametrize("method", ["nearest", "majority", "weighted-majority"])
def test_labels_do_not_depend_on_how_the_map_is_stored(tmp_path, codes, store, method):
    blocks = codes.reshape(70, 10, 93, 10).swapaxes(1, 2).reshape(70, 93, 100)
    found = labels(store(tmp_path, codes), tmp_path / "labels.tif", method=method)
    if method == "nearest":
        np.testing.assert_array_equal(found, blocks[:, :, 55])
        return
    votes = np.stack([(blocks == code).sum(-1) for code in (1, 2, 3, 7)]).astype(float)
    if method == "weighted-majority":
        frequent = votes.sum((1, 2))
        votes *= np.rint(2**20 * (frequent.min() / frequent) ** 0.5)[:, None, None]
    expected = np.where(votes.any(0), np.array([1, 2, 3, 7])[votes.argmax(0)], 0)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("method", "gdal"), [("nearest", Resampling.nearest), ("majority", Resampling.mode)])
def test_labels_are_gdal_s_except_at_ties(tmp_path, codes, method, gdal):
    reference = as_blocks(tmp_path, codes)
    theirs = np.zeros(GRID.shape, np.uint8)
    with rasterio.open(reference) as file:
        reproject(
            rasterio.band(file, 1), theirs, dst_transform=GRID.affine, dst_crs="EPSG:32631", resampling=gdal,
            dst_nodata=0,
        )  # fmt: skip
    ours = labels(reference, tmp_path / "labels.tif", method=method)
    blocks = codes.reshape(70, 10, 93, 10).swapaxes(1, 2).reshape(70, 93, 100)
    votes = np.sort(np.stack([(blocks == code).sum(-1) for code in (1, 2, 3, 7)]), axis=0)
    tie = (votes[-1] == votes[-2]) & (method == "majority")
    assert (ours == theirs)[~tie].all()
    assert tie.sum() < 0.02 * tie.size
