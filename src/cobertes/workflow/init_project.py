"""Project template: inspects scenes and a reference map, and writes a commented project (``cobertes init``)."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError

from cobertes.atomic_io import write_text
from cobertes.errors import InputFileError
from cobertes.geo.area import ONLY_SEASON
from cobertes.geo.bands import default_rgb
from cobertes.geo.cog_writer import check_not_input, check_writable
from cobertes.geo.grid import describe, grid_of, require_same_grid
from cobertes.geo.io import open_raster
from cobertes.geo.scene import Scene
from cobertes.labels.legend import CODES, Legend, legend_names, load_legend
from cobertes.labels.reference_map import align
from cobertes.settings import SplitSettings
from cobertes.tiles.block_split import choose_block
from cobertes.toml_io import toml_value
from cobertes.workflow.scene_paths import open_scenes

SAMPLE_BLOCKS, SAMPLE_PIXELS = 400, 100_000_000
"""Storage blocks sampled from a larger map, or as many more as hold these pixels."""
TILE_SIZES, SMALL_TILES = (512, 256, 128, 64), (64, 32, 16)
ENOUGH_TILES = 80
"""Tiles that a scene must hold for a size to be proposed; in a small scene, the largest that fits a block is."""
GOOD_FIT, COUNTED_FIT, MOST_UNKNOWN = 0.4, 0.75, 0.05
"""Share of a packaged legend's classes that must occur for it to be proposed (higher if its codes just count from
1, as any map's may), and largest share of pixels outside it."""
LISTED_CODES = 20


@dataclass(frozen=True)
class CodeScan:
    """Codes of a map: ``counts`` (256,) of the scanned pixels, and whether these are ``all``.

    ``nodata`` is the value that the file declares, which need not be a code; pixels with a nodata value outside
    0 to 255 are not counted.
    """

    counts: NDArray[np.int64]
    nodata: float | None
    all: bool

    @property
    def found(self) -> list[int]:
        """Codes that occur, without nodata."""
        return [int(code) for code in np.flatnonzero(self.counts) if code != self.nodata]

    @property
    def legend_nodata(self) -> int:
        """Nodata code for a legend of these codes: as declared, else 0, else a free one."""
        if self.nodata is not None and self.nodata in range(CODES):
            return int(self.nodata)
        declared_elsewhere = self.nodata is not None and self.counts[0] > 0
        return int(np.flatnonzero(self.counts == 0)[-1]) if declared_elsewhere else 0


def write_project(scenes: Sequence[str], reference: Path, out: Path, *, overwrite: bool = False) -> str:
    """Write a commented project for scenes (``SCENE`` or ``season=SCENE``) and a map. Returns the findings.

    If no packaged legend fits the codes, a legend to fill in is written beside the project.
    Raises InputFileError, BandMismatchError, GridMismatchError, SettingsError, OutputExistsError, StorageError.
    """
    check_writable(out, overwrite=overwrite)
    opened = open_scenes(scenes)
    inputs: list[Path | str] = [reference, *(file for scene in opened.values() for file in scene.files)]
    check_not_input((out, _legend_file(out)), inputs)
    grids = [(scene.files[0], scene.grid) for scene in opened.values()]
    require_same_grid(grids)
    with open_raster(reference) as dataset:
        align(reference, dataset, grids[0][1])
    codes = scan_codes(reference)
    if not set(codes.found) - {codes.legend_nodata}:
        raise InputFileError(f"{reference} holds no class codes: every pixel looked at is nodata")
    legend = propose_legend(codes)
    if legend is None:
        legend_file = _legend_file(out)
        check_writable(legend_file, overwrite=overwrite)
        write_text(legend_file, _own_legend(reference, codes))
    write_text(out, _project_text(opened, reference, out, codes, legend))
    return _facts(opened, reference, out, codes, legend)


