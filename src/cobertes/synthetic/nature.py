"""Materials, relief and vegetation of the synthetic landscape.

Its pixels of 1 m are *materials* (a tile roof in a town, a vine row), numbered as in `MATERIALS`: finer than
classes, so that one class has several spectra and one spectrum occurs in several classes. Lengths are in
metres, positions ``(row, col)`` in metres from the top left corner; ``size`` is in pixels of 10 m.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
from numpy.typing import NDArray

from cobertes.numba_cache import compiled

Floats = NDArray[np.floating[Any]]
Materials = NDArray[np.uint8]

FACTOR = 10
"""Fine pixels (1 m) along a scene pixel (10 m)."""

TEXTURE = 1024  # side in metres of the periodic noise that roughens natural edges

MATERIALS: dict[str, tuple[int, str, str]] = {
    "sea": (12, "clear water", "clear water"),
    "sea, stray code": (41, "clear water", "clear water"),
    "beach": (5, "sand", "sand"),
    "beach, stray code": (19, "sand", "sand"),
    "limestone": (5, "limestone", "limestone"),
    "schist": (5, "schist", "schist"),
    "bare ground": (5, "light soil", "light soil"),
    "conifers": (3, "conifer", "conifer"),
    "holm oaks": (3, "evergreen oak", "evergreen oak"),
    "broadleaves": (3, "broadleaf in spring", "broadleaf in summer"),
    "beeches": (3, "leafless", "broadleaf in summer"),
    "forest gap": (3, "shrub", "dry grass"),
    "shrubs": (4, "shrub", "shrub"),
    "meadow": (4, "grass", "grass"),
    "dry pasture": (4, "grass", "dry grass"),
    "steppe": (4, "dry grass", "dry grass"),
    "cereals": (1, "green crop", "stubble"),
    "maize": (1, "brown soil", "dense crop"),
    "alfalfa": (1, "green crop", "grass"),
    "rape": (1, "rape in bloom", "stubble"),
    "fallow": (1, "grass", "dry grass"),
    "ploughed": (1, "brown soil", "light soil"),
    "vines": (2, "leafless", "vine"),
    "vineyard soil": (2, "light soil", "light soil"),
    "olives": (2, "olive", "olive"),
    "almonds": (2, "vine", "vine"),
    "orchard ground": (2, "grass", "dry grass"),
    "town tiles": (6, "tile", "tile"),
    "town flat roof": (6, "concrete", "concrete"),
    "town dark roof": (6, "dark roof", "dark roof"),
    "town street": (6, "asphalt", "asphalt"),
    "town yard": (6, "light soil", "light soil"),
    "town garden": (6, "grass", "grass"),
    "house": (7, "tile", "tile"),
    "house yard": (7, "light soil", "light soil"),
    "house garden": (7, "grass", "grass"),
    "house trees": (7, "conifer", "conifer"),
    "pool": (7, "pool", "pool"),
    "lawn": (8, "grass", "grass"),
    "park trees": (8, "broadleaf in spring", "broadleaf in summer"),
    "park conifers": (8, "evergreen oak", "evergreen oak"),
    "park path": (8, "light soil", "light soil"),
    "metal roof": (9, "metal", "metal"),
    "fibre cement roof": (9, "fibre cement", "fibre cement"),
    "estate dark roof": (9, "dark roof", "dark roof"),
    "estate tiles": (9, "tile", "tile"),
    "estate concrete": (9, "concrete", "concrete"),
    "estate asphalt": (9, "asphalt", "asphalt"),
    "pitch": (9, "grass", "grass"),
    "quarry face": (10, "limestone", "limestone"),
    "quarry floor": (10, "light soil", "light soil"),
    "spoil": (10, "schist", "schist"),
    "quarry pond": (10, "turbid water", "turbid water"),
    "road": (11, "asphalt", "asphalt"),
    "motorway": (11, "asphalt", "asphalt"),
    "ballast": (11, "ballast", "ballast"),
    "verge": (11, "grass", "dry grass"),
    "river": (12, "turbid water", "turbid water"),
    "reservoir": (12, "clear water", "clear water"),
    "gravel bank": (5, "limestone", "limestone"),
    "riverside trees": (3, "broadleaf in spring", "broadleaf in summer"),
}
"""Class code of the reference map, spectrum in April, spectrum in August."""

NUMBER = {name: i for i, name in enumerate(MATERIALS)}

SEA, SEA_STRAY, BEACH, BEACH_STRAY = (NUMBER[m] for m in ("sea", "sea, stray code", "beach", "beach, stray code"))
LIMESTONE, SCHIST, BARE = (NUMBER[m] for m in ("limestone", "schist", "bare ground"))
CONIFERS, OAKS, BROADLEAVES, BEECHES = (NUMBER[m] for m in ("conifers", "holm oaks", "broadleaves", "beeches"))
GAP, SHRUBS, MEADOW = (NUMBER[m] for m in ("forest gap", "shrubs", "meadow"))
PASTURE, STEPPE = NUMBER["dry pasture"], NUMBER["steppe"]
CEREALS, MAIZE, ALFALFA, RAPE = (NUMBER[m] for m in ("cereals", "maize", "alfalfa", "rape"))
FALLOW, PLOUGHED = NUMBER["fallow"], NUMBER["ploughed"]
VINES, VINEYARD_SOIL, OLIVES = (NUMBER[m] for m in ("vines", "vineyard soil", "olives"))
ALMONDS, ORCHARD = NUMBER["almonds"], NUMBER["orchard ground"]

FIELDS = np.array([code in (1, 2) for code, _, _ in MATERIALS.values()])
OPEN_WATER = np.array([name.split(",")[0] in ("sea", "river", "reservoir") for name in MATERIALS])

# Planes of the stack that determines the vegetation; the threshold of each is zero.
COAST, ROCK, FARM, FOREST, WOODY, STAND, MOIST, HEIGHT, NEAR_FARM = range(9)


def fractal(rng: np.random.Generator, size: int, steepness: float, longest: float) -> Floats:
    """Generate periodic fractal noise (size, size) float32 of mean 0, standard deviation 1.

    steepness  exponent of the decrease of amplitude with frequency: 1 is rough, 2 smooth
    longest    wavelength in pixels beyond which the amplitude is constant, which limits the size of patches
    """
    row = np.fft.fftfreq(size)[:, None]
    col = np.fft.rfftfreq(size)[None, :]
    amplitude = (row**2 + col**2 + 1 / longest**2) ** (-steepness / 2)
    amplitude[0, 0] = 0
    field = scipy.fft.irfft2(scipy.fft.rfft2(rng.standard_normal((size, size))) * amplitude, s=(size, size))
    return np.asarray(field / field.std(), np.float32)


def wander(rng: np.random.Generator, start: Floats, end: Floats, roughness: float, levels: int = 5) -> Floats:
    """Generate a line (2**levels + 1, 2) from start to end by midpoint displacement."""
    line = np.array([start, end], float)
    for _ in range(levels):
        step = np.diff(line, axis=0)
        sideways = np.stack([-step[:, 1], step[:, 0]], 1) * rng.normal(0, roughness, (len(step), 1))
        middle = (line[:-1] + line[1:]) / 2 + sideways
        line = np.insert(line, np.arange(1, len(line)), middle, axis=0)
    return line


def river_lines(rng: np.random.Generator, size: int) -> list[Floats]:
    """Generate the main river from the north-west to the sea, and its tributaries, as lines (n, 2) in metres."""
    extent = size * FACTOR
    main = wander(rng, np.array([0.05, 0.22]) * extent, np.array([0.86, 0.90]) * extent, 0.14, 9)
    lines = [main]
    for at, row, col in ((0.3, 0.0, 0.62), (0.45, 0.55, 0.0), (0.62, 0.35, 1.0), (0.75, 1.0, 0.45)):
        mouth = main[int(at * (len(main) - 1))]
        source = np.array([row, col]) * extent + rng.normal(0, 0.03 * extent, 2)
        lines.append(wander(rng, source, mouth, 0.12, 8))
    return lines


def relief(rng: np.random.Generator, size: int, rivers: list[Floats]) -> tuple[Floats, Floats]:
    """Generate distance to the coast (negative at sea) and elevation, both (size, size) float32 in metres."""
    extent = size * FACTOR
    row, col = np.mgrid[0:size, 0:size] / size
    inland = 1 - (row + col) / 2
    coast = (inland - 0.17) * extent + fractal(rng, size, 2.0, size / 5) * 0.025 * extent
    hills = fractal(rng, size, 2.5, min(200, size / 2))
    height = 0.13 * np.clip(inland, 0, 1) ** 1.7 + (0.010 + 0.022 * inland) * (hills + 0.8)
    dry = np.ones((size, size), bool)
    for line in rivers:
        at = np.clip(line / FACTOR, 0, size - 1).astype(int)
        dry[at[:, 0], at[:, 1]] = False
    distance = scipy.ndimage.distance_transform_edt(dry) * FACTOR
    valley = 1 - 0.75 * np.exp(-((distance / (0.05 * extent)) ** 2))
    elevation = np.where(coast > 0, np.maximum(height * valley, 0) * np.minimum(coast / (0.05 * extent), 1), 0)
    return coast.astype(np.float32), (elevation * extent).astype(np.float32)


def vegetation_planes(rng: np.random.Generator, coast: Floats, elevation: Floats) -> Floats:
    """Generate the planes (9, size, size) float32 that determine the vegetation, each with a threshold of zero.

    Shares are those of the Catalan land-cover map, with more farmland, which towns are built on.
    """
    size = len(coast)
    land = coast > 0
    high = (elevation - elevation[land].mean()) / elevation[land].std()
    slope = np.hypot(*np.gradient(scipy.ndimage.gaussian_filter(elevation, 3), FACTOR))
    steep = (slope - slope[land].mean()) / slope[land].std()
    patches = [fractal(rng, size, s, longest) for s, longest in ((1.3, 60), (1.5, 120), (1.7, 80), (1.5, 90))]
    rock = _cut(0.8 * high + 0.5 * steep + 0.6 * patches[0], land, 0.025)
    rest = land & (rock < 0)
    farm = _cut(-0.9 * high - 0.6 * steep + 0.7 * patches[1], rest, 0.36)
    rest &= farm < 0
    forest = _cut(patches[2] + 0.3 * steep - 0.25 * np.abs(high - 0.5), rest, 0.66)
    woody = _cut(patches[3] + 0.3 * steep, farm > 0, 0.30)
    stand = fractal(rng, size, 1.3, 60)
    moist = fractal(rng, size, 1.3, 80) + 0.3 * high
    near_farm = scipy.ndimage.maximum_filter(farm, 27)  # a field extends up to 115 m from its centre
    return np.stack([coast, rock, farm, forest, woody, stand, moist, high, near_farm]).astype(np.float32)


def _cut(field: Floats, where: NDArray[np.bool_], share: float) -> Floats:
    """Subtract a quantile from the field, so that ``share`` of ``where`` is above zero."""
    return np.asarray(field - np.quantile(field[where], 1 - share), np.float32)


def region_distance(rng: np.random.Generator, size: int) -> Floats:
    """Distance in pixels (size, size) float32 to an irregular border, which cuts off the north-east corner."""
    row, col = np.mgrid[0:size, 0:size].astype(np.float32)
    edge = np.minimum(np.minimum(row, size - 1 - row), np.minimum(col, size - 1 - col))
    corner = (row + size - col) * 0.7 - 0.16 * size
    uneven = np.clip(fractal(rng, size, 2.2, size / 6), -1.5, 1.5)
    return np.asarray(np.minimum(edge, corner) - size * (0.025 + 0.010 * uneven), np.float32)


def grow(rng: np.random.Generator, planes: Floats) -> tuple[Materials, NDArray[np.uint16]]:
    """Grow the vegetation: materials (10 size, 10 size) uint8, and numbers of fields (size, size) uint16."""
    size = planes.shape[1]
    materials = np.zeros((size * FACTOR, size * FACTOR), np.uint8)
    parcels = np.zeros((size, size), np.uint16)
    rough = fractal(rng, TEXTURE, 1.1, 200)
    districts = _districts(rng, size)

    def strip(start: int) -> None:
        grow_rows(materials, parcels, start, min(start + 64, size), planes, rough, districts)

    with ThreadPoolExecutor() as pool:
        list(pool.map(strip, range(0, size, 64)))
    return materials, parcels


DISTRICT = 480.0  # metres between centres of districts, whose fields share a direction


def _districts(rng: np.random.Generator, size: int) -> Floats:
    """Districts (rows, cols, 6) float64: row, col, cosine and sine of direction, width and length of fields."""
    count = int(np.ceil(size * FACTOR / DISTRICT)) + 2
    row, col = (np.mgrid[0:count, 0:count] - 1 + rng.random((2, count, count))) * DISTRICT
    angle = rng.random((count, count)) * np.pi
    width, length = rng.uniform(45, 110, (count, count)), rng.uniform(90, 200, (count, count))
    return np.stack([row, col, np.cos(angle), np.sin(angle), width, length], -1)


@compiled
def _hash(a: int, b: int, c: int) -> float:
    """Hash three integers to a number in [0, 1) (the mixer of splitmix64)."""
    h = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(c)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return float((h ^ (h >> np.uint64(31))) >> np.uint64(40)) / 16777216.0


@compiled
def sample(plane: Floats, row: float, col: float) -> float:
    """Interpolate a plane of 10 m pixels at a position in metres, bilinearly."""
    y = min(max(row / 10 - 0.5, 0.0), plane.shape[0] - 1.001)
    x = min(max(col / 10 - 0.5, 0.0), plane.shape[1] - 1.001)
    i, j = int(y), int(x)
    y, x = y - i, x - j
    top = plane[i, j] * (1 - x) + plane[i, j + 1] * x
    return float(top * (1 - y) + (plane[i + 1, j] * (1 - x) + plane[i + 1, j + 1] * x) * y)


@compiled
def _field_at(row: float, col: float, districts: Floats) -> tuple[int, float, float, float, float, float]:
    """Find the field at a position.

    returns  key from 1, position across and along the district's rows of fields, metres to the field's edge,
             row and col of its centre
    """
    i, j = int(row / DISTRICT) + 1, int(col / DISTRICT) + 1
    best, at_i, at_j = 1e18, 0, 0
    for y in range(max(i - 1, 0), min(i + 2, districts.shape[0])):
        for x in range(max(j - 1, 0), min(j + 2, districts.shape[1])):
            d = (districts[y, x, 0] - row) ** 2 + (districts[y, x, 1] - col) ** 2
            if d < best:
                best, at_i, at_j = d, y, x
    cos, sin, width, length = districts[at_i, at_j, 2:6]
    y, x = row - districts[at_i, at_j, 0], col - districts[at_i, at_j, 1]
    v, u = y * cos - x * sin, y * sin + x * cos
    number = at_i * 4096 + at_j
    band = int(np.floor(v / length))
    shift = _hash(band, number, 1) * width
    lot = int(np.floor((u + shift) / width))
    left, across = lot * width - shift, width
    if _hash(lot, band, number) < 0.35:  # inherited in two halves
        across = width / 2
        if u > left + across:
            left += across
            lot += 100_000
    edge = min(u - left, left + across - u, v - band * length, (band + 1) * length - v)
    mid_u, mid_v = left + across / 2, (band + 0.5) * length
    mid_row = districts[at_i, at_j, 0] + mid_v * cos + mid_u * sin
    mid_col = districts[at_i, at_j, 1] - mid_v * sin + mid_u * cos
    key = 1 + int(_hash(lot, band, number + 7) * 65_000)
    return key, u, v, edge, mid_row, mid_col


@compiled
def _crop(key: int, u: float, v: float, woody: float, moist: float) -> int:  # noqa: PLR0911 (a key to crops)
    """Choose the crop material of a field at a position across (u) and along (v) it."""
    value = _hash(key, 11, 0)
    if woody + 0.9 * (_hash(key, 12, 0) - 0.5) > 0:
        if value < 0.55:
            return VINES if u % 2.8 < 1.2 else VINEYARD_SOIL
        spacing = 7.0 if value < 0.85 else 5.0
        crown = (u % spacing - spacing / 2) ** 2 + (v % spacing - spacing / 2) ** 2 < (0.33 * spacing) ** 2
        if value < 0.85:
            return OLIVES if crown else VINEYARD_SOIL
        return ALMONDS if crown else ORCHARD
    wet = 0.10 if moist > 0 else 0.0
    if value < 0.40 - wet:
        return CEREALS
    if value < 0.60:
        return MAIZE
    if value < 0.72:
        return ALFALFA
    if value < 0.79:
        return RAPE
    return FALLOW if value < 0.92 else PLOUGHED


@compiled
def _field(key: int, u: float, v: float, edge: float, woody: float, moist: float, speck: float) -> int:
    """Choose the material of a field: some have grass along their edge, some are abandoned or have poplars."""
    if edge < 1.5 and _hash(key, 14, 0) < 0.5:
        return PASTURE
    value = _hash(key, 13, 0)
    if value < 0.05:
        return SHRUBS if speck > 0.3 else PASTURE
    if value < 0.08:
        return BROADLEAVES
    return _crop(key, u, v, woody, moist)


@compiled
def _wild(  # noqa: PLR0911 (a key to plants, read top to bottom)
    row: float, col: float, planes: Floats, rough: float, speck: float
) -> int:
    """Choose the material outside farmland."""
    rock = sample(planes[ROCK], row, col) + 0.25 * rough
    stand, moist = sample(planes[STAND], row, col) + 0.3 * speck, sample(planes[MOIST], row, col)
    if rock > 0:
        return LIMESTONE if stand > -0.2 else SCHIST
    forest = sample(planes[FOREST], row, col) + 0.22 * rough
    height = sample(planes[HEIGHT], row, col)
    if forest > 0:
        if forest < 0.25 and speck > 0.9:
            return GAP
        if height + 0.4 * moist > 1.3:
            return BEECHES if stand > 0.5 else CONIFERS
        if stand > 0.45:
            return CONIFERS
        return OAKS if stand - 0.8 * moist > -0.5 else BROADLEAVES
    if forest < -0.5 and speck > 1.2 and moist < 0.3:
        return BARE
    if moist + 0.3 * rough > 0.7:
        return MEADOW
    if stand + 0.5 * speck > 0.2:
        return SHRUBS
    return PASTURE if moist > -0.5 else STEPPE


@compiled
def grow_rows(
    materials: Materials,
    parcels: NDArray[np.uint16],
    start: int,
    stop: int,
    planes: Floats,
    rough: Floats,
    districts: Floats,
) -> None:
    """Fill the 1 m rows of the 10 m rows from ``start`` to ``stop``."""
    for r in range(start * 10, stop * 10):
        for c in range(materials.shape[1]):
            row, col = r + 0.5, c + 0.5
            uneven = rough[r % TEXTURE, c % TEXTURE]
            speck = rough[(r * 3 + 331) % TEXTURE, (c * 3 + 577) % TEXTURE]
            coast = planes[COAST, r // 10, c // 10]
            if coast < 100:  # farther inland there is no beach: skip the interpolation
                coast = sample(planes[COAST], row, col) + 3 * uneven
            if coast < 45:
                along = 7 * (row - col) / materials.shape[0]
                stray = along - np.floor(along) < 0.25  # stretches of the coast
                if coast < 0:
                    materials[r, c] = SEA_STRAY if stray and coast > -12 else SEA
                else:
                    materials[r, c] = BEACH_STRAY if stray else BEACH
                continue
            if planes[NEAR_FARM, r // 10, c // 10] > 0:
                key, u, v, edge, mid_row, mid_col = _field_at(row, col, districts)
                if sample(planes[FARM], mid_row, mid_col) > 0:
                    if r % 10 == 5 and c % 10 == 5:
                        parcels[r // 10, c // 10] = key
                    woody, moist = sample(planes[WOODY], mid_row, mid_col), sample(planes[MOIST], row, col)
                    materials[r, c] = _field(key, u, v, edge, woody, moist, speck)
                    continue
            materials[r, c] = _wild(row, col, planes, uneven, speck)
