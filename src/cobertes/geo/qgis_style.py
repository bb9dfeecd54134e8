"""QGIS style (``.qml``) of a raster of class codes: a legend of its classes alone.

A palette inside a GeoTIFF always has 256 entries, and QGIS lists them all; a ``.qml`` beside it comes first.
"""

from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

MARK = "made by cobertes"
"""Mark of our styles: one without it was made by hand, and is never replaced."""

HEAD = f"""<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<!-- {MARK} -->
<qgis version="3.22" styleCategories="Symbology">
  <pipe>
    <rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">
      <colorPalette>
"""

TAIL = """      </colorPalette>
    </rasterrenderer>
  </pipe>
</qgis>
"""


def hex_to_rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour ``#rrggbb``."""
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


def style_of(names: Mapping[int, str], colours: Mapping[int, str]) -> str:
    """Text of a ``.qml`` from names and colours (``#rrggbb``) by code."""
    entries = "".join(
        f'        <paletteEntry value="{code}" label={quoteattr(name)} color="{colours.get(code, "#000000")}"'
        f' alpha="255"/>\n'
        for code, name in names.items()
    )
    return HEAD + entries + TAIL


def style_path(raster: Path) -> Path:
    """Path at which QGIS looks for the style of a raster."""
    return raster.with_suffix(".qml")


def is_replaceable(style: Path) -> bool:
    """Check that a style is missing or was written by cobertes."""
    try:
        return MARK in style.read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
