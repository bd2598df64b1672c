"""The residual convolutional networks: sizes by hand, values by an independent implementation, every recipe lowered."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from ml_collections import ConfigDict
from scipy.signal import correlate

from sintrovae_jax import config as configs
from sintrovae_jax import dispatch, models, objectives, parallel, schedule, seeds, train_state, train_step
from sintrovae_jax.data import examples
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import conv, convolution, style

# cifar10 and svhn have the program of cifar10_bootstrap without its target decoder, fmnist has that of mnist
# (test_config.py), kth that of cars3d, of grey images; digits and sprites are trained elsewhere. The other recipes have
# the program of celebahq1024 with fewer and other blocks, which `COUNTS` has.
RECIPES = ("cifar10_bootstrap", "mnist", "celebahq1024", "cars3d")


def recipe(name):
    settings = configs.read_recipe(f"configs/{name}.py")
    configs.validate(settings)
    return settings


def size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# --- sizes ------------------------------------------------------------------------------------------------------------

# Worked out by hand from docs/method.md, "Convolutional networks". A block a → b has 9ab + 9bb + 4b weights, and ab
# more where a ≠ b:
#   64→64 73,984     64→128 229,888   128→128 295,424     128→256 918,528   256→256 1,180,672
#   128→64 119,040   256→128 475,648  512→256 1,901,568   256→512 3,672,064 512→512 4,720,640
CIFAR = (
    4_928 + 229_888 + 918_528 + 1_180_672 + 4_097 * 256,
    129 * 4_096 + 1_180_672 + 475_648 + 119_040 + 73_984 + 4_803,
)
MNIST = (1_728 + 229_888 + 295_424 + 6_273 * 64, 33 * 6_272 + 295_424 + 119_040 + 73_984 + 1_601)
UP = 1_901_568 + 475_648 + 119_040 + 73_984 + 4_803
MONSTERS = (4_928 + 229_888 + 918_528 + 3_672_064 + 2 * 4_720_640 + 8_193 * 256, 129 * 8_192 + 2 * 4_720_640 + UP)
FACES = (4_928 + 229_888 + 918_528 + 3_672_064 + 3 * 4_720_640 + 8_193 * 512, 257 * 8_192 + 3 * 4_720_640 + UP)
#   16→16 4,672   16→32 14,464   32→64 57,600   32→16 7,488   64→32 29,824
LARGE = (
    1_232 + 14_464 + 57_600 + 229_888 + 918_528 + 3_672_064 + 3 * 4_720_640 + 8_193 * 512,
    257 * 8_192 + 3 * 4_720_640 + 1_901_568 + 475_648 + 119_040 + 29_824 + 7_488 + 4_672 + 1_203,
)
COUNTS = {
    "cifar10": CIFAR,
    "cifar10_augment": CIFAR,
    "cifar10_bootstrap": CIFAR,
    "svhn": CIFAR,
    "mnist": MNIST,
    "fmnist": MNIST,
}
COUNTS |= {"monsters": MONSTERS, "celebahq": FACES, "ffhq": FACES, "celebahq1024": LARGE}


@pytest.mark.parametrize("name", COUNTS)
def test_sizes_of_the_published_networks(name):
    settings = recipe(name)
    networks, _, create = dispatch.from_config(settings)
    fresh = jax.eval_shape(create)
    assert (size(fresh.encoder.params), size(fresh.decoder.params)) == COUNTS[name]
    assert {leaf.dtype.name for leaf in jax.tree.leaves((fresh.encoder.params, fresh.decoder.stats))} == {"float32"}

    side, channels, z_dim = settings.data.image_size, settings.data.image_channels, settings.model.z_dim
    x = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32)
    apply = functools.partial(networks.encoder.apply, train=False)
    posterior, kept = jax.eval_shape(
        functools.partial(apply, capture_intermediates=True, mutable=["intermediates"]), fresh.encoder.variables, x
    )
    assert posterior.mean.shape == posterior.logvar.shape == (2, z_dim)
    final = side // 2 ** len(settings.model.channels)
    assert kept["intermediates"]["last"]["__call__"][0].shape == (2, final, final, settings.model.channels[-1])
    decode = functools.partial(networks.decoder.apply, train=False)
    assert jax.eval_shape(decode, fresh.decoder.variables, posterior.mean).shape == x.shape


def test_the_hyper_parameters_are_the_published_ones():
    published = {
        "cifar10": (32, 1.0, 1.0, 256),
        "svhn": (32, 1.0, 1.0, 256),
        "mnist": (128, 1.0, 1.0, 256),
        "fmnist": (128, 1.0, 1.0, 256),
        "monsters": (16, 0.2, 0.2, 256),
        "celebahq": (8, 0.5, 1.0, 1024),
        "celebahq1024": (8, 0.5, 1.0, 1024),
    }
    for name, wanted in published.items():
        c = recipe(name)
        assert (c.train.batch_size, c.objective.beta_kl, c.objective.beta_rec, c.objective.beta_neg) == wanted, name
        assert (c.optimizer.learning_rate, c.optimizer.decay) == (2e-4, 0.1)
    assert recipe("monsters").optimizer.milestones == (round(350 * 3800 / 16 / 10) * 10,)
    assert recipe("cifar10").train.steps == 390_620  # 250 epochs of 50,000 / 32 steps, in dispatches of 10
    assert recipe("cifar10_bootstrap").objective.gamma_r == 1.0


@pytest.mark.parametrize(("side", "channels"), [(30, (8, 8)), (28, (8, 8, 8)), (4, (8, 8, 8)), (0, (8,)), (16, ())])
def test_sizes_that_do_not_divide_are_refused(side, channels):
    model = ConfigDict({"family": "conv", "z_dim": 2, "channels": channels, "output": "linear", "remat": False})
    with pytest.raises(UserError, match="model"):
        models.build(model, (side, side, 3) if side else (2,))


# --- values -----------------------------------------------------------------------------------------------------------


class Numpy:
    """Section 3 in numpy and scipy, float64, from a Flax tree of parameters and averages."""

    def __init__(self, variables, train):
        self.params, self.stats = (jax.tree.map(lambda x: np.asarray(x, np.float64), t) for t in variables)
        self.train = train

    def conv(self, x, *path):
        layer = functools.reduce(lambda tree, name: tree[name], path, self.params)
        kernel = layer["kernel"]
        k = kernel.shape[0] // 2
        x = np.pad(x, ((0, 0), (k, k), (k, k), (0, 0)))
        out = [
            [sum(correlate(image[..., i], kernel[..., i, o], "valid") for i in range(kernel.shape[2])) for image in x]
            for o in range(kernel.shape[3])
        ]
        return np.moveaxis(np.array(out), 0, -1) + layer.get("bias", 0)

    def norm(self, x, *path):
        layer, stats = (functools.reduce(lambda tree, name: tree[name], path, t) for t in (self.params, self.stats))
        mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if self.train else (stats["mean"], stats["var"])
        return (x - mean) / np.sqrt(var + 1e-5) * layer["scale"] + layer["bias"]

    def block(self, x, name):
        y = leaky(self.norm(self.conv(x, name, "conv1"), name, "norm1"))
        y = self.norm(self.conv(y, name, "conv2"), name, "norm2")
        return leaky(y + (self.conv(x, name, "shortcut") if "shortcut" in self.params[name] else x))

    def dense(self, x, name):
        layer = self.params[name]["dense"]
        return x @ layer["kernel"] + layer["bias"]

    def encode(self, x):
        x = pool(leaky(self.norm(self.conv(x, "conv"), "norm")))
        x = pool(self.block(x, "block0"))
        x = self.block(x, "last")
        return np.split(self.dense(x.reshape(len(x), -1), "posterior"), 2, axis=1)

    def decode(self, z, side, channels):
        x = np.maximum(self.dense(z, "latent"), 0).reshape(len(z), side, side, channels)
        x = upsample(self.block(x, "block0"))
        x = upsample(self.block(x, "block1"))
        return self.conv(self.block(x, "last"), "conv")


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def pool(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def upsample(x):
    return np.kron(x, np.ones((1, 2, 2, 1)))


def disturbed(variables, seed):
    """Parameters and averages away from their starting values, so that none of them can be left out unnoticed."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), variables["params"])
    stats = jax.tree.map(lambda x: x + rng.random(x.shape).astype(np.float32), variables["batch_stats"])
    return {"params": params, "batch_stats": stats}


