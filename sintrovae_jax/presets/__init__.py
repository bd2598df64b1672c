"""Common parts of similar recipes, as functions that return a config to change. Recipes are in configs/."""

from collections.abc import Callable

from ml_collections import ConfigDict


def steps_of(epochs: float, images: int, batch_size: int, substeps: int) -> int:
    """The number of steps for `epochs` passes over `images` training images, rounded to a multiple of `substeps`."""
    return round(epochs * images / batch_size / substeps) * substeps


def set_lengths(
    config: ConfigDict, *, images: int, batch_size: int, epochs: int, substeps: int
) -> Callable[[float], int]:
    """Sets the batch size, the steps, and how often training saves, logs and draws. Returns a function epochs -> steps.

    images: the size of the training split, to compute steps from epochs. Lengths are multiples of `substeps`.
    """

    def steps(epochs: float) -> int:
        return steps_of(epochs, images, batch_size, substeps)

    config.train.batch_size = batch_size
    config.train.substeps = substeps
    config.train.steps = steps(epochs)
    config.checkpoint.every = steps(max(1, epochs // 50))
    config.log.every = 50 * substeps
    config.log.figures_every = steps(max(1, epochs // 25))
    return steps
