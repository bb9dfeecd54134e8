"""Rivers, roads, towns, houses and quarries of the synthetic landscape.

All are drawn onto the materials, an array of material numbers with a pixel per metre.
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from cobertes.numba_cache import compiled
from cobertes.synthetic.nature import FACTOR, NUMBER, OPEN_WATER, TEXTURE, Floats, Materials, wander


@compiled
def stroke(materials: Materials, line: Floats, width: Floats, material: int) -> None:
    """Draw a line of varying width onto the materials.

    line   (N, 2) float64: row, col in metres
    width  (N,) float64: metres at each point
    """
    height, across = materials.shape
    for k in range(len(line) - 1):
        (r0, c0), (r1, c1) = line[k], line[k + 1]
        margin = max(width[k], width[k + 1]) / 2
        long = max((r1 - r0) ** 2 + (c1 - c0) ** 2, 1e-9)
        for r in range(max(int(min(r0, r1) - margin), 0), min(int(max(r0, r1) + margin) + 1, height)):
            for c in range(max(int(min(c0, c1) - margin), 0), min(int(max(c0, c1) + margin) + 1, across)):
                y, x = r + 0.5 - r0, c + 0.5 - c0
                t = min(max((y * (r1 - r0) + x * (c1 - c0)) / long, 0.0), 1.0)
                half = (width[k] * (1 - t) + width[k + 1] * t) / 2
                if (y - t * (r1 - r0)) ** 2 + (x - t * (c1 - c0)) ** 2 < half * half:
                    materials[r, c] = material


def add_rivers(
    rng: np.random.Generator, materials: Materials, lines: list[Floats], coast: Floats, texture: Floats
) -> None:
    """Add rivers with gravel and riverside trees, two reservoirs on the main one, and ponds."""
    extent = len(materials)
    scale = min(1.0, (extent / 12_000) ** 0.5)
    for number, river in enumerate(lines):
        row, col = np.clip(river / FACTOR, 0, len(coast) - 1).astype(int).T
        line = river[coast[row, col] > 0]  # ends at the sea
        widen = np.linspace(0.4, 1.0, len(line)) * (42 if number == 0 else 14) * scale
        uneven = np.abs(scipy.ndimage.gaussian_filter1d(rng.standard_normal(len(line)), 2) * 2.5)
        for extra, material in ((0.7 + 1.2 * uneven, "riverside trees"), (0.3 * uneven, "gravel bank")):
            stroke(materials, line, widen * (1 + extra), NUMBER[material])
        stroke(materials, line, widen, NUMBER["river"])
    for at in (0.22, 0.5):
        centre = lines[0][int(at * (len(lines[0]) - 1))]
        spot = Spot.at(materials, centre, 0.030 * extent * rng.uniform(0.8, 1.2), rng.uniform(0, 3))
        spot.view[spot.disc(texture, (1.5, 0.8), 0.6)] = NUMBER["reservoir"]
    for _ in range(max(2, (extent // 1500) ** 2 // 3)):
        spot = Spot.at(materials, rng.random(2) * extent, rng.uniform(25, 70) * scale, 0)
        spot.paint(spot.disc(texture, (1, 0.8), 0.3), NUMBER["reservoir"])


@dataclass(frozen=True)
class Spot:
    """Part of the materials around a position, with rotated coordinates ``u`` and ``v`` (metres) from its centre.

    ``radius`` in metres; ``view`` is a view of the materials, not a copy; ``origin`` (row, col) of its corner.
    """

    view: Materials
    u: Floats
    v: Floats
    radius: float
    origin: tuple[int, int]

    @classmethod
    def at(cls, materials: Materials, centre: Floats, radius: float, angle: float, extent: float = 2.0) -> "Spot":
        """Create the spot around ``centre`` (row, col), up to ``extent`` radii."""
        low = np.clip(np.floor(centre - extent * radius), 0, len(materials)).astype(int)
        high = np.clip(np.ceil(centre + extent * radius), 0, len(materials)).astype(int)
        y = (np.arange(low[0], high[0], dtype=np.float32) + 0.5 - float(centre[0]))[:, None]
        x = (np.arange(low[1], high[1], dtype=np.float32) + 0.5 - float(centre[1]))[None, :]
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        view = materials[low[0] : high[0], low[1] : high[1]]
        return cls(view, x * cos + y * sin, y * cos - x * sin, radius, (int(low[0]), int(low[1])))

    def noise(self, texture: Floats, shift: int = 0, step: int = 1) -> Floats:
        """Texture under the spot."""
        rows = (np.arange(self.view.shape[0]) * step + self.origin[0] + shift) % TEXTURE
        cols = (np.arange(self.view.shape[1]) * step + self.origin[1] + shift) % TEXTURE
        return texture[np.ix_(rows, cols)]

    def disc(self, texture: Floats, stretch: tuple[float, float], uneven: float) -> NDArray[np.bool_]:
        """Ellipse with an irregular edge; ``stretch`` times the radius along u and v."""
        distance = np.hypot(self.u / stretch[0], self.v / stretch[1]) / self.radius
        return np.asarray(distance + 0.5 * uneven * self.noise(texture) < 1)

    def box(self, half_u: float, half_v: float) -> NDArray[np.bool_]:
        """Rectangle of half-widths along u and v."""
        return np.asarray((np.abs(self.u) < half_u) & (np.abs(self.v) < half_v))

    def paint(self, where: NDArray[np.bool_], material: int | Floats | Materials) -> None:
        """Set one material, or an array of them, under a mask; sea, rivers and reservoirs are not changed."""
        where = where & ~OPEN_WATER[self.view]
        self.view[where] = material if isinstance(material, int) else material[where]


def _lots(length: Floats, side: float) -> tuple[NDArray[np.intp], Floats]:
    """Number of the lot of ``side`` metres at a coordinate, and metres to the lot's nearer edge."""
    number = np.floor(length / side)
    within = length - number * side
    return number.astype(np.intp), np.minimum(within, side - within)


