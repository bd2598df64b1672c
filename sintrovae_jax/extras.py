"""The packages that the extras of this package install, and checks that they are installed."""

import importlib.util
from collections.abc import Sequence

from sintrovae_jax.errors import UserError

# Import names. Code that needs these packages imports them late, so that the rest works without them.
_TRAIN = (
    *("clu", "jinja2", "matplotlib", "PIL", "simplejpeg", "sklearn"),
    *("tensorboard", "tensorflow", "tensorflow_datasets", "tqdm"),
)
_REPORT = ("jinja2", "matplotlib", "PIL")
_EXPLORE = ("gradio", "matplotlib", "PIL", "simplejpeg")
_HUB = ("huggingface_hub",)
_WANDB = ("wandb",)


def need_train() -> None:
    """Raises `UserError`, naming the extra, if a package of `train` is not installed. Imports nothing."""
    _need("train", _TRAIN)


def need_report() -> None:
    """The same for the packages of `train` that reports need."""
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
