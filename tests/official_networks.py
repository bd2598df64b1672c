"""The official networks in numpy, float64, on tensors of the official names and layout.

Written from the description in docs/method.md alone ("2D densities" to "Style-based networks", "Official checkpoints"),
NCHW throughout, so that a mistake in the conversion shows.
`*_shapes` are the tensors of a checkpoint, written out by hand as well.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def random(shapes: dict, seed: int = 0) -> dict:
    """Tensors of these shapes, away from where training starts; variances positive, counters whole, blurs as ever."""
    rng, out = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        out[name] = rng.normal(size=shape, scale=0.3).astype(np.float32)
        if name.endswith("running_var"):
            out[name] = np.exp(out[name])
        elif name.endswith("num_batches_tracked"):
            out[name] = np.array(rng.integers(1, 1000))
        elif name.endswith("blur.weight"):
            out[name] = np.broadcast_to(np.float32(BLUR), shape).copy()
        elif name == "dlatent_avg.buff":
            out[name][:] = out[name][0]
    return out


# --- shapes -----------------------------------------------------------------------------------------------------------


def mlp_shapes(width=7, z=2):
    out = {"decoder.loggamma": ()}
    for network, first, last in (("encoder", 2, 2 * z), ("decoder", z, 2)):
        for layer in ("input", "hidden_1", "hidden_2", "hidden_3", "output"):
            shape = (last if layer == "output" else width, first if layer == "input" else width)
            out |= {f"{network}.main.{layer}.weight": shape, f"{network}.main.{layer}.bias": shape[:1]}
    return out


def _norm(name, width):
    out = {f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return out | {f"{name}.num_batches_tracked": ()}


def _block(name, inputs, width):
    out = {f"{name}.conv_expand.weight": (width, inputs, 1, 1)} if inputs != width else {}
    out |= {f"{name}.conv1.weight": (width, inputs, 3, 3), f"{name}.conv2.weight": (width, width, 3, 3)}
    return out | _norm(f"{name}.bn1", width) | _norm(f"{name}.bn2", width)


def conv_shapes(a, b, *, size, colours, z, target=False, cond_dim=0):
    """Of the networks of two widths."""
    flat = b * (size // 4) ** 2
    out = {"encoder.main.0.weight": (a, colours, 5, 5)} | _norm("encoder.main.1", a)
    out |= _block(f"encoder.main.res_in_{size // 2}", a, b) | _block(f"encoder.main.res_in_{size // 4}", b, b)
    out |= {"encoder.fc.weight": (2 * z, flat + cond_dim), "encoder.fc.bias": (2 * z,)}
    for decoder in ("decoder", "target_decoder")[: 1 + target]:
        out |= {f"{decoder}.fc.0.weight": (flat, z + cond_dim), f"{decoder}.fc.0.bias": (flat,)}
        out |= _block(f"{decoder}.main.res_in_4", b, b) | _block(f"{decoder}.main.res_in_8", b, a)
        out |= _block(f"{decoder}.main.res_in_16", a, a)
        out |= {f"{decoder}.main.predict.weight": (colours, a, 5, 5), f"{decoder}.main.predict.bias": (colours,)}
    return out


def _dense(name, inputs, width):
    return {f"{name}.weight": (width, inputs), f"{name}.bias": (width,)}


def cloud_shapes(channels, hidden, decoder, *, points, z):
    out = {}
    for i, (inputs, width) in enumerate(zip((3, *channels), channels, strict=False)):
        out |= {f"encoder.conv.{3 * i}.weight": (width, inputs, 1)} | _norm(f"encoder.conv.{3 * i + 2}", width)
    out |= _dense("encoder.fc.0", channels[-1], hidden)
    out |= _dense("encoder.mu_layer", hidden, z) | _dense("encoder.std_layer", hidden, z)
    for i, (inputs, width) in enumerate(zip((z, *decoder), (*decoder, 3 * points), strict=True)):
        out |= _dense(f"decoder.model.{2 * i}", inputs, width)
    return out


def style_shapes(channels, z, copies=True):
    """channels: of the blocks, finest first; the last two alike, as where the release's widths end."""
    count, out = len(channels), {"dlatent_avg.buff": (2 * len(channels), z)}
    for s in ("", "_s")[: 1 + copies]:
        for i in range(3):
            out |= _dense(f"mapping_tl{s}.map_blocks.{i}.fc", z, 2 * z if i == 2 else z)
        for i in range(8):
            out |= _dense(f"mapping_fl{s}.map_blocks.{i}.fc", z, z)
        for i, a in enumerate(channels):
            b, name = channels[min(i + 1, count - 1)], f"discriminator{s}.encode_block.{i}"
            out |= {f"discriminator{s}.from_rgb.{i}.from_rgb.weight": (a, 3, 1, 1)}
            out |= {f"discriminator{s}.from_rgb.{i}.from_rgb.bias": (a,), f"{name}.blur.weight": (a, 1, 3, 3)}
            out |= {f"{name}.conv_1.weight": (a, a, 3, 3), f"{name}.conv_2.weight": (b, a, 3, 3)}
            out |= {f"{name}.bias_1": (1, a, 1, 1), f"{name}.bias_2": (1, b, 1, 1)}
            out |= _dense(f"{name}.style_1", 2 * a, z) | _dense(f"{name}.style_2", 2 * b, z)
        out |= {f"generator{s}.const": (1, channels[-1], 4, 4)}
        before = channels[-1]
        for i, b in enumerate(reversed(channels)):
            name = f"generator{s}.decode_block.{i}"
            if i > 0:
                out |= {f"{name}.conv_1.weight": (before, b, 3, 3) if i >= 5 else (b, before, 3, 3)}
            out |= {f"{name}.conv_2.weight": (b, b, 3, 3), f"{name}.blur.weight": (b, 1, 3, 3)}
            out |= {f"{name}.{leaf}_{k}": (1, b, 1, 1) for leaf in ("noise_weight", "bias") for k in (1, 2)}
            out |= _dense(f"{name}.style_1", z, 2 * b) | _dense(f"{name}.style_2", z, 2 * b)
            out |= {f"generator{s}.to_rgb.{i}.to_rgb.weight": (3, b, 1, 1)}
            out |= {f"generator{s}.to_rgb.{i}.to_rgb.bias": (3,)}
            before = b
    return out