def scan_codes(reference: Path) -> CodeScan:
    """Count the codes of a map: all pixels of a small map, else storage blocks drawn over all of it."""
    counts = np.zeros(CODES, np.int64)
    with open_raster(reference) as dataset:
        declared = dataset.nodata
        blocks = [window for _, window in dataset.block_windows(1)]
        pixels = dataset.width * dataset.height
        take = max(SAMPLE_BLOCKS, SAMPLE_PIXELS * len(blocks) // pixels)
        everything = pixels <= SAMPLE_PIXELS or take >= len(blocks)
        chosen = np.arange(len(blocks))
        if not everything:  # drawn, not every n-th: that might be one column of blocks
            chosen = np.sort(np.random.default_rng(0).choice(len(blocks), take, replace=False))
        for i in chosen:
            try:
                part = dataset.read(1, window=blocks[i])
            except RasterioError as error:
                raise InputFileError(
                    f"can't read {reference}, rows from {blocks[i].row_off} on: {error.__cause__ or error}. The "
                    f"file may be truncated: fetch it again."
                ) from error
            counts += _count(part, declared, reference)
    return CodeScan(counts, declared, everything)


def _count(part: NDArray[np.integer], declared: float | None, reference: Path) -> NDArray[np.int64]:
    strange = part[(part < 0) | (part >= CODES)] if part.dtype != np.uint8 else part[:0]
    strange = strange if declared is None else strange[strange != declared]
    if strange.size:
        raise InputFileError(
            f"{reference} holds {strange[0]}, but class codes are from 0 to 255. If it means nodata, declare it: "
            f"gdal_edit.py -a_nodata {strange[0]} {reference.name}"
        )
    codes = part[(part >= 0) & (part < CODES)] if part.dtype != np.uint8 else part.ravel()
    return np.bincount(codes, minlength=CODES)


def propose_legend(codes: CodeScan) -> Legend | None:
    """Packaged legend whose classes fit the codes best; None if none fits."""
    found = set(codes.found)
    total = sum(int(codes.counts[code]) for code in found)

    def fit(legend: Legend) -> float:
        known = {c.code for c in legend.classes}
        share = len(found & known) / len(known)
        unknown = sum(int(codes.counts[code]) for code in found - known - {legend.nodata})
        needed = COUNTED_FIT if known == set(range(1, len(known) + 1)) else GOOD_FIT
        return -1.0 if unknown > MOST_UNKNOWN * total or share < needed else share - unknown / total

    best = max((load_legend(name) for name in legend_names()), key=fit)
    return best if fit(best) > 0 else None


def _tile_size(scene: Scene) -> int:
    height, width = scene.shape
    many = [size for size in TILE_SIZES if (height // size) * (width // size) >= ENOUGH_TILES]
    fitting = [size for size in SMALL_TILES if choose_block([scene.shape], size, SplitSettings()) >= size]
    return next(iter([*many, *fitting, SMALL_TILES[-1]]))


def _tiling(scene: Scene) -> tuple[int, int]:
    """Tile size and split block in pixels."""
    size = _tile_size(scene)
    return size, choose_block([scene.shape], size, SplitSettings())


def _legend_file(out: Path) -> Path:
    return out.with_name(f"{out.stem}-legend.toml")


def _relative(file: str | Path, out: Path) -> str:
    text = str(file)
    return text if "://" in text or text.startswith("/vsi") else os.path.relpath(text, out.parent)


def _project_text(
    scenes: Mapping[str, Scene], reference: Path, out: Path, codes: CodeScan, legend: Legend | None
) -> str:
    scene = next(iter(scenes.values()))
    size, block = _tiling(scene)
    named = legend.name if legend else _legend_file(out).name
    doubt = (
        "its codes fit: check that its classes are the map's"
        if legend
        else "written from the codes: name the classes"
    )
    return f"""\
# Written by `cobertes init`. Every key and its default: docs/project.md.
# Paths are relative to this file.
name = {toml_value(_project_name(out))}
legend = {toml_value(named)}    # {doubt}
bands = {toml_value(scene.band_names)}
rgb = {toml_value(default_rgb(scene.band_names))}    # shown as red, green, blue

# {describe(scene.grid)}
[[area]]
name = {toml_value(_area_name(scenes, out))}
scenes = {_scenes_text(scenes, out)}
reference = {toml_value(_relative(reference, out))}    # codes {_listed(codes.found)}

[labels]
method = "majority"    # or "weighted-majority", "nearest"; see cobertes compare-labels
{_codes_text(codes, legend)}

[tiles]
size = {size}    # px
# drop-only = ["water"]    # tiles that hold nothing else are left out

[split]
block = {block}    # px; a block goes to training or validation as a whole

[model]
encoder = "scratch"    # a small U-Net; or a timm backbone: "resnet50", "resnet18", ...
# weights = "imagenet"    # start a backbone from pretrained weights, fetched once

[train]
epochs = 100
# minutes = 60    # stop after this wall time
# class-weights = "ins"    # rare classes count more
"""


def _project_name(out: Path) -> str:
    return out.stem if out.stem != "project" else out.absolute().parent.name or "project"


def _area_name(scenes: Mapping[str, Scene], out: Path) -> str:
    """Name of the area: the stem of the only file, else the project's name."""
    files = [file for scene in scenes.values() for file in scene.files]
    return Path(files[0]).stem if len(files) == 1 else _project_name(out)


def _scenes_text(scenes: Mapping[str, Scene], out: Path) -> str:
    specs = {season: [_relative(file, out) for file in scene.files] for season, scene in scenes.items()}
    if ONLY_SEASON not in specs:
        # a table within a line may not be broken, so it is a long line
        pairs = (f"{_key(season)} = {_spec(files)}" for season, files in specs.items())
        return f"{{ {', '.join(pairs)} }}"
    files = specs[ONLY_SEASON]
    return (
        _spec(files)
        if len(files) == 1
        else "".join(["[\n", *(f"    {toml_value(file)},\n" for file in files), "]"])
    )


def _spec(files: list[str]) -> str:
    """Files as TOML: a single one as text, unless its commas would be taken for a list."""
    return toml_value(files[0] if len(files) == 1 and "," not in files[0] else files)


def _key(season: str) -> str:
    return season if re.fullmatch(r"[A-Za-z0-9_-]+", season) else toml_value(season)


def _listed(codes: Sequence[int]) -> str:
    more = len(codes) - LISTED_CODES
    return ", ".join(map(str, codes[:LISTED_CODES])) + (f" and {more} more" if more > 0 else "")


def _codes_text(codes: CodeScan, legend: Legend | None) -> str:
    unknown = _unknown(codes, legend)
    if not unknown:
        return '# codes = { 19 = "bare-soil", 41 = "nodata" }    # single codes that the legend lacks'
    stray = ", ".join(f'{code} = "nodata"' for code in unknown)
    return f"# Codes outside the legend: say which classes they are, and take the # away.\n# codes = {{ {stray} }}"


def _unknown(codes: CodeScan, legend: Legend | None) -> list[int]:
    return [] if legend is None else [c for c in codes.found if c not in (legend.nodata, *legend.codes.tolist())]


def _own_legend(reference: Path, codes: CodeScan) -> str:
    """Legend with a class per code, in the colours of the map's palette if it has one."""
    with open_raster(reference) as dataset:
        palette = dataset.colormap(1) if dataset.colorinterp[0].name == "palette" else {}
    nodata = codes.legend_nodata
    head = f"# The codes found in {' '.join(reference.name.split())}: give the classes keys and names."
    lines = [f'{head}\nname = "own"\nnodata = {nodata}\n']
    for number, code in enumerate(code for code in codes.found if code != nodata):
        hue = palette.get(code, (97 * number % 200 + 40, 57 * number % 200 + 40, 151 * number % 200 + 40))
        colour = "#" + "".join(f"{part:02x}" for part in hue[:3])
        lines.append(
            f'[[class]]\ncode = {code}\nkey = "class-{code}"\nname = "Class {code}"\ncolour = "{colour}"\n'
        )
    return "\n".join(lines)


def _facts(scenes: Mapping[str, Scene], reference: Path, out: Path, codes: CodeScan, legend: Legend | None) -> str:
    scene = next(iter(scenes.values()))
    with open_raster(reference) as dataset:
        map_grid = describe(grid_of(dataset))
    total = int(codes.counts.sum())
    seen = "all pixels" if codes.all else f"{total:,} pixels looked at"
    seasons = "" if ONLY_SEASON in scenes else f", seasons {', '.join(scenes)}"
    size, block = _tiling(scene)
    return "\n".join(
        [
            f"scene:  {describe(scene.grid)}, {len(scene.bands)} bands ({', '.join(scene.band_names)}){seasons}",
            f"map:    {map_grid}",
            f"codes in {seen}:",
            *_code_rows(codes, legend, total),
            f"legend: {legend.name} ({len(legend)} classes): the codes fit, check that they mean the same"
            if legend
            else f"legend: none of the packaged ones fits; name the classes in {_legend_file(out)}",
            f"tiles:  {size} px, in blocks of {block} px",
        ]
    )


def _code_rows(codes: CodeScan, legend: Legend | None, total: int) -> list[str]:
    names = {c.code: c.name for c in legend.classes} if legend else {}
    unknown = _unknown(codes, legend)
    rows = []
    for code in map(int, np.flatnonzero(codes.counts)):
        is_nodata = code == codes.nodata or (legend is not None and code == legend.nodata)
        name = "nodata" if is_nodata else "outside the legend" if code in unknown else names.get(code, "")
        rows.append(f"  {code:>3}  {100 * codes.counts[code] / total:6.2f} %  {name}".rstrip())
    return rows