def _random(rng: np.random.Generator, i: NDArray[np.intp], j: NDArray[np.intp]) -> Floats:
    """Random number in [0, 1) of each lot."""
    return rng.random((64, 64), np.float32)[i % 64, j % 64]


def _pick(value: Floats, shares: dict[str, float]) -> Materials:
    """Choose materials by a random number in [0, 1); the shares add up to 1."""
    edges = np.cumsum(list(shares.values()))[:-1]
    return np.array([NUMBER[name] for name in shares], np.uint8)[np.searchsorted(edges, value, "right")]


def settle(
    rng: np.random.Generator, materials: Materials, coast: Floats, elevation: Floats, texture: Floats
) -> None:
    """Add settlements: one site in each cell of a jittered lattice, so that every class is spread out."""
    extent = len(materials)
    count = max(2, round(extent / 1500))
    cell = extent / count
    scale = min(1.0, cell / 1500)
    sites = (np.mgrid[0:count, 0:count].transpose(1, 2, 0) + rng.uniform(0.2, 0.8, (count, count, 2))) * cell
    at = tuple(np.moveaxis(sites / FACTOR, 2, 0).astype(int))
    dry = coast[at] > 120 * scale
    low = dry & (elevation[at] <= np.quantile(elevation[at][dry], 0.7))
    roads = _roads(rng, sites, dry)
    for road in roads:
        stroke(materials, road.line, np.full(len(road.line), road.width + 5), NUMBER["verge"])
    for i, j in np.argwhere(dry):
        radius = 480.0 if (5 * i + 3 * j) % 9 == 0 else rng.uniform(130, 240)
        if low[i, j]:
            _town(rng, materials, sites[i, j], radius * scale, texture)
        else:
            _hamlet(rng, materials, sites[i, j], 90 * scale, texture)
        _scatter(rng, materials, sites[i, j], cell, texture, quarry=bool((5 * i + 3 * j) % 3 == 0))
    for road in roads[:: 2 if len(roads) > 8 else 1]:
        _estate(rng, materials, road, scale)
    for road in roads:
        stroke(materials, road.line, np.full(len(road.line), road.width), road.material)


