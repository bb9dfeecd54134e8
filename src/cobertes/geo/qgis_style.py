"""The style that QGIS puts on a raster of class codes: a legend of the classes, and nothing else.

A palette inside a GeoTIFF always has 256 entries, and QGIS lists them all; a ``.qml`` beside the file goes first.
"""

from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

MARK = "made by cobertes"
"""In our styles: one that somebody made by hand is never replaced."""

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


def style_of(names: Mapping[int, str], colours: Mapping[int, str]) -> str:
    """The text of a ``.qml``: names and colours (``#rrggbb``) by code."""
    entries = "".join(
        f'        <paletteEntry value="{code}" label={quoteattr(name)} color="{colours.get(code, "#000000")}"'
        f' alpha="255"/>\n'
        for code, name in names.items()
    )
    return HEAD + entries + TAIL


def style_path(raster: Path) -> Path:
    """Where QGIS looks for a raster's style."""
    return raster.with_suffix(".qml")


def is_replaceable(style: Path) -> bool:
    """Whether a style is not there, or ours."""
    try:
        return MARK in style.read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
