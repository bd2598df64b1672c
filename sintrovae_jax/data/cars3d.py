"""Cars3D (Reed et al. 2015): 183 car models seen from 24 azimuths and 4 elevations. Class: model; content: view.

Two layouts are published, and both can be read:

    a folder of .mat files, one per model, each with `im`, uint8 [height, width, 3, 24 azimuths, 4 elevations]
    an .npz with `imgs`, uint8 [4 · 24 · models, height, width, 3], models fastest, then azimuths, then elevations
"""

import math
import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from PIL import Image

from sintrovae_jax import progress
from sintrovae_jax.data import images, mat
from sintrovae_jax.data.folder import is_folder, marked
from sintrovae_jax.data.identity import Identity, of_arrays
from sintrovae_jax.data.images import Format
from sintrovae_jax.data.sources import Arrays, labelled, opened, read_arrays, refuse_large
from sintrovae_jax.errors import UserError
from sintrovae_jax.files import is_remote
from sintrovae_jax.parallel import first_line

AZIMUTHS, ELEVATIONS = 24, 4
_VIEWS = AZIMUTHS * ELEVATIONS
_HELD_OUT = 0.11  # of the models: 20 of 183, as many as LORD's split holds out


def build(path: str, form: Format, memory_bytes: float) -> Arrays:
    """The source of all views, in memory, resized to the format. Some models are held out, with all their views.

    Raises `UserError` if the path has neither layout, a file is damaged, or the views take more than `memory_bytes`.
    """
    read = _from_folder if is_folder(path) else _from_npz
    views, identity = read(path, form, memory_bytes)
    held_out = np.random.default_rng(0).permutation(len(views))[: max(1, round(_HELD_OUT * len(views)))]
    test = np.isin(np.arange(len(views)), held_out)
    if test.all():
        raise UserError(f"{path} has one model alone: there is none to hold out")
    models, view = np.arange(len(views)).repeat(_VIEWS), np.tile(np.arange(_VIEWS), len(views))
    return labelled(views.reshape(-1, *form.shape), test.repeat(_VIEWS), models, view, identity)


def _from_folder(path: str, form: Format, memory_bytes: float) -> tuple[np.ndarray, Identity]:
    """Reads a folder of .mat files. Returns views [models, 96, *shape], azimuths fastest, and their identity."""
    names = sorted(name for name in _listed(path) if name.endswith(".mat") and not name.startswith("._"))
    if not names:
        raise UserError(f"data.source=cars3d:{path}: the folder has no .mat files, one for each car model")
    _refuse_many(path, len(names) * _VIEWS, form, memory_bytes)
    with ThreadPoolExecutor() as pool:
        models = pool.map(lambda name: _one_model(f"{path}/{name}", form), names)
        return np.stack(list(progress.counted(models, "car models", len(names)))), marked(path, names)


def _listed(path: str) -> list[str]:
    return tf.io.gfile.listdir(path) if is_remote(path) else os.listdir(path)


def _refuse_many(path: str, count: int, form: Format, memory_bytes: float) -> None:
    refuse_large(f"data.source=cars3d:{path}: its images take", count * math.prod(form.shape), memory_bytes)


def _one_model(path: str, form: Format) -> np.ndarray:
    try:
        with opened(path) as file:
            x = mat.array(file.read(), "im")
    except (ValueError, OSError, struct.error, zlib.error, tf.errors.OpError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    if x is None or x.ndim != 5 or x.shape[2:] != (3, AZIMUTHS, ELEVATIONS) or not x.size:
        content = "no `im`" if x is None else f"`im` of shape {x.shape}"
        raise UserError(f"{path} has {content}: Cars3D's is uint8 [height, width, 3, {AZIMUTHS}, {ELEVATIONS}]")
    return _resized(x.transpose(4, 3, 0, 1, 2).reshape(_VIEWS, *x.shape[:3]), form)


def _from_npz(path: str, form: Format, memory_bytes: float) -> tuple[np.ndarray, Identity]:
    """Reads an .npz. Returns the same."""

    def imgs(names: Sequence[str]) -> list[str]:
        return [name for name in names if name == "imgs"]

    x = read_arrays(f"data.source=cars3d:{path}", path, memory_bytes, imgs).get("imgs")
    if x is None or x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] != 3 or not x.size or len(x) % _VIEWS:
        content = "no `imgs`" if x is None else f"`imgs` of {x.dtype} {x.shape}"
        raise UserError(f"{path} has {content}: Cars3D's is uint8 [{_VIEWS} · models, height, width, 3]")
    _refuse_many(path, len(x), form, memory_bytes)
    by_view = _resized(x, form).reshape(_VIEWS, -1, *form.shape)
    return by_view.swapaxes(0, 1), of_arrays({"imgs": x})


def _resized(x: np.ndarray, form: Format) -> np.ndarray:
    return np.stack([images.fit(Image.fromarray(picture), form) for picture in x])
