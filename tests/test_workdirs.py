"""What a workdir knows: whose it is, what it was trained on, and what the modes need besides it."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_evaluator
from ml_collections import ConfigDict
from PIL import Image

import sintrovae_jax
from sintrovae_jax import config, evaluators, files, main, standing, workdirs
from sintrovae_jax.data import folder as folder_source
from sintrovae_jax.data import identity, pipeline
from sintrovae_jax.errors import UserError
from sintrovae_jax.evaluators import features
from sintrovae_jax.tools import compare, export


def pictures(folder: Path, numbers=range(12), seed: int = 0) -> Path:
    """One-coloured pictures, whose files are all of one size."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        colour = np.random.default_rng([seed, number]).integers(0, 256, 3, np.uint8)
        Image.fromarray(np.broadcast_to(colour, (8, 8, 3))).save(folder / f"{number}.bmp")
    return folder


def tiny(source: str, **values) -> ConfigDict:
    """A run of a second."""
    settings = config.read_recipe("digits")
    quick = {
        "log.every": 5,
        "log.figures_every": 0,
        "log.figures": False,
        "log.report": False,
        "checkpoint.every": 5,
        "checkpoint.keep": 9,
        "checkpoint.best": "",
    }
    quick |= {"train.steps": 10, "train.substeps": 5, "train.batch_size": 4, "eval.evaluators": ("latents",)}
    quick |= {"eval.num_samples": 8, "eval.standing_batches": 2, "objective.name": "vae", "objective.num_vae": 0}
    settings.update_from_flattened_dict(quick | {"model.channels": (4,), "model.family": "mlp", "model.z_dim": 2})
    settings.update_from_flattened_dict({"data.source": source, "data.image_size": 8, **values})
    return settings


@pytest.fixture(scope="module")
def of_folder(tmp_path_factory) -> Path:
    """A run on a folder of pictures, in `pictures` beside the workdir `run`."""
    top = tmp_path_factory.mktemp("of_folder")
    main.run("train", tiny(f"folder:{pictures(top / 'pictures')}"), top / "run")
    return top


@pytest.fixture
def run(of_folder, tmp_path) -> Path:
    """A copy of it, whose config.json names the copy of the pictures."""
    shutil.copytree(of_folder, tmp_path / "copy")
    workdir = tmp_path / "copy" / "run"
    change(workdir, **{"data.source": f"folder:{tmp_path / 'copy' / 'pictures'}"})
    return workdir


def change(workdir: Path, **values) -> ConfigDict:
    """Changes values of config.json; None removes one. Returns the config that it then stands for."""
    stored = json.loads((workdir / "config.json").read_text())
    for name, value in values.items():
        *path, last = name.split(".")
        section = stored
        for part in path:
            section = section.setdefault(part, {})
        if value is None:
            del section[last]
        else:
            section[last] = value
    (workdir / "config.json").write_text(json.dumps(stored))
    return stored


def moved(workdir: Path, **values) -> ConfigDict:
    """The workdir's config, with other values."""
    settings = config.of_workdir(workdir)
    settings.update_from_flattened_dict(values)
    return settings


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(run, monkeypatch) -> Path:
    """The folder of the run and its pictures is the home folder; another one is the current folder."""
    monkeypatch.setenv("HOME", str(run.parent))
    (run.parent / "elsewhere").mkdir()
    monkeypatch.chdir(run.parent / "elsewhere")
    return run.parent


def test_every_path_that_a_user_gives_is_one_place(home, capsys):
    assert files.place("~/run") == files.place("../run") == files.place(str(home / "run")) == home / "run"
    assert str(files.place("gs://bucket/run")) == files.resolved("gs://bucket/run") == "gs://bucket/run"
    assert sintrovae_jax.load("~/run").step == 10
    compare.main(["compare", "~/run"])
    assert "rec_error" in capsys.readouterr().out
    export.main(["export", "~/run", "~/out"])
    assert sintrovae_jax.load("../out").step == 10
    assert pipeline.build(tiny("folder:~/pictures").data).count == 11
    np.savez(home / "arrays.npz", np.zeros((9, 8, 8), np.uint8))
    assert pipeline.build(tiny("npz:~/arrays.npz").data).count == 8
    main.run(
        "interpolate", tiny("folder:~/pictures"), home / "run", main.Options("~/pictures/1.bmp", "../pictures/2.bmp")
    )
    summary = features.summarise([np.zeros((3, 2), np.float32)], keep=False)
    features.cached("~/cache", ["it"], lambda: summary)
    assert len(list((home / "cache").iterdir())) == 1
    assert not list((home / "elsewhere").iterdir())


