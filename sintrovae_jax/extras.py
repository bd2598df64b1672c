"""What the extra `train` of the package brings, and whether it is installed."""

import importlib.util

from sintrovae_jax.errors import UserError

# By the names that are imported. What needs them imports them late, so that the rest works without.
_TRAIN = (
    *("clu", "matplotlib", "PIL", "simplejpeg", "sklearn"),
    *("tensorboard", "tensorflow", "tensorflow_datasets", "tqdm"),
)


def need_train() -> None:
    """Raises `UserError`, naming the extra, if a part of it is not installed. Imports nothing."""
    missing = [name for name in _TRAIN if importlib.util.find_spec(name) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{', '.join(missing)} {are} not installed: install the extra `train`, pip install '.[train]' in a clone"
        )
