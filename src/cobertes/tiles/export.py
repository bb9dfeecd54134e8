"""Export of the tiles as files for other tools: one GeoTIFF with all seasons' bands, one with the labels.

DIR/train/images/AREA_00064_00128.tif        bands april:B04, april:B03 ... august:B12, as in the scenes
    train/labels/AREA_00064_00128.tif        class codes as used in training, with palette
    validation/...                           the same; test/ if there is a test split
    tiles.csv legend.csv                     the tiles and the classes
"""

import csv
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from cobertes.errors import OutputExistsError, StorageError
from cobertes.geo.grid import crop
from cobertes.geo.nodata import can_hold
from cobertes.labels.legend import IGNORE_INDEX
from cobertes.progress import SILENT, Progress
from cobertes.tiles.dataset import LabelledDataset
from cobertes.tiles.index import window_of

TILES, LEGEND = "tiles.csv", "legend.csv"
EXPORTED = {TILES, LEGEND, "train", "validation", "test"}
WRITE_THREADS = 2


def export_tiles(
    index: Any, dataset: LabelledDataset, out: Path, *, overwrite: bool = False, progress: Progress = SILENT
) -> dict[str, int]:
    """Write every tile of the index with ``keep``; returns the number of tiles by split.

    ``out`` is a new or empty folder, or with ``overwrite`` an earlier export; it is created when complete.
    Raises OutputExistsError, StorageError, InputFileError.
    """
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise OutputExistsError(f"{out} exists. Use --overwrite to replace it, or name another folder.")
        others = [out] if not out.is_dir() else [path for path in out.iterdir() if path.name not in EXPORTED]
        if others or not (out / TILES).is_file():
            what = ", ".join(sorted(path.name for path in others)[:3]) or f"no {TILES}"
            raise OutputExistsError(f"{out} is no folder of exported tiles ({what}): name another folder.")
    rows = index[index["keep"]]
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for split in rows["split"].unique():
            for kind in ("images", "labels"):
                (partial / split / kind).mkdir(parents=True)
        with progress.bar("export", len(rows), "tiles") as advance, ThreadPoolExecutor(WRITE_THREADS) as pool:
            try:
                for _ in pool.map(lambda row: _export(row, dataset, partial), rows.itertuples()):
                    advance(1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        _write_tables(rows, dataset, partial)
        old = out.parent / f".{out.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        partial.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RasterioError) as error:
        if isinstance(error, OSError) and error.errno is None and not isinstance(error, RasterioError):
            raise
        raise StorageError(f"can't write {out}: {error}. Free some space or choose another folder.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {str(split): int(count) for split, count in rows["split"].value_counts().items()}


def tile_name(row: Any) -> str:
    """Name ``AREA_ROW_COL`` of a row of the index."""
    return f"{row.area}_{row.row:05d}_{row.col:05d}"


def _export(row: Any, dataset: LabelledDataset, folder: Path) -> None:
    window = window_of(row)
    observed, y = dataset.read_chw(row.area, window)
    area = dataset.areas[row.area]
    grid = crop(area.grid, window)
    legend = dataset.legend
    profile = {
        "height": window.height,
        "width": window.width,
        "compress": "deflate",
        "zlevel": 1,
        "driver": "GTiff",
    }
    if grid.crs is not None:
        profile |= {"crs": grid.crs.to_wkt(), "transform": grid.affine}
    image = np.concatenate([values for values, _ in observed.values()])
    declared = next(iter(area.scenes.values())).nodata
    nodata = declared if can_hold(image.dtype, declared) else None
    if nodata is not None:  # seasons may have different nodata values, a file has one
        bands = len(image) // len(observed)
        for number, (_, valid) in enumerate(observed.values()):
            image[number * bands : (number + 1) * bands, ~valid] = nodata
    names = [
        f"{season}:{band}" if len(area.scenes) > 1 else band
        for season, scene in area.scenes.items()
        for band in scene.band_names
    ]
    with rasterio.open(
        folder / row.split / "images" / f"{tile_name(row)}.tif", "w", count=len(image), dtype=image.dtype,
        nodata=nodata, interleave="pixel", predictor=2 if image.dtype.kind in "iu" else 1, **profile,
    ) as file:  # fmt: skip
        file.write(image)
        file.descriptions = names
        told = [one for scene in area.scenes.values() for one in scene.conventions]
        if any(not one.assumed for one in told):  # other programs then read the same reflectances
            file.scales, file.offsets = [one.scale for one in told], [one.offset for one in told]
    codes = np.full(window.shape, legend.nodata, np.uint8)
    codes[y != IGNORE_INDEX] = legend.codes[y[y != IGNORE_INDEX]]
    colours = {entry.code: entry.rgb for entry in legend.classes}
    with rasterio.open(
        folder / row.split / "labels" / f"{tile_name(row)}.tif", "w", count=1, dtype="uint8",
        nodata=legend.nodata, photometric="palette", **profile,
    ) as file:  # fmt: skip
        file.write(codes, 1)
        file.write_colormap(1, {legend.nodata: (0, 0, 0), **colours})
        file.update_tags(**{f"class_{c.code}": c.name for c in legend.classes})


def _write_tables(rows: Any, dataset: LabelledDataset, folder: Path) -> None:
    with (folder / LEGEND).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["code", "key", "name", "colour"])
        writer.writerows((c.code, c.key, c.name, c.colour) for c in dataset.legend.classes)
    table = rows.drop(columns=["counts", "geometry", "keep", "reason"]).assign(
        name=[tile_name(row) for row in rows.itertuples()]
    )
    table.to_csv(folder / TILES, index=False)
