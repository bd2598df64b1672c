"""What the extra `train` of the package brings, and whether it is installed."""

import importlib.util

from sintrovae_jax.errors import UserError

# By the names that are imported. What needs them imports them late, so that the rest works without.
_TRAIN = (
    *("clu", "jinja2", "matplotlib", "PIL", "simplejpeg", "sklearn"),
    *("tensorboard", "tensorflow", "tensorflow_datasets", "tqdm"),
)


_REPORT = ("jinja2", "matplotlib", "PIL")


def need_train() -> None:
    """Raises `UserError`, naming the extra, if a part of it is not installed. Imports nothing."""
    _need(_TRAIN)


def need_report() -> None:
    """The same for the parts that reports are made with."""
    _need(_REPORT)


def _need(names: tuple[str, ...]) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(
            f"{', '.join(missing)} {are} not installed: install the extra `train`, pip install '.[train]' in a clone"
        )
