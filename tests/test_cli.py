"""The command line: options, overrides, and what it says of mistakes."""

import importlib
import re
import sys

import pytest

from sintrovae_jax import cli, config, extras, keys, main, schema
from sintrovae_jax.errors import UserError

PROGRAMS = ["main", "tools.bench", "tools.compare", "tools.export", "official.convert"]


def given(*arguments: str):
    """The config of these arguments for the recipe digits."""
    others, overrides = cli.split(arguments)
    assert not others
    return cli.read_config("digits", overrides)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.model.channels=8", "--config.model.channels=64"], (64,)),
        (["--config.model.channels=(8,16)", "--config.model.channels=(64,32)"], (64, 32)),
        (["--config.model.channels", "8", "--config.seed=1", "--config.model.channels", "64,32"], (64, 32)),
        (["--config.model.channels=64", "--config.model.channels=()"], ()),
    ],
)
def test_of_a_tuple_that_is_given_twice_the_last_counts(arguments, expected):
    assert given(*arguments).model.channels == expected


def test_of_an_option_that_is_given_twice_the_last_counts():
    twice = ["--config", "rings", "--mode=eval", "--workdir", "a", "--config=digits", "--mode", "sample", "--workdir=b"]
    args = main._parser().parse(twice)
    assert (args.config, args.mode, args.workdir) == ("digits", "sample", "b")


def test_overrides_may_stand_anywhere_and_keep_their_types():
    arguments = ["--config.seed=3", "--a", "1", "--config.data.download", "--config.objective.gamma_r", "-1", "--b=2"]
    others, overrides = cli.split(arguments)
    assert others == ["--a", "1", "--b=2"]
    changed = cli.read_config("digits", overrides)
    assert (changed.seed, changed.data.download, changed.objective.gamma_r) == (3, True, -1.0)
    assert given("--config.data.crop=False").data.crop is given("--noconfig.data.crop").data.crop is False


@pytest.mark.parametrize("key", ["objective.scale", "eval.likelihood.observation_std"])
def test_none_is_the_default_of_a_key_that_has_a_type_only(key):
    def value(*texts):
        return config.flatten(given(*(f"--config.{key}={text}" for text in texts)))[key]

    assert isinstance(schema.keys()[key].default, keys.Optional)
    assert (value("0.5"), value("None"), value("0.5", "None"), value("None", "0.5")) == (0.5, None, None, 0.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config.train.steps"], "--config.train.steps needs a value"),
        (["--config.train.steps=many"], "--config.train.steps=many"),
        (["--config.train=5"], "unknown config key train; it is a section, of steps, batch_size"),
        (["--config.=5"], "unknown config key"),
        (["--noconfig.data.crops"], "unknown config key data.crops; the nearest is data.crop"),
        (["--config.model.channels=(8,"], "--config.model.channels="),
    ],
)
def test_an_override_that_does_not_fit(arguments, says):
    with pytest.raises(UserError, match=re.escape(says)) as error:
        given(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no recipe given: add --config NAME"),
        (["--config="], "no recipe given: add --config NAME"),
        (["--config"], "argument --config: expected one argument"),
        (["--config", "digits", "--workdri=x"], "unknown option --workdri=x; did you mean --workdir?"),
        (["--config", "digits", "--train.steps=5"], "a key is given as --config.train.steps=VALUE"),
        (["--config", "digits", "train.steps=5"], "a key is given as --config.train.steps=VALUE"),
        (
            ["--config", "digits", "--lr=5"],
            "--lr=5; as a key of the recipe, --config.KEY=VALUE, the nearest are",
        ),
        (["--config", "digits", "--dispatches=3"], "unknown option --dispatches=3"),  # it is bench's
        (["--config", "digits", "--topology=v5e:2x2"], "--topology is for --mode plan, not train"),
        (
            ["--config", "digits", "--mode=plan", "--interpolation=spherical"],
            "--interpolation is for --mode interpolate",
        ),
        (["--config", "digits", "--level=top"], "argument --level: invalid int value: 'top'"),
    ],
)
def test_what_the_command_line_does_not_know(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(says)):
        main.main(["main", *arguments])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("optimizer.lr", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("lr_decay", "optimizer.decay"),
        ("bs", "train.batch_size"),
        ("batchsize", "train.batch_size"),
        ("data.batch_size", "train.batch_size"),
        ("n_steps", "train.steps"),
        ("epochs", "train.steps"),
        ("train.num_epochs", "train.steps"),
        ("beta_kl", "objective.beta_kl"),
        ("objective.kl", "objective.beta_kl"),
        ("model.zdim", "model.z_dim"),
        ("latent_dim", "model.z_dim"),
        ("model.layers", "model.channels"),
        ("model.chanels", "model.channels"),
        ("data.path", "data.source"),
        ("dataset", "data.source"),
        ("resolution", "data.image_size"),
        ("train.precision", "train.dtype"),
        ("eval.n_samples", "eval.num_samples"),
        ("random_seed", "seed"),
    ],
)
def test_a_key_that_is_meant_is_named(name, nearest):
    assert nearest in re.split(", | ", keys.hint(name, schema.keys()))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("log.interval", "log has every, figures_every, figures, report, wandb"),
        ("optimizer.beta1", "optimizer has learning_rate, prior_learning_rate, milestones, decay"),
        ("gpus", "none is like it: sintrovae_jax/schema.py has them all"),
    ],
)
def test_of_a_key_like_no_other_the_section_is_described(name, says):
    assert keys.hint(name, schema.keys()) == says


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("module", PROGRAMS)
def test_help_fits_a_screen(module, flag, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"sintrovae_jax.{module}").main(["program", flag])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 24
    assert "usage: " in text
    if module not in ("tools.compare", "tools.export"):
        assert "--config RECIPE" in text and "--config.KEY=VALUE" in text
    if module == "main":
        assert all(mode in text for mode in (*main.MODES, "translate"))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_without_the_extra_one_line_names_it_before_anything_is_written(mode, tmp_path, monkeypatch):
    for name in ("tensorflow", "PIL"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"PIL, tensorflow are not installed: install the extra `train`"):
        main.run(mode, config.read_recipe("digits"), tmp_path / "run")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    extras.need_train()


@pytest.mark.parametrize(
    ("key", "value", "advice"),
    [
        ("train.steps", 1003, "give 1000 or 1025"),
        ("objective.num_vae", 10, "give 0 or 25"),
        ("log.every", 10, "give 25,"),
        ("checkpoint.every", 49, "give 25 or 50"),
    ],
)
def test_a_length_between_dispatches_is_answered_with_those_that_work(key, value, advice):
    with pytest.raises(UserError, match=rf"{key}={value} is not a multiple of train\.substeps=25.*{advice}"):
        config.validate(given(f"--config.{key}={value}"))


def test_lengths_of_levels_are_answered_together():
    settings = cli.read_config("digits_style", {"growth.steps": "(333,1,700)", "train.substeps": "50"})
    with pytest.raises(UserError, match=r"give \(350, 50, 700\), or another train\.substeps"):
        config.validate(settings)
