"""Finding the files of weights that a user has downloaded. Nothing is downloaded here."""

import os
from collections.abc import Sequence
from pathlib import Path

from sintrovae_jax import files
from sintrovae_jax.errors import UserError
from sintrovae_jax.official import pth


def find(key: str, configured: str, variable: str, names: Sequence[str], missing: str) -> Path:
    """A file: `configured`, the value of a config's key, else what the environment variable names, else a usual place.

    Usual places are this project's cache, for an .npz and for the published file, whose name is the first of `names`,
    and torch's, for any of the names. Raises `UserError` if there is none: `missing`, and where to put or name it.
    """
    ours = files.user_cache() / "sintrovae_jax" / names[0]
    for source, value in ((key, configured), (f"${variable}", os.environ.get(variable))):
        if value:
            path = files.place(value)
            if not path.is_file():
                raise UserError(f"{source}={value}: there is no such file. {missing}")
            return path
    for path in (ours.with_suffix(".npz"), ours, *(pth.hub() / name for name in names)):
        if path.is_file():
            return path
    raise UserError(f"{missing}: put its path in {key} or ${variable}, or the file into {ours.parent}")
