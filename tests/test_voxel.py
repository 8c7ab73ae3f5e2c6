"""Synthetic scans: every point is the first surface on its ray; KITTI files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import doublesparse as ds
from doublesparse.data import _scene, voxel

both = pytest.mark.parametrize("scene", ["street", "room"])


def generator(seed):
    return np.random.Generator(np.random.Philox(seed))


# ---------------------------------------------------------------- an oracle: what is inside
def contains(thing, points, slack):
    """Whether a solid, grown by `slack` on all sides, holds each point (n, 3)."""
    x, y, z = np.asarray(points).T
    if isinstance(thing, _scene.Box):
        dx, dy, dz = (p - c for p, c in zip((x, y, z), thing.centre))
        along = math.cos(thing.yaw) * dx + math.sin(thing.yaw) * dy
        across = -math.sin(thing.yaw) * dx + math.cos(thing.yaw) * dy
        return np.all([abs(d) <= h + slack for d, h in zip((along, across, dz), thing.half)], 0)
    cx, cy, radius = thing.circle
    if isinstance(thing, _scene.Cylinder):
        inside = np.hypot(x - cx, y - cy) <= radius + slack
        return inside & (thing.bottom - slack <= z) & (z <= thing.top + slack)
    square = (x - cx) ** 2 + (y - cy) ** 2 + (z - thing.height) ** 2
    return np.sqrt(square) <= radius + slack


@both
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rays_end_at_the_first_surface(scene, seed):
    world = _scene.SCENES[scene](generator(seed))
    rng = np.random.default_rng(seed)
    rays, distance, label = world.cast(np.sort(rng.uniform(-7, 7, 60)), 32)
    assert np.abs(np.linalg.norm(rays, axis=-1) - 1).max() < 1e-15
    ends, end_label = world.ends(rays)
    hits = np.argwhere((distance < ends) & np.isfinite(distance))
    free = np.argwhere((distance == ends) | np.isinf(distance))
    assert len(hits) > 100 and len(free) > 100
    for where, some in ((hits, True), (free, False)):
        for column, ring in rng.permutation(where)[:30]:
            ray, t = rays[column, ring], min(distance[column, ring], world.reach)
            things = [o for o in world.objects if contains(o, [ray * t], 1e-6).any()]
            if some:
                assert label[column, ring] in [o.label for o in things]
            else:
                assert label[column, ring] == end_label[column, ring]
            before = np.arange(0.0, t - 1e-6, 0.02)[:, None] * ray  # nothing on the way
            assert not any(contains(o, before, -1e-6).any() for o in world.objects)


def test_a_room_is_closed_and_a_street_has_a_ground():
    rays = np.random.default_rng(0).normal(size=(500, 3))
    rays /= np.linalg.norm(rays, axis=1)[:, None]
    ends, labels = _scene.room(generator(0)).ends(rays)
    points = rays * ends[:, None]
    low, high = points.min(0), points.max(0)
    faces = (np.abs(points - low) < 1e-9) | (np.abs(points - high) < 1e-9)
    assert (faces.sum(1) == 1).all() and set(labels) == {0, 1, 2}
    assert (np.where(faces[:, 2], np.where(rays[:, 2] < 0, 0, 2), 1) == labels).all()
    ends, labels = _scene.street(generator(0)).ends(rays)
    assert np.array_equal(np.isinf(ends), rays[:, 2] >= 0)
    down = rays[:, 2] < 0
    assert np.ptp((rays * np.where(down, ends, 0)[:, None])[down, 2]) < 1e-12


# ---------------------------------------------------------------- scans
@both
@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 3001])
def test_number_of_points(scene, n):
    points, labels = voxel.scan(n, 5, scene)
    assert points.shape == (n, 3) and points.dtype == torch.float32
    assert labels.shape == (n,) and labels.dtype == torch.int64
    assert points.isfinite().all()
    assert labels.unique().tolist() == sorted(labels.unique()) and (labels < 5).all()


@both
def test_scans_follow_the_seed(scene):
    a, b, other = (voxel.scan(2000, seed, scene) for seed in (1, 1, 2))
    assert torch.equal(a.points, b.points) and torch.equal(a.labels, b.labels)
    assert not torch.equal(a.points, other.points)
    assert not torch.equal(a.points, voxel.scan(2000, 1, scene, noise=0.01).points)


@pytest.mark.parametrize("seed", range(3))
def test_classes_of_a_street(seed):
    points, labels = voxel.scan(20_000, seed, noise=0)
    assert labels.unique().tolist() == list(range(len(voxel.CLASSES["street"])))
    ground = points[labels == 0, 2]
    assert (ground - ground[0]).abs().max() < 1e-5 and (points[:, 2] > ground[0] - 1e-5).all()
    assert points.norm(dim=1).max() <= 80.001
    assert (points[labels == 1, 1].abs() > 8).all()  # houses stand beside the street


@both
def test_rings_and_columns(scene):
    """At most one echo per laser and step of the head; lasers at equal steps of elevation."""
    points, _ = voxel.scan(4000, 3, scene, n_rings=16, noise=0)
    x, y, z = points.double().T
    low, high = _scene.SCENES[scene](generator(3)).elevations
    ring = (torch.atan2(z, torch.hypot(x, y)) - low) / (high - low) * 15
    assert (ring - ring.round()).abs().max() < 1e-4
    ring = ring.round().long()
    assert ring.min() == 0 and ring.max() <= 15
    columns = (ring[1:] <= ring[:-1]).nonzero()[:, 0]  # a new column begins after these
    azimuth = torch.atan2(y, x)
    first = torch.cat([torch.tensor([0]), columns + 1])
    column = torch.zeros(len(ring), dtype=torch.int64)
    column[columns + 1] = 1
    column = column.cumsum(0)
    near = torch.hypot(x, y) > 0.1
    turn = (azimuth - azimuth[first][column] + math.pi) % (2 * math.pi) - math.pi
    assert turn[near].abs().max() < 1e-5
    pairs = column * 16 + ring
    assert len(pairs.unique()) == len(pairs)


def test_noise_is_along_the_ray():
    clean, noisy = (voxel.scan(5000, 4, noise=noise).points.double() for noise in (0.0, 0.05))
    length = clean.norm(dim=1, keepdim=True)
    along = ((noisy - clean) * clean / length).sum(1)
    assert ((noisy - clean) - along[:, None] * clean / length).abs().max() < 1e-4
    assert abs(along.std().item() / 0.05 - 1) < 5 / math.sqrt(2 * 5000)  # five standard errors
    assert abs(along.mean().item()) < 0.05 * 5 / math.sqrt(5000)


def test_a_network_learns_from_a_scan():
    points, labels = voxel.scan(2000, 0)
    heights = points[:, 2:] + 1.73
    x, site = ds.functional.voxelize(points, heights, 0.5, origin=points.amin(0), ground=None)
    assert 300 < len(x.features) < 2000 and x.density < 0.05
    net = torch.nn.Sequential(ds.nn.SubmanifoldConv3d(1, 8, 3), torch.nn.ReLU())
    head = torch.nn.Linear(8, 5)
    parameters = [*net.parameters(), *head.parameters()]
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(head(net(x).features[site]), labels)
        losses.append(loss.item())
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
                parameter -= 0.2 * gradient
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        (dict(n_points=-1), ValueError, "n_points"),
        (dict(n_points=2**40), ValueError, "n_points"),
        (dict(n_points=1.5), TypeError, "n_points"),
        (dict(n_points=True), TypeError, "n_points"),
        (dict(seed=-1), ValueError, "seed"),
        (dict(seed=None), TypeError, "seed"),
        (dict(scene="garden"), ValueError, "'street'"),
        (dict(scene=["street"]), ValueError, "scene"),
        (dict(n_rings=0), ValueError, "n_rings"),
        (dict(noise=-1), ValueError, "noise"),
        (dict(noise=math.nan), ValueError, "noise"),
        (dict(noise="0"), TypeError, "noise"),
    ],
)
def test_scan_refuses(arguments, error, word):
    with pytest.raises(error, match=word) as caught:
        voxel.scan(**arguments)
    assert str(caught.value).startswith("scan: ") and "; " in str(caught.value)


# ---------------------------------------------------------------- KITTI
def test_reads_kitti(tmp_path):
    path = tmp_path / "000000.bin"
    values = np.random.default_rng(0).normal(size=(7, 4)).astype("<f4")
    path.write_bytes(values.tobytes())
    read = voxel.read_kitti(path)
    assert read.dtype == torch.float32 and np.array_equal(read.numpy(), values)
    read[0] = 0  # the caller's own
    path.write_bytes(b"")
    assert voxel.read_kitti(str(path)).shape == (0, 4)


def test_malformed_kitti(tmp_path):
    path = tmp_path / "cut.bin"
    path.write_bytes(bytes(17))
    with pytest.raises(ValueError, match=r"read_kitti: .*cut\.bin: .*got 17; "):
        voxel.read_kitti(path)
    with pytest.raises(FileNotFoundError):
        voxel.read_kitti(tmp_path / "absent.bin")
