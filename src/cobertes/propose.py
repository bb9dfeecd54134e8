"""A first project file for scenes and a reference map that nobody has described yet: ``cobertes init``."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

from cobertes.errors import InputFileError
from cobertes.files import write_text
from cobertes.geo.area import ONLY_SEASON
from cobertes.geo.grid import describe, grid_of, open_raster, require_same_grid
from cobertes.geo.raster import check_writable
from cobertes.geo.scene import Scene
from cobertes.geo.windows import tile_windows
from cobertes.labels.legend import CODES, Legend, legend_names, load_legend
from cobertes.project import natural_colours, open_scenes
from cobertes.settings import SplitSettings
from cobertes.tiles.split import choose_block

SAMPLE_WINDOWS, SAMPLE_SIDE = 400, 500
"""A map is looked at in that many windows of that side, spread evenly: 100 million pixels at most."""
TILE_SIZES = (512, 256, 128, 64)
ENOUGH_TILES = 80
GOOD_FIT, MOST_UNKNOWN = 0.5, 0.05
"""A packaged legend is proposed where this share of its classes occurs and at most that share of pixels is unknown
to it."""


@dataclass(frozen=True)
class Codes:
    """What a look at a map found: ``counts`` (256,) of the pixels looked at, and whether these are ``all``."""

    counts: NDArray[np.int64]
    nodata: int | None
    all: bool

    @property
    def found(self) -> list[int]:
        """The codes that occur, without nodata."""
        return [int(code) for code in np.flatnonzero(self.counts) if code != self.nodata]


def write_project(scenes: Sequence[str], reference: Path, out: Path, *, overwrite: bool = False) -> str:
    """Inspect scenes (``SCENE`` or ``season=SCENE``) and a map, write a commented project; returns what was found.

    Where no packaged legend fits the codes, a legend is written beside the project, for the user to fill in.
    Raises InputFileError, GridMismatchError, SettingsError, OutputExistsError, StorageError.
    """
    check_writable(out, overwrite=overwrite)
    opened = open_scenes(scenes)
    require_same_grid((scene.files[0], scene.grid) for scene in opened.values())
    codes = look_at_codes(reference)
    if not codes.found:
        raise InputFileError(f"{reference} holds no class codes: every pixel looked at is nodata")
    legend = propose_legend(codes)
    if legend is None:
        legend_file = out.with_name(f"{out.stem}-legend.toml")
        check_writable(legend_file, overwrite=overwrite)
        write_text(legend_file, _own_legend(reference, codes))
    write_text(out, _project_text(opened, reference, out, codes, legend))
    return _facts(opened, reference, codes, legend)


def look_at_codes(reference: Path) -> Codes:
    """Count the codes of a map: all pixels where there are few, else windows spread over it."""
    counts = np.zeros(CODES, np.int64)
    with open_raster(reference) as dataset:
        windows = list(tile_windows(dataset.shape, SAMPLE_SIDE))
        chosen = windows[:: -(-len(windows) // SAMPLE_WINDOWS)]
        for window in chosen:
            part = dataset.read(
                1, window=rasterio.windows.Window(window.col, window.row, window.width, window.height)
            )
            if part.min() < 0 or part.max() >= CODES or not np.issubdtype(part.dtype, np.integer):
                raise InputFileError(
                    f"{reference} holds {part.max()}, but class codes are whole numbers, 0 to 255"
                )
            counts += np.bincount(part.ravel(), minlength=CODES)
        declared = dataset.nodata
    nodata = int(declared) if declared is not None and 0 <= declared < CODES else None
    return Codes(counts, nodata, len(chosen) == len(windows))


def propose_legend(codes: Codes) -> Legend | None:
    """The packaged legend whose classes are nearest to the codes found; None where none is near."""
    found = set(codes.found)
    total = sum(int(codes.counts[code]) for code in found)

    def fit(legend: Legend) -> float:
        known = {c.code for c in legend.classes}
        unknown = sum(int(codes.counts[code]) for code in found - known - {legend.nodata})
        return -1.0 if unknown > MOST_UNKNOWN * total else len(found & known) / len(known) - unknown / total

    best = max((load_legend(name) for name in legend_names()), key=fit)
    return best if fit(best) >= GOOD_FIT else None


def _tile_size(scene: Scene) -> int:
    height, width = scene.shape
    return next(
        (size for size in TILE_SIZES if (height // size) * (width // size) >= ENOUGH_TILES), TILE_SIZES[-1]
    )


def _relative(file: str | Path, out: Path) -> str:
    text = str(file)
    return text if "://" in text or text.startswith("/vsi") else os.path.relpath(text, out.parent)


def _project_text(
    scenes: Mapping[str, Scene], reference: Path, out: Path, codes: Codes, legend: Legend | None
) -> str:
    scene = next(iter(scenes.values()))
    size = _tile_size(scene)
    unknown = (
        [] if legend is None else [c for c in codes.found if c not in (legend.nodata, *legend.codes.tolist())]
    )
    specs = {season: _scene_spec(one, out) for season, one in scenes.items()}
    where = (
        specs.get(ONLY_SEASON) or "{ " + ", ".join(f"{season} = {spec}" for season, spec in specs.items()) + " }"
    )
    bands = ", ".join(f'"{name}"' for name in scene.band_names)
    rgb = ", ".join(f'"{name}"' for name in natural_colours(scene.band_names))
    named = f'"{legend.name}"' if legend else f'"{out.stem}-legend.toml"'
    doubt = (
        "its codes fit: check that its classes are the map's"
        if legend
        else "written from the codes: name the classes"
    )
    if unknown:
        stray = ", ".join(f'{code} = "nodata"' for code in unknown)
        codes_lines = f"# Codes outside the legend: say what they are.\n# codes = {{ {stray} }}"
    else:
        codes_lines = '# codes = { 19 = "bare-soil", 41 = "nodata" }    # single codes that the legend lacks'
    block = choose_block([scene.shape], size, SplitSettings())
    return f"""\
