"""An evaluator of somebody else's scores, with a key of its own and a best checkpoint, and no edit of the package."""

import json

import numpy as np
import pytest
import toy_evaluator
import toy_family

import sintrovae_jax
from sintrovae_jax import config, evaluators, main, models
from sintrovae_jax.errors import UserError


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(evaluators.EVALUATORS, "brightness", toy_evaluator.EVALUATOR)
    monkeypatch.setitem(models.FAMILIES, "toy", toy_family.FAMILY)
    settings = config.read_recipe("digits")
    settings.model.family, settings.data.image_size, settings.objective.name = "toy", 8, "vae"
    settings.train.steps = settings.log.every = settings.checkpoint.every = 25
    settings.eval.evaluators, settings.checkpoint.best, settings.log.figures_every = ("brightness",), "brightness", 0
    settings.log.report = False
    settings.eval.num_samples = 20
    return settings


def test_an_evaluator_is_one_file(toy, tmp_path):
    toy.eval.brightness.times = 3
    main.run("train", toy, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    model = sintrovae_jax.load(tmp_path, "best")
    assert results["brightness"] == pytest.approx(3 * float(np.mean(model.sample(toy.seed, 20))), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"eval.brightness.times": 0}, r"eval\.brightness\.times=0 must be at least 1"),
        ({"data.image_channels": 3}, "scores grey images"),
        ({"checkpoint.best": "darkness"}, r"is no metric of eval\.evaluators \(brightness\)"),
    ],
)
def test_its_checks_are_asked(toy, tmp_path, change, says):
    toy.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=says):
        main.run("train", toy, tmp_path / "run")
    assert not (tmp_path / "run").exists()
