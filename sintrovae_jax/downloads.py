"""Finding files of weights that a user has downloaded. This module downloads nothing."""

import os
from collections.abc import Sequence
from pathlib import Path

from sintrovae_jax import files
from sintrovae_jax.errors import UserError
from sintrovae_jax.official import pth


def find(key: str, configured: str, variable: str, names: Sequence[str], missing: str) -> Path:
    """The file that `configured`, the value of the config's key, names; or the environment variable; or a usual place.

    The usual places are this project's cache, for the published file, which has the first of `names`, and for an .npz;
    and torch's cache, for any of the names. Raises `UserError` if there is no file: `missing`, and where to put it.
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
