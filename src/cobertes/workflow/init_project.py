"""Project template: inspects scenes and a reference map, and writes a commented project (``cobertes init``)."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cobertes.atomic_io import write_text
from cobertes.geo.area import ONLY_SEASON
from cobertes.geo.bands import default_rgb
from cobertes.geo.cog_writer import check_not_input, check_writable
from cobertes.geo.grid import describe, grid_of, require_same_grid
from cobertes.geo.io import open_raster
from cobertes.geo.quality_mask import names_of
from cobertes.geo.radiometry import describe_conventions
from cobertes.geo.scene import Scene
from cobertes.labels.class_names import read_class_names
from cobertes.labels.code_scan import CodeScan, scan_codes
from cobertes.labels.reference_map import align
from cobertes.settings import SplitSettings
from cobertes.tiles.block_split import choose_block
from cobertes.toml_io import toml_value
from cobertes.workflow.legend_proposal import Proposal, propose_legend
from cobertes.workflow.scene_paths import open_scenes

TILE_SIZES, SMALL_TILES = (512, 256, 128, 64), (64, 32, 16)
ENOUGH_TILES = 80
"""Tiles that a scene must hold for a size to be proposed; in a small scene, the largest that fits a block is."""
LISTED_CODES = 20


def write_project(
    scenes: Sequence[str],
    reference: Path,
    out: Path,
    *,
    names_table: Path | None = None,
    overwrite: bool = False,
) -> str:
    """Write a commented project for scenes (``SCENE`` or ``season=SCENE``) and a map. Returns the findings.

    names_table  file with the names (and colours) of the map's codes; default: what comes with the map
    If no packaged legend has the map's codes and names, a legend is written beside the project, and a crosswalk to
    it if the map's codes are none that a legend can have.
    Raises InputFileError, BandMismatchError, GridMismatchError, SettingsError, OutputExistsError, StorageError.
    """
    check_writable(out, overwrite=overwrite)
    opened = open_scenes(scenes)
    scene_paths = [file for scene in opened.values() for file in (*scene.inputs, *scene.files)]
    inputs: list[Path | str] = [reference, *scene_paths]
    check_not_input((out, _legend_file(out), _crosswalk_file(out)), inputs)
    grids = [(scene.files[0], scene.grid) for scene in opened.values()]
    require_same_grid(grids)
    with open_raster(reference) as dataset:
        align(reference, dataset, grids[0][1])
    scan = scan_codes(reference)
    names = read_class_names(reference, table=names_table, codes=scan.found)
    proposal = propose_legend(scan, names)
    files = _own_files(reference, out, proposal)
    for file in files:
        check_writable(file, overwrite=overwrite)
    for file, text in files.items():
        write_text(file, text)
    write_text(out, _project_text(opened, reference, out, scan, proposal))
    return _facts(opened, reference, out, scan, proposal)


def _own_files(reference: Path, out: Path, proposal: Proposal) -> dict[Path, str]:
    """Text of the files beside the project: a legend of the map's own, and a crosswalk to it if it needs one."""
    if proposal.packaged:
        return {}
    name = " ".join(reference.name.split())
    files = {_legend_file(out): _legend_text(name, proposal)}
    if proposal.recode:
        names = {c.code: c.name for c in proposal.legend.classes}
        rows = [f"{code} = {to}    # {names.get(to, 'nodata')}" for code, to in proposal.recode.items()]
        head = f"# From the codes of {name} to those of the legend beside it."
        files[_crosswalk_file(out)] = "\n".join([head, 'name = "own"', "", "[codes]", *rows, ""])
    return files


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


def _crosswalk_file(out: Path) -> Path:
    return out.with_name(f"{out.stem}-crosswalk.toml")


def _relative(file: str | Path, out: Path) -> str:
    text = str(file)
    return text if "://" in text or text.startswith("/vsi") else os.path.relpath(text, out.parent)


