"""What the extras of the package bring, and whether it is installed."""

import importlib.util
from collections.abc import Sequence

from sintrovae_jax.errors import UserError

# By the names that are imported. What needs them imports them late, so that the rest works without.
_TRAIN = (
    *("clu", "jinja2", "matplotlib", "PIL", "simplejpeg", "sklearn"),
    *("tensorboard", "tensorflow", "tensorflow_datasets", "tqdm"),
)
_REPORT = ("jinja2", "matplotlib", "PIL")
_EXPLORE = ("gradio", "matplotlib", "PIL", "simplejpeg")
_HUB = ("huggingface_hub",)
_WANDB = ("wandb",)


def need_train() -> None:
    """Raises `UserError`, naming the extra, if a part of `train` is not installed. Imports nothing."""
    _need("train", _TRAIN)


def need_report() -> None:
    """The same for the parts of `train` that reports are made with."""
    _need("train", _REPORT)


def need_explore() -> None:
    """The same for `explore`."""
    _need("explore", _EXPLORE)


def need_hub() -> None:
    """The same for `hub`."""
    _need("hub", _HUB)


def need_wandb() -> None:
    """The same for `wandb`."""
    _need("wandb", _WANDB)


def _need(extra: str, names: Sequence[str]) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        how = f"install the extra `{extra}`, pip install '.[{extra}]' in a clone"
        raise UserError(f"{', '.join(missing)} {are} not installed: {how}")