def _scatter(
    rng: np.random.Generator, materials: Materials, site: Floats, cell: float, texture: Floats, *, quarry: bool
) -> None:
    """Add hamlets, houses and perhaps a quarry around a site, at 25 to 42 % of the side of its cell."""
    turn = rng.uniform(0, 2 * np.pi, 13)
    positions = site + (rng.uniform(0.25, 0.42, 13) * cell * np.stack([np.sin(turn), np.cos(turn)])).T
    # the positions nearest to the centre of the map come last: quarries are few and must not lie outside
    positions = positions[np.argsort(-np.hypot(*(positions - len(materials) / 2).T))]
    scale = min(1.0, cell / 1500)
    for position in positions[:10]:
        _house(rng, materials, position + rng.normal(0, 0.1 * cell, 2))
    for position in positions[10:12]:
        _hamlet(rng, materials, position, rng.uniform(40, 85) * scale, texture)
    if quarry:
        _quarry(rng, materials, positions[12], rng.uniform(100, 165) * scale, texture)


@dataclass(frozen=True)
class Road:
    """Road: line (N, 2) in metres, width in metres, material."""

    line: Floats
    width: float
    material: int


def _roads(rng: np.random.Generator, sites: Floats, dry: NDArray[np.bool_]) -> list[Road]:
    """Generate roads between neighbouring sites, a motorway and a railway."""
    roads = []
    count = len(dry)
    for i, j in np.argwhere(dry):
        for y, x in ((i + 1, j), (i, j + 1), (i + 1, j + 1)):
            if y < count and x < count and dry[y, x] and rng.random() < (0.3 if y > i and x > j else 0.75):
                width = float(rng.choice([8, 10, 12, 16, 20]))
                roads.append(Road(wander(rng, sites[i, j], sites[y, x], 0.07), width, NUMBER["road"]))
    extent = float(sites.max()) * 1.1
    for start, end, width, material in (
        ((0.55, 0.0), (0.12, 1.0), 28.0, "motorway"),
        ((0.95, 0.0), (0.30, 1.0), 14.0, "ballast"),
    ):
        line = wander(rng, np.array(start) * extent, np.array(end) * extent, 0.04, 6)
        roads.append(Road(line, width, NUMBER[material]))
    return roads


