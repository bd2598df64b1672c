"""Files that strangers made: they run no code, get no more memory than they fill, and their faults are one line."""

import json
import os
import shutil
import sys
from pathlib import Path

import fuzz
import numpy as np
import pytest
import tensorstore

import sintrovae_jax
from sintrovae_jax import checkpoint, cli, errors, files, inference, logs, main, workdirs
from sintrovae_jax import config as configs
from sintrovae_jax.data import pipeline
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import features
from sintrovae_jax.evaluators.scoring import Scoring
from sintrovae_jax.official import convert
from sintrovae_jax.tools import compare, export


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *(
            ("pictures", 200),
            ("arrays", 150),
            ("cars", 60),
            ("results", 100),
            ("standing", 60),
            ("weights", 60),
            ("torch", 60),
        ),
        *(("configs", 60), ("checkpoints", 10), ("standing", 60)),
    ],
)
def test_mutated_files_are_opened_or_refused_in_one_line(kind, count):
    if kind in ("torch", "weights"):
        pytest.importorskip("torch")
    outcomes = fuzz.outcomes(kind, 1, range(0, 7 * count, 7))  # few of the first ones, which are sound
    assert not {number: result for number, result in outcomes if result.startswith("FOUND")}


def test_the_fuzz_program_finds_what_there_is_to_find(monkeypatch, tmp_path):
    """Openers that do each of the things that are looked for."""

    def outcome(opener):
        monkeypatch.setitem(fuzz.KINDS, "wrong", fuzz.Kind(lambda: [{"x": b"abc"}], opener))
        (result,) = [result for _, result in fuzz.outcomes("wrong", 0, range(1))]
        return result

    def raising(error):
        def opener(folder):
            raise error

        return opener

    assert outcome(lambda folder: (folder / "x").read_bytes()) == "opened"
    assert outcome(raising(UserError("not so"))) == "refused: not so"
    assert outcome(raising(ValueError("a bug"))).startswith("FOUND: ValueError: a bug")
    assert outcome(raising(UserError("Unable to allocate 7 TiB"))).startswith("FOUND: a message")
    assert outcome(lambda folder: np.ones(2**31, np.uint8)).startswith("FOUND: MemoryError")
    monkeypatch.setitem(sys.modules, "antigravity", None)
    assert outcome(lambda folder: None) == "FOUND: code was run"


# Code


@pytest.fixture
def extractors(monkeypatch):
    """What may be imported, as it was when Python started."""
    known = {name: place for name, place in features.EXTRACTORS.items() if ":" not in name}
    monkeypatch.setattr(features, "EXTRACTORS", known)


@pytest.fixture
def stranger(tmp_path) -> Path:
    """A workdir whose config.json names code."""
    shutil.copytree(inference.PRETRAINED / "digits", tmp_path / "stranger")
    changed(tmp_path / "stranger", lambda values: values["eval"].update(features="antigravity:fly"))
    return tmp_path / "stranger"


def changed(workdir, change):
    """Changes a workdir's config.json."""
    values = json.loads((workdir / "config.json").read_text())
    change(values)
    (workdir / "config.json").write_text(json.dumps(values))


def test_code_that_a_config_json_alone_names_is_not_run(stranger, extractors, tmp_path):
    model = sintrovae_jax.load(stranger)
    assert model.sample(0, 1).shape == (1, 16, 16, 1)
    export.export(stranger, tmp_path / "out")
    for config in (model.config, sintrovae_jax.load(tmp_path / "out").config):
        assert config.eval.features == "antigravity:fly"
        with pytest.raises(UserError, match=r"give --config\.eval\.features=antigravity:fly, or trust=True to load"):
            features.build(config, None)
    with pytest.raises(UserError, match=r"that a config\.json alone names is not run"):
        Scoring(model, pipeline.build(model.config.data), tmp_path).extractor  # noqa: B018
    assert "antigravity" not in sys.modules