def of_role(variables, role):
    """BatchNorm's averages of one role."""
    return jax.tree.map(lambda average: average[role], variables["batch_stats"])


@functools.partial(jax.jit, static_argnames=("module", "train"))
def apply(module, variables, inputs, train):
    """The network on one device, with the axis that training takes means over."""
    run = functools.partial(module.apply, variables, train=train, mutable=["batch_stats"] if train else False)
    out = jax.vmap(run, axis_name=parallel.AXIS)(inputs[None])
    return jax.tree.map(lambda x: x[0], out)


@pytest.mark.soak
@pytest.mark.parametrize("train", [False, True])
def test_forward_passes_equal_numpy(train):
    rng = np.random.default_rng(0)
    x, z = rng.random((3, 12, 12, 3), np.float32), rng.normal(size=(3, 5)).astype(np.float32)
    encoder, decoder = conv.Encoder((4, 6), 5), conv.Decoder((4, 6), (12, 12, 3))
    e = disturbed(jax.jit(encoder.init)(jax.random.key(1), x), 0)
    d = disturbed(jax.jit(decoder.init)(jax.random.key(2), z), 1)
    posterior = apply(encoder, e, x, train)
    image = apply(decoder, d, z, train)
    if train:
        (posterior, _), (image, kept) = posterior, image
        before = d["batch_stats"]["last"]["norm2"]["mean"]
        assert np.abs(kept["batch_stats"]["last"]["norm2"]["mean"] - before).max() > 1e-3
    wanted = Numpy((e["params"], of_role(e, 0)), train).encode(x)
    np.testing.assert_allclose(posterior.mean, wanted[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(posterior.logvar, wanted[1], rtol=1e-5, atol=1e-5)
    wanted = Numpy((d["params"], of_role(d, 0)), train).decode(z, 3, 6)
    np.testing.assert_allclose(image, wanted, rtol=1e-5, atol=1e-5)
    if not train:  # posteriors are the default
        wanted = Numpy((d["params"], of_role(d, 1)), train).decode(z, 3, 6)
        prior = jax.jit(functools.partial(decoder.apply, role="prior"))
        np.testing.assert_allclose(prior(d, z), wanted, rtol=1e-5, atol=1e-5)


def test_a_role_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="posterior or prior, not 'samples'"):
        conv.Decoder((4,), (8, 8, 1)).init(jax.random.key(0), jnp.zeros((1, 2)), role="samples")


def test_weights_start_uniform_within_the_published_bound():
    params = jax.jit(conv.Decoder((16, 32), (8, 8, 3)).init)(jax.random.key(0), jnp.zeros((1, 4)))["params"]
    for kernel, fan_in in ((params["block1"]["conv1"]["kernel"], 9 * 32), (params["conv"]["kernel"], 25 * 16)):
        assert np.abs(kernel).max() == pytest.approx(fan_in**-0.5, rel=0.02)
        assert np.std(kernel) == pytest.approx((3 * fan_in) ** -0.5, rel=0.05)
    assert 0 < np.abs(params["conv"]["bias"]).max() <= (25 * 16) ** -0.5
    assert "bias" not in params["block0"]["conv1"]


def plain(x, kernel, pad):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), [(pad, pad)] * 2, dimension_numbers=layout)