def _town(rng: np.random.Generator, materials: Materials, at: Floats, radius: float, texture: Floats) -> None:
    """Add a town: blocks of houses around yards, looser outside; streets; some parks."""
    spot = Spot.at(materials, at, radius, rng.uniform(0, np.pi))
    inside = spot.disc(texture, (1.2, 0.95), 0.5)
    i, from_u = _lots(spot.u, 78.0)
    j, from_v = _lots(spot.v, 62.0)
    edge = np.minimum(from_u, from_v)
    lot_i, in_u = _lots(spot.u, 15.0)
    lot_j, in_v = _lots(spot.v, 13.0)
    value = _random(rng, lot_i, lot_j)
    roofs = {"town tiles": 0.55, "town flat roof": 0.2, "town dark roof": 0.15, "town yard": 0.1}
    fabric = _pick(value, roofs)
    loose = np.hypot(spot.u, spot.v) > 0.65 * radius
    yard = np.where(loose, np.minimum(in_u, in_v) < 3.0, edge > 20)
    yards = {"town garden": 0.45, "town yard": 0.35, "town street": 0.2}
    fabric = np.where(yard, _pick(_random(rng, lot_j, lot_i), yards), fabric)
    fabric = np.where(edge < 4.0, NUMBER["town street"], fabric)
    park = _random(rng, i, j) < 0.22
    fabric = np.where(park & (edge >= 4), _park(spot, texture, edge), fabric)
    main = ((from_u < 5.0) & ((spot.u / 78 + 0.5) // 1 % 3 == 0)) | (
        (from_v < 5.0) & ((spot.v / 62 + 0.5) // 1 % 3 == 0)
    )
    fabric = np.where(main, NUMBER["road"], fabric)
    spot.paint(inside, fabric.astype(np.uint8))
    turn = rng.uniform(0, 2 * np.pi)
    beside = Spot.at(materials, at + radius * np.array([np.sin(turn), np.cos(turn)]), max(0.32 * radius, 18), 0)
    beside.paint(beside.disc(texture, (1.0, 0.8), 0.4), _park(beside, texture, np.full(beside.u.shape, 9.0)))


def _park(spot: Spot, texture: Floats, edge: Floats) -> Materials:
    """Materials of a park for a spot: lawn, groups of trees, paths."""
    trees = spot.noise(texture, 300, 3)
    materials = np.where(trees > 0.1, NUMBER["park trees"], NUMBER["lawn"])
    materials = np.where(trees > 1.0, NUMBER["park conifers"], materials)
    path = (np.abs(spot.noise(texture, 700)) < 0.05) | (edge < 6)
    return np.asarray(np.where(path, NUMBER["park path"], materials), np.uint8)


def _estate(rng: np.random.Generator, materials: Materials, road: Road, scale: float) -> None:
    """Add an industrial estate along a road: large roofs in concrete yards, some sports pitches."""
    k = int(rng.uniform(0.3, 0.7) * (len(road.line) - 1))
    along = road.line[k + 1] - road.line[k]
    along /= np.hypot(*along)
    half_u, half_v = rng.uniform(90, 210) * scale, rng.uniform(60, 130) * scale
    aside = (half_v + road.width / 2 + 4) * rng.choice([-1, 1])
    centre = road.line[k] + np.array([-along[1], along[0]]) * aside
    spot = Spot.at(materials, centre, float(np.hypot(half_u, half_v)), float(np.arctan2(along[0], along[1])), 1.1)
    i, from_u = _lots(spot.u, rng.uniform(60, 110))
    j, from_v = _lots(spot.v + half_v, rng.uniform(45, 75))
    value = _random(rng, i, j)
    roofs = {"metal roof": 0.25, "fibre cement roof": 0.3, "estate dark roof": 0.15, "estate tiles": 0.15}
    roof = _pick(value, roofs | {"pitch": 0.08, "estate asphalt": 0.07})
    yard = _pick(_random(rng, j, i), {"estate concrete": 0.5, "estate asphalt": 0.5})
    fabric = np.where(np.minimum(from_u, from_v) < 9, yard, roof)
    spot.paint(spot.box(half_u, half_v), fabric.astype(np.uint8))


def _hamlet(rng: np.random.Generator, materials: Materials, at: Floats, radius: float, texture: Floats) -> None:
    """Add a hamlet: houses in gardens."""
    spot = Spot.at(materials, at, radius, rng.uniform(0, np.pi))
    i, from_u = _lots(spot.u, 26.0)
    j, from_v = _lots(spot.v, 24.0)
    gardens = {"house garden": 0.5, "house yard": 0.25, "house trees": 0.25}
    fabric = _pick(_random(rng, i, j), gardens)
    fabric = np.where((from_u > 10) & (from_v > 9) & (_random(rng, j, i) < 0.25), NUMBER["pool"], fabric)
    fabric = np.where((from_u > 6.5) & (from_v > 6.5) & (_random(rng, i, j) < 0.8), NUMBER["house"], fabric)
    fabric = np.where(from_v < 2, NUMBER["house yard"], fabric)
    spot.paint(spot.disc(texture, (1.3, 0.8), 0.5), fabric.astype(np.uint8))


def _house(rng: np.random.Generator, materials: Materials, at: Floats) -> None:
    """Add a farmhouse of 10 to 30 m with its yard."""
    half_u, half_v = rng.uniform(8, 15), rng.uniform(6, 11)
    spot = Spot.at(materials, at, 18, rng.uniform(0, np.pi))
    spot.paint(spot.box(half_u + 4, half_v + 4), NUMBER["house yard"])
    spot.paint(spot.box(half_u, half_v), NUMBER["house"])


def _quarry(rng: np.random.Generator, materials: Materials, at: Floats, radius: float, texture: Floats) -> None:
    """Add a quarry: benches around a floor, with heaps and a pond."""
    spot = Spot.at(materials, at, radius, rng.uniform(0, np.pi))
    depth = np.hypot(spot.u / 1.25, spot.v / 0.85) / radius + 0.1 * spot.noise(texture)
    fabric = np.where(depth * 7 % 1 < 0.6, NUMBER["quarry face"], NUMBER["quarry floor"])
    fabric = np.where((depth < 0.5) | (spot.noise(texture, 500, 2) > 1.1), NUMBER["quarry floor"], fabric)
    fabric = np.where(spot.noise(texture, 200, 2) > 0.9, NUMBER["spoil"], fabric)
    fabric = np.where(depth < 0.14, NUMBER["quarry pond"], fabric)
    spot.paint(spot.disc(texture, (1.25, 0.85), 0.3), fabric.astype(np.uint8))