def test_a_workdir_under_home_is_one_folder(home):
    (home / "elsewhere" / "mine.py").write_text(
        "from pathlib import Path\nfrom sintrovae_jax import config\n"
        f"def get_config():\n    return config.of_workdir(Path({str(home / 'run')!r}))\n"
    )
    main.main(["main", "--config=~/elsewhere/mine.py", "--workdir=~/runs/x", "--config.train.steps=5"])
    assert {"config.json", "data.json", "checkpoints", "metrics.csv"} <= {p.name for p in (home / "runs/x").iterdir()}
    assert [path.name for path in (home / "elsewhere").iterdir()] == ["mine.py"]


@pytest.mark.parametrize("path", ["", "~no_such_user/run"])
def test_what_is_no_path_is_one_line(path):
    with pytest.raises(UserError, match=r"an empty path|~no_such_user/run: there is no such home folder"):
        files.place(path)


def test_a_config_means_the_same_from_every_folder(home):
    paths = {"data.dir": "sets", "objective.vgg": "~/vgg.npz", "eval.ood.source": "npz:../other.npz", "eval.cache": ""}
    config.write(tiny("folder:../pictures", **paths), home)
    stored = config.flatten(config.of_workdir(home))
    wanted = {"data.dir": f"{home}/elsewhere/sets", "eval.ood.source": f"npz:{home}/other.npz"}
    wanted |= {"data.source": f"folder:{home}/pictures", "objective.vgg": "~/vgg.npz", "eval.cache": ""}
    assert {name: stored[name] for name in wanted} == wanted


def test_no_figures_are_drawn_for_a_run_that_wants_none(of_folder):
    """That they are drawn by default, test_train.py says."""
    assert not (of_folder / "run" / "figures").exists()
    assert (of_folder / "run" / "results.json").exists()


# --- whose a workdir is -----------------------------------------------------------------------------------------------


def test_checkpoints_without_a_config_are_no_runs(run):
    settings = moved(run)
    (run / "config.json").unlink()
    before = everything(run)
    with pytest.raises(UserError, match=r"has checkpoints, but no config\.json .* or use another --workdir"):
        main.run("train", settings, run)
    with pytest.raises(UserError, match=r"has checkpoints, but no config\.json that says what they are of"):
        sintrovae_jax.load(run)
    assert everything(run) == before


def test_a_config_without_checkpoints_is_a_start(tmp_path):
    """As after a process that ended before its first checkpoint."""
    settings = tiny("digits", **{"train.steps": 5})
    config.write(settings, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    main.run("train", settings, tmp_path)
    assert sintrovae_jax.load(tmp_path).step == 5


def test_a_refusal_names_three_keys_and_counts_the_others(run):
    others = {"seed": 7, "model.z_dim": 3, "optimizer.learning_rate": 0.5, "train.batch_size": 6, "data.flip": True}
    with pytest.raises(UserError) as error:
        main.run("sample", moved(run, **others), run)
    assert "data.flip (False there, True here), model.z_dim (2 there, 3 here), optimizer.learning" in str(error.value)
    assert "and 2 more; give the same values" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [{"data.source": "folder:/nowhere"}, {"eval.evaluators": ("ood",)}])
def test_a_refused_run_leaves_no_folder(tmp_path, values):
    with pytest.raises(UserError):
        main.run("train", tiny("digits", **values), tmp_path / "runs" / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["[1]", "3", "{"])