def equal_with_gradients(function, x, kernel, pad):
    """Checks a function of x and the kernel against `plain`, and its gradients."""

    def through(function):
        @jax.jit
        def run(x, kernel):
            y, pull = jax.vjp(function, x, kernel)
            return y, *pull(np.random.default_rng(1).normal(size=y.shape).astype(np.float32))

        return run(x, kernel)

    for a, b in zip(through(function), through(functools.partial(plain, pad=pad)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


# Each way of `convolution._on_cpu` and of its gradients, besides images of odd size and smaller than the kernel, and an
# odd number of them.
CHANNELS = [(1, 1), (1, 16), (3, 16), (16, 1), (16, 3), (16, 16)]
CONVOLUTIONS = [(3, (7, 5), channels) for channels in CHANNELS]
CONVOLUTIONS += [(3, (2, 2), (3, 16)), (3, (2, 2), (16, 16)), (1, (7, 5), (64, 16)), (1, (7, 5), (1, 16))]
CONVOLUTIONS += [(5, (9, 6), channels) for channels in ((1, 16), (16, 1), (3, 64), (16, 16))]
CONVOLUTIONS += [(7, (8, 3), channels) for channels in ((1, 16), (3, 16), (16, 3), (16, 16))]


@pytest.mark.parametrize(("kernel_size", "sides", "channels"), CONVOLUTIONS)
def test_a_convolution_and_its_gradients_are_those_of_jax(kernel_size, sides, channels):
    rng = np.random.default_rng(0)
    images = 3 if kernel_size == 3 else 4
    x = rng.normal(size=(images, *sides, channels[0])).astype(np.float32)
    kernel = rng.normal(size=(kernel_size, kernel_size, *channels)).astype(np.float32)
    equal_with_gradients(convolution.convolve, x, kernel, kernel_size // 2)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 8), (16, 64)])
def test_a_convolution_of_even_size_and_its_gradients_are_those_of_jax(inputs, outputs):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 6, 7, inputs)).astype(np.float32)
    kernel = rng.normal(size=(2, 2, inputs, outputs)).astype(np.float32)
    for pad in (0, 1):
        equal_with_gradients(functools.partial(convolution.correlate, pad=pad), x, kernel, pad)


def arguments(settings, level=None):
    """The static parts of the training step of a recipe, at a level where networks grow, and its arguments' shapes."""
    networks, static, create = dispatch.from_config(settings)
    substeps, batch, shape = settings.train.substeps, settings.train.batch_size, examples.of(settings.data).shape
    if level is not None:
        static, shape = dataclasses.replace(static, level=level), (*[style.resolution(level)] * 2, shape[-1])
    x = jax.ShapeDtypeStruct((substeps, batch, *shape), jnp.uint8)
    index = jax.ShapeDtypeStruct((substeps, batch), jnp.int32)
    hypers = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, schedule.hypers_at(settings, np.arange(substeps))))
    return networks, static, (jax.eval_shape(create), {"x": x, "index": index}, hypers, seeds.key(0))


