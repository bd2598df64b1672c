"""Convolutions and resampling of images [B, H, W, C], written out where XLA's own are slow.

Pairs: [B, H, W/2, 2C] are the same images, with two neighbouring pixels of a row as one pixel with twice the channels.
A TPU stores channels in groups of 128 lanes and always moves whole groups, so feature maps of 64 channels take half the
bytes as pairs. Convolutions of pairs also multiply by zeros, but only by as many as there would be empty lanes.
"""

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sintrovae_jax.objectives import at_least_float32

_LAYOUT = ("NHWC", "HWIO", "NHWC")
Convolution = Callable[[jax.Array, jax.Array], jax.Array]  # (x [B, H, W, in], kernel [k, k, in, out]) -> [..., out]
_LANES = 128  # of a TPU's registers


def pool(x: jax.Array) -> jax.Array:
    """Means of 2×2 pixels. [B, H, W, C] -> [B, H/2, W/2, C]."""
    return _sums(x, x.shape[-1], 1 / 4)


def upsample(x: jax.Array) -> jax.Array:
    """Every pixel as 2×2 equal ones. [B, H, W, C] -> [B, 2H, 2W, C]."""
    return _copies(x, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _sums(x: jax.Array, channels: int, factor: float = 1.0) -> jax.Array:
    """Sums of 2×2 pixels, times a factor. x may hold pairs of pixels. [B, H, W, C] -> [B, H/2, W/2, channels].

    Computed as sums of slices, with one broadcast as the gradient: XLA fuses slices into their consumers, but for a
    reduction, or broadcasts of one axis after the other, it writes the large images once more, in float32. On a CPU it
    is a reduction, because XLA would recompute the input of the slices for each slice.
    """

    def sliced(x):
        total: jax.Array | float = 0.0
        for i in (0, 1):
            for j in (0, 1):
                start, stride = ((0, i, 0, j * channels), (1, 2, 1, 1)) if paired else ((0, i, j, 0), (1, 2, 2, 1))
                stop = (*x.shape[:3], start[3] + channels)
                total += at_least_float32(lax.slice(x, start, stop, stride))
        return total

    def reduced(x):
        b, h, w, c = x.shape
        return at_least_float32(x).reshape(b, h // 2, 2, w // 2, 2, c).sum((2, 4))

    paired = x.shape[-1] != channels
    total = sliced(x) if paired else lax.platform_dependent(x, cpu=reduced, default=sliced)
    return (factor * total).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _copies(x: jax.Array, channels: int) -> jax.Array:
    """The transpose of `_sums`: every pixel as 2×2 equal ones, as pairs if `channels` is twice the channels of x."""
    b, h, w, c = x.shape
    if c == channels:
        return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
    x = jnp.concatenate([x, x], -1)
    return jnp.broadcast_to(x[:, :, None], (b, h, 2, w, channels)).reshape(b, 2 * h, w, channels)


def _sums_backward(channels, factor, x, grad):
    del channels
    return (_copies(factor * grad, x.shape[-1]),)


def _copies_backward(channels, x, grad):
    del channels
    return (_sums(grad, x.shape[-1]),)


# The gradients need only the number of channels of x, so an empty slice is saved.
_sums.defvjp(lambda x, *static: (_sums(x, *static), x[:0]), _sums_backward)
_copies.defvjp(lambda x, *static: (_copies(x, *static), x[:0]), _copies_backward)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of stride 1 that keeps height and width.

    x: [B, H, W, in], kernel: [k, k, in, out], k odd. Returns [B, H, W, out]. A 1×1 convolution is a matrix product.
    """
    return x @ kernel[0, 0] if kernel.shape[:2] == (1, 1) else correlate(x, kernel, kernel.shape[0] // 2)


def _correlate(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def correlate(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """x [B, H, W, in], padded with `pad` zeros on every side, with kernel [k, k, in, out], pad < k, at stride 1.

    On a CPU it is written out, and so are its gradients: XLA's CPU compiler (seen in jaxlib 0.10.2) has fast kernels
    only for many channels in the forward layout. Other cases are two to a hundred times slower.
    """
    return lax.platform_dependent(
        x, kernel, cpu=lambda x, kernel: _on_cpu(x, kernel, pad), default=lambda x, kernel: _correlate(x, kernel, pad)
    )


def _correlate_forward(x, kernel, pad):
    return correlate(x, kernel, pad), (x, kernel)


def _correlate_backward(pad, inputs, grad):
    def for_cpu(x, kernel, grad):
        return _on_cpu(grad, _transposed(kernel), kernel.shape[0] - 1 - pad), _kernel_grad_on_cpu(x, grad, pad)

    def as_usual(x, kernel, grad):
        return jax.vjp(lambda x, kernel: _correlate(x, kernel, pad), x, kernel)[1](grad)

    return lax.platform_dependent(*inputs, grad, cpu=for_cpu, default=as_usual)


correlate.defvjp(_correlate_forward, _correlate_backward)


def _sum(parts: Iterable[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, parts)


def _transposed(kernel: jax.Array) -> jax.Array:
    """The kernel of the input's gradient: rotated by 180 degrees, with inputs and outputs swapped.

    The rotation reverses one flat axis, so that XLA does not recognise a transposed kernel: it would pass that to the
    convolution as a layout that has no fast kernel.
    """
    k, _, inputs, outputs = kernel.shape
    return kernel.reshape(k * k, inputs, outputs)[::-1].swapaxes(1, 2).reshape(k, k, outputs, inputs)


def _shifts(x: jax.Array, size: int, pad: int) -> list[jax.Array]:
    """The shifted parts of x [B, H, W, ...] that a kernel's size² weights are multiplied by."""
    x = jnp.pad(x, [(0, 0), (pad, pad), (pad, pad)] + [(0, 0)] * (x.ndim - 3))
    height, width = (side - size + 1 for side in x.shape[1:3])
    return [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]


def _on_cpu(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """`_correlate`, as matrix products if XLA's own convolution was measured to be slower."""
    (_, height, width, _), (size, _, inputs, outputs) = x.shape, kernel.shape
    if inputs == 1:
        return _from_one_channel(x, kernel, pad)
    if outputs == 1:
        return _to_one_channel(x, kernel, pad)
    if min(height, width) < size:  # XLA would treat the image as the kernel
        return _products_first(x, kernel, pad)
    return _correlate(x, kernel, pad)


def _from_one_channel(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """`_correlate` for a single input channel, as one fused loop over the outputs.

    A loop computes the two halves of the batch, because XLA never fuses a loop of several iterations into its
    consumers. Without it XLA would recompute the sum for each use, such as BatchNorm's mean, variance, output and
    gradient.
    """

    def summed(x):
        weights = kernel.reshape(-1, kernel.shape[-1])
        return _sum(part * k for part, k in zip(_shifts(x, kernel.shape[0], pad), weights, strict=True))

    batch: Any = x.shape[0]
    if not isinstance(batch, int) or batch % 2:  # a symbol, in an export for any number of images
        return summed(x)
    y = lax.map(summed, x.reshape(2, -1, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def _products_first(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """`_correlate` as one product with all weights of the kernel, followed by a sum of shifted parts."""
    (b, height, width, _), (size, _, inputs, outputs) = x.shape, kernel.shape
    products = x.reshape(-1, inputs) @ kernel.transpose(2, 0, 1, 3).reshape(inputs, -1)
    parts = _shifts(products.reshape(b, height, width, size * size, outputs), size, pad)
    return _sum(part[..., i, :] for i, part in enumerate(parts))


def _to_one_channel(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """`_correlate` for a single output channel, with planes [B, H, W] that are summed along rows, then columns."""
    (b, height, width, inputs), size = x.shape, kernel.shape[0]
    planes = (kernel.reshape(-1, inputs) @ x.reshape(-1, inputs).T).reshape(size, size, b, height, width)
    planes = jnp.pad(planes, ((0, 0), (0, 0), (0, 0), (pad, pad), (pad, pad)))
    across, down = (side + 2 * pad - size + 1 for side in (width, height))
    rows = _sum(planes[:, j, ..., j : j + across] for j in range(size))
    return _sum(rows[i, :, i : i + down] for i in range(size))[..., None]


def _kernel_grad_on_cpu(x: jax.Array, grad: jax.Array, pad: int) -> jax.Array:
    """The gradient of `_correlate` with respect to its kernel, [k, k, in, out]."""
    inputs, outputs = x.shape[-1], grad.shape[-1]
    size = x.shape[1] + 2 * pad - grad.shape[1] + 1
    if 1 < inputs <= 3:
        return _few_channels(x, grad, size, pad)
    if outputs <= 3:  # the same with the two images swapped, which rotates the kernel by 180 degrees
        return _few_channels(grad, x, size, size - 1 - pad)[::-1, ::-1].swapaxes(2, 3)
    # Images become channels, channels become images, and the gradient is the kernel.
    return _correlate(x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3), pad).transpose(1, 2, 0, 3)


def _few_channels(x: jax.Array, grad: jax.Array, size: int, pad: int) -> jax.Array:
    """The kernel's gradient as one product with all shifts of x, for an x of few channels."""
    x = jnp.pad(x.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = grad.shape[1:3]
    x = jnp.stack([x[:, :, i : i + height] for i in range(size)])
    x = jnp.stack([x[..., j : j + width] for j in range(size)], 1)
    flat = x.reshape(size * size * x.shape[2], -1) @ grad.reshape(-1, grad.shape[-1])
    return flat.reshape(size, size, x.shape[2], -1)


def padded(x: jax.Array) -> jax.Array:
    """[B, H, W, C] with a frame of zeros, one pixel wide."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _smoothed(kernel: jax.Array) -> jax.Array:
    """The sum of a kernel's four shifts by a pixel: [3, 3, in, out] -> [y, row, x, column, in, out], 2 of each axis."""
    shifts = [((a, 1 - a), (b, 1 - b), (0, 0), (0, 0)) for a in (0, 1) for b in (0, 1)]
    return _sum(jnp.pad(kernel, shift) for shift in shifts).reshape(2, 2, 2, 2, *kernel.shape[2:])


def _by_platform(**ways: Convolution) -> Convolution:
    """(x, kernel) -> [B, H, W, out], with one of several equivalent implementations for each platform.

    ways: {platform: implementation}, as in `lax.platform_dependent`. All are linear in x and in the kernel, so these
    two are all that a gradient needs to save.
    """

    @jax.custom_vjp
    def any_way(x, kernel):
        return lax.platform_dependent(x, kernel, **ways)

    def pull(way):
        return lambda x, kernel, grad: jax.vjp(way, x, kernel)[1](grad)

    def backward(inputs, grad):
        return lax.platform_dependent(*inputs, grad, **{name: pull(way) for name, way in ways.items()})

    any_way.defvjp(lambda x, kernel: (any_way(x, kernel), (x, kernel)), backward)
    return any_way


def _up_by_zeros(x: jax.Array, kernel: jax.Array) -> jax.Array:
    kernel = _smoothed(kernel).reshape(4, 4, *kernel.shape[2:])
    return lax.conv_general_dilated(x, kernel, (1, 1), [(2, 2)] * 2, (2, 2), dimension_numbers=_LAYOUT)


def _up_by_parts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    (b, h, w, _), (*_, inputs, outputs) = x.shape, kernel.shape
    parts = _smoothed(kernel).transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, inputs, 4 * outputs)
    y = correlate(padded(x), parts, 0).reshape(b, h + 1, w + 1, 2, 2, outputs)
    y = jnp.stack([y[:, :-1, :, 0], y[:, 1:, :, 1]], 2)  # [B, H, row, W + 1, column, out]
    y = jnp.stack([y[:, :, :, :-1, 0], y[:, :, :, 1:, 1]], 4)
    return y.reshape(b, 2 * h, 2 * w, outputs)


def _up_in_two_steps(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _correlate(upsample(x), kernel, 1)


_up = _by_platform(tpu=_up_by_zeros, cpu=_up_by_parts, default=_up_in_two_steps)


def convolve_up(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve(upsample(x), kernel)` for a 3×3 kernel, on CPUs and TPUs with 4 products per pixel instead of 9.

    Each of the four output pixels of an input pixel depends on 2×2 pixels of x, through its own 2×2 kernel. A CPU
    computes the four parts and interleaves them. On a TPU that would move many times the bytes of the convolution, so a
    TPU uses the fused transposed convolution of the paper's code, and skips the zeros between pixels. A GPU is a tenth
    faster with the two separate steps (launch/README.md). [B, H, W, in] -> [B, 2H, 2W, out].
    """
    return _up(x, kernel)


def _half_by_stride(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=_LAYOUT)


def _half_by_blocks(x: jax.Array, kernel: jax.Array) -> jax.Array:
    (b, h, w, inputs), outputs = x.shape, kernel.shape[-1]
    parts = kernel.reshape(2, 2, 2, 2, inputs, outputs).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * inputs, outputs)
    x = padded(x).reshape(b, h // 2 + 1, 2, w // 2 + 1, 2, inputs)
    return correlate(x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2 + 1, w // 2 + 1, 4 * inputs), parts, 0)


_half = _by_platform(tpu=_half_by_stride, default=_half_by_blocks)


def convolve_half(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 4×4 convolution with stride 2 and padding 1: [B, H, W, in], [4, 4, in, out] -> [B, H/2, W/2, out].

    Computed at stride 1, with blocks of 2×2 pixels as single pixels and a kernel of 2×2 such blocks; on a TPU directly.
    """
    return _half(x, kernel)


def convolve_down(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`pool(convolve(x, kernel))` for a 3×3 kernel, with 4 products per pixel instead of 9, at stride 2.

    [B, H, W, in] -> [B, H/2, W/2, out].
    """
    return convolve_half(x, _smoothed(kernel / 4).reshape(4, 4, *kernel.shape[2:]))


def room_for_two(channels: int) -> bool:
    """Whether two pixels with this many channels fit in the TPU lanes that a single pixel takes."""
    return 2 * channels <= _LANES


def pairs(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W/2, 2C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w // 2, 2 * c)


def single(x: jax.Array, channels: int) -> jax.Array:
    """Pixels, or pairs of them, as single pixels [B, H, W, channels]."""
    return x.reshape(*x.shape[:2], -1, channels)


def pool_pairs(x: jax.Array) -> jax.Array:
    """`pool` from pairs to pixels: [B, H, W/2, 2C] -> [B, H/2, W/2, C]."""
    return _sums(x, x.shape[-1] // 2, 1 / 4)


def upsample_pairs(x: jax.Array) -> jax.Array:
    """`upsample` from pixels to pairs: [B, H, W, C] -> [B, 2H, W, 2C]."""
    return _copies(x, 2 * x.shape[-1])


def convolve_pairs(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve` from pairs to pairs, with a 3×3 or 5×5 kernel. Each pair depends on itself and its two neighbours."""
    rows, columns, inputs, outputs = kernel.shape
    lows = [2 - columns // 2 + i for i in (0, 1)]  # how many of six pixels precede the kernel, for each of the pair
    parts = [jnp.pad(kernel, ((0, 0), (low, 6 - columns - low), (0, 0), (0, 0))) for low in lows]
    kernel = jnp.stack(parts, 3).reshape(rows, 3, 2 * inputs, 2 * outputs)
    return lax.conv_general_dilated(x, kernel, (1, 1), [(rows // 2,) * 2, (1, 1)], dimension_numbers=_LAYOUT)


def convolve_up_pairs(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve_up` from pixels to pairs: [B, H, W, in] -> [B, 2H, W, 2·out]. A pixel becomes a pair, in two rows."""
    inputs, outputs = kernel.shape[2:]
    one, two, three, four = jnp.split(_smoothed(kernel).reshape(4, 4, inputs, outputs), 4, axis=1)
    zero = jnp.zeros_like(one)
    parts = [jnp.concatenate(columns, 1) for columns in ((one, three, zero), (zero, two, four))]
    kernel = jnp.stack(parts, 3).reshape(4, 3, inputs, 2 * outputs)
    return lax.conv_general_dilated(x, kernel, (1, 1), [(2, 2), (1, 1)], (2, 1), dimension_numbers=_LAYOUT)