# --- layers -----------------------------------------------------------------------------------------------------------

BLUR = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def pool(x):
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def upsample(x):
    return x.repeat(2, -1).repeat(2, -2)


def conv(x, weight, pad, stride=1):
    """x [B, in, H, W], weight [out, in, k, k]."""
    x, k = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))), weight.shape[-1]
    windows = sliding_window_view(x, (k, k), (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True)


def shifts(weight):
    """The sum of a kernel's four shifts by a pixel, [..., 3, 3] -> [..., 4, 4]."""
    out = np.zeros((*weight.shape[:2], 4, 4))
    for i in (0, 1):
        for j in (0, 1):
            out[:, :, i : i + 3, j : j + 3] += weight
    return out


def conv_transpose(x, weight):
    """Stride 2, padding 1: every pixel adds its multiple of the kernel. x [B, in, H, W], weight [in, out, 4, 4]."""
    (b, _, h, w), out = x.shape, weight.shape[1]
    y = np.zeros((b, out, 2 * h + 2, 2 * w + 2))
    for i in range(4):
        for j in range(4):
            y[:, :, i : i + 2 * h : 2, j : j + 2 * w : 2] += np.einsum("bchw,co->bohw", x, weight[:, :, i, j])
    return y[:, :, 1:-1, 1:-1]


def normalised(x, epsilon):
    mean, var = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)
    return (x - mean) / np.sqrt(var + epsilon)


def beside(x, one_hot):
    """The features or latents that a dense layer sees: of conditional models, with the labels behind them."""
    return x if one_hot is None else np.hstack([x, one_hot])