# Written by `cobertes init`. Every key and its default: docs/project.md.
# Paths are relative to this file.
name = "{out.stem if out.stem != "project" else out.absolute().parent.name}"
legend = {named}    # {doubt}
bands = [{bands}]
rgb = [{rgb}]    # shown as red, green, blue

[[area]]
name = "{Path(scene.files[0]).stem}"
scenes = {where}    # {describe(scene.grid)}
reference = "{_relative(reference, out)}"    # codes {", ".join(map(str, codes.found[:20]))}

[labels]
method = "majority"    # or "nearest"
{codes_lines}

[tiles]
size = {size}
# drop-only = ["water"]    # tiles of nothing else are left out

[split]
block = {block}    # px; a block goes to training or validation as a whole

[model]
encoder = "resnet50"    # scratch, resnet18, or another timm backbone
# weights = "imagenet"    # pretrained weights, fetched once

[train]
epochs = 100
# minutes = 60    # stop after this wall time
batch-size = 12
learning-rate = 0.001
# class-weights = "ins"
"""


def _scene_spec(scene: Scene, out: Path) -> str:
    files = [f'"{_relative(file, out)}"' for file in scene.files]
    return files[0] if len(files) == 1 else f"[{', '.join(files)}]"


def _own_legend(reference: Path, codes: Codes) -> str:
    """A legend with a class per code found, in the map's own colours where it has a palette."""
    with open_raster(reference) as dataset:
        palette = dataset.colormap(1) if dataset.colorinterp[0].name == "palette" else {}
    nodata = codes.nodata if codes.nodata is not None else 0
    head = f"# The codes found in {reference.name}: give the classes keys and names."
    lines = [f'{head}\nname = "own"\nnodata = {nodata}\n']
    for number, code in enumerate(code for code in codes.found if code != nodata):
        hue = palette.get(code, (97 * number % 200 + 40, 57 * number % 200 + 40, 151 * number % 200 + 40))
        colour = "#" + "".join(f"{part:02x}" for part in hue[:3])
        lines.append(
            f'[[class]]\ncode = {code}\nkey = "class-{code}"\nname = "Class {code}"\ncolour = "{colour}"\n'
        )
    return "\n".join(lines)


def _facts(scenes: Mapping[str, Scene], reference: Path, codes: Codes, legend: Legend | None) -> str:
    scene = next(iter(scenes.values()))
    with open_raster(reference) as dataset:
        place = describe(grid_of(dataset))
    total = codes.counts.sum()
    rows = [f"  {code:>3}  {100 * codes.counts[code] / total:6.2f} %" for code in codes.found]
    seen = "all pixels" if codes.all else f"{total:,} pixels looked at"
    seasons = "" if ONLY_SEASON in scenes else f", seasons {', '.join(scenes)}"
    return "\n".join(
        [
            f"scene: {describe(scene.grid)}, {len(scene.bands)} bands ({', '.join(scene.band_names)}){seasons}",
            f"map:   {place}",
            f"codes in {seen}:",
            *rows,
            f"legend: {legend.name} ({len(legend)} classes)"
            if legend
            else "legend: none of the packaged ones fits",
        ]
    )
