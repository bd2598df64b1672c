"""Conditional models: labels in both networks and in every pass of a step, from the data to samples of a class."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import metrics, run, stopped_after
from PIL import Image
from test_groups import in_one_step, widened

import sintrovae_jax
from sintrovae_jax import config as configs
from sintrovae_jax import main, objectives, parallel, seeds, train_state, train_step
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import mlp
from sintrovae_jax.objectives import Hyper
from sintrovae_jax.tools import export

CLASSES, Z, BATCH, SHAPE = 10, 4, 3, (8, 8, 1)
LABELS = jnp.array([0, 7, 2])
NETWORKS = mlp.Encoder((5,), Z, classes=CLASSES), mlp.Decoder((5,), SHAPE, classes=CLASSES)
TINY = {
    "data.image_size": 8,
    "model.family": "mlp",
    "model.channels": (16,),
    "train.batch_size": 8,
    "train.substeps": 5,
    "train.steps": 20,
    "objective.num_vae": 10,
    "optimizer.milestones": (),
    "checkpoint.every": 10,
    "log.every": 5,
    "log.figures_every": 0,
    "log.report": False,
    "eval.evaluators": (),
    "eval.num_samples": 24,
    "eval.standing_batches": 2,
}


def settings(**values):
    config = configs.read_recipe("configs/digits_conditional.py")
    with config.ignore_type():
        config.update_from_flattened_dict(TINY | values)
    return config


# --- networks ---------------------------------------------------------------------------------------------------------


def test_the_label_is_a_column_of_the_layer_beside_the_latents():
    """Of the fully connected networks, in numpy; the convolutional ones are compared in `test_convert`."""
    encoder, decoder = NETWORKS
    rng = np.random.default_rng(0)
    x, z = rng.random((BATCH, *SHAPE), np.float32), rng.normal(size=(BATCH, Z)).astype(np.float32)
    of_encoder, of_decoder = (
        module.init(jax.random.key(0), inputs, labels=LABELS) for module, inputs in ((encoder, x), (decoder, z))
    )

    def dense(variables, i, inputs, column=None):
        layer = variables["params"][f"Dense_{i}"]["dense"]
        out = inputs @ layer["kernel"][: inputs.shape[1]] + layer["bias"]
        return out if column is None else out + layer["kernel"][inputs.shape[1] :][column]

    hidden = np.maximum(dense(of_encoder, 0, x.reshape(BATCH, -1)), 0)
    mean = encoder.apply(of_encoder, x, labels=LABELS).mean
    np.testing.assert_allclose(mean, dense(of_encoder, 1, hidden, LABELS)[:, :Z], rtol=1e-5, atol=1e-6)
    image = dense(of_decoder, 1, np.maximum(dense(of_decoder, 0, z, LABELS), 0)).reshape(BATCH, *SHAPE)
    np.testing.assert_allclose(decoder.apply(of_decoder, z, labels=LABELS), image, rtol=1e-5, atol=1e-6)
    weights = jax.nn.one_hot(LABELS, CLASSES)
    np.testing.assert_allclose(decoder.apply(of_decoder, z, labels=weights), image, rtol=1e-5, atol=1e-6)


class Apart:
    """A network that is given every group by itself, each with the labels of the batch."""

    def __init__(self, inner):
        self.inner, self.z_dim = inner, Z
        self.seen = []

    def apply(self, variables, inputs, *, labels, groups, mutable, **options):
        self.seen.append(labels)
        outputs = []
        for some in jnp.split(inputs, groups):
            out, _ = self.inner.apply(variables, some, labels=LABELS, mutable=[], groups=1, **options)
            outputs.append(out)
        kept = {name: variables[name] for name in mutable}
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs), kept


def test_every_pass_of_a_step_has_the_labels_of_the_batch():
    """Terms and gradients are those of single passes, each of x, recon or fake, that are given the batch's labels.

    Which pass is given what does not depend on the family.
    """
    with jax.enable_x64(True):
        encoder, decoder = NETWORKS
        nets = train_state.Networks(encoder, decoder, optax.identity(), optax.identity())
        apart = nets._replace(encoder=Apart(encoder), decoder=Apart(decoder))
        state = widened(train_state.create(nets, 1, SHAPE, Z, conditional=True))
        x = jnp.asarray(np.random.default_rng(0).random((BATCH, *SHAPE)))
        noise = train_step.draw_noise(parallel.example_keys(seeds.key(0), jnp.int32(0), jnp.arange(BATCH)), Z)
        hyper = Hyper(**dict.fromkeys(Hyper._fields, 1.0) | {"alpha": 2.0, "scale": 1 / 64, "gamma_r": 0.5})
        static = train_step.Static(use_gamma_r=True)
        together, terms = in_one_step(nets, static, state, x, noise, hyper, LABELS)
        separate, same = in_one_step(apart, static, state, x, noise, hyper, LABELS)
        assert {len(seen) for seen in apart.encoder.seen + apart.decoder.seen} == {BATCH, 2 * BATCH}
        close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-9)
        jax.tree.map(close, terms, same)
        jax.tree.map(close, together.encoder.params, separate.encoder.params)
        jax.tree.map(close, together.decoder.params, separate.decoder.params)
        _, others = in_one_step(nets, static, state, x, noise, hyper, LABELS[::-1])
        assert all(abs(others[name] - terms[name]) > 1e-6 for name in objectives.OBJECTIVES["soft_intro"].logged)


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("conditional") / "run"
    evaluators = ("latents", "fid", "class_accuracy", "likelihood", "ood")
    few = {"eval.likelihood.num_scored": 12, "eval.likelihood.importance_samples": 3, "eval.ood.bootstrap": 5}
    config = settings(**{"eval.evaluators": evaluators, "eval.ood.source": "letters", **few})
    main.run("train", config, workdir)
    return workdir


def test_results_say_how_many_samples_of_each_class_are_named_as_asked(trained):
    results = json.loads((trained / "results.json").read_text())
    each = [results[f"class_accuracy_{label}"] for label in range(10)]
    counts = np.bincount(np.arange(24) % 10)
    assert results["class_accuracy"] == pytest.approx(np.average(each, weights=counts))
    assert results["classifier_accuracy"] > 0.99
    assert np.isfinite([v for v in results.values() if isinstance(v, float)]).all()
    assert Image.open(trained / "figures" / "samples.png").size == (6 * 89, 6 * 89)  # ten rows, a pixel apart


def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(trained, tmp_path):
    main.run("train", settings(), stopped_after(10, trained, tmp_path / "run"))
    resumed, whole = (sintrovae_jax.load(workdir, ema=False) for workdir in (tmp_path / "run", trained))
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)


@pytest.mark.soak
def test_four_devices_train_as_one(trained, tmp_path):
    given = [f"--config.{key}={re.sub(' ', '', str(value))}" for key, value in TINY.items()]
    run("digits_conditional", tmp_path / "run", *given, devices=4)
    terms = objectives.OBJECTIVES["soft_intro"].logged
    one, four = ([[float(row[term] or 0) for term in terms] for row in metrics(d)] for d in (trained, tmp_path / "run"))
    np.testing.assert_allclose(four, one, rtol=1e-4)
    assert all(one[-1]), "the last steps have all terms"


def test_samples_of_a_class(trained, tmp_path):
    export.export(trained, tmp_path / "exported")
    model = sintrovae_jax.load(tmp_path / "exported")
    z = model.prior(0, 12)
    np.testing.assert_array_equal(model.sample(0, 12), model.decode(z, role="prior", labels=np.arange(12) % 10))
    sevens = model.sample(0, 12, labels=[7] * 12)
    np.testing.assert_array_equal(sevens[7], model.sample(0, 12)[7])
    assert np.abs(sevens - model.sample(0, 12, labels=[3] * 12)).max() > 1e-3
    labels = np.arange(12) % 10
    posterior = model.encode(sevens, labels)
    assert np.abs(posterior.mean - model.encode(sevens, labels[::-1]).mean).max() > 1e-3
    recon = model.reconstruct(sevens, labels)
    np.testing.assert_array_equal(recon, model.decode(posterior.mean, labels=labels))
    between = model.interpolate(sevens[:5], sevens[5:10], 3, labels=(labels[:5], labels[5:10]))
    np.testing.assert_allclose(between[:, 0], recon[:5], atol=1e-5)
    np.testing.assert_allclose(between[:, -1], recon[5:10], atol=1e-5)
    likelihood = model.log_likelihood(sevens, 5, labels=labels)
    assert np.abs(likelihood - model.log_likelihood(sevens, 5, labels=labels[::-1])).max() > 1e-3


def test_the_modes_take_labels(trained):
    config = configs.of_workdir(trained)
    main.run("sample", config, trained, main.Options(classes=(1, 3)))
    written = np.load(trained / "samples.npz")
    np.testing.assert_array_equal(written["labels"], [1, 3] * 12)
    model = sintrovae_jax.load(trained)
    np.testing.assert_allclose(written["x"], model.sample(0, 24, labels=written["labels"]), atol=1e-6)
    for options in (main.Options(a="0", b="5"), main.Options(a="0", b="5", classes=(4, 4))):
        main.run("interpolate", config, trained, options)
    for mode in ("reconstruct", "interpolate"):
        main.run(mode, config, trained)


def test_a_plan(capsys, tmp_path):
    main.run("plan", settings(), tmp_path, main.Options(topology="h100:1"))
    assert "h100" in capsys.readouterr().out


# --- wrong usage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model.family": "style", "model.channels": (4, 4)}, "model.family=style takes no labels: set"),
        ({"data.source": "rings", "data.image_size": 0}, "data.source=rings has no labels: set model.classes=0"),
        ({"model.classes": -1}, "model.classes=-1 must be at least 0"),
        ({"model.classes": 9}, "model.classes=9, but data.source=digits has labels 0 to 9"),
        ({"model.classes": 0, "eval.evaluators": ("class_accuracy",)}, "class_accuracy evaluator is for conditional"),
        ({"eval.evaluators": ("class_accuracy",), "eval.num_samples": 9}, "needs a sample of each class"),
    ],
)
def test_configs_that_cannot_work(values, says, tmp_path):
    with pytest.raises(UserError, match=re.escape(says)):
        main.run("train", settings(**values), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--mode", "sample", "--class", "10"], "--class 10: labels are from 0 to 9"),
        (["--mode", "sample", "--class", "one"], "--class 'one' is no label"),
        (["--mode", "sample", "--class", "7" * 5000], "is no label"),
        (["--mode", "sample", "--class", "7,3,7"], "--class 7,3,7: a label is given twice"),
        (["--mode", "sample", "--class", "7,3", "--config.eval.num_samples=1"], "2 labels for eval.num_samples=1"),
        (["--mode", "eval", "--class", "1"], "--class is for --mode sample"),
        (["--mode", "interpolate", "--a", "0", "--b", "1", "--class", "1"], "needs the labels of both"),
        (["--mode", "interpolate", "--a", "x.png", "--b", "1"], "add --class A,B"),
    ],
)
def test_labels_of_the_command_line_that_cannot_work(args, says, trained):
    with pytest.raises(UserError, match=re.escape(says)):
        main.main(["main", "--workdir", str(trained), *args])


def test_labels_that_a_model_cannot_use(trained):
    model = sintrovae_jax.load(trained)
    x = np.zeros((2, *SHAPE))
    for labels, says in (
        (None, "needs labels, whole numbers [N] from 0 to 9"),
        ([0, 10], "labels are from 0 to 9 here, not from 0 to 10"),
        ([[1], [1, 2]], "labels are no array"),
        (np.full((2, 10), np.nan), "weights of classes are finite"),
        (np.full((2, 10), "a"), "labels are whole numbers"),
        ([1], "whole numbers of shape [2] here, not int64 (1,)"),
        ([0.5, 1.0], "whole numbers of shape [2] here, not float64"),
    ):
        with pytest.raises(UserError, match=re.escape(says)):
            model.reconstruct(x, labels)
    for unconditional in (sintrovae_jax.load("pretrained:digits"), sintrovae_jax.load("pretrained:digits_style")):
        with pytest.raises(UserError, match="takes no labels"):
            unconditional.sample(0, 2, labels=[0, 1])
