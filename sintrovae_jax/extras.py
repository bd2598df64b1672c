"""What the extra `train` of the package brings, and whether it is installed."""

import importlib.util

from sintrovae_jax.errors import UserError

# By the names that are imported. What needs them imports them late, so that the rest works without.
_TRAIN = (
    *("clu", "jinja2", "matplotlib", "PIL", "simplejpeg", "sklearn"),
    *("tensorboard", "tensorflow", "tensorflow_datasets", "tqdm"),
)


_WANDB = ("wandb",)
_REPORT = ("jinja2", "matplotlib", "PIL")


def need_train() -> None:
    """Raises `UserError`, naming the extra, if a part of it is not installed. Imports nothing."""
    _need(_TRAIN)


def need_report() -> None:
    """The same for the parts that reports are made with."""
    _need(_REPORT)


def need_wandb() -> None:
    """Raises `UserError`, naming the extra, if wandb is not installed."""
    _need(_WANDB, "wandb")


def _need(names: tuple[str, ...], extra: str = "train") -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        how = f"install the extra `{extra}`, pip install '.[{extra}]' in a clone"
        raise UserError(f"{', '.join(missing)} {are} not installed: {how}")