def traced(settings, level=None) -> str:
    """The program of the training step of a recipe, after a check that it returns a state like the one it is given."""
    networks, static, inputs = arguments(settings, level)
    step = functools.partial(train_step.train_step, networks, static)
    jaxpr, (after, _) = jax.make_jaxpr(step, axis_env=[(parallel.AXIS, 1)], return_shape=True)(*inputs)
    shapes = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype.name))
    assert shapes(after) == shapes(inputs[0])
    return str(jaxpr)


@pytest.mark.soak
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_traced(name):
    settings = recipe(name)
    settings.train.batch_size = 2
    assert "conv_general_dilated" in traced(settings)


@pytest.mark.soak
@pytest.mark.parametrize(("name", "level"), [("digits_style", 0), ("digits_style", 2), ("celebahq_style", 6)])
def test_every_recipe_that_grows_is_traced_at_its_levels(name, level):
    """The first, which has no blend, one with a blend, and one whose convolutions resample; each has all blocks of the
    levels before it. ffhq_style has the networks of celebahq_style (test_style.py).
    """
    settings = recipe(name)
    settings.train.batch_size = 2
    program = traced(settings, level)
    assert program.count("conv_general_dilated") > 20 * (level + 1)


def test_no_convolution_on_a_cpu_is_left_in_a_layout_without_a_fast_kernel():
    settings = recipe("digits")
    settings.model.channels = (4, 8)
    networks, static, (*inputs, key) = arguments(settings)
    inputs = jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape), s.dtype), inputs)
    text = dispatch.on_devices(networks, static).lower(*inputs, key, ()).compile().as_text()
    layouts = re.findall(r" convolution\(.*dim_labels=([^,\s]+)", text)
    assert len(layouts) > 50
    assert set(layouts) == {"b01f_01io->b01f"}


