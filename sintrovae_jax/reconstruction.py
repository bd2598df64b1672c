"""The reconstruction error that a config names, and the network weights that it may need."""

import functools
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from sintrovae_jax import objectives, perceptual
from sintrovae_jax.arrays import Tree


def weights(objective: ConfigDict) -> Tree:
    """The arrays that the error of `config.objective` needs: VGG-16's for the perceptual error, () for all others.

    A step takes them as an argument, so that they are read once and are not constants of the compiled program. Raises
    `UserError` if they are missing.
    """
    return perceptual.read(perceptual.find(objective.vgg)) if objective.reconstruction == "perceptual" else ()


def error(name: str, weights: Tree = ()) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The error with this name (`config.objective.reconstruction`): a function (x, x̂ [B, ...]) -> [B]."""
    if name == "perceptual":
        return functools.partial(perceptual.error, weights)
    return objectives.RECONSTRUCTION_ERRORS[name]