def test_results_that_are_no_object_are_one_line_and_stay(run, text):
    (run / "results.json").write_text(text)
    before = everything(run)
    for call in (
        lambda: main.run("train", moved(run, **{"train.steps": 15}), run),
        lambda: main.run("eval", moved(run), run),
        lambda: compare.main(["compare", str(run)]),
        lambda: export.export(run, run.parent / "out"),
    ):
        with pytest.raises(UserError, match=r"results\.json (is no object of metrics|cannot be read .*): move it away"):
            call()
    assert everything(run) == before


# --- keys that came later ---------------------------------------------------------------------------------------------


def test_a_key_that_came_later_has_its_default(run, monkeypatch):
    monkeypatch.setitem(evaluators.EVALUATORS, "brightness", toy_evaluator.EVALUATOR)
    assert sintrovae_jax.load("pretrained:digits").config.eval.brightness.times == 1
    assert "brightness" not in json.loads((run / "config.json").read_text())["eval"]
    main.run("train", moved(run, **{"train.steps": 15, "eval.brightness.times": 2}), run)
    assert sintrovae_jax.load(run).step == 15
    assert json.loads((run / "config.json").read_text())["eval"]["brightness"] == {"times": 2}


def test_a_key_that_nothing_knows_is_named(run, caplog, monkeypatch):
    monkeypatch.setattr(config.log.parent, "propagate", True)
    change(run, **{"eval.darkness.times": 3})
    assert sintrovae_jax.load(run).step == 10
    assert "config.json has eval.darkness.times, which nothing here knows: ignored" in caplog.text
    change(run, **{"objective.twist": 1.0})
    with pytest.raises(UserError, match=r"config\.json has objective\.twist, which nothing here knows"):
        sintrovae_jax.load(run)


# --- the data ---------------------------------------------------------------------------------------------------------


def test_data_may_move(run):
    there = run.parent / "there"
    (run.parent / "pictures").rename(there)
    place = f"folder:{there}"
    main.run("eval", moved(run, **{"data.source": place}), run)
    main.run("train", moved(run, **{"data.source": place, "train.steps": 15}), run)
    assert config.of_workdir(run).data.source == place
    main.run("eval", config.of_workdir(run), run)
    with pytest.raises(UserError, match=r"made by another config: data\.source \(folder:.* there, kth:"):
        main.run("train", moved(run, **{"data.source": f"kth:{there}"}), run)


@pytest.mark.parametrize(
    ("memory_gib", "checked", "checked_bytes"), [(2.0, 99, 9999), (1e-9, 99, 9999), (2.0, 11, 9999), (2.0, 99, 2951)]
)
def test_changed_data_are_counted(tmp_path, monkeypatch, memory_gib, checked, checked_bytes):
    """Also where they are read during training. Of many large files, a change that keeps the size is not seen."""
    monkeypatch.setattr(folder_source, "_CHECKED", checked)
    monkeypatch.setattr(folder_source, "_CHECKED_BYTES", checked_bytes)
    folder = pictures(tmp_path / "pictures")
    settings = tiny(f"folder:{folder}", **{"data.memory_gib": memory_gib})
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    config.write(settings, tmp_path / "run")
    identity.write(pipeline.build(settings.data).identity, tmp_path / "run")
    config.refuse_other_data(settings, pipeline.build(settings.data).identity, tmp_path / "run")
    pictures(folder, [12, 13, 14])
    (folder / "0.bmp").unlink()
    pictures(folder, [1], seed=1)
    with (folder / "2.bmp").open("ab") as file:
        file.write(b"0")
    changed = 2 if (checked, checked_bytes) == (99, 9999) else 1
    with pytest.raises(UserError) as error:
        config.refuse_other_data(settings, pipeline.build(settings.data).identity, tmp_path / "run")
    assert f"trained on (files: 3 new, 1 gone, {changed} changed): restore the data" in str(error.value)
    assert "go on with --config.data.accept_changes=True" in str(error.value)