def test_code_is_run_that_the_user_names(stranger, extractors, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def build(config, source):\n    return 'built'\n")
    monkeypatch.syspath_prepend(tmp_path)
    changed(stranger, lambda values: values["eval"].update(features="mine:build"))
    with pytest.raises(UserError, match="is not run"):
        features.build(sintrovae_jax.load(stranger).config, None)
    assert features.build(sintrovae_jax.load(stranger, trust=True).config, None) == "built"
    monkeypatch.setattr(features, "EXTRACTORS", {})
    assert features.build(cli.read_config("digits", {"eval.features": "mine:build"}), None) == "built"
    monkeypatch.setattr(features, "EXTRACTORS", {})
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from sintrovae_jax import config\n\n\ndef get_config():\n    out = config.default()\n"
        "    out.eval.features = 'mine:build'\n    return out\n"
    )
    assert features.build(configs.read_recipe(str(recipe)), None) == "built"


def test_a_module_alone_is_no_extractor(extractors):
    features.trust("antigravity")
    with pytest.raises(UserError, match="'antigravity' is none of inception, classifier, nor a MODULE:FUNCTION"):
        features.builder("antigravity")
    assert "antigravity" not in sys.modules


# Memory and time


def stored_as(workdir, **fields):
    """Changes what a checkpoint says of one of its arrays."""
    item = workdir / "checkpoints" / "2000" / "ema"
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{item}/"}).result()
    key = b"encoder.params.posterior.dense.kernel/.zarray"
    store.write(key, json.dumps(json.loads(store.read(key).result().value) | fields).encode()).result()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"chunks": [10**6, 10**6]}, r"of shape \(512, 20\) is kept in pieces of \(1000000, 1000000\)"),
        ({"shape": [10**6, 10**6]}, "holds another model"),
    ],
)
def test_a_checkpoint_asks_for_no_memory(stranger, fields, says):
    """With pieces of 4 TB the process would end."""
    stored_as(stranger, **fields)
    with pytest.raises(UserError, match=says):
        sintrovae_jax.load(stranger)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"init_timestamp_nsecs": {}}, "Object must be of type"),
        ({"commit_timestamp_nsecs": 10**400}, "int too large to convert"),
    ],
)
def test_damaged_metadata_of_a_checkpoint_are_one_line(stranger, fields, says):
    place = stranger / "checkpoints" / "2000" / "_CHECKPOINT_METADATA"
    place.write_text(json.dumps(json.loads(place.read_text()) | fields))
    for read_only in (True, False):
        with pytest.raises(UserError, match=rf"the checkpoints of .* cannot be read \({says}"):
            checkpoint.Checkpoints(stranger, read_only=read_only)
    with pytest.raises(UserError, match="the checkpoints of"):
        sintrovae_jax.load(stranger)


