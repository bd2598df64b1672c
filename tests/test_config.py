"""Recipes and keys: every key has one definition, and what a recipe says and nobody knows is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment

from sintrovae_jax import config, keys, recipe_files, schema
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
        ("return {}", r"returns no ConfigDict$"),
        ("return", r"returns no ConfigDict: let it end with `return config`"),
        ("config.seed = 1 / 0", r"mine\.py:6: ZeroDivisionError: division by zero"),
        ("config.seed = config.sed", r"mine\.py:6: AttributeError: 'sed' Did you mean \"seed\""),
        ("config.seed = 'many'", r"mine\.py:6: TypeError: Could not override field 'seed'"),
        ("raise ValueError('not\\nthis')", r"mine\.py:6: not this"),
        ("from tensorfow import nothing", r"mine\.py:6: ModuleNotFoundError: No module named 'tensorfow'"),
        ("config.seed = {", r"mine\.py:6: SyntaxError: '{' was never closed"),
        ("  config.seed = 1", r"mine\.py:6: IndentationError: unexpected indent"),
        ("config.seed = '\x00'", r"mine\.py: SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_a_recipe_with_other_keys_is_refused(tmp_path, line, says):
    (tmp_path / "mine.py").write_text(f"{HEAD}    {line}\n    return config\n")
    with pytest.raises(UserError, match=says) as error:
        config.read_recipe(str(tmp_path / "mine.py"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", [".", "a folder", "a:b", "a.py:b"])
@pytest.mark.parametrize(("argument", "seed"), [("", 0), (":", 1), (":2", 2), (":2:3.py", 2)])
def test_a_recipe_may_lie_anywhere_take_an_argument_and_import_what_lies_beside_it(tmp_path, folder, argument, seed):
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    (place / "lies_beside_it.py").write_text("def number(text):\n    return int(text.split(':')[0] or 1)\n")
    (place / "mine.py").write_text(
        "from sintrovae_jax.config import default\n\nimport lies_beside_it\n\n\ndef get_config(text='0'):\n"
        "    config = default()\n    config.seed = lies_beside_it.number(text)\n    return config\n"
    )
    path = list(sys.path)
    assert config.read_recipe(f"{place}/mine.py{argument}").seed == seed
    assert recipe_files.find(f"{place}/mine.py{argument}").file == place / "mine.py"
    assert sys.path == path


def test_a_folder_is_no_recipe(tmp_path):
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(UserError, match=r"is a folder: name a recipe in it, such as .*mine\.py"):
        config.read_recipe(str(tmp_path))
    with pytest.raises(UserError, match=r"mine\.py is no recipe: it has no get_config\(\) that takes '4'"):
        config.read_recipe(f"{tmp_path}/mine.py:4")
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(UserError, match=r"mine\.txt is not a Python file"):
        config.read_recipe(f"{tmp_path}/mine.txt")


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
    with pytest.raises(UserError, match=r"no such config file: gausians8; did you mean gaussians8\?"):
        config.read_recipe("gausians8")
    with pytest.raises(UserError, match=r"no such config file: gaussians8\.py; did you mean gaussians8\?"):
        config.read_recipe("gaussians8.py")
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(UserError, match=r"did you mean .*/mine\.py\?"):
        config.read_recipe(f"{tmp_path}/mime.py:4")
    with pytest.raises(UserError, match=r"no such config file: tower; by name there are cars3d, .*svhn"):
        config.read_recipe("tower")


@pytest.mark.parametrize(("name", "other"), [("svhn", "cifar10"), ("fmnist", "mnist"), ("ffhq", "celebahq")])
def test_recipes_with_one_preset_differ_in_their_data_alone(name, other):
    """So their steps are the same programs: those of one are compiled in other tests."""
    one, two = config.read_recipe(name), config.read_recipe(other)
    for section in ("model", "objective"):
        assert one[section] == two[section]
    assert (one.train.batch_size, one.data.image_size) == (two.train.batch_size, two.data.image_size)
