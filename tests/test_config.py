"""Recipes and keys: every key has one definition, and what a recipe says and nobody knows is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment

from sintrovae_jax import config, keys, schema
from sintrovae_jax.errors import UserError

RECIPES = sorted(Path("configs").glob("*.py"))
HEAD = "from sintrovae_jax.config import default\n\n\ndef get_config():\n    config = default()\n"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_file_of_the_folder_is_a_recipe_that_can_run(path):
    config.validate(config.read_recipe(str(path)))


def test_defaults_are_values_that_their_keys_may_have():
    plain = config.flatten(config.default())
    assert plain.keys() == schema.defaults().keys()
    keys.check(schema.keys(), plain)
    assert all(key.about or key.check for key in schema.keys().values()), "what does it mean?"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("config.model.chanels = (8,)", r"unknown config key model\.chanels; the nearest is model\.channels"),
        ("config.eval.ood.sauce = 'letters'", r"unknown config key eval\.ood\.sauce; the nearest is eval\.ood\.source"),
        ("del config.data.source", r"lacks data\.source"),
        ("return {}", r"returns no ConfigDict"),
    ],
)
def test_a_recipe_with_other_keys_is_refused(tmp_path, line, says):
    (tmp_path / "mine.py").write_text(f"{HEAD}    {line}\n    return config\n")
    with pytest.raises(UserError, match=says):
        config.read_recipe(str(tmp_path / "mine.py"))


def test_a_recipe_is_found_by_its_name_from_anywhere(tmp_path):
    line = [sys.executable, "-m", "sintrovae_jax.main", "--config", "gaussians8", "--mode", "plan", "--topology"]
    ended = subprocess.run(
        [*line, "h100:1"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "h100" in ended.stdout
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_near_one_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such config file: gausians8; did you mean .*gaussians8\.py"):
        config.read_recipe("gausians8")


@pytest.mark.parametrize(("name", "other"), [("svhn", "cifar10"), ("fmnist", "mnist"), ("ffhq", "celebahq")])
def test_recipes_with_one_preset_differ_in_their_data_alone(name, other):
    """So their steps are the same programs: those of one are compiled in other tests."""
    one, two = config.read_recipe(name), config.read_recipe(other)
    for section in ("model", "objective"):
        assert one[section] == two[section]
    assert (one.train.batch_size, one.data.image_size) == (two.train.batch_size, two.data.image_size)
