"""Colours and wavelengths of bands, by their names: Sentinel-2's, or plain words."""

import re
from collections.abc import Sequence

COLOURS = {
    "blue": ("blue", "b02", "b2", "b02_10m"),
    "green": ("green", "b03", "b3", "b03_10m"),
    "red": ("red", "b04", "b4", "b04_10m"),
    "nir": ("nir", "b08", "b8", "b8a", "b08_10m"),
    "swir1": ("swir16", "swir1", "swir", "b11", "b11_20m"),
    "swir2": ("swir22", "swir2", "b12", "b12_20m"),
}


WAVELENGTHS = {
    "B01": 443, "B02": 490, "B03": 560, "B04": 665, "B05": 705, "B06": 740, "B07": 783, "B08": 842, "B8A": 865,
    "B09": 945, "B10": 1375, "B11": 1610, "B12": 2190,
}  # fmt: skip
"""Central wavelengths of Sentinel-2's bands in nm (ESA, Sentinel-2 MSI user guide)."""

BAND_OF_COLOUR = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08", "swir1": "B11", "swir2": "B12"}


def sentinel2_band(name: str) -> str | None:
    """Sentinel-2 band of a name (``b2``, ``B02_10m``, ``blue``) as a key of `WAVELENGTHS`; None for others."""
    match = re.match(r"b0?(\d+)(a?)(?![0-9a-z])", name.lower())
    if match:
        number, suffix = match.groups()
        found = f"B{number}A" if suffix else f"B{int(number):02d}"
        return found if found in WAVELENGTHS else None

    return next((BAND_OF_COLOUR[colour] for colour, names in COLOURS.items() if name.lower() in names), None)


def colour_positions(bands: Sequence[str]) -> dict[str, int]:
    """Colour -> position in ``bands``, of the colours found by name."""
    names = [band.lower() for band in bands]
    found = {
        colour: next((names.index(alias) for alias in aliases if alias in names), None)
        for colour, aliases in COLOURS.items()
    }
    return {colour: position for colour, position in found.items() if position is not None}


def default_rgb(bands: Sequence[str]) -> list[str]:
    """Bands to show as red, green and blue: by name, else the first three, or the first one in grey."""
    position = colour_positions(bands)
    if {"red", "green", "blue"} <= position.keys():
        return [bands[position[colour]] for colour in ("red", "green", "blue")]
    return list(bands[:3]) if len(bands) >= 3 else [bands[0]] * 3
