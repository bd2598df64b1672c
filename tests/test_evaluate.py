"""Scoring a checkpoint: what is reported, that how the work is split does not matter, bad input."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, run

from sintrovae_jax import config as configs
from sintrovae_jax import dispatch, inference, train_state, workdirs
from sintrovae_jax.data import pipeline
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import evaluation, features, frechet, inception, kid, likelihood, ood, precision_recall
from sintrovae_jax.evaluators.scoring import Scoring, source_of
from sintrovae_jax.models import Stage, style
from sintrovae_jax.tools import compare

SCORE = [
    "--config.data.image_size=8",
    "--config.eval.evaluators=latents,fid,kid,precision_recall,likelihood,ood",
    "--config.eval.features=classifier",
    "--config.eval.ood.source=letters",
    "--config.eval.num_samples=300",
    "--config.eval.num_real=400",
    "--config.eval.kid.subsets=20",
    "--config.eval.kid.subset_size=100",
    "--config.eval.likelihood.num_scored=100",
    "--config.eval.likelihood.importance_samples=20",
    "--config.eval.ood.bootstrap=50",
]


@pytest.mark.soak
def test_figures_and_that_no_split_of_the_work_changes_them(tmp_path):
    """At the end of training on one device, and from its checkpoint in chunks of another size on four devices."""
    workdir = tmp_path / "run"
    args = (*TINY, "--config.train.steps=20", "--config.objective.num_vae=20", *SCORE)
    run("digits", workdir, *args, f"--config.eval.cache={workdir / 'cache'}")
    results = json.loads((workdir / "results.json").read_text())
    assert (workdir / "figures" / "ood.png").stat().st_size > 5_000
    assert len(list((workdir / "cache").iterdir())) == 1
    says_what_it_depends_on(results)
    # Its training is rounded in another way by another number of threads.
    of_classifier = ("_classifier", "classifier_")
    wanted = {k: v for k, v in numbers(results).items() if not any(part in k for part in of_classifier)}
    model, own = inference.load(workdir), f"{__name__}:pixels"
    features.trust(own)
    model.config.eval.update({"features": own, "cache": "", "evaluators": ("fid", "kid", "precision_recall")})
    of_pixels = evaluation.metrics_of(model, pipeline.build(model.config.data), workdir)
    wanted |= {k: v for k, v in of_pixels.items() if "pixels" in k and isinstance(v, float)}
    other = ("--config.eval.batch_size=90", "--config.eval.cache=", f"--config.eval.features={own}")
    run("digits", workdir, "--mode", "eval", *args, *other, devices=4)
    got = json.loads((workdir / "results.json").read_text())
    assert {k: got[k] for k in wanted} == pytest.approx(wanted, rel=1e-5)


def numbers(results):
    found = {k: v for k, v in results.items() if isinstance(v, float) and "second" not in k}
    assert len(found) > 30
    return found


def pixels(config, source):
    return features.Extractor("pixels", "1", lambda variables, x: x.reshape(len(x), -1) * variables["gain"], GAIN)


GAIN = {"gain": np.float32(2)}


def says_what_it_depends_on(got):
    assert got["frechet_classifier_samples"] == got["kid_classifier_samples"] == 300
    assert got["frechet_classifier_real"] == 400
    assert got["precision_classifier_real"] == got["precision_classifier_samples"] == 300
    assert re.fullmatch("classifier [0-9a-f]{64}", got["features"])
    assert got["reference"] == "train"
    assert got["batch_norm"] == "running"
    assert got["ood_source"] == "letters"
    assert got["importance_samples"] == 20
    assert got["observation_std"] == pytest.approx(0.2**0.5)  # sqrt(beta_kl / (2 beta_rec))
    assert got["log_likelihood_images"] == got["ood_images"] == got["ood_test_images"] == 100
    assert "fid" not in got
    assert got["classifier_accuracy"] > 0.95
    assert got["elbo"] < got["log_likelihood"]
    assert got["bits_per_dimension"] == pytest.approx(8 - got["log_likelihood"] / (64 * np.log(2)))


def settings(**changed):
    config = configs.read_recipe("configs/digits.py")
    config.data.image_size, config.model.channels, config.eval.cache = 8, (4,), ""
    small = {"num_samples": 40, "num_real": 50, "batch_size": 32, "features": "classifier"}
    config.eval.update_from_flattened_dict(small | changed)
    return config


KEPT = {}


def untrained(config):
    networks, _, create = dispatch.from_config(config)
    return inference.from_state(config, networks, train_state.initial(create))


@functools.cache
def small_model():
    return untrained(settings())


def scoring(tmp_path, **changed):
    config = settings(**changed)
    features.trust(config.eval.features)
    return Scoring(dataclasses.replace(small_model(), config=config), pipeline.build(config.data), tmp_path, KEPT)


def random_inception(path):
    """An .npz in the published layout."""
    rng, arrays = np.random.default_rng(0), {}
    for name, shape in inception.published().items():
        spread = np.prod(shape[1:]) ** -0.5
        made_up = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 0.5}[name.rsplit(".", 1)[1]]
        arrays[name] = rng.normal(0, spread, shape) if len(shape) == 4 else np.full(shape, made_up)
    np.savez(path, **{name: array.astype(np.float32) for name, array in arrays.items()})
    return path


@pytest.mark.soak
def test_fid_is_inceptions(tmp_path):
    weights = random_inception(tmp_path / "weights.npz")
    names = ("fid", "precision_recall")
    counts = {"num_samples": 4, "num_real": 5, "batch_size": 4}
    inside = scoring(tmp_path, features="inception", inception=str(weights), evaluators=names, **counts)
    fid = frechet.evaluate(inside)
    assert set(fid) == {"fid", "fid_samples", "fid_real", "features", "reference"}
    assert fid["fid"] > 0
    assert fid["features"].startswith("inception ")
    assert inside.real.vectors.shape == (5, 2048)
    assert set(precision_recall.evaluate(inside)) >= {"precision", "recall", "precision_samples"}
    # The vectors are those of the images as a PNG file has them.
    pixels = np.round(np.asarray(inside.model.decode(inside.model.prior(0, 4))).clip(0, 1) * 255) / 255
    alone = inside.extractor.apply(inside.extractor.variables, pixels.astype(np.float32))
    np.testing.assert_allclose(inside.generated.vectors, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.soak
def test_the_reference_is_computed_once_and_kept(tmp_path):
    options = {"cache": str(tmp_path / "cache"), "evaluators": ("kid",)}
    first = scoring(tmp_path, **options).real
    (path,) = (tmp_path / "cache").iterdir()
    before = path.stat().st_mtime_ns
    again = scoring(tmp_path, **options).real
    assert path.stat().st_mtime_ns == before
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    path.write_bytes(path.read_bytes()[:100])  # damaged: made anew
    np.testing.assert_array_equal(scoring(tmp_path, **options).real.vectors, first.vectors)
    other = scoring(tmp_path, **options | {"reference": "test"}).real
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not np.array_equal(other.mean, first.mean)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert scoring(tmp_path, **options | {"cache": str(blocked)}).real.count == 50  # only a warning


def test_extractors_do_not_share_what_is_kept(tmp_path):
    """They say the same of themselves, but are named differently."""
    options = {"cache": str(tmp_path / "cache"), "evaluators": ("fid",)}
    bright, dark = (scoring(tmp_path, features=f"{__name__}:{name}", **options) for name in ("brightness", "darkness"))
    np.testing.assert_allclose(dark.real.mean, -bright.real.mean, rtol=1e-6)
    again = scoring(tmp_path, features=f"{__name__}:darkness", **options)
    np.testing.assert_array_equal(again.real.mean, dark.real.mean)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.soak
def test_a_bfloat16_model_is_scored_in_float32(tmp_path):
    rounded = features.as_stored(jnp.full((1, 2, 2, 1), 0.7, jnp.bfloat16))
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, round(float(jnp.bfloat16(0.7)) * 255) / 255, rtol=1e-6)
    config = settings(
        evaluators=("latents", "fid", "likelihood"), **{"likelihood.num_scored": 10, "likelihood.importance_samples": 3}
    )
    config.train.dtype = "bfloat16"
    model = untrained(config)
    got = evaluation.metrics_of(model, pipeline.build(config.data), tmp_path)
    assert all(np.isfinite(v) for v in evaluation.numbers(got).values())


@pytest.mark.soak
def test_a_network_that_is_growing_is_scored_by_blended_images(tmp_path):
    config = configs.read_recipe("configs/digits_style.py")
    config.data.image_size, config.model.channels, config.model.z_dim = 8, (4, 4), 4
    config.growth.steps, config.growth.batch_sizes = (100, 100), ()
    config.eval.update({"num_samples": 40, "num_real": 60, "batch_size": 20, "features": "classifier"})
    chosen = ("latents", "fid", "precision_recall", "likelihood", "ood")
    small = {"evaluators": chosen, "likelihood.num_scored": 20, "likelihood.importance_samples": 3}
    small |= {"ood.bootstrap": 10, "ood.source": "letters"}
    config.eval.update_from_flattened_dict(small | {"cache": str(tmp_path / "cache")})
    grown = untrained(config)
    model = dataclasses.replace(grown, stage=Stage(1, 0.5))
    source = source_of(model, pipeline.build(config.data))
    got = evaluation.numbers(evaluation.metrics_of(model, source, tmp_path))
    assert all(np.isfinite(v) for v in got.values())
    assert not list((tmp_path / "cache").glob("reference-*"))  # the next step's blend is another
    # Both sides of the detection are blended, and what is compared with samples is too.
    whole = pipeline.build(config.data).at(8)
    wanted = style.blended_images(whole.test(20, 0), model.stage)
    one = Scoring(model, source, tmp_path)
    np.testing.assert_allclose(one.test_scores["reconstruction"], one.scores(wanted)["reconstruction"], rtol=1e-5)
    letters = style.blended_images(ood.outside_source(config, {}).at(8).test(20, 0), model.stage)
    inside, outside = one.test_scores["kl"], one.scores(letters)["kl"]
    assert got["ood_auroc_kl"] == pytest.approx(ood.detection(inside, outside).auroc)
    plain = np.concatenate(list(whole.train(50)))[:50].astype(np.float32) / 255
    np.testing.assert_allclose(next(source.train(50)), style.blended_images(plain, model.stage), atol=1e-6)


@pytest.mark.soak
def test_scores_that_are_not_finite_are_not_figures(tmp_path):
    """They end no run."""
    one = scoring(
        tmp_path, evaluators=("fid", "kid", "precision_recall", "likelihood", "ood"), **{"ood.source": "letters"}
    )
    small = {"kid.subset_size": 20, "likelihood.num_scored": 10, "likelihood.importance_samples": 2}
    one.model.config.eval.update_from_flattened_dict(small | {"ood.bootstrap": 5})
    broken = jax.tree.map(lambda x: x * np.nan, one.model.variables["decoder"])
    model = dataclasses.replace(one.model, variables={**one.model.variables, "decoder": broken})
    got = evaluation.metrics_of(model, one.source, tmp_path)
    for name in ("frechet_classifier", "kid_classifier", "precision_classifier", "log_likelihood", "ood_auroc_elbo"):
        assert np.isnan(got[name]), name
    assert np.isfinite(got["ood_auroc_kl"])
    written = json.loads(workdirs.write_results(tmp_path, got).read_text())
    assert written["frechet_classifier"] is None


@pytest.mark.soak
def test_a_better_match_scores_better(tmp_path):
    """Test images against training images, in place of samples, beside an untrained model's."""
    poor = scoring(tmp_path, evaluators=("fid", "kid", "precision_recall"), num_samples=250, num_real=1500)
    good = scoring(tmp_path, evaluators=("fid", "kid", "precision_recall"), num_samples=250, num_real=1500)
    good.__dict__["generated"] = scoring(
        tmp_path, evaluators=("kid",), reference="test", num_real=250
    ).real  # a cached property
    for config in (poor.model.config, good.model.config):
        config.eval.kid.subset_size = 100
    metrics = (frechet, kid, precision_recall)
    good, poor = ({k: v for metric in metrics for k, v in metric.evaluate(one).items()} for one in (good, poor))
    assert good["frechet_classifier"] < 5 < poor["frechet_classifier"]
    assert good["kid_classifier"] < poor["kid_classifier"] / 10
    assert good["precision_classifier"] > 0.8 > poor["precision_classifier"]
    assert good["recall_classifier"] > 0.7 > poor["recall_classifier"]


