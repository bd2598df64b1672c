"""The Inception-v3 network of FID and KID (docs/method.md, "Evaluation of images").

It is the TensorFlow graph of 2015-12-05 (Szegedy et al. 2016), with the weights and names that pytorch-fid publishes,
and with the graph's deviations from the paper. `inception_weights` finds and reads the weights.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sintrovae_jax.errors import UserError

# pytorch-fid's weights. The file name has the checksum's first digits; the others are from projects that pin it.
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
Params = dict[str, dict[str, np.ndarray]]
_SIDE = 299
_EPSILON = 1e-3  # of all BatchNorms


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution with ReLU. `name` is the published one within its block, `size` is height and width."""

    name: str
    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


def _average(x: jax.Array) -> jax.Array:
    """Means of 3×3 pixels. As in TensorFlow, the padding at the border is not counted."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _maximum(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), padding="SAME")


def _halve(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2))


# A part of the network: the items of a list are applied in sequence, the branches of a tuple in parallel, with their
# outputs concatenated.
Step = Conv | Callable[[jax.Array], jax.Array] | list["Step"] | tuple["Step", ...]

_STEM: list[Step] = [  # 299 -> 35 pixels per side
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    _halve,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    _halve,
]


def _at_35(pooled: int) -> Step:
    double: list[Step] = [
        Conv("branch3x3dbl_1", 64),
        Conv("branch3x3dbl_2", 96, (3, 3)),
        Conv("branch3x3dbl_3", 96, (3, 3)),
    ]
    return (
        Conv("branch1x1", 64),
        [Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))],
        double,
        [_average, Conv("branch_pool", pooled)],
    )


def _35_to_17() -> Step:
    return (
        Conv("branch3x3", 384, (3, 3), 2, "VALID"),
        [
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
        ],
        _halve,
    )


def _at_17(width: int) -> Step:
    return (
        Conv("branch1x1", 192),
        [Conv("branch7x7_1", width), Conv("branch7x7_2", width, (1, 7)), Conv("branch7x7_3", 192, (7, 1))],
        [
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, (7, 1)),
            Conv("branch7x7dbl_3", width, (1, 7)),
            Conv("branch7x7dbl_4", width, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ],
        [_average, Conv("branch_pool", 192)],
    )


def _17_to_8() -> Step:
    return (
        [Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")],
        [
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
        ],
        _halve,
    )


def _at_8(pool: Callable[[jax.Array], jax.Array]) -> Step:
    return (
        Conv("branch1x1", 320),
        [Conv("branch3x3_1", 384), (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1)))],
        [
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ],
        [pool, Conv("branch_pool", 192)],
    )


_BLOCKS: dict[str, Step] = {
    "": _STEM,
    "Mixed_5b.": _at_35(32),
    "Mixed_5c.": _at_35(64),
    "Mixed_5d.": _at_35(64),
    "Mixed_6a.": _35_to_17(),
    "Mixed_6b.": _at_17(128),
    "Mixed_6c.": _at_17(160),
    "Mixed_6d.": _at_17(160),
    "Mixed_6e.": _at_17(192),
    "Mixed_7a.": _17_to_8(),
    "Mixed_7b.": _at_8(_average),
    "Mixed_7c.": _at_8(_maximum),  # as in the graph; the paper averages here, as in all other pools of stride 1
}


def _run(step: Step, x: jax.Array, block: str) -> jax.Array:
    """Applies a step of a block to x [N, H, W, C]. Its convolutions become parameters of the calling module."""
    match step:
        case Conv():
            # Full float32: by default a TPU multiplies in bfloat16 and a GPU in TF32, and FID would depend on it.
            conv = functools.partial(nn.Conv, precision=lax.Precision.HIGHEST, name=block + step.name)
            return nn.relu(conv(step.features, step.size, step.stride, step.padding)(x))
        case list():
            for part in step:
                x = _run(part, x, block)
            return x
        case tuple():
            return jnp.concatenate([_run(branch, x, block) for branch in step], -1)
        case _:
            return step(x)


def _prepared(x: jax.Array) -> jax.Array:
    """Images [N, H, W, 1 or 3] in [0, 1] -> [N, 299, 299, 3] in [-1, 1].

    Bilinear with half-pixel centres, and without antialiasing even when shrinking, as in pytorch-fid.
    """
    n, _, _, channels = x.shape
    x = jax.image.resize(x, (n, _SIDE, _SIDE, channels), "bilinear", antialias=False)
    return 2 * jnp.broadcast_to(x, (n, _SIDE, _SIDE, 3)) - 1


class InceptionV3(nn.Module):
    """Images float32 [N, H, W, C] in [0, 1], C 1 (grey) or 3 -> float32 [N, 2048], the last average pool's features.

    The parameters are {published name: {kernel [height, width, in, out], bias [out]}}, as `from_published` makes them,
    with each BatchNorm folded into the convolution before it. Nothing is trained, and there is no other state.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _prepared(x)
        for block, steps in _BLOCKS.items():
            x = _run(steps, x, block)
        return x.mean((1, 2))


