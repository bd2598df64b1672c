"""Point clouds in memory, read from folders of files."""

import io
import logging
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from sintrovae_jax import npy, progress
from sintrovae_jax.data import folder
from sintrovae_jax.data.identity import Identity
from sintrovae_jax.data.source import Labels
from sintrovae_jax.data.sources import Arrays, opened, refuse_large
from sintrovae_jax.errors import Unavailable, UserError
from sintrovae_jax.files import is_remote
from sintrovae_jax.parallel import Shard, first_line

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)
_MESHES = (".ply", ".off", ".obj")  # read by trimesh
SUFFIXES = (".npy", ".xyz", *_MESHES)
_LARGEST = 2**28  # the most bytes of a file
_THREADS = 16


class Clouds:
    """Clouds [N, points, 3] in memory, visited in a new seeded order every epoch, each exactly once."""

    def __init__(self, arrays: Arrays):
        self._arrays, self.count = arrays, arrays.count
        self.skipped: Mapping[str, str] = arrays.skipped
        self.identity: Identity | None = arrays.identity

    @property
    def labels(self) -> Labels | None:
        """The classes [N] of training clouds, in no particular order, and of test clouds; None: unknown."""
        return self._arrays.labels

    def stream(self, seed: int, start: int, stop: int, shard: Shard, substeps: int = 1) -> "tf.data.Dataset":
        return self._arrays.stream(seed, start, stop, shard, substeps)

    def test(self, n: int, seed: int) -> np.ndarray:
        return self._arrays.test(n, seed)


def normalized(points: np.ndarray, radius: float) -> np.ndarray:
    """Centres points [N, 3] on their bounding box, and scales the farthest to `radius`; 0: leaves them. float32.

    Raises ValueError if all points are in one place.
    """
    if radius:
        points = points - (points.min(0) + points.max(0)) / 2
        reach = np.linalg.norm(points, axis=1).max()
        if not reach > 0:
            raise ValueError("its points are all in one place")
        points = points * (radius / reach)
    return points.astype(np.float32)


def build(path: str, points: int, radius: float, test_fraction: float, memory_bytes: float) -> Clouds:
    """The source of a folder's clouds and meshes. If all files are in subfolders, these are the classes.

    A cloud's points are chosen, or a mesh's points sampled uniformly by area, once. The file's name alone determines
    the points, and whether the file is held out (`folder.split`). Files that cannot be read are skipped, counted and
    named. Raises `UserError` if there is no folder, it has no readable cloud, it does not fit memory, or trimesh is
    missing.
    """
    if not folder.is_folder(path):
        raise UserError(f"data.source=clouds:{path} is no folder")
    names = sorted(name for name in folder.below(path) if name.lower().endswith(SUFFIXES))
    if not names:
        raise UserError(f"{path} has no point clouds ({', '.join(SUFFIXES)}) in it or below")
    refuse_large(f"data.source=clouds:{path}: its points take", len(names) * points * 12, memory_bytes)
    _need_trimesh(names)
    log.info("reading %d clouds in %s", len(names), path)
    found, skipped = _read_all(path, names, points, radius)
    folder.report(path, skipped, len(names), "cloud")
    train, test = folder.split(list(found), test_fraction)
    test = [test[i] for i in np.random.default_rng(0).permutation(len(test))]  # so that the first have many classes
    x, x_test = (np.stack([found[name] for name in part]) for part in (train, test))
    classes = folder.classes_of(train + test)
    labels = None if classes is None else (classes[: len(train)], classes[len(train) :])
    return Clouds(Arrays(x, x_test, skipped, labels, identity=folder.marked(path, names)))


def _need_trimesh(names: list[str]) -> None:
    mesh = next((name for name in names if name.lower().endswith(_MESHES)), "")
    if mesh:
        try:
            import trimesh  # noqa: F401
        except ImportError:
            raise UserError(f"trimesh, which reads {mesh}, is not installed: install the extra `clouds`") from None


def _read_all(path: str, names: list[str], points: int, radius: float) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns {name: cloud}, and {name: reason} for the files that cannot be read."""

    def one(name: str) -> np.ndarray | str:
        try:
            rng = np.random.default_rng(zlib.crc32(name.encode("utf-8", "surrogateescape")))
            return normalized(read(os.path.join(path, name), points, rng), radius)
        except Exception as error:  # whatever numpy, trimesh and storage raise for files that are no clouds
            return first_line(error) or type(error).__name__

    found, skipped = dict[str, np.ndarray](), dict[str, str]()
    with ThreadPoolExecutor(_THREADS if is_remote(path) else 1) as pool:
        results = progress.counted(pool.map(one, names), "clouds", len(names))
        for name, result in zip(names, results, strict=True):
            if isinstance(result, str):
                skipped[name] = result
            else:
                found[name] = result
    if len(skipped) == len(names) and not folder.is_folder(path):
        raise Unavailable(f"{path} is no longer there")
    return found, skipped


def read(path: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` points [count, 3] of a file: sampled uniformly by area from a mesh, or chosen from a cloud without
    repetition.

    Raises ValueError if the file has fewer points, and the errors of numpy and trimesh for other files.
    """
    with opened(path) as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST >> 20} MiB")
    suffix = os.path.splitext(path)[1].lower()
    if suffix in _MESHES:
        points = _mesh_points(data, suffix, count, rng)
    else:
        points = _npy_points(data) if suffix == ".npy" else np.loadtxt(io.BytesIO(data), usecols=(0, 1, 2), ndmin=2)
    if not np.isfinite(points).all():
        raise ValueError("not all of its coordinates are finite")
    if len(points) < count:
        raise ValueError(f"it has {len(points)} points, fewer than data.points={count}")
    return points if len(points) == count else points[np.sort(rng.choice(len(points), count, replace=False))]


def _npy_points(data: bytes) -> np.ndarray:
    x = npy.load(io.BytesIO(data), list, lambda size: None).get(npy.ALONE)
    if x is None or x.ndim != 2 or x.shape[1] < 3 or x.dtype.kind not in "fiu":
        raise ValueError("it is no array of numbers [points, 3]")
    return x[:, :3].astype(np.float64)


def _mesh_points(data: bytes, suffix: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points of a file that trimesh reads: sampled from a mesh, or the vertices if there are no faces."""
    import trimesh

    scene = trimesh.load_scene(io.BytesIO(data), file_type=suffix[1:], process=False)
    meshes = [each for each in scene.dump() if isinstance(each, trimesh.Trimesh) and len(each.faces)]
    if not meshes:
        vertices = [each.vertices for each in scene.geometry.values() if hasattr(each, "vertices")]
        return np.concatenate(vertices) if vertices else np.empty((0, 3))
    mesh: Any = trimesh.util.concatenate(meshes)
    if not mesh.area > 0:
        raise ValueError("its surface has no area")
    return np.asarray(trimesh.sample.sample_surface(mesh, count, seed=int(rng.integers(2**31)))[0])
