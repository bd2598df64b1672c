"""LORD's networks: sizes by hand, values by scipy, which code reaches what, and that labels reach nothing."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

from sintrovae_jax import config as configs
from sintrovae_jax import dispatch, inference, models, parallel, schedule, train_step
from sintrovae_jax.data import examples, pipeline
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import convolution, two_encoder

SHAPE, CHANNELS, KERNEL, HIDDEN, CLASS, Z = (8, 8, 3), (4, 6, 8), 5, 7, 3, 5
RNG = np.random.default_rng(0)


def recipe(name="sprites", **values):
    settings = configs.read_recipe(f"configs/{name}.py")
    settings.update_from_flattened_dict(values)
    configs.validate(settings)
    return settings


def size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_sizes_of_the_published_networks():
    """Worked out by hand from docs/method.md, "Translation networks", at 64×64×3."""
    tower = 49 * 3 * 64 + 64 + 16 * 64 * 128 + 128 + 16 * 128 * 256 + 256 + 2 * (16 * 256 * 256 + 256)
    tower += (4 * 4 * 256) * 256 + 256 + 256 * 256 + 256  # dense; and then mean and logvar of the code
    encoders = 2 * tower + 257 * 2 * 256 + 257 * 2 * 128
    content = 129 * 512 + 513 * 1024 + 1025 * 4096
    generator = content + 257 * 4 * 2 * 256 + 4 * (9 * 256 * 256 + 256) + 25 * 256 * 64 + 64 + 49 * 64 * 3 + 3
    settings = recipe("cars3d")
    _, _, create = dispatch.from_config(settings)
    fresh = jax.eval_shape(create)
    assert (size(fresh.encoder.params), size(fresh.decoder.params)) == (encoders, generator)


# --- values -----------------------------------------------------------------------------------------------------------


def leaky(x):
    return np.where(x > 0, x, 0.01 * x)


def conv(x, layer, pad, stride=1):
    kernel, x = layer["kernel"], np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = [
        [sum(correlate(image[..., i], kernel[..., i, o], "valid") for i in range(kernel.shape[2])) for image in x]
        for o in range(kernel.shape[3])
    ]
    return np.moveaxis(np.array(out), 0, -1)[:, ::stride, ::stride] + layer["bias"]


def dense(x, layer):
    return x @ layer["dense"]["kernel"] + layer["dense"]["bias"]


def tower(x, params):
    x = leaky(conv(x, params["conv"], KERNEL // 2))
    for i in range(2):
        x = leaky(conv(x, params[f"half{i}"], 1, stride=2))
    x = x.reshape(len(x), -1)
    for i in range(2):
        x = leaky(dense(x, params[f"dense{i}"]))
    return np.split(dense(x, params["posterior"]), 2, axis=1)


def generate(z, params):
    x = z[:, CLASS:]
    for i in range(3):
        x = leaky(dense(x, params[f"dense{i}"]))
    x = x.reshape(len(z), 2, 2, 8)
    modulation = dense(z[:, :CLASS], params["modulation"]).reshape(len(z), 2, 2, 1, 1, 8)
    for i in range(2):
        x = leaky(conv(np.kron(x, np.ones((1, 2, 2, 1))), params[f"block{i}"]["conv"], 1))
        x = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
        x = x * modulation[:, i, 0] + modulation[:, i, 1]
    x = leaky(conv(x, params["conv"], KERNEL // 2 - 1))
    return 1 / (1 + np.exp(-conv(x, params["image"], KERNEL // 2)))


@pytest.fixture(scope="module")
def networks():
    """An encoder, a decoder, and the variables of both."""
    encoder = two_encoder.Encoder(CHANNELS, KERNEL, HIDDEN, Z, CLASS)
    decoder = two_encoder.Decoder(CHANNELS, KERNEL, CLASS, SHAPE)
    variables = [
        jax.jit(module.init)(jax.random.key(i), jnp.zeros(shape))
        for i, (module, shape) in enumerate(((encoder, (1, *SHAPE)), (decoder, (1, Z))))
    ]
    return encoder, decoder, *variables


def test_forward_passes_equal_scipy(networks):
    encoder, decoder, e, d = networks
    x, z = RNG.random((3, *SHAPE), np.float32), RNG.normal(size=(3, Z)).astype(np.float32)
    wide = functools.partial(jax.tree.map, lambda a: np.asarray(a, np.float64))
    of_class, of_content = (tower(x, wide(e["params"][name])) for name in ("class", "content"))
    posterior = jax.jit(encoder.apply)(e, x)
    for got, *wanted in zip(posterior, of_class, of_content, strict=True):
        np.testing.assert_allclose(got, np.concatenate(wanted, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(decoder.apply)(d, z), generate(z, wide(d["params"])), rtol=1e-5, atol=1e-6)


def test_a_convolution_of_stride_2_and_its_gradients():
    x, kernel = RNG.normal(size=(2, 6, 8, 3)), RNG.normal(size=(4, 4, 3, 5))
    weights = RNG.normal(size=(2, 3, 4, 5))

    def plain(x, k):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, (2, 2), [(1, 1)] * 2, dimension_numbers=layout)

    def through(function):
        return jax.jit(jax.value_and_grad(lambda x, k: (weights * function(x, k)).sum(), (0, 1)))(x, kernel)

    got, wanted = through(convolution.convolve_half), through(plain)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, wanted)


# --- what sees what ---------------------------------------------------------------------------------------------------


def test_each_code_is_of_its_own_tower_and_each_tower_sees_the_image(networks):
    encoder, _, variables, _ = networks
    x = RNG.random((2, *SHAPE), np.float32)

    def codes(params, x):
        return jnp.split(encoder.apply({"params": params}, x).mean, [CLASS], -1)

    @jax.jit
    def gradients(params, x):
        losses, pull = jax.vjp(lambda *args: [(code**2).sum() for code in codes(*args)], params, x)
        return jax.vmap(pull)(list(jnp.eye(len(losses))))

    of_both = gradients(variables["params"], x)
    for i, (own, other) in enumerate((("class", "content"), ("content", "class"))):
        by_params, by_image = jax.tree.map(lambda leaf: leaf[i], of_both)  # noqa: B023
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(by_params[own]["conv"]))
        assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(by_params[other]))
        assert np.abs(by_image).max() > 0


def test_the_class_code_only_scales_and_shifts_channels(networks):
    """What AdaIN makes of it does not depend on the place: no class code moves anything before the next convolution."""
    x, weight, bias = RNG.normal(size=(2, 4, 4, 3)), RNG.normal(size=(2, 3)), RNG.normal(size=(2, 3))
    y = np.asarray(two_encoder.adain(x, weight, bias))
    np.testing.assert_allclose(y.mean((1, 2)), bias, atol=1e-6)
    np.testing.assert_allclose(y.std((1, 2)), np.abs(weight), rtol=1e-4)
    shifted = np.asarray(two_encoder.adain(5 * x + 7, weight, bias))  # no statistics of the content pass either
    np.testing.assert_allclose(shifted, y, rtol=1e-4, atol=1e-4)


def three_steps(settings):
    """A function from a source to the parameters after three steps on it."""
    networks, objective, create = dispatch.from_config(settings)
    first = jax.tree.map(lambda a: a[None], (jax.jit(create)(), schedule.hypers_at(settings, np.arange(3))))
    step = functools.partial(train_step.train_step, networks, objective)
    run = jax.jit(jax.vmap(step, (0, 0, 0, None), axis_name=parallel.AXIS))

    def trained_on(source):
        batch = batch_of(settings, source)
        return run(first[0], batch, first[1], jax.random.key(0))[0]

    return trained_on


def batch_of(settings, source):
    shard = parallel.Shard(4, 0, 1, 4)
    (batch,) = pipeline.batches(source, settings.data, seed=0, start=0, stop=3, substeps=3, shard=shard)
    assert set(batch) == {"x", "index"}
    np.testing.assert_array_equal(batch["index"][0], np.tile(np.arange(4), (3, 1)))  # a place in the batch, no more
    return batch


@pytest.mark.soak
def test_no_label_enters_training(tmp_path):
    """The same pictures with other classes, and with none, train the same networks bit by bit."""
    small = {"model.channels": (4, 8), "data.image_size": 8, "data.test_fraction": 0.25}
    x = RNG.integers(0, 256, (12, 8, 8, 3)).astype(np.uint8)
    labels = {"none": {}}
    for name in ("a", "b"):
        labels[name] = {"y_train": RNG.integers(0, 5, 12), "y_test": RNG.integers(0, 5, 4)}
    states, seen, trained_on = [], [], three_steps(recipe(**small))
    for name, y in labels.items():
        np.savez(tmp_path / f"{name}.npz", x_train=x, x_test=x[:4], **y)
        settings = recipe(**small | {"data.source": f"npz:{tmp_path}/{name}.npz", "eval.evaluators": ()})
        source = pipeline.build(settings.data)
        seen.append(source.labels)
        states.append(trained_on(source))
    assert seen[0] is None
    assert (seen[1][0] != seen[2][0]).any()
    for other in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, states[0], other)


# --- as a family ------------------------------------------------------------------------------------------------------


def test_translation_takes_each_code_from_its_image():
    settings = recipe(**{"model.channels": (4, 8), "data.image_size": 8})
    nets, _, create = dispatch.from_config(settings)
    model = inference.from_state(settings, nets, jax.jit(create)())
    a, b = RNG.random((2, 3, 8, 8, 3), np.float32)
    class_dim = settings.model.class_dim
    z = np.concatenate([model.encode(a).mean[:, :class_dim], model.encode(b).mean[:, class_dim:]], 1)
    np.testing.assert_allclose(model.translate(a, b), model.decode(z), rtol=1e-5)
    np.testing.assert_allclose(model.translate(a, a), model.reconstruct(a), rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"data.image_size": 18}, "data.image_size=18 is not a multiple of"),
        ({"data.image_size": 0}, "needs data.image_size of 1 or more"),
        ({"model.channels": (8,)}, "two widths or more"),
        ({"model.channels": (8, 12)}, "the last a multiple of 8"),
        ({"model.class_dim": 0}, "model.class_dim=0 must be at least 1"),
        ({"model.class_dim": 40, "model.z_dim": 40}, "leave some of model.z_dim=40"),
        ({"model.kernel": 4}, "model.kernel=4 must be an odd number"),
    ],
)
def test_what_cannot_be_built_is_refused(changed, says):
    settings = configs.read_recipe("configs/sprites.py")
    settings.update_from_flattened_dict(changed)
    with pytest.raises(UserError, match=says):
        models.build(settings.model, examples.of(settings.data).shape)


@pytest.mark.parametrize("image_size", [8, 24, 64])
def test_any_size_that_divides(image_size):
    settings = recipe(**{"data.image_size": image_size, "model.channels": (4, 8, 8)})
    networks, _, create = dispatch.from_config(settings)
    fresh, x = jax.eval_shape(create), jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    posterior = jax.eval_shape(networks.encoder.apply, fresh.encoder.variables, x)
    decoded = jax.eval_shape(networks.decoder.apply, fresh.decoder.variables, posterior.mean)
    assert (posterior.mean.shape, decoded.shape) == ((2, settings.model.z_dim), x.shape)


def test_bfloat16_leaves_parameters_and_posterior_in_float32():
    settings = recipe(**{"data.image_size": 8, "model.channels": (4, 8), "train.dtype": "bfloat16"})
    networks, _, create = dispatch.from_config(settings)
    fresh = jax.jit(create)()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(fresh.encoder.params)} == {"float32"}
    x = RNG.random((2, 8, 8, 3), np.float32)
    posterior = jax.jit(networks.encoder.apply)(fresh.encoder.variables, x)
    assert posterior.mean.dtype == jnp.float32
    wide, _, _ = dispatch.from_config(recipe(**{"data.image_size": 8, "model.channels": (4, 8)}))
    exact = jax.jit(wide.decoder.apply)(fresh.decoder.variables, posterior.mean)
    decoded = jax.jit(networks.decoder.apply)(fresh.decoder.variables, posterior.mean)
    assert decoded.dtype == jnp.bfloat16
    np.testing.assert_allclose(decoded.astype(np.float32), exact, atol=0.02)


def test_rematerialisation_changes_no_number(networks):
    _, decoder, _, variables = networks
    z = RNG.normal(size=(2, Z)).astype(np.float32)
    again = two_encoder.Decoder(CHANNELS, KERNEL, CLASS, SHAPE, remat=True)
    fresh = jax.eval_shape(again.init, jax.random.key(0), z)
    assert jax.tree.structure(fresh) == jax.tree.structure(variables)
    got, wanted = (jax.jit(module.apply)(variables, z) for module in (again, decoder))
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
