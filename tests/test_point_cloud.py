"""The networks of point clouds, and a run with them: trained, resumed exactly, loaded, planned, scored, pictured."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import stopped_after

import sintrovae_jax
from sintrovae_jax import config, main, models, parallel
from sintrovae_jax.config import validate
from sintrovae_jax.errors import UserError


def tiny():
    settings = config.read_recipe("configs/shapes.py")
    settings.data.points, settings.data.rotate = 24, 180.0
    settings.model.channels, settings.model.hidden, settings.model.decoder_channels = (4, 8), 8, (8,)
    settings.model.z_dim, settings.objective.num_vae = 3, 2
    settings.train.steps, settings.train.batch_size, settings.train.substeps = 6, 8, 2
    settings.optimizer.milestones = ()
    settings.checkpoint.every, settings.log.every, settings.log.figures_every = 2, 2, 0
    settings.log.report = False
    settings.eval.num_samples, settings.eval.standing_batches = 12, 2
    return settings


def test_the_published_networks_have_the_published_layers():
    settings = config.read_recipe("configs/shapenet.py")
    encoder, decoder = models.build(settings.model, (2048, 3))
    x, z = np.zeros((2, 2048, 3), np.float32), np.zeros((2, 128), np.float32)
    ours = jax.eval_shape(lambda: (encoder.init(jax.random.key(0), x)["params"], decoder.init(jax.random.key(0), z)))
    points, dense = (3, 64, 128, 256, 256, 512), (128, 64, 128, 512, 1024, 6144)
    of_points = sum(a * b + 2 * b for a, b in itertools.pairwise(points))  # BatchNorm's pairs; no biases
    of_clouds = (512 + 1) * 256 + 2 * (256 + 1) * 128
    counts = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in ours]
    assert counts == [of_points + of_clouds, sum((a + 1) * b for a, b in itertools.pairwise(dense))]


def variables(settings, x):
    encoder, decoder = models.build(settings.model, x.shape[1:])
    return encoder, encoder.init(jax.random.key(1), x), decoder, decoder.init(jax.random.key(2), np.zeros((1, 3)))


def test_the_order_of_the_points_does_not_matter():
    x = np.random.default_rng(0).normal(size=(2, 24, 3)).astype(np.float32)
    encoder, of_encoder, decoder, of_decoder = variables(tiny(), x)
    a, b = encoder.apply(of_encoder, x), encoder.apply(of_encoder, x[:, ::-1])
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-6)
    assert decoder.apply(of_decoder, a.mean).shape == (2, 24, 3)


def test_groups_are_normalised_by_themselves():
    rng = np.random.default_rng(0)
    a, b = (scale * rng.normal(size=(3, 24, 3)).astype(np.float32) for scale in (1, 5))
    encoder, of_encoder, _, _ = variables(tiny(), a)

    def encode(x, groups):
        run = jax.vmap(lambda x: encoder.apply(of_encoder, x, train=True, groups=groups).mean, axis_name=parallel.AXIS)
        return np.asarray(run(x[None]))[0]

    together = encode(np.concatenate([a, b]), 2)
    np.testing.assert_allclose(together, np.concatenate([encode(a, 1), encode(b, 1)]), atol=1e-4)


def test_a_run(tmp_path, capsys):
    settings = tiny()
    main.run("train", settings, tmp_path / "whole")
    assert np.isfinite(json.loads((tmp_path / "whole" / "results.json").read_text())["rec_error"])
    main.run("train", settings, stopped_after(4, tmp_path / "whole", tmp_path / "run"))
    resumed, whole = sintrovae_jax.load(tmp_path / "run"), sintrovae_jax.load(tmp_path / "whole")
    assert resumed.step == 6 and resumed.sample(0, 5).shape == (5, 24, 3)
    np.testing.assert_array_equal(resumed.sample(0, 5), whole.sample(0, 5))
    shutil.rmtree(tmp_path / "run" / "figures")
    for mode in ("eval", "sample", "reconstruct", "interpolate"):
        main.run(mode, settings, tmp_path / "run")
    figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert figures == {"samples.png", "reconstructions.png", "interpolations.png"}
    main.run("plan", settings, tmp_path / "none", main.Options(topology="h100:1"))
    assert "h100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("data.source", "moons", "objective.reconstruction=chamfer is for point clouds"),
        ("objective.reconstruction", "mse", "objective.reconstruction=chamfer is for point clouds"),
        ("data.image_size", 8, "set data.image_size=0"),
        ("data.flip", True, "are for images: set them to 0 for clouds"),
        ("data.points", 0, "data.points=0 must be at least 1"),
        ("data.rotate", 400.0, "data.rotate=400.0 must be from 0 to 360"),
    ],
)
def test_configs_that_cannot_work(key, value, says):
    settings = tiny()
    settings.data.rotate = 0.0
    settings.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=says):
        validate(settings)


@pytest.mark.parametrize(
    ("shape", "values", "says"),
    [
        ((8, 8, 1), {}, "is for clouds"),
        ((24, 3), {"channels": ()}, "at least one width"),
        ((24, 3), {"output": "sigmoid"}, "set model.output=linear"),
    ],
)
def test_networks_that_cannot_be_built(shape, values, says):
    settings = tiny()
    settings.model.update(values)
    with pytest.raises(UserError, match=says):
        models.build(settings.model, shape)