@functools.cache
def _kernels() -> dict[str, tuple[int, ...]]:
    """{published name of a convolution: its kernel's shape [height, width, in, out]}."""
    params = jax.eval_shape(lambda: InceptionV3().init(jax.random.key(0), jnp.zeros((1, _SIDE, _SIDE, 3))))["params"]
    return {name: conv["kernel"].shape for name, conv in params.items()}


def published() -> dict[str, tuple[int, ...]]:
    """{name: shape} of the published arrays that the network is made of."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (height, width, inputs, outputs) in _kernels().items():
        shapes[f"{name}.conv.weight"] = (outputs, inputs, height, width)
        shapes |= {f"{name}.bn.{part}": (outputs,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes


def _problem(name: str, array: np.ndarray | None, shape: tuple[int, ...]) -> str | None:
    """Why an array cannot be the published one of this name and shape, or None if it can."""
    if array is None:
        return f"{shape} is missing"
    if array.shape != shape:
        return f"is {array.shape}, not {shape}"
    if not np.issubdtype(array.dtype, np.floating):
        return f"{shape} is {array.dtype}, not floating point"
    if not np.isfinite(array).all():
        return f"{shape} is not finite"
    return f"{shape} is negative" if name.endswith("running_var") and array.min() < 0 else None


def verify(arrays: dict[str, np.ndarray]) -> None:
    """Raises `UserError`, naming the first few, if arrays are missing or unfit."""
    wanted = published()
    checked = {name: _problem(name, arrays.get(name), shape) for name, shape in wanted.items()}
    problems = [f"{name} {problem}" for name, problem in checked.items() if problem]
    if problems:
        listed = ", ".join(problems[:3]) + (", …" if len(problems) > 3 else "")
        raise UserError(
            f"these are not the weights of pytorch-fid's Inception: {len(problems)} of {len(wanted)} arrays are "
            f"missing or unfit: {listed}; the right ones are at {URL}"
        )


def _folded(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """A convolution's kernel and bias, with the BatchNorm after it folded in.

    With running averages, BatchNorm of a channel is s·(y - mean) + bias, with s = weight / √(var + ε). y is linear in
    the kernel, so s goes into the kernel and the rest into the bias. Otherwise XLA would run 94 more passes over
    activations, or scale the kernels at each call.
    """
    scale, bias, mean, var = (
        arrays[f"{name}.bn.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = scale / np.sqrt(var + _EPSILON)
    kernel = arrays[f"{name}.conv.weight"].astype(np.float64) * scale[:, None, None, None]
    folded = {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias - mean * scale}
    return {part: np.ascontiguousarray(array, np.float32) for part, array in folded.items()}


def from_published(arrays: dict[str, np.ndarray]) -> Params:
    """The parameters of `InceptionV3`, float32, from arrays under pytorch-fid's names. Others, such as fc.*, are
    ignored.

    Raises `UserError`, naming the first few, if arrays are missing or unfit.
    """
    verify(arrays)
    return {name: _folded(arrays, name) for name in _kernels()}
