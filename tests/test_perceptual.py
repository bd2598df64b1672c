"""The perceptual reconstruction error: against scipy's convolutions, and files that are no VGG-16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, metrics, run
from ml_collections import ConfigDict
from scipy.signal import correlate

from sintrovae_jax import perceptual, reconstruction
from sintrovae_jax.errors import UserError

RNG = np.random.default_rng(0)


def random_vgg(path, without=""):
    """An .npz in the published layout, of made-up numbers."""
    arrays = {}
    for name, shape in perceptual.published().items():
        spread = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 0.1
        arrays[name] = RNG.normal(0, spread, shape).astype(np.float32)
    arrays["classifier.0.bias"] = np.zeros(4096, np.float32)  # the published file has these too
    arrays.pop(without, None)
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_vgg(tmp_path_factory.mktemp("vgg") / "vgg.npz")


def test_the_layers_are_vgg16s():
    shapes = perceptual.published()
    assert [int(name.split(".")[1]) for name in shapes if "weight" in name] == [
        0,
        2,
        5,
        7,
        10,
        12,
        14,
        17,
        19,
        21,
        24,
        26,
        28,
    ]
    assert sum(np.prod(shape) for shape in shapes.values()) == 14_714_688  # the published count without the classifier


def test_the_error_equals_scipys(weights):
    """A stage at a time, as far as relu2_2; then what comes after by jax's own convolution."""
    layers = perceptual.read(weights)
    x, x_hat = RNG.random((2, 1, 32, 32, 3), np.float32)

    def one(image):
        maps, place = [], iter(layers)
        for stage, widths in enumerate(perceptual.WIDTHS):
            for number in range(len(widths)):
                kernel, bias = next(place)
                if stage < 1:
                    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
                    out = [correlate(padded, kernel[..., o], "valid")[..., 0] for o in range(len(bias))]
                    image = np.maximum(np.stack(out, -1) + bias, 0)
                else:
                    layout = ("NHWC", "HWIO", "NHWC")
                    out = jax.lax.conv_general_dilated(image[None], kernel, (1, 1), "SAME", dimension_numbers=layout)
                    image = np.maximum(np.asarray(out)[0] + bias, 0)
                if (stage, number) in ((0, 1), (1, 1), (2, 1), (3, 2)):
                    maps.append(image)
            height, width, channels = image.shape
            image = image.reshape(height // 2, 2, width // 2, 2, channels).max((1, 3)).astype(np.float32)
        return [*maps, image]

    wanted = np.abs(x - x_hat).mean()
    wanted += sum(np.abs(a - b).mean() for a, b in zip(one(x[0]), one(x_hat[0]), strict=True))
    got = jax.jit(perceptual.error)(layers, jnp.asarray(x), jnp.asarray(x_hat))
    np.testing.assert_allclose(got, [wanted * 32 * 32 * 3], rtol=1e-4)


def test_grey_is_repeated_and_equal_images_have_no_error(weights):
    error = functools.partial(jax.jit(perceptual.error), perceptual.read(weights))
    x, x_hat = RNG.random((2, 2, 32, 32, 1), np.float32)
    np.testing.assert_allclose(3 * error(x, x_hat), error(x.repeat(3, -1), x_hat.repeat(3, -1)), rtol=1e-4)
    np.testing.assert_array_equal(error(x, x), 0)


@pytest.mark.soak
def test_a_run_with_it(tmp_path, weights):
    args = [*TINY, "--config.train.batch_size=2", "--config.eval.evaluators=latents", "--config.eval.num_samples=4"]
    args += [f"--config.{length}=1" for length in ("train.steps", "train.substeps", "log.every", "checkpoint.every")]
    args += ["--config.objective.name=vae", "--config.objective.reconstruction=perceptual"]
    args += ["--config.model.family=mlp", "--config.data.image_size=32"]
    run("sprites", tmp_path / "run", *args, f"--config.objective.vgg={weights}")
    (row,) = metrics(tmp_path / "run")
    assert 0 < float(row["rec_real"]) < 1e6


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda path: random_vgg(path, without="features.12.bias"),
            "features.12.bias of shape (256,) is missing or unfit",
        ),
        (lambda path: path.write_bytes(b"PK no zip"), "holds no VGG-16, or is damaged"),
        (lambda path: None, "there is no such file. objective.reconstruction=perceptual needs VGG-16's weights"),
    ],
)
def test_bad_weights_are_one_line(tmp_path, make, says):
    make(tmp_path / "vgg.npz")
    objective = ConfigDict({"reconstruction": "perceptual", "vgg": str(tmp_path / "vgg.npz")})
    with pytest.raises(UserError) as error:
        reconstruction.weights(objective)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_no_weights_are_one_line(tmp_path, monkeypatch):
    for name, value in (("XDG_CACHE_HOME", tmp_path), ("TORCH_HOME", tmp_path), (perceptual.VARIABLE, "")):
        monkeypatch.setenv(name, str(value))
    out = run("sprites", tmp_path / "run", "--config.objective.reconstruction=perceptual", code=2)
    assert len(out.strip().splitlines()) == 1
    assert "needs VGG-16's weights, torchvision's vgg16-397923af.pth" in out
    assert not (tmp_path / "run" / "config.json").exists()