def test_changed_data_are_refused_until_they_are_accepted(run):
    pictures(run.parent / "pictures", [20])
    before = everything(run)
    longer = {"train.steps": 15}
    for mode in ("train", "eval", "reconstruct"):
        with pytest.raises(UserError, match=r"\(files: 1 new\).*data\.accept_changes=True"):
            main.run(mode, moved(run, **longer), run)
    assert everything(run) == before
    main.run("train", moved(run, **longer, **{"data.accept_changes": True}), run)
    assert not config.of_workdir(run).data.accept_changes, "it is for one command"
    assert len(json.loads((run / "data.json").read_text())["parts"]) == 13
    main.run("train", moved(run, **{"train.steps": 20}), run)
    pictures(run.parent / "pictures", [21])
    with pytest.raises(UserError, match=r"\(files: 1 new\)"):
        main.run("eval", moved(run), run)


def test_a_workdir_that_does_not_say_what_its_data_were(run):
    """Of an earlier version: at the same place, the data are taken for what they were."""
    (run / "data.json").unlink()
    shutil.copytree(run.parent / "pictures", run.parent / "there")
    elsewhere = {"data.source": f"folder:{run.parent / 'there'}"}
    with pytest.raises(UserError, match=r"has no data\.json, so that folder:.*there cannot be compared"):
        main.run("eval", moved(run, **elsewhere), run)
    main.run("eval", moved(run, **elsewhere, **{"data.accept_changes": True}), run)
    main.run("train", moved(run, **{"train.steps": 15}), run)
    assert (run / "data.json").exists()


