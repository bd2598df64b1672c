"""Cars3D (Reed et al. 2015): 183 car models seen from 24 azimuths and 4 elevations. Class: model; content: view.

Two layouts are published, and either will do:

    a folder of .mat files, one a model, each with `im`, uint8 [height, width, 3, 24 azimuths, 4 elevations]
    an .npz with `imgs`, uint8 [4 · 24 · models, height, width, 3], models fastest, then azimuths, then elevations
"""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from PIL import Image

from sintrovae_jax.data import images
from sintrovae_jax.data.identity import Identity, of_arrays, of_file
from sintrovae_jax.data.images import Format
from sintrovae_jax.data.sources import Arrays, labelled
from sintrovae_jax.errors import UserError
from sintrovae_jax.parallel import first_line

AZIMUTHS, ELEVATIONS = 24, 4
_VIEWS = AZIMUTHS * ELEVATIONS
_HELD_OUT = 0.11  # of the models: 20 of 183, as many as LORD's split holds out


def build(path: str, form: Format) -> Arrays:
    """The source of all views, in memory, resized to the format. Some models, with all their views, are held out.

    Raises `UserError` if the path is neither layout, or a file of it is damaged.
    """
    views, identity = _from_folder(path, form) if tf.io.gfile.isdir(path) else _from_npz(path, form)
    held_out = np.random.default_rng(0).permutation(len(views))[: max(1, round(_HELD_OUT * len(views)))]
    test = np.isin(np.arange(len(views)), held_out)
    if test.all():
        raise UserError(f"{path} has one model alone: there is none to hold out")
    models, view = np.arange(len(views)).repeat(_VIEWS), np.tile(np.arange(_VIEWS), len(views))
    return labelled(views.reshape(-1, *form.shape), test.repeat(_VIEWS), models, view, identity)


def _from_folder(path, form):
    """Views [models, 96, *shape], azimuths fastest, of a folder of .mat files, and their identity."""
    names = sorted(name for name in tf.io.gfile.listdir(path) if name.endswith(".mat"))
    if not names:
        raise UserError(f"data.source=cars3d:{path}: the folder has no .mat files, one for each car model")
    with ThreadPoolExecutor() as pool:
        read = list(pool.map(lambda name: _one_model(f"{path}/{name}", form), names))
    views, marks = zip(*read, strict=True)
    return np.stack(views), Identity("files", dict(zip(names, marks, strict=True)))


def _one_model(path, form):
    from scipy.io import loadmat

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            content = file.read()
        x = loadmat(io.BytesIO(content), variable_names=["im"]).get("im")
    except Exception as error:  # scipy raises all kinds of errors for other files
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    if x is None or x.dtype != np.uint8 or x.ndim != 5 or x.shape[2:] != (3, AZIMUTHS, ELEVATIONS):
        found = "no `im`" if x is None else f"`im` of {x.dtype} {x.shape}"
        raise UserError(f"{path} has {found}: Cars3D's is uint8 [height, width, 3, {AZIMUTHS}, {ELEVATIONS}]")
    return _resized(x.transpose(4, 3, 0, 1, 2).reshape(_VIEWS, *x.shape[:3]), form), of_file(content)


def _from_npz(path, form):
    """The same from an .npz."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file, np.load(file) as stored:
            x = stored.get("imgs")
    except Exception as error:  # numpy, zipfile and zlib raise all kinds of errors for other files
        raise UserError(f"data.source=cars3d:{path} cannot be read: {first_line(error)}") from None
    if x is None or x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] != 3 or not len(x) or len(x) % _VIEWS:
        content = "no `imgs`" if x is None else f"`imgs` of {x.dtype} {x.shape}"
        raise UserError(f"{path} has {content}: Cars3D's is uint8 [{_VIEWS} · models, height, width, 3]")
    by_view = _resized(x, form).reshape(_VIEWS, -1, *form.shape)
    return by_view.swapaxes(0, 1), of_arrays({"imgs": x})


def _resized(x, form):
    return np.stack([images.fit(Image.fromarray(picture), form) for picture in x])