def _project_text(
    scenes: Mapping[str, Scene], reference: Path, out: Path, scan: CodeScan, proposal: Proposal
) -> str:
    scene = next(iter(scenes.values()))
    size, block = _tiling(scene)
    named = proposal.legend.name if proposal.packaged else _legend_file(out).name
    crosswalk = _crosswalk_file(out).name if proposal.recode else proposal.crosswalk
    walk = f"crosswalk = {toml_value(crosswalk)}\n" if crosswalk else ""
    why = "its codes fit: check that its classes are the map's"
    if not proposal.packaged:
        why = proposal.evidence or "written from the codes: name the classes"
    elif proposal.classes and "names agree" in proposal.evidence:
        why = "its codes and names are the map's"
    return f"""\
# Written by `cobertes init`. Every key and its default: docs/project.md.
# Paths are relative to this file.
name = {toml_value(_project_name(out))}
legend = {toml_value(named)}    # {why}
bands = {toml_value(scene.band_names)}
rgb = {toml_value(default_rgb(scene.band_names))}    # shown as red, green, blue

# {describe(scene.grid)}
[[area]]
name = {toml_value(_area_name(scenes, out))}
scenes = {_scenes_text(scenes, out)}
reference = {toml_value(_relative(reference, out))}    # codes {_listed(scan)}
{walk}
[labels]
method = "majority"    # or "weighted-majority", "nearest"; see cobertes compare-labels
{_codes_text(scan, proposal)}

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
    files = [file for scene in scenes.values() for file in scene.inputs]
    return Path(files[0]).stem if len(files) == 1 else _project_name(out)


def _scenes_text(scenes: Mapping[str, Scene], out: Path) -> str:
    specs = {season: [_relative(file, out) for file in scene.inputs] for season, scene in scenes.items()}
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


def _listed(scan: CodeScan) -> str:
    codes = scan.found
    more = len(codes) - LISTED_CODES
    return ", ".join(map(scan.values.text, codes[:LISTED_CODES])) + (f" and {more} more" if more > 0 else "")


def _codes_text(scan: CodeScan, proposal: Proposal) -> str:
    unknown = proposal.unknown(scan)
    if not unknown or scan.values.are_colours:
        return '# codes = { 19 = "bare-soil", 41 = "nodata" }    # single codes that the legend lacks'
    stray = ", ".join(f'{code} = "nodata"' for code in unknown)
    return f"# Codes outside the legend: say which classes they are, and take the # away.\n# codes = {{ {stray} }}"


def _legend_text(name: str, proposal: Proposal) -> str:
    """Legend of the map's own codes as TOML."""
    legend = proposal.legend
    named = f"Class names: {proposal.evidence}." if proposal.evidence else "Give the classes keys and names."
    lines = [f"# The codes found in {name}. {named}", f'name = "{legend.name}"', f"nodata = {legend.nodata}"]
    if legend.also_nodata:
        lines.append(f"also-nodata = {list(legend.also_nodata)}")
    for c in legend.classes:
        lines += ["", "[[class]]", f"code = {c.code}", f'key = "{c.key}"', f"name = {toml_value(c.name)}"]
        lines.append(f'colour = "{c.colour}"')
    return "\n".join([*lines, ""])


def _facts(scenes: Mapping[str, Scene], reference: Path, out: Path, scan: CodeScan, proposal: Proposal) -> str:
    scene = next(iter(scenes.values()))
    with open_raster(reference) as dataset:
        map_grid = describe(grid_of(dataset))
    seen = "all pixels" if scan.all else f"{scan.pixels:,} pixels looked at"
    seasons = "" if ONLY_SEASON in scenes else f", seasons {', '.join(scenes)}"
    size, block = _tiling(scene)
    return "\n".join(
        [
            f"scene:  {describe(scene.grid)}, {len(scene.bands)} bands ({', '.join(scene.band_names)}){seasons}",
            *_value_rows(scenes),
            f"map:    {map_grid}",
            f"codes in {seen}:",
            *_code_rows(scan, proposal),
            f"legend: {_legend_line(out, proposal)}",
            *(f"check:  {doubt}" for doubt in proposal.doubts),
            f"tiles:  {size} px, in blocks of {block} px",
        ]
    )


def _value_rows(scenes: Mapping[str, Scene]) -> list[str]:
    """Products, what their values mean and where clouds are known from; nothing for plain files."""
    rows = []
    for season, scene in scenes.items():
        title = "" if season == ONLY_SEASON else f"{season}: "
        if not all(one.assumed for one in scene.conventions):
            rows.append(f"values: {title}{describe_conventions(scene.conventions, scene.band_names)}")
        if scene.quality:
            rows.append(f"clouds: {title}known from {names_of(scene.quality)}")
    return rows


def _legend_line(out: Path, proposal: Proposal) -> str:
    if proposal.packaged:
        return f"{proposal.legend.name} ({len(proposal.legend)} classes): {proposal.evidence}"
    if proposal.evidence:
        return f"{_legend_file(out)} ({len(proposal.legend)} classes): {proposal.evidence}"
    return f"none of the packaged ones fits; name the classes in {_legend_file(out)}"


def _code_rows(scan: CodeScan, proposal: Proposal) -> list[str]:
    unknown = set(proposal.unknown(scan))
    rows = []
    for code, count in scan.counts.items():
        land = proposal.classes.get(code)
        name = land.name if land else "outside the legend" if code in unknown else "nodata"
        if land and not proposal.packaged and not proposal.evidence:
            name = ""
        rows.append(f"  {scan.values.text(code):>3}  {100 * count / scan.pixels:6.2f} %  {name}".rstrip())
    return rows