class Networks:
    """The official networks of these tensors. Images [B, C, H, W]."""

    def __init__(self, tensors: dict, suffix: str = "", train: bool = False):
        self.tensors = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
        self.train = train  # BatchNorm's mode
        self.suffix = suffix  # of the style-based networks: '_s' for the averaged ones

    def __getitem__(self, name):
        return self.tensors[name]

    def dense(self, name, x):
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    # 2D densities

    def mlp(self, network, x):
        for layer in ("input", "hidden_1", "hidden_2", "hidden_3"):
            x = np.maximum(self.dense(f"{network}.main.{layer}", x), 0)
        return self.dense(f"{network}.main.output", x)

    # images

    def norm(self, name, x):
        if self.train:  # the batch's own
            mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
            weight, bias = (self[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias"))
            return (x - mean) / np.sqrt(var + 1e-5) * weight + bias
        mean, var, weight, bias = (
            self[f"{name}.{leaf}"][:, None, None] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    def block(self, name, x):
        expand = self.tensors.get(f"{name}.conv_expand.weight")
        shortcut = x if expand is None else conv(x, expand, 0)
        x = leaky(self.norm(f"{name}.bn1", conv(x, self[f"{name}.conv1.weight"], 1)))
        return leaky(self.norm(f"{name}.bn2", conv(x, self[f"{name}.conv2.weight"], 1)) + shortcut)

    def conv_encode(self, x, one_hot=None):
        """one_hot: the labels [B, cond_dim] of a conditional model."""
        size = x.shape[-1]
        x = pool(leaky(self.norm("encoder.main.1", conv(x, self["encoder.main.0.weight"], 2))))
        x = pool(self.block(f"encoder.main.res_in_{size // 2}", x))
        x = self.block(f"encoder.main.res_in_{size // 4}", x)
        return self.dense("encoder.fc", beside(x.reshape(len(x), -1), one_hot))

    def conv_decode(self, z, shape, decoder="decoder", one_hot=None):
        """shape: [C, H, W] of the first feature map."""
        z = beside(z, one_hot)
        x = np.maximum(self.dense(f"{decoder}.fc.0", z), 0).reshape(-1, *shape)
        x = upsample(self.block(f"{decoder}.main.res_in_4", x))
        x = upsample(self.block(f"{decoder}.main.res_in_8", x))
        x = self.block(f"{decoder}.main.res_in_16", x)
        weight, bias = (self[f"{decoder}.main.predict.{leaf}"] for leaf in ("weight", "bias"))
        return conv(x, weight, 2) + bias[:, None, None]

    # point clouds [B, 3, points]

    def cloud_encode(self, x, layers):
        for i in range(layers):
            x = np.maximum(np.einsum("oc,bcn->bon", self[f"encoder.conv.{3 * i}.weight"][:, :, 0], x), 0)
            x = self.norm(f"encoder.conv.{3 * i + 2}", x[..., None])[..., 0]
        x = np.maximum(self.dense("encoder.fc.0", x.max(2)), 0)
        return self.dense("encoder.mu_layer", x), self.dense("encoder.std_layer", x)

    def cloud_decode(self, z, layers):
        for i in range(layers):
            z = np.maximum(self.dense(f"decoder.model.{2 * i}", z), 0)
        return self.dense(f"decoder.model.{2 * layers}", z).reshape(len(z), 3, -1)

    # style-based

    def style_encode(self, x, level, blend, levels):
        image, x, total = x, self.from_rgb(levels - 1 - level, x), 0
        for i in range(levels - 1 - level, levels):
            x, own = self.encode_block(i, x)
            if i == levels - 1 - level and level > 0:
                x = (1 - blend) * self.from_rgb(i + 1, pool(image)) + blend * x
                own = blend * own
            total = total + own
        for i in range(3):
            total = leaky(self.dense(f"mapping_tl{self.suffix}.map_blocks.{i}.fc", total))
        return total

    def from_rgb(self, i, x):
        name = f"discriminator{self.suffix}.from_rgb.{i}.from_rgb"
        return leaky(leaky(conv(x, self[f"{name}.weight"], 0) + self[f"{name}.bias"][:, None, None]))

    def encode_block(self, i, x):
        name = f"discriminator{self.suffix}.encode_block.{i}"
        x = leaky(conv(x, self[f"{name}.conv_1.weight"], 1) + self[f"{name}.bias_1"])
        style = self.dense(f"{name}.style_1", statistics(x))
        x, weight = self.blur(name, normalised(x, 1e-5)), self[f"{name}.conv_2.weight"]
        x = conv(x, shifts(weight) / 4, 1, 2) if x.shape[-1] >= 128 else pool(conv(x, weight, 1))
        x = leaky(x + self[f"{name}.bias_2"])
        style = style + self.dense(f"{name}.style_2", statistics(x))
        return normalised(x, 1e-5), style

    def blur(self, name, x):
        weight = self[f"{name}.blur.weight"]
        return np.concatenate([conv(x[:, [c]], weight[[c]], 1) for c in range(x.shape[1])], 1)

    def style_decode(self, z, level, blend):
        w = z / np.sqrt((z * z).mean(-1, keepdims=True) + 1e-8)
        for i in range(8):
            w = leaky(self.dense(f"mapping_fl{self.suffix}.map_blocks.{i}.fc", w))
        x, images = self[f"generator{self.suffix}.const"].repeat(len(z), 0), []
        for i in range(level + 1):
            x = self.decode_block(i, x, w)
            name = f"generator{self.suffix}.to_rgb.{i}.to_rgb"
            images.append(conv(x, self[f"{name}.weight"], 0) + self[f"{name}.bias"][:, None, None])
        return images[-1] if level == 0 else (1 - blend) * upsample(images[-2]) + blend * images[-1]

    def decode_block(self, i, x, w):
        name, t = f"generator{self.suffix}.decode_block.{i}", math.sqrt(i + 1)
        if i > 0:
            weight = self[f"{name}.conv_1.weight"]
            fused = 2 * x.shape[-1] >= 128
            x = self.blur(name, conv_transpose(x, shifts(weight)) if fused else conv(upsample(x), weight, 1))
        for k in (1, 2):
            x = conv(x, self[f"{name}.conv_2.weight"], 1) if k == 2 else x
            x = x + 0.8 * t * np.exp(-x * x / (2 * t * t)) / math.sqrt(2 * math.pi)
            x = normalised(leaky(x + self[f"{name}.bias_{k}"]), 1e-8)
            scale, shift = np.split(self.dense(f"{name}.style_{k}", w)[:, :, None, None], 2, 1)
            x = x * (1 + scale) + shift
        return x


def statistics(x):
    """Means, then deviations, of every channel."""
    return np.concatenate([x.mean((2, 3)), x.std((2, 3))], 1)
