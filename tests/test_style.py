"""The style-based networks: sizes by hand, blocks by an independent implementation, growing, the optimiser."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate
from test_conv import recipe, size

from sintrovae_jax import config as configs
from sintrovae_jax import dispatch, models, parallel, schedule, train_step
from sintrovae_jax.data import examples
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import Stage, convolution, style

CHANNELS, Z, LEVELS = (4, 6, 8), 5, 3
BATCH = 3


# --- sizes ------------------------------------------------------------------------------------------------------------

# By hand from docs/method.md, "Style-based networks". Encoder block a → b: 9aa + a, 9ab + b, and dense layers of 2a and
# 2b to 512, 1,024(a + b) + 1,024. Decoder block a → b: 9ab (not block 0), 9bb, two noises and two biases 4b, and two
# modulations of 512 to 2b, 2,052b.
ENCODER_BLOCKS = (
    36_864 + 64 + 73_728 + 128 + 1_024 * 193,
    147_456 + 128 + 294_912 + 256 + 1_024 * 385,
    589_824 + 256 + 1_179_648 + 512 + 1_024 * 769,
    *[2 * (2_359_296 + 512) + 1_024 * 1_025] * 4,
)
DECODER_BLOCKS = (
    2_359_296 + 2_056 * 512 - 2 * 2 * 512 + 2 * 2 * 512,
    *[2 * 2_359_296 + 2_056 * 512] * 3,
    1_179_648 + 589_824 + 2_056 * 256,
    294_912 + 147_456 + 2_056 * 128,
    73_728 + 36_864 + 2_056 * 64,
)
FROM_RGB = tuple(4 * width for width in (512, 512, 512, 512, 256, 128, 64))
TO_RGB = tuple(3 * width + 3 for width in (512, 512, 512, 512, 256, 128, 64))
MAPPING = 512 * 513


@pytest.mark.parametrize("name", ["celebahq_style", "ffhq_style"])
def test_sizes_of_the_published_networks_by_block(name):
    _, _, create = dispatch.from_config(recipe(name))
    fresh = jax.eval_shape(create)
    encoder, decoder = fresh.encoder.params, fresh.decoder.params
    assert tuple(size(encoder[f"block{i}"]) for i in range(7)) == ENCODER_BLOCKS
    assert tuple(size(decoder[f"block{i}"]) for i in range(7)) == DECODER_BLOCKS
    assert tuple(size(encoder[f"from_rgb{k}"]) for k in range(7)) == FROM_RGB
    assert tuple(size(decoder[f"to_rgb{k}"]) for k in range(7)) == TO_RGB
    assert [size(encoder[f"mapping{i}"]) for i in range(3)] == [MAPPING, MAPPING, 512 * 1_024 + 1_024]
    assert [size(decoder[f"mapping{i}"]) for i in range(8)] == [MAPPING] * 8
    assert size(encoder) == sum(ENCODER_BLOCKS) + sum(FROM_RGB) + 2 * MAPPING + 513 * 1_024
    assert size(decoder) == sum(DECODER_BLOCKS) + sum(TO_RGB) + 8 * MAPPING + 16 * 512


def test_the_hyper_parameters_are_the_published_ones():
    faces, flickr = recipe("celebahq_style"), recipe("ffhq_style")
    for settings, epochs, count, rate in ((faces, 30, 29_000, 1.5e-3), (flickr, 16, 60_000, 2e-3)):
        ends = np.cumsum(settings.growth.steps)
        assert settings.growth.steps[0] == pytest.approx(epochs * count / 512, abs=5)
        assert settings.growth.steps[6] == pytest.approx(epochs * count / 32, abs=5)
        assert settings.train.steps - ends[5] == pytest.approx((300 - 6 * epochs) * count / 32, abs=5)
        at = schedule.hypers_at(settings, np.array([0, ends[2], ends[3], ends[5], settings.train.steps - 1]))
        np.testing.assert_allclose(at.beta_neg, [2048, 1024, 512, 512, 512])
        np.testing.assert_allclose(at.learning_rate[-1], rate)
        np.testing.assert_allclose(at.learning_rate[0], 1.5e-3)
        np.testing.assert_allclose(at.scale, 5e-6)
        np.testing.assert_allclose(at.ema[[0, -1]], [0.5 ** (512 / 10_000), 0.5 ** (32 / 10_000)], rtol=1e-6)
    assert (faces.objective.beta_rec / 4, flickr.objective.beta_rec / 4) == (0.05, 0.1)


# --- values -----------------------------------------------------------------------------------------------------------


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def conv(x, kernel, pad=1, stride=1):
    """Correlation by scipy, an image and a pair of channels at a time. x: [B, H, W, in], kernel: [k, k, in, out]."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = [
        [sum(correlate(image[..., i], kernel[..., i, o], "valid") for i in range(kernel.shape[2])) for image in x]
        for o in range(kernel.shape[3])
    ]
    return np.moveaxis(np.array(out), 0, -1)[:, ::stride, ::stride]


