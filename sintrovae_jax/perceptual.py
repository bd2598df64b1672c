"""LORD's reconstruction loss: L1 of pixels, and L1 of VGG-16 features.

See docs/method.md, "Translation networks". Weights are read from the file that torchvision publishes (`FILE`, which
needs torch) or from an .npz of arrays with the same names and shapes. Nothing is ever downloaded.
"""

import functools
import math
import operator
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sintrovae_jax import downloads, npy
from sintrovae_jax.errors import UserError
from sintrovae_jax.models.convolution import correlate
from sintrovae_jax.objectives import at_least_float32
from sintrovae_jax.official import pth

FILE = "vgg16-397923af.pth"
VARIABLE = "SINTROVAE_VGG16"  # environment variable with the path of the weights, if the config has none
WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # of the convolutions in each stage
SMALLEST = 32  # pixels per side: the smallest image that five halvings leave non-empty
_COMPARED = ((0, 2), (1, 2), (2, 2), (3, 3))  # (stage, convolution): relu1_2, relu2_2, relu3_2, relu4_3; and pool5

Layers = list[tuple[np.ndarray, np.ndarray]]  # kernels [3, 3, in, out] and biases [out], in the order of use


def published() -> dict[str, tuple[int, ...]]:
    """{name: shape} of the arrays to read from a file: convolutions [out, in, 3, 3], and their biases."""
    shapes: dict[str, tuple[int, ...]] = {}
    place, inputs = 0, 3
    for stage in WIDTHS:
        for width in stage:
            shapes |= {f"features.{place}.weight": (width, inputs, 3, 3), f"features.{place}.bias": (width,)}
            place, inputs = place + 2, width  # a ReLU after each
        place += 1  # the pooling
    return shapes


def features(layers: Layers, x: jax.Array) -> list[jax.Array]:
    """relu1_2, relu2_2, relu3_2, relu4_3 and pool5, [B, h, w, c], of images [B, H, W, 1 or 3] in [0, 1].

    Grey is repeated to three channels; no ImageNet normalisation.
    """
    x = at_least_float32(x) if x.shape[-1] == 3 else at_least_float32(x).repeat(3, -1)
    out, remaining = [], iter(layers)
    for stage, widths in enumerate(WIDTHS):
        for number in range(1, len(widths) + 1):
            kernel, bias = next(remaining)
            x = nn.relu(correlate(x, kernel, 1) + bias)
            if (stage, number) in _COMPARED:
                out.append(x)
        x = nn.max_pool(x, (2, 2), (2, 2))
    return [*out, x]


def error(layers: Layers, x: jax.Array, x_hat: jax.Array) -> jax.Array:
    """The loss of x, x̂ [B, H, W, C]: the mean |x - x̂| of pixels, plus the mean for each of the five features, times the
    number of an image's dimensions. Its scale is therefore the same as for the other errors, which are sums. Returns
    [B].
    """
    pairs = [(x, x_hat), *zip(features(layers, x), features(layers, x_hat), strict=True)]
    means = [jnp.abs(at_least_float32(a) - at_least_float32(b)).mean((1, 2, 3)) for a, b in pairs]
    return math.prod(x.shape[1:]) * functools.reduce(operator.add, means)


def find(configured: str) -> Path:
    """The file of weights (`downloads.find`). configured: the value of objective.vgg. Raises `UserError`."""
    missing = f"objective.reconstruction=perceptual needs VGG-16's weights, torchvision's {FILE}"
    return downloads.find("objective.vgg", configured, VARIABLE, [FILE], missing)


def read(path: Path) -> Layers:
    """The layers of a file. Raises `UserError` if it cannot be read, is damaged, or holds something else."""
    load = npy.load_npz if path.suffix.lower() == ".npz" else pth.arrays
    try:
        arrays = load(path.read_bytes())
    except UserError as error:
        raise UserError(f"{path}: {error}, or give an .npz") from None
    except Exception as error:  # whatever numpy, zipfile, pickle and torch raise for other files than theirs
        raise UserError(f"{path} holds no VGG-16, or is damaged ({type(error).__name__})") from None
    for name, shape in published().items():
        if name not in arrays or arrays[name].shape != shape:
            raise UserError(f"{path} holds no VGG-16: {name} of shape {shape} is missing or unfit")
    floats = {name: arrays[name].astype(np.float32) for name in published()}
    return [
        (array.transpose(2, 3, 1, 0), floats[name.replace("weight", "bias")])
        for name, array in floats.items()
        if name.endswith("weight")
    ]
