"""Pictures that visitors of the page upload, converted like training data.

Uploaded files are not trusted: each is decoded in a separate process, with limits on memory and time (`data.readers`).
"""

import os
from pathlib import Path

import numpy as np

from sintrovae_jax.data.images import read_format
from sintrovae_jax.data.readers import Readers
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import Model

MAX_BYTES = 2**25  # of a file
_MAX_PIXELS = 50_000_000  # of a picture: enough for any camera; more would need too much memory on a small server


class Uploads:
    """Reads pictures for a model. May be used from several threads at once."""

    def __init__(self, model: Model) -> None:
        data, size = model.config.data, model.shape[0]
        self.form = read_format(data)._replace(size=size, max_pixels=min(data.max_pixels, _MAX_PIXELS))
        self._readers = Readers(self.form, 1)

    @property
    def conversion(self) -> str:
        """A sentence that describes how a picture is converted."""
        form = self.form
        cut = "cut to the squares in their middle, " if form.crop else ""
        grey = ", made grey" if form.channels == 1 else ""
        back = {(255,) * 3: "white", (0,) * 3: "black"}.get(form.background, f"RGB {form.background}")
        return (
            f"Uploaded pictures are {cut}resized to {form.size}×{form.size}{grey}, and laid on {back} where they are "
            "transparent, as training data are."
        )

    def read(self, path: str | os.PathLike[str]) -> np.ndarray:
        """A file -> float32 [H, W, C] in [0, 1], with the model's shape. Raises `UserError` if it cannot be read."""
        try:
            size = Path(path).stat().st_size
        except (OSError, ValueError) as error:
            raise UserError(f"the picture cannot be read: {error}") from None
        if size > MAX_BYTES:
            raise UserError(f"the file has {size:,} bytes, more than {MAX_BYTES:,}")
        pixels = np.empty((1, *self.form.shape), np.uint8)
        wrong = self._readers.read([os.fspath(path)], pixels)
        if wrong:
            raise UserError(f"the picture cannot be read: {wrong[0]}")
        return pixels[0].astype(np.float32) / 255
