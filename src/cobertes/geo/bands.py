"""Which band is which colour, by the names that bands go by: Sentinel-2's, or plain words."""

from collections.abc import Sequence

COLOURS = {
    "blue": ("blue", "b02", "b2", "b02_10m"),
    "green": ("green", "b03", "b3", "b03_10m"),
    "red": ("red", "b04", "b4", "b04_10m"),
    "nir": ("nir", "b08", "b8", "b8a", "b08_10m"),
    "swir1": ("swir16", "swir1", "swir", "b11", "b11_20m"),
    "swir2": ("swir22", "swir2", "b12", "b12_20m"),
}


def colour_positions(bands: Sequence[str]) -> dict[str, int]:
    """Colour -> position in ``bands``, for the colours that are found by name."""
    names = [band.lower() for band in bands]
    found = {
        colour: next((names.index(alias) for alias in aliases if alias in names), None)
        for colour, aliases in COLOURS.items()
    }
    return {colour: position for colour, position in found.items() if position is not None}


def natural_colours(bands: Sequence[str]) -> list[str]:
    """The bands to show as red, green and blue: by name, else the first three (or the first one, grey)."""
    position = colour_positions(bands)
    if {"red", "green", "blue"} <= position.keys():
        return [bands[position[colour]] for colour in ("red", "green", "blue")]
    return list(bands[:3]) if len(bands) >= 3 else [bands[0]] * 3
