"""Scenes of planes, boxes, cylinders and spheres, and the rays of a spinning scanner in them.

Coordinates in metres, the scanner at 0: x ahead, y left, z up. Rays are kept as (columns, rings):
a column is one direction of the spinning head, a ring one of its lasers. An object is only tried
on the columns that can see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ._ink import Floats, Ints

CLASSES: dict[str, tuple[str, ...]] = {
    "street": ("ground", "building", "vehicle", "pole", "vegetation"),
    "room": ("floor", "wall", "ceiling", "furniture", "column"),
}


@dataclass(frozen=True)
class Box:
    """An upright box: centre, half extents, turned by `yaw` about z."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float
    label: int

    @property
    def circle(self) -> tuple[float, float, float]:
        """A circle that holds it, seen from above: x, y, radius."""
        return (*self.centre[:2], float(np.hypot(*self.half[:2])))

    def hit(self, rays: Floats) -> Floats:
        """Distance to where each ray (..., 3) enters, inf where it does not."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])  # rows times this turn by -yaw
        direction, start = rays @ turn, -np.array(self.centre) @ turn
        with np.errstate(divide="ignore", invalid="ignore"):
            one = (-np.array(self.half) - start) / direction
            two = (np.array(self.half) - start) / direction
        # A ray along a face has 0 / 0 there: fmin and fmax let the other axes decide.
        enter = np.fmax.reduce(np.fmin(one, two), axis=-1)
        leave = np.fmin.reduce(np.fmax(one, two), axis=-1)
        return np.where((enter <= leave) & (enter > 0), enter, np.inf)


@dataclass(frozen=True)
class Cylinder:
    """The side of an upright cylinder between two heights: x, y, radius."""

    circle: tuple[float, float, float]
    bottom: float
    top: float
    label: int

    def hit(self, rays: Floats) -> Floats:
        """As of a box."""
        x, y, radius = self.circle
        along = rays[..., 0] * x + rays[..., 1] * y
        square = rays[..., 0] ** 2 + rays[..., 1] ** 2
        t = _nearest_root(along, square, x * x + y * y - radius**2)
        with np.errstate(invalid="ignore"):
            z = t * rays[..., 2]
            return np.where((z >= self.bottom) & (z <= self.top), t, np.inf)


@dataclass(frozen=True)
class Sphere:
    """A sphere: its centre, and its radius in `circle`."""

    circle: tuple[float, float, float]
    height: float
    label: int

    def hit(self, rays: Floats) -> Floats:
        """As of a box."""
        x, y, radius = self.circle
        centre = np.array([x, y, self.height])
        return _nearest_root(rays @ centre, 1.0, centre @ centre - radius**2)


def _nearest_root(along: Floats, square: Floats | float, rest: float) -> Floats:
    """The smaller t with t^2 square - 2 t along + rest = 0, inf where it is none or not ahead."""
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(along**2 - square * rest)
        t = (along - root) / square
        return np.where(t > 0, t, np.inf)  # False for the NaN of a ray that misses


@dataclass(frozen=True)
class Scene:
    """What there is to see.

    Attributes:
        ends: distance of each ray (..., 3) to the floor, the walls and the ceiling, and the label
            of what it meets there; inf where it meets nothing.
        objects: solids in front of that.
        elevations: of the lowest and the highest laser, in radians.
        reach: the greatest distance that returns an echo.
    """

    ends: Callable[[Floats], tuple[Floats, Ints]]
    elevations: tuple[float, float]
    reach: float
    objects: list[Box | Cylinder | Sphere] = field(default_factory=list)

    def cast(self, azimuths: Floats, n_rings: int) -> tuple[Floats, Floats, Ints]:
        """Where every ray ends.

        Returns:
            unit rays (columns, rings, 3), their lengths (columns, rings), inf without an echo,
            and labels (columns, rings).
        """
        low, high = self.elevations
        elevation = np.linspace(low, high, n_rings) if n_rings > 1 else np.array([low])
        rays = np.empty((len(azimuths), n_rings, 3))
        rays[..., 0] = np.cos(azimuths)[:, None] * np.cos(elevation)
        rays[..., 1] = np.sin(azimuths)[:, None] * np.cos(elevation)
        rays[..., 2] = np.sin(elevation)
        distance, label = self.ends(rays)
        for thing in self.objects:
            columns = _columns_that_see(thing.circle, azimuths)
            t = thing.hit(rays[columns])
            nearer = t < distance[columns]
            distance[columns] = np.where(nearer, t, distance[columns])
            label[columns] = np.where(nearer, thing.label, label[columns])
        distance[distance > self.reach] = np.inf
        return rays, distance, label


def _columns_that_see(circle: tuple[float, float, float], azimuths: Floats) -> Ints:
    """Numbers of the columns whose direction meets a circle on the ground."""
    x, y, radius = circle
    away = np.hypot(x, y)
    if away <= radius:
        return np.arange(len(azimuths))
    turn = (azimuths - np.arctan2(y, x) + np.pi) % (2 * np.pi) - np.pi
    return np.flatnonzero(np.abs(turn) <= np.arcsin(radius / away) + 1e-9)


# ------------------------------------------------------------------ a street
_GROUND, _BUILDING, _VEHICLE, _POLE, _VEGETATION = range(5)
_MAST = 1.73  # height of the scanner on its car
_STREET = 90.0  # the street reaches this far ahead and behind


def street(generator: np.random.Generator) -> Scene:
    """A straight street along x: houses, parked and driving cars, lamp posts, trees."""
    draw = generator.uniform
    objects: list[Box | Cylinder | Sphere] = []
    for side in (-1, 1):
        x = -_STREET + draw(0, 8)
        while x < _STREET:  # houses, with gaps between some of them
            half, depth, height = draw(4, 12), draw(4, 8), draw(3, 15)
            y = side * (draw(10, 13) + depth)
            centre = (x + half, y, height / 2 - _MAST)
            objects.append(Box(centre, (half, depth, height / 2), draw(-0.04, 0.04), _BUILDING))
            x += 2 * half + max(draw(-4, 8), 0)
        for x in np.arange(-_STREET, _STREET, 7.0):
            if draw() < 0.5:  # a parked car
                objects += _car(
                    float(x + draw(-1, 1)), side * draw(4.6, 5.2), draw(-0.06, 0.06), draw
                )
        for x in np.arange(-_STREET + draw(0, 12), _STREET, 12.0):
            circle = (float(x), side * draw(6.8, 7.2), draw(0.08, 0.15))
            objects.append(Cylinder(circle, -_MAST, draw(5, 8) - _MAST, _POLE))
        for x in np.arange(-_STREET + draw(0, 14), _STREET, 14.0):
            if draw() < 0.6:  # a tree or a bush: a trunk and a crown
                place, crown = (float(x + draw(-3, 3)), side * draw(7.5, 9)), draw(1.2, 2.4)
                height = draw(0.2, 2.5) + crown - _MAST
                objects.append(Cylinder((*place, draw(0.1, 0.3)), -_MAST, height, _VEGETATION))
                objects.append(Sphere((*place, crown), height, _VEGETATION))
    for x in (draw(8, 25), draw(-25, -8), draw(35, 60)):
        objects += _car(x, draw(1.5, 2.5) * generator.choice([-1, 1]), draw(-0.03, 0.03), draw)
    return Scene(_on_ground, (np.radians(-24.8), np.radians(2.0)), 80.0, objects)


def _car(x: float, y: float, yaw: float, draw: Callable[[float, float], float]) -> list[Box]:
    """A body and a cabin; its wheels are not worth a laser."""
    half, width, height = draw(1.9, 2.4), draw(0.8, 0.95), draw(0.8, 1.0)
    body = Box((x, y, height / 2 + 0.15 - _MAST), (half, width, height / 2), yaw, _VEHICLE)
    roof = draw(0.5, 0.7)
    cabin = (x - 0.2 * np.cos(yaw), y - 0.2 * np.sin(yaw), height + 0.15 + roof / 2 - _MAST)
    return [body, Box(cabin, (0.55 * half, 0.9 * width, roof / 2), yaw, _VEHICLE)]


def _on_ground(rays: Floats) -> tuple[Floats, Ints]:
    with np.errstate(divide="ignore"):
        t = np.where(rays[..., 2] < 0, -_MAST / rays[..., 2], np.inf)
    return t, np.full(t.shape, _GROUND)


# ------------------------------------------------------------------ a room
_FLOOR, _WALL, _CEILING, _FURNITURE, _COLUMN = range(5)
_TRIPOD = 1.5  # height of the scanner above the floor


def room(generator: np.random.Generator) -> Scene:
    """A rectangular room with furniture and columns, the scanner somewhere near its middle."""
    draw = generator.uniform
    half = np.array([draw(3, 8), draw(3, 8)])
    middle = half * draw(-0.3, 0.3, 2)  # seen from the scanner
    ceiling = draw(2.4, 4.0) - _TRIPOD
    low = np.array([*(middle - half), -_TRIPOD])
    high = np.array([*(middle + half), ceiling])

    def ends(rays: Floats) -> tuple[Floats, Ints]:
        with np.errstate(divide="ignore"):
            t = np.where(rays > 0, high / rays, np.where(rays < 0, low / rays, np.inf))
        axis = t.argmin(axis=-1)
        flat = np.where(rays[..., 2] < 0, _FLOOR, _CEILING)
        return t.min(axis=-1), np.where(axis == 2, flat, _WALL)

    objects: list[Box | Cylinder | Sphere] = []
    for _ in range(int(generator.integers(8, 16))):
        x, y = middle + half * draw(-0.85, 0.85, 2)
        size = draw(0.2, 0.9), draw(0.2, 0.9), draw(0.15, 0.7)
        if np.hypot(x, y) > np.hypot(*size[:2]) + 0.3:  # not around the scanner
            centre = (float(x), float(y), size[2] - _TRIPOD)
            objects.append(Box(centre, size, draw(0, np.pi), _FURNITURE))
    for _ in range(int(generator.integers(1, 4))):
        x, y = middle + half * draw(-0.7, 0.7, 2)
        if np.hypot(x, y) > 0.8:
            circle = (float(x), float(y), draw(0.15, 0.3))
            objects.append(Cylinder(circle, -_TRIPOD, ceiling, _COLUMN))
    return Scene(ends, (np.radians(-60.0), np.radians(75.0)), 60.0, objects)


SCENES: dict[str, Callable[[np.random.Generator], Scene]] = {"street": street, "room": room}
