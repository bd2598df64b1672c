"""A family of somebody else's is trained, resumed, loaded, planned, scored and pictured with no edit of the package."""

import json

import numpy as np
import pytest
import toy_family
from conftest import stopped_after

import sintrovae_jax
from sintrovae_jax import config, main, models
from sintrovae_jax.errors import UserError


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(models.FAMILIES, "toy", toy_family.FAMILY)
    settings = config.read_recipe("configs/digits.py")
    settings.model.family, settings.data.image_size, settings.checkpoint.every = "toy", 8, 25
    settings.objective.num_vae, settings.train.steps, settings.log.figures_every = 25, 75, 0
    settings.log.report = False
    settings.optimizer.milestones, settings.log.every, settings.eval.num_samples = (), 25, 32
    return settings


def test_a_family_is_one_file(toy, tmp_path, capsys):
    main.run("train", toy, tmp_path / "whole")
    model = sintrovae_jax.load(tmp_path / "whole")
    assert isinstance(model, toy_family.ToyModel)
    assert (tmp_path / "whole" / "figures" / "filters.png").exists()
    assert model.filters().shape == (10, 8, 8, 1)
    assert np.isfinite(json.loads((tmp_path / "whole" / "results.json").read_text())["kl_gap"])

    main.run("train", toy, stopped_after(50, tmp_path / "whole", tmp_path / "run"))
    resumed = sintrovae_jax.load(tmp_path / "run")
    assert resumed.step == 75
    np.testing.assert_array_equal(resumed.sample(0, 5), model.sample(0, 5))

    for mode in ("eval", "sample", "filters"):
        main.run(mode, toy, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["step"] == 75
    main.run("plan", toy, tmp_path / "none", main.Options(topology="h100:1"))
    assert "h100" in capsys.readouterr().out


def test_its_mode_is_of_its_models_alone(toy, tmp_path):
    toy.model.family = "conv"
    with pytest.raises(UserError, match=r"--mode filters is for model\.family=toy, not conv"):
        main.run("filters", toy, tmp_path)