def test_arrays_are_compared_by_content(tmp_path):
    def of(**arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        return pipeline.build(tiny(f"npz:{tmp_path / 'x.npz'}").data).identity

    x, y = np.arange(640, dtype=np.uint8).reshape(10, 8, 8), np.arange(10)
    old = of(x_train=x, x_test=x[:2], y_train=y, y_test=y[:2])
    assert identity.difference(old, of(x_train=x, x_test=x[:2], y_train=y, y_test=y[:2])) == ""
    assert identity.difference(old, of(x_train=x + 1, x_test=x[:2], y_train=y, y_test=y[:2])) == "arrays: 1 changed"
    assert identity.difference(old, of(x=x)) == "arrays: 1 new, 4 gone"
    assert pipeline.build(tiny("digits").data).identity is None


@pytest.mark.parametrize("text", ["{", "[1]", '{"what": "files", "parts": 3}'])
def test_a_damaged_record_of_the_data_is_one_line(run, text):
    (run / "data.json").write_text(text)
    with pytest.raises(UserError, match=r"data\.json .*: restore it, or move it away"):
        main.run("eval", moved(run), run)


# --- what modes need --------------------------------------------------------------------------------------------------


def test_modes_ask_for_what_they_use(run):
    shutil.rmtree(run.parent / "pictures")
    for number in (1, 2):
        pictures(run.parent, [number])
    ends = [str(run.parent / f"{number}.bmp") for number in (1, 2)]
    settings = config.of_workdir(run)
    main.run("sample", settings, run)
    main.run("interpolate", settings, run, main.Options(*ends))
    assert (run / "figures" / "interpolation.png").exists()
    for mode, options in (
        ("interpolate", main.Options()),
        ("interpolate", main.Options(ends[0], "1")),
        ("reconstruct", main.Options()),
        ("eval", main.Options()),
    ):
        with pytest.raises(UserError, match=r"data\.source=folder:.* is no folder"):
            main.run(mode, settings, run, options)


def test_modes_take_the_step_that_is_named(run):
    settings = config.of_workdir(run)
    for step, wanted in ((5, 5), ("latest", 10), (None, 10)):
        main.run("sample", settings, run, main.Options(step=step))
        z, x = (np.load(run / "samples.npz")[name] for name in "zx")
        np.testing.assert_allclose(x, sintrovae_jax.load(run, wanted).decode(z, role="prior"), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        main.run("eval", settings, run, main.Options(step=7))
    with pytest.raises(UserError, match=r"no best checkpoint .* no checkpoint\.best"):
        main.run("eval", settings, run, main.Options(step="best"))
    with pytest.raises(UserError, match="--step is for modes that read a checkpoint, not --mode train"):
        main.run("train", settings, run, main.Options(step=5))
    assert workdirs.step_of("12") == 12
    assert workdirs.step_of("best") == "best"


def test_a_workdir_needs_no_recipe(run, monkeypatch):
    """`distributed` is of the command alone: the addresses of the last one are gone."""
    change(run, distributed="127.0.0.1:9,2,0")
    monkeypatch.chdir(run.parent)
    main.main(["main", "--workdir", "run", "--mode=sample", "--config.eval.num_samples=3", "--step=5"])
    assert len(np.load(run / "samples.npz")["x"]) == 3
    main.main(["main", "--workdir=run", "--config.train.steps=15"])
    assert sintrovae_jax.load(run).step == 15
    for arguments, says in (
        (["--workdir=run", "--config.seed=8"], r"made by another config: seed \(0 there, 8 here\)"),
        (["--workdir=nowhere", "--mode=eval"], "it is no workdir .* train first, with --config"),
        (["--mode=eval"], "no recipe given"),
    ):
        with pytest.raises(UserError, match=says):
            main.main(["main", *arguments])


@pytest.fixture(scope="module")
def with_norm(tmp_path_factory) -> Path:
    """A run with BatchNorm on a folder that is gone."""
    top = tmp_path_factory.mktemp("with_norm")
    norm = {"model.family": "conv", "eval.batch_norm": "standing", "train.ema": 0.5, "eval.every": 5}
    main.run("train", tiny(f"folder:{pictures(top / 'pictures')}", **norm), top / "run")
    (top / "pictures").rename(top / "gone")
    return top / "run"


def test_what_is_loaded_is_what_was_scored(with_norm, tmp_path):
    model, running = (sintrovae_jax.load(with_norm, batch_norm=kind) for kind in (None, "running"))
    assert (model.batch_norm, running.batch_norm) == ("standing", "running")
    x = pipeline.build(tiny(f"folder:{with_norm.parent / 'gone'}").data).test(8, 0)
    scored = json.loads((with_norm / "results.json").read_text())

    def error(of):
        return float(np.square(np.asarray(of.reconstruct(x)) - x).sum((1, 2, 3)).mean())

    assert error(model) == pytest.approx(scored["rec_error"], rel=1e-4)
    assert error(running) != pytest.approx(scored["rec_error"], rel=1e-2)
    assert scored["batch_norm"] == "standing"
    assert sintrovae_jax.load(with_norm, 5).batch_norm == "standing"
    assert sintrovae_jax.load(with_norm, ema=False).batch_norm == "running", "they are of the averaged networks"
    with pytest.raises(UserError, match="keeps no standing averages of these networks at step 10"):
        sintrovae_jax.load(with_norm, ema=False, batch_norm="standing")
    main.run("sample", config.of_workdir(with_norm), with_norm)
    z, samples = (np.load(with_norm / "samples.npz")[name] for name in "zx")
    np.testing.assert_allclose(samples, model.decode(z, role="prior"), rtol=1e-5, atol=1e-6)
    export.export(with_norm, tmp_path / "out")
    exported = sintrovae_jax.load(tmp_path / "out")
    assert exported.batch_norm == "standing"
    jax.tree.map(np.testing.assert_array_equal, exported.variables, model.variables)


def test_averages_of_other_networks_are_not_used(with_norm, tmp_path):
    shutil.copytree(with_norm, tmp_path / "run")
    kept = tmp_path / "run" / workdirs.STANDING
    assert {path.name for path in kept.iterdir()} == {"5.npz", "10.npz"}
    shutil.copy(kept / "5.npz", kept / "10.npz")
    assert sintrovae_jax.load(tmp_path / "run").batch_norm == "running"
    with pytest.raises(UserError, match="is no folder"):  # they would have to be estimated again
        main.run("sample", config.of_workdir(tmp_path / "run"), tmp_path / "run")
    (kept / "10.npz").write_bytes(b"PK")
    assert sintrovae_jax.load(tmp_path / "run").batch_norm == "running"
    model = sintrovae_jax.load(tmp_path / "run", 5)
    standing.write(model, tmp_path / "run", keep={5})
    assert {path.name for path in kept.iterdir()} == {"5.npz"}