def pool(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def upsample(x):
    return np.kron(x, np.ones((1, 2, 2, 1)))


def blur(x):
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    return np.stack([conv(x[..., [c]], kernel[..., None, None])[..., 0] for c in range(x.shape[-1])], -1)


def normalised(x, epsilon):
    mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    return (x - mean) / np.sqrt(var + epsilon)


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"]


class Numpy:
    """Section 4 in numpy and scipy, float64, below 128 pixels and in deterministic mode, from trees of parameters."""

    def __init__(self, params):
        self.params = wide(params)

    def encode(self, x, level, blend):
        image = 2 * x - 1
        x, style_sum = self.from_rgb(image, level), 0
        for k in range(level, -1, -1):
            block = self.params[f"block{LEVELS - 1 - k}"]
            x = leaky(conv(x, block["conv1"]["kernel"]) + block["bias1"])
            own = self.style(x, block["style1"])
            x = conv(blur(normalised(x, 1e-5)), block["conv2"]["kernel"])
            x = leaky(pool(x) + block["bias2"])
            own = own + self.style(x, block["style2"])
            x = normalised(x, 1e-5)
            if k == level and k > 0:
                x, own = (1 - blend) * self.from_rgb(pool(image), k - 1) + blend * x, blend * own
            style_sum = style_sum + own
        for i in range(3):
            style_sum = leaky(dense(self.params[f"mapping{i}"], style_sum))
        return np.split(style_sum, 2, -1)

    def from_rgb(self, image, level):
        layer = self.params[f"from_rgb{level}"]
        return leaky(leaky(conv(image, layer["kernel"], pad=0) + layer["bias"]))

    def style(self, x, layer):
        return dense(layer, np.concatenate([x.mean((1, 2)), x.std((1, 2))], -1))

    def decode(self, z, level, blend):
        w = z / np.sqrt((z * z).mean(-1, keepdims=True) + 1e-8)
        for i in range(8):
            w = leaky(dense(self.params[f"mapping{i}"], w))
        x, images = np.repeat(self.params["constant"][None], len(z), 0), []
        for i in range(level + 1):
            block, t = self.params[f"block{i}"], math.sqrt(i + 1)
            if i > 0:
                x = blur(conv(upsample(x), block["conv1"]["kernel"]))
            for which in (1, 2):
                x = conv(x, block["conv2"]["kernel"]) if which == 2 else x
                x = x + 0.8 * t * np.exp(-(x**2) / (2 * t * t)) / math.sqrt(2 * math.pi)
                x = normalised(leaky(x + block[f"bias{which}"]), 1e-8)
                factor, shift = np.split(dense(block[f"modulation{which}"], w)[:, None, None], 2, -1)
                x = x * (1 + factor) + shift
            layer = self.params[f"to_rgb{i}"]
            images.append(conv(x, layer["kernel"], pad=0) + layer["bias"])
        x = images[-1] if level == 0 else (1 - blend) * upsample(images[-2]) + blend * images[-1]
        return (x + 1) / 2


def disturbed(variables, seed):
    """Parameters away from where they start, so that none of them can be left out unnoticed."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), variables)


@pytest.fixture(scope="module")
def networks():
    """(module, variables) of a tiny encoder and decoder of 16×16 images."""
    encoder, decoder = style.Encoder(CHANNELS, Z), style.Decoder(CHANNELS, Z)
    e = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    d = jax.jit(decoder.init)(jax.random.key(1), jnp.zeros((1, Z)))
    return (encoder, disturbed(e, 0)), (decoder, disturbed(d, 1))


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(module, variables, inputs, level, blend=1.0, keys=None):
    options = {} if keys is None else {"keys": keys}
    return module.apply(variables, inputs, stage=Stage(level, blend), **options)


def images(level):
    return np.random.default_rng(level).random((BATCH, 4 * 2**level, 4 * 2**level, 3), np.float32)


LATENTS = np.random.default_rng(9).normal(size=(BATCH, Z)).astype(np.float32)


@pytest.mark.parametrize(("level", "blend"), [(0, 1.0), (1, 0.3), (2, 0.7), (2, 1.0)])
def test_forward_passes_equal_numpy(networks, level, blend):
    (encoder, e), (decoder, d) = networks
    posterior = apply(encoder, e, images(level), level, blend)
    mean, logvar = Numpy(e["params"]).encode(images(level), level, blend)
    np.testing.assert_allclose(posterior.mean, mean, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(posterior.logvar, logvar, rtol=2e-5, atol=2e-5)
    wanted = Numpy(d["params"]).decode(LATENTS, level, blend)
    np.testing.assert_allclose(apply(decoder, d, LATENTS, level, blend), wanted, rtol=2e-5, atol=2e-5)


def smoothed(kernel):
    """The four one-pixel shifts of a kernel, summed."""
    out = np.zeros((4, 4, *kernel.shape[2:]))
    for a in (0, 1):
        for b in (0, 1):
            out[a : a + 3, b : b + 3] += kernel
    return out


@pytest.mark.parametrize(
    ("fused", "plain"),
    [
        (convolution.convolve_up, lambda x, k: convolution.convolve(convolution.upsample(x), k)),
        (convolution.convolve_down, lambda x, k: convolution.pool(convolution.convolve(x, k))),
    ],
)
def test_resampling_by_one_convolution_is_resampling_and_a_convolution(fused, plain):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 8, 8, 3), (3, 3, 3, 5)))
    weights = rng.normal(size=jax.eval_shape(plain, x, kernel).shape).astype(np.float32)

    def through(function):
        return jax.jit(jax.value_and_grad(lambda x, k: (weights * function(x, k)).sum(), (0, 1)))(x, kernel)

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), through(fused), through(plain))


def test_resampling_convolutions_are_the_published_fused_ones():
    rng = np.random.default_rng(0)
    for resample, side in (("up", 64), ("down", 128)):
        x, kernel = rng.normal(size=(1, side, side, 2)), rng.normal(size=(3, 3, 2, 3))
        module = style.Conv(3, resample=resample)
        params = {"kernel": jnp.asarray(kernel, jnp.float32)}
        got = jax.jit(module.apply)({"params": params}, jnp.asarray(x, jnp.float32))
        if resample == "down":
            wanted = conv(x, smoothed(kernel) / 4, pad=1, stride=2)
        else:  # a transposed convolution: every pixel spreads the flipped kernel over its neighbourhood
            spread = np.zeros((1, 2 * side, 2 * side, 2))
            spread[:, ::2, ::2] = x
            wanted = conv(spread[:, :-1, :-1], smoothed(kernel), pad=2)
        assert got.shape == (1, *[2 * side if resample == "up" else side // 2] * 2, 3)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_weights_start_as_their_learning_rate_is_equalised(networks):
    params = jax.jit(style.Decoder((64, 64), 64).init)(jax.random.key(0), jnp.zeros((1, 64)))["params"]
    for path, deviation in (
        (("block1", "conv1"), math.sqrt(2 / (9 * 64))),
        (("block1", "modulation1"), 1 / math.sqrt(64)),
        (("mapping3",), math.sqrt(2 / 64)),
        (("to_rgb1",), 0.03 / math.sqrt(64)),
    ):
        layer = functools.reduce(lambda tree, name: tree[name], path, params)
        assert np.std(layer["kernel"]) == pytest.approx(deviation, rel=0.12), path
    assert not any(np.any(leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(params) if "bias" in str(p[-1]))
    assert not np.any(params["block0"]["noise1"])
    assert np.all(params["constant"] == 1)


# --- growing ----------------------------------------------------------------------------------------------------------


def test_at_blend_0_a_network_is_its_lower_level_and_continuous_from_there(networks):
    (encoder, e), (decoder, d) = networks
    for level in (1, 2):
        x = images(level)
        lower = apply(encoder, e, convolution.pool(jnp.asarray(x)), level - 1)
        np.testing.assert_array_equal(apply(encoder, e, x, level, 0.0).mean, lower.mean)
        below = np.asarray(apply(decoder, d, LATENTS, level - 1))
        np.testing.assert_array_equal(apply(decoder, d, LATENTS, level, 0.0), upsample(below).astype(np.float32))
        for module, variables, inputs in ((encoder, e, x), (decoder, d, LATENTS)):
            outputs = [apply(module, variables, inputs, level, blend) for blend in (0.5, 0.5 + 1e-4, 1.0)]
            outputs = [np.asarray(o.mean if module is encoder else o) for o in outputs]
            assert np.abs(outputs[1] - outputs[0]).max() < 1e-2
            assert np.abs(outputs[2] - outputs[0]).max() > 1e-2


def test_at_blend_1_the_lower_level_is_gone(networks):
    (encoder, e), (decoder, d) = networks
    without = {"params": dict(e["params"]) | {"from_rgb1": jax.tree.map(jnp.zeros_like, e["params"]["from_rgb1"])}}
    np.testing.assert_array_equal(apply(encoder, e, images(2), 2).mean, apply(encoder, without, images(2), 2).mean)
    without = dict(d) | {
        "params": dict(d["params"]) | {"to_rgb1": jax.tree.map(jnp.zeros_like, d["params"]["to_rgb1"])}
    }
    np.testing.assert_array_equal(apply(decoder, d, LATENTS, 2), apply(decoder, without, LATENTS, 2))


def test_input_images_are_blended_with_their_average():
    x = images(1)
    old, new = upsample(pool(x)), x
    for blend in (0.0, 0.25, 1.0):
        got = style.blended_images(jnp.asarray(x), Stage(1, blend))
        np.testing.assert_allclose(got, (1 - blend) * old + blend * new, atol=1e-6)
    np.testing.assert_array_equal(style.blended_images(jnp.asarray(x), Stage(0, 0.5)), x)


# --- noise and styles -------------------------------------------------------------------------------------------------


def test_noise_changes_only_what_its_weights_let_it(networks):
    _, (decoder, d) = networks
    keys, others = (jax.random.split(jax.random.key(seed), BATCH) for seed in (0, 1))
    noisy = apply(decoder, d, LATENTS, 2, 1.0, keys)
    np.testing.assert_array_equal(noisy, apply(decoder, d, LATENTS, 2, 1.0, keys))
    assert np.abs(noisy - apply(decoder, d, LATENTS, 2, 1.0, others)).max() > 1e-2
    np.testing.assert_array_equal(apply(decoder, d, LATENTS, 2), apply(decoder, d, LATENTS, 2))

    def silent(path, leaf):
        return jnp.zeros_like(leaf) if "noise" in jax.tree_util.keystr(path) else leaf

    quiet = jax.tree_util.tree_map_with_path(silent, d)
    np.testing.assert_array_equal(
        apply(decoder, quiet, LATENTS, 2, 1.0, keys), apply(decoder, quiet, LATENTS, 2, 1.0, others)
    )


def test_noise_and_mixing_of_an_example_do_not_depend_on_the_batch(networks):
    """Nor on its place there, as on more devices."""
    _, (decoder, d) = networks
    keys = jax.random.split(jax.random.key(0), BATCH)
    decode = jax.jit(functools.partial(decoder.apply, stage=Stage(2), mix=True))
    whole = decode(d, LATENTS, keys=keys)
    assert np.abs(whole - apply(decoder, d, LATENTS, 2, 1.0, keys)).max() > 1e-2, "nothing was mixed"
    others = jax.random.split(jax.random.key(1), BATCH)
    for i in range(BATCH):
        place = (i + 1) % BATCH
        z, own = np.ones((BATCH, Z), np.float32), others.at[place].set(keys[i])
        z[place] = LATENTS[i]
        np.testing.assert_allclose(decode(d, z, keys=own)[place], whole[i], atol=1e-5)


def test_styles_of_nine_in_ten_samples_are_mixed_from_a_uniform_cutoff_on(networks):
    _, (decoder, d) = networks
    n, layers = 4_000, 6
    z = jnp.repeat(jnp.asarray(LATENTS[:1]), n, 0)

    def styles(module, z, keys):
        w = module.style(z)
        return module._mixed(jnp.repeat(w[:, None], layers, 1), keys), w

    run = jax.jit(functools.partial(decoder.apply, method=styles))
    mixed, w = run(d, z, jax.random.split(jax.random.key(3), n))
    same = np.asarray((mixed == w[:, None]).all(-1))
    kept = same.sum(1)
    assert (same == (np.arange(layers) < kept[:, None])).all()  # the first ones keep their style
    counts = np.bincount(kept, minlength=layers + 1) / n
    np.testing.assert_allclose(counts[1:layers], 0.9 / layers, atol=0.02)
    assert counts[layers] == pytest.approx(0.1 + 0.9 / layers, abs=0.02)
    assert counts[0] == 0


@pytest.mark.soak
def test_the_average_of_styles_moves_by_a_200th(networks):
    _, (decoder, d) = networks

    def train(z, keys):
        return decoder.apply(d, z, train=True, mutable=["averages"], keys=keys)

    keys = jax.random.split(jax.random.key(0), BATCH)
    _, kept = jax.jit(jax.vmap(train, axis_name=parallel.AXIS))(LATENTS[None], keys[None])
    w = jax.jit(functools.partial(decoder.apply, method="style"))(d, LATENTS)
    before = d["averages"]["style"]
    wanted = before + 0.005 * (w.mean(0) - before)
    np.testing.assert_allclose(kept["averages"]["style"][0], wanted, rtol=1e-5, atol=1e-6)


def test_truncation_moves_the_first_eight_layers():
    styles, average = np.random.default_rng(0).normal(size=(2, 10, Z)), np.arange(Z)
    got = np.asarray(style.truncated(jnp.asarray(styles), jnp.asarray(average), 0.7))
    np.testing.assert_allclose(got[:, :8], average + 0.7 * (styles[:, :8] - average), rtol=1e-5)
    np.testing.assert_allclose(got[:, 8:], styles[:, 8:], rtol=1e-6)


# --- the optimiser ----------------------------------------------------------------------------------------------------


def test_steps_are_those_of_a_scalar_adam_times_each_parameters_multiplier():
    params = {
        "block1": {"conv1": {"kernel": jnp.zeros((3, 3, 4, 2))}, "bias1": jnp.zeros(2), "noise1": jnp.zeros(2)},
        "mapping2": {"kernel": jnp.zeros((5, 3)), "bias": jnp.zeros(3)},
        "modulation": {"kernel": jnp.zeros((5, 3))},
        "to_rgb0": {"kernel": jnp.zeros((1, 1, 4, 3)), "bias": jnp.zeros(3)},
    }
    multipliers = {
        "block1": {"conv1": {"kernel": math.sqrt(2 / 36)}, "bias1": 1.0, "noise1": 1.0},
        "mapping2": {"kernel": 0.1 * math.sqrt(2 / 5), "bias": 0.1},
        "modulation": {"kernel": 1 / math.sqrt(5)},
        "to_rgb0": {"kernel": 0.03 / 2, "bias": 1.0},
    }
    tx, rng = style.optimizer(), np.random.default_rng(0)
    opt_state, seconds, update = tx.init(params), jax.tree.map(lambda x: np.zeros(x.shape), params), jax.jit(tx.update)
    for t in range(1, 5):
        # As small as the gradients of a scaled objective: where epsilon is added makes a difference.
        grads = jax.tree.map(lambda x: 1e-7 * rng.normal(size=x.shape), params)
        updates, opt_state = update(jax.tree.map(jnp.asarray, grads), opt_state, params)
        seconds = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g**2, seconds, grads)
        wanted = jax.tree.map(
            lambda g, v, c, t=t: c * math.sqrt(1 - 0.99**t) * g / (np.sqrt(v) + 1e-8), grads, seconds, multipliers
        )
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), updates, wanted)


# --- bfloat16 ---------------------------------------------------------------------------------------------------------


def a_step(dtype, vae):
    """(A training step in a blend of the last level, its arguments) of a small network in its first state."""
    settings = configs.read_recipe("configs/digits_style.py")
    settings.model.channels, settings.model.z_dim, settings.train.dtype = (8, 16), 8, dtype
    settings.data.image_size, settings.growth.steps, settings.growth.batch_sizes = 8, (0, 100), ()
    networks, static, create = dispatch.from_config(settings)
    static = dataclasses.replace(static, vae=vae)
    step = functools.partial(train_step.train_step, networks, static)
    x = np.random.default_rng(0).integers(0, 256, (1, 1, 16, 8, 8, 1)).astype(np.uint8)
    batches = {"x": x, "index": np.arange(16, dtype=np.int32)[None, None]}
    hypers = schedule.hypers_at(settings, np.array([[20]]))
    first = jax.tree.map(lambda a: a[None], jax.jit(create)())
    return jax.vmap(step, (0, 0, 0, None), axis_name=parallel.AXIS), (first, batches, hypers, jax.random.key(0))


@pytest.mark.soak
def test_losses_of_a_step_in_bfloat16_are_those_of_float32():
    """Of the VAE phase, which has a pass of either network; of the adversarial one, where the last group is mixed, no
    type leaks into the state."""
    losses = {}
    for dtype in ("bfloat16", "float32"):
        step, inputs = a_step(dtype, vae=True)
        after, terms = jax.jit(step)(*inputs)
        assert {leaf.dtype.name for leaf in jax.tree.leaves((after.encoder, after.decoder))} == {"float32", "int32"}
        losses[dtype] = {name: float(term[0, 0]) for name, term in terms.items()}
    for name, loss in losses["float32"].items():
        assert losses["bfloat16"][name] == pytest.approx(loss, rel=0.02), name
    assert losses["bfloat16"] != losses["float32"]
    step, inputs = a_step("bfloat16", vae=False)
    types = functools.partial(jax.tree.map, lambda leaf: leaf.dtype)
    after, terms = jax.eval_shape(step, *inputs)
    assert types(after) == types(inputs[0])
    assert {leaf.dtype.name for leaf in jax.tree.leaves(terms)} == {"float32"}


# --- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.channels": (), "growth.steps": (), "growth.batch_sizes": ()}, "needs model.channels"),
        (
            {"objective.beta_neg": 7.0, "growth.beta_neg": (9.0, 8.0, 6.0)},
            "objective.beta_neg=7.0 is not what growth.beta_neg has for the last",
        ),
        ({"train.batch_size": 16}, "train.batch_size=16 is not what growth.batch_sizes has for the last"),
        ({"train.ema": 0.9}, "set one of them to 0"),
        ({"data.translate": 1}, "every level has another size"),
        ({"model.family": "conv"}, "does not grow"),
        ({"data.image_size": 32}, "16 pixels"),
        ({"data.image_size": 0}, "data.image_size of 1 or more"),
        ({"data.source": "rings", "data.image_size": 0}, "model.family=style is for images"),
        ({"growth.steps": (20, 20)}, "2 values for the 3 levels"),
        ({"growth.steps": (20, 25, 20)}, "not a multiple of train.substeps"),
        ({"model.output": "sigmoid"}, "linear"),
    ],
)
def test_what_cannot_grow_is_refused(changes, said):
    settings = configs.read_recipe("configs/digits_style.py")
    settings.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=said):
        configs.validate(settings)
        models.build(settings.model, examples.of(settings.data).shape)


@pytest.mark.parametrize("name", ["celebahq_style", "ffhq_style"])
def test_lengths_follow_the_batches_for_fewer_devices(name):
    whole = recipe(name)
    for devices, sizes in (("4", (512, 256, 128, 64, 32, 32, 16)), ("1", (128, 128, 128, 32, 16, 8, 4))):
        settings = configs.read_recipe(f"configs/{name}.py:{devices}")
        configs.validate(settings)
        assert settings.growth.batch_sizes == sizes
        examples = [
            sum(level.batch_size * (level.stop - level.start) for level in schedule.levels(config))
            for config in (whole, settings)
        ]
        assert examples[1] == pytest.approx(examples[0], rel=1e-3)
        vae = settings.objective.num_vae * sizes[0]  # of whole dispatches
        assert vae == pytest.approx(whole.objective.num_vae * 512, rel=0.05)
    with pytest.raises(UserError, match="published for 8, 4, 2, 1 devices, not 3"):
        configs.read_recipe(f"configs/{name}.py:3")