def test_arrays_that_are_too_large_for_their_files_are_refused(stranger, monkeypatch):
    monkeypatch.setattr("sintrovae_jax.checkpoint._COMPRESSED", 0.5)
    with pytest.raises(UserError, match=r"\d+ bytes of files are too few for \d+ bytes of ema"):
        sintrovae_jax.load(stranger)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v["model"].update(channels=[8] * 1000), "and at most 64 of them"),
        (lambda v: v["model"].update(z_dim=10**30), "model.z_dim is a number of more than 64 bits"),
        (lambda v: v["model"].update(z_dim=2**62), "config.json"),
        (lambda v: v["train"].update(dtype={"a": 1}), "config.json"),
        (lambda v: v["model"].update(z_dim="8"), r"config\.json is no config of this project"),
        (lambda v: v["model"].update(z_dim=None), r"model\.z_dim has no value"),
    ],
)
def test_a_config_that_asks_for_too_much_is_one_line(stranger, change, says):
    changed(stranger, change)
    with pytest.raises(UserError, match=says):
        sintrovae_jax.load(stranger)


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"a": ' * 10**5, "[" + "1," * 2**21 + "1]"], ids=["list", "dict", "long"]
)
def test_json_that_is_deep_or_long_is_one_line(stranger, text):
    (stranger / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        sintrovae_jax.load(stranger)


def test_a_pth_is_not_compressed(tmp_path):
    torch = pytest.importorskip("torch")
    import zipfile

    torch.save({"model": {"x": torch.zeros(2**16)}}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as sound, zipfile.ZipFile(tmp_path / "y.pth", "w", 8) as bomb:
        for name in sound.namelist():
            bomb.writestr(name, sound.read(name))
    assert convert.read(tmp_path / "x.pth").tensors["x"].shape == (2**16,)
    with pytest.raises(UserError, match=r"or is damaged \(ValueError\)"):
        convert.read(tmp_path / "y.pth")


# Messages


def test_what_moves_the_cursor_is_escaped():
    assert str(UserError("a\x1b[2Jb\nc\r é ☃ …")) == r"a\x1b[2Jb\nc\r é ☃ …"
    assert errors.printable(os.fsdecode(b"caf\xe9")) == r"caf\udce9"


@pytest.mark.parametrize(
    ("text", "says"), [("[1]", "no object of metrics"), ("[" * 10**5, "it is too deep"), ("{", "cannot be read")]
)
def test_results_that_are_none(tmp_path, text, says):
    (tmp_path / workdirs.RESULTS).write_text(text)
    with pytest.raises(UserError, match=says):
        workdirs.read_results(tmp_path)


def test_names_of_results_do_not_move_the_cursor(tmp_path, capsys):
    (tmp_path / workdirs.RESULTS).write_text(json.dumps({"x\x1b[2J": "\n", "y": 1}))
    compare.main(["", str(tmp_path)])
    assert r"x\x1b[2J" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"step,loss\n1,2\n", "it has no column seconds"),
        (b"step,seconds,examples_per_second\n1,soon,2\n", "could not convert string to float: 'soon'"),
        (b"step\xff\n", "can't decode byte 0xff"),
        (b"step,seconds,examples_per_second\n\0", None),
        ("step,seconds,examples_per_second\n²,1,2\n".encode(), None),
    ],
)
def test_metrics_that_are_none(tmp_path, content, says):
    (tmp_path / workdirs.METRICS).write_bytes(content)
    if says is None:
        assert logs.read(tmp_path) == []
        return
    with pytest.raises(UserError, match=says):
        logs.read(tmp_path)


# Paths


def test_a_workdir_whose_path_is_not_utf_8_is_one_line_and_nothing_is_written(latin1, monkeypatch):
    config = configs.read_recipe("gaussians8")
    for mode in ("train", "eval", "sample"):
        with pytest.raises(UserError, match=r"caf\\udce9/run is not in UTF-8, as the paths of workdirs must be"):
            main.run(mode, config, Path(latin1) / "run")
    for call in (
        lambda: sintrovae_jax.load(latin1),
        lambda: export.export("pretrained:digits", f"{latin1}/out"),
        lambda: convert.to_torch(latin1, Path("out.pth")),
    ):
        with pytest.raises(UserError, match="is not in UTF-8"):
            call()
    assert os.listdir(latin1) == []
    monkeypatch.chdir(latin1)
    with pytest.raises(UserError, match="is not in UTF-8"):
        files.writable(Path("run"))


def test_names_that_are_not_utf_8_can_be_printed(latin1, tmp_path):
    """By a program whose stdout takes UTF-8 alone."""
    import subprocess

    (Path(latin1) / workdirs.RESULTS).write_text('{"step": 3}')
    line = [sys.executable, "-m", "sintrovae_jax.tools.compare", latin1]
    root = str(Path(__file__).parents[1])
    done = subprocess.run(line, env=os.environ | {"PYTHONPATH": root}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"caf\udce9" in done.stdout
