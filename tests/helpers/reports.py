"""What reports are made of: scenes, maps, scores, and pages read back."""

import base64
import io
import math
from dataclasses import fields
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from cobertes.geo.area import Area
from cobertes.geo.cog_writer import RasterSpec, new_raster
from cobertes.geo.scene import open_scene
from cobertes.labels.legend import Legend, LegendClass
from cobertes.report.report import RunRecords, write_report
from cobertes.report.thumbnails import (
    AreaRasters,
)

HEIGHT, WIDTH = 24, 32
GRID = GeoBox((HEIGHT, WIDTH), Affine(10, 0, 300_000, 0, -10, 4_600_000), "EPSG:32631")

LEGEND = Legend(
    "three",
    0,
    (
        LegendClass(3, "forest", "Forest", "#33cc33"),
        LegendClass(5, "rare", "Rare <b>&", "#ff9632"),
        LegendClass(12, "water", "Water bodies", "#0000dc"),
    ),
)

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "wbr"}


class Page(HTMLParser):
    """Fails on tags that do not balance; collects pictures, tables and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.tags, self.rows, self.text = [], {}, [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images[dict(attrs)["alt"]] = dict(attrs)["src"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open or "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def row(self, *begin):
        """The first table row whose cells start so, stripped."""
        cells = ([" ".join(cell.split()) for cell in row] for row in self.rows)
        return next(row for row in cells if all(a.startswith(b) for a, b in zip(row, begin, strict=False)))

    def picture(self, alt):
        """(height, width, 4) uint8: the picture whose alternative text begins so."""
        uri = next(src for text, src in self.images.items() if text.startswith(alt))
        png = base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)
        return (matplotlib.image.imread(io.BytesIO(png)) * 255).round().astype(np.uint8)


def write_scene(path, values, nodata=0):
    profile = {"driver": "GTiff", "count": len(values), "dtype": "uint16", "nodata": nodata, "crs": "EPSG:32631"}
    height, width = values.shape[1:]
    with rasterio.open(path, "w", height=height, width=width, transform=GRID.affine, **profile) as file:
        file.write(values.astype("uint16"))
        file.descriptions = ["blue", "green", "red", "nir"][: len(values)]
    return open_scene([str(path)])


def write_codes(path, codes, nodata=0):
    grid = GeoBox(codes.shape, GRID.affine, GRID.crs)
    with new_raster(path, grid, RasterSpec("uint8", ("x",), nodata), overwrite=True) as pixels:
        pixels[0] = codes
    return path


def scores(*, rare=math.nan, miou=0.7):
    def one(code, name, iou, support):
        return {
            "code": code,
            "name": name,
            "iou": iou,
            "dice": iou,
            "producers_accuracy": iou,
            "users_accuracy": None,
            "support": support,
        }

    return {
        "miou": miou,
        "overall_accuracy": 0.812,
        "classes": {
            "forest": one(3, "Forest", 0.8123, 6000),
            "rare": one(5, "Rare <b>&", rare, 0 if math.isnan(rare) else 120),
            "water": one(12, "Water bodies", 0.5877, 2000),
        },
        "confusion_matrix": [[5400, 0, 600], [0, 0, 0], [500, 0, 1500]],
    }


def an_assessment(**changed):
    forest = scores(miou=0.61)
    forest["classes"]["water"]["iou"] = 0.4321
    return {
        "model": scores(),
        "baselines": {"most_frequent": scores(miou=0.2), "random_forest": forest},
        "split": "validation",
        "pixels": 8000,
        "miou_classes": ["forest", "water"],
    } | changed


HISTORY = [
    {"epoch": e, "loss": 1 / e, "validation_loss": 1.2 / e, "miou": v, "mean_dice": 0.5, "learning_rate": 0.001}
    for e, v in [(1, None), (2, 0.4), (3, math.nan), (4, 0.6)]
]


def files_of(folder):
    """Keywords of a report: an area of two seasons, its map and labels: forest, water from column 16 on, nothing in the top-left."""
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    april = np.stack([1000 + 10 * cols, 1000 + 10 * rows, 2000 + 5 * cols, 3000 + cols])
    codes = np.where(cols < 16, 3, 12).astype(np.uint8)
    codes[:4, :4] = 0
    codes[-1, 0] = 5
    labels = codes.copy()
    labels[:, 20:] = 3
    scenes = {
        "april": write_scene(folder / "april.tif", april),
        "august": write_scene(folder / "a.tif", april + 50),
    }
    confidence = np.where(codes == 0, 255, 80).astype(np.uint8)
    return {
        "areas": [Area("here <i>", scenes)],
        "maps": {"here <i>": write_codes(folder / "map.tif", codes)},
        "labels": {"here <i>": write_codes(folder / "labels.tif", labels)},
        "confidence": {"here <i>": write_codes(folder / "confidence.tif", confidence, 255)},
    }


def report(folder, place, **changed):
    out = folder / "report.html"
    given = {
        "title": "Zion <b>&",
        "legend": LEGEND,
        "rgb": ["red", "green", "blue"],
        "assessment": an_assessment(),
        "history": HISTORY,
        "model": {"encoder": "resnet18", "parameters": 14_321_000, "resolution": None, "bands": ["blue", "nir"]},
        "settings": {"name": "zion", "train": {"epochs": 4, "minutes": None}, "area": [{"name": "here"}]},
        "split": {"block": 16, "guard": 4, "areas": {"here <i>": ["tv", "g-"]}},
    }
    given = place | given | {"calibration": None} | changed
    rasters, records = (
        kind(**{field.name: given.pop(field.name) for field in fields(kind)}) for kind in (AreaRasters, RunRecords)
    )
    write_report(out, **given, rasters=rasters, records=records)
    text = out.read_text(encoding="utf-8")
    return Page(text), text