def brightness(config, source):
    """An extractor of one's own."""
    return features.Extractor("brightness", "1", lambda variables, x: x.mean((1, 2)) * variables["gain"], GAIN)


def darkness(config, source):
    bright = brightness(config, source)
    return bright._replace(variables={"gain": -bright.variables["gain"]})


def test_an_extractor_of_ones_own(tmp_path):
    mine = scoring(tmp_path, features=f"{__name__}:brightness", evaluators=("fid",))
    got = frechet.evaluate(mine)
    assert got["features"] == "brightness 1"
    real = np.concatenate(list(mine.source.train(50)))[:50].mean((1, 2, 3)) / 255 * 2
    pixels = np.round(np.asarray(mine.model.decode(mine.model.prior(0, 40))).clip(0, 1) * 255) / 255
    fake = pixels.mean((1, 2, 3)) * 2
    wanted = (real.mean() - fake.mean()) ** 2 + (real.std(ddof=1) - fake.std(ddof=1)) ** 2
    assert got["frechet_brightness"] == pytest.approx(wanted, rel=1e-4)


def test_scores_rise_with_what_the_model_finds_likely(tmp_path):
    one = scoring(
        tmp_path,
        **{"ood.source": "letters", "likelihood.num_scored": 30, "likelihood.importance_samples": 5},
        **{"ood.bootstrap": 20},
    )
    x = one.source.test(30, 0)
    scores = one.test_scores
    posterior = one.model.encode(x)
    rec = np.square(x - np.asarray(one.model.decode(posterior.mean))).sum((1, 2, 3))
    np.testing.assert_allclose(scores["reconstruction"], -rec, rtol=1e-5)
    mean, logvar = np.asarray(posterior.mean), np.asarray(posterior.logvar)
    np.testing.assert_allclose(scores["kl"], -0.5 * (np.exp(logvar) + mean**2 - 1 - logvar).sum(1), rtol=1e-4)
    assert likelihood.evaluate(one)["log_likelihood"] == pytest.approx(scores["likelihood"].mean())
    got = ood.evaluate(one)
    assert got["ood_auroc_kl_low"] <= got["ood_auroc_kl"] <= got["ood_auroc_kl_high"]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"evaluators": ("fid",), "features": "inception", "inception": "/nowhere.npz"}, "there is no such file"),
        ({"evaluators": ("kid",), "num_samples": 60, "kid.subset_size": 55}, "there are 50"),
        (
            {"evaluators": ("precision_recall",), "precision_recall.neighbours": 45},
            "needs at least 46 samples: eval.num_samples=40",
        ),
        ({"evaluators": ("fid",), "features": "moments"}, "eval.features='moments' is none of inception, classifier"),
        ({"evaluators": ("fid",), "features": "nowhere:build"}, "cannot be imported: No module named 'nowhere'"),
        ({"evaluators": ("fid",), "features": "./mine.py:build"}, "eval.features='./mine.py:build' cannot be"),
        ({"evaluators": ("ood",), "ood.source": "rings"}, "eval.ood.source: data.source=rings is a density"),
        (
            {"evaluators": ("ood",), "ood.source": "npz:x.npz"},
            "x.npz has images of shape (5, 5, 1)",
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, changed, says):
    np.savez(tmp_path / "x.npz", x=np.zeros((10, 5, 5, 1), np.float32))
    one = scoring(tmp_path, **{"likelihood.importance_samples": 1, "likelihood.num_scored": 5} | changed)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        evaluation.metrics_of(one.model, one.source, tmp_path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_classifier_needs_labels(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((40, 8, 8, 1), np.uint8))
    config = settings()
    config.data.source = f"npz:{tmp_path / 'x.npz'}"
    unlabelled = Scoring(dataclasses.replace(small_model(), config=config), pipeline.build(config.data), tmp_path)
    with pytest.raises(UserError, match="needs labels to learn"):
        frechet.evaluate(unlabelled)


def test_a_table_of_workdirs_side_by_side(tmp_path, capsys):
    a, b, empty = (str(tmp_path / name) for name in "abc")
    workdirs.write_results(
        tmp_path / "a", {"kl_gap": 0.123456789, "ood_auroc_kl": 0.5, "step": 20, "skipped_files": ["x"]}
    )
    workdirs.write_results(tmp_path / "b", {"kl_gap": float("nan"), "step": 20})
    compare.main(["compare", a, b, "--metrics", "ood_auroc", "kl_gap"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [[a, b], ["kl_gap", "0.12346", "-"], ["ood_auroc_kl", "0.5", "-"]]
    compare.main(["compare", a])
    assert "skipped_files" not in capsys.readouterr().out
    assert "warning" not in capsys.readouterr().err
    with pytest.raises(UserError, match="no metric begins with nothing"):
        compare.main(["compare", a, "--metrics", "nothing"])
    with pytest.raises(UserError, match=r"has no results\.json"):
        compare.main(["compare", empty])


def test_scores_by_different_classifiers_are_not_compared_silently(tmp_path, capsys):
    a, b, c, d = (str(tmp_path / name) for name in "abcd")
    used = {a: "classifier 12ab", b: "classifier 34cd", c: "classifier 12ab", d: "moments"}
    for workdir, extractor in used.items():
        results = {"frechet_classifier": 1.5, "ood_auroc": 0.9, "features": extractor}
        workdirs.write_results(tmp_path / workdir, results)
    compare.main(["compare", a, b, "--metrics", "frechet"])
    assert f"({a}: classifier 12ab; {b}: classifier 34cd)" in capsys.readouterr().err
    for others in ([a, c], [a, c, d], [a, b, "--metrics", "ood"]):
        compare.main(["compare", *others])
        assert capsys.readouterr().err == ""