# --- switches ---------------------------------------------------------------------------------------------------------

SHAPE, BATCH, Z = (8, 8, 3), 4, 3
HYPER = dict.fromkeys(objectives.Hyper._fields, 1.0) | {"learning_rate": 1e-3, "alpha": 2.0, "scale": 1 / 192}


@functools.cache
def three_steps(dtype=None, remat=False, vae=True, run=True):
    """The state and terms after three steps of a tiny network; `run=False`: their shapes and types alone.

    Of the VAE phase, which has a pass of either network, if not asked otherwise: it compiles in a third of the time.
    """
    nets = conv.Encoder((8,), Z, dtype, remat), conv.Decoder((8,), SHAPE, "linear", dtype, remat)
    networks = train_state.Networks(*nets, optax.scale_by_adam(), optax.scale_by_adam())
    first = jax.jit(lambda: train_state.create(networks, 0, SHAPE, Z))()
    x = np.random.default_rng(0).integers(0, 256, (1, 3, BATCH, *SHAPE)).astype(np.uint8)
    index = np.tile(np.arange(BATCH, dtype=np.int32), (1, 3, 1))
    hypers = jax.tree.map(lambda v: np.full((1, 3), v, np.float32), objectives.Hyper(**HYPER))
    step = functools.partial(train_step.train_step, networks, train_step.Static(vae=vae))
    step = jax.vmap(step, (0, 0, 0, None), axis_name=parallel.AXIS)
    step = jax.jit(step) if run else functools.partial(jax.eval_shape, step)
    return step(jax.tree.map(lambda a: a[None], first), {"x": x, "index": index}, hypers, jax.random.key(0))


@pytest.mark.soak
def test_bfloat16_leaves_parameters_averages_and_losses_in_float32():
    for vae in (True, False):
        after, terms = three_steps(jnp.bfloat16, vae=vae, run=False)
        leaves = jax.tree.leaves((after.encoder.variables, after.decoder.variables, terms))
        assert {leaf.dtype.name for leaf in leaves} == {"float32"}
    _, terms = three_steps(jnp.bfloat16)
    _, wanted = three_steps()
    for name in ("loss_encoder", "loss_decoder", "rec_real", "kl_real"):
        np.testing.assert_allclose(terms[name][0, 0], wanted[name][0, 0], rtol=0.03, err_msg=name)
        assert terms[name][0, 0] != wanted[name][0, 0], name
    encoder = conv.Encoder((8,), Z, jnp.bfloat16)
    posterior, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert {leaf.dtype.name for leaf in posterior} == {"float32"}
    text = str(jax.make_jaxpr(lambda x: encoder.init_with_output(jax.random.key(0), x))(jnp.zeros((1, 8, 8, 3))))
    assert "bf16[1,8,8,8]" in text, "nothing was computed in bfloat16"


@pytest.mark.soak
def test_rematerialisation_changes_no_number():
    plain, terms = three_steps()
    again, same = three_steps(remat=True)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, (terms, plain.encoder.stats), (same, again.encoder.stats))
    assert jax.tree.structure(plain) == jax.tree.structure(again), "a checkpoint of one must load in the other"


def test_rematerialisation_keeps_fewer_activations():
    z = jnp.zeros((4, Z))

    def residuals(remat):
        decoder = conv.Decoder((8, 8, 8), (32, 32, 3), "linear", None, remat)
        variables = jax.jit(decoder.init)(jax.random.key(0), z)
        return size(jax.eval_shape(lambda z: jax.vjp(lambda z: decoder.apply(variables, z), z)[1], z))

    assert residuals(True) < 0.5 * residuals(False)


def test_on_cpus_a_step_has_convolutions_that_run_on_all_cores():
    convolve = functools.partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    lowered = jax.jit(lambda x, k: convolve(x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"))).lower(
        jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
    )
    if "ynn_fusion" not in lowered.compile().as_text():
        pytest.skip("this jaxlib has no YNN convolutions")
    program = parallel.compiled(lowered).as_text()
    assert "ynn_fusion" not in program
    assert " convolution(" in program
